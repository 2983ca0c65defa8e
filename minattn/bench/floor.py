"""The floor of a number: how long its matrix products take by themselves.

The products are read off the caches that a real forward leaves, so they have the step's own shapes,
memory layouts and tiles. They are done in the step's order, on as many cores, each into an array
that exists already, and nothing else is done. Sums are not counted, also where we write them as a
product with ones or with a vector, which is faster.
"""
import numpy as np

from minattn import ops
from minattn.attention import core, linear_recurrence


def of_step(cache):
    """The products of a step, given what its model.forward cached -> pairs of arrays, in order"""
    forward, backward = products(cache.layers)
    x, wte = cache.head
    dlogits = x @ wte.T
    return [*forward, (x, wte.T), (dlogits.T, x), (dlogits, wte), *backward]


def of_token(decoder, rows):
    """The products of one decode.step with the weights, for so many sequences -> pairs of arrays

    What a mechanism multiplies with its keys and values is not in them.
    """
    linears = [linear for prepared in decoder.layers
               for linear in (prepared.attn_in, prepared.attn_out, prepared.mlp_in,
                              prepared.mlp_out)]
    weights = [linear.weight for linear in (*linears, decoder.head)]
    return [(np.ones((1, rows, w.shape[1]), w.dtype), w) for w in weights]   # w: panels, n, PANEL


def products(cache):
    """Every product of a forward that left this cache, and of its backward: two lists of (a, b)"""
    if isinstance(cache, ops.LinearCache):
        return _linear(cache.x, cache.weight)
    if isinstance(cache, core.Cache):
        return _attention(cache)
    if isinstance(cache, linear_recurrence.Cache):
        return _recurrence(cache)
    parts = list(cache.values()) if isinstance(cache, dict) else cache
    forward, backward = [], []
    if isinstance(parts, (list, tuple)):
        for part in parts:
            first, then = products(part)
            forward += first
            backward = then + backward
    return forward, backward


def timed(pairs):
    """A function that does these products once."""
    shared, work = {}, []
    for a, b in pairs:
        shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        work.append((a, b, shared.setdefault(shape, np.empty(shape, a.dtype))))

    def run():
        for a, b, out in work:
            np.matmul(a, b, out=out)

    return run


def _linear(x, weight):
    """y = x W;  dW = x^T dy, dx = dy W^T"""
    dy = x @ weight
    return [(x, weight)], [(x.T, dy), (dy, weight.T)]


def _attention(cache):
    """Tile by tile: s = q k^T, out = P v;  dv = P^T dout, dP = dout v^T, dq = ds k, dk = ds^T q"""
    forward, backward = [], []
    kT, vT = (core.transposed(x, n) for x, n in zip((cache.k, cache.v), cache.groups))

    def scores(q, kT, t):
        batch, heads, columns = t.keys
        kT = kT[batch, heads, :, columns]
        return [(q, kT[..., part]) for part in core.small_blocks(q, kT)]

    for n, t in enumerate(cache.tiles):
        q, k, v, dout = cache.q[t.queries], cache.k[t.keys], cache.v[t.keys], cache.out[t.queries]
        if cache.kept is None:
            P = np.zeros((*q.shape[:3], k.shape[2]), q.dtype)
            backward += scores(q, kT, t)                   # the scores are computed again
        else:
            P = cache.kept[n][0]
        P_T = P.swapaxes(2, 3)
        forward += [*scores(q, kT, t), (P, v)]
        backward += [(P_T, dout), *scores(dout, vT, t), (P, k), (P_T, q)]
    return forward, backward


def _recurrence(cache):
    """Chunk by chunk, S the sum of phi(k)^T [v, 1]; its gradient has the same shape"""
    forward, back, again = [], [], []
    for start in range(0, cache.v.shape[2], linear_recurrence.CHUNK):
        rows = slice(start, start + linear_recurrence.CHUNK)
        q, k, v = cache.phi_q[:, :, rows], cache.phi_k[:, :, rows], cache.v[:, :, rows]
        v = np.concatenate([v, np.ones_like(v[..., :1])], axis=3)
        q_T, k_T, v_T = (x.swapaxes(2, 3) for x in (q, k, v))
        A, S = q @ k_T, k_T @ v
        A_T, S_T = A.swapaxes(2, 3), S.swapaxes(2, 3)
        forward += [(q, k_T), (A, v), (q, S), (k_T, v)]
        again += [(v, S_T), (k_T, v)]                                       # its first sweep
        back += [(q, k_T), (v, v_T), (A, k), (A_T, q), (v, S_T), (A_T, v), (k, S), (q_T, v)]
    return forward, again + back

