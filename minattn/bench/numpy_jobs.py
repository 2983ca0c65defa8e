"""What NumPy's side of a benchmark does.

A job is a function (spec, session) -> (work, input_bytes): what to do once, and how many bytes of
input it keeps. work() returns numbers by which the sides are checked against each other.
torch_jobs.py has the same jobs in PyTorch.
"""
import os
import sys
import tempfile
import tracemalloc
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np

from minattn import chunks, decode, generate, model, parallel, runs, train
from minattn.attention import softmax
from minattn.bench import floor, sides


@contextmanager
def session(threads):
    with parallel.workers(threads) as pool:
        yield pool, threads


def peak():
    """The most memory of this process and of the helpers that it forked, in bytes.

    Those that have ended count as one, the largest. A page that two processes share counts twice.
    """
    total = sides.peak_rss()
    if sys.platform == "linux":
        import resource
        total += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
        total += sum(sides.peak_rss(pid) for pid in _children())
    return total


def _children():
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(sides.status(folder.name)["PPid"]) == os.getpid():
                found.append(folder.name)
        except OSError:
            pass                                           # it has just ended
    return found


def step_inputs(spec):
    """What all sides begin with: config, settings, parameters, buffers, and a batch x, y (B, T) of
    random tokens."""
    config, settings = model.Config(**spec["config"]), train.Settings(**spec["settings"])
    rng = np.random.default_rng(7)
    shape = settings.batch_size, config.block_size
    x, y = (rng.integers(0, config.vocab_size, shape) for _ in range(2))
    return config, settings, *model.init(config, settings.seed), x, y


def step(spec, session):
    """The trainer's own step -> loss and norm of the gradient."""
    pool, threads = session
    config, settings, params, buffers, x, y = step_inputs(spec)
    state = parallel.start(params, buffers, settings.decay)
    if not tracemalloc.is_tracing():                       # that sees this process only
        parallel.share(state, config, settings, threads)

    def work():
        return parallel.train_step(pool, state, x, y, config, settings)[:2]

    return work, 0


def step_floor(spec, session):
    """The matrix products of a step alone, each core with as many chunks as in the step."""
    pool, threads = session
    config, settings, params, buffers, x, y = step_inputs(spec)
    parts = chunks.split(len(x), settings.chunks)

    def one_chunk(part):
        _, _, cache = model.forward(params, x[part], config, targets=y[part], buffers=buffers,
                                    training=True)
        return floor.timed(floor.of_step(cache))

    mine = [parts[i::threads] for i in range(min(threads, len(parts)))]
    runs = [one_chunk(parts[0]) for parts in mine]         # chunks are of one size

    def many(i):
        for _ in mine[i]:
            runs[i]()
        return True

    others = range(1, len(mine))
    helpers = [chunks.Helper(many) for _ in others] if chunks.can_fork() else []

    def work():
        if not helpers:
            return list(pool.map(many, range(len(mine))))
        for i, helper in zip(others, helpers):
            helper.ask(i)
        many(0)
        if not all([helper.answer() for helper in helpers]):
            raise ChildProcessError("a process of the floor has failed")
        return None

    return work, 0


def matmul(spec, session):
    """Each thread multiplies its own square matrices: the rate to measure everything against."""
    pool, threads = session
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((3, threads, spec["n"], spec["n"]), np.float32)

    def work():
        list(pool.map(lambda a, b, out: np.matmul(a, b, out=out), *arrays))

    return work, arrays.nbytes


def attention_inputs(spec):
    """q, k, v and dout, each (1, H, T, D) float32"""
    rng = np.random.default_rng(spec["T"])
    return rng.standard_normal((4, 1, spec["H"], spec["T"], spec["D"]), np.float32)


def attention(spec, session):
    """Softmax attention alone, forward and backward -> means of rows of out, dq, dk, dv.

    Threads share the heads.
    """
    pool, threads = session
    inputs, parts = attention_inputs(spec), _shared_heads(spec, threads)

    def part(heads):
        q, k, v, dout = inputs[:, :, heads]
        out, cache = softmax.forward(q, k, v, causal=True, window=spec["window"])
        return out, softmax.backward(dout, cache)

    def work():
        out, grads = list(pool.map(part, parts))[0]
        return [float(np.abs(a[0, 0, ::spec["T"] // 64]).mean())
                for a in (out, grads["q"], grads["k"], grads["v"])]

    return work, inputs.nbytes


def attention_floor(spec, session):
    """The matrix products of `attention` alone."""
    pool, threads = session
    inputs = attention_inputs(spec)

    def part(heads):
        q, k, v, _ = inputs[:, :, heads]
        cache = softmax.forward(q, k, v, causal=True, window=spec["window"])[1]
        forward, backward = floor.products(cache)
        return floor.timed(forward + backward)

    runs = [part(heads) for heads in _shared_heads(spec, threads)]
    return lambda: list(pool.map(lambda run: run(), runs)), inputs.nbytes


def _shared_heads(spec, threads):
    """The heads of each thread"""
    bounds = np.linspace(0, spec["H"], min(threads, spec["H"]) + 1).round().astype(int)
    return [slice(a, b) for a, b in zip(bounds, bounds[1:])]


def sample(spec, session):
    """Greedy generation of a whole block after one token, with a key-value cache -> the tokens."""
    pool, _ = session
    config, _, params, buffers, x, _ = step_inputs(spec)

    def work():
        new = generate.stream(params, buffers, config, x[:, :1], spec["tokens"], top_k=1, pool=pool)
        return [tokens.tolist() for tokens in new]

    return work, 0


def sample_floor(spec, session):
    """The products with the weights alone, as many as in `sample`, on the same threads."""
    pool, _ = session
    config, _, params, buffers, x, _ = step_inputs(spec)
    decoder = decode.prepare(params, buffers, config)
    groups = [len(x[i:i + generate.TOGETHER]) for i in range(0, len(x), generate.TOGETHER)]
    runs_of = [floor.timed(floor.of_token(decoder, rows)) for rows in groups]

    def work():
        for _ in range(spec["tokens"]):
            list((pool.map if len(groups) > 1 else map)(lambda run: run(), runs_of))

    return work, 0


def whole(spec, session):
    """minattn's trainer as a user starts it -> seconds of its loop, with checkpoints, metrics and
    evaluations; last loss; seconds inside its steps"""
    _, threads = session

    def work():
        with (tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as quiet,
              redirect_stderr(quiet), redirect_stdout(quiet)):
            run = train.start(train.Settings(**spec["settings"]), spec["shape"], Path(folder),
                              threads=threads, say=lambda text: None)
            rows = runs.read_metrics(run.folder)
            tokens = spec["settings"]["batch_size"] * run.config.block_size
            return (run.checkpoint.seconds, rows[-1]["val_loss"],
                    sum(tokens / row["tokens_per_second"] for row in rows))

    return work, 0
