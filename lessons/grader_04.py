"""Grades the exercises of lesson 04: Morlet positions."""

import numpy as np

from minattn.lessons.grading import Exercise, exercise
from minattn.positions import morlet


@exercise
def check_effective():
    """log_omega (n,), log_sigma (n,) -> omega (n,), sigma (n,),
    product (n,) before the projection.
    """
    rng = np.random.default_rng(0)
    # pairs that are free, projected, capped, floored, both capped and projected; none near an edge
    given = [
        (
            rng.uniform(-0.1, 0.1, 6) + [0.3, -0.5, 1.5, 0.2, 1.5, 2.0],
            rng.uniform(-0.1, 0.1, 6) + [2.1, 0.9, 1.2, -8.0, 0.1, -9.0],
        ),
        (rng.uniform(-1, 2, 13), rng.uniform(-1, 3, 13)),
    ]

    def parts(log_omega, log_sigma):
        return np.minimum(np.exp(log_omega), morlet.MAX_OMEGA), np.maximum(
            np.exp(log_sigma), morlet.MIN_SIGMA
        )

    def cap_last(log_omega, log_sigma):
        omega, sigma = np.exp(log_omega), parts(log_omega, log_sigma)[1]
        return np.minimum(np.maximum(omega, 5 / sigma), morlet.MAX_OMEGA), sigma, omega * sigma

    def cap_twice(log_omega, log_sigma):
        omega, sigma, product = morlet.effective(log_omega, log_sigma)
        return np.minimum(omega, morlet.MAX_OMEGA), sigma, product

    def of_logarithms(log_omega, log_sigma):
        omega = np.minimum(log_omega, morlet.MAX_OMEGA)
        sigma = np.maximum(log_sigma, morlet.MIN_SIGMA)
        return np.where(omega * sigma < 5, 5 / sigma, omega), sigma, omega * sigma

    def no_cap(log_omega, log_sigma):
        omega, sigma = np.exp(log_omega), parts(log_omega, log_sigma)[1]
        return np.maximum(omega, 5 / sigma), sigma, omega * sigma

    def no_floor(log_omega, log_sigma):
        omega, sigma = parts(log_omega, log_sigma)[0], np.exp(log_sigma)
        return np.maximum(omega, 5 / sigma), sigma, omega * sigma

    def widths_moved(log_omega, log_sigma):
        omega, sigma = parts(log_omega, log_sigma)
        return omega, np.maximum(sigma, 5 / omega), omega * sigma

    def product_after(log_omega, log_sigma):
        omega, sigma, _ = morlet.effective(log_omega, log_sigma)
        return omega, sigma, omega * sigma

    def raw_product(log_omega, log_sigma):
        omega, sigma, _ = morlet.effective(log_omega, log_sigma)
        return omega, sigma, np.exp(log_omega + log_sigma)

    return Exercise(
        morlet.effective,
        given,
        returns=("omega", "sigma", "the product"),
        hints=[
            (cap_last, "The cap comes before the projection: 5 / sigma may lie above it."),
            (cap_twice, "The cap comes first only: where it projects, 5 / sigma stays as it is."),
            (of_logarithms, "The parameters are logarithms: take exp first."),
            (no_cap, "The cap on omega is missing."),
            (no_floor, "The floor under sigma is missing."),
            (widths_moved, "The projection changes omega and leaves sigma."),
            (
                product_after,
                "That is the product after the projection; give the one before it.",
            ),
            (
                raw_product,
                "The product is that of the capped frequency and the floored width.",
            ),
            (lambda a, b: morlet.effective(a, b, admissible=False), "The projection is missing."),
        ],
    )


@exercise
def check_horizon():
    """sigma (n,), height -> (n,): where the bell has fallen to height."""
    rng = np.random.default_rng(0)
    return Exercise(
        lambda sigma, height: sigma * np.sqrt(-2 * np.log(height)),
        [(rng.uniform(1, 5, 7), 0.02), (rng.uniform(10, 90, 5), 0.5), (np.array([3.0]), 1e-6)],
        hints=[
            (
                lambda sigma, height: sigma * np.sqrt(-np.log(height)),
                "The 2 of the bell's exponent is missing.",
            ),
            (lambda sigma, height: -2 * sigma**2 * np.log(height), "That is the distance squared."),
            (
                lambda sigma, height: np.sqrt(-2 * np.log(height)) / sigma,
                "A wider bell reaches further.",
            ),
            *(
                (
                    lambda sigma, height, f=f: f(sigma * np.sqrt(-2 * np.log(height))),
                    "Give the exact place, not rounded.",
                )
                for f in (np.floor, np.ceil)
            ),
            (
                lambda sigma, height: sigma * np.sqrt(-2 * np.log10(height)),
                "The bell is a power of e: take the natural logarithm.",
            ),
        ],
    )


@exercise
def check_kernel():
    """T, omega (n,), sigma (n,) -> (T, T) of dot products."""
    rng = np.random.default_rng(0)

    def made_of(wave, bell):
        def function(T, omega, sigma):
            p, other = np.arange(T)[:, None, None], np.arange(T)[:, None]
            return (wave(omega, p, other) * np.exp(-bell(p, other) / sigma**2)).sum(axis=2)

        return function

    difference = lambda omega, p, other: np.cos(omega * (p - other))
    both = lambda p, other: (p**2 + other**2) / 2
    return Exercise(
        made_of(difference, both),
        [(T, rng.uniform(0.1, 3, n), rng.uniform(1, T, n)) for T, n in ((7, 5), (13, 3), (2, 1))],
        returns=("the kernel",),
        hints=[
            (
                made_of(difference, lambda p, other: (p - other) ** 2 / 4),
                "The factor anchored at the origin is missing.",
            ),
            (
                made_of(difference, lambda p, other: (p - other) ** 2 / 2),
                "The bells depend on both positions, not on their distance.",
            ),
            (
                made_of(difference, lambda p, other: p**2 + other**2),
                "A 2 is missing: each bell is exp(-p^2 / (2 sigma^2)).",
            ),
            (
                lambda T, omega, sigma: made_of(difference, both)(T, omega, sigma) / len(omega),
                "A dot product is a sum over the pairs, not their mean.",
            ),
            (made_of(difference, lambda p, other: p**2 / 2), "Only one of the two bells is there."),
            (
                made_of(difference, lambda p, other: 0 * (p + other)),
                "The bells are missing: that is the limit of wide ones.",
            ),
            (
                made_of(lambda omega, p, other: np.cos(omega * (p + other)), both),
                "cos a cos b + sin a sin b = cos(a - b): a minus.",
            ),
            (
                made_of(lambda omega, p, other: np.cos(omega * p) * np.cos(omega * other), both),
                "The sine channels are missing.",
            ),
        ],
    )


@exercise
def check_gradient_log_sigma():
    """dpe (T, 2n), pe (T, 2n), sigma (n,) -> (n,)."""
    rng = np.random.default_rng(0)
    given = []
    for T, n in ((7, 5), (13, 3), (2, 1)):
        sigma, omega = rng.uniform(3, 11, n), rng.uniform(0.2, 2.5, n)
        pe, _ = morlet.forward(T, np.log(omega), np.log(sigma), admissible=False)
        given.append((rng.standard_normal((T, 2 * n)), pe, sigma))

    def per_place(dpe, pe):
        return dpe[:, 0::2] * pe[:, 0::2] + dpe[:, 1::2] * pe[:, 1::2]  # (T, n)

    def reference(dpe, pe, sigma):
        return ((np.arange(len(pe))[:, None] / sigma) ** 2 * per_place(dpe, pe)).sum(axis=0)

    def halves(dpe, pe, sigma):
        n = len(sigma)
        both = dpe[:, :n] * pe[:, :n] + dpe[:, n:] * pe[:, n:]
        return ((np.arange(len(pe))[:, None] / sigma) ** 2 * both).sum(axis=0)

    def rotated(dpe, pe, sigma):
        both = dpe[:, 1::2] * pe[:, 0::2] - dpe[:, 0::2] * pe[:, 1::2]
        return ((np.arange(len(pe))[:, None] / sigma) ** 2 * both).sum(axis=0)

    return Exercise(
        reference,
        given,
        returns=("d log_sigma",),
        hints=[
            (lambda *a: -reference(*a), "The sign: a wider bell is higher."),
            (
                lambda *a: reference(*a) / a[2],
                "That is the gradient for sigma; for log sigma it is multiplied by sigma.",
            ),
            (
                lambda *a: reference(*a) / 2,
                "d(-p^2 / (2 sigma^2)) / d log sigma = p^2 / sigma^2: the 2 goes.",
            ),
            (lambda *a: reference(*a) * a[2] ** 2, "The 1 / sigma^2 is missing."),
            (lambda *a: per_place(*a[:2]).sum(axis=0), "The factor p^2 / sigma^2 is missing."),
            (
                rotated,
                "That pairing, cosine with sine, is for the angle; the bell stretches each "
                "channel along itself.",
            ),
            (
                halves,
                "Cosines are the even channels and sines the odd ones, not the first and second "
                "half.",
            ),
        ],
    )
