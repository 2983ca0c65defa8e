"""Answers to the exercises of lesson 02, right and wrong, and what a wrong one is told."""

import numpy as np

EPS = 1e-6


def dW_by_add_at(dy, ids, V):
    dW = np.zeros((V, dy.shape[1]))
    np.add.at(dW, ids, dy)
    return dW


def dW_by_loop(dy, ids, V):
    return np.array(
        [
            [sum(dy[n, c] for n in range(len(ids)) if ids[n] == v) for c in range(dy.shape[1])]
            for v in range(V)
        ]
    )


def dW_by_one_hot(dy, ids, V):
    return np.eye(V)[ids].T @ dy


def dW_last_wins(dy, ids, V):
    dW = np.zeros((V, dy.shape[1]))
    dW[ids] += dy
    return dW


def dW_assigned(dy, ids, V):
    dW = np.zeros((V, dy.shape[1]))
    dW[ids] = dy
    return dW


def rms(x, eps):
    return np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps)


def rms_by_y(dy, x, eps=EPS):
    s = rms(x, eps)
    y = x / s
    return (dy - y * np.mean(dy * y, axis=1, keepdims=True)) / s


def rms_eps_outside(dy, x, eps=EPS):
    s = np.sqrt(np.mean(x * x, axis=1, keepdims=True)) + eps
    return (dy - x / s * np.mean(dy * x / s, axis=1, keepdims=True)) / s


def rms_by_jacobian(dy, x, eps=EPS):
    rows = []
    for g, row in zip(dy, x):
        s = np.sqrt(np.mean(row**2) + eps)
        rows.append((np.eye(len(row)) / s - np.outer(row, row) / (len(row) * s**3)) @ g)
    return np.array(rows)


RIGHT = {
    "embedding_backward": [dW_by_add_at, dW_by_loop, dW_by_one_hot],
    "rms_norm_backward": [rms_by_y, rms_by_jacobian],
}
WRONG = {
    "embedding_backward": [
        (dW_last_wins, "only its last place"),
        (dW_assigned, "only its last place"),
        (
            lambda dy, ids, V: (
                dW_by_add_at(dy, ids, V) / np.maximum(np.bincount(ids, minlength=V), 1)[:, None]
            ),
            "mean",
        ),
        (lambda dy, ids, V: dW_by_add_at(dy, ids, V)[::-1], "should be"),
        (lambda dy, ids, V: dW_by_add_at(dy, ids, V).T, "shape"),
        (lambda dy, ids, V: dW_by_add_at(dy, ids, ids.max() + 1), "shape"),
        (lambda dy, ids, V: dy, "shape"),
    ],
    "rms_norm_backward": [
        (lambda dy, x, eps=EPS: dy / rms(x, eps), "constant"),
        (
            lambda dy, x, eps=EPS: (
                (dy - x / rms(x, eps) * np.sum(dy * x / rms(x, eps), axis=1, keepdims=True))
                / rms(x, eps)
            ),
            "not a sum",
        ),
        (
            lambda dy, x, eps=EPS: (
                rms_by_y(dy, x, eps) - dy.mean(axis=1, keepdims=True) / rms(x, eps)
            ),
            "shift",
        ),
        (lambda dy, x, eps=EPS: rms_by_y(dy, x, eps) * rms(x, eps), "factor 1/s"),
        (lambda dy, x, eps=EPS: 2 * dy / rms(x, eps) - rms_by_y(dy, x, eps), "should be"),
        (lambda dy, x, eps=EPS: rms_by_y(dy.T, x.T, eps).T, "should be"),
        (lambda dy, x, eps=EPS: rms_by_y(dy, x, 0), "eps is missing"),
        (lambda dy, x, eps=EPS: rms_by_y(dy, x), "is given"),
        (rms_eps_outside, "inside the root"),
        (lambda dy, x, eps=EPS: rms_by_y(dy, x, 1e-5), "should be"),
        (lambda dy, x, eps=EPS: rms_by_y(x, dy, eps), "should be"),
    ],
}
