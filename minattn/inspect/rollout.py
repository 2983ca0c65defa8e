"""Attention rollout: what share of an output, t layers up, came from each input token?

Matrices are [query, key]; positions count from 0, where the papers count from 1.
"""
import numpy as np

from minattn import checks
from minattn.errors import InputError


def rollout(stack, *, residual=False, stochastic=True):
    """Multiply attention matrices, bottom layer first: P^(t) = A^(t) A^(t-1) ... A^(0).

    P^(t)[i, j] is the probability that a walk from query i down through t + 1 layers ends at token
    j (arXiv 2502.01951, eq. 4). residual=True replaces each A by (A + I) / 2: half of each token's
    stream stays in place (Abnar and Zuidema 2020, arXiv 2005.00928). The paper's theorems are for
    residual=False.

    stack (L, ..., N, N), float32 or float64, or a list of L arrays (..., N, N), as
    inspect.maps.weights returns -> (L, ..., N, N) float64. Axes of batch and heads stay apart;
    average first to merge them. stochastic=False allows rows that do not sum to 1 (affine
    attention, sinks, empty rows); the result is the same product, but no longer a probability.
    Raises InputError for an empty stack, wrong or unequal shapes, another dtype, entries that are
    not finite and, if stochastic, a negative entry or a row whose sum is further than (N + 8) eps
    from 1.
    """
    layers = checked_stack(stack, stochastic)
    P = np.empty((len(layers),) + layers[0].shape)
    for t, A in enumerate(layers):
        step = (A + np.eye(A.shape[-1])) / 2 if residual else A
        P[t] = step @ P[t - 1] if t else step         # (..., N, N), (..., N, N) -> (..., N, N)
    return P


def checked_stack(stack, stochastic=True):
    """The layers as a list of arrays, or InputError: see rollout."""
    layers = list(stack) if isinstance(stack, (list, tuple)) or np.ndim(stack) > 2 else []
    if not layers:
        shape = f" of shape {stack.shape}" if isinstance(stack, np.ndarray) else ""
        raise InputError("the stack must be an array (L, ..., N, N) or a list of arrays "
                         "(..., N, N), with at least one layer; "
                         f"got {type(stack).__name__}{shape}.")
    for t, A in enumerate(layers):
        if not isinstance(A, np.ndarray) or A.dtype not in checks.FLOATS:
            came = getattr(A, "dtype", type(A).__name__)
            raise InputError(f"layer {t} of the stack must be a float32 or float64 array; "
                             f"got {came}.")
        if A.ndim < 2 or A.shape[-1] != A.shape[-2] or A.size == 0 or A.shape != layers[0].shape:
            raise InputError(f"layer {t} of the stack must be (..., N, N), N >= 1, of the shape of "
                             f"layer 0; got {A.shape}, layer 0 has {layers[0].shape}.")
        _refuse(t, ~np.isfinite(A), A, "entry {} must be finite; it is {:g}.")
        if stochastic:
            off = A.sum(axis=-1, dtype=np.float64) - 1
            lift = "(stochastic=False allows any rows)"
            _refuse(t, A < 0, A, "entry {} must not be negative; it is {:.6g} " + f"{lift}.")
            _refuse(t, np.abs(off) > (A.shape[-1] + 8) * np.finfo(A.dtype).eps, off,
                    "row {} must sum to 1; its sum is off by {:+.6g} " + f"{lift}.")
    return layers


def _refuse(t, bad, values, message):
    """Raise about the first True, by its indices within layer t."""
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"layer {t} of the stack: " + message.format(where, values[where]))
