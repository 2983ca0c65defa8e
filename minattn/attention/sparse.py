"""Sparse attention: each row gives most keys a weight of exactly 0.

    rule="topk"        softmax over the `top` largest scores of a row            (arXiv 2506.14095)
    rule="sparsemax"   P = max(z - tau, 0)      z = s - max s                    (arXiv 1602.02068)
    rule="entmax15"    P = max(z - tau, 0)^2    z = (s - max s) / 2              (arXiv 1905.05702)

s = q k^T / sqrt(D) + bias over the visible keys, tau such that a row of P sums to 1; out = P v.
Sparsemax is the point of the simplex nearest to s; 1.5-entmax lies between it and the softmax.

The first paper's code is not causal, and of equal scores it takes the first. Ours hides keys first
and chooses among what is left; a row with at most `top` keys keeps all; every key whose score is
that of number `top`, up to rounding, is kept, whatever the order. The choice itself has no
gradient: a key that is not chosen learns nothing from that row.
"""
from dataclasses import dataclass

import numpy as np

from minattn import checks
from minattn.attention.core import attend, attend_backward, attend_last
from minattn.attention.rules import Rule, Softmax

ARXIV = "2506.14095"
SUMMARY = "most keys get a weight of exactly 0: top-k, sparsemax or 1.5-entmax"
ARGUMENTS = {"q": "B H Tq D", "k": "B G Tk D", "v": "B G Tk Dv"}
OPTIONS = {"rule": checks.Option("topk", ("topk", "sparsemax", "entmax15")),
           "top": checks.Option(5, number={"low": 1, "integer": True}, examples=(2,))}  # for topk
TIE = 16        # in units of eps: scores as close as this are equal, as those of equal keys may be


@dataclass(frozen=True)
class TopK(Rule):
    """The softmax of the scores that are at least the top-th of their row."""
    top: int

    def forward(self, s, rescored, heads=slice(None)):
        at = s.shape[3] - self.top
        if at > 0:
            least = np.partition(s, at, axis=3)[..., at, None]     # 1. the top-th score, or -inf
            least -= TIE * np.finfo(s.dtype).eps * np.abs(least)
            np.copyto(s, -np.inf, where=s < least)                 # 2. smaller ones are hidden
        return Softmax().forward(s, None)                          # 3. softmax

    def backward(self, dP, P, lse):
        return Softmax().backward(dP, P, None)                     # 3. 2. has a slope of 1, 1. none


class Threshold(Rule):
    """P = max(z - tau, 0)^power, z = (s - max s) / power, tau such that the n largest sum to 1"""

    def forward(self, s, rescored, heads=slice(None)):
        if not s.shape[3]:                                         # no row of the tile sees a key
            return s, None
        m = s.max(axis=3, keepdims=True)
        empty = m == -np.inf
        m[empty] = 0
        z = np.subtract(s, m, out=s)
        z /= self.power
        np.maximum(z, -2, out=z)                                   # 1. z; below -1 no key counts
        u = -np.sort(-z, axis=3)                                   # 2. largest first
        j = np.arange(1, u.shape[3] + 1, dtype=u.dtype)
        tau, n = self.thresholds(u, j)                             # 3. tau if j keys count, and n
        z -= np.take_along_axis(tau, n - 1, axis=3)
        P = np.maximum(z, 0, out=z) ** self.power                  # 4. P
        P *= ~empty
        return P, None


@dataclass(frozen=True)
class Sparsemax(Threshold):
    """The slope of P is 1 where it is above 0."""
    power = 1

    def thresholds(self, u, j):
        tau = (np.cumsum(u, axis=3) - 1) / j
        return tau, (u > tau).sum(axis=3, keepdims=True)

    def backward(self, dP, P, saved):
        counts = (P > 0).astype(P.dtype)
        n = np.maximum(counts.sum(axis=3, keepdims=True), 1)
        dP -= np.einsum("bhij,bhij->bhi", dP, counts)[..., None] / n
        return np.multiply(dP, counts, out=dP)


@dataclass(frozen=True)
class Entmax15(Threshold):
    """The slope of P is sqrt(P): 2 (z - tau), times the 1/2 in z."""
    power = 2

    def thresholds(self, u, j):
        mean = np.cumsum(u, axis=3) / j
        spread = np.cumsum(u * u, axis=3) - j * mean * mean        # sum of (u - mean)^2
        tau = mean - np.sqrt(np.maximum((1 - spread) / j, 0))
        return tau, (tau <= u).sum(axis=3, keepdims=True)

    def backward(self, dP, P, saved):
        slope = np.sqrt(P)
        total = slope.sum(axis=3, keepdims=True)
        total[total == 0] = 1
        dP -= np.einsum("bhij,bhij->bhi", dP, slope)[..., None] / total
        return np.multiply(dP, slope, out=dP)


def _rule(rule, top):
    if rule == "topk":
        return TopK(top)
    return Sparsemax() if rule == "sparsemax" else Entmax15()


def forward(q, k, v, *, rule="topk", top=5, **options):
    """out = P v with few weights above 0.

    q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv), rule "topk", "sparsemax" or "entmax15";
    top: how many keys a row of "topk" keeps, at least 1
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    Other options, errors and masked rows: minattn.attention.core.attend.
    """
    OPTIONS["rule"].check("rule", rule)
    top = checks.number("top", top, **OPTIONS["top"].number)
    return attend(q, k, v, rule=_rule(rule, top), **options)


def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v"}

        topk        ds = P (dP - rowsum(P dP))
        sparsemax   ds = dP - the mean of dP over the keys with weight; 0 on the others
        entmax15    ds = g (dP - rowsum(g dP) / rowsum(g)), g = sqrt(P)
    """
    return attend_backward(dout, cache)


def decode(q, k, v, *, rule="topk", top=5, **options):
    """forward for one query, in generation: see core.attend_last"""
    return attend_last(q, k, v, rule=_rule(rule, top), **options)
