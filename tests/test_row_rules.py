"""What is special about cog, pointwise and sparse rows; the rest is in test_mechanisms.py."""
import numpy as np
import pytest

from minattn.attention import cog, pointwise, softmax, sparse
from minattn.errors import InputError

B, H, T, D, DV = 2, 3, 11, 5, 7


def qkv(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((B, H, T, d)) for d in (D, D, DV)]


def scores(q, k):
    return np.einsum("bhid,bhjd->bhij", q, k) / np.sqrt(D)


def weights(module, *arrays, **options):
    return module.forward(*arrays, return_weights=True, **options)[2]


# --------------------------------------------------------------------------------------------- cog


def test_cog_signs_the_softmax_of_sizes():
    q, k, v = qkv()
    s = scores(q, k)
    A = np.exp(np.abs(s))
    P = np.sign(s) * A / A.sum(axis=3, keepdims=True)
    np.testing.assert_allclose(weights(cog, q, k, v), P, rtol=1e-13)
    sizes = np.abs(weights(cog, q, k, v, causal=True)).sum(axis=3)
    np.testing.assert_allclose(sizes, 1, rtol=1e-14)


def test_cog_with_one_key_is_its_value_or_minus_its_value():
    q, k, v = qkv()
    sign = np.sign(np.einsum("bhid,bhid->bhi", q, k))[..., None]
    assert set(sign.ravel()) == {-1, 1}
    np.testing.assert_array_equal(cog.forward(q, k, v, window=1)[0], sign * v)


def test_cog_score_of_zero_weighs_nothing_but_counts():
    q, k, v = qkv()
    k[:, :, 0] = 0
    P = weights(cog, q, k, v)
    assert (P[..., 0] == 0).all() and (np.abs(P).sum(axis=3) < 1).all()


def test_cog_penalty_takes_weight_away():
    """Whatever the sign of the score."""
    q, k, v = qkv()
    penalty = np.zeros((1, 1, T))
    penalty[..., 2] = -30
    assert np.abs(weights(cog, q, k, v, bias=penalty)[..., 2]).max() < 1e-10


# --------------------------------------------------------------------------------------- pointwise


@pytest.mark.parametrize("rule", ["relu", "sigmoid"])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 4}, {"causal": True,
                                                                         "prefix": 5}])
def test_pointwise_is_a_function_of_one_score_and_a_count(rule, options):
    q, k, v = qkv()
    s, see = scores(q, k), weights(softmax, q, k, v, **options) > 0
    n = see.sum(axis=3, keepdims=True)
    P = np.maximum(s, 0) / n if rule == "relu" else 1 / (1 + n * np.exp(-s))
    np.testing.assert_allclose(weights(pointwise, q, k, v, rule=rule, **options),
                               np.where(see, P, 0), rtol=1e-13)


def test_pointwise_sigmoid_of_zeros_sums_to_nearly_one():
    q, k, v = qkv()
    sums = weights(pointwise, 0 * q, k, v, rule="sigmoid", causal=True).sum(axis=3)
    n = np.arange(1, T + 1)
    np.testing.assert_allclose(sums, np.broadcast_to(n / (n + 1), sums.shape), rtol=1e-14)


def test_a_dead_relu_row_gives_nothing_and_learns_nothing():
    q, k, v = qkv()
    q[:, :, 4] = -np.abs(q[:, :, 4])
    k = np.abs(k)
    out, cache = pointwise.forward(q, k, v)
    assert (out[:, :, 4] == 0).all()
    grads = pointwise.backward(np.where(np.arange(T)[:, None] == 4, 1.0, np.zeros_like(out)), cache)
    assert not any(grad.any() for grad in grads.values())


# ------------------------------------------------------------------------------------------ sparse


@pytest.mark.parametrize("top", [1, 3, T, T + 5])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 4}])
def test_top_k_is_the_softmax_of_the_largest(top, options):
    q, k, v = qkv()
    s, P = scores(q, k), weights(sparse, q, k, v, top=top, **options)
    see = weights(softmax, q, k, v, **options) > 0
    for row in np.ndindex(B, H, T):
        keys = np.flatnonzero(see[row])
        chosen = keys[np.argsort(s[row][keys])[-top:]]
        expected = np.zeros(T)
        expected[chosen] = np.exp(s[row][chosen]) / np.exp(s[row][chosen]).sum()
        np.testing.assert_allclose(P[row], expected, rtol=1e-12)


@pytest.mark.parametrize("rule, power", [("sparsemax", 1), ("entmax15", 2)])
@pytest.mark.parametrize("scale", [0.01, 1, 4, 1000])
def test_thresholds_are_those_found_by_bisection(rule, power, scale):
    q, k, v = qkv()
    options = {"causal": True, "scale": scale / np.sqrt(D)}
    see = np.tril(np.ones((T, T), bool))
    z = np.where(see, scale * scores(q, k), -np.inf) / power
    low, high = z.max(axis=3, keepdims=True) - 1, z.max(axis=3, keepdims=True)
    for _ in range(100):
        middle = (low + high) / 2
        above = (np.maximum(z - middle, 0)**power).sum(axis=3, keepdims=True) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    P = weights(sparse, q, k, v, rule=rule, **options)
    np.testing.assert_allclose(P, np.maximum(z - low, 0)**power, rtol=0, atol=2e-13 * max(scale, 1))
    np.testing.assert_allclose(P.sum(axis=3), 1, rtol=1e-12)


@pytest.mark.parametrize("rule", ["topk", "sparsemax", "entmax15"])
def test_a_key_without_weight_learns_nothing(rule):
    q, k, v = qkv(1)
    k[:, :, 3] = -20 * q[:, :, 6]                          # far below the others of query 6
    out, cache, P = sparse.forward(q, k, v, rule=rule, top=2, return_weights=True)
    dout = np.zeros_like(out)
    dout[:, :, 6] = np.random.default_rng(2).standard_normal((B, H, DV))
    grads = sparse.backward(dout, cache)
    unused = P[:, :, 6] == 0
    assert unused[:, :, 3].all() and not unused.all(axis=2).any()
    assert (grads["k"][unused] == 0).all() and (grads["v"][unused] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_keys_are_chosen_together_in_any_order(dtype):
    """Though a product with equal keys may round differently from column to column."""
    q, k, v = (x.astype(dtype) for x in qkv())
    k[:, :, ::2] = k[:, :, :1]                             # six equal keys
    order = np.random.default_rng(0).permutation(T)
    P = weights(sparse, q, k, v, top=2)
    moved = weights(sparse, q, k[:, :, order], v[:, :, order], top=2)
    np.testing.assert_allclose(moved, P[..., order], atol=1e-6)
    chosen = P[..., ::2] > 0
    assert (chosen.all(axis=3) | ~chosen.any(axis=3)).all()


@pytest.mark.parametrize("top", [0, -1, 2.5, "two", True, None])
def test_top_is_a_whole_number_from_1(top):
    with pytest.raises(InputError, match=r"^top must be .*; got"):
        sparse.forward(*qkv(), top=top)


@pytest.mark.parametrize("integer", [np.int8, np.uint8, np.uint64])
@pytest.mark.parametrize("top", [2, 100])
def test_top_of_another_integer_type(integer, top):
    """An unsigned one is subtracted from the number of keys, which may be less."""
    right, other = (weights(sparse, *qkv(), top=n) for n in (top, integer(top)))
    np.testing.assert_array_equal(other, right)


@pytest.mark.parametrize("module", [cog, pointwise, sparse])
def test_a_sink_is_refused(module):
    with pytest.raises(InputError, match="a sink needs softmax weights"):
        module.forward(*qkv(), sink=np.zeros(H))
