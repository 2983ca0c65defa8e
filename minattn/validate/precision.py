"""How wrong may an implementation be? As wrong as the plainest one in the same precision, twice over, and no more.

    error <= 2 * (error of plain arithmetic + eps * max|truth|)      per tensor; truth is minattn's own, in float64

Plain arithmetic is a third formulation of every mechanism, dense and literal: whole score matrices, explicit weights,
explicit gradients, sums taken one term after another. It is computed here in numbers of any width, by rounding after
every operation (matrix products and sums add up in float32, as on any accelerator, and round at the end).

One run of plain arithmetic is one draw of luck: where it happens to be exact, the rule would demand exactness of
everybody. So it runs several times more with each rounding going up or down at random (Monte Carlo arithmetic: Parker
1997; CESTAC: Vignes 1993), which a result that needed no rounding does not feel, and the largest error counts.
"""
import math
import zlib
from typing import NamedTuple

import numpy as np

from minattn import attention, masks


class Format(NamedTuple):
    bits: int           # of the fraction
    largest: float
    tiny: float         # the smallest normal number
    wide: str           # in which sums and matrix products add up

    @property
    def eps(self):
        return 2.0**-self.bits


FORMATS = {
    "float16": Format(10, 65504.0, 2.0**-14, "float32"),
    "bfloat16": Format(7, (2 - 2.0**-7) * 2.0**127, 2.0**-126, "float32"),
    "float32": Format(23, float(np.finfo(np.float32).max), 2.0**-126, "float32"),
    "float64": Format(52, float(np.finfo(np.float64).max), 2.0**-1022, "float64"),
}
DRAWS = 8               # runs with random rounding; fewer where the score matrix is large
SLACK = 2


def round_to(x, dtype, rng=None):
    """float64 numbers rounded to a narrower format, still held as float64: to nearest, or at random up or down."""
    fmt = FORMATS[dtype]
    x = np.ascontiguousarray(x, np.float64)
    if fmt.bits == 52:
        return x if rng is None else x * (1 + fmt.eps * rng.uniform(-1, 1, x.shape))
    drop = 52 - fmt.bits
    u = x.view(np.uint64)
    if rng is None:                                          # half a unit, ties to even
        y = u + ((u >> np.uint64(drop)) & np.uint64(1)) + np.uint64((1 << drop - 1) - 1)
    else:                                                    # anything below a unit: exact numbers stay as they are
        noise = np.frombuffer(rng.bytes(4 * x.size), np.uint32).astype(np.uint64).reshape(x.shape)
        y = u + (noise << np.uint64(drop - 32) if drop >= 32 else noise >> np.uint64(32 - drop))
    y &= np.uint64((1 << 64) - (1 << drop))
    y = y.view(np.float64)
    size = np.abs(y)
    if (size > fmt.largest).any():
        y = np.where(size > fmt.largest, np.copysign(np.inf, y), y)
    if ((size < fmt.tiny) & (x != 0)).any():                 # below the smallest normal number the steps are equal
        step = fmt.tiny * fmt.eps
        steps = x / step
        small = (np.rint(steps) if rng is None else np.floor(steps + rng.random(x.shape))) * step
        y = np.where(np.abs(x) < fmt.tiny, small, y)
    return np.where(np.isnan(x), np.nan, y)


def fits(arrays, dtype):
    """Are these numbers exact in this format?"""
    return all(np.array_equal(round_to(x, dtype), x) for x in arrays)


class Arithmetic:
    """Operations whose every result is rounded to one format."""

    def __init__(self, dtype, rng=None):
        self.dtype, self.wide, self.rng = dtype, FORMATS[dtype].wide, rng

    def __call__(self, x):
        return round_to(x, self.dtype, self.rng)

    def matmul(self, a, b):
        """(..., n, k), (..., k, m) -> (..., n, m), one k after another"""
        total = 0.0
        for i in range(a.shape[-1]):
            total = round_to(total + a[..., :, i, None] * b[..., None, i, :], self.wide, self.rng)
        return self(total)

    def sum(self, x, *axes, keepdims=False):
        """One term after another."""
        keep = [a for a in range(x.ndim) if a not in axes]
        terms = x.transpose([*axes, *keep]).reshape(-1, *(x.shape[a] for a in keep))
        total = np.zeros(terms.shape[1:])
        for term in terms:
            total = round_to(total + term, self.wide, self.rng)
        return self(total).reshape([1 if a in axes else n for a, n in enumerate(x.shape)] if keepdims else total.shape)


# ------------------------------------------------------------- plain attention: scores, weights, output, and back


def plain(case, dtype, rng=None):
    """Forward and backward of a case in plain arithmetic -> {"out": ..., "dq": ..., ...}, float64 arrays."""
    f, a, o = Arithmetic(dtype, rng), case.arrays, case.options
    options = {"scale": None, "bias": None, **attention.MECHANISMS[case.mechanism].options, **o}
    with np.errstate(all="ignore"):
        grads = PLAIN[case.mechanism](f, a, options, case.cotangent)
    return {n if n == "out" else "d" + n: x for n, x in grads.items()}


def visible(q, k, o):
    rules = {n: o[n] for n in ("causal", "window", "prefix", "align") if n in o}
    return np.broadcast_to(masks.visible(q.shape[2], k.shape[2], **rules) & o.get("allowed", True), (*q.shape[:3], k.shape[2]))


def weights(f, s, see, o, sink=None):
    """Scores -> P, and the weight of the sink."""
    if o["bias"] is not None:
        s = f(s + o["bias"])
    s = np.where(see, s, -np.inf)
    m = s.max(axis=3, keepdims=True)
    m = m if sink is None else np.maximum(m, sink[:, None, None])
    m = np.where(m == -np.inf, 0, m)
    e = f(np.exp(f(s - m)))
    total = f.sum(e, 3, keepdims=True)
    e_sink = 0.0 if sink is None else f(np.exp(f(sink[:, None, None] - m)))
    total = f(total + e_sink)
    total = np.where(total == 0, 1, total)
    return f(e / total), f(e_sink / total)


def weights_back(f, dPv, Pv, P, v, o):
    """The gradient of Pv = P v -> that of the scores, and of v, and what each row loses to the softmax."""
    delta = f.sum(f(dPv * Pv), 3, keepdims=True)             # rowsum(dout * out), as every tiled kernel takes it
    ds = f(P * f(f.matmul(dPv, v.swapaxes(2, 3)) - delta))
    grads = {"v": f.matmul(P.swapaxes(2, 3), dPv)}
    if o["bias"] is not None:
        shape = (1,) * (4 - o["bias"].ndim) + o["bias"].shape
        axes = [i for i in range(4) if shape[i] == 1 and ds.shape[i] != 1]
        grads["bias"] = (f.sum(ds, *axes) if axes else ds).reshape(o["bias"].shape)
    return ds, grads, delta


def dot_scores(f, q, k, o):
    scale = f(np.array(1 / math.sqrt(q.shape[3]) if o["scale"] is None else o["scale"]))
    return f(f.matmul(q, k.swapaxes(2, 3)) * scale), scale


def dot_scores_back(f, ds, q, k, scale):
    return {"q": f(f.matmul(ds, k) * scale), "k": f(f.matmul(ds.swapaxes(2, 3), q) * scale)}


def softmax(f, a, o, dout, sink=None):
    q, k, v = a["q"], a["k"], a["v"]
    s, scale = dot_scores(f, q, k, o)
    P, P_sink = weights(f, s, visible(q, k, o), o, sink)
    out = f.matmul(P, v)
    ds, grads, delta = weights_back(f, dout, out, P, v, o)
    if sink is not None:
        grads["sink"] = -f.sum(f(P_sink * delta), 0, 2, 3)
    return {"out": out, **grads, **dot_scores_back(f, ds, q, k, scale)}


def sink(f, a, o, dout):
    return softmax(f, a, o, dout, a["sink"])


def off_by_one(f, a, o, dout):
    grads = softmax(f, a, o, dout, np.zeros(a["q"].shape[1]))
    del grads["sink"]
    return grads


def sigmoid(f, x):
    return f(1 / f(1 + f(np.exp(-x))))


def gated(f, a, o, dout):
    gate = sigmoid(f, a["gate_logits"])
    grads = softmax(f, a, o, f(dout * gate))
    ungated = grads.pop("out")
    dgate = f(dout * ungated)
    dgate = f.sum(dgate, 3, keepdims=True) if gate.shape[3] == 1 else dgate
    return {"out": f(ungated * gate), **grads, "gate_logits": f(dgate * f(gate * f(1 - gate)))}


def affine(f, a, o, dout):
    q, k, v, x = a["q"], a["k"], a["v"], a["alpha_logits"][..., None]
    see = visible(q, k, o)
    alpha = sigmoid(f, x) if o["phi"] == "sigmoid" else np.clip(f(f(f(0.1) * x) + 0.5), 0, 1)
    slope = f(alpha * f(1 - alpha)) if o["phi"] == "sigmoid" else np.where(np.abs(x) < 5, f(0.1), 0)
    N = {"visible": np.maximum(see.sum(axis=3, keepdims=True), 1), "total": k.shape[2]}.get(o["length"], o["length"])
    beta = f(f(a["alpha_ma"][:, None, None] - alpha) / N)
    s, scale = dot_scores(f, q, k, o)
    P, _ = weights(f, s, see, o)
    w = np.where(see, f(f(alpha * P) + beta), 0)             # may be negative, and need not sum to one
    Pv = f.matmul(P, v)
    ds, grads, _ = weights_back(f, f(alpha * dout), Pv, P, v, o)
    dw = f.matmul(dout, v.swapaxes(2, 3))
    dbeta = f.sum(np.where(see, dw, 0), 3, keepdims=True)
    dalpha = f(f.sum(f(dw * P), 3, keepdims=True) - f(dbeta / N))
    grads = {**grads, "v": f.matmul(w.swapaxes(2, 3), dout), "alpha_logits": f(dalpha * slope)[..., 0]}
    return {"out": f.matmul(w, v), **grads, **dot_scores_back(f, ds, q, k, scale)}


def energy(f, a, o, dout):
    q, k, v, e, norm = a["q"], a["k"], a["v"], a["energy"], o["norm"]
    Tk = k.shape[2]
    alpha, tau = (a[n][:, None, None] for n in ("alpha", "tau"))
    p = masks.positions(q.shape[2], Tk, o.get("align", "end")) if norm == "prefix" else np.arange(Tk)
    member = np.arange(Tk) <= p[:, None] if norm != "sequence" else np.ones((1, Tk), bool)       # (N, Tk): who counts
    n = np.maximum(member.sum(axis=1), 1)[:, None]
    mean = f(f.sum(np.where(member, e[:, :, None], 0), 3, keepdims=True) / n)                   # (B, H, N, 1)
    centred = np.where(member, f(e[:, :, None] - mean), 0)
    var = f(f.sum(f(centred * centred), 3, keepdims=True) / n)
    rstd = f(1 / (np.maximum(f(np.sqrt(var)), 1e-8) if norm == "sequence" else f(np.sqrt(f(var + 1e-8)))))
    rstd = np.where((n > 1) | (norm == "sequence"), rstd, 0)
    turn = (lambda x: x.swapaxes(2, 3)) if norm in ("key", "none") else lambda x: x    # whose: the key's, the query's, all's
    if norm == "none":
        mean, rstd = np.zeros_like(mean), np.ones_like(rstd)
    distance = f(e[:, :, None] - turn(mean))
    z = f(distance * turn(rstd))                                                # (B, H, 1 or Tq, Tk)
    u = f(alpha * f(z - tau))
    gate = f(np.minimum(u, 0) - f(np.log1p(f(np.exp(-np.abs(u))))))             # log sigmoid(u)
    s, scale = dot_scores(f, q, k, o)
    P, _ = weights(f, f(s + gate), visible(q, k, o), o)
    out = f.matmul(P, v)
    ds, grads, _ = weights_back(f, dout, out, P, v, o)
    rows = lambda x: x if norm == "prefix" else f.sum(x, 2, keepdims=True)      # noqa: E731
    du = f(rows(ds) * sigmoid(f, -u))
    grads["alpha"] = f.sum(f(du * f(z - tau)), 0, 2, 3)
    grads["tau"] = -f.sum(f(du * alpha), 0, 2, 3)
    dz = f(du * alpha)
    de = rows(f(dz * turn(rstd)))
    de = de if norm != "prefix" else f.sum(de, 2, keepdims=True)
    if norm != "none":
        per = turn if norm == "key" else lambda x: f.sum(x, 3, keepdims=True)
        dmean = -per(f(dz * turn(rstd)))                                        # (B, H, N, 1)
        dvar = f(f(-0.5 * f(rstd * f(rstd * rstd))) * per(f(dz * distance)))
        dvar = np.where(var >= 1e-16, dvar, 0) if norm == "sequence" else dvar  # on the floor the deviation is constant
        inner = f(f(dmean / n) + f(f(2 * centred) * f(dvar / n)))
        de = f(de + f.sum(np.where(member, inner, 0), 2, keepdims=True))
    return {"out": out, **grads, "energy": de[:, :, 0], **dot_scores_back(f, ds, q, k, scale)}


def gaussian(f, a, o, dout):
    x = a["x"]
    k = a.get("keys", x)
    v = a.get("values", k)
    inv = f(np.exp(f(-2 * a["log_sigma"])))[:, None, None]
    half = f(f.sum(f(k * k), 3) / 2)[:, :, None]             # |key|^2 / 2: distances through products, as fast kernels must
    dot = f(f.matmul(x, k.swapaxes(2, 3)) - half)
    s = f(dot * inv)
    P, _ = weights(f, s, visible(x, k, o), o)
    out = f.matmul(P, v)
    ds, grads, _ = weights_back(f, dout, out, P, v, o)
    ddot = f(ds * inv)
    dx = f.matmul(ddot, k)
    dk = f(f.matmul(ddot.swapaxes(2, 3), x) - f(k * f.sum(ddot, 2)[..., None]))
    dv = grads.pop("v")
    if "values" in a:
        grads["values"] = dv
    else:
        dk = f(dk + dv)
    if "keys" in a:
        grads["keys"] = dk
    else:
        dx = f(dx + dk)
    return {"out": out, "x": dx, "log_sigma": f(-2 * f.sum(f(ds * s), 0, 2, 3)), **grads}


PLAIN = {"softmax": softmax, "off_by_one": off_by_one, "sink": sink, "gated": gated, "affine": affine, "energy": energy,
         "gaussian": gaussian}


# --------------------------------------------------------------------------------------------- what is allowed


class Yardstick(NamedTuple):
    """The right answer of a case, and how far from it an implementation may be."""
    truth: dict             # "out", "dq", ... -> float64 array
    bounds: dict            # the same names -> largest error allowed
    reason: str = ""        # why there is no yardstick in this precision; then the bounds are empty


def truth(case):
    """minattn's own float64 forward and backward -> {"out": ..., "dq": ..., ...}"""
    module = attention.MECHANISMS[case.mechanism].module
    out, cache = module.forward(**case.arrays, **case.options)[:2]
    return {"out": out, **{"d" + n: x for n, x in module.backward(case.cotangent, cache).items()}}


def nudged(case, dtype, rng):
    """Where no plain formulation is written: the truth for numbers that are each off by up to one unit in the last place."""
    eps = FORMATS[dtype].eps
    nudge = lambda x: x * (1 + eps * rng.uniform(-1, 1, x.shape)) if x.dtype == np.float64 else x   # noqa: E731
    options = {n: nudge(x) if isinstance(x, np.ndarray) else x for n, x in case.options.items()}
    found = truth(case._replace(arrays={n: nudge(x) for n, x in case.arrays.items()}, options=options, cotangent=nudge(case.cotangent)))
    return {n: round_to(x, dtype) for n, x in found.items()}


def yardstick(case, dtype):
    """Truth and bounds of one case in one precision, kept for the next time that the same case comes along."""
    key = id(case), dtype
    if key not in _kept:
        if len(_kept) >= 1024:
            _kept.clear()
        _kept[key] = case, _yardstick(case, dtype)           # holding the case keeps its id from being used again
    return _kept[key][1]


_kept: dict = {}


def _yardstick(case, dtype):
    right = truth(case)
    numbers = [*case.arrays.values(), case.cotangent, *(o for o in case.options.values() if isinstance(o, np.ndarray))]
    if not fits((x for x in numbers if x.dtype == np.float64), dtype):
        return Yardstick(right, {}, f"its inputs lie outside the range of {dtype}")
    seed = [case.seed, zlib.crc32(f"{case.mechanism}/{case.id}/{dtype}".encode())]
    draws = DRAWS if right["out"][..., 0].size * case.cotangent.shape[2] < 200_000 else 2
    if case.mechanism in PLAIN:
        runs = [plain(case, dtype), *(plain(case, dtype, np.random.default_rng([*seed, n])) for n in range(draws))]
    else:
        runs = [nudged(case, dtype, np.random.default_rng([*seed, n])) for n in range(draws)]
    fmt, bounds = FORMATS[dtype], {}
    # a machine may take numbers below the smallest normal one for zero, and then multiply by q, k or v
    underflow = fmt.tiny * max(1.0, *(float(np.abs(x).max(initial=0)) for x in numbers)) ** 2 if dtype != "float16" else fmt.tiny * fmt.eps
    for name, x in right.items():
        error = max(float(np.abs(run[name] - x).max(initial=0)) for run in runs)
        if not np.isfinite(error):
            return Yardstick(right, {}, f"plain {dtype} arithmetic overflows here, so there is nothing to compare with")
        bounds[name] = SLACK * (error + fmt.eps * float(np.abs(x).max(initial=0))) + underflow
    return Yardstick(right, bounds)
