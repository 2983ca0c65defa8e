# %% [markdown]
# # 12 · How a model learns
#
# **The question.** The gradient says in which direction the loss grows fastest. How far
# should a step go the other way, and is that the best way to go? **Time:** 30 minutes
# to read, 55 with the exercises. **You need:** what a gradient is. The model that is
# trained below is that of [lesson 02](02_character_model.ipynb), but with rotary
# positions ([lesson 03](03_positions.ipynb)). (The letters: [notation](NOTATION.md).)

# %%
import numpy as np

from minattn import data, lessons, model, optim, parallel, plots
from minattn.lessons import grader_12, pictures

# %% [markdown]
# ## 1. Gradient descent: one step size for all directions
#
# Let $w$ be the weights of a model, $L(w)$ its loss, and $g$ the gradient of $L$ at
# $w$. Gradient descent repeats
#
# $$ w \leftarrow w - \eta\, g, $$
#
# where $\eta$ is the *learning rate*. We study it on the simplest loss that has a
# valley. There are two weights, and each has a curvature of its own:
#
# $$ L(w) = \tfrac12 (\lambda_1 w_1^2 + \lambda_2 w_2^2),
#    \qquad \lambda_1 = 100, \quad \lambda_2 = 1. $$
#
# Here $g_i = \lambda_i w_i$, so a step multiplies $w_i$ by $1 - \eta \lambda_i$. The
# weight shrinks if this factor lies between $-1$ and 1, that is, if
#
# $$ 0 < \eta < 2 / \lambda_i. $$
#
# The steep direction sets the limit: $\eta$ must stay below $2/100 = 0.02$. The flat
# direction then shrinks by at most 2 % per step. The loss and the walk take a few
# lines. An update rule is made by a function like `gradient_descent`, which returns the
# function that changes `w`; the next rules will also keep something in memory.

# %%
CURVATURES = np.diag([100.0, 1.0])
START = np.array([1.0, 10.0])          # both directions add 50 to the loss


def gradient_descent(w):
    def update(w, g, t, lr):
        w -= lr * g                    # in place
    return update


def walk(rule, lr, steps, H=CURVATURES, start=START):
    """The points (steps + 1, 2) that a rule visits on the loss w H w / 2"""
    w = start.copy()
    update, points = rule(w), [start]
    for t in range(1, steps + 1):
        update(w, H @ w, t, lr)
        points.append(w.copy())
    return np.array(points)

# %% tags=["plot"]
def draw_path(ax, points, title):
    steep, flat = np.meshgrid(np.linspace(-2.5, 2.5, 80), np.linspace(-5, 13, 80))
    ax.contour(flat, steep, 50 * steep**2 + flat**2 / 2, levels=[1, 5, 15, 35, 70, 150],
               colors="lightgray", linewidths=1)
    ax.plot(points[:, 1], points[:, 0], "o-", ms=3, lw=1)
    ax.plot(0, 0, "+", ms=12, color="black")
    ax.set(xlim=(-5, 13), ylim=(-1.3, 1.3), title=title, xlabel="$w_2$ (flat)")

# %% tags=["plot"]
# Picture: three walks of gradient descent over the contours of a valley: slow along
# the floor, zigzag across it, and jumps that grow.
fig, axes = plots.figure(9.6, 3.2, ncols=3, sharey=True)
for ax, lr, what in zip(axes, (0.002, 0.019, 0.0202), ("slow", "zigzag", "unstable")):
    draw_path(ax, walk(gradient_descent, lr, 40), rf"$\eta$ = {lr}: {what}")
axes[0].set(ylabel="$w_1$ (steep)", ylim=(-2.4, 2.4))
fig.suptitle("Gradient descent, 40 steps: no rate suits both directions");

# %% [markdown]
# The vertical axis is stretched: drawn to scale, the gray contours would be ellipses
# ten times as long as wide. On the left the steep direction is done after some twenty
# steps, while the flat one has hardly begun. In the middle the walk jumps across the
# valley at every step. On the right $\eta$ is 1 % above the limit, and the jumps grow.
#
# ## 2. Momentum: average the gradients
#
# The zigzag suggests a remedy: average the gradients. What changes sign at every step
# cancels, and what stays adds up. *Momentum* keeps a running sum $m$, with $\mu$
# slightly below 1:
#
# $$ m \leftarrow \mu\, m + g, \qquad w \leftarrow w - \eta\, m. $$
#
# Written out, $m_t = g_t + \mu\, g_{t-1} + \mu^2 g_{t-2} + \dots$, a sum over roughly
# the last $1 / (1 - \mu)$ gradients. Two extreme cases show what it does:
#
# - The gradient stays the same: $m = g\,(1 + \mu + \mu^2 + \dots) = g / (1 - \mu)$. The
#   *effective* step is $\eta / (1 - \mu)$. With $\mu = 0.9$ it is ten times as long.
# - The gradient changes sign at every step:
#   $m = g\,(1 - \mu + \mu^2 - \dots) = g / (1 + \mu)$, about half of $g$.
#
# The second case also moves the limit of section 1: $\eta$ may now reach
# $2 (1 + \mu) / \lambda$.

# %%
def momentum(w, mu=0.9):
    m = np.zeros_like(w)

    def update(w, g, t, lr):
        m[...] = mu * m + g
        w -= lr * m
    return update

# %% tags=["plot"]
# Picture: three walks over the same contours: without momentum a zigzag, with momentum
# a swinging path that ends near the minimum.
fig, axes = plots.figure(9.6, 3.2, ncols=3, sharey=True)
draw_path(axes[0], walk(gradient_descent, 0.019, 40), r"without, $\eta$ = 0.019")
draw_path(axes[1], walk(momentum, 0.002, 40), r"with, $\eta$ = 0.002")
draw_path(axes[2], walk(momentum, 0.006, 40), r"with, $\eta$ = 0.006")
axes[0].set_ylabel("$w_1$ (steep)")
fig.suptitle(r"Momentum, $\mu$ = 0.9: larger steps along the valley, 40 steps");

# %% [markdown]
# With momentum the walk overshoots, like a ball that rolls through the valley, but it
# arrives. How many steps does each rule need? We count until the loss stays below 1 %
# of its start, and give every rule the best of 31 learning rates between 0.001 and 1.

# %%
RATES = np.geomspace(0.001, 1, 31)


def steps_needed(rule, lr, H, start, most=1000):
    """Steps until the loss stays below 1 % of its start; `most` if it does not"""
    points = walk(rule, lr, most, H, start)
    loss = np.einsum("ti,ij,tj->t", points, H, points)
    above = ~(loss < 0.01 * loss[0])                     # nan is not below
    return len(above) - np.argmax(above[::-1])


def fewest_steps(rule, H=CURVATURES, start=START):
    with np.errstate(all="ignore"):                      # unstable walks overflow
        return min(steps_needed(rule, lr, H, start) for lr in RATES)


print(f"gradient descent {fewest_steps(gradient_descent):4d} steps")
print(f"momentum         {fewest_steps(momentum):4d} steps")

# %% [markdown]
# ## 3. Adam: a step size for each coordinate
#
# If the steep direction needs short steps and the flat one long steps, why not give
# each coordinate its own? *Adam* (arXiv 1412.6980) divides each coordinate of the
# averaged gradient by its root mean square:
#
# $$ m \leftarrow \beta_1 m + (1 - \beta_1)\, g, \qquad
#    v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2, \qquad
#    w \leftarrow w - \eta\, \frac{\hat m}{\sqrt{\hat v} + \epsilon}. $$
#
# All operations work on each coordinate alone; $\epsilon = 10^{-8}$ avoids a division
# by zero. (This $m$ is a mean, not a sum: $m$ of section 2 times $1 - \mu$.)
#
# **The hats.** Both means start at 0, so at first they are too small. After $t$ steps
# the weights of the gradients in $m$ add up to $1 - \beta_1^t$, not to 1. Dividing by
# that sum corrects it:
#
# $$ \hat m = m / (1 - \beta_1^t), \qquad \hat v = v / (1 - \beta_2^t),
#    \qquad t = 1, 2, \dots $$
#
# **The first step has size $\eta$.** At $t = 1$ we get $\hat m = g$ and $\hat v = g^2$,
# so each coordinate moves by $\eta$, against the sign of its gradient. A gradient a
# thousand times as large gives the same step. Without the hats, the first step of the
# usual $\beta_1 = 0.9$ and $\beta_2 = 0.999$ would be $0.1 / \sqrt{0.001} \approx 3.2$
# times too long.
#
# ## Exercise 1: one step of Adam

# %% tags=["exercise"]
def adam_step(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    """w, g, m, v (n,): the weights, their gradient, the two means before the step

    t = 1 at the first step, when m and v are 0
    -> w, m, v after the step
    """
    ...


grader_12.check_adam_step(adam_step);

# %% tags=["solution"]
def adam_step(w, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)  # m and v stay as they are
    return w - lr * m_hat / (np.sqrt(v_hat) + eps), m, v


grader_12.check_adam_step(adam_step);

# %% [markdown]
# **It depends on the axes.** Our valley lies along one of the coordinates, which suits
# Adam. Now turn the same valley by 45 degrees. The loss is the same function seen from
# another side, and gradient descent takes the same walk, turned. Adam does not: both
# coordinates now contain the steep and the flat direction in equal parts, so both are
# divided by nearly the same number. (We take Adam from the package, with
# $\beta_1 = 0.9$ and $\beta_2 = 0.99$.)

# %%
def adam(w):
    m, v = np.zeros_like(w), np.zeros_like(w)

    def update(w, g, t, lr):
        flat = (a.reshape(-1) for a in (w, g, m, v))
        optim.adamw(*flat, t, lr, betas=(0.9, 0.99))    # in place
    return update


print("angle   gradient descent   momentum   Adam   (steps)")
for degrees in (0, 20, 45):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    Q = np.array([[c, -s], [s, c]])                     # turns by the angle
    needed = [fewest_steps(rule, Q @ CURVATURES @ Q.T, Q @ START)
              for rule in (gradient_descent, momentum, adam)]
    print(f"{degrees:5d}   {needed[0]:16d}   {needed[1]:8d}   {needed[2]:4d}")

# %% [markdown]
# Along the axes Adam is the fastest of the three; at 45 degrees it needs about three
# times as many steps, and momentum alone does better. In a network nobody chose the
# axes. The values of an attention head, for example, can be turned by any angle without
# changing what the model computes, if the matrix that reads them is turned back.
# [Lesson 22](22_a_step_for_a_matrix.ipynb) is about a rule that does not depend on the
# axes.
#
# ## 4. The schedule: warm-up and cool-down
#
# In sections 1 to 3 every gradient was exact. In training it comes from a few windows
# of the text and is noisy. What does noise do? Take one weight with curvature 1 and a
# gradient $g = w + \sigma \xi$, where the random number $\xi$ has mean 0 and variance 1
# (a new one at every step). A step of gradient descent changes the mean square of $w$:
#
# $$ E[w^2] \leftarrow (1 - \eta)^2 E[w^2] + \eta^2 \sigma^2, $$
#
# which stays the same at $E[w^2] = \eta \sigma^2 / (2 - \eta)$. So the loss
# $\frac12 E[w^2]$ stops falling near $\eta \sigma^2 / 4$, a *noise floor* proportional
# to the learning rate. A large rate gets there quickly, a small one gets lower. A
# **cool-down** does both: start with a large rate and lower it to 0 along a line.

# %%
def noisy_losses(rates, copies=2000, seed=0):
    """Mean loss of many weights after each step, sigma = 1, all starting at 10"""
    rng = np.random.default_rng(seed)
    w, losses = np.full(copies, 10.0), []
    for lr in rates:
        w -= lr * (w + rng.standard_normal(copies))
        losses.append(np.mean(w**2) / 2)
    return losses

# %%
high, low = np.full(200, 0.2), np.full(200, 0.02)
falling = [optim.learning_rate(t, lr=0.2, min_lr=0, warmup=0, steps=200,
                               schedule="linear", cooldown=0.6) for t in range(200)]

# %% tags=["plot"]
# Picture: loss against the step, logarithmic, for three learning rates. The constant
# 0.2 falls fast and stays at its floor; 0.02 falls slowly; 0.2 that is lowered to 0
# ends lowest.
fig, ax = plots.figure(6.8, 3.8)
for name, rates, style in (("constant 0.2", high, "-."), ("constant 0.02", low, "--"),
                           ("0.2, then a line to 0", falling, "-")):
    ax.semilogy(range(1, 201), noisy_losses(rates), style, label=name)
for lr in (0.2, 0.02):
    ax.axhline(lr / (2 - lr) / 2, color="gray", ls="--", lw=1)
ax.set(xlabel="step", ylabel="loss",
       title="A cool-down ends below the floor of the rate it began with")
ax.legend(frameon=False, title="learning rate");

# %% [markdown]
# Dashed: the two floors from the formula. The constant 0.2 reaches its floor within
# some twenty steps and stays there. The constant 0.02 has a floor ten times lower, but
# 200 steps are not enough to get there. With the cool-down the loss falls fast at
# first, and at the end it is lower than with either constant.
#
# **Warm-up.** Adam's first step moves every weight by $\eta$, even if its gradient is
# nothing but noise. How long is the step when there is *only* noise, and the best step
# would be 0?

# %%
rng = np.random.default_rng(0)
w = np.zeros(100_000)
update = adam(w)
for t in range(1, 51):
    before = w.copy()
    update(w, rng.standard_normal(len(w)), t, 1.0)
    if t in (1, 2, 5, 20, 50):
        size = np.sqrt(np.mean((w - before) ** 2))
        print(f"step {t:2d}: {size:.2f} times the learning rate")

# %% [markdown]
# After twenty steps averaging has removed about three quarters of it. A *warm-up* keeps
# the first steps short, while the averages contain few gradients. Another reason: short
# steps at the start can move the model to where the curvature is lower, so that it
# tolerates a larger rate later (arXiv 2406.09405).
#
# ## Exercise 2: the learning rate of a step
#
# Steps are numbered from 0. In the first `warmup` steps the rate rises by equal
# amounts; step number `warmup` is the first with `peak`. With `warmup` 4, the first
# four steps have 1/5, 2/5, 3/5 and 4/5 of `peak`. In the last `cooldown` steps the rate
# falls by equal amounts: the first of them still has `peak`, and one more step after
# the last would have 0. In between it is `peak`.

# %% tags=["exercise"]
def rate(t, steps, peak, warmup, cooldown):
    """The learning rate of step t, 0 <= t < steps; warmup + cooldown <= steps"""
    ...


grader_12.check_rate(rate);

# %% tags=["solution"]
def rate(t, steps, peak, warmup, cooldown):
    if t < warmup:
        return peak * (t + 1) / (warmup + 1)
    if t >= steps - cooldown:
        return peak * (steps - t) / cooldown            # steps - t steps are left
    return peak


grader_12.check_rate(rate);

# %% [markdown]
# ## 5. On real text
#
# Now we train a small model with momentum and with Adam. There is no weight decay.
# Model, batches and schedule are the same, 150 steps. Each rule gets three learning
# rates and three seeds, for the weights and for the batches. One half of the validation
# windows chooses the rate; the other half is reported.

# %%
corpus = lessons.text()
vocabulary = data.Vocabulary(corpus.text)
train, val = data.split(vocabulary.encode(corpus.text).astype(int))
config = model.Config(vocab_size=len(vocabulary), block_size=32, n_layer=2, n_head=2,
                      n_embd=32, position="rope")
STEPS, RULES = 150, {"momentum": momentum, "Adam": adam}
GRID = {"momentum": (0.1, 0.3, 1.0), "Adam": (0.003, 0.01, 0.03)}


def gradients(params, seed, step):
    """{name: gradient} of a batch of 16 windows, scaled to a norm of at most 1"""
    x, y = data.batch(train, 16, config.block_size, seed, step)
    _, _, cache = model.forward(params, x, config, targets=y)
    grads = model.backward(cache, config)
    factor = optim.clip_factor(optim.global_norm(grads), 1.0)
    return {name: factor * g for name, g in grads.items()}

# %%
def learn(job):
    """(rule, learning rate, seed) -> losses on both halves of the validation windows"""
    name, lr, seed = job
    params, _ = model.init(config, seed)
    updates = {key: RULES[name](w) for key, w in params.items()}
    for step in range(STEPS):
        grads = gradients(params, seed, step)
        its_lr = optim.learning_rate(step, lr=lr, min_lr=0, warmup=15, steps=STEPS,
                                     schedule="linear", cooldown=0.6)
        for key, w in params.items():
            updates[key](w, grads[key], step + 1, its_lr)
    return [model.forward(params, x, config, targets=y)[1] for x, y in halves]


x, y = (a[::20] for a in data.blocks(val, config.block_size))
halves = (x[::2], y[::2]), (x[1::2], y[1::2])
jobs = [(name, lr, seed) for name in GRID for lr in GRID[name] for seed in range(3)]
with parallel.workers(2) as pool:
    losses = np.reshape(list(pool.map(learn, jobs)), (2, 3, 3, 2))
# losses: (rule, learning rate, seed, half)

# %% tags=["plot", "varies"]
# Picture: final losses of two rules, three learning rates and three seeds each. At its
# chosen rate Adam lies lower than momentum.
pictures.three_rates(GRID, losses, "Adam ends lower");

# %% [markdown]
# At the chosen rates every Adam run ends below every run with momentum, and the gap is
# larger than the differences between seeds. Both rules are worse at the largest of
# their rates.
#
# What this does not show: that the order stays the same in a long run, in another
# model, or with finer grids of rates.
#
# **What we now know.** Curvature limits the step, and one rate must serve all
# directions. Momentum averages gradients, so the walk speeds up where they agree.
# Adam gives each coordinate its own scale, which helps if the valleys lie along the
# coordinates. Noise sets a floor proportional to the learning rate; a cool-down ends
# below that of the rate it began with.
#
# **What remains unknown.** Whether one number per coordinate is the right scale. Most
# weights stand in matrices, and a matrix has directions that no single coordinate
# shows: [lesson 22](22_a_step_for_a_matrix.ipynb).
#
# **Source.** Adam: arXiv 1412.6980; with decoupled weight decay, AdamW: 1711.05101. In
# the package: `optim.py` (AdamW, the schedule).
