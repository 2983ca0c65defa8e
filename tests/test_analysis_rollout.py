"""Rollout and the mask as a graph: against products written out, counted walks, and what graphs
must do.
"""

from itertools import product
from math import comb

import gpt_cases
import numpy as np
import pytest

from minattn import model
from minattn.attention import MECHANISMS
from minattn.errors import InputError
from minattn.experiments.position_bias.stacks import (
    attention,
    center_nodes,
    checked_mask,
    graph,
    has_self_loops,
    least_entry,
    random_stack,
    steps,
    walks,
)
from minattn.inspect import maps
from minattn.inspect.rollout import rollout

L, B, H, N = 5, 2, 3, 7
MASKS = {
    "causal": graph(N, causal=True),
    "window": graph(N, window=3),
    "prefix": graph(N, causal=True, prefix=4),
    "none": graph(N),
    "any": np.random.default_rng(1).random((N, N)) < 0.4 + np.eye(N),
}


def close(actual, expected, rtol=1e-13):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-15)


# ------------------------------------------------------------------------------------------ rollout


def test_rollout_by_hand():
    bottom, top = np.array([[1, 0], [0.25, 0.75]]), np.array([[1, 0], [0.5, 0.5]])
    close(
        rollout([bottom, top]), [bottom, [[1, 0], [0.625, 0.375]]]
    )  # 0.5 * 1 + 0.5 * 0.25: top on the left
    close(rollout([top, bottom])[-1], [[1, 0], [0.25 + 0.75 * 0.5, 0.375]])
    close(rollout([bottom, top], residual=True)[-1], [[1, 0], [0.25 + 0.75 * 0.125, 0.75 * 0.875]])


@pytest.mark.parametrize("name", MASKS)
def test_rollout_is_the_sum_over_walks(name):
    """Every walk i <- s_t <- ... <- j, one by one."""
    A = random_stack(MASKS[name][:4, :4], 3, 0)
    expected = np.zeros((4, 4))
    for i, a, b, j in product(range(4), repeat=4):
        expected[i, j] += A[2, i, a] * A[1, a, b] * A[0, b, j]
    close(rollout(A)[-1], expected)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("residual", (False, True))
def test_rollout_keeps_rows_stochastic_and_inside_the_reachable(name, residual):
    A = random_stack(MASKS[name], (L, B, H), 2, temperature=0.5)
    P = rollout(A, residual=residual)
    assert P.shape == A.shape and P.dtype == np.float64
    close(P.sum(axis=-1), np.ones((L, B, H, N)))
    assert (P >= 0).all()
    assert (P[-1][..., ~np.isfinite(steps(MASKS[name]))] == 0).all()
    close(rollout(list(A), residual=residual), P)
    for b, h in product(range(B), range(H)):  # each head by itself
        close(rollout(A[:, b, h], residual=residual), P[:, b, h])


def test_residual_rollout_is_a_binomial_mixture():
    """((A + I) / 2)^L = 2^-L sum_k binom(L, k) A^k: half of the layers' steps are skipped."""
    A = random_stack(MASKS["causal"], 1, 3)[0]
    expected = sum(comb(L, k) * np.linalg.matrix_power(A, k) for k in range(L + 1)) / 2**L
    close(rollout([A] * L, residual=True)[-1], expected)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_rollout_takes_the_weights_of_a_model(mechanism):
    config = gpt_cases.config_of("softmax", attention=mechanism)
    params, buffers, ids, _ = gpt_cases.inputs(config)
    params, buffers = (
        {name: a.astype(np.float32) for name, a in d.items()} for d in (params, buffers)
    )
    assert all(a.dtype == np.float32 for a in model.init(config)[0].values())
    stack = maps.weights(params, buffers, config, ids)
    P = rollout(stack, stochastic=False)
    np.testing.assert_allclose(
        P[1], np.einsum("bhik,bhkj->bhij", *map(np.float64, stack[::-1])), rtol=1e-12, atol=1e-15
    )
    if not MECHANISMS[mechanism].stochastic:
        with pytest.raises(
            InputError, match=r"layer 0 of the stack: (row|entry) \(0, 0, \d.*stochastic=False"
        ):
            rollout(stack)
    else:
        close(rollout(stack), P)
        np.testing.assert_allclose(P.sum(axis=-1), 1, atol=1e-5)


def good():
    return list(random_stack(MASKS["causal"], (3, 2), 4))


def off(where, value):
    stack = good()
    stack[where[0]][where[1:]] += value
    return stack


@pytest.mark.parametrize(
    "stack, said",
    [
        (
            off((2, 1, 4, 3), 0.01),
            r"layer 2 of the stack: row \(1, 4\) must sum to 1; its sum is off by \+0.01 ",
        ),
        (off((1, 0, 3, 6), -0.5), r"layer 1 .*entry \(0, 3, 6\).*negative; it is -0.5"),
        (
            off((0, 1, 2, 1), 1e-13),
            r"layer 0 .*row \(1, 2\).*off by \+(9\.9\d*e-14|1(\.0\d*)?e-13) ",
        ),
        (off((1, 1, 6, 6), np.nan), r"layer 1 .*entry \(1, 6, 6\) must be finite; it is nan"),
        (off((1, 1, 6, 6), np.inf), r"layer 1 .*entry \(1, 6, 6\) must be finite; it is inf"),
        (
            good()[:1] + [np.eye(N)],
            r"layer 1 .*shape of layer 0; got \(7, 7\), layer 0 has \(2, 7, 7\)",
        ),
        ([np.eye(N)[:, :6]], r"layer 0 .*\(\.\.\., N, N\).*got \(7, 6\)"),
        ([np.ones(N)], r"layer 0 .*got \(7,\)"),
        ([np.zeros((0, 0))], r"layer 0 .*N >= 1.*got \(0, 0\)"),
        ([np.eye(N, dtype=int)], "float32 or float64 array; got int64"),
        ([[[1.0]]], "float32 or float64 array; got list"),
        (np.eye(N), r"at least one layer; got ndarray of shape \(7, 7\)"),
        ([], "at least one layer; got list"),
        (np.ones((0, N, N)), "at least one layer; got ndarray"),
        (3.0, "at least one layer; got float"),
    ],
)
def test_stacks_that_are_none(stack, said):
    with pytest.raises(InputError, match=said) as caught:
        rollout(stack)
    assert "\n" not in str(caught.value)


def test_rows_of_any_sum_on_request():
    A = good()
    close(rollout([2 * a for a in A], stochastic=False)[-1], 8 * rollout(A)[-1])
    close(rollout([-a for a in A], stochastic=False)[-1], -rollout(A)[-1])
    with pytest.raises(InputError, match="finite"):
        rollout(off((0, 0, 0, 0), np.nan), stochastic=False)
    with pytest.raises(InputError, match=r"row \(0, 0\).*off by \+1 "):
        rollout([2 * a for a in A])


# ------------------------------------------------------------------------------------ random stacks


@pytest.mark.parametrize("name", MASKS)
def test_random_stacks(name):
    mask = MASKS[name]
    A = random_stack(mask, (L, B), 5, temperature=0.3, floor=0.05)
    assert A.shape == (L, B, N, N) and (A[..., ~mask] == 0).all() and (A[..., mask] >= 0.05).all()
    close(A.sum(axis=-1), np.ones((L, B, N)))
    np.testing.assert_array_equal(
        A, random_stack(mask, (L, B), np.random.default_rng(5), temperature=0.3, floor=0.05)
    )
    assert np.abs(A - random_stack(mask, (L, B), 6, temperature=0.3, floor=0.05)).max() > 0.1
    close(least_entry(A, mask), A[..., mask].min(axis=(0, 2)))
    assert least_entry(A[:, 0], mask).shape == ()
    even = mask / mask.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(random_stack(mask, 2, 5, temperature=1e9), [even, even], atol=1e-8)
    sharp = random_stack(mask, 2, 5, temperature=1e-9)
    close(sharp.max(axis=-1), np.ones((2, N)))
    close(attention(np.zeros((N, N)), mask), even)


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(temperature=0), "temperature must be above 0"),
        (dict(floor=-0.1), "floor must be at least 0"),
        (dict(floor=0.2), "floor must be .*at most 0.1428"),
        (dict(temperature=np.nan), "temperature must be a finite number"),
    ],
)
def test_random_stacks_that_cannot_be(options, said):
    with pytest.raises(InputError, match=said):
        random_stack(MASKS["causal"], 2, 0, **options)


# -------------------------------------------------------------------------------------------- graph


@pytest.mark.parametrize("length", (0, 1, 2, 5, 24))
def test_causal_walks_are_binomials(length):
    counted = walks(MASKS["causal"], length)
    for i, j in product(range(N), repeat=2):
        expected = int(i == j) if length == 0 else comb(length - 1 + i - j, i - j) if i >= j else 0
        assert counted[i, j] == expected and type(counted[i, j]) is int
    assert (walks(MASKS["none"], length + 1) == N**length).all()  # 7^24 > 2^64: exact all the same


@pytest.mark.parametrize("name", MASKS)
def test_walks_and_steps_against_each_other(name):
    """The fewest steps are the first power of the mask that has a walk."""
    mask, expected = MASKS[name], np.full((N, N), np.inf)
    for length in range(N, -1, -1):
        expected[walks(mask, length) > 0] = length
    np.testing.assert_array_equal(steps(mask), expected)


@pytest.mark.parametrize("name", MASKS)
def test_walks_one_by_one(name):
    mask = MASKS[name][:5, :5]
    counted = np.zeros((5, 5), int)
    for i, a, b, j in product(range(5), repeat=4):
        counted[i, j] += mask[i, a] and mask[a, b] and mask[b, j]
    assert (walks(mask, 3) == counted).all()


def test_centers():
    for window in range(2, N + 1):
        mask = graph(N, window=window)
        assert has_self_loops(mask) and list(center_nodes(mask)) == [0]
        assert steps(mask)[N - 1, 0] == -(-(N - 1) // (window - 1))
    assert list(center_nodes(graph(N, window=1))) == []  # everyone sees itself only
    assert list(center_nodes(MASKS["causal"])) == [0]
    assert list(center_nodes(MASKS["prefix"])) == [0, 1, 2, 3]
    assert list(center_nodes(MASKS["none"])) == list(range(N))
    assert list(center_nodes(graph(1))) == [0]
    cycle = np.roll(np.eye(N, dtype=bool), 1, axis=1)  # i sees i + 1: no self-loops, all centers
    assert not has_self_loops(cycle) and len(center_nodes(cycle)) == N
    assert (
        steps(cycle)[0, 1] == 1 and steps(cycle)[1, 0] == N - 1
    )  # one layer from key 1 to query 0


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: graph(N, window=8), r"at most N = 7 tokens; got window=8"),
        (lambda: graph(N, causal=True, prefix=9), "prefix=9"),
        (lambda: graph(0), "N must be at least 1"),
        (lambda: graph(N, window=0), "window must be at least 1"),
        (lambda: graph(2.5), "N must be an integer"),
        (
            lambda: checked_mask(np.ones((3, 3))),
            r"boolean array \(N, N\).*float64 of shape \(3, 3\)",
        ),
        (lambda: checked_mask(np.ones((3, 4), bool)), r"bool of shape \(3, 4\)"),
        (lambda: checked_mask(np.ones((2, 3, 3), bool)), "shape"),
        (lambda: checked_mask(np.zeros((0, 0), bool)), "shape"),
        (lambda: steps(np.eye(4, k=-1, dtype=bool)), "row 0 of the mask is empty"),
        (lambda: random_stack(np.diag([True, True, False]), 2, 0), "row 2 of the mask is empty"),
        (lambda: walks(MASKS["causal"], -1), "length must be at least 0"),
    ],
)
def test_masks_that_are_none(call, said):
    with pytest.raises(InputError, match=said):
        call()
