"""Answers to the exercises of lesson 19, right and wrong, and what a wrong one is told."""

import math

import numpy as np


def shares(z, temperature, k):
    kept = np.argsort(z)[-k:]
    p = np.zeros(len(z))
    p[kept] = np.exp((z[kept] - z[kept].max()) / temperature)
    return p / p.sum()


def shares_by_differences(z, temperature, k):
    """1 / sum of exp(z_u - z_v) over the kept u"""
    kept = sorted(range(len(z)), key=lambda v: -z[v])[:k]
    with np.errstate(over="ignore"):
        return np.array(
            [
                1 / sum(np.exp((z[u] - z[v]) / temperature) for u in kept) if v in kept else 0.0
                for v in range(len(z))
            ]
        )


def shares_wrong(z, temperature, k, power=-1, cut="after"):
    p = np.exp((z - z.max()) * temperature**power)
    best = z >= np.sort(z)[-k]
    if cut == "before":
        p = np.where(best, p, 0)
    p = p / p.sum()
    return np.where(best, p, 0) if cut == "after" else p


def shares_overflowing(z, temperature, k):
    p = np.where(z >= np.sort(z)[-k], np.exp(z / temperature), 0)
    return p / p.sum()


def by_counting(table, ids):
    """Every pair once, with the number of times that it occurs"""
    total = 0.0
    for pair in {(int(a), int(b)) for a, b in zip(ids, ids[1:])}:
        times = sum(tuple(both) == pair for both in zip(ids, ids[1:]))
        total -= times * math.log(table[pair])
    return total / (len(ids) - 1)


def shares_of_zeros(z, temperature, k):
    z = z / temperature
    z[np.argsort(z)[:-k]] = 0
    e = np.exp(z - z.max())
    return e / e.sum()


RIGHT = {
    "table_loss": [by_counting, lambda table, ids: np.mean(-np.log(table)[ids[:-1], ids[1:]])],
    "sampling_probabilities": [shares, shares_by_differences],
}
WRONG = {
    "table_loss": [
        (lambda table, ids: by_counting(table.T, ids), "Rows are"),
        (lambda table, ids: -by_counting(table, ids), "sign"),
        (lambda table, ids: by_counting(table, ids) * (len(ids) - 1), "not the sum"),
        (lambda table, ids: by_counting(table, ids) * (len(ids) - 1) / len(ids), "N - 1"),
        (lambda table, ids: by_counting(table, ids) / math.log(2), "bits"),
        (lambda table, ids: -np.log(table).mean(), ""),
        (lambda table, ids: 1 - np.mean(table[ids[:-1], ids[1:]]), ""),
    ],
    "sampling_probabilities": [
        (lambda z, t, k: shares_wrong(z, t, k, power=1, cut="before"), "multiplies"),
        (lambda z, t, k: shares(z, 1, k), "not used"),
        (lambda z, t, k: shares_wrong(z, t, k, cut=None), "All characters"),
        (shares_wrong, "sum to 1"),
        (shares_overflowing, "nan. exp overflows"),
        (lambda z, t, k: np.log(shares(z, t, k)), "should be"),
        (lambda z, t, k: shares(z, t, k)[np.argsort(z)], "should be"),
        (lambda z, t, k: np.where(z >= np.sort(z)[-k], 1 / k, 0), "should be"),
        (lambda z, t, k: shares(z, t, min(k + 1, len(z))), "should be"),
        (lambda z, t, k: shares(-z, t, k), "least likely"),
        (lambda z, t, k: shares(z, t, max(k - 1, 1)), "k-th largest"),
        (shares_of_zeros, "minus infinity"),
    ],
}
