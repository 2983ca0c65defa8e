"""How a training step grows: its time and memory against the batch, the context, the channels and
the layers, and what more threads are worth.

One size changes at a time; the others are those of the preset `laptop`. Memory is the most that
NumPy's arrays take at once while a model takes its steps, parameters and optimiser included.
"""
import dataclasses
import math
import os
import sys

from minattn import files, model, plots, report_table
from minattn.bench import long, step
from minattn.bench.sides import Job, measure, milliseconds, number, sides, spread
from minattn.errors import InputError

PRESET = "laptop"
HEAD = 32                       # channels per head; more channels are more heads
SIZES = {"batch": (8, 16, 32, 64), "context": (64, 128, 256, 512),
         "channels": (64, 128, 256, 512), "layers": (1, 2, 4, 8)}
THREADS_OF = ("nano", "laptop", "paper")
FENCE = "```text\n"             # where --page puts the tables


def suite(args, problems):
    """-> {"points": [...], "fits": [...], "threads": [...], "text"}; prints the tables."""
    points = _points(args)
    fits = _fits(points)
    threads = [row for preset in THREADS_OF for row in _threads(preset, args, problems)]
    text = _text(points, fits, threads, args)
    print(text)
    return {"points": points, "fits": fits, "threads": threads, "text": text}


def spec(**changes):
    """The step of PRESET with other sizes: batch, context, channels, layers"""
    job = step.spec(PRESET)
    shape = {"n_layer": changes.get("layers"), "n_embd": changes.get("channels"),
             "block_size": changes.get("context")}
    if shape["n_embd"]:
        shape["n_head"] = shape["n_embd"] // HEAD
    shape = {name: n for name, n in shape.items() if n}
    config = model.to_dict(dataclasses.replace(
        model.Config(**job["config"]), attention_options=None, position_options=None, **shape))
    settings = dict(job["settings"])
    settings["batch_size"] = changes.get("batch", settings["batch_size"])
    return {"config": config, "settings": settings}


def _points(args):
    """A row for each size of each kind"""
    def job(what, size):
        return Job("bench.numpy_jobs", "step", spec(**{what: size}), threads=args.threads)

    every, rows = [(what, size) for what, sizes in SIZES.items() for size in sizes], []
    jobs = {"minattn": job(*every[0])}
    with sides(jobs) as timed, sides(jobs, trace=True) as traced:
        for what, size in every:
            print(f"{what} {size}", file=sys.stderr, flush=True)
            this = job(what, size)
            timed["minattn"]("job", this.name, this.spec, 1)
            seconds = timed["minattn"]("time", args.repeat)
            traced["minattn"]("job", this.name, this.spec, 2)
            rows.append({"what": what, "size": size, "turns": [seconds], "seconds": spread(seconds),
                         "bytes": traced["minattn"]("memory")["arrays"]})
    return rows


def _fits(points):
    """Exponents p of c size^p, over all sizes and over the last doubling"""
    fits = []
    for what in SIZES:
        sizes, seconds, amounts = zip(*((row["size"], row["seconds"]["median"], row["bytes"])
                                        for row in points if row["what"] == what))
        fits.append({"what": what, **{
            name: {"all": long.exponent(sizes, values, 0),
                   "last": long.exponent(sizes, values, sizes[-2])}
            for name, values in (("time", seconds), ("memory", amounts))}})
    return fits


def _threads(preset, args, problems):
    """The step and its floor on 1, 2, 4, ... threads, up to twice as many as there are cores"""
    job, cores = step.spec(preset), os.cpu_count() or 1
    counts = [2**i for i in range(int(math.log2(2 * cores)) + 1)]
    jobs = {f"{name} {n}": Job("bench.numpy_jobs", name, job, threads=n)
            for n in counts for name in ("step", "step_floor")}
    found = measure(f"threads, {preset}", jobs, args, problems, tolerance=0,
                    unchecked=[label for label in jobs if label.startswith("step_floor")])
    chunks = job["settings"]["chunks"]
    return [{"preset": preset, "threads": n, "chunks": chunks,
             "most": chunks / math.ceil(chunks / min(n, cores)),
             **{name: {"seconds": found.seconds[f"{name} {n}"], "turns": found.turns[f"{name} {n}"],
                       "speedup": found.ratio(f"{name} {n}", f"{name} 1")}
                for name in ("step", "step_floor")}} for n in counts]


# ------------------------------------------------------------------------------------ what is shown


def _text(points, fits, threads, args):
    shape = spec()
    c, batch = shape["config"], shape["settings"]["batch_size"]
    parts = [f"one training step, {args.threads} threads, float32; where nothing else is said: "
             f"batch {batch}, context {c['block_size']}, {c['n_embd']} channels, "
             f"{c['n_layer']} layers; {HEAD} channels per head"]
    lines = [("", "", "step ms", "MB")]
    lines += [(row["what"], str(row["size"]), milliseconds(row["seconds"]),
               number(row["bytes"] / 1e6, 1)) for row in points]
    parts.append(report_table.text(lines, right=(1, 2, 3)))
    lines = [("grows with", "time as", "last doubling", "memory as", "last doubling")]
    lines += [(fit["what"], *(f"size^{fit[name][where]:.2f}" for name in ("time", "memory")
                              for where in ("all", "last"))) for fit in fits]
    parts.append(report_table.text(lines))
    lines = [("preset", "threads", "step ms", "faster by", "at most", "products alone ms",
              "faster by")]
    lines += [(row["preset"], str(row["threads"]), milliseconds(row["step"]["seconds"]),
               number(row["step"]["speedup"]), number(row["most"]),
               milliseconds(row["step_floor"]["seconds"]), number(row["step_floor"]["speedup"]))
              for row in threads]
    parts.append(report_table.text(lines, right=range(1, 7)))
    parts.append("at most: chunks of the batch in a step, by chunks that follow one another on the "
                 "busiest core")
    return "\n\n".join(parts)


def picture(result, path):
    """Time and memory against each size, relative to the preset's; speed against threads. PNG"""
    fig, (left, middle, right) = plots.figure(13, 4.2, ncols=3)
    base = {"batch": spec()["settings"]["batch_size"], "context": spec()["config"]["block_size"],
            "channels": spec()["config"]["n_embd"], "layers": spec()["config"]["n_layer"]}
    for what, colour in zip(SIZES, plots.COLOURS):
        rows = [row for row in result["points"] if row["what"] == what]
        x = [row["size"] / base[what] for row in rows]
        line = {"color": colour, "marker": "o", "ms": 4, "lw": 1.6}
        left.plot(x, [row["seconds"]["median"] * 1e3 for row in rows], label=what, **line)
        middle.plot(x, [row["bytes"] / 1e6 for row in rows], **line)
    left.set(ylabel="ms per training step")
    middle.set(ylabel="MB of arrays, at the peak")
    ticks = [2.0**i for i in range(-2, 3)]
    for ax in (left, middle):
        ax.set(xscale="log", yscale="log", xlabel=f"size relative to the preset {PRESET}")
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    left.legend(frameon=False, fontsize=8)
    counts = sorted({row["threads"] for row in result["threads"]})
    for preset, colour in zip(THREADS_OF, plots.COLOURS):
        rows = [row for row in result["threads"] if row["preset"] == preset]
        for name, style, label in (("step", "-", preset), ("step_floor", ":", None)):
            right.plot(counts, [row[name]["speedup"] for row in rows], style, color=colour,
                       marker="o", ms=4, lw=1.6, label=label)
    right.plot(counts, counts, color="0.7", lw=1, zorder=0)
    right.set(xscale="log", yscale="log", xlabel="threads", ylabel="times as fast as one thread",
              title="dotted: matrix products alone")
    right.set_xticks(counts, [str(n) for n in counts])
    right.set_yticks(counts, [str(n) for n in counts])
    right.minorticks_off()
    right.legend(frameon=False, fontsize=8)
    plots.save(fig, path)


def page_parts(path):
    """The text of a page before and after its tables; InputError where there is no place for them.
    """
    before, fence, rest = files.read_text(path, follow=True).partition(FENCE)
    _, end, after = rest.partition("```")
    if not end:
        raise InputError(f"--page {path}: there is no place for the tables, a line ```text and "
                         "after it a line ```.")
    return before + fence, end + after


def fill(path, text):
    """Put the tables into a page, in the place of its first block of ```text."""
    before, after = page_parts(path)
    files.write(path, f"{before}{text}\n{after}", follow=True)
