"""What somebody's function may look like, and what the kit says where it looks otherwise."""
import pytest

from minattn import cli
from minattn.attention import gated, softmax
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
