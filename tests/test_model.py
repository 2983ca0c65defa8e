"""The whole model and its optimiser: equal to PyTorch, and to differences of the loss."""
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gpt_cases import (
    CASES,
    SAVED,
    SIZES,
    TINY,
    assert_equal,
    config_of,
    inputs,
    run_numpy,
    run_torch,
)

from minattn import model, optim, parallel
from minattn.attention.energy import Running
from minattn.attention_layer import KVCache
from minattn.chunks import split
from minattn.errors import InputError
from minattn.generate import recompute_reason
from minattn.train import Settings
from minattn.validate.gradients import assert_gradients

BASE = dict(vocab_size=17, block_size=7, n_layer=3, n_head=2, n_embd=8)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


# ---------------------------------------------------------------------------------- against PyTorch


@pytest.mark.parametrize("case", CASES)
def test_equals_torch(torch, case):
    config = config_of(case)
    arrays = inputs(config)
    assert_equal(config, arrays[0], run_numpy(config, *arrays), run_torch(config, *arrays))


def test_an_added_mechanism_equals_torch(torch, lean):
    config = model.Config(**SIZES, attention=f"{lean}[sharp=1.5]+gated/{lean}", position="rope")
    arrays = inputs(config)
    assert_equal(config, arrays[0], run_numpy(config, *arrays), run_torch(config, *arrays))


@pytest.mark.parametrize("case",
                         ["affine+gated-head-window", "energy[norm=prefix]", "energy-morlet",
                          "gaussian-rope-SSSL", "sink"])
def test_equals_torch_over_many_tiles(torch, case):
    config = config_of(case, block_size=149)
    arrays = inputs(config, seed=1, batch=2)
    assert_equal(config, arrays[0], run_numpy(config, *arrays, steps=1),
                 run_torch(config, *arrays, steps=1))


def test_ten_steps_of_a_small_nano_equal_torch(torch):
    """From the initial parameters; unclipped at first, clipped later."""
    config = model.Config(vocab_size=19, block_size=32, n_layer=4, n_head=4, n_embd=32)
    params, buffers = model.init(config, 3, np.float64)
    _, _, x, y = inputs(config, seed=3, batch=5)
    ours, theirs = (run(config, params, buffers, x, y, steps=10, clip=0.7)
                    for run in (run_numpy, run_torch))
    assert theirs["norms"].min() < 0.7 < theirs["norms"].max()
    assert theirs["losses"][-1] < theirs["losses"][0]
    assert_equal(config, params, ours, theirs, later=1e-9)


def saved():
    from safetensors.numpy import load_file
    return load_file(Path(__file__).parent / "saved" / "gpt.safetensors")


@pytest.mark.parametrize("case", SAVED)
def test_equals_saved_torch(case):
    config = config_of(case, **TINY)
    arrays, theirs = inputs(config), {k.removeprefix(case + "/"): a for k, a in saved().items()
                                      if k.startswith(case + "/")}
    ours = run_numpy(config, *arrays)
    assert {k for k in ours if not k.startswith("after/")} == theirs.keys() - {"after/logits"}
    assert_equal(config, arrays[0], {k: ours[k] for k in theirs}, theirs)


def test_saved_results_are_what_torch_says_now(torch):
    from make_saved_gpt import FILE, results
    assert FILE.stat().st_size < 200_000
    now, then = results(), saved()
    assert now.keys() == then.keys()
    for name, array in now.items():
        np.testing.assert_allclose(then[name], array, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_wrong_number_anywhere_is_noticed(torch):
    """The comparison must catch a gradient off by 1e-9 of its tensor, or a parameter by 1e-7."""
    config = config_of("energy-morlet")
    arrays = inputs(config)
    theirs = run_torch(config, *arrays, steps=1)
    for name, array in theirs.items():
        if name in ("logits", "loss") or name.startswith(("grad/", "after/")):
            shift = np.abs(array).max() * (1e-7 if name.startswith("after/") else 1e-9)
            if name.endswith("energy.bias"):
                shift = 1e-3
            with pytest.raises(AssertionError, match=name.replace(".", r"\.")):
                assert_equal(config, arrays[0], {**theirs, name: array + shift}, theirs)


# ------------------------------------------------------------------------------ against differences


@pytest.mark.parametrize("case",
                         ["energy-morlet", "energy+gated-decay", "gaussian-rope-SSSL",
                          "off_by_one+gated", "biases-exact",
                                  "sink-rope-window", "affine-visible", "learned+morlet+decay",
                                  "morlet[admissible=false,centre=true]"])
def test_gradients_equal_differences(case):
    """With dropout: the same seed drops the same entries each time."""
    params, buffers, x, y = inputs(config_of(case, block_size=7), seed=5, batch=2)
    config = config_of(case, block_size=7, dropout=0.0 if buffers else 0.2)

    def loss(**params):
        """The running mean depends on the parameters, but has no gradient: kept here."""
        options = dict(buffers=buffers, training=not buffers, rng=np.random.default_rng(1))
        return model.forward(params, x, config, targets=y, **options)[1:]

    assert_gradients(loss, lambda d, cache: model.backward(cache, config, float(d)), params,
                     seeds=(0,), step=1e-4)


@pytest.mark.parametrize("case", ["softmax", "energy-morlet"])
def test_gradient_of_logits(case):
    config = config_of(case)
    params, buffers, x, y = inputs(config)
    logits, _, cache = model.forward(params, x, config)
    dlogits = np.random.default_rng(0).standard_normal(logits.shape)
    one, three = (model.backward(cache, config, dlogits=n * dlogits) for n in (1, 3))
    for name in one:
        np.testing.assert_allclose(three[name], 3 * one[name], rtol=1e-9, atol=1e-12)
    u = {name: np.random.default_rng(1).standard_normal(a.shape) for name, a in params.items()}
    at = lambda h: np.sum(dlogits * model.forward({n: a + h * u[n] for n, a in params.items()}, x,
                                                  config)[0])
    measured = (at(1e-6) - at(-1e-6)) / 2e-6
    assert sum(np.sum(one[n] * u[n]) for n in one) == pytest.approx(measured, rel=1e-6)


# -------------------------------------------------------------------------------- what else it does


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_float32(case):
    config = config_of(case, dropout=0.1)
    params, buffers, x, y = inputs(config)
    params, buffers = ({k: a.astype(np.float32) for k, a in d.items()} for d in (params, buffers))

    def arrays(thing):
        if isinstance(thing, np.ndarray):
            yield thing
        # running sums are kept in float64
        elif isinstance(thing, (tuple, list)) and not isinstance(thing, Running):
            yield from (a for part in thing for a in arrays(part))
        elif isinstance(thing, dict):
            yield from arrays(list(thing.values()))
        elif hasattr(thing, "__dict__"):
            yield from arrays(vars(thing))

    options = dict(buffers=buffers, training=True, rng=np.random.default_rng(0))
    logits, loss, cache = model.forward(params, x, config, targets=y, **options)
    grads = model.backward(cache, config, 0.5)
    assert isinstance(loss, float) and logits.dtype == np.float32
    single = np.dtype(np.float32)
    assert {name: g.dtype for name, g in grads.items()} == dict.fromkeys(params, single)
    assert {name: b.dtype for name, b in cache.buffers.items()} == dict.fromkeys(buffers, single)
    kept = [a for a in arrays(cache) if a.dtype == np.float64 and a.size > 1]
    if "prefix" not in config.attention:                       # its gate keeps the running sums too
        assert not kept, [a.shape for a in kept]


def test_float32_is_close_to_float64():
    config = config_of("biases-exact")
    params, buffers, x, y = inputs(config)
    rough, exact = (model.forward({k: a.astype(kind) for k, a in params.items()}, x, config,
                                  targets=y)
                    for kind in (np.float32, np.float64))
    assert 1e-10 < np.abs(exact[0] - rough[0]).max() < 1e-5
    rough, exact = (model.backward(cache, config) for cache in (rough[2], exact[2]))
    assert all(np.abs(rough[k] - g).max() < 1e-5 * np.abs(g).max() for k, g in exact.items())


@pytest.mark.parametrize("case", ["sink/affine+gated/gaussian", "energy-morlet", "learned+rope"])
def test_forward_and_backward_change_nothing_they_were_given(case):
    config = config_of(case)
    params, buffers, x, y = given = inputs(config)
    before = [{k: a.copy() for k, a in d.items()} for d in (params, buffers)] + [x.copy(), y.copy()]
    first, second = (model.forward(*given[:1], x, config, targets=y, buffers=buffers, training=True)
                     for _ in range(2))
    grads = [model.backward(run[2], config) for run in (first, second)]
    again = model.backward(first[2], config)                             # a cache can be used twice
    for a, b in zip([params, buffers, {"x": x}, {"y": y}],
                    [*before[:2], {"x": before[2]}, {"y": before[3]}]):
        assert all(np.array_equal(a[k], b[k]) for k in b)
    assert first[1] == second[1] and all(np.array_equal(grads[0][k], grads[1][k]) for k in params)
    assert all(np.array_equal(grads[0][k], again[k]) for k in params)


@pytest.mark.parametrize("case", [case for case in CASES if not recompute_reason(config_of(case))])
def test_key_value_cache_gives_the_same_logits(case):
    """A prompt of 4, then 1, 3 and 3 more, give what the whole gave at these positions."""
    config = config_of(case)
    params, buffers, x, _ = inputs(config)
    whole, past = model.forward(params, x, config, buffers=buffers)[0], KVCache(config.block_size)
    for a, b in ((0, 4), (4, 5), (5, 8), (8, 11)):
        part = model.forward(params, x[:, a:b], config, buffers=buffers, kv_cache=past)[0]
        np.testing.assert_allclose(part, whole[:, a:b], rtol=0, atol=1e-11)
    last = model.forward(params, x, config, buffers=buffers, last_only=True)[0]
    np.testing.assert_allclose(last, whole[:, -1:], rtol=0, atol=1e-12)


def test_too_many_positions():
    config = config_of("softmax")
    params, _, x, _ = inputs(config)
    with pytest.raises(InputError, match="at most block_size = 11 tokens are allowed; got 12"):
        model.forward(params, np.zeros((1, 12), int), config)
    past = KVCache(11)
    model.forward(params, x, config, kv_cache=past)
    with pytest.raises(InputError, match="got 12"):
        model.forward(params, x[:, :1], config, kv_cache=past)


@pytest.mark.parametrize("case", ["softmax", "linear"])
def test_caches_that_do_not_fit(case):
    config = model.Config(**SIZES, attention=case, position="none")
    params, buffers, x, y = inputs(config)
    for capacity in (0, -1, "x", 2.5, None):
        with pytest.raises(InputError, match="capacity must be"):
            KVCache(capacity)
    for none in (3, {}):
        with pytest.raises(InputError, match="kv_cache must be a KVCache; got"):
            model.forward(params, x, config, kv_cache=none)
    past = KVCache(5)
    with pytest.raises(InputError, match="the cache has room for 5 tokens; got 6"):
        model.forward(params, x[:, :6], config, kv_cache=past)
    _, _, cache = model.forward(params, x[:, :4], config, targets=y[:, :4], kv_cache=past)
    with pytest.raises(InputError, match="the cache holds 3 sequences; got 1 to continue"):
        model.forward(params, x[:1, 4:5], config, kv_cache=past)
    with pytest.raises(InputError, match="backward needs a forward without kv_cache"):
        model.backward(cache, config)


def test_no_tokens():
    config = config_of("softmax")
    params, _, x, _ = inputs(config)
    for none in (x[:0], x[:, :0]):
        with pytest.raises(InputError, match="tokens must be at least one; got shape"):
            model.forward(params, none, config)


def test_affine_running_mean():
    """Folded in training, frozen in evaluation, and never changed in place."""
    config = config_of("affine")
    params, buffers, x, y = inputs(config)
    evaluated = model.forward(params, x, config, buffers=buffers)[2].buffers
    trained = model.forward(params, x, config, buffers=buffers, training=True)[2].buffers
    for name, a in buffers.items():
        assert np.array_equal(evaluated[name], a) and 0.05 > np.abs(trained[name] - a).max() > 1e-4


# --------------------------------------------------------------------------------------- parameters


L, H, C, V, T = (BASE[k] for k in ("n_layer", "n_head", "n_embd", "vocab_size", "block_size"))
PLAIN = V * C + T * C + L * (12 * C * C + 2 * C) + C
COUNTS = {
    "softmax": ({}, PLAIN),
    "no-positions": (dict(position="none"), PLAIN - T * C),
    "rope": (dict(position="rope"), PLAIN - T * C),
    "morlet": (dict(position="morlet"), PLAIN - T * C + C),
    "morlet-centre": (dict(position="learned+morlet", position_options={"centre": True}),
                      PLAIN + C + C // 2),
    "bias": (dict(bias=True), PLAIN + L * 8 * C + C),
    "qkv_bias": (dict(qkv_bias=True), PLAIN + L * 3 * C),
    "off_by_one": (dict(attention="off_by_one"), PLAIN),
    "sink": (dict(attention="sink"), PLAIN + L * H),
    "gated": (dict(attention="gated"), PLAIN + L * C * C),
    "gated-head": (dict(attention="gated", attention_options={"gate": "head"}), PLAIN + L * C * H),
    "affine": (dict(attention="affine"), PLAIN + L * C * H),   # 0.4, 1.0, 2.1 M in arXiv 2602.23057
    "affine+gated": (dict(attention="affine+gated"), PLAIN + L * C * (H + C)),
    "energy": (dict(attention="energy"), PLAIN + L * H * (C + 3)),
    "gaussian": (dict(attention="gaussian"), PLAIN + L * (C * C + H - 4 * C * C)),
    "energy,softmax": (dict(attention="energy,softmax"), PLAIN + 2 * H * (C + 3)),
}


@pytest.mark.parametrize("case", COUNTS)
def test_parameter_count(case):
    fields, expected = COUNTS[case]
    config = model.Config(**BASE, **fields)
    params, buffers = model.init(config)
    assert model.count_parameters(config) == expected == sum(a.size for a in params.values())
    assert buffers.keys() == {f"h.{i}.attn.alpha_ma" for i in range(L) if "affine" in case}


@pytest.mark.parametrize("attention, shape, extra", [
    ("energy", dict(n_layer=6, n_head=8, n_embd=256), 12_432),                # arXiv 2605.26355
    # arXiv 2602.23057: "0.4 M"
    ("affine", dict(n_layer=24, n_head=16, n_embd=1024), 24 * 1024 * 16),
])
def test_published_parameter_overheads(attention, shape, extra):
    with_it, plain = (model.count_parameters(model.Config(attention=name, **shape))
                      for name in (attention, "softmax"))
    assert with_it - plain == extra


def test_initial_parameters():
    config = model.Config(n_layer=2, n_embd=64, bias=True, attention="energy,sink")
    params, _ = model.init(config, seed=1, dtype=np.float64)
    for name, a in params.items():
        kind = name.rsplit(".", 1)[-1]
        if ".ln_" in name or name.startswith("ln_") or kind in ("bias", "alpha", "tau", "sink"):
            assert np.all(a == {"weight": 1, "alpha": 2}.get(kind, 0)), name
        else:
            std = 0.02 / math.sqrt(2 * 2) if "c_proj" in name else 0.02
            assert a.std() == pytest.approx(std, rel=0.1), name
    unscaled, _ = model.init(model.Config(n_layer=2, n_embd=64, scaled_init=False))
    assert unscaled["h.0.mlp.c_proj.weight"].std() == pytest.approx(0.02, rel=0.1)
    rounded, other = model.init(config, 1)[0], model.init(config, 2)[0]
    assert all(np.array_equal(rounded[n], a.astype(np.float32)) for n, a in params.items())
    assert not np.array_equal(rounded["wte.weight"], other["wte.weight"])


@pytest.mark.parametrize("fields, message", [
    (dict(n_head=3), "n_embd must be divisible by n_head; got 8 and 3"),
    (dict(n_layer=0), "n_layer must be at least 1; got 0"),
    (dict(n_embd=8.0), "n_embd must be an integer; got 8.0"),
    (dict(dropout=1.0), "dropout must be at least 0 and at most 0.9"),
    (dict(gelu="fast"), "gelu must be one of tanh, exact"),
    (dict(attention="sofmax"), "Did you mean 'softmax'"),
    (dict(attention="affine+sink"), r"only '\+gated' can be put on top"),
    (dict(attention="energy", attention_options={"nrom": "key"}),
     "energy has no attention option 'nrom'; it takes norm. Did you"),
    (dict(attention="energy", attention_options={"norm": "batch"}),
     "norm must be one of key, prefix, sequence, none"),
    (dict(attention="affine", attention_options={"length": 0}), "length .* at least 1"),
    (dict(attention="gaussian", attention_options={"sigma_init": -1}),
     "sigma_init must be above 0"),
    (dict(position="ropes"), "Did you mean 'rope'"),
    (dict(position="learned+learned"), "position 'learned' is given twice"),
    (dict(position="rope", position_options={"base": 0}), "base must be above 0"),
    (dict(position="rope", position_options={"pairs": "quarter"}),
     "pairs must be one of half, interleaved"),
    (dict(position="morlet", position_options={"centre": 3}),
     "centre must be one of True, False, None; got 3"),
    (dict(position="morlet", n_embd=9, n_head=3), "n_embd must be even for morlet"),
    (dict(position="rope", n_embd=9, n_head=3), "n_embd / n_head must be even for rope"),
    (dict(window=0), "window must be at least 1"),
    (dict(window=2, window_pattern="SL"), "window or window_pattern, not both"),
    (dict(n_kv_head=3), "n_kv_head must divide n_head; got 3 and 2"),
    (dict(n_kv_head=1, attention="gaussian"), "n_kv_head needs queries and keys, and gaussian has"),
    (dict(qk_norm=True, attention="softmax/gaussian"), "qk_norm needs queries and keys"),
    (dict(softcap=0), "softcap must be above 0; got 0"),
    (dict(softcap=1, attention="gaussian"), "softcap means nothing for gaussian: leave it out"),
    (dict(log_length=True, attention="gaussian"), "log_length means nothing for gaussian"),
    (dict(window_pattern="SX"), "window_pattern must be one of S, L; got 'X'"),
    (dict(window_pattern=False), "window_pattern must be a string; got False"),
    (dict(bias=[]), "bias must be True or False"),
    (dict(qkv_bias=int), "qkv_bias must be True or False"),
])
def test_config_that_cannot_be(fields, message):
    with pytest.raises(InputError, match=message):
        model.Config(**{**BASE, **fields})


def test_model_imports_only_numpy():
    """In a new process, because this one has everything."""
    import subprocess
    others = {"scipy", "matplotlib", "torch", "safetensors"}
    code = f"import sys, minattn.model, minattn.optim; print({others} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout == "set()\n"


# ---------------------------------------------------------------------------------------- optimiser


def test_a_norm_that_overflows_is_inf_whatever_the_settings_of_the_caller():
    with np.errstate(all="raise"):
        assert optim.global_norm({"w": np.full(3, 1e30, np.float32)}) == np.inf


@pytest.mark.parametrize("step, expected",
                         [(0, 1e-3 / 11), (4, 5e-3 / 11), (9, 1e-2 / 11), (10, 1e-3), (55, 5.5e-4),
                          (100, 1e-4),
                                            (500, 1e-4)])
def test_learning_rate(step, expected):
    assert optim.learning_rate(step, lr=1e-3, min_lr=1e-4, warmup=10,
                               steps=100) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("step, cooldown, expected",
                         [(4, 0.5, 5e-3 / 11), (10, 0.5, 1e-3), (50, 0.5, 1e-3), (75, 0.5, 5.5e-4),
                          (90, 0.5, 2.8e-4), (100, 0.5, 1e-4), (10, 1, 1e-3), (55, 1, 5.5e-4),
                          (99, 0, 1e-3), (100, 0, 1e-4)])
def test_linear_learning_rate(step, cooldown, expected):
    found = optim.learning_rate(step, lr=1e-3, min_lr=1e-4, warmup=10, steps=100,
                                schedule="linear", cooldown=cooldown)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("warmup, steps", [(0, 1), (5, 3), (5, 5), (0, 50)])
def test_learning_rate_never_rises_after_the_warm_up_or_leaves_its_bounds(warmup, steps):
    rates = [optim.learning_rate(s, lr=1e-3, min_lr=1e-4, warmup=warmup, steps=steps)
             for s in range(steps + 2)]
    assert all(0 < r <= 1e-3 for r in rates) and np.all(np.diff(rates[warmup:]) <= 0)


@pytest.mark.parametrize("norm, clip, expected",
                         [(0.5, 1.0, 1.0), (4.0, 1.0, 1 / (4 + 1e-6)), (4.0, 0, 1.0),
                          (0.0, 1.0, 1.0)])
def test_clip_factor(norm, clip, expected):
    assert optim.clip_factor(norm, clip) == pytest.approx(expected, rel=1e-15)


def test_global_norm():
    arrays = {"a": np.array([[3.0, 0]], np.float32), "b": np.array([4.0], np.float32),
              "c": np.full(10**6, 0.012, np.float32)}
    assert optim.global_norm(arrays) == pytest.approx(13.0, rel=1e-4)
    assert isinstance(optim.global_norm(arrays), float)


@pytest.mark.parametrize("decay, first", [("2d", ["m", "n"]), ("all", ["m", "v", "n", "s"])])
def test_flatten_puts_what_decays_first(decay, first):
    arrays = {"m": np.ones((2, 3)), "v": np.full(5, 2.0), "n": np.full((7, 1), 3.0),
              "s": np.full(1, 4.0)}
    vector, views, decayed = optim.flatten(arrays, decay)
    assert list(views) == list(arrays) and decayed == sum(arrays[name].size for name in first)
    vector[:decayed] *= 10
    for name, a in arrays.items():
        assert np.shares_memory(views[name], vector)
        assert np.array_equal(views[name], a * (10 if name in first else 1))
    with pytest.raises(InputError, match="decay must be one of 2d, all"):
        optim.flatten(arrays, "3d")


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-14), (np.float32, 1e-6)])
def test_adamw(decay, dtype, tolerance, monkeypatch):
    """In blocks that do not divide the length, against algorithm 2 of arXiv 1711.05101."""
    monkeypatch.setattr(optim, "BLOCK", 7)
    rng = np.random.default_rng(0)
    p, g, m, v = rng.standard_normal(23).astype(dtype), *np.zeros((3, 23), dtype)
    P, M, V = (a.astype(float) for a in (p, m, v))
    for t in range(1, 6):
        g[1:] = rng.standard_normal(22)
        G = g.astype(float)
        M, V = 0.8 * M + 0.2 * G, 0.95 * V + 0.05 * G * G
        P = P - 1e-2 * decay * P - 1e-2 * (M / (1 - 0.8**t)) / (np.sqrt(V / (1 - 0.95**t)) + 1e-3)
        before = p[0]
        optim.adamw(p, g, m, v, t, 1e-2, betas=(0.8, 0.95), eps=1e-3, weight_decay=decay)
    for ours, expected in ((p, P), (m, M), (v, V)):
        np.testing.assert_allclose(ours, expected, rtol=tolerance)
    assert p.dtype == dtype and (p[0] == before) == (decay == 0)


@pytest.mark.parametrize(("change", "words"), [
    ({"g": np.ones(1)}, "g: axis 0"), ({"g": np.ones((5, 5))}, "g must have 1 axes"),
    ({"v": np.zeros(5, np.float32)}, "v has dtype float32"), ({"step": 0}, "step must be")])
def test_adamw_refuses_what_broadcasting_would_hide(change, words):
    vectors = {"p": np.ones(5), "g": np.ones(5), "m": np.zeros(5), "v": np.zeros(5), "step": 1}
    with pytest.raises(InputError, match=words):
        optim.adamw(**{**vectors, **change}, lr=0.1)


@pytest.mark.parametrize("rule", ["2d", "all"])
def test_only_what_should_decay_does(rule):
    """The trainer's AdamW against the rule applied to each array"""
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape)
              for name, shape in (("gain", (5,)), ("w", (3, 4)), ("bias", (2,)), ("e", (2, 3)))}
    settings = Settings(lr=0.1, warmup=0, clip=0.0, weight_decay=0.3)
    state = parallel.start(params, decay=rule)
    for grad in state.grads.values():
        grad[...] = rng.standard_normal(grad.shape)
    expected = {}
    for name, a in params.items():
        p, g = a.ravel().copy(), state.grads[name].ravel()
        decay = 0.3 if a.ndim == 2 or rule == "all" else 0.0
        optim.adamw(p, g, np.zeros_like(p), np.zeros_like(p), 1, 0.1, betas=(0.9, 0.99),
                    weight_decay=decay)
        expected[name] = p.reshape(a.shape)
    parallel.update(state, settings)
    assert all(np.array_equal(state.params[name], expected[name]) for name in params)


@pytest.mark.parametrize("B, n, sizes",
                         [(12, 2, [6, 6]), (7, 3, [2, 3, 2]), (2, 5, [1, 1]), (1, 1, [1]),
                          (5, 4, [1, 1, 2, 1])])
def test_chunks(B, n, sizes):
    parts = split(B, n)
    assert [part.stop - part.start for part in parts] == sizes and parts[0].start == 0
    assert parts[-1].stop == B


def test_mean_loss_does_not_depend_on_the_groups():
    config = model.Config(**SIZES)
    params, _, x, y = inputs(config, batch=7)
    expected = model.forward(params, x, config, targets=y)[1]
    with ThreadPoolExecutor(2) as pool:
        for group in (None, 1, 3, 7, 100):
            assert parallel.mean_loss(pool, params, {}, x, y, config,
                                      group) == pytest.approx(expected, rel=1e-13)


def chunked(config, params, buffers, x, y, chunks, seed=None):
    """-> loss, gradients, new buffers"""
    out = {name: np.empty_like(a) for name, a in params.items()}
    with ThreadPoolExecutor(2) as pool:
        loss, new = parallel.loss_and_gradients(pool, params, buffers, x, y, config, chunks=chunks,
                                                out=out, seed=seed)
    return loss, out, new


def test_chunks_add_up_to_the_batch():
    """Seven sequences in 1, 2, 3 and 7 parts: one loss, one gradient, one running mean."""
    config = config_of("affine", n_layer=1, attention_options={"use": "before"})
    given = inputs(config, batch=7)
    loss, grads, new = chunked(config, *given, 1)
    for chunks in (2, 3, 7, 9):
        other = chunked(config, *given, chunks)
        assert other[0] == pytest.approx(loss, rel=1e-13)
        for ours, whole in ((other[1], grads), (other[2], new)):
            assert all(np.abs(ours[name] - a).max() < 1e-12 * np.abs(a).max()
                       for name, a in whole.items())


def test_each_chunk_drops_its_own_entries():
    """Twice the same sequence, one per chunk: with the same masks the loss would be that of one."""
    config = config_of("softmax", dropout=0.3)
    params, buffers, x, y = inputs(config, batch=1)
    twice = [np.repeat(a, 2, axis=0) for a in (x, y)]
    one, two, again, other = (chunked(config, params, buffers, *data, n, seed)[0]
                              for data, n, seed in (
        ((x, y), 1, (1, 2)), (twice, 2, (1, 2)), (twice, 2, (1, 2)), (twice, 2, (1, 3))))
    assert two == again and abs(two - one) > 1e-3 and abs(two - other) > 1e-3
