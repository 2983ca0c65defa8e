"""One more token: what model.forward computes for a single new position, in fewer and larger steps.

A step of generation hardly computes: it reads every weight once, and between two small NumPy calls it waits for Python.
So `prepare` does, once, all that no token changes:

    layer_norm(x) W + b = rstd(x) (x - mean(x)) W' + b'      W' = diag(gain) W,   b' = bias W + b
    x - mean(x) = x                                          where all that is ever added to x has mean 0 already
    gelu(x) W = (x (1 + tanh u)) (W / 2)
    all projections of a layer's input stand side by side in one matrix, the scores' scale inside the queries' columns

and `step` is left with four products and a few short vectors per layer. The result is model.forward's but for rounding.

A weight matrix is cut into panels of PANEL columns. For a product as large as in training, BLAS first copies its operands
into a layout of its own; for a few rows that copy costs more than the product. OpenBLAS makes a small product where it lies.
"""
import math
from typing import NamedTuple

import numpy as np

from minattn import attention_layer, layers, model
from minattn.attention import gated

PANEL = 32


class Linear(NamedTuple):
    """y = x W + b"""
    weight: np.ndarray        # (n, m), or in panels (ceil(m / PANEL), n, PANEL)
    bias: np.ndarray          # (m,)


class Layer(NamedTuple):
    """One layer, ready for rows (B, C)."""
    plan: layers.Layer
    constants: dict           # arguments of the mechanism that no token changes: parameters per head, buffers
    made: list                # (argument made from the layer's input, its columns in `inwards`, its shape), q, k, v apart
    remembered: list          # arguments that a key brings
    inwards: Linear           # ln_1's gain and bias, then every projection
    outwards: Linear          # c_proj
    up: Linear                # ln_2's gain and bias, then c_fc
    down: Linear              # the MLP's c_proj


class Decoder(NamedTuple):
    config: model.Config
    wte: np.ndarray           # (V, C)
    codes: np.ndarray         # (block_size, C)     positions that are added
    layers: list
    head: Linear              # ln_f's gain and bias, then wte^T
    turns: np.ndarray | None  # (block_size, D/2)   of rope
    decay: np.ndarray | None  # (H, 1, block_size)  bias on the keys, the newest last
    mean_of: np.ndarray       # (C, 1)              x @ mean_of: the mean of each row


def serves(config):
    """Can `step` do this model? Not the Gaussian kernel, which has no projections to take a norm's gain into."""
    return all("q" in layer.mechanism.arguments for layer in layers.layers(config))


# ------------------------------------------------------------------------------------------------------- once


def prepare(params, buffers, config):
    """Everything that does not depend on the tokens. params, buffers as of model.init -> Decoder"""
    C, wte, plan = config.n_embd, params["wte.weight"], layers.layers(config)
    turns = bias = None
    if plan[0].rotation:
        module, options = plan[0].rotation
        turns = module.rotations(config.block_size, C // config.n_head, wte.dtype, **options)
    if plan[0].bias:
        module, options = plan[0].bias
        every, last = slice(None), np.array([config.block_size - 1])
        bias = module.bias(config.n_head, wte.dtype, **options)
        bias = bias.tile(every, every, last, np.arange(config.block_size))[0]
    return Decoder(config, _centred(wte), _centred(model.position_codes(params, config)),
                   [_prepare_layer(layer, params, buffers, config) for layer in plan],
                   _after_norm(params, "ln_f", Linear(wte.T, np.zeros(len(wte), wte.dtype))), turns, bias, np.full((C, 1), 1 / C, wte.dtype))


def _prepare_layer(layer, params, buffers, config):
    h, a, row, H = f"h.{layer.index}", f"h.{layer.index}.attn", layer.mechanism, config.n_head
    constants = {arg: (params if arg in row.parameters else buffers)[f"{a}.{arg}"] for arg in (*row.parameters, *row.buffers)}
    side_by_side, made, start = [], [], 0
    for name, n_out, _, _ in attention_layer.attention_parameters(layer, config):
        if n_out is None:                                             # a parameter per head
            continue
        side_by_side.append(_linear(params, f"{a}.{name}"))
        if name != "c_attn":
            one_per_token = len(row.arguments.get(name, "").split()) == 3                      # (B, H, T), not (B, H, T, D)
            made.append((name, slice(start, start + n_out), (-1, H, 1) if one_per_token else (-1, H, 1, n_out // H)))
        start += n_out
    inwards = Linear(np.concatenate([w for w, _ in side_by_side], axis=1), np.concatenate([b for _, b in side_by_side]))
    for part in inwards:
        part[..., :config.n_embd] /= math.sqrt(config.n_embd // H)    # the queries carry the scores' scale
    down = _linear(params, f"{h}.mlp.c_proj")
    return Layer(layer, constants, made, layer.reads("Tk"),
                 _after_norm(params, f"{h}.ln_1", inwards),
                 _adding(_linear(params, f"{a}.c_proj")),
                 _after_norm(params, f"{h}.ln_2", _linear(params, f"{h}.mlp.c_fc")),
                 _adding(Linear(down.weight / 2, down.bias)))         # the half of gelu


def _linear(params, name):
    weight = params[f"{name}.weight"]
    bias = params.get(f"{name}.bias")
    return Linear(weight, np.zeros(weight.shape[1], weight.dtype) if bias is None else bias)


def _after_norm(params, name, linear):
    """A linear map of what a norm gives, with the norm's gain and bias inside."""
    gain, bias = params[f"{name}.weight"], params.get(f"{name}.bias")
    return _panels(gain[:, None] * linear.weight, linear.bias if bias is None else bias @ linear.weight + linear.bias)


def _adding(linear):
    """A linear map whose result is added to x: its mean over the channels, which no norm lets pass, is taken out."""
    return _panels(_centred(linear.weight), _centred(linear.bias))


def _centred(x):
    return x - x.mean(axis=-1, keepdims=True)


def _panels(weight, bias):
    """The columns in panels, the last one filled up with zeros."""
    n, m = weight.shape
    padded = np.zeros((n, -(-m // PANEL) * PANEL), weight.dtype)
    padded[:, :m] = weight
    return Linear(np.ascontiguousarray(padded.reshape(n, -1, PANEL).swapaxes(0, 1)), bias)


# ------------------------------------------------------------------------------------------------- at every token


def step(decoder, tokens, past):
    """The next position of B sequences: tokens (B,) -> logits (B, V). `past` receives what the position leaves behind."""
    x = decoder.wte[tokens] + decoder.codes[past.length]              # 1. tokens and positions    (B, C), every row of mean 0
    for layer in decoder.layers:
        y = _attend(_normed(x, layer.inwards, decoder), layer, decoder, past)
        x += _product(y, layer.outwards)                              # 2. x += attention(layer_norm(x))
        x += layer.outwards.bias
        y = _twice_gelu(_normed(x, layer.up, decoder), decoder.config.gelu)
        x += _product(y, layer.down)                                  # 3. x += mlp(layer_norm(x))
        x += layer.down.bias
    past.length += 1
    return _normed(x, decoder.head, decoder)                          # 4. logits


def _product(x, linear):
    """x W: (B, n) -> (B, m)"""
    B, panels = len(x), len(linear.weight)
    y = np.empty((B, panels, PANEL), x.dtype)
    np.matmul(x, linear.weight, out=y.swapaxes(0, 1))                 # (B, n), (n, PANEL) -> (B, PANEL), panel by panel
    return y.reshape(B, panels * PANEL)[:, :len(linear.bias)]


def _normed(x, linear, decoder):
    """layer_norm and the linear map after it: (B, C) -> (B, m)"""
    y = _product(x, linear)
    y *= ((x * x).dot(decoder.mean_of) + 1e-5) ** -0.5                # arrays so short: .dot starts in a third of the time of @
    y += linear.bias
    return y


def _attend(y, layer, decoder, past):
    """Projections (B, m) of one new position -> merged heads (B, C)"""
    plan, row, H, C, t = layer.plan, layer.plan.mechanism, decoder.config.n_head, decoder.config.n_embd, past.length
    qkv = y[:, :3 * C].reshape(-1, 3 * H, 1, C // H)                  # (B, 3 H, 1, D)
    q, k, v = qkv[:, :H], qkv[:, H:2 * H], qkv[:, 2 * H:]
    if plan.rotation:
        module, options = plan.rotation
        turned = module.rotate(qkv[:, :2 * H], decoder.turns[t:t + 1], **options)
        q, k = turned[:, :H], turned[:, H:]
    arguments = {"q": q, "k": k, "v": v, **layer.constants}
    for name, columns, shape in layer.made:
        arguments[name] = y[:, columns].reshape(shape)
    gate = arguments.pop("gate_logits") if plan.gate else None
    for name in layer.remembered:
        arguments[name] = past.extend(plan.index, name, arguments[name])
    bias = None if decoder.decay is None else decoder.decay[..., -1 - t:]
    if row.decode:
        if plan.window:
            arguments["k"], arguments["v"] = (arguments[name][:, :, -plan.window:] for name in "kv")
            bias = None if bias is None else bias[..., -plan.window:]
        out = row.decode(**arguments, bias=bias)
    else:
        out = row.module.forward(**arguments, **plan.options, causal=True, window=plan.window, bias=bias, scale=1.0)[0]
    if gate is not None:
        out = out * gated.sigmoid(gate)
    return out.reshape(-1, C)


def _twice_gelu(x, form):
    """x (1 + tanh u), or x (1 + erf(x / sqrt 2)): see ops.gelu_forward."""
    if form == "exact":
        from scipy.special import erf  # here and not above: only this form needs it
        u = erf(x / math.sqrt(2))
    else:
        c = math.sqrt(2 / math.pi)
        u = x * x
        u *= c * 0.044715
        u += c
        u *= x
        np.tanh(u, out=u)
    u += 1
    u *= x
    return u
