"""Attention as released in other packages, through the kit: what is right must pass.

`make packages` installs them (the extra "packages" in pyproject.toml) and runs this file. What is
missing is skipped. Faults that the kit found in some of them are in docs/bugs_found.md, whose
programs must still show them.
"""
import importlib
import math
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from test_third_party import visible

from minattn.validate import check
from minattn.validate.report import PASSED

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TRITON_INTERPRET", "1")      # Triton's kernels, on a CPU
if shutil.which("clang") is None:
    os.environ.setdefault("DEV", "PYTHON")          # tinygrad's device that needs no compiler

PAGE = (Path(__file__).parent.parent / "docs" / "bugs_found.md").read_text(encoding="utf-8")
PROGRAMS = [p for p in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "cuda" not in p]
PRINTED = [                                         # the numbers that each of them prints
    [math.nan, math.nan, math.nan, 1.5], [288, 256], [0, 0.5, 1, 1.5, 1.5, 1.5, 1.5, 1.5],
    [1.5, 1.5, 2, 2.5, 0, 0, 2, 2.5], [0.077], [0.5, 0.5, 0, 0.5, 0, 0.5, 0.5, 0.5],
    [1.5, 1.5, 2, 2.5], [1, 2, 3, 4, 5, 5, 5, 5], [0.625] * 5, [0.0578, 1, 1, 2048, 8],
    [88.961, 88.961, 0, 5.24, 62.48, 52.85, 0]]

LSE = ["dominant_score", "large_values"]            # its backward starts from a rounded lse
ONLY_CAUSAL = ["window", "prefix", "allowed", "bias"]
WIDE = {"D": 16, "Dv": 16}                          # values as wide as keys


def need(*names):
    """The modules; the test is skipped where one is missing, or does not load here."""
    try:
        found = [importlib.import_module(name) for name in names]
    except Exception as error:
        pytest.skip(f"{names[0]}: {str(error).splitlines()[0] if str(error) else 'not installed'}")
    return found if len(found) > 1 else found[0]


def passes(mechanism, fn, at_least, **how):
    """check --quick; everything asked must be right, and enough must have been asked."""
    report = check(mechanism, fn, quick=True, show=False, time_limit=300, **how)
    assert report.ok, str(report)
    assert report.count(PASSED) >= at_least, str(report)


def with_mask(xp, attend):
    """attend(q, k, v, mask, bias, scale), mask and bias with four axes or None -> a function with
    the kit's options.
    """
    def fn(q, k, v, *extra, scale=None, bias=None, **mask):
        see = visible(xp, q.shape[2], k.shape[2], **mask)
        bias = None if bias is None else bias.reshape((1,) * (4 - bias.ndim) + tuple(bias.shape))
        return attend(q, k, v, see, bias, q.shape[3] ** -0.5 if scale is None else scale, *extra)
    return fn


def added(xp, see, bias, low):
    """Mask and bias as one array to add, `low` where hidden; None if there is neither."""
    if see is None:
        return bias
    return xp.where(see, 0.0 if bias is None else bias, low)


def turned(attend):
    """attend for (B, T, H, D), given and returning (B, H, T, D)"""
    def fn(q, k, v, *rest):
        return attend(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), *rest).swapaxes(1, 2)
    return fn


# ----------------------------------------------------------------------------------------- PyTorch


def module_of(torch, **fields):
    """What transformers' functions read off their layer"""
    return types.SimpleNamespace(num_key_value_groups=1, training=False, is_causal=False, **fields)


def one_mask(torch, q, see, bias):
    mask = added(torch, see, bias, -math.inf)
    return None if mask is None else mask.to(q.dtype)


def test_transformers_eager():
    torch, llama = need("torch", "transformers.models.llama.modeling_llama")

    def attend(q, k, v, see, bias, scale):
        mask = one_mask(torch, q, see, bias)
        layer = module_of(torch)
        return llama.eager_attention_forward(layer, q, k, v, mask, scale)[0].transpose(1, 2)
    passes("softmax", with_mask(torch, attend), 40, framework="torch")


def test_transformers_sdpa():
    torch, sdpa = need("torch", "transformers.integrations.sdpa_attention")

    def attend(q, k, v, see, bias, scale):
        mask = one_mask(torch, q, see, bias)
        layer = module_of(torch)
        out, _ = sdpa.sdpa_attention_forward(layer, q, k, v, mask, scaling=scale)
        return out.transpose(1, 2)
    passes("softmax", with_mask(torch, attend), 40, framework="torch")


def test_transformers_sinks():
    torch, gpt_oss = need("torch", "transformers.models.gpt_oss.modeling_gpt_oss")

    def attend(q, k, v, see, bias, scale, sink):
        mask = added(torch, see, bias, torch.finfo(q.dtype).min)
        mask = None if mask is None else mask.to(q.dtype)
        layer = module_of(torch, sinks=sink)
        return gpt_oss.eager_attention_forward(layer, q, k, v, mask, scale)[0].transpose(1, 2)
    passes("sink", with_mask(torch, attend), 40, framework="torch")


def test_xformers_reference():
    torch, utils = need("torch", "xformers.attn_bias_utils")

    def attend(q, k, v, see, bias, scale):
        mask = added(torch, see, bias, -math.inf)
        if mask is not None:
            mask = mask.expand(*q.shape[:3], k.shape[2])
        turn = lambda x: x.transpose(1, 2)
        return turn(utils.ref_attention_bmhk(turn(q), turn(k), turn(v), mask, scale))
    passes("softmax", with_mask(torch, attend), 40, framework="torch")


def x_transformers_attend(torch, Attend, **how):
    def attend(q, k, v, see, bias, scale):
        full = (*q.shape[:3], k.shape[2])
        if bias is not None:
            see, bias = None, added(torch, see, bias, -math.inf).expand(full)
        see = None if see is None else see.expand(full)
        return Attend(scale=scale, **how)(q, k, v, mask=see, attn_bias=bias)[0]
    return with_mask(torch, attend)


@pytest.mark.parametrize("mechanism, how", [
    ("softmax", {}), ("softmax", {"flash": True}), ("off_by_one", {"add_zero_kv": True}),
    ("cog", {"cog_signed": True})], ids=["softmax", "flash", "off_by_one", "cog"])
def test_x_transformers(mechanism, how):
    torch, module = need("torch", "x_transformers.attend")
    fn = x_transformers_attend(torch, module.Attend, **how)
    exclude = ["bias"] if mechanism == "cog" else []        # its cog adds a bias before |s|
    passes(mechanism, fn, 30, framework="torch", exclude=exclude)


def test_memory_efficient_attention():
    torch, module = need("torch",
                         "memory_efficient_attention_pytorch.memory_efficient_attention")

    def fn(q, k, v, *, scale=None, causal=False):
        q = q if scale is None else q * scale * q.shape[3] ** 0.5
        return module.memory_efficient_attention(q, k, v, causal=causal, q_bucket_size=32,
                                                 k_bucket_size=32)
    passes("softmax", fn, 10, framework="torch",         # its checkpoints want .backward()
           exclude=[*ONLY_CAUSAL, "Tq!=Tk", "gradients"])


def test_local_attention():
    """exact_windowsize shows window_size + 1 keys: see docs/bugs_found.md."""
    torch, module = need("torch", "local_attention")

    def fn(q, k, v, *, window, causal=True):
        local = module.LocalAttention(window_size=window - 1, causal=True, exact_windowsize=True,
                                      autopad=True, use_rotary_pos_emb=False)
        return local(q, k, v)
    passes("softmax", fn, 20, framework="torch", sizes=WIDE,
           cases=["window/W=*", "long/*W=*", "combinations/*W*"],
           exclude=["Tq!=Tk", "allowed", "bias", "prefix", "scale", "window=1"])


def test_pytorch_multihead_attention():
    torch = need("torch")

    def attend(q, k, v, see, bias, scale):
        B, H, Tq, D = q.shape
        layer = torch.nn.MultiheadAttention(H * D, H, bias=False, batch_first=True, dtype=q.dtype)
        eye = torch.eye(H * D, dtype=q.dtype)
        with torch.no_grad():
            layer.in_proj_weight.copy_(torch.cat([eye] * 3))
            layer.out_proj.weight.copy_(eye)
        mask = added(torch, see, bias, -math.inf)
        if mask is not None:
            mask = mask.expand(B, H, Tq, k.shape[2]).reshape(B * H, Tq, k.shape[2]).to(q.dtype)
        merge = lambda x: x.transpose(1, 2).reshape(B, -1, H * D)
        out, _ = layer(merge(q * (scale * D ** 0.5)), merge(k), merge(v), attn_mask=mask,
                       need_weights=False)
        return out.reshape(B, Tq, H, D).transpose(1, 2)
    passes("softmax", with_mask(torch, attend), 30, framework="torch", sizes=WIDE,
           exclude=LSE)


@pytest.fixture
def fla():
    """parallel_attn(q, k, v, ...) in (B, T, H, D), plain and as Triton kernels"""
    torch, triton, naive, parallel = need("torch", "triton", "fla.ops.attn.naive",
                                          "fla.ops.attn.parallel")

    def plain(q, k, v, **how):
        return naive.naive_parallel_attn(q, k, v, **how)[0]
    return torch, {"naive": plain, "triton": parallel.parallel_attn}


@pytest.mark.parametrize("version, mechanism", [
    ("naive", "softmax"), ("naive", "sink"), ("naive", "forget"), ("triton", "softmax"),
    ("triton", "sink")])                            # forget's kernel wants a device
def test_flash_linear_attention(fla, version, mechanism):
    torch, versions = fla

    def fn(q, k, v, *extra, scale=None, causal=True, window=None):
        how = {}
        if mechanism == "sink":
            how["sink_bias"] = extra[0]
        if mechanism == "forget":
            how["g"] = torch.nn.functional.logsigmoid(extra[0]).transpose(1, 2)
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
        return versions[version](q, k, v, scale=scale, window_size=window, **how).transpose(1, 2)
    cases = ["causal/*", "window/W=*", "long/T=97,causal"]
    if version == "naive":                          # interpreted, they take minutes
        cases += ["combinations/*causal*", "combinations/*W*"]
    passes(mechanism, fn, 8 if version == "triton" else 40, framework="torch", cases=cases,
           exclude=["Tq!=Tk", "allowed", "bias", "prefix"])


# --------------------------------------------------------------------------------------------- JAX


def test_keras():
    torch, keras = need("torch", "keras")

    def attend(q, k, v, see, bias, scale):
        if see is not None and bias is None:
            see = see.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        else:                                       # it takes one of the two
            see, bias = None, added(torch, see, bias, -math.inf)
        return keras.ops.dot_product_attention(q, k, v, bias=bias, mask=see, scale=scale,
                                               flash_attention=False)
    passes("softmax", with_mask(torch, turned(attend)), 40, framework="torch")


@pytest.mark.parametrize("module", ["flax.linen", "flax.nnx"])
def test_flax(module):
    jax, layers = need("jax", module)

    def attend(q, k, v, see, bias, scale):
        q = q * (scale * q.shape[-1] ** 0.5)
        if bias is not None:                        # hidden keys are a finite number there
            see, bias = None, added(jax.numpy, see, bias, -jax.numpy.inf)
        return layers.dot_product_attention(q, k, v, bias=bias, mask=see)
    passes("softmax", with_mask(jax.numpy, turned(attend)), 30, framework="jax", sizes=WIDE)


def test_equinox():
    jax, module = need("jax", "equinox.nn._attention")

    def attend(q, k, v, see, bias, scale):
        q = q * (scale * q.shape[-1] ** 0.5)
        see = jax.numpy.ones((1, 1, 1, 1), bool) if see is None else see
        see = jax.numpy.broadcast_to(see, (*q.shape[:3], k.shape[2]))
        return jax.vmap(jax.vmap(module.dot_product_attention))(q, k, v, see)
    passes("softmax", with_mask(jax.numpy, attend), 30, framework="jax",
           exclude=["bias"])


def test_flash_attention_jax():
    """Key padding is the only mask of its flash attention, and its scale is fixed."""
    jax, module = need("jax", "flash_attention_jax")

    def fn(q, k, v, *, scale=None, causal=False):
        q = q if scale is None else q * (scale * q.shape[-1] ** 0.5)
        if causal:
            return module.causal_flash_attention(q, k, v)
        return module.flash_attention(q, k, v, jax.numpy.ones((k.shape[0], k.shape[2]), bool))
    passes("softmax", fn, 10, framework="jax", sizes=WIDE,
           exclude=[*ONLY_CAUSAL, "Tq!=Tk", "dominant_score"])      # its maximum starts at -1e6


# ------------------------------------------------------------------------- other arrays, and graphs


@pytest.mark.parametrize("mechanism", ["softmax", "sink"])
def test_mlx(mechanism):
    mx = need("mlx.core")

    def forward(q, k, v, *extra, scale=None, bias=None, **mask):
        see = visible(np, q.shape[2], k.shape[2], **mask)
        if bias is not None:
            bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
        add = added(np, see, bias, -np.inf)
        if add is not None:
            add = np.broadcast_to(add, (*q.shape[:3], k.shape[2])).astype(np.float32)
        given = [mx.array(np.ascontiguousarray(x)) for x in (q, k, v, *extra)]
        scale = q.shape[3] ** -0.5 if scale is None else scale

        def attend(q, k, v, *extra):
            sinks = {"sinks": extra[0]} if extra else {}
            return mx.fast.scaled_dot_product_attention(
                q, k, v, scale=scale, mask=None if add is None else mx.array(add), **sinks)
        return np.array(attend(*given)), (attend, given)

    def backward(dout, cache):
        attend, given = cache
        _, grads = mx.vjp(attend, given, [mx.array(np.ascontiguousarray(dout))])
        return dict(zip(("q", "k", "v", "sink"), map(np.array, grads)))
    passes(mechanism, (forward, backward), 40, exclude=["dbias"])


def test_tinygrad():
    tinygrad = need("tinygrad")

    def attend(q, k, v, see, bias, scale):
        q = q * np.float32(scale * q.shape[3] ** 0.5)
        mask = added(np, see, bias, -np.inf)
        if mask is not None:
            mask = np.broadcast_to(mask, (*q.shape[:3], k.shape[2])).astype(np.float32)
            mask = tinygrad.Tensor(mask)
        q, k, v = (tinygrad.Tensor(np.ascontiguousarray(x)) for x in (q, k, v))
        return q.scaled_dot_product_attention(k, v, attn_mask=mask).numpy()
    cases = ["prime_sizes/*", "causal/*", "window/*", "prefix/*", "padding/*", "scale/*", "bias/*"]
    passes("softmax", with_mask(np, attend), 5, cases=cases)


def test_openvino():
    ov = need("openvino")
    ops = need("openvino.opset13")
    compiled = {}

    def attend(q, k, v, see, bias, scale):
        mask = added(np, see, bias, -np.inf)
        shape = (*q.shape[:3], k.shape[2])
        mask = np.zeros(shape) if mask is None else np.broadcast_to(mask, shape)
        given = [np.ascontiguousarray(x, np.float32) for x in (q, k, v, mask, np.float32(scale))]
        if not compiled:
            names = "q k v mask scale".split()
            inputs = [ops.parameter([-1] * x.ndim, np.float32, n) for n, x in zip(names, given)]
            node = ops.scaled_dot_product_attention(*inputs)
            model = ov.Model([node], inputs)
            precise = {"INFERENCE_PRECISION_HINT": "f32"}
            compiled["one"] = ov.Core().compile_model(model, "CPU", precise)
        return compiled["one"](given)[0].copy()
    passes("softmax", with_mask(np, attend), 40)


def onnx_graph(onnx, node, inputs, domain, version):
    """A model of one node; inputs: name -> (type, number of axes)"""
    value = onnx.helper.make_tensor_value_info
    types_ = [value(n, kind, [None] * ndim) for n, (kind, ndim) in inputs.items()]
    out = value(node.output[0], onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([node], "attention", types_, [out])
    opsets = [onnx.helper.make_opsetid("", 23)]
    if domain:
        opsets.append(onnx.helper.make_opsetid(domain, version))
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_onnx_reference():
    onnx, reference = need("onnx", "onnx.reference")
    F = onnx.TensorProto.FLOAT

    def attend(q, k, v, see, bias, scale):
        mask = added(np, see, bias, -np.inf)
        names = ["q", "k", "v"] + ([] if mask is None else ["mask"])
        node = onnx.helper.make_node("Attention", names, ["out"], scale=float(scale))
        model = onnx_graph(onnx, node, dict.fromkeys(names, (F, 4)), "", 0)
        given = dict(zip(names, (q, k, v, mask)))
        if mask is not None:
            full = (*q.shape[:3], k.shape[2])
            given["mask"] = np.broadcast_to(mask, full).astype(np.float32)
        return reference.ReferenceEvaluator(model).run(None, given)[0]
    # it multiplies q and k by sqrt(scale) each, as the operator is defined
    passes("softmax", with_mask(np, attend), 20, exclude=["scale"])


def test_onnxruntime_multi_head_attention():
    onnx, runtime = need("onnx", "onnxruntime")
    F, sessions = onnx.TensorProto.FLOAT, {}

    def attend(q, k, v, see, bias, scale):
        B, H, Tq, D = q.shape
        mask = added(np, see, bias, np.float32(-np.inf))
        q = q * np.float32(scale)                   # its scale of 0 means the default
        names = ["q", "k", "v"] + ([] if mask is None else ["", "", "bias"])
        key = H, len(names)
        if key not in sessions:
            node = onnx.helper.make_node("MultiHeadAttention", names, ["out"], num_heads=H,
                                         scale=1.0, domain="com.microsoft")
            inputs = {n: (F, 4 if n == "bias" else 3) for n in names if n}
            model = onnx_graph(onnx, node, inputs, "com.microsoft", 1).SerializeToString()
            sessions[key] = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
        merge = lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).reshape(B, x.shape[2], -1)
        given = {"q": merge(q), "k": merge(k), "v": merge(v)}
        if mask is not None:
            full = (B, H, Tq, k.shape[2])
            given["bias"] = np.ascontiguousarray(np.broadcast_to(mask, full), np.float32)
        out = sessions[key].run(None, given)[0]
        return out.reshape(B, Tq, H, -1).swapaxes(1, 2)
    passes("softmax", with_mask(np, attend), 30)


def test_onnxruntime_grouped_query_attention():
    """Causal only, with its cache empty; head sizes are whole multiples of 8."""
    onnx, runtime = need("onnx", "onnxruntime")
    F, I, sessions = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, {}

    def fn(q, k, v, *, scale=None, causal=True, window=None):
        B, H, T, D = q.shape
        G = k.shape[1]
        names = ["q", "k", "v", "", "", "last", "total"]
        key = H, G, scale, window
        if key not in sessions:
            how = {} if scale is None else {"scale": float(scale)}
            if window is not None:
                how["local_window_size"] = int(window)
            node = onnx.helper.make_node("GroupQueryAttention", names, ["out", "pk", "pv"],
                                         num_heads=H, kv_num_heads=G, domain="com.microsoft", **how)
            inputs = {"q": (F, 3), "k": (F, 3), "v": (F, 3), "last": (I, 1), "total": (I, 1)}
            model = onnx_graph(onnx, node, inputs, "com.microsoft", 1).SerializeToString()
            sessions[key] = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
        merge = lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).reshape(B, T, -1)
        given = {"q": merge(q), "k": merge(k), "v": merge(v),
                 "last": np.full(B, T - 1, np.int32), "total": np.array([T], np.int32)}
        return sessions[key].run(["out"], given)[0].reshape(B, T, H, -1).swapaxes(1, 2)
    passes("softmax", fn, 20, sizes=WIDE,
           cases=["causal/*", "window/W=*", "long/*causal*", "combinations/*causal*",
                  "combinations/*W*"],
           exclude=["Tq!=Tk", "allowed", "bias", "prefix", "scale"])


# ------------------------------------------------------------------------------- docs/bugs_found.md


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_each_bug_is_still_there(number):
    """One that has been mended leaves the page."""
    done = subprocess.run([sys.executable, "-c", PROGRAMS[number]], capture_output=True, text=True)
    if "No module named" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    found = re.findall(r"\bnan\b|\b\d+\.?\d*(?:e-?\d+)?", done.stdout)
    np.testing.assert_allclose(np.array(found, float), PRINTED[number], rtol=0.02, atol=1e-9,
                               err_msg=done.stderr[-2000:])
    assert len(PRINTED) == len(PROGRAMS)
