"""Every mechanism a third time: dense, literal, and with its gradients written out, in numbers of any width.

Whole score matrices, explicit weights, no tiles: what a straightforward program computes, rounded after every
operation by the `f` that stands around each one. Its errors are the yardstick of precision.py; truth is not made here.
Shapes are (..., B, H, T, D): in front there may be an axis of independent runs.
"""
import math

import numpy as np

from minattn import masks


def T(x):
    return x.swapaxes(-1, -2)


def head(x):
    """One number per head, (..., H) -> (..., 1, H, 1, 1)"""
    return x[..., None, :, None, None]


def visible(q, k, o):
    rules = {n: o[n] for n in ("causal", "window", "prefix", "align") if n in o}
    see = masks.visible(q.shape[-2], k.shape[-2], **rules) & o.get("allowed", True)
    return np.broadcast_to(see, (*q.shape[:-1], k.shape[-2]))


def weights(f, s, see, o, sink=None):
    """Scores -> P, and the weight of the sink."""
    if o["bias"] is not None:
        s = f(s + o["bias"])
    s = np.where(see, s, -np.inf)
    m = s.max(axis=-1, keepdims=True)
    m = m if sink is None else np.maximum(m, head(sink))
    m = np.where(m == -np.inf, 0, m)
    e = f(np.exp(f(s - m)))
    total = f.sum(e, -1, keepdims=True)
    e_sink = 0.0 if sink is None else f(np.exp(f(head(sink) - m)))
    total = f(total + e_sink)
    total = np.where(total == 0, 1, total)
    return f(e / total), f(e_sink / total)


def weights_back(f, dPv, Pv, P, v, o):
    """The gradient of Pv = P v -> that of the scores, of v and a bias, and what each row loses to the softmax."""
    delta = f.sum(f(dPv * Pv), -1, keepdims=True)            # rowsum(dout * out), as every tiled kernel takes it
    ds = f(P * f(f.matmul(dPv, T(v)) - delta))
    grads = {"v": f.matmul(T(P), dPv)}
    if o["bias"] is not None:
        shape = (1,) * (4 - o["bias"].ndim) + o["bias"].shape
        axes = [i for i in range(-4, 0) if shape[i] == 1 and ds.shape[i] != 1]
        grads["bias"] = (f.sum(ds, *axes) if axes else ds).reshape(*ds.shape[:-4], *o["bias"].shape)
    return ds, grads, delta


def dot_scores(f, q, k, o):
    scale = f(np.array(1 / math.sqrt(q.shape[-1]) if o["scale"] is None else o["scale"]))
    if o["early"]:
        return f.matmul(f(q * scale), T(k)), scale
    return f(f.matmul(q, T(k)) * scale), scale


def dot_scores_back(f, ds, q, k, scale):
    return {"q": f(f.matmul(ds, k) * scale), "k": f(f.matmul(T(ds), q) * scale)}


def softmax(f, a, o, dout, sink=None):
    q, k, v = a["q"], a["k"], a["v"]
    s, scale = dot_scores(f, q, k, o)
    P, P_sink = weights(f, s, visible(q, k, o), o, sink)
    out = f.matmul(P, v)
    ds, grads, delta = weights_back(f, dout, out, P, v, o)
    if sink is not None:
        grads["sink"] = -f.sum(f(P_sink * delta), -4, -2, -1)
    return {"out": out, **grads, **dot_scores_back(f, ds, q, k, scale)}


def sink(f, a, o, dout):
    return softmax(f, a, o, dout, a["sink"])


def off_by_one(f, a, o, dout):
    grads = softmax(f, a, o, dout, np.zeros(a["q"].shape[-3]))
    del grads["sink"]
    return grads


def sigmoid(f, x):
    return f(1 / f(1 + f(np.exp(-x))))


def gated(f, a, o, dout):
    gate = sigmoid(f, a["gate_logits"])
    grads = softmax(f, a, o, f(dout * gate))
    ungated = grads.pop("out")
    dgate = f(dout * ungated)
    dgate = f.sum(dgate, -1, keepdims=True) if gate.shape[-1] == 1 else dgate
    return {"out": f(ungated * gate), **grads, "gate_logits": f(dgate * f(gate * f(1 - gate)))}


def affine(f, a, o, dout):
    q, k, v, x = a["q"], a["k"], a["v"], a["alpha_logits"][..., None]
    see = visible(q, k, o)
    tenth = f(np.array(0.1))
    alpha = sigmoid(f, x) if o["phi"] == "sigmoid" else np.clip(f(f(tenth * x) + 0.5), 0, 1)
    slope = f(alpha * f(1 - alpha)) if o["phi"] == "sigmoid" else np.where(np.abs(x) < 5, tenth, 0)
    N = {"visible": np.maximum(see.sum(axis=-1, keepdims=True), 1), "total": k.shape[-2]}.get(o["length"], o["length"])
    beta = f(f(head(a["alpha_ma"]) - alpha) / N)
    s, scale = dot_scores(f, q, k, o)
    P, _ = weights(f, s, see, o)
    w = np.where(see, f(f(alpha * P) + beta), 0)             # may be negative, and need not sum to one
    ds, grads, _ = weights_back(f, f(alpha * dout), f.matmul(P, v), P, v, o)
    dw = f.matmul(dout, T(v))
    dbeta = f.sum(np.where(see, dw, 0), -1, keepdims=True)
    dalpha = f(f.sum(f(dw * P), -1, keepdims=True) - f(dbeta / N))
    grads = {**grads, "v": f.matmul(T(w), dout), "alpha_logits": f(dalpha * slope)[..., 0]}
    return {"out": f.matmul(w, v), **grads, **dot_scores_back(f, ds, q, k, scale)}


def energy(f, a, o, dout):
    q, k, v, e, norm = a["q"], a["k"], a["v"], a["energy"][..., None, :], o["norm"]
    Tk, alpha, tau = k.shape[-2], head(a["alpha"]), head(a["tau"])
    # N sets of keys to take mean and deviation over: those up to each key, those up to each query, or all
    p = masks.positions(q.shape[-2], Tk, o.get("align", "end"))
    last = {"sequence": np.array([Tk - 1]), "prefix": p}.get(norm, np.arange(Tk))
    member = np.arange(Tk) <= last[:, None]                                     # (N, Tk)
    n = np.maximum(member.sum(axis=-1), 1)[:, None]
    mean = f(f.sum(np.where(member, e, 0), -1, keepdims=True) / n)              # (B, H, N, 1)
    centred = np.where(member, f(e - mean), 0)
    var = f(f.sum(f(centred * centred), -1, keepdims=True) / n)
    rstd = f(1 / (np.maximum(f(np.sqrt(var)), 1e-8) if norm == "sequence" else f(np.sqrt(f(var + 1e-8)))))
    rstd = np.where((n > 1) | (norm == "sequence"), rstd, 0)
    if norm == "none":
        mean, rstd = np.zeros_like(mean), np.ones_like(rstd)
    of = T if norm in ("key", "none") else lambda x: x                          # as (query, key): by key, query, or one
    distance = f(e - of(mean))
    z = f(distance * of(rstd))                                                  # (B, H, 1 or Tq, Tk)
    u = f(alpha * f(z - tau))
    gate = f(np.minimum(u, 0) - f(np.log1p(f(np.exp(-np.abs(u))))))             # log sigmoid(u)
    s, scale = dot_scores(f, q, k, o)
    P, _ = weights(f, f(s + gate), visible(q, k, o), o)
    out = f.matmul(P, v)
    ds, grads, _ = weights_back(f, dout, out, P, v, o)
    du = f((ds if norm == "prefix" else f.sum(ds, -2, keepdims=True)) * sigmoid(f, -u))
    grads["alpha"] = f.sum(f(du * f(z - tau)), -4, -2, -1)
    grads["tau"] = -f.sum(f(du * alpha), -4, -2, -1)
    dz = f(du * alpha)
    de = f(dz * of(rstd))
    if norm != "none":
        per = T if norm == "key" else lambda x: f.sum(x, -1, keepdims=True)
        dmean = -per(de)                                                        # (B, H, N, 1)
        dvar = f(f(-0.5 * f(rstd * f(rstd * rstd))) * per(f(dz * distance)))
        dvar = np.where(var >= 1e-16, dvar, 0) if norm == "sequence" else dvar  # on the floor the deviation is constant
        inner = f(f(dmean / n) + f(f(2 * centred) * f(dvar / n)))
        de = f(f.sum(de, -2, keepdims=True) + f.sum(np.where(member, inner, 0), -2, keepdims=True))
    return {"out": out, **grads, "energy": de[..., 0, :], **dot_scores_back(f, ds, q, k, scale)}


def gaussian(f, a, o, dout):
    x = a["x"]
    k = a.get("keys", x)
    v = a.get("values", k)
    inv = head(f(np.exp(f(-2 * a["log_sigma"]))))
    half = f(f.sum(f(k * k), -1) / 2)[..., None, :]          # |key|^2 / 2: distances by products, as in fast kernels
    if o["early"]:
        s = f(f.matmul(f(x * inv), T(k)) - f(half * inv))    # without |x|^2, which a softmax does not feel
    else:
        mine = f(f.sum(f(x * x), -1) / 2)[..., None]
        s = -f(f(f(mine + half) - f.matmul(x, T(k))) * inv)  # -|x - key|^2 / (2 sigma^2)
    P, _ = weights(f, s, visible(x, k, o), o)
    out = f.matmul(P, v)
    ds, grads, _ = weights_back(f, dout, out, P, v, o)
    ddot = f(ds * inv)
    dx = f.matmul(ddot, k)
    if not o["early"]:
        dx = f(dx - f(x * f.sum(ddot, -1, keepdims=True)))   # the sum is 0 but for rounding
    dk = f(f.matmul(T(ddot), x) - f(k * f.sum(ddot, -2)[..., None]))
    dv = grads.pop("v")
    if "values" in a:
        grads["values"] = dv
    else:
        dk = f(dk + dv)
    if "keys" in a:
        grads["keys"] = dk
    else:
        dx = f(dx + dk)
    return {"out": out, "x": dx, "log_sigma": f(-2 * f.sum(f(ds * s), -4, -2, -1)), **grads}


PLAIN = {"softmax": softmax, "off_by_one": off_by_one, "sink": sink, "gated": gated, "affine": affine, "energy": energy,
         "gaussian": gaussian}
