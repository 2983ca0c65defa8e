"""What somebody's function may look like, and what the kit says where it looks otherwise."""
import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from minattn import cli
from minattn.attention import core, gated, naive, sink, softmax
from minattn.errors import InputError
from minattn.validate import check, report
from minattn.validate.pytest_plugin import suite

PLAIN = ["causal", "noncausal", "prime_sizes"]
ROOT = Path(__file__).parent.parent


def run_pytest(folder, *args):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", *args]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def as_bthd(module):
    """The module's pair for arrays (B, T, H, D)."""
    turn = lambda x: x.swapaxes(1, 2) if getattr(x, "ndim", 0) == 4 else x

    def forward(*arrays, **options):
        out, cache = module.forward(*map(turn, arrays), **options)
        return turn(out), cache

    def backward(dout, cache):
        grads = module.backward(turn(dout), cache)
        return {n: x if n == "bias" else turn(x) for n, x in grads.items()}
    return forward, backward


@pytest.mark.parametrize("module", [softmax, gated], ids=["softmax", "gated"])
def test_functions_of_tokens_before_heads(module):
    name = module.__name__.rpartition(".")[2]
    cases = [*PLAIN, "bias", "padding", "tq_ne_tk", "combinations/Tq=1,Tk=300*"]
    found = check(name, as_bthd(module), cases=cases, layout="BTHD", show=False)
    assert found.ok and found.count(report.PASSED) == len(found.results) > 12, str(found)
    wrong = check(name, module, cases=PLAIN, layout="BTHD", show=False)
    assert "seems to take (B, H, T, D): --layout BHTD" in str(wrong)


def test_swapped_axes_are_recognised():
    found = check("softmax", as_bthd(softmax), cases=PLAIN, show=False)
    assert found.failed and str(found).count("HINT") == 1
    assert "your function seems to take (B, T, H, D): --layout BTHD" in str(found)
    wrong = lambda q, k, v, **o: softmax.forward(q * 2, k, v, **o)[0]
    assert "HINT" not in str(check("softmax", wrong, cases=PLAIN, show=False))


@pytest.mark.slow
def test_swapped_axes_in_torch_and_jax():
    jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")
    sdpa = torch.nn.functional.scaled_dot_product_attention
    turned = lambda q, k, v: sdpa(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    for framework, fn in (("torch", turned), ("jax", jax.nn.dot_product_attention)):
        how = {"framework": framework, "cases": ["noncausal"], "show": False, "time_limit": 300,
               "sizes": {"D": 16, "Dv": 16}}
        assert check("softmax", fn, layout="BTHD", **how).ok
        assert "--layout BTHD" in str(check("softmax", fn, **how))


def test_layout_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "turned.py").write_text(
        "from minattn.attention import softmax\n"
        "def f(q, k, v, **o):\n"
        "    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))\n"
        "    return softmax.forward(q, k, v, **o)[0].swapaxes(1, 2)\n")
    args = ["check", "turned.py:f", "--case", "causal", "--case", "noncausal"]
    assert cli.main([*args, "--layout", "BTHD"]) == 0
    assert cli.main(args) == 1
    assert "--layout BTHD" in capsys.readouterr().out
    assert cli.main([*args, "--layout", "BDHT"]) == 2
    assert "layout must be one of BHTD, BTHD" in capsys.readouterr().err


# ---------------------------------------------------------------------------- (out, lse) as outputs


def with_lse(base=1.0, through=True, module=softmax):
    """The module's pair, which returns lse too; through=False: nothing comes back through lse."""
    def forward(*arrays, **options):
        out, cache = module.forward(*arrays, **options)
        return out, cache.lse / np.float32(base), cache

    def backward(dout, cache, dlse):
        dlse = dlse / np.float32(base) if through else None
        return core.attend_backward(dout, cache, dlse)
    return forward, backward


@pytest.mark.parametrize("base, name", [(1, "e"), (np.log(2), "2")])
def test_lse_and_its_gradient(base, name):
    cases = [*PLAIN, "fully_masked_row", "bias", "score_shift", "tq_ne_tk"]
    for module in (softmax, sink):
        mechanism = module.__name__.rpartition(".")[2]
        found = check(mechanism, with_lse(base, module=module), lse=name, cases=cases, show=False)
        assert found.ok and found.count(report.PASSED) == len(found.results), str(found)
        assert all("lse" in [t.name for t in r.tensors] for r in found.results)
    other = "2" if name == "e" else "e"
    wrong = check("softmax", with_lse(base), lse=other, cases=["causal"], show=False)
    assert {t.name for t in wrong.results[0].tensors if not t.ok} == {"lse", "dq", "dk"}
    deaf = check("softmax", with_lse(base, through=False), lse=name, cases=["causal"], show=False)
    assert {t.name for t in deaf.results[0].tensors if not t.ok} == {"dq", "dk"}


@pytest.mark.slow
def test_lse_in_torch_and_jax():
    jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")

    def in_torch(q, k, v, lower=lambda x: x):
        s = q @ k.transpose(2, 3) * q.shape[3]**-0.5
        return torch.softmax(s, 3) @ v, lower(torch.logsumexp(s.float(), 3))

    def in_jax(q, k, v):
        s = q @ k.swapaxes(2, 3) * q.shape[3]**-0.5
        return jax.nn.softmax(s, axis=3) @ v, jax.nn.logsumexp(s, axis=3)
    how = {"cases": ["noncausal"], "show": False, "time_limit": 300}
    for dtype in ("float32", "bfloat16"):
        found = check("softmax", in_torch, framework="torch", dtype=dtype, lse="e", **how)
        assert found.ok, str(found)
    assert check("softmax", in_jax, framework="jax", lse="e", **how).ok
    cut = lambda *arrays: in_torch(*arrays, lower=torch.detach)
    found = check("softmax", cut, framework="torch", lse="e", **how)
    assert "lse (exclude dlse?) is cut off" in str(found)
    assert check("softmax", cut, framework="torch", lse="e", exclude=["dlse"], **how).ok
    one = lambda *arrays: in_torch(*arrays)[0]
    assert "must return (out, lse)" in str(check("softmax", one, framework="torch", lse="e", **how))


def test_an_lse_that_nobody_asked_for_is_mentioned():
    def forward(q, k, v, **options):
        return with_lse()[0](q, k, v, **options)[:2]
    found = check("softmax", forward, cases=["causal"], show=False)
    assert found.ok and "HINT  your function seems to return (out, lse): --lse e" in str(found)
    assert "further outputs not covered" in str(found)
    forward, backward = with_lse()
    found = check("softmax", (forward, softmax.backward), cases=["causal"], show=False)
    assert found.ok and "HINT" in str(found)                 # its cache is the last thing
    with pytest.raises(InputError, match="mechanism of an lse must be one of softmax"):
        check("linear", softmax, lse="e")
    with pytest.raises(InputError, match="lse must be one of e, 2; got '10'"):
        check("softmax", softmax, lse="10")


# ---------------------------------------------------------------------------------- conventions


def dense(q, k, v, empty="zero", start=False, bug=0, **options):
    """Softmax attention in NumPy with somebody else's conventions, and its backward's cache."""
    if start:
        options["align"] = "start"
    out, cache = softmax.forward(q, k, v, **options)
    see = naive.rows_that_see(q.shape[2], k.shape[2], **{
        n: x for n, x in options.items() if n not in ("scale", "softcap", "log_length")})
    none = ~np.broadcast_to(see, (*q.shape[:3], k.shape[2])).any(axis=3)
    means = np.repeat(v.mean(axis=2, keepdims=True), q.shape[1] // v.shape[1], axis=1)
    fill = {"zero": 0, "nan": np.nan, "mean": means, "first": v[:, :, :1]}[empty]
    saved = cache, none, empty
    return np.where(none[..., None], fill, out + bug * (out > 1)).astype(q.dtype), saved


def dense_backward(dout, saved):
    cache, none, empty = saved
    grads = softmax.backward(dout, cache)
    if empty == "nan":                                       # 0 times NaN is NaN
        grads["q"] = np.where(none[..., None], np.nan, grads["q"]).astype(dout.dtype)
        for name in ("k", "v"):
            grads[name] = np.where(none.any(axis=2)[..., None, None], np.nan, grads[name])
            grads[name] = grads[name].astype(dout.dtype)
    if empty == "mean":
        lost = np.where(none[..., None], dout, 0).sum(axis=2, keepdims=True) / cache.v.shape[2]
        grads["v"] = (grads["v"] + lost).astype(dout.dtype)
    return grads


@pytest.mark.parametrize("empty, words", [("nan", "NaN"), ("mean", "the mean of all values")])
def test_rows_that_see_nothing_are_a_convention(empty, words):
    pair = partial(dense, empty=empty), dense_backward
    cases = ["causal", "fully_masked_row", "tq_ne_tk"]
    found = check("softmax", pair, cases=cases, show=False)
    differ = [r.id for r in found.results if r.status == report.DIFFERS]
    assert found.ok and set(differ) == {*(r.id for r in found.results
                                          if r.family == "fully_masked_row"),
                                        "tq_ne_tk/Tq=7,Tk=5,align=end"}
    said = str(found)
    assert f"rows that see nothing are {words} (0 in minattn)" in said
    passed = len(found.results) - 4
    assert f"all good but for conventions: {passed} passed, 4 differ by convention" in said
    assert json.loads(found.to_json())["cases"][1]["status"] == report.DIFFERS
    suites = {s.get("name"): s for s in ElementTree.fromstring(found.to_junit())}
    suite = suites["softmax.fully_masked_row"]
    assert suite.get("failures") == "0" and suite.get("skipped") == "3"
    assert suite[0][0].get("message").startswith("differs by convention: rows")
    ours = check("softmax", pair, cases=cases, conventions="ours", show=False)
    assert [r.id for r in ours.failed] == differ
    wrong = check("softmax", (partial(dense, empty=empty, bug=1e-3), dense_backward),
                  cases=["fully_masked_row"], show=False)    # all other rows are still compared
    assert len(wrong.failed) == 3
    found = check("softmax", (partial(dense, empty="first"), dense_backward),
                  cases=["fully_masked_row"], show=False)    # nobody's convention
    assert len(found.failed) == 3


def test_alignment_is_a_convention_where_align_is_no_argument():
    def forward(q, k, v, *, causal=False, window=None, allowed=True, bias=None, start=True):
        options = {} if allowed is True else {"allowed": allowed}
        return dense(q, k, v, causal=causal, window=window, bias=bias, start=start, **options)
    cases = ["tq_ne_tk", "prime_sizes", "combinations/Tq=1,Tk=300,*causal*"]
    found = check("softmax", (forward, dense_backward), cases=cases, exclude=["prefix", "scale"],
                  show=False, time_limit=300)
    by_id = {r.id: r for r in found.results}
    assert found.ok and by_id["tq_ne_tk/Tq=5,Tk=7,align=end"].status == report.DIFFERS
    assert by_id["tq_ne_tk/Tq=5,Tk=7,align=start"].status == report.NOT_COVERED
    assert by_id["prime_sizes/Tq=5,Tk=7"].status == report.PASSED
    assert "causal masks are aligned at the start (at the end in minattn)" in str(found)
    ours = check("softmax", (partial(forward, start=False), dense_backward), cases=["tq_ne_tk"],
                 show=False)
    assert not ours.count(report.DIFFERS) and ours.count(report.PASSED) == 4

    def takes_it(q, k, v, *, align="end", **options):
        return dense(q, k, v, start=True, **options)
    assert check("softmax", (takes_it, dense_backward), cases=["tq_ne_tk"], show=False).failed


def test_a_convention_is_no_failure_of_the_plugin(tmp_path):
    (tmp_path / "test_kernel.py").write_text(
        "from functools import partial\n"
        "from test_validate_forms import dense, dense_backward\n"
        "from minattn.validate.pytest_plugin import suite\n"
        "how = {'cases': ['fully_masked_row', 'causal']}\n"
        "kernel = partial(dense, empty='nan'), dense_backward\n"
        "TestTheirs = suite('softmax', kernel, **how)\n"
        "TestOurs = suite('softmax', kernel, conventions='ours', **how)\n")
    done = run_pytest(tmp_path, "-k", "Theirs")
    assert "1 passed" in done.stdout and "3 xfailed" in done.stdout
    assert "differs by convention: rows that see nothing are NaN" in done.stdout
    assert "3 failed" in run_pytest(tmp_path, "-k", "Ours").stdout


# --------------------------------------------------------- said in one sentence; sequences of calls


def test_gradients_may_be_called_dq_dk_dv():
    def backward(dout, cache):
        return {"d" + n: x for n, x in softmax.backward(dout, cache).items()}
    assert check("softmax", (softmax.forward, backward), cases=["causal", "bias"], show=False).ok


def test_a_forgotten_framework_is_recognised():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")

    class Layer:
        def __call__(self, q, k, v):
            return torch.softmax(q, 3) @ v

    def imports(q, k, v):
        import torch as inside
        return inside.softmax(q, 3)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    returns = lambda q, k, v: torch.from_numpy(v.copy())
    for fn, name in ((Layer(), "torch"), (imports, "torch"), (sdpa, "torch"), (returns, "torch"),
                     (lambda q, k, v: jax.numpy.asarray(v), "jax")):
        found = check("softmax", fn, cases=["noncausal"], show=False)
        assert f"it got NumPy arrays: for those of {name}, choose --framework {name}" in str(found)
    bad = eval("lambda q, k, v: np.linalg.inv(np.zeros((2, 2)))",   # another error is left alone,
               {"np": np, "other": torch})            # with a module beside it that it does not use
    assert "choose" not in str(check("softmax", bad, cases=["noncausal"], show=False))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_functions_meet_every_case_and_what_is_not_compiled_is_said(monkeypatch):
    torch = pytest.importorskip("torch")

    def broken(q, k, v, scale=None):
        out = torch.softmax(q @ k.transpose(2, 3) * (scale or q.shape[3]**-0.5), 3) @ v
        return out * 1.5 if torch.compiler.is_compiling() else out
    how = {"framework": "torch", "time_limit": 300, "show": False}
    import torch._dynamo as compiler
    monkeypatch.setattr(compiler.config, "recompile_limit", 1)      # then PyTorch gives up
    cases = ["noncausal", "prime_sizes", "one_token"]
    compiled = torch.compile(broken, backend="eager", dynamic=False)
    without = ["gradients", "causal"]
    found = check("softmax", compiled, cases=cases, exclude=without, **how)
    assert len(found.failed) == 3 and not found.count(report.PASSED)

    def apart(q, k, v):
        s = torch.softmax(q @ k.transpose(2, 3) * q.shape[3]**-0.5, 3)
        torch._dynamo.graph_break()
        return s @ v
    found = check("softmax", torch.compile(apart, backend="eager"), cases=["noncausal"], **how)
    assert found.ok, str(found)
    assert "HINT  PyTorch compiled your function in parts" in str(found)


def in_torch(wrong, torch):
    """Attention in PyTorch that goes wrong in one sequence of calls."""
    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, P, v):
            ctx.save_for_backward(P.clone(), v)
            return P @ v

        @staticmethod
        def backward(ctx, dout):
            P, v = ctx.saved_tensors
            dP, dv = dout @ v.transpose(2, 3), P.transpose(2, 3) @ dout
            if wrong == "twice":
                P.data.zero_()
            return dP, dv

    def fn(q, k, v):
        P = torch.softmax(q @ k.transpose(2, 3) * q.shape[3]**-0.5, 3)
        out = Attention.apply(P, v)
        if wrong == "no grad" and not torch.is_grad_enabled():
            return out * 1.5
        if wrong == "alias" and k.shape[2] == 1:
            return v.view_as(v)
        return out
    return fn


@pytest.mark.parametrize("wrong, kind", [("", None), ("twice", "not repeatable"),
                                         ("no grad", "values"), ("alias", "shared output")])
def test_sequences_of_calls_in_torch(wrong, kind):
    torch = pytest.importorskip("torch")
    found = check("softmax", in_torch(wrong, torch), framework="torch", show=False,
                  exclude=["causal"], cases=["noncausal", "one_token"])
    kinds = {f.kind for r in found.failed for f in r.findings}
    assert kinds - {"gradient"} == ({kind} if kind else set())
    if wrong == "no grad":
        assert "where no gradient is asked for, out is off by" in str(found)


def test_races_are_found_by_repeating():
    rare = []

    def forward(q, k, v, **options):
        rare.append(1)
        out, cache = softmax.forward(q, k, v, **options)
        return out + np.float32(1e-7 if len(rare) % 50 == 0 else 0), cache
    how = {"cases": ["causal"], "show": False}
    assert check("softmax", (forward, softmax.backward), **how).ok
    found = check("softmax", (forward, softmax.backward), repeat=100, **how)
    assert "out is different when the same call is made again" in str(found)
    assert "each case was called 101 times, for races" in str(found)
    with pytest.raises(InputError, match="repeat must be"):
        check("softmax", softmax, repeat=0, **how)


# ---------------------------------------------------------------------------------------- bad input


def test_rules_of_a_suite_that_match_nothing(tmp_path):
    rules = tmp_path / "rules.txt"
    rules.write_text("casual/T skip known\n")
    with pytest.raises(InputError, match="matches no case. Did you mean 'causal/T'"):
        suite("softmax", softmax, skip_file=rules, cases=["causal"])


@pytest.mark.parametrize("sizes, words", [
    ({"H": 3, "Hkv": 2}, "H = 3 is no multiple of Hkv = 2"),
    ({"B": 0}, "B must be"), ({"D": 10**9}, "memory")])
def test_sizes_that_nobody_can_meet(sizes, words):
    with pytest.raises(InputError, match=words):
        check("softmax", softmax, sizes=sizes, show=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals")
def test_a_process_that_is_ended_for_its_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full.py").write_text(
        "import os\nfrom minattn.attention import softmax\n"
        "def f(q, k, v, **o):\n"
        "    if o.get('window') == 2:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return softmax.forward(q, k, v, **o)[0]\n")
    args = ["check", "full.py:f", "--case", "causal", "--case", "window/W=[12]"]
    assert cli.main([*args, "--time-limit", "300"]) == 1
    out = capsys.readouterr().out
    assert "crashed the process (SIGKILL), as when the memory is full." in out
    assert "2 passed, 1 failed" in out


# ------------------------------------------------------------------- packed sequences, paged caches


def varlen(q, k, v, *, causal=False, cu_seqlens, scale=None, bug=""):
    """Sequence by sequence; its backward goes the same way."""
    parts = [slice(a, b) for a, b in zip(cu_seqlens, cu_seqlens[1:])]
    parts = parts[:-1] if bug == "last" else parts
    out, caches = np.zeros((*q.shape[:3], v.shape[3]), q.dtype), []
    for part in parts:
        out[:, :, part], cache = softmax.forward(*(x[:, :, part] for x in (q, k, v)),
                                                 causal=causal, scale=scale)
        caches.append((part, cache, q, k, v))
    return out, caches


def varlen_backward(dout, caches):
    grads = {n: np.zeros_like(x) for n, x in zip("qkv", caches[0][2:])}
    for part, cache, *_ in caches:
        for n, x in softmax.backward(dout[:, :, part], cache).items():
            grads[n][:, :, part] = x
    return grads


def test_packed_sequences_in_three_forms():
    how = {"cases": ["packed"], "show": False, "exclude": ["allowed"]}
    found = check("softmax", (varlen, varlen_backward), **how)
    assert found.ok and found.count(report.PASSED) == 3, str(found)
    assert len(check("softmax", (partial(varlen, bug="last"), varlen_backward), **how).failed) == 3

    def by_segments(q, k, v, *, segments, **options):
        assert segments.dtype == np.int32 and segments.shape == (1, q.shape[2])
        same = segments[:, None, :, None] == segments[:, None, None]
        return softmax.forward(q, k, v, allowed=same, **options)
    assert check("softmax", (by_segments, softmax.backward), **how).count(report.PASSED) == 3
    masks = check("softmax", softmax, cases=["packed"], show=False)
    assert masks.count(report.PASSED) == 3
    assert check("softmax", softmax, **how).count(report.NOT_COVERED) == 3


def test_packed_sequences_in_torch():
    torch = pytest.importorskip("torch")

    def fn(q, k, v, *, causal=False, cu_seqlens):
        assert cu_seqlens.dtype == torch.int32
        ends = cu_seqlens.tolist()
        sdpa = torch.nn.functional.scaled_dot_product_attention
        return torch.cat([sdpa(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], is_causal=causal)
                          for a, b in zip(ends, ends[1:])], dim=2)
    found = check("softmax", fn, framework="torch", cases=["packed"], show=False)
    assert found.ok and {t.name for t in found.results[0].tensors} == {"out", "dq", "dk", "dv"}


def test_decoding_against_a_paged_cache():
    def gather(pool, table):
        return np.concatenate([pool[table[:, n]] for n in range(table.shape[1])], axis=2)

    def fn(q, k, v, *, block_table, lengths, bug=0):
        k, v = gather(k, block_table), gather(v, block_table)
        see = np.arange(k.shape[2]) < lengths[:, None] + bug
        return softmax.forward(q, k, v, allowed=see[:, None, None])
    how = {"cases": ["decode"], "show": False}
    found = check("softmax", (fn, softmax.backward), exclude=["allowed"], **how)
    assert found.ok and {t.name for t in found.results[0].tensors} == {"out", "dq"}
    assert check("softmax", softmax, **how).ok
    assert check("softmax", (partial(fn, bug=1), softmax.backward), **how).failed


# ------------------------------------------------------------------------- further frameworks, slow


def attention_of(softmax, turn):
    def fn(q, k, v, *, scale=None, bias=None, bug=0):
        s = (q @ turn(k)) * (q.shape[3]**-0.5 if scale is None else scale)
        P = softmax(s if bias is None else s + bias)
        return (P - bug * P * P) @ v
    return fn


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_mlx_arrays(dtype):
    mlx = pytest.importorskip("mlx.core")
    fn = attention_of(lambda s: mlx.softmax(s, axis=-1), lambda x: mlx.swapaxes(x, 2, 3))
    how = {"framework": "mlx", "dtype": dtype, "show": False}
    found = check("softmax", fn, cases=["noncausal", "bias/per_key", "scale"], **how,
                  exclude=["causal"])
    assert found.ok and {t.name for t in found.results[1].tensors} == {"out", "dq", "dk", "dv",
                                                                       "dbias"}
    assert check("softmax", partial(fn, bug=0.1), cases=["noncausal"], **how).failed
    both = lambda q, k, v: (fn(q, k, v), mlx.logsumexp(q @ mlx.swapaxes(k, 2, 3)
                                                       * q.shape[3]**-0.5, axis=-1))
    assert check("softmax", both, cases=["noncausal"], lse="e", **how).ok


@pytest.mark.slow
def test_tinygrad_tensors(monkeypatch):
    monkeypatch.setenv("DEV", "PYTHON")                      # needs no compiler
    tinygrad = pytest.importorskip("tinygrad")
    try:
        tinygrad.Tensor([1.0]).sum().item()
    except RuntimeError as error:
        pytest.skip(f"tinygrad: {error}")
    fn = attention_of(lambda s: s.softmax(3), lambda x: x.transpose(2, 3))
    how = {"framework": "tinygrad", "show": False, "cases": ["noncausal"], "time_limit": 300,
           "sizes": {"B": 1, "H": 1, "D": 4, "Dv": 4}}
    for dtype in ("float32", "bfloat16"):
        found = check("softmax", fn, dtype=dtype, **how)
        assert found.ok and len(found.results[0].tensors) == 4, str(found)
    assert check("softmax", partial(fn, bug=0.1), **how).failed


# ------------------------------------------------- kernels of a GPU on a CPU: Triton, Pallas, slow


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
def test_a_triton_kernel_interpreted(monkeypatch, capsys):
    """The kernel of docs/gpu_kernels.py, forward"""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    args = ["check", f"{ROOT}/docs/gpu_kernels.py:tiled", "--framework", "torch",
            "--sizes", "D=16,Dv=16", "--exclude", "window,prefix,allowed,bias,gradients",
            "--time-limit", "600", "--case", "causal", "--case", "prime_sizes",
            "--case", "long/T=97*", "--case", "tq_ne_tk"]
    assert cli.main(args) == 0
    assert "all good: 10 passed, 3 not covered" in capsys.readouterr().out


@pytest.mark.slow
def test_a_pallas_kernel_interpreted():
    jax = pytest.importorskip("jax")
    from jax.experimental import pallas

    def kernel(q, k, v, out, *, scale, causal):
        s = q[0] @ k[0].T * scale
        if causal:
            i, j = (jax.lax.broadcasted_iota(int, s.shape, axis) for axis in (0, 1))
            s = jax.numpy.where(j <= i, s, -1e30)
        out[0] = jax.nn.softmax(s, axis=1) @ v[0]

    def attention(q, k, v, *, scale=None, causal=False, bug=1):
        (B, H, Tq, D), Tk, Dv = q.shape, k.shape[2], v.shape[3]
        block = lambda T, width: pallas.BlockSpec((1, T, width), lambda head: (head, 0, 0))
        call = pallas.pallas_call(
            partial(kernel, scale=bug * (D**-0.5 if scale is None else scale), causal=causal),
            out_shape=jax.ShapeDtypeStruct((B * H, Tq, Dv), q.dtype), grid=(B * H,),
            in_specs=[block(Tq, D), block(Tk, D), block(Tk, Dv)], out_specs=block(Tq, Dv),
            interpret=True)
        flat = lambda x: x.reshape(B * H, *x.shape[2:])
        return call(flat(q), flat(k), flat(v)).reshape(B, H, Tq, Dv)
    how = {"framework": "jax", "exclude": ["gradients"], "show": False, "time_limit": 600,
           "cases": ["causal", "noncausal", "prime_sizes", "odd_head_dim/D=3"]}
    found = check("softmax", attention, **how)
    assert found.ok and found.count(report.PASSED) == 4, str(found)
    assert len(check("softmax", partial(attention, bug=1.01), **how).failed) == 4
