"""A mechanism that the package does not know: a test adds it, and every check must take it.

    s = sharp exp(warmth) q k^T / sqrt(D) + tilt

It has one of each: an option, a projection of the layer's input, and a parameter per head.
"""
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from minattn import attention, checks
from minattn.attention.core import attend, attend_backward


def forward(q, k, v, tilt, warmth, *, sharp=1.0, **options):
    """q (B, H, Tq, D), k (B, H, Tk, D), v (B, H, Tk, Dv), tilt (B, H, Tk), warmth (H,)"""
    factor = (sharp * np.exp(warmth))[:, None, None]
    out, core, *weights = attend(q * factor, k, v, own_bias=(tilt[:, :, None],), **options)
    return (out, (core, factor), *weights)


def backward(dout, cache):
    core, factor = cache
    grads = attend_backward(dout, core)
    grads["tilt"] = grads.pop("own_bias")[0][:, :, 0]
    grads["warmth"] = np.einsum("bhid,bhid->h", grads["q"], core.q)
    grads["q"] = grads["q"] * factor
    return grads


MODULE = SimpleNamespace(
    ARXIV="1706.03762", SUMMARY="scores that lean towards some keys",
    ARGUMENTS={"q": "B H Tq D", "k": "B H Tk D", "v": "B H Tk Dv", "tilt": "B H Tk", "warmth": "H"},
    OPTIONS={"sharp": checks.Option(1.0, number={"above": 0}, examples=(1.5,))},
    PROJECTIONS={"tilt": False}, PARAMETERS={"warmth": 0.1}, forward=forward, backward=backward)


def formula(q, k, v, tilt, warmth, *, sharp=1.0, bias=None, **options):
    """The same in PyTorch."""
    import torch

    from minattn.torch_refs import softmax_attention
    q = q * sharp * torch.exp(warmth)[:, None, None]
    tilt = tilt[:, :, None]
    return softmax_attention(q, k, v, bias=tilt if bias is None else tilt + bias, **options)


@contextmanager
def registered():
    """Known as "lean" inside a with block, in PyTorch too where there is one."""
    tables = [attention.MECHANISMS]
    attention.register("lean", MODULE, forward, backward)
    try:
        from minattn import torch_refs
        tables.append(torch_refs.ATTENTION)
        torch_refs.ATTENTION["lean"] = torch_refs.Formula(formula)
    except ImportError:
        pass
    yield "lean"
    for table in tables:
        del table["lean"]
