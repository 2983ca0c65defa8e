"""Differential attention, version 2: the difference of two softmax maps, the second one gated.

    out_h = (P_2h - lambda_h P_2h+1) v_h        lambda_h = sigmoid(lam_logits_h), lam_logits = x W

(the authors' second version, January 2026, of arXiv 2410.05258; version=1 is differential_1.py.)
There are twice as many query heads; heads 2h and 2h + 1 form a pair, which shares keys and values.
The paper has no gate's initial value: the layer draws W as any other projection, near lambda = 1/2.
It has no dropout either; here a pair drops the same weights, those of the difference. A bias,
`allowed` and log_length are per pair too.
"""
import copy
from typing import NamedTuple

import numpy as np

from minattn import checks
from minattn.attention.core import attend, attend_backward, attend_last
from minattn.ops import sigmoid

ARXIV = "2410.05258"
SUMMARY = "subtracts a second softmax map, scaled by a gate, from the first"
ARGUMENTS = {"q": "B 2H Tq D", "k": "B G Tk D", "v": "B G Tk Dv", "lam_logits": "B H Tq"}
PROJECTIONS = {"lam_logits": False}
LAYER_OPTIONS = {"version": checks.Option(2, (2, 1))}
STOCHASTIC = False          # a row of weights sums to 1 - lambda, and some are negative
VERSIONS = {("version", 1): "differential_1"}


class Cache(NamedTuple):
    maps: tuple               # caches of the two calls
    second: np.ndarray        # (B, H, Tq, Dv)   P_2h+1 v_h
    lam: np.ndarray           # (B, H, Tq, 1)


@checks.quiet
def forward(q, k, v, lam_logits, **options):
    """out = (P_2h - lambda P_2h+1) v.

    q (B, 2H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv), lam_logits (B, H, Tq)
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk): the difference]
    Options and errors: minattn.attention.core.attend, with H pairs for its H heads.
    """
    checks.arrays(q=(q, "B 2H Tq D"), lam_logits=(lam_logits, "B H Tq"))
    (first, *P1), (second, *P2), maps = both(q, k, k, v, **options)     # 1. P_2h v and P_2h+1 v
    lam = sigmoid(lam_logits)[..., None]                                # 2. lambda
    weights = [a - lam * b for a, b in zip(P1, P2)]
    return (first - lam * second, Cache(maps, second, lam), *weights)   # 3. their difference


@checks.quiet
def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v", "lam_logits"} (and "bias", "log_length" if given)"""
    maps, second, lam = cache
    # 3. out = first - lambda second
    checks.gradient("dout", dout, second.shape, second.dtype)
    dlam = -np.einsum("bhid,bhid->bhi", dout, second)
    # 2. lambda = sigmoid(lam_logits)
    lam_logits = dlam * (lam * (1 - lam))[..., 0]
    # 1. the two maps
    (dk1, dk2), grads = both_backward(dout, -lam * dout, maps)
    return {**grads, "k": dk1 + dk2, "lam_logits": lam_logits}


def decode(q, k, v, lam_logits, **options):
    """forward for one query, in generation: see core.attend_last"""
    first, second = (attend_last(q[:, i::2], k, v, **options) for i in (0, 1))
    return first - sigmoid(lam_logits)[..., None] * second


# ------------------------------------------------------------------- two maps, for either version


def both(q, k1, k2, v, *, rng=None, **options):
    """attend for query heads 0, 2, ... and 1, 3, ... -> two of (out [, weights]), both caches"""
    checks.generator(rng)
    same = copy.deepcopy(rng)                               # the second map drops the same weights
    first, cache1, *P1 = attend(q[:, 0::2], k1, v, rng=rng, **options)
    second, cache2, *P2 = attend(q[:, 1::2], k2, v, rng=same, **options)
    return (first, *P1), (second, *P2), (cache1, cache2)


def both_backward(dfirst, dsecond, caches):
    """-> (dk1, dk2), {"q", "v"} and, where given, {"bias", "log_length"}"""
    one, two = (attend_backward(d, cache) for d, cache in zip((dfirst, dsecond), caches))
    dk = one.pop("k"), two.pop("k")
    dq = pairs(one.pop("q"), two.pop("q"))
    return dk, {"q": dq, **{name: _add(one[name], two[name]) for name in one}}


def pairs(a, b):
    """Heads of a and b in turn: (B, H, T, D) twice -> (B, 2H, T, D)"""
    B, H, T, D = a.shape
    return np.stack((a, b), axis=2).reshape(B, 2 * H, T, D)


def _add(a, b):
    """The sum of two gradients: arrays, or those of a bias object, or of several biases"""
    if isinstance(a, tuple):
        return tuple(map(_add, a, b))
    if isinstance(a, dict):
        return {name: _add(a[name], b[name]) for name in a}
    return None if a is None else a + b
