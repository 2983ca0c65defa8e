"""The pictures of a comparison: losses against steps, and differences to the baseline with their
intervals."""
import numpy as np

from minattn import files, plots, runs
from minattn.studies import tables

PICTURES = CURVES, DIFFERENCES, LENGTHS = "curves.png", "differences.png", "lengths.png"
STYLES = ("-", "--", ":", "-.")
CAUSAL = 1e-3             # nats: a leak below it is rounding
PANELS = {"val_loss": "Teacher-forced, as published",
          "val_loss_prefix_only": "Prefix-only, as it writes"}


def draw(plan, rows):
    """curves.png and differences.png, into the plan's folder, as far as there is something to show.

    -> their names
    """
    if not any(row["status"] == "done" for row in rows):
        return []
    pictures = [(CURVES, curves)]
    if len(plan.variants) > 1:
        pictures.append((DIFFERENCES, differences))
    if tables.lengths_of(rows):
        pictures.append((LENGTHS, by_length))
    with runs.lock(plan.folder, wait=True):
        files.sweep(plan.folder, PICTURES)
        return [name for name, picture in pictures
                if plots.attempt(picture, plan, rows, plan.folder / name)]


def curves(plan, rows, path):
    """Validation loss against steps, mean over seeds with a band of one standard deviation; beside
    it the second half, enlarged.

    On the way it is an estimate from some windows of the split; at the last step all of them count,
    so that is a point of its own.
    """
    n = len(plan.variants)
    fig, axes = plots.figure(10.5, max(4.2, 0.24 * n + 1), ncols=2)
    low, high, last = np.inf, -np.inf, 0
    for i, variant in enumerate(plan.variants):
        losses = _losses(plan, rows, variant.name)
        if not losses:
            continue
        steps, mean = np.array(list(losses)), np.array([np.mean(v) for v in losses.values()])
        deviation = np.array([np.std(v, ddof=len(v) > 1) for v in losses.values()])
        bottom, top = mean - deviation, mean + deviation
        late = steps >= steps[-1] / 2
        last = max(last, steps[-1])
        low, high = min(low, bottom[late].min()), max(high, top[late].max())
        style = _style(i)
        colour = style["color"]
        for ax in axes:
            ax.plot(steps[:-1], mean[:-1], marker=".", ms=4, **style)
            ax.fill_between(steps[:-1], bottom[:-1], top[:-1], color=colour, alpha=0.15, lw=0)
            ax.errorbar(steps[-1], mean[-1], deviation[-1], fmt="D", ms=4, lw=1, capsize=2,
                        color=colour)
        axes[0].plot([], [], label=variant.name, **style)
    axes[0].set(xlabel="step", ylabel="validation loss, teacher-forced (nats per character)",
                title="Mean and standard deviation over seeds")
    margin = 0.05 * (high - low) or 1e-3
    axes[1].set(xlabel="step", title="Second half (diamonds: the whole split)",
                xlim=(0.49 * last, 1.01 * last), ylim=(low - margin, high + margin))
    fig.legend(loc="outside right upper", frameon=False, fontsize=8)
    plots.save(fig, path)


def _style(i):
    """The i-th variant's line"""
    n = len(plots.COLOURS)
    return {"color": plots.COLOURS[i % n], "ls": STYLES[i // n % len(STYLES)], "lw": 1.5}


def by_length(plan, rows, path):
    """Loss against the length of the context, mean over seeds with the standard deviation."""
    lengths = tables.lengths_of(rows)
    fig, ax = plots.figure(8, max(4.2, 0.24 * len(plan.variants) + 1))
    for i, variant in enumerate(plan.variants):
        losses = [list(tables.by_seed(rows, variant.name, f"loss_at_{length}").values())
                  for length in lengths]
        if losses[0]:
            ax.errorbar(lengths, [np.mean(x) for x in losses],
                        [np.std(x, ddof=len(x) > 1) for x in losses], marker="D", ms=4, capsize=2,
                        label=variant.name, **_style(i))
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, lengths)
    ax.set(xlabel="context (tokens)", ylabel="loss of the same characters (nats per character)",
           title="Trained on the shortest, read with more")
    fig.legend(loc="outside right upper", frameon=False, fontsize=8)
    plots.save(fig, path)


def _losses(plan, rows, name):
    """{step: validation losses of a variant's finished runs}"""
    losses = {}
    for folder in tables.by_seed(rows, name, "folder").values():
        for line in runs.read_metrics(plan.folder / folder):
            if line["val_loss"] is not None:
                losses.setdefault(line["step"], []).append(line["val_loss"])
    return losses


def differences(plan, rows, path):
    """Each variant minus the baseline, seed by seed: points, mean, 95 % interval; teacher-forced
    beside prefix-only."""
    base, others = plan.baseline, [v.name for v in plan.variants if v.name != plan.baseline]
    found = {measure: [tables.difference(rows, name, base, measure) for name in others]
             for measure in PANELS}
    edge = _edge(rows, others, found)
    fig, axes = plots.figure(10.5, 1.6 + 0.42 * len(others), ncols=2, sharey=True)
    for ax, (measure, title) in zip(axes, PANELS.items()):
        ax.axvline(0, color="black", lw=1)
        for y, d in enumerate(found[measure]):
            _line(ax, y, d, edge)
        ax.set(title=title, xlim=(-1.1 * edge, 1.1 * edge),
               xlabel=f"loss minus that of {base}\n(nats per character; left: better)")
    axes[0].set_yticks(range(len(others)), others)
    axes[0].set_ylim(len(others) - 0.5, -0.5)
    plots.save(fig, path)


def _line(ax, y, d, edge):
    """One variant's Paired differences at height y; an arrow if they are beyond the edge."""
    text = {"textcoords": "offset points", "va": "center"}
    if d is None:
        ax.annotate("no finished pair", (0, y), (4, 0), fontsize=8, **text)
        return
    if abs(d.mean) > edge:
        side, red = np.sign(d.mean), plots.COLOURS[1]
        ax.annotate(f"{d.mean:+.3f}", (side * edge, y), (-side * 45, 0), fontsize=9, ha="center",
                    color=red, arrowprops={"arrowstyle": "->", "color": red}, **text)
        return
    blue = plots.COLOURS[0]
    ax.plot(d.differences, np.full(len(d.differences), y + 0.18), "o", ms=4, mfc="none", color=blue,
            clip_on=False)
    if d.half is not None:
        ax.plot([d.mean - d.half, d.mean + d.half], [y, y], color=blue, lw=2)
    ax.plot(d.mean, y, "D", ms=6, color=blue)


def _edge(rows, others, found):
    """How far the axes reach: over all but the prefix-only losses of variants that leak, which
    would hide the rest."""
    reach = 0
    for measure, every in found.items():
        for name, d in zip(others, every):
            leak = max(map(abs, tables.by_seed(rows, name, "leak").values()), default=0)
            if d and (measure == "val_loss" or leak < CAUSAL):
                reach = max(reach, abs(d.mean) + (d.half or 0), *map(abs, d.differences))
    return reach or 1e-3
