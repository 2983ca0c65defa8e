"""One whole training step: forward, loss, backward, clipping, AdamW."""
import statistics

from minattn import masks, model, train
from minattn import spec as spelling
from minattn.attention import MECHANISMS
from minattn.bench.sides import compare, flat, milliseconds, prepare, print_table, progress, ratio, sides, spread, take_turns
from minattn.layers import layers

MATMUL = 2048                      # side of the square matrices by which the machine's rate is measured
BATCH = {"paper": 16}              # the preset's 64 only repeats the same work four times
CASES = [*((name, "learned") for name in [*MECHANISMS, "energy[norm=prefix]"]), ("softmax", "rope"),
         ("softmax", "morlet")]
JAX = {"attention": ("softmax", "off_by_one", "sink", "gated"), "position": ("learned", "rope")}     # what jax_jobs.py has
PLAIN_UP_TO = 128                  # tokens up to which PyTorch's unfused form is tried too
TOLERANCE = 2e-3                   # relative, of three steps' losses and gradient norms in float32


def cells(presets, attention, position):
    """The command line's lists -> (preset, attention, position, spec, spec of plain softmax) of every row."""
    if attention or position:
        cases = [(a, p) for a in spelling.variants("attention", attention or "softmax")
                 for p in spelling.variants("position", position or "learned")]
    else:
        cases = CASES
    return [(preset, a, p, spec(preset, a, p), spec(preset)) for preset in _split(presets) for a, p in cases]


def _split(text):
    return [part.strip() for part in text.split(",")]


def spec(preset, attention="softmax", position="learned"):
    """Everything that defines a training step, as plain values."""
    changed = {"attention": attention, "position": position, "dropout": 0.0}
    settings, shape = train.settings_for(preset, changed)
    same = {key: getattr(settings, key) for key in ("chunks", "lr", "weight_decay", "eps", "clip", "decay", "seed")}
    return {"config": model.to_dict(model.Config(**shape)), "batch": BATCH.get(preset, settings.batch_size),
            "betas": (settings.beta1, settings.beta2), **same}


def flops(job):
    """Floating-point operations of the matrix products of one training step, forward and backward.

    A product of (n, k) and (k, m) takes 2nkm. The backward of each product is two products of the same size, so a step
    is three times its forward. Attention is counted by the pairs of query and key that its mask leaves visible: half a
    square when causal. Everything else (norms, GELU, softmax, optimiser, what is computed twice) is not counted.
    """
    config = model.Config(**job["config"])
    T = config.block_size
    weights = sum(shape[0] * shape[1] for name, (shape, _) in model.parameter_shapes(config).items()
                  if len(shape) == 2 and not name.startswith("position."))
    pairs = sum(int(masks.visible(T, T, causal=True, window=layer.window).sum()) for layer in layers(config))
    return 3 * 2 * job["batch"] * (T * weights + 2 * pairs * config.n_embd)


def suite(cells, args, torch, jax, problems):
    """Every cell -> a list of rows; prints a table for each preset. torch, jax: is it installed?"""
    rows = []
    for n, (preset, attention, position, job, softmax) in enumerate(cells):
        what = f"{preset}, {attention}, {position}"
        progress(f"[{n + 1}/{len(cells)}] {what}")
        jobs = {"minattn": ("numpy_jobs", ("step", job, 3)), "rate": ("numpy_jobs", ("matmul", {"n": MATMUL}, 1))}
        if job["config"] != softmax["config"]:
            jobs["minattn softmax"] = ("numpy_jobs", ("step", softmax, 1))
        for fused in (True, False) if torch else ():
            if fused or job["config"]["block_size"] <= PLAIN_UP_TO:
                for compiled in (False,) if args.no_compile else (False, True):
                    label = ("compile" if compiled else "eager") + " plain" * (not fused)
                    jobs[label] = ("torch_jobs", ("step", {**job, "fused": fused, "compile": compiled}, 3))
        if jax and attention in JAX["attention"] and position in JAX["position"]:
            jobs["jax"] = ("jax_jobs", ("step", job, 3))
        with sides({label: (module, args.threads) for label, (module, _) in jobs.items()}) as group:
            answers = prepare(group, {label: work for label, (_, work) in jobs.items()}, problems)
            compared = {label: answer for label, answer in answers.items() if label not in ("rate", "minattn softmax")}
            compare(what, compared, TOLERANCE, problems)
            times = take_turns(group, answers, args.repeat, problems)
            peaks = {label: side("memory")["peak"] for label, side in group.items()}
        row = {"preset": preset, "attention": attention, "position": position, "job": job, "threads": args.threads,
               "turns": times, "peak_bytes": peaks, "checks": {label: compared[label]["checks"] for label in compared}}
        rows.append({**row, **summary(row)})
        if n + 1 == len(cells) or cells[n + 1][0] != preset:
            _print([row for row in rows if row["preset"] == preset])
    return rows


def summary(row):
    """Medians, ratios and shares from the times of a row."""
    times, work = row["turns"], flops(row["job"])
    rates = [[2 * row["threads"] * MATMUL**3 / t for t in turn] for turn in times["rate"]]
    done = [[work / t for t in turn] for turn in times["minattn"]]
    ratios = {label: ratio(times["minattn"], times[label]) for label in times if label.startswith(("eager", "compile", "jax"))}
    best = {}                      # of PyTorch's fused and plain form, the one that is harder to beat
    for kind in ("eager", "compile"):
        best[kind] = max((label for label in ratios if label.startswith(kind)), key=ratios.get, default=None)
    if "jax" in ratios:
        best["jax"] = "jax"
    return {"flops": work, "rate": statistics.median(flat(rates)), "share": ratio(done, rates),
            "ratios": ratios, "best": best,
            "overhead": ratio(times["minattn"], times.get("minattn softmax", times["minattn"])),
            "seconds": {label: spread(turns) for label, turns in times.items()}}


def _print(rows):
    job, threads = rows[0]["job"], rows[0]["threads"]
    shape = job["config"]
    print(f"\n{rows[0]['preset']}: {shape['n_layer']} layers, {shape['n_head']} heads, {shape['n_embd']} channels, "
          f"batch {job['batch']} x {shape['block_size']} tokens in {job['chunks']} chunks; one training step, "
          f"{threads} threads, float32, dropout 0")
    kinds = ["eager", "compile"] + ["jax"] * any("jax" in row["best"] for row in rows)
    table, plain = [("attention", "position", "minattn ms", *(f"{kind} ms" for kind in kinds), "/eager", "/best", "share",
                     "/softmax", "peak MB")], []
    for row in rows:
        shown = ["minattn", *(row["best"].get(kind) for kind in kinds)]
        ratios = [row["ratios"][label] for label in shown[1:] if label]
        eager = row["ratios"].get(shown[1])
        table.append((row["attention"], row["position"], *(milliseconds(row["seconds"].get(label)) for label in shown),
                      f"{eager:.2f}" if eager else "-", f"{max(ratios):.2f}" if ratios else "-",
                      f"{row['share']:.2f}", f"{row['overhead']:.2f}",
                      " / ".join(f"{row['peak_bytes'][label] / 1e6:.0f}" for label in shown if label)))
        plain += [f"{row['attention']} {row['position']} ({label.split()[0]})"
                  for label in shown if label and "plain" in label]
    print_table(table)
    rate = statistics.median(row["rate"] for row in rows)
    peaks = "".join(f" / {kind}" for kind in kinds if any(row["best"].get(kind) for row in rows))
    rivals = "the fastest of PyTorch's and JAX's" if "jax" in kinds else "the faster of both"
    print("ms: median (quartiles). /eager, /best: our time by PyTorch's, "
          f"eager and {rivals}: below 1, we are faster.\n"
          f"share: matrix products ({rows[0]['flops'] / 1e9:.3g} GFLOP a step in the first row, causal attention counted "
          f"as half) per second,\n       by the {rate / 1e9:.0f} GFLOP/s that {threads} threads reach here on "
          f"{MATMUL} x {MATMUL} matrices. /softmax: by our own softmax step.\n"
          f"peak MB: the whole process, libraries and compiler included: minattn{peaks}.")
    if plain:
        print(f"PyTorch's unfused form was the faster one for {', '.join(plain)}.")
