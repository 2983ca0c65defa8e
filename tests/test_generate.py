"""Sampling: the cached text is the uncached text, past the block's end too, and choices are what
was asked for.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from gpt_cases import CASES, POOLED, config_of, inputs

from minattn import generate, model
from minattn.attention_layer import KVCache
from minattn.errors import InputError

RECOMPUTED = {
    "affine",
    "affine+gated",
    "sink/affine+gated/gaussian",
    "energy[norm=sequence]",
    "energy-sequence-morlet",
    *POOLED,
}


def lively(case, **others):
    """A random model that answers to all it sees: the branches speak louder than the token itself.
    """
    config = config_of(case, **others)
    params, buffers, _, _ = inputs(config, seed=4)
    louder = {"c_proj": 6, "c_attn": 3}
    return (
        config,
        {name: a * louder.get(name.split(".")[-2], 1) for name, a in params.items()},
        buffers,
    )


def tokens(case, n=30, prompt=(3, 1, 4), size=8, **options):
    """n tokens after a prompt, with a block of `size`"""
    config, params, buffers = lively(case, block_size=size)
    return list(generate.stream(params, buffers, config, prompt, n, **options))


def literal(case, n, prompt, size):
    """Greedy, from whole prefixes, as the docstring of stream says it."""
    config, params, buffers = lively(case, block_size=size)
    view, out = list(prompt)[-size:], []
    for _ in range(n):
        if len(view) > size:
            view = view[-(size // 2) :]
        out.append(
            int(model.forward(params, np.array([view]), config, buffers=buffers)[0][0, -1].argmax())
        )
        view.append(out[-1])
    return out


@pytest.mark.parametrize("case", [case for case in CASES if case not in POOLED])
def test_greedy_cached_equals_uncached(case):
    """Three and a half blocks after each of five prompts."""
    prompts = np.random.default_rng(0).integers(19, size=(5, 3))
    cached, uncached = (
        np.stack(tokens(case, prompt=prompts, top_k=1, cached=cached), axis=1)
        for cached in (True, False)
    )
    assert (
        cached.tolist()
        == uncached.tolist()
        == [literal(case, 30, prompt, 8) for prompt in prompts.tolist()]
    )
    assert (
        cached.shape == (5, 30) and len(np.unique(cached)) > 4
    )  # models that repeat themselves would show nothing


@pytest.mark.parametrize("case", CASES)
def test_sampled_cached_equals_uncached(case):
    for options in (dict(temperature=2.0, seed=5), dict(temperature=1.3, top_k=7, seed=6)):
        assert tokens(case, **options) == tokens(case, **options, cached=False)


@pytest.mark.parametrize("prompt", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_any_prompt_and_block(prompt, size):
    """A prompt may be longer than the block; a block may be a single token."""
    options = dict(prompt=np.arange(prompt) % 5, size=size, n=2 * size + 3, top_k=1)
    assert tokens("rope", **options) == tokens("rope", **options, cached=False)
    if size > 1:
        assert tokens("rope", **options) == literal(
            "rope", 2 * size + 3, np.arange(prompt) % 5, size
        )


@pytest.mark.parametrize("case", ["energy", "softmax", "affine"])
def test_batch_of_prompts_equals_one_at_a_time(case):
    prompts = [[3, 1, 4], [1, 5, 9]]
    together = np.stack(tokens(case, prompt=np.array(prompts), top_k=1), axis=1)
    assert together.tolist() == [tokens(case, prompt=p, top_k=1) for p in prompts]


# ---------------------------------------------------------------------------------- without a cache


@pytest.mark.parametrize("case", CASES)
def test_recomputes_only_where_it_must(case):
    why = generate.recompute_reason(config_of(case))
    assert bool(why) == (case in RECOMPUTED)
    if why:
        leaks = "energy" in case or case in POOLED
        assert ("later tokens" if leaks else "length of the whole sequence") in why


@pytest.mark.parametrize("case", sorted(RECOMPUTED))
def test_the_reason_is_true(case):
    """With a cache these would answer differently from what the whole prefix gives."""
    config = config_of(case)
    params, buffers, x, _ = inputs(config)
    whole, past = (
        model.forward(params, x[:, :9], config, buffers=buffers)[0],
        KVCache(config.block_size),
    )
    for n in range(9):
        last = model.forward(params, x[:, n : n + 1], config, buffers=buffers, kv_cache=past)[0]
    assert np.abs(last[:, 0] - whole[:, -1]).max() > 1e-3


# ------------------------------------------------------------------------------------------ choices


def test_seeds():
    one, same, other = (tokens("softmax", seed=seed) for seed in (7, 7, 8))
    assert one == same != other


@pytest.mark.parametrize("top_k", [1, 2, 5, 19, 1000])
def test_top_k_takes_the_most_likely(top_k):
    logits = np.random.default_rng(0).permutation(19)[None] / 3.0
    rng = np.random.default_rng(1)
    seen = {int(generate._pick(logits, 2.0, top_k, rng)[0]) for _ in range(3000)}
    best = set(np.argsort(-logits[0])[:top_k].tolist())
    assert seen <= best and len(seen) >= min(top_k, 5)


def test_frequencies_follow_the_temperature():
    logits = np.repeat([[0.0, 1.0, 2.0]], 40_000, axis=0)
    for temperature in (0.5, 1.0, 2.0):
        picked = (
            np.bincount(
                generate._pick(logits, temperature, None, np.random.default_rng(0)), minlength=3
            )
            / 40_000
        )
        expected = np.exp(logits[0] / temperature)
        np.testing.assert_allclose(picked, expected / expected.sum(), atol=0.01)


@pytest.mark.parametrize("temperature", [1e-3, 5e-324])
def test_small_temperature_is_greedy(temperature):
    assert tokens("softmax", temperature=temperature) == tokens("softmax", top_k=1)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(temperature=0), "temperature must be above 0; got 0"),
        (dict(temperature=-0.5), "temperature must be above 0; got -0.5"),
        (dict(temperature=float("nan")), "temperature must be a finite number"),
        (dict(top_k=0), "top-k must be at least 1; got 0"),
        (dict(top_k=2.5), "top-k must be an integer"),
        (dict(n=-1), "tokens must be at least 0; got -1"),
        (dict(prompt=[]), "at least one token"),
        (dict(seed=-1), "seed must be at least 0"),
    ],
)
def test_bad_input(options, message):
    options = dict(options)
    config = config_of("softmax")
    params, buffers, _, _ = inputs(config)
    with pytest.raises(InputError, match=message):
        list(
            generate.stream(
                params, buffers, config, options.pop("prompt", [1]), options.pop("n", 3), **options
            )
        )


def test_text():
    config = config_of("softmax")
    params, buffers, _, _ = inputs(config)
    checkpoint = SimpleNamespace(params=params, buffers=buffers)
    run = SimpleNamespace(vocabulary="abcdefghijklmnopqrs", config=config, checkpoint=checkpoint)
    out = generate.text(run, "bad", 12, temperature=0.9, seed=3)
    assert (
        out.startswith("bad")
        and len(out) == 15
        and out == generate.text(run, "bad", 12, temperature=0.9, seed=3)
    )
    assert generate.text(run, "bad", 0) == "bad"
    with pytest.raises(InputError, match="characters outside the vocabulary: 'z'"):
        generate.text(run, "zebra", 12)
