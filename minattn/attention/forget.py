"""Forgetting attention: each token holds a gate that lowers the scores of all keys before it.

    s_ij = q_i . k_j / sqrt(D) + sum of log f_l over l = j+1 .. i      f_l = sigmoid(x_l W_f + b_f)
    P = softmax_j(s) over the visible keys        out = P v                (arXiv 2503.02130)

With the running sum c_j = log f_1 + ... + log f_j the added term is c_i - c_j: an ALiBi whose slope
is learned and depends on the text. c_i is the same for the whole row and changes no weight; but the
difference stays small near the query, where the weights are, and that keeps float32's digits. c
itself grows with the length, so it is held as a sum of two float32 numbers.

Where the paper, which is causal, is silent: for keys ahead (not causal, or within a prefix) the sum
counts backwards, above 0, as ALiBi's line does here. A query after the last key takes that key's c,
one before the first key takes 0: neither changes a weight. W_f and b_f start like the model's other
projections, at normal(0, 0.02) and 0 (f near 1/2), as in the authors' code.
"""
from typing import Any, NamedTuple

import numpy as np

from minattn import checks
from minattn.attention.core import attend, attend_backward, attend_last
from minattn.ops import log_sigmoid, sigmoid

ARXIV = "2503.02130"
SUMMARY = "forgets: every token's gate log sigmoid(f) lowers the scores of all keys before it"
ARGUMENTS = {"q": "B H Tq D", "k": "B G Tk D", "v": "B G Tk Dv", "forget_logits": "B H Tk"}
PROJECTIONS = {"forget_logits": True}       # x W_f + b_f


class Forgotten(NamedTuple):
    """The bias c_p - c_j in tiles, as the attention core reads it: no (Tq, Tk) array exists."""
    c: np.ndarray        # (B, H, 1 + Tk)  from c = 0 before the first key
    rest: np.ndarray     # (B, H, 1 + Tk)  what rounding to float32 took away from c

    def tile(self, batch, heads, p, keys):
        def difference(c):                 # np.take: c[:, :, at] would lie in another order
            c = c[batch, heads]
            return np.take(c, self._at(p), 2)[..., None] - np.take(c, keys + 1, 2)[:, :, None]

        return difference(self.c) + difference(self.rest)

    def gradient(self):
        return np.zeros(self.c.shape)                           # of c, in float64

    def tile_backward(self, ds, batch, heads, p, keys, dc):
        dc = dc[batch, heads]
        queries = slice(None), slice(None), self._at(p)         # two of them may share a position
        # the sums of rows and of columns, as products: faster
        np.add.at(dc, queries, ds @ np.ones(ds.shape[3], ds.dtype))
        dc[:, :, keys + 1] -= np.ones(ds.shape[2], ds.dtype) @ ds

    def _at(self, p):
        return np.clip(p + 1, 0, self.c.shape[2] - 1)


class Cache(NamedTuple):
    attention: Any
    forget_logits: np.ndarray       # (B, H, Tk)


@checks.quiet
def forward(q, k, v, forget_logits, **options):
    """out = softmax(s + c_i - c_j) v, c the running sum of log sigmoid(forget_logits).

    q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv), forget_logits (B, H, Tk)
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    The gate of a key counts even where a mask hides the key. The first one changes nothing.
    Options, errors and masked rows: minattn.attention.core.attend.
    """
    checks.arrays(q=(q, "B H Tq D"), k=(k, "B G Tk D"), v=(v, "B G Tk Dv"),
                  forget_logits=(forget_logits, "B H Tk"))
    log_f = log_sigmoid(forget_logits.astype(float))                # 1. log f       (B, H, Tk)
    c = np.pad(np.cumsum(log_f, axis=2), ((0, 0), (0, 0), (1, 0)))  # 2. running sum, from 0
    rounded = c.astype(q.dtype)
    bias = Forgotten(rounded, (c - rounded).astype(q.dtype))        # 3. c_i - c_j
    out, attention, *weights = attend(q, k, v, own_bias=(bias,), **options)     # 4.
    return (out, Cache(attention, forget_logits), *weights)


@checks.quiet
def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v", "forget_logits"} (and "bias" if one was given)"""
    # 4. out = softmax(s + bias) v
    grads = attend_backward(dout, cache.attention)
    # 3. bias = c_i - c_j: c_l gets the sum of row l of ds less that of column l, in tile_backward
    (dc,) = grads.pop("own_bias")                                   # (B, H, 1 + Tk)
    # 2. c_j = log f_1 + ... + log f_j: log f_l is in every c from l on
    dlog_f = np.cumsum(dc[:, :, :0:-1], axis=2)[:, :, ::-1]         # (B, H, Tk)
    # 1. log f: its slope is 1 - f
    logits = cache.forget_logits
    grads["forget_logits"] = (dlog_f * sigmoid(-logits.astype(float))).astype(logits.dtype)
    return grads


def decode(q, k, v, forget_logits, *, bias=None, **options):
    """forward for one query, in generation: see core.attend_last. k and v: the last keys"""
    c = np.cumsum(log_sigmoid(forget_logits.astype(float)), axis=2)
    own = (c[:, :, -1:] - c[:, :, -k.shape[2]:]).astype(q.dtype)[:, :, None]      # c_i - c_j
    return attend_last(q, k, v, bias=own if bias is None else own + bias, **options)


def computed(cache):
    """What `minattn inspect` shows of a layer: its gates f, (B, H, T)"""
    return {"forget gate": sigmoid(cache.forget_logits)}
