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


def schulz_from_the_right(X, a, b, c):
    B = X.T @ X
    return X @ (a * np.eye(len(B)) + b * B + c * np.linalg.matrix_power(B, 2))


def schulz_by_terms(X, a, b, c):
    third = X @ X.T @ X
    return a * X + b * third + c * X @ X.T @ third


def schulz_by_einsum(X, a, b, c):
    third = np.einsum("ij,kj,kl->il", X, X, X)
    return (a * X + b * third + c * np.einsum("ij,kj,kl->il", X, X, third)).tolist()


def schulz_by_singular_values(X, a, b, c):
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    return U @ np.diag(s * (a + s**2 * (b + c * s**2))) @ Vt


def schulz(formula):
    return lambda X, a, b, c: formula(X, X @ X.T, a, b, c)


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
    "newton_schulz_step": [
        schulz_from_the_right,
        schulz_by_terms,
        schulz_by_einsum,
        schulz_by_singular_values,
        lambda X, a, b, c: schulz_by_terms(X.T, a, b, c).T,
    ],
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
    "newton_schulz_step": [
        (lambda X, a, b, c: a * X + b * X**3 + c * X**5, "the single entries"),
        (schulz(lambda X, A, a, b, c: a * X + (b * A + c * A * A) @ X), "A @ A"),
        (schulz(lambda X, A, a, b, c: a * X + b * A @ X), "with c is missing"),
        (schulz(lambda X, A, a, b, c: a * X + c * A @ A @ X), "with b is missing"),
        (schulz(lambda X, A, a, b, c: b * A @ X + c * A @ A @ X), "a X is missing"),
        (schulz(lambda X, A, a, b, c: X + b * A @ X + c * A @ A @ X), "a X, not X"),
        (schulz(lambda X, A, a, b, c: a * X + b * A @ X + c * A @ A @ A @ X), "seventh power"),
        (schulz(lambda X, A, a, b, c: a * X + b * A @ X + c * A @ X), "fifth power"),
        (schulz(lambda X, A, a, b, c: a * X - b * A @ X - c * A @ A @ X), "negative already"),
        (schulz(lambda X, A, a, b, c: a * X + c * A @ X + b * A @ A @ X), "exchanged"),
        (schulz(lambda X, A, a, b, c: a + b * A @ X + c * A @ A @ X), "every entry"),
        (schulz(lambda X, A, a, b, c: a * np.eye(len(A)) + b * A + c * A @ A), "shape (5, 7)"),
        (lambda X, a, b, c: schulz_by_terms(X, a, b, c).T, "should have shape (5, 7); got (7, 5)"),
        (lambda X, a, b, c: a * X + b * X.T @ X @ X, "raised ValueError"),
        (lambda X, a, b, c: schulz_by_terms(X, a, b, c) / 2, "should be"),
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
