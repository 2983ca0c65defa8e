"""One more token: what model.forward computes for a single new position, in fewer and larger steps.

    x = wte[token] + position codes
    x += attention(layer_norm(x))                       these two in every layer
    x += mlp(layer_norm(x))
    logits = layer_norm(x) @ wte.T

A step of generation does little arithmetic: it reads every weight once, and between small NumPy
calls it waits for Python. So `prepare` does all that is the same for every token, once:

    layer_norm(x) @ W + b = (x - mean) / std @ W' + b'   W' = gain[:, None] * W,  b' = bias @ W + b
    x - mean = x                                         as all that is added to x is centred first
    gelu(x) @ W = (2 gelu(x)) @ (W / 2)                  2 gelu(x) = x + x tanh(u)

The projections of a layer's input stand side by side in one matrix, with the scores' scale in the
queries' columns; a mechanism that takes the channels themselves has the identity there. What is
left for `step` are four products and a few short vectors per layer. Its logits differ from
model.forward's by rounding only.

A weight matrix is cut into panels of PANEL columns. For a product as large as in training, BLAS
first copies its operands into a layout of its own; for a few rows that copy would cost more than
the product. OpenBLAS computes small products without it.
"""
import math
from typing import Any, NamedTuple

import numpy as np

from minattn import model, ops
from minattn.attention_layer import attention_parameters, projections
from minattn.layers import Layer, layers

PANEL = 32


class Linear(NamedTuple):
    """y = x @ weight + bias"""
    weight: np.ndarray        # (n, m), or in panels (ceil(m / PANEL), n, PANEL)
    bias: np.ndarray          # (m,)


class PreparedLayer(NamedTuple):
    """One layer, ready for rows (B, C)."""
    layer: Layer
    cached: list              # arguments that the key-value cache extends
    constants: dict           # arguments of the mechanism that are the same for every token
    norms: Any                # the gains of q and k (heads, 1, D), or None; the scale is in q's
    log_length: Any           # (H,), or None
    inputs: Any               # _qkv or _features
    heads: list               # (heads, width) of q, k and v, or of x
    projected: list           # (argument, its columns after attn_in, its shape), all but those
    attn_in: Linear           # ln_1's gain and bias, then every projection
    attn_out: Linear          # c_proj
    mlp_in: Linear            # ln_2's gain and bias, then c_fc
    mlp_out: Linear           # the MLP's c_proj


class Decoder(NamedTuple):
    config: model.Config
    wte: np.ndarray           # (V, C)
    codes: np.ndarray         # (block_size, C)     positions that are added
    rotations: dict           # D -> (block_size, D/2)   positions that rotate q and k, if any do
    bias: Any                 # positions that add to the scores: an object with .tile, or None
    layers: list
    head: Linear              # ln_f's gain and bias, then wte.T
    mean_of: np.ndarray       # (C, 1)              x @ mean_of = x.mean(axis=1)


# -------------------------------------------------------------------------------------------- once


def prepare(params, buffers, config):
    """Everything that does not depend on the tokens. params, buffers as of model.init -> Decoder"""
    wte, C, H = params["wte.weight"], config.n_embd, config.n_head
    first, rotations, bias = layers(config)[0], {}, None              # all layers share positions
    if first.rotation:
        module, options = first.rotation
        for D in {layer.heads(_first(layer), config)[1] for layer in layers(config)}:
            rotations[D] = module.rotations(config.block_size, D, wte.dtype, **options)
    if first.bias:
        module, options = first.bias
        bias = module.bias(H, wte.dtype, **options)
    head = _after_norm(params, "ln_f", Linear(wte.T, np.zeros(len(wte), wte.dtype)))
    prepared = [_prepare_layer(layer, params, buffers, config) for layer in layers(config)]
    codes = model.position_codes(params, config)
    return Decoder(config, _centred(wte), _centred(codes), rotations, bias, prepared, head,
                   np.full((C, 1), 1 / C, wte.dtype))


def _first(layer):
    """The argument that the query comes from: q, or the channels x themselves"""
    return "q" if "q" in layer.mechanism.arguments else "x"


def _prepare_layer(layer, params, buffers, config):
    h, row, H, C = f"h.{layer.index}", layer.mechanism, config.n_head, config.n_embd
    constants = {name: params[f"{h}.attn.{name}"] for name in row.parameters}
    learned = {name: params[f"{h}.attn.{name}"] for name in attention_parameters(layer, config)}
    constants.update((name, buffers[f"{h}.attn.{name}"]) for name in row.buffers)
    sizes = {name: n_out for name, n_out, _ in projections(layer, config)}
    linears = [_linear(params, f"{h}.attn.{name}") for name in sizes]
    names, inputs, cached = "qkv", _qkv, layer.reads("Tk")
    dtype = params["wte.weight"].dtype
    if _first(layer) == "x":
        names, inputs, cached = "x", _features, ["keys", "values"]
        sizes = {"c_attn": C, **sizes}
        linears.insert(0, Linear(np.eye(C, dtype=dtype), np.zeros(C, dtype)))
    attn_in = Linear(np.concatenate([linear.weight for linear in linears], axis=1),
                     np.concatenate([linear.bias for linear in linears]))
    heads = [layer.heads(name, config) for name in names]
    n_q, D = heads[0]
    scale = 1.0 if "scale" in row.refuses else 1 / math.sqrt(D)                  # of q k^T
    norms = log_length = None
    if config.qk_norm:
        norms = tuple(learned[f"{name}_norm.weight"].reshape(n, 1, D)
                      for name, (n, _) in zip("qk", heads))
        norms = norms[0] * dtype.type(scale), norms[1]
    else:
        for array in attn_in:
            array[..., :n_q * D] *= scale
    if config.log_length:
        log_length = learned["log_length"]
    projected, start = [], sizes.pop("c_attn")
    for name, n_out in sizes.items():
        axes = row.arguments.get(name, "B H Tq D").split()
        shape = (-1, H, 1) if len(axes) == 3 else (-1, H, 1, n_out // H)
        projected.append((name, slice(start, start + n_out), shape))
        start += n_out
    mlp_out = _linear(params, f"{h}.mlp.c_proj")
    return PreparedLayer(layer, cached, constants, norms, log_length, inputs, heads, projected,
                         _after_norm(params, f"{h}.ln_1", attn_in),
                         _centred_output(_linear(params, f"{h}.attn.c_proj")),
                         _after_norm(params, f"{h}.ln_2", _linear(params, f"{h}.mlp.c_fc")),
                         _centred_output(Linear(mlp_out.weight / 2, mlp_out.bias)))   # of 2 gelu


def _linear(params, name):
    weight = params[f"{name}.weight"]
    return Linear(weight, params.get(f"{name}.bias", np.zeros(weight.shape[1], weight.dtype)))


def _after_norm(params, name, linear):
    """The linear map of a layer norm's result, with the norm's gain and bias merged into it."""
    weight, bias = params[f"{name}.weight"][:, None] * linear.weight, linear.bias
    if f"{name}.bias" in params:
        bias = params[f"{name}.bias"] @ linear.weight + bias
    return _panels(weight, bias)


def _centred_output(linear):
    """A linear map whose result is added to x, less its mean, which every norm would subtract."""
    return _panels(_centred(linear.weight), _centred(linear.bias))


def _centred(x):
    return x - x.mean(axis=-1, keepdims=True)


def _panels(weight, bias):
    """The columns in panels, the last one filled up with zeros."""
    n, m = weight.shape
    padded = np.zeros((n, -(-m // PANEL) * PANEL), weight.dtype)
    padded[:, :m] = weight
    return Linear(np.ascontiguousarray(padded.reshape(n, -1, PANEL).swapaxes(0, 1)), bias)


# ----------------------------------------------------------------------------------- at every token


def step(decoder, tokens, kv_cache):
    """The next position of B sequences: tokens (B,) -> logits (B, V); appended to kv_cache."""
    t = kv_cache.length
    x = decoder.wte[tokens] + decoder.codes[t]               # 1. tokens and positions   (B, C)
    bias = None
    if decoder.bias is not None:
        every = slice(None)
        bias = decoder.bias.tile(every, every, np.array([t]), np.arange(t + 1))  # (1, H, 1, t + 1)
    for prepared in decoder.layers:
        y = _norm_linear(x, prepared.attn_in, decoder)
        y = _attend(y, prepared, bias, decoder, kv_cache)
        x += _product(y, prepared.attn_out)                  # 2. x += attention(layer_norm(x))
        x += prepared.attn_out.bias
        y = _twice_gelu(_norm_linear(x, prepared.mlp_in, decoder), decoder.config.gelu)
        x += _product(y, prepared.mlp_out)                   # 3. x += mlp(layer_norm(x))
        x += prepared.mlp_out.bias
    kv_cache.length += 1
    return _norm_linear(x, decoder.head, decoder)            # 4. logits


def _product(x, linear):
    """x @ weight: (B, n) -> (B, m)"""
    B, panels = len(x), len(linear.weight)
    y = np.empty((B, panels, PANEL), x.dtype)
    np.matmul(x, linear.weight, out=y.swapaxes(0, 1))        # (B, n), (n, PANEL) -> (B, PANEL)
    return y.reshape(B, panels * PANEL)[:, :len(linear.bias)]


def _norm_linear(x, linear, decoder):
    """layer_norm and the linear map after it, x / std @ weight + bias: (B, C) -> (B, m)"""
    y = _product(x, linear)
    variance = (x * x).dot(decoder.mean_of)                  # for few rows .dot is faster than @
    y *= (variance + ops.LAYER_NORM_EPS) ** -0.5
    y += linear.bias
    return y


def _qkv(y, prepared, decoder, t):
    """Projections (B, m) of one new position -> {"q", "k", "v"}, normalised and rotated"""
    (n_q, D), (n_k, _), (n_v, width) = prepared.heads
    end = (n_q + n_k) * D
    qk = y[:, :end].reshape(-1, n_q + n_k, 1, D)
    if prepared.norms:
        q, k = (ops.rms_norm_forward(a)[0] * gain
                for a, gain in zip((qk[:, :n_q], qk[:, n_q:]), prepared.norms))
        qk = np.concatenate([q, k], axis=1)
    qk = _rotated(qk, prepared.layer, decoder, t)
    v = y[:, end:end + n_v * width].reshape(-1, n_v, 1, width)
    return {"q": qk[:, :n_q], "k": qk[:, n_q:], "v": v}


def _features(y, prepared, decoder, t):
    """The channels (B, m) of one new position -> {"x", "keys", "values"}, as attention_layer has"""
    layer, ((H, D),) = prepared.layer, prepared.heads
    values = y[:, :H * D].reshape(-1, H, 1, D)
    if layer.layer_options.get("qk_norm"):
        values = ops.rms_norm_forward(values)[0]
    x = _rotated(values, layer, decoder, t)
    return {"x": x, "keys": x, "values": x if layer.layer_options.get("rope_values") else values}


def _rotated(x, layer, decoder, t):
    if not layer.rotation:
        return x
    module, options = layer.rotation
    return module.rotate(x, decoder.rotations[x.shape[3]][t:t + 1], **options)


def _attend(y, prepared, bias, decoder, kv_cache):
    """Projections (B, m) of one new position -> merged heads (B, C)"""
    layer, row = prepared.layer, prepared.layer.mechanism
    C, t, given = decoder.config.n_embd, kv_cache.length, {}
    if decoder.config.softcap:
        given["softcap"] = decoder.config.softcap
    arguments = {**prepared.inputs(y, prepared, decoder, t), **prepared.constants}
    for name, columns, shape in prepared.projected:
        arguments[name] = y[:, columns].reshape(shape)
    gate_logits = [arguments.pop(name) for name in layer.gate.projections] if layer.gate else []
    if not layer.keeps_state:
        for name in prepared.cached:
            arguments[name] = kv_cache.extend(layer.index, name, arguments[name])
    if layer.keeps_state:
        out = kv_cache.advance(layer, arguments)
    elif row.decode:
        if layer.window:
            seen = slice(-layer.window, None)
            # only what is averaged: a mechanism's statistics may count hidden keys too
            for name in {"k", "v", "keys", "values"} & arguments.keys():
                arguments[name] = arguments[name][:, :, seen]
            bias = None if bias is None else bias[..., seen]
        if prepared.log_length is not None:
            factor = prepared.log_length * math.log(min(t + 1, layer.window or t + 1))
            n_q = arguments["q"].shape[1]
            each = np.repeat(factor, max(1, n_q // len(factor)))                  # of a pair, both
            arguments["q"] = arguments["q"] * each[:, None, None].astype(y.dtype)
        out = row.decode(**arguments, **layer.options, bias=bias, **given)
    else:
        if "scale" not in row.refuses:
            given["scale"] = 1.0
        if prepared.log_length is not None:
            given["log_length"] = prepared.log_length
        out = row.module.forward(**arguments, **layer.options, causal=True, window=layer.window,
                                 bias=bias, **given)[0]
    if layer.gate:
        out = layer.gate.module.gate_last(out, *gate_logits)
    return out.reshape(-1, C)


def _twice_gelu(x, form):
    """2 gelu(x) = 2 x Phi(x)"""
    y = ops.twice_phi_minus_1(x, form)
    y += 1
    y *= x
    return y
