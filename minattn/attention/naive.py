"""Every mechanism once as a dense formula, forward and backward. Read this first.

    s = scale q k^T + bias        P = rule(s), row by row, over the visible keys        out = P v

The rule is the softmax unless a mechanism brings another: a pair of functions, as in `weigh`.

Whole (Tq, Tk) arrays of scores and weights, one line per step, nothing fast: the other files of
this folder compute the same numbers in tiles. Each backward undoes its forward from the last line
to the first; `dx` is the gradient of sum(dout * out) with respect to x. The cache `c` holds every
local variable of the forward.

Shapes: q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv), out and dout (B, H, Tq, Dv); G divides
H. Axes are counted from the end, so there may be more of them in front. The validation kit takes
three things from here: the error of plain arithmetic in each dtype, the golden vectors, and the
text that its wrong implementations are made from.
"""
from types import SimpleNamespace as Cache

import numpy as np

# ---------------------------------------------------------------------- shared by all


def visible(Tq, Tk, *, causal=False, window=None, prefix=0, align="end"):
    """Which key may each query see? -> bool (Tq, Tk)   (the rules: minattn.masks)"""
    p = np.arange(Tq)[:, None] + (Tk - Tq if align == "end" else 0)     # queries  (Tq, 1)
    j = np.arange(Tk)                                                   # keys     (Tk,)
    see = np.ones((Tq, Tk), bool)
    if causal or window is not None:
        see = (j <= p) | ((j < prefix) & (p < prefix))
    if window is not None:
        see &= j > p - window
    return see


def weigh(s, v, *, bias=None, sink=None, allowed=True, rule=None, **mask):
    """Scores s (B, H, Tq, Tk) -> out, cache: their softmax, and the average of the values.

    rule: (rows, rows_backward) in the place of the softmax: rows(s, see) -> P, saved and
    rows_backward(dP, P, saved) -> ds. s is -inf where `see` is False.
    """
    groups = v.shape[-3]
    v = repeat(v, s.shape[-3])
    if bias is not None:
        s = s + bias
    raw = s
    Tq, Tk = s.shape[-2:]
    see = np.broadcast_to(visible(Tq, Tk, **mask) & allowed, s.shape)
    s = np.where(see, s, -np.inf)
    if rule is not None:
        P, saved = rule[0](s, see)
    else:
        m = s.max(axis=-1, keepdims=True)                       # exp(s - m) cannot overflow
        if sink is not None:
            m = np.maximum(m, per_head(sink))
        m = np.where(m == -np.inf, 0, m)                        # a row that sees no key
        e = np.exp(s - m)
        total = e.sum(axis=-1, keepdims=True)
        if sink is not None:
            e_sink = np.exp(per_head(sink) - m)
            total = total + e_sink
        total = np.where(total == 0, 1, total)
        P = e / total
        lse = m + np.log(total)
    out = P @ v
    return out, Cache(**locals())


def weigh_backward(dout, c):
    """dout -> {"v"} and, where given, {"bias", "sink"}; and ds (B, H, Tq, Tk)"""
    P = c.P
    dv = T(P) @ dout
    dP = dout @ T(c.v)
    if c.rule is not None:
        ds = c.rule[1](dP, P, c.saved)
    else:
        delta = (dout * c.out).sum(axis=-1, keepdims=True)      # equals sum_j P_ij dP_ij
        if hasattr(c, "dlse"):                                  # (B, H, Tq): lse is an output too
            delta = delta - c.dlse[..., None]
        c.delta = delta
        ds = P * (dP - delta)
    grads = {"v": sum_groups(dv, c.groups)}
    if c.sink is not None:                                      # a key with value 0: its dP is 0
        P_sink = c.e_sink / c.total
        grads["sink"] = -(P_sink * delta).sum(axis=(-4, -2, -1))
    if c.bias is not None:
        grads["bias"] = sum_to(ds, c.bias.shape)
    return grads, ds


def scores(q, k, *, scale=None, softcap=None, log_length=None, see=None):
    """s = scale q k^T, times log_length_h log n_i, capped: softcap tanh(s / softcap)

    see: bool, whose rows hold the n_i keys that count for log_length
    """
    groups = k.shape[-3]
    k = repeat(k, q.shape[-3])
    if scale is None:
        scale = q.shape[-1] ** -0.5
    dots = q @ T(k)                                             # (Tq, D), (D, Tk) -> (Tq, Tk)
    s = scale * dots
    if log_length is not None:
        n_keys = see.sum(axis=-1, keepdims=True).astype(q.dtype)
        log_n = np.log(np.maximum(n_keys, 1))
        unscaled = s
        s = per_head(log_length) * log_n * s
    if softcap is not None:
        capped = np.tanh(s / softcap)
        s = softcap * capped
    return s, Cache(**locals())


def scores_backward(ds, c):
    """ds -> {"q", "k"} and, where given, {"log_length"}"""
    grads = {}
    if c.softcap is not None:
        ds = ds * (1 - c.capped * c.capped)
    if c.log_length is not None:
        grads["log_length"] = (ds * c.unscaled * c.log_n).sum(axis=(-4, -2, -1))
        ds = per_head(c.log_length) * c.log_n * ds
    dq = c.scale * (ds @ c.k)
    dk = c.scale * (T(ds) @ c.q)
    return {"q": dq, "k": sum_groups(dk, c.groups), **grads}


def attend(q, k, v, *, scale=None, softcap=None, log_length=None, rescore=None, own_bias=0,
           **options):
    """Dot-product scores, then `weigh`.

    rescore: (f, f_backward), what a mechanism does to the scores: f(s) -> s, saved and
    f_backward(ds, saved) -> ds. own_bias: what it adds to them.
    """
    see = rows_that_see(q.shape[-2], k.shape[-2], **options)
    s, dots = scores(q, k, scale=scale, softcap=softcap, log_length=log_length, see=see)
    if rescore is not None:
        s, rescored = rescore[0](s)
    s = s + own_bias
    out, core = weigh(s, v, **options)
    return out, Cache(**locals())


def attend_backward(dout, c):
    """dout -> {"q", "k", "v"} and, where given, more; and ds (B, H, Tq, Tk), that of own_bias"""
    grads, ds = weigh_backward(dout, c.core)
    drescored = ds
    if c.rescore is not None:
        drescored = c.rescore[1](ds, c.rescored)
    return {**scores_backward(drescored, c.dots), **grads}, ds


def rows_that_see(Tq, Tk, *, allowed=True, bias=None, sink=None, rule=None, **mask):
    """`visible` and `allowed`, from the options of `weigh`"""
    return visible(Tq, Tk, **mask) & allowed


def repeat(x, H):
    """(B, G, T, D) -> (B, H, T, D): query head h reads head h // (H / G)"""
    return np.repeat(x, H // x.shape[-3], axis=-3)


def sum_groups(dx, G):
    """(B, H, T, D) -> (B, G, T, D), summed over the query heads that share a head"""
    *B, H, T, D = dx.shape
    return dx.reshape(*B, G, H // G, T, D).sum(axis=-3)


def T(x):
    """Swap the last two axes."""
    return x.swapaxes(-1, -2)


def per_head(x):
    """One number per head, (H,) -> (1, H, 1, 1)"""
    return x[..., None, :, None, None]


def sum_to(x, shape):
    """Sum x (B, H, Tq, Tk) over the axes along which an array of this shape was broadcast."""
    full = (1,) * (4 - len(shape)) + shape
    axes = tuple(i for i in range(-4, 0) if full[i] == 1 and x.shape[i] > 1)
    return x.sum(axis=axes, keepdims=True).reshape(x.shape[:-4] + shape)


def sigmoid(x):
    e = np.exp(-np.abs(x))                                      # at most 1
    return np.where(x < 0, e, 1) / (1 + e)


# ----------------------------------------------------------------- one mechanism each


def softmax_forward(q, k, v, **options):
    """out = softmax(scale q k^T) v"""
    return attend(q, k, v, **options)


def softmax_backward(dout, c):
    return attend_backward(dout, c)[0]


def off_by_one_forward(q, k, v, **options):
    """P_ij = exp(s_ij) / (1 + sum_k exp(s_ik)): a sink at 0"""
    zero = np.zeros(q.shape[-3], q.dtype)
    return attend(q, k, v, sink=zero, **options)


def off_by_one_backward(dout, c):
    grads, _ = attend_backward(dout, c)
    del grads["sink"]                                           # a constant
    return grads


def sink_forward(q, k, v, sink, **options):
    """P_ij = exp(s_ij) / (exp(sink_h) + sum_k exp(s_ik))        sink (H,)"""
    return attend(q, k, v, sink=sink, **options)


def sink_backward(dout, c):
    return attend_backward(dout, c)[0]


def gated_forward(q, k, v, gate_logits, **options):
    """out = (P v) * sigmoid(gate_logits)        gate_logits (B, H, Tq, Dv or 1)"""
    Pv, core = attend(q, k, v, **options)
    g = sigmoid(gate_logits)
    out = Pv * g
    return out, Cache(**locals())


def gated_backward(dout, c):
    dg = sum_to(dout * c.Pv, c.g.shape[-4:])
    dPv = dout * c.g
    grads, _ = attend_backward(dPv, c.core)
    grads["gate_logits"] = dg * c.g * (1 - c.g)
    return grads


def affine_forward(q, k, v, alpha_logits, alpha_ma, *, phi="linear_clip", length="total",
                   **options):
    """out_i = alpha_i (P v)_i + beta_i sum_{visible j} v_j

    alpha_logits (B, H, Tq); alpha_ma (H,), a constant
    """
    Pv, core = attend(q, k, v, **options)
    x = alpha_logits[..., None]                                 # (B, H, Tq, 1)
    if phi == "sigmoid":
        alpha = sigmoid(x)
        slope = alpha * (1 - alpha)
    else:
        alpha = np.clip(x * 0.1 + 0.5, 0, 1)
        slope = np.where(np.abs(x) < 5, 0.1, 0).astype(x.dtype)
    see = core.core.see.astype(q.dtype)
    if length == "total":
        n = k.shape[-2]
    elif length == "visible":
        n = np.maximum(see.sum(axis=-1, keepdims=True), 1)
    else:
        n = length
    beta = (per_head(alpha_ma) - alpha) / n
    values = repeat(v, q.shape[-3])
    S = see @ values                                            # sum of the visible values
    out = alpha * Pv + beta * S
    return out, Cache(**locals())


def affine_backward(dout, c):
    dPv = c.alpha * dout
    grads, _ = attend_backward(dPv, c.core)
    dvalues = T(c.see) @ (c.beta * dout)
    grads["v"] = grads["v"] + sum_groups(dvalues, c.v.shape[-3])
    dbeta = (dout * c.S).sum(axis=-1, keepdims=True)
    dalpha = (dout * c.Pv).sum(axis=-1, keepdims=True) - dbeta / c.n
    grads["alpha_logits"] = (dalpha * c.slope)[..., 0]
    return grads


def energy_forward(q, k, v, energy, alpha, tau, *, norm="key", **options):
    """A bias log sigmoid(alpha (z_j - tau)) on key j        energy (B, H, Tk), alpha (H,), tau (H,)

    z is the energy less its mean, over its deviation, both taken over the keys 1..last: up to the
    key itself (norm="key"), up to the query ("prefix"), all keys ("sequence"); "none": z = energy.
    """
    Tq, Tk = q.shape[-2], k.shape[-2]
    p = np.arange(Tq) + (Tk - Tq if options.get("align", "end") == "end" else 0)
    last = np.arange(Tk)
    if norm == "prefix":
        last = p
    if norm in ("sequence", "none"):
        last = np.array([Tk - 1])
    member = np.arange(Tk) <= last[:, None]                     # keys of N statistics  (N, Tk)
    n = np.maximum(member.sum(axis=-1), 1)[:, None].astype(q.dtype)
    e = energy[..., None, :]                                    # (B, H, 1, Tk)
    mean = (e * member).sum(axis=-1, keepdims=True) / n         # (B, H, N, 1)
    centred = (e - mean) * member
    var = (centred * centred).sum(axis=-1, keepdims=True) / n
    if norm == "sequence":
        rstd = 1 / np.maximum(np.sqrt(var), 1e-8)
    else:
        rstd = np.where(n > 1, 1 / np.sqrt(var + 1e-8), 0)
    if norm == "none":
        mean, rstd = np.zeros_like(mean), np.ones_like(rstd)
    if norm == "key":                                           # each belongs to a key
        mean, rstd = T(mean), T(rstd)
    z = (e - mean) * rstd                                       # (B, H, 1 or Tq, Tk)
    above = z - per_head(tau)
    u = per_head(alpha) * above
    log_g = np.minimum(u, 0) - np.log1p(np.exp(-np.abs(u)))     # log sigmoid(u)
    out, core = attend(q, k, v, own_bias=log_g, **options)
    return out, Cache(**locals())


def energy_backward(dout, c):
    grads, ds = attend_backward(dout, c.core)
    du = sum_to(ds, c.u.shape[-4:]) * sigmoid(-c.u)
    grads["alpha"] = (du * c.above).sum(axis=(-4, -2, -1))
    grads["tau"] = -(du * per_head(c.alpha)).sum(axis=(-4, -2, -1))
    dz = du * per_head(c.alpha)
    de = dz * c.rstd
    if c.norm != "none":
        dmean = -sum_to(dz * c.rstd, c.mean.shape[-4:])
        drstd = sum_to(dz * (c.e - c.mean), c.mean.shape[-4:])
        rstd = c.rstd
        if c.norm == "key":                                     # back to one row a statistic
            dmean, drstd, rstd = T(dmean), T(drstd), T(rstd)
        dvar = -0.5 * drstd * rstd**3
        if c.norm == "sequence":
            dvar = np.where(np.sqrt(c.var) >= 1e-8, dvar, 0)    # constant on the floor
        inner = dmean / c.n + 2 * c.centred * dvar / c.n
        de = de.sum(axis=-2, keepdims=True) + (inner * c.member).sum(axis=-2, keepdims=True)
    grads["energy"] = de[..., 0, :]
    return grads


def gaussian_forward(x, log_sigma, *, keys=None, values=None, **options):
    """s_ij = -|x_i - key_j|^2 / (2 sigma^2), the softmax of s, the average of the values

    x (B, H, Tq, D), log_sigma (H,); keys (B, H, Tk, D) are x unless given, values (B, H, Tk, Dv)
    are the keys unless given. |x - key|^2 = |x|^2 + |key|^2 - 2 x.key: no (Tq, Tk, D) array.
    """
    k = x if keys is None else keys
    v = k if values is None else values
    x2 = (x * x).sum(axis=-1)[..., :, None]                     # (B, H, Tq, 1)
    k2 = (k * k).sum(axis=-1)[..., None, :]                     # (B, H, 1, Tk)
    distance2 = x2 + k2 - 2 * (x @ T(k))                        # (B, H, Tq, Tk)
    inv = np.exp(-2 * per_head(log_sigma))                      # 1 / sigma^2
    s = -0.5 * inv * distance2
    out, core = weigh(s, v, **options)
    return out, Cache(**locals())


def gaussian_backward(dout, c):
    grads, ds = weigh_backward(dout, c.core)
    dv = grads.pop("v")
    grads["log_sigma"] = -2 * (ds * c.s).sum(axis=(-4, -2, -1))
    dd = -0.5 * c.inv * ds                                      # of distance2
    dx = 2 * (c.x * dd.sum(axis=-1)[..., None] - dd @ c.k)
    dk = 2 * (c.k * dd.sum(axis=-2)[..., None] - T(dd) @ c.x)
    return {**grads, **by_role(dx, dk, dv, c)}


def by_role(dx, dk, dv, c):
    """x is query, key and value at once unless keys or values are given: gradients add up."""
    grads = {}
    if c.values is None:
        dk = dk + dv
    else:
        grads["values"] = dv
    if c.keys is None:
        dx = dx + dk
    else:
        grads["keys"] = dk
    return {"x": dx, **grads}


def differential_forward(q, k, v, lam_logits, **options):
    """out_h = P_2h v_h - sigmoid(lam_logits)_h P_2h+1 v_h

    q (B, 2H, Tq, D); lam_logits (B, H, Tq)
    """
    first, c1 = attend(q[..., 0::2, :, :], k, v, **options)
    second, c2 = attend(q[..., 1::2, :, :], k, v, **options)
    lam = sigmoid(lam_logits)[..., None]                        # (B, H, Tq, 1)
    out = first - lam * second
    return out, Cache(**locals())


def differential_backward(dout, c):
    dfirst, dsecond = dout, -c.lam * dout
    dlam = -(dout * c.second).sum(axis=-1, keepdims=True)
    one, _ = attend_backward(dfirst, c.c1)
    two, _ = attend_backward(dsecond, c.c2)
    grads = {name: one[name] + two[name] for name in one}
    grads["q"] = in_turn(one["q"], two["q"])
    grads["lam_logits"] = (dlam * c.lam * (1 - c.lam))[..., 0]
    return grads


def differential_1_forward(q, k, v, lam_q1, lam_k1, lam_q2, lam_k2, gain, *, layer_index=0,
                           **options):
    """out_h = (1 - start) gain * rms_norm(P_2h v_h - lam P_2h+1 v_h)

    lam = exp(lam_q1 . lam_k1) - exp(lam_q2 . lam_k2) + start, start = 0.8 - 0.6 exp(-0.3 layer)
    q (B, 2H, Tq, D), k (B, 2H, Tk, D), v (B, H, Tk, Dv); lam_q1, ... (D,), gain (Dv,)
    """
    first, c1 = attend(q[..., 0::2, :, :], k[..., 0::2, :, :], v, **options)
    second, c2 = attend(q[..., 1::2, :, :], k[..., 1::2, :, :], v, **options)
    start = float(0.8 - 0.6 * np.exp(-0.3 * layer_index))
    e1 = np.exp((lam_q1 * lam_k1).sum(axis=-1, keepdims=True))
    e2 = np.exp((lam_q2 * lam_k2).sum(axis=-1, keepdims=True))
    lam = (e1 - e2 + start)[..., None, None, None]              # (1, 1, 1, 1)
    Y = first - lam * second
    rms = np.sqrt((Y * Y).sum(axis=-1, keepdims=True) / Y.shape[-1] + 1e-5)
    Yhat = Y / rms
    g = (1 - start) * gain[..., None, None, None, :]
    out = Yhat * g
    return out, Cache(**locals())


def differential_1_backward(dout, c):
    dgain = (1 - c.start) * (dout * c.Yhat).sum(axis=(-4, -3, -2))
    dYhat = dout * c.g
    along = (dYhat * c.Yhat).sum(axis=-1, keepdims=True) / c.Y.shape[-1]
    dY = (dYhat - c.Yhat * along) / c.rms
    dfirst, dsecond = dY, -c.lam * dY
    dlam = -(dY * c.second).sum(axis=(-4, -3, -2, -1))[..., None]
    one, _ = attend_backward(dfirst, c.c1)
    two, _ = attend_backward(dsecond, c.c2)
    grads = {name: one[name] + two[name] for name in one}
    grads["q"] = in_turn(one["q"], two["q"])
    grads["k"] = in_turn(one["k"], two["k"])
    d1, d2 = dlam * c.e1, -dlam * c.e2
    grads["lam_q1"], grads["lam_k1"] = d1 * c.lam_k1, d1 * c.lam_q1
    grads["lam_q2"], grads["lam_k2"] = d2 * c.lam_k2, d2 * c.lam_q2
    grads["gain"] = dgain
    return grads


def in_turn(a, b):
    """Heads of a and b in turn: (B, H, T, D) twice -> (B, 2H, T, D)"""
    *B, H, T, D = a.shape
    return np.stack((a, b), axis=-3).reshape(*B, 2 * H, T, D)


def collaborative_forward(q, k, v, mix, content, **options):
    """s_hij = (sum_e mix_he q_ie k_je + content_hj) / sqrt(D/H)

    q (B, 1, Tq, D), k (B, 1, Tk, D), mix (H, D), content (B, H, Tk)
    """
    H, D = mix.shape[-2:]
    root = (H / D) ** 0.5
    mixed = q * mix[..., None, :, None, :]                      # (B, H, Tq, D)
    key_bias = root * content[..., None, :]                     # (B, H, 1, Tk)
    out, core = attend(mixed, k, v, scale=root, own_bias=key_bias, **options)
    return out, Cache(**locals())


def collaborative_backward(dout, c):
    grads, ds = attend_backward(dout, c.core)
    dkey_bias = ds.sum(axis=-2)
    grads["content"] = c.root * dkey_bias
    dmixed = grads["q"]
    grads["mix"] = (dmixed * c.q).sum(axis=(-4, -2))
    grads["q"] = (dmixed * c.mix[..., None, :, None, :]).sum(axis=-3, keepdims=True)
    return grads


def linear_forward(q, k, v, *, feature="elu", norm="rms", **options):
    """P_ij = kappa_ij / sum_k kappa_ik, kappa_ij = phi(q_i) . phi(k_j): the softmax of log kappa

    feature="elu": phi(x) = x + 1 above 0, e^x elsewhere. "lln": phi(q) = e^(alpha q), phi(k) =
    e^(beta k), both less their largest exponent, which for a key comes back as a bias; norm="rms"
    divides q and k by their root mean squares, "tensor" takes the variances of all numbers of q and
    of k.
    """
    C1, C2 = 0.35487039, 2 * 0.14855178
    key_bias = 0
    if feature == "elu":
        phi_q = np.where(q > 0, q + 1, np.exp(np.minimum(q, 0)))
        phi_k = np.where(k > 0, k + 1, np.exp(np.minimum(k, 0)))
    else:
        if norm == "rms":
            alpha = beta = ((1 + C1) / C2) ** 0.5
            scaled_q, scaled_k = rms_norm(q), rms_norm(k)
        else:
            scaled_q, scaled_k = q, k
            from_mean_q, a = variance(q)
            from_mean_k, b = variance(k)
            alpha, beta = np.sqrt((b + C1 / a) / C2), np.sqrt((a + C1 / b) / C2)
        x, y = alpha * scaled_q, beta * scaled_k
        top = y.max(axis=-1, keepdims=True)                     # (B, G, Tk, 1)
        phi_q = np.exp(x - x.max(axis=-1, keepdims=True))
        phi_k = np.exp(y - top)
        key_bias = T(repeat(top, q.shape[-3]))                  # (B, H, 1, Tk)
    log = log_positive, log_positive_backward
    out, core = attend(phi_q, phi_k, v, scale=1, rescore=log, own_bias=key_bias, **options)
    return out, Cache(**locals())


def linear_backward(dout, c):
    grads, _ = attend_backward(dout, c.core)
    dphi_q, dphi_k = grads["q"], grads["k"]
    if c.feature == "elu":
        return {**grads, "q": dphi_q * np.minimum(c.phi_q, 1), "k": dphi_k * np.minimum(c.phi_k, 1)}
    dx, dy = dphi_q * c.phi_q, dphi_k * c.phi_k
    dq, dk = c.alpha * dx, c.beta * dy
    if c.norm == "rms":
        dq, dk = rms_norm_backward(dq, c.q), rms_norm_backward(dk, c.k)
    else:
        every = (-4, -3, -2, -1)
        dalpha2 = (dx * c.q).sum(axis=every, keepdims=True) / (2 * c.alpha * c.C2)
        dbeta2 = (dy * c.k).sum(axis=every, keepdims=True) / (2 * c.beta * c.C2)
        da = dbeta2 - dalpha2 * c.C1 / (c.a * c.a)
        db = dalpha2 - dbeta2 * c.C1 / (c.b * c.b)
        dq = dq + np.where(c.a > 1e-12, da, 0) * 2 * c.from_mean_q / count(c.q)
        dk = dk + np.where(c.b > 1e-12, db, 0) * 2 * c.from_mean_k / count(c.k)
    return {**grads, "q": dq, "k": dk}


def log_positive(kappa):
    some = kappa > 0
    return np.where(some, np.log(np.where(some, kappa, 1)), -np.inf), kappa


def log_positive_backward(ds, kappa):
    return np.where(kappa > 0, ds / np.where(kappa > 0, kappa, 1), 0)


def rms_norm(x):
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True) / x.shape[-1] + 1e-6)


def rms_norm_backward(dy, x):
    y = rms_norm(x)
    rms = np.sqrt((x * x).sum(axis=-1, keepdims=True) / x.shape[-1] + 1e-6)
    return (dy - y * (dy * y).sum(axis=-1, keepdims=True) / x.shape[-1]) / rms


def variance(x):
    """Over the last four axes, at least 1e-12 -> each number less the mean, the variance"""
    every, n = (-4, -3, -2, -1), count(x)
    from_mean = x - x.sum(axis=every, keepdims=True) / n
    return from_mean, np.maximum((from_mean * from_mean).sum(axis=every, keepdims=True) / n, 1e-12)


def count(x):
    B, H, T, D = x.shape[-4:]
    return B * H * T * D


def cog_forward(q, k, v, *, scale=None, softcap=None, log_length=None, **options):
    """P = sign(s) softmax(|s| + bias)        a hidden key is hidden after the absolute value"""
    see = rows_that_see(q.shape[-2], k.shape[-2], **options)
    s, dots = scores(q, k, scale=scale, softcap=softcap, log_length=log_length, see=see)
    sign = np.sign(s)
    sizes = np.abs(s)

    def rows(sizes, see):
        A = softmax_rows(sizes)
        return sign * A, A

    def rows_backward(dP, P, A):
        return softmax_rows_backward(sign * dP, A)
    out, core = weigh(sizes, v, rule=(rows, rows_backward), **options)
    return out, Cache(**locals())


def cog_backward(dout, c):
    grads, dsizes = weigh_backward(dout, c.core)
    ds = c.sign * dsizes
    return {**grads, **scores_backward(ds, c.dots)}


def pointwise_forward(q, k, v, *, rule="relu", **options):
    """P_ij = max(s_ij, 0) / n_i, or sigmoid(s_ij - log n_i)        query i sees n_i keys"""
    def rows(s, see):
        n = np.maximum(see.sum(axis=-1, keepdims=True), 1).astype(s.dtype)
        if rule == "relu":
            return np.maximum(s, 0) / n, (s, n)
        return sigmoid(s - np.log(n)), (s, n)

    def rows_backward(dP, P, saved):
        s, n = saved
        if rule == "relu":
            return np.where(s > 0, dP / n, 0)
        return dP * P * (1 - P)
    return attend(q, k, v, rule=(rows, rows_backward), **options)


def pointwise_backward(dout, c):
    return attend_backward(dout, c)[0]


def sparse_forward(q, k, v, *, rule="topk", top=5, **options):
    """The softmax of the `top` largest scores, or P = max(z - tau, 0)^power, sum P = 1

    z = (s - max s) / power; sparsemax: power 1, entmax15: power 2
    """
    def rows(s, see):
        if rule == "topk":
            least = -np.sort(-s, axis=-1)[..., :top][..., -1:]
            least = least - 16 * np.finfo(s.dtype).eps * np.abs(least)
            return softmax_rows(np.where(s >= least, s, -np.inf)), None
        power = 1 if rule == "sparsemax" else 2
        largest = s.max(axis=-1, keepdims=True)
        z = (s - np.where(largest == -np.inf, 0, largest)) / power
        z = np.maximum(z, -2)                                   # such a key has no weight
        u = -np.sort(-z, axis=-1)
        j = np.arange(1, u.shape[-1] + 1).astype(s.dtype)
        if rule == "sparsemax":
            tau = (np.cumsum(u, axis=-1) - 1) / j               # if the first j have weight
        else:
            mean = np.cumsum(u, axis=-1) / j
            spread = np.cumsum(u * u, axis=-1) - j * mean * mean
            tau = mean - np.sqrt(np.maximum((1 - spread) / j, 0))
        n = np.maximum((tau < u).sum(axis=-1, keepdims=True), 1)
        P = np.maximum(z - np.take_along_axis(tau, n - 1, axis=-1), 0) ** power
        return np.where(see, P, 0), None

    def rows_backward(dP, P, saved):
        if rule == "topk":
            return softmax_rows_backward(dP, P)
        if rule == "sparsemax":
            slope = (P > 0).astype(P.dtype)
        else:
            slope = np.sqrt(P)
        total = slope.sum(axis=-1, keepdims=True)
        mean = (slope * dP).sum(axis=-1, keepdims=True) / np.where(total == 0, 1, total)
        return slope * (dP - mean)
    return attend(q, k, v, rule=(rows, rows_backward), **options)


def sparse_backward(dout, c):
    return attend_backward(dout, c)[0]


def softmax_rows(s):
    """The softmax of each row; hidden keys are -inf, and a row without others gives 0"""
    top = s.max(axis=-1, keepdims=True)
    numerators = np.exp(s - np.where(top == -np.inf, 0, top))
    sums = numerators.sum(axis=-1, keepdims=True)
    return numerators / np.where(sums == 0, 1, sums)


def softmax_rows_backward(dP, P):
    return P * (dP - (P * dP).sum(axis=-1, keepdims=True))


def lssa_forward(q, k, v, *, power=15, eps=1e-8, **options):
    """A = softplus(s) / sum, s = log D log n_i q.k / (|q| |k|); P = r^power / (sum r^power + eps)

    r = max(n_i A - 1, 0), or n_i A in rows that see at most three keys; power=0: P = A
    """
    q_norm, k_norm = norms(q), norms(k)
    ones = np.ones(q.shape[-3], q.dtype)
    D = q.shape[-1]

    def rows(s, see):
        n = np.maximum(see.sum(axis=-1, keepdims=True), 1).astype(q.dtype)
        a = np.maximum(s, 0) + np.log1p(np.exp(-np.abs(s)))     # softplus(s); 0 where s = -inf
        total = a.sum(axis=-1, keepdims=True)
        total = np.where(total == 0, 1, total)
        A = a / total
        offset = (n > 3).astype(q.dtype)
        r = np.maximum(n * A - offset, 0)
        m = r.max(axis=-1, keepdims=True)
        m = np.where(m == 0, 1, m)                              # every r is 0
        x = (r * (1 / m)) ** max(power, 1)                      # r^power may overflow
        rest = np.exp(float(np.log(eps)) - power * np.log(m))          # eps / m^power
        denominator = x.sum(axis=-1, keepdims=True) + rest
        P = x / denominator
        if power == 0:
            P = A
        return P, Cache(**locals())
    out, core = attend(q / q_norm, k / k_norm, v, scale=float(np.log(D)), log_length=ones,
                       rule=(rows, lambda dP, P, saved: lssa_rows_backward(dP, P, saved, power)),
                       **options)
    return out, Cache(**locals())


def lssa_rows_backward(dP, P, c, power):
    dA = dP
    if power > 0:
        dsum = (dP * (-P / c.denominator)).sum(axis=-1, keepdims=True)
        dx = dP / c.denominator + dsum
        g = c.x * dx                                            # m is a constant: P is free of it
        dr = power * g / np.where(c.r > 0, c.r, np.inf)
        dA = c.n * dr
    da = (dA - (c.A * dA).sum(axis=-1, keepdims=True)) / c.total
    slope = sigmoid(c.s)
    return da * slope


def lssa_backward(dout, c):
    grads, _ = attend_backward(dout, c.core)
    grads.pop("log_length", None)                               # ones, a constant
    grads["q"] = unit_backward(grads["q"], c.q, c.q_norm)
    grads["k"] = unit_backward(grads["k"], c.k, c.k_norm)
    return grads


def norms(x):
    """|x|, at least 1e-12: (B, H, T, D) -> (B, H, T, 1)"""
    return np.maximum(np.sqrt((x * x).sum(axis=-1, keepdims=True)), 1e-12)


def unit_backward(dunit, x, norm):
    """y = x / norm, where norm is |x| or a constant floor"""
    unit = x / norm
    along = (dunit * unit).sum(axis=-1, keepdims=True)
    along = np.where(norm > 1e-12, along, 0)
    return (dunit - along * unit) / norm


def forget_forward(q, k, v, forget_logits, **options):
    """A bias of sum log sigmoid(f_l) over l = j+1 .. i on key j        forget_logits (B, H, Tk)

    It is c_i - c_j with running sums c; query i stands at key position p_i (0 before the first).
    """
    Tq, Tk = q.shape[-2], k.shape[-2]
    p = np.arange(Tq) + (Tk - Tq if options.get("align", "end") == "end" else 0)
    own = np.arange(Tk) == np.clip(p, 0, Tk - 1)[:, None]       # (Tq, Tk)
    own = own.astype(q.dtype)
    f = forget_logits
    log_f = np.minimum(f, 0) - np.log1p(np.exp(-np.abs(f)))     # log sigmoid(f)
    c = np.cumsum(log_f, axis=-1)                               # (B, H, Tk)
    c_query = c @ T(own)                                        # (B, H, Tq)
    forgotten = c_query[..., :, None] - c[..., None, :]
    out, core = attend(q, k, v, own_bias=forgotten, **options)
    return out, Cache(**locals())


def forget_backward(dout, c):
    grads, ds = attend_backward(dout, c.core)
    dc = ds.sum(axis=-1) @ c.own - ds.sum(axis=-2)              # (B, H, Tk)
    dlog_f = np.cumsum(dc[..., ::-1], axis=-1)[..., ::-1]       # log f_l is in every c from l on
    grads["forget_logits"] = dlog_f * sigmoid(-c.f)
    return grads
