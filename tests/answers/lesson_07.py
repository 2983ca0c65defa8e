"""Answers to the exercises of lesson 07, right and wrong, and what a wrong one is told."""

import numpy as np


def g(u):
    return 1 / (1 + np.exp(-u))


def log_g(u):
    return np.minimum(u, 0) - np.log1p(np.exp(-np.abs(u)))


def weights_by_rows(P, u):
    A = np.zeros_like(P)
    for i, row in enumerate(P):
        seen = row > 0
        raised = np.log(row[seen]) + log_g(u[seen])
        A[i, seen] = np.exp(raised - np.logaddexp.reduce(raised))
    return A


def weights_at_once(P, u):
    raised = np.where(P > 0, log_g(u), -np.inf)
    A = P * np.exp(raised - raised.max(axis=1, keepdims=True))
    return A / A.sum(axis=1, keepdims=True)


def published(P, u):
    return P * g(u) / np.maximum((P * g(u)).sum(axis=1, keepdims=True), 1e-8)


def causal_z(e):
    z = [0.0]
    for j in range(1, len(e)):
        z.append((e[j] - e[: j + 1].mean()) / np.sqrt(e[: j + 1].var() + 1e-8))
    return z


def causal_z_by_sums(e):
    d, n = e - e[0], np.arange(1, len(e) + 1)
    mean = np.cumsum(d) / n
    z = (d - mean) / np.sqrt(np.cumsum(d**2) / n - mean**2 + 1e-8)
    z[0] = 0
    return z


def at_once(e):
    return (e - e.mean()) / e.std()


def surprise(logits, token):
    return -np.log(np.exp(logits[token]) / np.exp(logits).sum())


def prefix_only(f, x, y):
    return np.mean([surprise(f(x[:n])[-1], y[n - 1]) for n in range(1, len(x) + 1)])


RIGHT = {
    "gated_weights": [weights_by_rows, weights_at_once],
    "normalise_causally": [causal_z, causal_z_by_sums],
    "prefix_only_loss": [
        prefix_only,
        lambda f, x, y: sum(surprise(f(x[: t + 1])[t], y[t]) for t in range(len(x))) / len(x),
    ],
}
WRONG = {
    "gated_weights": [
        (published, "floor"),
        (lambda P, u: P * g(u), "sum to 1 again"),
        (lambda P, u: P * g(u) / (P * g(u)).sum(axis=1, keepdims=True), "nan"),
        (lambda P, u: P, ""),
        (lambda P, u: weights_at_once(P, -u), ""),
        (
            lambda P, u: (
                P
                * np.exp(log_g(u) - log_g(u).max())
                / (P * np.exp(log_g(u) - log_g(u).max())).sum(axis=1, keepdims=True)
            ),
            "",
        ),
    ],
    "normalise_causally": [
        (at_once, "later energies"),
        (
            lambda e: np.array(
                [0.0]
                + [(e[j] - e[:j].mean()) / np.sqrt(e[:j].var() + 1e-8) for j in range(1, len(e))]
            ),
            "own value",
        ),
        (
            lambda e: np.array(
                [0.0]
                + [
                    (e[j] - e[: j + 1].mean()) / np.sqrt(e[: j + 1].var(ddof=1) + 1e-8)
                    for j in range(1, len(e))
                ]
            ),
            "population",
        ),
        (
            lambda e: np.array(
                [0.0]
                + [
                    (e[j] - e[: j + 1].mean()) / (e[: j + 1].std() + 1e-8)
                    for j in range(1, len(e))
                ]
            ),
            "inside the root",
        ),
        (
            lambda e: np.array(
                [0.0] + [(e[j] - e[: j + 1].mean()) / e[: j + 1].std() for j in range(1, len(e))]
            ),
            "is missing",
        ),
        (lambda e: e - np.cumsum(e) / np.arange(1, len(e) + 1), "deviation"),
        (lambda e: np.array(causal_z(e[::-1]))[::-1], ""),
    ],
    "prefix_only_loss": [
        (
            lambda f, x, y: np.mean([surprise(f(x)[t], y[t]) for t in range(len(x))]),
            "teacher-forced",
        ),
        (lambda f, x, y: prefix_only(f, x, x), "not about x[t]"),
        (lambda f, x, y: prefix_only(f, x, y) * len(x), "sum"),
        (
            lambda f, x, y: np.mean([surprise(f(x[:t])[-1], y[t]) for t in range(1, len(x))]),
            "t = 0 counts",
        ),
        (
            lambda f, x, y: np.mean([surprise(f(x[: t + 1])[0], y[t]) for t in range(len(x))]),
            "the last row",
        ),
        (lambda f, x, y: surprise(f(x)[-1], y[-1]), "last prediction"),
    ],
}
