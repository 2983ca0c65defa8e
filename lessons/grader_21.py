"""Grades the exercises of lesson 21: who is believed?"""

import numpy as np

from minattn.experiments.position_bias import recall_task
from minattn.lessons.grading import Exercise, exercise


@exercise
def check_largest_gap():
    """items, copies, labels -> the gap of a network that believes the earlier item."""

    def reference(items, copies, labels):
        return recall_task.largest_gap(recall_task.Task(items=items, burst=copies, labels=labels))

    inputs = [(8, 4, 32), (6, 2, 5), (9, 3, 7), (5, 1, 3), (12, 3, 2)]
    return Exercise(
        reference,
        inputs,
        hints=[
            (
                lambda n, c, labels: (1 - c / n) * (1 - 1 / labels),
                "b is not a: of the other items, copies - 1 are of a's class.",
            ),
            (lambda n, c, labels: (n - c) / (n - 1), "Two classes may have the same label."),
            (
                lambda n, c, labels: (c - 1) / (n - 1) + (n - c) / (n - 1) / labels,
                "That is the accuracy on [b, a], not the gap.",
            ),
            (
                lambda n, c, labels: 1 - 1 / labels,
                "Both items may be of one class; then both labels are right.",
            ),
        ],
    )


@exercise
def check_gap_and_error():
    """right_ab, right_ba (n,) of bool -> gap, standard error"""
    rng = np.random.default_rng(0)
    inputs = []
    for n, first, second in ((13, 0.7, 0.4), (101, 0.6, 0.5), (7, 0.2, 0.9)):
        hard = rng.random(n) < 0.3                     # sequences that no order gets right
        inputs.append(tuple((rng.random(n) < p) & ~hard for p in (first, second)))

    def of(ab, ba, ddof=1, root=True):
        d = ab.astype(float) - ba
        return float(d.mean()), float(d.std(ddof=ddof) / (np.sqrt(len(d)) if root else 1))

    def unpaired(ab, ba, ddof=1):
        error = np.sqrt((ab.var(ddof=ddof) + ba.var(ddof=ddof)) / len(ab))
        return of(ab, ba)[0], float(error)

    paired = "The two answers are about the same sequence: take differences first."

    return Exercise(
        of,
        inputs,
        returns=("the gap", "the standard error"),
        hints=[
            (lambda ab, ba: of(ba, ab), "The sign: accuracy on [a, b] less that on [b, a]."),
            (lambda ab, ba: of(ab, ba, root=False), "Divide by sqrt(n)."),
            (lambda ab, ba: of(ab, ba, ddof=0), "The squares are divided by n - 1: ddof=1."),
            (lambda ab, ba: of(ab, ba, ddof=0, root=False), "Divide by sqrt(n)."),
            (
                lambda ab, ba: (of(ab, ba)[0], of(ab, ba)[1] / np.sqrt(len(ab))),
                "Divide by sqrt(n), not by n.",
            ),
            (unpaired, paired),
            (lambda ab, ba: unpaired(ab, ba, ddof=0), paired),
            (
                lambda ab, ba: of(ab ^ ba, 0 * ba),
                "Those are the sequences whose two answers differ, without a sign.",
            ),
        ],
    )
