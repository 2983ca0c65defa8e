"""docs/add_a_mechanism.md, followed to the letter: its code, and nothing else, makes a mechanism.
"""

import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from attention_cases import MASKS

from minattn import checks, cli, generate, model, positions, runs
from minattn.attention import MECHANISMS, naive, register, rules
from minattn.errors import InputError
from minattn.positions import POSITIONS
from minattn.validate.causality import causality
from minattn.validate.check import check
from minattn.validate.gradients import assert_gradients

PAGE = (Path(__file__).parents[1] / "docs" / "add_a_mechanism.md").read_text(encoding="utf-8")
MODULE, NAIVE, TORCH = re.findall(r"```python\n(.*?)```", PAGE, re.S)
SETTINGS = [
    "--preset",
    "demo",
    "--n-layer",
    "2",
    "--n-head",
    "2",
    "--n-embd",
    "16",
    "--block-size",
    "16",
    "--batch-size",
    "4",
    "--eval-interval",
    "4",
    "--threads",
    "1",
]


@pytest.fixture
def softcap(monkeypatch):
    """The mechanism of the page, registered while a test runs -> its module"""
    monkeypatch.setattr("minattn.attention.MECHANISMS", MECHANISMS)
    module = ModuleType("softcap")
    exec(MODULE, module.__dict__)
    pair = dict(naive.__dict__)
    exec(NAIVE, pair)
    before = dict(MECHANISMS)
    register("softcap", module, pair["softcap_forward"], pair["softcap_backward"])
    yield module
    MECHANISMS.clear()
    MECHANISMS.update(before)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    text = "the cap bounds every score, and a bounded score cannot run away.\n" * 40
    path.write_text(text, encoding="utf-8")
    return path


def train(corpus, out, steps, *more):
    argv = ["train", *SETTINGS, "--corpus", str(corpus), "--out", str(out), "--steps", str(steps)]
    return cli.main([*argv, *more])


def test_the_page_caps_scores(softcap):
    q = np.full((1, 1, 2, 1), 100.0)
    k = np.array([100.0, -100.0]).reshape(1, 1, 2, 1)
    weights = softcap.forward(q, k, k, cap=1.0, return_weights=True)[2]
    np.testing.assert_allclose(weights[0, 0, :, 0], 1 / (1 + np.exp(-2)))


@pytest.mark.parametrize("mask", MASKS)
def test_gradients(softcap, mask):
    rng, options = np.random.default_rng(1), dict(MASKS[mask][0])
    sizes = {"Tq": 5, "Tk": 7, **MASKS[mask][1]}
    arrays = {
        name: rng.standard_normal((2, 3, sizes[T], 11))
        for name, T in (("q", "Tq"), ("k", "Tk"), ("v", "Tk"))
    }
    allowed = options.get("allowed")
    if callable(allowed):
        options["allowed"] = allowed(2, 3, sizes["Tq"], sizes["Tk"])
    assert_gradients(softcap.forward, softcap.backward, arrays, cap=2.0, **options)


def test_equals_its_pytorch_formula(softcap):
    torch = pytest.importorskip("torch")
    from minattn import torch_refs

    formula = dict(torch_refs.attention.__dict__)
    exec(TORCH, formula)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 3, 7, 5)) for _ in "qkv"]
    dout = rng.standard_normal((2, 3, 7, 5))
    bias = rng.standard_normal((3, 7, 7))
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    out = formula["softcap_attention"](*tensors, cap=2.0, causal=True, bias=torch.tensor(bias))
    out.backward(torch.tensor(dout))
    ours, cache = softcap.forward(*arrays, cap=2.0, causal=True, bias=bias)
    grads = softcap.backward(dout, cache)
    np.testing.assert_allclose(ours, out.detach().numpy(), rtol=1e-12, atol=1e-13)
    for name, tensor in zip("qkv", tensors):
        np.testing.assert_allclose(grads[name], tensor.grad.numpy(), rtol=1e-11, atol=1e-12)


def test_trains_resumes_and_samples(softcap, corpus, tmp_path):
    """Half a run and its resumption end at the same bits; the cache writes the same text as none.
    """
    attention = ["--attention", "softcap[cap=5]", "--position", "rope"]
    assert train(corpus, tmp_path / "whole", 8, *attention) == 0
    assert train(corpus, tmp_path / "half", 8, *attention, "--checkpoint-interval", "4") == 0
    run = runs.load(tmp_path / "half", runs.PREVIOUS)
    assert run.checkpoint.step == 4 and run.config.attention == "softcap[cap=5]"
    assert cli.main(["train", "--resume", str(tmp_path / "half" / runs.PREVIOUS)]) == 0
    whole, resumed = (runs.load(tmp_path / name).checkpoint for name in ("whole", "half"))
    assert resumed.step == 8
    for name, array in whole.params.items():
        np.testing.assert_array_equal(array, resumed.params[name])
    run = runs.load(tmp_path / "whole")
    cached, plain = (generate.text(run, "the ", 40, cached=cached) for cached in (True, False))
    assert not generate.recompute_reason(run.config) and cached == plain
    assert cli.main(["sample", str(tmp_path / "whole"), "--prompt", "the ", "--tokens", "5"]) == 0


@pytest.mark.slow
def test_is_validated(softcap):
    """check, quick and by gradient; a wrong backward is caught; the future does not leak."""
    report = check("softcap", softcap, quick=True, show=False)
    assert report.ok, str(report)
    assert any("cap=2.0" in result.id for result in report.results)  # its option is a case

    def backward(dout, cache):
        """As if the scores had not been capped."""
        return softcap.backward(dout, cache._replace(rule=rules.Softmax()))

    assert not check("softcap", (softcap.forward, backward), quick=True, show=False).ok
    assert causality("softcap", options={"cap": 5}).ok


def test_has_golden_vectors(softcap, tmp_path, monkeypatch):
    """Its own answers, and not those of another mechanism."""
    from safetensors.numpy import load_file

    from minattn.validate import golden, vectors

    both = {name: MECHANISMS[name] for name in ("softmax", "softcap")}  # all: test_vectors.py
    monkeypatch.setattr(golden, "MECHANISMS", both)
    vectors.write(tmp_path)
    index = json.loads((tmp_path / vectors.INDEX).read_text(encoding="utf-8"))
    tensors = load_file(tmp_path / vectors.PAYLOAD)
    found = [case for case in index["cases"] if case["mechanism"] == "softcap"]
    assert len(found) > 5 and {case["attributes"]["cap"] for case in found} >= {30.0, 2.0}
    for case in found:
        x = {name: tensors[f"{case['caseId']}/{name}"] for name, about in case["tensors"].items()}
        inputs = {
            name: x[name] if x[name].dtype == bool else x[name].astype(np.float64)
            for name, about in case["tensors"].items()
            if about["role"] == "input"
        }
        out, cache = softcap.forward(**inputs, **case["attributes"])
        np.testing.assert_allclose(x["out"], out, rtol=1e-9, atol=1e-12)
        grads = softcap.backward(x["dout"].astype(np.float64), cache)
        np.testing.assert_allclose(x["dq"], grads["q"], rtol=1e-6, atol=1e-9)


def test_is_inspected_and_compared(softcap, corpus, tmp_path, capsys):
    assert train(corpus, tmp_path / "run", 2, "--attention", "softcap/softmax") == 0
    assert cli.main(["inspect", str(tmp_path / "run"), "--text", str(corpus)]) == 0
    assert "softcap" in capsys.readouterr().out
    argv = [
        "compare",
        "--attention",
        "softmax,softcap[cap=5]",
        "--seeds",
        "0-1",
        "--workers",
        "1",
        "--out",
        str(tmp_path / "all"),
        *SETTINGS,
        "--corpus",
        str(corpus),
        "--steps",
        "2",
    ]
    assert cli.main(argv) == 0
    assert "softcap[cap=5]" in (tmp_path / "all" / "table.md").read_text(encoding="utf-8")


def test_a_name_that_is_registered_again_is_the_new_mechanism(softcap):
    """As in a notebook whose cell runs twice: no layer keeps the old module."""
    config = model.Config(attention="softcap+gated")
    assert model.layers(config)[0].mechanism.module is softcap
    again = ModuleType("softcap")
    exec(MODULE, again.__dict__)
    register("softcap", again, *MECHANISMS["softcap"][2:4])
    assert model.layers(config)[0].mechanism.module is again


def test_is_listed_and_refused_like_the_others(softcap, capsys):
    assert cli.main(["list"]) == 0
    assert re.search(r"softcap +2408\.00118 .* cap=30\.0", capsys.readouterr().out)
    with pytest.raises(InputError, match="cap must be above 0"):
        model.Config(attention="softcap[cap=-1]")
    with pytest.raises(InputError, match="Did you mean 'cap'"):
        model.Config(attention="softcap[cup=1]")


def ramp():
    """A position encoding of its own: a learned vector times the position."""
    module = ModuleType("ramp")
    module.KIND, module.ARXIV, module.SUMMARY = "embedding", None, "A learned ramp."
    module.ARGUMENTS = {"slope": "C"}
    module.OPTIONS = {"step": checks.Option(1.0, number={"above": 0})}

    def parameters(n_embd, block_size, step):
        return {"slope": ((n_embd,), 0.01)}

    def embed(length, n_embd, dtype, start, slope, step):
        p = np.arange(start, start + length, dtype=dtype) * dtype.type(step)
        return p[:, None] * slope, p

    def backward(dcodes, p):
        return {"slope": p @ dcodes}

    module.parameters, module.embed, module.backward = parameters, embed, backward
    return module


def test_a_position_is_added_the_same_way(corpus, tmp_path, monkeypatch):
    """Its row is enough: the model trains it, its gradient is right, and the cache continues it."""
    monkeypatch.setitem(POSITIONS, "ramp", positions.describe("ramp", ramp()))
    assert train(corpus, tmp_path / "run", 4, "--position", "ramp[step=0.5]+rope") == 0
    run = runs.load(tmp_path / "run")
    texts = [generate.text(run, "the ", 40, cached=cached) for cached in (True, False)]
    assert run.config.position == "ramp[step=0.5]+rope" and texts[0] == texts[1]
    assert (run.checkpoint.params["position.ramp.slope"] != np.float32(0.01)).all()

    params = {name: a.astype(np.float64) for name, a in run.checkpoint.params.items()}
    ids = np.arange(14).reshape(2, 7) % run.config.vocab_size

    def loss(slope):
        changed = {**params, "position.ramp.slope": slope}
        return model.forward(changed, ids[:, :-1], run.config, targets=ids[:, 1:])[1]

    cache = model.forward(params, ids[:, :-1], run.config, targets=ids[:, 1:])[2]
    gradient = model.backward(cache, run.config)["position.ramp.slope"]
    way = np.random.default_rng(0).standard_normal(gradient.shape)
    slope = params["position.ramp.slope"]
    measured = (loss(slope + 1e-6 * way) - loss(slope - 1e-6 * way)) / 2e-6
    assert np.sum(gradient * way) == pytest.approx(measured, rel=1e-6)
