"""The vision study: pictures of shapes, the tiny vision transformer and its gradients, and the
command that compares.
"""

import dataclasses
import json
import shutil
from unittest import mock

import numpy as np
import pytest
from run_cases import contents, copy
from scipy import stats

from minattn import cli, ops, optim
from minattn.errors import InputError
from minattn.experiments.vision import command as vision
from minattn.experiments.vision import shapes, vit
from minattn.studies import tables

SMALL = dict(
    width=21, heads=3, layers=2, patch=5, size=15, labels=7
)  # 9 tokens, 7 channels per head
NETWORKS = {
    **{name: dict(attention=name) for name in vit.ATTENTIONS},
    "softmax-raw": dict(attention="softmax", values="raw"),
    "gaussian-values": dict(attention="gaussian", values="projected"),
    "gaussian-qk_norm": dict(attention="gaussian", qk_norm=True),
    "gaussian-both": dict(attention="gaussian", values="projected", qk_norm=True, sigma_init=1.3),
}
B = 4


def network(name, seed=0, dtype=np.float64, **other):
    """-> config, parameters moved off their initial values, pictures, answers"""
    config, rng = vit.Config(**SMALL | NETWORKS[name] | other), np.random.default_rng([seed, 7])
    params = {
        key: a + (0.2 * rng.standard_normal(a.shape)).astype(dtype)
        for key, a in vit.init(config, seed, dtype).items()
    }
    return (
        config,
        params,
        rng.standard_normal((B, config.size, config.size)).astype(dtype),
        rng.integers(config.labels, size=B),
    )


def loss_of(params, images, labels, config):
    return ops.cross_entropy_forward(vit.forward(params, images, config)[0], labels)[0]


def gradients(params, images, labels, config):
    logits, cache = vit.forward(params, images, config)
    return vit.backward(
        ops.cross_entropy_backward(1.0, ops.cross_entropy_forward(logits, labels)[1])["logits"],
        cache,
        config,
    )


# ------------------------------------------------------------------------------------- the pictures


def test_pictures_are_the_generators():
    a, b, c = (shapes.draw(5, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert a[0].dtype == np.float32 and a[0].shape == (5, 28, 28) and a[1].shape == (5,)
    assert (
        np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) and not np.array_equal(a[0], c[0])
    )


def test_classes_are_even_and_contrast_has_both_signs():
    images, labels = shapes.draw(4000, np.random.default_rng(0), size=11, noise=0.0)
    assert stats.chisquare(np.bincount(labels, minlength=len(shapes.LABELS))).pvalue > 1e-4
    sums = images.sum(axis=(1, 2))
    assert 0.45 < np.mean(sums > 0) < 0.55 and np.all(np.abs(images) <= shapes.CONTRAST[1])


@pytest.mark.parametrize("name", shapes.LABELS)
def test_shapes(name):
    """Each lies within its circle, so that none is cut off; turns as far as allowed leave a plus no
    cross.
    """
    u, v = np.meshgrid(*[np.linspace(-2, 2, 401)] * 2)
    inside = shapes.SHAPES[name](u, v) < 0
    assert 0.9 < inside.sum() * 1e-4 < 2.1 and np.hypot(u, v)[inside].max() <= 1
    assert inside[200, 200] == (name not in ("ring", "frame", "bars"))
    assert 2 * shapes.TURN < np.pi / 4


def test_noise():
    clean, noisy = (
        shapes.draw(200, np.random.default_rng(5), noise=noise)[0] for noise in (0.0, 0.3)
    )
    assert np.std(noisy - clean) == pytest.approx(0.3, rel=0.01) and np.mean(clean == 0) > 0.5


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(n=0), "n must be at least 1"),
        (dict(size=7), "size must be at least 8"),
        (dict(noise=-1), "noise must be at least 0"),
        (dict(rng=3), "numpy.random.Generator"),
    ],
)
def test_bad_pictures(change, message):
    with pytest.raises(InputError, match=message):
        shapes.draw(**{"n": 3, "rng": np.random.default_rng(0), **change})


# -------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_against_central_differences(name):
    config, params, images, labels = network(name)
    grads, rng = gradients(params, images, labels, config), np.random.default_rng(1)
    assert {key: a.shape for key, a in grads.items()} == {key: a.shape for key, a in params.items()}
    largest = max(np.linalg.norm(a) for a in grads.values())
    for key, grad in grads.items():
        way = rng.standard_normal(grad.shape)
        up, down, above, below = (
            loss_of(params | {key: params[key] + h * way}, images, labels, config)
            for h in (1e-5, -1e-5, 2e-5, -2e-5)
        )
        measured = (8 * (up - down) - (above - below)) / 12e-5       # of fourth order
        assert np.sum(grad * way) == pytest.approx(measured, rel=1e-6, abs=1e-8 * largest), key


def in_torch(torch, params, images, config):
    """The same network, written literally in PyTorch."""
    from minattn import torch_refs

    F, (T, C, H) = torch.nn.functional, (config.tokens, config.width, config.heads)

    def linear(name, x):
        return F.linear(x, params[f"{name}.weight"].T, params[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, (C,), params[f"{name}.weight"], params[f"{name}.bias"])

    def heads(x):
        return x.reshape(B, T, H, C // H).transpose(1, 2)

    x = (
        linear(
            "patch", F.unfold(images[:, None], config.patch, stride=config.patch).transpose(1, 2)
        )
        + params["position"]
    )
    for n in range(config.layers):
        h = f"h.{n}"
        u = norm(f"{h}.ln_1", x)
        made = linear(f"{h}.attn.c_attn", u).split(C, dim=2) if config.projected else ()
        if "x" in config.mechanism.arguments:
            features = heads(u)
            if config.qk_norm:
                features = features / torch.sqrt((features**2).mean(dim=3, keepdim=True) + 1e-6)
            inputs = {"x": features, "values": heads(made[0]) if made else features}
        else:
            inputs = dict(zip("qkv", [*map(heads, made), heads(u)]))
        own = {name: params[f"{h}.attn.{name}"] for name in config.mechanism.parameters}
        out = torch_refs.ATTENTION[config.attention].function(**inputs, **own)
        x = x + linear(f"{h}.attn.c_proj", out.transpose(1, 2).reshape(B, T, C))
        x = x + linear(
            f"{h}.mlp.c_proj",
            F.gelu(linear(f"{h}.mlp.c_fc", norm(f"{h}.ln_2", x)), approximate="tanh"),
        )
    return linear("head", norm("ln_f", x).mean(dim=1))


@pytest.mark.parametrize("name", NETWORKS)
def test_against_pytorch(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    config, params, images, labels = network(name, seed=2)
    leaves = {key: torch.tensor(a, requires_grad=True) for key, a in params.items()}
    logits = in_torch(torch, leaves, torch.tensor(images), config)
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
    np.testing.assert_allclose(
        vit.forward(params, images, config)[0], logits.detach().numpy(), rtol=1e-11, atol=1e-12
    )
    grads = gradients(params, images, labels, config)
    for key, leaf in leaves.items():
        np.testing.assert_allclose(
            grads[key], leaf.grad.numpy(), rtol=1e-8, atol=1e-11, err_msg=key
        )


def test_flops_against_pytorchs_counter():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch.utils.flop_counter import FlopCounterMode

    for name in ("softmax", "softmax-raw"):
        config, params, images, _ = network(name)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            in_torch(
                torch,
                {key: torch.tensor(a) for key, a in params.items()},
                torch.tensor(images),
                config,
            )
        assert counter.get_total_flops() == B * vit.flops(config)


def test_the_kernel_saves_three_projections():
    """C^2 + C + H instead of 4 C^2 + 4 C per layer; and their products with every token."""
    softmax, kernel = (vit.Config(attention=name) for name in ("softmax", "gaussian"))
    C, H, T, layers = softmax.width, softmax.heads, softmax.tokens, softmax.layers
    assert vit.count_parameters(softmax) - vit.count_parameters(kernel) == layers * (
        3 * C * C + 3 * C - H
    )
    assert vit.flops(softmax) - vit.flops(kernel) == layers * 2 * T * 3 * C * C
    assert sum(a.size for a in vit.init(kernel).values()) == vit.count_parameters(kernel)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_token_sees_every_other(name):
    """Without positions the order of the patches does not matter; with a mask it would."""
    config, params, images, _ = network(name)
    side, p = config.size // config.patch, config.patch
    cut = images.reshape(B, side, p, side, p).transpose(1, 3, 0, 2, 4).reshape(-1, B, p, p)
    moved = (
        cut[np.random.default_rng(0).permutation(len(cut))]
        .reshape(side, side, B, p, p)
        .transpose(2, 0, 3, 1, 4)
        .reshape(images.shape)
    )
    plain = params | {"position": np.zeros_like(params["position"])}
    a, b, c = (
        vit.forward(params, x, config)[0]
        for params, x in ((plain, images), (plain, moved), (params, moved))
    )
    np.testing.assert_allclose(a, b, rtol=1e-10)
    assert np.abs(a - c).max() > 1e-3


@pytest.mark.parametrize("name", ("softmax", "gaussian"))
def test_float32_and_learning(name):
    """In float32 throughout; sixteen pictures are learned by heart."""
    config = vit.Config(attention=name, width=24, layers=1, patch=7)
    images, labels = shapes.draw(16, np.random.default_rng(2))
    p, params, _ = optim.flatten(vit.init(config, 0))
    m, v = np.zeros_like(p), np.zeros_like(p)
    for step in range(1, 81):
        grads = gradients(params, images, labels, config)
        assert all(a.dtype == np.float32 for a in grads.values())
        g, _, _ = optim.flatten({key: grads[key] for key in params})
        optim.adamw(p, g, m, v, step, 5e-3)
    assert loss_of(params, images, labels, config) < 0.2


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(attention="gausian"), "Did you mean 'gaussian'?"),
        (dict(attention="energy"), "attention must be one of softmax"),
        (dict(heads=5), "width must be divisible by heads; got 48 and 5."),
        (dict(patch=5), "size must be divisible by patch; got 28 and 5."),
        (dict(layers=0), "layers must be at least 1"),
        (dict(width="wide"), "width must be an integer; got 'wide'."),
        (dict(values="none"), "values must be one of own, projected, raw"),
        (dict(qk_norm=True), "softmax has no option qk_norm"),
        (dict(attention="gaussian", sigma_init=0), "sigma_init must be above 0"),
    ],
)
def test_bad_networks(fields, message):
    with pytest.raises(InputError) as error:
        vit.Config(**fields)
    assert message in str(error.value)


def test_bad_images():
    config, params, images, _ = network("softmax")
    for wrong, message in (
        (images[:, 1:], r"axis 1 \(S\) must be 15"),
        (images.astype(np.float32), "has dtype float32"),
    ):
        with pytest.raises(InputError, match=message):
            vit.forward(params, wrong, config)


# -------------------------------------------------------------------------------------- the command

TINY = "[width=8,layers=1,heads=2,patch=7]"
PAIR = f"softmax{TINY},gaussian{TINY}"


@pytest.fixture(scope="module", autouse=True)
def small_recipe():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vision.RECIPE, "test", 60)
        yield


def command(out, *words, attention=PAIR, seeds="0-1", steps=12):
    return cli.main(
        [
            "vision",
            "--attention",
            attention,
            "--seeds",
            seeds,
            "--steps",
            str(steps),
            "--out",
            str(out),
            *words,
        ]
    )


def timeless(folder):
    return [
        {
            key: value
            for key, value in json.loads(path.read_text()).items()
            if key not in ("seconds", "checksum")
        }
        for path in sorted(folder.rglob("seed-*.json"))
    ]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("vision") / "out"
    assert command(out, "--no-matched") == 0
    return out


def test_results(study, capsys):
    assert command(study, "--no-matched") == 0
    said = capsys.readouterr()
    assert (study / "table.md").read_text(
        encoding="utf-8"
    ) in said.out and said.err == ""  # no progress where nobody watches
    rows = timeless(study)
    assert len(rows) == 4 and (study / "vision.png").stat().st_size > 10_000
    assert (
        (study / "results.csv")
        .read_text()
        .startswith("variant,seed,parameters,flops,accuracy,test_loss,train_loss,seconds\n")
    )
    right = {row["variant"].partition("[")[0]: [] for row in rows}
    for row in rows:
        right[row["variant"].partition("[")[0]].append(100 * row["accuracy"])
        assert [step for step, _ in row["curve"]][-1] == 12 and row["curve"][-1][1] == row[
            "accuracy"
        ]
    lines = {
        line.partition("[")[0]: line
        for line in (study / "table.md").read_text(encoding="utf-8").splitlines()
    }
    for name in right:
        assert (
            f"| {np.mean(right[name]):.2f} ± {np.std(right[name], ddof=1):.2f} |"
            in lines[f"| {name}"]
        )
    interval = stats.ttest_rel(right["gaussian"], right["softmax"]).confidence_interval(0.95)
    mean = np.mean(right["gaussian"]) - np.mean(right["softmax"])
    assert f"| {mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}] |" in lines["| gaussian"]


def test_a_run_is_its_seeds_alone(study, tmp_path):
    """Run by itself, in another folder and order: the same numbers. Both variants saw the same
    pictures.
    """
    assert command(tmp_path, seeds="1", attention=f"gaussian{TINY}") == 0
    alone = next(row for row in timeless(tmp_path) if row["variant"].startswith("gaussian"))
    assert alone in timeless(study)
    assert len(timeless(tmp_path)) == 2  # and the narrow softmax beside


def test_variants_of_a_seed_share_their_pictures(tmp_path, monkeypatch):
    """The differences are paired: training and test pictures depend on the seed alone; no batch
    comes twice.
    """
    seen, original = [], shapes.draw
    monkeypatch.setattr(
        shapes,
        "draw",
        lambda n, rng, **options: (
            seen.append(original(n, rng, **options)[0]) or original(n, rng, **options)
        ),
    )
    for attention in ("softmax", "gaussian"):
        for seed in (0, 1):
            config = vision.variants(attention + TINY, matched=False)[attention + TINY]
            settings = {**vision.RECIPE, "steps": 3, "lr": 1e-3}
            vision.finish(
                tmp_path / attention / f"{seed}.json",
                attention,
                config,
                settings,
                seed,
                mock.Mock(),
            )
    runs = [
        seen[n : n + 4] for n in range(0, 16, 4)
    ]  # softmax 0, softmax 1, gaussian 0, gaussian 1
    assert len(seen) == 16 and [len(images) for images in seen[:4]] == [60, 32, 32, 32]
    for a, b in ((0, 2), (1, 3)):
        assert all(np.array_equal(x, y) for x, y in zip(runs[a], runs[b]))
    assert len({images[0].tobytes() for run in runs[:2] for images in run}) == 8


def test_finished_runs_are_left_alone(study, tmp_path, monkeypatch):
    out = copy(study, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(vit, "init", lambda *args: pytest.fail("trained again"))
        assert command(out, "--no-matched") == 0
    assert contents(out) == contents(study)
    made, init = [], vit.init
    monkeypatch.setattr(
        vit,
        "init",
        lambda config, seed: made.append((config.attention, seed[0])) or init(config, seed),
    )
    assert command(out, "--no-matched", seeds="1-2") == 0
    assert made == [("softmax", 2), ("gaussian", 2)]


def test_stopped_and_taken_up_again(study, tmp_path, monkeypatch):
    calls, backward = [], vit.backward

    def stop(*args):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return backward(*args)

    with monkeypatch.context() as patch:
        patch.setattr(vit, "backward", stop)
        assert command(tmp_path, "--no-matched") == 130
    assert len(timeless(tmp_path)) == 2 and not list(tmp_path.rglob("*.tmp"))
    assert command(tmp_path, "--no-matched") == 0 and timeless(tmp_path) == timeless(study)


def test_a_result_that_was_being_written_when_killed(study, tmp_path):
    out = copy(study, tmp_path / "out")
    path = next(out.rglob("seed-1.json"))
    path.rename(f"{path}.01234567.tmp")
    assert command(out) == 0 and contents(out).keys() == contents(study).keys()


def test_narrow_softmax():
    found = vision.variants("softmax,gaussian[qk_norm=true]")
    assert list(found)[:2] == ["softmax", "gaussian[qk_norm=true]"] and len(found) == 3
    kernel, narrow = list(found.values())[1:]
    assert narrow == vit.Config(width=narrow.width) and kernel.qk_norm
    distance = [
        abs(
            vit.count_parameters(vit.Config(width=narrow.width + more))
            - vit.count_parameters(kernel)
        )
        for more in (-4, 0, 4)
    ]
    assert min(distance) == distance[1]
    assert list(vision.variants("softmax,sink")) == ["softmax", "sink"]
    assert len(vision.variants(f"gaussian,softmax[width={narrow.width}]")) == 2  # there already


@pytest.mark.parametrize(
    "words, message",
    [
        (["--attention", "softmx"], "Did you mean 'softmax'?"),
        (["--attention", "softmax[widht=8]"], "Did you mean 'width'?"),
        (["--attention", "softmax[width]"], "option 'width' is not NAME=VALUE"),
        (
            ["--attention", "softmax[size=14]"],
            "softmax[size=14]: an option must be one of width, heads",
        ),
        (["--attention", "softmax[width=50]"], "width must be divisible by heads"),
        (
            ["--attention", "softmax,softmax[width=48]"],
            "variants 'softmax' and 'softmax[width=48]' are the same",
        ),
        (["--attention", "softmax,,gaussian"], "contains an empty name"),
        (["--seeds", "2-1"], "--seeds must be numbers and ranges"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--lr", "-1"], "--lr must be above 0"),
        (["--lr", "nan"], "--lr must be a finite number"),
        (["--out", ""], "--out must name a folder."),
        (["--out", "file"], "file is a file; name a folder."),
        (["--steps", "some"], "invalid int value: 'some'"),
    ],
)
def test_bad_input(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    monkeypatch.setattr(vit, "init", lambda *args: pytest.fail("it came to the runs"))
    assert cli.main(["vision", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said


def test_other_settings_than_what_is_there(study, tmp_path, capsys):
    out = copy(study, tmp_path / "out")
    assert command(out, steps=13) == 2
    assert (
        "seed-0.json holds a run with steps = 12, not 13: give the settings it was made with"
        in capsys.readouterr().err
    )
    assert contents(out) == contents(study)
    path = next(out.rglob("seed-1.json"))
    content = path.read_bytes()
    shutil.copy(path.with_name("seed-0.json"), path)
    assert command(out) == 2
    assert "seed-1.json holds a run with seed = 0, not 1" in capsys.readouterr().err
    path.write_bytes(content)
    for damaged in (
        "{",
        "[]",
        json.dumps({"settings": {}}),
        path.read_text().replace('"curve"', '"curves"'),
    ):
        path.write_text(damaged)
        assert command(out) == 2
        assert (
            "; remove it, if `minattn vision` wrote it, or choose a different --out."
            in capsys.readouterr().err
        )


@pytest.mark.parametrize("steps", [1, 3])                     # 1: only the test can notice it
def test_a_learning_rate_that_is_too_large(steps, tmp_path, capsys):
    assert command(tmp_path, "--lr", "1e30", attention=f"softmax{TINY}", steps=steps) == 2
    assert "is not finite at step" in capsys.readouterr().err and not timeless(tmp_path)


def test_the_table_of_another_command_is_not_replaced(study, tmp_path, capsys):
    """compare's folders and this command's have files of the same names."""
    out = tmp_path / "of compare"
    (out / "softmax_learned" / "seed-0").mkdir(parents=True)
    (out / "table.md").write_text("a table of compare")
    assert command(out) == 2 and "it may be yours" in capsys.readouterr().err
    out = shutil.copytree(study, tmp_path / "of vision")
    before = contents(out)
    assert cli.main(["compare", "--attention", "softmax", "--corpus", "builtin",
                     "--out", str(out)]) == 2
    assert "it may be yours" in capsys.readouterr().err and contents(out) == before


def test_one_seed_has_no_interval(tmp_path):
    assert command(tmp_path, "--no-matched", seeds="5") == 0
    softmax, kernel = (
        (tmp_path / tables.TABLE).read_text(encoding="utf-8").splitlines()[line].split(" | ")
        for line in (2, 3)
    )
    right, minus = kernel[4], kernel[5]
    assert (
        float(minus) == pytest.approx(float(right) - float(softmax[4]), abs=0.011)
        and softmax[5] == "-"
    )


def test_settings_are_kept(study):
    row = timeless(study)[0]
    assert row["settings"] == {
        **dataclasses.asdict(vision.variants(row["variant"], matched=False)[row["variant"]]),
        **vision.RECIPE,
        "steps": 12,
        "lr": 3e-3,
    }
