"""Collaborative heads: all heads share queries and keys, and each mixes their channels in its way.

    s_hij = ( sum_e mix_he q_ie k_je + content_hj ) / sqrt(D/H)    P = softmax(s)    out_h = P_h v_h

(arXiv 2006.16362; D, the width of the shared keys, is the layer's option key_width, n_embd unless
given.) `content` is a projection of the key's token and takes the place of the query bias. With
D = n_embd, content = 0 and a mix of ones block by block it is softmax attention. In the core head h
has the queries mix_h * q, the keys k, and a bias on the keys. The scores of a head take all D
channels: H D / n_embd times the products of softmax.

The mix starts as normal(0, 0.2), as in the authors' code. The paper has no softcap or log-length
scale; here both act on the mixed dot products, before content is added.
"""
import math
from typing import Any, NamedTuple

import numpy as np

from minattn import checks
from minattn.attention import core

ARXIV = "2006.16362"
SUMMARY = "queries and keys shared by all heads, whose channels each head mixes by learned weights"
ARGUMENTS = {"q": "B 1 Tq D", "k": "B 1 Tk D", "v": "B H Tk Dv", "mix": "H D", "content": "B H Tk"}
PROJECTIONS = {"content": False}
PARAMETERS = {"mix": ("normal", 0.2)}
LAYER_OPTIONS = {"key_width": checks.Option(None, (None,), {"low": 1, "integer": True},
                                            examples=(8,))}
REFUSES = ("scale",)           # sqrt(H/D)


def head_sizes(n_embd, n_head, *, key_width=None, **options):
    """Widths in a layer, where they are not n_embd / n_head"""
    return {"D": key_width or n_embd}


class Cache(NamedTuple):
    attention: Any
    q: np.ndarray             # (B, 1, Tq, D)
    mix: np.ndarray           # (H, 1, D)
    scale: float


@checks.quiet
def forward(q, k, v, mix, content, **options):
    """out = softmax(scale ((q * mix) k^T + content)) v, scale = sqrt(H/D).

    q (B, 1, Tq, D), k (B, 1, Tk, D), v (B, H, Tk, Dv), mix (H, D), content (B, H, Tk)
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    Options and errors: minattn.attention.core.attend, but there is no scale.
    """
    core.refuse(options, REFUSES)
    checks.arrays(q=(q, "B 1 Tq D"), k=(k, "B 1 Tk D"), v=(v, "B H Tk Dv"), mix=(mix, "H D"),
                  content=(content, "B H Tk"))
    checks.finite(mix=mix)
    scale = math.sqrt(mix.shape[0] / max(mix.shape[1], 1))        # attend refuses a width of 0
    mix = mix[:, None]
    mixed = q * mix                                               # 1. (B, H, Tq, D)
    key_bias = (scale * content)[:, :, None]                      # 2. (B, H, 1, Tk)
    out, attention, *weights = core.attend(mixed, k, v, scale=scale, own_bias=(key_bias,),
                                           **options)             # 3. attend
    return (out, Cache(attention, q, mix, scale), *weights)


@checks.quiet
def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v", "mix", "content"} (and "bias", ... if given)"""
    # 3. out = attention of the mixed queries
    grads = core.attend_backward(dout, cache.attention)           # k: summed over the heads
    (dkey_bias,), dmixed = grads.pop("own_bias"), grads["q"]
    # 2. key_bias = scale content
    grads["content"] = cache.scale * dkey_bias[:, :, 0]
    # 1. mixed = q * mix
    grads["mix"] = np.einsum("bhid,bid->hd", dmixed, cache.q[:, 0])
    grads["q"] = np.einsum("bhid,hd->bid", dmixed, cache.mix[:, 0])[:, None]
    return grads


def decode(q, k, v, mix, content, *, bias=None, **options):
    """forward for one query, in generation: see core.attend_last. k and v: the last keys"""
    scale = q.dtype.type(math.sqrt(mix.shape[0] / mix.shape[1]))
    key_bias = scale * content[:, :, None, -k.shape[2]:]
    key_bias = key_bias if bias is None else key_bias + bias
    return core.attend_last(q * (scale * mix[:, None]), k, v, bias=key_bias, **options)
