"""Drawings that several lessons share, or that are diagrams, not measurements."""
from minattn import plots


def canvas(width, height, across, down):
    """An empty figure with coordinates from 0 to across and 0 to down -> figure, axes"""
    fig, ax = plots.figure(width, height)
    ax.set(xlim=(-0.5, across + 0.5), ylim=(0, down), aspect="equal")
    ax.axis("off")
    return fig, ax


def box(ax, x, y, width, height, text, colour="white", size=10):
    """A rectangle with its lower left corner at (x, y), and a text in it"""
    from matplotlib.patches import Rectangle
    ax.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="black", lw=1))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size)


def arrow(ax, start, end, colour="black", text="", at=(0, 0), size=9, line="-"):
    """An arrow, and a text at its middle, moved by `at`"""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.3,
                                            "linestyle": line})
    x, y = ((a + b) / 2 + shift for a, b, shift in zip(start, end, at))
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color=colour)


def many_heads(heads=4):
    """x is cut into the channels of each head; every head attends; the results are joined"""
    fig, ax = canvas(10, 4.4, 100, 44)
    colours = ["#9ecae1", "#fdd0a2", "#a1d99b", "#dadaeb"] * heads
    box(ax, 0, 12, 9, 20, "x\n\n(T, C)")
    ax.text(20, 41.5, "q, k, v", ha="center")
    ax.text(45, 41.5, "one attention per head", ha="center")
    ax.text(72, 41.5, "side by side", ha="center")
    for h in range(heads):
        y, colour = 33 - 10.5 * h, colours[h]
        arrow(ax, (9.5, 22), (14.5, y + 3))
        for n, name in enumerate("qkv"):
            box(ax, 15 + 4.4 * n, y, 3.4, 6, name, colour)
        ax.text(21.5, y - 1.6, f"(T, D) each, head {h}", ha="center", fontsize=8)
        arrow(ax, (28.5, y + 3), (36, y + 3))
        box(ax, 36.5, y, 17, 6, "softmax(q k$^T$/√D) v", colour)
        arrow(ax, (54, y + 3), (62.5, 22 + 4 * (heads / 2 - h - 0.5)))
        box(ax, 63 + 4.5 * h, 12, 4.5, 20, f"$o^{h}$", colour)
    ax.text(72, 10.4, "(T, D) each", ha="center", fontsize=8)
    arrow(ax, (81.5, 22), (90, 22), text="times $W_O$\n(C, C)", at=(0, 4))
    box(ax, 90.5, 12, 9, 20, "out\n\n(T, C)")
    return fig


def model():
    """The stream of a model: each layer adds to it, twice"""
    fig, ax = canvas(10.6, 2.9, 106, 29)
    box(ax, 0, 15, 13, 8, "wte[tokens]\n+ position", "#f0f0f0", 9)
    arrow(ax, (13.3, 19), (79.5, 19))
    for x, name in ((22, "attention"), (50, "MLP")):
        arrow(ax, (x, 19), (x, 9.5))
        box(ax, x - 3, 3, 8, 6.2, "norm", "#f0f0f0", 9)
        arrow(ax, (x + 5.3, 6), (x + 7.7, 6))
        box(ax, x + 8, 3, 11, 6.2, name, "#9ecae1" if name == "attention" else "#fdd0a2", 9)
        arrow(ax, (x + 15, 9.5), (x + 15, 17.3))
        ax.text(x + 15, 19, "+", ha="center", va="center", size=13,
                bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "black"})
    ax.plot([18, 18, 71, 71], [25, 26.5, 26.5, 25], color="gray", lw=1)
    ax.text(44.5, 27.8, "one layer; more of them follow", ha="center", size=9)
    ax.text(75, 21, "x (N, C)", ha="center", size=9)
    box(ax, 80, 15, 8, 8, "norm", "#f0f0f0", 9)
    arrow(ax, (88.3, 19), (93.5, 19))
    box(ax, 94, 15, 12, 8, "y wte$^T$:\nscores (N, V)", "#f0f0f0", 9)
    return fig


def backward_pass():
    """Attention as a chain of steps: values flow to the right, gradients to the left"""
    fig, ax = canvas(10.6, 4.6, 106, 46)
    blue, red = plots.COLOURS[0], plots.COLOURS[1]
    nodes = {"q": (5, 37), "k": (5, 17), "s": (36, 27), "P": (64, 27), "v": (64, 5),
             "out": (93, 16)}
    shapes = {"q": "$(T_q, D)$", "k": "$(T_k, D)$", "s": "$(T_q, T_k)$", "P": "$(T_q, T_k)$",
              "v": "$(T_k, D_v)$", "out": "$(T_q, D_v)$"}
    for name, (x, y) in nodes.items():
        box(ax, x - 5, y - 3.5, 10, 7, f"{name}\n{shapes[name]}", "#f0f0f0", 9)
    edges = [("q", "s", "(1)  s = q k$^T$ / √D", (5, 3), "dq = ds k / √D", (-6, -3.5)),
             ("k", "s", "", (0, 0), "dk = ds$^T$ q / √D", (7, -4)),
             ("s", "P", "(2)  softmax of each row", (0, 3), "ds = P (dP − rowsum(P dP))", (0, -5)),
             ("P", "out", "(3)  out = P v", (9, 3), "dP = dout v$^T$", (-7, -3.5)),
             ("v", "out", "", (0, 0), "dv = P$^T$ dout", (8, -3.5))]
    for start, end, does, above, gradient, below in edges:
        (x0, y0), (x1, y1) = nodes[start], nodes[end]
        up = 0.7 if y1 != y0 else 0.9
        arrow(ax, (x0 + 5.3, y0 + up), (x1 - 5.3, y1 + up), blue, does, above)
        arrow(ax, (x1 - 5.3, y1 - up), (x0 + 5.3, y0 - up), red, gradient, below,
              line="--")
    arrow(ax, (105, 15.3), (98.3, 15.3), red, "dout", (0, -2.2), line="--")
    arrow(ax, (98.3, 16.7), (105, 16.7), blue)
    ax.text(0, 44, "blue: forward", color=blue)
    ax.text(18, 44, "red, dashed: backward, each gradient beside its arrow", color=red)
    return fig


def three_rates(grid, losses, title):
    """Final losses of each rule at its learning rates -> the figure; prints those at the best rate.

    grid: {rule: its rates}; losses (rules, rates, seeds, 2), each over the first half of the
    validation split, which chooses, and over the second, which is shown
    """
    fig, axes = plots.figure(6.6, 3.6, ncols=len(grid), sharey=True)
    for ax, name, its in zip(axes, grid, losses):
        chosen = its[..., 0].mean(axis=1).argmin()
        for n, seeds in enumerate(its[..., 1]):
            filled = plots.COLOURS[0] if n == chosen else "none"
            ax.plot([n] * len(seeds), seeds, "o", color=plots.COLOURS[0], mfc=filled)
        ax.set_xticks(range(len(grid[name])), grid[name])
        ax.set(xlim=(-0.5, len(grid[name]) - 0.5), xlabel="learning rate", title=name)
        print(f"{name:8s} at {grid[name][chosen]:<5} loss of the three seeds "
              + "  ".join(f"{loss:.2f}" for loss in its[chosen, :, 1]))
    axes[0].set_ylabel("validation loss")
    fig.suptitle(f"{title} (three seeds; filled: the chosen rate)")
    return fig
