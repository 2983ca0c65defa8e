"""Answers to the exercises of lesson 08, right and wrong, and what a wrong one is told."""

import numpy as np


def scores(x, sigma):
    return -((x[:, None] - x) ** 2).sum(axis=2) / (2 * sigma**2)


def softmax(s):
    P = np.exp(s - s.max(axis=1, keepdims=True))
    return P / P.sum(axis=1, keepdims=True)


def extended(x, sigma):
    half = (x**2).sum(axis=1, keepdims=True) / 2
    return np.hstack([x, np.ones_like(half)]) / sigma**2, np.hstack([x, -half])


def with_rows(x, sigma):
    """Two more channels: the whole squared distance, and the scale shared between both sides."""
    half, one = (x**2).sum(axis=1, keepdims=True) / 2, np.ones((len(x), 1))
    return np.hstack([x, one, -half]) / sigma, np.hstack([x, -half, one]) / sigma


def identity_in_float32(x, sigma):
    return softmax((x @ x.T - (x**2).sum(axis=1) / 2) / np.float32(sigma**2))


def scores_of(x, W, do, sigma):
    dW = do @ x.T
    return W * (dW - (W * dW).sum(axis=1, keepdims=True))


def log_sigma_by_loops(x, W, do, sigma):
    total = 0.0
    for i in range(len(x)):
        mean = sum(W[i, k] * (do[i] @ x[k]) for k in range(len(x)))
        for j in range(len(x)):
            total += W[i, j] * (do[i] @ x[j] - mean) * np.sum((x[i] - x[j]) ** 2) / sigma**2
    return total


def log_sigma_by_difference_of_means(x, W, do, sigma):
    """dW_ij / dl = W_ij (d2_ij - mean of d2) / sigma^2"""
    d2 = -2 * scores(x, sigma)
    return np.sum(do @ x.T * W * (d2 - (W * d2).sum(axis=1, keepdims=True)))


def x_by_roles(x, W, do, sigma):
    ds = scores_of(x, W, do, sigma)
    dx = W.T @ do
    for i in range(len(x)):
        for j in range(len(x)):
            dx[i] -= ds[i, j] * (x[i] - x[j]) / sigma**2
            dx[j] += ds[i, j] * (x[i] - x[j]) / sigma**2
    return dx


def x_without_keys(x, W, do, sigma):
    ds = scores_of(x, W, do, sigma)
    return W.T @ do - (ds.sum(axis=1, keepdims=True) * x - ds @ x) / sigma**2


def x_as_the_package(x, W, do, sigma):
    """dq + dk + dv, and what comes through the biases."""
    ds = scores_of(x, W, do, sigma)
    both = ds.sum(axis=0) + ds.sum(axis=1)
    return W.T @ do + (ds @ x + ds.T @ x - x * both[:, None]) / sigma**2


RIGHT = {
    "queries_and_keys": [extended, with_rows],
    "weights_in_float32": [
        lambda x, sigma: softmax(scores(x - x.mean(axis=0), sigma)),
        lambda x, sigma: softmax(scores(x, sigma)),
        lambda x, sigma: softmax(np.matmul(*(lambda q, k: (q, k.T))(*extended(x - x[0], sigma)))),
    ],
    "gradient_log_sigma": [log_sigma_by_loops, log_sigma_by_difference_of_means],
    "gradient_x": [x_by_roles, x_as_the_package],
}
WRONG = {
    "queries_and_keys": [
        (lambda x, sigma: (x / sigma**2, x), "length"),
        (lambda x, sigma: (extended(x, sigma)[0] * sigma, extended(x, sigma)[1]), "sigma^2"),
        (lambda x, sigma: extended(x, sigma)[::-1], ""),
        (lambda x, sigma: (extended(x, sigma)[0] / 2, extended(x, sigma)[1]), "factor 2"),
        (
            lambda x, sigma: (
                extended(x, sigma)[0],
                extended(x, sigma)[1] * np.r_[np.ones(x.shape[1]), -1],
            ),
            "minus sign",
        ),
        (lambda x, sigma: extended(x, 1.0), "sigma is missing"),
        (lambda x, sigma: (x, x, x), "raised"),
    ],
    "weights_in_float32": [
        (identity_in_float32, "rounds away"),
        (lambda x, sigma: softmax((x @ x.T - (x**2).sum(axis=1) / 2) / sigma**2), "rounds away"),
        (
            lambda x, sigma: identity_in_float32((x - x.mean(axis=0)) / x.std(axis=0), sigma),
            "The shift is right",
        ),
        (
            lambda x, sigma: softmax(
                (x @ x.T - (x**2).sum(axis=1) / 2 - (x**2).sum(axis=1)[:, None] / 2) / sigma**2
            ),
            "",
        ),
        (lambda x, sigma: softmax(scores(x - x.mean(axis=1, keepdims=True), sigma)), "own mean"),
        (
            lambda x, sigma: identity_in_float32(x - x.mean(axis=1, keepdims=True), sigma),
            "own mean",
        ),
        (
            lambda x, sigma: softmax(scores(x / np.linalg.norm(x, axis=1, keepdims=True), sigma)),
            "norm",
        ),
        (lambda x, sigma: softmax(scores(x, sigma)).T, ""),
    ],
    "gradient_log_sigma": [
        (lambda *a: -log_sigma_by_loops(*a), "sign"),
        (lambda *a: log_sigma_by_loops(*a) / 2, "The 2"),
        (lambda *a: log_sigma_by_loops(*a) / a[3], "gradient for sigma"),
        (lambda x, W, do, sigma: np.sum(do @ x.T * W * -2 * scores(x, sigma)), "row sum"),
        (lambda x, W, do, sigma: np.sum(-2 * scores(x, sigma) * (do @ x.T)), "softmax"),
        (
            lambda x, W, do, sigma: -2 * np.sum(scores_of(x, W, do, sigma) * (x @ x.T)) / sigma**2,
            "lengths",
        ),
    ],
    "gradient_x": [
        (lambda x, W, do, sigma: W.T @ do, "role of value"),
        (lambda *a: x_by_roles(*a) - a[1].T @ a[2], "W^T do"),
        (lambda x, W, do, sigma: x_by_roles(x, W, do, sigma) - W.T @ do + W @ do, "transposed"),
        (lambda x, W, do, sigma: 2 * W.T @ do - x_by_roles(x, W, do, sigma), "sign"),
        (lambda *a: x_by_roles(*a).T, "shape"),
        (x_without_keys, "role of key"),
        (lambda *a: (x_by_roles(*a) + a[1].T @ a[2]) / 2, "not the mean"),
        (
            lambda x, W, do, sigma: W.T @ do + (x_by_roles(x, W, do, sigma) - W.T @ do) * sigma**2,
            "1 / sigma^2",
        ),
    ],
}
