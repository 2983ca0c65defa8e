"""Answers to the exercises of lesson 01, right and wrong, and what a wrong one is told."""

import numpy as np


def softmax_of(s, **options):
    return np.exp(s - s.max(axis=1, **options))


def by_slopes(dP, P):
    return np.einsum("ij,ijk->ik", dP, P[:, :, None] * (np.eye(P.shape[1]) - P[:, None]))


def by_loops(dout, q, k, v, P):
    dq, dk, dv, root = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape), q.shape[1] ** 0.5
    for i in range(len(q)):
        mean = dout[i] @ (P[i] @ v)
        for j in range(len(k)):
            dv[j] += P[i, j] * dout[i]
            ds = P[i, j] * (dout[i] @ v[j] - mean) / root
            dq[i] += ds * k[j]
            dk[j] += ds * q[i]
    return [dq, dk, dv]


def from_ds(
    ds_of,
    dq=lambda ds, q, k: ds @ k,
    dk=lambda ds, q, k: ds.T @ q,
    dv=lambda P, dout: P.T @ dout,
    scale=True,
):
    def f(dout, q, k, v, P):
        ds = ds_of(dout @ v.T, P, dout, v) / (np.sqrt(q.shape[1]) if scale else 1)
        return dq(ds, q, k), dk(ds, q, k), dv(P, dout)

    return f


def right_ds(dP, P, dout, v):
    return P * (dP - (P * dP).sum(axis=1, keepdims=True))


def one_row_at_a_time(s, visible):
    P = np.zeros_like(s)
    for p, row, see in zip(P, s, visible):
        if np.any(see):
            p[see] = np.exp(row[see] - np.logaddexp.reduce(row[see]))
    return P


def filled(fill):
    def f(s, visible):
        e = softmax_of(np.where(visible, s, fill), keepdims=True)
        return e / e.sum(axis=1, keepdims=True)

    return f


def guarded(s, visible):
    s = np.where(visible, s, -np.inf)
    m = np.maximum(s.max(axis=1, keepdims=True), np.finfo(s.dtype).min)
    e = np.exp(s - m)
    return e / np.maximum(e.sum(axis=1, keepdims=True), np.finfo(s.dtype).tiny)


RIGHT = {
    "softmax_backward": [
        lambda dP, P: P * (dP - (P * dP).sum(axis=1, keepdims=True)),
        by_slopes,
        lambda dP, P: P * dP - P * np.einsum("ij,ij->i", P, dP)[:, None],
    ],
    "attention_backward": [
        by_loops,
        from_ds(right_ds),
        from_ds(lambda dP, P, dout, v: P * (dP - (dout * (P @ v)).sum(axis=1, keepdims=True))),
    ],
    "weights": [one_row_at_a_time, guarded],
}
WRONG = {
    "softmax_backward": [
        (lambda dP, P: P * dP, "another score"),
        (lambda dP, P: P * (1 - P) * dP, ""),
        (lambda dP, P: P * (dP - dP.mean(axis=1, keepdims=True)), ""),
        (lambda dP, P: P * (dP - (P * dP).sum(axis=0)), ""),
        (lambda dP, P: P * (dP - (P * dP).sum()), ""),
        (lambda dP, P: dP - (P * dP).sum(axis=1, keepdims=True), "factor P"),
        (lambda dP, P: -P * (dP - (P * dP).sum(axis=1, keepdims=True)), ""),
        (lambda dP, P: np.zeros_like(P), ""),
        (lambda dP, P: by_slopes(dP, P).T, ""),
        (lambda dP, P: P * (dP - (P * dP).sum(axis=1, keepdims=True)) * P, ""),
    ],
    "attention_backward": [
        (from_ds(right_ds, scale=False), "divided by sqrt(D)"),
        (
            from_ds(
                right_ds,
                dq=lambda ds, q, k: ds @ k / np.sqrt(q.shape[1]),
                dk=lambda ds, q, k: ds.T @ q / np.sqrt(q.shape[1]),
            ),
            "not by D",
        ),
        (from_ds(right_ds, dk=lambda ds, q, k: ds.T @ q * np.sqrt(q.shape[1])), ""),
        (from_ds(right_ds, dq=lambda ds, q, k: ds @ k * np.sqrt(q.shape[1])), ""),
        (from_ds(lambda dP, P, dout, v: P * dP), ""),
        (from_ds(lambda dP, P, dout, v: P * (dP - (P @ v).sum(axis=1, keepdims=True))), ""),
        (from_ds(right_ds, dv=lambda P, dout: dout.T @ P), ""),
        (from_ds(right_ds, dv=lambda P, dout: (P if P.shape[0] == P.shape[1] else P.T) @ dout), ""),
        (from_ds(right_ds, dk=lambda ds, q, k: (ds if len(q) == len(k) else ds.T) @ q), ""),
        (from_ds(lambda dP, P, dout, v: dP), ""),
        (
            from_ds(
                right_ds,
                dv=lambda P, dout: np.repeat(P.sum(axis=0)[:, None], dout.shape[1], axis=1),
            ),
            "",
        ),
        (lambda dout, q, k, v, P: by_loops(dout, q, k, v, P)[:2], ""),
        (lambda dout, q, k, v, P: by_loops(dout, q, k, v, P)[::-1], ""),
    ],
    "weights": [
        (
            lambda s, visible: (
                np.exp(s) * visible / (np.exp(s) * visible).sum(axis=1, keepdims=True)
            ),
            "maximum",
        ),
        (
            lambda s, visible: (
                softmax_of(s, keepdims=True)
                * visible
                / (softmax_of(s, keepdims=True) * visible).sum(axis=1, keepdims=True)
            ),
            "",
        ),
        (filled(-np.inf), ""),
        (filled(-1e4), ""),
        (filled(-1e9), ""),
        (filled(-1e30), ""),
        (lambda s, visible: guarded(s, ~visible), ""),
        (lambda s, visible: guarded(s, visible) * visible.mean(), ""),
        (lambda s, visible: guarded(s.T, visible.T).T, ""),
        (lambda s, visible: guarded(s, visible.any(axis=0) & np.ones_like(visible)), ""),
    ],
}
