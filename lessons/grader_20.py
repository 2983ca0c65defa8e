"""Grades the exercises of lesson 20: a kernel reads and sees."""

import numpy as np

from minattn.lessons.grading import Exercise, exercise


@exercise
def check_mean_backward():
    """d (B, C), N -> (B N, C)"""
    rng = np.random.default_rng(0)

    def right(d, N):
        return np.repeat(d, N, axis=0) / N

    return Exercise(
        right,
        [(rng.standard_normal((B, C)), N) for B, C, N in ((3, 5, 7), (2, 3, 1), (1, 2, 5))],
        returns=("the gradient of the tokens",),
        hints=[
            (lambda d, N: right(d, N) * N, "A mean divides by N: so does its backward."),
            (lambda d, N: np.tile(d, (N, 1)) / N, "The tokens of a picture stand together."),
            (lambda d, N: np.tile(d, (N, 1)), "The tokens of a picture stand together."),
            (lambda d, N: d / N, "Every one of the N tokens gets a gradient."),
        ],
    )


@exercise
def check_share_saved():
    """C, H -> share"""
    return Exercise(
        lambda C, H: (3 * C * C - H) / (12 * C * C),
        [(64, 4), (5, 1), (256, 8), (8, 8)],
        returns=("the share",),
        tolerance=1e-7,
        hints=[
            (
                lambda C, H: (3 * C * C - H) / (4 * C * C),
                "That is the share of attention alone; the layer has an MLP too.",
            ),
            (lambda C, H: 0.25, "The kernel adds one number per head."),
            (lambda C, H: (3 * C * C + H) / (12 * C * C), "They are added: less is saved."),
            (lambda C, H: (4 * C * C - H) / (12 * C * C), "The output matrix stays."),
            (lambda C, H: 1 - (3 * C * C - H) / (12 * C * C), "That is the share that stays."),
            (lambda C, H: (3 * C * C - H) / (9 * C * C + H), "The share of softmax's numbers."),
        ],
    )
