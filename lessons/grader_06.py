"""Grades the exercises of lesson 06: affine-scaled attention."""

import numpy as np

from minattn.attention import affine, softmax
from minattn.lessons.grading import Exercise, exercise
from minattn.validate.cases import cases


@exercise
def check_row_sums():
    """alpha (T,), alpha_ma, "total" or "visible" -> (T,)"""
    rng = np.random.default_rng(0)
    inputs = [
        (rng.random(T), float(rng.random()), length)
        for T in (7, 1, 11)
        for length in ("total", "visible")
    ]
    first = lambda n, alpha, alpha_ma, length: (
        alpha + n * (alpha_ma - alpha) / (len(alpha) if length == "total" else n)
    )
    seen = lambda alpha: np.arange(1, len(alpha) + 1)
    return Exercise(
        lambda alpha, alpha_ma, length: first(seen(alpha), alpha, alpha_ma, length),
        inputs,
        hints=[
            (
                lambda a, ma, length: np.full(len(a), ma),
                "Right for visible; with total, beta divides by T but reaches i + 1 keys.",
            ),
            (
                lambda a, ma, length: a + (ma - a) / (len(a) if length == "total" else seen(a)),
                "beta is added to each visible key, not once.",
            ),
            (
                lambda a, ma, length: first(np.arange(len(a)) + 1e-300, a, ma, length),
                "Query i sees i + 1 keys: itself too.",
            ),
        ],
    )


@exercise
def check_affine_from_kernel():
    """Pv, v (T, Dv), alpha (T,), alpha_ma, N (T,) -> out (T, Dv)"""

    def dense(spread):
        return lambda Pv, v, alpha, ma, N: (
            alpha[:, None] * Pv + ((ma - alpha) / N)[:, None] * spread(v)
        )

    return Exercise(
        dense(lambda v: np.tri(len(v)) @ v),
        [(Pv, v, alpha, ma, N) for Pv, v, alpha, ma, N, _, _ in _heads()],
        hints=[
            (
                dense(lambda v: v.sum(axis=0)),
                "That spreads beta over later keys too: a sum over all values looks ahead.",
            ),
            (dense(lambda v: v), "beta reaches every visible key, not only the query's own."),
            (
                lambda Pv, v, alpha, ma, N: (
                    alpha[:, None] * Pv + ((alpha - ma) / N)[:, None] * np.cumsum(v, axis=0)
                ),
                "The sign of beta is wrong.",
            ),
            (
                lambda Pv, v, alpha, ma, N: (
                    alpha[:, None] * Pv + (ma - alpha)[:, None] * np.cumsum(v, axis=0)
                ),
                "beta is divided by N.",
            ),
            (
                lambda Pv, v, alpha, ma, N: alpha[:, None] * Pv + ((ma - alpha) / N)[:, None],
                "beta multiplies the values that the query sees, summed.",
            ),
            (lambda Pv, v, alpha, ma, N: alpha[:, None] * Pv, "The term with beta is missing."),
        ],
    )


@exercise
def check_alpha_gradient():
    """dout, Pv, v (T, Dv), alpha_logits (T,), N (T,) -> dalpha_logits (T,)"""

    def gradient(dout, Pv, v, logits, N, spread=np.cumsum, inside=lambda u: u < 5):
        return (dout * (Pv - spread(v, axis=0) / N[:, None])).sum(axis=1) * np.where(
            inside(np.abs(logits)), 0.1, 0
        )

    return Exercise(
        gradient,
        [(dout, Pv, v, logits, N) for Pv, v, _, _, N, dout, logits in _heads()],
        returns=("dalpha_logits",),
        hints=[
            (
                lambda dout, Pv, v, logits, N: (
                    dout * (Pv - np.cumsum(v, axis=0) / N[:, None])
                ).sum(axis=1),
                "The slope of phi is missing.",
            ),
            (
                lambda *given: gradient(*given, inside=lambda u: u < np.inf),
                "Outside (-5, 5) phi is flat: nothing arrives there.",
            ),
            (
                lambda *given: gradient(*given, inside=lambda u: u <= 5),
                "At -5 and 5 themselves the slope counts as 0, by convention.",
            ),
            (
                lambda dout, Pv, v, logits, N: gradient(dout, Pv, 0 * v, logits, N),
                "alpha also stands in beta: that term is missing.",
            ),
            (
                lambda dout, Pv, v, logits, N: gradient(dout, Pv, v, logits, 0 * N + 1),
                "beta is divided by N, and so is its part of the gradient.",
            ),
            (
                lambda dout, Pv, v, logits, N: gradient(dout, Pv, -v, logits, N),
                "alpha stands in beta with a minus sign.",
            ),
            (
                lambda *given: 10 * gradient(*given),
                "The slope of phi is 1/10 where it is not flat.",
            ),
            (
                lambda *given: gradient(*given, spread=np.sum),
                "A sum over all values includes keys that the query does not see.",
            ),
        ],
    )


def _heads():
    """Single heads of the validation kit's causal cases: Pv, v, alpha, alpha_ma, N (T,), dout,
    alpha_logits.
    """
    for case in cases("affine", only=["causal", "alpha_ma", "alpha_at_kinks"]):
        if "sigmoid" in case.options.values():
            continue
        q, k, v, logits, alpha_ma = (
            case.arrays[name] for name in ("q", "k", "v", "alpha_logits", "alpha_ma")
        )
        Pv = softmax.forward(q, k, v, causal=True)[0]
        alpha, _ = affine.phi_forward(logits, "linear_clip")
        T = v.shape[2]
        length = case.options.get("length", "total")
        length = T if length == "total" else length
        N = np.arange(1.0, T + 1) if length == "visible" else np.full(T, float(length))
        for h in range(v.shape[1]):
            Pv_h, v_h, alpha_h, dout, logits_h = (
                x[0, h].copy() for x in (Pv, v, alpha, case.cotangent, logits)
            )
            yield Pv_h, v_h, alpha_h, float(alpha_ma[h]), N, dout, logits_h
