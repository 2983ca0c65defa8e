"""Answers to the exercises of lesson 11, right and wrong, and what a wrong one is told."""

import numpy as np


def softmax(s):
    e = np.exp(s - np.max(s))
    return e / e.sum()


def equal_by_formula(rule, n, c):
    """The whole row, then its first entry."""
    s = np.full(n, c)
    rows = {
        "softmax": softmax(s),
        "sparsemax": np.maximum(s - (s.sum() - 1) / n, 0),
        "off_by_one": softmax(np.append(s, 0)),
        "relu": np.where(s > 0, s, 0) / n,
        "sigmoid": 1 / (1 + np.exp(np.log(n) - s)),
        "cog": np.sign(s) * softmax(np.abs(s)),
    }
    return rows[rule][0]


def equal_in_cases(rule, n, c):
    if rule == "off_by_one":
        return 1 / (np.exp(-c) + n)
    if rule == "relu":
        return c / n if c > 0 else 0
    if rule == "sigmoid":
        return np.exp(c) / (np.exp(c) + n)
    if rule == "cog":
        return ((c > 0) - float(c < 0)) / n
    return 1.0 / n


def equal_but(rule, formula):
    return lambda r, n, c: formula(n, c) if r == rule else equal_in_cases(r, n, c)


def sparsemax_by_keys(dP, P):
    support = [j for j in range(len(P)) if P[j] > 0]
    tau = sum(dP[j] for j in support) / len(support)
    return [dP[j] - tau if j in support else 0.0 for j in range(len(P))]


def sparsemax_by_jacobian(dP, P):
    on = (P > 0).astype(float)
    return (np.diag(on) - np.outer(on, on) / on.sum()) @ dP


def by_limits(weigh):
    """Every question asked of short rows."""
    if weigh(np.array([-1.0]))[0] < 0:
        return "cog"
    alone = weigh(np.array([-1.0]))[0]
    if abs(alone - 1) < 1e-12:
        row = weigh(np.array([0.0, 9.0]))
        if row[0] == 0:
            return "sparsemax"
        return "topk" if weigh(0.1 * np.arange(6.0))[0] == 0 else "softmax"
    if alone == 0:
        return "relu"
    return "off_by_one" if weigh(np.full(1000, 9.0)).sum() < 1 else "sigmoid"


def by_slopes(weigh):
    """Numerical derivatives at one row, and its sums."""
    s, h = np.linspace(-1, 1, 9), 1e-4
    J = np.array([(weigh(s + h * e) - weigh(s - h * e)) / (2 * h) for e in np.eye(9)])
    P = weigh(s)
    if (P < 0).any():
        return "cog"
    if np.abs(J - np.diag(np.diag(J))).max() < 1e-9:
        return "relu" if (P == 0).any() else "sigmoid"
    if np.abs(J.sum(axis=0)).max() > 1e-7:
        return "off_by_one"
    if (P > 0).all():
        return "softmax"
    on = P > 0
    return "topk" if (weigh(s / 1e4) == 0).any() and on.sum() > 1 else "sparsemax"


def guess(weigh, near=True):
    """A tree that leaves out one question."""
    s = np.linspace(-9, 0, 10)
    P = weigh(s)
    if P.min() < 0:
        return "cog"
    if np.allclose(weigh(s + 3), P):
        if P.min() > 0:
            return "softmax"
        return "sparsemax" if not near or weigh(s / 1000).min() > 0 else "topk"
    return "sigmoid" if P.min() > 0 else "relu"


RIGHT = {
    "equal_keys": [
        equal_by_formula,
        equal_in_cases,
        lambda *given: np.float32(equal_in_cases(*given)),
    ],
    "sparsemax_backward": [sparsemax_by_keys, sparsemax_by_jacobian],
    "which_rule": [by_limits, by_slopes],
}
WRONG = {
    "equal_keys": [
        (lambda rule, n, c: 1 / n, "sum to 1"),
        (lambda rule, n, c: c / n, "(rule = softmax, n = 5, c = 1.5)"),
        (lambda rule, n, c: {}[rule], "raised KeyError"),
        (equal_but("off_by_one", lambda n, c: np.exp(c) / (1 + np.exp(c))), "all n keys"),
        (equal_but("off_by_one", lambda n, c: 1 / (n + 1)), "for c = 0 only"),
        (equal_but("relu", lambda n, c: c / n), "below 0"),
        (equal_but("relu", lambda n, c: max(0, c)), "divided by n"),
        (equal_but("sigmoid", lambda n, c: 1 / (1 + np.exp(-c))), "logarithm of n"),
        (equal_but("sigmoid", lambda n, c: 1 / (1 + np.exp(-c)) / n), "outside"),
        (equal_but("sigmoid", lambda n, c: 1 / (1 + np.exp(-c) / n)), "subtracted"),
        (equal_but("cog", lambda n, c: np.sign(c)), "a share"),
        (equal_but("cog", lambda n, c: 1 / n), "the sign of the score"),
        (equal_but("cog", lambda n, c: (2 * (c >= 0) - 1) / n), "The sign of 0 is 0"),
        (equal_but("cog", lambda n, c: c / n), "= cog, n = 5, c = 1.5)"),
    ],
    "sparsemax_backward": [
        (lambda dP, P: P * (dP - (P * dP).sum()), "softmax's backward"),
        (lambda dP, P: (P > 0) * (dP - (P * dP).sum()), "not weighted"),
        (lambda dP, P: (P > 0) * dP, "that part is missing"),
        (lambda dP, P: (P > 0) * (dP - dP.mean()), "over the support only"),
        (lambda dP, P: dP - dP.mean(), "do not count in the mean"),
        (lambda dP, P: dP - dP[P > 0].mean(), "gets a gradient of 0"),
        (lambda dP, P: (P > 0) * (dP - dP[P > 0].sum()), "not a sum"),
        (lambda dP, P: (P > 0) * (dP + dP[P > 0].mean()), "The sign"),
        (lambda dP, P: (P > 0) * (dP - ((P > 0) * dP).mean()), "number of keys"),
        (lambda dP, P: (P > 0) * (dP - (dP[P > 0].sum() - 1) / (P > 0).sum()), "a constant"),
        (lambda dP, P: P * (dP - dP[P > 0].mean()), "the slope is 1"),
        (lambda dP, P: dP[P > 0] - dP[P > 0].mean(), "should have shape (7,)"),
    ],
    "which_rule": [
        (lambda weigh: "softmax", "further apart"),
        (lambda weigh: "sparsemax", "should be softmax; got sparsemax"),
        (lambda weigh: guess(weigh, near=False), "nearly equal"),
        (guess, "Its keys compete"),
        (lambda weigh: 3, "the rule should be softmax; got 3"),
        (lambda weigh: weigh(np.arange(7)), "should have shape (); got (7,)"),
        (lambda weigh: {"off_by_one": "softmax"}.get(by_slopes(weigh), by_slopes(weigh)), "below"),
        (lambda weigh: {"sigmoid": "off_by_one"}.get(by_slopes(weigh), by_slopes(weigh)), "stay"),
        (lambda weigh: {"relu": "sigmoid"}.get(by_slopes(weigh), by_slopes(weigh)), "below 0"),
        (lambda weigh: by_slopes(weigh).upper(), "got SOFTMAX"),
    ],
}
