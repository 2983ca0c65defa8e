"""AdamW, clipping and the learning-rate schedule, over one flat vector.

All parameters live in one vector of which the named arrays are views, so that an update is a few
passes over memory whatever the model; the arrays that decay come first.
"""
import math

import numpy as np

from minattn import checks

# entries per pass of the update: a few such blocks stay in cache
BLOCK = 1 << 16


def layout(params, decay="2d", first=()):
    """How a dict of arrays lies in one vector -> ({name: shape} in order, how many entries decay).

    decay="2d": only matrices and embeddings decay (the rule of GPT-2 and nanoGPT); "all": every
    parameter does. What decays comes first, and of that the arrays named in `first`.
    """
    checks.choice("decay", decay, ("2d", "all"))
    decays = [name for name, a in params.items() if decay == "all" or a.ndim >= 2]
    decays.sort(key=lambda name: name not in set(first))
    others = [name for name in params if name not in set(decays)]
    shapes = {name: params[name].shape for name in decays + others}
    return shapes, sum(params[name].size for name in decays)


def flatten(params, decay="2d"):
    """Move a dict of arrays into one vector.

    -> (the vector, the same dict as views of it, how many entries decay)
    """
    shapes, decayed = layout(params, decay)
    vector = np.concatenate([params[name].ravel() for name in shapes])
    views = views_of(vector, shapes)
    return vector, {name: views[name] for name in params}, decayed


def views_of(vector, shapes):
    """The named arrays that lie one after another in a vector, as views."""
    views, start = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        views[name] = vector[start:start + size].reshape(shape)
        start += size
    return views


@checks.quiet
def adamw(p, g, m, v, step, lr, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """One AdamW step on vectors, in place; step counts from 1.

    m <- b1 m + (1 - b1) g                    m_hat = m / (1 - b1^step)
    v <- b2 v + (1 - b2) g^2                  v_hat = v / (1 - b2^step)
    p <- p - lr wd p - lr m_hat / (sqrt(v_hat) + eps)

    arXiv 1711.05101, algorithm 2, as PyTorch has it.
    """
    checks.arrays(p=(p, "N"), g=(g, "N"), m=(m, "N"), v=(v, "N"))
    checks.number("step", step, 1, integer=True)
    b1, b2 = betas
    rate, root = lr / (1 - b1**step), math.sqrt(1 - b2**step)
    for i in range(0, p.size, BLOCK):
        pb, gb, mb, vb = (a[i:i + BLOCK] for a in (p, g, m, v))
        if weight_decay:
            pb *= 1 - lr * weight_decay
        scratch = gb * (1 - b1)
        mb *= b1
        mb += scratch                                 # first moment
        np.multiply(gb, gb, out=scratch)
        scratch *= 1 - b2
        vb *= b2
        vb += scratch                                 # second moment
        np.sqrt(vb, out=scratch)
        scratch *= 1 / root
        scratch += eps
        np.divide(mb, scratch, out=scratch)
        scratch *= rate
        pb -= scratch


def global_norm(grads):
    """sqrt of the sum of squares over a dict of arrays.

    Each array's sum is in its own precision; they are added in float64, in the order of the dict.
    A sum that overflows is inf, whatever the caller's np.seterr and warnings filter.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(sum(float(np.dot(g.ravel(), g.ravel())) for g in grads.values()))


def clip_factor(norm, clip):
    """What to multiply the gradients by so that their norm is at most `clip`; 0: no clipping.

    As PyTorch: clip / (norm + 1e-6).
    """
    norm, clip = checks.number("norm", norm, 0), checks.number("clip", clip, 0)
    return min(1.0, clip / (norm + 1e-6)) if clip else 1.0


SCHEDULES = "cosine", "linear"


def learning_rate(step, *, lr, min_lr, warmup, steps, schedule="cosine", cooldown=1.0):
    """A linear warm-up to lr, then down to min_lr at the last step; step counts from 0.

    schedule="cosine": half a cosine. "linear": lr until the last `cooldown` (a share) of the steps,
    then a straight line.
    """
    step, warmup, steps = (checks.number(name, n, 0, integer=True) for name, n in (
        ("step", step), ("warmup", warmup), ("steps", steps)))
    lr, min_lr = checks.number("lr", lr, 0), checks.number("min_lr", min_lr, 0)
    cooldown = checks.number("cooldown", cooldown, 0, high=1)
    checks.choice("schedule", schedule, SCHEDULES)
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if step >= steps:
        return min_lr
    if schedule == "linear":
        begin = max(warmup, steps * (1 - cooldown))
        left = min(1, (steps - step) / max(1, steps - begin))
    else:
        done = (step - warmup) / max(1, steps - warmup)
        left = 0.5 * (1 + math.cos(math.pi * done))
    return min_lr + left * (lr - min_lr)
