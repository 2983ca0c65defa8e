"""In-context recall and the networks that reveal position bias (arXiv 2502.01951): data, gradients,
training, the command.
"""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import run_cases

from minattn import cli, masks, optim, runs
from minattn.attention import softmax
from minattn.errors import InputError, NotFinite
from minattn.experiments.position_bias import command as bias
from minattn.experiments.position_bias import (
    published,
    recall_network,
    recall_task,
    recall_training,
)
from minattn.positions import decay, rotary, sinusoidal
from minattn.studies import executors

B, T, C, LABELS = 3, 7, 22, 5
MASKS = (
    {"mask": "causal"},
    {"mask": "window", "window": 3},
    {"mask": "prefix", "prefix": 2},
    {"mask": "none"},
)
CONFIGS = [
    recall_network.Config(
        layers=layers, width=C, labels=LABELS, position=position, residual=residual, **mask
    )
    for layers, position, residual, mask in itertools.product(
        (1, 3), ("none", "sinusoidal", "rope", "decay"), (False, True), MASKS
    )
    if position != "decay" or mask["mask"] in ("causal", "window")
]
NAMES = [f"{c.layers}-{c.mask}-{c.position}-{'residual' * c.residual}" for c in CONFIGS]
TINY = recall_task.Task(items=4, width=8, classes=11, labels=3, burst=2)
TINY_NETWORK = recall_network.Config(layers=2, width=8, labels=3, position="rope", residual=True)


def setting(config, seed=0):
    """Parameters twice their usual size, so that attention is far from uniform; inputs; a
    cotangent.
    """
    rng = np.random.default_rng(seed)
    params = {name: 2 * a for name, a in recall_network.init(config, seed, np.float64).items()}
    return (
        params,
        rng.standard_normal((B, T, config.width)),
        rng.standard_normal((B, config.labels)),
    )


# -------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_gradients_against_differences(config):
    params, x, cotangent = setting(config)
    _, cache = recall_network.forward(params, config, x)
    grads = recall_network.backward(cotangent.copy(), cache, config)
    assert list(grads) and set(grads) == set(params)
    rng, h = np.random.default_rng(1), 1e-6
    for name, a in params.items():
        direction = rng.standard_normal(a.shape)
        up, down = (
            np.vdot(
                recall_network.forward({**params, name: a + s * h * direction}, config, x)[0],
                cotangent,
            )
            for s in (1, -1)
        )
        assert np.vdot(grads[name], direction) == pytest.approx(
            (up - down) / (2 * h), rel=1e-6, abs=1e-7
        ), name


def plainly(params, config, x):
    """Every query in every layer, one product each, nothing shared -> logits"""
    N, length, width = x.shape
    if config.position == "sinusoidal":
        x = x + sinusoidal.forward(length, width)[0]
    options = {
        "causal": config.mask != "none",
        "window": config.window,
        "prefix": config.prefix or 0,
    }
    if config.position == "decay":
        options["bias"] = decay.forward(length, length, np.full(1, -np.log(0.8)))[0][None]
    for n in range(config.layers):
        q, k, v = (x @ part for part in np.split(params[f"layer{n}.qkv"], 3, axis=1))
        if config.position == "rope":
            q, k = (rotary.forward(part, pairs="interleaved")[0] for part in (q, k))
        out = softmax.forward(q[:, None], k[:, None], v[:, None], **options)[0][:, 0]
        x = x + out if config.residual else out
    h = x[:, -1]
    for n in range(4):
        h = h @ params[f"head{n}.weight"] + params[f"head{n}.bias"]
        h = np.maximum(h, 0) if n < 3 else h
    return h


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_the_last_layer_may_ask_once(config):
    params, x, _ = setting(config)
    np.testing.assert_allclose(
        recall_network.forward(params, config, x)[0],
        plainly(params, config, x),
        rtol=1e-11,
        atol=1e-12,
    )


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_against_pytorch(config):
    torch = pytest.importorskip("torch")
    params, x, cotangent = setting(config)
    logits, cache = recall_network.forward(params, config, x)
    grads = recall_network.backward(cotangent.copy(), cache, config)
    own = {name: torch.tensor(a, requires_grad=True) for name, a in params.items()}
    h, hidden = (
        torch.tensor(x),
        torch.tensor(
            ~masks.visible(
                T, T, causal=config.mask != "none", window=config.window, prefix=config.prefix or 0
            )
        ),
    )
    place = torch.arange(T, dtype=torch.float64)
    angle = place[:, None] * 10000.0 ** (-torch.arange(0, C, 2, dtype=torch.float64) / C)
    if config.position == "sinusoidal":
        h = h + torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)
    for n in range(config.layers):
        q, k, v = (h @ own[f"layer{n}.qkv"]).chunk(3, -1)
        if config.position == "rope":
            turn = torch.polar(torch.ones_like(angle), angle)
            q, k = (
                torch.view_as_real(
                    torch.view_as_complex(part.reshape(B, T, C // 2, 2)) * turn
                ).flatten(-2)
                for part in (q, k)
            )
        scores = q @ k.transpose(1, 2) / C**0.5
        if config.position == "decay":
            scores = scores + np.log(0.8) * (place[:, None] - place)
        out = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        h = h + out if config.residual else out
    h = h[:, -1]
    for n in range(4):
        h = h @ own[f"head{n}.weight"] + own[f"head{n}.bias"]
        h = h.relu() if n < 3 else h
    h.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(logits, h.detach().numpy(), rtol=1e-10, atol=1e-11)
    for name, a in own.items():
        np.testing.assert_allclose(grads[name], a.grad.numpy(), rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    "config",
    [c for c in CONFIGS if c.layers == 3],
    ids=lambda c: f"{c.mask}-{c.position}-{c.residual}",
)
def test_weights_are_those_the_network_uses(config):
    params, x, _ = setting(config)
    maps = recall_network.weights(params, config, x)
    assert [P.shape for P in maps] == [(B, 1, T, T)] * config.layers
    see = masks.visible(
        T, T, causal=config.mask != "none", window=config.window, prefix=config.prefix or 0
    )
    h = x + sinusoidal.forward(T, C)[0] if config.position == "sinusoidal" else x
    for n, P in enumerate(maps):
        np.testing.assert_allclose(P.sum(-1), 1, rtol=1e-12)
        assert not P[:, 0, ~see].any() and (P[:, 0, see] > 0).all()
        h = P[:, 0] @ h @ params[f"layer{n}.qkv"][:, 2 * C :] + (h if config.residual else 0)
    changed = {**params, "head0.weight": np.eye(C), "head0.bias": np.full(C, 1e3)}
    changed |= {
        f"head{n}.{part}": np.eye(C) if part == "weight" else np.zeros(C)
        for n in (1, 2)
        for part in ("weight", "bias")
    }
    changed |= {"head3.weight": np.eye(C)[:, :LABELS], "head3.bias": np.full(LABELS, -1e3)}
    np.testing.assert_allclose(
        recall_network.forward(changed, config, x)[0], h[:, -1, :LABELS], rtol=1e-9, atol=1e-9
    )


def test_init_is_pytorchs_default_and_float32():
    config = recall_network.Config()
    params = recall_network.init(config, 3)
    assert {name: a.shape for name, a in params.items()} == recall_network.parameter_shapes(config)
    for name, a in params.items():
        assert a.dtype == np.float32 and np.abs(a).max() <= 1 / 8, name
        assert np.abs(a).max() > (0.98 if a.size > 1000 else 0.8) / 8 and abs(
            a.mean()
        ) < 5 / 8 / np.sqrt(3 * a.size), name
    logits, _ = recall_network.forward(params, config, np.zeros((B, T, 64), np.float32))
    assert logits.dtype == np.float32


# ----------------------------------------------------------------------------------------- the data


def read_batch(task, world, x):
    """The labels that a batch shows, (B, n), and its vectors, (B, n + 1, d)"""
    shown = x[:, 1::2]
    distance = np.square(shown[:, :, None] - world.contents).sum(axis=-1)
    assert (distance.min(axis=-1) == 0).all()
    return distance.argmin(axis=-1), x[:, 0::2]


def test_training_batches():
    task = recall_task.Task(noise=0)  # every vector is its class's mean
    world = recall_task.world(task, 5)
    x, y = recall_task.training_batch(task, world, np.random.default_rng(0), 53)
    assert x.shape == (53, 17, 64) and x.dtype == np.float32
    labels, vectors = read_batch(task, world, x)
    classes = (
        np.square(vectors[:, :, None] - world.means).sum(axis=-1).argmin(axis=-1)
    )  # (B, n + 1)
    for row, shown, right in zip(classes, labels, y):
        here, copies = np.unique(row[:-1], return_counts=True)
        assert len(here) == 2 and (copies == 4).all()  # burst: 4 copies of each of 2 classes
        assert (world.label_of[row[:-1]] == shown).all()
        assert row[-1] in here and world.label_of[row[-1]] == right
    assert len(np.unique(classes)) > 90  # of 106: nearly all are different


@pytest.mark.parametrize(
    "places",
    [(), ("first",), ("middle",), ("last",), ("first", "last"), ("first", "middle", "last")],
)
def test_training_bias_puts_the_query_there(places):
    task = recall_task.Task(
        items=6, burst=1, noise=0, classes=97
    )  # all items differ: the place can be read off
    world, N = recall_task.world(task, 1), 1009
    x, _ = recall_task.training_batch(task, world, np.random.default_rng(2), N, places)
    vectors = x[:, 0::2]
    matches = (vectors[:, :-1] == vectors[:, -1:]).all(axis=-1)
    assert (matches.sum(axis=1) == 1).all()
    found = np.bincount(matches.argmax(axis=1), minlength=6)
    wanted = [task.place(name) for name in places] or list(range(6))
    assert found.sum() == found[wanted].sum()
    assert np.abs(found[wanted] - N / len(wanted)).max() < 5 * np.sqrt(N / len(wanted))


def test_places():
    task = recall_task.Task()
    assert [task.place(name) for name in recall_task.PLACES] == [0, 4, 7]
    assert recall_task.Task(middle=3).place("middle") == 3


def test_scales():
    for scale, std in (("paper", 1 / 8), ("code", 1 / 64)):
        task = recall_task.Task(scale=scale)
        world = recall_task.world(task, 0)
        x, _ = recall_task.training_batch(task, world, np.random.default_rng(0), 97)
        for a in (world.means, world.contents, x[:, 0::2], x[:, 1::2]):
            assert a.std() == pytest.approx(std, rel=0.04)


def test_noise_within_a_class():
    task = recall_task.Task()
    world = recall_task.world(task, 0)
    x, _ = recall_task.training_batch(task, world, np.random.default_rng(0), 499, ("first",))
    first, query = x[:, 0], x[:, -1]  # the same class, fresh noise on each
    agree = np.mean(np.sum(first * query, axis=1)) * task.std**2 * 64
    assert agree == pytest.approx(
        task.std**2 * 64 / (1 + 0.75**2), rel=0.05
    )  # |mean|^2 / (1 + noise^2)
    assert not (first == query).all(axis=1).any()


def test_novel_batches():
    task, N = recall_task.Task(noise=0), 211
    world = recall_task.world(task, 5)
    for right, other in (pair[::sign] for pair in recall_task.PAIRS for sign in (1, -1)):
        x, y = recall_task.novel_batch(task, world, np.random.default_rng(3), N, right, other)
        labels, vectors = read_batch(task, world, x)
        a, b = task.place(right), task.place(other)
        assert (vectors[:, a] == vectors[:, b]).all() and (vectors[:, a] == vectors[:, -1]).all()
        assert (labels[:, a] == y).all() and (labels[:, b] != y).mean() == pytest.approx(
            4 / 7 * 31 / 32, abs=0.1
        )
        assert (
            np.square(vectors[:, :, None, :8] - world.means[:, :8]).sum(axis=-1).min() > 0
        )  # no class of the training
        same = (vectors[:, :-1] == vectors[:, -1:]).all(axis=-1).sum(axis=1)
        assert set(same) == {4, 5}  # 4 copies, and the other if it was not one
    one, _ = recall_task.novel_batch(task, world, np.random.default_rng(3), N, "first", "last")
    two, _ = recall_task.novel_batch(task, world, np.random.default_rng(3), N, "last", "first")
    np.testing.assert_array_equal(
        one[:, 1::2], two[:, 1::2]
    )  # both orders ask about the same sequences
    np.testing.assert_array_equal(one[:, 2:14], two[:, 2:14])


def test_the_largest_gap_is_that_of_looking_at_the_place_alone():
    assert recall_task.largest_gap(recall_task.Task()) == pytest.approx(
        float(Fraction(4, 7) * Fraction(31, 32)), rel=1e-15
    )
    assert recall_task.largest_gap(recall_task.Task()) == pytest.approx(0.5536, abs=5e-5)
    chance, cases = (
        Fraction(0),
        list(
            itertools.product(
                set(itertools.permutations((0, 0, 1, 1))), itertools.product(range(3), repeat=2)
            )
        ),
    )
    for order, label_of in cases:  # every sequence of 4 items and 3 labels
        chance += Fraction(int(label_of[order[0]] != label_of[order[-1]]), len(cases))
    assert recall_task.largest_gap(TINY) == pytest.approx(float(chance), rel=1e-15)
    task, N = recall_task.Task(), 20011
    world = recall_task.world(task, 1)
    right = []
    for pair in (("first", "last"), ("last", "first")):  # a network that believes the first item
        x, y = recall_task.novel_batch(task, world, np.random.default_rng(4), N, *pair)
        right.append((x[:, 1] == world.contents[y]).all(axis=1).mean())
    assert right[0] == 1
    assert right[0] - right[1] == pytest.approx(
        recall_task.largest_gap(task), abs=4 * np.sqrt(0.25 / N)
    )


def test_published_gaps_stay_below_the_largest():
    for (places, mask, position, _, layers), gaps in published.GAPS.items():
        recall_network.Config(layers=layers, mask=mask, position=position)
        recall_training.Training(places=places)
        assert (
            len(gaps) == 3
            and max(map(abs, gaps)) < recall_task.largest_gap(recall_task.Task()) + 0.01
        )
    assert len(published.GAPS) == 6 * 3 + 4 * 6 and published.GAPS[
        (), "causal", "rope", True, 10
    ] == (0.179, 0.024, -0.153)


# ----------------------------------------------------------------------------------------- training


@pytest.fixture
def often(monkeypatch):
    """Lines, evaluations and checkpoints every few steps."""
    for name, value in (("LOG", 5), ("SAVE", 10), ("EVALUATE", 10), ("ON_THE_WAY", 37)):
        monkeypatch.setattr(recall_training, name, value)


OFTEN = (
    "import sys; from minattn.experiments.position_bias import recall_network, recall_task; "
    "from minattn.experiments.position_bias import recall_training as t; "
    "t.LOG, t.SAVE, t.EVALUATE, t.ON_THE_WAY = 5, 10, 10, 37; "
    f"t.train_network(sys.argv[1], recall_network.{TINY_NETWORK!r}, recall_task.{TINY!r}, "
    "t.Training(batch=13), 7, int(sys.argv[2]))"
)


def tiny(folder, steps, seed=7, **training):
    folder.mkdir(exist_ok=True)
    return recall_training.train_network(
        folder, TINY_NETWORK, TINY, recall_training.Training(batch=13, **training), seed, steps
    )


def outcome(folder):
    """Every array and the metrics but for times"""
    state = recall_training.load(folder, recall_network.parameter_shapes(TINY_NETWORK))
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in runs.read_metrics(folder)]
    return (
        state.step,
        rows,
        {
            f"{n} {name}": a.tobytes()
            for n, part in enumerate(state[:4])
            for name, a in part.items()
        },
    )


@pytest.mark.parametrize("which", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_at_the_next_line_of_metrics(which, tmp_path, often, monkeypatch):
    tiny(tmp_path / "straight", 40)
    batch, calls = recall_task.training_batch, []

    def hooked(*args):
        calls.append(1)
        if len(calls) == 22:
            signal.raise_signal(getattr(signal, which))
        return batch(*args)

    with monkeypatch.context() as patch:
        patch.setattr(recall_task, "training_batch", hooked)
        with pytest.raises(KeyboardInterrupt):
            tiny(tmp_path / "stops", 40)
    assert outcome(tmp_path / "stops")[0] == 25
    tiny(tmp_path / "stops", 40)
    assert outcome(tmp_path / "stops") == outcome(tmp_path / "straight")


def test_more_steps_go_on_bit_for_bit(tmp_path, often):
    tiny(tmp_path / "straight", 40)
    for steps in (10, 20, 40):
        tiny(tmp_path / "stops", steps)
    assert outcome(tmp_path / "stops") == outcome(tmp_path / "straight")
    assert [row["step"] for row in outcome(tmp_path / "stops")[1]] == list(range(5, 41, 5))
    tiny(tmp_path / "other", 40, seed=8)
    assert outcome(tmp_path / "other")[2] != outcome(tmp_path / "straight")[2]


def test_a_run_is_a_function_of_its_seed(tmp_path, often):
    """The whole recipe once more: batch n comes from (seed, 2, n), the step count goes into AdamW,
    nothing else does.
    """
    tiny(tmp_path, 15, places=("last",))
    world, recipe = recall_task.world(TINY, 7), recall_training.Training()
    p, params, _ = optim.flatten(recall_network.init(TINY_NETWORK, 7), "all")
    m, v, losses = np.zeros_like(p), np.zeros_like(p), []
    for step in range(15):
        x, y = recall_task.training_batch(
            TINY, world, np.random.default_rng([7, 2, step]), 13, ("last",)
        )
        grads = {name: np.empty_like(a) for name, a in params.items()}
        losses.append(recall_training.loss_and_gradients(params, TINY_NETWORK, x, y, grads)[0])
        g = np.concatenate([a.ravel() for a in grads.values()])
        optim.adamw(p, g, m, v, step + 1, recipe.lr, weight_decay=recipe.weight_decay)
    step, rows, arrays = outcome(tmp_path)
    assert step == 15 and {name: arrays[f"0 {name}"] for name in params} == {
        name: a.tobytes() for name, a in params.items()
    }
    assert [row["train_loss"] for row in rows] == pytest.approx(
        np.mean(np.reshape(losses, (3, 5)), axis=1), rel=1e-12
    )
    assert [row["val_loss"] is None for row in rows] == [True, False, False]
    assert (
        rows[-1]["gaps"]
        == recall_training.evaluate(params, TINY_NETWORK, TINY, world, 7, 37)["gaps"]
    )


def test_a_kill_loses_nothing(tmp_path, often):
    import subprocess
    import time

    folder = tmp_path / "killed"
    folder.mkdir()
    process = subprocess.Popen(
        run_cases.command(folder, 10**6, code=OFTEN), env=run_cases.environment()
    )
    try:
        deadline = time.monotonic() + 60
        while (
            not (folder / runs.PREVIOUS).exists()
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    done = outcome(folder)[0]
    assert done >= 10
    tiny(folder, done + 15)
    tiny(tmp_path / "straight", done + 15)
    assert outcome(folder) == outcome(tmp_path / "straight")


def test_a_damaged_checkpoint_falls_back_on_the_one_before(tmp_path, often):
    tiny(tmp_path / "straight", 40)
    tiny(tmp_path / "hurt", 30)
    (tmp_path / "hurt" / runs.CHECKPOINT).write_bytes(b"not a checkpoint")
    tiny(tmp_path / "hurt", 40)
    assert outcome(tmp_path / "hurt") == outcome(tmp_path / "straight")
    for name in (runs.CHECKPOINT, runs.PREVIOUS):
        (tmp_path / "hurt" / name).write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="checkpoint.safetensors is truncated"):
        tiny(tmp_path / "hurt", 50)


def test_a_step_is_adamw_on_the_mean_loss():
    """Three steps against PyTorch's own AdamW, on the same batches."""
    torch = pytest.importorskip("torch")
    task, training, world = TINY, recall_training.Training(), recall_task.world(TINY, 0)
    params = {
        name: a.astype(np.float64) for name, a in recall_network.init(TINY_NETWORK, 0).items()
    }
    own = {name: torch.tensor(a, requires_grad=True) for name, a in params.items()}
    optimiser = torch.optim.AdamW(own.values(), lr=training.lr, weight_decay=training.weight_decay)
    p, params, _ = optim.flatten(params, "all")
    g, m, v = (np.zeros_like(p) for _ in range(3))
    grads = optim.views_of(g, {name: a.shape for name, a in params.items()})
    for step in range(3):
        x, y = recall_task.training_batch(task, world, np.random.default_rng(step), 17)
        x = x.astype(np.float64)
        loss, right = recall_training.loss_and_gradients(params, TINY_NETWORK, x, y, grads)
        logits = plainly(params, TINY_NETWORK, x)
        assert loss == pytest.approx(
            torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(y)).item(),
            rel=1e-12,
        )
        assert right == (logits.argmax(axis=1) == y).sum()
        for name, a in own.items():
            a.grad = torch.tensor(grads[name])
        optimiser.step()
        optim.adamw(p, g, m, v, step + 1, training.lr, weight_decay=training.weight_decay)
        for name, a in own.items():
            np.testing.assert_allclose(
                params[name], a.detach().numpy(), rtol=1e-10, atol=1e-12, err_msg=name
            )


@pytest.mark.parametrize(
    "position, residual", [("none", False), ("none", True), ("rope", False), ("rope", True)]
)
def test_the_benchmarks_sides_do_the_same(position, residual):
    pytest.importorskip("torch")
    from minattn.experiments.position_bias import benchmark, torch_jobs

    settings = dataclasses.asdict(recall_training.Training(lr=1e-3).settings(1)) | {
        "batch_size": 13
    }
    spec = {
        "config": {"layers": 3, "position": position, "residual": residual},
        "settings": settings,
        "length": 7,
        "compile": False,
    }
    ours, theirs = (
        [work()[0] for _ in range(3)]
        for work in (module.step(spec, None)[0] for module in (benchmark, torch_jobs))
    )
    assert ours == pytest.approx(theirs, rel=1e-5) and ours[0] != ours[2]


@pytest.mark.slow
def test_a_network_learns_a_place(tmp_path):
    """Trained on first items only, sinusoidal positions: the published plateau of 0.55, within 600
    steps of 100,000.
    """
    task, config = recall_task.Task(), recall_network.Config(position="sinusoidal", residual=True)
    result = recall_training.finish(
        tmp_path, config, task, recall_training.Training(places=("first",)), 0, 600, 2000
    )
    assert result["gaps"]["first-last"] > 0.45 and result["gaps"]["first-middle"] > 0.45
    assert abs(result["gaps"]["middle-last"]) < 0.1
    assert result["train_accuracy"] > 0.9


# -------------------------------------------------------------------------------------- the command


def command(out, *words):
    return cli.main(["bias", "--out", str(out), "--steps", "6", "--sequences", "41", *words])


def test_the_command(tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        command(
            out, "--seeds", "0-1", "--residual", "--position", "rope", "--train-bias", "last, first"
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "causal, rope, residual, trained last+first" in said and "[+0.472]" in said and "±" in said
    )
    row = json.loads((out / bias.RESULTS).read_text(encoding="utf-8"))
    assert [result["seed"] for result in row["seeds"]] == [0, 1] and row["published"][
        "first-last"
    ] == 0.433
    for pair, (mean, error) in row["gaps"].items():
        values = [result["gaps"][pair] for result in row["seeds"]]
        assert mean == pytest.approx(np.mean(values)) and error == pytest.approx(
            np.std(values, ddof=1) / np.sqrt(2)
        )
        assert values[0] == pytest.approx(np.subtract(*row["seeds"][0]["accuracy"][pair]))
    assert (out / bias.PICTURE).read_bytes().startswith(b"\x89PNG")

    before = {
        name: content
        for name, content in run_cases.contents(out).items()
        if name.startswith("seed")
    }
    assert (
        command(
            out, "--seeds", "0,2", "--residual", "--position", "rope", "--train-bias", "last, first"
        )
        == 0
    )  # one is done
    after = run_cases.contents(out)
    assert all(after[name] == content for name, content in before.items())
    assert [result["seed"] for result in bias.read(out)["seeds"]] == [0, 1, 2]

    same = (
        "--seeds",
        "1",
        "--residual",
        "--position",
        "rope",
        "--train-bias",
        "last,first",
        "--out",
        str(out),
    )
    assert (
        cli.main(["bias", "--steps", "8", "--sequences", "41", *same]) == 0
    )  # further: the others wait
    row = bias.read(out)
    assert row["steps"] == 8 and [(result["seed"], result["steps"]) for result in row["seeds"]] == [
        (1, 8)
    ]
    assert bias.read_config(out)[1] == 8
    assert cli.main(["bias", "--steps", "8", "--sequences", "43", *same]) == 0  # evaluated on more
    row = bias.read(out)
    assert [result["count"] for result in row["seeds"]] == [43]
    capsys.readouterr()

    assert (
        cli.main(["bias", "--report", str(out), str(out), "--picture", str(tmp_path / "both.png")])
        == 0
    )
    assert capsys.readouterr().out.count("causal, rope, residual") == 2
    assert (tmp_path / "both.png").exists()


def test_seeds_side_by_side_give_the_same_bits(tmp_path):
    words = (
        "--out",
        tmp_path / "2",
        "--steps",
        "6",
        "--sequences",
        "41",
        "--seeds",
        "0-1",
        "--jobs",
        "2",
    )
    done = run_cases.process("bias", *words)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert command(tmp_path / "1", "--seeds", "0-1") == 0
    one, two = (
        {
            name: {k: v for k, v in result.items() if k != "seconds"}
            for name, result in enumerate(bias.read(tmp_path / jobs)["seeds"])
        }
        for jobs in "12"
    )
    assert one == two
    shapes = recall_network.parameter_shapes(recall_network.Config())
    for seed in "seed0", "seed1":
        a, b = (recall_training.load(tmp_path / jobs / seed, shapes).params for jobs in "12")
        assert all((a[name] == b[name]).all() for name in shapes)


def start(folder, mark, steps):
    """Two seeds side by side, in processes with this mark -> the command, once both train."""
    words = ["bias", "--classes", "64", "--steps", str(steps), "--sequences", "41", "--seeds",
             "0-1", "--jobs", "2", "--out", str(folder)]
    child = subprocess.Popen([sys.executable, "-m", "minattn", *words], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True,
                             env={**run_cases.environment(), "MARK": mark})
    until = time.perf_counter() + 60
    while len([*folder.glob("seed*/metrics.jsonl")]) < 2 and time.perf_counter() < until:
        time.sleep(0.05)
    return child


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_the_command(tmp_path, how):
    mark = f"bias-{how}-{os.getpid()}"
    child = start(tmp_path / "run", mark, 10**6)
    assert len(run_cases.processes(mark.encode())) >= 3
    child.send_signal(how)
    child.communicate(timeout=10)
    assert run_cases.gone(mark.encode())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_worker_that_is_killed_is_tried_again(tmp_path):
    out, mark = tmp_path / "run", f"bias-worker-{os.getpid()}"
    child = start(out, mark, 100)
    workers = [pid for pid in run_cases.processes(mark.encode())
               if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(max(workers), signal.SIGKILL)
    said, error = child.communicate(timeout=120)
    assert child.returncode == 0 and not error, error
    assert [result["seed"] for result in bias.read(out)["seeds"]] == [0, 1]


def test_what_becomes_of_one_seed_leaves_the_others_alone(tmp_path, monkeypatch):
    """Seed 1 diverges, and the process of seed 2 is killed both times."""
    class Pool(executors.Serial):
        def __init__(self, workers):
            assert workers == 4

    def finish(folder, *_, bar):
        seen.append(folder.name)
        if folder.name == "seed1":
            raise NotFinite("the loss of seed 1")
        if folder.name == "seed2":
            raise ChildProcessError("its process was killed by signal 9")
        return {"seed": 0, "steps": 6, "seconds": 1, "train_loss": 1, "train_accuracy": 1,
                "gaps": {}}
    seen = []
    monkeypatch.setattr(executors, "Processes", Pool)
    monkeypatch.setattr(recall_training, "finish", finish)
    settings = dict.fromkeys(("network", "task", "training"))
    with pytest.raises(ChildProcessError, match="^seed2: its process was killed by signal 9"):
        bias.train_seeds(tmp_path, settings, range(4), 6, 41, 8)
    assert seen == ["seed0", "seed1", "seed2", "seed3", "seed2"]
    with pytest.raises(NotFinite, match="seed 1"):
        bias.train_seeds(tmp_path, settings, (0, 1, 3, 4), 6, 41, 8)
    assert seen[-2:] == ["seed3", "seed4"]


BAD = [
    (
        ["--mask", "casual"],
        "mask must be one of causal, window, prefix, none; got 'casual'. Did you mean 'causal'?",
    ),
    (["--position", "learned"], "position must be one of"),
    (["--layers", "0"], "layers must be at least 1; got 0"),
    (
        ["--mask", "window", "--window", "18"],
        "--window must be at most 17, the tokens of a sequence; got 18",
    ),
    (["--mask", "prefix", "--prefix", "18"], "--prefix must be at most 17"),
    (["--mask", "window"], "window and mask=window must be given together"),
    (["--window", "3"], "window and mask=window must be given together"),
    (["--mask", "prefix", "--prefix", "0"], "prefix must be at least 1"),
    (["--mask", "none", "--position", "decay"], "position=decay needs mask=causal or window"),
    (
        ["--train-bias", "first,second"],
        "train-bias must be one of first, middle, last; got 'second'",
    ),
    (["--train-bias", "first,first"], "train-bias names a position twice"),
    (["--scale", "big"], "scale must be one of paper, code"),
    (["--classes", "1"], "needs 2 distinct classes"),
    (["--middle", "8"], "middle must be at least 0 and at most 7"),
    (["--seeds", "0-"], "--seeds must be numbers"),
    (["--seeds", "3-1"], "--seeds must be numbers"),
    (["--seeds", "-1"], "--seeds"),
    (["--steps", "0"], "--steps must be at least 1"),
    (["--sequences", "0"], "--sequences must be at least 1"),
    (["--jobs", "0"], "--jobs must be at least 1"),
    (["--picture", "x.png"], "--picture draws the table of --report"),
    (["--report", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize("words, said", BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input(tmp_path, capsys, words, said):
    out = tmp_path / "run"
    steps = [] if "--steps" in words else ["--steps", "6"]
    assert cli.main(["bias", "--out", str(out), *steps, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error
    assert not out.exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    out = tmp_path / "run"
    assert command(out) == 0
    before = run_cases.contents(out)
    assert command(out, "--residual") == 2
    assert "network.residual = False, not True" in capsys.readouterr().err
    assert cli.main(["bias", "--out", str(out), "--steps", "5"]) == 2
    assert "already holds a run of 6 steps" in capsys.readouterr().err
    assert run_cases.contents(out) == before
    assert command(out, "--residual", "--overwrite") == 0
    assert (
        json.loads((out / "config.json").read_text(encoding="utf-8"))["network"]["residual"] is True
    )
    assert [result["seed"] for result in bias.read(out)["seeds"]] == [0]
    file = tmp_path / "thesis.txt"
    file.write_text("mine", encoding="utf-8")
    assert command(file) == 2
    for content in ("{", '{"model": {}}'):  # damaged; of a character model
        (out / "config.json").write_text(content, encoding="utf-8")
        assert command(out) == command(out, "--overwrite") == 2
        assert (out / "config.json").read_text(encoding="utf-8") == content
    (out / bias.RESULTS).write_text("[]", encoding="utf-8")
    assert cli.main(["bias", "--report", str(out)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_a_result_is_believed_of_its_own_seed_and_settings_only(tmp_path):
    out, other = tmp_path / "run", tmp_path / "other"
    assert command(out, "--seeds", "0-1") == command(other, "--layers", "1") == 0
    right, result = bias.read(out), "seed0/" + recall_training.RESULT
    for wrong in (out / "seed1" / recall_training.RESULT, other / result):
        shutil.copy(wrong, out / result)
        assert command(out, "--seeds", "0-1") == 0 and bias.read(out) == right
    for copy in ("seed2", "seed01"):
        shutil.copytree(out / "seed0", out / copy)
        assert command(out, "--seeds", "0") == 0 and bias.read(out) == right


def test_metrics_that_are_gone(tmp_path, capsys):
    assert command(tmp_path) == 0
    for name in (runs.METRICS, recall_training.RESULT):
        (tmp_path / "seed0" / name).unlink()
    assert command(tmp_path) == 2
    assert "metrics.jsonl is gone" in capsys.readouterr().err


def test_a_full_disk_keeps_the_run_to_be_replaced(tmp_path, monkeypatch, capsys):
    assert command(tmp_path) == 0
    before = run_cases.contents(tmp_path)

    def no_room(_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", no_room)
    assert command(tmp_path, "--overwrite", "--residual") == 1
    assert "cannot write" in capsys.readouterr().err
    assert run_cases.contents(tmp_path) == before


def test_a_run_that_diverges_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recall_training, "loss_and_gradients", lambda *_: (float("nan"), 0))
    assert command(tmp_path / "run") == 1
    assert "not finite" in capsys.readouterr().err
