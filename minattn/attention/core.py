"""Scaled dot-product attention for every mechanism, with masks, biases, a sink and dropout.

    s = scale * q @ k.T + bias                       (Tq, D), (D, Tk) -> (Tq, Tk); -inf where hidden
    m = s.max(axis=-1)
    P = exp(s - m) / exp(s - m).sum(axis=-1)         a sink adds exp(sink - m) to the sum
    out = P @ v                                      (Tq, Tk), (Tk, Dv) -> (Tq, Dv)

Backwards; a number added to a whole row of s leaves P unchanged, so ds has no such part:

    dv = P.T @ dout
    dP = dout @ v.T
    ds = P * (dP - (P * dP).sum(axis=-1))
    dbias, dq, dk = ds, scale * ds @ k, scale * ds.T @ q

All tiling happens here. The queries are cut into blocks of rows, a few heads and sequences at a
time, so that a tile of scores stays in cache; a tile covers only the keys that some row of it may
see, so what a causal or window mask hides is hardly computed. Up to KEEP_BYTES the weights are kept
for the backward. Beyond, each tile is recomputed bit for bit, and no (Tq, Tk) array exists: memory
grows with T, not with its square.
"""
import math
from typing import Any, NamedTuple

import numpy as np

from minattn import checks, masks
from minattn.errors import InputError
from minattn.ops import keep_mask

TILE = 1 << 17            # scores per tile: with its gradient, about one L2 cache in float32
ROWS = 64                 # query rows per tile, at most: skips most of what a causal mask hides
KEEP_BYTES = 1 << 27      # weights kept for the backward, per call


class Cache(NamedTuple):
    q: np.ndarray                 # (B, H, Tq, D)
    k: np.ndarray                 # (B, H, Tk, D)
    v: np.ndarray                 # (B, H, Tk, Dv)
    out: np.ndarray               # (B, H, Tq, Dv)  the sink's gradient needs it
    lse: np.ndarray               # (B, H, Tq)  log of each row's denominator, -inf for an empty row
    tiles: list
    kept: list | None             # per tile (P, dropout mask or None); None: recomputed
    scale: float
    rescore: Any
    biases: tuple                 # the mechanism's own, then the caller's
    bias: Any                     # the caller's, in the form in which it came
    sink: np.ndarray | None       # (H,)
    mask: masks.Mask
    allowed: np.ndarray | None    # 4 axes


class Tile(NamedTuple):
    """Scores that are computed together. Slices index the arrays; p and j are positions."""
    queries: tuple                # (batch, heads, rows) of q, out, lse
    keys: tuple                   # (batch, heads, columns) of k, v
    p: np.ndarray                 # (R,)  the key position of each row
    j: np.ndarray                 # (K,)  and of each column
    hidden: list                  # [(columns of the tile, what is hidden there), ...]

    @property
    def scores(self):
        """The tile's place in an array (B, H, Tq, Tk)"""
        return (*self.queries, self.keys[2])


def attend(q, k, v, *, scale=None, bias=None, causal=False, window=None, prefix=0, allowed=None,
           align="end", dropout=0.0, rng=None, return_weights=False,
           sink=None, own_bias=(), rescore=None, **unknown):
    """Attention over the visible keys: out = P v.

    q (B, H, Tq, D), k (B, H, Tk, D), v (B, H, Tk, Dv)
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]

    scale    multiplies q k^T; 1/sqrt(D) if None (arXiv 1706.03762, eq. 1)
    bias     added to the scores: an array that broadcasts to (B, H, Tq, Tk), an object that makes
             its own tiles (like positions.decay.DecayBias), or a tuple of these
    causal, window, prefix, allowed, align    who may see whom: see minattn.masks
    dropout  probability of zeroing a weight (the rest scaled up), drawn from rng; none without rng
    Three more are for mechanisms:
    sink     (H,) logit of an extra key without a value
    own_bias a tuple of biases that belong to the mechanism
    rescore  an object with forward(s) -> s', applied to scale q k^T before biases and mask, and
             backward(ds', s) -> ds, which gets s again; both may work in place

    A row that sees no key gives out = 0, lse = -inf (with a sink: lse = sink) and no gradient. All
    arrays are float32, or all float64, and so is the result. InputError names what does not fit.
    """
    biases = (*own_bias, *_as_tuple(bias))
    scale, allowed = _check(q, k, v, scale, biases, allowed, dropout, sink, unknown)
    mask = masks.make(causal, window, prefix, align)
    dropout = 0 if rng is None else dropout
    (B, H, Tq, _), (_, _, Tk, Dv) = q.shape, v.shape
    tiles = list(_tiles(B, H, Tq, Tk, mask))
    kept = [] if dropout or sum(map(_size, tiles)) * q.itemsize <= KEEP_BYTES else None
    out = _heads_last((B, H, Tq, Dv), q.dtype)
    lse = np.empty((B, H, Tq), q.dtype)
    weights = np.zeros((B, H, Tq, Tk), q.dtype) if return_weights else None
    cache = Cache(q, k, v, out, lse, tiles, kept, scale, rescore, biases, bias, sink, mask, allowed)

    for t in tiles:
        s = _scores(cache, t)                              # 1. s = scale q k^T + bias
        P, lse[t.queries] = _softmax(s, sink, t)           # 2.-5. P = softmax(s), in the place of s
        keep = keep_mask(P.shape, dropout, rng, P.dtype) if dropout else None
        dropped = P if keep is None else P * keep          # 6. dropout
        np.matmul(dropped, v[t.keys], out=out[t.queries])  # 7. (R, K), (K, Dv) -> (R, Dv)
        if kept is not None:
            kept.append((P, keep))
        if return_weights:
            weights[t.scores] = dropped
    return (out, cache, weights) if return_weights else (out, cache)


# the options that a caller of any mechanism may give
OPTIONS = [name for name in attend.__kwdefaults__ if name not in ("sink", "own_bias", "rescore")]


def attend_backward(dout, cache, dlse=None):
    """dout (B, H, Tq, Dv) [, dlse (B, H, Tq)] -> {"q", "k", "v"} and, where given, more:

    "sink", "own_bias" (a tuple) and "bias" (one gradient or a tuple, as attend was given it)
    """
    q, k, v, sink = cache.q, cache.k, cache.v, cache.sink
    size = dict(zip(("B", "H", "Tq", "Dv"), cache.out.shape))
    checks.arrays(size, q.dtype, dout=(dout, "B H Tq Dv"))
    dq, dk, dv = (_heads_last(x.shape, x.dtype) for x in (q, k, v))
    dk[:], dv[:] = 0, 0                                    # sums over tiles; dq is set row by row
    dbiases = [_zero_gradient(b) for b in cache.biases]

    for n, t in enumerate(cache.tiles):
        if cache.kept is not None:
            P, keep = cache.kept[n]
        else:                                              # 1.-5. again
            P, keep = _softmax(_scores(cache, t), sink, t)[0], None
        # 7. out = dropped @ v
        dropped = P if keep is None else P * keep
        dv[t.keys] += dropped.swapaxes(2, 3) @ dout[t.queries]      # (K, R), (R, Dv) -> (K, Dv)
        dP = dout[t.queries] @ v[t.keys].swapaxes(2, 3)             # (R, Dv), (Dv, K) -> (R, K)
        # 6. dropped = P * keep
        if keep is not None:
            dP *= keep
        # 5.-2. P = softmax(s). The row sum equals (dout * out).sum(axis=-1), but this way it rounds
        # as dP does: a row with a single key gets exactly 0. The slope of lse is P, hence dlse.
        dP -= np.einsum("bhij,bhij->bhi", P, dP)[..., None]
        if dlse is not None:
            dP += dlse[t.queries][..., None]
        ds = np.multiply(dP, P, out=dP)                             # (b, h, R, K)
        # 1. s = scale q k^T + bias
        _add_bias_gradients(dbiases, ds, cache.biases, t)
        if cache.rescore is not None:
            ds = cache.rescore.backward(ds, _products(cache, t))
        dq[t.queries] = ds @ k[t.keys]                              # (R, K), (K, D) -> (R, D)
        dk[t.keys] += ds.swapaxes(2, 3) @ q[t.queries]              # (K, R), (R, D) -> (K, D)
    dq *= cache.scale
    dk *= cache.scale
    grads = {"q": dq, "k": dk, "v": dv, **_name_bias_gradients(dbiases, cache)}
    if sink is not None:                                   # one more key, whose value is 0: dP = 0
        rowsum = np.einsum("bhid,bhid->bhi", dout, cache.out) - (0 if dlse is None else dlse)
        grads["sink"] = -(np.exp(sink[:, None] - cache.lse) * rowsum).sum(axis=(0, 2))
    return grads


def attend_last(q, k, v, *, bias=None, sink=None, rescore=None):
    """attend for one query that sees every key, as in generation; unchecked, no cache, q scaled.

        s = q k^T + bias     P = exp(s - max s) / sum exp(s - max s)     out = P v

    q (B, H, 1, D), k (B, H, Tk, D), v (B, H, Tk, Dv), bias as (B, H, 1, Tk), sink (H,)
    -> out (B, H, 1, Dv)
    """
    s = q @ k.swapaxes(2, 3)                               # 1. (1, D), (D, Tk) -> (1, Tk)
    if rescore is not None:
        s = rescore.forward(s)
    if bias is not None:
        s += bias
    m = s.max(axis=3, keepdims=True)                       # 2. row maximum
    if sink is not None:
        m = np.maximum(m, sink[:, None, None])
    s -= m
    np.exp(s, out=s)                                       # 3. numerators
    total = s.sum(axis=3, keepdims=True)                   # 4. denominators
    if sink is not None:
        total += np.exp(sink[:, None, None] - m)
    out = s @ v                                            # 5. (1, Tk), (Tk, Dv) -> (1, Dv)
    out /= total
    return out


# ---------------------------------------------------------------------------------------- one tile


def _slices(n, size):
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def _tiles(B, H, Tq, Tk, mask):
    """The tiles of one call, in a fixed order."""
    p = masks.positions(Tq, Tk, mask.align)
    lo, hi = masks.intervals(mask, p, Tk)
    for rows in _slices(Tq, ROWS):
        first, a, b, last = masks.edges(lo[rows], hi[rows])
        columns, j, hidden = slice(first, last), np.arange(first, last), []
        for margin in (slice(0, a - first), slice(b - first, last - first)):
            if margin.start < margin.stop:
                hidden.append((margin, ~masks.inside(lo[rows], hi[rows], j[margin])))
        together = max(1, TILE // max(1, len(p[rows]) * len(j)))      # heads that share a tile
        n_heads, n_batch = min(H, together), max(1, together // H)
        for batch in _slices(B, n_batch):
            for heads in _slices(H, n_heads):
                yield Tile((batch, heads, rows), (batch, heads, columns), p[rows], j, hidden)


def _size(t):
    """The number of scores in a tile."""
    batch, heads, _ = t.queries
    return (batch.stop - batch.start) * (heads.stop - heads.start) * len(t.p) * len(t.j)


def _products(cache, t):
    """scale q k^T of one tile: (b, h, R, D), (b, h, D, K) -> (b, h, R, K)"""
    return (cache.q[t.queries] * cache.scale) @ cache.k[t.keys].swapaxes(2, 3)


def _scores(cache, t):
    """The masked scores of one tile: (b, h, R, K)"""
    s = _products(cache, t)
    if cache.rescore is not None:
        s = cache.rescore.forward(s)
    for b in cache.biases:
        array = isinstance(b, np.ndarray)
        s += b[_part(b, t)] if array else b.tile(*t.queries[:2], t.p, t.j)
    for columns, hidden in t.hidden:
        np.copyto(s[..., columns], -np.inf, where=hidden)   # a large finite number would leak
    if cache.allowed is not None:
        np.copyto(s, -np.inf, where=~cache.allowed[_part(cache.allowed, t)])
    return s


def _softmax(s, sink, t):
    """P and the log of its denominators, s overwritten: (b, h, R, K) -> (b, h, R, K), (b, h, R)"""
    if sink is not None:
        sink = sink[t.queries[1], None]                    # (h, 1)
    m = s.max(axis=3, initial=-np.inf)                     # 2. row maximum
    if sink is not None:
        m = np.maximum(m, sink)
    m[m == -np.inf] = 0
    s -= m[..., None]
    P = np.exp(s, out=s)                                   # 3. numerators, at most 1
    total = P @ np.ones(P.shape[3], P.dtype)               # 4. denominators: P.sum(axis=3), faster
    if sink is not None:
        total += np.exp(sink - m)
    empty = total == 0
    total[empty] = 1
    P /= total[..., None]                                  # 5. weights
    return P, np.where(empty, -np.inf, m + np.log(total))


def _heads_last(shape, dtype):
    """An empty (B, H, T, D) array laid out as (B, T, H, D): merging the heads later is free."""
    B, H, T, D = shape
    return np.empty((B, T, H, D), dtype).swapaxes(1, 2)


# ------------------------------------------------------------------------------------------ biases


def _as_tuple(bias):
    """None, one bias or a tuple of them -> a tuple"""
    if bias is None:
        return ()
    return bias if isinstance(bias, tuple) else (bias,)


def _part(array, t):
    """The index of a tile in an array that broadcasts to (B, H, Tq, Tk)."""
    parts = zip(t.scores[4 - array.ndim:], array.shape)
    return tuple(part if n > 1 else slice(None) for part, n in parts)


def _zero_gradient(bias):
    """Where the gradient of a bias is summed up; None if the bias has none"""
    return np.zeros_like(bias) if isinstance(bias, np.ndarray) else bias.gradient()


def _add_bias_gradients(dbiases, ds, biases, t):
    """Add what one tile contributes to the gradient of each bias, in place."""
    for b, db in zip(biases, dbiases):
        if isinstance(b, np.ndarray):
            part = _part(b, t)
            db[part] += _sum_to(ds, db[part].shape)
        elif db is not None:
            b.tile_backward(ds, *t.queries[:2], t.p, t.j, db)


def _sum_to(x, shape):
    """Undo broadcasting: sum x over the axes that `shape` lacks or has with size 1."""
    full = (1,) * (x.ndim - len(shape)) + shape
    axes = tuple(a for a, n in enumerate(full) if n == 1 and x.shape[a] != 1)
    return (x.sum(axis=axes, keepdims=True) if axes else x).reshape(shape)


def _name_bias_gradients(dbiases, cache):
    """-> {"own_bias": a tuple, "bias": a tuple or not, as it was given}, each if there is any"""
    n_own = len(dbiases) - len(_as_tuple(cache.bias))
    own, theirs = tuple(dbiases[:n_own]), tuple(dbiases[n_own:])
    grads = {"own_bias": own} if own else {}
    if theirs:
        grads["bias"] = theirs if isinstance(cache.bias, tuple) else theirs[0]
    return grads


# ------------------------------------------------------------------------------------------ checks


def _check(q, k, v, scale, biases, allowed, dropout, sink, unknown):
    """attend's arguments, checked -> scale as a Python float, `allowed` with 4 axes"""
    for name in unknown:
        raise InputError(f"unknown option {name!r}; attention takes {', '.join(OPTIONS)}."
                         f"{checks.nearest(name, OPTIONS)}")
    size = checks.arrays(q=(q, "B H Tq D"), k=(k, "B H Tk D"), v=(v, "B H Tk Dv"))
    full = tuple(size[axis] for axis in ("B", "H", "Tq", "Tk"))
    scale = 1 / math.sqrt(size["D"]) if scale is None else scale
    checks.number("scale", scale)
    checks.number("dropout", dropout, 0, high=0.999)
    for bias in biases:
        if isinstance(bias, np.ndarray):
            if bias.dtype != q.dtype:
                raise InputError(f"bias must have q's dtype, {q.dtype}; got {bias.dtype}.")
            _check_broadcast("bias", bias.shape, full)
        elif not hasattr(bias, "tile"):
            kind = type(bias).__name__
            raise InputError(f"bias must be an array or have a tile method; got {kind}.")
    if sink is not None:
        checks.arrays({"H": size["H"]}, q.dtype, sink=(sink, "H"))
        checks.finite(sink=sink)
    if allowed is not None:
        if not isinstance(allowed, np.ndarray) or allowed.dtype != bool:
            kind = getattr(allowed, "dtype", type(allowed).__name__)
            raise InputError(f"allowed must be a boolean array, True = may attend; got {kind}.")
        _check_broadcast("allowed", allowed.shape, full)
        allowed = allowed.reshape((1,) * (4 - allowed.ndim) + allowed.shape)
    return float(scale), allowed


def _check_broadcast(name, shape, full):
    if len(shape) > 4 or any(n not in (1, m) for n, m in zip(shape[::-1], full[::-1])):
        raise InputError(f"{name} must broadcast to (B, H, Tq, Tk) = {full}; got shape {shape}.")
