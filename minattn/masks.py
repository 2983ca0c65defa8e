"""Which key may each query see.

A query at position p sees key j when every rule that is on agrees:
    causal      j <= p
    window W    j > p - W            (W keys including the query's own; implies causal)
    prefix K    widens causal first: tokens below K all see each other
    allowed     your own booleans, True = may attend (padding, documents, ...)
Query i sits at position p = i + Tk - Tq under align="end" (the last query sees the last key: what a
key-value cache needs, and the default), or p = i under align="start". Libraries disagree; say which
you mean when Tq != Tk.

The rules by position leave each query one interval of keys, lo <= j < hi, and from one query to the
next neither lo nor hi decreases.
"""
from typing import NamedTuple

import numpy as np

from minattn import checks, memory


class Mask(NamedTuple):
    """The rules that depend on positions only; `allowed` is applied apart."""
    causal: bool = False
    window: int | None = None
    prefix: int = 0
    align: str = "end"


def make(causal=False, window=None, prefix=0, align="end"):
    """A checked Mask; a window implies causal."""
    causal = checks.flag("causal", causal)
    if window is not None:
        window = checks.number("window", window, 1, integer=True)
    prefix = checks.number("prefix", prefix, 0, integer=True)
    checks.choice("align", align, ("end", "start"))
    return Mask(causal or window is not None, window, prefix, align)


def positions(Tq, Tk, align="end"):
    """The key position of each query: (Tq,), negative where a query comes before every key."""
    start = Tk - Tq if align == "end" else 0
    return np.arange(start, start + Tq)


def intervals(mask, p, Tk):
    """The keys that queries at p (R,) see, lo <= j < hi: (R,), (R,) with 0 <= lo <= hi <= Tk"""
    lo = np.zeros(len(p), int)
    hi = lo + Tk
    if mask.causal:
        hi = np.minimum(np.maximum(p + 1, mask.prefix), Tk)
    if mask.window is not None:
        lo = np.minimum(np.maximum(p - min(mask.window, checks.FARTHEST) + 1, 0), hi)
    return lo, hi


def inside(lo, hi, j):
    """Which keys j (K,) lie in the intervals lo, hi (R,) -> bool (R, K)"""
    return (j >= lo[:, None]) & (j < hi[:, None])


def visible(Tq, Tk, *, causal=False, window=None, prefix=0, align="end"):
    """The whole mask, for reading and for tests: bool (Tq, Tk), True = may attend."""
    mask = make(causal, window, prefix, align)
    Tq, Tk = (checks.number(name, n, 0, integer=True) for name, n in (("Tq", Tq), ("Tk", Tk)))
    memory.weigh(f"a mask of {Tq:,} x {Tk:,}", Tq * Tk, "shorten the sequences")
    return inside(*intervals(mask, positions(Tq, Tk, align), Tk), np.arange(Tk))


def edges(lo, hi):
    """The edges of a block of consecutive queries with intervals lo, hi (R,): (first, a, b, last)

    Keys outside [first, last) are hidden from the whole block and keys in [a, b) are seen by all of
    it: only the margins [first, a) and [b, last) need a mask.
    """
    first, a, b, last = int(lo[0]), int(lo[-1]), int(hi[0]), int(hi[-1])
    return (first, a, b, last) if a <= b else (first, first, first, last)


# ---------------------------------------------- sums over the visible keys, without a Tq x Tk array


class Seen(NamedTuple):
    """The visible keys of every query."""
    lo: np.ndarray                 # (Tq,)
    hi: np.ndarray                 # (Tq,)
    Tk: int
    allowed: np.ndarray | None     # broadcastable to (B, H, Tq, Tk)

    @property
    def by_pair(self):
        """Does `allowed` depend on the query too? (Padding does not: it hides a key from all.)"""
        return self.allowed is not None and self.allowed.shape[2] != 1


def seen(Tq, Tk, mask, allowed=None):
    """The intervals of a mask, with `allowed` beside them."""
    return Seen(*intervals(mask, positions(Tq, Tk, mask.align), Tk), Tk, allowed)


def dense(seen, dtype):
    """The same as an array of 0 and 1, broadcastable to (B, H, Tq, Tk)."""
    see = inside(seen.lo, seen.hi, np.arange(seen.Tk))
    return (see if seen.allowed is None else see & seen.allowed).astype(dtype)


def sum_seen(v, seen):
    """S_i = sum of v_j over the keys j that query i sees, S = dense(seen) @ v.

    v (B, H, Tk, D) -> (B, H, Tq, D)
    """
    if seen.by_pair:
        return dense(seen, v.dtype) @ v
    if seen.allowed is not None:
        v = v * seen.allowed.swapaxes(2, 3)
    return _interval_sums(v, seen.lo, seen.hi)


def sum_seeing(x, seen):
    """The transpose, dense(seen)^T @ x: the sum of x_i over the queries i that see key j.

    x (B, H, Tq, D) -> (B, H, Tk, D)
    """
    if seen.by_pair:
        return dense(seen, x.dtype).swapaxes(2, 3) @ x
    j = np.arange(seen.Tk)                 # the queries that see a key are consecutive as well
    first, last = np.searchsorted(seen.hi, j, "right"), np.searchsorted(seen.lo, j, "right")
    y = _interval_sums(x, first, np.maximum(first, last))
    return y if seen.allowed is None else y * seen.allowed.swapaxes(2, 3)


def count_seen(seen):
    """How many keys each query sees, broadcastable to (B, H, Tq)."""
    return sum_seen(np.ones((1, 1, seen.Tk, 1)), seen)[..., 0]


def _interval_sums(x, lo, hi):
    """y_i = x[lo_i] + ... + x[hi_i - 1] along axis 2"""
    n, i = x.shape[2], np.arange(len(lo))
    if len(lo) == n and not lo.any() and (hi == i + 1).all():       # causal: everything up to i
        return _running_sums(x)
    if len(lo) == n and (hi == n).all() and (lo == i).all():        # its transpose: all from i on
        return _running_sums(x, backwards=True)
    total = np.zeros(x.shape[:2] + (n + 1,) + x.shape[3:])          # a difference of running sums
    np.cumsum(x, axis=2, out=total[:, :, 1:])                       # loses digits: float64
    return (total[:, :, hi] - total[:, :, lo]).astype(x.dtype, copy=False)


def _running_sums(x, backwards=False):
    """np.cumsum(x, axis=2), block by block as products with a triangle of ones: much faster."""
    B, H, T, D = x.shape
    y = np.empty((B, T, H, D), x.dtype).swapaxes(1, 2)
    ones = np.tri(64, dtype=x.dtype)
    blocks = [slice(i, i + 64) for i in range(0, T, 64)]
    before = None                          # the sum of all earlier blocks
    for part in reversed(blocks) if backwards else blocks:
        block = y[:, :, part]
        triangle = ones[:block.shape[2], :block.shape[2]]
        np.matmul(triangle.T if backwards else triangle, x[:, :, part], out=block)
        if before is not None:
            block += before
        before = block[:, :, :1] if backwards else block[:, :, -1:]
    return y
