"""From rows to results.csv and back, and to table.md: means over seeds, and differences to the baseline paired by seed."""
import csv
import io
import json
import math
import statistics
from typing import NamedTuple

from minattn import model, report_table, runs
from minattn.errors import InputError
from minattn.studies.measures import SCALARS

RESULTS, TABLE = "results.csv", "table.md"
ABOUT = {"variant": str, "seed": int, "attention": str, "position": str, "steps": int,
         "folder": str, "status": str, "reason": str}


class Paired(NamedTuple):
    """Differences to the baseline, seed by seed."""
    seeds: tuple
    differences: tuple
    mean: float
    half: float | None       # the 95 % interval of the mean is mean -+ half (Student's t); None for a single seed
    lower: int               # seeds at which the difference is below 0


def paired(values, baseline):
    """{seed: value} of a variant and of the baseline -> Paired over the seeds that both have, None without any."""
    from scipy import stats
    seeds = tuple(seed for seed in values if seed in baseline)
    d = tuple(values[seed] - baseline[seed] for seed in seeds)
    if not d:
        return None
    half = float(stats.t.ppf(0.975, len(d) - 1)) * statistics.stdev(d) / math.sqrt(len(d)) if len(d) > 1 else None
    return Paired(seeds, d, statistics.fmean(d), half, sum(x < 0 for x in d))


def by_seed(rows, variant, name):
    """{seed: value} of one measure over a variant's finished runs."""
    return {row["seed"]: row[name] for row in rows if row["variant"] == variant and row["status"] == "done"}


def crossed(variants, base):
    """Where the baseline, another attention, another position and both together are all there -> [(attention alone, position alone, both)]"""
    def parts(v):
        shape = model.to_dict(model.Config(**v.shape))
        attention, position = shape.pop("attention"), shape.pop("position")
        return attention, position, (json.dumps(shape, sort_keys=True, default=str), v.settings)

    named = {parts(v): v.name for v in variants}
    a0, p0, rest = next(key for key, name in named.items() if name == base)
    found = [(named.get((a, p0, rest)), named.get((a0, p, rest)), name) for (a, p, other), name in named.items()
             if a != a0 and p != p0 and other == rest]
    return [triple for triple in found if None not in triple]


def write(plan, rows):
    """results.csv and table.md, into the plan's folder."""
    runs.write_aside(plan.folder / RESULTS, to_csv(rows).encode())
    runs.write_aside(plan.folder / TABLE, markdown(plan, rows).encode())


# ---------------------------------------------------------------------------------------------------- results.csv


def to_csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, [*ABOUT, *SCALARS], restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()})
    return text.getvalue()


def read_csv(path):
    """results.csv -> the rows it was written from; InputError if it is no such file."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [_row(row) for row in csv.DictReader(file)]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a results.csv of compare ({type(error).__name__}: {error}).") from None


def _row(texts):
    row = {name: kind(texts[name]) for name, kind in ABOUT.items()}
    if row["status"] == "done":
        row |= {name: _number(texts[name]) for name in SCALARS}
    return row


def _number(text):
    if text == "":
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)


# ------------------------------------------------------------------------------------------------------- table.md


def markdown(plan, rows):
    """The comparison as a page: losses, differences, what training and attention look like, what failed."""
    names, base = [v.name for v in plan.variants], plan.baseline
    done = {name: sum(row["status"] == "done" for row in rows if row["variant"] == name) for name in names}

    def mean(name, measure, digits=4, spread=True):
        values = [x for x in by_seed(rows, name, measure).values() if x is not None]
        if not values:
            return "-"
        text = f"{round(statistics.fmean(values), digits) + 0.0:,.{digits}f}"             # + 0.0: no -0.0000
        return text + f" ± {statistics.stdev(values):.{digits}f}" if spread and len(values) > 1 else text

    def difference(name, measure):
        return said(None if name == base else paired(by_seed(rows, name, measure), by_seed(rows, base, measure)))

    def interaction(one, other, both, measure):
        changes = [{seed: a - b for seed, a in by_seed(rows, x, measure).items() if (b := by_seed(rows, y, measure).get(seed)) is not None}
                   for x, y in ((both, one), (other, base))]
        return said(paired(*changes))

    def said(found):
        if found is None:
            return "-"
        interval = f" [{found.mean - found.half:+.4f}, {found.mean + found.half:+.4f}]" if found.half is not None else ""
        return f"{found.mean:+.4f}{interval}, lower in {found.lower} of {len(found.seeds)}"

    losses = [("variant", "runs", "parameters", "validation, teacher-forced", "validation, prefix-only", "leak", "training, evaluated", "gap")]
    losses += [(name, f"{done[name]} of {len(plan.seeds)}", mean(name, "parameters", 0, False), mean(name, "val_loss"),
                mean(name, "val_loss_prefix_only"), _leak(mean, name), mean(name, "train_loss_eval"), mean(name, "gap")) for name in names]
    differences = [("variant", "prefix-only", "teacher-forced")]
    differences += [(name, difference(name, "val_loss_prefix_only"), difference(name, "val_loss")) for name in names if name != base]
    inside = [("variant", "first-token mass", "entropy", "sum of weights", "gradient norm", "its variation", "spikes, k = 6", "spikes, k = 9",
               "training, last 100", "seconds")]
    inside += [(name, mean(name, "first_token_mass"), mean(name, "entropy", 3), mean(name, "row_sum"), mean(name, "grad_norm_mean", 3),
                mean(name, "grad_norm_cv", 3), mean(name, "spikes_6", 1), mean(name, "spikes_9", 1), mean(name, "train_loss_last_100"),
                mean(name, "seconds", 0)) for name in names]
    failures = [(f"{row['variant']}, seed {row['seed']}", row["reason"].replace("|", "/")) for row in rows if row["status"] == "failed"]
    size = max((row["sample_size"] for row in rows if row["status"] == "done"), default=0)
    parts = ["## Loss\n", report_table.markdown(losses), LOSS_NOTE.format(size=size)]
    if len(names) > 1:
        parts += [f"\n## Difference to {base}\n", report_table.markdown(differences), DIFFERENCE_NOTE]
    if triples := crossed(plan.variants, base):
        lines = [("variants", "prefix-only", "teacher-forced")]
        lines += [(f"{both} against {one} and {other}", *(interaction(one, other, both, m) for m in ("val_loss_prefix_only", "val_loss")))
                  for one, other, both in triples]
        parts += ["\n## Interaction\n", report_table.markdown(lines), INTERACTION_NOTE]
    parts += ["\n## Attention and training\n", report_table.markdown(inside), INSIDE_NOTE]
    if len(names) > 1:
        measures = ("first_token_mass", "entropy", "grad_norm_variance", "grad_norm_cv", "spikes_6", "spikes_9")
        changes = [("variant", *(name.replace("_", " ") for name in measures))]
        changes += [(name, *(difference(name, measure) for measure in measures)) for name in names if name != base]
        parts += [f"\n## The same as differences to {base}\n", report_table.markdown(changes)]
    if failures:
        parts += ["\n## Failed\n", report_table.markdown([("run", "reason"), *failures])]
    return "\n".join(parts) + "\n"


LOSS_NOTE = """
Nats per character, over the whole validation split; mean ± standard deviation over seeds. Teacher-forced: the whole window in view.
Prefix-only: each prediction from its own prefix alone, as text is written; it is the teacher-forced loss plus the leak, which is
the mean difference over the same {size} predictions spread over the validation split (± its standard error). Gap: validation minus training,
both teacher-forced in evaluation mode over equally many windows."""
DIFFERENCE_NOTE = """
Variant minus baseline at the same seed (same batches in the same order): mean over seeds and its 95 % interval (Student's t; not corrected for
the number of variants). Below 0: better than the baseline."""
INTERACTION_NOTE = """
What both changes together do beyond the sum of what each does alone: (both - one) - (other - baseline), seed by seed, mean and 95 % interval.
Below 0: together they are better than their sum (superadditive)."""
INSIDE_NOTE = """
First-token mass, entropy (of |w| / sum |w|, nats) and sum of weights: means over layers, heads and queries, on validation text. Gradient norm:
before clipping; variation is standard deviation / mean over all steps; a spike exceeds median + k MAD."""


def _leak(mean, name):
    leak, error = mean(name, "leak"), mean(name, "leak_se", 4, False)
    return leak if leak == "-" else f"{mean(name, 'leak', 4, False)} ± {error}"
