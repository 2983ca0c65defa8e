"""How much of a loss depends on later tokens: the whole window against each prefix alone.

For a causal model the two are equal to rounding. They differ where a statistic or a length of the
whole sequence enters earlier positions (energy norm=sequence, affine length=total): when such a
model generates, it does not have what its teacher-forced loss was measured with.
"""
import math
from typing import NamedTuple

import numpy as np

from minattn import checks, model, ops

WINDOWS = 16          # read at a time


class Leak(NamedTuple):
    teacher_forced: float    # nats per token, from the whole window: as losses are published
    prefix_only: float       # each prediction from its own prefix alone: as text is generated
    n: int                   # predictions compared


def leak(params, buffers, config, x, y, positions):
    """Both losses of the predictions at these positions in every window x, y (N, T) -> Leak

    Evaluation mode, in the precision of params. For a causal model both are the same to rounding.
    """
    windows, positions = (a.ravel() for a in np.meshgrid(np.arange(len(x)), positions))
    forced, alone = losses(params, buffers, config, x, y, windows, positions)
    return Leak(float(forced.mean()), float(alone.mean()), len(forced))


def spread(n_windows, T, n):
    """Pick n predictions, evenly spread over the windows and over their T positions.

    -> windows (n,), positions (n,). No pair comes twice, and every position equally often, give or
    take one; all pairs where n is that many. Nothing is random: every model makes the same
    predictions.
    """
    checks.number("prefix_positions", n, 1, integer=True)
    k = np.arange(min(n, n_windows * T))
    golden = max(1, round(0.618 * T))         # so that neighbouring windows are far apart
    stride = next(g for g in range(golden, 2 * T + 2) if math.gcd(g, T) == 1)
    return k * n_windows // len(k), k * stride % T


def losses(params, buffers, config, x, y, windows, positions, *, over=map):
    """Nats of each prediction y[windows, positions], twice.

    -> teacher-forced (n,), prefix-only (n,), float64

    teacher-forced: the model reads the window x[w], as published losses are measured; prefix-only:
    it reads x[w, :t + 1] alone, as it does when it generates. x, y (N, T) tokens and targets.
    Evaluation mode, in the precision of params. over: a map, which may use threads; the result does
    not depend on it.
    """
    forced, alone = np.empty(len(windows)), np.empty(len(windows))

    def read_windows(some):
        logits = model.forward(params, x[some], config, buffers=buffers)[0]     # (n, T, V)
        for w, own in zip(some, logits):
            mine = np.flatnonzero(windows == w)
            forced[mine] = _nats(own[positions[mine]], y[w, positions[mine]])

    def read_prefixes(t):
        mine = np.flatnonzero(positions == t)
        rows = windows[mine]
        logits = model.forward(params, x[rows, :t + 1], config, buffers=buffers, last_only=True)[0]
        alone[mine] = _nats(logits[:, 0], y[rows, t])

    used = np.unique(windows)
    list(over(read_windows, np.array_split(used, math.ceil(len(used) / WINDOWS))))
    list(over(read_prefixes, np.unique(positions)))
    return forced, alone


def _nats(logits, targets):
    """The loss of each row: logits (n, V), targets (n,) -> a list of n"""
    return [ops.cross_entropy_forward(logits[i:i + 1], targets[i:i + 1])[0]
            for i in range(len(targets))]
