"""One training step, on several cores, whose result does not depend on how many there are.

    state = start(params, buffers)                     parameters and moments as flat vectors
    share(state, config, settings, threads)            processes for the chunks, where possible
    train_step(pool, state, x, y, config, settings)    loss and gradients, then update(...)
    update(state, settings, pool)                      norm, clipping, learning rate, AdamW, Muon

The batch is cut into a fixed number of chunks; each is one forward and backward on one core, with
the matrix library on one thread: see chunks.py. Gradients are added in the order of the chunks, so
the result has the same bits on 1, 2 or 3 cores, on threads or in processes.
"""
import ctypes
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from minattn import checks, model, muon, optim
from minattn.chunks import Chunk, Team, can_fork, gradients, split
from minattn.errors import NotFinite

# ------------------------------------------------------------------------------- one training step


@dataclass
class State:
    """A model in training: flat vectors, laid out as `shapes`, and views of them by name."""
    params: dict
    grads: dict
    buffers: dict
    p: np.ndarray        # every parameter, flat
    g: np.ndarray        # its gradient
    m: np.ndarray        # AdamW's first moment
    v: np.ndarray        # and its second
    decayed: int         # so many entries of p decay, from the first on
    shapes: dict
    step: int            # steps done
    muon: list           # (name, columns) of the matrices that Muon takes: the first entries of p
    team: Team | None = None    # computes the chunks, in place of threads

    def named(self, vector):
        """The arrays of a flat vector, named as the parameters."""
        return optim.views_of(vector, self.shapes)


def start(params, buffers=None, decay="2d", *, m=None, v=None, step=0, matrices=()):
    """The State that training begins with, or goes on from after `step` steps.

    The arrays are copied. m, v: the moments as dicts, zero by default. decay: see optim.layout.
    matrices: (name, columns) of what Muon takes, as model.matrices lists it; AdamW takes the rest.
    """
    shapes, decayed = optim.layout(params, decay, [name for name, _ in matrices])

    def flat(arrays):
        return np.concatenate([arrays[name].ravel() for name in shapes])

    p = flat(params)
    g = np.zeros_like(p)
    m = flat(m) if m else np.zeros_like(p)
    v = flat(v) if v else np.zeros_like(p)
    views, grads = (optim.views_of(vector, shapes) for vector in (p, g))
    params = {name: views[name] for name in params}
    return State(params, grads, dict(buffers or {}), p, g, m, v, decayed, shapes, step,
                 list(matrices))


def share(state, config, settings, threads):
    """If this process can fork, start others that compute chunks with it; state.team.close() ends
    them.
    """
    helpers = min(threads, settings.chunks) - 1
    if helpers and can_fork():
        with suppress(OSError):              # no process can be had: threads do it all
            state.team = Team(state, config, settings.chunks, helpers)


def train_step(pool, state, x, y, config, settings):
    """One step on a batch x, y (B, T), in place -> (loss, norm of the gradient, learning rate).

    settings: a train.Settings. Raises NotFinite for a loss, gradient or parameter that is not.
    """
    seed = (settings.seed, state.step, 1)
    loss, buffers = loss_and_gradients(pool, state.params, state.buffers, x, y, config,
                                       chunks=settings.chunks, out=state.grads, seed=seed,
                                       team=state.team)
    if not math.isfinite(loss):
        raise NotFinite("the loss")
    norm, lr = update(state, settings, pool)
    state.buffers = buffers
    return loss, norm, lr


def update(state, settings, pool=None):
    """Clip state.grads and take one step -> (norm before clipping, AdamW's learning rate)."""
    norm = optim.global_norm(state.grads)
    if not math.isfinite(norm):
        raise NotFinite(f"the gradient of {_not_finite(state.grads)}")
    factor = optim.clip_factor(norm, settings.clip)
    if factor < 1:
        state.g *= factor
    lr = learning_rate(state.step, settings)
    state.step += 1
    first = sum(math.prod(state.shapes[name]) for name in {name for name, _ in state.muon})
    for rest, decay in ((slice(first, state.decayed), settings.weight_decay),
                        (slice(state.decayed, None), 0.0)):  # what AdamW takes
        optim.adamw(state.p[rest], state.g[rest], state.m[rest], state.v[rest], state.step, lr,
                    betas=(settings.beta1, settings.beta2), eps=settings.eps, weight_decay=decay)
    if state.muon:
        _muon(pool, state, settings, settings.muon_lr * lr / settings.lr)
    if not np.isfinite(state.p).all():
        raise NotFinite(f"the parameter {_not_finite(state.params)}")
    return norm, lr


def _muon(pool, state, settings, lr):
    """muon.step of every matrix, each a task: the bits do not depend on the threads."""
    momenta = state.named(state.m)

    def one(name, columns):
        w, g, m = (arrays[name][:, columns] for arrays in (state.params, state.grads, momenta))
        muon.step(w, g, m, lr, momentum=settings.momentum, weight_decay=settings.weight_decay,
                  steps=settings.muon_steps)

    names, columns = zip(*state.muon)
    list((pool.map if pool else map)(one, names, columns))


def learning_rate(step, settings):
    """optim.learning_rate of a step (from 0) with these settings."""
    return optim.learning_rate(step, lr=settings.lr, min_lr=settings.min_lr,
                               warmup=settings.warmup, steps=settings.steps,
                               schedule=settings.schedule, cooldown=settings.cooldown)


def _not_finite(arrays):
    """The first name whose array is not finite; finite ones can have a norm that is not."""
    return next((name for name, a in arrays.items() if not np.isfinite(a).all()),
                "all parameters together")


@checks.quiet
def loss_and_gradients(pool, params, buffers, x, y, config, *, chunks, out, seed=None, team=None):
    """Mean loss of a batch and its gradient, chunk by chunk.

    x, y (B, T) -> loss, new buffers; the gradients are written into `out`, a dict of arrays shaped
    as params. seed (any tuple of integers): dropout draws from seed + the chunk's number; None: no
    dropout. team: a chunks.Team of these params and this config; None: the threads of the pool.
    """
    todo = [Chunk(n, x[part], y[part], len(x[part]) / len(x), buffers,
                  None if seed is None else (*seed, n))
            for n, part in enumerate(split(len(x), chunks))]
    done = list(team.map(todo) if team else
                pool.map(lambda chunk: gradients(chunk, params, config), todo))
    for name, total in out.items():
        first, *rest = (grads[name] for _, grads, _ in done)
        total[...] = first
        for grad in rest:
            total += grad
    # affine's running mean (its eq. 9) is linear in the batch: the chunks' means average to it
    shares = [chunk.share for chunk in todo]
    new = {name: sum(share * b[name] for share, (_, _, b) in zip(shares, done)).astype(old.dtype)
           for name, old in buffers.items()}
    return math.fsum(share * loss for share, (loss, _, _) in zip(shares, done)), new


def mean_loss(pool, params, buffers, x, y, config, group=None):
    """Mean loss over all tokens of many sequences x, y (N, T), without gradients."""
    group = group or max(1, 2048 // x.shape[1])

    def one(i):
        part = slice(i, i + group)
        loss = model.forward(params, x[part], config, targets=y[part], buffers=buffers)[1]
        return loss * len(x[part])

    return math.fsum(pool.map(one, range(0, len(x), group))) / len(x)


# -------------------------------------------------------------------------------- threads, memory


@contextmanager
def workers(threads):
    """A pool of threads, while the matrix library keeps to one thread inside each."""
    from threadpoolctl import threadpool_limits
    keep_freed_memory()
    # no warnings: a training step names what is not finite
    quiet = dict(initializer=np.seterr, initargs=("ignore",))
    with threadpool_limits(1), ThreadPoolExecutor(threads, **quiet) as pool:
        yield pool


def keep_freed_memory():
    """Ask glibc to reuse freed arrays: fresh pages cost more than the arithmetic on them.

    Does nothing with another C library.
    """
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_ARENA_MAX, 1)                    # one heap: what one thread frees, another can use
    mallopt(M_MMAP_THRESHOLD, 32 << 20)        # the largest that glibc takes
    mallopt(M_TRIM_THRESHOLD, 512 << 20)
    mallopt(M_TOP_PAD, 16 << 20)
