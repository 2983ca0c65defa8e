"""Grades the exercises of lesson 11: twelve ways to weigh a key."""

from functools import cache

import numpy as np

from minattn.attention import cog, off_by_one, pointwise, softmax, sparse
from minattn.lessons.grading import Exercise, exercise

MODULES = {
    "softmax": (softmax, {}),
    "sparsemax": (sparse, {"rule": "sparsemax"}),
    "topk": (sparse, {"rule": "topk"}),
    "off_by_one": (off_by_one, {}),
    "relu": (pointwise, {"rule": "relu"}),
    "sigmoid": (pointwise, {"rule": "sigmoid"}),
    "cog": (cog, {}),
}


def _forward(rule, s, v, **more):
    """A row of scores s (n,) with values v (n,) -> module, its cache, weights (n,)"""
    module, options = MODULES[rule]
    q, k, v = np.ones((1, 1, 1, 1)), s.reshape(1, 1, -1, 1), v.reshape(1, 1, -1, 1)
    _, saved, P = module.forward(q, k, v, **options, **more, return_weights=True)
    return module, saved, P[0, 0, 0]


@exercise
def check_equal_keys():
    """rule, n keys, their score c -> the weight of each"""
    rules = ("softmax", "sparsemax", "off_by_one", "relu", "sigmoid", "cog")
    inputs = [
        (rule, n, c) for rule in rules for n, c in ((5, 1.5), (3, -0.7), (1, -2.0), (7, 0.0))
    ]

    def right(rule, n, c):
        return float(_forward(rule, np.full(n, c), np.zeros(n))[2][0])

    def but(wrong_rule, formula):
        def answer(rule, n, c):
            return formula(n, c) if rule == wrong_rule else right(rule, n, c)

        return answer

    sigmoid = lambda u: 1 / (1 + np.exp(-u))
    return Exercise(
        right,
        inputs,
        hints=[
            (
                but("sparsemax", lambda n, c: max(c, 0)),
                "tau makes the row sum to 1.",
            ),
            (
                but("off_by_one", lambda n, c: sigmoid(c)),
                "The denominator is 1 plus the sum over all n keys.",
            ),
            (
                but("off_by_one", lambda n, c: 1 / (1 + n)),
                "The 1 in the denominator is there whatever c is; that holds for c = 0 only.",
            ),
            (but("relu", lambda n, c: c / n), "A score below 0 gives the weight 0."),
            (but("relu", lambda n, c: max(c, 0)), "The weight is divided by n."),
            (
                but("sigmoid", lambda n, c: sigmoid(c)),
                "The logarithm of n is subtracted from the score first.",
            ),
            (
                but("sigmoid", lambda n, c: sigmoid(c) / n),
                "Subtracting ln n inside the sigmoid is not dividing by n outside.",
            ),
            (
                but("sigmoid", lambda n, c: sigmoid(c + np.log(n))),
                "The sign: ln n is subtracted from the score.",
            ),
            (
                but("cog", lambda n, c: np.sign(c)),
                "That is the sign alone: the softmax of |s| gives each of n equal keys a share.",
            ),
            (
                but("cog", lambda n, c: (1 if c >= 0 else -1) / n),
                "The sign of 0 is 0: the key gets no weight.",
            ),
            (
                but("cog", lambda n, c: 1 / n),
                "That is its size: the weight also has the sign of the score.",
            ),
            (
                lambda rule, n, c: 1 / n,
                "Equal shares of 1 are right only for a rule whose weights sum to 1.",
            ),
        ],
        tolerance=1e-6,  # float32 is good enough for a formula
    )


@exercise
def check_sparsemax_backward():
    """dP (n,), P (n,) -> ds (n,), judged by the package's backward."""
    rng = np.random.default_rng(0)
    inputs, answers = [], {}
    for n, spread in ((7, 0.5), (11, 1.0), (5, 0.1), (5, 5.0), (1, 1.0)):
        dP = rng.standard_normal(n)
        module, saved, P = _forward("sparsemax", spread * rng.standard_normal(n), dP)
        inputs.append((dP, P))
        # the key is the score, and the value is dP
        answers[dP.tobytes()] = module.backward(np.ones((1, 1, 1, 1)), saved)["k"].reshape(-1)

    def by_mean(mean, outside=0.0):
        return lambda dP, P: np.where(P > 0, dP - mean(dP, P), outside * dP)

    def on_support(dP, P):
        return dP[P > 0].mean()

    return Exercise(
        lambda dP, P: answers[dP.tobytes()],
        inputs,
        returns=("ds",),
        hints=[
            (
                lambda dP, P: P * (dP - P @ dP),
                "That is the softmax's backward. Here P_j = s_j - tau on the support.",
            ),
            (
                by_mean(lambda dP, P: P @ dP),
                "The mean is not weighted by P: in tau every score of the support counts alike.",
            ),
            (by_mean(lambda dP, P: 0), "tau depends on the scores too: that part is missing."),
            (
                by_mean(lambda dP, P: dP.mean()),
                "The mean runs over the support only: the other scores are not in tau.",
            ),
            (
                lambda dP, P: dP - dP.mean(),
                "Keys without weight have no gradient, and do not count in the mean.",
            ),
            (
                lambda dP, P: dP - on_support(dP, P),
                "The mean is right, but a key without weight gets a gradient of 0.",
            ),
            (
                by_mean(on_support, outside=1.0),
                "A key without weight stays at 0 when its score moves: its gradient is 0.",
            ),
            (
                by_mean(lambda dP, P: dP[P > 0].sum()),
                "tau is divided by the size of the support: a mean, not a sum.",
            ),
            (
                by_mean(lambda dP, P: dP[P > 0].sum() / len(P)),
                "The sum is divided by the size of the support, not by the number of keys.",
            ),
            (
                by_mean(lambda dP, P: (dP[P > 0].sum() - 1) / (P > 0).sum()),
                "The 1 in tau is a constant: it has no gradient.",
            ),
            (
                lambda dP, P: P * (dP - on_support(dP, P)),
                "On the support P_j = s_j - tau: the slope is 1, not P_j.",
            ),
            (
                by_mean(lambda dP, P: -on_support(dP, P)),
                "The sign: tau is subtracted from the scores.",
            ),
        ],
    )


@exercise
def check_which_rule():
    """weigh -> the rule's name, judged by boxes with unknown factors."""
    rules = _boxes()
    compete = "Raise one score and see whether the weights of the other keys change."
    near = "Both give exact zeros; only one of them also does where all scores are nearly equal."
    confused = {
        ("softmax", "off_by_one"): "Add a constant to all scores: its weights stay.",
        ("softmax", "sigmoid"): compete,
        ("softmax", "cog"): "Its weights are never below 0.",
        ("softmax", "topk"): "Its weights are small, but never exactly 0.",
        ("topk", "softmax"): "Count its exact zeros in a row of ten keys.",
        ("topk", "sparsemax"): near,
        ("topk", "relu"): "Its zeros are no matter of sign: add a constant to all scores.",
        ("sparsemax", "topk"): near,
        ("sparsemax", "softmax"): "Try scores that lie further apart: some weights become 0.",
        ("sparsemax", "relu"): "Its zeros are not a matter of sign: shift the whole row.",
        ("off_by_one", "softmax"): "Its weights sum to nearly 1 for large scores only: try scores "
        "below 0.",
        ("off_by_one", "sigmoid"): "Its keys compete: raise one score, and other weights fall.",
        ("relu", "sparsemax"): "Its weights need not sum to 1: add a constant to all scores.",
        ("relu", "topk"): "Do its zeros stay if a constant is added to all scores?",
        ("relu", "sigmoid"): "Look at its weights for scores below 0.",
        ("sigmoid", "relu"): "Its weights are never exactly 0, not even for scores below 0.",
        ("sigmoid", "off_by_one"): "Its keys do not compete: raise one score, the others' weights "
        "stay.",
        ("sigmoid", "softmax"): "Its weights need not sum to 1: try a row of large scores.",
        ("cog", "softmax"): "Try scores below 0 too.",
        ("cog", "off_by_one"): "Its weights take the sign of the scores: try scores below 0.",
    }

    def mistaken(true, answer):
        return lambda weigh: answer if rules[weigh] == true else rules[weigh]

    return Exercise(
        lambda weigh: rules[weigh],
        [(box,) for box in rules],
        returns=("the rule",),
        hints=[(mistaken(*pair), says) for pair, says in confused.items()],
    )


@cache
def _boxes():
    """{weigh: its rule}: functions s (n,) -> weights (n,) that do not say what they are."""

    def box(rule, factor, **more):
        def weigh(s):
            s = factor * np.asarray(s, float)
            return _forward(rule, s, np.zeros(len(s)), **more)[2]

        return weigh

    return {
        box(rule, factor, **({"top": top} if rule == "topk" else {})): rule
        for factor, top in ((1.0, 3), (0.5, 5), (2.0, 2))
        for rule in MODULES
    }
