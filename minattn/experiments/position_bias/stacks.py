"""Random stacks of attention, and the mask as a directed graph with an edge j -> i where i sees j.

Attention walks on that graph, and the theorems of "On the Emergence of Position Bias in
Transformers" (arXiv 2502.01951) are about where the walks end. Positions count from 0, where the
paper counts from 1; matrices are [query, key].
"""
import numpy as np
from scipy.sparse import csgraph
from scipy.special import softmax

from minattn import checks, masks
from minattn.errors import InputError
from minattn.inspect.rollout import checked_stack


def attention(logits, mask):
    """Softmax over the visible keys: stochastic matrices, 0 where hidden.

    logits (..., N, N), mask (N, N) -> (..., N, N)
    """
    return softmax(np.where(checked_mask(mask), logits, -np.inf), axis=-1)


def random_stack(mask, shape, rng, *, temperature=1.0, floor=0.0):
    """Softmax of normal logits over a mask, lifted so that every visible entry is above a floor.

        A = floor M + (1 - floor n_i) softmax(z / temperature),   z ~ N(0, 1)

    n_i is the number of keys that query i sees. mask (N, N) booleans, shape: L or (L, ...),
    rng: a seed or numpy.random.Generator -> (L, ..., N, N) float64. Low temperatures make sharp
    rows, high ones even rows. The floor is the eps of the theorems (Lemma A.1).
    Raises InputError for a bad mask, a temperature not above 0, and a floor below 0 or too high for
    the widest row.
    """
    mask = checked_mask(mask)
    checks.number("temperature", temperature, above=0)
    count = mask.sum(axis=1, keepdims=True)                         # (N, 1)
    checks.number("floor", floor, 0, high=float(1 / count.max()))
    shape = (shape,) if np.ndim(shape) == 0 else tuple(shape)
    logits = np.random.default_rng(rng).standard_normal(shape + mask.shape) / temperature
    return floor * mask + np.maximum(1 - floor * count, 0) * attention(logits, mask)


def least_entry(stack, mask):
    """The smallest visible weight of each stack, the eps of the theorems.

    stack (L, ..., N, N), mask (N, N) -> (...)
    """
    visible = checked_mask(mask)
    return np.min([A[..., visible].min(axis=-1) for A in checked_stack(stack)], axis=0)


# ------------------------------------------------------------------------------ the mask as a graph


def graph(N, *, causal=False, window=None, prefix=0):
    """The mask of N tokens, True at [i, j] where query i sees key j: -> (N, N) booleans

    By the rules of minattn.masks. The paper's masks: causal=True; window=w; causal=True, prefix=K;
    and no mask without any of them. Raises InputError for a window or a prefix wider than the
    sequence: the mask would not be what its name says.
    """
    checks.number("N", N, 1, integer=True)
    mask = masks.visible(N, N, causal=causal, window=window, prefix=prefix)
    if max(window or 0, prefix) > N:
        raise InputError(f"window and prefix must be at most N = {N} tokens; "
                         f"got window={window}, prefix={prefix}.")
    return mask


def checked_mask(mask):
    """The mask as an array; InputError unless it is square, boolean, and every query sees a key."""
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.ndim != 2 or mask.shape[0] != mask.shape[1] or mask.size == 0:
        raise InputError("the mask must be a boolean array (N, N), indexed [query, key]; "
                         f"got {mask.dtype} of shape {mask.shape}.")
    sees = mask.any(axis=1)
    if not sees.all():
        raise InputError(f"every query must see a key; row {int(np.argmin(sees))} of the mask is "
                         "empty.")
    return mask


def has_self_loops(mask):
    """Does every token see itself? Then a walk can wait, and what is reachable stays reachable."""
    return bool(np.diagonal(checked_mask(mask)).all())


def steps(mask):
    """Fewest layers from token j to query i; 0 to itself, inf if never: -> (N, N) [i, j]"""
    edges = np.ascontiguousarray(checked_mask(mask).T, float)       # csgraph wants [from, to]
    return csgraph.shortest_path(edges, unweighted=True).T


def center_nodes(mask):
    """Tokens from which every token can be reached (Def. 3.1): -> ascending positions"""
    return np.flatnonzero(np.isfinite(steps(mask)).all(axis=0))


def walks(mask, length):
    """How many walks of this length lead from token j to query i: -> (N, N) [i, j], exact integers

    Causal: binom(length - 1 + i - j, i - j), so P^(t), of t + 1 factors, sums over
    binom(t + i - j, i - j) walks.
    """
    checks.number("length", length, 0, integer=True)
    return np.linalg.matrix_power(checked_mask(mask).astype(int).astype(object), length)
