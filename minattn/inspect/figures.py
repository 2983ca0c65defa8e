"""The pictures of `minattn inspect`, each from what look found: a list of Inside, one per layer."""
from itertools import accumulate

import numpy as np

from minattn import plots
from minattn.inspect import statistics
from minattn.inspect.look import labels
from minattn.inspect.rollout import rollout as products
from minattn.positions.morlet import MIN_PRODUCT


def maps(inside, sequence, path):
    """The weights of every layer and head, of one sequence or (None) averaged over all.

    Colours follow the square root of the weight, so that small ones show; hidden keys are grey.
    """
    shown = [layer.weights.mean(axis=0) if sequence is None else layer.weights[sequence]
             for layer in inside]                                               # (H, T, T)
    L, H = len(shown), len(shown[0])
    fig, axes = _square_panels(1.6 + 1.75 * max(H, 2), 1 + 1.75 * max(L, 2), L, H)
    colours = _colours(shown)
    for n, (layer, w) in enumerate(zip(inside, shown)):
        for h, ax in enumerate(axes[n]):
            image = _image(ax, w[h], layer.visible, colours)
            ax.set_title(f"head {h}" if n == 0 else "", fontsize=9)
        axes[n, 0].set_ylabel(f"layer {n}, {layer.name}\nquery", fontsize=8)
    for ax in axes[-1]:
        ax.set_xlabel("key", fontsize=8)
    fig.colorbar(image, ax=axes, shrink=min(1, 3 / (1.75 * L)), label="weight")
    what = f"mean of {len(inside[0].weights)} sequences" if sequence is None else "one sequence"
    fig.suptitle(f"Attention weights, {what}")
    plots.save(fig, path)


def rollout(inside, path):
    """Which input token reaches which position, by layer: mean over heads, then sequences."""
    stack = [layer.weights.mean(axis=1) for layer in inside]                    # (B, T, T)
    L = len(stack)
    fig, axes = _square_panels(1.6 + 2.2 * max(L, 2), 5.4, 2, L)
    shown = [products(stack, residual=residual, stochastic=False).mean(axis=1)
             for residual in (False, True)]                                     # (L, T, T)
    colours = _colours([w for row in shown for w in row])
    reach = list(accumulate((layer.visible for layer in inside),
                            lambda below, visible: visible @ below))
    for row, what, line in zip(shown, ("attention alone", "with the residual stream"), axes):
        for n, ax in enumerate(line):
            image = _image(ax, row[n], reach[n], colours)
            ax.set_title(f"layers 0 to {n}" if n else "layer 0", fontsize=9)
        line[0].set_ylabel(f"{what}\nposition")
    for ax in axes[-1]:
        ax.set_xlabel("input token")
    fig.colorbar(image, ax=axes, shrink=0.6, label="share")
    fig.suptitle("Attention rollout")
    plots.save(fig, path)


def sinks(inside, even, path):
    """First-token mass and entropy by head, against even weights; and which keys are sinks."""
    fig, (left, middle, right) = plots.figure(13, 4, ncols=3)

    def panel(ax, statistic, what):
        _heads(ax, {n: statistic(layer) for n, layer in enumerate(inside)})
        _level(ax, {n: statistic(layer)[0] for n, layer in enumerate(even)}, "spread evenly")
        ax.set(xlabel="layer", ylabel=what, xticks=range(len(inside)))

    panel(left, lambda layer: statistics.first_token_mass(layer.weights, layer.visible),
          "mean weight on the first token")
    panel(middle, lambda layer: statistics.entropy(layer.weights), "mean entropy (nats)")
    for n, layer in enumerate(inside):
        fraction = statistics.sink_fraction(layer.weights, visible=layer.visible).mean(axis=0)
        right.plot(fraction, **_line(n), lw=1.5, label=f"layer {n}")
    right.set(xlabel="key", ylabel="share of its queries with weight above 0.2")
    right.set_title("mean over heads; few queries see the last keys", fontsize=10)
    for ax in (left, middle, right):
        low, high = ax.get_ylim()
        ax.set_ylim(min(0, low), high + 0.05 * (high - low))
    _legend(fig, [left])
    right.legend(frameon=False, fontsize=8)
    plots.save(fig, path)


def computed(inside, path):
    """Distributions of gates, alpha, ...: a row for each, a panel per layer, a line per head."""
    names = labels(inside, "computed")
    panels = [[(n, layer.name, layer.computed[name]) for n, layer in enumerate(inside)
               if name in layer.computed] for name in names]
    columns = max(map(len, panels))
    fig, axes = plots.figure(1.2 + 2.8 * columns, 0.8 + 2.4 * len(names), nrows=len(names),
                             ncols=columns, squeeze=False)
    for name, row, line in zip(names, panels, axes):
        low, high = min(values.min() for *_, values in row), max(values.max() for *_, values in row)
        bins = np.linspace(low, high if high > low else low + 1e-3, 41)
        for ax in line[len(row):]:
            ax.axis("off")
        for (n, mechanism, values), ax in zip(row, line):
            for h, some in enumerate(values):
                count = np.histogram(some, bins)[0] / len(some)
                ax.stairs(count, bins, **_line(h), lw=1.3, label=f"head {h}")
            ax.locator_params(axis="x", nbins=4)
            ax.set(xlabel=name, ylabel="share of the values")
            ax.set_title(f"layer {n}, {mechanism}", fontsize=10)
    _legend(fig, axes[:, 0])
    plots.save(fig, path)


def learned(inside, path):
    """The parameters and buffers with one number per head, by layer, and where they started."""
    names = labels(inside, "learned")
    fig, axes = plots.figure(1.8 + 3.4 * len(names), 3.6, ncols=len(names), squeeze=False)
    for name, ax in zip(names, axes[0]):
        found = {n: layer.learned[name] for n, layer in enumerate(inside) if name in layer.learned}
        _heads(ax, {n: values for n, (values, _) in found.items()})
        start = {n: first for n, (_, first) in found.items() if first is not None}
        _level(ax, start, "at the start")
        ax.set(xlabel="layer", ylabel=name, xticks=range(len(inside)),
               xlim=(-0.5, len(inside) - 0.5))
    _legend(fig, axes[0])
    plots.save(fig, path)


def wavelets(start, now, path):
    """Wavelet positions before and after training: every frequency and width, and some waves."""
    fig, (left, right) = plots.figure(11, 4.6, ncols=2)
    black, blue, orange = plots.COLOURS[6], plots.COLOURS[0], plots.COLOURS[1]
    for (omega, sigma, _), colour, marker, label in ((start, black, "x", "at the start"),
                                                     (now, blue, "o", "learned")):
        left.plot(omega, sigma, marker, color=colour, ms=5, alpha=0.7, label=label)
    omegas, sigmas = np.stack([start[0], now[0]]), np.stack([start[1], now[1]])
    left.plot(omegas, sigmas, color=blue, lw=0.6, alpha=0.5)
    line = np.linspace(*left.get_xlim(), 100)[1:]
    left.plot(line, MIN_PRODUCT / line, ":", color=orange, label=f"omega sigma = {MIN_PRODUCT:g}")
    left.set(xlabel="omega (radians per token)", ylabel="sigma (tokens)",
             title="frequency and width of each pair of channels")
    left.legend(frameon=False)
    some = np.unique(np.linspace(0, len(now[0]) - 1, 5).astype(int))
    widest = max(start[1].max(), now[1].max())
    shown = min(len(now[2]), int(5 * widest))     # after 5 sigma a wave has died out
    for place, pair in enumerate(some):
        for (_, _, codes), style in ((start, {"color": black, "marker": ".", "ls": ""}),
                                     (now, {"color": blue, "lw": 1.4})):
            right.plot(codes[:shown, 2 * pair] - 2.2 * place, **style)
    places = [-2.2 * place for place in range(len(some))]
    right.set_yticks(places, [f"pair {pair}" for pair in some])
    right.set(xlabel="position (tokens)",
              title="cosine channel: learned (line), at the start (dots)")
    plots.save(fig, path)


# ------------------------------------------------------------------------------------------ pieces


def _square_panels(width, height, rows, columns):
    fig, axes = plots.figure(width, height, nrows=rows, ncols=columns, squeeze=False, sharex=True,
                             sharey=True)
    fig.set_layout_engine("compressed")                             # panels close together
    return fig, axes


def _colours(shown):
    """One scale for all maps: from 0, or symmetric where a weight is negative."""
    from matplotlib.colors import FuncNorm
    low, high = min(w.min() for w in shown), max(w.max() for w in shown)
    root = (lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda y: np.sign(y) * y * y)
    reach = max(-low, high, 1e-6)
    if low < 0:
        return {"norm": FuncNorm(root, -reach, reach), "cmap": "PuOr"}
    return {"norm": FuncNorm(root, 0, reach), "cmap": "viridis"}


def _image(ax, w, visible, colours):
    from matplotlib.ticker import MaxNLocator
    ax.grid(False)
    ax.set_facecolor("0.88")
    ax.tick_params(labelsize=7)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
    return ax.imshow(np.ma.array(w, mask=~visible), interpolation="nearest", **colours)


def _heads(ax, found):
    """A dot for each head, side by side at its layer: {layer: (H,)}"""
    H = max(len(values) for values in found.values())
    for h in range(H):
        x = [n + 0.6 * ((h + 0.5) / H - 0.5) for n in found]
        marker = "os"[h // len(plots.COLOURS) % 2]
        ax.plot(x, [values[h] for values in found.values()], marker, ms=5,
                color=_line(h)["color"], label=f"head {h}")


def _level(ax, found, label):
    """A dashed line at each layer: {layer: number}"""
    if found:
        ax.hlines(list(found.values()), [n - 0.4 for n in found], [n + 0.4 for n in found],
                  color="0.4", ls="--", lw=1.2, label=label)


def _legend(fig, axes):
    """One legend beside the panels, from the panel with the most labels."""
    most = max((ax.get_legend_handles_labels() for ax in axes), key=lambda pair: len(pair[0]))
    fig.legend(*most, loc="outside right upper", frameon=False, fontsize=8)


def _line(n):
    """Colour and style of line n: dashed after the last colour."""
    style = "-" if n < len(plots.COLOURS) else "--"
    return {"color": plots.COLOURS[n % len(plots.COLOURS)], "ls": style}
