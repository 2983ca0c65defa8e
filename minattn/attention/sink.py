"""Attention with a sink: one learned logit per head competes with the keys but has no value.

    P_ij = exp(s_ij) / ( exp(sink_h) + sum_k exp(s_ik) )     out = P v     (arXiv 2602.23057, eq. 3)

Softmax must spend a full unit of weight on the keys; with a sink a head may spend less. sink = 0 is
off-by-one softmax, sink -> -infinity is plain softmax.
"""
from minattn import checks
from minattn.attention.core import attend, attend_backward, attend_last

ARXIV = "2602.23057"
SUMMARY = "adds a learned logit without a value, which lets a head attend to nothing"
ARGUMENTS = {"q": "B H Tq D", "k": "B G Tk D", "v": "B G Tk Dv", "sink": "H"}
STOCHASTIC = False          # a row's weights do not sum to 1
PARAMETERS = {"sink": 0.0}      # initial value; the paper is silent, 0 starts as off-by-one softmax


def forward(q, k, v, sink, **options):
    """out = P v, with rows of P that sum to less than one: the sink takes the rest.

    q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv), sink (H,)
    -> out (B, H, Tq, Dv), cache [, weights]
    A row that sees no key gives 0. Options and errors: minattn.attention.core.attend.
    """
    checks.arrays(q=(q, "B H Tq D"), sink=(sink, "H"))
    # 1. with m = max(max_j s_ij, sink_h), the sink adds exp(sink_h - m) to the denominator
    return attend(q, k, v, sink=sink, **options)


def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v", "sink"}

    1. The sink is a key with value 0, so its dP is 0, and ds = P (dP - rowsum(dout * out)) becomes
       dsink_h = -sum_bi P_sink,i rowsum(dout * out)_i,   P_sink,i = exp(sink_h - lse_i).
    """
    return attend_backward(dout, cache)


decode = attend_last       # generation: one query
