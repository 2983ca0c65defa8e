"""A training step on several threads whose result does not depend on how many there are.

The batch is cut into a fixed number of chunks; each is one forward and backward on one thread, with the matrix
library on one thread too (NumPy lets go of the interpreter lock while it computes). Gradients are added in the order
of the chunks, so 1, 2 or 3 threads give the same bits.
"""
import ctypes
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from minattn import model, optim

OPTIMISER_RANGE = 1 << 18      # entries per task of the optimiser
SUMS = 4                       # tasks that add the chunks' gradients: one per parameter costs more in hand-overs than it computes


@contextmanager
def workers(threads):
    """A pool of threads, while the matrix library keeps to one thread inside each."""
    from threadpoolctl import threadpool_limits
    keep_freed_memory()
    quiet = dict(initializer=np.seterr, initargs=("ignore",))     # the trainer finds what is not finite, and names it
    with threadpool_limits(1), ThreadPoolExecutor(threads, **quiet) as pool:
        yield pool


def keep_freed_memory():
    """Ask glibc to reuse freed arrays instead of returning them: fresh pages cost more than the arithmetic on them.

    Does nothing where the C library is another one.
    """
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_ARENA_MAX, 1)                    # one heap for all threads: what one frees another can use
    mallopt(M_MMAP_THRESHOLD, 32 << 20)        # the largest that glibc takes
    mallopt(M_TRIM_THRESHOLD, 512 << 20)
    mallopt(M_TOP_PAD, 16 << 20)


def chunks_of(B, n):
    """Cut B sequences into at most n slices of nearly equal length."""
    bounds = [round(i * B / min(n, B)) for i in range(min(n, B) + 1)]
    return [slice(a, b) for a, b in zip(bounds, bounds[1:])]


def loss_and_gradients(pool, params, buffers, x, y, config, *, chunks, out, seed=None):
    """Mean loss of a batch and its gradient, chunk by chunk.

    x, y (B, T) -> loss, new buffers; the gradients are written into `out`, a dict of arrays shaped as params.
    seed (any tuple of integers): dropout draws from seed + the chunk's number; None: no dropout.
    """
    parts = chunks_of(len(x), chunks)

    def one(n):
        rng = np.random.default_rng([*seed, n]) if seed is not None and config.dropout else None
        part, share = parts[n], len(x[parts[n]]) / len(x)
        _, loss, cache = model.forward(params, x[part], config, targets=y[part], buffers=buffers, training=True, rng=rng)
        return loss, model.backward(cache, config, share), cache.buffers, share

    done = list(pool.map(one, range(len(parts))))
    names = list(out)

    def add(names):
        for name in names:
            first, *rest = (grads[name] for _, grads, _, _ in done)
            if rest:
                np.add(first, rest[0], out=out[name])
            else:
                out[name][...] = first
            for grad in rest[1:]:
                out[name] += grad

    list(pool.map(add, [names[i::SUMS] for i in range(SUMS)]))
    # eq. 9's running mean is linear in the batch, so the chunks' means average to the batch's
    new = {name: sum(share * b[name] for _, _, b, share in done).astype(old.dtype) for name, old in buffers.items()}
    return math.fsum(loss * share for loss, _, _, share in done), new


def adamw(pool, p, g, m, v, decayed, step, lr, weight_decay, **options):
    """optim.adamw with its ranges spread over the threads; the first `decayed` entries decay."""
    bounds = sorted({0, decayed, p.size, *range(0, p.size, OPTIMISER_RANGE)})

    def one(a, b):
        part = slice(a, b)
        optim.adamw(p[part], g[part], m[part], v[part], step, lr, weight_decay=weight_decay if a < decayed else 0.0, **options)

    list(pool.map(one, bounds[:-1], bounds[1:]))


def mean_loss(pool, params, buffers, x, y, config, group=None):
    """Loss over many sequences without their gradients, x, y (N, T): the mean over all tokens."""
    group = group or max(1, 2048 // x.shape[1])

    def one(i):
        return model.forward(params, x[i:i + group], config, targets=y[i:i + group], buffers=buffers)[1] * len(x[i:i + group])

    return math.fsum(pool.map(one, range(0, len(x), group))) / len(x)
