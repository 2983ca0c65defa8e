"""How wrong may an implementation be? As wrong as the plainest one in the same precision, twice over, and no more.

    error <= 2 * (error of plain arithmetic + eps * max|truth|)      per tensor; truth is minattn's own, in float64

Plain arithmetic is a third formulation of every mechanism, dense and literal: whole score matrices, explicit weights,
explicit gradients, sums taken one term after another. It is computed here in numbers of any width, by rounding after
every operation (matrix products and sums add up in float32, as on any accelerator, and round at the end).

One run of plain arithmetic is one draw of luck: where it happens to be exact, the rule would demand exactness of
everybody. So it runs several times more with each rounding going up or down at random (Monte Carlo arithmetic: Parker
1997; CESTAC: Vignes 1993), which a result that needed no rounding does not feel, and the largest error counts.
"""
import zlib
from typing import NamedTuple

import numpy as np

from minattn import attention
from minattn.validate.plain import PLAIN


class Format(NamedTuple):
    bits: int           # of the fraction
    largest: float
    tiny: float         # the smallest normal number
    wide: str           # in which sums and matrix products add up

    @property
    def eps(self):
        return 2.0**-self.bits


FORMATS = {
    "float16": Format(10, 65504.0, 2.0**-14, "float32"),
    "bfloat16": Format(7, (2 - 2.0**-7) * 2.0**127, 2.0**-126, "float32"),
    "float32": Format(23, float(np.finfo(np.float32).max), 2.0**-126, "float32"),
    "float64": Format(52, float(np.finfo(np.float64).max), 2.0**-1022, "float64"),
}
DRAWS = 16              # runs with random rounding, twice (see `early` in plain); fewer, but at least ...
FEW = 4                 # ... so many, where all their scores together would be more than ...
WORK = 1 << 18
SLACK = 2


def round_to(x, dtype, rng=None):
    """float64 numbers rounded to a narrower format, still held as float64: to nearest, or at random up or down."""
    fmt = FORMATS[dtype]
    x = np.ascontiguousarray(x, np.float64)
    if fmt.bits == 52:
        return x if rng is None else x * (1 + fmt.eps * rng.uniform(-1, 1, x.shape))
    drop = 52 - fmt.bits
    u = x.view(np.uint64)
    if rng is None:                                          # half a unit, ties to even
        y = u + ((u >> np.uint64(drop)) & np.uint64(1)) + np.uint64((1 << drop - 1) - 1)
    else:                                                    # anything below a unit: exact numbers stay as they are
        y = u + _noise(drop, x.size, rng).reshape(x.shape)
    y &= np.uint64((1 << 64) - (1 << drop))
    y = y.view(np.float64)
    size = np.abs(y)
    if not size.max(initial=0) <= fmt.largest:               # (nan compares as neither)
        y = np.where(size > fmt.largest, np.copysign(np.inf, y), y)
    if not size.min(initial=np.inf) >= fmt.tiny and ((size < fmt.tiny) & (x != 0)).any():
        step = fmt.tiny * fmt.eps                            # below the smallest normal number the steps are equal
        steps = x / step
        small = (np.rint(steps) if rng is None else np.floor(steps + rng.random(x.shape))) * step
        y = np.where(np.abs(x) < fmt.tiny, small, y)
    return y


def _noise(bits, n, rng):
    """n random integers of so many bits: a window, at a random place, of a list drawn once."""
    if len(_pool.get(bits, ())) < n + WINDOWS:
        _pool[bits] = np.random.default_rng(0).integers(0, 1 << bits, n + WINDOWS, dtype=np.uint64)
    start = int(rng.integers(WINDOWS))
    return _pool[bits][start:start + n]


_pool: dict = {}
WINDOWS = 1 << 16


def fits(arrays, dtype):
    """Are these numbers exact in this format?"""
    return all(np.array_equal(round_to(x, dtype), x) for x in arrays)


class Arithmetic:
    """Operations whose every result is rounded to one format."""

    def __init__(self, dtype, rng=None):
        self.dtype, self.wide, self.rng = dtype, FORMATS[dtype].wide, rng

    def __call__(self, x):
        return round_to(x, self.dtype, self.rng)

    def matmul(self, a, b):
        """(..., n, k), (..., k, m) -> (..., n, m), one k after another"""
        total = 0.0
        for i in range(a.shape[-1]):
            total = round_to(total + a[..., :, i, None] * b[..., None, i, :], self.wide, self.rng)
        return self(total)

    def sum(self, x, *axes, keepdims=False):
        """One term after another, along one axis after another."""
        total, axes = x, {a % x.ndim for a in axes}
        for axis in sorted(axes, reverse=True):
            terms, total = np.moveaxis(total, axis, 0), 0.0
            for term in terms:
                total = round_to(total + term, self.wide, self.rng)
        shape = [1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes]
        return self(total).reshape(shape)


# --------------------------------------------------------------------------------------------- what is allowed


def plain(case, dtype, *, rng=None, draws=1, early=False):
    """Forward and backward of a case in plain arithmetic -> {"out": ..., "dq": ..., ...}, float64 arrays.

    With rng every rounding is random, and each result has `draws` independent runs along a new first axis.
    early: scale the queries before the product with the keys, not the scores after it. Both are plain; where large
    terms cancel, their errors differ much.
    """
    again = (lambda x: x) if rng is None else lambda x: np.broadcast_to(x, (draws, *x.shape))
    defaults = attention.MECHANISMS[case.mechanism].settings()
    options = {"scale": None, "bias": None, "early": early, **defaults, **case.options}
    arrays = {n: again(x) for n, x in case.arrays.items()}
    with np.errstate(all="ignore"):
        grads = PLAIN[case.mechanism](Arithmetic(dtype, rng), arrays, options, again(case.cotangent))
    return {n if n == "out" else "d" + n: x for n, x in grads.items()}


class Yardstick(NamedTuple):
    """The right answer of a case, and how far from it an implementation may be."""
    truth: dict             # "out", "dq", ... -> float64 array
    bounds: dict            # the same names -> largest error allowed
    reason: str = ""        # why there is no yardstick in this precision; then the bounds are empty


def truth(case, dtype=np.float64):
    """minattn's own forward and backward, in float64 -> {"out": ..., "dq": ..., ...}"""
    module = attention.MECHANISMS[case.mechanism].module
    cast = lambda x: x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype != bool else x    # noqa: E731
    arrays, options = ({n: cast(x) for n, x in d.items()} for d in (case.arrays, case.options))
    out, cache = module.forward(**arrays, **options)[:2]
    return {"out": out, **{"d" + n: x for n, x in module.backward(cast(case.cotangent), cache).items()}}


def stand_in(case, right, dtype, rng):
    """Where no plain formulation is written: the truth, off by what two measurements say.

    How far it moves when each number moves by up to one unit in the last place; and how wrong minattn's own float32 is
    nearby, scaled to the precision asked for.
    """
    def nudged(eps):
        nudge = lambda x: x * (1 + eps * rng.uniform(-1, 1, x.shape)) if getattr(x, "dtype", None) == np.float64 else x
        arrays, options = ({n: nudge(x) for n, x in d.items()} for d in (case.arrays, case.options))
        return case._replace(arrays=arrays, options=options, cotangent=nudge(case.cotangent))
    eps, eps32 = FORMATS[dtype].eps, FORMATS["float32"].eps
    moved = truth(nudged(eps))
    near = nudged(eps32)
    near = near._replace(arrays={n: round_to(x, "float32") for n, x in near.arrays.items()},
                         cotangent=round_to(near.cotangent, "float32"))
    exact, single = truth(near), truth(near, np.float32)
    return {n: x + np.abs(moved[n] - x) + np.abs(single[n] - exact[n]) * (eps / eps32) for n, x in right.items()}


def yardstick(case, dtype):
    """Truth and bounds of one case in one precision, kept for the next time that the same case comes along."""
    key = id(case), dtype
    if key not in _kept:
        if len(_kept) >= 1024:
            _kept.clear()
        _kept[key] = case, _yardstick(case, dtype)           # holding the case keeps its id from being used again
    return _kept[key][1]


_kept: dict = {}


def _yardstick(case, dtype):
    right = truth(case)
    numbers = [*case.arrays.values(), case.cotangent, *(o for o in case.options.values() if isinstance(o, np.ndarray))]
    if not fits((x for x in numbers if x.dtype == np.float64), dtype):
        return Yardstick(right, {}, f"its inputs lie outside the range of {dtype}")
    scores = right["out"][..., 0].size * max(x.shape[2] for x in case.arrays.values() if x.ndim > 2)
    draws = min(WORK // scores, DRAWS)                       # at once, or one by one where the scores are many
    draws, repeats = (draws, 1) if draws >= FEW else (1, FEW)
    rng = np.random.default_rng([case.seed, zlib.crc32(f"{case.mechanism}/{case.id}/{dtype}".encode())])
    if case.mechanism in PLAIN:
        orders = [False, True] * repeats
        runs = [plain(case, dtype), *(plain(case, dtype, rng=rng, draws=draws, early=early) for early in orders)]
    else:
        runs = [stand_in(case, right, dtype, rng) for _ in range(2 * DRAWS)]
    fmt, bounds = FORMATS[dtype], {}
    underflow = fmt.tiny * fmt.eps
    if dtype != "float16":      # a machine may take what is below the smallest normal number for 0, then multiply it
        underflow = fmt.tiny * max(1.0, *(float(np.abs(x).max(initial=0)) for x in numbers)) ** 2
    for name, x in right.items():
        error = max(float(np.abs(run[name] - x).max(initial=0)) for run in runs)
        if not np.isfinite(error):
            return Yardstick(right, {}, f"plain {dtype} arithmetic overflows here, so there is nothing to compare with")
        bounds[name] = SLACK * (error + fmt.eps * float(np.abs(x).max(initial=0))) + underflow
    return Yardstick(right, bounds)
