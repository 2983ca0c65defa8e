"""Grades the exercises of lesson 19: learning to write."""

import numpy as np

from minattn.lessons.grading import Exercise, exercise


@exercise
def check_table_loss():
    """table (V, V), ids (N,) -> the mean surprise"""
    rng = np.random.default_rng(0)
    inputs = []
    for V, N in ((5, 31), (3, 2), (7, 13)):
        table = rng.uniform(0.1, 1, (V, V))
        inputs.append((table / table.sum(axis=1, keepdims=True), rng.integers(V, size=N)))

    def surprise(table, ids):
        return -np.log(table[ids[:-1], ids[1:]])

    def right(table, ids):
        return float(surprise(table, ids).mean())

    return Exercise(
        right,
        inputs,
        returns=("the loss",),
        hints=[
            (lambda table, ids: right(table.T, ids), "Rows are this character, columns the next."),
            (lambda table, ids: -right(table, ids), "The sign: surprise is minus the logarithm."),
            (
                lambda table, ids: float(surprise(table, ids).sum()),
                "The mean, not the sum.",
            ),
            (
                lambda table, ids: float(surprise(table, ids).sum() / len(ids)),
                "N characters have N - 1 places with one before them.",
            ),
            (
                lambda table, ids: float(-np.log(table[ids[:-1], ids[1:]].mean())),
                "First the logarithm of each probability, then the mean.",
            ),
            (
                lambda table, ids: right(table, ids) / np.log(2),
                "That is in bits: take the natural logarithm.",
            ),
        ],
    )


@exercise
def check_sampling_probabilities():
    """z (V,), temperature, k -> probabilities (V,)."""
    rng = np.random.default_rng(0)
    inputs = [
        (rng.standard_normal(V) * 2 + shift, temperature, k)
        for V, shift, temperature, k in (
            (7, 0, 0.8, 3),
            (11, 0, 2.0, 11),
            (5, 0, 0.5, 1),
            (13, 1e4, 1.3, 4),
            (3, -1e4, 0.01, 2),
        )
    ]

    def reference(z, temperature, k, power=-1):
        z = np.where(z >= np.sort(z)[-k], z * temperature**power, -np.inf)
        p = np.exp(z - z.max())  # some logits are in the thousands: nan without this
        return p / p.sum()

    def without_maximum(z, temperature, k):
        p = np.where(z >= np.sort(z)[-k], np.exp(z / temperature), 0)
        return p / p.sum()

    def one_fewer(z, temperature, k):
        return reference(z, temperature, max(k - 1, 1))

    def logits_of_0(z, temperature, k):
        z = np.where(z >= np.sort(z)[-k], z / temperature, 0)
        p = np.exp(z - z.max())
        return p / p.sum()

    def cut_after(z, temperature, k):
        p = reference(z, temperature, len(z))
        return np.where(z >= np.sort(z)[-k], p, 0)

    return Exercise(
        reference,
        inputs,
        returns=("p",),
        hints=[
            (
                lambda z, t, k: reference(z, t, k, power=1),
                "The temperature divides the logits: here it multiplies.",
            ),
            (lambda z, t, k: reference(z, 1, k), "The temperature is not used."),
            (
                lambda z, t, k: reference(z, t, len(z)),
                "All characters are allowed: only the k most likely may be.",
            ),
            (without_maximum, "exp overflows above 709: subtract the largest logit first."),
            (one_fewer, "The k-th largest is allowed too."),
            (logits_of_0, "A logit of 0 is not a probability of 0: that takes minus infinity."),
            (lambda z, t, k: reference(-z, t, k), "Those are the k least likely."),
            (cut_after, "They do not sum to 1: normalise after the others are ruled out."),
        ],
    )
