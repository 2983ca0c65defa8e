"""Which places in a sequence does a trained attention network prefer? The experiments of arXiv 2502.01951, section 5.

    python -m minattn bias --mask causal --position rope --layers 2 --residual --train-bias first,last

Trains small attention-only networks on in-context recall (recall_task), one per seed, and asks each about
novel classes with two items that look the same: how much more often is the earlier one believed? A run folder holds

    config.json                          every setting
    seed0/ seed1/ ...                    checkpoint, metrics.jsonl, result.json of each seed
    results.json  gaps.png               all seeds together, beside what the paper publishes

The same command again goes on where it stopped, trains the seeds that are missing, or says that all is done.
"""
import dataclasses
import json
import math
from pathlib import Path

from minattn.errors import InputError

RESULTS, PICTURE = "results.json", "gaps.png"


def add_arguments(parser):
    """The options of `python -m minattn bias`."""
    from minattn.experiments.position_bias import recall_network, recall_task
    default = " (default %(default)s)"
    network = parser.add_argument_group("network")
    network.add_argument("--layers", type=int, default=2, help="attention layers" + default)
    network.add_argument("--mask", default="causal", help=f"one of {', '.join(recall_network.MASKS)}{default}")
    network.add_argument("--window", type=int, metavar="W", help="keys a query sees, its own included (with --mask window)")
    network.add_argument("--prefix", type=int, metavar="K", help="first tokens that all see each other (with --mask prefix)")
    network.add_argument("--position", default="none", help="none, sinusoidal, rope or decay" + default)
    network.add_argument("--residual", action="store_true", help="add each attention layer's input to its output")
    task = parser.add_argument_group("task and training")
    task.add_argument("--train-bias", default="none", metavar="PLACES",
                      help=f"where the query's item lies while training: none, or some of {','.join(recall_task.PLACES)}{default}")
    task.add_argument("--scale", default="paper",
                      help="size of the inputs: paper (variance 1/d) or code (deviation 1/d, as the authors' code has it)" + default)
    task.add_argument("--classes", type=int, default=2048, help="classes to train on" + default)
    task.add_argument("--middle", type=int, help="item called middle, from 0 (default 4, as the authors' code; the paper's text says 3)")
    task.add_argument("--steps", type=int, default=20000, help="training steps; the paper takes 100,000" + default)
    task.add_argument("--seeds", default="0", help="0-2 or 0,1,2: one network each" + default)
    task.add_argument("--sequences", type=int, default=10000, help="to evaluate each order of each pair" + default)
    folders = parser.add_argument_group("running")
    folders.add_argument("--out", metavar="DIR", help="run folder (default runs/bias-..., named after the settings)")
    folders.add_argument("--overwrite", action="store_true", help="replace a run that is already there")
    folders.add_argument("--jobs", type=int, default=1, help="seeds to train at the same time, each on one thread" + default)
    folders.add_argument("--report", nargs="+", metavar="DIR", help="train nothing: one table of these run folders")
    folders.add_argument("--picture", metavar="FILE", help="draw that table (with --report)")


def run(args):
    """Train, evaluate and report -> exit code: 0, or 1 if a run diverged."""
    import sys

    from minattn import checks
    from minattn.train import Diverged

    if args.picture and not args.report:
        raise InputError(f"--picture draws the table of --report; a run draws its own {PICTURE}.")
    if args.report:
        rows = [read(folder) for folder in args.report]
        print_table(rows)
        if args.picture:
            draw(rows, args.picture)
        return 0
    for name in ("steps", "sequences", "jobs"):
        checks.number(f"--{name}", getattr(args, name), 1, integer=True)
    settings, seeds = settings_of(args), seeds_of(args.seeds)
    folder = Path(args.out if args.out is not None else f"runs/{name_of(settings)}")
    prepare(folder, settings, args.steps, overwrite=args.overwrite)
    try:
        train_seeds(folder, settings, seeds, args.steps, args.sequences, args.jobs)
    except Diverged as stop:
        print(f"error: {stop}", file=sys.stderr)
        return 1
    row = collect(folder, settings, args.steps)
    print_table([row])
    draw([row], folder / PICTURE)
    print(f"{folder}/ holds {RESULTS} and {PICTURE}")
    return 0


# ---------------------------------------------------------------------------------------------------------- settings


def settings_of(args):
    """The command line -> {"network": Config, "task": Task, "training": Training}, checked."""
    from minattn.experiments.position_bias.recall_network import Config
    from minattn.experiments.position_bias.recall_task import Task
    from minattn.experiments.position_bias.recall_training import Training
    places = () if args.train_bias == "none" else tuple(part.strip() for part in args.train_bias.split(","))
    task = Task(classes=args.classes, scale=args.scale, middle=args.middle)
    for name in ("window", "prefix"):
        if (getattr(args, name) or 0) > task.length:
            raise InputError(f"--{name} must be at most {task.length}, the tokens of a sequence; got {getattr(args, name)}.")
    return {"network": Config(layers=args.layers, mask=args.mask, window=args.window, prefix=args.prefix, position=args.position,
                              residual=args.residual),
            "task": task, "training": Training(places=places)}


def seeds_of(text):
    """"0-2" or "0,1,2" -> [0, 1, 2]"""
    seeds = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not (high.isdecimal() and int(low) <= int(high) < int(low) + 1000)):
            raise InputError(f"--seeds takes whole numbers, as 0-2 or 0,1,2; got {text!r}.")
        seeds += range(int(low), int(high or low) + 1)
    return sorted(set(seeds))


def name_of(settings):
    """A folder name that tells the settings."""
    network, task, training = settings["network"], settings["task"], settings["training"]
    words = ["bias", f"{network.mask}{network.window or network.prefix or ''}", network.position, str(network.layers)]
    words += ["residual"] * network.residual + ["+".join(training.places)] * bool(training.places) + ["code"] * (task.scale == "code")
    return "-".join(words)


def prepare(folder, settings, steps, *, overwrite):
    """Make the run folder and write its config.json; InputError if it holds a run of other settings."""
    from minattn import runs
    from minattn.experiments.position_bias import recall_training
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another --out.") from None
    there = (folder / runs.CONFIG).exists()
    old, done = read_config(folder) if there else ({}, 0)               # never touches what another program wrote
    if there and overwrite:
        for seed in folder.glob("seed*"):
            with runs.lock(seed):
                for name in (*runs.FILES, recall_training.RESULT):
                    (seed / name).unlink(missing_ok=True)
        for name in (RESULTS, PICTURE):
            (folder / name).unlink(missing_ok=True)
    new = {key: dataclasses.asdict(value) for key, value in settings.items()}
    if there and not overwrite:
        flat_old, flat_new = ({f"{k}.{n}": v for k, part in s.items() for n, v in part.items()} for s in (old, json.loads(json.dumps(new))))
        other = [f"{key} = {flat_old.get(key)!r}, not {value!r}" for key, value in flat_new.items() if flat_old.get(key) != value]
        if other:
            raise InputError(f"{folder} holds a run with {'; '.join(other)}: choose another --out, or replace it with --overwrite.")
        if done > steps:
            raise InputError(f"{folder} holds a run of {done} steps, more than --steps {steps}: choose another --out, or replace it "
                             "with --overwrite.")
        if done == steps:
            return
    runs.write_aside(folder / runs.CONFIG, (json.dumps({**new, "steps": steps}, indent=1) + "\n").encode())


def read_config(folder):
    """config.json -> ({"network": {...}, "task": {...}, "training": {...}}, steps)"""
    from minattn import runs
    path = Path(folder) / runs.CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: dict(content[key]) for key in ("network", "task", "training")}, int(content["steps"])
    except OSError as error:
        raise InputError(f"{folder} is not a run folder of `minattn bias`: {path.name}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not one of `minattn bias`, or damaged: choose another --out, or remove it.") from None


# ---------------------------------------------------------------------------------------------------------- training


def train_seeds(folder, settings, seeds, steps, count, jobs):
    """Every seed to its end, `jobs` at a time; what is done already is left as it is."""
    from minattn.experiments.position_bias import recall_training
    work = [(folder / f"seed{seed}", settings["network"], settings["task"], settings["training"], seed, steps, count) for seed in seeds]
    if jobs == 1 or len(seeds) == 1:
        for item in work:
            _say(recall_training.finish(*item))
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    with ProcessPoolExecutor(min(jobs, len(seeds)), multiprocessing.get_context("spawn")) as pool:
        for result in pool.map(_finish_quietly, work):
            _say(result)


def _finish_quietly(item):
    from minattn.experiments.position_bias import recall_training
    return recall_training.finish(*item, bar=False)


def _say(result):
    gaps = "  ".join(f"{pair} {gap:+.3f}" for pair, gap in result["gaps"].items())
    print(f"seed {result['seed']}: {result['steps']} steps done in {result['seconds']:.0f} s, loss {result['train_loss']:.3f}, "
          f"right {result['train_accuracy']:.3f}; gaps on novel classes: {gaps}", flush=True)


# ----------------------------------------------------------------------------------------------------------- report


def collect(folder, settings, steps):
    """All seeds that are at `steps` -> what results.json holds, and it is written."""
    from minattn import runs
    from minattn.experiments.position_bias import published, recall_task, recall_training
    found = sorted(filter(None, map(recall_training.read_result, folder.glob("seed*"))), key=lambda result: result["seed"])
    found = [result for result in found if result["steps"] == steps]
    pairs = list(found[0]["gaps"])
    network, training = settings["network"], settings["training"]
    known = published.GAPS.get((tuple(sorted(training.places, key=recall_task.PLACES.index)), network.mask, network.position,
                                network.residual, network.layers))
    row = {**{key: dataclasses.asdict(value) for key, value in settings.items()}, "steps": steps,
           "largest_gap": recall_task.largest_gap(settings["task"]),
           "gaps": {pair: mean_and_error([result["gaps"][pair] for result in found]) for pair in pairs},
           "published": dict(zip(pairs, known)) if known else None,
           "accuracy": {pair: [mean_and_error([result["accuracy"][pair][n] for result in found]) for n in (0, 1)] for pair in pairs},
           "train_accuracy": mean_and_error([result["train_accuracy"] for result in found]),
           "seeds": found}
    runs.write_aside(folder / RESULTS, (json.dumps(row, indent=1) + "\n").encode())
    return row


def mean_and_error(values):
    """[mean, standard error of the mean]; None for the error of a single value."""
    n, mean = len(values), math.fsum(values) / len(values)
    return [mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1) / n) if n > 1 else None]


def read(folder):
    """results.json of a run folder."""
    path = Path(folder) / RESULTS
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        label(row), row["gaps"], row["published"], row["seeds"]
        return row
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; a run that was finished has one.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not one of `minattn bias`, or damaged.") from None


def label(row):
    """What a row is about, but for its depth."""
    network, task, places = row["network"], row["task"], row["training"]["places"]
    words = [f"{network['mask']}{network['window'] or network['prefix'] or ''}", network["position"]]
    return ", ".join(words + ["residual"] * network["residual"] + [f"trained {'+'.join(places)}"] * bool(places)
                     + [f"scale {task['scale']}"] * (task["scale"] != "paper"))


def print_table(rows):
    """One line per setting: each gap as mean +- standard error over the seeds, the paper's number in brackets."""
    table = [("setting", "layers", "steps", "seeds", "right", *rows[0]["gaps"])]
    for row in rows:
        gaps = []
        for pair, (mean, error) in row["gaps"].items():
            theirs = f" [{row['published'][pair]:+.3f}]" if row["published"] else ""
            gaps.append(f"{mean:+.3f}" + (f" ± {error:.3f}" if error is not None else "") + theirs)
        table.append((label(row), str(row["network"]["layers"]), str(row["steps"]), str(len(row["seeds"])),
                      f"{row['train_accuracy'][0]:.3f}", *gaps))
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    print()
    for line in table:
        print("  ".join(text.ljust(width) if i in (0, 5, 6, 7) else text.rjust(width)
                        for i, (text, width) in enumerate(zip(line, widths))).rstrip())
    print(f"\nGaps: accuracy when the earlier item is right less when the later one is, novel classes; mean ± standard error over seeds, "
          f"[published].\nLooking at the place alone gives at most {rows[0]['largest_gap']:.3f}. right: training accuracy over the last steps.")


def draw(rows, path):
    """The same as bars."""
    from minattn import plots
    plots.gaps([{"label": label(row), "layers": row["network"]["layers"], "gaps": row["gaps"], "published": row["published"],
                 "largest": row["largest_gap"]} for row in rows], path)
