"""Pictures of the theory of position bias (arXiv 2502.01951): the collapse onto the first tokens, and what decay sets against it."""
import numpy as np

from minattn import plots
from minattn.experiments.position_bias import bounds
from minattn.experiments.position_bias.stacks import attention, graph
from minattn.experiments.position_bias.tightness import PAPER_DECAY, STACKS
from minattn.inspect.rollout import rollout


def collapse(path, N=17, depth=32, *, draws=100, rng=0):
    """How much of the last token's output comes from the first one, by depth: random stacks under each mask and position.

    Mean over the draws, band from the 10th to the 90th percentile; stacks as tightness.compare draws them. Left attention
    alone, right with half of each stream kept, (A + I) / 2. Dashed: the whole prefix. N >= 9 tokens; writes a PNG.
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
            last = rollout(A, residual=residual)[:, :, -1]                          # (depth, draws, N)
            first = last[..., 0]
            ax.plot(layers, first.mean(axis=1), color=colour, lw=1.8, label=label)
            ax.fill_between(layers, *np.quantile(first, (0.1, 0.9), axis=1), color=colour, alpha=0.12, lw=0)
            if bound == "prefix":
                prefix = last[..., :setting["prefix"]].sum(axis=-1).mean(axis=1)
                ax.plot(layers, prefix, color=colour, lw=1.4, ls="--", label=f"{label}, its tokens together")
    axes[0].set(xlabel="layers", ylabel=f"share of token {N} that comes from token 1", title="attention alone", ylim=(0, 1.02))
    axes[1].set(xlabel="layers", title="with a residual: (A + I) / 2")
    axes[1].tick_params(labelleft=True)
    fig.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    plots.save(fig, path)


def peaks(path, N=81, m=PAPER_DECAY):
    """Where depth and decay balance. Left: what the last token takes from each distance, equal logits with decay m.

    Dots mark the critical distance x* = t / (e^m - 1); what reaches the first token gathers there, at the right end. Right:
    x* by depth, and the distance where L(x) is largest in fact (dots), for decay and RoPE (c = 1). Writes a PNG.
    """
    fig, (left, right) = plots.figure(10, 4.2, ncols=2)
    x, depths = np.arange(N), (2, 3, 5, 9, 13)
    A = attention(-m * np.abs(np.subtract.outer(x, x)), graph(N, causal=True))
    P = rollout([A] * max(depths))
    for colour, depth in zip(plots.COLOURS, depths):
        row, star = P[depth - 1, -1, ::-1], bounds.decay_peak(depth - 1, m)         # by distance; t = depth - 1
        left.plot(x, row, color=colour, lw=1.6, label=f"{depth} layers, x* = {star:.0f}")
        left.plot(star, np.interp(star, x, row), "o", color=colour, ms=6)
    left.set(xlabel="distance to the key, tokens", ylabel="share of the last token's output", ylim=(0, None), xlim=(0, N),
             title=f"decay m = {m:.3f}, {N} tokens")
    left.legend(frameon=False, fontsize=8)
    t = np.arange(0, 25)
    sides = [(f"decay, m = {slope:.3g}", bounds.decay_peak, {"m": slope}) for slope in (m, 0.5, 1.0)]
    sides += [(f"RoPE, c = 1, θ = {theta:g}", bounds.rope_peak, {"theta": theta}) for theta in (0.05, 0.2)]
    for colour, (label, peak, setting) in zip(plots.COLOURS, sides):
        star = [peak(s, **setting) for s in range(len(t))]
        right.plot(t + 1, star, color=colour, lw=1.4, label=label)
        grid = int(max(star)) + 2
        right.plot(t + 1, [bounds.numerical_peak(s, grid, **setting) for s in range(len(t))], ".", color=colour, ms=6)
    right.set(xlabel="layers", ylabel="critical distance, tokens", title="lines: x*; dots: the largest L(x)")
    right.legend(frameon=False, fontsize=8)
    plots.save(fig, path)
