"""A batch is cut into chunks; each takes one forward and one backward, on a thread or in a process.

    parts = split(B, n)                              slices of the batch
    loss, grads, buffers = gradients(chunk, params, config)
    team = Team(state, config, chunks, n)            n processes beside this one
    team.map(chunks)                                 what `gradients` returns for each, but sooner

Threads of one process share the interpreter lock. Between two NumPy calls each waits for it, and a
core that waits falls asleep. A forked process has a lock of its own. It reads the parameters in
memory that it shares with its parent, and leaves the gradients of its chunks in more of it.

No result depends on a helper: a chunk whose process was killed, or raised an error, is computed by
the parent instead, to the same bits.
"""
import gc
import math
import mmap
import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from multiprocessing import Pipe
from typing import NamedTuple

import numpy as np
from tqdm import TMonitor

from minattn import model, optim

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
           if hasattr(signal, name)]


class Chunk(NamedTuple):
    number: int
    x: np.ndarray                # (b, T)  tokens
    y: np.ndarray                # (b, T)  targets
    share: float                 # of the batch's sequences
    buffers: dict
    seed: tuple | None           # of dropout; None: no dropout


def split(B, n):
    """Cut B sequences into at most n slices of nearly equal length."""
    bounds = [round(i * B / min(n, B)) for i in range(min(n, B) + 1)]
    return [slice(a, b) for a, b in zip(bounds, bounds[1:])]


def gradients(chunk, params, config):
    """-> the chunk's mean loss, gradients of share * loss by parameter, the buffers after it"""
    rng = None
    if chunk.seed is not None and config.dropout:
        rng = np.random.default_rng(chunk.seed)
    _, loss, cache = model.forward(params, chunk.x, config, targets=chunk.y, buffers=chunk.buffers,
                                   training=True, rng=rng)
    return loss, model.backward(cache, config, chunk.share), cache.buffers


# -------------------------------------------------------------------------------- forked processes


def can_fork():
    """True on Linux if no other thread runs, which could hold a lock when the process forks: the
    new process would wait for it for ever. A progress bar's thread does not count. JAX has threads
    that Python does not know of, and warns at every fork.
    """
    threads = [t for t in threading.enumerate() if not isinstance(t, TMonitor)]
    return sys.platform == "linux" and len(threads) == 1 and "jax" not in sys.modules


class Team:
    """This process and n helpers, which share out the chunks of every batch."""

    def __init__(self, state, config, chunks, n):
        """state: a parallel.State, whose parameters move into shared memory. OSError: no process"""
        rows = _shared((chunks, state.p.size), state.p.dtype)
        self.grads = [optim.views_of(row, state.shapes) for row in rows]   # of each chunk
        p = _shared(state.p.shape, state.p.dtype)
        p[:] = state.p
        views = state.named(p)
        state.p, state.params = p, {name: views[name] for name in state.params}
        self.params, self.config, self.helpers = state.params, config, []
        try:
            for _ in range(n):
                self.helpers.append(Helper(self._answer))
        except OSError:
            self.close()
            raise

    def map(self, chunks):
        """-> what `gradients` returns for each"""
        turns = len(self.helpers) + 1
        try:
            for i, helper in enumerate(self.helpers, 1):
                helper.ask(chunks[i::turns])
            done = {chunk.number: self._gradients(chunk) for chunk in chunks[::turns]}
            for i, helper in enumerate(self.helpers, 1):
                answers = helper.answer() or [None] * len(chunks)
                for chunk, answer in zip(chunks[i::turns], answers):
                    n = chunk.number
                    done[n] = (self._gradients(chunk) if answer is None else
                               (answer[0], self.grads[n], answer[1]))
        except BaseException:
            self.close()                          # or the next batch might receive these answers
            raise
        for helper in [helper for helper in self.helpers if helper.ended]:
            self.helpers.remove(helper)           # from now on the others share its chunks
            helper.close()
        return [done[chunk.number] for chunk in chunks]

    def close(self):
        while self.helpers:
            self.helpers.pop().close()

    def _gradients(self, chunk):
        return gradients(chunk, self.params, self.config)

    def _answer(self, chunks):
        """In a helper: loss and buffers of each chunk, whose gradients are in shared memory"""
        answers = []
        for chunk in chunks:
            loss, grads, buffers = self._gradients(chunk)
            for name, place in self.grads[chunk.number].items():
                place[...] = grads[name]
            answers.append((loss, buffers))
        return answers


class Helper:
    """A forked process that answers questions through a pipe, and ends when the pipe closes."""

    def __init__(self, work):
        self.pipe, theirs = Pipe()
        self.ended = False
        old = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            with warnings.catch_warnings():       # the matrix library copes with a fork
                warnings.simplefilter("ignore", DeprecationWarning)
                self.pid = os.fork()
            if self.pid == 0:
                try:
                    self.pipe.close()
                    _serve(theirs, work)
                finally:
                    os._exit(0)                   # without the parent's clean-up
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
            theirs.close()

    def ask(self, question):
        try:
            self.pipe.send(question)
        except OSError:                           # it has ended: answer() says so
            pass

    def answer(self):
        """What work(question) returned; None if it failed or the process has ended."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.ended = True
            return None

    def close(self):
        self.pipe.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):         # who ignores SIGCHLD has no children to wait for
            os.waitpid(self.pid, 0)


def _serve(pipe, work):
    for number in SIGNALS:                        # the parent finishes its step with this process
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for name in os.listdir("/proc/self/fd"):      # the parent's files: a copy would keep its locks
        if int(name) > 2 and int(name) != pipe.fileno():
            with suppress(OSError):               # the folder itself is closed by now
                os.close(int(name))
    gc.freeze()                                   # what the parent left is not cleaned up here
    np.seterr(all="ignore")
    try:
        while True:
            question = pipe.recv()
            try:
                answer = work(question)
            except Exception:
                answer = None                     # the parent meets the same error, and reports it
            pipe.send(answer)
    except (EOFError, OSError):                   # the parent has gone
        pass


def _shared(shape, dtype):
    """An array of zeros in memory that stays shared after a fork"""
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return np.frombuffer(memory, dtype).reshape(shape)
