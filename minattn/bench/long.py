"""Attention alone over long sequences, forward and backward: time and memory against T, and how
fast they grow."""
import numpy as np

from minattn import plots, report_table
from minattn.bench.sides import Job, measure, milliseconds, number, ratio, sides

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
HEADS, HEAD_SIZE = 4, 32
TORCH_FORMS = {None: ("fused",), 256: ("blocks", "mask")}      # window -> forms to try
MASK_UP_TO = 4096                  # tokens up to which PyTorch's window as a (T, T) mask is tried
FIT_FROM = 2048                    # shorter ones are mostly overhead


def suite(args, problems):
    """-> {"rows": [...], "exponents": [...]}; prints a table for full and for windowed attention.
    """
    rows, exponents = [], []
    for window in TORCH_FORMS:
        part, fits = _rows(window, args, problems), []
        for _, side, T, seconds, sizes in curves(part):
            fits.append({"window": window, "side": side, "memory": exponent(T, sizes),
                         "time": exponent(T, [times["median"] for times in seconds])})
        _print(window, part, fits, args)
        rows += part
        exponents += fits
    return {"rows": rows, "exponents": exponents}


def _jobs(window, T, args):
    """label -> Job of every side that takes part at this length"""
    spec = {"T": T, "H": HEADS, "D": HEAD_SIZE, "window": window}
    jobs = {"minattn": Job("bench.numpy_jobs", "attention", spec, threads=args.threads)}
    for form in TORCH_FORMS[window] if args.torch else ():
        if form != "mask" or T <= MASK_UP_TO:
            label = "PyTorch" if form == "fused" else f"PyTorch {form}"
            jobs[label] = Job("bench.torch_jobs", "attention", {**spec, "form": form},
                              threads=args.threads)
    return jobs


def _rows(window, args, problems):
    """A row for each side at each length."""
    rows, lengths = [], [T for T in LENGTHS if T <= args.longest]
    for T in lengths:
        jobs = _jobs(window, T, args)
        floor = jobs["minattn"]._replace(name="attention_floor")
        found = measure(f"attention over {T} tokens, {_kind(window)}", {**jobs, "floor": floor},
                        args, problems, tolerance=1e-3, unchecked=("floor",), most=30)
        seconds, turns = found.seconds, found.turns
        rows += [{"window": window, "side": label, "T": T, "seconds": seconds[label],
                  "turns": turns[label], "ratio": found.ratio(label), "floor": seconds["floor"],
                  "over_floor": ratio(turns[label], turns["floor"])}
                 for label in jobs if label in turns]
    with sides(_jobs(window, lengths[0], args), trace=True) as group:    # memory, shortest first
        before = {label: _memory(group[label], job)
                  for label, job in _jobs(window, 64, args).items()}
        for row in rows:
            label = row["side"]
            after = _memory(group[label], _jobs(window, row["T"], args)[label])
            row["resident_bytes"], row["array_bytes"] = (
                max(0, after[kind] - before[label][kind] - after["input_bytes"])
                for kind in ("peak", "arrays"))
            kind = "array_bytes" if label == "minattn" else "resident_bytes"
            row["extra_bytes"] = row[kind]
    return rows


def _memory(side, job):
    """Do a job once -> {"input_bytes", "checks", "peak", "arrays"}, in bytes since it began"""
    return side("job", job.name, job.spec, job.checks) | side("memory")


def curves(rows):
    """For each window and side: window, side, lengths, quartiles of the times, bytes."""
    for window, side in dict.fromkeys((row["window"], row["side"]) for row in rows):
        mine = [row for row in rows if (row["window"], row["side"]) == (window, side)]
        yield window, side, *zip(*((row["T"], row["seconds"], row["extra_bytes"]) for row in mine))


def exponent(T, values, first=FIT_FROM):
    """The p of the best fit c T^p, in logarithms, from `first` on; None for fewer than two."""
    points = [(t, value) for t, value in zip(T, values) if t >= first and value > 0]
    return float(np.polyfit(*np.log(points).T, 1)[0]) if len(points) > 1 else None


def _kind(window):
    return "full causal" if window is None else f"window {window}"


def _print(window, rows, fits, args):
    print(f"\nattention, {_kind(window)}: forward and backward, {HEADS} heads of {HEAD_SIZE} "
          f"channels, float32, {args.threads} threads")
    labels = list(dict.fromkeys(row["side"] for row in rows))
    lines = [("T", *(f"{label} ms" for label in labels), "/best",
              "floor ms", "/floor", *(f"{label} MB" for label in labels))]
    for T in dict.fromkeys(row["T"] for row in rows):
        here = {row["side"]: row for row in rows if row["T"] == T}
        found = [here.get(label, {"seconds": None, "extra_bytes": None}) for label in labels]
        ours = here["minattn"]
        best = max((row["ratio"] for row in rows if row["T"] == T and row["side"] != "minattn"),
                   default=None)
        megabytes = (row["extra_bytes"] and row["extra_bytes"] / 1e6 for row in found)
        lines.append((str(T), *(milliseconds(row["seconds"]) for row in found), number(best),
                      milliseconds(ours["floor"]), number(ours["over_floor"]),
                      *(number(size, 1) for size in megabytes)))
    print(report_table.text(lines, right=range(1, len(lines[0]))))
    print("floor: the matrix products of minattn's tiles and nothing else; /floor: minattn's time "
          "relative to it.")
    print("MB: peak memory beyond q, k, v and dout (minattn: arrays; PyTorch: growth of the "
          "process).")
    grown = [f"{fit['side']} time ~ T^{fit['time']:.2f}, memory ~ T^{fit['memory'] or 0:.2f}"
             for fit in fits if fit["time"]]
    if grown:
        print(f"Growth from T = {FIT_FROM}: {'; '.join(grown)}.")


def picture(rows, path):
    """Time and memory of attention against the length of the sequence, as PNG."""
    fig, (left, right) = plots.figure(10, 4.2, ncols=2)
    sides = list(dict.fromkeys(row["side"] for row in rows))
    for window, side, T, seconds, sizes in curves(rows):
        low, middle, high = ([times[at] for times in seconds] for at in ("q1", "median", "q3"))
        colour = plots.COLOURS[sides.index(side) % len(plots.COLOURS)]
        style = "-" if window is None else "--"
        line = {"color": colour, "marker": "o", "ms": 4, "lw": 1.6, "ls": style}
        left.plot(T, middle, label=f"{side}, {_kind(window)}", **line)
        left.fill_between(T, low, high, color=colour, alpha=0.15, lw=0)
        right.plot(T, [max(size, 1) / 1e6 for size in sizes], **line)
    ticks = sorted({row["T"] for row in rows})
    left.set(ylabel="seconds, forward and backward")
    right.set(ylabel="MB beyond the inputs, at the peak")
    for ax in (left, right):
        ax.set(xscale="log", yscale="log", xlabel="tokens in the sequence")
        ax.set_xticks(ticks, [str(T) for T in ticks])
        ax.minorticks_off()
    left.legend(frameon=False, fontsize=8)
    plots.save(fig, path)
