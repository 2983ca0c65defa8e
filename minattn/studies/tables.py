"""From rows to results.csv and back, and to table.md: means over seeds, and differences to the
baseline paired by seed."""
import csv
import io
import math
import statistics
from typing import NamedTuple

from minattn import files, report_table, runs
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
    half: float | None       # the 95 % interval of the mean is mean -+ half (Student's t)
    lower: int               # seeds at which the difference is below 0


def paired(values, baseline):
    """{seed: value} of a variant and of the baseline -> Paired over the seeds that both have.

    None without any; half is None for one.
    """
    from scipy import stats
    seeds = tuple(seed for seed in values if seed in baseline)
    d = tuple(values[seed] - baseline[seed] for seed in seeds)
    if not d:
        return None
    half = None
    if len(d) > 1:
        half = float(stats.t.ppf(0.975, len(d) - 1)) * statistics.stdev(d) / math.sqrt(len(d))
    return Paired(seeds, d, statistics.fmean(d), half, sum(x < 0 for x in d))


def by_seed(rows, variant, name):
    """{seed: value} of one measure over a variant's finished runs."""
    return {row["seed"]: row[name] for row in rows
            if row["variant"] == variant and row["status"] == "done"}


def crossed(variants, base):
    """Where the baseline, another attention, another position and both together are all there.

    -> [(attention alone, position alone, both)], names of variants
    """
    def parts(variant):
        others = [(name, value) for name, value in variant.shape.items()
                  if name not in ("attention", "position")]
        return (variant.shape["attention"], variant.shape["position"],
                (*others, variant.settings))

    named = {parts(v): v.name for v in variants}
    attention, position, rest = next(key for key, name in named.items() if name == base)
    found = [(named.get((a, position, rest)), named.get((attention, p, rest)), name)
             for (a, p, other), name in named.items()
             if a != attention and p != position and other == rest]
    return [triple for triple in found if None not in triple]


def difference(rows, variant, base, measure):
    """A variant minus the baseline in one measure -> Paired"""
    return paired(by_seed(rows, variant, measure), by_seed(rows, base, measure))


def interaction(rows, base, one, other, both, measure):
    """(both - one) - (other - base) seed by seed -> Paired"""
    def change(a, b):
        a, b = by_seed(rows, a, measure), by_seed(rows, b, measure)
        return {seed: a[seed] - b[seed] for seed in a if seed in b}

    return paired(change(both, one), change(other, base))


def write(plan, rows):
    """results.csv and table.md, into the plan's folder -> the page."""
    page = markdown(plan, rows)
    with runs.lock(plan.folder, wait=True):                # the same command may run twice
        files.sweep(plan.folder, (RESULTS, TABLE))
        files.write(plan.folder / RESULTS, to_csv(rows))
        files.write(plan.folder / TABLE, page)
    return page


# ------------------------------------------------------------------------------------- results.csv


def to_csv(rows):
    text = io.StringIO()
    columns = [*ABOUT, *SCALARS, *(f"loss_at_{length}" for length in lengths_of(rows))]
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_csv(path):
    """results.csv -> the rows it was written from; InputError if it is no such file."""
    text = files.read_text(path, follow=True)
    try:
        return [_row(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path} is not a results.csv of compare "
                         f"({type(error).__name__}: {error}).") from None


def _row(texts):
    row = {name: kind(texts[name]) for name, kind in ABOUT.items()}
    if row["status"] == "done":
        numbers = [*SCALARS, *(name for name in texts if name.startswith("loss_at_"))]
        row |= {name: float(texts[name]) if texts[name] else None for name in numbers}
    return row


def lengths_of(rows):
    """The contexts that finished runs were evaluated at, in order."""
    names = {name for row in rows for name in row if name.startswith("loss_at_")}
    return sorted(int(name.removeprefix("loss_at_")) for name in names)


# ---------------------------------------------------------------------------------------- table.md


class Column(NamedTuple):
    """A column of means over seeds; ± is their standard deviation, or the mean of `error`."""
    title: str
    measure: str
    digits: int = 4
    spread: bool = True
    error: str | None = None


LOSS = (Column("parameters", "parameters", 0, spread=False),
        Column("validation, teacher-forced", "val_loss"),
        Column("validation, prefix-only", "val_loss_prefix_only"),
        Column("leak", "leak", error="leak_se"),
        Column("training, evaluated", "train_loss_eval"), Column("gap", "gap"))
INSIDE = (Column("first-token mass", "first_token_mass"), Column("entropy", "entropy", 3),
          Column("sum of weights", "row_sum"), Column("gradient norm", "grad_norm_mean", 3),
          Column("its variation", "grad_norm_cv", 3), Column("spikes, k = 6", "spikes_6", 1),
          Column("spikes, k = 9", "spikes_9", 1),
          Column("training, last 100", "train_loss_last_100"), Column("seconds", "seconds", 0))
LOSSES = {"prefix-only": "val_loss_prefix_only", "teacher-forced": "val_loss"}
CHANGES = {name.replace("_", " "): name for name in (
    "first_token_mass", "entropy", "grad_norm_variance", "grad_norm_cv", "spikes_6", "spikes_9")}


def markdown(plan, rows):
    """The comparison as a page: losses, differences, training and attention, what failed."""
    names, base = [v.name for v in plan.variants], plan.baseline
    size = max((row["sample_size"] for row in rows if row["status"] == "done"), default=0)
    losses = _means(plan, rows, LOSS)
    done = [f"{len(by_seed(rows, name, 'seed'))} of {len(plan.seeds)}" for name in names]
    for line, runs_done in zip(losses, ["runs", *done]):
        line.insert(1, runs_done)
    sections = [("Loss", losses, LOSS_NOTE.format(size=round(size)))]
    if len(names) > 1:
        sections.append((f"Difference to {base}", _differences(plan, rows, LOSSES),
                         DIFFERENCE_NOTE))
    if lengths := lengths_of(rows):
        columns = [Column(f"{length} tokens", f"loss_at_{length}") for length in lengths]
        sections.append(("Loss at other lengths", _means(plan, rows, columns), LENGTHS_NOTE))
    if triples := crossed(plan.variants, base):
        lines = [("variants", *LOSSES)]
        for one, other, both in triples:
            found = (interaction(rows, base, one, other, both, measure)
                     for measure in LOSSES.values())
            lines.append((f"{both} against {one} and {other}", *map(_interval, found)))
        sections.append(("Interaction", lines, INTERACTION_NOTE))
    sections.append(("Attention and training", _means(plan, rows, INSIDE), INSIDE_NOTE))
    if len(names) > 1:
        sections.append((f"The same as differences to {base}", _differences(plan, rows, CHANGES)))
    failures = [(f"{row['variant']}, seed {row['seed']}", row["reason"].replace("|", "/"))
                for row in rows if row["status"] == "failed"]
    if failures:
        sections.append(("Failed", [("run", "reason"), *failures]))
    parts = [part for title, lines, *note in sections
             for part in (f"## {title}", report_table.markdown(lines), *note)]
    return "\n\n".join(parts) + "\n"


def _means(plan, rows, columns):
    """A line for each variant."""
    titles = ["variant", *(column.title for column in columns)]
    return [titles, *([variant.name, *(_mean(rows, variant.name, column) for column in columns)]
                      for variant in plan.variants)]


def _mean(rows, name, column):
    values = [x for x in by_seed(rows, name, column.measure).values() if x is not None]
    if not values:
        return "-"
    digits = column.digits
    mean = round(statistics.fmean(values), digits) + 0.0                     # + 0.0: no -0.0000
    text = f"{mean:,.{digits}f}"
    if column.error:
        return f"{text} ± {_mean(rows, name, Column('', column.error, digits, spread=False))}"
    if column.spread and len(values) > 1:
        return f"{text} ± {statistics.stdev(values):.{digits}f}"
    return text


def _differences(plan, rows, measures):
    """A line for each variant but the baseline; measures: title -> measure"""
    lines = [("variant", *measures)]
    for name in (v.name for v in plan.variants if v.name != plan.baseline):
        found = (difference(rows, name, plan.baseline, measure) for measure in measures.values())
        lines.append((name, *map(_interval, found)))
    return lines


def _interval(found):
    """Paired -> its mean [and interval], and at how many seeds it is below 0"""
    if found is None:
        return "-"
    interval = ""
    if found.half is not None:
        interval = f" [{found.mean - found.half:+.4f}, {found.mean + found.half:+.4f}]"
    return f"{found.mean:+.4f}{interval}, lower in {found.lower} of {len(found.seeds)}"


LOSS_NOTE = """\
Nats per character over the whole validation split; mean ± standard deviation over seeds.
Teacher-forced: the whole window in view. Prefix-only: each prediction from its own prefix alone, as
text is written; it is the teacher-forced loss plus the leak, the mean difference over the same
{size} predictions spread over the validation split (± its standard error). Gap: validation minus
training, both teacher-forced in evaluation mode over equally many windows."""
DIFFERENCE_NOTE = """\
Variant minus baseline at the same seed (same batches in the same order): mean over seeds and its
95 % interval (Student's t; not corrected for the number of variants). Below 0: better than the
baseline."""
LENGTHS_NOTE = """\
Loss of the same characters at every length, each window's last ones: with windows of T tokens, the
last reads T characters. Teacher-forced; mean ± standard deviation over seeds."""
INTERACTION_NOTE = """\
What both changes together do beyond the sum of what each does alone: (both - one) - (other -
baseline), seed by seed, mean and 95 % interval. Below 0: together they are better than their sum
(superadditive)."""
INSIDE_NOTE = """\
First-token mass, entropy (of |w| / sum |w|, nats) and sum of weights: means over layers, heads and
queries, on validation text. Gradient norm: before clipping; variation is standard deviation / mean
over all steps; a spike exceeds median + k MAD."""
