"""Grades the exercises of lesson 09: position bias."""

import math

import numpy as np

from minattn.experiments.position_bias import bounds, stacks
from minattn.lessons.grading import Exercise, exercise


@exercise
def check_is_center():
    """M (N, N) of bool, with loops -> (N,) of bool."""

    def reached(M):
        return np.linalg.matrix_power(M.astype(float), len(M)) > 0  # [i, j]: j reaches i

    masks = [
        (7, {"causal": True}),
        (7, {"window": 4}),
        (7, {"window": 2}),
        (7, {"causal": True, "prefix": 3}),
        (5, {}),
    ]
    rng, loops = np.random.default_rng(0), [np.eye(N, dtype=bool) for N in (5, 7, 7, 11, 11, 13)]
    graphs = [stacks.graph(N, **mask) for N, mask in masks] + [
        I | (rng.random(I.shape) < 0.2) for I in loops
    ]
    graphs += [I | np.roll(I, 1, axis=0) for I in loops[-1:]]  # a ring: everybody, but slowly
    return Exercise(
        lambda M: np.isin(np.arange(len(M)), stacks.center_nodes(M)),
        [(M,) for M in graphs],
        hints=[
            (lambda M: (M.astype(int) @ M > 0).all(axis=0), "Two steps are not always enough."),
            (
                lambda M: M.all(axis=0),
                "That asks who is seen by everybody in one step; several steps count too.",
            ),
            (
                lambda M: reached(M).all(axis=1),
                "That is who can be reached by everybody: rows are queries.",
            ),
            (
                lambda M: np.flatnonzero(reached(M).all(axis=0)),
                "Those are the numbers of the centers: return True or False for every token.",
            ),
            (lambda M: ~reached(M).all(axis=0), "That is the opposite: True means a center."),
        ],
    )


@exercise
def check_one_more_layer():
    """P, A (N, N), residual -> (N, N)."""
    pairs = [
        stacks.random_stack(stacks.graph(N, **mask), 2, N)
        for N, mask in ((5, {"causal": True}), (7, {"window": 3}), (3, {}))
    ]

    def step(A, residual):
        return (A + np.eye(len(A))) / 2 if residual else A

    return Exercise(
        lambda P, A, residual: step(A, residual) @ P,
        [(P, A, residual) for P, A in pairs for residual in (False, True)],
        hints=[
            (
                lambda P, A, residual: P @ step(A, residual),
                "The order is wrong: the new layer takes means of what P holds.",
            ),
            (
                lambda P, A, residual: A @ P,
                "Right without a residual; with one, half of what the token holds stays.",
            ),
            (lambda P, A, residual: A @ P + residual * P, "The rows sum to 2: halve."),
            (
                lambda P, A, residual: (A @ P + np.eye(len(A))) / 2 if residual else A @ P,
                "What stays is what the token holds by now, P, not its input.",
            ),
            (
                lambda P, A, residual: step(A, residual).T @ P,
                "Rows of A are queries: this is transposed.",
            ),
        ],
    )


@exercise
def check_critical_distance():
    """layers, m -> the whole distance where the logarithm of the walks' weight is largest."""
    paper = -math.log(0.8)
    inputs = [(1, paper), (6, 0.3), (4, 0.17), (6, 0.17), (13, 0.31), (9, 1.1), (33, paper + 0.003)]
    star = lambda t, m: t / math.expm1(m)
    return Exercise(
        lambda layers, m: float(bounds.numerical_peak(layers - 1, 2000, m=m)),
        inputs,
        hints=[
            (lambda layers, m: math.floor(star(layers, m)), "L layers are t = L - 1."),
            (
                lambda layers, m: math.ceil(star(layers - 1, m)),
                "One too far: the weight grows from x to x + 1 only if x + 1 < x*.",
            ),
            (
                lambda layers, m: math.floor(star(layers - 1, m)) - 1,
                "One too near: look again at which step still gains.",
            ),
            (lambda layers, m: star(layers - 1, m), "That is x* itself: which whole distance?"),
            (lambda layers, m: math.floor((layers - 1) / math.exp(m)), "e^m - 1, not e^m."),
            (
                lambda layers, m: math.floor((layers - 1) / m),
                "e^m - 1 is near m for a small slope only.",
            ),
        ],
    )
