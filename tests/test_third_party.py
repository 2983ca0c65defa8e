"""Attention that nobody here wrote, through the kit: what is right must pass, what differs must be
known by name.

Every part is skipped where its library is missing. What differs is listed as an expected failure
with its reason, in the form of a skip file; the findings are written up in
docs/third_party_kernels.md.
"""

import warnings

import numpy as np
import pytest

from minattn.validate import cases, check
from minattn.validate.cases import family_names
from minattn.validate.report import DIFFERS, PASSED

pytestmark = pytest.mark.slow

SQUARE_HEADS = {"D": 16, "Dv": 16}  # what kernels want that allow no value of another width
LSE = (
    "its backward recomputes the weights as exp(score - log-sum-exp), and a large log-sum-exp is "
    "rounded"
)


@pytest.fixture
def passes(tmp_path):
    """check, with a list of expected failures; the report must be all good and must have checked
    something.
    """

    def run(mechanism, fn, expected=(), **how):
        path = tmp_path / "expected.txt"
        path.write_text(
            "\n".join(f"{glob} xfail {reason}" for glob, reason in expected), encoding="utf-8"
        )
        # a scale of 0, say, which the combinations ask for, gives NaN in PyTorch's flash backend
        families = [f for f in family_names(mechanism) if f != "combinations"]
        how = {"cases": families, **how}
        report = check(mechanism, fn, skip_file=path, show=False, **how)
        assert report.ok, str(report)
        done = report.count(PASSED) + report.count(DIFFERS)
        assert done >= len(report.results) / 2 - 5, str(report)
        return report

    return run


def visible(xp, Tq, Tk, causal=False, window=None, prefix=0, allowed=None, align="end"):
    """The mask in torch or jax.numpy, with four axes; None where nothing is hidden."""
    p = xp.arange(Tq)[:, None] + (Tk - Tq if align == "end" else 0)
    j = xp.arange(Tk)
    see = xp.ones((Tq, Tk), dtype=bool)
    if not causal and window is None and allowed is None:
        return None
    if causal or window is not None:
        see = (j <= p) | ((j < prefix) & (p < prefix))
    if window is not None:
        see = see & (j > p - window)
    see = see if allowed is None else see & allowed
    return see.reshape((1,) * (4 - see.ndim) + tuple(see.shape))


# ------------------------------------------------------------ PyTorch: scaled_dot_product_attention


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def sdpa(torch):
    attention = torch.nn.functional.scaled_dot_product_attention

    def fn(q, k, v, *, scale=None, bias=None, **mask):
        Tq, Tk = q.shape[2], k.shape[2]
        causal_only = (
            mask.get("causal")
            and not {"window", "prefix", "allowed"} & mask.keys()
            and bias is None
        )
        if causal_only and (
            Tq == Tk or mask.get("align") == "start"
        ):  # is_causal is aligned at the start
            return attention(q, k, v, is_causal=True, scale=scale)
        see = visible(torch, Tq, Tk, **mask)
        if bias is not None:
            see = bias if see is None else torch.where(see, bias, -torch.inf)
        return attention(q, k, v, attn_mask=see, scale=scale)

    return fn


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sdpa(passes, torch, dtype):
    """Values are wider than keys here, which only its plain backend takes."""
    passes("softmax", sdpa(torch), framework="torch", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sdpa_flash(passes, torch, dtype):
    """With heads of one width the flash backend for the CPU runs (but for a bias with a gradient,
    and for strides).
    """
    expected = {
        "float32": ["dominant_score/hidden,1e10"],
        "bfloat16": ["dominant_score/hidden,1e10"],
        "float16": [],
    }[dtype]
    expected = [(case, LSE) for case in expected]
    passes("softmax", sdpa(torch), expected, framework="torch", dtype=dtype, sizes=SQUARE_HEADS)


def test_sdpa_is_causal_is_aligned_at_the_start(torch):
    fn = torch.nn.functional.scaled_dot_product_attention
    only_causal(lambda q, k, v, *, causal: fn(q, k, v, is_causal=causal), "torch")


def only_causal(fn, framework, **how):
    """A causal flag without a word on alignment: with keys before the queries it differs by
    convention, and by nothing else.
    """
    size = {} if framework != "jax" else SQUARE_HEADS
    chosen = {
        c.id: c
        for c in cases.cases("softmax", only=["tq_ne_tk/*"], sizes=size)
        if "window" not in c.options
    }
    assert len(chosen) == 6
    report = check(
        "softmax", fn, framework=framework, cases=list(chosen.values()), show=False, **how
    )
    differ = {r.id for r in report.results if r.status == DIFFERS}
    assert differ == {name for name in chosen if name.endswith("align=end")}, str(report)
    assert report.ok and "aligned at the start" in str(report)


# --------------------------------------------------------------------------- PyTorch: FlexAttention


@pytest.fixture
def flex(torch):
    """attend(q, k, v, edit) in eager mode: edit(score, b, h, i, j) -> score. Forward only, on a
    CPU.
    """
    flex_attention = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention

    def attend(q, k, v, edit=lambda s, b, h, i, j: s, *, scale=None, bias=None, **mask):
        shape = (*q.shape[:3], k.shape[2])
        see = visible(torch, *shape[2:], **mask)
        see = None if see is None else see.expand(shape)
        bias = None if bias is None else bias.expand(shape)

        def score(s, b, h, i, j):
            s = edit(s, b, h, i, j)
            s = s if bias is None else s + bias[b, h, i, j]
            return s if see is None else torch.where(see[b, h, i, j], s, -torch.inf)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            return flex_attention(q, k, v, score_mod=score, scale=scale)

    return attend


def with_sink(torch, flex, q, k, v, sink, *, bias=None, **mask):
    """The sink is one more key, last, without a value: its score is the logit, whatever the query.
    """
    B, H, Tq, Tk = *q.shape[:3], k.shape[2]
    more = lambda x: torch.cat([x, torch.zeros_like(x[:, :, :1])], dim=2)
    see = visible(torch, Tq, Tk, **mask)
    see = torch.ones(1, 1, 1, 1, dtype=torch.bool) if see is None else see
    see = torch.cat([see.expand(B, H, Tq, Tk), torch.ones(B, H, Tq, 1, dtype=torch.bool)], dim=3)
    bias = torch.zeros(B, H, Tq, Tk, dtype=q.dtype) if bias is None else bias.expand(B, H, Tq, Tk)
    bias = torch.cat([bias, sink[:, None, None].expand(B, H, Tq, 1)], dim=3)
    return flex(q, more(k), more(v), allowed=see, bias=bias)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flex_softmax(passes, flex, dtype):
    passes("softmax", flex, framework="torch", dtype=dtype, exclude=["gradients"])


def test_flex_has_no_gradients_on_a_cpu(torch, flex):
    q = torch.zeros(1, 1, 2, 3, requires_grad=True)
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        flex(q, q, q)


def test_flex_sink(passes, torch, flex):
    def fn(q, k, v, sink, *, scale=None, **options):
        return with_sink(
            torch,
            flex,
            q if scale is None else q * scale * q.shape[3] ** 0.5,
            k,
            v,
            sink,
            **options,
        )

    passes("sink", fn, framework="torch", exclude=["gradients"])
    zero = lambda q, k, v, **options: fn(q, k, v, torch.zeros(q.shape[1]), **options)
    passes("off_by_one", zero, framework="torch", exclude=["gradients"])


def test_flex_decay(passes, torch, flex):
    """ALiBi as a score edit, against the same bias as an array."""
    slopes = np.array([0.5, 0.25, 0.125])
    chosen = []
    globs = ["causal/T", "window/W=3,implied", "tq_ne_tk/Tq=5,Tk=7,align=*", "prime_sizes/*"]
    for c in cases.cases("softmax", only=globs):
        Tq, Tk = c.arrays["q"].shape[2], c.arrays["k"].shape[2]
        p = np.arange(Tq) + (Tk - Tq if c.options.get("align", "end") == "end" else 0)
        bias = -slopes[:, None, None] * (p[:, None] - np.arange(Tk))
        chosen.append(c._replace(id=f"decay/{c.id}", options={**c.options, "bias": bias}))

    def fn(q, k, v, *, bias, align="end", **options):
        m, start = (
            torch.tensor(slopes, dtype=q.dtype),
            k.shape[2] - q.shape[2] if align == "end" else 0,
        )
        return flex(
            q, k, v, lambda s, b, h, i, j: s - m[h] * (i + start - j), align=align, **options
        )

    report = passes("softmax", fn, framework="torch", cases=chosen, exclude=["gradients"])
    assert report.count(PASSED) == len(chosen) == 5


def test_flex_energy_gate(passes, torch, flex):
    """The gate as a score edit: log sigmoid(alpha (z_j - tau)) on each key."""

    def statistics(e, norm, Tq, align):
        Tk = e.shape[2]
        p = torch.arange(Tq) + (Tk - Tq if align == "end" else 0)
        last = {"key": torch.arange(Tk), "prefix": p, "sequence": torch.full((Tk,), Tk - 1)}[norm]
        member = (torch.arange(Tk) <= last[:, None]).to(e.dtype)  # (N, Tk)
        n = member.sum(1).clamp(min=1)
        mean = (e[:, :, None] * member).sum(3) / n  # (B, H, N)
        var = ((e[:, :, None] - mean[..., None]) ** 2 * member).sum(3) / n
        rstd = (
            1 / var.sqrt().clamp(min=1e-8) if norm == "sequence" else (n > 1) / (var + 1e-8).sqrt()
        )
        return mean, rstd

    def fn(q, k, v, energy, alpha, tau, *, norm="key", align="end", **options):
        z = energy[:, :, None].expand(*q.shape[:3], k.shape[2])
        if norm != "none":
            mean, rstd = statistics(energy, norm, q.shape[2], align)
            axis = 3 if norm == "prefix" else 2  # whose: the query's, or the key's
            z = (z - mean.unsqueeze(axis)) * rstd.unsqueeze(axis)
        gate = torch.nn.functional.logsigmoid(alpha[:, None, None] * (z - tau[:, None, None]))
        return flex(q, k, v, lambda s, b, h, i, j: s + gate[b, h, i, j], align=align, **options)

    passes("energy", fn, framework="torch", exclude=["gradients"])


def test_flex_gaussian_kernel(passes, torch, flex):
    """A kernel of distances as a score edit: queries x / sigma^2, and -|x_j|^2 / (2 sigma^2) on
    each key.
    """

    def fn(x, log_sigma, *, keys=None, values=None, **options):
        k = x if keys is None else keys
        inv = torch.exp(-2 * log_sigma)[:, None, None]
        bias = -0.5 * (k * k).sum(3) * inv[..., 0]  # (B, H, Tk)
        v = k if values is None else values
        return flex(x * inv, k, v, lambda s, b, h, i, j: s + bias[b, h, j], scale=1.0, **options)

    passes("gaussian", fn, framework="torch", exclude=["gradients"])


# --------------------------------------------------------------------- jax.nn.dot_product_attention


@pytest.fixture
def jax():
    return pytest.importorskip("jax", reason="JAX is not installed")


def jax_attention(jax):
    def fn(q, k, v, *, scale=None, bias=None, **mask):
        Tq, Tk = q.shape[2], k.shape[2]
        turn = lambda x: x.swapaxes(1, 2)  # it has (B, T, H, D)
        how = {}
        if not {"prefix", "allowed"} & mask.keys() and (Tq == Tk or mask.get("align") == "start"):
            back = None if mask.get("window") is None else (mask["window"] - 1, 0)
            how = {"is_causal": bool(mask.get("causal")), "local_window_size": back}
        else:
            how = {"mask": visible(jax.numpy, Tq, Tk, **mask)}
        if bias is not None:
            how["bias"] = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
        return turn(jax.nn.dot_product_attention(turn(q), turn(k), turn(v), scale=scale, **how))

    return fn


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jax(passes, jax, dtype):
    """Masked scores are a finite number, so a row that sees nothing averages all values."""
    found = passes(
        "softmax", jax_attention(jax), framework="jax", dtype=dtype, sizes=SQUARE_HEADS
    )
    assert {(r.family, r.reason) for r in found.results if r.status == DIFFERS} == {
        (family, "rows that see nothing are the mean of all values (0 in minattn)")
        for family in ("fully_masked_row", "tq_ne_tk")
    }


def test_jax_odd_heads(passes, jax):
    passes("softmax", jax_attention(jax), framework="jax", cases=["odd_head_dim/*"])


def test_jax_is_causal_is_aligned_at_the_start(jax):
    turn = lambda x: x.swapaxes(1, 2)
    fn = jax.nn.dot_product_attention
    only_causal(
        lambda q, k, v, *, causal: turn(fn(turn(q), turn(k), turn(v), is_causal=causal)),
        "jax",
    )


# ---------------------------------------------------------------------------------- ONNX: Attention


@pytest.fixture
def onnx_attention():
    """attend(q, k, v, mask, is_causal, scale, past): the operator through onnxruntime, forward
    only.
    """
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    sessions = {}

    def session(names, mask_type, **attributes):
        key = (names, mask_type, *attributes.items())
        if key not in sessions:
            kind, value = onnx.TensorProto, onnx.helper.make_tensor_value_info
            types = {"mask": kind.BOOL if mask_type == "bool" else kind.FLOAT}
            inputs = [value(n, types.get(n, kind.FLOAT), [None] * 4) for n in names if n]
            outputs = ["out", "present_k", "present_v"] if "past_k" in names else ["out"]
            node = onnx.helper.make_node("Attention", names, outputs, **attributes)
            graph = onnx.helper.make_graph(
                [node], "attention", inputs, [value("out", kind.FLOAT, [None] * 4)]
            )
            model = onnx.helper.make_model(
                graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10
            )
            sessions[key] = runtime.InferenceSession(
                model.SerializeToString(), providers=["CPUExecutionProvider"]
            )
        return sessions[key]

    def attend(q, k, v, *, mask=None, is_causal=False, scale=None, past=0):
        given = {"q": q, "k": k[:, :, past:], "v": v[:, :, past:]}
        names = ["q", "k", "v", "mask" if mask is not None else "", "past_k", "past_v"]
        if mask is not None:
            given["mask"] = np.broadcast_to(mask, (*q.shape[:3], k.shape[2])).copy()
        if past:
            given |= {"past_k": k[:, :, :past], "past_v": v[:, :, :past]}
        names = tuple(names if past else names[:4] if mask is not None else names[:3])
        attributes = {
            "is_causal": int(is_causal),
            **({} if scale is None else {"scale": float(scale)}),
        }
        arrays = {n: np.ascontiguousarray(x) for n, x in given.items()}
        return session(names, None if mask is None else str(mask.dtype), **attributes).run(
            ["out"], arrays
        )[0]

    return attend


def test_onnx(passes, onnx_attention):
    def fn(q, k, v, *, scale=None, bias=None, **mask):
        Tq, Tk = q.shape[2], k.shape[2]
        if (
            mask.get("causal")
            and bias is None
            and not {"window", "prefix", "allowed"} & mask.keys()
        ):
            if Tq == Tk or mask.get("align") == "start":
                return onnx_attention(q, k, v, is_causal=True, scale=scale)
            if Tk > Tq:  # what came before lies in the cache: aligned at the end
                return onnx_attention(q, k, v, is_causal=True, scale=scale, past=Tk - Tq)
        see = visible(np, Tq, Tk, **mask)
        if bias is not None:
            see = bias if see is None else np.where(see, bias, np.float32(-np.inf))
        return onnx_attention(q, k, v, mask=see, scale=scale)

    passes("softmax", fn)


def test_onnx_is_causal_is_aligned_at_the_start(onnx_attention):
    only_causal(
        lambda q, k, v, *, causal: onnx_attention(q, k, v, is_causal=causal), "numpy"
    )
