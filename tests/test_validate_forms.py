"""What somebody's function may look like, and what the kit says where it looks otherwise."""
import numpy as np
import pytest

from minattn import cli
from minattn.attention import core, gated, sink, softmax
from minattn.errors import InputError
from minattn.validate import check, report

PLAIN = ["causal", "noncausal", "prime_sizes"]


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
    cases = [*PLAIN, "bias", "padding", "tq_ne_tk", "combinations/Tq=1,Tk=130*"]
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


def test_swapped_axes_in_torch_and_jax():
    jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")
    sdpa = torch.nn.functional.scaled_dot_product_attention
    turned = lambda q, k, v: sdpa(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    for framework, fn in (("torch", turned), ("jax", jax.nn.dot_product_attention)):
        how = {"framework": framework, "cases": ["noncausal"], "show": False,
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


def test_lse_in_torch_and_jax():
    jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")

    def in_torch(q, k, v, lower=lambda x: x):
        s = q @ k.transpose(2, 3) * q.shape[3]**-0.5
        return torch.softmax(s, 3) @ v, lower(torch.logsumexp(s.float(), 3))

    def in_jax(q, k, v):
        s = q @ k.swapaxes(2, 3) * q.shape[3]**-0.5
        return jax.nn.softmax(s, axis=3) @ v, jax.nn.logsumexp(s, axis=3)
    how = {"cases": ["noncausal"], "show": False}
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
