"""Grades the exercises of lesson 12: how a model learns."""

import numpy as np

from minattn import optim
from minattn.lessons.grading import Exercise, exercise


@exercise
def check_adam_step():
    """w, g, m, v (n,), t, lr, betas, eps -> w, m, v, judged by optim.adamw."""
    rng = np.random.default_rng(0)
    inputs = []
    for n, t, more in ((5, 1, ()), (7, 3, ()), (3, 2000, ()), (5, 4, (0.8, 0.95, 1e-3))):
        g = rng.standard_normal(n)
        g[0] = 2e-6                                    # small beside the square root of eps
        m = 0.3 * rng.standard_normal(n) if t > 1 else np.zeros(n)
        v = rng.uniform(0.1, 1, n) if t > 1 else np.zeros(n)
        if t > 1:
            m[0], v[0] = 1e-6, 1e-12
        inputs.append((rng.standard_normal(n), g, m, v, t, 0.1, *more))

    def right(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
        optim.adamw(w, g, m, v, t, lr, betas=(beta1, beta2), eps=eps)
        return w, m, v

    return Exercise(right, inputs, ("w", "m", "v"), hints=_mistakes_of_adam(),
                    tolerance=1e-8)                    # either order of the corrections


def _mistakes_of_adam():
    """[(wrong step, what to say)]"""

    def means(g, m, v, beta1, beta2):
        return beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2

    def step(change, averages=means):
        """The step with w <- w - lr change(...), and m and v as `averages` has them"""

        def wrong(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
            m, v = averages(g, m, v, beta1, beta2)
            return w - lr * change(g, m, v, 1 - beta1**t, 1 - beta2**t, eps), m, v

        return wrong

    def usual(g, m, v, c1, c2, eps):
        return m / c1 / (np.sqrt(v / c2) + eps)

    def stored(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
        w, m, v = step(usual)(w, g, m, v, t, lr, beta1, beta2, eps)
        return w, m / (1 - beta1**t), v / (1 - beta2**t)

    def one_late(w, g, m, v, t, lr, **more):
        return step(usual)(w, g, m, v, t + 1, lr, **more)

    def old_means(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
        w = w - lr * usual(g, m, v, 1 - beta1**t, 1 - beta2**t, eps)
        return w, *means(g, m, v, beta1, beta2)

    def times_t(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
        m, v = means(g, m, v, beta1, beta2)
        return w - lr * usual(g, m, v, 1 - beta1 * t, 1 - beta2 * t, eps), m, v

    return [
        (step(lambda g, m, v, c1, c2, eps: m / (np.sqrt(v) + eps)),
         "The corrections for means that start at 0 are missing."),
        (step(lambda g, m, v, c1, c2, eps: m / c1 / (np.sqrt(v) + eps)),
         "m is corrected; v must be too, before the root."),
        (step(lambda g, m, v, c1, c2, eps: m / (np.sqrt(v / c2) + eps)),
         "v is corrected; m must be too."),
        (step(lambda g, m, v, c1, c2, eps: m / c1 / (np.sqrt(v) / c2 + eps)),
         "v is corrected before the root is taken, not after."),
        (step(lambda g, m, v, c1, c2, eps: m * c1 / (np.sqrt(v * c2) + eps)),
         "The means are too small at first: divide by 1 - beta^t."),
        (step(lambda g, m, v, c1, c2, eps: m / c1 / np.sqrt(v / c2 + eps)),
         "eps is added after the root."),
        (step(lambda g, m, v, c1, c2, eps: m / c1 / (np.sqrt(v / c2) * (1 + eps))),
         "eps is added to the root, so that it counts where the root is nearly 0."),
        (step(lambda g, m, v, c1, c2, eps: m / c1 / ((np.sqrt(v) + eps) / np.sqrt(c2))),
         "eps is added to the root of the corrected v."),
        (step(lambda g, m, v, c1, c2, eps: m / c1 / (v / c2 + eps)),
         "The root of v is missing."),
        (step(lambda g, m, v, c1, c2, eps: g / (np.sqrt(v / c2) + eps)),
         "The step goes along the mean m, not along the newest gradient alone."),
        (step(lambda g, m, v, c1, c2, eps: -usual(g, m, v, c1, c2, eps)),
         "The sign: the step goes against the gradient."),
        (step(usual, lambda g, m, v, b1, b2: (b1 * m + g, b2 * v + g**2)),
         "m and v are means: the newest gradient counts with 1 - beta."),
        (step(usual, lambda g, m, v, b1, b2: ((1 - b1) * m + b1 * g, (1 - b2) * v + b2 * g**2)),
         "beta and 1 - beta are exchanged: the old mean counts with beta."),
        (step(usual, lambda g, m, v, b1, b2: means(g, m, v, b2, b1)),
         "The two betas are exchanged."),
        (step(usual, lambda g, m, v, b1, b2: (means(g, m, v, b1, b2)[0],
                                              b2 * v + (1 - b2) * np.abs(g))),
         "v is the mean of the squares of the gradient."),
        (step(usual, lambda g, m, v, b1, b2: (means(g, m, v, b1, b2)[0],
                                              b2 * v + (1 - b2) * (b1 * m + (1 - b1) * g)**2)),
         "v is the mean of the squares of the gradient, not of m."),
        (stored, "The hats are for this step only: m and v come back without the correction."),
        (one_late, "t counts from 1: the power is t, not t + 1."),
        (old_means, "m and v are updated first; the step uses the new ones."),
        (times_t, "The correction has a power, beta^t, not a product."),
    ]


@exercise
def check_rate():
    """t, steps, peak, warmup, cooldown -> the learning rate, judged by optim.learning_rate."""
    inputs = []
    for steps, peak, warmup, cooldown in ((20, 0.6, 4, 10), (11, 2.0, 0, 5), (13, 0.3, 3, 0),
                                          (9, 1.0, 4, 5)):
        middle = (warmup + steps - cooldown) // 2
        times = (warmup // 2, 0, warmup - 1, warmup, middle, steps - cooldown,
                 steps - cooldown + 1, steps - 1)        # not 0 first: 2 mistakes agree there
        inputs += [(t, steps, peak, warmup, cooldown) for t in times if 0 <= t < steps]

    def right(t, steps, peak, warmup, cooldown):
        return optim.learning_rate(t, lr=peak, min_lr=0, warmup=warmup, steps=steps,
                                   schedule="linear", cooldown=cooldown / steps)

    def but(rise=None, fall=None):
        """The right rate, with another formula in the warm-up or in the cool-down"""

        def wrong(t, steps, peak, warmup, cooldown):
            if t < warmup and rise:
                return rise(t, peak, warmup)
            if t >= max(warmup, steps - cooldown) and fall:
                return fall(steps - t, peak, cooldown, steps - warmup)
            return right(t, steps, peak, warmup, cooldown)

        return wrong

    def product(t, steps, peak, warmup, cooldown):
        first = 1 if t >= warmup else (t + 1) / (warmup + 1)
        return peak * first * (steps - t) / steps

    def constant(t, steps, peak, warmup, cooldown):
        return peak if t >= warmup else right(t, steps, peak, warmup, cooldown)

    def early(t, steps, peak, warmup, cooldown):
        whole = max(1, steps - warmup)
        return right(t, steps, peak, warmup, cooldown) if t < warmup else peak * (steps - t) / whole

    return Exercise(right, inputs, ("the rate",), tolerance=1e-6, hints=[
        (but(rise=lambda t, peak, warmup: peak * t / warmup),
         "Step 0 would not move at all: it has peak / (warmup + 1)."),
        (but(rise=lambda t, peak, warmup: peak * (t + 1) / warmup),
         "The last step of the warm-up would be at the peak already: divide by warmup + 1."),
        (but(rise=lambda t, peak, warmup: peak * t / (warmup + 1)),
         "Step 0 has 1 share, not 0: use t + 1."),
        (but(rise=lambda t, peak, warmup: peak),
         "The warm-up is missing."),
        (but(fall=lambda left, peak, cooldown, after: peak * (left - 1) / cooldown),
         "The step after the last has the rate 0, not the last one."),
        (but(fall=lambda left, peak, cooldown, after: peak * (left - 1) / max(1, cooldown - 1)),
         "The last step should still move: count the steps that are left, itself included."),
        (but(fall=lambda left, peak, cooldown, after: peak * left / (cooldown + 1)),
         "The first step of the cool-down is still at the peak: divide by cooldown."),
        (but(fall=lambda left, peak, cooldown, after: peak * (1 - left / max(1, cooldown))),
         "That rises: take the share of the cool-down that is left."),
        (but(fall=lambda left, peak, cooldown, after:
             peak / 2 * (1 - np.cos(np.pi * left / max(1, cooldown)))),
         "That is half a cosine; here the rate falls along a line."),
        (constant, "The cool-down is missing."),
        (early, "The rate stays at its peak until the last `cooldown` steps."),
        (product, "The three parts follow each other; they are not multiplied."),
    ])
