"""JAX's side of the training step: the model in jax.numpy, each step one compiled function.

Forward, jax.grad, clipping and AdamW are in one jax.jit whose parameters and moments are donated,
so that XLA may write the new ones over the old. Of the forms tried (jax.nn.dot_product_attention;
einsum and jax.nn.softmax; einsum and exp, divided by the row's sum after the product with v; heads
before tokens or after; one-hot products for the look-ups) the third, with heads after tokens, took
the least processor time on one core: 8% less than the first at 128 tokens, 2% at 64, where all of
them lie within 3%. Measured on JAX 0.10. It has the mechanisms and positions that step.JAX
lists.
"""
import os
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from minattn.bench.numpy_jobs import step_inputs


@contextmanager
def session(threads):
    """XLA has no call that sets its threads: it makes one per core the process may use, when it is
    first used.

    So the process may use that many cores, which bounds every pool there is (XLA_FLAGS only turns
    some of them off). Where a system cannot do that, NPROC, which XLA reads, bounds its pools.
    """
    jax.config.update("jax_platforms", "cpu")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    else:
        os.environ["NPROC"] = str(threads)
    yield threads


def linear(params, name, x):
    y = x @ params[f"{name}.weight"]
    return y + params[f"{name}.bias"] if f"{name}.bias" in params else y


def norm(params, name, x):
    x = x - x.mean(-1, keepdims=True)
    y = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * params[f"{name}.weight"]
    return y + params[f"{name}.bias"] if f"{name}.bias" in params else y


def rotated(x):
    """RoPE in halves, base 10000; x (B, T, H, D)"""
    T, D = x.shape[1], x.shape[3]
    rate = 10000.0 ** (-2 * np.arange(D // 2) / D)
    angle = np.arange(T)[:, None, None] * rate                                         # (T, 1, D/2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attention(params, name, x, config):
    """x (B, T, C) -> (B, T, C)"""
    B, T, C = x.shape
    H, D = config.n_head, C // config.n_head
    sink = params.get(f"{name}.sink")
    if config.attention == "off_by_one":
        sink = np.zeros(H, np.float32)
    qkv = jnp.split(linear(params, f"{name}.c_attn", x), 3, -1)
    q, k, v = (part.reshape(B, T, H, D) for part in qkv)
    if config.position == "rope":
        q, k = rotated(q), rotated(k)
    s = jnp.einsum("bthd,bshd->bhts", q * D**-0.5, k)                                 # (B, H, T, T)
    s = jnp.where(np.tri(T, dtype=bool), s, -jnp.inf)
    top = s.max(-1, keepdims=True)
    if sink is not None:
        top = jnp.maximum(top, sink[:, None, None])
    top = jax.lax.stop_gradient(top)
    e = jnp.exp(s - top)
    total = e.sum(-1, keepdims=True)                                                  # (B, H, T, 1)
    if sink is not None:
        total = total + jnp.exp(sink[:, None, None] - top)
    y = jnp.einsum("bhts,bshd->bthd", e, v) / total.swapaxes(1, 2)
    if f"{name}.gate_logits.weight" in params:
        y = y * jax.nn.sigmoid(linear(params, f"{name}.gate_logits", x).reshape(B, T, H, D))
    return linear(params, f"{name}.c_proj", y.reshape(B, T, C))


def loss_of(params, x, y, config):
    """tokens, targets (B, T) -> nats per token"""
    wte = params["wte.weight"]
    h = wte[x]
    if "position.learned.weight" in params:
        h = h + params["position.learned.weight"]
    for i in range(config.n_layer):
        h = h + attention(params, f"h.{i}.attn", norm(params, f"h.{i}.ln_1", h), config)
        z = linear(params, f"h.{i}.mlp.c_fc", norm(params, f"h.{i}.ln_2", h))
        z = jax.nn.gelu(z, approximate=config.gelu == "tanh")
        h = h + linear(params, f"h.{i}.mlp.c_proj", z)
    logits = norm(params, "ln_f", h) @ wte.T
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], -1).mean()


def step(spec, session):
    """One training step -> loss and norm of the gradient."""
    config, s, params, _, x, y = step_inputs(spec)
    b1, b2 = s.beta1, s.beta2

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def update(params, m, v, count, x, y):
        loss, grads = jax.value_and_grad(loss_of)(params, x, y, config)
        size = jnp.sqrt(sum(jnp.vdot(g, g) for g in grads.values()))
        factor = jnp.minimum(1, s.clip / (size + 1e-6))
        rate, root = s.lr / (1 - b1**count), jnp.sqrt(1 - b2**count)
        m = {name: b1 * m[name] + (1 - b1) * factor * g for name, g in grads.items()}
        v = {name: b2 * v[name] + (1 - b2) * (factor * g)**2 for name, g in grads.items()}
        new = {}
        for name, p in params.items():
            decay = s.weight_decay if s.decay == "all" or p.ndim > 1 else 0
            change = rate * m[name] / (jnp.sqrt(v[name]) / root + s.eps)
            new[name] = p * (1 - s.lr * decay) - change
        return (new, m, v), loss, size

    zeros = {name: np.zeros_like(a) for name, a in params.items()}
    state = jax.tree.map(jnp.array, (params, zeros, zeros))
    x, y, count = jnp.array(x, np.int32), jnp.array(y, np.int32), 0

    def work():
        nonlocal state, count
        count += 1
        state, loss, size = update(*state, np.float32(count), x, y)
        return float(loss), float(size)

    return work, 0
