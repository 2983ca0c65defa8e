"""Answers to the exercises of lesson 00, right and wrong, and what a wrong one is told."""

import numpy as np


def mean_by_matrix(v):
    return np.tril(np.ones((len(v),) * 2)) @ v / np.arange(1, len(v) + 1)[:, None]


def window(see):
    return lambda T, W: [[see(i, j, W) for j in range(T)] for i in range(T)]


def changes_the_future(f, q, k, v):
    for n in range(1, len(v)):
        later = (np.arange(len(v)) >= n)[:, None]
        if not np.allclose(f(q, k, v)[:n], f(q, k * (1 + later), v - later)[:n]):
            return False
    return True


def values_only(f, q, k, v):
    v2 = v.copy()
    v2[-1] += 1
    return np.allclose(f(q, k, v)[:-1], f(q, k, v2)[:-1])


RIGHT = {
    "mean_of_the_past": [mean_by_matrix],
    "window_mask": [window(lambda i, j, W: 0 <= i - j < W)],
    "is_causal": [changes_the_future],
}
WRONG = {
    "mean_of_the_past": [
        (lambda v: np.broadcast_to(v.mean(0), v.shape), "the future too"),
        (lambda v: np.cumsum(v, 0), "divides"),
        (lambda v: v, ""),
        (lambda v: np.cumsum(v, 1), ""),
        (lambda v: np.tri(len(v)) @ v / len(v), "i + 1 values"),
    ],
    "window_mask": [
        (lambda T, W: np.tri(T, dtype=bool), ""),
        (window(lambda i, j, W: 0 <= i - j <= W), "one key too many"),
        (window(lambda i, j, W: 0 <= j - i < W), "transposed"),
        (window(lambda i, j, W: abs(i - j) < W), "looks back only"),
        (window(lambda i, j, W: i < j or i - j >= W), "the opposite"),
    ],
    "is_causal": [
        (lambda *given: True, "looks ahead"),
        (lambda *given: False, "of a causal function"),
        (values_only, ""),
    ],
}
