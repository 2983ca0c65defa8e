"""A stack of attention layers and nothing else, with a small head on the last token: the network of arXiv 2502.01951.

    X <- softmax(X W_q (X W_k)^T / sqrt(d) + mask) X W_v   [+ X]      layer after layer
    logits = three times relu(. W + b), then . W + b, of the last token

No projection after attention, no layer norm, no feed-forward: what the network prefers, it prefers by attention alone.
"""
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minattn import checks, ops
from minattn.attention import softmax
from minattn.errors import InputError
from minattn.positions import POSITIONS, decay, rotary, sinusoidal

MASKS = ("causal", "window", "prefix", "none")
SLOPE = -math.log(0.8)         # of the decay position: e^-slope = 0.8 per step back (arXiv 2502.01951, section 5)
HIDDEN = 3                     # layers of the head that end in a ReLU


@dataclass(frozen=True)
class Config:
    layers: int = 2
    width: int = 64
    labels: int = 32
    mask: str = "causal"
    window: int | None = None     # keys that a query sees, its own included; for mask="window"
    prefix: int | None = None     # tokens that all see each other; for mask="prefix"
    position: str = "none"
    residual: bool = False        # after each attention layer

    def __post_init__(self):
        for name in ("layers", "width", "labels"):
            checks.number(name, getattr(self, name), 1, integer=True)
        checks.choice("mask", self.mask, MASKS)
        checks.choice("position", self.position, [name for name, p in POSITIONS.items() if not p.arguments or name == "decay"])
        for name in ("window", "prefix"):
            value = getattr(self, name)
            if (value is not None) != (self.mask == name):
                raise InputError(f"{name} belongs to mask={name} and must be given with it; got mask={self.mask}, {name}={value}.")
            if value is not None:
                checks.number(name, value, 1, integer=True)
        if self.position == "decay" and self.mask not in ("causal", "window"):
            raise InputError(f"position=decay needs mask=causal or window (it would favour keys ahead); got mask={self.mask}.")
        if self.position == "rope" and self.width % 2:
            raise InputError(f"position=rope needs an even width; got {self.width}.")


def parameter_shapes(config):
    """name -> shape. The projections to queries, keys and values lie side by side: one product makes all three."""
    C = config.width
    shapes = {f"layer{n}.qkv": (C, 3 * C) for n in range(config.layers)}
    for n in range(HIDDEN + 1):
        out = C if n < HIDDEN else config.labels
        shapes[f"head{n}.weight"], shapes[f"head{n}.bias"] = (C, out), (out,)
    return shapes


def init(config, seed, dtype=np.float32):
    """Every parameter uniform in +-1/sqrt(width), PyTorch's default for a linear layer, which the authors keep -> dict."""
    rng, bound = np.random.default_rng([seed, 1]), 1 / math.sqrt(config.width)
    return {name: rng.uniform(-bound, bound, shape).astype(dtype) for name, shape in parameter_shapes(config).items()}


def forward(params, config, x):
    """x (B, T, C) -> logits (B, labels) at the last token, and a cache.

    Only the last token is read, so the last layer asks with one query and the residual carries one row. Without rotation
    that query is taken to the keys, W_k q, instead of all keys to it, and the values are averaged before they are
    projected: the same numbers but for rounding, for two products fewer.
    """
    x = _add_sinusoidal(x, config)                                                  # 0. positions, where they are added
    caches = []
    for n in range(config.layers - 1):
        x, cache, _ = _layer_forward(x, params[f"layer{n}.qkv"], config)            # 1. (B, T, C) -> (B, T, C)
        caches.append(cache)
    x, cache = _last_layer_forward(x, params[f"layer{config.layers - 1}.qkv"], config)      # 2. (B, T, C) -> (B, C)
    caches.append(cache)
    for n in range(HIDDEN + 1):
        x, cache = ops.linear_forward(x, params[f"head{n}.weight"], params[f"head{n}.bias"])      # 3. (B, C) -> (B, C or labels)
        if n < HIDDEN:
            np.maximum(x, 0, out=x)                                                 # 4. ReLU: the next cache keeps its result
        caches.append(cache)
    return x, caches


def backward(dlogits, caches, config):
    """dlogits (B, labels) -> gradients, named as the parameters. The input's is not needed and not computed."""
    grads, dx, last = {}, dlogits, config.layers - 1
    for n in reversed(range(HIDDEN + 1)):
        # 4, 3. x = relu(x @ weight + bias)
        if n < HIDDEN:
            dx *= caches[config.layers + n + 1].x > 0
        part = ops.linear_backward(dx, caches[config.layers + n])
        dx, grads[f"head{n}.weight"], grads[f"head{n}.bias"] = part["x"], part["weight"], part["bias"]
    # 2. the last layer
    dx, grads[f"layer{last}.qkv"] = _last_layer_backward(dx, caches[last], config, first=last == 0)
    for n in reversed(range(last)):
        # 1. the others
        dx, grads[f"layer{n}.qkv"] = _layer_backward(dx, caches[n], config, first=n == 0)
    return grads


def weights(params, config, x):
    """The attention weights of every layer, over all queries: x (B, T, C) -> a list of (B, 1, T, T)"""
    x = _add_sinusoidal(x, config)
    seen = []
    for n in range(config.layers):
        x, _, P = _layer_forward(x, params[f"layer{n}.qkv"], config, return_weights=True)
        seen.append(P)
    return seen


# ---------------------------------------------------------------------------------------------------------- one layer


def _layer_forward(x, qkv, config, return_weights=False):
    """All queries: x (B, T, C), qkv (C, 3C) -> (B, T, C), cache, weights (B, 1, T, T) or None"""
    B, T, C = x.shape
    y = (x.reshape(B * T, C) @ qkv).reshape(B, 1, T, 3 * C)                         # 1. (BT, C), (C, 3C) -> (BT, 3C)
    q, k, v = y[..., :C], y[..., C:2 * C], y[..., 2 * C:]                           #    (B, 1, T, C) each
    turned = None
    if config.position == "rope":
        (q, turned), (k, _) = (rotary.forward(part, pairs="interleaved") for part in (q, k))      # 2. turn both
    out, cache, *P = softmax.forward(q, k, v, **_options(config, x.dtype), return_weights=return_weights)      # 3. (B, 1, T, C)
    y = out.reshape(B, T, C)
    if config.residual:
        y += x                                                                      # 4. the cache's out is not used again
    return y, (x, qkv, turned, cache), P[0] if P else None


def _layer_backward(dy, cache, config, first):
    """dy (B, T, C) -> dx (B, T, C) or None for the first layer, dqkv (C, 3C)"""
    x, qkv, turned, cache = cache
    B, T, C = x.shape
    # 3. out = attention(q, k, v)
    grads = softmax.backward(dy.reshape(B, 1, T, C), cache)
    # 2. both turned
    if turned is not None:
        grads |= {name: rotary.backward(grads[name], turned)["x"] for name in ("q", "k")}
    # 1. q, k, v = x @ qkv
    dqkv = np.concatenate([grads[name].reshape(B * T, C) for name in ("q", "k", "v")], axis=1)     # (BT, 3C)
    dx = None
    if not first:
        dx = (dqkv @ qkv.T).reshape(B, T, C)                                        # (BT, 3C), (3C, C) -> (BT, C)
        if config.residual:                                                         # 4. y += x
            dx += dy
    return dx, x.reshape(B * T, C).T @ dqkv


def _last_layer_forward(x, qkv, config):
    """The last query alone: x (B, T, C), qkv (C, 3C) -> (B, C), cache"""
    B, T, C = x.shape
    Wq, Wk, Wv = np.split(qkv, 3, axis=1)
    query = x[:, -1] @ Wq                                                           # 1. (B, C)
    turned, keys = None, x[:, None]                                                 #    keys = x, values = x: (B, 1, T, C)
    if config.position == "rope":                                                   # 2. each key turns by its own angle
        query, turned_query = rotary.forward(query[:, None, None], start=T - 1, pairs="interleaved")
        keys, turned_keys = rotary.forward((x.reshape(B * T, C) @ Wk).reshape(B, 1, T, C), pairs="interleaved")
        asked, turned = query, (turned_query, turned_keys)
    else:
        asked = (query @ Wk.T)[:, None, None]                                       # 2. s_j = q . (x_j W_k) = (q W_k^T) . x_j
    out, cache = softmax.forward(asked, keys, x[:, None], scale=1 / math.sqrt(C), **_options(config, x.dtype))      # 3. (B, 1, 1, C)
    mean = out.reshape(B, C)
    y = mean @ Wv                                                                   # 4. sum_j P_j (x_j W_v) = (sum_j P_j x_j) W_v
    if config.residual:
        y += x[:, -1]                                                               # 5.
    return y, (x, qkv, query, mean, turned, cache)


def _last_layer_backward(dy, cache, config, first):
    """dy (B, C) -> dx (B, T, C) or None for the first layer, dqkv (C, 3C)"""
    x, qkv, query, mean, turned, cache = cache
    B, T, C = x.shape
    Wq, Wk, Wv = np.split(qkv, 3, axis=1)
    # 4. y = mean @ Wv
    dWv = mean.T @ dy
    # 3. mean = attention(asked, keys, x)
    grads = softmax.backward((dy @ Wv.T)[:, None, None], cache)
    dx = None if first else grads["v"].reshape(B, T, C)
    if turned is not None:
        # 2. query and keys = x @ Wk, both turned
        dquery = rotary.backward(grads["q"], turned[0])["x"].reshape(B, C)
        dkeys = rotary.backward(grads["k"], turned[1])["x"].reshape(B * T, C)
        dWk = x.reshape(B * T, C).T @ dkeys
        if not first:
            dx += (dkeys @ Wk.T).reshape(B, T, C)
    else:
        # 2. asked = query @ Wk.T, keys = x
        dasked = grads["q"].reshape(B, C)
        dquery, dWk = dasked @ Wk, dasked.T @ query
        if not first:
            dx += grads["k"].reshape(B, T, C)
    # 1. query = x[:, -1] @ Wq
    if not first:
        dx[:, -1] += dquery @ Wq.T
        if config.residual:                                                         # 5. y += x[:, -1]
            dx[:, -1] += dy
    return dx, np.concatenate([x[:, -1].T @ dquery, dWk, dWv], axis=1)


def _options(config, dtype):
    """The mask and the bias, as attention takes them."""
    options = {"causal": config.mask != "none", "window": config.window, "prefix": config.prefix or 0}
    return options | ({"bias": _decay_bias(dtype)} if config.position == "decay" else {})


@lru_cache(maxsize=2)
def _decay_bias(dtype):
    return decay.DecayBias(np.full(1, SLOPE, dtype), learned=False)


def _add_sinusoidal(x, config):
    if config.position != "sinusoidal":
        return x
    return x + sinusoidal.forward(x.shape[1], config.width, dtype=x.dtype)[0]
