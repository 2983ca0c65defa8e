"""Every mechanism as its paper writes it, dense, in arithmetic that gives the same bits on every machine.

IEEE 754 fixes +, -, *, / and sqrt to the last bit; exp and log are made from these, and sums run in a stated order. The
same code in a narrower precision says how wrong plain arithmetic is there.
"""
import math
from typing import NamedTuple

import numpy as np

from minattn import masks

EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


class Arithmetic(NamedTuple):
    """Every tensor operation is rounded to `name`; products and sums add up in float32 (float64 for the answers).

    backwards  sums run from the last term to the first
    fused      the other usual way to write a step: q scaled before the product, rowsum(dout * out), |x|^2 apart
    noise      a generator: whatever is not exact goes up or down at random
    """
    name: str = "float64"
    backwards: bool = False
    fused: bool = False
    noise: np.random.Generator | None = None

    def round(self, x):
        if self.name == "float64":
            return x
        y = self._nearest(x)
        if self.noise is not None:
            y = np.where(y == x, y, self._nearest(x * (1 + EPS[self.name] * (self.noise.random(np.shape(x)) - 0.5))))
        return y

    def _nearest(self, x):
        if self.name != "bfloat16":
            return x.astype(self.name).astype(float)
        bits = x.astype(np.float32).view(np.uint32)
        even = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)       # to nearest, ties to even
        return np.where(np.isfinite(x), even.view(np.float32), x).astype(float)

    def sum(self, x):
        """Over the last axis."""
        return self.dot(x[..., None, :], np.ones((x.shape[-1], 1)))[..., 0, 0]

    def dot(self, a, b):
        """(.., I, N), (.., N, J) -> (.., I, J), adding up one term after another."""
        if self.name != "float64":
            a, b = a.astype(np.float32), b.astype(np.float32)
        terms = a[..., :, :, None] * b[..., None, :, :]
        terms = terms[..., ::-1, :] if self.backwards else terms
        return self.round(np.add.accumulate(terms, axis=-2)[..., -1, :].astype(float))

    def exp(self, x):
        inside = np.clip(x, -700, 700)
        n = np.rint(inside * 1.4426950408889634)
        r = inside - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10     # ln 2 in two parts, exact in n
        y = 0.0
        for k in range(16, -1, -1):
            y = y * r + 1 / math.factorial(k)
        return self.round(np.where(x < -700, 0.0, np.ldexp(y, n.astype(int))))

    def log(self, x):
        m, e = np.frexp(x)
        return self.round(_atanh2((m - 1) / (m + 1)) + e * 0.6931471805599453)

    def log_sigmoid(self, u):
        e = Arithmetic().exp(-np.abs(u))
        return self.round(np.minimum(u, 0) - _atanh2(e / (2 + e)))                  # log(1 + e)

    def sigmoid(self, u):
        e = Arithmetic().exp(-np.abs(u))
        return self.round(np.where(u < 0, e, 1) / (1 + e))


def _atanh2(z):
    """2 atanh(z) for |z| <= 1/3: log x = 2 atanh((x - 1) / (x + 1))"""
    y = np.zeros_like(z)
    for k in range(39, 0, -2):
        y = y * z * z + 1 / k
    return 2 * z * y


def answers(mechanism, attributes, x, ar):
    """Output, gradients and intermediates of one case, all dense; x holds its inputs and "dout", axes in front allowed.

    scores  (B, H, Tq, Tk), -inf where hidden; P their softmax; lse the log of its denominator; delta = rowsum(P * dP)
    """
    r, scale = ar.round, attributes.get("scale")
    q, k, v = ("x", "keys", "values") if mechanism == "gaussian" else ("q", "k", "v")
    q, k = x[q], x.get(k, x[q])
    v, dout, sink, bias = x.get(v, k), x["dout"], x.get("sink"), x.get("bias")
    (B, H, Tq, _), Tk = q.shape[-4:], k.shape[-2]
    rules = {name: attributes[name] for name in ("causal", "window", "prefix", "align")}
    seen = np.broadcast_to(masks.visible(Tq, Tk, **rules), (B, H, Tq, Tk)) & x.get("allowed", True)
    if mechanism == "off_by_one":
        sink = np.zeros(H)

    if mechanism == "gaussian":                                                  # 1. s = -|x_i - x_j|^2 / (2 sigma^2)
        inv = ar.exp(-2 * x["log_sigma"])[:, None, None]
        if ar.fused:
            far = [r(ar.sum(y * y) * (-0.5 * inv[:, 0])) for y in (q, k)]
            own = r(ar.dot(r(q * inv), _T(k)) + far[1][..., None, :])
            s = r(own + far[0][..., None])
        else:
            apart = r(q[..., :, None, :] - k[..., None, :, :])                   # (B, H, Tq, Tk, D)
            own = s = r(ar.sum(apart * apart) * (-0.5 * inv))
    else:                                                                        # 1. s = scale q k^T
        s = ar.dot(r(q * scale), _T(k)) if ar.fused else r(ar.dot(q, _T(k)) * scale)
    if mechanism == "energy":                                                    #    ... + log g
        p = np.clip(masks.positions(Tq, Tk, attributes["align"]), 0, Tk - 1)
        gate, gate_backward = _energy_gate(x["energy"], x["alpha"], x["tau"], attributes["norm"], p, ar)
        s = r(s + gate)
    if bias is not None:
        s = r(s + bias)
    s = np.where(seen, s, -np.inf)
    m = s.max(axis=-1)                                                           # 2. P = softmax(s), with a sink
    m = m if sink is None else np.maximum(m, sink[:, None])
    m = np.where(m == -np.inf, 0, m)
    e = ar.exp(r(s - m[..., None]))
    total = ar.sum(e) if sink is None else r(ar.sum(e) + ar.exp(r(sink[:, None] - m)))
    some = total > 0
    P = r(e / np.where(some, total, 1)[..., None])
    lse = np.where(some, r(m + ar.log(np.where(some, total, 1))), -np.inf)
    Pv = out = ar.dot(P, v)                                                      # 3. P v
    if mechanism == "gated":                                                     # 4. what the paper does with it
        g = ar.sigmoid(x["gate_logits"])
        out = r(Pv * g)
    if mechanism == "affine":
        alpha, slope = _phi(x["alpha_logits"], attributes["phi"], ar)
        N = {"total": Tk, "visible": np.maximum(seen.sum(-1), 1)}.get(attributes["length"], attributes["length"])
        beta, S = r((x["alpha_ma"][:, None] - alpha) / N)[..., None], ar.dot(seen.astype(float), v)
        out = r(r(alpha[..., None] * Pv) + r(beta * S))

    grads, dPv, dv = {}, dout, 0
    # 4.
    if mechanism == "gated":
        dgate = r(dout * Pv) if x["gate_logits"].shape[-1] > 1 else ar.sum(dout * Pv)[..., None]
        grads["gate_logits"], dPv = r(dgate * r(g * (1 - g))), r(dout * g)
    if mechanism == "affine":
        grads["alpha_logits"] = r(r(ar.sum(dout * Pv) - r(ar.sum(dout * S) / N)) * slope)
        dPv, dv = r(dout * alpha[..., None]), ar.dot(_T(seen.astype(float)), r(dout * beta))
    # 3. Pv = P v
    dv = r(ar.dot(_T(P), dPv) + dv)
    dP = ar.dot(dPv, _T(v))
    # 2. P = softmax(s)
    delta = ar.sum(r(dPv * Pv)) if ar.fused else ar.sum(r(P * dP))
    ds = r(P * r(dP - delta[..., None]))
    if "sink" in x:
        grads["sink"] = -_sum_to(r(ar.exp(r(sink[:, None] - np.where(some, lse, 0))) * delta)[..., None], (H,), ar)
    # 1.
    if bias is not None:
        grads["bias"] = _sum_to(ds, bias.shape[-4:], ar)
    if mechanism == "energy":
        grads.update(gate_backward(ds))
    if mechanism == "gaussian":
        dq = ar.dot(ds, k)
        dq = r((dq if ar.fused else r(dq - r(q * ar.sum(ds)[..., None]))) * inv)                # a row of ds sums to 0
        dk = r((ar.dot(_T(ds), q) - r(k * ar.sum(_T(ds))[..., None])) * inv)
        grads["log_sigma"] = -2 * _sum_to(r(ds * own), (H,), ar)
        if "values" in x:
            grads["values"] = dv
        else:
            dk = r(dk + dv)
        grads.update({"x": dq, "keys": dk} if "keys" in x else {"x": r(dq + dk)})
    else:
        grads.update(q=r(ar.dot(ds, k) * scale), k=r(ar.dot(_T(ds), q) * scale), v=dv)
    grads = {"d" + name: grads[name] for name in x if name in grads}
    return {"out": out, **grads, "scores": s, "P": P, "lse": lse, "delta": delta}


def _energy_gate(e, alpha, tau, norm, p, ar):
    """log sigmoid(alpha (z - tau)) of (B, H, 1 or Tq, Tk), and the function that takes its gradient back."""
    Tk, alpha, tau = e.shape[-1], alpha[:, None, None], tau[:, None, None]
    z = e[..., None, :]
    if norm != "none":
        last = {"key": np.arange(Tk), "prefix": p, "sequence": np.array([Tk - 1])}[norm]
        member = (np.arange(Tk) <= last[:, None]).astype(float)                  # (Q, Tk) whose statistics hold whom
        n = (last + 1.0)[:, None]
        mean = ar.round(ar.dot(z, member.T)[..., 0, :, None] / n)                # (B, H, Q, 1)
        c = ar.round(z - mean)
        std = np.sqrt(ar.round(ar.sum(member * c * c)[..., None] / n) + (0 if norm == "sequence" else 1e-8))
        rstd = ar.round(1 / np.maximum(std, 1e-8) if norm == "sequence" else np.where(n > 1, 1 / std, 0))
        z = ar.round(c * rstd)                                                   # (B, H, Q, Tk)
        if norm == "key":
            z = np.diagonal(z, axis1=-2, axis2=-1)[..., None, :]
    u = ar.round(alpha * ar.round(z - tau))

    def backward(ds):
        du = ar.round(_sum_to(ds, u.shape[-4:], ar) * ar.sigmoid(-u))
        grads = {"alpha": _sum_to(ar.round(du * (z - tau)), alpha.shape[:1], ar),
                 "tau": -_sum_to(ar.round(du * alpha), alpha.shape[:1], ar)}
        dz = ar.round(du * alpha)
        if norm == "none":
            return {"energy": dz[..., 0, :], **grads}
        dz = dz * np.eye(Tk) if norm == "key" else dz                            # (B, H, Q, Tk)
        dc = ar.round(dz * rstd)
        dvar = ar.round(-0.5 * rstd * rstd * rstd * ar.sum(dz * c)[..., None])
        dvar = np.where(std < 1e-8, 0, dvar) if norm == "sequence" else dvar
        de = dc + member / n * ar.round(2 * dvar * c - ar.sum(dc)[..., None])
        return {"energy": ar.sum(_T(de)), **grads}

    return ar.log_sigmoid(u), backward


def _phi(x, phi, ar):
    if phi == "sigmoid":
        y = ar.sigmoid(x)
        return y, ar.round(y * (1 - y))
    return ar.round(np.clip(x / 10 + 0.5, 0, 1)), np.where(np.abs(x) < 5, 0.1, 0)


def _T(x):
    return x.swapaxes(-1, -2)


def _sum_to(x, shape, ar):
    """Undo broadcasting: x (.., B, H, I, J) -> (.., *shape); a shape of one axis (H,) stands for (1, H, 1, 1)."""
    full = (1, *shape, 1, 1) if len(shape) == 1 else shape
    axes = [a - 4 for a in range(4) if full[a] == 1 and x.shape[a - 4] > 1]
    lead, keep = x.shape[:-4], x.ndim - len(axes)
    if axes:
        x = np.moveaxis(x, axes, range(-len(axes), 0))
        x = ar.sum(x.reshape(*x.shape[:keep], -1))
    return x.reshape(*lead, *shape)
