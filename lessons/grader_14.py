"""Grades the exercises of lesson 14: writing with a key-value cache."""

import numpy as np

from minattn.lessons.grading import Exercise, exercise


def _attend(q, keys, values, scale=True, maximum=True, normal=True):
    s = keys @ q / (np.sqrt(len(q)) if scale else 1)
    P = np.exp(s - (s.max(initial=-np.inf) if maximum else 0))
    return P @ values / (P.sum() if normal else 1)


@exercise
def check_one_step():
    """q, k, v, keys (t, D), values (t, Dv) -> out, keys, values"""
    rng = np.random.default_rng(0)
    inputs = []
    for t, D, Dv, factor in ((5, 3, 7, 1), (0, 5, 2, 1), (11, 2, 3, 1), (7, 5, 3, 40)):
        q, k, v = (rng.standard_normal(n) for n in (D, D, Dv))
        keys, values = rng.standard_normal((t, D)), rng.standard_normal((t, Dv))
        inputs.append((factor * q, factor * k, v, factor * keys, values))

    def step(seen=None, **how):
        def f(q, k, v, keys, values):
            keys, values = np.vstack([keys, k]), np.vstack([values, v])
            at = slice(None) if seen is None else seen(len(keys))
            return _attend(q, keys[at], values[at], **how), keys, values

        return f

    def in_front(q, k, v, keys, values):
        out, _, _ = step()(q, k, v, keys, values)
        return out, np.vstack([k, keys]), np.vstack([v, values])

    def unchanged(q, k, v, keys, values):
        return step()(q, k, v, keys, values)[0], keys, values

    return Exercise(
        step(),
        inputs,
        returns=("out", "keys", "values"),
        hints=[
            (step(scale=False), "The scores are divided by sqrt(D)."),
            (step(normal=False), "The weights must sum to 1: divide by their sum."),
            (step(lambda n: slice(0, n - 1)), "A token sees itself too: append first."),
            (step(maximum=False), "exp overflows above 709: subtract the largest score."),
            (in_front, "The new token stands behind the others: at the end."),
            (unchanged, "The next step needs the new key and value: return the longer arrays."),
        ],
    )


@exercise
def check_cache_bytes():
    """layers, key_heads, D, tokens, bytes_each -> bytes"""

    def product(*numbers):
        return int(np.prod(numbers))

    return Exercise(
        lambda *sizes: 2 * product(*sizes),
        [(3, 5, 16, 64, 4), (6, 8, 32, 257, 2), (80, 8, 128, 1000, 2), (1, 1, 3, 1, 4)],
        returns=("the number of bytes",),
        hints=[
            (product, "Keys and values: twice that."),
            (lambda L, H, D, T, b: 3 * product(L, H, D, T, b), "Queries are not kept."),
            (lambda L, H, D, T, b: 2 * product(H, D, T, b), "Every layer has its own."),
            (lambda L, H, D, T, b: 2 * product(L, D, T, b), "Every key head has D channels."),
            (lambda L, H, D, T, b: 2 * product(L, H, D, T), "That is the count of numbers."),
            (
                lambda L, H, D, T, b: 2 * product(L, H, T, T, b),
                "Scores are not kept: they would grow with the square of the length.",
            ),
        ],
    )


@exercise
def check_window_step():
    """q, k, v, keys (W, D), values (W, Dv), t -> out, keys, values"""
    rng = np.random.default_rng(0)
    inputs = []
    for W, t, D, Dv in ((5, 13, 3, 2), (7, 2, 2, 3), (3, 0, 5, 2), (4, 4, 2, 5), (1, 6, 3, 2)):
        q, k, v = (rng.standard_normal(n) for n in (D, D, Dv))
        keys, values = 9 + rng.standard_normal((W, D)), 9 + rng.standard_normal((W, Dv))
        used = min(t, W)
        keys[:used], values[:used] = (rng.standard_normal((used, n)) for n in (D, Dv))
        inputs.append((q, k, v, keys, values, t))

    def step(row=lambda t, W: t % W, used=lambda t, W: min(t + 1, W)):
        def f(q, k, v, keys, values, t):
            W = len(keys)
            keys[row(t, W)], values[row(t, W)] = k, v
            seen = slice(0, used(t, W))
            return _attend(q, keys[seen], values[seen]), keys, values

        return f

    def before_storing(q, k, v, keys, values, t):
        seen = slice(0, min(t, len(keys)))
        out = _attend(q, keys[seen], values[seen]) if t else 0 * v
        return out, *step()(q, k, v, keys, values, t)[1:]

    def shifted(q, k, v, keys, values, t):
        keys, values = np.vstack([keys[1:], k]), np.vstack([values[1:], v])
        seen = slice(-min(t + 1, len(keys)), None)
        return _attend(q, keys[seen], values[seen]), keys, values

    return Exercise(
        step(),
        inputs,
        returns=("out", "keys", "values"),
        hints=[
            (step(used=lambda t, W: W), "Rows that no token has used yet must not be seen."),
            (step(used=lambda t, W: min(t, W)), "t counts from 0: t + 1 rows are in use."),
            (before_storing, "A token sees itself too: store its key and value first."),
            (step(row=lambda t, W: min(t, W - 1)), "The oldest row is overwritten: t % W."),
            (shifted, "That moves every row; here the new token only replaces the oldest."),
        ],
    )
