"""Grades the exercises of lesson 17: energy gate and Morlet positions together."""

import numpy as np

from minattn.lessons.grading import Exercise, exercise
from minattn.studies.tables import paired


@exercise
def check_interaction():
    """base, gate, morlet, both (n,) -> low, high, judged by studies.tables.paired"""
    rng = np.random.default_rng(0)

    def right(base, gate, morlet, both):
        found = paired(dict(enumerate(both - gate)), dict(enumerate(morlet - base)))
        return found.mean - found.half, found.mean + found.half

    def of(combine):
        def f(base, gate, morlet, both):
            return right(0 * base, 0 * base, 0 * base, combine(base, gate, morlet, both))

        return f

    def one_sided(base, gate, morlet, both):
        low, high = right(base, gate, morlet, both)
        from scipy import stats

        n = len(base) - 1
        half = (high - low) / 2 * stats.t.ppf(0.95, n) / stats.t.ppf(0.975, n)
        return (low + high) / 2 - half, (low + high) / 2 + half

    def unpaired(base, gate, morlet, both):
        low, high = right(base, gate, morlet, both)
        from scipy import stats

        n = len(base)
        error = np.sqrt(sum(x.var(ddof=1) for x in (base, gate, morlet, both)) / n)
        half = stats.t.ppf(0.975, n - 1) * error
        return (low + high) / 2 - half, (low + high) / 2 + half

    return Exercise(
        right,
        [tuple(2 + rng.standard_normal((4, n))) for n in (3, 5, 8)],
        returns=("low", "high"),
        hints=[
            (of(lambda base, gate, morlet, both: both - base), "That is the effect of both."),
            (
                of(lambda base, gate, morlet, both: both - gate),
                "That is the effect of Morlet beside the gate: subtract its effect alone.",
            ),
            (
                of(lambda base, gate, morlet, both: both - gate - morlet),
                "The baseline is missing: (both - gate) - (morlet - base).",
            ),
            (
                of(lambda base, gate, morlet, both: (both - gate - morlet + base) / 2),
                "Twice that: the difference of two differences, not half of it.",
            ),
            (
                of(lambda base, gate, morlet, both: gate + morlet - base - both),
                "The sign is the wrong way round.",
            ),
            (one_sided, "2.5 % are left out at each side: the 97.5 % point of t."),
            (unpaired, "Pair by seed: combine the four losses of each seed first."),
        ],
    )


def _mean_before(counted):
    """A model of 5 characters whose scores count `counted(x, t)` of the characters it was given"""

    def predict(x):
        z = np.array([np.bincount(counted(x, t), minlength=5) + 1.0 for t in range(len(x))])
        z = 0.3 * z + 0.2 * np.arange(5) * np.arange(1, len(x) + 1)[:, None] / 7
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    return predict


@exercise
def check_prefix_only():
    """predict, x (T,), y (T,) -> number, for models that see their future and one that does not"""
    rng = np.random.default_rng(0)
    whole, past = _mean_before(lambda x, t: x), _mean_before(lambda x, t: x[: t + 1])
    whole.__name__, past.__name__ = "sees_everything", "sees_its_past"
    inputs = [
        (predict, *rng.integers(5, size=(2, T)))
        for predict, T in ((whole, 7), (past, 5), (whole, 3), (whole, 1))
    ]

    def losses(predict, x, y, start=0, n=lambda t: t + 1, row=-1):
        return [-predict(x[start : n(t)])[row, y[t]] for t in range(len(x))]

    def right(predict, x, y):
        return float(np.mean(losses(predict, x, y)))

    def forced(predict, x, y):
        return -float(predict(x)[np.arange(len(x)), y].mean())

    return Exercise(
        right,
        inputs,
        returns=("the loss",),
        hints=[
            (forced, "That is teacher-forced: the model has read all of x at once."),
            (
                lambda predict, x, y: float(np.sum(losses(predict, x, y))),
                "The mean, not the sum.",
            ),
            (
                lambda predict, x, y: float(np.mean(losses(predict, x, y, row=0))),
                "The last row is the prediction that is wanted: row t of x[:t + 1].",
            ),
            (lambda *given: -right(*given), "The sign: a loss is minus the log probability."),
            (
                lambda predict, x, y: losses(predict, x, y)[-1],
                "That is the last prediction only.",
            ),
            (
                lambda predict, x, y: -float(
                    np.mean([predict(x[: t + 1])[t, x[t]] for t in range(len(x))])
                ),
                "The target is y[t], the character that came next.",
            ),
        ],
    )


@exercise
def check_effects():
    """y (2, 2) -> gate, morlet, interaction"""
    rng = np.random.default_rng(0)

    def right(y):
        y = np.asarray(y)
        gate, morlet = (y[1] - y[0]).mean(), (y[:, 1] - y[:, 0]).mean()
        return float(gate), float(morlet), float(y[1, 1] - y[1, 0] - y[0, 1] + y[0, 0])

    def simple(y):
        gate, morlet, both = y[1, 0] - y[0, 0], y[0, 1] - y[0, 0], right(y)[2]
        return float(gate), float(morlet), both

    def with_sum(y):
        gate, morlet, _ = right(y)
        return gate, morlet, float(y[1, 1] - y[0, 0])

    return Exercise(
        right,
        [(2 + rng.standard_normal((2, 2)),) for _ in range(4)],
        returns=("the effect of the gate", "the effect of Morlet", "the interaction"),
        hints=[
            (simple, "Those are effects beside nothing: average over both states of the other."),
            (lambda y: right(y.T), "y[g, m]: rows are the gate, columns are Morlet."),
            (
                lambda y: tuple(-x for x in right(y)[:2]) + right(y)[2:],
                "The sign: with the idea less without it.",
            ),
            (
                lambda y: right(y)[:2] + (-right(y)[2],),
                "The sign of the interaction: with both, y[1, 1] counts plus.",
            ),
            (
                lambda y: tuple(2 * x for x in right(y)[:2]) + right(y)[2:],
                "A main effect is a mean of two effects, not their sum.",
            ),
            (with_sum, "That is the effect of both together, not what goes beyond the sum."),
            (
                lambda y: right(y)[:2] + (right(y)[2] / 2,),
                "The interaction is not halved in this lesson.",
            ),
        ],
    )
