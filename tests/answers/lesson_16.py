"""Answers to the exercises of lesson 16, right and wrong, and what a wrong one is told."""

import math

import numpy as np


def layer_by_layer(N, T, L, C, V):
    total = 0
    for _ in range(L):
        for a, b in ((C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)):
            total += 2 * N * a * b
        total += 2 * (2 * N * T * C)
    return 3 * (total + 2 * N * C * V)


def with_while(f, x, size):
    done, parts = 0, []
    while done < len(x):
        parts.append(f(x[done:done + size]))
        done += size
    return np.vstack(parts)


def whole_blocks_only(f, x, size):
    out = np.zeros_like(x)
    for n in range(len(x) // size):
        out[n * size:(n + 1) * size] = f(x[n * size:(n + 1) * size])
    return out


def by_looking(T, b):
    corners = range(0, T, b)
    return sum(j <= min(i + b, T) - 1 for i in corners for j in corners)


RIGHT = {
    "operations": [lambda N, T, L, C, V: 6 * N * (12 * L * C**2 + C * V) + 12 * L * N * T * C,
                   layer_by_layer],
    "in_blocks": [with_while, lambda f, x, size: [
        row for i in range(0, len(x), size) for row in f(x[i:i + size])]],
    "tiles": [by_looking, lambda T, b: sum(range(1, math.ceil(T / b) + 1))],
}
WRONG = {
    "operations": [
        (lambda N, T, L, C, V: 2 * N * (12 * L * C**2 + C * V) + 4 * L * N * T * C, "forward"),
        (lambda N, T, L, C, V: 6 * N * (12 * L * C**2 + C * V), "own two products"),
        (lambda N, T, L, C, V: 72 * N * L * C**2 + 12 * L * N * T * C, "table"),
        (lambda N, T, L, C, V: 6 * N * (12 * L * C**2 + C * V) + 6 * L * N * T * C, "two"),
        (lambda N, T, L, C, V: 3 * N * (12 * L * C**2 + C * V) + 12 * L * N * T * C, ""),
        (lambda N, T, L, C, V: 12 * N * (12 * L * C**2 + C * V) + 12 * L * N * T * C, ""),
        (lambda N, T, L, C, V: 6 * N * L * (12 * C**2 + C * V + 2 * T * C), "used once"),
        (lambda N, T, L, C, V: 6 * N * (12 * L * C**2 + C * V) + 4 * L * N * T * C, "backward too"),
    ],
    "in_blocks": [
        (whole_blocks_only, "shorter"),
        (lambda f, x, size: f(x), "all rows at once"),
        (lambda f, x, size: np.vstack([f(row[None]) for row in x]), "one row at a time"),
        (lambda f, x, size: f(x[:size]), "shape"),
        (lambda f, x, size: np.vstack([f(row) for row in x]), "raised"),
    ],
    "tiles": [
        (lambda T, b: (T // b) * (T // b + 1) // 2, "round T / b up"),
        (lambda T, b: math.ceil(T / b) * (math.ceil(T / b) - 1) // 2, "diagonal"),
        (lambda T, b: math.ceil(T / b) ** 2, "all tiles"),
        (lambda T, b: T * (T + 1) / 2 / b**2, ""),
    ],
}
