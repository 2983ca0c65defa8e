"""Grades the exercises of lesson 02: a character model from nothing."""

import numpy as np

from minattn import ops
from minattn.lessons.grading import Exercise, exercise


@exercise
def check_embedding_backward():
    """dy (N, C), ids (N,), V -> dW (V, C)."""
    rng = np.random.default_rng(0)
    inputs = [
        (rng.standard_normal((len(ids), C)), np.array(ids), V)
        for ids, C, V in (
            ([3, 1, 3, 3, 0, 1, 6], 5, 11),
            ([2], 3, 5),
            ([4, 4, 4], 2, 5),
            (rng.integers(7, size=31), 13, 7),
        )
    ]

    def last_one_wins(dy, ids, V):
        dW = np.zeros((V, dy.shape[1]))
        dW[ids] += dy
        return dW

    def reference(dy, ids, V):
        return ops.embedding_backward(dy, ops.EmbeddingCache(ids, (V, dy.shape[1])))["weight"]

    def mean(dy, ids, V):
        return reference(dy, ids, V) / np.maximum(np.bincount(ids, minlength=V), 1)[:, None]

    return Exercise(
        reference,
        inputs,
        returns=("dW",),
        hints=[
            (
                last_one_wins,
                "Where an id occurs twice only its last place counted: dW[ids] += dy reads all "
                "rows first.",
            ),
            (
                mean,
                "That is the mean over the places that used a row; each place adds to the loss, "
                "so their gradients add.",
            ),
            (
                lambda dy, ids, V: dy[ids % len(dy)],
                "That looks gradients up; each row of the table must collect them.",
            ),
        ],
    )


@exercise
def check_rms_norm_backward():
    """dy, x (N, C) [, eps] -> dx (N, C)."""
    rng = np.random.default_rng(0)
    inputs = [
        (*scale * rng.standard_normal((2, *shape)), *eps)
        for shape, scale, eps in (
            ((13, 3), 1, (0.5,)),
            ((5, 2), 1e-3, ()),
            ((7, 5), 1, ()),
            ((3, 11), 30, ()),
        )
    ]
    scaled = lambda x, eps: np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps)

    def reference(dy, x, eps=1e-6):
        return ops.rms_norm_backward(dy, ops.rms_norm_forward(x, eps)[1])["x"]

    def eps_outside(dy, x, eps=1e-6):
        s = scaled(x, 0) + eps
        return (dy - x / s * np.mean(dy * x / s, axis=1, keepdims=True)) / s

    def summed(dy, x, eps=1e-6):
        s = scaled(x, eps)
        return (dy - x / s * np.sum(dy * x / s, axis=1, keepdims=True)) / s

    def layer_norm(dy, x, eps=1e-6):
        return reference(dy, x, eps) - dy.mean(axis=1, keepdims=True) / scaled(x, eps)

    return Exercise(
        reference,
        inputs,
        returns=("dx",),
        hints=[
            (
                lambda dy, x, eps=1e-6: dy / scaled(x, eps),
                "That treats s as a constant; it depends on every channel of the row.",
            ),
            (summed, "The stretch is a mean over the channels, not a sum: s has 1/C in it."),
            (
                layer_norm,
                "The shift belongs to layer norm; without a subtracted mean nothing of it is "
                "subtracted.",
            ),
            (
                lambda dy, x, eps=1e-6: reference(dy, x, eps) * scaled(x, eps),
                "A factor 1/s is missing.",
            ),
            (eps_outside, "eps is added to the mean of the squares, inside the root."),
            (lambda dy, x, eps=1e-6: reference(dy, x, 0), "eps is missing under the root."),
            (
                lambda dy, x, eps=1e-6: reference(dy, x),
                "That is the usual eps; use the one that is given.",
            ),
        ],
    )
