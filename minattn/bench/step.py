"""One whole training step: forward, loss, backward, clipping, AdamW."""
import dataclasses
import statistics

from minattn import masks, model, report_table, train
from minattn import spec as spelling
from minattn.attention import MECHANISMS
from minattn.bench.sides import Job, measure, milliseconds, number
from minattn.layers import layers

MATMUL = 2048                      # side of the square matrices that measure the machine's rate
BATCH = {"paper": 16}              # the preset's 64 only repeats the same work four times
CASES = [*((name, "learned") for name in [*MECHANISMS, "energy[norm=prefix]"]),
         ("softmax", "rope"), ("softmax", "morlet")]
JAX = {"attention": ("softmax", "off_by_one", "sink", "gated"),      # what jax_jobs.py has
       "position": ("learned", "rope")}
KINDS = ("eager", "compile", "jax")
PLAIN_UP_TO = 128                  # tokens up to which PyTorch's unfused form is tried too
TOLERANCE = 2e-3                   # relative, of three steps' losses and gradient norms in float32


def cells(args):
    """The command line's lists -> (preset, attention, position) of every row."""
    cases = CASES
    if args.attention or args.position:
        cases = [(a, p) for a in spelling.variants("attention", args.attention or "softmax")
                 for p in spelling.variants("position", args.position or "learned")]
    found = [(preset, *case) for preset in presets(args) for case in cases]
    for cell in found:
        spec(*cell)
    return found


def presets(args, default="nano,laptop,paper"):
    return list(dict.fromkeys(name.strip() for name in (args.preset or default).split(",")))


def spec(preset, attention="softmax", position="learned"):
    """Everything that defines a training step, as plain values. The learning rate is constant."""
    changed = {"attention": attention, "position": position, "dropout": 0.0, "warmup": 0}
    settings, shape = train.settings_for(preset, changed)
    settings = dataclasses.replace(settings, min_lr=settings.lr,
                                   batch_size=BATCH.get(preset, settings.batch_size))
    config = model.to_dict(model.Config(**shape))
    return {"config": config, "settings": dataclasses.asdict(settings)}


def flops(job):
    """Floating-point operations of the matrix products of one training step, forward and backward.

    A product of (n, k) and (k, m) takes 2nkm. The backward of each product is two products of the
    same size, so a step is three times its forward. Attention is counted by the pairs of query and
    key that its mask leaves visible: half a square when causal. Everything else (norms, GELU,
    softmax, optimiser, what is computed twice) is not counted.
    """
    config = model.Config(**job["config"])
    T, B = config.block_size, job["settings"]["batch_size"]
    weights = sum(shape[0] * shape[1] for name, (shape, _) in model.parameter_shapes(config).items()
                  if len(shape) == 2 and not name.startswith("position."))
    pairs = sum(int(masks.visible(T, T, causal=True, window=layer.window).sum())
                for layer in layers(config))
    return 3 * 2 * B * (T * weights + 2 * pairs * config.n_embd)


def suite(args, problems):
    """Every cell -> a list of rows; prints a table for each preset."""
    rows, todo = [], cells(args)
    for preset in presets(args):
        part = []
        for cell in todo:
            if cell[0] == preset:
                what = f"[{len(rows) + len(part) + 1}/{len(todo)}] {', '.join(cell)}"
                part.append(_row(what, cell, args, problems))
        _print(part)
        rows += part
    return rows


def _row(what, cell, args, problems):
    preset, attention, position = cell
    job, softmax = spec(*cell), spec(preset)

    def step(module, checks=3, **more):
        return Job(module, "step", {**job, **more}, checks, args.threads)

    jobs = {"minattn": step("bench.numpy_jobs"),
            "floor": Job("bench.numpy_jobs", "step_floor", job, threads=args.threads),
            "rate": Job("bench.numpy_jobs", "matmul", {"n": MATMUL}, threads=args.threads)}
    if job["config"] != softmax["config"]:
        jobs["minattn softmax"] = step("bench.numpy_jobs", 1, **softmax)
    forms = {"": True}
    if job["config"]["block_size"] <= PLAIN_UP_TO:
        forms[" plain"] = False
    for form, fused in forms.items():
        for kind in args.torch_kinds:
            jobs[kind + form] = step("bench.torch_jobs", fused=fused, compile=kind == "compile")
    if args.jax and attention in JAX["attention"] and position in JAX["position"]:
        jobs["jax"] = step("bench.jax_jobs")
    found = measure(what, jobs, args, problems, tolerance=TOLERANCE,
                    unchecked=("floor", "rate", "minattn softmax"))
    return {"preset": preset, "attention": attention, "position": position, "job": job,
            "threads": args.threads, "turns": found.turns, "peak_bytes": found.peaks,
            "checks": found.checks, **summary(found, job, args.threads)}


def summary(found, job, threads):
    """Medians, ratios and shares of a row."""
    seconds, work, product = found.seconds, flops(job), 2 * threads * MATMUL**3
    ratios = {label: found.ratio(label) for label in seconds if label.startswith(KINDS)}
    best = {}                                                  # the form that is harder to beat
    for kind in KINDS:
        forms = [label for label in ratios if label.startswith(kind)]
        best[kind] = max(forms, key=ratios.get, default=None)
    softmax = "minattn softmax" if "minattn softmax" in seconds else "minattn"
    return {"flops": work, "rate": product / seconds["rate"]["median"],
            "share": work / product / found.ratio("rate"), "ratios": ratios, "best": best,
            "over_floor": found.ratio("floor"), "overhead": found.ratio(softmax),
            "seconds": seconds}


def _print(rows):
    preset, job, threads = rows[0]["preset"], rows[0]["job"], rows[0]["threads"]
    shape, settings = job["config"], job["settings"]
    print(f"\n{preset}: {shape['n_layer']} layers, {shape['n_head']} heads, {shape['n_embd']} "
          f"channels, batch {settings['batch_size']} x {shape['block_size']} tokens in "
          f"{settings['chunks']} chunks; one training step, {threads} threads, float32, dropout 0")
    kinds = ["eager", "compile"]
    if any(row["best"]["jax"] for row in rows):
        kinds.append("jax")
    lines = [("attention", "position", "minattn ms", *(f"{kind} ms" for kind in kinds), "/eager",
              "/best", "share", "floor ms", "/floor", "/softmax", "peak MB")]
    for row in rows:
        shown = ["minattn", *(row["best"][kind] for kind in kinds)]
        ratios = [row["ratios"].get(label) for label in shown[1:]]
        best = max((r for r in ratios if r is not None), default=None)
        peaks = [f"{row['peak_bytes'][label] / 1e6:.0f}" for label in shown if label]
        lines.append((row["attention"], row["position"],
                      *(milliseconds(row["seconds"].get(label)) for label in shown),
                      number(ratios[0]), number(best), number(row["share"]),
                      milliseconds(row["seconds"]["floor"]), number(row["over_floor"]),
                      number(row["overhead"]), " / ".join(peaks)))
    print(report_table.text(lines, right=range(2, len(lines[0]))))
    rivals = "the fastest of PyTorch's and JAX's" if "jax" in kinds else "the faster of both"
    rate = statistics.median(row["rate"] for row in rows)
    peaks = [kind for kind in kinds if any(row["best"][kind] for row in rows)]
    print(NOTE.format(rivals=rivals, gflop=rows[0]["flops"] / 1e9, rate=rate / 1e9,
                      threads=threads, n=MATMUL, peaks=" / ".join(["minattn", *peaks])))
    plain = [f"{row['attention']} {row['position']} ({label.split()[0]})" for row in rows
             for label in row["best"].values() if label and "plain" in label]
    if plain:
        print(f"PyTorch's unfused form was the faster one for {', '.join(plain)}.")


NOTE = """\
ms: median (quartiles). /eager, /best: our time relative to PyTorch's, eager and {rivals}: below 1,
    we are faster.
share: matrix products ({gflop:.3g} GFLOP a step in the first row, causal attention counted as half)
    per second, relative to the {rate:.0f} GFLOP/s that {threads} threads reach here on {n} x {n}
    matrices. floor: the step's own matrix products and nothing else, on as many cores; /floor:
    our time relative to it. /softmax: relative to our softmax step.
peak MB: the whole process, libraries and compiler included: {peaks}."""
