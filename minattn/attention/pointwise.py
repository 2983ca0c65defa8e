"""Pointwise attention: a key's weight is a function of its own score; keys do not compete.

    rule="relu"       P_ij = max(s_ij, 0) / n_i               (arXiv 2410.13835)
    rule="sigmoid"    P_ij = sigmoid(s_ij - log n_i)          (arXiv 2409.04431)

s = q k^T / sqrt(D) + bias, n_i = the number of keys that query i sees; out = P v. There is no row
sum and no maximum. With ReLU a row whose scores are all negative returns 0 and learns nothing.

The first paper's code divides by the row's number from 1, which is n_i under a causal mask. The
second has one constant for all rows, -log T or tuned. Ours is -log n_i: the weights of a row whose
scores are 0 then sum to n/(n + 1), and a prefix alone gives what it gives inside the whole. At 0
the ReLU's slope is 0.
"""
from dataclasses import dataclass

import numpy as np

from minattn import checks
from minattn.attention.core import attend, attend_backward, attend_last
from minattn.attention.rules import Rule, visible_keys
from minattn.ops import sigmoid

ARXIV = "2410.13835"
SUMMARY = "each weight from its own score, by a ReLU or a sigmoid; no row sum"
ARGUMENTS = {"q": "B H Tq D", "k": "B G Tk D", "v": "B G Tk Dv"}
OPTIONS = {"rule": checks.Option("relu", ("relu", "sigmoid"))}
ABSOLUTE = True             # a constant added to every score changes the weights
STOCHASTIC = False          # a row's weights do not sum to 1


@dataclass(frozen=True)
class Relu(Rule):
    """P = max(s, 0) / n        saved: n (b, h, R, 1)"""

    def forward(self, s, rescored, heads=slice(None)):
        n = visible_keys(s)                                # 1. keys that each row sees
        np.maximum(s, np.zeros_like(s), out=s)             # 2. max(s, 0); hidden keys get 0
        s /= n                                             # 3. P
        return s, n

    def backward(self, dP, P, n):
        dP /= n                                            # 3. P = max(s, 0) / n
        dP *= P > 0                                        # 2. max(s, 0)
        return dP


@dataclass(frozen=True)
class Sigmoid(Rule):
    """P = sigmoid(s - log n)"""

    def forward(self, s, rescored, heads=slice(None)):
        s -= np.log(visible_keys(s))                       # 1. s - log n
        return sigmoid(s), None                            # 2. P; 0 on hidden keys

    def backward(self, dP, P, saved):
        dP *= P * (1 - P)                                  # 2. P = sigmoid(s - log n)
        return dP


RULES = {"relu": Relu(), "sigmoid": Sigmoid()}


def forward(q, k, v, *, rule="relu", **options):
    """out = P v, each P_ij from s_ij alone.

    q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv), rule "relu" or "sigmoid"
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    Other options, errors and masked rows: minattn.attention.core.attend.
    """
    checks.choice("rule", rule, RULES)
    return attend(q, k, v, rule=RULES[rule], **options)


def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v"}; relu: ds = dP [s > 0] / n, sigmoid: dP P (1 - P)"""
    return attend_backward(dout, cache)


def decode(q, k, v, *, rule="relu", **options):
    """forward for one query, in generation: see core.attend_last"""
    return attend_last(q, k, v, rule=RULES[rule], **options)
