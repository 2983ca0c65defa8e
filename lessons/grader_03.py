"""Grades the exercises of lesson 03: positions."""

import numpy as np

from minattn.attention import softmax
from minattn.lessons.grading import Exercise, exercise
from minattn.positions import decay, rotary, sinusoidal
from minattn.validate.cases import cases


@exercise
def check_move():
    """pe (T, C) of unknown positions, r -> (T, C) of positions r later."""
    rng = np.random.default_rng(0)

    def where(pe):  # which positions these are, found again by the slowest clock
        slow = pe.shape[1] // 2 - 1
        omega = 10000.0 ** (-2 * slow / pe.shape[1])
        return np.rint(np.arctan2(pe[:, 2 * slow], pe[:, 2 * slow + 1]) / omega).astype(int)

    def reference(pe, r, back=1):
        return np.stack(
            [sinusoidal.forward(1, pe.shape[1], start=int(p) + back * r)[0][0] for p in where(pe)]
        )

    def same_angle(pe, r, power=0.0, signs=(1, -1)):
        angle = r * 10000.0 ** (-power * np.arange(pe.shape[1] // 2) / pe.shape[1])
        sin, cos = pe[:, 0::2], pe[:, 1::2]
        moved = [
            sin * np.cos(angle) + signs[0] * cos * np.sin(angle),
            cos * np.cos(angle) + signs[1] * sin * np.sin(angle),
        ]
        return np.stack(moved, axis=2).reshape(pe.shape)

    def by_halves(pe, r):
        order = np.arange(pe.shape[1]).reshape(2, -1).T.reshape(-1)
        moved = np.empty_like(pe)
        moved[:, order] = same_angle(pe[:, order], r, power=2.0)
        return moved

    inputs = [
        (sinusoidal.forward(T, C, start=start)[0][rng.permutation(T)], r)
        for T, C, start, r in ((7, 10, 3, 5), (5, 22, 17, 1), (1, 6, 11, 13), (11, 14, 29, -4))
    ]
    return Exercise(
        reference,
        inputs,
        returns=("pe",),
        hints=[
            (
                lambda pe, r: reference(pe, r, back=-1),
                "That moves back: look at the signs in sin(a + b) and cos(a + b).",
            ),
            *(
                (
                    lambda pe, r, signs=signs: same_angle(pe, r, 2.0, signs),
                    "A sign: sin(a + b) has a plus between its two terms, cos(a + b) a minus.",
                )
                for signs in ((1, 1), (-1, -1))
            ),
            (by_halves, "Sine and cosine alternate: clock k has the channels 2k and 2k + 1."),
            (same_angle, "All clocks moved by the same angle; clock k turns by r base^(-2k/C)."),
            (
                lambda pe, r: same_angle(pe, r, power=1.0),
                "The speeds are base^(-2k/C): a factor 2 is missing in the exponent.",
            ),
            (lambda pe, r: np.roll(pe, -r, axis=0), "That moves rows about; they are in no order."),
        ],
    )


@exercise
def check_rope_half_backward():
    """dy (..., T, D) [, start] -> dx (..., T, D)."""
    rng = np.random.default_rng(0)
    inputs = [
        (rng.standard_normal(shape), *start)
        for shape, start in (
            ((7, 10), ()),
            ((2, 3, 5, 22), (13,)),
            ((11, 2), (1,)),
            ((3, 1, 6), (29,)),
        )
    ]

    def reference(dy, start=0, pairs="half"):
        return rotary.backward(dy, rotary.forward(np.zeros_like(dy), start=start, pairs=pairs)[1])[
            "x"
        ]

    return Exercise(
        reference,
        inputs,
        returns=("dx",),
        hints=[
            (
                lambda dy, start=0: rotary.forward(dy, start=start)[0],
                "That is the forward: the gradient rotates back.",
            ),
            (
                lambda dy, start=0: reference(dy, start, "interleaved"),
                "Neighbours were paired, not k and k + D/2.",
            ),
            (
                lambda dy, start=0: rotary.forward(dy, start=start, pairs="interleaved")[0],
                "Neighbours were paired, and rotated forward.",
            ),
            (lambda dy, start=0: reference(dy, 0), "The positions begin at `start`."),
            (
                lambda dy, start=0: reference(dy, start + 1),
                "Positions count from `start`, not from start + 1.",
            ),
        ],
    )


@exercise
def check_slope_gradient():
    """P (B, H, T, T), v, do (B, H, T, D) -> dm (H,)."""
    inputs = []
    for case in cases("softmax", only=["causal", "window"]):
        a = case.arrays
        T = a["q"].shape[2]
        if a["k"].shape[2] == T:
            bias = decay.forward(T, T, np.linspace(0.1, 0.9, a["q"].shape[1]))[0]
            P = softmax.forward(**a, bias=bias, causal=True, return_weights=True)[-1]
            inputs.append((P, a["v"], case.cotangent))

    def reference(P, v, do, how="right"):
        T = P.shape[2]
        dP = do @ v.swapaxes(2, 3)
        row_sum = np.sum(P * dP, axis=3, keepdims=True)
        ds = P * (dP - row_sum)
        if how == "no weights":
            ds = dP
        if how == "no row sum":
            ds = P * dP
        dm = -np.einsum("bhij,ij->bh", ds, np.arange(T)[:, None] - np.arange(T))
        return dm.mean(axis=0) if how == "mean" else dm.sum(axis=0)

    return Exercise(
        reference,
        inputs[:4],
        returns=("dm",),
        hints=[
            (lambda P, v, do: -reference(P, v, do), "The sign: a slope is subtracted."),
            (
                lambda P, v, do: reference(P, v, do, "no row sum"),
                "The weights of a row sum to 1: the row sum is missing.",
            ),
            (
                lambda P, v, do: reference(P, v, do, "no weights"),
                "That uses dP; the bias is added before the softmax: ds.",
            ),
            (
                lambda P, v, do: reference(P, v, do, "mean"),
                "Every text adds to the gradient: sum over B, no mean.",
            ),
        ],
    )
