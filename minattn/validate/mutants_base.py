"""Attention once more, dense and plain, every mechanism in one file: what the mutants are made of.

A mutant is this text with a line or two changed (minattn.validate.mutants). Nothing here is fast: whole score matrices,
a cache that holds all that the forward knew, and each step on a line of its own so that one step can be made wrong.
"""
import math
from types import SimpleNamespace as Cache

import numpy as np

# --------------------------------------------------------------------------------------------------- shared by all


def visible(Tq, Tk, causal=False, window=None, prefix=0, align="end", allowed=True):
    """Who sees whom: bool, broadcastable to (B, H, Tq, Tk)"""
    p = np.arange(Tq)[:, None] + (Tk - Tq if align == "end" else 0)
    j = np.arange(Tk)
    see = np.ones((Tq, Tk), bool)
    if causal or window is not None:
        see = (j <= p) | ((j < prefix) & (p < prefix))
    if window is not None:
        see &= j > p - window
    return see & allowed


def attend(q, k, v, *, scale=None, bias=None, sink=None, gate=0, **mask):
    """q (B, H, Tq, D), k (B, H, Tk, D), v (B, H, Tk, Dv) -> out (B, H, Tq, Dv), cache; gate: a mechanism's bias"""
    B, H, Tq, D = q.shape
    Tk = k.shape[2]
    shape = (B, H, Tq, Tk)
    if scale is None:
        scale = 1 / math.sqrt(D)
    dots = q @ k.swapaxes(2, 3)
    s = scale * dots
    s = s + gate
    if bias is not None:
        s = s + bias
    raw = s
    see = np.broadcast_to(visible(Tq, Tk, **mask), shape)
    s = np.where(see, s, -np.inf)
    m = s.max(axis=3, keepdims=True)
    if sink is not None:
        m = np.maximum(m, sink[:, None, None])
    m = np.where(m == -np.inf, 0, m)
    e = np.exp(s - m)
    total = e.sum(axis=3, keepdims=True)
    if sink is not None:
        e_sink = np.exp(sink[:, None, None] - m)
        total = total + e_sink
    total[total == 0] = 1
    P = e / total
    lse = m + np.log(total)
    out = P @ v
    return out, Cache(**locals())


def attend_backward(dout, c):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v"} and, where given, {"bias", "sink"}; then the scores' gradient"""
    q, k, v = c.q, c.k, c.v
    P = c.P
    dv = P.swapaxes(2, 3) @ dout
    dP = dout @ v.swapaxes(2, 3)
    delta = (dout * c.out).sum(axis=3, keepdims=True)
    ds = P * (dP - delta)
    dq = c.scale * (ds @ k)
    dk = c.scale * (ds.swapaxes(2, 3) @ q)
    grads = {"q": dq, "k": dk, "v": dv}
    if c.bias is not None:
        grads["bias"] = sum_to(ds, c.bias.shape)
    if c.sink is not None:
        P_sink = c.e_sink / c.total
        grads["sink"] = -(P_sink * delta).sum(axis=(0, 2, 3))
    return grads, ds


def sum_to(x, shape):
    """Undo broadcasting."""
    full = (1,) * (x.ndim - len(shape)) + shape
    axes = tuple(i for i, n in enumerate(full) if n == 1 and x.shape[i] > 1)
    return x.sum(axis=axes, keepdims=True).reshape(shape)


def sigmoid(x):
    y = np.exp(-np.abs(x))
    return np.where(x < 0, y, 1) / (1 + y)


# --------------------------------------------------------------------------------------------- one mechanism each


def softmax_forward(q, k, v, **options):
    out, c = attend(q, k, v, **options)
    return out, c


def softmax_backward(dout, c):
    return attend_backward(dout, c)[0]


def off_by_one_forward(q, k, v, **options):
    zero = np.zeros(q.shape[1], q.dtype)
    return attend(q, k, v, sink=zero, **options)


def off_by_one_backward(dout, c):
    grads, _ = attend_backward(dout, c)
    del grads["sink"]
    return grads


def sink_forward(q, k, v, sink, **options):
    return attend(q, k, v, sink=sink, **options)


def sink_backward(dout, c):
    return attend_backward(dout, c)[0]


def gated_forward(q, k, v, gate_logits, **options):
    Pv, core = attend(q, k, v, **options)
    g = sigmoid(gate_logits)
    out = Pv * g
    return out, Cache(**locals())


def gated_backward(dout, c):
    dPv = dout * c.g
    grads, _ = attend_backward(dPv, c.core)
    dg = dout * c.Pv
    dg = sum_to(dg, c.g.shape)
    grads["gate_logits"] = dg * c.g * (1 - c.g)
    return grads


def affine_forward(q, k, v, alpha_logits, alpha_ma, *, phi="linear_clip", length="total", **options):
    Pv, core = attend(q, k, v, **options)
    x = alpha_logits[..., None]
    if phi == "sigmoid":
        alpha = sigmoid(x)
        slope = alpha * (1 - alpha)
    else:
        alpha = np.clip(x * 0.1 + 0.5, 0, 1)
        slope = np.where(np.abs(x) < 5, 0.1, 0).astype(x.dtype)
    n_seen = np.maximum(core.see.sum(axis=3, keepdims=True), 1)
    n = {"total": k.shape[2], "visible": n_seen}.get(length, length)
    n = np.asarray(n, q.dtype)
    beta = (alpha_ma[:, None, None] - alpha) / n
    ones = core.see.astype(q.dtype)
    S = ones @ v
    out = alpha * Pv + beta * S
    return out, Cache(**locals())


def affine_backward(dout, c):
    dPv = c.alpha * dout
    grads, _ = attend_backward(dPv, c.core)
    grads["v"] = grads["v"] + c.ones.swapaxes(2, 3) @ (c.beta * dout)
    dbeta = (dout * c.S).sum(axis=3, keepdims=True)
    dalpha = (dout * c.Pv).sum(axis=3, keepdims=True)
    dalpha = dalpha - dbeta / c.n
    grads["alpha_logits"] = (dalpha * c.slope)[..., 0]
    return grads


def energy_forward(q, k, v, energy, alpha, tau, *, norm="key", **options):
    Tq, Tk = q.shape[2], k.shape[2]
    p = np.arange(Tq) + (Tk - Tq if options.get("align", "end") == "end" else 0)
    last = {"prefix": p, "sequence": np.array([Tk - 1])}.get(norm, np.arange(Tk))
    member = np.arange(Tk) <= last[:, None]                     # (N, Tk): which keys each of N statistics counts
    n = np.maximum(member.sum(axis=1), 1)[:, None].astype(q.dtype)
    e = energy[:, :, None]                                      # (B, H, 1, Tk)
    mean = (e * member).sum(axis=3, keepdims=True) / n          # (B, H, N, 1)
    centred = (e - mean) * member
    var = (centred * centred).sum(axis=3, keepdims=True) / n
    if norm == "sequence":
        rstd = 1 / np.maximum(np.sqrt(var), 1e-8)
    else:
        rstd = np.where(n > 1, 1 / np.sqrt(var + 1e-8), 0)
    if norm == "none":
        mean, rstd = 0 * mean, 0 * rstd + 1
    if norm in ("key", "none"):                                 # each statistic belongs to a key, not to a query
        mean, rstd = mean.swapaxes(2, 3), rstd.swapaxes(2, 3)
    z = (e - mean) * rstd                                       # (B, H, 1 or Tq, Tk)
    above = z - tau[:, None, None]
    u = alpha[:, None, None] * above
    log_g = np.minimum(u, 0) - np.log1p(np.exp(-np.abs(u)))
    out, core = attend(q, k, v, gate=log_g, **options)
    return out, Cache(**locals())


def energy_backward(dout, c):
    grads, ds = attend_backward(dout, c.core)
    du = sum_to(ds, c.u.shape) * sigmoid(-c.u)
    grads["alpha"] = (du * c.above).sum(axis=(0, 2, 3))
    grads["tau"] = -c.alpha * du.sum(axis=(0, 2, 3))
    dz = du * c.alpha[:, None, None]
    de = dz * c.rstd
    de = de.sum(axis=2)
    if c.norm != "none":
        dmean = -dz * c.rstd
        drstd = dz * (c.e - c.mean)
        dmean, drstd = (sum_to(x, c.mean.shape).reshape(c.var.shape) for x in (dmean, drstd))
        rstd = c.rstd.reshape(c.var.shape)
        dvar = -0.5 * drstd * rstd**3
        if c.norm == "sequence":
            dvar = np.where(np.sqrt(c.var) >= 1e-8, dvar, 0)    # on the floor the deviation is constant
        inner = dmean / c.n + 2 * c.centred * dvar / c.n
        de = de + (inner * c.member).sum(axis=2)
    grads["energy"] = de
    return grads


def gaussian_forward(x, log_sigma, *, keys=None, values=None, **options):
    k = x if keys is None else keys
    v = k if values is None else values
    inv = np.exp(-2 * log_sigma)[:, None, None]
    norm = (k * k).sum(axis=3)[:, :, None]
    key_bias = -0.5 * norm * inv
    out, core = attend(x * inv, k, v, scale=1.0, gate=key_bias, **options)
    return out, Cache(**locals())


def gaussian_backward(dout, c):
    grads, ds = attend_backward(dout, c.core)
    dx, dk, dv = grads.pop("q") * c.inv, grads.pop("k"), grads.pop("v")
    dk = dk - c.k * c.inv * ds.sum(axis=2)[..., None]
    s = c.core.scale * c.core.dots + c.key_bias
    grads["log_sigma"] = -2 * (ds * s).sum(axis=(0, 2, 3))
    if c.values is None:
        dk = dk + dv
    else:
        grads["values"] = dv
    if c.keys is None:
        dx = dx + dk
    else:
        grads["keys"] = dk
    return {"x": dx, **grads}
