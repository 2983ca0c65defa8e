"""One style for every figure, and the picture of a training run. Imports Matplotlib when needed."""
import io
import sys

from minattn import files

# Okabe and Ito: distinct for colour-blind readers too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def figure(width=6.4, height=4.0, **options):
    """A figure in the common style -> (figure, axes); options as plt.subplots takes them."""
    if {"matplotlib.pyplot", "IPython"} & sys.modules.keys():     # a notebook shows it as well
        import matplotlib.pyplot as plt
        fig = plt.figure(figsize=(width, height), layout="constrained")
    else:                                            # into files only: no backend is needed
        from matplotlib.figure import Figure
        fig = Figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots(**options)
    for ax in fig.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_prop_cycle(color=COLOURS)
        ax.grid(alpha=0.25)
    return fig, axes


def save(fig, path):
    """Write a PNG, whole or not at all."""
    content = io.BytesIO()
    fig.savefig(content, format="png", dpi=120)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(fig)
    files.write(path, content.getvalue())


def warn(line):
    print(line, file=sys.stderr)


def attempt(draw, *arguments, say=warn, way_out="the same command makes it again"):
    """draw(*arguments, path) of finished work -> whether it could; else one line says why not.

    The last argument is the path. What keeps a picture from being drawn loses nothing.
    """
    path = arguments[-1]
    try:
        draw(*arguments)
    except Exception as error:                       # no fonts, a broken matplotlibrc, a full disk
        reason = files.one_line(error) or type(error).__name__
        say(f"warning: {path} could not be made: {reason.rstrip('.')}; the results themselves are "
            f"saved; {way_out}.")
        return False
    return True


def loss(rows, path, title="Loss while training"):
    """Training loss, its running mean, and validation loss, from the lines of metrics.jsonl."""
    import numpy as np
    steps, train = (np.array([row[key] for row in rows], float) for key in ("step", "train_loss"))
    val = [(row["step"], row["val_loss"]) for row in rows if row["val_loss"] is not None]
    fig, ax = figure()
    ax.plot(steps, train, color=COLOURS[5], alpha=0.35, lw=0.8, label="train, each batch")
    width = max(1, len(steps) // 40)
    if len(steps) > 2 * width:
        mean = np.convolve(train, np.ones(width) / width, "valid")
        ax.plot(steps[width - 1:], mean, color=COLOURS[0], lw=1.8, label=f"train, mean of {width}")
    if val:
        label = f"validation (last {val[-1][1]:.3f})"
        ax.plot(*zip(*val), "o-", color=COLOURS[1], ms=4, lw=1.5, label=label)
    ax.set(xlabel="step", ylabel="loss (nats per character)", title=title)
    ax.legend(frameon=False)
    save(fig, path)
