"""Which key may each query see.

A query at position p sees key j when every rule that is on agrees:
    causal      j <= p
    window W    j > p - W            (W keys including the query's own; implies causal)
    prefix K    widens causal first: tokens below K all see each other
    allowed     your own booleans, True = may attend (padding, documents, ...)
Query i sits at position p = i + Tk - Tq under align="end" (the last query sees the last key: what a key-value cache
needs, and the default), or p = i under align="start". Libraries disagree; say which you mean when Tq != Tk.
"""
from typing import NamedTuple

import numpy as np

from minattn.checks import choice, number
from minattn.errors import InputError


class Mask(NamedTuple):
    """The rules that depend on positions only; `allowed` is applied apart."""
    causal: bool = False
    window: int | None = None
    prefix: int = 0
    align: str = "end"


def make(causal=False, window=None, prefix=0, align="end"):
    """A checked Mask; a window implies causal."""
    if not isinstance(causal, (bool, np.bool_)):
        raise InputError(f"causal must be True or False; got {causal!r}.")
    if window is not None:
        number("window", window, 1, integer=True)
    number("prefix", prefix, 0, integer=True)
    choice("align", align, ("end", "start"))
    return Mask(bool(causal) or window is not None, window, prefix, align)


def positions(Tq, Tk, align="end"):
    """The key position at which each query sits: (Tq,) integers, negative where a query comes before every key."""
    return np.arange(Tq) + (Tk - Tq if align == "end" else 0)


def rule(mask, p, j):
    """The mask at positions p (R,) and keys j (K,) -> bool (R, K), True = may attend."""
    p, j = p[:, None], j[None, :]
    if not mask.causal:
        return np.ones((p.size, j.size), bool)
    see = (j <= p) | ((j < mask.prefix) & (p < mask.prefix))
    if mask.window is not None:
        see &= j > p - mask.window
    return see


def visible(Tq, Tk, *, causal=False, window=None, prefix=0, align="end"):
    """The whole mask, for reading and for tests: bool (Tq, Tk), True = may attend."""
    mask = make(causal, window, prefix, align)
    return rule(mask, positions(Tq, Tk, align), np.arange(Tk))


def edges(mask, p, Tk):
    """Where a block of consecutive query positions p can look: (lo, a, b, hi) with lo <= a <= b <= hi.

    Keys outside [lo, hi) are hidden from the whole block, keys in [a, b) are seen by all of it, and only the two
    margins [lo, a) and [b, hi) need `rule`.
    """
    if not mask.causal:
        return 0, 0, Tk, Tk
    first, last = int(p[0]), int(p[-1])
    lo, b, hi = 0, first + 1, last + 1
    if first < mask.prefix:
        hi = max(hi, mask.prefix)
        b = max(b, mask.prefix) if last < mask.prefix else b
    a = lo
    if mask.window is not None:
        lo, a = first - mask.window + 1, last - mask.window + 1
    lo, a, b, hi = (min(max(x, 0), Tk) for x in (lo, a, b, hi))
    return (lo, a, b, hi) if a <= b else (lo, lo, lo, hi)


# ------------------------------------------------------------------------- sums over what is seen, without a T x T array


class Seen(NamedTuple):
    """The visible keys of every query: rules by position make them an interval, lo_i <= j < hi_i."""
    lo: np.ndarray                    # (Tq,)
    hi: np.ndarray                    # (Tq,)
    Tk: int
    allowed: np.ndarray | None     # broadcastable to (B, H, Tq, Tk)


def seen(Tq, Tk, mask, allowed=None):
    """Who sees whom as intervals (causal, window and prefix all give one), with `allowed` beside them."""
    p = positions(Tq, Tk, mask.align)
    lo, hi = np.zeros(Tq, int), np.full(Tq, Tk)
    if mask.causal:
        hi = np.where(p < mask.prefix, np.maximum(p + 1, mask.prefix), p + 1)
    if mask.window is not None:
        lo = p - mask.window + 1
    hi = np.clip(hi, 0, Tk)
    return Seen(np.clip(lo, 0, hi), hi, Tk, allowed)


def dense(seen, dtype):
    """The same as an array of 0 and 1, broadcastable to (B, H, Tq, Tk)."""
    j = np.arange(seen.Tk)
    see = (j >= seen.lo[:, None]) & (j < seen.hi[:, None])
    return (see if seen.allowed is None else see & seen.allowed).astype(dtype)


def sum_seen(v, seen):
    """S_i = sum of v_j over the keys j that query i sees.   v (B, H, Tk, D) -> (B, H, Tq, D)"""
    if seen.allowed is None:
        return _interval_sums(v, seen.lo, seen.hi)
    if seen.allowed.shape[2] == 1:                       # the same keys are allowed to every query: padding
        return _interval_sums(v * seen.allowed.swapaxes(2, 3), seen.lo, seen.hi)
    return dense(seen, v.dtype) @ v


def sum_seeing(x, seen):
    """The transpose: sum of x_i over the queries i that see key j.   x (B, H, Tq, D) -> (B, H, Tk, D)"""
    if seen.allowed is not None and seen.allowed.shape[2] != 1:
        return dense(seen, x.dtype).swapaxes(2, 3) @ x
    j = np.arange(seen.Tk)                               # lo and hi never decrease, so these are intervals as well
    first, last = np.searchsorted(seen.hi, j, "right"), np.searchsorted(seen.lo, j, "right")
    y = _interval_sums(x, first, np.maximum(first, last))
    return y if seen.allowed is None else y * seen.allowed.swapaxes(2, 3)


def count_seen(seen):
    """How many keys each query sees, broadcastable to (B, H, Tq)."""
    if seen.allowed is None:
        return seen.hi - seen.lo
    if seen.allowed.shape[2] == 1:
        full = np.broadcast_to(seen.allowed, seen.allowed.shape[:3] + (seen.Tk,)).swapaxes(2, 3)
        return _interval_sums(full.astype(np.float64), seen.lo, seen.hi)[..., 0]
    return dense(seen, np.float64).sum(axis=3)


def _interval_sums(x, lo, hi):
    """y_i = x_lo + ... + x_(hi-1) along axis 2."""
    n, i = x.shape[2], np.arange(len(lo))
    if len(lo) == n and not lo.any() and (hi == i + 1).all():       # causal: everything up to i
        return _running_sums(x, 0)
    if len(lo) == n and (hi == n).all() and (lo == i).all():        # its transpose: everything from i
        return _running_sums(x, 1)
    total = np.zeros(x.shape[:2] + (n + 1,) + x.shape[3:])          # differences of one running sum, in float64: they lose digits
    np.cumsum(x, axis=2, out=total[:, :, 1:])
    y = total[:, :, hi]
    if lo.any():
        y -= total[:, :, lo]
    return y.astype(x.dtype, copy=False)


def _running_sums(x, backwards):
    """Running sums along axis 2, as products with a triangle of ones, block by block: much faster than np.cumsum there."""
    B, H, T, D = x.shape
    y, rows = np.empty((B, T, H, D), x.dtype).swapaxes(1, 2), 64
    triangle = np.tri(rows, dtype=x.dtype)
    for i in range(0, T, rows):
        part = slice(max(0, T - i - rows), T - i) if backwards else slice(i, i + rows)
        block = y[:, :, part]
        R = block.shape[2]
        np.matmul(triangle.T[:R, :R] if backwards else triangle[:R, :R], x[:, :, part], out=block)
        if i:
            block += y[:, :, part.stop:part.stop + 1] if backwards else y[:, :, i - 1:i]
    return y
