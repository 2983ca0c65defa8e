"""Every figure, from data, one function each. Matplotlib is imported when one is drawn."""
import os
import sys
from pathlib import Path

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")   # Okabe and Ito: safe for colour-blind readers


def figure(width=6.4, height=4.0, **options):
    """A figure with one style for all: -> (figure, axes)"""
    import matplotlib
    if "matplotlib.pyplot" not in sys.modules and "MPLBACKEND" not in os.environ:      # a notebook has chosen already
        matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(figsize=(width, height), layout="constrained", **options)
    for ax in fig.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_prop_cycle(color=COLOURS)
        ax.grid(alpha=0.25)
    return fig, axes


def save(fig, path):
    """Write a PNG aside and rename it into place."""
    import matplotlib.pyplot as plt
    path = Path(path)
    aside = path.with_name(path.stem + ".tmp.png")
    fig.savefig(aside, dpi=120)
    plt.close(fig)
    aside.replace(path)


def loss(rows, path, title="Loss while training"):
    """Training loss of every step, its running mean, and the validation losses, from the lines of metrics.jsonl."""
    import numpy as np
    steps, train = (np.array([row[key] for row in rows], float) for key in ("step", "train_loss"))
    val = np.array([(row["step"], row["val_loss"]) for row in rows if row["val_loss"] is not None], float).reshape(-1, 2)
    fig, ax = figure()
    ax.plot(steps, train, color=COLOURS[5], alpha=0.35, lw=0.8, label="train, each batch")
    width = max(1, len(steps) // 40)
    if len(steps) > 2 * width:
        mean = np.convolve(train, np.ones(width) / width, "valid")
        ax.plot(steps[width - 1:], mean, color=COLOURS[0], lw=1.8, label=f"train, mean of {width}")
    if len(val):
        ax.plot(*val.T, "o-", color=COLOURS[1], ms=4, lw=1.5, label=f"validation (last {val[-1, 1]:.3f})")
    ax.set(xlabel="step", ylabel="loss (nats per character)", title=title)
    ax.legend(frameon=False)
    save(fig, path)


def scaling(rows, path):
    """Time and memory of attention against the length of the sequence, from the rows of `bench --suite long`.

    Each row: window (None for full), side, T, seconds {"q1", "median", "q3"}, extra_bytes.
    """
    fig, (left, right) = figure(10, 4.2, ncols=2)
    sides = list(dict.fromkeys(row["side"] for row in rows))
    for window, style in dict.fromkeys((row["window"], "-" if row["window"] is None else "--") for row in rows):
        for side in sides:
            mine = sorted((row for row in rows if row["side"] == side and row["window"] == window), key=lambda row: row["T"])
            if mine:
                T = [row["T"] for row in mine]
                colour, kind = COLOURS[sides.index(side) % len(COLOURS)], "full" if window is None else f"window {window}"
                line = {"color": colour, "ls": style, "marker": "o", "ms": 4, "lw": 1.6, "label": f"{side}, {kind}"}
                low, middle, high = ([row["seconds"][q] for row in mine] for q in ("q1", "median", "q3"))
                left.plot(T, middle, **line)
                left.fill_between(T, low, high, color=colour, alpha=0.15, lw=0)
                right.plot(T, [max(row["extra_bytes"], 1) / 1e6 for row in mine], **line)
    ticks = sorted({row["T"] for row in rows})
    for ax, what in ((left, "seconds, forward and backward"), (right, "MB beyond the inputs, at the peak")):
        ax.set(xscale="log", yscale="log", xlabel="tokens in the sequence", ylabel=what)
        ax.set_xticks(ticks, [str(T) for T in ticks])
        ax.minorticks_off()
    left.legend(frameon=False, fontsize=8)
    save(fig, path)


def gaps(rows, path):
    """Position bias as bars, from the rows of `minattn bias`: a panel per setting, a group of bars per pair, a bar per depth.

    Each row: label, layers, gaps {pair: [mean, error or None]}, published {pair: value} or None, largest (the most that a
    network can reach by place alone: dotted). Diamonds are published values.
    """
    panels = list(dict.fromkeys(row["label"] for row in rows))
    depths = sorted({row["layers"] for row in rows})
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    fig, axes = figure(max(5.2, 4.2 * columns), max(3.6, 3.0 * lines), nrows=lines, ncols=columns, squeeze=False, sharey=True)
    for ax, panel in zip(axes.flat, panels):
        mine = sorted((row for row in rows if row["label"] == panel), key=lambda row: row["layers"])
        width = 0.8 / len(mine)
        for n, row in enumerate(mine):
            x = [i - 0.4 + width * (n + 0.5) for i in range(len(row["gaps"]))]
            means, errors = zip(*row["gaps"].values())
            colour = COLOURS[depths.index(row["layers"]) % len(COLOURS)]
            ax.bar(x, means, width * 0.9, yerr=[e or 0 for e in errors] if any(errors) else None, color=colour, capsize=3,
                   label=f"{row['layers']} layers")
            if row["published"]:
                ax.plot(x, row["published"].values(), "D", mfc="white", mec="black", ms=5, label="published")
        for limit in (-mine[0]["largest"], mine[0]["largest"]):
            ax.axhline(limit, color="black", lw=0.8, ls=":", label="the most by place alone")
        ax.axhline(0, color="black", lw=0.8)
        ax.set_title(panel, fontsize=9)
        ax.set_xticks(range(len(mine[0]["gaps"])), [pair.replace("-", "\nvs ") for pair in mine[0]["gaps"]])
    named = {text: handle for ax in axes.flat for handle, text in zip(*ax.get_legend_handles_labels())}
    fig.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False, fontsize=8)
    for ax in axes.flat[len(panels):]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("gap in accuracy\n(above 0: earlier item)")
    save(fig, path)
