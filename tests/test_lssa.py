"""LSSA and LSSAR: the rows by hand, every score in float32, equal scores, few keys."""
import numpy as np
import pytest
from attention_cases import VARIANTS, inputs

from minattn.attention import lssa
from minattn.errors import InputError
from minattn.validate.gradients import assert_gradients


def rows(s, power, eps=1e-8, n=None):
    """The formula for visible scores s (K,), as it stands"""
    n = len(s) if n is None else n
    a = np.log1p(np.exp(s))
    A = a / a.sum()
    if power == 0:
        return A
    b = np.maximum(n * A - (n > 3), 0) ** power
    return b / (b.sum() + eps)


@pytest.mark.parametrize("power", [0, 1, 2, 3, 7, 15, 16])
def test_causal_rows_by_hand(power):
    arrays = inputs(VARIANTS["lssa"], Tq=7)
    weights = lssa.forward(**arrays, power=power, causal=True, return_weights=True)[2]
    q, k = (arrays[x] / np.linalg.norm(arrays[x], axis=3, keepdims=True) for x in "qk")
    for i in range(7):
        s = np.log(11) * np.log(i + 1) * (k[1, 2, :i + 1] @ q[1, 2, i])
        np.testing.assert_allclose(weights[1, 2, i, :i + 1], rows(s, power), rtol=0, atol=1e-13)


@pytest.mark.parametrize("power", [0, 3, 15, 1000])
@pytest.mark.filterwarnings("error")
def test_any_scores_are_finite_in_float32(power):
    """One key at +25 among 1023 at -20 has 1024 times the mean; its 15th power is infinite."""
    rng = np.random.default_rng(0)
    rule = lssa.Sharpened(power, 1e-8)
    for s in (np.where(np.arange(1024) == 5, 25, -20), np.full(1024, 1e6), np.full(1024, -1e6),
              rng.uniform(-100, 100, 1024), np.linspace(-103, -89, 1024),
              1e-6 * rng.standard_normal(1024), np.full(1024, -np.inf),
              np.where(np.arange(1024) == 5, 1e30, -1e30)):
        s = np.broadcast_to(s, (1, 1, 2, 1024)).astype(np.float32)
        with np.errstate(all="ignore"):                     # as under core.attend
            P, saved = rule.forward(s.copy(), None)
            ds = rule.backward(rng.standard_normal(s.shape).astype(np.float32), P, saved)
        assert P.dtype == ds.dtype == np.float32
        assert np.isfinite(P).all() and np.isfinite(ds).all()
        assert (P >= 0).all() and (P.sum(axis=3) <= 1 + 1e-5).all()


def test_float32_weights_where_one_key_stands_out():
    s = np.where(np.arange(1024) == 5, 25.0, -20)[None, None, None]
    P, _ = lssa.Sharpened(15, 1e-8).forward(s.astype(np.float32), None)
    np.testing.assert_allclose(P[0, 0, 0], rows(s[0, 0, 0], 15), rtol=0, atol=1e-6)


def test_equal_scores():
    """LSSAR keeps what beats the mean: of equal scores, nothing. LSSA is uniform."""
    arrays = inputs(VARIANTS["lssa"], Tq=7)
    arrays["k"][:] = 1.0
    out, cache = lssa.forward(**arrays)
    assert np.abs(out).max() <= 1e-100
    assert all(np.isfinite(x).all() for x in lssa.backward(out, cache).values())
    uniform = lssa.forward(**arrays, power=0)[0]
    means = np.broadcast_to(arrays["v"].mean(axis=2, keepdims=True), uniform.shape)
    np.testing.assert_allclose(uniform, means, rtol=0, atol=1e-14)


def test_one_visible_key_keeps_its_value():
    arrays = inputs(VARIANTS["lssa"], Tq=7)
    np.testing.assert_allclose(lssa.forward(**arrays, window=1)[0], arrays["v"], rtol=2e-8)
    three = lssa.forward(**arrays, window=3, return_weights=True)[2].sum(axis=3)
    assert (three > 0.99).all()


def test_rows_near_their_mean_fade():
    """The largest r is below eps^(1/15) = 0.29; a smaller eps keeps the row."""
    arrays = inputs(VARIANTS["lssa"], Tq=7)
    arrays["k"] = 1 + 0.01 * arrays["k"]
    faded, kept = (lssa.forward(**arrays, eps=eps, return_weights=True)[2].sum(axis=3)
                   for eps in (1e-8, 1e-100))
    assert faded.max() < 1e-6 and kept.min() > 0.999


def test_the_length_of_a_vector_does_not_matter():
    arrays = inputs(VARIANTS["lssa"])
    longer = {**arrays, "q": 5 * arrays["q"], "k": arrays["k"] / 8}
    np.testing.assert_allclose(lssa.forward(**longer)[0], lssa.forward(**arrays)[0], rtol=0,
                               atol=1e-12)


def test_a_small_power_has_gradients_too():
    arrays = inputs(VARIANTS["lssa"])
    for power in (1, 2):
        assert_gradients(lssa.forward, lssa.backward, arrays, power=power, seeds=(0,), step=1e-5)


@pytest.mark.parametrize(("options", "words"), [
    ({"power": -1}, "power must be at least 0; got -1"),
    ({"power": 2.5}, "power must be an integer; got 2.5"), ({"power": "15"}, "power must be"),
    ({"power": True}, "power must be"), ({"eps": 0}, "eps must be above 0; got 0"),
    ({"scale": 0.5}, "scale"), ({"log_length": np.ones(3)}, "log_length")])
def test_bad_input(options, words):
    with pytest.raises(InputError, match=words):
        lssa.forward(**inputs(VARIANTS["lssa"]), **options)


def test_an_eps_that_float32_cannot_hold():
    """As 0 it would make NaN of a row of equal scores."""
    q, k, v = np.ones((3, 1, 1, 5, 4), np.float32)
    assert not lssa.forward(q, k, v, eps=1e-30)[0].any()
    with pytest.raises(InputError, match="eps must be a number that float32 can hold; got 1e-50"):
        lssa.forward(q, k, v, eps=1e-50)
