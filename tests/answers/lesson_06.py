"""Answers to the exercises of lesson 06, right and wrong, and what a wrong one is told."""

import numpy as np


def summed_by_rows(alpha, alpha_ma, length):
    T, sums = len(alpha), []
    for i in range(T):
        beta = (alpha_ma - alpha[i]) / (T if length == "total" else i + 1)
        sums.append(alpha[i] + sum(beta for _ in range(i + 1)))
    return np.array(sums)


def counts(alpha, length):
    return len(alpha) if length == "total" else np.arange(1, len(alpha) + 1)


def affine_by_rows(Pv, v, alpha, alpha_ma, N):
    return np.array(
        [
            alpha[i] * Pv[i] + (alpha_ma - alpha[i]) / N[i] * v[: i + 1].sum(axis=0)
            for i in range(len(v))
        ]
    )


def affine(Pv, v, alpha, alpha_ma, N):
    return (
        alpha[:, None] * (Pv - np.cumsum(v, axis=0) / N[:, None])
        + alpha_ma * np.cumsum(v, axis=0) / N[:, None]
    )


def slope(u):
    return np.where((u > -5) & (u < 5), 0.1, 0)


def alpha_gradient(dout, Pv, v, u, N):
    return (
        np.einsum("id,id->i", dout, Pv) - np.einsum("id,jd,ij->i", dout, v, np.tri(len(v))) / N
    ) * slope(u)


RIGHT = {
    "row_sums": [
        summed_by_rows,
        lambda a, ma, length: a + np.arange(1, len(a) + 1) * (ma - a) / counts(a, length),
    ],
    "affine_from_kernel": [affine_by_rows, affine],
    "alpha_gradient": [
        alpha_gradient,
        lambda dout, Pv, v, u, N: np.array(
            [dout[i] @ (Pv[i] - v[: i + 1].sum(axis=0) / N[i]) * slope(u[i]) for i in range(len(v))]
        ),
    ],
}
WRONG = {
    "row_sums": [
        (lambda a, ma, length: np.full(len(a), ma), "with total"),
        (lambda a, ma, length: a + (ma - a) / counts(a, length), "not once"),
        (lambda a, ma, length: a + np.arange(len(a)) * (ma - a) / counts(a, length), "itself too"),
        (lambda a, ma, length: np.ones(len(a)), ""),
    ],
    "affine_from_kernel": [
        (lambda Pv, v, a, ma, N: a[:, None] * Pv + ((ma - a) / N)[:, None], "summed"),
        (lambda Pv, v, a, ma, N: (a * Pv.T).T, "is missing"),
        (
            lambda Pv, v, a, ma, N: a[:, None] * Pv + ((ma - a) / N)[:, None] * v.sum(axis=0),
            "looks ahead",
        ),
        (lambda Pv, v, a, ma, N: a[:, None] * Pv + ((ma - a) / N)[:, None] * v, "query's own"),
        (
            lambda Pv, v, a, ma, N: (
                a[:, None] * Pv + ((a - ma) / N)[:, None] * np.cumsum(v, axis=0)
            ),
            "sign",
        ),
        (
            lambda Pv, v, a, ma, N: a[:, None] * Pv + (ma - a)[:, None] * np.cumsum(v, axis=0),
            "divided",
        ),
        (
            lambda Pv, v, a, ma, N: (
                a[:, None] * Pv + ((ma - a) / N)[:, None] * np.cumsum(v, axis=1)
            ),
            "",
        ),
        (
            lambda Pv, v, a, ma, N: (
                a[:, None] * Pv + ((ma - a) / len(v))[:, None] * np.cumsum(v, axis=0)
            ),
            "",
        ),
    ],
    "alpha_gradient": [
        (lambda *a: 10 * np.array(alpha_gradient(*a)), "1/10"),
        (
            lambda d, Pv, v, u, N: (d * (Pv - np.cumsum(v, axis=0))).sum(axis=1) * slope(u),
            "divided by N",
        ),
        (
            lambda d, Pv, v, u, N: (d * (Pv - np.cumsum(v, axis=0) / N[:, None])).sum(axis=1),
            "slope",
        ),
        (
            lambda d, Pv, v, u, N: 0.1 * (d * (Pv - np.cumsum(v, axis=0) / N[:, None])).sum(axis=1),
            "flat",
        ),
        (lambda d, Pv, v, u, N: (d * Pv).sum(axis=1) * slope(u), "also stands in beta"),
        (
            lambda d, Pv, v, u, N: (d * (Pv - v.sum(axis=0) / N[:, None])).sum(axis=1) * slope(u),
            "does not see",
        ),
        (
            lambda d, Pv, v, u, N: (
                (d * (Pv - np.cumsum(v, axis=0) / N[:, None])).sum(axis=1)
                * np.where(abs(u) <= 5, 0.1, 0)
            ),
            "At -5 and 5 themselves",
        ),
        (
            lambda d, Pv, v, u, N: (
                (d * (Pv + np.cumsum(v, axis=0) / N[:, None])).sum(axis=1) * slope(u)
            ),
            "",
        ),
    ],
}
