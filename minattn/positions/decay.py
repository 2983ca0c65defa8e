"""Linear decay (ALiBi): lower each score in proportion to the distance of the key.

Added before the softmax, -m per step multiplies a key's weight by e^{-m} for every step back. The
bias is so plain that it need not be stored: `DecayBias` computes any tile of it when the attention
core comes by.
"""
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minattn import checks, masks, memory

KIND = "bias"
ARXIV = "2108.12409"
SUMMARY = "Each head subtracts from its scores a slope times the distance to the key."
ARGUMENTS = {"slopes": "H"}
OPTIONS = {}


def alibi_slopes(n_head):
    """The slopes of ALiBi, one per head: 2^(-8/H), 2^(-16/H), ..., 2^(-8).

    m_h = 2^(-8h/H), h = 1 ... H -> (H,) float64    (Press et al. 2021, arXiv 2108.12409, section 3)

    The authors' code uses this formula only where H is a power of two, and otherwise fills in with
    every other slope of twice as many heads; we use it for every H. Raises InputError when n_head
    is not a whole number >= 1.
    """
    n_head = checks.number("n_head", n_head, 1, integer=True)
    memory.weigh(f"{n_head:,} slopes", 32 * n_head, "use fewer heads")
    return 2.0 ** (-8 * np.arange(1, n_head + 1) / n_head)


def bias(n_head, dtype):
    """What the model adds to its scores: ALiBi's slopes, constant."""
    dtype = checks.floating("dtype", dtype)
    return DecayBias(alibi_slopes(n_head).astype(dtype), learned=False)


class DecayCache(NamedTuple):
    distance: np.ndarray  # (Tq, Tk)  kept: the bias is linear in the slopes, and this is the factor
    heads: int


def forward(Tq, Tk, slopes, *, align="end"):
    """The whole bias at once, to plot and to check against; attention takes tiles from DecayBias.

    bias[h, i, j] = -(p_i - j) m_h,  query i at p_i = i + Tk - Tq (align="end") or p_i = i ("start")
    (Press et al. 2021, arXiv 2108.12409, section 3; one slope: Wu et al. 2025, arXiv 2502.01951,
    eq. 2)

    slopes (H,), float32 or float64 -> bias (H, Tq, Tk), same dtype.
    Both papers are causal, so silent on keys that lie ahead: there the same line goes on, above 0.
    Raises InputError for negative lengths, slopes that are not a finite float vector, and an
    unknown align.
    """
    Tq, Tk = (checks.number(name, n, 0, integer=True) for name, n in (("Tq", Tq), ("Tk", Tk)))
    checks.choice("align", align, ("end", "start"))
    checks.arrays(slopes=(slopes, "H"))
    checks.finite(slopes=slopes)
    memory.weigh(f"a bias of {len(slopes)} x {Tq:,} x {Tk:,}",
                 (len(slopes) + 1) * Tq * Tk * slopes.itemsize, "shorten the sequences")
    p = masks.positions(Tq, Tk, align)                            # 1. where queries stand     (Tq,)
    distance = _distance(p, np.arange(Tk), slopes.dtype)       # 2. steps back to each key  (Tq, Tk)
    bias = distance * -slopes[:, None, None]                # 3. one slope per head      (H, Tq, Tk)
    return bias, DecayCache(distance, len(slopes))


def backward(dbias, cache):
    """dbias (H, Tq, Tk) -> {"slopes": (H,)}"""
    checks.gradient("dbias", dbias, (cache.heads, *cache.distance.shape), cache.distance.dtype)
    # 3. bias = distance * -slopes
    dslopes = -np.einsum("hqk,qk->h", dbias, cache.distance)
    return {"slopes": dslopes}


@dataclass(frozen=True)
class DecayBias:
    """The same bias in tiles, as the attention core reads it: no T x T array ever exists."""

    slopes: np.ndarray   # (H,)
    learned: bool = True    # False: the slopes are constants, and get no gradient

    def __post_init__(self):
        checks.arrays(slopes=(self.slopes, "H"))
        checks.finite(slopes=self.slopes)

    def tile(self, batch, heads, p, keys):
        """h heads, queries at positions p (R,), keys (K,) -> (1, h, R, K), for all samples."""
        return _distance(p, keys, self.slopes.dtype) * -self.slopes[None, heads, None, None]

    def gradient(self):
        """Zeros, for tile_backward to add to; None where nothing is learned."""
        return {"slopes": np.zeros_like(self.slopes)} if self.learned else None

    def tile_backward(self, ds, batch, heads, p, keys, accumulator):
        """Add the gradient from a tile of score gradients ds (b, h, R, K) to the accumulator."""
        b, H, R, K = ds.shape
        distance = _distance(p, keys, ds.dtype).reshape(R * K)
        dslopes = (ds.reshape(b, H, R * K) @ distance).sum(axis=0)     # (b, H, RK) -> (H,)
        accumulator["slopes"][heads] -= dslopes


def _distance(p, keys, dtype):
    """How many steps behind the queries at p (R,) do the keys (K,) lie? -> (R, K)"""
    return (p[:, None] - keys).astype(dtype)
