"""Golden vectors: cases with their answers in files, so that a program in any language can be checked.

    python -m minattn vectors write DIR                      # index.json, vectors.safetensors, schema.json
    python -m minattn vectors check DIR --results RESULTS    # what your program made of the inputs

The answers come from the papers' formulas with explicit (Tq, Tk) weights, a second formulation beside the kernels of
this package. The files are the same byte for byte on every machine: nothing is asked of BLAS, libm or a random
generator. IEEE 754 fixes +, -, *, / and sqrt to the last bit, so exp and log are made from these below, sums run in a
stated order, and inputs come from integers. Nothing is rounded away afterwards: answers are full float64 (they lie
within some 1e-15 of the truth), inputs are whole multiples of 1/64, exact in float32, float16 and bfloat16.
"""
import hashlib
import json
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minattn import checks, masks
from minattn.attention import MECHANISMS
from minattn.errors import InputError

INDEX, PAYLOAD, SCHEMA = "index.json", "vectors.safetensors", "schema.json"
EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

# ------------------------------------------------------------------------------------ arithmetic, the same everywhere


class Arithmetic(NamedTuple):
    """Every tensor operation is rounded to `name`; sums run in float32 (float64 for the answers), forwards or back.

    `fused` asks for the other usual way to write a step: q scaled before the product, rowsum(dout * out), |x|^2 apart.
    """
    name: str = "float64"
    backwards: bool = False
    fused: bool = False

    def round(self, x):
        if self.name == "float64":
            return x
        if self.name != "bfloat16":
            return x.astype(self.name).astype(float)
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        even = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)       # to nearest, ties to even
        return np.where(np.isfinite(x), even.view(np.float32), x).astype(float)

    def sum(self, x):
        """Over the last axis."""
        return self.dot(x[..., None, :], np.ones((x.shape[-1], 1)))[..., 0, 0]

    def dot(self, a, b):
        """(.., I, N), (.., N, J) -> (.., I, J)"""
        if self.name != "float64":
            a, b = a.astype(np.float32), b.astype(np.float32)
        total = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), a.dtype)
        for n in range(a.shape[-1])[::-1 if self.backwards else 1]:
            total += a[..., n, None] * b[..., n, None, :]
        return self.round(total.astype(float))

    def exp(self, x):
        n = np.rint(np.clip(x, -740, 700) * 1.4426950408889634)
        r = x - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10     # ln 2 in two parts, n * first exact
        y = np.ones_like(r)
        for k in range(16, 0, -1):
            y = 1 + r * y / k
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


# ------------------------------------------------------------------------------------------------ formulas, literally


def answers(mechanism, attributes, x, ar):
    """Output, gradients and intermediates of one case; x holds its inputs and "dout". Every array is dense.

    scores (B, H, Tq, Tk), -inf where hidden · P their softmax · lse the log of its denominator · delta = rowsum(P * dP)
    """
    r, scale = ar.round, attributes.get("scale")
    q, k, v = ("x", "keys", "values") if mechanism == "gaussian" else ("q", "k", "v")
    q, k = x[q], x.get(k, x[q])
    v, dout, sink, bias = x.get(v, k), x["dout"], x.get("sink"), x.get("bias")
    (B, H, Tq, _), Tk = q.shape, k.shape[2]
    rules = {name: attributes[name] for name in ("causal", "window", "prefix", "align")}
    seen = np.broadcast_to(masks.visible(Tq, Tk, **rules), (B, H, Tq, Tk)) & x.get("allowed", True)
    if mechanism == "off_by_one":
        sink = np.zeros(H)

    if mechanism == "gaussian":                                                  # 1. s = -|x_i - x_j|^2 / (2 sigma^2)
        inv = ar.exp(-2 * x["log_sigma"])[:, None, None]
        apart = r(q[..., :, None, :] - k[..., None, :, :])                       # (B, H, Tq, Tk, D)
        s = r(ar.sum(apart * apart) * (-0.5 * inv))
        if ar.fused:
            square = [r(ar.sum(y * y) * (-0.5 * inv[:, 0])) for y in (q, k)]
            s = r(r(ar.dot(r(q * inv), _T(k)) + square[0][..., None]) + square[1][..., None, :])
    else:                                                                        # 1. s = scale q k^T
        s = ar.dot(r(q * scale), _T(k)) if ar.fused else r(ar.dot(q, _T(k)) * scale)
    own = s
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
        grads["bias"] = _sum_to(ds, bias.shape, ar)
    if mechanism == "energy":
        grads.update(gate_backward(ds))
    if mechanism == "gaussian":
        dq = r((ar.dot(ds, k) - r(q * ar.sum(ds)[..., None])) * inv)
        dk = r((ar.dot(_T(ds), q) - r(k * ar.sum(_T(ds))[..., None])) * inv)
        grads["log_sigma"] = -2 * _sum_to(r(ds * own), (H,), ar)
        if "values" in x:
            grads["values"] = dv
        else:
            dk = r(dk + dv)
        grads.update({"x": dq, "keys": dk} if "keys" in x else {"x": r(dq + dk)})
    else:
        grads.update(q=r(ar.dot(ds, k) * scale), k=r(ar.dot(_T(ds), q) * scale), v=dv)
    return {"out": out, **{"d" + name: grads[name] for name in x if name in grads}, "scores": s, "P": P, "lse": lse, "delta": delta}


def _energy_gate(e, alpha, tau, norm, p, ar):
    """log sigmoid(alpha (z - tau)) of (B, H, 1 or Tq, Tk), and the function that takes its gradient back."""
    Tk, alpha, tau = e.shape[-1], alpha[:, None, None], tau[:, None, None]
    z = e[..., None, :]
    if norm != "none":                                                           # statistics: never below float32
        st = ar if ar.name == "float64" else ar._replace(name="float32")
        last = {"key": np.arange(Tk), "prefix": p, "sequence": np.array([Tk - 1])}[norm]
        member = (np.arange(Tk) <= last[:, None]).astype(float)                  # (Q, Tk) whose statistics hold whom
        n = (last + 1.0)[:, None]
        mean = st.round(st.dot(z, member.T)[..., 0, :, None] / n)                # (B, H, Q, 1)
        c = st.round(z - mean)
        std = np.sqrt(st.round(st.sum(member * c * c)[..., None] / n) + (0 if norm == "sequence" else 1e-8))
        rstd = st.round(1 / np.maximum(std, 1e-8) if norm == "sequence" else np.where(n > 1, 1 / std, 0))
        z = ar.round(c * rstd)                                                   # (B, H, Q, Tk)
        if norm == "key":
            z = np.diagonal(z, axis1=2, axis2=3)[..., None, :]
    u = ar.round(alpha * ar.round(z - tau))

    def backward(ds):
        du = ar.round(_sum_to(ds, u.shape, ar) * ar.sigmoid(-u))
        grads = {"alpha": _sum_to(ar.round(du * (z - tau)), alpha.shape[:1], ar), "tau": -_sum_to(ar.round(du * alpha), alpha.shape[:1], ar)}
        dz = ar.round(du * alpha)
        if norm == "none":
            return {"energy": dz[..., 0, :], **grads}
        dz = dz * np.eye(Tk) if norm == "key" else dz                            # (B, H, Q, Tk)
        dc = st.round(dz * rstd)
        dvar = -0.5 * rstd**3 * st.sum(dz * c)[..., None]
        dvar = np.where(std < 1e-8, 0, dvar) if norm == "sequence" else dvar
        de = dc + member / n * st.round(2 * dvar * c - st.sum(dc)[..., None])
        return {"energy": ar.round(st.sum(np.moveaxis(de, 2, -1))), **grads}

    return ar.log_sigmoid(u), backward


def _phi(x, phi, ar):
    if phi == "sigmoid":
        y = ar.sigmoid(x)
        return y, ar.round(y * (1 - y))
    return ar.round(np.clip(x / 10 + 0.5, 0, 1)), np.where(np.abs(x) < 5, 0.1, 0)


def _T(x):
    return x.swapaxes(-1, -2)


def _sum_to(x, shape, ar):
    """Undo broadcasting; a shape of one axis (H,) stands for (1, H, 1, 1)."""
    full = (1, *shape, 1, 1) if len(shape) == 1 else (1,) * (4 - len(shape)) + shape
    axes = [a for a in range(4) if full[a] == 1 and x.shape[a] > 1]
    x = np.moveaxis(x, axes, range(4 - len(axes), 4)) if axes else x
    return (ar.sum(x.reshape(*x.shape[:4 - len(axes)], -1)) if axes else x).reshape(shape)


# --------------------------------------------------------------------------------------------------------- the cases

SIZES = {"B": 2, "H": 3, "T": 7, "Tq": 7, "Tk": 7, "D": 3, "Dv": 5}
VARIANTS = {     # name -> (mechanism, options, arguments that forward makes itself if they are not given)
    **{name: (name, {}, {}) for name in ("softmax", "off_by_one", "sink", "gated", "gaussian")},
    "gated-head": ("gated", {}, {"gate_logits": "(B, H, Tq, 1)"}),
    **{f"affine-{phi}-{n}": ("affine", {"phi": phi, "length": n}, {})
       for phi, n in (("linear_clip", "total"), ("linear_clip", "visible"), ("linear_clip", 19), ("sigmoid", "total"))},
    **{f"energy-{norm}": ("energy", {"norm": norm}, {}) for norm in ("key", "prefix", "sequence", "none")},
    "gaussian-keys-values": ("gaussian", {}, {"x": "(B, H, Tq, D)", "keys": "(B, H, Tk, D)", "values": "(B, H, Tk, Dv)"}),
}
CAUSAL, ONE, LONG = {"causal": True}, {"B": 1, "H": 1}, {"B": 1, "H": 1, "T": 97, "D": 2, "Dv": 3}
FAMILIES = {     # name -> (rules, sizes); every mechanism, in every variant, meets each of these
    "prime_sizes": ({}, {"Tq": 5, "Tk": 7, "D": 11, "Dv": 13}), "noncausal": ({}, {}), "causal": (CAUSAL, {}), "window": ({"window": 2}, {}),
    "prefix": ({"causal": True, "prefix": 4}, {}), "padding": ({"allowed": "padding", "causal": True}, {}),
    "fully_masked_row": ({"allowed": "holes"}, {}), "one_token": (CAUSAL, {"T": 1}),
    "tq_ne_tk": (CAUSAL, {"Tq": 5}), "tq_ne_tk-start": ({"causal": True, "align": "start"}, {"Tq": 5}),
    "tq_ne_tk-queries_first": (CAUSAL, {"Tk": 5}), "tq_ne_tk-one_query": (CAUSAL, {"Tq": 1}),
}
BASE = [n for n in VARIANTS if n in MECHANISMS] + ["affine-linear_clip-total", "energy-key"]
HEADS = lambda *values: lambda x: np.resize(values, x.shape)     # noqa: E731
TINY, LARGE = (lambda x: x * 2.0**-100), (lambda x: x * 64)
FIRST, TURNS = (lambda x: x[..., :1, :] + 0 * x), (lambda x: x[..., np.arange(x.shape[-2]) % 2, :])
CORNERS = [      # (family, variant, rules, sizes, {argument: what becomes of it})
    *(("window", "softmax", {"window": w}, {}, {}) for w in (1, 6, 7, 12)),
    ("prefix", "softmax", {"window": 3, "prefix": 4}, {}, {}), ("padding", "softmax", {"allowed": "padding"}, {}, {}),
    *(("odd_head_dim", "softmax", CAUSAL, {**ONE, "D": d, "Dv": d}, {}) for d in (1, 59, 111)),
    *(("long", name, rules, LONG, {}) for name, rules in (("softmax", CAUSAL), ("softmax", {"window": 33}), ("affine-linear_clip-visible", CAUSAL),
                                                          ("energy-prefix", CAUSAL), ("gaussian", CAUSAL))),
    *(("bias", name, {**CAUSAL, "bias": shape}, {}, {}) for name in BASE for shape in ("(B, H, Tq, Tk)", "(1, H, 1, Tk)")),
    ("scale", "softmax", {"scale": 0.25}, {}, {}), ("scale", "sink", {"scale": 1.0}, {}, {}),
    *(("score_shift", name, {**CAUSAL, "bias": "(1, 1, 1, 1)", "scale": 0.5}, {}, {"bias": HEADS(shift)})
      for name in ("softmax", "sink", "energy-key") for sign in (1, -1) for shift in (sign * 2**7, sign * 2**14, sign * 2**20)),
    *(("dominant_score", name, {**rules, "bias": "(1, 1, Tq, Tk)"}, {}, {"bias": lambda x: np.where(np.eye(7)[::-1], 2.0**14, x)})
      for name in ("softmax", "sink", "gaussian") for rules in ({}, CAUSAL)),
    *(("equal_scores", name, CAUSAL, {}, {"q": lambda x: 0 * x}) for name in BASE if name != "gaussian"),
    ("tiny_values", "softmax", CAUSAL, {}, dict.fromkeys("qkv", TINY)), ("tiny_values", "gaussian", CAUSAL, {}, {"x": TINY}),
    ("large_values", "softmax", CAUSAL, {}, dict.fromkeys("qkv", LARGE)), ("large_values", "energy-key", CAUSAL, {}, {"energy": LARGE}),
    *(("repeated_tokens", name, CAUSAL, {}, dict.fromkeys("qkvx", TURNS)) for name in BASE),
    ("identical_tokens", "gaussian", CAUSAL, {}, {"x": FIRST}),
    ("sink_far_above", "sink", CAUSAL, {}, {"sink": HEADS(12, 16, 128)}), ("sink_far_below", "sink", CAUSAL, {}, {"sink": HEADS(-12, -128, -2.0**14)}),
    ("gate_saturated", "gated", {}, {}, {"gate_logits": HEADS(50, -50)}),
    ("alpha_at_kinks", "affine-linear_clip-total", CAUSAL, {}, {"alpha_logits": HEADS(-5, 5, -4.96875, 4.96875, -7, 7, 0.5, 1)}),
    *(("alpha_ma", f"affine-linear_clip-{n}", CAUSAL, {}, {"alpha_ma": HEADS(0, 0.5, 1)}) for n in ("total", "visible")),
    ("gate_all_closed", "energy-none", CAUSAL, {}, {"tau": HEADS(42), "alpha": HEADS(2)}),
    *(("equal_energies", f"energy-{norm}", CAUSAL, {}, {"energy": HEADS(0.5)}) for norm in ("key", "prefix", "sequence")),
    ("sigma_tiny", "gaussian", CAUSAL, {}, {"log_sigma": HEADS(-3, -2, -1)}), ("sigma_huge", "gaussian", CAUSAL, {}, {"log_sigma": HEADS(6)}),
]
INVALID = [      # (what is wrong, variant, rules, {argument: what becomes of it}): to be refused
    ("q and k have different head sizes", "softmax", {}, {"k": lambda x: x[..., :2]}),
    ("k and v have different lengths", "softmax", {}, {"v": lambda x: x[:, :, :6]}),
    ("a window of no keys", "softmax", {"window": 0}, {}), ("a negative prefix", "softmax", {"causal": True, "prefix": -1}, {}),
    ("a sink for every head but one", "sink", {}, {"sink": lambda x: x[:2]}),
    ("an energy for every key but one", "energy-key", {}, {"energy": lambda x: x[..., :6]}),
    ("a width that is not a number", "gaussian", {}, {"log_sigma": HEADS(np.nan)}),
    ("N = 0 keys", "affine-linear_clip-19", {"length": 0}, {}),
]
BUGS = {         # family -> bugs of known programs that it shows
    "score_shift": ["llm.c: the running maximum starts at -10000"], "dominant_score": ["minGPT 75, transformers 17121: a finite mask lets the future in"],
    "causal": ["triton 4541: causal ignored in the backward", "keras 23038: mask dropped on the slow path", "TinyTorch 1785: mask polarity"],
    "noncausal": ["triton 4541: causal ignored in the backward"], "one_token": ["pytorch 27461: an added zero key"],
    "fully_masked_row": ["pytorch 41508, flash-attention 443: NaN gradients"], "prime_sizes": ["labml 146: softmax over the wrong axis"],
    "tq_ne_tk": ["onnx 7297, pytorch 108108: causal alignment"],
    **{name: ["flash-attention 1973, 2102, vllm-metal 550: sink gradients"] for name in ("sink_far_above", "sink_far_below")},
}


class Case(NamedTuple):
    id: str
    mechanism: str
    attributes: dict     # the options of forward, each spelt out
    flags: list          # the family first
    inputs: dict         # argument -> array; "dout" too
    axes: dict           # argument -> "B H Tq D"
    wrong: str           # what is wrong with it, if it is to be refused


def cases():
    """Every Case of the standard set, in its order."""
    todo = [(family, name, rules, sizes, {}, "") for family, (rules, sizes) in FAMILIES.items() for name in VARIANTS]
    todo += [(*corner, "") for corner in CORNERS] + [("invalid", name, rules, {}, edits, why) for why, name, rules, edits in INVALID]
    count = {}
    for family, name, rules, sizes, edits, why in todo:
        mechanism, options, optional = VARIANTS[name]
        if mechanism == "gaussian" and not optional and {"Tq", "Tk"} & sizes.keys():
            if family != "prime_sizes":
                continue                                                         # one x gives queries and keys
            sizes = {"D": 11}
        size = {**SIZES, **({"Tq": sizes["T"], "Tk": sizes["T"]} if "T" in sizes else {}), **sizes}
        size["Dv or 1"] = size["Dv"]
        count[family, name] = count.get((family, name), 0) + 1
        case_id = f"{name}-{family}-{count[family, name]}"
        rules = {"causal": False, "window": None, "prefix": 0, "align": "end", **options, **rules}
        shapes = {**MECHANISMS[mechanism].arguments, **optional}
        if "bias" in rules:
            shapes["bias"] = rules.pop("bias")
        inputs = {arg: draw(case_id, arg, [int(s) if s.strip().isdigit() else size[s.strip()] for s in shape.strip("()").split(",") if s])
                  for arg, shape in shapes.items()}
        inputs.update({arg: np.asarray(edit(inputs[arg]), float) for arg, edit in edits.items() if arg in inputs})
        full = [size[s] for s in ("B", "H", "Tq", "Tk")]
        if kind := rules.pop("allowed", None):
            inputs["allowed"] = _allowed(kind, case_id, full)
        if mechanism != "gaussian":
            rules.setdefault("scale", 1 / math.sqrt(size["D"]))
        values = inputs.get("values", inputs.get("v", inputs.get("x")))
        inputs["dout"] = draw(case_id, "dout", [*full[:3], values.shape[-1]])
        axes = {arg: " ".join(s.strip().removesuffix(" or 1") for s in shape.strip("()").split(",") if s) for arg, shape in shapes.items()}
        axes.update(allowed="B H Tq Tk", dout="B H Tq Dv")
        yield Case(case_id, mechanism, rules, [family.partition("-")[0]], inputs, axes, why)


def draw(case_id, name, shape):
    """Multiples of 1/64 in [-2, 2), or what suits the argument: splitmix64 of the element's number, started by the names."""
    z = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) + np.uint64(zlib.crc32(f"{case_id}/{name}".encode()) << 20)
    z *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    x = (((z ^ (z >> np.uint64(31))) >> np.uint64(56)).astype(float) - 128).reshape(shape) / 64
    if name == "energy":                                     # no two alike: deviations of few keys bend sharply where two meet
        return x.argsort(-1, kind="stable").argsort(-1) * 0.5 - 1.25 if shape[-1] < 50 else x
    if name == "alpha_logits":                               # on both sides of the kinks at -5 and 5, and away from them
        return x * 2 + np.sign(x) * (np.abs(x) > 1.5) * 4
    offset = {"alpha": 2, "alpha_ma": 0.5, "log_sigma": 0.5}.get(name)
    return x if offset is None else offset + np.round(x * 16) / 64


def _allowed(kind, case_id, full):
    B, H, Tq, Tk = full
    if kind == "padding":                                    # the last keys, another number in each sequence
        return np.broadcast_to((np.arange(Tk) < Tk - 1 - np.arange(B)[:, None])[:, None, None], full).copy()
    allowed = draw(case_id, "allowed", full) < 0.5
    allowed[:, :, 1] = allowed[0, -1] = False
    return allowed


# ----------------------------------------------------------------------------------------------------------- writing

INTERMEDIATE = {"scores": "B H Tq Tk", "P": "B H Tq Tk", "lse": "B H Tq", "delta": "B H Tq"}
PLAIN = [(False, False), (True, True)]      # (backwards, fused): plain references of each precision; the worst one counts


def write(folder):
    """Write the standard set into a folder -> its index. The same bytes every time, on every machine."""
    entries, tensors = [], {}
    for case in cases():
        truth, budgets = {}, {}
        if not case.wrong:
            truth = answers(case.mechanism, case.attributes, case.inputs, Arithmetic())
            budgets = _budgets(case, truth)
        stored = {name: x if x.dtype == bool else x.astype(np.float32) for name, x in case.inputs.items()}
        entry = {"caseId": case.id, "mechanism": case.mechanism, "attributes": case.attributes, "flags": case.flags,
                 "result": "invalid" if case.wrong else "valid", "note": case.wrong, "tensors": {}}
        for name, x in {**stored, **truth}.items():
            role = "cotangent" if name == "dout" else "input" if name in stored else "output" if name == "out" else \
                "intermediate" if name in INTERMEDIATE else "gradient"
            axes = {**INTERMEDIATE, "out": "B H Tq Dv", **case.axes}.get(name) or case.axes[name[1:]]
            entry["tensors"][name] = {"role": role, "dtype": str(x.dtype), "shape": list(x.shape), "axes": axes}
            if name in truth:
                entry["tensors"][name]["budgets"] = budgets[name]
            tensors[f"{case.id}/{name}"] = x
        entries.append(entry)
    payload = pack(tensors)
    index = {"format": "minattn golden vectors", "version": 1, "schema": SCHEMA, "payload": PAYLOAD,
             "sha256": hashlib.sha256(payload).hexdigest(), "layout": "little-endian, row-major, axes as listed; tensor caseId/name",
             "bugs": BUGS, "cases": []}
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    text = json.dumps(index, indent=1).replace('"cases": []', f'"cases": [\n{lines}\n]') + "\n"
    _save(Path(folder), {PAYLOAD: payload, INDEX: text.encode(), SCHEMA: Path(__file__).with_name("vectors_schema.json").read_bytes()})
    return {**index, "cases": entries}


def _budgets(case, truth):
    """tensor -> {precision: 2 (error of the plain reference + eps max|truth|)}, None where it cannot hold the case."""
    bounds = {name: {} for name in truth}
    for dtype, eps in EPS.items():
        plain = []
        if all(x.dtype == bool or np.array_equal(Arithmetic(dtype).round(x), x) for x in case.inputs.values()):
            with np.errstate(all="ignore"):                              # a narrow format overflows in some cases
                plain = [answers(case.mechanism, case.attributes, case.inputs, Arithmetic(dtype, *how)) for how in PLAIN]
        for name, expected in truth.items():
            finite = np.isfinite(expected)
            errors = [np.abs(p[name] - expected)[finite].max(initial=0) for p in plain]
            bound = 2 * (max(errors) + eps * np.abs(expected[finite]).max(initial=0)) if errors else np.nan
            bounds[name][dtype] = float(f"{bound:.3e}") if np.isfinite(bound) else None
    return {name: {"float64": b["float32"] and float(f"{b['float32'] * 2.0**-27:.3e}"), **b} for name, b in bounds.items()}


def _save(folder, files):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another place.") from None


# ----------------------------------------------------------------------------------------------- files of tensors

FORMATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "|b1"}
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}


def pack(tensors):
    """Arrays -> the bytes of a safetensors file, in an order that depends on nothing but names and sizes."""
    codes = {np.dtype(code): name for name, code in FORMATS.items() if name != "BF16"}
    header, parts, end = {}, [], 0
    for key, x in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        parts.append(x.astype(x.dtype.newbyteorder("<")).tobytes())
        header[key] = {"dtype": codes[x.dtype], "shape": list(x.shape), "data_offsets": [end, end + x.nbytes]}
        end += x.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def unpack(content, where):
    """The bytes of a safetensors file -> {key: (precision, array)}; float16 and bfloat16 come as float32."""
    try:
        size = int.from_bytes(content[:8], "little")
        header, data, tensors = json.loads(content[8:8 + size]), content[8 + size:], {}
        for key, about in header.items():
            if key != "__metadata__":
                start, end = about["data_offsets"]
                tensors[key] = NAMES[about["dtype"]], _numbers(data[start:end], about["dtype"]).reshape(about["shape"])
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is damaged, or holds other numbers than {', '.join(NAMES.values())} "
                         f"({type(error).__name__}: {error}).") from None


def _numbers(data, code):
    x = np.frombuffer(data, FORMATS[code])
    return x.astype(np.float32) if code == "F16" else (x.astype(np.uint32) << 16).view(np.float32) if code == "BF16" else x


def read_results(where):
    """What a program wrote -> {"caseId/tensor": (precision, array)}.

    `where` is a safetensors file with keys caseId/tensor, or a folder of such files and of raw ones, named
    caseId.tensor.f32.bin (or f64, f16, bf16): little-endian, row-major. An invalid case that was refused: an empty
    tensor or file called rejected (caseId.rejected).
    """
    where, results = Path(where), {}
    try:
        for path in sorted(where.iterdir()) if where.is_dir() else [where]:
            if path.suffix == ".safetensors":
                results.update(unpack(path.read_bytes(), path))
            elif path.suffix == ".rejected":
                results[f"{path.stem}/rejected"] = "float32", np.zeros(0)
            elif path.suffix == ".bin":
                case_id, tensor, code = [*path.stem.split("."), "", ""][:3]
                if code.upper() not in NAMES:
                    raise InputError(f"{path} must be called caseId.tensor.f32.bin (or f64, f16, bf16).")
                try:
                    results[f"{case_id}/{tensor}"] = NAMES[code.upper()], _numbers(path.read_bytes(), code.upper())
                except ValueError:
                    raise InputError(f"{path} ends in the middle of a number: its size is no multiple of a {code} number.") from None
    except OSError as error:
        raise InputError(f"cannot read results from {where}: {error.strerror}.") from None
    if not results:
        raise InputError(f"{where} holds no results: neither .safetensors nor caseId.tensor.f32.bin files.")
    return results


def read(folder):
    """A folder of vectors -> its index, {"caseId/tensor": array}; InputError if anything is missing or damaged."""
    folder = Path(folder)
    try:
        index, payload = json.loads((folder / INDEX).read_bytes()), (folder / PAYLOAD).read_bytes()
        same = index["sha256"] == hashlib.sha256(payload).hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"{folder} is no folder of vectors: {Path(error.filename).name} is missing; "
                         f"write one with: python -m minattn vectors write {folder}") from None
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / INDEX} is damaged ({type(error).__name__}: {error}).") from None
    if not same:
        raise InputError(f"{folder / PAYLOAD} is not the one that {INDEX} describes: its sha256 differs.")
    return index, {key: x for key, (_, x) in unpack(payload, folder / PAYLOAD).items()}


# ---------------------------------------------------------------------------------------------------------- checking


class Row(NamedTuple):
    case: str
    tensor: str
    status: str               # "passed", "failed", "not covered"
    precision: str = ""
    error: float = 0.0        # the largest
    bound: float = 0.0
    rms: float = 0.0          # of the error, relative to that of the truth
    note: str = ""


class Report(NamedTuple):
    rows: list

    @property
    def ok(self):
        return not any(row.status == "failed" for row in self.rows) and any(row.status == "passed" for row in self.rows)

    def to_json(self):
        return {"ok": self.ok, "rows": [row._asdict() for row in self.rows]}

    def __str__(self):
        lines = [f"{'case':44} {'tensor':14} {'error':>9} {'bound':>9} {'rms':>8}"]
        lines += [f"{r.case:44} {r.tensor:14} {r.error:9.2e} {r.bound:9.2e} {r.rms:8.1e}  {r.note}" for r in self.rows if r.status == "failed"]
        count = {status: sum(row.status == status for row in self.rows) for status in ("passed", "failed", "not covered")}
        close = max((r for r in self.rows if r.status == "passed" and r.bound), key=lambda r: r.error / r.bound, default=None)
        if close:
            lines.append(f"closest of those that passed: {close.case} {close.tensor}, {close.error / close.bound:.0%} of its bound")
        return "\n".join([*lines[not count["failed"]:], ", ".join(f"{n} {status}" for status, n in count.items()) + " (tensors)"])


def check(folder, results=None, precision=None):
    """Compare what a program wrote (see read_results) with the vectors of a folder -> Report.

    Each tensor is held to the budget of the precision in which it came, or of `precision` if that is named.
    results=None checks this package's own kernels, in float64 and float32.
    """
    index, truth = read(folder)
    if precision is not None:
        checks.choice("precision", precision, ("float64", *EPS))
    if results is None:
        return Report([row for dtype in ("float64", "float32") for row in _rows(index, truth, own_results(index, truth, dtype), None)])
    return Report(_rows(index, truth, read_results(results), precision))


def _rows(index, truth, results, precision):
    rows, known = [], set()
    for case in index["cases"]:
        names = [name for name, about in case["tensors"].items() if "budgets" in about]
        known.update(f"{case['caseId']}/{name}" for name in [*case["tensors"], "rejected"])
        given = [key.partition("/")[2] for key in results if key.partition("/")[0] == case["caseId"]]
        if case["result"] == "invalid":
            status = "passed" if given == ["rejected"] else "failed" if given else "not covered"
            rows.append(Row(case["caseId"], "rejected", status, note=f"must be refused: {case['note']}"))
        elif "rejected" in given:
            rows.append(Row(case["caseId"], "rejected", "failed", note="a valid case was refused"))
        for name in names:
            key, about = f"{case['caseId']}/{name}", case["tensors"][name]
            found, x = results.get(key, ("", None))
            bound = about["budgets"].get(precision or found)
            if x is None or bound is None:
                note = "not in the results" if x is None else f"{precision or found} cannot hold this case"
                rows.append(Row(case["caseId"], name, "not covered", note=note))
            else:
                rows.append(_compare(case["caseId"], name, x, truth[key], bound, precision or found))
    strange = sorted(set(results) - known)
    rows += [Row(*(key.split("/", 1) + [""])[:2], "failed", note="no such tensor in the index") for key in strange]
    return rows


def _compare(case_id, name, x, expected, bound, precision):
    row = Row(case_id, name, "failed", precision, np.inf, bound)
    if x.size != expected.size or x.ndim != 1 and x.shape != expected.shape:
        return row._replace(note=f"its shape must be {expected.shape}; got {x.shape}")
    x = x.reshape(expected.shape).astype(float)
    with np.errstate(invalid="ignore"):
        error = np.where(x == expected, 0, np.abs(x - expected))             # -inf where -inf is due
    error[np.isnan(error)] = np.inf
    at = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
    finite = np.isfinite(expected)
    rms = np.sqrt((error[finite]**2).sum() / max((expected[finite]**2).sum(), 1e-300))
    return row._replace(status="passed" if error[at] <= bound else "failed", error=float(error[at]), rms=float(rms),
                        note=f"at {at}: expected {expected[at]:.9g}, got {x[at]:.9g}")


def own_results(index, truth, dtype):
    """This package's kernels on the inputs of every case, as a program that takes part."""
    results = {}
    for case in index["cases"]:
        x = {name: truth[f"{case['caseId']}/{name}"] for name, about in case["tensors"].items() if about["role"] in ("input", "cotangent")}
        x = {name: a if a.dtype == bool else a.astype(dtype) for name, a in x.items()}
        dout, module = x.pop("dout"), MECHANISMS[case["mechanism"]].module
        try:
            out, cache = module.forward(**x, **case["attributes"])[:2]
        except InputError:
            results[f"{case['caseId']}/rejected"] = dtype, np.zeros(0)
            continue
        for name, a in {"out": out, **{f"d{name}": a for name, a in module.backward(dout, cache).items()}}.items():
            results[f"{case['caseId']}/{name}"] = dtype, a
    return results


# ------------------------------------------------------------------------------------------------- header, command


def header(path, mechanism="softmax", count=10):
    """Write the smallest valid cases of a mechanism as a C header: data to include, no library to link."""
    checks.choice("mechanism", mechanism, MECHANISMS)
    size = lambda case: sum(x.size for x in case.inputs.values())     # noqa: E731
    chosen = sorted((c for c in cases() if c.mechanism == mechanism and not c.wrong), key=lambda c: (size(c), c.id))[:count]
    lines, table = [C_TYPES % {"mechanism": mechanism, "count": len(chosen)}], []
    for n, case in enumerate(chosen):
        truth = answers(case.mechanism, case.attributes, case.inputs, Arithmetic())
        budgets, rows = _budgets(case, truth), []
        for name, x in {**case.inputs, **truth}.items():
            lines.append(f"static const double vector_{n}_{name}[] = {{{', '.join(_hex(value) for value in x.ravel().astype(float))}}};")
            bound = budgets.get(name, {"float64": -1, "float32": -1})
            rows.append(f'{{"{name}", {{{", ".join(map(str, (*x.shape, *[1] * (4 - x.ndim))))}}}, vector_{n}_{name}, '
                        f'{bound["float64"]!r}, {bound["float32"]!r}}}')
        lines.append(f"static const vector_tensor vector_{n}[] = {{{', '.join(rows)}}};")
        a = case.attributes
        table.append(f'    {{"{case.id}", {int(a["causal"])}, {a["window"] or 0}, {a["prefix"]}, {int(a["align"] == "start")}, '
                     f'{_hex(a.get("scale", 1.0))}, {len(rows)}, vector_{n}}}')
    text = "\n".join([*lines, f"static const vector_case vector_cases[{len(chosen)}] = {{", ",\n".join(table), "};", "#endif", ""])
    _save(Path(path).parent, {Path(path).name: text.encode()})


def _hex(x):
    return "-INFINITY" if x == -np.inf else float(x).hex()


C_TYPES = """/* The smallest golden vectors of %(mechanism)s attention, generated by: python -m minattn vectors header FILE */
#ifndef MINATTN_VECTORS_H
#define MINATTN_VECTORS_H
#include <math.h>
typedef struct {
    const char *name;      /* q k v dout (given), out dq dk dv (answers), scores P lse delta (on the way); allowed 0 or 1 */
    int shape[4];
    const double *data;    /* row-major */
    double bound64, bound32;   /* largest error allowed to a double and to a float; below 0: given, not to be checked */
} vector_tensor;
typedef struct {
    const char *id;
    int causal, window, prefix, align_start;   /* window 0: none; query i sits at key i + Tk - Tq, or i if align_start */
    double scale;
    int n_tensors;
    const vector_tensor *tensors;
} vector_case;
enum { N_VECTOR_CASES = %(count)d };"""


def add_arguments(parser):
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    one = actions.add_parser("write", help="write the standard set into a folder")
    one.add_argument("where", metavar="DIR")
    one = actions.add_parser("check", help="check what a program made of the vectors in a folder")
    one.add_argument("where", metavar="DIR")
    one.add_argument("--results", help="a folder or .safetensors file; without it, this package's own kernels are checked")
    one.add_argument("--precision", help="hold every tensor to this precision's budget, whatever it is stored in")
    one.add_argument("--json", metavar="FILE", help="write every row there")
    one = actions.add_parser("header", help="write the ten smallest cases of a mechanism as a C header")
    one.add_argument("where", metavar="FILE")
    one.add_argument("--mechanism", default="softmax", help="default %(default)s")


def run(args):
    """-> 0 all good, 1 something is wrong; InputError (exit code 2) where nothing could be checked."""
    if args.action == "header":
        header(args.where, args.mechanism)
        print(f"{args.where}: the smallest cases of {args.mechanism}")
        return 0
    if args.action == "write":
        index = write(args.where)
        print(f"{args.where}: {len(index['cases'])} cases, {(Path(args.where) / PAYLOAD).stat().st_size / 1e6:.1f} MB of tensors")
        return 0
    report = check(args.where, args.results, args.precision)
    print(report)
    if args.json:
        _save(Path(args.json).parent, {Path(args.json).name: json.dumps(report.to_json(), indent=1).encode()})
    if not any(row.status != "not covered" for row in report.rows):
        raise InputError(f"nothing in {args.results} answers any case of {args.where}.")
    return 0 if report.ok else 1
