"""The layer around a mechanism: make its inputs from the channels, split heads, attend, merge, project back.

Any mechanism of the registry works here without being named: an argument is a projection of the layer's input, a
parameter per head, or a buffer, as its row says. Only two shapes of input exist: q, k, v from one projection, or
(Gaussian kernel) the channels themselves.
"""
from typing import Any, NamedTuple

import numpy as np

from minattn import checks, ops
from minattn.attention import Mechanism, gated, mechanism
from minattn.errors import InputError
from minattn.positions import POSITIONS, decay, rotary


class Layer(NamedTuple):
    """What one layer does, read off the config."""
    index: int
    mechanism: Mechanism
    gate: str                  # "", "channel" or "head": a gate on top of the mechanism's output
    kernel: dict               # options of the mechanism's forward
    options: dict              # options of this layer
    window: int | None
    rope: dict | None       # options of rotary.forward
    decay: bool

    def reads(self, shape):
        """The arguments of the mechanism whose shape names this axis."""
        return [name for name, text in self.mechanism.arguments.items() if shape in text]


class Past:
    """A key-value cache: what earlier tokens left for later ones to see, for every layer. The one object that changes."""

    def __init__(self, capacity):
        self.capacity, self.length, self.arrays = capacity, 0, {}

    def extend(self, layer, name, new):
        """Append new (B, H, T, ...) and return all (B, H, length + T, ...)."""
        if (layer, name) not in self.arrays:
            self.arrays[layer, name] = np.empty(new.shape[:2] + (self.capacity,) + new.shape[3:], new.dtype)
        array, end = self.arrays[layer, name], self.length + new.shape[2]
        array[:, :, self.length:end] = new
        return array[:, :, :end]


def plan(config):
    """The layers of a config; InputError for a name or an option that nothing knows."""
    names = [name.strip() for name in config.attention.split(",")]
    positions = position_names(config)
    parsed, known = [], {}
    for name in names:
        base, plus, extra = name.partition("+")
        row = mechanism(base)
        if plus and (extra != "gated" or base == "gated"):
            raise InputError(f"attention {name!r}: only '+gated' can be put on top of another mechanism.")
        parsed.append((row, bool(plus)))
        known.update({**row.options, **row.layer_options, **(gated.LAYER_OPTIONS if plus else {})})
    _check_known("attention", config.attention, config.attention_options, known)
    _check_options("attention", config.attention_options)
    position_known = {key: value for name in positions for key, value in POSITIONS[name].options.items()}
    _check_known("position", config.position, config.position_options, position_known)
    _check_options("position", config.position_options)
    rope = {key: config.position_options.get(key, value) for key, value in rotary.OPTIONS.items()} if "rope" in positions else None
    if rope and config.n_embd // config.n_head % 2:
        raise InputError(f"n_embd / n_head must be even for rope; got {config.n_embd} / {config.n_head}.")
    windows = _windows(config)
    layers = []
    for i in range(config.n_layer):
        row, gate = parsed[i % len(parsed)]
        options = {**row.layer_options, **(gated.LAYER_OPTIONS if gate else {})}
        options.update({k: v for k, v in config.attention_options.items() if k in options})
        kernel = {k: v for k, v in config.attention_options.items() if k in row.options}
        layers.append(Layer(i, row, options["gate"] if gate else "", kernel, options, windows[i], rope, "decay" in positions))
    return layers


def position_names(config):
    """The encodings of a config, in order."""
    names = [name.strip() for name in config.position.split("+")]
    for name in names:
        checks.choice("position", name, POSITIONS)
        if names.count(name) > 1:
            raise InputError(f"position {name!r} is there twice in {config.position!r}.")
    return names


def embeddings_of(config):
    """Those that are added to the token embeddings."""
    return [name for name in position_names(config) if POSITIONS[name].kind == "embedding"]


def _check_known(kind, names, options, known):
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "no options"
            raise InputError(f"{kind} option {option!r} is unknown to {names}, which takes {listed}.{checks.nearest(option, known)}")


def _check_options(kind, options):
    choices = {"gate": ("channel", "head"), "axes": ("head", "layer"), "use": ("after", "before"),
               "phi": ("linear_clip", "sigmoid"), "norm": ("key", "prefix", "sequence", "none"),
               "qk_norm": (True, False), "rope_values": (True, False), "pairs": ("half", "interleaved"),
               "admissible": (True, False), "centre": (True, False, None)}
    for name, value in options.items():
        if name in choices:
            checks.choice(f"{kind} option {name}", value, choices[name])
    if options.get("sigma_init") is not None:
        checks.number("attention option sigma_init", options["sigma_init"], above=0)
    if "base" in options:
        checks.number("position option base", options["base"], above=0)
    if "momentum" in options:
        checks.number("attention option momentum", options["momentum"], 0, high=1)
    if "length" in options and options["length"] not in ("total", "visible"):
        checks.number("attention option length ('total', 'visible' or a number)", options["length"], 1, integer=True)


def _windows(config):
    if config.window is not None and config.window_pattern:
        raise InputError("give window or window_pattern, not both.")
    if config.window is not None:
        checks.number("window", config.window, 1, integer=True)
    for letter in config.window_pattern:
        checks.choice("each letter of window_pattern", letter, ("S", "L"))
    if not config.window_pattern:
        return [config.window] * config.n_layer
    sizes = {"S": max(1, config.block_size // 2), "L": None}
    pattern = [sizes[config.window_pattern[i % len(config.window_pattern)]] for i in range(config.n_layer)]
    return pattern[:-1] + [None]


def attention_parameters(layer, config):
    """(name, outputs, initial value, bias) of every array of the layer; outputs None: one number per head."""
    row, C, H = layer.mechanism, config.n_embd, config.n_head
    if "q" in row.arguments:
        yield "c_attn", 3 * C, None, config.qkv_bias
    for name, spec in row.projections.items():
        per_channel = "D" in spec and layer.options.get("gate") != "head"
        yield name, C if per_channel else H, None, "+b" in spec
    if layer.gate:
        yield "gate_logits", C if layer.gate == "channel" else H, None, False
    for name, value in row.parameters.items():
        if callable(value):
            value = value(C // H, sigma_init=layer.options.get("sigma_init"))
        yield name, None, value, False


class Cache(NamedTuple):
    inputs: Any          # of the projection that made q, k, v; or of the features' norm
    rotations: list      # of each rotated input
    projections: dict    # argument -> cache of its linear
    kernel: Any
    gate: Any
    merge: Any           # of c_proj


def attention_forward(x, params, buffers, layer, config, shape, *, training, rng, past, weights=None):
    """x (N, C), layer-normed -> (N, C), cache. In training, `buffers` receives the layer's new buffers; `weights`, a list
    or None, the (B, H, T, T) that multiply the values."""
    (B, T), H = shape, config.n_head
    row, name = layer.mechanism, f"h.{layer.index}.attn"
    start = past.length if past else 0
    options = dict(layer.kernel, causal=True, window=layer.window, dropout=config.dropout, rng=rng)
    if weights is not None:
        options["return_weights"] = True
    if layer.decay:
        options["bias"] = decay.DecayBias(decay.alibi_slopes(H).astype(x.dtype), learned=False)
    arguments, rotations, projections = {}, [], {}

    if "q" in row.arguments:                                                      # 1. q, k, v             (B, H, T, D)
        qkv, inputs = ops.linear_forward(x, params[f"{name}.c_attn.weight"], params.get(f"{name}.c_attn.bias"))
        q, k, v = qkv.reshape(B, T, 3, H, -1).transpose(2, 0, 3, 1, 4)
        if layer.rope:                                                            # 2. turn q and k
            (q, turn_q), (k, turn_k) = (rotary.forward(a, start=start, **layer.rope) for a in (q, k))
            rotations = [turn_q, turn_k]
        arguments.update(q=q, k=k, v=v)
    else:                                                                         # 1. the channels themselves
        u, inputs = _split(x, B, T, H), None
        if layer.options["qk_norm"]:
            u, inputs = ops.rms_norm_forward(u)
        arguments["x"] = u
        if layer.rope:                                                            # 2. turn the features
            arguments["x"], turn = rotary.forward(u, start=start, **layer.rope)
            rotations = [turn]
            if not layer.options["rope_values"]:
                arguments["values"] = u
        if past:
            arguments["keys"], arguments["values"] = arguments["x"], arguments.get("values", arguments["x"])
    for arg in row.projections:                                                   # 3. projected arguments
        y, projections[arg] = ops.linear_forward(x, params[f"{name}.{arg}.weight"], params.get(f"{name}.{arg}.bias"))
        y = _split(y, B, T, H)
        arguments[arg] = y if row.arguments[arg].count(",") == 3 else y[..., 0]
    arguments.update({arg: params[f"{name}.{arg}"] for arg in row.parameters})
    for arg in row.buffers:
        arguments[arg] = _fold(arg, arguments, buffers, f"{name}.{arg}", layer, training)
    if past:                                                                      # 4. what a key brings is remembered
        for arg in [*layer.reads("Tk"), *(a for a in ("keys", "values") if a in arguments)]:
            arguments[arg] = past.extend(layer.index, arg, arguments[arg])

    out, kernel, *seen = row.module.forward(**arguments, **options)               # 5. attend              (B, H, T, D)
    if weights is not None:
        weights += seen
    gate = None
    if layer.gate:                                                                # 6. gate
        logits, projections["gate_logits"] = ops.linear_forward(x, params[f"{name}.gate_logits.weight"])
        out, gate = gated.gate_forward(out, _split(logits, B, T, H))
    y, merge = ops.linear_forward(_merge(out), params[f"{name}.c_proj.weight"], params.get(f"{name}.c_proj.bias"))   # 7.
    return y, Cache(inputs, rotations, projections, kernel, gate, merge)


def attention_backward(dy, cache, layer, config, shape):
    """dy (N, C) -> {"x": (N, C)} and the gradient of every parameter of the layer, by its name within the layer"""
    (B, T), H = shape, config.n_head
    row, grads = layer.mechanism, {}

    def undo(name, d, linear):
        part = ops.linear_backward(d, linear)
        grads.update((f"{name}.{key}", value) for key, value in part.items() if key != "x")
        return part["x"]

    # 7. y = merged heads @ c_proj
    dout = _split(undo("c_proj", dy, cache.merge), B, T, H)
    dlogits = {}
    # 6. gate
    if layer.gate:
        part = gated.gate_backward(dout, cache.gate)
        dout, dlogits["gate_logits"] = part["out"], part["gate_logits"]
    # 5. attend
    part = row.module.backward(dout, cache.kernel)
    grads.update((name, part[name]) for name in row.parameters)
    # 3. projected arguments
    dlogits.update((name, part[name]) for name in row.projections)
    dprojected = [undo(name, _merge(d if d.ndim == 4 else d[..., None]), cache.projections[name]) for name, d in dlogits.items()]
    if "q" in row.arguments:
        dq, dk, dv = part["q"], part["k"], part["v"]
        # 2. turn q and k
        if layer.rope:
            dq, dk = (rotary.backward(d, turn)["x"] for d, turn in zip((dq, dk), cache.rotations))
        # 1. q, k, v = x @ c_attn
        dqkv = np.stack([d.swapaxes(1, 2) for d in (dq, dk, dv)], axis=2)         # (B, T, 3, H, D)
        return {"x": sum(dprojected, undo("c_attn", dqkv.reshape(B * T, -1), cache.inputs)), **grads}
    du = part["x"]
    # 2. turn the features
    if layer.rope:
        du = rotary.backward(du, cache.rotations[0])["x"]
    if "values" in part:
        du = du + part["values"]
    # 1. the channels themselves
    if cache.inputs is not None:
        du = ops.rms_norm_backward(du, cache.inputs)["x"]
    return {"x": sum(dprojected, _merge(du)), **grads}


def _fold(arg, arguments, buffers, name, layer, training):
    """The buffer to use in this pass; in training the new one is left in `buffers`."""
    stored = buffers[name]
    if not training:
        return stored
    options = {key: value for key, value in {**layer.options, **layer.kernel}.items() if key in ("phi", "momentum", "axes")}
    buffers[name] = layer.mechanism.module.fold(stored, arguments["alpha_logits"], **options)
    return buffers[name] if layer.options["use"] == "after" else stored


def _split(x, B, T, H):
    """(N, H D) -> (B, H, T, D), a view"""
    return x.reshape(B, T, H, -1).swapaxes(1, 2)


def _merge(x):
    """(B, H, T, D) -> (N, H D), without a copy where the core laid x out for it"""
    B, H, T, D = x.shape
    return x.swapaxes(1, 2).reshape(B * T, H * D)
