"""Answers to the exercises of lesson 17, right and wrong, and what a wrong one is told."""

import numpy as np
from scipy import stats


def by_scipy(base, gate, morlet, both):
    found = stats.ttest_rel(both + base, gate + morlet).confidence_interval()
    return found.low, found.high


def in_steps(base, gate, morlet, both):
    d = [b - g - m + o for o, g, m, b in zip(base, gate, morlet, both)]
    half = stats.t.ppf(0.975, len(d) - 1) * stats.sem(d)
    return np.mean(d) - half, np.mean(d) + half


def of_two(one, other):
    def f(base, gate, morlet, both):
        given = {"base": base, "gate": gate, "morlet": morlet, "both": both}
        found = stats.ttest_rel(given[one], given[other]).confidence_interval()
        return found.low, found.high
    return f


def of_four_samples(base, gate, morlet, both):
    four = np.array([base, gate, morlet, both])
    middle = np.array([1, -1, -1, 1]) @ four.mean(axis=1)
    half = stats.t.ppf(0.975, len(base) - 1) * np.sqrt(
        four.var(axis=1, ddof=1).sum() / len(base))
    return middle - half, middle + half


def backwards(base, gate, morlet, both):
    low, high = by_scipy(base, gate, morlet, both)
    return -high, -low


def at_ninety_per_cent(base, gate, morlet, both):
    d = both - gate - morlet + base
    error = stats.sem(d)
    return stats.t.interval(0.9, len(d) - 1, loc=d.mean(), scale=error)


def in_a_loop(predict, x, y):
    total = 0.0
    for t in range(1, len(x) + 1):
        total -= predict(x[:t])[-1][y[t - 1]]
    return total / len(x)


def forced(predict, x, y):
    return -np.mean([row[c] for row, c in zip(predict(x), y)])


def summed(predict, x, y):
    return len(x) * in_a_loop(predict, x, y)


def of_the_same(predict, x, y):
    return in_a_loop(predict, x, x)


def without_itself(predict, x, y):
    return -np.mean([predict(x[:t])[-1, y[t]] for t in range(1, len(x))])


def by_hand(y):
    (a, m), (g, b) = y
    return (g + b - a - m) / 2, (m + b - a - g) / 2, a + b - g - m


def alone(y):
    return y[1][0] - y[0][0], y[0][1] - y[0][0], by_hand(y)[2]


RIGHT = {
    "interaction": [by_scipy, in_steps],
    "prefix_only": [in_a_loop, lambda predict, x, y: np.float64(in_a_loop(predict, x, y))],
    "effects": [by_hand, lambda y: list(by_hand(np.asarray(y).tolist()))],
}
WRONG = {
    "interaction": [
        (of_two("both", "base"), "effect of both"),
        (of_two("both", "gate"), "effect alone"),
        (of_four_samples, "Pair by seed"),
        (backwards, "sign"),
        (of_two("gate", "morlet"), ""),
        (at_ninety_per_cent, "97.5 %"),
    ],
    "prefix_only": [
        (forced, "teacher-forced"),
        (summed, "mean"),
        (of_the_same, "came next"),
        (without_itself, ""),
        (lambda predict, x, y: -in_a_loop(predict, x, y), "sign"),
    ],
    "effects": [
        (alone, "beside nothing"),
        (lambda y: (by_hand(y)[1], by_hand(y)[0], by_hand(y)[2]), "rows are the gate"),
        (lambda y: by_hand(1 - np.asarray(y)), ""),
        (lambda y: (*by_hand(y)[:2], y[1][1] - y[0][0]), "both together"),
        (lambda y: by_hand(y)[:2], "expected 3"),
        (lambda y: (*by_hand(y)[:2], -by_hand(y)[2]), "y[1, 1] counts plus"),
    ],
}
