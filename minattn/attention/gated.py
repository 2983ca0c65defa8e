"""Gated attention: a sigmoid gate, computed from the query's own token, scales the output.

    out = (P v) * sigmoid(gate_logits)    gate_logits = x W_g    (arXiv 2505.06708; 2602.23057)

One gate per head and channel, or one per head. "affine+gated" puts the gate on another mechanism.
"""
from typing import Any, NamedTuple

import numpy as np

from minattn import checks
from minattn.attention.core import attend, attend_backward, attend_last
from minattn.ops import sigmoid

ARXIV = "2505.06708"
SUMMARY = "multiplies the output by a sigmoid gate, per head and channel"
ARGUMENTS = {"q": "B H Tq D", "k": "B G Tk D", "v": "B G Tk Dv", "gate_logits": "B H Tq Dv|1"}
PROJECTIONS = {"gate_logits": False}        # x W_g, without a bias
LAYER_OPTIONS = {"gate": checks.Option("channel", ("channel", "head"))}    # one gate per ...
AVERAGES = False                            # the gate comes after the average
ON_TOP_OF = "softmax"                       # by itself; "affine+gated" gates the output of affine


class GateCache(NamedTuple):
    ungated: np.ndarray   # (B, H, Tq, Dv)       kept: the gate's gradient is made from it
    gate: np.ndarray      # (B, H, Tq, Dv or 1)


class Cache(NamedTuple):
    attention: Any
    gate: GateCache


@checks.quiet
def forward(q, k, v, gate_logits, **options):
    """out = (P v) * sigmoid(gate_logits).

    q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv), gate_logits (B, H, Tq, Dv) or (B, H, Tq, 1)
    -> out (B, H, Tq, Dv), cache [, weights: those of the softmax]
    Options and errors: minattn.attention.core.attend.
    """
    ungated, attention, *weights = attend(q, k, v, **options)     # 1. P v
    out, gate = gate_forward(ungated, gate_logits)                # 2. gate
    return (out, Cache(attention, gate), *weights)


@checks.quiet
def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v", "gate_logits"}"""
    grads = gate_backward(dout, cache.gate)                # 2. out = ungated * sigmoid(gate_logits)
    dungated = grads.pop("out")
    return {**attend_backward(dungated, cache.attention), **grads}   # 1. ungated = P v


def decode(q, k, v, gate_logits, **options):
    """forward for one query, in generation: see core.attend_last"""
    return gate_last(attend_last(q, k, v, **options), gate_logits)


@checks.quiet
def gate_forward(out, gate_logits):
    """The gate alone, for any attention's output: out (B, H, Tq, Dv) -> gated out, cache"""
    checks.arrays(out=(out, "B H Tq Dv"), gate_logits=(gate_logits, "B H Tq Dv|1"))
    gate = sigmoid(gate_logits)
    return out * gate, GateCache(out, gate)


def computed(cache):
    """What `minattn inspect` shows of a layer's gate, (B, H, T, ...)"""
    return {"gate": cache.gate}


def gate_last(out, gate_logits):
    """gate_forward in generation: unchecked, without a cache"""
    return out * sigmoid(gate_logits)


@checks.quiet
def gate_backward(dout, cache):
    """dout -> {"out", "gate_logits"};  d sigmoid = gate (1 - gate)"""
    ungated, gate = cache
    checks.gradient("dout", dout, ungated.shape, ungated.dtype)
    dgate = dout * ungated
    if gate.shape[3] == 1:
        dgate = dgate.sum(axis=3, keepdims=True)
    dgate *= gate
    dgate -= dgate * gate
    return {"out": dout * gate, "gate_logits": dgate}
