"""Decoding one token: the logits of model.forward, for every model that it serves, however the work
is shared.
"""

import numpy as np
import pytest
from gpt_cases import CASES, config_of, inputs

from minattn import checks, decode, generate, model, parallel
from minattn.attention import MECHANISMS, core
from minattn.attention_layer import KVCache

SERVED = [
    case
    for case in CASES
    if not generate.recompute_reason(config_of(case))
]


def loud(case, **others):
    """A random model whose every parameter and buffer matters, its residual stream far from mean 0.
    """
    config = config_of(case, **others)
    params, buffers, x, _ = inputs(config, seed=3)
    for name in params:
        if name.startswith(("wte", "position.learned")) or name.endswith("bias"):
            params[name] += 0.5
        elif name.split(".")[-2] in ("c_attn", "c_proj"):
            params[name] *= 3
    return config, params, buffers, x


def one_by_one(config, params, buffers, x, first):
    """The logits after x[:, :first], then after each next token: (B, T - first + 1, V)"""
    decoder, past = decode.prepare(params, buffers, config), KVCache(config.block_size)
    logits = [
        model.forward(params, x[:, :first], config, buffers=buffers, kv_cache=past, last_only=True)[
            0
        ][:, 0]
    ]
    logits += [decode.step(decoder, x[:, t], past) for t in range(first, x.shape[1])]
    assert past.length == x.shape[1]
    return np.stack(logits, axis=1)


@pytest.mark.parametrize("case", SERVED)
@pytest.mark.parametrize("first", [1, 4])
def test_logits_are_forwards(case, first):
    config, params, buffers, x = loud(case)
    assert x.shape[1] == config.block_size
    whole = model.forward(params, x, config, buffers=buffers)[0]
    np.testing.assert_allclose(
        one_by_one(config, params, buffers, x, first),
        whole[:, first - 1 :],
        rtol=0,
        atol=1e-12 * np.abs(whole).max(),
    )


@pytest.mark.parametrize(
    "case", ["softmax", "affine+gated-head-window", "energy-morlet", "sink-rope-window"]
)
@pytest.mark.parametrize(
    "sizes",
    [
        dict(n_head=1, n_embd=2),
        dict(n_head=5, n_embd=70, vocab_size=65),
        dict(n_head=2, n_embd=64, vocab_size=64),
    ],
)
def test_any_size(case, sizes):
    """Panels that are filled up, and panels that fit."""
    config, params, buffers, x = loud(case, **sizes)
    whole = model.forward(params, x, config, buffers=buffers)[0]
    np.testing.assert_allclose(
        one_by_one(config, params, buffers, x, 1), whole, rtol=0, atol=1e-12 * np.abs(whole).max()
    )


def test_decay_within_a_window():
    config, params, buffers, x = loud("off_by_one+gated", window=3)
    whole = model.forward(params, x, config, buffers=buffers)[0]
    np.testing.assert_allclose(
        one_by_one(config, params, buffers, x, 1), whole, rtol=0, atol=1e-12 * np.abs(whole).max()
    )


@pytest.mark.parametrize(
    "fields", [{"window": 3, "position": "decay"}, {"log_length": True, "softcap": 1.5}], ids=str
)
@pytest.mark.parametrize(
    "attention", ["affine[length=visible]", "affine[length=7]", "forget", "energy[norm=none]",
                  "energy[norm=prefix]", "collaborative", "differential[version=1]"]
)
def test_window_or_length_and_cap(attention, fields):
    """What a mechanism takes of every key, of those in the window, and of the mixed queries"""
    config, params, buffers, x = loud("softmax", attention=attention, **fields)
    whole = model.forward(params, x, config, buffers=buffers)[0]
    np.testing.assert_allclose(
        one_by_one(config, params, buffers, x, 1), whole, rtol=0, atol=1e-12 * np.abs(whole).max()
    )


@pytest.mark.parametrize("case", ["softmax", "gated", "biases-exact", "off_by_one+gated"])
def test_float32(case):
    """No farther from float64 than a few times forward's own distance."""
    config, params, buffers, x = loud(case)
    exact = model.forward(params, x, config, buffers=buffers)[0]
    params, buffers = (
        {name: a.astype(np.float32) for name, a in part.items()} for part in (params, buffers)
    )
    ours, forwards = (
        one_by_one(config, params, buffers, x, 1),
        model.forward(params, x, config, buffers=buffers)[0],
    )
    assert ours.dtype == np.float32
    assert (
        np.abs(ours - exact).max() < 4 * np.abs(forwards - exact).max() < 1e-3 * np.abs(exact).max()
    )


def test_nothing_is_changed():
    config, params, buffers, x = loud("affine+gated-head-window")
    before = {name: a.copy() for name, a in {**params, **buffers}.items()}
    one_by_one(config, params, buffers, x, 1)
    assert all(np.array_equal(a, before[name]) for name, a in {**params, **buffers}.items())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", [name for name, row in MECHANISMS.items() if row.decode])
def test_a_mechanisms_decode_is_its_forward(name, bias):
    rng, row = np.random.default_rng(5), MECHANISMS[name]
    H, T, D = 3, 7, 5
    sizes = {"B": 2, "H": H, "G": H, "Tq": 1, "Tk": T, "D": D, "Dv": D, "Dv|1": D}
    sizes["T"] = 1
    arguments = {arg: rng.normal(0, 3, [checks.extent(symbol, sizes) for symbol in shape.split()])
                 for arg, shape in {**row.arguments, **row.optional}.items()}
    extra = {"bias": rng.normal(0, 3, (H, 1, T)) if bias else None}
    out = row.module.forward(**arguments, **extra, causal=True)[0]
    if "scale" not in row.refuses:
        arguments["q"] = arguments["q"] / np.sqrt(D)
    np.testing.assert_allclose(row.decode(**arguments, **extra), out, rtol=1e-13, atol=1e-14)


def test_attend_last_does_not_overflow():
    q, k, v = (
        np.full((1, 1, 1, 2), 100.0),
        np.full((1, 1, 3, 2), [[50.0], [-50.0], [50.0]]),
        np.arange(6.0).reshape(1, 1, 3, 2),
    )
    np.testing.assert_array_equal(core.attend_last(q, k, v), [[[[2.0, 3.0]]]])
    np.testing.assert_array_equal(
        core.attend_last(-q, k, v, sink=np.array([1e4])), [[[[1.0, 1.5]]]]
    )


@pytest.mark.parametrize("case", ["softmax", "energy", "gaussian", "affine"])
def test_threads_do_not_change_the_text(case):
    """19 prompts are three tasks; cached steps, prompts read at once and whole prefixes alike."""
    config, params, buffers, _ = loud(case, block_size=6)
    prompts = np.random.default_rng(2).integers(19, size=(19, 3))

    def texts(pool):
        return np.stack(
            list(
                generate.stream(
                    params, buffers, config, prompts, 15, temperature=2.0, seed=1, pool=pool
                )
            )
        )

    alone = texts(None)
    for threads in (1, 2, 3):
        with parallel.workers(threads) as pool:
            np.testing.assert_array_equal(texts(pool), alone)
