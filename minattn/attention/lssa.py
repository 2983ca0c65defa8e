"""Softplus attention with a length scale (LSSA), and its sharpened form (LSSAR).

    s_ij = log D . log n_i . q_i.k_j / (|q_i| |k_j|)    n_i keys are visible to query i
    A = softplus(s) / sum of the row                    power=0, LSSA: P = A
    r = max(n_i A - 1, 0), b = r^power                  LSSAR: what beats the row's mean is kept
    P = b / (sum of the row + eps)                      (arXiv 2501.13428: power 15, also 3)

P is computed as x^power / (sum x^power + eps / m^power) with x = r / m, m the largest r of the row:
the same number, but r^15 would overflow float32 where a key has 372 times the mean. eps matters: a
row whose largest r is below eps^(1/power) fades to 0 (0.29 by default); one of equal scores is 0.

Our sources are accounts of the paper and others' code. What they leave open: eps (1e-8 in that
code, an option here); n_i where the mask is not causal (visible keys, not positions); the rows that
keep n_i A whole, "the first three" (those that see at most three keys: a single key would give 0).
A bias is added to s; where it pushes all of a row's softplus near the smallest float, P = 0.
"""
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minattn import checks
from minattn.attention import core
from minattn.attention.rules import Rule, visible_keys
from minattn.ops import softplus

ARXIV = "2501.13428"
SUMMARY = "softplus weights of unit-norm q and k, sharpened by a power of what beats the mean"
ARGUMENTS = {"q": "B H Tq D", "k": "B G Tk D", "v": "B G Tk Dv"}
OPTIONS = {"power": checks.Option(15, number={"low": 0, "integer": True}, examples=(0, 3)),
           "eps": checks.Option(1e-8, number={"above": 0})}
REFUSES = ("scale", "log_length")
ABSOLUTE, STOCHASTIC = True, False
FLOOR = 1e-12            # of a norm: a zero vector stays zero


class Cache(NamedTuple):
    attention: Any
    q: tuple             # unit vectors (B, H, Tq, D), norms (B, H, Tq, 1)
    k: tuple             # (B, G, Tk, D), (B, G, Tk, 1)


@dataclass(frozen=True)
class Sharpened(Rule):
    """softplus, divided by the row's sum, then sharpened        saved: a, row sums, n, r / m, m"""
    power: int
    eps: float
    saves = 2

    def forward(self, s, rescored, heads=slice(None)):
        n, ones = visible_keys(s), np.ones((s.shape[3], 1), s.dtype)  # 1. n_i      (b, h, R, 1)
        a = softplus(s)                                               # 2. a, 0 if hidden
        total = _nonzero(a @ ones)                                    #    a sum, but faster
        if self.power == 0:
            return a / total, (a, total, n, None, None)               # 3. A = a / total
        x = a / _nonzero(total / n)                                   # 3., 4. r = max(n A - 1, 0)
        x -= (n > 3).astype(x.dtype)                                  #    n A whole for n <= 3
        np.maximum(x, np.zeros_like(x), out=x)                        #    zeros: faster than 0
        m = _nonzero(x.max(axis=3, keepdims=True, initial=0))
        x /= m
        P = _power(x, self.power)                                     # 5. x^power, x = r / m
        rest = np.exp(math.log(self.eps) - self.power * np.log(m))    # eps / m^power, maybe inf
        P /= P @ ones + rest                                          # 6. P
        return P, (a, total, n, x, m)

    def backward(self, dP, P, saved):
        a, total, n, x, m = saved
        d, per_row = dP, total                                # each gradient overwrites the last
        if self.power:
            # 6., 5. P = r^power / (sum + eps)
            d -= np.einsum("bhij,bhij->bhi", P, d)[..., None]
            d *= P
            d /= np.maximum(x, np.full_like(x, np.finfo(x.dtype).tiny))   # where x = 0, so is P
            # 4. r = m x = max(n A - 1, 0); the row's factor, power n / m, is applied in 2.
            per_row = _nonzero(total * (m / (self.power * n)))
        # 3. A = a / sum
        d -= np.einsum("bhij,bhij->bhi", a, d)[..., None] / total
        # 2. a = softplus(s): its slope is sigmoid(s) = 1 - exp(-a), at most a: no overflow below
        slope = np.negative(a)
        np.expm1(slope, out=slope)
        slope /= -per_row
        d *= slope
        return d


@checks.quiet
def forward(q, k, v, *, power=15, eps=1e-8, **options):
    """out = P v over the visible keys.

    q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv)
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    power: a whole number >= 0; 0 leaves the sharpening out. eps > 0: see above.
    Other options and errors: minattn.attention.core.attend, except REFUSES.
    """
    core.refuse(options, REFUSES)
    power = checks.number("power", power, 0, integer=True)
    eps = checks.number("eps", eps, above=0)
    checks.arrays(q=(q, "B H Tq D"), k=(k, "B G Tk D"), v=(v, "B G Tk Dv"))
    checks.holds(q.dtype, "eps", eps)
    q, k = _unit(q), _unit(k)                                         # 1. unit vectors
    ones = np.ones(q[0].shape[1], q[0].dtype)
    out, attention, *weights = core.attend(                           # 2. rule(log D log n q k^T) v
        q[0], k[0], v, scale=math.log(max(q[0].shape[3], 1)), log_length=ones,
        rule=Sharpened(power, eps), **options)
    return (out, Cache(attention, q, k), *weights)


@checks.quiet
def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v"} (and "bias" if one was given)"""
    # 2. out = rule(log D log n q k^T) v
    grads = core.attend_backward(dout, cache.attention)
    del grads["log_length"]                                           # ones, constant
    # 1. unit vectors
    grads["q"] = _unit_backward(grads["q"], *cache.q)
    grads["k"] = _unit_backward(grads["k"], *cache.k)
    return grads


def decode(q, k, v, *, power=15, eps=1e-8, **options):
    """forward for one query, in generation: see core.attend_last"""
    scale = q.dtype.type(math.log(q.shape[3]) * math.log(k.shape[2]))
    return core.attend_last(_unit(q)[0] * scale, _unit(k)[0], v, rule=Sharpened(power, eps),
                            **options)


def _unit(x):
    """x / |x|, |x| (at least FLOOR)"""
    norm = np.sqrt(np.einsum("bhid,bhid->bhi", x, x))[..., None]
    norm = np.maximum(norm, FLOOR)
    return x / norm, norm


def _unit_backward(dunit, unit, norm):
    """At the floor, which a vector of norm 0 meets, the norm is constant."""
    along = np.einsum("bhid,bhid->bhi", dunit, unit)[..., None]
    return (dunit - np.where(norm > FLOOR, along, 0) * unit) / norm


def _nonzero(x):
    """Replace 0 by 1, in place: a row of zeros divided by it stays zeros"""
    x[x == 0] = 1
    return x


def _power(x, n):
    """x^n for a whole n >= 1, by squaring: a third of the time of np.power for n = 15"""
    y = None
    while n:
        if n & 1:
            y = x.copy() if y is None else np.multiply(y, x, out=y)
        n >>= 1
        if n:
            x = x * x
    return y
