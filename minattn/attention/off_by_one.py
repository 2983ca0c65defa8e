"""Off-by-one softmax: a sink fixed at zero, so that a head with nothing to say can say nothing.

    P_ij = exp(s_ij) / ( 1 + sum_k exp(s_ik) )        out = P v        (arXiv 2602.23057, eq. 2)
"""
import numpy as np

from minattn import checks
from minattn.attention import sink
from minattn.attention.core import attend_last

ARXIV = "2602.23057"
SUMMARY = "adds 1 to the softmax denominator"
ARGUMENTS = {"q": "B H Tq D", "k": "B G Tk D", "v": "B G Tk Dv"}
ABSOLUTE = True             # a constant added to every score changes the weights
STOCHASTIC = False          # a row's weights do not sum to 1


def forward(q, k, v, **options):
    """out = P v, with 1 added to softmax's denominator.

    q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv) -> out (B, H, Tq, Dv), cache [, weights]
    Options and errors: minattn.attention.core.attend.
    """
    checks.arrays(q=(q, "B H Tq D"))
    zero = np.zeros(q.shape[1], q.dtype)
    return sink.forward(q, k, v, zero, **options)     # 1. a sink with exp(0) = 1


def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v"}"""
    grads = sink.backward(dout, cache)      # 1. the sink is a constant here: no gradient
    del grads["sink"]
    return grads


def decode(q, k, v, **options):
    """forward for one query, in generation: see core.attend_last"""
    return attend_last(q, k, v, **options, sink=np.zeros(q.shape[1], q.dtype))
