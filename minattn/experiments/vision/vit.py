"""A tiny vision transformer: patches are tokens, each sees all, and their mean is classified.

    x = patches W + b + positions
    per layer:  x += attention(layer_norm(x));   x += mlp(layer_norm(x))
    logits = mean over the tokens of layer_norm(x), W + b
                                      (arXiv 2010.11929, with a mean instead of its class token)

Attention without a mask, by any mechanism of the registry that takes q, k, v or (Gaussian kernel,
arXiv 2605.02144) the layer's channels as they are: then nothing is projected, the layer norm is the
norm in front of the kernel, and log sigma is learned per head. `values` crosses the two: softmax
with projected q and k and raw values (the paper's ablation), or the kernel with projected values.
Linear layers and norms have biases, as in DeiT. The paper does not give sigma's start; here
D^(1/4), as in the language model.
"""
import math
from dataclasses import dataclass

import numpy as np

from minattn import checks, memory, ops
from minattn.attention import MECHANISMS
from minattn.errors import InputError

# mechanisms that need no projection, no buffer and no width of heads of their own
ATTENTIONS = tuple(name for name, mechanism in MECHANISMS.items()
                   if not (mechanism.projections or mechanism.buffers or mechanism.head_sizes))
VALUES = ("own", "projected", "raw")
MOST_LAYERS = 10_000      # each is Python objects before a single weight is made


@dataclass(frozen=True)
class Config:
    attention: str = "softmax"
    width: int = 48                  # channels; each head has width / heads
    heads: int = 4
    layers: int = 3
    patch: int = 4                   # side of a patch, pixels
    size: int = 28                   # side of a picture
    labels: int = 8
    values: str = "own"              # what is averaged: projected, as in softmax, or raw channels,
                                     # as in the kernel
    qk_norm: bool = False            # RMS norm of the kernel's features, as in the language model
    sigma_init: float | None = None  # of the kernel; None: (width / heads)^(1/4)

    def __post_init__(self):
        checks.choice("attention", self.attention, ATTENTIONS)
        checks.fields(self, "width", "heads", "layers", "patch", "size", "labels", low=1,
                      integer=True)
        checks.number("layers", self.layers, integer=True, high=MOST_LAYERS)
        for whole, part in (("width", "heads"), ("size", "patch")):
            if getattr(self, whole) % getattr(self, part):
                raise InputError(f"{whole} must be divisible by {part}; got {getattr(self, whole)} "
                                 f"and {getattr(self, part)}.")
        checks.choice("values", self.values, VALUES)
        checks.choice("qk_norm", self.qk_norm, (True, False))
        if self.sigma_init is not None:
            checks.fields(self, "sigma_init", above=0)
        for name in ("qk_norm", "sigma_init"):
            if getattr(self, name) and name not in self.mechanism.layer_options:
                raise InputError(f"{self.attention} has no option {name}.")
        tokens = (self.size // self.patch) ** 2 + 1
        memory.weigh(f"{self.layers} layers of width {self.width} on {tokens:,} patches",
                     4 * self.layers * self.width * (5 * 8 * self.width + 20 * tokens),
                     "use a smaller network or fewer patches")

    @property
    def mechanism(self):
        return MECHANISMS[self.attention]

    @property
    def has_queries(self):
        """Are q and k projected? Otherwise the mechanism takes the channels as they are."""
        return "q" in self.mechanism.arguments

    @property
    def tokens(self):
        return (self.size // self.patch) ** 2

    @property
    def projected(self):
        """The arguments that one projection makes of the layer's channels, in order."""
        if self.has_queries:
            return ("q", "k") if self.values == "raw" else ("q", "k", "v")
        return ("values",) if self.values == "projected" else ()

    @property
    def raw(self):
        """The arguments that are the channels as they are."""
        return tuple(name for name in ("v", "x")
                     if name in self.mechanism.arguments and name not in self.projected)


def parameter_shapes(config):
    """Every parameter: name -> (shape, initial value); weights are (in, out).

    A number fills, ("normal", std) draws.
    """
    C, shapes = config.width, {}

    def linear(name, n_in, n_out):
        shapes[f"{name}.weight"] = (n_in, n_out), ("normal", n_in**-0.5)
        shapes[f"{name}.bias"] = (n_out,), 0.0

    def norm(name):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = ((C,), 1.0), ((C,), 0.0)

    linear("patch", config.patch**2, C)
    shapes["position"] = ((config.tokens, C), ("normal", 0.3))
    for h in (f"h.{n}" for n in range(config.layers)):
        norm(f"{h}.ln_1")
        if config.projected:
            linear(f"{h}.attn.c_attn", C, len(config.projected) * C)
        for name, value in config.mechanism.parameters.items():
            if callable(value):
                value = value(C // config.heads, sigma_init=config.sigma_init)
            shapes[f"{h}.attn.{name}"] = ((config.heads,), value)
        linear(f"{h}.attn.c_proj", C, C)
        norm(f"{h}.ln_2")
        linear(f"{h}.mlp.c_fc", C, 4 * C)
        linear(f"{h}.mlp.c_proj", 4 * C, C)
    norm("ln_f")
    linear("head", C, config.labels)
    return shapes


def init(config, seed=0, dtype=np.float32):
    """Fresh parameters, drawn in float64, then rounded: a dict."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, (shape, value) in parameter_shapes(config).items():
        drawn = isinstance(value, tuple)
        array = rng.normal(0, value[1], shape) if drawn else np.full(shape, value)
        params[name] = np.array(array, dtype)
    return params


def count_parameters(config):
    """How many numbers are learned."""
    return sum(math.prod(shape) for shape, _ in parameter_shapes(config).values())


def flops(config):
    """Floating-point operations of the matrix products in one picture's forward pass.

    A product of (n, k) and (k, m) has 2 n k m of them.
    """
    T, C = config.tokens, config.width
    weights = sum(math.prod(shape) for name, (shape, _) in parameter_shapes(config).items()
                  if len(shape) == 2 and name != "position")
    head = C * config.labels                                # acts on the mean, not on each token
    attention = config.layers * 2 * T * T * C               # scores and averages: T^2 C each
    return 2 * (T * (weights - head) + head + attention)


def forward(params, images, config):
    """images (B, size, size), the dtype of the parameters -> logits (B, labels), cache"""
    sizes = checks.arrays({"S": config.size}, params["position"].dtype, images=(images, "B S S"))
    B, T, C, H, p = sizes["B"], config.tokens, config.width, config.heads, config.patch
    cache = {}

    def layer(name, function, x):
        y, cache[name] = function(x, params[f"{name}.weight"], params[f"{name}.bias"])
        return y

    side = config.size // p
    patches = images.reshape(B, side, p, side, p).swapaxes(2, 3)             # 1. cut, N = B T
    x = layer("patch", ops.linear_forward, patches.reshape(B * T, p * p))    # 2. tokens    (N, C)
    x.reshape(B, T, C)[:] += params["position"]                              # 3. positions
    for h in (f"h.{n}" for n in range(config.layers)):
        u = layer(f"{h}.ln_1", ops.layer_norm_forward, x)        # 4. x += attention(layer_norm(x))
        arguments = {name: params[f"{h}.attn.{name}"] for name in config.mechanism.parameters}
        for name in config.raw:                                  # 4a. channels   (B, H, T, D)
            arguments[name] = u.reshape(B, T, H, -1).swapaxes(1, 2)
            if config.qk_norm:
                arguments[name], cache[f"{h}.attn.rms"] = ops.rms_norm_forward(arguments[name])
        if config.projected:                                     # 4b. and projected
            y = layer(f"{h}.attn.c_attn", ops.linear_forward, u)
            heads = y.reshape(B, T, -1, H, C // H).transpose(2, 0, 3, 1, 4)
            arguments.update(zip(config.projected, heads))
        y, cache[f"{h}.attn"] = config.mechanism.module.forward(**arguments)      # 4c. (B, H, T, D)
        x = x + layer(f"{h}.attn.c_proj", ops.linear_forward, y.swapaxes(1, 2).reshape(B * T, C))
        y = layer(f"{h}.ln_2", ops.layer_norm_forward, x)        # 5. x += mlp(layer_norm(x))
        y, cache[f"{h}.mlp"] = ops.gelu_forward(layer(f"{h}.mlp.c_fc", ops.linear_forward, y))
        x = x + layer(f"{h}.mlp.c_proj", ops.linear_forward, y)
    mean = layer("ln_f", ops.layer_norm_forward, x).reshape(B, T, C).mean(axis=1)       # 6. (B, C)
    return layer("head", ops.linear_forward, mean), cache        # 7. (B, labels)


def backward(dlogits, cache, config):
    """dlogits (B, labels) -> gradients, a dict named as the parameters. The picture needs none."""
    B, T, C, H = len(dlogits), config.tokens, config.width, config.heads
    grads = {}

    def undo(name, function, d):
        part = function(d, cache[name])
        grads[f"{name}.weight"], grads[f"{name}.bias"] = part["weight"], part["bias"]
        return part["x"]

    # 7, 6. logits = mean over the tokens @ W + b: each token has 1/T of the mean
    dmean = undo("head", ops.linear_backward, dlogits)
    dx = undo("ln_f", ops.layer_norm_backward, np.repeat(dmean / T, T, axis=0))
    for h in (f"h.{n}" for n in reversed(range(config.layers))):
        # 5. x += mlp(layer_norm(x)): the sum passes dx on, the branch adds to it
        dy = undo(f"{h}.mlp.c_proj", ops.linear_backward, dx)
        dy = ops.gelu_backward(dy, cache[f"{h}.mlp"])["x"]
        dy = undo(f"{h}.mlp.c_fc", ops.linear_backward, dy)
        dx = dx + undo(f"{h}.ln_2", ops.layer_norm_backward, dy)
        # 4c. out = attention(arguments)
        dy = undo(f"{h}.attn.c_proj", ops.linear_backward, dx).reshape(B, T, H, -1)
        part = config.mechanism.module.backward(dy.swapaxes(1, 2), cache[f"{h}.attn"])
        grads.update((f"{h}.attn.{name}", part[name]) for name in config.mechanism.parameters)
        du = np.zeros_like(dx)
        # 4b. projected = u @ c_attn
        if config.projected:
            # (B, T, projected, H, D)
            d = np.stack([part[name].swapaxes(1, 2) for name in config.projected], axis=2)
            du += undo(f"{h}.attn.c_attn", ops.linear_backward, d.reshape(B * T, -1))
        # 4a. the channels as they are
        for name in config.raw:
            d = part[name]
            if config.qk_norm:
                d = ops.rms_norm_backward(d, cache[f"{h}.attn.rms"])["x"]
            du += d.swapaxes(1, 2).reshape(B * T, C)
        # 4. u = layer_norm(x)
        dx = dx + undo(f"{h}.ln_1", ops.layer_norm_backward, du)
    # 3, 2. x = patches @ W + b + position: every picture has the same positions
    grads["position"] = dx.reshape(B, T, C).sum(axis=0)
    undo("patch", ops.linear_backward, dx)
    return grads
