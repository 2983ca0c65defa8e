"""Answers to the exercises of lesson 21, right and wrong, and what a wrong one is told."""

import math

import numpy as np


def by_counting(items, copies, labels):
    """Every ordered pair of items, and every pair of labels of their classes."""
    right = pairs = 0
    for a in range(items):
        for b in range(items):
            if a != b:
                pairs += 1
                right += (
                    1
                    if a // copies == b // copies
                    else sum(x == y for x in range(labels) for y in range(labels)) / labels**2
                )
    return 1 - right / pairs


def by_counts(ab, ba):
    """From the numbers of sequences that only one order gets right"""
    n, only_ab, only_ba = len(ab), int(np.sum(ab & ~ba)), int(np.sum(ba & ~ab))
    gap = (only_ab - only_ba) / n
    variance = ((only_ab + only_ba) - n * gap**2) / (n - 1)
    return gap, math.sqrt(variance / n)


def of_two_proportions(ab, ba):
    p, q = ab.mean(), ba.mean()
    return p - q, math.sqrt((p * (1 - p) + q * (1 - q)) / (len(ab) - 1))


def with_mistake(ddof=1, sign=1, divide=True):
    def f(ab, ba):
        d = sign * (ab * 1.0 - ba * 1.0)
        return d.mean(), np.std(d, ddof=ddof) / (math.sqrt(len(d)) if divide else 1)
    return f


RIGHT = {
    "largest_gap": [by_counting, lambda n, c, labels: (n - c) / (n - 1) * (1 - 1 / labels)],
    "gap_and_error": [by_counts, with_mistake()],
}
WRONG = {
    "largest_gap": [
        (lambda n, c, labels: (1 - c / n) * (1 - 1 / labels), "b is not a"),
        (lambda n, c, labels: (n - c) / (n - 1), "same label"),
        (lambda n, c, labels: 1 - 1 / labels, "one class"),
        (lambda n, c, labels: (c - 1) / (n - 1) + (n - c) / (n - 1) / labels, "not the gap"),
        (lambda n, c, labels: 1 - c / n, ""),
        (lambda n, c, labels: 1.0, ""),
    ],
    "gap_and_error": [
        (with_mistake(sign=-1), "sign"),
        (with_mistake(divide=False), "sqrt(n)"),
        (with_mistake(ddof=0), "n - 1"),
        (of_two_proportions, "same sequence"),
        (lambda ab, ba: (ab.mean() - ba.mean(), np.sqrt((ab.var() + ba.var()) / len(ab))),
         "same sequence"),
        (with_mistake(ddof=0, divide=False), "sqrt(n)"),
        (lambda ab, ba: (ab.mean() - ba.mean(), with_mistake(divide=False)(ab, ba)[1] / len(ab)),
         "not by n"),
        (lambda ab, ba: with_mistake()(ab, ba)[0], "expected 2"),
        (lambda ab, ba: (np.mean(ab - ba), 0.0), "raised"),
    ],
}
