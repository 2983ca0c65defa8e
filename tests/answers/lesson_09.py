"""Answers to the exercises of lesson 09, right and wrong, and what a wrong one is told."""

import math

import numpy as np


def reached(M, steps):
    return np.linalg.matrix_power(M.astype(object) * 1, steps) > 0  # [i, j]: from j to i, exact


def search(M):
    centers = []
    for start in range(len(M)):
        known, new = {start}, [start]
        while new:
            j = new.pop()
            more = {i for i in range(len(M)) if M[i, j]} - known
            known |= more
            new += more
        centers.append(len(known) == len(M))
    return centers


def layer_by_loops(P, A, residual):
    N = len(P)
    out = np.zeros((N, N))
    for i in range(N):
        for j in range(N):
            out[i, j] = sum(A[i, k] * P[k, j] for k in range(N))
            if residual:
                out[i, j] = (out[i, j] + P[i, j]) / 2
    return out


def star(t, m):
    return t / (math.exp(m) - 1)


def largest_weight(layers, m):
    t = layers - 1
    return max(range(400), key=lambda x: math.comb(t + x, x) * math.exp(-m * x))


RIGHT = {
    "is_center": [search, lambda M: reached(M, len(M) - 1).all(axis=0)],
    "one_more_layer": [
        layer_by_loops,
        lambda P, A, residual: (A @ P + P) / 2 if residual else A @ P,
    ],
    "critical_distance": [lambda layers, m: math.floor(star(layers - 1, m)), largest_weight],
}
WRONG = {
    "is_center": [
        (lambda M: M.all(axis=0), "one step"),
        (lambda M: reached(M, len(M)).all(axis=1), "rows are queries"),
        (lambda M: reached(M, 2).all(axis=0), "Two steps"),
        (lambda M: ~reached(M, len(M)).all(axis=0), "the opposite"),
        (lambda M: np.arange(len(M)) == 0, ""),
        (lambda M: reached(M, len(M)).any(axis=0), ""),
        (lambda M: np.flatnonzero(reached(M, len(M)).all(axis=0)), "True or False for every"),
    ],
    "one_more_layer": [
        (lambda P, A, r: P @ ((A + np.eye(len(A))) / 2 if r else A), "order"),
        (lambda P, A, r: A @ P, "with one"),
        (lambda P, A, r: A @ P + P if r else A @ P, "halve"),
        (lambda P, A, r: (A @ P + np.eye(len(A))) / 2 if r else A @ P, "not its input"),
        (lambda P, A, r: (A.T @ P + P) / 2 if r else A.T @ P, "transposed"),
        (lambda P, A, r: (A @ P + A) / 2 if r else A @ P, ""),
        (lambda P, A, r: A * P, ""),
    ],
    "critical_distance": [
        (lambda layers, m: math.floor(star(layers, m)), "t = L - 1"),
        (lambda layers, m: math.ceil(star(layers - 1, m)), "One too far"),
        (lambda layers, m: math.floor(star(layers - 1, m)) - 1, "One too near"),
        (lambda layers, m: star(layers - 1, m), "which whole distance"),
        (lambda layers, m: round(star(layers - 1, m)), ""),
        (lambda layers, m: math.floor((layers - 1) / math.exp(m)), "not e^m"),
        (lambda layers, m: math.floor((layers - 1) / m), "small slope"),
    ],
}
