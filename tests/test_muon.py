"""Muon against literal float64 forms, torch.optim.Muon, and itself on other numbers of threads."""
import json

import numpy as np
import pytest
from scipy.optimize import linprog

from minattn import cli, data, model, muon, parallel, runs, train
from minattn.errors import InputError

SHAPES = [(5, 5), (7, 3), (3, 7), (16, 64), (64, 16), (1, 4)]


def literal(u, coefficients=5 * ((3.4445, -4.7750, 2.0315),)):
    """Newton-Schulz as published: on the matrix itself, transposed if it is tall."""
    X = u / (np.sqrt((u * u).sum()) + 1e-7)
    X = X.T if len(u) > len(u.T) else X
    for a, b, c in coefficients:
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X.T if len(u) > len(u.T) else X


def nearest_to_1(low, high):
    """(a, b, c) of the a s + b s^3 + c s^5 nearest to 1 on [low, high], and its largest error"""
    s = np.geomspace(low, high, 2000)
    powers, error = np.stack([s, s**3, s**5], axis=1), -np.ones((len(s), 1))
    found = linprog([0, 0, 0, 1], np.block([[powers, error], [-powers, error]]),
                    np.concatenate([np.ones(len(s)), -np.ones(len(s))]), bounds=(None, None))
    return found.x[:3], found.x[3]


@pytest.mark.parametrize("steps", muon.COEFFICIENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalise_is_the_published_iteration(shape, steps):
    u, coefficients = np.random.default_rng(0).standard_normal(shape), muon.COEFFICIENTS[steps]
    expected = literal(u, coefficients)
    np.testing.assert_allclose(muon.orthogonalise(u, steps), expected, rtol=0, atol=1e-10)
    single = muon.orthogonalise(u.astype(np.float32), steps)
    # with three steps, terms of 25 cancel: they cost a digit
    np.testing.assert_allclose(single, expected, rtol=0, atol=2e-4 if steps == 5 else 1e-3)
    assert steps != 5 or np.array_equal(expected, literal(u))


def test_three_steps_are_each_the_nearest_to_1():
    low, high = 0.003, 1.0
    for coefficients in muon.COEFFICIENTS[3]:
        found, error = nearest_to_1(low, high)
        np.testing.assert_allclose(coefficients, found, rtol=2e-3)
        low, high = 1 - error, 1 + error


@pytest.mark.parametrize("shape", [(32, 32), (32, 128), (128, 32)])
def test_singular_values_end_near_1(shape):
    s = np.linalg.svd(muon.orthogonalise(np.random.default_rng(1).standard_normal(shape)))[1]
    assert 0.6 < s.min() and s.max() < 1.3
    three = np.linalg.svd(muon.orthogonalise(np.diag([1.0, 0.03, 0.01]), 3))[1]
    assert 0.35 < three.min() and three.max() < 1.65


def test_zero_gradient_moves_nothing():
    assert np.array_equal(muon.orthogonalise(np.zeros((3, 4))), np.zeros((3, 4)))


@pytest.mark.parametrize("u", [np.ones(3), np.ones((2, 3, 3)), [[1.0]]])
def test_what_muon_cannot_take(u):
    with pytest.raises(InputError, match="Muon takes matrices; got "):
        muon.orthogonalise(u)


@pytest.mark.parametrize(("change", "words"), [
    ({"g": 1.0}, "g must be a NumPy array of shape"), ({"g": np.ones(4)}, "g must have 2 axes"),
    ({"m": np.zeros((3, 1))}, "m: axis 1"), ({"w": np.ones((3, 4), int)}, "w must be float32 or"),
    ({"momentum": np.nan}, "momentum must be a finite number"), ({"lr": None}, "lr must be")])
def test_steps_that_broadcasting_would_hide(change, words):
    arguments = {"w": np.ones((3, 4)), "g": np.ones((3, 4)), "m": np.zeros((3, 4)), "lr": 0.1}
    with pytest.raises(InputError, match=words):
        muon.step(**{**arguments, **change})


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_those_of_pytorch(shape):
    """torch.optim.Muon iterates in bfloat16, so its digits are compared; weights are (out, in)."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    rng = np.random.default_rng(2)
    w, m = rng.standard_normal(shape), np.zeros(shape)
    theirs = torch.nn.Parameter(torch.tensor(w.T.copy()))
    optimiser = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.3)
    for _ in range(3):
        g = rng.standard_normal(shape)
        theirs.grad = torch.tensor(g.T.copy())
        optimiser.step()
        muon.step(w, g, m, 0.1, momentum=0.9, weight_decay=0.3)
    np.testing.assert_allclose(w, theirs.detach().numpy().T, rtol=0, atol=0.02)


def test_steps_are_the_literal_form():
    rng = np.random.default_rng(3)
    w, m = rng.standard_normal((6, 9)), np.zeros((6, 9))
    W, M = w.copy(), m.copy()
    for _ in range(4):
        g = rng.standard_normal((6, 9))
        M = 0.8 * M + g
        W = W * (1 - 0.1 * 0.3) - 0.1 * np.sqrt(9 / 6) * literal(g + 0.8 * M)
        muon.step(w, g, m, 0.1, momentum=0.8, weight_decay=0.3)
    np.testing.assert_allclose(w, W, rtol=0, atol=1e-10)


def test_matrices_are_those_inside_the_layers():
    config = model.Config(n_layer=1, n_head=4, n_embd=8, n_kv_head=2, bias=True, qk_norm=True,
                          attention="energy+gated")
    found = model.matrices(config)
    assert {name for name, _ in found} == {
        f"h.0.{name}.weight" for name in ("attn.c_attn", "attn.energy", "attn.gate_logits",
                                          "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    split = [columns for name, columns in found if name.endswith("c_attn.weight")]
    assert split == [slice(0, 8), slice(8, 12), slice(12, 16)]


def trained(threads):
    """Three updates with random gradients -> Muon's state, and AdamW's"""
    config = model.Config(vocab_size=11, block_size=5, n_layer=2, n_head=2, n_embd=8)
    settings = train.Settings(optimizer="muon", warmup=0, clip=0.0)
    params, _ = model.init(config, 0)
    states = parallel.start(params, matrices=model.matrices(config)), parallel.start(params)
    rng = np.random.default_rng(4)
    with parallel.workers(threads) as pool:
        for _ in range(3):
            for name, shape in states[0].shapes.items():
                grad = rng.standard_normal(shape)
                for state in states:
                    state.grads[name][...] = grad
            for state in states:
                parallel.update(state, settings, pool)
    return states


def test_an_update_takes_each_parameter_once():
    """Muon for the matrices, AdamW for the rest, and the same bits on any number of threads."""
    state, plain = trained(1)
    taken = {name for name, _ in state.muon}
    for name, a in state.params.items():
        assert np.array_equal(a, plain.params[name]) == (name not in taken), name
    for threads in (2, 3):
        assert np.array_equal(trained(threads)[0].p, state.p)


def test_trains_resumes_bit_for_bit(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("orthogonal updates learn this line in a few steps.\n" * 60, "utf-8")
    argv = ["train", "--corpus", str(corpus), "--n-layer", "1", "--n-head", "2", "--n-embd", "16",
            "--block-size", "16", "--batch-size", "4", "--eval-interval", "20", "--lr", "0.003",
            "--optimizer", "muon", "--steps", "40", "--checkpoint-interval", "20"]
    assert cli.main([*argv, "--out", str(tmp_path / "whole")]) == 0
    assert cli.main([*argv, "--out", str(tmp_path / "half")]) == 0
    assert cli.main(["train", "--resume", str(tmp_path / "half" / runs.PREVIOUS)]) == 0
    whole, half = (runs.load(tmp_path / name) for name in ("whole", "half"))
    settings = json.loads((tmp_path / "whole" / "config.json").read_text())["train"]
    assert settings["optimizer"] == "muon"
    for name, array in whole.checkpoint.params.items():
        np.testing.assert_array_equal(array, half.checkpoint.params[name])


@pytest.mark.parametrize("flags, said", [
    (["--optimizer", "sgd"], "optimizer must be one of adamw, muon; got 'sgd'"),
    (["--momentum", "1"], "momentum must be at least 0 and at most 0.9999; got 1"),
    (["--momentum", "-0.1"], "momentum must be at least 0"),
    (["--muon-lr", "0"], "muon_lr must be above 0; got 0"),
    (["--muon-steps", "4"], "muon_steps must be one of 5, 3; got 4"),
    (["--schedule", "step"], "schedule must be one of cosine, linear; got 'step'"),
    (["--cooldown", "2"], "cooldown must be at least 0 and at most 1; got 2"),
])
def test_bad_settings(flags, said, tmp_path, capsys):
    assert cli.main(["train", *flags, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_preset_fast_reaches_its_loss(tmp_path):
    """1.86 on average: nanoGPT's loss on a CPU, 1.88, and the spread of the seeds (0.02)."""
    if data.load_corpus("tinyshakespeare", say=lambda text: None).name != "tinyshakespeare":
        pytest.skip("needs the real text")
    settings, shape = train.settings_for("fast", {"eval_interval": 10_000})
    run = train.start(settings, shape, tmp_path / "run", say=lambda text: None)
    assert runs.read_metrics(run.folder)[-1]["val_loss"] < 1.90
