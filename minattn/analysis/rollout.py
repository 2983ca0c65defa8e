"""Follow attention through the layers: what share of an output, t layers up, came from each input token?

A mask is also a directed graph: an edge leads from key j to query i where i may attend to j. Attention then walks on
that graph, and where walks end is what the theorems of "On the Emergence of Position Bias in Transformers"
(arXiv 2502.01951) are about. Positions count from 0 here, where the paper counts from 1; matrices are [query, key].
"""
import numpy as np
from scipy.sparse import csgraph
from scipy.special import softmax

from minattn import checks, masks
from minattn.errors import InputError


def rollout(stack, *, residual=False, stochastic=True):
    """Products of a stack of attention matrices, bottom layer first: P^(t) = A^(t) A^(t-1) ... A^(0), t = 0 ... L - 1.

    P^(t)[i, j] is the probability that a walk from query i down through t + 1 layers ends at token j (arXiv 2502.01951,
    eq. 4). residual=True puts (A + I) / 2 in A's place, half of each token's stream staying where it is (Abnar and Zuidema
    2020, arXiv 2005.00928); the rows still sum to 1. The paper's theorems are about residual=False.

    stack (L, ..., N, N), float32 or float64, or a list of L arrays (..., N, N), as analysis.maps.weights gives (axes for
    batch and heads stay apart: average before, if you want to) -> (L, ..., N, N) float64.
    stochastic=False lifts the demand on rows, for affine attention, sinks and masks with empty rows; what
    comes out is then the same product, but not a probability.
    Raises InputError for an empty stack, wrong or unequal shapes, another dtype, entries that are not finite and, if
    stochastic, for a negative entry or a row whose sum is not 1 within rounding, (N + 8) eps of the dtype.
    """
    layers = _layers(stack, stochastic)
    P = np.empty((len(layers),) + layers[0].shape)
    for t, A in enumerate(layers):
        step = (A + np.eye(A.shape[-1])) / 2 if residual else A
        P[t] = step @ P[t - 1] if t else step                               # (..., N, N), (..., N, N) -> (..., N, N)
    return P


def _layers(stack, stochastic):
    layers = list(stack) if isinstance(stack, (list, tuple)) or getattr(stack, "ndim", 0) > 2 else []
    if not layers:
        raise InputError("the stack must be an array (L, ..., N, N) or a list of arrays (..., N, N), with at least one layer; "
                         f"got {type(stack).__name__}" + (f" of shape {stack.shape}." if isinstance(stack, np.ndarray) else "."))
    for t, A in enumerate(layers):
        if not isinstance(A, np.ndarray) or A.dtype not in checks.FLOATS:
            raise InputError(f"layer {t} of the stack must be a float32 or float64 array; got {getattr(A, 'dtype', type(A).__name__)}.")
        if A.ndim < 2 or A.shape[-1] != A.shape[-2] or A.size == 0 or A.shape != layers[0].shape:
            raise InputError(f"layer {t} of the stack must be (..., N, N), N >= 1, of the shape of layer 0; "
                             f"got {A.shape}, layer 0 has {layers[0].shape}.")
        _refuse(t, ~np.isfinite(A), A, "entry {} must be finite; it is {:g}.")
        if stochastic:
            off = A.sum(axis=-1, dtype=np.float64) - 1
            _refuse(t, A < 0, A, "entry {} must not be negative; it is {:.6g} (stochastic=False takes any entries).")
            _refuse(t, np.abs(off) > (A.shape[-1] + 8) * np.finfo(A.dtype).eps, off,
                    "row {} must sum to 1; its sum is off by {:+.6g} (stochastic=False takes any rows).")
    return layers


def _refuse(t, bad, values, message):
    """Raise about the first True, by its indices within layer t."""
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"layer {t} of the stack: " + message.format(where, values[where]))


# ------------------------------------------------------------------------------------------------- stacks to try it on


def attention(logits, mask):
    """Softmax over the visible keys: logits (..., N, N), mask (N, N) -> stochastic matrices (..., N, N), 0 where hidden."""
    return softmax(np.where(checked_mask(mask), logits, -np.inf), axis=-1)


def random_stack(mask, shape, rng, *, temperature=1.0, floor=0.0):
    """Softmax of normal logits over a mask, lifted so that no visible entry lies below a floor.

    A = floor M + (1 - floor n_i) softmax(z / temperature), z ~ N(0, 1), n_i the number of keys that query i sees

    mask (N, N) booleans, shape: L or (L, ...), rng: a seed or numpy.random.Generator -> (L, ..., N, N) float64.
    Low temperatures make sharp rows, high ones even rows. The floor is the eps of the theorems (Lemma A.1).
    Raises InputError for a bad mask, a temperature not above 0, and a floor below 0 or too high for the widest row.
    """
    mask = checked_mask(mask)
    checks.number("temperature", temperature, above=0)
    count = mask.sum(axis=1, keepdims=True)                                                 # (N, 1)
    checks.number("floor", floor, 0, high=float(1 / count.max()))
    shape = (shape,) if np.ndim(shape) == 0 else tuple(shape)
    logits = np.random.default_rng(rng).standard_normal(shape + mask.shape) / temperature
    return floor * mask + np.maximum(1 - floor * count, 0) * attention(logits, mask)


def least_entry(stack, mask):
    """The smallest visible weight of each stack, the eps of the theorems: (L, ..., N, N), mask (N, N) -> (...)"""
    return np.min([A[..., checked_mask(mask)].min(axis=-1) for A in _layers(stack, True)], axis=0)


# -------------------------------------------------------------------------------------------------- the mask as a graph


def graph(N, *, causal=False, window=None, prefix=0):
    """The mask of N tokens by minattn.masks' rules, True at [i, j] where query i sees key j: -> (N, N) booleans

    The paper's masks: causal=True; window=w; causal=True, prefix=K; and no mask without any of them.
    Raises InputError for a window or a prefix wider than the sequence: it would be another mask than its name says.
    """
    checks.number("N", N, 1, integer=True)
    mask = masks.visible(N, N, causal=causal, window=window, prefix=prefix)
    if max(window or 0, prefix) > N:
        raise InputError(f"window and prefix must be at most N = {N} tokens; got window={window}, prefix={prefix}.")
    return mask


def checked_mask(mask):
    """The mask as an array, or InputError: it must be square and boolean, and every query must see a key."""
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.ndim != 2 or mask.shape[0] != mask.shape[1] or mask.size == 0:
        raise InputError(f"the mask must be booleans (N, N), [query, key]; got {mask.dtype} of shape {mask.shape}.")
    if not mask.any(axis=1).all():
        raise InputError(f"every query must see a key; row {int(np.argmin(mask.any(axis=1)))} of the mask is empty.")
    return mask


def has_self_loops(mask):
    """Does every token see itself? With self-loops a walk can wait, so what can be reached stays reachable."""
    return bool(np.diagonal(checked_mask(mask)).all())


def steps(mask):
    """Fewest layers by which token j can reach query i, 0 for itself, inf where it never can: -> (N, N) [i, j]"""
    edges = np.ascontiguousarray(checked_mask(mask).T, float)               # csgraph: [from, to], from key to query
    return csgraph.shortest_path(edges, unweighted=True).T


def center_nodes(mask):
    """Tokens from which every token can be reached (Def. 3.1): -> ascending positions"""
    return np.flatnonzero(np.isfinite(steps(mask)).all(axis=0))


def walks(mask, length):
    """The number of walks of so many steps from token j to query i: -> (N, N) [i, j], exact Python integers

    Causal: binom(length - 1 + i - j, i - j), so P^(t), of t + 1 factors, sums over binom(t + i - j, i - j) walks.
    """
    checks.number("length", length, 0, integer=True)
    return np.linalg.matrix_power(checked_mask(mask).astype(int).astype(object), length)
