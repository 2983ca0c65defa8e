"""Cog attention: softmax of the scores' sizes; each weight then gets the sign of its score.

    s = q k^T / sqrt(D)     A = softmax(|s|)     P = sign(s) A     out = P v     (arXiv 2411.07176)

A key can be subtracted: the sizes of a row's weights sum to one, their sum is anywhere in [-1, 1].
Hidden keys are hidden after the absolute value; an earlier -inf would become the largest score.

The paper does not say where a bias belongs. Ours is added to |s|: added before, a penalty on a key
would raise its weight. sign(0) = 0. The weights jump there, which no gradient shows. The authors
keep softmax in the first and the last layer: `--attention softmax/cog/cog/softmax`.
"""
from dataclasses import dataclass

import numpy as np

from minattn.attention.core import attend, attend_backward, attend_last
from minattn.attention.rules import Rule, Softmax

ARXIV = "2411.07176"
SUMMARY = "weights with the sign of their score, so that a key can be subtracted"
ARGUMENTS = {"q": "B H Tq D", "k": "B G Tk D", "v": "B G Tk Dv"}
STOCHASTIC = False          # a row's weights do not sum to 1


@dataclass(frozen=True)
class Cog(Rule):
    """P = sign(s) softmax(|s| + bias)        saved: A = softmax(|s| + bias), sign"""
    saves = 2

    def rescore(self, s):
        # 1. size and sign, before the mask; 0 for NaN: what is hidden later stays out of P
        sign = np.subtract(s > 0, s < 0, dtype=s.dtype)
        return np.abs(s, out=s), sign

    def forward(self, s, sign, heads=slice(None)):
        A, _ = Softmax().forward(s, None)                  # 2. A = softmax(|s| + bias)
        return A * sign, (A, sign)                         # 3. P = sign A

    def backward(self, dP, P, saved):
        A, sign = saved
        dP *= sign                                         # 3. P = sign A
        return Softmax().backward(dP, A, None)             # 2. A = softmax(|s| + bias)

    def rescore_backward(self, ds, sign):
        return ds * sign                                   # 1. |s|


def forward(q, k, v, **options):
    """out = sign(s) softmax(|s| + bias) v over the visible keys, s = scale q k^T.

    q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv)
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    Options, errors and masked rows: minattn.attention.core.attend.
    """
    return attend(q, k, v, rule=Cog(), **options)


def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v"}: ds = A (dP - sign rowsum(P dP))"""
    return attend_backward(dout, cache)


def decode(q, k, v, **options):
    """forward for one query, in generation: see core.attend_last"""
    return attend_last(q, k, v, rule=Cog(), **options)
