"""What NumPy's side of a benchmark does.

A job is a function (spec, session) -> (work, held): what to do once, and how many bytes of input it keeps. work()
returns numbers by which the sides are checked against each other. torch_jobs.py has the same jobs in PyTorch.
"""
from contextlib import contextmanager

import numpy as np

from minattn import generate, model, optim, parallel
from minattn.attention import softmax
from minattn.experiments.position_bias import recall_network, recall_training


@contextmanager
def session(threads):
    with parallel.workers(threads) as pool:
        yield pool, threads


def step_inputs(spec):
    """What both sides begin with: config, parameters, buffers, and a batch of random tokens with their targets."""
    config = model.Config(**spec["config"])
    rng = np.random.default_rng(7)
    x, y = (rng.integers(0, config.vocab_size, (spec["batch"], config.block_size)) for _ in range(2))
    return config, *model.init(config, spec["seed"]), x, y


def step(spec, session):
    """One training step as minattn.train does it -> loss and norm of the gradient."""
    pool, _ = session
    config, params, buffers, x, y = step_inputs(spec)
    p, params, decayed = optim.flatten(params, spec["decay"])
    in_memory_order = sorted(params, key=lambda name: params[name].__array_interface__["data"][0])
    shapes = {name: params[name].shape for name in in_memory_order}
    g, m, v = (np.zeros_like(p) for _ in range(3))
    grads, count = optim.views_of(g, shapes), 0

    def work():
        nonlocal buffers, count
        loss, buffers = parallel.loss_and_gradients(pool, params, buffers, x, y, config, chunks=spec["chunks"],
                                                    out=grads)
        norm = optim.global_norm(grads)
        factor = optim.clip_factor(norm, spec["clip"])
        if factor < 1:
            np.multiply(g, factor, out=g)
        count += 1
        parallel.adamw(pool, p, g, m, v, decayed, count, spec["lr"], spec["weight_decay"],
                       betas=spec["betas"], eps=spec["eps"])
        return loss, norm

    return work, 0


def matmul(spec, session):
    """Each thread multiplies its own square matrices: the rate that everything else is measured against."""
    pool, threads = session
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((3, threads, spec["n"], spec["n"]), np.float32)

    def work():
        list(pool.map(lambda a, b, out: np.matmul(a, b, out=out), *arrays))

    return work, arrays.nbytes


def attention_inputs(spec):
    """q, k, v and dout, each (1, H, T, D) float32"""
    return np.random.default_rng(spec["T"]).standard_normal((4, 1, spec["H"], spec["T"], spec["D"]), np.float32)


def attention(spec, session):
    """Softmax attention alone, forward and backward -> means of rows of out, dq, dk, dv. Threads share the heads."""
    pool, threads = session
    inputs, H = attention_inputs(spec), spec["H"]
    bounds = np.linspace(0, H, min(threads, H) + 1).round().astype(int)

    def part(a, b):
        q, k, v, dout = inputs[:, :, a:b]
        out, cache = softmax.forward(q, k, v, causal=True, window=spec["window"])
        return out, softmax.backward(dout, cache)

    def work():
        out, grads = list(pool.map(part, bounds[:-1], bounds[1:]))[0]
        return [float(np.abs(a[0, 0, ::spec["T"] // 64]).mean()) for a in (out, grads["q"], grads["k"], grads["v"])]

    return work, inputs.nbytes


def sample(spec, session):
    """Greedy generation of a whole block after one token, keys and values kept -> the tokens."""
    pool, _ = session
    config, params, buffers, x, _ = step_inputs(spec)

    def work():
        return [new.tolist() for new in generate.stream(params, buffers, config, x[:, :1], spec["tokens"], top_k=1, pool=pool)]

    return work, 0


def recall_inputs(spec):
    """A position-bias network and one random batch: config, params, x (B, T, C), y (B,)"""
    config = recall_network.Config(**spec["config"])
    rng = np.random.default_rng(7)
    x = rng.standard_normal((spec["batch"], spec["length"], config.width), np.float32)
    return config, recall_network.init(config, 0), x, rng.integers(config.labels, size=spec["batch"])


def recall(spec, session):
    """One training step of a position-bias network -> loss. On one thread: its products are too small to share."""
    config, params, x, y = recall_inputs(spec)
    p, params, _ = optim.flatten(params, "all")
    g, m, v = (np.zeros_like(p) for _ in range(3))
    grads, count = optim.views_of(g, {name: a.shape for name, a in params.items()}), 0

    def work():
        nonlocal count
        loss, _ = recall_training.loss_and_gradients(params, config, x, y, grads)
        count += 1
        optim.adamw(p, g, m, v, count, spec["lr"], weight_decay=spec["weight_decay"])
        return loss

    return work, 0


JOBS = {"step": step, "matmul": matmul, "attention": attention, "sample": sample, "recall": recall}
