"""Run plain NumPy code in another arithmetic: arrays of which every result is rounded to a format.

    x = Arithmetic("bfloat16").array(x)      # then any function of x computes as bfloat16 would

The numbers are held as float64 and rounded after every operation. Matrix products and sums add up
one term after another in a wider format, as accelerators do, and round at the end. With a generator
each rounding goes up or down at random (Monte Carlo arithmetic: Parker 1997; CESTAC: Vignes 1993),
so that the spread of several runs shows the error; a result that needs no rounding stays as it is.
"""
import math
from typing import NamedTuple

import numpy as np


class Format(NamedTuple):
    bits: int           # of the fraction
    largest: float
    tiny: float         # the smallest normal number
    wide: str           # in which sums and matrix products add up
    product: int = 0    # bits of the fraction that a matrix product reads, if fewer

    @property
    def eps(self):
        return 2.0**-self.bits


FORMATS = {
    "float16": Format(10, 65504.0, 2.0**-14, "float32"),
    "bfloat16": Format(7, (2 - 2.0**-7) * 2.0**127, 2.0**-126, "float32"),
    "float32": Format(23, float(np.finfo(np.float32).max), 2.0**-126, "float32"),
    "tf32": Format(23, float(np.finfo(np.float32).max), 2.0**-126, "float32", product=10),
    "float64": Format(52, float(np.finfo(np.float64).max), 2.0**-1022, "float64"),
}


def round_to(x, dtype, rng=None):
    """float64 numbers rounded to a format, still held as float64: to nearest, or at random."""
    fmt = FORMATS[dtype] if isinstance(dtype, str) else dtype
    x = np.asarray(x, np.float64)
    if fmt.bits == 52:
        return x if rng is None else x * (1 + fmt.eps * rng.uniform(-1, 1, x.shape))
    if fmt.bits == 23 and rng is None:
        with np.errstate(over="ignore"):
            return x.astype(np.float32).astype(np.float64)
    drop = 52 - fmt.bits
    u = x.view(np.uint64)
    if rng is None:                                          # half a unit, ties to even
        y = u + ((u >> np.uint64(drop)) & np.uint64(1)) + np.uint64((1 << drop - 1) - 1)
    else:                                                    # anything below a unit
        y = u + _noise(drop, x.size, rng).reshape(x.shape)
    y &= np.uint64((1 << 64) - (1 << drop))
    y = y.view(np.float64)
    size = np.abs(y)
    if not size.max(initial=0) <= fmt.largest:               # (nan compares as neither)
        y = np.where(size > fmt.largest, np.copysign(np.inf, y), y)
    if not size.min(initial=np.inf) >= fmt.tiny and ((size < fmt.tiny) & (x != 0)).any():
        step = fmt.tiny * fmt.eps                            # subnormal numbers are evenly spaced
        steps = x / step
        small = (np.rint(steps) if rng is None else np.floor(steps + rng.random(x.shape))) * step
        y = np.where(np.abs(x) < fmt.tiny, small, y)
    return y


def blur(x, dtype, rng, count=1):
    """x as `count` random roundings would leave it: off by up to half a unit times sqrt(count)

    As on any machine, equal numbers are rounded alike: equal rows have equal errors, which add up.
    """
    x, fmt = np.asarray(x), FORMATS[dtype]
    key = np.uint32(2 * rng.integers(1 << 31) + 1)
    bits = x.astype(np.float32).view(np.uint32)              # hashed: random, but for the number
    bits *= key
    bits ^= bits >> np.uint32(15)
    bits *= key
    y = bits.view(np.int32) * (2.0**-32 * fmt.eps * math.sqrt(count))
    y += 1                                                   # in place: fresh memory takes longer
    y *= x
    if not max(y.max(initial=0), -y.min(initial=0)) <= fmt.largest:
        y = np.where(np.abs(y) > fmt.largest, np.copysign(np.inf, y), y)
    return y


def _noise(bits, n, rng):
    """n random integers of so many bits: a window, at a random place, of a list drawn once."""
    if len(_pool.get(bits, ())) < n + WINDOWS:
        once, size = np.random.default_rng(0), n + WINDOWS   # a longer list begins as a shorter one
        _pool[bits] = once.integers(0, 1 << bits, size, dtype=np.uint64)
    start = int(rng.integers(WINDOWS))
    return _pool[bits][start:start + n]


_pool: dict = {}
WINDOWS = 1 << 16


def fits(arrays, dtype):
    """Are these numbers exact in this format?"""
    return all(np.array_equal(round_to(x, dtype), x) for x in arrays)


# ---------------------------------------------------------------------- an array that rounds


EXACT = ("absolute", "clip", "maximum", "minimum", "negative", "sign")  # ufuncs: nothing to round


class Arithmetic:
    """What an operation on `Rounded` arrays does: compute in float64, then round to the format.

    portable: exp and log from IEEE operations alone, for the same bits on every machine.
    block: so many terms of a matrix product are added up exactly, and what rounding each of them
    would have done is one random number, as for all other roundings (see `blur`): cheap for large
    arrays, but no result stays exact. It needs a generator.
    """

    def __init__(self, dtype, rng=None, portable=False, block=1):
        self.dtype, self.rng, self.block = dtype, rng, block
        self.functions = PORTABLE if portable else {}

    def array(self, x):
        """x as an array of this arithmetic; booleans, and what is no array, stay as they are."""
        if not isinstance(x, np.ndarray) or x.dtype == bool:
            return x
        y = np.asarray(x, np.float64).view(Rounded)
        y.arithmetic = self
        return y

    def round(self, x):
        return self._rounded(x, self.dtype)

    def _rounded(self, x, dtype, count=1):
        if self.block > 1:
            return blur(x, dtype, self.rng, count)
        return round_to(x, dtype, self.rng)

    def operate(self, ufunc, method, *inputs, axis=0, keepdims=False, **kwargs):
        """One ufunc, or one of its methods, on plain arrays."""
        inputs = [self.round(x) if isinstance(x, float) else x for x in inputs]
        if ufunc is np.matmul:
            return self.round(self._matmul(*inputs))
        if method == "reduce":
            if ufunc is np.add and kwargs.get("where", True) is True:
                return self.round(self._sum(inputs[0], axis, keepdims))
            kwargs.update(axis=axis, keepdims=keepdims)
        elif method == "accumulate":
            if ufunc is np.add:
                return self.round(self._running_sum(inputs[0], axis))
            kwargs.update(axis=axis)
        ufunc = self.functions.get(ufunc, ufunc)
        y = (ufunc if method == "__call__" else getattr(ufunc, method))(*inputs, **kwargs)
        exact = getattr(ufunc, "__name__", "") in EXACT or not np.issubdtype(y.dtype, np.floating)
        return y if exact else self.round(y)

    def _matmul(self, a, b):
        """(..., n, k), (..., k, m) -> (..., n, m), one k after another"""
        total, fmt = 0.0, FORMATS[self.dtype]
        wide = fmt.wide
        if fmt.product:
            a, b = (round_to(x, fmt._replace(bits=fmt.product), self.rng) for x in (a, b))
        for i in range(0, a.shape[-1], self.block):
            part = slice(i, i + self.block)
            terms = a[..., part] @ b[..., part, :]
            terms += total
            total = self._rounded(terms, wide, self.block)
        return total

    def _sum(self, x, axis, keepdims):
        """One term after another, over all these axes in one row."""
        axes = range(x.ndim) if axis is None else np.atleast_1d(axis)
        axes = sorted(int(a) % x.ndim for a in axes)
        if self.block > 1:
            total = x.sum(axis=tuple(axes), keepdims=keepdims)
            size = np.abs(total)                             # of the partial sums, about, ...
            for part in self._partial_sums(x, axes):
                apart = np.sqrt((part * part).sum(axis=tuple(axes), keepdims=keepdims))
                size = np.maximum(size, apart)
            wide, count = FORMATS[self.dtype].wide, x.size // max(1, total.size) // 2
            return total + (blur(size, wide, self.rng, count + 1) - size)
        terms = np.moveaxis(x, axes, range(len(axes)))
        terms = terms.reshape(-1, *terms.shape[len(axes):])
        total = self._running_sum(terms, 0)[-1] if len(terms) else np.zeros(terms.shape[1:])
        shape = [1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes]
        return np.reshape(total, shape)

    def _partial_sums(self, x, axes):
        """... in one order of the terms or another: where terms come again, they do not cancel"""
        yield x
        for axis in axes if len(axes) > 1 else ():
            yield x.sum(axis=tuple(a for a in axes if a != axis), keepdims=True)

    def _running_sum(self, x, axis):
        """np.cumsum, one term after another"""
        wide = FORMATS[self.dtype].wide
        if self.rng is None:
            return np.add.accumulate(x.astype(wide), axis).astype(np.float64)
        sums = np.add.accumulate(x, axis)
        each = round_to(sums - x, wide) + x                  # is rounded; the errors add up
        errors = np.where((x != 0) & np.isfinite(sums), self._rounded(each, wide) - each, 0)
        return round_to(sums + np.add.accumulate(errors, axis), wide)


class Native:
    """The arithmetic that NumPy itself has"""

    def __init__(self, dtype):
        self.dtype = dtype

    def array(self, x):
        is_numbers = isinstance(x, np.ndarray) and x.dtype != bool
        return x.astype(self.dtype) if is_numbers else x


class Rounded(np.ndarray):
    """An array of an Arithmetic, and so is whatever is computed from it."""
    arithmetic: Arithmetic

    def __array_finalize__(self, parent):
        self.arithmetic = getattr(parent, "arithmetic", None)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        inputs = [x.view(np.ndarray) if isinstance(x, Rounded) else x for x in inputs]
        result = self.arithmetic.array(self.arithmetic.operate(ufunc, method, *inputs, **kwargs))
        if out is None:
            return result
        out[0].view(np.ndarray)[...] = result
        return out[0]

    def __array_function__(self, func, types, args, kwargs):
        """np.where, np.einsum and the like: as NumPy does it, then rounded."""
        result = super().__array_function__(func, types, args, kwargs)
        if not isinstance(result, np.ndarray) or not np.issubdtype(result.dtype, np.floating):
            return result
        return self.arithmetic.array(self.arithmetic.round(result.view(np.ndarray)))


# -------------------------------------------------- exp and log, the same bits on every machine


def exp(x):
    """From the series around multiples of ln 2."""
    inside = np.clip(x, -700, 700)
    n = np.rint(inside * 1.4426950408889634)
    # ln 2 in two parts, the first exact when multiplied by n
    r = inside - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10
    y = 0.0
    for k in range(16, -1, -1):
        y = y * r + 1 / math.factorial(k)
    return np.where(np.less(x, -700), 0.0, np.ldexp(y, n.astype(int)))


def log(x):
    """log(m 2^e) = 2 atanh((m - 1) / (m + 1)) + e ln 2"""
    m, e = np.frexp(x)
    return _atanh2((m - 1) / (m + 1)) + e * 0.6931471805599453


def log1p(x):
    """log(1 + x) for 0 <= x <= 1"""
    return _atanh2(x / (2 + x))


def power(x, n):
    """x^n by products for a whole n > 0."""
    if not float(n).is_integer() or n < 1:
        return np.power(x, n)
    y = x
    for _ in range(int(n) - 1):
        y = y * x
    return y


def _atanh2(z):
    """2 atanh(z) for |z| <= 1/3"""
    y = np.zeros_like(z)
    for k in range(39, 0, -2):
        y = y * z * z + 1 / k
    return 2 * z * y


PORTABLE = {np.exp: exp, np.log: log, np.log1p: log1p, np.power: power}
