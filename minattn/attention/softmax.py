"""Softmax attention: each query takes a weighted average of the values.

    s_ij = q_i . k_j / sqrt(D)     P = softmax_j(s) over the visible keys     out = P v

(arXiv 1706.03762, eq. 1.) All the work is done in core.py; the other mechanisms change parts of it.
"""
from minattn.attention.core import attend, attend_backward, attend_last

ARXIV = "1706.03762"
SUMMARY = "the baseline: a softmax-weighted average of the values"
ARGUMENTS = {"q": "B H Tq D", "k": "B G Tk D", "v": "B G Tk Dv"}


def forward(q, k, v, **options):
    """out = softmax(scale q k^T + bias) v over the visible keys.

    q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv)
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    Options, errors and masked rows: minattn.attention.core.attend.
    """
    return attend(q, k, v, **options)


def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v"} (and "bias" if one was given)

        dv = P^T dout      dP = dout v^T      ds = P * (dP - rowsum(P * dP))
        dq = scale ds k    dk = scale ds^T q  dbias = ds, summed over what was broadcast
    """
    return attend_backward(dout, cache)


decode = attend_last       # generation: one query
