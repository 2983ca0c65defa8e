"""python -m minattn vision: tiny vision transformers on noisy shapes, softmax beside the Gaussian kernel, with error bars over seeds."""
import csv
import dataclasses
import io
import json
import math
import sys
from pathlib import Path
from statistics import fmean, stdev
from time import perf_counter

import numpy as np

from minattn import checks, ops, optim, parallel, plots, runs, spec
from minattn.errors import InputError
from minattn.experiments.vision import shapes, vit
from minattn.studies import plan, tables

RECIPE = {"batch": 32, "weight_decay": 0.05, "test": 2000}      # no weight decay on log sigma, as in the paper; test: pictures
LOOKS = 10                                                      # how often a run is tested, at its end the last time
NUMBERS = ("parameters", "flops", "accuracy", "test_loss", "train_loss", "seconds")


def add_arguments(parser):
    parser.add_argument("--attention", default="softmax,gaussian", metavar="LIST",
                        help=f"some of {', '.join(vit.ATTENTIONS)}, options in brackets: gaussian[values=projected], "
                        "softmax[width=40,layers=2]; the first is the baseline (default %(default)s)")
    parser.add_argument("--no-matched", action="store_true",
                        help="leave out the softmax that is so narrow as to have the parameters of the first Gaussian one")
    parser.add_argument("--seeds", default="0-2", help="0-4 or 0,3,7 (default %(default)s)")
    parser.add_argument("--steps", type=int, default=1500, help="training steps (default %(default)s: some 35 s a run)")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate (default %(default)s)")
    parser.add_argument("--out", default="runs/vision", help="folder of results, table and picture (default %(default)s)")


def run(args):
    """Train what DIR does not hold yet, write the table and the picture -> 0"""
    from tqdm import tqdm
    checks.number("--steps", args.steps, 1, integer=True)
    checks.number("--lr", args.lr, above=0)
    if args.out == "":
        raise InputError("--out must name a folder.")
    configs, seeds, folder = variants(args.attention, matched=not args.no_matched), plan.numbers(args.seeds), Path(args.out)
    plan.check_folder(folder)
    with runs.lock(folder), parallel.workers(1), np.errstate(all="ignore"):
        rows = {}
        for name, seed in ((name, seed) for seed in seeds for name in configs):
            settings = {**dataclasses.asdict(configs[name]), **RECIPE, "steps": args.steps, "lr": args.lr}
            path = folder / plan.folder_name(name) / f"seed-{seed}.json"
            rows[name, seed] = path, settings, finished(path, settings)
        todo = sum(row is None for _, _, row in rows.values())
        with tqdm(total=todo * args.steps, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
            for (name, seed), (path, settings, row) in rows.items():
                bar.set_description_str(f"{name}, seed {seed}")
                rows[name, seed] = row or finish(path, name, configs[name], settings, seed, bar)
    rows = list(rows.values())
    runs.write_aside(folder / tables.RESULTS, to_csv(rows).encode())
    runs.write_aside(folder / tables.TABLE, markdown(rows, list(configs)).encode())
    draw(rows, list(configs), folder / "vision.png")
    print((folder / tables.TABLE).read_text(encoding="utf-8"))
    print(f"{folder}/ holds {tables.TABLE}, {tables.RESULTS}, vision.png and a file for each run")
    return 0


def variants(text, *, matched=True):
    """"softmax,gaussian[qk_norm=true]" -> {name: vit.Config}; with `matched`, last the narrow softmax."""
    found, known = {}, [f.name for f in dataclasses.fields(vit.Config) if f.name not in ("attention", "size", "labels")]

    def add(name, config):
        for other, theirs in found.items():
            if theirs == config:
                raise InputError(f"variants {other!r} and {name!r} are the same: leave one out.")
        found[name] = config

    for name in spec.variants("attention", text):
        parts, *more = spec.parse("attention", name)
        if more or len(parts) > 1:
            raise InputError(f"attention {name!r}: one mechanism for all layers, without a gate on top.")
        for option in parts[0].options:
            checks.choice(f"{name}: an option", option, known)
        add(name, vit.Config(attention=parts[0].name, labels=len(shapes.LABELS), **parts[0].options))
    kernel = next((config for config in found.values() if "q" not in config.mechanism.arguments), None)
    if matched and kernel:
        narrow = [dataclasses.replace(kernel, attention="softmax", values="own", qk_norm=False, sigma_init=None, width=width)
                  for width in range(kernel.heads, kernel.width + 1, kernel.heads)]
        nearest = min(narrow, key=lambda config: abs(vit.count_parameters(config) - vit.count_parameters(kernel)))
        if nearest not in found.values():
            add(f"softmax[width={nearest.width}]", nearest)
    return found


def finished(path, settings):
    """The row of a run that is there, None if it is not; InputError if it was made with other settings."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in settings if row["settings"][name] != settings[name]]
        row = {name: row[name] for name in ("variant", "seed", *NUMBERS, "curve", "sigma", "settings")}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not a run of `minattn vision`, or damaged: remove it, or choose another --out.") from None
    for name in other:
        raise InputError(f"{path} holds a run with {name} = {row['settings'][name]!r}, not {settings[name]!r}: give the settings "
                         "it was made with, or choose another --out.")
    return row


def finish(path, name, config, settings, seed, bar):
    """Train and test one network -> its row, a dict, which is also written to `path`. No picture is seen twice."""
    steps, began, losses, curve = settings["steps"], perf_counter(), [], []
    p, params, decayed = optim.flatten(vit.init(config, [seed, 2]))
    g, grads, _ = optim.flatten({key: np.zeros_like(a) for key, a in params.items()})
    m, v = np.zeros_like(p), np.zeros_like(p)
    images, answers = shapes.draw(settings["test"], np.random.default_rng([seed, 1]), size=config.size)
    looks = {math.ceil(steps * k / LOOKS) for k in range(1, LOOKS + 1)}
    for step in range(1, steps + 1):
        x, y = shapes.draw(settings["batch"], np.random.default_rng([seed, 0, step]), size=config.size)
        logits, cache = vit.forward(params, x, config)
        loss, softmax = ops.cross_entropy_forward(logits, y)
        for key, grad in vit.backward(ops.cross_entropy_backward(1.0, softmax)["logits"], cache, config).items():
            grads[key][...] = grad
        norm = optim.global_norm(grads)
        if not math.isfinite(loss + norm):
            raise InputError(f"{name}, seed {seed}: the loss or its gradient is not finite at step {step}; try a smaller --lr.")
        g *= np.float32(optim.clip_factor(norm, 1.0))
        lr = optim.learning_rate(step - 1, lr=settings["lr"], min_lr=settings["lr"] / 20, warmup=steps // 20, steps=steps)
        for part, decay in ((slice(decayed), settings["weight_decay"]), (slice(decayed, None), 0.0)):
            optim.adamw(p[part], g[part], m[part], v[part], step, lr, betas=(0.9, 0.99), weight_decay=decay)
        losses.append(loss)
        if step in looks:
            logits = np.concatenate([vit.forward(params, images[i:i + 200], config)[0] for i in range(0, len(images), 200)])
            curve.append([step, float(np.mean(logits.argmax(axis=1) == answers))])
        bar.update()
    row = {"variant": name, "seed": seed, "parameters": vit.count_parameters(config), "flops": vit.flops(config), "accuracy": curve[-1][1],
           "test_loss": ops.cross_entropy_forward(logits, answers)[0], "train_loss": fmean(losses[-100:]),
           "seconds": round(perf_counter() - began, 1), "curve": curve,
           "sigma": [np.exp(a).tolist() for key, a in params.items() if key.endswith("log_sigma")], "settings": settings}
    path.parent.mkdir(exist_ok=True)
    runs.write_aside(path, (json.dumps(row) + "\n").encode())
    return row


# ----------------------------------------------------------------------------------------------------- the results


def to_csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, ("variant", "seed", *NUMBERS), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(rows, names):
    """table.md: a line per variant, its differences to the first one paired by seed."""
    table = [("variant", "seeds", "parameters", "MFLOP a picture", "right, %", f"minus {names[0]}", "training loss", "sigma", "seconds")]
    right = {name: {row["seed"]: 100 * row["accuracy"] for row in rows if row["variant"] == name} for name in names}
    for name in names:
        mine = [row for row in rows if row["variant"] == name]
        values, d = list(right[name].values()), tables.paired(right[name], right[names[0]])
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        interval = f" [{d.mean - d.half:+.2f}, {d.mean + d.half:+.2f}]" if d.half is not None else ""
        sigma = np.mean([row["sigma"] for row in mine], axis=(0, 2)) if mine[0]["sigma"] else []
        table.append((name, str(len(mine)), f"{mine[0]['parameters']:,}", f"{mine[0]['flops'] / 1e6:.2f}",
                      f"{fmean(values):.2f}{spread}", "-" if name == names[0] else f"{d.mean:+.2f}{interval}",
                      f"{fmean(row['train_loss'] for row in mine):.3f}", ", ".join(f"{s:.2f}" for s in sigma) or "-",
                      f"{fmean(row['seconds'] for row in mine):.0f}"))
    return tables.table(table) + "\n" + NOTE.format(test=rows[0]["settings"]["test"], chance=100 / len(shapes.LABELS))


NOTE = """
Right: of {test} new pictures per seed, mean ± standard deviation over seeds; chance is {chance:.1f} %. Minus: points, at the same seed, whose
training and test pictures all variants share; mean and its 95 % interval (Student's t; not corrected for the number of variants). MFLOP:
matrix products of one forward pass. Training loss: nats, last 100 batches. Sigma: learned, by layer, mean over heads and seeds.
"""


def draw(rows, names, path):
    """vision.png: pictures of every shape; accuracy against steps, mean over seeds with a band of one standard deviation."""
    fig, (left, right) = plots.figure(10.5, 4.4, ncols=2, width_ratios=(1, 1.6))
    size, many = rows[0]["settings"]["size"], 5
    images, labels = shapes.draw(60 * many, np.random.default_rng([rows[0]["seed"], 1]), size=size)
    left.imshow(np.vstack([np.hstack(images[labels == k][:many]) for k in range(len(shapes.LABELS))]), cmap="gray")
    left.set_yticks(size * (np.arange(len(shapes.LABELS)) + 0.5), shapes.LABELS)
    left.set(xticks=(), title="Pictures to tell apart")
    left.grid(False)
    for n, name in enumerate(names):
        curves = np.array([row["curve"] for row in rows if row["variant"] == name])                  # (seeds, looks, 2)
        steps, share = curves[0, :, 0], 100 * curves[..., 1]
        mean, deviation = share.mean(axis=0), share.std(axis=0, ddof=int(len(share) > 1))
        colour = plots.COLOURS[n % len(plots.COLOURS)]
        right.plot(steps, mean, "o-", ms=4, lw=1.6, color=colour, label=f"{name}: {mean[-1]:.1f} %")
        right.fill_between(steps, mean - deviation, mean + deviation, color=colour, alpha=0.15, lw=0)
    right.axhline(100 / len(shapes.LABELS), color="black", lw=0.8, ls=":", label="chance")
    right.set(xlabel="step", ylabel="right on new pictures (%)", ylim=(0, 100), title="Mean and standard deviation over seeds")
    right.legend(frameon=False, fontsize=9, loc="center right")
    plots.save(fig, path)
