"""The pictures of `minattn inspect`, each from what look found: a list of Inside, one per layer."""
from itertools import accumulate

import numpy as np

from minattn import plots
from minattn.inspect import statistics
from minattn.inspect.look import even, labels
from minattn.inspect.rollout import rollout as products
from minattn.positions.morlet import MIN_PRODUCT


def maps(inside, sequence, path):
    """The weights of every layer and head, of one sequence or (None) averaged over all.

    Colours follow the square root of the weight, so that small ones show; hidden keys are grey.
    """
    what = f"mean of {len(inside[0].weights)} sequences" if sequence is None else "one sequence"
    rows = {}
    for n, layer in enumerate(inside):
        w = layer.weights.mean(axis=0) if sequence is None else layer.weights[sequence]
        rows[f"layer {n}, {layer.name}\nquery"] = w, [layer.visible] * len(w)  # (H, T, T)
    L, H = len(inside), len(w)
    _grid(path, rows, [f"head {h}" for h in range(H)], f"Attention weights, {what}", "key",
          "weight", size=(1.6 + 1.75 * max(H, 2), 1 + 1.75 * max(L, 2)),
          shrink=min(1, 3 / (1.75 * L)))


def rollout(inside, path):
    """Which input token reaches which position, by layer: mean over heads, then sequences."""
    stack = [layer.weights.mean(axis=1) for layer in inside]                    # (B, T, T)
    reach = list(accumulate((layer.visible for layer in inside),
                            lambda below, visible: visible @ below))
    alone, with_residual = (products(stack, residual=residual, stochastic=False).mean(axis=1)
                            for residual in (False, True))                      # (L, T, T)
    rows = {"attention alone\nposition": (alone, reach),
            "with the residual stream\nposition": (with_residual, reach)}
    titles = ["layer 0", *(f"layers 0 to {n}" for n in range(1, len(stack)))]
    _grid(path, rows, titles, "Attention rollout", "input token", "share",
          size=(1.6 + 2.2 * max(len(stack), 2), 5.4), shrink=0.6)


def sinks(inside, path):
    """First-token mass and entropy by head, against even weights; and which keys are sinks."""
    fig, (left, middle, right) = plots.figure(13, 4, ncols=3)

    def panel(ax, what, statistic):
        _by_layer(ax, what, dict(enumerate(map(statistic, inside))),
                  {n: statistic(even(layer))[0] for n, layer in enumerate(inside)},
                  "spread evenly", len(inside))

    panel(left, "mean weight on the first token",
          lambda layer: statistics.first_token_mass(layer.weights, layer.visible))
    panel(middle, "mean entropy (nats)", lambda layer: statistics.entropy(layer.weights))
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
                count = np.histogram(some, bins)[0] / some.size
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
        start = {n: first for n, (_, first) in found.items() if first is not None}
        _by_layer(ax, name, {n: values for n, (values, _) in found.items()}, start,
                  "at the start", len(inside))
        ax.set_xlim(-0.5, len(inside) - 0.5)
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


def _grid(path, rows, titles, title, xlabel, bar, *, size, shrink):
    """Maps on one scale of colours: {label of a row: (maps (n, T, T), visible (T, T) of each)}."""
    fig, axes = plots.figure(*size, nrows=len(rows), ncols=len(titles), squeeze=False, sharex=True,
                             sharey=True)
    fig.set_layout_engine("compressed")                             # panels close together
    colours = _colours([w for shown, _ in rows.values() for w in shown])
    for line, (label, (shown, visible)) in zip(axes, rows.items()):
        for ax, w, seen in zip(line, shown, visible):
            image = _image(ax, w, seen, colours)
        line[0].set_ylabel(label, fontsize=8)
    for ax, name in zip(axes[0], titles):
        ax.set_title(name, fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel(xlabel, fontsize=8)
    fig.colorbar(image, ax=axes, shrink=shrink, label=bar)
    fig.suptitle(title)
    plots.save(fig, path)


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


def _by_layer(ax, what, heads, level, label, n_layer):
    """A dot for each head {layer: (H,)}, side by side; a dashed line, {layer: number}."""
    H = max(len(values) for values in heads.values())
    for h in range(H):
        x = [n + 0.6 * ((h + 0.5) / H - 0.5) for n in heads]
        marker = "os"[h // len(plots.COLOURS) % 2]
        ax.plot(x, [values[h] for values in heads.values()], marker, ms=5,
                color=_line(h)["color"], label=f"head {h}")
    if level:
        ax.hlines(list(level.values()), [n - 0.4 for n in level], [n + 0.4 for n in level],
                  color="0.4", ls="--", lw=1.2, label=label)
    ax.set(xlabel="layer", ylabel=what, xticks=range(n_layer))


def _legend(fig, axes):
    """One legend beside the panels, from the panel with the most labels."""
    most = max((ax.get_legend_handles_labels() for ax in axes), key=lambda pair: len(pair[0]))
    fig.legend(*most, loc="outside right upper", frameon=False, fontsize=8)


def _line(n):
    """Colour and style of line n: dashed after the last colour."""
    style = "-" if n < len(plots.COLOURS) else "--"
    return {"color": plots.COLOURS[n % len(plots.COLOURS)], "ls": style}
