"""Grades the exercises of lesson 22: a step for a whole matrix."""

import numpy as np

from minattn.lessons.grading import Exercise, exercise


@exercise
def check_steepest():
    """G (n, m) -> X (n, m) of spectral norm 1 with the largest sum of G * X"""
    rng = np.random.default_rng(0)

    def with_values(change):
        """U f(S) V^T"""

        def f(G):
            U, s, Vt = np.linalg.svd(G, full_matrices=False)
            return (U * change(s)) @ Vt

        return f

    return Exercise(
        with_values(np.ones_like),
        [(rng.standard_normal(shape),) for shape in ((5, 7), (7, 3), (4, 4))],
        returns=("X",),
        hints=[
            (
                with_values(lambda s: s / s[0]),
                "Its spectral norm is 1, but only one singular value is: the others may be 1 too.",
            ),
            (
                lambda G: G / np.linalg.norm(G),
                "That bounds the sum of the squares of X, not its largest singular value.",
            ),
            (np.sign, "That bounds each entry of X: it is the first step of Adam."),
            (
                lambda G: np.sign(G) / np.linalg.norm(np.sign(G), 2),
                "Its spectral norm is 1, but its directions are not those of G.",
            ),
            (with_values(lambda s: -np.ones_like(s)), "The sign: the sum of G * X is negative."),
            (with_values(lambda s: 1 / s), "All singular values become 1, none is inverted."),
            (with_values(lambda s: np.arange(len(s)) == 0), "The other directions may move too."),
        ],
    )


@exercise
def check_newton_schulz_step():
    """X (n, m), a, b, c -> (n, m), judged by the singular values."""
    rng = np.random.default_rng(0)
    jordan, other = (3.4445, -4.7750, 2.0315), (1.5, -0.5, 0.25)
    inputs = []
    for shape, coefficients in (((5, 7), jordan), ((7, 3), jordan), ((4, 4), other)):
        X = rng.standard_normal(shape)
        inputs.append((X / np.linalg.norm(X, 2), *coefficients))

    def right(X, a, b, c):
        U, s, Vt = np.linalg.svd(X, full_matrices=False)
        return (U * (a * s + b * s**3 + c * s**5)) @ Vt

    def wrong(formula):
        """formula(X, A, a, b, c) with A = X X^T"""
        return lambda X, a, b, c: formula(X, X @ X.T, a, b, c)

    return Exercise(right, inputs, hints=[
        (wrong(lambda X, A, a, b, c: a * X + b * X**3 + c * X**5),
         "The powers are products of matrices, not of the single entries."),
        (wrong(lambda X, A, a, b, c: a * X + (b * A + c * A**2) @ X),
         "A**2 squares the entries; the square of a matrix is A @ A."),
        (wrong(lambda X, A, a, b, c: a * X + b * A @ X),
         "The term with c is missing."),
        (wrong(lambda X, A, a, b, c: a * X + c * A @ A @ X),
         "The term with b is missing."),
        (wrong(lambda X, A, a, b, c: (b * A + c * A @ A) @ X),
         "The term a X is missing."),
        (wrong(lambda X, A, a, b, c: X + (b * A + c * A @ A) @ X),
         "The first term is a X, not X."),
        (wrong(lambda X, A, a, b, c: a * X + (b * A + c * A @ A @ A) @ X),
         "That is a seventh power: X X^T stands twice in the last term, not three times."),
        (wrong(lambda X, A, a, b, c: a * X + (b + c) * A @ X),
         "The term with c has X X^T twice: a fifth power of the singular values."),
        (wrong(lambda X, A, a, b, c: a * X - (b * A + c * A @ A) @ X),
         "All three terms are added: b is negative already."),
        (wrong(lambda X, A, a, b, c: a * X + (c * A + b * A @ A) @ X),
         "b and c are exchanged: b belongs to the third power."),
        (wrong(lambda X, A, a, b, c: a + (b * A + c * A @ A) @ X),
         "a multiplies X; here it is added to every entry."),
        (lambda X, a, b, c: right(X / np.linalg.norm(X), a, b, c),
         "X is taken as it is: the division by its norm comes before the first step."),
    ])
