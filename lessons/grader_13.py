"""Grades the exercises of lesson 13: is 0.01 better?"""

import numpy as np
from scipy import stats

from minattn.lessons.grading import Exercise, exercise
from minattn.studies.tables import paired


def _half(d, *, wrong=0.05, ddof=1, freedom=1, factor=None, root=True):
    """Half the width of the interval of the mean of d (..., n), with mistakes to choose from"""
    n = d.shape[-1]
    t = factor or stats.t.ppf(1 - wrong / 2, n - freedom)
    return t * d.std(axis=-1, ddof=ddof) / (np.sqrt(n) if root else 1)


def _around(d, half):
    return d.mean(axis=-1) - half, d.mean(axis=-1) + half


def _given(rng, *shape):
    """Losses of a baseline and of variants, with some of their scatter in common"""
    a = 2.4 + rng.standard_normal(shape[-1])
    return a, a + 0.3 + rng.standard_normal(shape)


@exercise
def check_interval():
    """a, b (n,) -> low, high, judged by studies.tables.paired."""
    rng = np.random.default_rng(0)

    def right(a, b):
        found = paired(dict(enumerate(b)), dict(enumerate(a)))
        return found.mean - found.half, found.mean + found.half

    def with_mistakes(**mistakes):
        return lambda a, b: _around(b - a, _half(b - a, **mistakes))

    def unpaired(a, b):
        n = len(a)
        error = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / n)
        middle, t = b.mean() - a.mean(), stats.t.ppf(0.975, n - 1)
        return middle - t * error, middle + t * error

    return Exercise(
        right,
        [_given(rng, n) for n in (3, 8, 2, 5)],
        returns=("low", "high"),
        hints=[
            (with_mistakes(factor=1.96), "1.96 holds for a known s: take Student's t."),
            (with_mistakes(ddof=0), "The squares are divided by n - 1: ddof=1."),
            (with_mistakes(freedom=0), "n differences have n - 1 degrees of freedom."),
            (with_mistakes(root=False), "That is the scatter of one run: divide by sqrt(n)."),
            (with_mistakes(wrong=0.1), "2.5 % are left out at each side: the 97.5 % point."),
            (unpaired, "The differences are paired: take b - a first, seed by seed."),
            (lambda a, b: right(b, a), "The sign is the wrong way round: b - a."),
        ],
    )


@exercise
def check_seeds_needed():
    """s, half -> n"""

    def search(s, half, factor=None):
        n = 2
        while (factor or stats.t.ppf(0.975, n - 1)) * s / np.sqrt(n) > half:
            n += 1
        return n

    return Exercise(
        search,
        [(0.03, 0.01), (0.02, 0.007), (0.01, 0.01), (0.013, 0.011), (0.01, 0.2), (0.01, 0.0247)],
        returns=("n",),
        hints=[
            (
                lambda s, half: max(2, int(np.ceil((1.96 * s / half) ** 2))),
                "1.96 is too small for few seeds: t depends on n.",
            ),
            (lambda s, half: search(s, half) + 1, "One seed fewer is enough."),
            (
                lambda s, half: search(s, half) - 1,
                "One seed too few: t has n - 1 degrees of freedom.",
            ),
            (lambda s, half: search(2 * s, half), "half is one side of the interval."),
            (lambda s, half: search(s, 2 * half), "half is one side of the interval."),
        ],
    )


@exercise
def check_intervals():
    """a (n,), b (m, n) -> low (m,), high (m,)"""
    rng = np.random.default_rng(0)

    def with_wrong(share, **mistakes):
        def f(a, b):
            d = b - a
            return _around(d, _half(d, wrong=share(*d.shape), **mistakes))

        return f

    return Exercise(
        with_wrong(lambda m, n: 0.05 / m),
        [_given(rng, m, n) for m, n in ((3, 5), (20, 7), (2, 11), (1, 4))],
        returns=("low", "high"),
        hints=[
            (with_wrong(lambda m, n: 0.05), "That is 95 % for each; all at once need 0.05 / m."),
            (with_wrong(lambda m, n: 0.05 / n), "Divide by the number of variants, not of seeds."),
            (
                with_wrong(lambda m, n: 2 * 0.05 / m),
                "0.05 / m is shared by two sides: half of it at each.",
            ),
            (
                with_wrong(lambda m, n: 0.05 / m, ddof=0),
                "The squares are divided by n - 1: ddof=1.",
            ),
            (
                lambda a, b: _around(b - a, len(b) * _half(b - a)),
                "The chance of a mistake is divided by m; that does not make the interval m "
                "times as wide.",
            ),
        ],
    )
