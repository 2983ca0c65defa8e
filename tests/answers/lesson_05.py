"""Answers to the exercises of lesson 05, right and wrong, and what a wrong one is told."""

import numpy as np


def sigmoid(u):
    e = np.exp(-np.abs(u))
    return np.where(u >= 0, 1, e) / (1 + e)


def switched_by_rows(out, lse, z):
    y = np.zeros_like(out)
    for i in range(len(out)):
        m = max(lse[i], z)
        y[i] = out[i] * np.exp(lse[i] - m) / (np.exp(lse[i] - m) + np.exp(z - m))
    return y


RIGHT = {
    "add_sink": [
        lambda out, lse, z: out * sigmoid(lse - z)[:, None],
        switched_by_rows,
        lambda out, lse, z: out * (0.5 * (1 + np.tanh((lse - z) / 2)))[:, None],
    ],
    "sink_gradient": [
        lambda dout, out, lse, z: (
            -(sigmoid(lse - z) * sigmoid(z - lse) * (dout * out).sum(axis=1)).sum()
        ),
        lambda dout, out, lse, z: (
            -sum(
                sigmoid(lse[i] - z) * (1 - sigmoid(lse[i] - z)) * np.dot(dout[i], out[i])
                for i in range(len(out))
            )
        ),
    ],
    "gate_backward": [
        lambda dout, u, g: (
            dout * sigmoid(g),
            ((dout * u) if g.shape[1] > 1 or u.shape[1] == 1 else (dout * u).sum(axis=1)[:, None])
            * sigmoid(g)
            * sigmoid(-g),
        )
    ],
}
WRONG = {
    "add_sink": [
        (lambda out, lse, z: out, ""),
        (lambda out, lse, z: out * np.tanh(lse - z)[:, None], ""),
        (lambda out, lse, z: out * (0.5 * (1 + np.tanh(lse - z)))[:, None], ""),
        (lambda out, lse, z: out * sigmoid(z - lse)[:, None], "the sign inside the sigmoid"),
        (lambda out, lse, z: out * sigmoid(lse)[:, None], "sink = 0"),
        (lambda out, lse, z: out * (lse - z)[:, None], ""),
        (lambda out, lse, z: out * (np.exp(lse) / (np.exp(lse) + np.exp(z)))[:, None], "overflows"),
    ],
    "sink_gradient": [
        (
            lambda d, o, lse, z: (sigmoid(lse - z) * sigmoid(z - lse) * (d * o).sum(axis=1)).sum(),
            "sign",
        ),
        (lambda d, o, lse, z: -(sigmoid(lse - z) * (d * o).sum(axis=1)).sum(), "slope"),
        (
            lambda d, o, lse, z: -(sigmoid(z - lse) * (d * o).sum(axis=1)).sum(),
            "One factor is missing",
        ),
        (
            lambda d, o, lse, z: (
                -(sigmoid(lse - z) * sigmoid(z - lse) * (d * o).sum(axis=1)).mean()
            ),
            "add up",
        ),
        (lambda d, o, lse, z: -sigmoid(lse - z) * sigmoid(z - lse) * (d * o).sum(axis=1), "shape"),
    ],
    "gate_backward": [
        (lambda d, u, g: (d * sigmoid(g), d * u * sigmoid(g) * sigmoid(-g)), "the sum of them"),
        (
            lambda d, u, g: (
                d * sigmoid(g),
                (d * u).sum(axis=1, keepdims=g.shape[1] == 1).reshape(-1, 1)
                * sigmoid(g)
                * sigmoid(-g),
            ),
            "dgate_logits should",
        ),
        (
            lambda d, u, g: (
                d * sigmoid(g),
                (d * u if g.shape[1] > 1 else (d * u).mean(axis=1, keepdims=True))
                * sigmoid(g)
                * sigmoid(-g),
            ),
            "not the mean",
        ),
        (
            lambda d, u, g: (
                d * sigmoid(g),
                (d * u if g.shape[1] > 1 else (d * u).sum(axis=1, keepdims=True)) * sigmoid(g),
            ),
            "second factor",
        ),
        (
            lambda d, u, g: (
                d * sigmoid(g),
                d * u if g.shape[1] > 1 else (d * u).sum(axis=1, keepdims=True),
            ),
            "slope is missing",
        ),
        (
            lambda d, u, g: (
                d,
                (d * u if g.shape[1] > 1 else (d * u).sum(axis=1, keepdims=True))
                * sigmoid(g)
                * sigmoid(-g),
            ),
            "dungated",
        ),
    ],
}
