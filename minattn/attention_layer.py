"""The layer around a mechanism: make its inputs from the channels, split heads, attend, merge.

Any mechanism of the registry works here without being named: an argument is a projection of the
layer's input, a parameter per head, or a buffer, as its row says. Only two shapes of input exist:
q, k, v from one projection, or (Gaussian kernel) the channels themselves.
"""
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from minattn import checks, ops, spec
from minattn.attention import Mechanism, mechanism
from minattn.errors import InputError
from minattn.positions import position


class Layer(NamedTuple):
    """What one layer does, read off the config."""
    index: int
    name: str                  # as it is spelled: "energy[norm=prefix]+gated"
    mechanism: Mechanism
    options: dict              # of the mechanism's forward
    layer_options: dict        # of the layer around it
    gate: Mechanism | None     # a gate on top of the mechanism's output
    window: int | None
    rotation: tuple | None     # (position module, its options): rotates q and k
    bias: tuple | None         # (position module, its options): adds to the scores

    def reads(self, symbol):
        """The arguments of the mechanism with this axis."""
        return [name for name, shape in self.mechanism.arguments.items() if symbol in shape.split()]


class KVCache:
    """What earlier tokens left for later ones to see, for every layer. The only mutable object."""

    def __init__(self, capacity):
        self.capacity, self.length, self.arrays = capacity, 0, {}

    def extend(self, layer, name, new):
        """Append new (B, H, T, ...) and return all (B, H, length + T, ...)."""
        if (layer, name) not in self.arrays:
            shape = new.shape[:2] + (self.capacity,) + new.shape[3:]
            self.arrays[layer, name] = np.empty(shape, new.dtype)
        array, end = self.arrays[layer, name], self.length + new.shape[2]
        array[:, :, self.length:end] = new
        return array[:, :, :end]


# --------------------------------------------------------------------------- from the config's text


@lru_cache(maxsize=64)
def layers(config):
    """The layers of a config; InputError for a name or an option that nothing knows."""
    texts = spec.parse("attention", config.attention)
    by_kind = {}
    for row, options in positions(config):
        if row.kind in ("rotation", "bias"):
            if row.kind in by_kind:
                raise InputError(f"position {config.position!r}: one {row.kind} at most.")
            by_kind[row.kind] = row.module, options
    built = [_layer(parts) for parts in texts]
    return tuple(Layer(i, spec.show([texts[i % len(texts)]]), *built[i % len(built)], window,
                       by_kind.get("rotation"), by_kind.get("bias"))
                 for i, window in enumerate(_windows(config)))


def _layer(parts):
    """Parsed parts -> mechanism, options, layer_options, gate"""
    first, *more = parts
    gate, row = None, mechanism(first.name)
    if row.on_top_of:
        more, row, first = [first, *more], mechanism(row.on_top_of), spec.Part(row.on_top_of, {})
    checks.options("attention option", first.name, first.options, row.all_options())
    layer_options = checks.defaults(row.layer_options)
    given = dict(first.options)
    if more:
        gate = mechanism(more[0].name)
        if len(more) > 1 or not gate.on_top_of:
            raise InputError(f"attention {spec.show([parts])!r}: only '+gated' can be put on top of "
                             "another mechanism.")
        checks.options("attention option", gate.name, more[0].options, gate.all_options())
        layer_options.update(checks.defaults(gate.layer_options))
        given.update(more[0].options)
    layer_options.update((n, value) for n, value in given.items() if n in layer_options)
    options = {n: value for n, value in given.items() if n in row.options}
    return row, options, layer_options, gate


@lru_cache(maxsize=64)
def positions(config):
    """The encodings of a config, in order: ((row, {option: value}), ...)"""
    (parts, *more) = spec.parse("position", config.position)
    if more:
        raise InputError(f"position {config.position!r}: all layers share it; only attention can "
                         "alternate with '/'.")
    found = []
    for part in parts:
        row = position(part.name)
        checks.options("position option", row.name, part.options, row.options)
        if row.name in (other.name for other, _ in found):
            raise InputError(f"position {row.name!r} is there twice in {config.position!r}.")
        found.append((row, {**checks.defaults(row.options), **part.options}))
        C, H = config.n_embd, config.n_head
        if row.even == "n_embd" and C % 2:
            raise InputError(f"n_embd must be even for {row.name} positions; got {C}.")
        if row.even == "n_embd / n_head" and C // H % 2:
            raise InputError(f"n_embd / n_head must be even for {row.name}; got {C} / {H}.")
    return tuple(found)


def embeddings(config):
    """Those of the encodings that are added to the token embeddings."""
    return [(row, options) for row, options in positions(config) if row.kind == "embedding"]


def _windows(config):
    """The window of each layer."""
    if config.window is not None and config.window_pattern:
        raise InputError("give window or window_pattern, not both.")
    if config.window is not None:
        checks.number("window", config.window, 1, integer=True)
    for letter in config.window_pattern:
        checks.choice("each letter of window_pattern", letter, ("S", "L"))
    if not config.window_pattern:
        return [config.window] * config.n_layer
    sizes = {"S": max(1, config.block_size // 2), "L": None}
    letters = config.window_pattern
    pattern = [sizes[letters[i % len(letters)]] for i in range(config.n_layer)]
    return pattern[:-1] + [None]


# ------------------------------------------------------------------------------------- parameters


def attention_parameters(layer, config):
    """(name, outputs, initial value, bias) of every array of the layer, c_proj apart.

    outputs None: not a linear layer but one number per head.
    """
    row, C, H = layer.mechanism, config.n_embd, config.n_head
    if "q" in row.arguments:
        yield "c_attn", 3 * C, None, config.qkv_bias
    for source in (row, layer.gate):
        for name, biased in source.projections.items() if source else ():
            shape = source.arguments[name].split()
            per_channel = len(shape) == 4
            if shape[-1] == "Dv|1":                         # either: an option of the layer says which
                per_channel = layer.layer_options["gate"] == "channel"
            yield name, C if per_channel else H, None, biased
    for name, value in row.parameters.items():
        yield name, None, value(C // H, **layer.layer_options) if callable(value) else value, False


# ------------------------------------------------------------------------------ forward and backward


class Cache(NamedTuple):
    inputs: Any          # of the projection that made q, k, v; or of the features' norm
    rotations: list      # of each rotated input
    projections: dict    # argument -> cache of its linear
    attention: Any
    gate: Any
    merge: Any           # of c_proj


def attention_forward(x, params, buffers, layer, config, shape, *, training, rng, kv_cache,
                      weights=None):
    """x (N, C), layer-normed -> (N, C), cache.

    In training, `buffers` receives the layer's new buffers. weights: a list, to which the
    (B, H, T, T) that multiply the values are appended, or None.
    """
    (B, T), H = shape, config.n_head
    row, name = layer.mechanism, f"h.{layer.index}.attn"
    start = kv_cache.length if kv_cache else 0
    options = dict(layer.options, causal=True, window=layer.window, dropout=config.dropout, rng=rng)
    if weights is not None:
        options["return_weights"] = True
    if layer.bias:
        module, settings = layer.bias
        options["bias"] = module.bias(H, x.dtype, **settings)
    arguments, rotations, projections = {}, [], {}

    def rotate(a):
        module, settings = layer.rotation
        y, cache = module.forward(a, start=start, **settings)
        rotations.append(cache)
        return y

    def project(arg, shape):
        y, projections[arg] = ops.linear_forward(x, params[f"{name}.{arg}.weight"],
                                                 params.get(f"{name}.{arg}.bias"))
        y = _split(y, B, T, H)                                                # (B, H, T, D or 1)
        return y if len(shape.split()) == 4 else y[..., 0]

    if "q" in row.arguments:                                # 1. q, k, v             (B, H, T, D)
        qkv, inputs = ops.linear_forward(x, params[f"{name}.c_attn.weight"],
                                         params.get(f"{name}.c_attn.bias"))
        q, k, v = qkv.reshape(B, T, 3, H, -1).transpose(2, 0, 3, 1, 4)
        if layer.rotation:                                  # 2. rotate q and k
            q, k = rotate(q), rotate(k)
        arguments.update(q=q, k=k, v=v)
    else:                                                   # 1. the channels themselves
        u, inputs = _split(x, B, T, H), None
        if layer.layer_options.get("qk_norm"):
            u, inputs = ops.rms_norm_forward(u)
        arguments["x"] = u
        if layer.rotation:                                  # 2. rotate the features
            arguments["x"] = rotate(u)
            if not layer.layer_options.get("rope_values"):
                arguments["values"] = u
        if kv_cache:
            arguments["keys"] = arguments["x"]
            arguments["values"] = arguments.get("values", arguments["x"])
    for arg in row.projections:                             # 3. projected arguments
        arguments[arg] = project(arg, row.arguments[arg])
    arguments.update({arg: params[f"{name}.{arg}"] for arg in row.parameters})
    if row.buffers:
        arguments.update(_buffers(layer, arguments, buffers, name, training))
    if kv_cache:                                            # 4. append the new keys to the cache
        for arg in [*layer.reads("Tk"), *(a for a in row.optional if a in arguments)]:
            arguments[arg] = kv_cache.extend(layer.index, arg, arguments[arg])

    out, attention, *seen = row.module.forward(**arguments, **options)        # 5. attend
    if weights is not None:
        weights += seen
    gate = None
    if layer.gate:                                          # 6. gate                (B, H, T, D)
        arg, = layer.gate.projections
        out, gate = layer.gate.module.gate_forward(out, project(arg, layer.gate.arguments[arg]))
    y, merge = ops.linear_forward(_merge(out), params[f"{name}.c_proj.weight"],
                                  params.get(f"{name}.c_proj.bias"))          # 7. project back
    return y, Cache(inputs, rotations, projections, attention, gate, merge)


def attention_backward(dy, cache, layer, config, shape):
    """dy (N, C) -> {"x": (N, C)} and the gradient of every parameter, by its name in the layer"""
    (B, T), H = shape, config.n_head
    row, grads = layer.mechanism, {}

    def undo(name, d, linear):
        part = ops.linear_backward(d, linear)
        grads.update((f"{name}.{key}", value) for key, value in part.items() if key != "x")
        return part["x"]

    def unrotate(d, n):
        return layer.rotation[0].backward(d, cache.rotations[n])["x"] if layer.rotation else d

    # 7. y = merged heads @ c_proj
    dout = _split(undo("c_proj", dy, cache.merge), B, T, H)
    dlogits = {}
    # 6. gate
    if layer.gate:
        part = layer.gate.module.gate_backward(dout, cache.gate)
        dout = part.pop("out")
        dlogits.update(part)
    # 5. attend
    part = row.module.backward(dout, cache.attention)
    grads.update((name, part[name]) for name in row.parameters)
    # 3. projected arguments
    dlogits.update((name, part[name]) for name in row.projections)
    dprojected = []
    for name, d in dlogits.items():
        d = d if d.ndim == 4 else d[..., None]
        dprojected.append(undo(name, _merge(d), cache.projections[name]))
    if "q" in row.arguments:
        # 2. rotate q and k
        dq, dk, dv = unrotate(part["q"], 0), unrotate(part["k"], 1), part["v"]
        # 1. q, k, v = x @ c_attn
        dqkv = np.stack([d.swapaxes(1, 2) for d in (dq, dk, dv)], axis=2)     # (B, T, 3, H, D)
        dx = undo("c_attn", dqkv.reshape(B * T, -1), cache.inputs)
        return {"x": sum(dprojected, dx), **grads}
    # 2. rotate the features
    du = unrotate(part["x"], 0)
    if "values" in part:
        du = du + part["values"]
    # 1. the channels themselves
    if cache.inputs is not None:
        du = ops.rms_norm_backward(du, cache.inputs)["x"]
    return {"x": sum(dprojected, _merge(du)), **grads}


def _buffers(layer, arguments, buffers, name, training):
    """The buffers to use in this pass; in training the new ones are left in `buffers`."""
    row = layer.mechanism
    stored = {arg: buffers[f"{name}.{arg}"] for arg in row.buffers}
    if not training:
        return stored
    settings = {**row.settings(**layer.options), **layer.layer_options}
    options = {option: settings[option] for option in row.all_options()}
    used, kept = row.module.update_buffers(stored, arguments, **options)
    buffers.update((f"{name}.{arg}", value) for arg, value in kept.items())
    return used


def _split(x, B, T, H):
    """(N, H D) -> (B, H, T, D), a view"""
    return x.reshape(B, T, H, -1).swapaxes(1, 2)


def _merge(x):
    """(B, H, T, D) -> (N, H D), without a copy where the core laid x out for it"""
    B, H, T, D = x.shape
    return x.swapaxes(1, 2).reshape(B * T, H * D)
