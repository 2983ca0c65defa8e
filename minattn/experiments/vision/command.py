"""python -m minattn vision: tiny vision transformers on noisy shapes, over several seeds."""
import csv
import dataclasses
import io
import math
import sys
from statistics import fmean, stdev
from time import perf_counter

import numpy as np

from minattn import checks, files, ops, parallel, plots, report_table, runs, spec, train
from minattn.errors import InputError, NotFinite
from minattn.experiments.vision import shapes, vit
from minattn.studies import plan, tables

# no weight decay on log sigma, as in the paper; test: pictures
RECIPE = {"batch": 32, "weight_decay": 0.05, "test": 2000}
LOOKS = 10                     # how often a run is tested, the last time at its end
NUMBERS = ("parameters", "flops", "accuracy", "test_loss", "train_loss", "seconds")
PICTURE = "vision.png"
NOT_OURS = "remove it, if `minattn vision` wrote it, or choose a different --out"
ROW_KIND = {"variant": str, "seed": int, **dict.fromkeys(NUMBERS, float), "curve": [[float]],
            "sigma": [[float]], "settings": dict}     # of one run's file


def add_arguments(parser):
    default = " (default %(default)s)"
    parser.add_argument("--attention", default="softmax,gaussian", metavar="LIST",
                        help=f"some of {', '.join(vit.ATTENTIONS)}, options in brackets: "
                             "gaussian[values=projected], softmax[width=40,layers=2]; the first is "
                             "the baseline" + default)
    parser.add_argument("--no-matched", action="store_true",
                        help="leave out the softmax that is narrow enough to have as many "
                             "parameters as the first Gaussian variant")
    parser.add_argument("--seeds", default="0-2", help="0-4 or 0,3,7" + default)
    parser.add_argument("--steps", type=int, default=1500,
                        help="training steps (default %(default)s: about 35 s a run)")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate" + default)
    parser.add_argument("--out", default="runs/vision",
                        help="folder of results, table and picture" + default)


def run(args):
    """Train what the folder does not contain yet, write the table and the picture -> 0"""
    from tqdm import tqdm
    checks.number("--steps", args.steps, 1, integer=True)
    checks.number("--lr", args.lr, above=0)
    folder = files.named("--out", args.out)
    configs = variants(args.attention, matched=not args.no_matched)
    seeds = plan.numbers(args.seeds)
    runs.make_folder(folder)
    with runs.lock(folder), parallel.workers(1), np.errstate(all="ignore"):
        files.check_ours(folder, (tables.RESULTS, tables.TABLE, PICTURE), "*/seed-*.json")
        rows = {}
        for name, seed in ((name, seed) for seed in seeds for name in configs):
            settings = {**dataclasses.asdict(configs[name]), **RECIPE, "steps": args.steps,
                        "lr": args.lr}
            path = folder / plan.folder_name(name) / f"seed-{seed}.json"
            rows[name, seed] = path, settings, finished(path, name, seed, settings)
        todo = sum(row is None for _, _, row in rows.values())
        with tqdm(total=todo * args.steps, unit="step", dynamic_ncols=True,
                  disable=not sys.stderr.isatty()) as bar:
            for (name, seed), (path, settings, row) in rows.items():
                bar.set_description_str(f"{name}, seed {seed}")
                rows[name, seed] = row or finish(path, name, configs[name], settings, seed, bar)
    rows = list(rows.values())
    table = markdown(rows, list(configs))
    with runs.lock(folder, wait=True):
        files.sweep(folder, (tables.RESULTS, tables.TABLE, PICTURE))
        files.write(folder / tables.RESULTS, to_csv(rows))
        files.write(folder / tables.TABLE, table)
        drawn = plots.attempt(draw, rows, list(configs), folder / PICTURE)
    print(table)
    picture = f", {PICTURE}" if drawn else ""
    print(f"{folder}/ holds {tables.TABLE}, {tables.RESULTS}{picture} and a file for each run")
    return 0


def variants(text, *, matched=True):
    """"softmax,gaussian[qk_norm=true]" -> {name: vit.Config}; matched: and a narrow softmax."""
    found = {}
    known = [f.name for f in dataclasses.fields(vit.Config)
             if f.name not in ("attention", "size", "labels")]

    def add(name, config):
        for other, theirs in found.items():
            if theirs == config:
                raise InputError(f"variants {other!r} and {name!r} are the same: leave one out.")
        found[name] = config

    for name in spec.variants("attention", text):
        (first, *more), *layers = spec.parse("attention", name)
        if more or layers:
            raise InputError(f"attention {name!r}: one mechanism for all layers, without a gate on "
                             "top.")
        for option in first.options:
            checks.choice(f"{name}: an option", option, known)
        add(name, vit.Config(attention=first.name, labels=len(shapes.LABELS), **first.options))
    kernel = next((config for config in found.values() if not config.has_queries), None)
    if matched and kernel:
        narrow = nearest_softmax(kernel)
        if narrow not in found.values():
            add(f"softmax[width={narrow.width}]", narrow)
    return found


def nearest_softmax(kernel):
    """Softmax attention of the width at which it has about as many parameters as this kernel."""
    plain = {"attention": "softmax", "values": "own", "qk_norm": False, "sigma_init": None}
    widths = range(kernel.heads, kernel.width + 1, kernel.heads)
    configs = [dataclasses.replace(kernel, **plain, width=width) for width in widths]
    size = vit.count_parameters(kernel)
    return min(configs, key=lambda config: abs(vit.count_parameters(config) - size))


def finished(path, name, seed, settings):
    """The row of a finished run, None without one; InputError for that of another run."""
    try:
        row = files.read_json(path, ROW_KIND, way_out=NOT_OURS)
    except files.Missing:
        return None
    row = {name: row[name] for name in ROW_KIND}
    there = {**row["settings"], "variant": row["variant"], "seed": row["seed"]}
    for key, value in {**settings, "variant": name, "seed": seed}.items():
        if there.get(key) != value:
            raise InputError(f"{path} holds a run with {key} = {files.short(there.get(key))}, "
                             f"not {value!r}: give the settings it was made with, or choose "
                             "a different --out.")
    return row


def finish(path, name, config, settings, seed, bar):
    """Train and test one network -> its row, also written to `path`. No picture is seen twice."""
    steps, lr, began, losses, curve = settings["steps"], settings["lr"], perf_counter(), [], []
    recipe = train.Settings(steps=steps, lr=lr, min_lr=lr / 20, warmup=steps // 20,
                            weight_decay=settings["weight_decay"])
    state = parallel.start(vit.init(config, [seed, 2]))
    test = shapes.draw(settings["test"], np.random.default_rng([seed, 1]), size=config.size)
    looks = {math.ceil(steps * k / LOOKS) for k in range(1, LOOKS + 1)}

    def diverged(what, step):
        return NotFinite(f"{name}, seed {seed}: {what}",
                         f"is not finite at step {step}; try a smaller --lr.")

    for step in range(1, steps + 1):
        rng = np.random.default_rng([seed, 0, step])
        x, y = shapes.draw(settings["batch"], rng, size=config.size)
        try:
            losses.append(loss_and_gradients(state.params, x, y, config, state.grads))
            parallel.update(state, recipe)
        except NotFinite as error:
            raise diverged(error.name, step) from None
        if step in looks:
            test_loss, accuracy = evaluate(state.params, *test, config)
            if not math.isfinite(test_loss):             # the last update is in no training loss
                raise diverged("the test loss", step)
            curve.append([step, accuracy])
        bar.update()
    sigma = [np.exp(a).tolist() for key, a in state.params.items() if key.endswith("log_sigma")]
    row = {"variant": name, "seed": seed, "parameters": vit.count_parameters(config),
           "flops": vit.flops(config), "accuracy": accuracy, "test_loss": test_loss,
           "train_loss": fmean(losses[-100:]), "seconds": round(perf_counter() - began, 1),
           "curve": curve, "sigma": sigma, "settings": settings}
    runs.make_folder(path.parent, below=path.parents[1])
    files.sweep(path.parent, (path.name,))
    files.write_json(path, row)
    return row


def loss_and_gradients(params, images, labels, config, grads):
    """Mean loss of a batch; the gradients are written into `grads`."""
    logits, cache = vit.forward(params, images, config)
    loss, softmax = ops.cross_entropy_forward(logits, labels)
    if not math.isfinite(loss):
        raise NotFinite("the loss")
    dlogits = ops.cross_entropy_backward(1.0, softmax)["logits"]
    for name, grad in vit.backward(dlogits, cache, config).items():
        grads[name][...] = grad
    return loss


def evaluate(params, images, labels, config):
    """-> (mean loss, share of right answers)"""
    parts = [images[i:i + 200] for i in range(0, len(images), 200)]
    logits = np.concatenate([vit.forward(params, part, config)[0] for part in parts])
    right = np.mean(logits.argmax(axis=1) == labels)
    return ops.cross_entropy_forward(logits, labels)[0], float(right)


# ------------------------------------------------------------------------------------ the results


def to_csv(rows):
    text = io.StringIO()
    columns = ("variant", "seed", *NUMBERS)
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(rows, names):
    """table.md: a line per variant, its differences to the first one paired by seed."""
    table = [("variant", "seeds", "parameters", "MFLOP a picture", "right, %", f"minus {names[0]}",
              "training loss", "sigma", "seconds")]
    right = {name: {row["seed"]: 100 * row["accuracy"] for row in rows if row["variant"] == name}
             for name in names}
    for name in names:
        mine = [row for row in rows if row["variant"] == name]
        values = list(right[name].values())
        accuracy, minus, sigma = f"{fmean(values):.2f}", "-", "-"
        if len(values) > 1:
            accuracy += f" ± {stdev(values):.2f}"
        if name != names[0]:
            d = tables.paired(right[name], right[names[0]])
            minus = f"{d.mean:+.2f}"
            if d.half is not None:
                minus += f" [{d.mean - d.half:+.2f}, {d.mean + d.half:+.2f}]"
        if mine[0]["sigma"]:
            by_layer = np.mean([row["sigma"] for row in mine], axis=(0, 2))
            sigma = ", ".join(f"{s:.2f}" for s in by_layer)
        table.append((name, str(len(mine)), f"{mine[0]['parameters']:,}",
                      f"{mine[0]['flops'] / 1e6:.2f}", accuracy, minus,
                      f"{fmean(row['train_loss'] for row in mine):.3f}", sigma,
                      f"{fmean(row['seconds'] for row in mine):.0f}"))
    note = NOTE.format(test=rows[0]["settings"]["test"], chance=100 / len(shapes.LABELS))
    return report_table.markdown(table) + "\n" + note


NOTE = """
Right: of {test} new pictures per seed, mean ± standard deviation over seeds; chance is
{chance:.1f} %. Minus: points, at the same seed, whose training and test pictures all variants
share; mean and its 95 % interval (Student's t; not corrected for the number of variants). MFLOP:
matrix products of one forward pass. Training loss: nats, last 100 batches. Sigma: learned, by
layer, mean over heads and seeds.
"""


def draw(rows, names, path):
    """vision.png: pictures of every shape, and accuracy by step, mean ± standard deviation."""
    fig, (left, right) = plots.figure(10.5, 4.4, ncols=2, width_ratios=(1, 1.6))
    size, many, classes = rows[0]["settings"]["size"], 5, len(shapes.LABELS)
    rng = np.random.default_rng([rows[0]["seed"], 1])
    images, labels = shapes.draw(60 * many, rng, size=size)
    strips = [np.hstack(images[labels == k][:many]) for k in range(classes)]
    left.imshow(np.vstack(strips), cmap="gray")
    left.set_yticks(size * (np.arange(classes) + 0.5), shapes.LABELS)
    left.set(xticks=(), title="Pictures to tell apart")
    left.grid(False)
    for n, name in enumerate(names):
        curves = np.array([row["curve"] for row in rows if row["variant"] == name])
        steps, share = curves[0, :, 0], 100 * curves[..., 1]              # (looks,), (seeds, looks)
        mean, deviation = share.mean(axis=0), share.std(axis=0, ddof=1 if len(share) > 1 else 0)
        colour = plots.COLOURS[n % len(plots.COLOURS)]
        right.plot(steps, mean, "o-", ms=4, lw=1.6, color=colour, label=f"{name}: {mean[-1]:.1f} %")
        right.fill_between(steps, mean - deviation, mean + deviation, color=colour, alpha=0.15,
                           lw=0)
    right.axhline(100 / classes, color="black", lw=0.8, ls=":", label="chance")
    right.set(xlabel="step", ylabel="right on new pictures (%)", ylim=(0, 100),
              title="Mean and standard deviation over seeds")
    right.legend(frameon=False, fontsize=9, loc="center right")
    plots.save(fig, path)
