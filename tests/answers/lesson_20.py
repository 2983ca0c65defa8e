"""Answers to the exercises of lesson 20, right and wrong, and what a wrong one is told."""

import numpy as np


def by_loops(d, N):
    return [[x / N for x in row] for row in d for _ in range(N)]


RIGHT = {
    "mean_backward": [
        by_loops,
        lambda d, N: (d[:, None] * np.full((1, N, 1), 1 / N)).reshape(-1, d.shape[1]),
    ],
    "share_saved": [
        lambda C, H: 1 - (C * C + H + 8 * C * C) / (12 * C * C),
        lambda C, H: 0.25 - H / C**2 / 12,
    ],
}
WRONG = {
    "mean_backward": [
        (lambda d, N: np.repeat(d, N, axis=0), "divides by N"),
        (lambda d, N: np.concatenate([d / N] * N), "stand together"),
        (lambda d, N: d / N, "shape"),
        (lambda d, N: np.repeat(d, N, axis=1) / N, "shape"),
    ],
    "share_saved": [
        (lambda C, H: 0.75 - H / (4 * C * C), "attention alone"),
        (lambda C, H: 1 / 4, "per head"),
        (lambda C, H: 0.25 + H / (12 * C * C), "less is saved"),
        (lambda C, H: 3 * C * C - H, ""),
        (lambda C, H: 1 / 3, ""),
    ],
}
