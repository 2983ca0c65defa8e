"""Answers to the exercises of lesson 15, right and wrong, and what a wrong one is told."""

import numpy as np


def by_slices(a, H):
    D = a.shape[1] // H
    return [a[:, h * D:(h + 1) * D] for h in range(H)]


def softmax(s):
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def as_a_sum(x, W_qkv, W_o, H, channels=None, future=False, first=0):
    """out = sum of o^h W_O^h, head by head"""
    C, out = x.shape[1], 0
    D = C // H
    for h in range(first, H):
        at = slice(h * D, (h + 1) * D)
        q, k, v = (x @ W_qkv[:, n * C:(n + 1) * C][:, at] for n in range(3))
        s = q @ k.T / np.sqrt(channels or D)
        if not future:
            s[np.triu_indices(len(x), 1)] = -np.inf
        out = out + softmax(s) @ v @ W_o[at]
    return out


def by_einsum(x, W_qkv, W_o, H):
    T, C = x.shape
    q, k, v = (x @ W_qkv).reshape(T, 3, H, C // H).transpose(1, 2, 0, 3)
    s = np.einsum("htd,hsd->hts", q, k) / (C // H) ** 0.5
    s[:, ~np.tri(T, dtype=bool)] = -np.inf
    return np.einsum("hts,hsd->thd", softmax(s), v).reshape(T, C) @ W_o


def by_diagonal(W_o, h, H):
    keep = np.repeat(np.arange(H) != h, len(W_o) // H)
    return np.diag(keep.astype(float)) @ W_o


def columns_removed(W_o, h, H):
    return by_diagonal(W_o.T, h, H).T


def rows_deleted(W_o, h, H):
    D = len(W_o) // H
    return np.delete(W_o, np.s_[h * D:(h + 1) * D], axis=0)


def joined_without_a_swap(x, W_qkv, W_o, H):
    q, k, v = (np.stack(np.split(a, H, axis=1)) for a in np.split(x @ W_qkv, 3, axis=1))
    s = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2])
    P = np.exp(np.where(np.tri(len(x), dtype=bool), s, -np.inf))
    o = P / P.sum(axis=2, keepdims=True) @ v
    return o.reshape(x.shape) @ W_o


def in_place(W_o, h, H):
    D = len(W_o) // H
    W_o[h * D : (h + 1) * D] = 0
    return W_o


RIGHT = {
    "split_heads": [by_slices, lambda a, H: np.stack(np.split(a, H, axis=1))],
    "many_heads": [as_a_sum, by_einsum],
    "without_head": [by_diagonal],
}
WRONG = {
    "split_heads": [
        (lambda a, H: a.reshape(len(a), -1, H).transpose(2, 0, 1), "side by side"),
        (lambda a, H: a.reshape(H, len(a), -1), "cuts the rows"),
        (lambda a, H: a.reshape(len(a), H, -1), "Heads come first"),
        (lambda a, H: np.stack(np.split(a, H, axis=1)).swapaxes(1, 2), ""),
    ],
    "many_heads": [
        (lambda x, W, W_o, H: as_a_sum(x, W, W_o, H, channels=x.shape[1]), "sqrt(D)"),
        (lambda x, W, W_o, H: as_a_sum(x, W, W_o, H, channels=1), "sqrt(D)"),
        (lambda x, W, W_o, H: as_a_sum(x, W, W_o, H, future=True), "future"),
        (lambda x, W, W_o, H: as_a_sum(x, W, np.eye(len(W_o)), H), "W_o is missing"),
        (lambda x, W, W_o, H: as_a_sum(x, W, W_o, 1), "one head"),
        (lambda x, W, W_o, H: as_a_sum(x, W, W_o, H) / H, ""),
        (joined_without_a_swap, "swap (H, T, D)"),
    ],
    "without_head": [
        (columns_removed, "rows"),
        (rows_deleted, "shape"),
        (in_place, "change a copy"),
        (lambda W_o, h, H: in_place(W_o.copy(), (h + 1) % H, H), ""),
        (lambda W_o, h, H: W_o - by_diagonal(W_o, h, H), "alone"),
        (lambda W_o, h, H: np.zeros_like(W_o), ""),
    ],
}
