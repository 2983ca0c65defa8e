# %% [markdown]
# # 22 · A step for a whole matrix: Muon
#
# **The question.** Adam gives every weight a step of its own. But most weights stand in
# matrices. What is a good step for a matrix as a whole? **Time:** 25 minutes to read,
# 45 with the exercises. **You need:** lesson 12 (momentum, Adam, the schedule),
# singular values. (The letters: [notation](NOTATION.md).)

# %%
import numpy as np

from minattn import data, lessons, model, muon, optim, parallel, plots
from minattn.lessons import grader_22, pictures

# %% [markdown]
# ## The picture: one gradient, three updates
#
# What does the gradient of a matrix look like? We train a small model on real text for
# fifty steps with Adam and keep all gradients of one matrix, the second of the MLP in
# the first layer. As in lesson 12, a rule is a function of the weights; it returns the
# function that changes them.

# %%
def momentum(w, mu=0.9):
    m = np.zeros_like(w)

    def update(w, g, t, lr):
        m[...] = mu * m + g
        w -= lr * m
    return update


def adam(w):
    m, v = np.zeros_like(w), np.zeros_like(w)

    def update(w, g, t, lr):
        flat = (a.reshape(-1) for a in (w, g, m, v))
        optim.adamw(*flat, t, lr, betas=(0.9, 0.99))    # in place
    return update

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
updates = {name: adam(w) for name, w in params.items()}
seen = []                              # 50 gradients (128, 32)
for step in range(50):
    grads = gradients(params, 0, step)
    seen.append(grads["h.0.mlp.c_proj.weight"])
    for name, w in params.items():
        updates[name](w, grads[name], step + 1, 0.01)

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
# Picture: 32 singular values of four updates of one matrix, relative to the largest,
# logarithmic. The gradient's fall far below a thousandth, those of momentum and Adam
# less; Muon's stay near 1, all but the last.
fig, ax = plots.figure(6.6, 3.8)
updates = {"gradient": seen[-1], "momentum": last_update(momentum),
           "Adam": last_update(adam), "Muon": last_update(muon_rule)}
for mark, (name, update) in zip("vso^", updates.items()):
    values = np.linalg.svd(update, compute_uv=False)
    ax.semilogy(np.arange(1, 33), values / values[0], mark + "-", ms=4, lw=1,
                label=name)
ax.set(xlabel="number of the singular value", ylabel="relative to the largest",
       title="Muon moves all directions of a matrix alike")
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
# ## The formula: the steepest step of a given size
#
# For an input $x$ the matrix $W$ gives $xW$. If $W$ changes by $-\eta X$, the output
# changes by at most $\eta\, |x|\, \|X\|$, where $\|X\|$ is the largest singular value
# of $X$, its *spectral norm*. So let us bound this norm by 1. Which $X$ then lowers the
# loss most? To first order it falls by
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
#
# ## Exercise 1: the steepest step
#
# Compute it. (`np.linalg.svd(G, full_matrices=False)` gives $U$, the diagonal of $S$,
# and $V^\top$.)


# %% tags=["exercise"]
def steepest(G):
    """G (n, m), no singular value is 0

    -> the X (n, m) with spectral norm 1 for which the sum of G * X is largest
    """
    ...


grader_22.check_steepest(steepest);


# %% tags=["solution"]
def steepest(G):
    U, _, Vt = np.linalg.svd(G, full_matrices=False)
    return U @ Vt


grader_22.check_steepest(steepest);

# %% [markdown]
# How much do the other rules lose by this measure? For each of the fifty gradients we
# scale the gradient itself, its sign and $U V^\top$ to the spectral norm 1.

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
# ## Without singular values
#
# To compute them for every matrix at every step would be slow. Muon uses products of
# matrices only. With $X = U S V^\top$,
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


grader_22.check_newton_schulz_step(newton_schulz_step);

# %% tags=["solution"]
def newton_schulz_step(X, a, b, c):
    A = X @ X.T                                         # (n, n)
    return a * X + (b * A + c * A @ A) @ X


grader_22.check_newton_schulz_step(newton_schulz_step);

# %% [markdown]
# Jordan takes the same $a, b, c$ five times. The package can also take three steps,
# each with coefficients of its own, which is cheaper and coarser.

# %%
def after(s, steps):
    """A singular value after Newton–Schulz: p(p(... p(s)))"""
    for a, b, c in muon.COEFFICIENTS[steps]:
        s = a * s + b * s**3 + c * s**5
    return s


s = np.geomspace(1e-4, 1, 2000)

# %% tags=["plot"]
# Picture: the singular value after the steps against that before. Five steps reach 0.7
# at 0.002 and then swing between 0.7 and 1.2; three steps swing between 0.35 and 1.65.
fig, ax = plots.figure(6.6, 3.6)
for steps, style in ((5, "-"), (3, "--")):
    ax.semilogx(s, after(s, steps), style, label=f"{steps} steps")
ax.semilogx(s, s, color="gray", ls=":", label="before")
ax.axhline(1, color="black", lw=0.8)
ax.set(xlabel="singular value of $G / |G|$", ylabel="singular value after the steps",
       title="Five steps bring all but the smallest near 1")
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
# ## On real text: Adam or Muon?
#
# We train the model with each rule: Adam for everything, and Muon for the matrices
# inside the layers with Adam at 0.01 for the rest. All else is as in lesson 12: 150
# steps, the same batches and schedule, three learning rates, three seeds; one half of
# the validation windows chooses the rate, the other half is reported.

# %%
STEPS = 150
GRID = {"Adam": (0.003, 0.01, 0.03), "Muon": (0.01, 0.03, 0.1)}


def parts(name, params, lr):
    """(key, columns, update, learning rate) of everything that is learned"""
    if name == "Adam":
        return [(key, ..., adam(w), lr) for key, w in params.items()]
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
losses = np.reshape(losses, (2, 3, 3, 2))  # (rule, learning rate, seed, half)

# %% tags=["plot", "varies"]
# Picture: final losses of two rules, three learning rates and three seeds each. At its
# chosen rate Muon lies lower than Adam.
pictures.three_rates(GRID, losses, "Muon ends lower");

# %% [markdown]
# At the chosen rates every Muon run ends below every Adam run, and the gap is larger
# than the differences between seeds. Both rules are worse at the largest of their
# rates, Muon less so.
#
# What this does not show: that the order stays the same in a long run, in another
# model, or with finer grids of rates. And losses are compared after equal numbers of
# *steps*; a step of Muon costs more than one of Adam.
#
# **What we now know.** A gradient has few strong directions. Muon gives each direction
# of a matrix the same scale, whatever the axes; that is the steepest step of a given
# spectral norm, and it needs products only.
#
# **What remains unknown.** Why equal singular values are good for learning. The bound
# on the spectral norm is a reason to choose $U V^\top$ once this bound is accepted; it
# does not say that this is the right bound. The comparisons that we know are
# experiments, like ours.
#
# **Source.** Keller Jordan and others, *Muon: An optimizer for hidden layers in neural
# networks* (2024). Steepest descent under a norm: arXiv 2409.20325. Coefficients that
# differ from step to step: 2505.16932. In the package: `muon.py`. To train with it:
# `minattn train --optimizer muon`.
