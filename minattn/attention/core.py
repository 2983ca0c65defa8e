"""Scaled dot-product attention, once, for every mechanism: masks, bias, sink, tiles, and the gradient of all of it.

    s = scale * q k^T + bias        P_ij = exp(s_ij) / ( sum_visible_k exp(s_ik) [ + exp(sink) ] )        out = P v

This is the only place that tiles. The queries are cut into blocks of rows, a few heads and sequences at a time, so that
one tile of scores stays in cache; a tile holds only the keys that some row of it may see, so what a causal or window
mask hides is never computed. Up to KEEP_BYTES the weights are kept for the backward; beyond, each tile is made again,
to the same bits, and no (Tq, Tk) array ever exists: memory grows with T, not with its square.
"""
import math
from typing import NamedTuple

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
    lse: np.ndarray               # (B, H, Tq)      log of each row's denominator, sink included; -inf if it sees nothing
    kept: list | None          # per tile (P, dropout mask or None); None: made again
    scale: float
    biases: tuple                 # arrays (4 axes) or objects with .tile / .gradient / .tile_backward
    bias_shapes: tuple            # the shapes in which array biases came (None for an object)
    bare: bool                    # one array, not in a tuple
    sink: np.ndarray | None    # (H,)
    mask: masks.Mask
    allowed: np.ndarray | None


class Tile(NamedTuple):
    """Which scores are made together: some sequences and heads, a block of query rows, the keys that it may see."""
    batch: slice
    heads: slice
    rows: slice
    p: np.ndarray                 # (R,)  the key position of each row
    keys: slice
    margins: tuple                # ((columns of the tile, hidden there), ...): only the edges of a mask need one


def attend(q, k, v, *, scale=None, bias=None, sink=None, causal=False, window=None, prefix=0, allowed=None, align="end",
           dropout=0.0, rng=None, return_weights=False, **unknown):
    """Attention over the visible keys: out = P v.

    q (B, H, Tq, D), k (B, H, Tk, D), v (B, H, Tk, Dv) -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]

    scale    multiplies q k^T; 1/sqrt(D) if None (arXiv 1706.03762, eq. 1)
    bias     added to the scores: an array that broadcasts to (B, H, Tq, Tk), an object that makes its own tiles
             (as positions.decay.DecayBias), or a tuple of these
    sink     (H,) logit of an extra key without a value
    causal, window, prefix, allowed, align    who may see whom: see minattn.masks
    dropout  probability with which a weight is zeroed (the rest scaled up), drawn from rng; none without an rng

    A row that sees no key gives out = 0, lse = -inf (with a sink: lse = sink) and no gradient. All arrays share one
    dtype, float32 or float64, and so does the result. InputError names the argument that does not fit.
    """
    if unknown:
        known = ("scale", "bias", "causal", "window", "prefix", "allowed", "align", "dropout", "rng", "return_weights")
        name = next(iter(unknown))
        raise InputError(f"unknown option {name!r}; attention takes {', '.join(known)}.{checks.nearest(name, known)}")
    size = checks.arrays(q=(q, "B H Tq D"), k=(k, "B H Tk D"), v=(v, "B H Tk Dv"))
    B, H, Tq, Tk, D, Dv = (size[s] for s in ("B", "H", "Tq", "Tk", "D", "Dv"))
    mask = masks.make(causal, window, prefix, align)
    scale = 1 / math.sqrt(D) if scale is None else scale
    checks.number("scale", scale)
    scale = float(scale)                                              # a NumPy number would set the dtype
    checks.number("dropout", dropout, 0, high=0.999)
    biases, bias_shapes = _biases(bias, (B, H, Tq, Tk), q.dtype)
    if sink is not None:
        checks.arrays({"H": H}, q.dtype, sink=(sink, "H"))
        checks.finite(sink=sink)
    if allowed is not None:
        allowed = _allowed(allowed, (B, H, Tq, Tk))

    out = _heads_last(B, H, Tq, Dv, q.dtype)
    lse = np.empty((B, H, Tq), q.dtype)
    tiles = list(_tiles(B, H, Tq, Tk, mask))
    size = sum((t.batch.stop - t.batch.start) * (t.heads.stop - t.heads.start) * len(t.p) * (t.keys.stop - t.keys.start) for t in tiles)
    kept = [] if size * q.itemsize <= KEEP_BYTES or (dropout and rng is not None) else None
    weights = np.zeros((B, H, Tq, Tk), q.dtype) if return_weights else None

    for t in tiles:
        s = _scores(q, k, scale, biases, allowed, t)                  # 1. s = scale q k^T + bias, -inf where hidden
        P, lse[t.batch, t.heads, t.rows] = _softmax(s, sink, t)       # 2.-5. weights, in the place of s
        drop = keep_mask(P.shape, dropout, rng, P.dtype) if dropout and rng is not None else None
        dropped = P if drop is None else P * drop                     # 6. dropout, if any
        np.matmul(dropped, v[t.batch, t.heads, t.keys], out=out[t.batch, t.heads, t.rows])   # 7. (R, K), (K, Dv) -> (R, Dv)
        if kept is not None:
            kept.append((P, drop))
        if return_weights:
            weights[t.batch, t.heads, t.rows, t.keys] = dropped
    cache = Cache(q, k, v, out, lse, kept, scale, biases, bias_shapes, isinstance(bias, np.ndarray), sink, mask, allowed)
    return (out, cache, weights) if return_weights else (out, cache)


def attend_last(q, k, v, *, bias=None, sink=None):
    """attend for one query that sees every key, as each step of decoding has it: unchecked, nothing kept, q already scaled.

    q (B, H, 1, D), k (B, H, Tk, D), v (B, H, Tk, Dv), bias broadcastable to (B, H, 1, Tk), sink (H,) -> out (B, H, 1, Dv)
    """
    s = q @ k.swapaxes(2, 3)                                          # 1. scores           (1, D), (D, Tk) -> (1, Tk)
    if bias is not None:
        s += bias
    m = s.max(axis=3, keepdims=True)                                  # 2. the true row maximum
    if sink is not None:
        m = np.maximum(m, sink[:, None, None])
    s -= m
    np.exp(s, out=s)                                                  # 3. numerators
    total = s.sum(axis=3, keepdims=True)                              # 4. denominators
    if sink is not None:
        total += np.exp(sink[:, None, None] - m)
    out = s @ v                                                       # 5. (1, Tk), (Tk, Dv) -> (1, Dv)
    out /= total
    return out


def attend_backward(dout, cache, dlse=None):
    """dout (B, H, Tq, Dv) [, dlse (B, H, Tq)] -> {"q", "k", "v"} and, where given, {"bias", "sink"}.

    A tuple of biases, or one that makes its own tiles, comes back as a tuple of gradients under "bias".
    """
    q, k, v, out, lse, kept, scale, biases, bias_shapes, bare, sink, mask, allowed = cache
    (B, H, Tq, D), Tk, Dv = q.shape, k.shape[2], v.shape[3]
    checks.arrays({"B": B, "H": H, "Tq": Tq, "Dv": Dv}, q.dtype, dout=(dout, "B H Tq Dv"))
    dq, dk = _heads_last(B, H, Tq, D, q.dtype), _heads_last(B, H, Tk, D, q.dtype)
    dv = _heads_last(B, H, Tk, Dv, q.dtype)
    dq[:], dk[:], dv[:] = 0, 0, 0
    dbiases = tuple(np.zeros_like(b) if isinstance(b, np.ndarray) else b.gradient() for b in biases)

    for n, t in enumerate(_tiles(B, H, Tq, Tk, mask)):
        if kept is not None:
            P, drop = kept[n]
        else:                                                         # 1.-5. once more
            P, drop = _softmax(_scores(q, k, scale, biases, allowed, t), sink, t)[0], None
        do = dout[t.batch, t.heads, t.rows]
        # 7. out = dropped @ v
        dropped = P if drop is None else P * drop
        dv[t.batch, t.heads, t.keys] += dropped.swapaxes(2, 3) @ do         # (K, R), (R, Dv) -> (K, Dv)
        dP = do @ v[t.batch, t.heads, t.keys].swapaxes(2, 3)                # (R, Dv), (Dv, K) -> (R, K)
        # 6. dropped = P * drop
        if drop is not None:
            dP *= drop
        # 5, 4, 3, 2. P = exp(s - m) / total: what raises a whole row changes nothing and is taken out. That is
        # rowsum(dout * out); summed from P dP it rounds as dP does, and a row with a single key gets exactly 0.
        dP -= np.einsum("bhij,bhij->bhi", P, dP)[..., None]
        if dlse is not None:
            dP += dlse[t.batch, t.heads, t.rows, None]
        ds = np.multiply(dP, P, out=dP)                               # (b, H, R, K)
        # 1. s = scale * q k^T + bias
        dq[t.batch, t.heads, t.rows] = ds @ k[t.batch, t.heads, t.keys]           # (R, K), (K, D) -> (R, D)
        dk[t.batch, t.heads, t.keys] += ds.swapaxes(2, 3) @ q[t.batch, t.heads, t.rows]
        for b, db in zip(biases, dbiases):
            if db is None:
                continue
            if isinstance(b, np.ndarray):
                part = _part(b, t)
                db[part] += _sum_to(ds, db[part].shape)
            else:
                b.tile_backward(ds, t.batch, t.heads, t.p, np.arange(t.keys.start, t.keys.stop), db)
    dq *= scale
    dk *= scale
    grads = {"q": dq, "k": dk, "v": dv}
    if biases:
        dbiases = tuple(db if shape is None else db.reshape(shape) for db, shape in zip(dbiases, bias_shapes))
        grads["bias"] = dbiases[0] if bare else dbiases
    if sink is not None:                                              # the sink is one more key, with value 0: dP = 0
        delta = np.einsum("bhid,bhid->bhi", dout, out) - (0 if dlse is None else dlse)
        grads["sink"] = -(np.exp(sink[:, None] - lse) * delta).sum(axis=(0, 2))      # (B, H, Tq) -> (H,)
    return grads


def _tiles(B, H, Tq, Tk, mask):
    """The tiles of one call, in a fixed order."""
    p = masks.positions(Tq, Tk, mask.align)
    for r in range(0, Tq, ROWS):
        rows = slice(r, min(r + ROWS, Tq))
        lo, a, b, hi = masks.edges(mask, p[rows], Tk)
        margins = tuple((slice(x - lo, y - lo), ~masks.rule(mask, p[rows], np.arange(x, y)))
                        for x, y in ((lo, a), (b, hi)) if x < y)
        together = max(1, TILE // (len(p[rows]) * max(1, hi - lo)))             # score rows x keys that share a tile
        n_heads, n_batch = min(H, together), max(1, together // H)
        for g in range(0, B, n_batch):
            for h in range(0, H, n_heads):
                yield Tile(slice(g, min(g + n_batch, B)), slice(h, min(h + n_heads, H)), rows, p[rows], slice(lo, hi), margins)


def _scores(q, k, scale, biases, allowed, t):
    """The masked scores of one tile: (b, H, R, K)"""
    s = (q[t.batch, t.heads, t.rows] * scale) @ k[t.batch, t.heads, t.keys].swapaxes(2, 3)      # (R, D), (D, K) -> (R, K)
    for b in biases:
        s += b[_part(b, t)] if isinstance(b, np.ndarray) else b.tile(t.batch, t.heads, t.p, np.arange(t.keys.start, t.keys.stop))
    for columns, hidden in t.margins:
        np.copyto(s[..., columns], -np.inf, where=hidden)             # -inf, never a large finite number: it would leak
    if allowed is not None:
        np.copyto(s, -np.inf, where=~allowed[_part(allowed, t)])
    return s


def _softmax(s, sink, t):
    """Weights and log of the denominators of one tile; s is overwritten.   (b, h, R, K) -> (b, h, R, K), (b, h, R)"""
    m = s.max(axis=3, initial=-np.inf)                                # 2. the true row maximum
    if sink is not None:
        m = np.maximum(m, sink[t.heads, None])
    m[m == -np.inf] = 0
    s -= m[..., None]
    P = np.exp(s, out=s)                                              # 3. numerators, at most 1
    total = np.matmul(P, np.ones(P.shape[3], P.dtype))                # 4. denominators: a product is NumPy's fastest row sum
    if sink is not None:
        total += np.exp(sink[t.heads, None] - m)
    empty = total == 0
    total[empty] = 1
    P /= total[..., None]                                             # 5. weights
    return P, np.where(empty, -np.inf, m + np.log(total))


def _heads_last(B, H, T, D, dtype):
    """An empty (B, H, T, D) array laid out as (B, T, H, D), so that merging the heads later costs no copy."""
    return np.empty((B, T, H, D), dtype).swapaxes(1, 2)


def _part(array, t):
    """The index of a tile in an array whose axes of size 1 stand for all."""
    return tuple(part if n > 1 else slice(None) for part, n in zip((t.batch, t.heads, t.rows, t.keys), array.shape))


def _sum_to(x, shape):
    """Undo broadcasting: sum x over the axes where `shape` has size 1."""
    axes = tuple(a for a, n in enumerate(shape) if n == 1 and x.shape[a] != 1)
    return x.sum(axis=axes, keepdims=True) if axes else x


def _biases(bias, full, dtype):
    """A bias in any accepted form -> (tuple of 4-axis arrays or tile makers, the shapes in which the arrays came)"""
    if bias is None:
        return (), ()
    biases, shapes = [], []
    for b in (bias,) if not isinstance(bias, tuple) else bias:
        if isinstance(b, np.ndarray):
            if b.dtype != dtype:
                raise InputError(f"bias must be {dtype} as q; got {b.dtype}.")
            shapes.append(b.shape)
            b = _four_axes("bias", b, full)
        elif hasattr(b, "tile"):
            shapes.append(None)
        else:
            raise InputError(f"bias must be an array or have a tile method; got {type(b).__name__}.")
        biases.append(b)
    return tuple(biases), tuple(shapes)


def _allowed(allowed, full):
    if not isinstance(allowed, np.ndarray) or allowed.dtype != bool:
        raise InputError(f"allowed must be a boolean array, True = may attend; got {getattr(allowed, 'dtype', type(allowed).__name__)}.")
    return _four_axes("allowed", allowed, full)


def _four_axes(name, array, full):
    """array with leading axes of size 1 added; raises unless it broadcasts to full = (B, H, Tq, Tk)."""
    shape = (1,) * (4 - array.ndim) + array.shape
    if array.ndim > 4 or any(n not in (1, m) for n, m in zip(shape, full)):
        raise InputError(f"{name} must broadcast to (B, H, Tq, Tk) = {full}; got shape {array.shape}.")
    return array.reshape(shape)
