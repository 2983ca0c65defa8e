"""A GPT in plain functions: token embedding, pre-norm layers of attention and MLP, a tied head.

    x = wte[tokens] + positions
    per layer:  x += attention(layer_norm(x));   x += mlp(layer_norm(x))
    logits = layer_norm(x) wte^T                                (the shape of GPT-2 and nanoGPT)

Parameters are a dict of arrays with nanoGPT's names, weights stored (in, out) so that y = x W.
Buffers, which are remembered but not learned, are a second dict. Neither is changed here.
"""
import dataclasses
import math
from dataclasses import InitVar, dataclass
from typing import Any, NamedTuple

import numpy as np

from minattn import checks, memory, ops, spec
from minattn.attention import mechanism
from minattn.attention_layer import (
    KVCache,
    attention_backward,
    attention_forward,
    attention_parameters,
    projections,
)
from minattn.errors import InputError
from minattn.layers import embeddings, layers
from minattn.positions import position

MOST_LAYERS = 10_000      # each is described by Python objects before a single weight is made


@dataclass(frozen=True)
class Config:
    """The shape of the model. Names as in nanoGPT."""
    vocab_size: int = 65
    block_size: int = 64             # tokens of context
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128                # channels; each head has n_embd / n_head
    dropout: float = 0.0             # on embeddings, attention weights and both branches of a layer
    bias: bool = False               # biases in linear layers and layer norms (not of q, k, v)
    qkv_bias: bool = False
    gelu: str = "tanh"               # or "exact"
    scaled_init: bool = True         # projections back into the residual stream start
                                     # 1 / sqrt(2 n_layer) smaller
    n_kv_head: int | None = None     # key and value heads, a divisor of n_head; None: n_head
    qk_norm: bool = False            # RMS norm with a gain on the queries and keys of each head
    softcap: float | None = None     # c: scores become c tanh(score / c)
    log_length: bool = False         # scores times a log n, n visible keys; a is learned per head
    attention: str = "softmax"       # "energy[norm=prefix]+gated", "energy/softmax": see spec.py
    position: str = "learned"        # "learned+rope[base=100]"
    window: int | None = None        # keys that a query sees, itself included; None: all before it
    window_pattern: str = ""         # by layer, S = block_size / 2 and L = all: "SSSL"; the last
                                     # layer is always L
    attention_options: InitVar[dict | None] = None    # for every part of `attention` that knows
    position_options: InitVar[dict | None] = None     # them, as if they stood in its brackets

    def __post_init__(self, attention_options, position_options):
        self._spell("attention", attention_options, lambda name: mechanism(name).all_options())
        self._spell("position", position_options, lambda name: position(name).options)
        checks.fields(self, "vocab_size", "block_size", "n_layer", "n_head", "n_embd", low=1,
                      integer=True)
        checks.number("n_layer", self.n_layer, integer=True, high=MOST_LAYERS)
        if self.n_embd % self.n_head:
            raise InputError(f"n_embd must be divisible by n_head; got {self.n_embd} and "
                             f"{self.n_head}.")
        checks.fields(self, "dropout", low=0, high=0.9)
        if self.window is not None:
            checks.fields(self, "window", low=1, integer=True)
        if self.n_kv_head is not None:
            checks.fields(self, "n_kv_head", low=1, integer=True)
            if self.n_head % self.n_kv_head:
                raise InputError(f"n_kv_head must divide n_head; got {self.n_kv_head} and "
                                 f"{self.n_head}.")
        if self.softcap is not None:
            checks.fields(self, "softcap", above=0)
        for name in ("bias", "qkv_bias", "scaled_init", "qk_norm", "log_length"):
            object.__setattr__(self, name, checks.flag(name, getattr(self, name)))
        checks.choice("gelu", self.gelu, ("tanh", "exact"))
        checks.text("window_pattern", self.window_pattern)
        layers(self)                 # raises for unknown mechanisms, positions and options

    def _spell(self, what, options, known):
        """Bring a text into its canonical spelling, with options that were given apart."""
        checks.mapping(f"{what}_options", options)
        parsed = spec.parse(what, getattr(self, what))
        parsed = spec.with_options(what, parsed, options or {}, known)
        object.__setattr__(self, what, spec.show(parsed))


class Cache(NamedTuple):
    embed: Any
    positions: list                  # (name, cache) of each encoding that was added
    drop: Any
    layers: list                     # caches of each layer
    ln_f: Any
    head: Any
    loss: Any                        # None without targets
    shape: tuple                     # (B, T)
    buffers: dict                    # the buffers after this batch


# --------------------------------------------------------------------------------------- parameters


def parameter_shapes(config):
    """Every parameter: name -> (shape, initial value).

    The initial value is a number to fill with, ("normal", std) to draw from, or an array to copy.
    """
    C, V = config.n_embd, config.vocab_size
    normal = ("normal", 0.02)
    back = ("normal", 0.02 / math.sqrt(2 * config.n_layer)) if config.scaled_init else normal
    shapes = {"wte.weight": ((V, C), normal)}
    for row, options in embeddings(config):
        for name, value in row.module.parameters(C, config.block_size, **options).items():
            shapes[f"position.{row.name}.{name}"] = value

    def norm(name):
        shapes[f"{name}.weight"] = ((C,), 1.0)
        if config.bias:
            shapes[f"{name}.bias"] = ((C,), 0.0)

    def linear(name, n_in, n_out, init, bias):
        shapes[f"{name}.weight"] = ((n_in, n_out), init)
        if bias:
            shapes[f"{name}.bias"] = ((n_out,), 0.0)

    for layer in layers(config):
        h = f"h.{layer.index}"
        norm(f"{h}.ln_1")
        for name, n_out, bias in projections(layer, config):
            linear(f"{h}.attn.{name}", C, n_out, normal, bias)
        for name, value in attention_parameters(layer, config).items():
            shapes[f"{h}.attn.{name}"] = value
        linear(f"{h}.attn.c_proj", C, C, back, config.bias)
        norm(f"{h}.ln_2")
        linear(f"{h}.mlp.c_fc", C, 4 * C, normal, config.bias)
        linear(f"{h}.mlp.c_proj", 4 * C, C, back, config.bias)
    norm("ln_f")
    return shapes


def matrices(config):
    """(name, columns) of every weight matrix inside the layers: q, k and v apart, as in c_attn."""
    found, shapes = [], parameter_shapes(config)
    for name, (shape, _) in shapes.items():
        if not name.startswith("h.") or len(shape) != 2 or not name.endswith(".weight"):
            continue
        if not name.endswith(".attn.c_attn.weight"):
            found.append((name, slice(None)))
            continue
        layer, start = layers(config)[int(name.split(".")[1])], 0
        for argument in "qkv":
            width = math.prod(layer.heads(argument, config))
            found.append((name, slice(start, start + width)))
            start += width
    return found


def count_parameters(config):
    """How many numbers are learned."""
    return sum(math.prod(shape) for shape, _ in parameter_shapes(config).values())


def weigh(config, bytes_each):
    """Raise InputError where the parameters, at so many bytes each, exceed the memory there is."""
    C, V, L = config.n_embd, config.vocab_size, config.n_layer
    advice = "choose a smaller n_embd, n_layer or block_size"
    least = V * C + L * 8 * C * C                # the token embeddings and the MLPs: plain numbers
    memory.weigh(f"a model of n_layer = {L}, n_embd = {C} and vocab_size = {V}",
                 least * bytes_each, advice)
    count = count_parameters(config)
    memory.weigh(f"a model of {count:,} parameters", count * bytes_each, advice)


def init(config, seed=0, dtype=np.float32):
    """Fresh parameters and buffers: normal(0, 0.02) weights, gains 1, biases 0.

    Drawn in float64, then rounded to float32 or float64. seed: whatever numpy.random.default_rng
    takes. Raises InputError for a model larger than the memory.
    """
    dtype = checks.floating("dtype", dtype)
    weigh(config, dtype.itemsize)
    rng = checks.random(seed)
    params = {}
    for name, (shape, value) in parameter_shapes(config).items():
        if isinstance(value, tuple):
            value = rng.normal(0, value[1], shape)
        params[name] = np.array(np.broadcast_to(value, shape), dtype)
    buffers = {f"h.{layer.index}.attn.{name}": np.full(config.n_head, value, dtype)
               for layer in layers(config) for name, value in layer.mechanism.buffers.items()}
    return params, buffers


def to_dict(config):
    return dataclasses.asdict(config)


# ----------------------------------------------------------------------------- forward and backward


@checks.quiet
def forward(params, tokens, config, *, targets=None, buffers=None, training=False, rng=None,
            kv_cache=None, last_only=False, weights=None):
    """Predict the next token at every position.

    tokens (B, T) integers below vocab_size, targets the same
    -> logits (B, T, V), loss (nats per token, or None), cache

    buffers   the second dict of init; needed by mechanisms that have one
    training  update the buffers with this batch (the new ones come back in cache.buffers) and
              apply dropout from rng
    kv_cache  a minattn.attention_layer.KVCache: tokens continue what it holds; no backward then
    last_only logits of the last position only, (B, 1, V): all that sampling needs
    weights   a list: each layer appends the (B, H, T, T) that multiply its values
    """
    checks.integers("tokens", tokens, config.vocab_size, axes=2)
    checks.generator(rng)
    B, T = tokens.shape
    if not tokens.size:
        raise InputError(f"tokens must be at least one; got shape {tokens.shape}.")
    if targets is not None:
        checks.integers("targets", targets, config.vocab_size, axes=2)
        if targets.shape != tokens.shape or last_only:
            raise InputError(f"targets must have the shape of tokens, {tokens.shape}, and "
                             f"last_only be False; got {targets.shape} and {last_only!r}.")
    if kv_cache is not None and not isinstance(kv_cache, KVCache):
        raise InputError(f"kv_cache must be a KVCache; got {type(kv_cache).__name__}.")
    start = kv_cache.length if kv_cache else 0
    if start + T > config.block_size:
        raise InputError(f"at most block_size = {config.block_size} tokens are allowed; "
                         f"got {start + T}.")
    if kv_cache:
        kv_cache.expect(B, T)
    C, V = config.n_embd, config.vocab_size
    drop = (config.dropout, rng if training else None)
    wte = params["wte.weight"]

    x, embed = ops.embedding_forward(tokens.reshape(-1), wte)  # 1. tokens           (N, C), N = B T
    encoded = []
    for row, options in embeddings(config):                             # 2. positions        (T, C)
        codes, cache = _embed(row, options, params, T, C, start, x.dtype)
        x.reshape(B, T, C)[:] += codes
        encoded.append((row.name, cache))
    x, dropped = ops.dropout_forward(x, *drop)                                    # 3.

    caches, new_buffers = [], dict(buffers or {})
    for layer in layers(config):
        h = f"h.{layer.index}"
        y, ln_1 = _norm_forward(x, params, f"{h}.ln_1")           # 4. x += attention(layer_norm(x))
        y, attn = attention_forward(y, params, new_buffers, layer, config, (B, T),
                                    training=training, rng=drop[1], kv_cache=kv_cache,
                                    weights=weights)
        y, drop_1 = ops.dropout_forward(y, *drop)
        x = x + y
        y, ln_2 = _norm_forward(x, params, f"{h}.ln_2")                 # 5. x += mlp(layer_norm(x))
        y, fc = _linear_forward(y, params, f"{h}.mlp.c_fc")                      # (N, C) -> (N, 4C)
        y, act = ops.gelu_forward(y, config.gelu)
        y, proj = _linear_forward(y, params, f"{h}.mlp.c_proj")                  # (N, 4C) -> (N, C)
        y, drop_2 = ops.dropout_forward(y, *drop)
        x = x + y
        caches.append((ln_1, attn, drop_1, ln_2, fc, act, proj, drop_2))
    if kv_cache:
        kv_cache.length += T
    if last_only:
        x, T = x.reshape(B, T, C)[:, -1], 1
    x, ln_f = _norm_forward(x, params, "ln_f")                                    # 6.
    logits = x @ wte.T                                                 # 7. (N, C), (C, V) -> (N, V)
    loss = loss_cache = None
    if targets is not None:
        loss, loss_cache = ops.cross_entropy_forward(logits, targets.reshape(-1))  # 8.
    caches = None if kv_cache else caches
    cache = Cache(embed, encoded, dropped, caches, ln_f, (x, wte), loss_cache, (B, T), new_buffers)
    return logits.reshape(B, T, V), loss, cache


@checks.quiet
def backward(cache, config, dloss=1.0, dlogits=None):
    """Gradient of dloss * loss -> dict named as the parameters.

    Given dlogits (B, T, V), it is the gradient of sum(dlogits * logits) instead.
    """
    (B, T), grads = cache.shape, {}
    if cache.layers is None:
        raise InputError("backward needs a forward without kv_cache.")

    def collect(name, part):
        dx = part.pop("x")
        grads.update((f"{name}.{key}", value) for key, value in part.items())
        return dx

    # 8, 7. loss of logits = x wte^T
    if dlogits is not None:
        x, wte = cache.head
        checks.gradient("dlogits", dlogits, (B, T, len(wte)), wte.dtype)
    elif cache.loss is None:
        raise InputError("backward needs a loss: give targets to forward, or dlogits.")
    else:
        dlogits = ops.cross_entropy_backward(dloss, cache.loss)["logits"]
    dlogits = dlogits.reshape(B * T, -1)
    x, wte = cache.head
    grads["wte.weight"] = dlogits.T @ x                                   # (V, N), (N, C) -> (V, C)
    dx = dlogits @ wte
    # 6.
    dx = collect("ln_f", ops.layer_norm_backward(dx, cache.ln_f))
    for layer, layer_cache in zip(reversed(layers(config)), reversed(cache.layers)):
        ln_1, attn, drop_1, ln_2, fc, act, proj, drop_2 = layer_cache
        h = f"h.{layer.index}"
        # 5. x += mlp(layer_norm(x)): the sum passes dx on, the branch adds to it
        dy = ops.dropout_backward(dx, drop_2)["x"]
        dy = collect(f"{h}.mlp.c_proj", ops.linear_backward(dy, proj))
        dy = ops.gelu_backward(dy, act)["x"]
        dy = collect(f"{h}.mlp.c_fc", ops.linear_backward(dy, fc))
        dx = dx + collect(f"{h}.ln_2", ops.layer_norm_backward(dy, ln_2))
        # 4. x += attention(layer_norm(x))
        dy = ops.dropout_backward(dx, drop_1)["x"]
        dy = collect(f"{h}.attn", attention_backward(dy, attn, layer, config, (B, T)))
        dx = dx + collect(f"{h}.ln_1", ops.layer_norm_backward(dy, ln_1))
    # 3, 2, 1.
    dx = ops.dropout_backward(dx, cache.drop)["x"]
    for name, encoded in cache.positions:
        dcodes = dx.reshape(B, T, -1).sum(axis=0)            # every sequence has the same positions
        part = position(name).module.backward(dcodes, encoded)
        grads.update((f"position.{name}.{key}", value) for key, value in part.items())
    grads["wte.weight"] += ops.embedding_backward(dx, cache.embed)["weight"]  # tied weights
    return grads


def position_codes(params, config):
    """All that positions add to the token embeddings, (block_size, C)."""
    codes = np.zeros((config.block_size, config.n_embd), params["wte.weight"].dtype)
    for row, options in embeddings(config):
        codes += _embed(row, options, params, config.block_size, config.n_embd, 0, codes.dtype)[0]
    return codes


def _linear_forward(x, params, name):
    return ops.linear_forward(x, params[f"{name}.weight"], params.get(f"{name}.bias"))


def _norm_forward(x, params, name):
    return ops.layer_norm_forward(x, params[f"{name}.weight"], params.get(f"{name}.bias"))


def _embed(row, options, params, T, C, start, dtype):
    """The codes (T, C) of one encoding that is added to the embeddings, and its cache."""
    prefix = f"position.{row.name}."
    arrays = {name[len(prefix):]: a for name, a in params.items() if name.startswith(prefix)}
    return row.module.embed(T, C, dtype, start, **{**options, **arrays})
