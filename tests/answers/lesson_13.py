"""Answers to the exercises of lesson 13, right and wrong, and what a wrong one is told."""

import math
import statistics

import numpy as np
from scipy import stats


def by_scipy(a, b):
    found = stats.ttest_rel(b, a).confidence_interval(0.95)
    return found.low, found.high


def in_plain_python(a, b):
    d = [y - x for x, y in zip(a, b)]
    half = stats.t.interval(0.95, len(d) - 1)[1] * statistics.stdev(d) / math.sqrt(len(d))
    return [statistics.fmean(d) - half, statistics.fmean(d) + half]


def interval(factor=None, ddof=1, divide=True, sides=2):
    def f(a, b):
        d = b - a
        t = factor or stats.t.ppf(1 - 0.05 / sides, len(d) - 1)
        half = t * np.std(d, ddof=ddof) / (math.sqrt(len(d)) if divide else 1)
        return d.mean() - half, d.mean() + half
    return f


def of_two_samples(a, b):
    half = stats.t.ppf(0.975, len(a) - 1) * math.sqrt(
        (np.var(a, ddof=1) + np.var(b, ddof=1)) / len(a))
    return b.mean() - a.mean() - half, b.mean() - a.mean() + half


def first_of_many(s, half):
    n = np.arange(2, 10_000)
    return int(n[stats.t.ppf(0.975, n - 1) * s <= half * np.sqrt(n)][0])


def by_normal(s, half):
    return max(2, math.ceil((1.96 * s / half) ** 2))


def one_by_one(a, b):
    ends = [stats.ttest_rel(row, a).confidence_interval(1 - 0.05 / len(b)) for row in b]
    return [end.low for end in ends], [end.high for end in ends]


def each_at(confidence):
    def f(a, b):
        ends = [stats.ttest_rel(row, a).confidence_interval(confidence(len(b))) for row in b]
        return np.array([end.low for end in ends]), np.array([end.high for end in ends])
    return f


RIGHT = {
    "interval": [by_scipy, in_plain_python, interval()],
    "seeds_needed": [first_of_many, lambda s, half: np.int64(first_of_many(s, half))],
    "intervals": [one_by_one, each_at(lambda m: 1 - 0.05 / m)],
}
WRONG = {
    "interval": [
        (interval(1.96), "known s"),
        (interval(2), ""),
        (interval(ddof=0), "n - 1"),
        (interval(divide=False), "scatter of one run"),
        (interval(sides=1), "each side"),
        (of_two_samples, "paired"),
        (lambda a, b: by_scipy(b, a), "sign"),
        (lambda a, b: by_scipy(a, b)[::-1], ""),
    ],
    "seeds_needed": [
        (by_normal, "too small for few seeds"),
        (lambda s, half: first_of_many(s, half) + 1, "fewer is enough"),
        (lambda s, half: max(1, first_of_many(s, half) - 1), "degrees of freedom"),
        (lambda s, half: first_of_many(s, 2 * half), "one side"),
        (lambda s, half: (s / half) ** 2, ""),
    ],
    "intervals": [
        (each_at(lambda m: 0.95), "all at once"),
        (each_at(lambda m: 1 - 0.1 / m), "two sides"),
        (each_at(lambda m: 0.95**m), ""),
        (lambda a, b: by_scipy(a, b[0]), ""),
    ],
}
