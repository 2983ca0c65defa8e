"""The layer around a mechanism: make its inputs from the channels, split heads, attend, merge.

Any mechanism of the registry works here without being named: an argument is a projection of the
layer's input, a parameter per head, or a buffer, as its row says. Only two shapes of input exist:
q, k, v from one projection, or (Gaussian kernel) the channels themselves.
"""
import math
from typing import Any, NamedTuple

import numpy as np

from minattn import checks, ops
from minattn.errors import InputError


class KVCache:
    """What earlier tokens left for later ones to see, for every layer. The only mutable object."""

    def __init__(self, capacity):
        self.capacity = checks.number("capacity", capacity, 1, integer=True)
        self.length, self.sequences, self.arrays, self.states = 0, None, {}, {}

    def expect(self, B, T):
        """Raise InputError unless T more tokens of each of B sequences have a place here."""
        if self.length + T > self.capacity:
            raise InputError(f"the cache has room for {self.capacity} tokens; "
                             f"got {self.length + T}.")
        if self.length and B != self.sequences:
            raise InputError(f"the cache holds {self.sequences} sequences; got {B} to continue.")
        self.sequences = B

    def extend(self, layer, name, new):
        """Append new (B, H, T, ...) and return all (B, H, length + T, ...)."""
        if (layer, name) not in self.arrays:
            shape = new.shape[:2] + (self.capacity,) + new.shape[3:]
            self.arrays[layer, name] = np.empty(shape, new.dtype)
        array, end = self.arrays[layer, name], self.length + new.shape[2]
        array[:, :, self.length:end] = new
        return array[:, :, :end]

    def advance(self, layer, arguments):
        """The output of new tokens in a layer that keeps a state (of layers.Layer)."""
        state = self.states.get(layer.index)
        out, self.states[layer.index] = layer.mechanism.continue_from(state, **arguments,
                                                                      **layer.options)
        return out


# ------------------------------------------------------------------------------------- parameters


def projections(layer, config):
    """(name, outputs, bias) of every linear map of the layer's input."""
    row, sizes = layer.mechanism, layer.sizes(config)
    if "q" in row.arguments:
        yield "c_attn", sum(math.prod(layer.heads(name, config)) for name in "qkv"), config.qkv_bias
    for source in (row, layer.gate):
        for name, biased in source.projections.items() if source else ():
            _, heads, _, *width = source.arguments[name].split()
            if width == ["Dv|1"]:                        # either: an option of the layer says which
                width = ["Dv" if layer.layer_options["gate"] == "channel" else "1"]
            yield name, math.prod(checks.extent(s, sizes) for s in (heads, *width)), biased


def attention_parameters(layer, config):
    """Every other array that the layer learns: name -> (shape, initial value)"""
    row, sizes, found = layer.mechanism, layer.sizes(config), {}
    if config.qk_norm:
        for name in ("q", "k"):                          # flat: norms' gains are not decayed
            found[f"{name}_norm.weight"] = ((math.prod(layer.heads(name, config)),), 1.0)
    if config.log_length:                                # the usual scale where the context is full
        found["log_length"] = (config.n_head,), 1 / math.log(max(config.block_size, 2))
    for name, value in row.parameters.items():
        shape = tuple(checks.extent(s, sizes) for s in row.arguments[name].split())
        if callable(value):
            value = value(sizes["D"], **layer.layer_options)
        found[name] = shape, value
    return found


# ----------------------------------------------------------------------------- forward and backward


class Cache(NamedTuple):
    inputs: Any          # of the projection that made q, k, v; or of the features' norm
    norms: list          # of q and k, under qk_norm
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
    if config.softcap:
        options["softcap"] = config.softcap
    if config.log_length:
        options["log_length"] = params[f"{name}.log_length"]
    arguments, norms, rotations, projections = {}, [], [], {}

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

    def normalise(a, arg):
        y, cache = ops.rms_norm_forward(a)
        gain = params[f"{name}.{arg}_norm.weight"].reshape(a.shape[1], 1, a.shape[3])
        norms.append((cache, gain))
        return y * gain

    if "q" in row.arguments:                                # 1. q, k, v             (B, H, T, D)
        qkv, inputs = ops.linear_forward(x, params[f"{name}.c_attn.weight"],
                                         params.get(f"{name}.c_attn.bias"))
        q, k, v = _split_qkv(qkv, B, T, layer, config)
        if config.qk_norm:                                  #    normalise q and k
            q, k = normalise(q, "q"), normalise(k, "k")
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
    keeps_state = kv_cache and layer.keeps_state
    if keeps_state and weights is not None:
        raise InputError(f"{layer.name} keeps no keys in a cache, so there are no weights to "
                         "return: leave out the cache, or the weights.")
    if kv_cache and not keeps_state:                        # 4. append the new keys to the cache
        for arg in [*layer.reads("Tk"), *(a for a in row.optional if a in arguments)]:
            arguments[arg] = kv_cache.extend(layer.index, arg, arguments[arg])

    if keeps_state:                                         # 5. attend
        out, attention, seen = kv_cache.advance(layer, arguments), None, []
    else:
        out, attention, *seen = row.module.forward(**arguments, **options)
    if weights is not None:
        weights += seen
    gate = None
    if layer.gate:                                          # 6. gate                (B, H, T, D)
        arg, = layer.gate.projections
        out, gate = layer.gate.module.gate_forward(out, project(arg, layer.gate.arguments[arg]))
    y, merge = ops.linear_forward(_merge(out), params[f"{name}.c_proj.weight"],
                                  params.get(f"{name}.c_proj.bias"))          # 7. project back
    return y, Cache(inputs, norms, rotations, projections, attention, gate, merge)


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
    if config.log_length:
        grads["log_length"] = part["log_length"]
    # 3. projected arguments
    dlogits.update((name, part[name]) for name in row.projections)
    dprojected = []
    for name, d in dlogits.items():
        d = d if d.ndim == 4 else d[..., None]
        dprojected.append(undo(name, _merge(d), cache.projections[name]))
    if "q" in row.arguments:
        # 2. rotate q and k
        dq, dk, dv = unrotate(part["q"], 0), unrotate(part["k"], 1), part["v"]
        if config.qk_norm:
            dq, grads["q_norm.weight"] = _norm_backward(dq, *cache.norms[0])
            dk, grads["k_norm.weight"] = _norm_backward(dk, *cache.norms[1])
        # 1. q, k, v = x @ c_attn
        dqkv = np.concatenate([d.swapaxes(1, 2).reshape(B, T, -1) for d in (dq, dk, dv)], axis=2)
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


def _norm_backward(dy, norm, gain):
    """y = rms_norm(x) * gain, gain (H, 1, D) -> dx, dgain (H D,)"""
    dgain = np.einsum("bhtd,bhtd->hd", dy, norm.y)
    return ops.rms_norm_backward(dy * gain, norm)["x"], dgain.reshape(-1)


def _split_qkv(x, B, T, layer, config):
    """(N, all heads of q, k and v) -> three views (B, heads, T, width)"""
    x, parts, start = x.reshape(B, T, -1), [], 0
    for name in "qkv":
        heads, width = layer.heads(name, config)
        part = x[:, :, start:start + heads * width]
        parts.append(part.reshape(B, T, heads, width).swapaxes(1, 2))
        start += heads * width
    return parts


def _split(x, B, T, H):
    """(N, H D) -> (B, H, T, D), a view"""
    return x.reshape(B, T, H, -1).swapaxes(1, 2)


def _merge(x):
    """(B, H, T, D) -> (N, H D), without a copy where the core laid x out for it"""
    B, H, T, D = x.shape
    return x.swapaxes(1, 2).reshape(B * T, H * D)
