"""Answers to the exercises of lesson 14, right and wrong, and what a wrong one is told."""

import math

import numpy as np


def softmax(s):
    e = [math.exp(x - max(s)) for x in s]
    return [x / sum(e) for x in e]


def step_in_loops(q, k, v, keys, values):
    keys, values = [*keys, k], [*values, v]
    P = softmax([sum(a * b for a, b in zip(q, key)) / len(q) ** 0.5 for key in keys])
    out = [sum(p * value[c] for p, value in zip(P, values)) for c in range(len(v))]
    return out, keys, values


def step(scale=True, itself=True, keep=True, maximum=True, normal=True):
    def f(q, k, v, keys, values):
        new = np.concatenate([keys, k[None]]), np.concatenate([values, v[None]])
        K, V = new if itself else (keys, values)
        s = K @ q / (len(q) ** 0.5 if scale else 1)
        P = np.exp(s - (s.max() if maximum else 0))
        return (P / P.sum() if normal else P) @ V, *(new if keep else (keys, values))
    return f


def ring_in_loops(q, k, v, keys, values, t):
    W = len(keys)
    keys, values = list(keys), list(values)
    keys[t % W], values[t % W] = k, v
    rows = [j % W for j in range(max(0, t - W + 1), t + 1)]
    P = softmax([float(np.dot(q, keys[row])) / math.sqrt(len(q)) for row in rows])
    return sum(p * values[row] for p, row in zip(P, rows)), np.array(keys), np.array(values)


def ring(first=0, row=lambda t, W: t % W, scale=True):
    def f(q, k, v, keys, values, t):
        W = len(keys)
        keys[row(t, W)], values[row(t, W)] = k, v
        n = min(t + 1, W) if first == 0 else W
        s = keys[:n] @ q / (math.sqrt(len(q)) if scale else 1)
        P = np.exp(s - s.max())
        return P / P.sum() @ values[:n], keys, values
    return f


def not_stored(q, k, v, keys, values, t):
    out, _, _ = ring_in_loops(q, k, v, keys, values, t)
    return out, keys, values


def without_itself(q, k, v, keys, values, t):
    W, out = len(keys), 0 * v
    if t:
        s = keys[: min(t, W)] @ q / math.sqrt(len(q))
        out = softmax(s) @ values[: min(t, W)]
    keys[t % W], values[t % W] = k, v
    return out, keys, values


RIGHT = {
    "one_step": [step_in_loops, step()],
    "cache_bytes": [lambda L, H, D, T, b: 2 * L * H * D * T * b,
                    lambda *n: float(2 * math.prod(n)),
                    lambda layers, heads, D, T, b: sum(
                        heads * D * b for _ in range(layers) for _ in "kv") * T],
    "window_step": [ring_in_loops, ring()],
}
WRONG = {
    "one_step": [
        (step(scale=False), "sqrt(D)"),
        (step(normal=False), "sum to 1"),
        (step(itself=False), ""),
        (step(keep=False), "longer arrays"),
        (step(maximum=False), "overflows"),
        (lambda q, k, v, keys, values: step()(q, k, v, keys, values)[0], ""),
    ],
    "cache_bytes": [
        (lambda L, H, D, T, b: L * H * D * T * b, "twice"),
        (lambda L, H, D, T, b: 3 * L * H * D * T * b, "Queries"),
        (lambda L, H, D, T, b: 2 * H * D * T * b, "Every layer"),
        (lambda L, H, D, T, b: 2 * L * H * D * T, "count of numbers"),
        (lambda L, H, D, T, b: 2 * L * H * T * T * b, "square"),
    ],
    "window_step": [
        (ring(first=1), "must not be seen"),
        (ring(row=lambda t, W: min(t, W - 1)), "oldest"),
        (ring(row=lambda t, W: 0), ""),
        (ring(scale=False), ""),
        (not_stored, ""),
        (without_itself, "sees itself too"),
    ],
}
