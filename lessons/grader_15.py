"""Grades the exercises of lesson 15: many heads."""

import numpy as np

from minattn.attention import softmax
from minattn.lessons.grading import Exercise, exercise


def _split(a, H):
    T, C = a.shape
    return a.reshape(T, H, C // H).swapaxes(0, 1)


def _interleaved(a, H):
    T, C = a.shape
    return a.reshape(T, C // H, H).transpose(2, 0, 1)


def _layer(x, W_qkv, W_o, H, split=_split, scale=None, causal=True, columns=None):
    a = x @ W_qkv
    q, k, v = columns(a, H) if columns else (split(b, H) for b in np.split(a, 3, axis=1))
    o, _ = softmax.forward(q[None], k[None], v[None], causal=causal, scale=scale)
    return o[0].swapaxes(0, 1).reshape(x.shape) @ W_o


@exercise
def check_split_heads():
    """a (T, C), H -> (H, T, D)"""
    rng = np.random.default_rng(0)
    inputs = [(rng.standard_normal((T, H * D)), H) for T, H, D in ((7, 3, 5), (5, 1, 2), (2, 5, 3))]
    return Exercise(
        _split,
        inputs,
        hints=[
            (_interleaved, "A head has channels that stand side by side, not every H-th one."),
            (
                lambda a, H: a.reshape(H, len(a), -1),
                "That cuts the rows: reshape to (T, H, D), then swap two axes.",
            ),
            (lambda a, H: a.reshape(len(a), H, -1), "Heads come first: swap the first two axes."),
            (lambda a, H: _split(a, a.shape[1] // H), "That makes D heads of H channels."),
        ],
    )


@exercise
def check_many_heads():
    """x (T, C), W_qkv (C, 3C), W_o (C, C), H -> (T, C)"""
    rng = np.random.default_rng(0)
    inputs = [
        tuple(rng.standard_normal(shape) for shape in ((T, C), (C, 3 * C), (C, C))) + (H,)
        for T, C, H in ((5, 6, 2), (7, 3, 1), (3, 10, 5))
    ]

    def head_by_head(a, H):
        """Columns taken as q, k, v of head 0, then of head 1, ..."""
        D = a.shape[1] // (3 * H)
        return a.reshape(len(a), H, 3, D).transpose(2, 1, 0, 3)

    def not_swapped(x, W_qkv, W_o, H):
        q, k, v = (_split(b, H) for b in np.split(x @ W_qkv, 3, axis=1))
        o, _ = softmax.forward(q[None], k[None], v[None], causal=True)
        return o[0].reshape(x.shape) @ W_o

    def no_output(x, W_qkv, W_o, H):
        return _layer(x, W_qkv, np.eye(len(W_o)), H)

    return Exercise(
        _layer,
        inputs,
        returns=("out",),
        hints=[
            (
                lambda x, W_qkv, W_o, H: _layer(
                    x, W_qkv, W_o, H, scale=1 / np.sqrt(x.shape[1])
                ),
                "The scores of a head are sums over D = C / H channels: divide by sqrt(D).",
            ),
            (
                lambda x, W_qkv, W_o, H: _layer(x, W_qkv, W_o, H, scale=1.0),
                "The scores are divided by sqrt(D).",
            ),
            (
                lambda x, W_qkv, W_o, H: _layer(x, W_qkv, W_o, H, causal=False),
                "That sees the future: hide the keys j > i.",
            ),
            (
                not_swapped,
                "Join the heads side by side: swap (H, T, D) to (T, H, D), then reshape.",
            ),
            (no_output, "The product with W_o is missing."),
            (
                lambda x, W_qkv, W_o, H: _layer(x, W_qkv, W_o, H, columns=head_by_head),
                "The queries of all heads come first, then all keys, then all values.",
            ),
            (
                lambda x, W_qkv, W_o, H: _layer(x, W_qkv, W_o, 1),
                "That is one head of C channels.",
            ),
            (
                lambda x, W_qkv, W_o, H: _layer(x, W_qkv, W_o.T, H),
                "W_o is transposed.",
            ),
        ],
    )


@exercise
def check_without_head():
    """W_o (C, C), h, H -> (C, C)"""
    rng = np.random.default_rng(0)

    def zeros(at):
        def f(W_o, h, H):
            W_o, D = W_o.copy(), len(W_o) // H
            W_o[at(h, D, H)] = 0
            return W_o

        return f

    def in_place(W_o, h, H):
        W_o[h * len(W_o) // H : (h + 1) * len(W_o) // H] = 0
        return W_o

    def with_the_given(candidate):
        def f(W_o, h, H):
            new = candidate(W_o, h, H)
            return (new, W_o) if isinstance(new, (np.ndarray, list)) else new

        return f

    return Exercise(
        with_the_given(zeros(lambda h, D, H: np.s_[h * D : (h + 1) * D])),
        [(rng.standard_normal((C, C)), h, H) for C, H, h in ((15, 3, 1), (6, 2, 0), (10, 5, 4))],
        returns=("the new W_o", "the given W_o"),
        judged_as=with_the_given,
        hints=[
            (in_place, "The model still needs its own W_o: change a copy."),
            (
                zeros(lambda h, D, H: np.s_[:, h * D : (h + 1) * D]),
                "Those are columns, channels of the stream: the head's own channels are rows.",
            ),
            (
                zeros(lambda h, D, H: np.s_[h : h + 1]),
                "That is one channel; a head has D of them.",
            ),
            (
                zeros(lambda h, D, H: np.s_[h::H]),
                "The channels of a head stand side by side.",
            ),
            (
                lambda W_o, h, H: W_o * (np.arange(len(W_o)) // (len(W_o) // H) == h)[:, None],
                "That keeps head h alone.",
            ),
        ],
    )
