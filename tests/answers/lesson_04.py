"""Answers to the exercises of lesson 04, right and wrong, and what a wrong one is told."""

import math

import numpy as np

from minattn.positions import morlet


def effective_by_loops(log_omega, log_sigma):
    rows = []
    for a, b in zip(log_omega, log_sigma):
        omega, sigma = min(math.exp(a), 0.95 * math.pi), max(math.exp(b), 1e-3)
        rows.append((omega if omega * sigma >= 5 else 5 / sigma, sigma, omega * sigma))
    return tuple(np.array(rows).T)


def effective_wrong_order(log_omega, log_sigma):
    omega, sigma = np.exp(log_omega), np.maximum(np.exp(log_sigma), 1e-3)
    product = omega * sigma
    return np.minimum(np.maximum(omega, 5 / sigma), 0.95 * np.pi), sigma, product


def kernel_by_vectors(T, omega, sigma):
    pe, _ = morlet.forward(T, np.log(omega), np.log(sigma), admissible=False)
    return [[sum(a * b for a, b in zip(x, y)) for y in pe] for x in pe]


def kernel_split(T, omega, sigma):
    p = np.arange(T)
    total = np.zeros((T, T))
    for w, s in zip(omega, sigma):
        less, more = np.subtract.outer(p, p), np.add.outer(p, p)
        total += (
            np.cos(w * less) * np.exp(-(less**2) / (4 * s**2)) * np.exp(-(more**2) / (4 * s**2))
        )
    return total


def kernel_relative(T, omega, sigma):
    less = np.subtract.outer(np.arange(T), np.arange(T))
    return sum(np.cos(w * less) * np.exp(-(less**2) / (4 * s**2)) for w, s in zip(omega, sigma))


def gradient_by_loops(dpe, pe, sigma):
    out = []
    for k, s in enumerate(sigma):
        out.append(
            sum(
                p * p / s**2 * (dpe[p, 2 * k] * pe[p, 2 * k] + dpe[p, 2 * k + 1] * pe[p, 2 * k + 1])
                for p in range(len(pe))
            )
        )
    return out


def gradient_from_one(dpe, pe, sigma):
    p = np.arange(1, len(pe) + 1)[:, None]
    return ((p / sigma) ** 2 * (dpe * pe).reshape(len(pe), -1, 2).sum(axis=2)).sum(axis=0)


RIGHT = {
    "effective": [effective_by_loops, morlet.effective],
    "horizon": [lambda sigma, height: [math.sqrt(2 * s * s * math.log(1 / height)) for s in sigma]],
    "kernel": [kernel_by_vectors, kernel_split],
    "gradient_log_sigma": [gradient_by_loops],
}
WRONG = {
    "effective": [
        (effective_wrong_order, "cap comes before"),
        (lambda a, b: (np.exp(a), np.exp(b), np.exp(a + b)), ""),
        (lambda a, b: morlet.effective(a, b, admissible=False), "projection is missing"),
        (lambda a, b: morlet.effective(b, a), ""),
        (
            lambda a, b: (np.minimum(effective_by_loops(a, b)[0], 0.95 * np.pi),
                          *effective_by_loops(a, b)[1:]),
            "stays as it is",
        ),
        (lambda a, b: (*morlet.effective(a, b)[:2], np.exp(a) * np.exp(b)), "of the capped"),
        (lambda a, b: morlet.effective(a, b)[:2], "3 results"),
        (
            lambda a, b: (*morlet.effective(a, b)[:2], np.prod(morlet.effective(a, b)[:2], axis=0)),
            "after the projection",
        ),
    ],
    "horizon": [
        (lambda sigma, height: sigma * np.sqrt(-np.log(height)), "The 2"),
        (lambda sigma, height: -2 * sigma**2 * np.log(height), "squared"),
        (lambda sigma, height: sigma * np.sqrt(-2 * np.log10(height)), "natural logarithm"),
        (lambda sigma, height: np.ceil(sigma * np.sqrt(-2 * np.log(height))), "not rounded"),
        (lambda sigma, height: np.exp(-(height**2) / (2 * sigma**2)), ""),
    ],
    "kernel": [
        (kernel_relative, "anchored"),
        (lambda T, omega, sigma: kernel_split(T, omega, sigma / np.sqrt(2)), "A 2 is missing"),
        (lambda T, omega, sigma: kernel_split(T, omega, 1e9 + sigma), ""),
        (lambda T, omega, sigma: kernel_split(T, omega, sigma).sum(), "shape"),
        (lambda T, omega, sigma: kernel_split(T, omega, sigma) / len(omega), "not their mean"),
    ],
    "gradient_log_sigma": [
        (lambda *a: -np.array(gradient_by_loops(*a)), "sign"),
        (lambda dpe, pe, sigma: gradient_by_loops(dpe, pe, sigma) / sigma, "for sigma"),
        (lambda dpe, pe, sigma: gradient_by_loops(dpe, pe, sigma) * sigma**2, "1 / sigma^2"),
        (gradient_from_one, ""),
        (lambda dpe, pe, sigma: gradient_by_loops(dpe, np.ones_like(pe), sigma), ""),
        (lambda *a: np.sum(gradient_by_loops(*a)), "shape"),
    ],
}
