"""Answers to the exercises of lesson 10, right and wrong, and what a wrong one is told."""

import numpy as np

from minattn.attention import softmax
from minattn.validate import check


def merged(m1, total1, acc1, m2, total2, acc2):
    m = np.maximum(m1, m2)
    safe = np.where(m == -np.inf, 0, m)
    a, b = np.exp(m1 - safe), np.exp(m2 - safe)
    return m, a * total1 + b * total2, a * acc1 + b * acc2


def divided(*given):
    m, total, acc = merged(*given)
    return m, total, np.divide(acc, total, out=0 * acc, where=total > 0)


def upside_down(m1, total1, acc1, m2, total2, acc2):
    m = np.maximum(m1, m2)
    with np.errstate(all="ignore"):
        a, b = np.exp(m - m1), np.exp(m - m2)
        return m, total1 * a + total2 * b, acc1 * a + acc2 * b


def merged_row_by_row(*given):
    rows = []
    for m1, t1, a1, m2, t2, a2 in zip(*given):
        if m1 < m2:
            m1, t1, a1, m2, t2, a2 = m2, t2, a2, m1, t1, a1
        factor = 0 if m2 == -np.inf else np.exp(m2 - m1)
        rows.append((m1, t1 + factor * t2, a1 + factor * a2))
    return [np.array(x) for x in zip(*rows)]


def tile(
    dout,
    q,
    k,
    v,
    lse,
    delta,
    visible,
    scale,
    *,
    hide=True,
    guard=True,
    mean="delta",
    rows=False,
    by=None,
):
    s = np.where(visible, scale * (q @ k.T), -np.inf) if hide else scale * (q @ k.T)
    P = np.exp(s - (np.where(lse == -np.inf, 0, lse) if guard else lse))
    P = P / P.sum(axis=1, keepdims=True) if rows else P
    dP = dout @ v.T
    ds = (
        (scale if by is None else by)
        * P
        * (dP - {"delta": delta, "none": 0, "own": (P * dP).sum(axis=1, keepdims=True)}[mean])
    )
    return ds @ k, ds.T @ q, P.T @ dout


def tile_by_loops(dout, q, k, v, lse, delta, visible, scale):
    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for i, j in np.argwhere(visible):
        P = np.exp(scale * q[i] @ k[j] - lse[i, 0])
        ds = P * (dout[i] @ v[j] - delta[i, 0]) * scale
        dq[i] += ds * k[j]
        dk[j] += ds * q[i]
        dv[j] += P * dout[i]
    return dq, dk, dv


def compared(lengths=((70, 70), (2, 5), (5, 2)), batch=2, factors=(1, 200), cotangent="random"):
    """A test by hand: the package's softmax as the truth, on a few inputs."""

    def f(forward, backward):
        rng = np.random.default_rng(0)
        for Tq, Tk in lengths:
            for factor in factors:
                q, k, v = (
                    rng.standard_normal((batch, 2, *shape)) for shape in ((Tq, 5), (Tk, 5), (Tk, 3))
                )
                q[..., 0], k[..., 0] = factor, -factor  # scores far below zero
                out, cache = forward(q, k, v, causal=True)
                truth, right = softmax.forward(q, k, v, causal=True)
                dout = (
                    rng.standard_normal(out.shape) if cotangent == "random" else np.ones(out.shape)
                )
                grads, expected = backward(dout, cache), softmax.backward(dout, right)
                pairs = [(out, truth), *((grads[n], expected[n]) for n in expected)]
                if not all(
                    np.abs(a - b).max() <= 1e-9 * np.abs(b).max() for a, b in pairs
                ):  # nan is wrong as well
                    return True
        return False

    return f


RIGHT = {
    "merge": [merged, merged_row_by_row],
    "tile_backward": [tile, tile_by_loops],
    "is_wrong": [
        compared(),
        lambda *pair: (
            not check("softmax", pair, quick=True, show=False, conventions="ours").ok
        ),
    ],
}
WRONG = {
    "merge": [
        (upside_down, "the larger m"),
        (divided, "very end"),
        (lambda m1, t1, a1, m2, t2, a2: (np.maximum(m1, m2), t1 + t2, a1 + a2), ""),
        (
            lambda m1, t1, a1, m2, t2, a2: (*merged(m1, t1, a1, m2, t2, a2)[:2], a1 + a2),
            "acc is not",
        ),
        (
            lambda m1, t1, a1, m2, t2, a2: (
                m1,
                t1 + np.exp(m2 - m1) * t2,
                a1 + np.exp(m2 - m1) * a2,
            ),
            "",
        ),
        (lambda m1, t1, a1, m2, t2, a2: merged(m2, t1, a1, m1, t2, a2), ""),
        (
            lambda m1, t1, a1, m2, t2, a2: (
                np.maximum(m1, m2),
                t1 * np.exp(m1 - np.maximum(m1, m2)) + t2 * np.exp(m2 - np.maximum(m1, m2)),
                a1 * np.exp(m1 - np.maximum(m1, m2)) + a2 * np.exp(m2 - np.maximum(m1, m2)),
            ),
            "nan",
        ),
        (lambda *given: merged(*(np.maximum(x, -1e4) for x in given)), ""),
    ],
    "tile_backward": [
        (lambda *given: tile(*given, hide=False), ""),
        (lambda *given: tile(*given, guard=False), ""),
        (lambda *given: tile(*given, rows=True), "do not sum to 1"),
        (lambda *given: tile(*given, mean="none"), ""),
        (lambda *given: tile(*given, mean="own"), ""),
        (lambda *given: tile(*given, by=1), ""),
        (lambda *given: tile(*given)[::-1], ""),
        (lambda *given: tuple(x.T for x in tile(*given)), ""),
        (lambda *given: tile(*given)[:2], ""),
        (lambda *given: tile(*given, by=given[-1] ** 2), ""),
    ],
    "is_wrong": [
        (lambda forward, backward: True, ""),
        (lambda forward, backward: False, "missing_scale"),
        (compared(lengths=((7, 7), (2, 5), (5, 2))), ""),
        (compared(cotangent="ones"), ""),
        (compared(factors=(1,)), ""),
        (compared(lengths=((70, 70),)), ""),
        (compared(batch=1), ""),
        (lambda *pair: not check("softmax", pair[0], quick=True, show=False).ok, ""),
        (
            lambda *pair: (
                not check("softmax", pair, cases=["causal/*", "prime_sizes/*"], show=False).ok
            ),
            "",
        ),
    ],
}
