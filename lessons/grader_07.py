"""Grades the exercises of lesson 07: the energy gate, its causal form, the prefix-only loss."""

import numpy as np

from minattn.attention import energy, softmax
from minattn.lessons.grading import Exercise, exercise
from minattn.validate.cases import cases


@exercise
def check_gated_weights():
    """P (T, T), u (T,) -> A (T, T), judged by the package's softmax(s + log g)."""
    inputs = []
    for case in cases("energy", only=["causal", "gate_all_closed"]):
        if case.options.get("norm") not in (None, "key", "none"):
            continue
        arrays = {name: a[:1] if a.ndim > 1 else a for name, a in case.arrays.items()}
        P = softmax.forward(
            arrays["q"], arrays["k"], arrays["v"], causal=True, return_weights=True
        )[-1]
        for factor in (1, 20):
            u = factor * arrays["alpha"][:, None] * (arrays["energy"] - arrays["tau"][:, None])
            inputs += [(P[0, h].copy(), u[0, h].copy()) for h in range(P.shape[1])]
    # the one open gate is hidden from all rows but the last
    u = np.array([-800.0, -790, -810, -795, 3])
    inputs.append((np.tri(5) / np.arange(1, 6)[:, None], u))
    floor = lambda P, g: P * g / np.maximum((P * g).sum(axis=1, keepdims=True), 1e-8)
    g = lambda u: 1 / (1 + np.exp(-u))
    return Exercise(
        _gated_weights,
        inputs,
        hints=[
            (
                lambda P, u: floor(P, g(u)),
                "That has the published floor: where all gates are nearly closed, rows fade.",
            ),
            (lambda P, u: P * g(u), "Each row must be made to sum to 1 again."),
            (
                lambda P, u: floor(P, g(u)[:, None]),
                "The gate belongs to the key, a column; this scales rows.",
            ),
            (
                lambda P, u: P * g(u) / (P * g(u)).sum(axis=1, keepdims=True),
                "Where a whole row is this closed, g is 0 in floating point: take out the "
                "largest logarithm.",
            ),
        ],
    )


def _gated_weights(P, u):
    with np.errstate(divide="ignore"):
        s = np.log(P) + energy.log_sigmoid(u)
    A = np.exp(s - s.max(axis=1, keepdims=True))
    return A / A.sum(axis=1, keepdims=True)


@exercise
def check_normalise_causally():
    """e (T,) -> z (T,)"""
    rng = np.random.default_rng(0)
    inputs = [
        (spread * rng.standard_normal(T) + offset,)
        for T, spread, offset in ((11, 1e-4, 0), (7, 1, 0), (1, 1, 0), (13, 1, 3), (5, 1, -2))
    ]

    def normalised(e, own=1, ddof=0, deviation=lambda var: np.sqrt(var + energy.EPS)):
        z = [0.0]
        for j in range(1, len(e)):
            past = e[: j + own]
            z.append((e[j] - past.mean()) / deviation(past.var(ddof=ddof)))
        return np.array(z)

    return Exercise(
        normalised,
        inputs,
        returns=("z",),
        hints=[
            (
                lambda e: (e - e.mean()) / np.sqrt(e.var() + energy.EPS),
                "That is the mean of everything, later energies too.",
            ),
            (
                lambda e: (e - e.mean()) / max(e.std(), energy.EPS),
                "That is the mean of everything, later energies too.",
            ),
            (
                lambda e: normalised(e, own=0),
                "The energy's own value counts too: keys 0 to j, with j.",
            ),
            (
                lambda e: normalised(e, ddof=1),
                "The population variance: divide by j, not by j - 1.",
            ),
            (
                lambda e: e - np.cumsum(e) / np.arange(1, len(e) + 1),
                "Divide by the deviation as well.",
            ),
            (
                lambda e: normalised(e, deviation=lambda var: np.sqrt(var) + energy.EPS),
                "The small constant is added to the variance, inside the root.",
            ),
            (
                lambda e: normalised(e, deviation=np.sqrt),
                "The small constant under the root is missing.",
            ),
        ],
    )


@exercise
def check_prefix_only_loss():
    """(predict, x, y) -> nats, judged by predictors that are causal and others that look ahead."""
    rng = np.random.default_rng(0)
    V, T = 7, 11
    table = 2 * rng.standard_normal((V, V))

    def of_the_last_token(x):
        return table[x]

    def of_the_mean_of_all(x):
        return table[x] + table[x].mean(axis=0)

    def of_the_answer(x):
        logits = table[x]
        logits[np.arange(len(x) - 1), x[1:]] += 5
        return logits

    def of_the_length(x):
        return table[x] * len(x) / 5

    def surprise(logits, y):
        logits = np.asarray(logits, float)
        return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[y]

    def reference(predict, x, y):
        return float(np.mean([surprise(predict(x[: t + 1])[-1], y[t]) for t in range(len(x))]))

    def forced(predict, x, y):
        return float(np.mean([surprise(row, token) for row, token in zip(predict(x), y)]))

    inputs = []
    for predict in (of_the_mean_of_all, of_the_answer, of_the_length, of_the_last_token):
        ids = rng.integers(0, V, T + 1)
        inputs.append((predict, ids[:-1], ids[1:]))
    return Exercise(
        reference,
        inputs,
        returns=("the loss",),
        hints=[
            (forced, "That is the teacher-forced loss: the predictor saw the whole window."),
            (
                lambda f, x, y: reference(f, x, y) * len(x),
                "That is the sum; the loss is the mean over positions.",
            ),
            (
                lambda f, x, y: reference(f, x, x),
                "The prediction after x[t] is about y[t], not about x[t] itself.",
            ),
            (
                lambda f, x, y: reference(f, x, y) / np.log(2),
                "Nats, please: the natural logarithm.",
            ),
            (
                lambda f, x, y: surprise(f(x)[-1], y[-1]),
                "That is the last prediction only; average over all prefixes.",
            ),
            (
                lambda f, x, y: float(
                    np.mean([surprise(f(x[: t + 1])[0], y[t]) for t in range(len(x))])
                ),
                "The prediction that is wanted is the last row of predict(x[:t + 1]).",
            ),
            (
                lambda f, x, y: float(
                    np.mean([surprise(f(x[:t])[-1], y[t]) for t in range(1, len(x))])
                ),
                "y[t] follows x[t]: its prefix is x[:t + 1], and t = 0 counts too.",
            ),
        ],
    )
