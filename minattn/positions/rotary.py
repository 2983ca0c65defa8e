"""Rotary positions (RoPE): rotate each pair of channels of a query or key by an angle per position.

A pair (a, b) is the complex number a + ib; rotating it multiplies it by e^{i angle}. The dot
product of a query at position i with a key at position j then depends on i - j only.
"""
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from minattn import checks
from minattn.errors import InputError

KIND = "rotation"
ARXIV = "2104.09864"
SUMMARY = "Queries and keys are rotated by their position: scores depend on distances only."
ARGUMENTS = {}
OPTIONS = {"base": checks.Option(10000.0, number={"above": 0}, examples=(50.0,)),
           "pairs": checks.Option("half", ("half", "interleaved"))}
EVEN = "n_embd / n_head"


class RotaryCache(NamedTuple):
    rotation: np.ndarray   # (T, D/2) complex, read-only, shared with every call of the same shape
    pairs: str
    shape: tuple           # of x
    dtype: np.dtype


def forward(x, *, base=10000.0, start=0, pairs="half"):
    """Turn pair k of the vector at position p = start + t by the angle p * base^(-2k/D).

    y_a + i y_b = (x_a + i x_b) * e^{i p base^(-2k/D)},  k = 0 ... D/2 - 1
    (Su et al. 2021, arXiv 2104.09864, eq. 12 for one pair, eq. 15 for all of them)

    x (..., T, D) float32 or float64, any strides -> y (..., T, D), same dtype and memory layout.
    Which channels (a, b) make up pair k:
      pairs="interleaved"   (2k, 2k + 1), as in the paper
      pairs="half"          (k, k + D/2), as in GPT-NeoX and LLaMA: the channels renumbered
    The default is "half", which most published weights use.
    Raises InputError for an odd D, another dtype, a base not above 0, and an unknown pairs.
    """
    if type(x) not in checks.PLAIN or x.dtype not in checks.FLOATS or x.ndim < 2:
        raise InputError("x must be a float32 or float64 array of shape (..., T, D); "
                         f"got {checks.kind(x)}.")
    if x.shape[-1] % 2:
        raise InputError(f"x: axis -1 (D) must be even, to be cut into pairs; got {x.shape[-1]}.")
    base = checks.base(base)
    start = checks.number("start", start, low=-checks.FARTHEST, high=checks.FARTHEST, integer=True)
    checks.choice("pairs", pairs, ("half", "interleaved"))
    T, D = x.shape[-2:]
    rotation = rotations(T, D, x.dtype, base=base, start=start)    # 1. look up the angles  (T, D/2)
    y = rotate(x, rotation, pairs=pairs)                        # 2. turn every pair     (..., T, D)
    return y, RotaryCache(rotation, pairs, x.shape, x.dtype)


def backward(dy, cache):
    """dy (..., T, D), of the same dtype as x -> {"x": (..., T, D)}"""
    rotation, pairs, shape, dtype = cache
    checks.gradient("dy", dy, shape, dtype)

    # 2. y = x rotated by the angle: the transpose of a rotation is its inverse
    dx = rotate(dy, rotation.conj(), pairs=pairs)
    return {"x": dx}


@lru_cache(maxsize=32)    # the arrays are read-only
@checks.quiet
def rotations(T, D, dtype, *, base, start=0, pairs="half"):
    """e^{i (start + t) base^(-2k/D)} -> (T, D/2) complex, computed in float64, then rounded."""
    angle = (start + np.arange(T))[:, None] * float(base) ** (-2 * np.arange(D // 2) / D)
    rotation = np.exp(1j * angle).astype(np.result_type(dtype, np.complex64))
    rotation.flags.writeable = False
    return rotation


def rotate(x, rotation, *, pairs, base=None):
    """Read x (..., T, D) as complex pairs, multiply by rotation (T, D/2) -> a new (..., T, D).

    base is taken and not used, so that the options of forward can be passed on as they are.
    """
    half = x.shape[-1] // 2
    if pairs == "interleaved":    # memory holds a pair as it holds a complex number ...
        if x.strides[-1] != x.itemsize or 0 in x.strides:    # ... unless x is a view with gaps
            x = np.ascontiguousarray(x)
        y = np.empty_like(x)
        np.multiply(x.view(rotation.dtype), rotation, out=y.view(rotation.dtype))
    else:
        z = np.empty(x.shape[:-1] + (half,), rotation.dtype)  # (..., T, D) -> (..., T, D/2) complex
        z.real, z.imag = x[..., :half], x[..., half:]
        z *= rotation
        y = np.empty_like(x)                                  # (..., T, D/2) complex -> (..., T, D)
        y[..., :half], y[..., half:] = z.real, z.imag
    return y
