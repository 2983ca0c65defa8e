"""Every layer of minattn.ops against central differences, against PyTorch, and in the corners."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from minattn import ops
from minattn.errors import InputError
from minattn.validate.gradients import assert_gradients, directional

N, C, C_OUT, V = 37, 11, 13, 17


class Case(NamedTuple):
    shapes: dict  # differentiable array argument -> shape
    forward: Callable  # (**arrays) -> y, cache
    backward: Callable
    torch: Callable  # (torch, torch.nn.functional, **tensors) -> y
    args: tuple = ()  # the other arguments


ids = np.random.default_rng(1).integers(
    0, V - 3, N
)  # repeated ids; the last three rows are never used
targets = np.random.default_rng(2).integers(0, V, N)
NORM = {"x": (N, C), "weight": (C,)}
LINEAR = {"x": (N, C), "weight": (C, C_OUT)}


def fixed_dropout(x):
    return ops.dropout_forward(x, 0.3, np.random.default_rng(4))


def keep(torch, x):
    return torch.tensor(fixed_dropout(np.ones(x.shape))[0])


CASES = {
    "linear": Case(
        {**LINEAR, "bias": (C_OUT,)},
        ops.linear_forward,
        ops.linear_backward,
        lambda t, F, x, weight, bias: F.linear(x, weight.T, bias),
    ),
    "linear-no_bias": Case(
        LINEAR,
        ops.linear_forward,
        ops.linear_backward,
        lambda t, F, x, weight: F.linear(x, weight.T),
    ),
    "layer_norm": Case(
        {**NORM, "bias": (C,)},
        ops.layer_norm_forward,
        ops.layer_norm_backward,
        lambda t, F, x, weight, bias: F.layer_norm(x, (C,), weight, bias),
    ),
    "layer_norm-no_bias": Case(
        NORM,
        ops.layer_norm_forward,
        ops.layer_norm_backward,
        lambda t, F, x, weight: F.layer_norm(x, (C,), weight),
    ),
    "rms_norm": Case(
        {"x": (2, 3, 5, C)},
        ops.rms_norm_forward,
        ops.rms_norm_backward,
        lambda t, F, x: x / t.sqrt((x**2).mean(-1, keepdim=True) + 1e-6),
    ),
    "gelu-tanh": Case(
        {"x": (N, C)},
        ops.gelu_forward,
        ops.gelu_backward,
        lambda t, F, x: F.gelu(x, approximate="tanh"),
    ),
    "gelu-exact": Case(
        {"x": (N, C)},
        lambda x: ops.gelu_forward(x, "exact"),
        ops.gelu_backward,
        lambda t, F, x: F.gelu(x),
    ),
    "embedding": Case(
        {"weight": (V, C)},
        lambda weight: ops.embedding_forward(ids, weight),
        ops.embedding_backward,
        lambda t, F, weight: F.embedding(t.tensor(ids), weight),
    ),
    "dropout": Case(
        {"x": (N, C)}, fixed_dropout, ops.dropout_backward, lambda t, F, x: x * keep(t, x)
    ),
    "cross_entropy": Case(
        {"logits": (N, V)},
        lambda logits: ops.cross_entropy_forward(logits, targets),
        ops.cross_entropy_backward,
        lambda t, F, logits: F.cross_entropy(logits, t.tensor(targets)),
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def draw(case, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in case.shapes.items()}


def both(case, arrays, seed=0):
    """y, dy, gradients"""
    y, cache = case.forward(**arrays)
    dy = np.asarray(np.random.default_rng([seed, 9]).standard_normal(np.shape(y)))
    dy = dy.astype(getattr(y, "dtype", float))
    return y, dy, case.backward(dy, cache)


def error(actual, expected):
    assert np.shape(actual) == np.shape(expected)
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1))


@every_case
def test_gradient_against_central_differences(case):
    slopes = assert_gradients(case.forward, case.backward, draw(case), seeds=range(5))
    assert {s.argument for s in slopes} == set(case.shapes)


@every_case
def test_against_pytorch(case):
    torch = pytest.importorskip("torch")
    for seed in range(3):
        arrays = draw(case, seed)
        y, dy, grads = both(case, arrays, seed)
        leaves = {name: torch.tensor(x, requires_grad=True) for name, x in arrays.items()}
        expected = case.torch(torch, torch.nn.functional, **leaves)
        expected.backward(torch.tensor(dy))
        assert error(y, expected.detach().numpy()) <= 1e-11
        for name, leaf in leaves.items():
            assert error(grads[name], leaf.grad.numpy()) <= 1e-11, name


@every_case
def test_float32_stays_float32_and_close(case):
    arrays = draw(case, dtype=np.float32)
    y, dy, grads = both(case, arrays)
    exact = case.forward(**{name: x.astype(float) for name, x in arrays.items()})
    truth = case.backward(dy.astype(float), exact[1])
    assert isinstance(y, float) or y.dtype == np.float32
    assert error(y, exact[0]) <= 8 * np.finfo(np.float32).eps
    for name, grad in grads.items():
        assert (
            grad.dtype == np.float32 and error(grad, truth[name]) <= 8 * np.finfo(np.float32).eps
        ), name


@every_case
def test_pure(case):
    arrays = draw(case)
    before = {name: x.copy() for name, x in arrays.items()}
    first = both(case, arrays)
    second = both(case, arrays)
    for name, x in arrays.items():
        np.testing.assert_array_equal(x, before[name])
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])  # dy is not used as scratch either
    for name in first[2]:
        np.testing.assert_array_equal(first[2][name], second[2][name])


@pytest.mark.parametrize("name", ["layer_norm", "layer_norm-no_bias", "gelu-tanh", "gelu-exact"])
@pytest.mark.parametrize("elements", [1, 40, N * C - 1])
def test_row_blocks_change_nothing(name, elements, monkeypatch):
    case, arrays = CASES[name], draw(CASES[name])
    y, _, grads = both(case, arrays)
    monkeypatch.setattr(ops, "ROWS_IN_CACHE", elements)
    y2, _, grads2 = both(case, arrays)
    np.testing.assert_array_equal(y, y2)
    for key in grads:
        assert error(grads2[key], grads[key]) <= 1e-14


@pytest.mark.parametrize("name", ["layer_norm", "gelu-tanh"])
def test_more_rows_than_one_block(name):
    rng, case = np.random.default_rng(0), CASES[name]
    rows = 2 * ops.ROWS_IN_CACHE // C + 5
    arrays = {**draw(case), "x": rng.standard_normal((rows, C))}
    y, cache = case.forward(**arrays)
    dy = rng.standard_normal(y.shape)
    dx = case.backward(dy, cache)["x"]
    for part in (slice(0, 7), slice(rows - 7, rows)):
        y2, cache = case.forward(**{**arrays, "x": arrays["x"][part]})
        np.testing.assert_allclose(
            y[part], y2, rtol=0, atol=1e-14
        )  # a matrix product may add a row up in another order
        np.testing.assert_allclose(
            dx[part], case.backward(dy[part], cache)["x"], rtol=0, atol=1e-13
        )


# ------------------------------------------------------------------------------------------ corners


def test_layer_norm_rows_have_mean_0_and_variance_1():
    y, _ = ops.layer_norm_forward(7 + 3 * draw(CASES["layer_norm"])["x"], np.ones(C), eps=0)
    assert np.abs(y.mean(axis=1)).max() < 1e-14 and np.abs(y.var(axis=1) - 1).max() < 1e-13


@pytest.mark.parametrize(
    "forward",
    [lambda x: ops.layer_norm_forward(x, np.ones(C)), ops.rms_norm_forward],
    ids=["layer_norm", "rms_norm"],
)
def test_norm_of_a_row_of_zeros_is_zero(forward):
    y, _ = forward(np.zeros((2, C)))
    np.testing.assert_array_equal(y, 0)


def test_rms_norm_rows_have_mean_square_1():
    y, _ = ops.rms_norm_forward(5 * draw(CASES["rms_norm"])["x"], eps=0)
    assert np.abs(np.mean(y * y, axis=-1) - 1).max() < 1e-14


@pytest.mark.parametrize("form", ["tanh", "exact"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gelu_far_out(form, dtype):
    x = np.array([[-1e4, -40, 0, 40, 1e4]], dtype)
    y, cache = ops.gelu_forward(x, form)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    np.testing.assert_array_equal(
        ops.gelu_backward(np.ones_like(x), cache)["x"], [[0, 0, 0.5, 1, 1]]
    )


@pytest.mark.parametrize(
    ("form", "at_1", "at_minus_half"),
    [
        ("tanh", 0.8411919906082768, -0.15428599017485606),
        ("exact", 0.8413447460685429, -0.15426876936299344),
    ],
)
def test_gelu_by_hand(form, at_1, at_minus_half):
    y, _ = ops.gelu_forward(np.array([[1.0, -0.5]]), form)
    np.testing.assert_allclose(y, [[at_1, at_minus_half]], rtol=1e-14)


def test_gelu_forms_differ_by_less_than_a_thousandth():
    x = np.linspace(-6, 6, 1001)[:, None]
    gap = np.abs(ops.gelu_forward(x, "tanh")[0] - ops.gelu_forward(x, "exact")[0]).max()
    assert 1e-5 < gap < 1e-3


def test_gelu_form_by_another_name():
    with pytest.raises(
        InputError, match="gelu form must be one of tanh, exact; got 'tnah'. Did you mean 'tanh'"
    ):
        ops.gelu_forward(np.zeros((1, 1)), "tnah")


def test_embedding_collects_repeated_ids_and_leaves_unused_rows_alone():
    y, cache = ops.embedding_forward(np.array([2, 0, 2, 2]), np.arange(12.0).reshape(4, 3))
    np.testing.assert_array_equal(y[:, 0], [6, 0, 6, 6])
    dweight = ops.embedding_backward(np.array([[1.0], [10], [100], [1000]]) * np.ones(3), cache)[
        "weight"
    ]
    np.testing.assert_array_equal(dweight, np.array([[10.0], [0], [1101], [0]]) * np.ones(3))


def test_embedding_of_no_tokens():
    y, cache = ops.embedding_forward(np.array([], int), np.ones((4, 3)))
    assert y.shape == (0, 3)
    np.testing.assert_array_equal(ops.embedding_backward(y, cache)["weight"], np.zeros((4, 3)))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_statistics(p):
    x = np.ones((400, 1000), np.float32)
    y, _ = ops.dropout_forward(x, p, np.random.default_rng(0))
    dropped = np.mean(y == 0)
    assert abs(dropped - p) < 5 * np.sqrt(p * (1 - p) / x.size)
    assert np.unique(y).size == 2 and abs(y.max() * (1 - p) - 1) < 1e-4
    assert abs(y.mean() - 1) < 5 * np.sqrt(p / (1 - p) / x.size)
    assert (
        abs(np.corrcoef(y[:, 0], y[:, 1])[0, 1]) < 0.25 and np.ptp(np.mean(y == 0, axis=0)) < 0.25
    )  # no stripes


@pytest.mark.parametrize("p", [np.zeros(2), "0", None, 1.0])
def test_dropout_refuses_what_is_no_probability_in_evaluation_too(p):
    with pytest.raises(InputError, match="p must be"):
        ops.dropout_forward(np.ones((2, 3)), p, None)


def test_dropout_is_the_generators():
    x = draw(CASES["dropout"])["x"]
    same, again, other = (
        ops.dropout_forward(x, 0.5, np.random.default_rng(s))[0] for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(same, again)
    assert (same != other).any()


@pytest.mark.parametrize(
    ("p", "rng"), [(0, np.random.default_rng(0)), (0.5, None)], ids=["p=0", "evaluation"]
)
def test_dropout_of_nothing(p, rng):
    x = draw(CASES["dropout"])["x"]
    y, cache = ops.dropout_forward(x, p, rng)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(ops.dropout_backward(x, cache)["x"], x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_cross_entropy_of_extreme_logits(dtype, scale):
    logits = scale * np.array([[0, 1, -1], [0, 1, -1]], dtype)
    loss, cache = ops.cross_entropy_forward(logits, np.array([1, 2]))
    assert loss == pytest.approx(scale)  # rows: 0 nats, and 2 * scale
    grad = ops.cross_entropy_backward(1.0, cache)["logits"]
    np.testing.assert_allclose(grad, [[0, 0, 0], [0, 0.5, -0.5]], atol=1e-30)


@pytest.mark.parametrize("shift", [1e2, -1e4, 1e6])
def test_cross_entropy_ignores_a_shift(shift):
    logits = (
        np.round(8 * draw(CASES["cross_entropy"])["logits"]) / 8
    )  # so that adding the shift is exact
    loss, cache = ops.cross_entropy_forward(logits, targets)
    loss2, cache2 = ops.cross_entropy_forward(logits + shift, targets)
    assert loss == loss2
    np.testing.assert_array_equal(cache.probs, cache2.probs)


def test_cross_entropy_of_no_knowledge():
    loss, cache = ops.cross_entropy_forward(np.zeros((N, V)), targets)
    assert loss == pytest.approx(np.log(V), rel=1e-14) and isinstance(loss, float)
    assert np.abs(ops.cross_entropy_backward(3.0, cache)["logits"].sum(axis=1)).max() < 1e-15


# ------------------------------------------------------------------------ the gradient check itself


def wrong_by(factor):
    return lambda dy, cache: {"x": dy * cache.slope * factor}


def test_gradient_check_catches_an_error_in_the_sixth_digit():
    x = {"x": np.random.default_rng(0).standard_normal((5, 7))}
    assert_gradients(ops.gelu_forward, wrong_by(1), x)
    with pytest.raises(AssertionError, match="hand-written +measured") as caught:
        assert_gradients(ops.gelu_forward, wrong_by(1 + 1e-6), x)
    assert caught.value.args[0].count(" x ") == 3  # one line per seed, both numbers in each


def test_gradient_check_catches_nan_and_zeros():
    x = {"x": np.random.default_rng(0).standard_normal((5, 7))}
    for factor in (np.nan, 0):
        with pytest.raises(AssertionError, match="gradients differ"):
            assert_gradients(ops.gelu_forward, wrong_by(factor), x)


def test_gradient_check_reports_both_numbers():
    x = np.array([1.0, 2, 3])
    (slope,) = directional(lambda x: x**3, {"x": x}, {"x": 3 * x**2}, np.ones(3))
    assert (
        slope.argument == "x"
        and slope.written == pytest.approx(slope.measured, rel=1e-10)
        and slope.error < 1e-10
    )


@pytest.mark.parametrize(
    ("arrays", "grads", "message"),
    [
        ({"x": np.ones(3, np.float32)}, {"x": np.ones(3)}, "x must be float64"),
        (
            {"x": np.ones(3)},
            {"x": np.ones((3, 1))},
            r"gradient of x must have its shape \(3,\); got \(3, 1\)",
        ),
    ],
)
def test_gradient_check_refuses(arrays, grads, message):
    with pytest.raises(InputError, match=message):
        directional(lambda x: x, arrays, grads, np.ones(3))
