"""Grades the exercises of lesson 00: what attention does."""

import numpy as np

from minattn import masks
from minattn.attention import softmax
from minattn.lessons.grading import Exercise, exercise


@exercise
def check_mean_of_the_past():
    """v (T, Dv) -> (T, Dv): row i is the mean of v_0 ... v_i."""
    rng = np.random.default_rng(0)
    return Exercise(
        lambda v: np.stack([v[: i + 1].mean(axis=0) for i in range(len(v))]),
        [(rng.standard_normal(shape),) for shape in ((7, 5), (1, 3), (13, 2))],
        hints=[
            (
                lambda v: np.broadcast_to(v.mean(axis=0), v.shape),
                "That is the mean of everything, the future too.",
            ),
            (
                lambda v: np.cumsum(v, axis=0),
                "That is the sum; a mean divides by how many there are.",
            ),
            (
                lambda v: np.cumsum(v, axis=0) / len(v),
                "Row i is a mean of i + 1 values: divide by that, not by T.",
            ),
        ],
    )


@exercise
def check_window_mask():
    """T, W -> (T, T) of bool."""
    return Exercise(
        lambda T, W: masks.visible(T, T, causal=True, window=W),
        [(7, 3), (5, 1), (5, 5), (4, 11)],
        hints=[
            (
                lambda T, W: masks.visible(T, T, window=W + 1),
                "That sees one key too many: the window counts the token itself.",
            ),
            (
                lambda T, W: masks.visible(T, T, window=W).T,
                "Rows are queries and columns are keys: this is transposed.",
            ),
            (
                lambda T, W: np.abs(np.subtract.outer(np.arange(T), np.arange(T))) < W,
                "That sees the future too: a window looks back only.",
            ),
            (
                lambda T, W: ~masks.visible(T, T, causal=True, window=W),
                "That is the opposite: True means visible.",
            ),
        ],
    )


@exercise
def check_is_causal():
    """(f, q, k, v) -> bool, judged by attentions that are causal and others that are not."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 7, 5))

    def attend(**options):
        function = lambda q, k, v: softmax.forward(
            q[None, None], k[None, None], v[None, None], **options
        )[0][0, 0]
        function.__name__ = "attention(" + ", ".join(f"{n}={x}" for n, x in options.items()) + ")"
        return function

    def last_key_for_all(q, k, v):
        return attend(causal=True)(q, k * (1 + 0.1 * k[-1]), v)

    def last_value_for_the_first(q, k, v):
        out = attend(causal=True)(q, k, v)
        out[0] += 0.1 * v[-1]
        return out

    functions = {
        attend(causal=True): True,
        attend(): False,
        attend(window=3): True,
        attend(prefix=4, causal=True): False,
        last_key_for_all: False,
        last_value_for_the_first: False,
    }
    return Exercise(
        lambda f, q, k, v: functions[f],
        [(f, q, k, v) for f in functions],
        hints=[
            (lambda f, q, k, v: True, "It says True of a function that looks ahead."),
            (
                lambda f, q, k, v: False,
                "It says False of a causal function: compare only the rows before the change, "
                "and change a copy.",
            ),
        ],
    )
