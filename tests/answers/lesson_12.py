"""Answers to the exercises of lesson 12, right and wrong, and what a wrong one is told."""

import numpy as np


def adam_in_place(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    w -= lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return [w, m, v]


def adam_by_coordinates(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    out = []
    for w_i, g_i, m_i, v_i in zip(w, g, m, v):
        m_i = beta1 * m_i + (1 - beta1) * g_i
        v_i = beta2 * v_i + (1 - beta2) * g_i**2
        root = (v_i / (1 - beta2**t)) ** 0.5
        out.append((w_i - lr * m_i / (1 - beta1**t) / (root + eps), m_i, v_i))
    return tuple(np.array(column) for column in zip(*out))


def adam_with_one_rate(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    """The corrections gathered in the learning rate, eps scaled with them"""
    m, v = np.average([m, g], axis=0, weights=[beta1, 1 - beta1]), beta2 * v + (1 - beta2) * g**2
    root = np.sqrt(1 - beta2**t)
    return w - lr * root / (1 - beta1**t) * m / (np.sqrt(v) + eps * root), m, v


def adam(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8, *, c1=True, c2=True, mean=True,
         sign=-1, newest=False, squares=True, root=np.sqrt, inside=0.0, corrected=False):
    """A step with mistakes to choose from"""
    if not mean:
        m, v = beta1 * m + g, beta2 * v + g * g
    else:
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * (g * g if squares else abs(g))
    mh = m / (1 - beta1**t) if c1 else m
    vh = v / (1 - beta2**t) if c2 else v
    w = w + sign * lr * (g if newest else mh) / (root(vh + inside) + (0 if inside else eps))
    return (w, mh, vh) if corrected else (w, m, v)


def adam_with(**mistakes):
    return lambda w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8: adam(
        w, g, m, v, t, lr, beta1, beta2, eps, **mistakes)


def eps_inside(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    return adam(w, g, m, v, t, lr, beta1, beta2, eps, inside=eps)


def eps_too_early(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    m, v = m + (1 - beta1) * (g - m), v + (1 - beta2) * (g * g - v)
    return w - lr * m / (np.sqrt(v) + eps) * np.sqrt(1 - beta2**t) / (1 - beta1**t), m, v


def from_zero(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    return adam(w, g, m, v, t - 1, lr, beta1, beta2, eps)


def rate_by_minimum(t, steps, peak, warmup, cooldown):
    return peak * min(1, (t + 1) / (warmup + 1), (steps - t) / max(cooldown, 1))


def rate_by_tables(t, steps, peak, warmup, cooldown):
    rates = np.full(steps, float(peak))
    rates[:warmup] = np.linspace(0, peak, warmup + 2)[1:-1]
    rates[steps - cooldown:] = np.linspace(peak, 0, cooldown + 1)[:-1]
    return rates[t]


def rates(rise=None, fall=None):
    """The right rate with another warm-up (t, warmup) or cool-down (steps left, cooldown)"""

    def rate(t, steps, peak, warmup, cooldown):
        if rise and t < warmup:
            return peak * rise(t, warmup)
        if fall and t >= steps - cooldown:
            return peak * fall(steps - t, cooldown)
        return rate_by_minimum(t, steps, peak, warmup, cooldown)

    return rate


RIGHT = {
    "adam_step": [adam_in_place, adam_by_coordinates, adam_with_one_rate, adam_with()],
    "rate": [
        rate_by_minimum,
        rate_by_tables,
        lambda *given: np.float32(rate_by_minimum(*given)),
    ],
}
WRONG = {
    "adam_step": [
        (adam_with(c1=False, c2=False), "corrections"),
        (adam_with(c2=False), "before the root"),
        (adam_with(c1=False), "m must be too"),
        (eps_inside, "after the root"),
        (eps_too_early, "of the corrected v"),
        (adam_with(root=lambda x: x), "The root of v"),
        (adam_with(newest=True), "along the mean"),
        (adam_with(sign=1), "The sign"),
        (adam_with(mean=False), "are means"),
        (adam_with(squares=False), "the squares"),
        (adam_with(corrected=True), "this step only"),
        (from_zero, "contains nan"),
        (lambda *given, **more: adam_in_place(*given, **more)[0], "expected 3 results"),
        (lambda w, g, m, v, t, lr, **more: (w - lr * np.sign(g), m, v), "(w (5,), g (5,)"),
        (lambda w, g, m, v, t, lr: adam(w, g, m, v, t, lr), "raised TypeError"),
    ],
    "rate": [
        (rates(rise=lambda t, warmup: t / warmup), "not move at all"),
        (rates(rise=lambda t, warmup: (t + 1) / warmup), "at the peak already"),
        (rates(rise=lambda t, warmup: t / (warmup + 1)), "use t + 1"),
        (rates(rise=lambda t, warmup: 1), "warm-up is missing"),
        (rates(fall=lambda left, cooldown: (left - 1) / cooldown), "not the last one"),
        (rates(fall=lambda left, cooldown: (left - 1) / (cooldown - 1)), "should still move"),
        (rates(fall=lambda left, cooldown: left / (cooldown + 1)), "divide by cooldown"),
        (rates(fall=lambda left, cooldown: 1 - left / cooldown), "That rises"),
        (rates(fall=lambda left, cooldown: 1), "cool-down is missing"),
        (rates(fall=lambda left, cooldown: np.sin(np.pi * left / cooldown / 2) ** 2), "cosine"),
        (lambda t, steps, peak, warmup, cooldown: peak * (steps - t) / steps, "should be 0.36"),
        (lambda t, steps, peak, warmup, cooldown:
         peak * min(1, (t + 1) / (warmup + 1), (steps - t) / cooldown), "raised ZeroDivisionError"),
    ],
}
