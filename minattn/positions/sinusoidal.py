"""Sinusoidal positions: C/2 pairs of sine and cosine, from fast to slow, added to the tokens.

Nothing is trained. A fixed distance rotates each pair by a fixed angle, wherever it starts.
"""
from typing import NamedTuple

import numpy as np

from minattn import checks, memory

KIND = "embedding"
ARXIV = "1706.03762"
SUMMARY = ("Fixed sine and cosine waves of geometrically spaced wavelengths, added to the token "
           "embedding.")
ARGUMENTS = {}
OPTIONS = {"base": checks.Option(10000.0, number={"above": 0}, examples=(100.0,))}
EVEN = "n_embd"


class SinusoidalCache(NamedTuple):
    shape: tuple      # (T, C): nothing here can be trained, but a gradient must have this shape
    dtype: np.dtype


def parameters(n_embd, block_size, **options):
    """Nothing is trained."""
    return {}


def embed(length, n_embd, dtype, start, *, base):
    """What the model adds to its embeddings: see forward."""
    return forward(length, n_embd, base=base, start=start, dtype=dtype)


@checks.quiet
def forward(length, n_embd, *, base=10000.0, start=0, dtype=np.float64):
    """Sine on the even channels, cosine on the odd ones, of the same angle.

    pe[t, 2k] = sin(p * base^(-2k/C)),  pe[t, 2k + 1] = cos(p * base^(-2k/C)),  p = start + t
    (Vaswani et al. 2017, arXiv 1706.03762, section 3.5)

    -> pe (T, C) with T = length and C = n_embd. Computed in float64, then rounded to dtype.
    The paper is silent on an odd C; we let the last sine go without its cosine. Raises InputError
    for a negative length, n_embd or base not above 0, or a dtype other than float32 or 64.
    """
    T = checks.number("length", length, 0, integer=True)
    C = checks.number("n_embd", n_embd, 1, integer=True)
    start = checks.number("start", start, low=-checks.FARTHEST, high=checks.FARTHEST, integer=True)
    base = checks.base(base)
    dtype = checks.floating("dtype", dtype)
    memory.weigh(f"{T:,} positions of {C:,} channels", 24 * T * C, "shorten the sequence")
    frequency = float(base) ** (-np.arange(0, C, 2) / C)            # 1. frequencies    (ceil(C/2),)
    angle = (start + np.arange(T))[:, None] * frequency           # 2. angles         (T, ceil(C/2))
    pe = np.empty((T, C), dtype)
    pe[:, 0::2] = np.sin(angle)                                   # 3. even channels  (T, ceil(C/2))
    pe[:, 1::2] = np.cos(angle[:, :C // 2])                      # 4. odd channels   (T, floor(C/2))
    return pe, SinusoidalCache((T, C), dtype)


@checks.quiet
def backward(dpe, cache):
    """dpe (T, C) -> {}: forward has no array argument, so there is no gradient to give."""
    checks.gradient("dpe", dpe, cache.shape, cache.dtype)
    return {}
