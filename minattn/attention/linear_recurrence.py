"""Causal linear attention as a recurrence, chunk by chunk: time and memory linear in T.

    M_i = max over j <= i of top_j
    S_i = sum over j <= i of e^(top_j - M_i) phi(k_j) [v_j, 1]^T          (D, Dv + 1)
    [num_i, den_i] = phi(q_i) S_i          out_i = num_i / den_i

top_j is what was taken from the exponents of phi(k_j) (None: nothing). All powers are at most 1,
and none depends on a later key. S is kept at one position only; inside a chunk the rows see each
other's keys as in attention,

    [num, den] = (phi(q) phi(k)^T * W) [v, 1] + r phi(q) S_before         W_ij = e^(top_j - M_i)

The backward needs S from the first chunk to the last, and its like for the keys, G, from the last
to the first: two sweeps, and no S is stored.
"""
from typing import Any, NamedTuple

import numpy as np

from minattn import checks
from minattn.attention import core

CHUNK = 64         # rows that are computed together


def serves(q, k, v, *, causal=False, window=None, prefix=0, allowed=None, bias=None, dropout=0.0,
           rng=None, align="end", return_weights=False, **others):
    """Can the recurrence compute this, and does it cost less than rows of scores?

    Multiplications per head: T^2 / 2 (D + Dv) by rows, T (CHUNK (D + Dv) + 2 D Dv) here. With
    D = Dv, half of either is in the chunk's own scores at CHUNK = D, and rows cost more above
    T = 2 CHUNK + 2 D.
    """
    (_, _, T, D), Dv = q.shape, v.shape[3]
    plain = (causal is True and window is None and allowed is None and bias is None
             and type(prefix) is int and prefix == 0 and align in ("end", "start")
             and rng is None and return_weights is False and not others)
    if not plain or k.shape[2] != T:
        return False
    checks.number("dropout", dropout, 0, high=0.999)
    return T / 2 * (D + Dv) > CHUNK * (D + Dv) + 2 * D * Dv


class Cache(NamedTuple):
    phi_q: np.ndarray        # (B, H, T, D)
    phi_k: np.ndarray        # (B, H, T, D)   repeated where a head serves a group, as v
    v: np.ndarray            # (B, H, T, Dv)
    powers: Any              # see _powers
    out: np.ndarray          # (B, H, T, Dv)
    den: np.ndarray          # (B, H, T, 1)   1 where it is 0
    groups: tuple            # heads of k and of v, as given


class State(NamedTuple):
    """All that later tokens need of the earlier ones, however many these are."""
    S: np.ndarray            # (B, H, D, Dv + 1)
    M: Any                   # (B, H, 1), or None without top


def forward(phi_q, phi_k, v, top=None, state=None):
    """phi_q (B, H, T, D), phi_k (B, G, T, D), v (B, G, T, Dv), top (B, G, T)
    -> out (B, H, T, Dv), cache, the State after the last token

    state: that of earlier tokens, which these continue; there is no backward through it.
    """
    H, groups = phi_q.shape[1], (phi_k.shape[1], v.shape[1])
    phi_k, v = core.repeat(phi_k, H), core.repeat(v, H)
    powers = None if top is None else _powers(core.repeat(top, H), state and state.M)
    out, den = np.empty_like(v), np.empty_like(v[..., :1])
    S = state.S.copy() if state else _empty_state(phi_k, v)
    for rows, W, r, u, step in _chunks(powers, v):
        q, k, v1 = phi_q[:, :, rows], phi_k[:, :, rows], _with_one(v[:, :, rows])
        nd = (q @ k.swapaxes(2, 3) * W) @ v1                          # 1. this chunk's keys
        nd += (q * r) @ S                                             # 2. all earlier ones
        S *= step                                                     # 3. S at the chunk's end
        S += (k * u).swapaxes(2, 3) @ v1
        d = nd[..., -1:]
        den[:, :, rows] = np.where(d == 0, 1, d)                      # no weight: num is 0 too
        out[:, :, rows] = nd[..., :-1] / den[:, :, rows]              # 4. num / den
    after = State(S, None if top is None else powers[1][:, :, -1:])
    return out, Cache(phi_q, phi_k, v, powers, out, den, groups), after


def backward(dout, cache):
    """dout (B, H, T, Dv) -> {"q", "k", "v"}, of phi(q), phi(k) and v"""
    phi_q, phi_k, v, powers, out, den, groups = cache
    checks.gradient("dout", dout, out.shape, out.dtype)
    dphi_q, dphi_k, dv = np.empty_like(phi_q), np.empty_like(phi_k), np.empty_like(v)

    def of_nd(rows):
        """4. out = num / den -> the gradient of [num, den]"""
        dnum = dout[:, :, rows] / den[:, :, rows]
        dden = -(dnum * out[:, :, rows]).sum(axis=3, keepdims=True)
        return np.concatenate([dnum, dden], axis=3)

    # 2. phi(q) S, where S is summed up again
    S = _empty_state(phi_k, v)
    for rows, _, r, u, step in _chunks(powers, v):
        dphi_q[:, :, rows] = of_nd(rows) @ S.swapaxes(2, 3) * r
        S *= step
        S += (phi_k[:, :, rows] * u).swapaxes(2, 3) @ _with_one(v[:, :, rows])
    # 3. S: G is what all later rows take from it.  1. this chunk's keys
    G = np.zeros_like(S)
    for rows, W, r, u, step in _chunks(powers, v, backwards=True):
        q, k, v1 = phi_q[:, :, rows], phi_k[:, :, rows], _with_one(v[:, :, rows])
        dnd = of_nd(rows)
        A, dA = q @ k.swapaxes(2, 3) * W, dnd @ v1.swapaxes(2, 3) * W
        dphi_q[:, :, rows] += dA @ k
        dphi_k[:, :, rows] = dA.swapaxes(2, 3) @ q + v1 @ G.swapaxes(2, 3) * u
        dv[:, :, rows] = (A.swapaxes(2, 3) @ dnd + (k * u) @ G)[..., :-1]
        G *= step
        G += (q * r).swapaxes(2, 3) @ dnd
    return {"q": dphi_q, "k": core.sum_groups(dphi_k, groups[0]),
            "v": core.sum_groups(dv, groups[1])}


def _with_one(v):
    """[v, 1]: the sums with v, and those without it, side by side"""
    return np.concatenate([v, np.ones_like(v[..., :1])], axis=3)


def _empty_state(phi_k, v):
    (B, H, _, D), Dv = phi_k.shape, v.shape[3]
    return np.zeros((B, H, D, Dv + 1), v.dtype)


def _powers(top, M_start):
    """top (B, H, T) -> top, M and the powers of e between a chunk and S

    r = e^(M_before - M_i), u = e^(top_j - M_end) (B, H, T, 1), step = e^(M_before - M_end), one a
    chunk; M_before and M_end: M at the end of the chunk before, and of the row's or key's own.
    M_start (B, H, 1): M before the first token
    """
    M_start = top[:, :, :1] if M_start is None else M_start           # without a state S is 0
    M = np.maximum(np.maximum.accumulate(top, axis=2), M_start)
    T = M.shape[2]
    of = np.arange(T) // CHUNK
    end = M[:, :, np.minimum(np.arange(CHUNK, T + CHUNK, CHUNK), T) - 1]
    before = np.concatenate([M_start, end[:, :, :-1]], axis=2)
    r, u, step = np.exp(before[:, :, of] - M), np.exp(top - end[:, :, of]), np.exp(before - end)
    return top, M, r[..., None], u[..., None], step[..., None, None]


def _chunks(powers, v, backwards=False):
    """Each chunk's rows, W (B, H, n, n), r, u (B, H, n, 1), step (B, H, 1, 1), in order"""
    T = v.shape[2]
    order = range(-(-T // CHUNK))
    for c in reversed(order) if backwards else order:
        rows = slice(c * CHUNK, min((c + 1) * CHUNK, T))
        W, r, u, step = np.tri(rows.stop - rows.start, dtype=v.dtype), 1, 1, 1
        if powers is not None:
            top, M, r, u, step = powers
            W = W * np.exp(np.minimum(top[:, :, None, rows] - M[:, :, rows, None], 0))
            r, u, step = r[:, :, rows], u[:, :, rows], step[:, :, c]
        yield rows, W, r, u, step
