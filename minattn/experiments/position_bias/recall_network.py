"""Attention layers and a small head on the last token: the network of arXiv 2502.01951.

    X <- softmax(X W_q (X W_k)^T / sqrt(d) + mask) X W_v   [+ X]      layer after layer
    logits = three times relu(. W + b), then . W + b, of the last token

No projection after attention, no layer norm, no feed-forward: any preference among positions comes
from attention alone.
"""
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minattn import checks, memory, ops
from minattn.attention import softmax
from minattn.errors import InputError
from minattn.positions import POSITIONS

MASKS = ("causal", "window", "prefix", "none")
SLOPE = -math.log(0.8)              # of a bias: e^-slope = 0.8 per step back (section 5)
ROTATION = {"pairs": "interleaved"}  # of queries and keys, as in the authors' code
HIDDEN = 3                          # layers of the head that end in a ReLU


def positions():
    """The encodings that this network can use: nothing to learn, or a bias of fixed slope."""
    return [name for name, row in POSITIONS.items() if row.kind == "bias" or not row.arguments]


MOST_LAYERS = 10_000      # each is Python objects before a single weight is made


@dataclass(frozen=True)
class Config:
    layers: int = 2
    width: int = 64
    labels: int = 32
    mask: str = "causal"
    window: int | None = None     # keys that a query sees, itself included; for mask="window"
    prefix: int | None = None     # tokens that all see each other; for mask="prefix"
    position: str = "none"
    residual: bool = False        # after each attention layer

    def __post_init__(self):
        checks.fields(self, "layers", "width", "labels", low=1, integer=True)
        checks.number("layers", self.layers, integer=True, high=MOST_LAYERS)
        memory.weigh(f"{self.layers} layers of width {self.width}",
                     16 * 3 * self.layers * self.width**2, "use fewer or narrower ones")
        checks.choice("mask", self.mask, MASKS)
        checks.choice("position", self.position, positions())
        for name in ("window", "prefix"):
            value = getattr(self, name)
            if (value is not None) != (self.mask == name):
                raise InputError(f"{name} and mask={name} must be given together; "
                                 f"got mask={self.mask}, {name}={value}.")
            if value is not None:
                checks.fields(self, name, low=1, integer=True)
        if self.kind == "bias" and self.mask not in ("causal", "window"):
            raise InputError(f"position={self.position} needs mask=causal or window (it would "
                             f"favour future keys); got mask={self.mask}.")
        if self.kind == "rotation" and self.width % 2:
            raise InputError(f"position={self.position} needs an even width; got {self.width}.")

    @property
    def kind(self):
        """How positions enter: "none", "embedding", "rotation" or "bias"."""
        return POSITIONS[self.position].kind

    @property
    def encoding(self):
        """The module of the position encoding."""
        return POSITIONS[self.position].module


def parameter_shapes(config):
    """name -> shape. W_q, W_k and W_v lie side by side: one product gives q, k and v."""
    C = config.width
    shapes = {f"layer{n}.qkv": (C, 3 * C) for n in range(config.layers)}
    for n in range(HIDDEN + 1):
        out = C if n < HIDDEN else config.labels
        shapes[f"head{n}.weight"], shapes[f"head{n}.bias"] = (C, out), (out,)
    return shapes


def init(config, seed, dtype=np.float32):
    """Fresh parameters, uniform in +-1/sqrt(width) as in PyTorch and the authors' code -> dict."""
    rng, bound = np.random.default_rng([seed, 1]), 1 / math.sqrt(config.width)
    return {name: rng.uniform(-bound, bound, shape).astype(dtype)
            for name, shape in parameter_shapes(config).items()}


def forward(params, config, x):
    """x (B, T, C) -> logits (B, labels) at the last token, and a cache.

    Only the last token's output is used, so the last layer has one query and the residual one row.
    Without rotation, W_k is applied to that query instead of to all keys, and the values are
    averaged before they are projected: two products fewer, the same result but for rounding.
    """
    x = _embed_positions(x, config)                       # 0. positions, where they are added
    caches = []
    for n in range(config.layers - 1):                    # 1. (B, T, C) -> (B, T, C)
        x, cache, _ = _layer_forward(x, params[f"layer{n}.qkv"], config)
        caches.append(cache)
    last = params[f"layer{config.layers - 1}.qkv"]
    x, cache = _last_layer_forward(x, last, config)       # 2. (B, T, C) -> (B, C)
    caches.append(cache)
    for n in range(HIDDEN + 1):
        weight, bias = params[f"head{n}.weight"], params[f"head{n}.bias"]
        x, cache = ops.linear_forward(x, weight, bias)    # 3. (B, C) -> (B, C), at last (B, labels)
        if n < HIDDEN:
            np.maximum(x, 0, out=x)                       # 4. ReLU; the next cache keeps it
        caches.append(cache)
    return x, caches


def backward(dlogits, caches, config):
    """dlogits (B, labels) -> gradients, named as the parameters. The input needs none."""
    grads, dx, last = {}, dlogits, config.layers - 1
    for n in reversed(range(HIDDEN + 1)):
        # 4, 3. x = relu(x @ weight + bias)
        if n < HIDDEN:
            dx *= caches[config.layers + n + 1].x > 0
        part = ops.linear_backward(dx, caches[config.layers + n])
        dx = part.pop("x")
        grads.update((f"head{n}.{name}", grad) for name, grad in part.items())
    # 2. the last layer
    dx, grads[f"layer{last}.qkv"] = _last_layer_backward(dx, caches[last], config, first=last == 0)
    for n in reversed(range(last)):
        # 1. the others
        dx, grads[f"layer{n}.qkv"] = _layer_backward(dx, caches[n], config, first=n == 0)
    return grads


def weights(params, config, x):
    """The attention weights of every layer: x (B, T, C) -> a list of (B, 1, T, T)"""
    x = _embed_positions(x, config)
    seen = []
    for n in range(config.layers):
        x, _, P = _layer_forward(x, params[f"layer{n}.qkv"], config, return_weights=True)
        seen.append(P)
    return seen


# ------------------------------------------------------------------------------------ one layer


def _layer_forward(x, qkv, config, return_weights=False):
    """All queries: x (B, T, C), qkv (C, 3C) -> (B, T, C), cache, weights (B, 1, T, T) or None"""
    B, T, C = x.shape
    y = (x.reshape(B * T, C) @ qkv).reshape(B, 1, T, 3 * C)   # 1. (BT, C), (C, 3C) -> (BT, 3C)
    q, k, v = y[..., :C], y[..., C:2 * C], y[..., 2 * C:]     #    (B, 1, T, C) each
    rotation = None
    if config.kind == "rotation":                             # 2. rotate both
        q, rotation = config.encoding.forward(q, **ROTATION)
        k, _ = config.encoding.forward(k, **ROTATION)
    out, cache, *P = softmax.forward(q, k, v, **_options(config, x.dtype),
                                     return_weights=return_weights)   # 3. (B, 1, T, C)
    y = out.reshape(B, T, C)
    if config.residual:
        y += x                                                # 4. in place: backward needs no out
    return y, (x, qkv, rotation, cache), P[0] if P else None


def _layer_backward(dy, cache, config, first):
    """dy (B, T, C) -> dx (B, T, C) or None for the first layer, dqkv (C, 3C)"""
    x, qkv, rotation, cache = cache
    B, T, C = x.shape
    # 3. out = attention(q, k, v)
    grads = softmax.backward(dy.reshape(B, 1, T, C), cache)
    # 2. both rotated
    if rotation is not None:
        for name in ("q", "k"):
            grads[name] = config.encoding.backward(grads[name], rotation)["x"]
    # 1. q, k, v = x @ qkv
    parts = [grads[name].reshape(B * T, C) for name in ("q", "k", "v")]
    dqkv = np.concatenate(parts, axis=1)                      # (BT, 3C)
    dx = None
    if not first:
        dx = (dqkv @ qkv.T).reshape(B, T, C)                  # (BT, 3C), (3C, C) -> (BT, C)
        if config.residual:                                   # 4. y += x
            dx += dy
    return dx, x.reshape(B * T, C).T @ dqkv


def _last_layer_forward(x, qkv, config):
    """The last query alone: x (B, T, C), qkv (C, 3C) -> (B, C), cache"""
    B, T, C = x.shape
    Wq, Wk, Wv = np.split(qkv, 3, axis=1)
    query = x[:, -1] @ Wq                                     # 1. (B, C)
    rotations, values = None, x[:, None]                      #    (B, 1, T, C)
    if config.kind == "rotation":                             # 2. each key has its own angle
        keys = (x.reshape(B * T, C) @ Wk).reshape(B, 1, T, C)
        q, rotation_q = config.encoding.forward(query[:, None, None], start=T - 1, **ROTATION)
        keys, rotation_k = config.encoding.forward(keys, **ROTATION)
        rotations = rotation_q, rotation_k
    else:                                                     # 2. q . (x_j W_k) = (q W_k^T) . x_j
        q, keys = (query @ Wk.T)[:, None, None], values
    out, cache = softmax.forward(q, keys, values, scale=1 / math.sqrt(C),
                                 **_options(config, x.dtype))     # 3. (B, 1, 1, C)
    mean = out.reshape(B, C)
    y = mean @ Wv                                             # 4. as the sum of P_j (x_j W_v)
    if config.residual:
        y += x[:, -1]                                         # 5.
    return y, (x, qkv, query, mean, rotations, cache)


def _last_layer_backward(dy, cache, config, first):
    """dy (B, C) -> dx (B, T, C) or None for the first layer, dqkv (C, 3C)"""
    x, qkv, query, mean, rotations, cache = cache
    B, T, C = x.shape
    Wq, Wk, Wv = np.split(qkv, 3, axis=1)
    # 4. y = mean @ Wv
    dWv = mean.T @ dy
    # 3. mean = attention(q, keys, values), values = x
    grads = softmax.backward((dy @ Wv.T)[:, None, None], cache)
    dx = grads["v"].reshape(B, T, C)
    if rotations is not None:
        # 2. query and keys = x @ Wk, both rotated
        dquery = config.encoding.backward(grads["q"], rotations[0])["x"].reshape(B, C)
        dkeys = config.encoding.backward(grads["k"], rotations[1])["x"].reshape(B * T, C)
        dWk = x.reshape(B * T, C).T @ dkeys
        dx += (dkeys @ Wk.T).reshape(B, T, C)
    else:
        # 2. q = query @ Wk.T, keys = x
        dq = grads["q"].reshape(B, C)
        dquery, dWk = dq @ Wk, dq.T @ query
        dx += grads["k"].reshape(B, T, C)
    # 1. query = x[:, -1] @ Wq
    dqkv = np.concatenate([x[:, -1].T @ dquery, dWk, dWv], axis=1)
    if first:
        return None, dqkv
    dx[:, -1] += dquery @ Wq.T
    if config.residual:                                       # 5. y += x[:, -1]
        dx[:, -1] += dy
    return dx, dqkv


def _options(config, dtype):
    """The mask and the bias, as attention takes them."""
    options = {"causal": config.mask != "none", "window": config.window,
               "prefix": config.prefix or 0}
    if config.kind == "bias":
        options["bias"] = _bias(config.encoding, dtype)
    return options


@lru_cache(maxsize=2)
def _bias(encoding, dtype):
    return encoding.DecayBias(np.full(1, SLOPE, dtype), learned=False)


def _embed_positions(x, config):
    if config.kind != "embedding":
        return x
    return x + config.encoding.forward(x.shape[1], config.width, dtype=x.dtype)[0]
