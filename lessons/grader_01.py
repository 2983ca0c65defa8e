"""Grades the exercises of lesson 01: softmax attention and its gradient."""

import numpy as np

from minattn.attention import softmax
from minattn.lessons.grading import Exercise, exercise
from minattn.validate.cases import cases

FAMILIES = (
    "prime_sizes",
    "causal",
    "noncausal",
    "window",
    "prefix",
    "tq_ne_tk",
    "fully_masked_row",
    "padding",
)


@exercise
def check_softmax_backward():
    """dP, P (Tq, Tk) -> ds (Tq, Tk), the reference from the whole matrix of slopes of every row."""
    rng = np.random.default_rng(0)
    inputs = []
    for Tq, Tk, factor in ((5, 7, 1), (7, 7, 3), (1, 3, 1), (11, 5, 30)):
        P = np.exp(factor * rng.standard_normal((Tq, Tk)))
        P[:, 1] *= np.arange(Tq) % 2  # a key that every other row may not see
        inputs.append((rng.standard_normal((Tq, Tk)), P / P.sum(axis=1, keepdims=True)))
    return Exercise(
        lambda dP, P: np.stack([(np.diag(p) - np.outer(p, p)) @ dp for dp, p in zip(dP, P)]),
        inputs,
        returns=("ds",),
        hints=[
            (
                lambda dP, P: P * dP,
                "A weight also falls when another score of its row rises: that part is missing.",
            ),
            (
                lambda dP, P: P * (1 - P) * dP,
                "That is each weight's own score only, as for a sigmoid.",
            ),
            (
                lambda dP, P: P * (dP - dP.mean(axis=1, keepdims=True)),
                "The mean of dP that is subtracted is weighted by P.",
            ),
            (
                lambda dP, P: P * (dP - (P * dP).sum(axis=0)),
                "The sum runs over the keys of one query, a row: axis 1.",
            ),
            (
                lambda dP, P: dP - (P * dP).sum(axis=1, keepdims=True),
                "The factor P is missing: a key with the weight 0 gets no gradient.",
            ),
            (lambda dP, P: P * (dP - (P * dP).sum()), "Each row has its own sum."),
            (
                lambda dP, P: P * ((P * dP).sum(axis=1, keepdims=True) - dP),
                "The sign is the wrong way round.",
            ),
        ],
    )


@exercise
def check_attention_backward():
    """dout, q, k, v, P -> dq, dk, dv, for one head of the validation kit's cases."""
    inputs, expected = [], {}
    for case in cases("softmax", only=FAMILIES):
        _, cache, P = softmax.forward(**case.arrays, **case.options, return_weights=True)
        grads = softmax.backward(case.cotangent, cache)
        one = tuple(x[-1, -1].copy() for x in (case.cotangent, *case.arrays.values(), P))
        inputs.append(one)
        expected[one[1].tobytes()] = tuple(grads[name][-1, -1] for name in "qkv")

    def variant(wrong):
        def f(dout, q, k, v, P):
            root, dP = np.sqrt(q.shape[1]), dout @ v.T
            mean = (P * dP).sum(axis=1, keepdims=True)
            if wrong == "no mean":
                mean = 0
            if wrong == "plain mean":
                mean = dP.mean(axis=1, keepdims=True)
            if wrong == "rowsum of out":
                mean = (P @ v).sum(axis=1, keepdims=True)
            ds = P * (dP - mean)
            dq, dk, dv = ds @ k / root, ds.T @ q / root, P.T @ dout
            if wrong in ("no scale", "dq"):
                dq = dq * root
            if wrong in ("no scale", "dk"):
                dk = dk * root
            if wrong == "D":
                dq, dk = dq / root, dk / root
            return dq, dk, dv.T if wrong == "dv" else dv

        return f

    return Exercise(
        lambda dout, q, k, v, P: expected[q.tobytes()],
        inputs,
        returns=("dq", "dk", "dv"),
        hints=[
            (variant("no scale"), "The scores were divided by sqrt(D): so are dq and dk."),
            (variant("D"), "Divide by sqrt(D), not by D."),
            (variant("dq"), "dq lacks the division by sqrt(D)."),
            (variant("dk"), "dk lacks the division by sqrt(D)."),
            (variant("no mean"), "ds lacks the mean that is subtracted from every row."),
            (variant("plain mean"), "The mean that is subtracted from dP is weighted by P."),
            (
                variant("rowsum of out"),
                "The mean that is subtracted is the row sum of dout * out, not of out.",
            ),
            (variant("dv"), "Right numbers, but this is dv transposed."),
        ],
    )


@exercise
def check_weights():
    """s, visible (Tq, Tk) -> P (Tq, Tk), in the corners: large scores, far negative scores,
    rows that see nothing.
    """
    rng = np.random.default_rng(0)
    s = rng.standard_normal((5, 7))
    visible = rng.random((5, 7)) < 0.6
    visible[:, 3] = True
    empty = visible.copy()
    empty[1] = False
    first_is_best = s.copy()
    first_is_best[:, 0] = 900

    def reference(s, visible):
        P = np.zeros(s.shape)
        for i, see in enumerate(visible):
            if see.any():
                P[i, see] = np.exp(s[i, see] - s[i, see].max())
                P[i] /= P[i].sum()
        return P

    def filled(fill):
        def f(s, visible):
            s = np.where(visible, s, fill)
            P = np.exp(s - s.max(axis=1, keepdims=True))
            return P / P.sum(axis=1, keepdims=True)

        return f

    def without_maximum(s, visible):
        P = np.exp(s) * visible
        return P / P.sum(axis=1, keepdims=True)

    def maximum_of_hidden(s, visible):
        P = np.exp(s - s.max(axis=1, keepdims=True)) * visible
        return P / P.sum(axis=1, keepdims=True)

    corners = (
        (s, visible),
        (s + 1e4, visible),
        (s - 2.0**34, visible),
        (first_is_best, visible),
        (s, empty),
        (s[:, :1], empty[:, 3:4]),
    )
    return Exercise(
        reference,
        corners,
        returns=("P",),
        tolerance=1e-5,  # exp(s - lse) is right too, and lse near 2^34 ends at 2e-6
        hints=[
            (filled(-np.inf), "A row that sees nothing is 0 / 0: let its weights be 0."),
            (
                filled(-1e30),
                "A row that sees nothing now attends to everything: let its weights be 0.",
            ),
            (
                without_maximum,
                "exp overflows above 709 and is 0 below -745: subtract the row's maximum first.",
            ),
            *(
                (
                    wrong,
                    "The maximum must be that of the visible scores: a hidden one can be far "
                    "above them all.",
                )
                for wrong in (maximum_of_hidden, lambda *a: np.nan_to_num(maximum_of_hidden(*a)))
            ),
            (
                lambda s, visible: visible * filled(0)(s, s == s),
                "The visible weights no longer sum to 1: hide before you normalise.",
            ),
            *(
                (
                    filled(number),
                    "A large negative number is not minus infinity: scores can be lower still, "
                    "and the hidden keys win.",
                )
                for number in (-1e4, -1e9)
            ),
            (
                lambda s, visible: filled(-np.inf)(s.T, visible.T).T,
                "The sum runs over the keys of one query, a row: axis 1.",
            ),
        ],
    )
