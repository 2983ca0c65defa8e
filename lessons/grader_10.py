"""Grades the exercises of lesson 10: is a faster implementation right?"""

import numpy as np

from minattn import masks
from minattn.attention import softmax
from minattn.lessons.grading import Exercise, exercise
from minattn.validate.cases import cases
from minattn.validate.mutants import MUTANTS, none

FAMILIES = (
    "prime_sizes",
    "causal",
    "noncausal",
    "window",
    "prefix",
    "tq_ne_tk",
    "long/T=97,causal",
)
WRONG = (
    "missing_scale",
    "causal_sees_next",
    "always_aligned_at_start",
    "nan_in_empty_rows",
    "maximum_from_minus_1e4",
    "old_maximum_kept",
    "values_of_first_sample",
    "rowsum_of_out",
    "mask_ignored_backward",
    "dk_of_last_block",
)


@exercise
def check_merge():
    """(m, total, acc) of two sets of keys -> of both together;
    a set that is not seen at all has -inf, 0, 0.
    """
    rng = np.random.default_rng(0)

    def part(s, v):
        m = s.max(axis=1, keepdims=True, initial=-np.inf)
        e = np.where(s == -np.inf, 0, np.exp(s - np.where(m == -np.inf, 0, m)))
        return m, e.sum(axis=1, keepdims=True), e @ v

    inputs, expected = [], {}
    for R, first, second, shift in (
        (5, 7, 3, 0.0),
        (5, 3, 7, 40.0),
        (7, 2, 2, -40.0),
        (3, 5, 5, 1e4),
        (3, 5, 5, -1e4),
    ):
        s, v = rng.standard_normal((R, first + second)), rng.standard_normal((first + second, 11))
        s[:, first:] += shift
        for hidden in ((), (slice(None, first),), (slice(first, None),), (slice(None),)):
            row = s.copy()
            for keys in hidden:
                row[1, keys] = -np.inf
            given = (*part(row[:, :first], v[:first]), *part(row[:, first:], v[first:]))
            inputs.append(given)
            expected[b"".join(x.tobytes() for x in given)] = part(row, v)

    def variant(wrong):
        def f(m1, total1, acc1, m2, total2, acc2):
            m = np.maximum(m1, m2)
            safe = m if wrong == "empty" else np.where(m == -np.inf, 0, m)
            a, b = np.exp(m1 - safe), np.exp(m2 - safe)
            if wrong == "none":
                a = b = 1
            if wrong == "swapped":
                a, b = b, a
            acc = acc1 + acc2 if wrong == "acc" else acc1 * a + acc2 * b
            total = total1 * a + total2 * b
            if wrong == "divided":
                acc = acc / np.where(total == 0, 1, total)
            if wrong == "upside down":
                total, acc = total1 / a + total2 / b, acc1 / a + acc2 / b
            return m, total, acc

        return f

    return Exercise(
        lambda *given: expected[b"".join(x.tobytes() for x in given)],
        inputs,
        returns=("m", "total", "acc"),
        hints=[
            (
                variant("none"),
                "Each part was made with its own maximum: bring both to the common one first.",
            ),
            (variant("acc"), "total is brought to the common maximum, and acc is not."),
            (variant("divided"), "acc stays a sum: it is divided by total at the very end only."),
            (variant("upside down"), "The factor of a part is e^(its m - the larger m)."),
            (variant("swapped"), "Each part takes the other's factor."),
            (variant("empty"), "Where neither part has seen a key, -inf - -inf is nan."),
        ],
    )


@exercise
def check_tile_backward():
    """dout, q, k, v, lse, delta, visible, scale of one tile -> its part of dq, dk, dv;
    tiles of the kit's cases.
    """
    inputs, expected = [], {}
    for case in cases("softmax", only=FAMILIES):
        out, cache, P = softmax.forward(**case.arrays, **case.options, return_weights=True)
        q, k, v = case.arrays.values()
        seen = np.broadcast_to(masks.visible(q.shape[2], k.shape[2], **case.options), P.shape)
        rows, keys, b, h = slice(1, 6), slice(2, 6), q.shape[0] - 1, q.shape[1] - 1
        if seen[b, h, rows, keys].size == 0:
            continue
        q, dout, out = (x[b, h, rows] for x in (q, case.cotangent, out))
        k, v = k[b, h, keys], v[b, h, keys]
        lse, P, scale = cache.lse[b, h, rows, None], P[b, h, rows, keys], cache.scale
        delta = (dout * out).sum(axis=1, keepdims=True)
        inputs.append((dout, q, k, v, lse, delta, seen[b, h, rows, keys], scale))
        ds = np.zeros(P.shape)
        for i, j in np.ndindex(P.shape):
            ds[i, j] = scale * P[i, j] * (dout[i] @ v[j] - delta[i, 0])
        expected[dout.tobytes(), q.tobytes()] = ds @ k, ds.T @ q, P.T @ dout

    def variant(wrong):
        def f(dout, q, k, v, lse, delta, visible, scale):
            if wrong == "mask":
                visible = True
            if wrong != "empty":
                lse = np.where(lse == -np.inf, 0, lse)
            P = np.exp(np.where(visible, scale * (q @ k.T), -np.inf) - lse)
            if wrong == "tile":
                P = P / P.sum(axis=1, keepdims=True)
            dP = dout @ v.T
            if wrong == "delta":
                delta = 0
            if wrong == "own":
                delta = (P * dP).sum(axis=1, keepdims=True)
            ds = P * (dP - delta)
            if wrong != "scale":
                ds = scale * ds
            return ds @ k, ds.T @ q, P.T @ dout

        return f

    return Exercise(
        lambda dout, q, *rest: expected[dout.tobytes(), q.tobytes()],
        inputs,
        returns=("dq", "dk", "dv"),
        hints=[
            (
                variant("mask"),
                "The mask must be applied again: weights of hidden keys are 0 here too.",
            ),
            (variant("empty"), "A row that sees nothing has lse = -inf, and -inf - -inf is nan."),
            (
                variant("tile"),
                "The weights of a tile do not sum to 1: lse belongs to the whole row.",
            ),
            (variant("delta"), "delta, the mean that is subtracted from dP, is missing."),
            (
                variant("own"),
                "The mean over this tile is not the mean over the row: that is delta, and it is "
                "given.",
            ),
            (variant("scale"), "The scores were multiplied by scale: so are dq and dk."),
        ],
    )


@exercise
def check_is_wrong():
    """(forward, backward) -> bool,
    judged by two right implementations and ten that the kit keeps because they are wrong.
    """
    implementations = [
        ("minattn's own, right", softmax, False),
        ("a plain one, right", none("softmax").load(), False),
    ]
    for name in WRONG:
        mutant = MUTANTS[name]
        implementations.append((f"{mutant.name}: {mutant.wrong}", mutant.load(), True))

    def named(name, function):
        def f(*args, **options):
            return function(*args, **options)

        f.__name__ = name
        return f

    inputs, wrong = [], {}
    for name, module, is_wrong in implementations:
        forward, backward = named(name, module.forward), named("its backward", module.backward)
        inputs.append((forward, backward))
        wrong[forward] = is_wrong
    return Exercise(
        lambda forward, backward: wrong[forward],
        inputs,
        hints=[
            (lambda forward, backward: False, "This one gets past your test."),
            (lambda forward, backward: True, "A false alarm: nothing is wrong with it."),
        ],
    )
