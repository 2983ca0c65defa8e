"""Scaled dot-product attention for every mechanism: masks, biases, a row rule and dropout.

    s = scale * q @ k.T + bias                       (Tq, D), (D, Tk) -> (Tq, Tk); -inf where hidden
    P = rule(s)                                      row by row; the softmax by default
    out = P @ v                                      (Tq, Tk), (Tk, Dv) -> (Tq, Dv)

Backwards:

    dv = P.T @ dout
    dP = dout @ v.T
    ds = the rule's backward of dP
    dbias, dq, dk = ds, scale * ds @ k, scale * ds.T @ q

The rules are in rules.py; a tile holds every key that its rows may see, so a rule has whole rows.
Keys and values may have fewer heads than the queries: each then serves a group of them.

All tiling happens here. The queries are cut into blocks of rows, a few heads and sequences at a
time, so that a tile of scores stays in cache; a tile covers only the keys that some row of it may
see, so what a causal or window mask hides is hardly computed. Up to KEEP_BYTES the weights are kept
for the backward. Beyond, each tile is recomputed bit for bit, and no (Tq, Tk) array exists: memory
grows with T, not with its square.
"""
import math
from typing import Any, NamedTuple

import numpy as np

from minattn import checks, masks, memory
from minattn.attention.rules import Rule, Softmax
from minattn.errors import InputError
from minattn.ops import keep_mask

TILE = 1 << 17            # scores per tile: with its gradient, about one L2 cache in float32
ROWS = 64                 # query rows per tile, at most: skips most of what a causal mask hides
KEEP_BYTES = 1 << 27      # weights kept for the backward, per call
SMALL = 1_000_000         # multiplications in a product: up to here OpenBLAS copies no operand


class Cache(NamedTuple):
    q: np.ndarray                 # (B, H, Tq, D)    as scored: log_length is multiplied in
    k: np.ndarray                 # (B, H, Tk, D)    repeated where a head serves a group
    v: np.ndarray                 # (B, H, Tk, Dv)
    out: np.ndarray               # (B, H, Tq, Dv)   the sink's gradient needs it
    lse: np.ndarray | None        # (B, H, Tq)  log of each row's denominator, -inf for an empty row
    tiles: list
    kept: list | None             # per tile (P, what the rule saved, dropout mask or None)
    scale: float
    softcap: float | None
    lengths: Any                  # of log_length: see _scale_by_length
    rule: Any
    biases: tuple                 # the mechanism's own, then the caller's
    bias: Any                     # the caller's, in the form in which it came
    groups: tuple                 # heads of k and of v, as given
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


@checks.quiet
def attend(q, k, v, *, scale=None, softcap=None, log_length=None, bias=None, causal=False,
           window=None, prefix=0, allowed=None, align="end", dropout=0.0, rng=None,
           return_weights=False, sink=None, own_bias=(), rule=None, **unknown):
    """Attention over the visible keys: out = P v.

    q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv)
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    G divides H; query head h reads head h // (H / G) of k and v (grouped keys, arXiv 2305.13245).

    scale    multiplies q k^T; 1/sqrt(D) if None (arXiv 1706.03762, eq. 1)
    softcap  c: scores become c tanh(s / c), before biases and mask (arXiv 2408.00118); None: off
    log_length    (H,): scores are multiplied by log_length_h log n_i, n_i keys being visible to
             query i by position and `allowed` (scalable softmax, arXiv 2501.19399)
    bias     added to the scores: an array that broadcasts to (B, H, Tq, Tk), an object that makes
             its own tiles (like positions.decay.DecayBias), or a tuple of these
    causal, window, prefix, allowed, align    who may see whom: see minattn.masks
    dropout  probability of zeroing a weight (the rest scaled up), drawn from rng; none without rng
    Three more are for mechanisms:
    sink     (H,) logit of an extra key without a value, for the softmax rule
    own_bias a tuple of biases that belong to the mechanism
    rule     a Rule of rules.py: how a row of scores becomes weights; softmax if None

    A NaN or infinity in v reaches every row of its tile, also rows whose mask hides that key, as a
    weight of 0 times NaN is NaN; in q or k it reaches only the rows that see it. Put zeros where
    padding may not be finite.
    A row that sees no key gives out = 0, lse = -inf (with a sink: lse = sink) and no gradient. All
    arrays are float32, or all float64, and so is the result. InputError names what does not fit.
    """
    biases = (*own_bias, *_as_tuple(bias))
    scale, softcap, dropout, allowed = _check(q, k, v, scale, softcap, log_length, biases, allowed,
                                              dropout, sink, rule, unknown)
    checks.generator(rng)
    return_weights = checks.flag("return_weights", return_weights)
    mask = masks.make(causal, window, prefix, align)
    dropout = 0 if rng is None else dropout
    rule = Softmax(sink) if rule is None else rule
    groups = k.shape[1], v.shape[1]
    k, v = repeat(k, q.shape[1]), repeat(v, q.shape[1])
    q, lengths = _scale_by_length(q, log_length, k.shape[2], mask, allowed)
    (B, H, Tq, _), (_, _, Tk, Dv) = q.shape, v.shape
    if return_weights:
        memory.weigh(f"weights of {B} x {H} x {Tq:,} x {Tk:,}", B * H * Tq * Tk * q.itemsize,
                     "leave out return_weights, or shorten the sequences")
    tiles = list(_tiles(B, H, Tq, Tk, mask))
    arrays = 1 + (softcap is not None) + rule.saves
    kept = [] if dropout or arrays * sum(map(_size, tiles)) * q.itemsize <= KEEP_BYTES else None
    out = _heads_last((B, H, Tq, Dv), q.dtype)
    lse = np.empty((B, H, Tq), q.dtype) if rule.has_lse else None
    weights = np.zeros((B, H, Tq, Tk), q.dtype) if return_weights else None
    cache = Cache(q, k, v, out, lse, tiles, kept, scale, softcap, lengths, rule, biases, bias,
                  groups, mask, allowed)

    kT = transposed(cache.k, groups[0])
    for t in tiles:
        P, saved = _weights(cache, t, kT)                  # 1.-4. P = rule(scale q k^T + bias)
        if lse is not None:
            lse[t.queries] = saved.rule
        keep = keep_mask(P.shape, dropout, rng, P.dtype) if dropout else None
        dropped = P if keep is None else P * keep          # 5. dropout
        np.matmul(dropped, v[t.keys], out=out[t.queries])  # 6. (R, K), (K, Dv) -> (R, Dv)
        if kept is not None:
            kept.append((P, saved, keep))
        if return_weights:
            weights[t.scores] = dropped
    return (out, cache, weights) if return_weights else (out, cache)


# the options that a caller of any mechanism may give
OPTIONS = [name for name in attend.__wrapped__.__kwdefaults__
           if name not in ("sink", "own_bias", "rule")]


@checks.quiet
def attend_backward(dout, cache, dlse=None):
    """dout (B, H, Tq, Dv) [, dlse (B, H, Tq)] -> {"q", "k", "v"} and, where given, more:

    "sink", "log_length", "own_bias" (a tuple) and "bias" (one gradient or a tuple, as attend was
    given it). dlse is for the softmax rule, whose cache has lse.
    """
    q, k, v, rule = cache.q, cache.k, cache.v, cache.rule
    size = dict(zip(("B", "H", "Tq", "Dv"), cache.out.shape))
    checks.arrays(size, q.dtype, dout=(dout, "B H Tq Dv"))
    dq, dk, dv = (_heads_last(x.shape, x.dtype) for x in (q, k, v))
    dk[:], dv[:] = 0, 0                                    # sums over tiles; dq is set row by row
    dbiases = [_zero_gradient(b) for b in cache.biases]
    kT = None if cache.kept is not None else transposed(k, cache.groups[0])
    vT = transposed(v, cache.groups[1])

    for n, t in reversed(list(enumerate(cache.tiles))):    # last rows first: they see most
        add_product = _set_product if t.queries[2].stop == q.shape[2] else _add_product
        if cache.kept is not None:
            P, saved, keep = cache.kept[n]
        else:                                              # 1.-4. again
            (P, saved), keep = _weights(cache, t, kT), None
        # 6. out = dropped @ v
        dropped = P if keep is None else P * keep
        add_product(dropped.swapaxes(2, 3), dout[t.queries], dv[t.keys])   # (K, R), (R, Dv)
        dP = _scores(dout[t.queries], vT, t)                        # (R, Dv), (Dv, K) -> (R, K)
        # 5. dropped = P * keep
        if keep is not None:
            dP *= keep
        # 4. P = rule(s)
        ds = rule.backward(dP, P, saved.rule, *(() if dlse is None else (dlse[t.queries],)))
        # 3. s = rescored + bias
        _add_bias_gradients(dbiases, ds, cache.biases, t)
        # 2. rescored: the rule's own change of the scores, softcap
        ds = rule.rescore_backward(ds, saved.rescore)
        if cache.softcap is not None:
            ds *= 1 - saved.capped * saved.capped
        # 1. scale q k^T
        np.matmul(ds, k[t.keys], out=dq[t.queries])                 # (R, K), (K, D) -> (R, D)
        add_product(ds.swapaxes(2, 3), q[t.queries], dk[t.keys])    # (K, R), (R, D) -> (K, D)
    dq *= cache.scale
    dk *= cache.scale
    grads = {"k": sum_groups(dk, cache.groups[0]), "v": sum_groups(dv, cache.groups[1]),
             **_name_bias_gradients(dbiases, cache)}
    grads["q"], dlog_length = _scale_by_length_backward(dq, q, cache.lengths)
    if dlog_length is not None:
        grads["log_length"] = dlog_length
    if cache.rule.sink is not None:                        # one more key, whose value is 0: dP = 0
        rowsum = np.einsum("bhid,bhid->bhi", dout, cache.out) - (0 if dlse is None else dlse)
        p_sink = np.exp(cache.rule.sink[:, None] - cache.lse)
        grads["sink"] = -(p_sink * rowsum).sum(axis=(0, 2))
    return grads


def attend_last(q, k, v, *, bias=None, sink=None, softcap=None, rule=None):
    """attend for one query that sees every key, as in generation; unchecked, no cache, q scaled.

        s = q k^T + bias     P = exp(s - max s) / sum exp(s - max s)     out = P v

    q (B, H, 1, D), k (B, G, Tk, D), v (B, G, Tk, Dv), bias as (B, H, 1, Tk), sink (H,)
    -> out (B, H, 1, Dv)
    """
    B, H = q.shape[:2]

    def per_group(x, heads):
        """(B, H, 1, n) -> (B, heads, H / heads, n): the queries of a group, side by side"""
        return x.reshape(B, heads, H // heads, -1)

    s = per_group(q, k.shape[1]) @ k.swapaxes(2, 3)        # 1. (1, D), (D, Tk) -> (1, Tk)
    s = s.reshape(B, H, 1, -1)
    if softcap is not None:
        s = softcap * np.tanh(s / softcap)
    if rule is not None:
        s, rescored = rule.rescore(s)
    if bias is not None:
        s += bias
    if rule is not None:
        P, _ = rule.forward(s, rescored)                   # 2.-4. as in attend
        return (per_group(P, v.shape[1]) @ v).reshape(B, H, 1, -1)
    m = s.max(axis=3, keepdims=True)                       # 2. row maximum
    if sink is not None:
        m = np.maximum(m, sink[:, None, None])
    s -= m
    np.exp(s, out=s)                                       # 3. numerators
    total = s.sum(axis=3, keepdims=True)                   # 4. denominators
    if sink is not None:
        total += np.exp(sink[:, None, None] - m)
    out = (per_group(s, v.shape[1]) @ v).reshape(B, H, 1, -1)     # 5. (1, Tk), (Tk, Dv) -> (1, Dv)
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


class Saved(NamedTuple):
    """What the backward of a tile needs beside its weights."""
    capped: Any                   # tanh(s / softcap), or None
    rescore: Any                  # what rule.rescore returned
    rule: Any                     # what rule.forward returned


def _set_product(a, b, total):
    np.matmul(a, b, out=total)


def _add_product(a, b, total):
    total += a @ b


def transposed(x, groups):
    """(B, H, T, D) -> (B, H, D, T), stored in that order: products take half as long as with a view
    """
    once = np.ascontiguousarray(x[:, ::x.shape[1] // groups])   # without gaps: read faster below
    return repeat(np.ascontiguousarray(once.swapaxes(2, 3)), x.shape[1])


def _scores(q, kT, t):
    """q k^T of one tile: (b, h, R, D) and all keys (B, H, D, Tk) -> (b, h, R, K)"""
    batch, heads, columns = t.keys
    kT = kT[batch, heads, :, columns]
    s = np.empty((*q.shape[:3], kT.shape[3]), q.dtype)
    for part in small_blocks(q, kT):
        np.matmul(q, kT[..., part], out=s[..., part])
    return s


def small_blocks(a, b):
    """Slices of b's columns, (R, D) @ (D, K), so narrow that each product is SMALL (or has 32)"""
    each = max(1, a.shape[2] * a.shape[3])
    return _slices(b.shape[3], max(32, SMALL // each // 32 * 32))


def _weights(cache, t, kT):
    """The weights of one tile: (b, h, R, K), Saved"""
    s = _scores(cache.q[t.queries] * cache.scale, kT, t)                     # 1. scale q k^T
    capped = None
    if cache.softcap is not None:
        capped = np.tanh(s / cache.softcap)
        s = cache.softcap * capped
    s, rescored = cache.rule.rescore(s)                                      # 2. softcap, rescore
    for b in cache.biases:
        array = isinstance(b, np.ndarray)
        s += b[_part(b, t)] if array else b.tile(*t.queries[:2], t.p, t.j)
    for columns, hidden in t.hidden:                                         # 3. biases and mask
        np.copyto(s[..., columns], -np.inf, where=hidden)   # a large finite number would leak
    if cache.allowed is not None:
        np.copyto(s, -np.inf, where=~cache.allowed[_part(cache.allowed, t)])
    P, saved = cache.rule.forward(s, rescored, t.queries[1])                 # 4. P = rule(s)
    return P, Saved(capped, rescored, saved)


def _heads_last(shape, dtype):
    """An empty (B, H, T, D) array laid out as (B, T, H, D): merging the heads later is free."""
    B, H, T, D = shape
    return np.empty((B, T, H, D), dtype).swapaxes(1, 2)


# ---------------------------------------------------------------- groups of heads, visible lengths


def repeat(x, H):
    """(B, G, T, ...) -> (B, H, T, ...): each as often as query heads share it; one alone: a view"""
    B, G, *rest = x.shape
    if G == H:
        return x
    return np.broadcast_to(x, (B, H, *rest)) if G == 1 else np.repeat(x, H // G, axis=1)


def sum_groups(dx, G):
    """The transpose of repeat: (B, H, T, D) -> (B, G, T, D)"""
    B, H, T, D = dx.shape
    return dx if G == H else dx.reshape(B, G, H // G, T, D).sum(axis=2)


def _scale_by_length(q, log_length, Tk, mask, allowed):
    """q log_length log n, and (log_length, log n (B or 1, H or 1, Tq), q); q, None without it"""
    if log_length is None:
        return q, None
    n = masks.count_seen(masks.seen(q.shape[2], Tk, mask, allowed))
    log_n = np.log(np.maximum(n, 1)).astype(q.dtype)
    log_n = log_n.reshape((1,) * (3 - log_n.ndim) + log_n.shape)
    return q * (log_length[:, None] * log_n)[..., None], (log_length, log_n, q)


def _scale_by_length_backward(dq, scaled, lengths):
    """dq of the scaled queries -> dq, dlog_length (H,); dq, None without log_length"""
    if lengths is None:
        return dq, None
    log_length, log_n, q = lengths
    per_row = np.einsum("bhid,bhid->bhi", dq, q)
    return dq * (log_length[:, None] * log_n)[..., None], (per_row * log_n).sum(axis=(0, 2))


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
    if axes == (2,):                                       # as products, these two are faster
        return (np.ones(x.shape[2], x.dtype) @ x).reshape(shape)
    if axes == (3,):
        return (x @ np.ones(x.shape[3], x.dtype)).reshape(shape)
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


def refuse(options, names):
    """Raise InputError for the core's options that a mechanism has no use for."""
    for name in names:
        if options.get(name) is not None:
            checks.choice("option", name, [known for known in OPTIONS if known not in names])


def check_arguments(q, k, v):
    """q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv), G dividing H -> their sizes by symbol"""
    size = checks.arrays(q=(q, "B H Tq D"), k=(k, "B G Tk D"), v=(v, "B Gv Tk Dv"))
    for name, heads in (("k", size["G"]), ("v", size["Gv"])):
        if not heads or size["H"] % heads:
            raise InputError(f"{name}: its number of heads must divide q's, {size['H']}; "
                             f"got {heads}.")
    if not size["D"]:
        raise InputError(f"q: axis 3 (D) must be at least 1; got shape {q.shape}.")
    return size


def _check(q, k, v, scale, softcap, log_length, biases, allowed, dropout, sink, rule, unknown):
    """attend's arguments, checked -> Python's numbers, `allowed` with 4 axes"""
    for name in unknown:
        raise InputError(f"unknown option {name!r}; attention takes {', '.join(OPTIONS)}."
                         f"{checks.nearest(name, OPTIONS)}")
    size = check_arguments(q, k, v)
    full = tuple(size[axis] for axis in ("B", "H", "Tq", "Tk"))
    scale = checks.number("scale", 1 / math.sqrt(size["D"]) if scale is None else scale)
    checks.holds(q.dtype, "scale", scale)
    dropout = checks.number("dropout", dropout, 0, high=0.999)
    if softcap is not None:
        softcap = float(checks.number("softcap (None: off)", softcap, above=0))
        checks.holds(q.dtype, "softcap", softcap)
    if log_length is not None:
        checks.arrays({"H": size["H"]}, q.dtype, log_length=(log_length, "H"))
        checks.finite(log_length=log_length)
    if rule is not None and not (isinstance(rule, Rule) and hasattr(rule, "forward")):
        raise InputError("rule must be a Rule, as in minattn.attention.rules; "
                         f"got {checks.shown(rule)}.")
    if sink is not None and rule is not None:
        raise InputError(f"a sink needs softmax weights; {type(rule).__name__} rows have none.")
    for bias in biases:
        if type(bias) in checks.PLAIN:
            if bias.dtype != q.dtype:
                raise InputError(f"bias must have q's dtype, {q.dtype}; got {bias.dtype}.")
            _check_broadcast("bias", bias.shape, full)
        elif not hasattr(bias, "tile") or isinstance(bias, (np.ndarray, type)):
            kind = type(bias).__name__
            raise InputError(f"bias must be an array or have a tile method; got {kind}.")
    if sink is not None:
        checks.arrays({"H": size["H"]}, q.dtype, sink=(sink, "H"))
        checks.finite(sink=sink)
    if allowed is not None:
        if type(allowed) not in checks.PLAIN or allowed.dtype != bool:
            kind = getattr(allowed, "dtype", type(allowed).__name__)
            raise InputError(f"allowed must be a boolean array, True = may attend; got {kind}.")
        _check_broadcast("allowed", allowed.shape, full)
        allowed = allowed.reshape((1,) * (4 - allowed.ndim) + allowed.shape)
    return float(scale), softcap, dropout, allowed


def _check_broadcast(name, shape, full):
    if len(shape) > 4 or any(n not in (1, m) for n, m in zip(shape[::-1], full[::-1])):
        raise InputError(f"{name} must broadcast to (B, H, Tq, Tk) = {full}; got shape {shape}.")
