"""How much of a loss depends on what comes after: each prediction with the whole window in view, and from its own prefix alone.

For a causal model the two are equal to rounding. They are not where a statistic or a length of the whole sequence
reaches earlier positions (energy norm=sequence, affine length=total): such a model never sees, when it writes, what its
teacher-forced loss was measured with.
"""
import math

import numpy as np

from minattn import checks, model, ops


def spread(n_windows, T, n):
    """n predictions of n_windows windows of T tokens, evenly spread over both -> windows (n,), positions (n,)

    No pair comes twice, and every position as often as any other, give or take one; all of them where n is that many.
    Nothing is drawn, so that every model is asked for the same predictions.
    """
    checks.number("prefix_positions", n, 1, integer=True)
    k = np.arange(min(n, n_windows * T))
    stride = next(g for g in range(max(1, round(0.618 * T)), 2 * T + 2) if math.gcd(g, T) == 1)   # golden section: neighbours far apart
    return k * n_windows // len(k), k * stride % T


def losses(params, buffers, config, x, y, windows, positions, *, over=map):
    """Nats of each prediction y[windows, positions], twice -> teacher-forced (n,), prefix-only (n,), float64

    teacher-forced: the model reads the window x[w], as published losses are measured; prefix-only: it reads x[w, :t + 1]
    and nothing after, as it does when it writes. x, y (N, T) tokens and targets. Evaluation mode, in params' precision.
    over: a map that may use threads; the result does not depend on it.
    """
    forced, alone = np.empty(len(windows)), np.empty(len(windows))

    def one(t):
        mine = np.flatnonzero(positions == t)
        rows = windows[mine]
        whole = model.forward(params, x[rows], config, buffers=buffers)[0][:, t]                                # (n, V)
        own = model.forward(params, x[rows, :t + 1], config, buffers=buffers, last_only=True)[0][:, 0]          # (n, V)
        for out, logits in ((forced, whole), (alone, own)):
            out[mine] = [ops.cross_entropy_forward(logits[i:i + 1], y[rows[i], t:t + 1])[0] for i in range(len(mine))]

    list(over(one, np.unique(positions)))
    return forced, alone
