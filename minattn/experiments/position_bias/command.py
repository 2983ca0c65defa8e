"""Which positions does a trained attention network prefer? arXiv 2502.01951, section 5.

    python -m minattn bias --mask causal --position rope --residual --train-bias first,last

Trains small attention-only networks on in-context recall (recall_task), one per seed, and tests
each on novel classes with two items that look the same: how much more often does it follow the
earlier one? A run folder contains

    config.json                          every setting
    seed0/ seed1/ ...                    checkpoint, metrics.jsonl and result.json of each seed
    results.json  gaps.png               all seeds together, beside what the paper publishes

The same command again continues where it stopped and trains the seeds that are missing.
"""
import dataclasses
import json
import math
import os
import re
from pathlib import Path

from minattn.errors import InputError

RESULTS, PICTURE = "results.json", "gaps.png"
PARTS = ("network", "task", "training")
PAIR = [(float, None)]                   # a mean and its error
ROW_KIND = {"network": {"mask": str, "position": str, "layers": int, "residual": bool,
                        "window": (int, None), "prefix": (int, None)},
            "task": {"scale": str}, "training": {"places": [str]}, "steps": int,
            "largest_gap": float, "gaps": {str: PAIR}, "published": ({str: float}, None),
            "accuracy": {str: [PAIR]}, "train_accuracy": PAIR, "seeds": list}    # results.json
LEGEND = """
Gaps: accuracy when the earlier item is right minus accuracy when the later one is, on novel
classes; mean ± standard error over seeds, [published]. Looking at the position alone gives at most
{largest:.3f}. right: training accuracy over the last steps."""


def add_arguments(parser):
    """The options of `python -m minattn bias`."""
    from minattn.experiments.position_bias import recall_network, recall_task
    default = " (default %(default)s)"
    network = parser.add_argument_group("network")
    network.add_argument("--layers", type=int, default=2, help="attention layers" + default)
    network.add_argument("--mask", default="causal",
                         help=f"one of {', '.join(recall_network.MASKS)}{default}")
    network.add_argument("--window", type=int, metavar="W",
                         help="keys a query sees, itself included (with --mask window)")
    network.add_argument("--prefix", type=int, metavar="K",
                         help="number of leading tokens that all see each other "
                              "(with --mask prefix)")
    network.add_argument("--position", default="none",
                         help=f"one of {', '.join(recall_network.positions())}{default}")
    network.add_argument("--residual", action="store_true",
                         help="add each attention layer's input to its output")
    task = parser.add_argument_group("task and training")
    task.add_argument("--train-bias", default="none", metavar="PLACES",
                      help="position of the query's item in training: none, or some of "
                           f"{','.join(recall_task.PLACES)}{default}")
    task.add_argument("--scale", default="paper",
                      help="size of the inputs: paper (variance 1/d) or code (standard deviation "
                           "1/d, as in the authors' code)" + default)
    task.add_argument("--classes", type=int, default=2048, help="classes to train on" + default)
    task.add_argument("--middle", type=int,
                      help="index of the item counted as middle, from 0 (default 4, as in the "
                           "authors' code; the "
                           "paper's text says 3)")
    task.add_argument("--steps", type=int, default=20000,
                      help="training steps; the paper uses 100,000" + default)
    task.add_argument("--seeds", default="0", help="0-2 or 0,1,2: one network each" + default)
    task.add_argument("--sequences", type=int, default=10000,
                      help="test sequences for each order of each pair" + default)
    folders = parser.add_argument_group("running")
    folders.add_argument("--out", metavar="DIR",
                         help="run folder (default runs/bias-..., named after the settings)")
    folders.add_argument("--overwrite", action="store_true",
                         help="replace a run that is already there")
    folders.add_argument("--jobs", type=int, default=1,
                         help="seeds to train in parallel, each on one thread" + default)
    folders.add_argument("--report", nargs="+", metavar="DIR",
                         help="do not train; print one table of these run folders")
    folders.add_argument("--picture", metavar="FILE", help="plot that table (with --report)")


def run(args):
    """Train, evaluate and report -> exit code: 0, or 1 if a run diverged."""
    import sys

    from minattn import checks, files, plots, runs
    from minattn.errors import NotFinite
    from minattn.studies import plan

    if args.picture and not args.report:
        raise InputError(f"--picture draws the table of --report; a run draws its own {PICTURE}.")
    if args.report:
        rows = [read(files.named("--report", folder)) for folder in args.report]
        print_table(rows)
        if args.picture:
            draw(rows, files.named("--picture", args.picture, "file"))
        return 0
    for name in ("steps", "sequences", "jobs"):
        checks.number(f"--{name}", getattr(args, name), 1, integer=True)
    settings, seeds = settings_of(args), sorted(plan.numbers(args.seeds))
    folder = Path(f"runs/{name_of(settings)}")
    if args.out is not None:
        folder = files.named("--out", args.out)
    runs.make_folder(folder)
    with runs.lock(folder):
        prepare(folder, settings, args.steps, overwrite=args.overwrite)
        try:
            train_seeds(folder, settings, seeds, args.steps, args.sequences, args.jobs)
        except NotFinite as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        row = collect(folder, settings, args.steps)
        print_table([row])
        drawn = plots.attempt(draw, [row], folder / PICTURE)
    print(f"{folder}/ holds {RESULTS}" + (f" and {PICTURE}" if drawn else ""))
    return 0


# --------------------------------------------------------------------------------------- settings


def settings_of(args):
    """The command line -> {"network": Config, "task": Task, "training": Training}, checked."""
    from minattn.experiments.position_bias.recall_network import Config
    from minattn.experiments.position_bias.recall_task import Task
    from minattn.experiments.position_bias.recall_training import Training
    places = ()
    if args.train_bias != "none":
        places = tuple(part.strip() for part in args.train_bias.split(","))
    task = Task(classes=args.classes, scale=args.scale, middle=args.middle)
    for name in ("window", "prefix"):
        if (getattr(args, name) or 0) > task.length:
            raise InputError(f"--{name} must be at most {task.length}, the tokens of a sequence; "
                             f"got {getattr(args, name)}.")
    names = ("layers", "mask", "window", "prefix", "position", "residual")
    network = Config(**{name: getattr(args, name) for name in names})
    return {"network": network, "task": task, "training": Training(places=places)}


def as_dicts(settings):
    """The settings as config.json and results.json have them."""
    return {name: dataclasses.asdict(value) for name, value in settings.items()}


def name_of(settings):
    """A folder name that tells the settings."""
    network, task, training = as_dicts(settings).values()
    words = ["bias", _mask(network), network["position"], str(network["layers"])]
    if network["residual"]:
        words.append("residual")
    if training["places"]:
        words.append("+".join(training["places"]))
    if task["scale"] == "code":
        words.append("code")
    return "-".join(words)


def label(row):
    """What a row of results.json is about, apart from the depth."""
    network, task, places = row["network"], row["task"], row["training"]["places"]
    words = [_mask(network), network["position"]]
    if network["residual"]:
        words.append("residual")
    if places:
        words.append(f"trained {'+'.join(places)}")
    if task["scale"] != "paper":
        words.append(f"scale {task['scale']}")
    return ", ".join(words)


def _mask(network):
    return f"{network['mask']}{network['window'] or network['prefix'] or ''}"


def prepare(folder, settings, steps, *, overwrite):
    """Make the run folder and write its config.json; InputError for a run of other settings."""
    from minattn import files, runs
    from minattn.experiments.position_bias import recall_training
    runs.make_folder(folder)
    files.check_ours(folder, (RESULTS, PICTURE), runs.CONFIG)
    files.sweep(folder, (runs.CONFIG, RESULTS, PICTURE))
    new, there = as_dicts(settings), os.path.lexists(folder / runs.CONFIG)
    if there:
        old, done = read_config(folder)               # refuses a file that another program wrote
        if not overwrite:
            _check_same(folder, old, done, json.loads(json.dumps(new)), steps)
            if done == steps:
                return
    content = json.dumps({**new, "steps": steps}, indent=1) + "\n"
    with files.written_aside(folder / runs.CONFIG, content):
        if there and overwrite:
            for seed in seed_folders(folder):
                with runs.lock(seed):
                    _remove(seed, (runs.METRICS, recall_training.RESULT, runs.PREVIOUS,
                                   runs.CHECKPOINT))
            _remove(folder, (RESULTS, PICTURE))


def seed_folders(folder):
    """The folders of single seeds that are there, seed0/ seed1/ ..."""
    return [path for path in sorted(folder.glob("seed*"))
            if re.fullmatch(r"seed(0|[1-9][0-9]*)", path.name) and not path.is_symlink()]


def _remove(folder, names):
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _check_same(folder, old, done, new, steps):
    """InputError unless the run that is there, of `done` steps, can be continued to `steps`."""
    from minattn import files
    other = [f"{part}.{name} = {files.short(old[part].get(name))}, not {value!r}"
             for part, values in new.items() for name, value in values.items()
             if old[part].get(name) != value]
    if not other and done <= steps:
        return
    found = f"of {done} steps, more than --steps {steps}"
    if other:
        found = f"with {'; '.join(other)}"
    raise InputError(f"{folder} already holds a run {found}; choose a different --out, or "
                     "replace it with "
                     "--overwrite.")


def read_config(folder):
    """config.json -> ({"network": {...}, "task": {...}, "training": {...}}, steps)"""
    from minattn import files, runs
    path = Path(folder) / runs.CONFIG
    try:
        content = files.read_json(path, {**dict.fromkeys(PARTS, dict), "steps": int},
                                  way_out="it was perhaps not written by `minattn bias`; choose a "
                                          "different --out, or remove it")
    except files.Missing:
        raise InputError(f"{folder} is not a run folder of `minattn bias`: it has no "
                         f"{path.name}.") from None
    return {name: content[name] for name in PARTS}, content["steps"]


# --------------------------------------------------------------------------------------- training


def train_seeds(folder, settings, seeds, steps, count, jobs):
    """Train every seed to its end, `jobs` at a time; finished ones stay as they are.

    What happens to the process of one seed leaves the others alone; one that was killed is tried
    once more.
    """
    from minattn.experiments.position_bias import recall_training
    parts = settings["network"], settings["task"], settings["training"]
    work = [(folder / f"seed{seed}", *parts, seed, steps, count) for seed in seeds]
    if jobs == 1 or len(seeds) == 1:
        for item in work:
            _print_result(recall_training.finish(*item))
        return
    from minattn.errors import NotFinite
    from minattn.studies.executors import Processes
    lost, diverged = [], None
    with Processes(min(jobs, len(seeds))) as pool:
        futures = [pool.submit(_finish_quietly, item) for item in work]
        for item, future in zip(work, futures):
            try:
                _print_result(future.result())
            except ChildProcessError:                        # killed, for its memory perhaps
                lost.append(item)
            except NotFinite as error:
                diverged = diverged or error
        for item in lost:                                    # once more, one at a time
            try:
                _print_result(pool.submit(_finish_quietly, item).result())
            except ChildProcessError as error:
                raise ChildProcessError(f"{item[0].name}: {error}") from None
    if diverged:
        raise diverged


def _finish_quietly(item):
    from minattn.experiments.position_bias import recall_training
    return recall_training.finish(*item, bar=False)


def _print_result(result):
    gaps = "  ".join(f"{pair} {gap:+.3f}" for pair, gap in result["gaps"].items())
    print(f"seed {result['seed']}: {result['steps']} steps done in {result['seconds']:.0f} s, "
          f"loss {result['train_loss']:.3f}, right {result['train_accuracy']:.3f}; "
          f"gaps on novel classes: {gaps}", flush=True)


# ----------------------------------------------------------------------------------------- report


def collect(folder, settings, steps):
    """All seeds that have reached `steps` -> the content of results.json, which is written."""
    from minattn import files
    from minattn.experiments.position_bias import published, recall_task, recall_training
    parts = settings["network"], settings["task"], settings["training"]
    found = [recall_training.read_result(path, *parts, int(path.name.removeprefix("seed")))
             for path in seed_folders(folder)]
    found = [result for result in found if result and result["steps"] == steps]
    found.sort(key=lambda result: result["seed"])
    pairs = list(found[0]["gaps"])
    network, training = settings["network"], settings["training"]
    places = tuple(sorted(training.places, key=recall_task.PLACES.index))
    known = published.GAPS.get((places, network.mask, network.position, network.residual,
                                network.layers))

    def over_seeds(name, pair, *index):
        values = [result[name][pair] for result in found]
        return mean_and_error([value[index[0]] for value in values] if index else values)

    row = {**as_dicts(settings), "steps": steps,
           "largest_gap": recall_task.largest_gap(settings["task"]),
           "gaps": {pair: over_seeds("gaps", pair) for pair in pairs},
           "published": dict(zip(pairs, known)) if known else None,
           "accuracy": {pair: [over_seeds("accuracy", pair, n) for n in (0, 1)] for pair in pairs},
           "train_accuracy": mean_and_error([result["train_accuracy"] for result in found]),
           "seeds": found}
    files.write_json(folder / RESULTS, row, indent=1)
    return row


def mean_and_error(values):
    """[mean, standard error of the mean]; None for the error of a single value."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return [mean, None]
    variance = math.fsum((x - mean) ** 2 for x in values) / (n - 1)
    return [mean, math.sqrt(variance / n)]


def read(folder):
    """results.json of a run folder."""
    from minattn import files
    path = Path(folder) / RESULTS
    try:
        row = files.read_json(path, ROW_KIND, way_out="it was perhaps not written by `minattn "
                                                      "bias`; run it again")
    except files.Missing:
        raise InputError(f"cannot read {path}: there is none; the run is probably "
                         "unfinished.") from None
    if row["published"] and not row["gaps"].keys() <= row["published"].keys():
        raise InputError(f"{path} is damaged: it lacks a published gap; run `minattn bias` again.")
    return row


def print_table(rows):
    """One line per setting: each gap as mean ± standard error, the published one in brackets."""
    from minattn import report_table
    table = [("setting", "layers", "steps", "seeds", "right", *rows[0]["gaps"])]
    for row in rows:
        gaps = []
        for pair, (mean, error) in row["gaps"].items():
            text = f"{mean:+.3f}"
            if error is not None:
                text += f" ± {error:.3f}"
            if row["published"]:
                text += f" [{row['published'][pair]:+.3f}]"
            gaps.append(text)
        table.append((label(row), str(row["network"]["layers"]), str(row["steps"]),
                      str(len(row["seeds"])), f"{row['train_accuracy'][0]:.3f}", *gaps))
    print()
    print(report_table.text(table, right=(1, 2, 3, 4)))
    print(LEGEND.format(largest=rows[0]["largest_gap"]))


def draw(rows, path):
    """The same as bars."""
    from minattn.experiments.position_bias import figures
    bars = [{"label": label(row), "layers": row["network"]["layers"], "gaps": row["gaps"],
             "published": row["published"], "largest": row["largest_gap"]} for row in rows]
    figures.gaps(bars, path)
