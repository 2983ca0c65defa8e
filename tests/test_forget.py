"""Forgetting attention: the formula by loops, its limits, and float32 far along a sequence."""
import numpy as np
import pytest
from attention_cases import MASKS, VARIANTS, assert_close, cotangent, error, inputs, options_of, run

from minattn import masks
from minattn.attention import forget, softmax

FORGET = VARIANTS["forget"]


def by_loops(logits, p, Tk):
    """sum of log f_l over l = j+1 .. p_i, backwards where the key is ahead: (B, H, Tq, Tk)"""
    log_f = -np.log1p(np.exp(-logits))
    bias = np.zeros((*logits.shape[:2], len(p), Tk))
    for i, here in enumerate(p):
        for j in range(Tk):
            bias[:, :, i, j] = log_f[:, :, j + 1:max(here + 1, 0)].sum(axis=2)
            bias[:, :, i, j] -= log_f[:, :, max(here + 1, 0):j + 1].sum(axis=2)
    return bias


@pytest.mark.parametrize("mask", MASKS)
def test_the_bias_is_a_sum_of_gates(mask):
    arrays, options = inputs(FORGET, mask), options_of(FORGET, mask)
    logits = arrays.pop("forget_logits")
    Tk = logits.shape[2]
    p = masks.positions(arrays["q"].shape[2], Tk, options.get("align", "end"))
    expected = softmax.forward(**arrays, **options, bias=by_loops(logits, p, Tk))[0]
    out = forget.forward(**arrays, forget_logits=logits, **options)[0]
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)


def test_limits():
    """Gates of 1 forget nothing; gates of 0 all but the token itself; equal gates are ALiBi."""
    arrays = inputs(FORGET, "causal", Tq=7)
    logits = arrays.pop("forget_logits")
    plain = softmax.forward(**arrays, causal=True)[0]
    out = [forget.forward(**arrays, forget_logits=0 * logits + x, causal=True)[0]
           for x in (60.0, -1e4, 0.3)]
    np.testing.assert_allclose(out[0], plain, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(out[1], arrays["v"])
    distance = np.arange(7)[:, None] - np.arange(7)
    alibi = softmax.forward(**arrays, bias=-np.log1p(np.exp(-0.3)) * distance, causal=True)[0]
    np.testing.assert_allclose(out[2], alibi, rtol=0, atol=1e-14)


def test_the_first_gate_changes_nothing():
    arrays = inputs(FORGET, "causal", Tq=7)
    before = run(FORGET, arrays, causal=True)
    arrays["forget_logits"][:, :, 0] = 5
    after = run(FORGET, arrays, causal=True)
    np.testing.assert_allclose(after["out"], before["out"], rtol=0, atol=1e-14)
    assert np.abs(before["dforget_logits"][:, :, 0]).max() <= 1e-15


def test_no_keys():
    q, none = np.ones((2, 3, 4, 5)), np.ones((2, 3, 0, 5))
    out, cache = forget.forward(q, none, none, none[..., 0])
    assert not out.any() and forget.backward(out, cache)["forget_logits"].shape == (2, 3, 0)


def test_float32_keeps_its_digits_far_along():
    """After 3000 tokens the running sum is near -2000, where float32 steps by 1e-4."""
    arrays = inputs(FORGET, B=1, H=1, G=1, Tq=3000, Tk=3000)
    truth = run(FORGET, arrays, window=50)
    single = {key: x.astype(np.float32) for key, x in arrays.items()}
    actual = run(FORGET, single, cotangent(truth["out"]).astype(np.float32), window=50)
    assert_close({key: x.astype(float) for key, x in actual.items()}, truth, 2e-6)


def test_grouped_keys():
    """Keys and values are shared by a group of heads; every head keeps its own gates."""
    arrays = inputs(FORGET, "causal", G=1)
    repeated = {**arrays, "k": arrays["k"].repeat(3, axis=1), "v": arrays["v"].repeat(3, axis=1)}
    one, three = (run(FORGET, x, causal=True) for x in (arrays, repeated))
    assert error(one["out"], three["out"]) <= 1e-14
    assert error(one["dk"], three["dk"].sum(axis=1, keepdims=True)) <= 1e-13
    assert error(one["dforget_logits"], three["dforget_logits"]) <= 1e-13
