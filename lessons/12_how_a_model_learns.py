# %% [markdown]
# # 12 · How a model learns: from gradient descent to Muon
#
# **The question.** The gradient says in which direction the loss grows fastest. How far
# should a step go the other way, and is that the best way to go? **Time:** 45 minutes
# to read, 80 with the exercises. **You need:** what a gradient is; for section 4,
# singular values. The model that is trained below is that of [lesson
# 02](02_character_model.ipynb), but with rotary positions ([lesson
# 03](03_positions.ipynb)). (The letters: [notation](NOTATION.md).)

# %%
import numpy as np

from minattn import data, lessons, model, muon, optim, parallel, plots
from minattn.lessons import grader_12

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
#
# ## 4. Muon: a step for the matrix as a whole
#
# Most weights of a network stand in matrices. What does the gradient of a matrix look
# like? We train a small model on real text for fifty steps with Adam and keep all
# gradients of one matrix, the second of the MLP in the first layer.

# %%
corpus = lessons.text()
vocabulary = data.Vocabulary(corpus.text)
train, val = data.split(vocabulary.encode(corpus.text).astype(int))
config = model.Config(vocab_size=len(vocabulary), block_size=32, n_layer=2, n_head=2,
                      n_embd=32, position="rope")
MATRICES = model.matrices(config)      # (name, columns) of those inside the layers


def gradients(params, seed, step):
    """{name: gradient} of a batch of 16 windows, scaled to a norm of at most 1"""
    x, y = data.batch(train, 16, config.block_size, seed, step)
    _, _, cache = model.forward(params, x, config, targets=y)
    grads = model.backward(cache, config)
    factor = optim.clip_factor(optim.global_norm(grads), 1.0)
    return {name: factor * g for name, g in grads.items()}

# %%
params, _ = model.init(config, seed=0)
updates = {name: adam(p) for name, p in params.items()}
seen = []                              # 50 gradients (128, 32)
for step in range(50):
    grads = gradients(params, 0, step)
    seen.append(grads["h.0.mlp.c_proj.weight"])
    for name, p in params.items():
        updates[name](p, grads[name], step + 1, 0.01)

# %% [markdown]
# A matrix $G = U S V^\top$ has singular values $s_1 \ge s_2 \ge \dots$, the diagonal of
# $S$: how strongly it acts along each of its directions. We give the same fifty
# gradients to four rules and look at the last update of each: the gradient itself,
# momentum, Adam, and *Muon* (Keller Jordan, 2024), which is explained below the
# picture.

# %%
def muon_rule(w):
    m = np.zeros_like(w)

    def update(w, g, t, lr):
        muon.step(w, g, m, lr)         # in place
    return update


def last_update(rule):
    """What a rule adds to the matrix at the last of the gradients seen"""
    w = np.zeros_like(seen[0])
    update = rule(w)
    for t, g in enumerate(seen, 1):
        before = w.copy()
        update(w, g, t, 1.0)
    return w - before

# %% tags=["plot"]
fig, ax = plots.figure(6.6, 3.8)
for name, rule in (("gradient", gradient_descent), ("momentum", momentum),
                   ("Adam", adam), ("Muon", muon_rule)):
    values = np.linalg.svd(last_update(rule), compute_uv=False)
    ax.semilogy(np.arange(1, 33), values / values[0], "o-", ms=3, label=name)
ax.set(xlabel="number of the singular value", ylabel="relative to the largest",
       title="The update of one matrix: Muon moves all directions alike")
ax.legend(frameon=False);

# %% [markdown]
# A few directions dominate the gradient. Averaging over batches lifts the others
# (momentum), and Adam lifts them more, but most still move less than a tenth as much as
# the first. Muon's update has nearly equal singular values.
#
# The last direction is special. It shifts all channels of the stream by the same
# amount, and every layer norm that reads the stream ignores such a shift. So its
# gradient is zero, up to rounding. Muon hardly moves it. Adam does, since it looks at
# entries, not at directions.
#
# **Where this comes from.** For an input $x$ the matrix $W$ gives $xW$. If $W$ changes
# by $-\eta X$, the output changes by at most $\eta\, |x|\, \|X\|$, where $\|X\|$ is the
# largest singular value of $X$, its *spectral norm*. So let us bound this norm by 1.
# Which $X$ then lowers the loss most? To first order it falls by
# $\eta\,\langle G, X \rangle = \eta \sum_{ij} G_{ij} X_{ij}$. With the columns $u_i$ of
# $U$ and $v_i$ of $V$:
#
# $$ \begin{aligned}
# \langle G, X \rangle &= \textstyle\sum_i s_i\, u_i^\top X v_i
#   && \text{since } G = \textstyle\sum_i s_i\, u_i v_i^\top \\
# &\le \textstyle\sum_i s_i && \text{since } |u_i^\top X v_i| \le \|X\| \le 1 \\
# &= \langle G, U V^\top \rangle
#   && \text{since } u_i^\top (U V^\top) v_i = 1.
# \end{aligned} $$
#
# The answer is $U V^\top$: the gradient with all its singular values set to 1. Other
# bounds give rules we know. If the sum of the squares of $X$ is bounded, the best $X$
# points along $G$: gradient descent. If each entry is bounded, the best $X$ is the sign
# of $G$: Adam's first step. Turning the rows or the columns of $G$ turns $U V^\top$ in
# the same way, so the axes no longer matter.

# %%
shares = {"G": [], "sign(G)": [], "U V^T": []}
for G in np.array(seen, float):
    U, s, Vt = np.linalg.svd(G, full_matrices=False)
    for name, X in zip(shares, (G, np.sign(G), U @ Vt)):
        shares[name].append(np.sum(G * X) / np.linalg.norm(X, 2) / s.sum())
print("first-order decrease for a spectral norm of 1, as a share of the largest")
print("(mean over the fifty gradients)")
for name, values in shares.items():
    print(f"{name:8s} {np.mean(values):.2f}")

# %% [markdown]
# **Without singular values.** Computing them for every matrix at every step would be
# slow. Muon uses products of matrices only. With $X = U S V^\top$,
#
# $$ X X^\top X = U S^3 V^\top, \qquad (X X^\top)^2 X = U S^5 V^\top, $$
#
# so the step $X \leftarrow a X + b\, X X^\top X + c\, (X X^\top)^2 X$ (a
# *Newton–Schulz* step) turns each singular value $s$ into
# $p(s) = a s + b s^3 + c s^5$ and leaves $U$ and $V$ alone. Start from $X = G / |G|$,
# with $|G|$ the root of the sum of squares: no singular value exceeds 1. Then choose
# $a, b, c$ such that repeated steps push all of them towards 1.
#
# ## Exercise 2: one Newton–Schulz step

# %% tags=["exercise"]
def newton_schulz_step(X, a, b, c):
    """X (n, m) -> a X + b X X^T X + c (X X^T)^2 X, (n, m)"""
    ...


grader_12.check_newton_schulz_step(newton_schulz_step);

# %% tags=["solution"]
def newton_schulz_step(X, a, b, c):
    A = X @ X.T                                         # (n, n)
    return a * X + (b * A + c * A @ A) @ X


grader_12.check_newton_schulz_step(newton_schulz_step);

# %% [markdown]
# Jordan takes the same $a, b, c$ five times. The package can also take three steps,
# each with coefficients of its own, which is cheaper.

# %%
def after(s, steps):
    """A singular value after Newton–Schulz: p(p(... p(s)))"""
    for a, b, c in muon.COEFFICIENTS[steps]:
        s = a * s + b * s**3 + c * s**5
    return s


s = np.geomspace(1e-4, 1, 2000)

# %% tags=["plot"]
fig, ax = plots.figure(6.6, 3.6)
for steps in (5, 3):
    ax.semilogx(s, after(s, steps), label=f"{steps} steps")
ax.semilogx(s, s, color="gray", ls="--", label="before")
ax.axhline(1, color="black", lw=0.8)
ax.set(xlabel="singular value of $G / |G|$", ylabel="singular value after the steps",
       title="A few products bring most singular values near 1")
ax.legend(frameon=False);

# %% [markdown]
# Neither curve settles at 1: Jordan found that between about 0.7 and 1.2 is good
# enough, and that it is better to lift small values quickly. A value of 0.001 is lifted
# almost to a half by five steps: for small $s$, $p(s) \approx a s$, and
# $3.4445^5 \approx 485$. Do the products really do the same as the polynomial applied
# to the singular values?

# %%
U, s, Vt = np.linalg.svd(G / (np.linalg.norm(G) + 1e-7), full_matrices=False)
for steps in (5, 3):
    X = muon.orthogonalise(G, steps)
    expected = (U * after(s, steps)) @ Vt
    agree = np.allclose(X, expected, rtol=0, atol=1e-8)
    print(f"{steps} steps: equal to U p(...p(S)...) V^T: {agree}")

# %% [markdown]
# Muon is momentum, followed by this iteration: $m \leftarrow \mu m + g$,
# $X = \text{orthogonalise}(g + \mu m)$, $W \leftarrow W - \eta X$, up to a factor for
# the shape. It is meant for the matrices inside the layers; embeddings, gains and
# biases keep Adam. The file `muon.py` is a page long.
#
# ## 5. The schedule: warm-up and cool-down
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
fig, ax = plots.figure(6.8, 3.8)
for name, rates in (("constant 0.2", high), ("constant 0.02", low),
                    ("0.2, then a line to 0", falling)):
    ax.semilogy(range(1, 201), noisy_losses(rates), label=name)
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
# ## Exercise 3: the learning rate of a step
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
# ## 6. The three on real text
#
# Now we train the small model of section 4 with each rule: momentum, Adam, and Muon for
# the matrices inside the layers, with Adam at 0.01 for the rest. There is no weight
# decay. Model, batches and schedule are the same, 150 steps. Each rule gets three
# learning rates and three seeds, for the weights and for the batches. One half of the
# validation windows chooses the rate; the other half is reported.

# %%
STEPS = 150
GRID = {"momentum": (0.1, 0.3, 1.0), "Adam": (0.003, 0.01, 0.03),
        "Muon": (0.01, 0.03, 0.1)}


def parts(name, params, lr):
    """(key, columns, update, learning rate) of everything that is learned"""
    if name == "momentum":
        return [(key, ..., momentum(p), lr) for key, p in params.items()]
    if name == "Adam":
        return [(key, ..., adam(p), lr) for key, p in params.items()]
    matrices = [(key, np.s_[:, columns]) for key, columns in MATRICES]
    rest = params.keys() - dict(matrices).keys()
    return ([(key, at, muon_rule(params[key][at]), lr) for key, at in matrices]
            + [(key, ..., adam(params[key]), 0.01) for key in rest])

# %%
def learn(job):
    """(rule, learning rate, seed) -> losses on both halves of the validation windows"""
    name, lr, seed = job
    params, _ = model.init(config, seed)
    learned = parts(name, params, lr)
    for step in range(STEPS):
        grads = gradients(params, seed, step)
        share = optim.learning_rate(step, lr=1, min_lr=0, warmup=15, steps=STEPS,
                                    schedule="linear", cooldown=0.6)
        for key, at, update, its_lr in learned:
            update(params[key][at], grads[key][at], step + 1, share * its_lr)
    return [model.forward(params, x, config, targets=y)[1] for x, y in halves]


x, y = (a[::20] for a in data.blocks(val, config.block_size))
halves = (x[::2], y[::2]), (x[1::2], y[1::2])
jobs = [(name, lr, seed) for name in GRID for lr in GRID[name] for seed in range(3)]
with parallel.workers(2) as pool:
    losses = list(pool.map(learn, jobs))
losses = np.reshape(losses, (3, 3, 3, 2))  # (rule, learning rate, seed, half)

# %% tags=["plot", "varies"]
# Picture: final losses of three rules, three learning rates and three seeds each.
# Momentum lies highest, Adam in the middle, Muon lowest at its chosen rate.
fig, axes = plots.figure(8.6, 3.6, ncols=3, sharey=True)
for ax, name, its in zip(axes, GRID, losses):
    chosen = its[..., 0].mean(axis=1).argmin()           # by the first half
    for n, three in enumerate(its[..., 1]):              # reported: the second
        filled = plots.COLOURS[0] if n == chosen else "none"
        ax.plot([n] * 3, three, "o", color=plots.COLOURS[0], mfc=filled)
    ax.set_xticks(range(3), GRID[name])
    ax.set(xlim=(-0.5, 2.5), xlabel="learning rate", title=name)
    print(f"{name:8s} at {GRID[name][chosen]:<5} loss of the three seeds "
          + "  ".join(f"{loss:.2f}" for loss in its[chosen, :, 1]))
axes[0].set_ylabel("validation loss")
fig.suptitle("Muon ends lowest (150 steps, three seeds; filled: the chosen rate)");

# %% [markdown]
# At the chosen rates every Muon run ends below every Adam run, and every Adam run below
# every run with momentum alone. The gaps are larger than the differences between seeds.
# All three rules are worse at the largest of their rates, Muon least.
#
# What this does not show: that the order stays the same in a long run, in another
# model, or with finer grids of rates. And losses are compared after equal numbers of
# *steps*; a step of Muon costs more than one of Adam.
#
# **What we now know.** Curvature limits the step, and one rate must serve all
# directions. Momentum averages gradients, so the walk speeds up where they agree.
# Adam gives each coordinate its own scale, which helps if the valleys lie along the
# coordinates. Muon gives each *direction* of a matrix the same scale, whatever the
# axes, and needs products only. Noise sets a floor proportional to the learning rate;
# a cool-down ends below that of the rate it began with.
#
# **What remains unknown.** Why equal singular values are good for learning. The bound
# on the spectral norm is a reason to choose $U V^\top$ once this bound is accepted; it
# does not say that this is the right bound. The comparisons that we know are
# experiments, like ours.
#
# **Source.** Adam: arXiv 1412.6980; with decoupled weight decay, AdamW: 1711.05101.
# Muon: Keller Jordan and others, *Muon: An optimizer for hidden layers in neural
# networks* (2024). Steepest descent under a norm: 2409.20325. Coefficients that differ
# from step to step: 2505.16932. In the package: `optim.py` (AdamW, the schedule) and
# `muon.py`. To train with Muon: `minattn train --optimizer muon`.
