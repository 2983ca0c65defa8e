"""Answers to the exercises of lesson 18, right and wrong, and what a wrong one is told."""

import numpy as np


def four_values(f, x, u, h):
    delta = lambda h: f(x + h * u) - f(x - h * u)
    return (8 * delta(h) - delta(2 * h)) / (12 * h)


def judge(cotangent=None, tolerance=1e-5, sides=2):
    def f(forward, backward, x):
        rng, h = np.random.default_rng(3), 1e-4
        dout = rng.standard_normal(forward(x).shape) if cotangent is None else (
            np.full(forward(x).shape, cotangent))
        u = rng.uniform(-1, 1, x.shape)
        change = forward(x + h * u) - forward(x - h * u if sides == 2 else x)
        return abs(np.vdot(dout, change) / (sides * h) - np.vdot(backward(dout, x), u)) < tolerance
    return f


def entry_by_entry(forward, backward, x):
    dout = np.random.default_rng(1).standard_normal(forward(x).shape)
    measured = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[at] = 1e-6
        measured[at] = np.sum(dout * (forward(x + step) - forward(x - step))) / 2e-6
    return np.allclose(measured, backward(dout, x), rtol=1e-5, atol=1e-6)


RIGHT = {
    "slope": [
        lambda f, x, u, h: (f(x + h * u) - f(x - h * u)) / (2 * h),
        four_values,
        lambda f, x, u, h: (f(x + h / 2 * u) - f(x - h / 2 * u)) / h,
    ],
    "gradient_is_right": [judge(), entry_by_entry],
}
WRONG = {
    "slope": [
        (lambda f, x, u, h: (f(x + h * u) - f(x)) / h, "both sides"),
        (lambda f, x, u, h: (f(x + h * u) - f(x - h * u)) / h, ""),
        (lambda f, x, u, h: f(x + h * u) - f(x - h * u), ""),
        (lambda f, x, u, h: (f(x + h) - f(x - h)) / (2 * h), ""),
        (lambda f, x, u, h: (f(x - h * u) - f(x + h * u)) / (2 * h), ""),
        (lambda f, x, u, h: (f(x + h * u) - f(x - h * u)) / (2 * h * h), ""),
        (lambda f, x, u, h: (f(x + h * u) - f(x - h * u)) / (2 * h) / np.linalg.norm(u), "length"),
    ],
    "gradient_is_right": [
        (judge(cotangent=1.0), "ones"),
        (judge(tolerance=10), "True of a wrong gradient"),
        (judge(tolerance=1e-16), "allow for rounding"),
        (lambda forward, backward, x: True, "True of a wrong gradient"),
        (lambda forward, backward, x: forward(x).shape == x.shape, ""),
    ],
}
