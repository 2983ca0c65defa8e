"""Answers to the exercises of lesson 03, right and wrong, and what a wrong one is told."""

import numpy as np

from minattn.positions import rotary


def speeds(n):
    return 10000.0 ** (-np.arange(0, n, 2) / n)


def move(pe, r, sign=1, omega=None):
    turn = sign * r * (speeds(pe.shape[1]) if omega is None else omega)
    z = (pe[:, 1::2] + 1j * pe[:, 0::2]) * np.exp(1j * turn)  # cosine + i sine
    out = np.empty_like(pe)
    out[:, 0::2], out[:, 1::2] = z.imag, z.real
    return out


def move_by_matrix(pe, r):
    M = np.zeros((pe.shape[1],) * 2)
    for k, omega in enumerate(speeds(pe.shape[1])):
        c, s = np.cos(omega * r), np.sin(omega * r)
        M[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[c, -s], [s, c]]
    return pe @ M


def one_sign_wrong(pe, r):
    z = (pe[:, 1::2] + 1j * pe[:, 0::2]) * np.exp(1j * r * speeds(pe.shape[1]))
    sin = pe[:, 0::2] * np.cos(r * speeds(pe.shape[1]))
    return np.stack([2 * sin - z.imag, z.real], axis=2).reshape(pe.shape)


def halves_moved(pe, r):
    sin, cos = np.split(pe, 2, axis=1)
    z = (cos + 1j * sin) * np.exp(1j * r * speeds(pe.shape[1]))
    return np.hstack([z.imag, z.real])


def back(dy, start=0, sign=-1, first=0):
    angle = (
        sign
        * np.arange(start + first, start + first + dy.shape[-2])[:, None]
        * speeds(dy.shape[-1])
    )
    a, b = np.split(dy, 2, axis=-1)
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1
    )


def back_by_loops(dy, start=0):
    dx = np.empty_like(dy)
    half = dy.shape[-1] // 2
    for t in range(dy.shape[-2]):
        for k in range(half):
            c, s = (
                np.cos((start + t) * speeds(2 * half)[k]),
                np.sin((start + t) * speeds(2 * half)[k]),
            )
            dx[..., t, k] = c * dy[..., t, k] + s * dy[..., t, k + half]
            dx[..., t, k + half] = c * dy[..., t, k + half] - s * dy[..., t, k]
    return dx


def interleaved(dy, start=0, forward=False):
    y, cache = rotary.forward(dy, start=start, pairs="interleaved")
    return y if forward else rotary.backward(dy, cache)["x"]


def ds_of(P, v, do):
    dP = np.einsum("bhid,bhjd->bhij", do, v)
    return P * (dP - np.einsum("bhid,bhid->bhi", do, P @ v)[..., None])


def steps(P):
    return np.subtract.outer(np.arange(P.shape[2]), np.arange(P.shape[3]))


def slopes(P, v, do):
    return -np.einsum("bhij,ij->h", ds_of(P, v, do), steps(P))


def slopes_by_loops(P, v, do):
    ds = ds_of(P, v, do)
    T = P.shape[2]
    return np.array(
        [
            -sum(ds[:, h, i, j].sum() * (i - j) for i in range(T) for j in range(T))
            for h in range(P.shape[1])
        ]
    )


def slopes_without_row_sum(P, v, do):
    return -np.einsum("bhij,ij->h", P * (do @ v.swapaxes(2, 3)), steps(P))


def slopes_of_dP(P, v, do):
    return -np.einsum("bhij,ij->h", do @ v.swapaxes(2, 3), steps(P))


RIGHT = {
    "move": [move, move_by_matrix],
    "rope_half_backward": [back, back_by_loops],
    "slope_gradient": [slopes, slopes_by_loops],
}
WRONG = {
    "move": [
        (lambda pe, r: move(pe, r, sign=-1), "moves back"),
        (lambda pe, r: move(pe, r, omega=np.ones(pe.shape[1] // 2)), "same angle"),
        (lambda pe, r: move(pe, r, omega=np.sqrt(speeds(pe.shape[1]))), "factor 2"),
        (lambda pe, r: np.roll(pe, -r, axis=0), "no order"),
        (lambda pe, r: move(pe[:, ::-1], r)[:, ::-1], "should be"),
        (one_sign_wrong, "A sign"),
        (halves_moved, "alternate"),
        (lambda pe, r: move(pe, r).T, "shape"),
        (lambda pe, r: pe, "should be"),
    ],
    "rope_half_backward": [
        (lambda dy, start=0: back(dy, start, sign=1), "forward"),
        (interleaved, "Neighbours"),
        (lambda dy, start=0: interleaved(dy, start, forward=True), "Neighbours"),
        (lambda dy, start=0: back(dy), "begin at"),
        (lambda dy, start=0: back(dy, start, first=1), "count from"),
        (lambda dy, start=0: back(dy[..., ::-1], start)[..., ::-1], "should be"),
        (lambda dy: back(dy), "raised TypeError"),
    ],
    "slope_gradient": [
        (lambda P, v, do: -slopes(P, v, do), "sign"),
        (slopes_without_row_sum, "row sum is missing"),
        (slopes_of_dP, "uses dP"),
        (lambda P, v, do: slopes(P, v, do) / len(P), "no mean"),
        (lambda P, v, do: np.einsum("bhij,ij->bh", ds_of(P, v, do), -steps(P)), "shape"),
        (lambda P, v, do: slopes(P, do, v), "should be"),
        (
            lambda P, v, do: (
                -np.einsum("bhij,ij->h", ds_of(P, v, do), np.abs(steps(P)) + 1) / P.shape[2]
            ),
            "should be",
        ),
    ],
}
