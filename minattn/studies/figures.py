"""The pictures of a comparison: losses against steps, and differences to the baseline with their intervals."""

import numpy as np

from minattn import plots, runs
from minattn.studies import tables

CURVES, DIFFERENCES = "curves.png", "differences.png"
STYLES = ("-", "--", ":", "-.")
CAUSAL = 1e-3             # nats: a leak below it is rounding


def draw(plan, rows):
    """curves.png and differences.png, into the plan's folder, as far as there is something to show."""
    if any(row["status"] == "done" for row in rows):
        curves(plan, rows, plan.folder / CURVES)
        if len(plan.variants) > 1:
            differences(plan, rows, plan.folder / DIFFERENCES)


def _style(n):
    return {"color": plots.COLOURS[n % len(plots.COLOURS)], "ls": STYLES[n // len(plots.COLOURS) % len(STYLES)]}


def curves(plan, rows, path):
    """Validation loss against steps, mean over seeds with a band of one standard deviation; the second half once more, larger.

    On the way it is an estimate from some windows of the split, at the last step all of them count: a point of its own.
    """
    n = len(plan.variants)
    fig, axes = plots.figure(10.5, max(4.2, 0.24 * n + 1), ncols=2)
    low, high, last = np.inf, -np.inf, 0
    for i, variant in enumerate(plan.variants):
        lines = {}
        for row in rows:
            if row["variant"] == variant.name and row["status"] == "done":
                for m in runs.read_metrics(plan.folder / row["folder"]):
                    if m["val_loss"] is not None:
                        lines.setdefault(m["step"], []).append(m["val_loss"])
        if not lines:
            continue
        steps, mean = np.array(list(lines)), np.array([np.mean(v) for v in lines.values()])
        deviation = np.array([np.std(v, ddof=len(v) > 1) for v in lines.values()])
        late = steps >= steps[-1] / 2
        last = max(last, steps[-1])
        low, high = min(low, (mean - deviation)[late].min()), max(high, (mean + deviation)[late].max())
        style = _style(i)
        for ax in axes:
            ax.plot(steps[:-1], mean[:-1], lw=1.5, marker=".", ms=4, **style)
            ax.fill_between(steps[:-1], (mean - deviation)[:-1], (mean + deviation)[:-1], color=style["color"], alpha=0.15, lw=0)
            ax.errorbar(steps[-1], mean[-1], deviation[-1], fmt="D", ms=4, lw=1, capsize=2, color=style["color"])
        axes[0].plot([], [], lw=1.5, label=variant.name, **style)
    axes[0].set(xlabel="step", ylabel="validation loss, teacher-forced (nats per character)",
                title="Mean and standard deviation over seeds")
    margin = 0.05 * (high - low) or 1e-3
    axes[1].set(xlabel="step", title="Second half (diamonds: the whole split)",
                xlim=(0.49 * last, 1.01 * last), ylim=(low - margin, high + margin))
    fig.legend(loc="outside right upper", frameon=False, fontsize=8)
    plots.save(fig, path)


def differences(plan, rows, path):
    """Each variant minus the baseline, seed by seed: points, mean, 95 % interval; teacher-forced beside prefix-only."""
    others = [v.name for v in plan.variants if v.name != plan.baseline]
    panels = (("val_loss", "Teacher-forced, as published"), ("val_loss_prefix_only", "Prefix-only, as it writes"))
    found = {(name, measure): tables.paired(tables.by_seed(rows, name, measure), tables.by_seed(rows, plan.baseline, measure))
             for name in others for measure, _ in panels}
    leaks = {name: max((abs(x) for x in tables.by_seed(rows, name, "leak").values()), default=0) for name in others}
    edge = _edge(found, leaks)
    fig, axes = plots.figure(10.5, 1.6 + 0.42 * len(others), ncols=2, sharey=True)
    for ax, (measure, title) in zip(axes, panels):
        ax.axvline(0, color="black", lw=1)
        for y, name in enumerate(others):
            d = found[name, measure]
            if d is None:
                ax.annotate("no finished pair", (0, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
                continue
            if abs(d.mean) > edge:
                side = 1 if d.mean > 0 else -1
                ax.annotate(f"{d.mean:+.3f}", (side * edge, y), (-side * 45, 0), textcoords="offset points", va="center", fontsize=9,
                            color=plots.COLOURS[1], arrowprops={"arrowstyle": "->", "color": plots.COLOURS[1]}, ha="center")
                continue
            ax.plot(d.differences, np.full(len(d.differences), y + 0.18), "o", ms=4, mfc="none", color=plots.COLOURS[0], clip_on=False)
            if d.half is not None:
                ax.plot([d.mean - d.half, d.mean + d.half], [y, y], color=plots.COLOURS[0], lw=2)
            ax.plot(d.mean, y, "D", ms=6, color=plots.COLOURS[0])
        ax.set(title=title, xlabel=f"loss minus that of {plan.baseline}\n(nats per character; left: better)", xlim=(-1.1 * edge, 1.1 * edge))
    axes[0].set_yticks(range(len(others)), others)
    axes[0].set_ylim(len(others) - 0.5, -0.5)
    plots.save(fig, path)


def _edge(found, leaks):
    """How far the axes reach: over all but the prefix-only losses of variants that leak, which would hide the rest."""
    def reach(d):
        return max(abs(d.mean) + (d.half or 0), *map(abs, d.differences))

    return max((reach(d) for (name, measure), d in found.items() if d and (measure == "val_loss" or leaks[name] < CAUSAL)), default=0) or 1e-3
