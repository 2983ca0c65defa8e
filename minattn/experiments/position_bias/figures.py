"""Pictures of position bias (arXiv 2502.01951): gaps, collapse, critical distances."""
import numpy as np

from minattn import plots
from minattn.experiments.position_bias import bounds
from minattn.experiments.position_bias.stacks import attention, graph
from minattn.experiments.position_bias.tightness import PAPER_DECAY, STACKS
from minattn.inspect.rollout import rollout


def gaps(rows, path):
    """Measured gaps as bars: a panel per setting, a group per pair, a bar per depth. Writes a PNG.

    Each row: label, layers, gaps {pair: [mean, error or None]}, published {pair: value} or None
    (diamonds), largest (the most that a network can reach by looking at positions alone; dotted).
    """
    panels = list(dict.fromkeys(row["label"] for row in rows))
    depths = sorted({row["layers"] for row in rows})
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    fig, axes = plots.figure(max(5.2, 4.2 * columns), max(3.6, 3.0 * lines), nrows=lines,
                             ncols=columns, squeeze=False, sharey=True)
    for ax, panel in zip(axes.flat, panels):
        mine = [row for row in rows if row["label"] == panel]
        mine.sort(key=lambda row: row["layers"])
        width = 0.8 / len(mine)
        for n, row in enumerate(mine):
            x = [i - 0.4 + width * (n + 0.5) for i in range(len(row["gaps"]))]
            means, errors = zip(*row["gaps"].values())
            colour = plots.COLOURS[depths.index(row["layers"]) % len(plots.COLOURS)]
            ax.bar(x, means, width * 0.9, yerr=[e or 0 for e in errors] if any(errors) else None,
                   color=colour, capsize=3, label=f"{row['layers']} layers")
            if row["published"]:
                ax.plot(x, row["published"].values(), "D", mfc="white", mec="black", ms=5,
                        label="published")
        for limit in (-mine[0]["largest"], mine[0]["largest"]):
            ax.axhline(limit, color="black", lw=0.8, ls=":", label="the most by place alone")
        ax.axhline(0, color="black", lw=0.8)
        ax.set_title(panel, fontsize=9)
        pairs = mine[0]["gaps"]
        ax.set_xticks(range(len(pairs)), [pair.replace("-", "\nvs ") for pair in pairs])
    named = {}
    for ax in axes.flat:
        named.update((text, handle) for handle, text in zip(*ax.get_legend_handles_labels()))
    fig.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named),
               frameon=False, fontsize=8)
    for ax in axes.flat[len(panels):]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("gap in accuracy\n(above 0: earlier item)")
    plots.save(fig, path)


def collapse(path, N=17, depth=32, *, draws=100, rng=0):
    """How much of the last token's output comes from the first, by depth. Writes a PNG.

    Mean over the draws, band from the 10th to the 90th percentile; stacks as tightness.compare
    draws them. Left attention alone, right with half of each stream kept, (A + I) / 2. Dashed: the
    whole prefix. N >= 9 tokens.
    """
    lines = {
        "causal": ("causal", {}),
        "window of 9 keys": ("window", {"window": 9}),
        "window of 3 keys": ("window", {"window": 3}),
        "prefix of 4": ("prefix", {"prefix": 4}),
        f"decay, m = {PAPER_DECAY:.3f}": ("decay", {}),
        f"RoPE, θ = π/{N}": ("rope", {}),
    }
    fig, axes = plots.figure(10, 4.6, ncols=2, sharey=True)
    layers, rng = np.arange(1, depth + 1), np.random.default_rng(rng)
    for colour, (label, (bound, setting)) in zip(plots.COLOURS, lines.items()):
        A = STACKS[bound](rng, N, depth - 1, draws, **setting)[0]
        for ax, residual in zip(axes, (False, True)):
            last = rollout(A, residual=residual)[:, :, -1]      # (depth, draws, N)
            first = last[..., 0]
            band = np.quantile(first, (0.1, 0.9), axis=1)
            ax.plot(layers, first.mean(axis=1), color=colour, lw=1.8, label=label)
            ax.fill_between(layers, *band, color=colour, alpha=0.12, lw=0)
            if "prefix" in setting:
                prefix = last[..., :setting["prefix"]].sum(axis=-1).mean(axis=1)
                ax.plot(layers, prefix, color=colour, lw=1.4, ls="--",
                        label=f"{label}, its tokens together")
    axes[0].set(xlabel="layers", ylabel=f"share of token {N} that comes from token 1",
                title="attention alone", ylim=(0, 1.02))
    axes[1].set(xlabel="layers", title="with a residual: (A + I) / 2")
    axes[1].tick_params(labelleft=True)
    fig.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, ncols=4,
               loc="outside lower center")
    plots.save(fig, path)


def peaks(path, N=81, m=PAPER_DECAY):
    """Where depth and decay balance. Writes a PNG.

    Left: what the last token takes from each distance, equal logits with decay m; dots mark the
    critical distance x* = t / (e^m - 1), and what reaches the first token piles up at the right
    end. Right: x* by depth, and the distance where L(x) is in fact largest (dots), for decay and
    RoPE (c = 1).
    """
    fig, (left, right) = plots.figure(10, 4.2, ncols=2)
    x, depths = np.arange(N), (2, 3, 5, 9, 13)
    A = attention(-m * np.abs(np.subtract.outer(x, x)), graph(N, causal=True))
    P = rollout([A] * max(depths))
    for colour, depth in zip(plots.COLOURS, depths):
        by_distance = P[depth - 1, -1, ::-1]
        star = bounds.decay_peak(depth - 1, m)                      # t = depth - 1
        left.plot(x, by_distance, color=colour, lw=1.6, label=f"{depth} layers, x* = {star:.0f}")
        left.plot(star, np.interp(star, x, by_distance), "o", color=colour, ms=6)
    left.set(xlabel="distance to the key, tokens", ylabel="share of the last token's output",
             ylim=(0, None), xlim=(0, N), title=f"decay m = {m:.3f}, {N} tokens")
    left.legend(frameon=False, fontsize=8)
    t = np.arange(0, 25)
    sides = [(f"decay, m = {slope:.3g}", bounds.decay_peak, {"m": slope})
             for slope in (m, 0.5, 1.0)]
    sides += [(f"RoPE, c = 1, θ = {theta:g}", bounds.rope_peak, {"theta": theta})
              for theta in (0.05, 0.2)]
    for colour, (label, peak, setting) in zip(plots.COLOURS, sides):
        star = [peak(s, **setting) for s in range(len(t))]
        right.plot(t + 1, star, color=colour, lw=1.4, label=label)
        grid = int(max(star)) + 2
        found = [bounds.numerical_peak(s, grid, **setting) for s in range(len(t))]
        right.plot(t + 1, found, ".", color=colour, ms=6)
    right.set(xlabel="layers", ylabel="critical distance, tokens",
              title="lines: x*; dots: the largest L(x)")
    right.legend(frameon=False, fontsize=8)
    plots.save(fig, path)
