"""Differential attention, version 1: the difference of two softmax maps, normed per head.

    Y = (P_2h - lambda P_2h+1) v_h       lambda = exp(lq1 . lk1) - exp(lq2 . lk2) + lambda_init
    out = (1 - lambda_init) gain * Y / sqrt(mean(Y^2) + 1e-5)    lambda_init = 0.8 - 0.6 exp(-0.3 l)

(arXiv 2410.05258; l is the layer's index, from 0.) Of 2H heads of queries and keys, 2h and 2h + 1
form a pair with one value head. In a layer D is half of n_embd / n_head, so that the projections
keep their size; one lambda and one gain serve all its heads.

The norm makes rows that are nearly uniform as large as the others, and the first token's output
free of lambda (unless lambda is near 1). The paper has no dropout; here a pair drops the same
weights. A bias, `allowed` and log_length are per pair too.
"""
import math
from typing import Any, NamedTuple

import numpy as np

from minattn import checks, ops
from minattn.attention.core import attend_last
from minattn.attention.differential import both, both_backward, pairs

ARXIV = "2410.05258"
SUMMARY = "differential, version 1: lambda learned per layer, an RMS norm per head"
LAMBDAS = "lam_q1", "lam_k1", "lam_q2", "lam_k2"
ARGUMENTS = {"q": "B 2H Tq D", "k": "B 2H Tk D", "v": "B H Tk Dv",
             **dict.fromkeys(LAMBDAS, "D"), "gain": "Dv"}
OPTIONS = {"layer_index": checks.Option(0, number={"low": 0, "integer": True}, examples=(3,))}
PARAMETERS = {**dict.fromkeys(LAMBDAS, ("normal", 0.1)), "gain": 1.0}
STOCHASTIC = False       # a row of weights sums to 1 - lambda, and some are negative
AVERAGES = False         # the norm comes after the average
EPS = 1e-5


def head_sizes(n_embd, n_head, **options):
    """Widths in a layer, where they are not n_embd / n_head"""
    return {"D": n_embd // (2 * n_head)}


class Cache(NamedTuple):
    maps: tuple               # caches of the two calls
    second: np.ndarray        # (B, H, Tq, Dv)   P_2h+1 v_h
    lambdas: tuple            # the four vectors (D,)
    e1: Any                   # exp(lq1 . lk1)
    e2: Any
    lam: Any
    norm: Any                 # of rms_norm
    scaled_gain: np.ndarray   # (Dv,)
    keep: Any                 # 1 - lambda_init


def lambda_init(layer_index):
    """The constant part of lambda: 0.2 in the first layer, 0.8 in a deep one"""
    return 0.8 - 0.6 * math.exp(-0.3 * layer_index)


@checks.quiet
def forward(q, k, v, lam_q1, lam_k1, lam_q2, lam_k2, gain, *, layer_index=0, **options):
    """out = (1 - lambda_init) gain * rms_norm((P_2h - lambda P_2h+1) v).

    q (B, 2H, Tq, D), k (B, 2H, Tk, D), v (B, H, Tk, Dv), four lambdas (D,), gain (Dv,)
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk): the difference, before the norm]
    Options and errors: minattn.attention.core.attend, with H pairs for its H heads.
    """
    lambdas = lam_q1, lam_k1, lam_q2, lam_k2
    named = dict(zip(LAMBDAS, lambdas), gain=gain)
    checks.number("layer_index", layer_index, 0, integer=True)
    checks.arrays(q=(q, "B 2H Tq D"), k=(k, "B 2H Tk D"), v=(v, "B H Tk Dv"),
                  **{name: (x, ARGUMENTS[name]) for name, x in named.items()})
    checks.finite(**named)
    start = lambda_init(layer_index)
    e1, e2 = np.exp(lam_q1 @ lam_k1), np.exp(lam_q2 @ lam_k2)
    lam = q.dtype.type(e1 - e2 + start)                                       # 1. lambda
    (first, *P1), (second, *P2), maps = both(q, k[:, 0::2], k[:, 1::2], v, **options)  # 2. two maps
    Y = first - lam * second                                                  # 3. their difference
    Yhat, norm = ops.rms_norm_forward(Y, EPS)                                 # 4. norm
    keep = q.dtype.type(1 - start)
    cache = Cache(maps, second, lambdas, e1, e2, lam, norm, keep * gain, keep)
    return (Yhat * cache.scaled_gain, cache, *(a - lam * b for a, b in zip(P1, P2)))   # 5. gain


@checks.quiet
def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v", "lam_q1", "lam_k1", "lam_q2", "lam_k2", "gain"}

    (and "bias", "log_length" if given)
    """
    lq1, lk1, lq2, lk2 = cache.lambdas
    # 5. out = (1 - lambda_init) gain * Yhat
    checks.gradient("dout", dout, cache.second.shape, cache.second.dtype)
    dgain = cache.keep * np.einsum("bhid,bhid->d", dout, cache.norm.y)
    # 4. Yhat = rms_norm(Y)
    dY = ops.rms_norm_backward(dout * cache.scaled_gain, cache.norm)["x"]
    # 3. Y = first - lambda second
    dlam = -np.einsum("bhid,bhid->", dY, cache.second)
    # 2. the two maps
    dk, grads = both_backward(dY, -cache.lam * dY, cache.maps)
    # 1. lambda = exp(lq1 . lk1) - exp(lq2 . lk2) + lambda_init, the last a constant
    d1, d2 = dlam * cache.e1, -dlam * cache.e2
    return {**grads, "k": pairs(*dk), "lam_q1": d1 * lk1, "lam_k1": d1 * lq1,
            "lam_q2": d2 * lk2, "lam_k2": d2 * lq2, "gain": dgain}


def decode(q, k, v, lam_q1, lam_k1, lam_q2, lam_k2, gain, *, layer_index=0, **options):
    """forward for one query, in generation: see core.attend_last"""
    start, dtype = lambda_init(layer_index), q.dtype.type
    lam = dtype(np.exp(lam_q1 @ lam_k1) - np.exp(lam_q2 @ lam_k2) + start)
    first, second = (attend_last(q[:, i::2], k[:, i::2], v, **options) for i in (0, 1))
    return ops.rms_norm_forward(first - lam * second, EPS)[0] * (dtype(1 - start) * gain)
