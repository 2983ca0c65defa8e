# %% [markdown]
# # 06 · Affine-scaled attention: must weights be positive and sum to 1?
#
# **The question.** A softmax row spends exactly one unit, and never less than nothing
# on any key. What happens if the model may choose how much a row spends, and weights
# may be negative? **Time:** 30 minutes to read, 50 with the exercises. **You need:**
# softmax attention and its gradient ([lesson 01](01_softmax_attention.ipynb)), training
# a small model ([lesson 19](19_learning_to_write.ipynb)). (The letters:
# [notation](NOTATION.md).)

# %%
import dataclasses

import numpy as np

from minattn import data, lessons, model, parallel, plots
from minattn.attention import affine
from minattn.inspect import maps, statistics
from minattn.lessons import grader_06

# %% [markdown]
# ## The picture: scale the deviations from the mean
#
# A row of softmax weights $P_{ij}$ over $N$ keys has two parts. Its mean is $1/N$
# whatever the query is: that part carries no information. What the query found out is
# how each weight *deviates* from the mean, $P_{ij} - 1/N$. **Affine-scaled attention**
# multiplies the deviation by a number $\alpha_i$ between 0 and 1 that query $i$
# chooses, and replaces the mean $1/N$ by $\alpha_\text{ma}/N$. The number
# $\alpha_\text{ma}$ does not depend on the query ("ma" for moving average; of what, we
# shall see):
#
# $$ A_{ij} = \alpha_i \left(P_{ij} - \frac1N\right) + \frac{\alpha_\text{ma}}{N} $$

# %%
rng = np.random.default_rng(0)
s = np.array([0.3, -1.0, 2.2, 0.1, -0.4, 1.4, -2.0, 0.6])  # (N,)  one query's scores
P = np.exp(s) / np.exp(s).sum()             # (N,)
N, alpha_ma = len(s), 0.5

# %% tags=["plot"]
# Picture: softmax weights of eight keys as bars, and three lines of affine weights.
# With alpha 0 the line is level; with 0.5 it is half of softmax; with 1 it rises
# highest and falls below zero at the worst keys. All three sum to one half.
fig, ax = plots.figure(7.2, 3.8)
ax.bar(np.arange(N), P, 0.8, color="lightgray", label="softmax weights $P$")
for alpha, mark in ((0.0, "v"), (0.5, "s"), (1.0, "o")):
    A = alpha * (P - 1 / N) + alpha_ma / N  # (N,)
    ax.plot(A, mark + "-", lw=1,
            label=rf"$\alpha = {alpha:g}$: weights sum to {A.sum():.2f}")
ax.axhline(0, color="black", lw=0.8)
ax.set(xlabel="key", ylabel="weight",
       title=r"$\alpha_\mathrm{ma} = 0.5$: the deviation is scaled, the mean stays")
ax.legend(frameon=False);

# %% [markdown]
# With $\alpha = 0$ the row is flat: it says nothing in particular. With
# $\alpha = \alpha_\text{ma}$ it is softmax made smaller. With
# $\alpha > \alpha_\text{ma}$ weights may fall **below zero**: what the worst keys say
# is subtracted. (Where exactly? $A_{ij} < 0$ when
# $P_{ij} < (1 - \alpha_\text{ma} / \alpha_i) / N$.)
#
# ## The formula
#
# Collecting the factor of $P$, and the rest, gives the paper's formula (arXiv
# 2602.23057, eq. 6 to 8 and 11):
#
# $$ o_i = \sum_{j \le i} (\alpha_i P_{ij} + \beta_i)\, v_j, \qquad
#    \alpha_i = \varphi(x_i W_\alpha), \qquad
# \beta_i = \frac{\alpha_\text{ma} - \alpha_i}{N} $$
#
# Here $x_i$ is the vector of token $i$, $W_\alpha$ a learned matrix that makes one
# number for each head (`alpha_logits`), and $\varphi$ turns any number $u$ into one
# between 0 and 1: $\varphi(u) = u / 10 + 1/2$, cut off at 0 and 1.
#
# The paper defines $N$ as the number of keys and does not mention a mask. So there are
# two readings: `"total"`, all $T$ keys of the sequence (the paper's own figures need
# this one), or `"visible"`, the $n_i$ keys that query $i$ may see. It will matter
# which. In both, $\beta$ reaches visible keys only.


# %%
def phi(u):
    return np.clip(u / 10 + 0.5, 0, 1)


def affine_forward(q, k, v, alpha_logits, alpha_ma, length="total"):
    """q, k (T, D), v (T, Dv), alpha_logits (T,) -> out (T, Dv), A (T, T), P (T, T)

    alpha_ma: a number
    """
    T, D = q.shape
    visible = np.tri(T, dtype=bool)
    s = np.where(visible, q @ k.T / np.sqrt(D), -np.inf)  # (T, D), (D, T) -> (T, T)
    P = np.exp(s - s.max(axis=1, keepdims=True))
    P /= P.sum(axis=1, keepdims=True)                     # softmax, as ever
    N = T if length == "total" else visible.sum(axis=1)   # a number, or (T,)
    alpha = phi(alpha_logits)                             # (T,)
    beta = (alpha_ma - alpha) / N                         # (T,)
    A = alpha[:, None] * P + beta[:, None] * visible      # (T, T)
    return A @ v, A, P                                    # (T, T), (T, Dv) -> (T, Dv)


q, k, v = rng.standard_normal((3, 11, 5))  # T = 11, D = Dv = 5
alpha_logits = 3 * rng.standard_normal(11)

# %%
for length in ("total", "visible"):
    out, A, P = affine_forward(q, k, v, alpha_logits, 0.4, length)
    print(f"{length:8s} sums of the rows:", np.round(A.sum(axis=1), 2),
          f"  smallest weight {A.min():.3f}")

# %% [markdown]
# ## Exercise 1: what does a row spend?
#
# Write the sum of row $i$ for both readings, without any score: $P$ sums to 1, and
# $\beta$ is added to each visible key.


# %% tags=["exercise"]
def row_sums(alpha, alpha_ma, length):
    """alpha (T,), alpha_ma a number, causal mask -> (T,)

    length: "total" or "visible"
    """
    ...


grader_06.check_row_sums(row_sums);


# %% tags=["solution"]
def row_sums(alpha, alpha_ma, length):
    T = len(alpha)
    n = np.arange(1, T + 1)
    return alpha + n * (alpha_ma - alpha) / (T if length == "total" else n)


grader_06.check_row_sums(row_sums);

# %% [markdown]
# So with `"visible"` **every row spends exactly** $\alpha_\text{ma}$, whatever its
# $\alpha$: the query chooses only how sharp it is. With `"total"` early rows spend
# about $\alpha_i$ and late rows about $\alpha_\text{ma}$: what a row spends depends on
# its position.
#
# ## No $T \times T$ array is needed
#
# Pull the sum apart: $o_i = \alpha_i \sum_j P_{ij} v_j + \beta_i \sum_{j \le i} v_j$.
# The first term is plain attention, from any fast *kernel* (a program that computes
# attention without ever holding the $T \times T$ array); the second is a **running
# sum** of the values.
#
# ## Exercise 2: affine on top of a fast kernel


# %% tags=["exercise"]
def affine_from_kernel(Pv, v, alpha, alpha_ma, N):
    """Pv, v (T, Dv), alpha, N (T,), alpha_ma a number -> out (T, Dv)

    Pv: what a causal softmax kernel gave
    """
    ...


grader_06.check_affine_from_kernel(affine_from_kernel);


# %% tags=["solution"]
def affine_from_kernel(Pv, v, alpha, alpha_ma, N):
    beta = (alpha_ma - alpha) / N
    return alpha[:, None] * Pv + beta[:, None] * np.cumsum(v, axis=0)


grader_06.check_affine_from_kernel(affine_from_kernel);

# %% [markdown]
# ## The gradient
#
# Write $dx$ for $\partial L / \partial x$, with $L$ the loss. The output is $A v$, so
# $dA_{ij} = do_i \cdot v_j$ and $dv = A^\top do$, as in lesson 01. In
# $A_{ij} = \alpha_i (P_{ij} - 1/N) + \alpha_\text{ma}/N$ the number $\alpha_i$
# multiplies every visible deviation of its row, and $P_{ij}$ is multiplied by
# $\alpha_i$:
#
# $$ d\alpha_i = \sum_{j \le i} dA_{ij} \left(P_{ij} - \frac1N\right), \qquad
#    dP_{ij} = \alpha_i\, dA_{ij},
# \qquad d(\text{alpha\_logits})_i = \varphi' \, d\alpha_i $$
#
# with $\varphi' = 1/10$ inside $(-5, 5)$ and 0 outside (at the two kinks we take 0).
# From $dP$ on it is softmax. And $\alpha_\text{ma}$? It is not learned by gradient; see
# below.


# %%
def affine_backward(dout, q, k, v, alpha_logits, alpha_ma, length="total"):
    """dout (T, Dv) -> dq, dk (T, D), dv (T, Dv), dalpha_logits (T,)"""
    _, A, P = affine_forward(q, k, v, alpha_logits, alpha_ma, length)
    T, D = q.shape
    visible = np.tri(T, dtype=bool)
    N = T
    if length == "visible":
        N = visible.sum(axis=1, keepdims=True)  # (T, 1)
    dv = A.T @ dout                                         # (T, T), (T, Dv) -> (T, Dv)
    dA = dout @ v.T                                         # (T, Dv), (Dv, T) -> (T, T)
    dalpha = (dA * (P - visible / N)).sum(axis=1)                     # (T,)
    dP = phi(alpha_logits)[:, None] * dA                              # (T, T)
    ds = P * (dP - (P * dP).sum(axis=1, keepdims=True)) / np.sqrt(D)  # (T, T)
    return ds @ k, ds.T @ q, dv, dalpha * np.where(np.abs(alpha_logits) < 5, 0.1, 0)


dout = rng.standard_normal(out.shape)

# %%
for length in ("total", "visible"):
    arrays = {"q": q, "k": k, "v": v, "alpha_logits": alpha_logits}
    ours = dict(zip(arrays, affine_backward(dout, q, k, v, alpha_logits, 0.4, length)))
    way = {n: rng.standard_normal(a.shape) for n, a in arrays.items()}  # a direction
    above, below = (
        np.sum(dout * affine_forward(*(a + h * way[n] for n, a in arrays.items()),
                                     0.4, length)[0]) for h in (1e-6, -1e-6))
    slope = sum((ours[n] * way[n]).sum() for n in way)
    print(f"{length:8s} slope by hand {slope:.7f}   "
          f"by finite differences {(above - below) / 2e-6:.7f}")
    four = (a[None, None] for a in arrays.values())
    theirs, cache = affine.forward(*four, np.array([0.4]), causal=True, length=length)
    grads = affine.backward(dout[None, None], cache)
    mine = affine_forward(q, k, v, alpha_logits, 0.4, length)[0]
    far = [np.abs(theirs[0, 0] - mine).max()]
    far += [np.abs(grads[n][0, 0] - ours[n]).max() for n in ours]
    print(f"{'':8s} largest difference from minattn, output and gradients: "
          f"{max(far):.0e}")

# %% [markdown]
# ## Exercise 3: the gradient of alpha_logits without a $T \times T$ array
#
# $\sum_j dA_{ij} P_{ij}$ is a dot product of two vectors that a fast kernel has at
# hand, and so is $\sum_{j \le i} dA_{ij}$. Do not forget the slope of $\varphi$.


# %% tags=["exercise"]
def alpha_gradient(dout, Pv, v, alpha_logits, N):
    """dout, Pv, v (T, Dv), alpha_logits, N (T,), causal mask -> dalpha_logits (T,)"""
    ...


grader_06.check_alpha_gradient(alpha_gradient);


# %% tags=["solution"]
def alpha_gradient(dout, Pv, v, alpha_logits, N):
    S = np.cumsum(v, axis=0)                                             # (T, Dv)
    dalpha = (dout * (Pv - S / N[:, None])).sum(axis=1)                  # (T,)
    return dalpha * np.where(np.abs(alpha_logits) < 5, 0.1, 0)


grader_06.check_alpha_gradient(alpha_gradient);

# %% [markdown]
# ## The running mean
#
# $\alpha_\text{ma}$ is a **buffer**: remembered, but not learned. With each training
# batch it moves a little towards the mean of $\alpha$ over that batch (eq. 9),
#
# $$ \alpha_\text{ma} \leftarrow \rho\, \alpha_\text{ma} + (1 - \rho)\,
#    \text{mean}(\alpha), \qquad \rho = 0.9, $$
#
# one number for each head, a constant without a gradient; in evaluation it does not
# move. (The equation does not say whether it is updated before or after use; the
# package updates it first.) It starts at 0, and if the mean of $\alpha$ stays at $m$,
# then after $t$ steps it is $m (1 - 0.9^t)$:

# %%
alpha_ma, m = 0.0, phi(alpha_logits).mean()
theirs = np.zeros(1)
for _ in range(20):
    alpha_ma = 0.9 * alpha_ma + 0.1 * m
    theirs = affine.update_moving_average(theirs, alpha_logits[None, None])
print(f"after 20 steps {alpha_ma:.6f}   m (1 - 0.9^20) {m * (1 - 0.9**20):.6f}   "
      f"minattn {theirs[0]:.6f}   m {m:.6f}")

# %% [markdown]
# So for some twenty steps $\alpha_\text{ma}$ is too small and $\beta$ clearly negative:
# at first the late rows of `total`, and all rows of `visible`, sum to almost nothing.
# Watch it on real text in two layers with four heads and rotary positions
# (`lessons.train`: lesson 19's training, and gradients whose norm is above 1 are scaled
# back to 1). A fresh $W_\alpha$ is small, so that $\alpha \approx \varphi(0) = 1/2$
# (dashed); later each head goes its own way:

# %%
corpus = lessons.text()
vocabulary = data.Vocabulary(corpus.text)
train_ids, val_ids = data.split(vocabulary.encode(corpus.text))
T = 64


def train(pool, attention):
    """-> params, buffers, config, alpha_ma of each step, layer and head"""
    config = model.Config(vocab_size=len(vocabulary), block_size=T, n_layer=2, n_head=4,
                          n_embd=64, attention=attention, position="rope", bias=True,
                          scaled_init=False)
    seen = []                                     # alpha_ma of all layers, every step
    params, buffers = lessons.train(pool, config, train_ids, steps=400, batch=8,
                                    lr=6e-3, each=lambda b: seen.append([*b.values()]))
    return params, buffers, config, np.array(seen)                  # (steps, layers, H)


models = {"softmax": "softmax", "affine, total": "affine",
          "affine, visible": "affine[length=visible]"}
with parallel.workers(2) as pool:
    trained = {name: train(pool, attention) for name, attention in models.items()}

# %% tags=["plot"]
# Picture: the running mean of eight heads against the step, logarithmic. All rise from
# 0 along the dashed curve for some twenty steps and then part, between 0.3 and 0.5.
fig, ax = plots.figure(7.2, 3.6)
steps = np.arange(1, 401)
for layer in range(2):
    for head, line in enumerate(trained["affine, total"][3][:, layer].T):
        ax.plot(steps, line, ("-", "-.")[layer], color=plots.COLOURS[layer], lw=1.2,
                label=f"layer {layer}, each head" if head == 0 else None)
ax.plot(steps, 0.5 * (1 - 0.9**steps), "k--", lw=1, label=r"$0.5\,(1 - 0.9^t)$")
ax.set(xscale="log", xlabel="training step $t$", ylabel=r"$\alpha_\mathrm{ma}$",
       ylim=(0, None),
       title="The running mean needs some twenty steps (length=total)")
ax.set_xticks([1, 10, 100], ["1", "10", "100"])
ax.legend(frameon=False);

# %% [markdown]
# ## What the trained rows spend

# %%
x, y = (a[::20] for a in data.blocks(val_ids, T))      # validation windows (n, T)

# %% tags=["plot"]
# Picture: histograms of the sum of the weights of a row. Softmax: always 1. Affine,
# total: a hill around 0.4. Affine, visible: a few values near one half.
fig, axes = plots.figure(9.6, 3.7, ncols=3, sharex=True)
for ax, (name, parts), colour in zip(axes, trained.items(), plots.COLOURS):
    params, buffers, config, _ = parts
    layers = maps.weights(params, buffers, config, x)  # (n, H, T, T) for each layer
    sums = np.concatenate([w.sum(axis=3).ravel() for w in layers])
    ax.hist(sums, np.linspace(-0.21, 1.21, 72),
            weights=np.full(sums.size, 100 / sums.size), color=colour)
    ax.set(title=name, xlabel="sum of the weights of a row")
    loss = model.forward(params, x, config, targets=y, buffers=buffers)[1]
    below = np.mean([(w[:, :, np.tri(T, dtype=bool)] < 0).mean() for w in layers])
    mass = np.mean([statistics.first_token_mass(w) for w in layers])
    print(f"{name:15s} validation loss {loss:.3f}   weights below zero {below:.0%}, "
          f"the smallest {min(w.min() for w in layers):.3f}"
          f"   mean weight on the first token {mass:.3f}")
axes[0].set_ylabel("% of rows, all heads")
fig.suptitle("Affine rows spend about half of what softmax rows spend");

# %% [markdown]
# Softmax puts every row at 1. `visible` puts all rows of a head at one place, its
# $\alpha_\text{ma}$. `total` spreads them out, as in the paper's figure. Weights below
# zero are not rare, but nearly all are small: $P \ge 0$, so none is below
# $\beta = -(\alpha - \alpha_\text{ma})/N$, and $N$ is small only for the first rows of
# `visible`. The affine rows spend about half of what softmax spends, so a key gets less
# on average, the first token included. Such a short run cannot rank the losses.
#
# ## A prefix, or the same tokens inside a longer text?
#
# With `total`, $\beta_i$ divides by the length of the whole sequence. It does not look
# at later *tokens*, but it knows *how many* there are. Take a window of 64 tokens; look
# at the prediction after its first $t$; now give the model those $t$ tokens alone, as
# when it writes. Is the prediction the same? Since $N$ was 64 in all of training, there
# is a third way: keep $N = 64$ as a number (`length=64`), whatever the length of the
# text.


# %%
def prefix_difference(params, buffers, config, x):
    """-> (T,): the largest difference of a logit, mean over texts

    between the last position of x[:, :t] and the same position of x
    """
    whole = model.forward(params, x, config, buffers=buffers)[0]  # (n, T, V)
    alone = [model.forward(params, x[:, :t], config, buffers=buffers, last_only=True)[0]
             for t in range(1, T + 1)]                              # (n, 1, V) each
    alone = np.concatenate(alone, axis=1)                           # (n, T, V)
    return np.abs(alone - whole).max(axis=2).mean(axis=0)


params, buffers, config, _ = trained["affine, total"]
fixed = dataclasses.replace(config, attention=f"affine[length={T}]")
lines = {"total": (params, buffers, config),
         "the same model with length=64": (params, buffers, fixed),
         "visible": trained["affine, visible"][:3]}

# %% tags=["plot"]
# Picture: largest difference of a logit against the length of the prefix. With total it
# falls from 0.7 to 0; with length=64 and with visible it is 0 throughout.
fig, ax = plots.figure(7.2, 3.8)
for (name, parts), style in zip(lines.items(), ("o-", "s--", "^:")):
    difference = prefix_difference(*parts, x[:40])
    print(f"{name:30s} largest difference {difference.max():.0e}")
    ax.plot(np.arange(1, T + 1), difference, style, ms=4, lw=1.2, label=name)
ax.set(xlabel="tokens in the prefix", ylabel="largest difference of a logit",
       title="With total, a prefix alone is predicted differently")
ax.legend(frameon=False);

# %% [markdown]
# With `total` the model predicts differently as soon as the text is cut, most of all
# for short prefixes; when it writes, most of what was computed for earlier tokens has
# to be computed anew for each character. The other two agree to rounding, and
# `length=64` computes the very same function of a full window. The package keeps
# `total` as its default because it is what the paper says, and its pages say so
# wherever it matters.
#
# **What we now know.** Affine scaling multiplies the deviation from uniform by
# $\alpha(x)$; a row sums to $\alpha_\text{ma}$ (`visible`) or to something between
# $\alpha_i$ and $\alpha_\text{ma}$ (`total`); weights below zero appear only where
# $\alpha > \alpha_\text{ma}$; the cost over any fast kernel is a running sum of $v$.
# Read literally, the formula ties a prediction to the length of the text.
#
# **What remains unknown.** The paper reports a lower perplexity ($e$ to the loss) than
# softmax on C4, a collection of web pages, at three sizes (70.6 against 71.7, 58.9
# against 61.9, 40.8 against 44.9). A run of half a minute can neither confirm nor deny
# that. In this project's longer runs with three seeds the gain is not reproduced: 0.01
# nats after 800 steps, none after 2000 ([results](../docs/results.md)). If there is a
# gain at larger sizes, it is not known whether the negative weights cause it or the
# choice of how sharp a row is.
#
# **Next:** a mechanism that depends on later tokens themselves, and how to catch it:
# [lesson 07](07_energy_gate_and_leaks.ipynb).
#
# **Source.** arXiv 2602.23057, eq. 6 to 9 and 11. In the package:
# `attention/affine.py`, whose `update_moving_average` is eq. 9.
