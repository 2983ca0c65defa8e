"""Golden vectors: cases with their answers in files, so that a program in any language can be checked.

    python -m minattn vectors write DIR                      # index.json, vectors.safetensors, schema.json
    python -m minattn vectors check DIR --results RESULTS    # what your program made of the inputs

The answers come from the papers' formulas with explicit (Tq, Tk) weights, a formulation of their own beside the kernels
of this package. They are the same to the bit on every machine, because nothing is asked of BLAS or libm: IEEE 754 fixes
+, -, *, / and sqrt to the last bit, exp and log are made from these below, and sums run in a stated order. So nothing
has to be rounded away: answers are full float64, within some 1e-15 of the truth. Inputs are those of the kit's cases, 8
significant bits each, exact in every precision that has their range; they hang on NumPy keeping its generator's stream.
"""
import hashlib
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minattn import checks, masks
from minattn.attention import MECHANISMS
from minattn.errors import InputError
from minattn.validate.cases import cases as kit_cases

INDEX, PAYLOAD, SCHEMA = "index.json", "vectors.safetensors", "schema.json"
EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

# ------------------------------------------------------------------------------------ arithmetic, the same everywhere


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


# ------------------------------------------------------------------------------------------------ formulas, literally


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


# --------------------------------------------------------------------------------------------------------- the cases

SMALL, LONG = {"D": 3, "Dv": 5}, 64                  # (nothing of more than 2 LONG tokens: the set is to stay small)
APART = ("batch_independence", "non_contiguous")     # families that files cannot ask for
SINKS = ["flash-attention 1973, 2102, vllm-metal 550: sink gradients wrong or missing"]
BUGS = {                                             # family -> bugs of known programs that it shows
    "score_shift": ["llm.c: the running maximum starts at -10000"],
    "dominant_score": ["minGPT 75, transformers 17121: a finite mask lets the future in"],
    "causal": ["triton 4541: causal ignored in the backward", "keras 23038: the mask dropped on the slow path",
               "TinyTorch 1785: mask polarity"],
    "one_token": ["pytorch 27461: an added zero key"],
    "tq_ne_tk": ["onnx 7297, pytorch 108108: causal alignment"],
    "fully_masked_row": ["pytorch 41508, flash-attention 443: NaN gradients"],
    "prime_sizes": ["labml 146: softmax over the wrong axis"],
    "sink_far_above": SINKS, "sink_far_below": SINKS,
}
INVALID = [      # (what is wrong, mechanism, options, {argument: what becomes of it}): to be refused
    ("q and k have different head sizes", "softmax", {}, {"k": lambda x: x[..., :2]}),
    ("k and v have different lengths", "softmax", {}, {"v": lambda x: x[:, :, :6]}),
    ("a window of no keys", "softmax", {"window": 0}, {}), ("a negative prefix", "softmax", {"prefix": -1}, {}),
    ("a sink for every head but one", "sink", {}, {"sink": lambda x: x[:2]}),
    ("an energy for every key but one", "energy", {}, {"energy": lambda x: x[..., :6]}),
    ("a width that is not a number", "gaussian", {}, {"log_sigma": lambda x: x * np.nan}),
    ("N = 0 keys", "affine", {"length": 0}, {}),
]


class Case(NamedTuple):
    id: str
    mechanism: str
    family: str
    attributes: dict     # the options of forward, each spelt out
    inputs: dict         # argument -> array; bias, allowed and dout too
    wrong: str           # what is wrong with it, if it is to be refused


def cases():
    """The standard set, in order: softmax in every case of the kit, the others in its quick ones, then invalid ones."""
    for mechanism in MECHANISMS:
        quick = mechanism != "softmax"
        wide = kit_cases(mechanism, sizes={"B": 1, "H": 1}, only=["odd_head_dim/*"], quick=quick)
        for case in (*kit_cases(mechanism, sizes=SMALL, quick=quick), *wide):
            if not (case.unmet or case.family in APART or case.cotangent.shape[2] > 2 * LONG):
                yield _spelt_out(case)
    for why, mechanism, options, edits in INVALID:
        case = _spelt_out(kit_cases(mechanism, sizes=SMALL, only=["causal/T"])[0])
        inputs = {name: edits[name](x) if name in edits else x for name, x in case.inputs.items()}
        yield case._replace(id=_file_name(f"{mechanism}-invalid-{why}"), family="invalid", wrong=why, inputs=inputs,
                            attributes={**case.attributes, **options})


def _spelt_out(case):
    full = (*case.cotangent.shape[:3], case.arrays.get("k", case.arrays.get("keys", case.cotangent)).shape[2])
    inputs = {**case.arrays, "dout": case.cotangent}
    rules = {"causal": False, "window": None, "prefix": 0, "align": "end"}
    if case.mechanism != "gaussian":
        rules["scale"] = 1 / math.sqrt(case.arrays["q"].shape[3])
    rules.update(MECHANISMS[case.mechanism].options)
    for name, value in case.options.items():
        if not isinstance(value, np.ndarray):
            rules[name] = value
        elif name == "allowed":
            inputs[name] = np.broadcast_to(value, full)
        else:
            inputs[name] = value.reshape((1,) * (4 - value.ndim) + value.shape)
    return Case(_file_name(f"{case.mechanism}-{case.id}"), case.mechanism, case.family, rules, inputs, "")


def _file_name(text):
    return re.sub("[^a-zA-Z0-9_+-]+", "-", text)


# ----------------------------------------------------------------------------------------------------------- writing

INTERMEDIATE = {"scores": "B H Tq Tk", "P": "B H Tq Tk", "lse": "B H Tq", "delta": "B H Tq"}
PLAIN = [(False, False), (True, False), (False, True)]       # (backwards, fused): all but the first with noise


def write(folder):
    """Write the standard set into a folder -> its index. The same bytes every time."""
    entries, tensors = [], {}
    for case in cases():
        truth = {} if case.wrong else answers(case.mechanism, case.attributes, case.inputs, Arithmetic())
        budgets = budgets_of(case, truth) if truth else {}
        if case.inputs["dout"].shape[2] >= LONG:
            del truth["scores"], truth["P"]                                  # large, and other cases have them
        entry = {"caseId": case.id, "mechanism": case.mechanism, "attributes": case.attributes, "flags": [case.family],
                 "result": "invalid" if case.wrong else "valid", "note": case.wrong, "tensors": {}}
        for name, x in {**case.inputs, **truth}.items():
            x = x if name in truth or x.dtype == bool else x.astype(np.float32)
            role = "input" if name in case.inputs else "intermediate" if name in INTERMEDIATE else "gradient"
            role = {"dout": "cotangent", "out": "output"}.get(name, role)
            entry["tensors"][name] = {"role": role, "dtype": str(x.dtype), "shape": list(x.shape),
                                      "axes": _axes(case.mechanism, name)}
            if name in truth:
                entry["tensors"][name]["budgets"] = budgets[name]
            tensors[f"{case.id}/{name}"] = x
        entries.append(entry)
    payload = pack(tensors)
    index = {"format": "minattn golden vectors", "version": 1, "schema": SCHEMA, "payload": PAYLOAD,
             "sha256": hashlib.sha256(payload).hexdigest(),
             "layout": "tensor caseId/name, little-endian, row-major, axes as listed", "bugs": BUGS, "cases": []}
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    text = json.dumps(index, indent=1).replace('"cases": []', f'"cases": [\n{lines}\n]') + "\n"
    schema = Path(__file__).with_name("vectors_schema.json").read_bytes()
    _save(Path(folder), {PAYLOAD: payload, INDEX: text.encode(), SCHEMA: schema})
    return {**index, "cases": entries}


def _axes(mechanism, name):
    axes = {"keys": "B H Tk D", "values": "B H Tk Dv", "bias": "B H Tq Tk", "allowed": "B H Tq Tk", "out": "B H Tq Dv",
            "dout": "B H Tq Dv", **INTERMEDIATE}
    for argument, shape in MECHANISMS[mechanism].arguments.items():
        axes[argument] = " ".join(re.findall(r"\w+", shape.replace(" or 1", "")))
    return axes.get(name) or axes[name[1:]]                                  # dq has the axes of q


@np.errstate(all="ignore")                                              # a narrow format overflows in some cases
def budgets_of(case, truth):
    """tensor -> {precision: 2 (error of plain arithmetic + eps max|truth|)}, None where it cannot hold the case.

    Below the smallest normal number a machine may go on in equal steps, or take zero and then multiply: that is allowed
    for. float64 gets what float32 gets, less the 29 bits between them, four times over.
    """
    budgets = {name: {} for name in truth}
    numbers = [x for x in case.inputs.values() if x.dtype != bool]
    for dtype, eps in EPS.items():
        runs, noise = [], np.random.default_rng(0)
        if all(np.array_equal(Arithmetic(dtype).round(x), x) for x in numbers):
            for backwards, fused in PLAIN:
                noisy = backwards or fused
                copies = 4 if noisy and case.inputs["dout"].shape[2] < LONG else 1           # side by side: quicker
                many = {n: np.broadcast_to(x, (copies, *x.shape)) if x.ndim > 2 else x for n, x in case.inputs.items()}
                ar = Arithmetic(dtype, backwards, fused, noise if noisy else None)
                runs.append(answers(case.mechanism, case.attributes, many, ar))
        low = 2.0**-24 if dtype == "float16" else 2.0**-126 * max(1, *(np.abs(x).max() for x in numbers)) ** 2
        bounds = {}
        for name, expected in truth.items():
            at = np.isfinite(expected)
            error = np.max([np.where(at, np.abs(run[name] - expected), 0).max(initial=0) for run in runs] or np.nan)
            bounds[name] = 2 * (error + eps * np.abs(expected[at]).max(initial=0)) + low
        held = np.isfinite([*bounds.values()]).all()
        for name, bound in bounds.items():
            budgets[name][dtype] = float(f"{bound:.3e}") if held else None
            if dtype == "float32":
                budgets[name]["float64"] = float(f"{bound * 2.0**-27:.3e}") if held else None
    return budgets


def _save(folder, files):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another place.") from None


# --------------------------------------------------------------------------------------------------- files of tensors

CODES = {"F64": ("float64", "<f8"), "F32": ("float32", "<f4"), "F16": ("float16", "<f2"), "BF16": ("bfloat16", "<u2"),
         "BOOL": ("bool", "|b1")}


def pack(tensors):
    """Arrays -> the bytes of a safetensors file, in an order that depends on nothing but names and sizes."""
    codes = {name: code for code, (name, _) in CODES.items()}
    header, parts, end = {}, [], 0
    for key, x in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        parts.append(x.astype(x.dtype.newbyteorder("<")).tobytes())
        header[key] = {"dtype": codes[str(x.dtype)], "shape": list(x.shape), "data_offsets": [end, end + x.nbytes]}
        end += x.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def unpack(content, where):
    """The bytes of a safetensors file -> {key: (precision, array)}; float16 and bfloat16 come as float32."""
    try:
        size = int.from_bytes(content[:8], "little")
        header, content, tensors = json.loads(content[8:8 + size]), content[8 + size:], {}
        for key, about in header.items():
            if key != "__metadata__":
                start, end = about["data_offsets"]
                x = _numbers(content[start:end], about["dtype"])
                tensors[key] = CODES[about["dtype"]][0], x.reshape(about["shape"])
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is damaged, or holds other types than {', '.join(CODES)} "
                         f"({type(error).__name__}: {error}).") from None


def _numbers(content, code):
    x = np.frombuffer(content, CODES[code][1])
    if code == "BF16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32) if code == "F16" else x


def read_results(where):
    """What a program wrote -> {"caseId/tensor": (precision, array)}.

    `where` is a safetensors file with keys caseId/tensor, or a folder of such files and of raw ones, named
    caseId.tensor.f32.bin (or f64, f16, bf16): little-endian, row-major. A case that the program refused, as it should
    refuse the invalid ones, is an empty tensor caseId/rejected or a file caseId.rejected.
    """
    where, results = Path(where), {}
    if not where.exists():
        raise InputError(f"cannot read results from {where}: there is no such file or folder.")
    try:
        for path in sorted(where.iterdir()) if where.is_dir() else [where]:
            case_id, *rest = path.name.split(".")
            if path.suffix == ".safetensors":
                results.update(unpack(path.read_bytes(), path))
            elif rest == ["rejected"]:
                results[f"{case_id}/rejected"] = "float32", np.zeros(0)
            elif path.suffix == ".bin":
                if len(rest) != 3 or (code := rest[1].upper()) not in CODES:
                    raise InputError(f"{path} must be called caseId.tensor.f32.bin (or f64, f16, bf16).")
                try:
                    results[f"{case_id}/{rest[0]}"] = CODES[code][0], _numbers(path.read_bytes(), code)
                except ValueError:
                    raise InputError(f"{path} ends in the middle of a number of type {rest[1]}.") from None
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
        whole = index["sha256"] == hashlib.sha256(payload).hexdigest()
    except OSError as error:
        raise InputError(f"{folder} is no folder of vectors ({Path(error.filename).name}: {error.strerror}); "
                         f"write one with: python -m minattn vectors write {folder}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / INDEX} is damaged ({type(error).__name__}: {error}).") from None
    if not whole:
        raise InputError(f"{folder / PAYLOAD} is not the one that {INDEX} describes: its sha256 differs.")
    return index, {key: x for key, (_, x) in unpack(payload, folder / PAYLOAD).items()}


# ------------------------------------------------------------------------------------------------------------ checking


class Row(NamedTuple):
    case: str
    tensor: str
    status: str               # "passed", "failed" or "not covered"
    precision: str = ""
    error: float = 0.0        # the largest
    bound: float = 0.0
    rms: float = 0.0          # of the error, relative to that of the truth
    note: str = ""

    def __str__(self):
        return f"{self.case:40} {self.tensor:13} {self.error:8.1e} {self.bound:8.1e} {self.rms:8.1e}  {self.note}"


class Report(NamedTuple):
    rows: list

    def having(self, status):
        return [row for row in self.rows if row.status == status]

    @property
    def ok(self):
        return bool(self.having("passed")) and not self.having("failed")

    def to_json(self):
        return {"ok": self.ok, "rows": [row._asdict() for row in self.rows]}

    def __str__(self):
        failed, measured = self.having("failed"), [row for row in self.having("passed") if row.bound]
        lines = [f"{'case':40} {'tensor':13} {'error':>8} {'bound':>8} {'rms':>8}", *map(str, failed)] if failed else []
        if measured:
            row = max(measured, key=lambda row: row.error / row.bound)
            lines.append(f"closest that passed: {row.case} {row.tensor}, at {row.error / row.bound:.0%} of its bound")
        counts = ", ".join(f"{len(self.having(status))} {status}" for status in ("passed", "failed", "not covered"))
        return "\n".join([*lines, f"tensors: {counts}"])


def check(folder, results=None, precision=None):
    """Compare what a program made of the vectors in a folder with the answers -> Report

    results    a file or folder (see read_results), or {"caseId/tensor": array}; None checks this package's own kernels
    precision  each tensor is held to the budget of its own type, or of this one
    """
    index, truth = read(folder)
    if precision is not None:
        checks.choice("precision", precision, ("float64", *EPS))
    if results is None:
        return Report([row for dtype in ("float64", "float32")
                       for row in _rows(index, truth, own_results(index, truth, dtype), dtype)])
    if isinstance(results, dict):
        results = {key: (str(x.dtype), x) for key, x in results.items()}
    else:
        results = read_results(results)
    return Report(_rows(index, truth, results, precision))


def _rows(index, truth, results, precision):
    rows, given = [], {}
    for key in results:
        given.setdefault(key.partition("/")[0], set()).add(key.partition("/")[2])
    for case in index["cases"]:
        name, tensors = case["caseId"], given.pop(case["caseId"], set())
        if case["result"] == "invalid":
            status = "failed" if tensors - {"rejected"} else "passed" if tensors else "not covered"
            rows.append(Row(name, "rejected", status, note=f"to be refused: {case['note']}"))
            continue
        if "rejected" in tensors:
            rows.append(Row(name, "rejected", "failed", note="a valid case was refused"))
        for tensor, about in case["tensors"].items():
            if "budgets" in about:
                came, x = results.get(f"{name}/{tensor}", ("", None))
                bound = about["budgets"].get(precision or came)
                if x is None or bound is None:
                    note = "not in the results" if x is None else f"{precision or came} cannot hold this case"
                    rows.append(Row(name, tensor, "not covered", precision or came, note=note))
                else:
                    row = Row(name, tensor, "failed", precision or came, np.inf, bound)
                    rows.append(_compare(row, x, truth[f"{name}/{tensor}"]))
        given[name] = tensors - case["tensors"].keys() - {"rejected"}
    strange = sorted((name, tensor) for name, tensors in given.items() for tensor in tensors)
    return rows + [Row(*key, "failed", note="the index has no such tensor") for key in strange]


def _compare(row, x, expected):
    if x.size != expected.size or x.ndim != 1 and x.shape != expected.shape:
        return row._replace(note=f"its shape must be {expected.shape}; got {x.shape}")
    x = x.reshape(expected.shape).astype(float)
    with np.errstate(invalid="ignore"):
        error = np.where(x == expected, 0, np.abs(x - expected))             # -inf where -inf is due
    error[np.isnan(error)] = np.inf
    at = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
    due = np.where(np.isfinite(expected), expected, 0)
    return row._replace(status="passed" if error[at] <= row.bound else "failed", error=float(error[at]),
                        rms=float(np.sqrt((error**2).sum() / max((due**2).sum(), 1e-300))),
                        note=f"at {at}: expected {expected[at]:.9g}, got {x[at]:.9g}")


def own_results(index, truth, dtype):
    """This package's kernels on the inputs of every case, as any program would take part."""
    results = {}
    for case in index["cases"]:
        x = {name: truth[f"{case['caseId']}/{name}"] for name, about in case["tensors"].items()
             if about["role"] in ("input", "cotangent")}
        x = {name: a if a.dtype == bool else a.astype(dtype) for name, a in x.items()}
        dout, module = x.pop("dout"), MECHANISMS[case["mechanism"]].module
        try:
            out, cache = module.forward(**x, **case["attributes"])[:2]
        except InputError:
            results[f"{case['caseId']}/rejected"] = dtype, np.zeros(0)
            continue
        grads = {f"d{name}": a for name, a in module.backward(dout, cache).items()}
        results.update({f"{case['caseId']}/{name}": (dtype, a) for name, a in {"out": out, **grads}.items()})
    return results


# ---------------------------------------------------------------------------------------------------- header, command

C_TYPES = """\
/* The smallest golden vectors of %s attention. Written by: python -m minattn vectors header FILE */
#ifndef MINATTN_VECTORS_H
#define MINATTN_VECTORS_H
#include <math.h>

typedef struct {
    const char *name;          /* q k v dout allowed (given), out dq dk dv (due), scores P lse delta (on the way) */
    int shape[4];
    const double *data;        /* row-major; allowed is 0 or 1 */
    double bound64, bound32;   /* the largest error that a double or a float may have; -1: given */
} vector_tensor;

typedef struct {
    const char *id;
    int causal, window, prefix, align_start;   /* window 0: none. Query i sits at key i + Tk - Tq, or at i */
    double scale;
    int n_tensors;
    const vector_tensor *tensors;
} vector_case;
"""


def header(path, mechanism="softmax", count=10):
    """Write the smallest valid cases of a mechanism as a C header: numbers to include, no library to link."""
    checks.choice("mechanism", mechanism, MECHANISMS)
    chosen = [case for case in cases() if case.mechanism == mechanism and not case.wrong]
    chosen = sorted(chosen, key=lambda case: (sum(x.size for x in case.inputs.values()), case.id))[:count]
    lines, table = [C_TYPES % mechanism], []
    for n, case in enumerate(chosen):
        truth, rows, a = answers(case.mechanism, case.attributes, case.inputs, Arithmetic()), [], case.attributes
        budgets = budgets_of(case, truth)
        for name, x in {**case.inputs, **truth}.items():
            numbers = ", ".join("-INFINITY" if value == -np.inf else float(value).hex() for value in x.ravel())
            bound = {n: b or -1 for n, b in budgets.get(name, dict.fromkeys(("float64", "float32"))).items()}
            shape = ", ".join(map(str, (*x.shape, 1, 1, 1)[:4]))
            lines.append(f"static const double vector_{n}_{name}[] = {{{numbers}}};")
            rows.append(f'    {{"{name}", {{{shape}}}, vector_{n}_{name}, {bound["float64"]!r}, {bound["float32"]!r}}}')
        lines += [f"static const vector_tensor vector_{n}[] = {{", ",\n".join(rows), "};"]
        rules = f"{a['causal']:d}, {a['window'] or 0}, {a['prefix']}, {a['align'] == 'start':d}"
        table.append(f'    {{"{case.id}", {rules}, {a.get("scale", 1.0)!r}, {len(rows)}, vector_{n}}}')
    lines += [f"enum {{ N_VECTOR_CASES = {len(table)} }};", "static const vector_case vector_cases[N_VECTOR_CASES] = {"]
    text = "\n".join([*lines, ",\n".join(table), "};", "#endif", ""])
    _save(Path(path).parent, {Path(path).name: text.encode()})


def add_arguments(parser):
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    one = actions.add_parser("write", help="write the standard set into a folder")
    one.add_argument("where", metavar="DIR")
    one = actions.add_parser("check", help="check what a program made of the vectors in a folder")
    one.add_argument("where", metavar="DIR")
    one.add_argument("--results", help="a folder or .safetensors file; without it, our own kernels are checked")
    one.add_argument("--precision", help="hold every tensor to this precision's budget, whatever its own type is")
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
        n, size = len(write(args.where)["cases"]), (Path(args.where) / PAYLOAD).stat().st_size
        print(f"{args.where}: {n} cases, {size / 1e6:.1f} MB of tensors")
        return 0
    report = check(args.where, args.results, args.precision)
    print(report)
    if args.json:
        _save(Path(args.json).parent, {Path(args.json).name: json.dumps(report.to_json(), indent=1).encode()})
    if not report.having("passed") and not report.having("failed"):
        raise InputError(f"nothing in {args.results} answers any case of {args.where}.")
    return 0 if report.ok else 1
