# %% [markdown]
# # 07 · Energy-gated attention, and how to catch a leak
#
# **The question.** A new mechanism has a lower loss. Is it better, or has it seen the
# answer? **Time:** 40 minutes to read, 55 with the exercises. **You need:** softmax
# attention and its gradient ([lesson 01](01_softmax_attention.ipynb)), training a small
# model ([lesson 19](19_learning_to_write.ipynb)). (The letters:
# [notation](NOTATION.md).)

# %%
import numpy as np

from minattn import data, lessons, model, parallel, plots
from minattn.attention import energy
from minattn.inspect import leak
from minattn.lessons import grader_07
from minattn.validate.causality import causality

# %% [markdown]
# ## The picture: keys that every query weighs more
#
# In softmax attention a key gets weight if it matches the query. **Energy-gated
# attention** adds a number that does not depend on the query: each key $j$ has
# an **energy** $e_j$, one number per head, a learned linear function of its token
# $x_j$. If its energy stands out from the others', a gate opens and the key gets more
# weight from every query.
#
# $$ e_j = w \cdot x_j + b, \qquad
#    z_j = \frac{e_j - \text{mean}(e)}{\text{std}(e)}, \qquad
#    g_j = \mathrm{sigmoid}\big(\alpha (z_j - \tau)\big) $$
#
# (Mean and standard deviation are those of the energies of the text.
# $\mathrm{sigmoid}(u) = 1 / (1 + e^{-u})$ is the sigmoid; $\alpha$, how sharp the gate
# is, and $\tau$, how much a key must stand out, are learned too, from 2 and 0; this
# $\alpha$ is not lesson 06's.) The gates multiply the softmax weights $P_{ij}$, and
# each row is made to sum to 1 again:
#
# $$ A_{ij} = \frac{P_{ij}\, g_j}{\sum_{k \le i} P_{ik}\, g_k} $$
#
# For a picture without training, let the energy be how rare a character is, and let all
# scores be equal, so that $P$ is flat:

# %%
corpus = lessons.text()
line = corpus.text[:48].replace("\n", " ")
share = {c: corpus.text.count(c) / len(corpus.text) for c in set(line)}
e = -np.log([share[c] for c in line])     # (T,)  the energy: rare characters have much
T, alpha, tau = len(line), 2.0, 0.0
z = (e - e.mean()) / e.std()              # (T,)
g = 1 / (1 + np.exp(-alpha * (z - tau)))  # (T,)
P = np.full(T, 1 / T)                     # (T,)  the last query's row: all scores equal
A = P * g / (P * g).sum()                 # (T,)

# %% tags=["plot"]
# Picture: two rows of bars over 48 characters: gates above, weights below. Rare
# characters such as capitals and punctuation have high bars, spaces the lowest; the
# dashed line of softmax is level.
fig, (top, bottom) = plots.figure(9.6, 4.6, nrows=2, sharex=True)
top.bar(range(T), g, color=plots.COLOURS[5])
top.set(ylabel="gate $g_j$", ylim=(0, 1),
        title="The rarer a character, the more weight (the last query's row)")
bottom.bar(range(T), A, color=plots.COLOURS[0], label="with the gate")
bottom.plot(range(T), P, "--", color=plots.COLOURS[1],
            label="softmax (all scores equal)")
bottom.set(ylabel="weight", xlabel="key", ylim=(0, 1.5 * A.max()))
bottom.set_xticks(range(T), [c if c != " " else "␣" for c in line])
bottom.legend(frameon=False, ncols=2, loc="upper right");

# %% [markdown]
# ## The gate is a bias
#
# Put $P_{ij} = e^{s_{ij}} / \sum_{k \le i} e^{s_{ik}}$ into the formula above: the
# denominator of $P$ cancels, and
#
# $$ A_{ij} = \frac{e^{s_{ij}} g_j}{\sum_{k \le i} e^{s_{ik}} g_k}
#    = \frac{e^{s_{ij} + \ln g_j}}{\sum_{k \le i} e^{s_{ik} + \ln g_k}} : $$
#
# a softmax of $s_{ij} + \ln g_j$. So the whole mechanism is **one number added to the
# scores of each key**, which many fast programs can do. A closed gate must not become
# $\ln 0$: with $u = \alpha (z - \tau)$, $\ln g = -\ln(1 + e^{-u})$ is computed as
# $\min(u, 0) - \ln(1 + e^{-|u|})$. The published way to take mean and deviation is
# called `norm="sequence"` in the package.


# %%
def log_sigmoid(u):
    return np.minimum(u, 0) - np.log1p(np.exp(-np.abs(u)))


def normalise(e):
    """e (T,) -> z (T,): as published, over the whole sequence"""
    return (e - e.mean()) / max(e.std(), 1e-8)


def energy_forward(q, k, v, z, alpha, tau):
    """q, k (T, D), v (T, Dv), z (T,), alpha and tau numbers -> out (T, Dv), A (T, T)"""
    T, D = q.shape
    s = q @ k.T / np.sqrt(D)                     # (T, D), (D, T) -> (T, T)
    s = s + log_sigmoid(alpha * (z - tau))       # plus (T,): the same for every query
    s[~np.tri(T, dtype=bool)] = -np.inf  # the future is hidden, or is it?
    A = np.exp(s - s.max(axis=1, keepdims=True))
    A /= A.sum(axis=1, keepdims=True)
    return A @ v, A                      # (T, T), (T, Dv) -> (T, Dv)


rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((3, 11, 5))  # T = 11, D = Dv = 5
e = rng.standard_normal(11)
out, A = energy_forward(q, k, v, normalise(e), 2.0, 0.3)
four = [a[None, None] for a in (q, k, v, e)]

# %%
theirs, cache = energy.forward(*four, np.array([2.0]), np.array([0.3]), norm="sequence",
                               causal=True)
print("largest difference from minattn:", f"{np.abs(theirs[0, 0] - out).max():.0e}")

# %% [markdown]
# ## Exercise 1: the published way, and where it breaks
#
# The published code multiplies, sums, and divides, with a floor under the sum:
# $A_{ij} = P_{ij} g_j / \max(\sum_k P_{ik} g_k,\ 10^{-8})$. If all gates are nearly
# closed, the floor takes over and the row fades away. Write the weights from $P$ and
# $u$ so that they are right for any $u$ (some inputs have $u \approx -800$); hidden
# keys have $P_{ij} = 0$.


# %% tags=["exercise"]
def gated_weights(P, u):
    """P (T, T) causal softmax weights, u (T,) the gates' logits -> A (T, T)"""
    ...


grader_07.check_gated_weights(gated_weights);


# %% tags=["solution"]
def gated_weights(P, u):
    log_g = np.where(P > 0, log_sigmoid(u), -np.inf)  # (T, T)  hidden keys do not count
    A = P * np.exp(log_g - log_g.max(axis=1, keepdims=True))  # a row's factor cancels
    return A / A.sum(axis=1, keepdims=True)


grader_07.check_gated_weights(gated_weights);

# %% [markdown]
# ## The gradient
#
# With $L$ the loss and $dx$ for $\partial L / \partial x$: the gate enters as a bias,
# so $d(\ln g)_j$ is the sum of the gradients of all queries' scores for key $j$. And
# $\ln g = -\ln(1 + e^{-u})$ has the slope $e^{-u} / (1 + e^{-u}) = 1 - g$: a wide open
# gate gets no gradient. From there on, $u = \alpha (z - \tau)$ is a product:
#
# $$ du_j = (1 - g_j) \sum_i ds_{ij}, \qquad dz_j = \alpha\, du_j,
# \qquad d\alpha = \sum_j (z_j - \tau)\, du_j, \qquad d\tau = -\alpha \sum_j du_j $$
#
# Last, $z$ is a normalisation: layer norm without its gain (lesson 02), here over the
# *positions* $0 \dots T - 1$. An energy moves its own $z$, and, through the mean and
# the deviation, all others':
#
# $$ de_j = \frac{1}{\text{std}} \Big( dz_j - \text{mean}(dz) - z_j\, \text{mean}(dz
#    \cdot z) \Big) $$


# %%
def energy_backward(dout, q, k, v, e, alpha, tau):
    """dout (T, Dv) -> dq, dk (T, D), dv (T, Dv), de (T,), dalpha, dtau (numbers)"""
    z = normalise(e)
    out, A = energy_forward(q, k, v, z, alpha, tau)
    delta = (dout * out).sum(axis=1, keepdims=True)
    ds = A * (dout @ v.T - delta)                        # (T, T)  as in lesson 01
    g = np.exp(log_sigmoid(alpha * (z - tau)))             # (T,)
    du = (1 - g) * ds.sum(axis=0)             # (T,)    every query's score for this key
    dz = alpha * du                                        # (T,)
    de = (dz - dz.mean() - z * (dz * z).mean()) / e.std()  # (T,)
    ds = ds / np.sqrt(q.shape[1])
    return ds @ k, ds.T @ q, A.T @ dout, de, ((z - tau) * du).sum(), -alpha * du.sum()


dout = rng.standard_normal(out.shape)
ours = energy_backward(dout, q, k, v, e, 2.0, 0.3)
ours = dict(zip(("q", "k", "v", "energy", "alpha", "tau"), ours))
way = rng.standard_normal(11)  # a random direction for the energies
above, below = (
    np.sum(dout * energy_forward(q, k, v, normalise(e + h * way), 2.0, 0.3)[0])
    for h in (1e-6, -1e-6))

# %%
print(f"slope by hand {ours['energy'] @ way:.8f}   "
      f"by finite differences {(above - below) / 2e-6:.8f}")
grads = energy.backward(dout[None, None], cache)
far = {name: np.abs(grads[name].squeeze() - ours[name]).max() for name in ours}
print("largest difference from minattn:",
      ", ".join(f"d{name} {value:.0e}" for name, value in far.items()))

# %% [markdown]
# ## Something is wrong
#
# Did you see it? The mask hides the scores of later keys. But the mean and the
# deviation were taken over **all** positions, later ones too: a later token changes
# them, they change the gates of earlier keys, and those change what earlier queries
# read. The formula for $de_j$ says the same: the gradient of an early output reaches
# every energy, late ones included.
#
# Let us look. An untrained model of one layer reads 24 tokens. Change token $j$ alone,
# and record how much the logits at position $i$ move. Below the diagonal (a later
# position reads an earlier token) everything may be bright; above it everything must be
# **exactly** zero. `norm="key"` is a causal form that we shall come to.

# %%
vocabulary = data.Vocabulary(corpus.text)
train_ids, val_ids = data.split(vocabulary.encode(corpus.text))
V = len(vocabulary)


def influence(norm, T=24):
    """-> (T, T): how far the logits at position i (row) move when token j is another"""
    config = model.Config(vocab_size=V, block_size=T, n_layer=1, n_head=2, n_embd=32,
                          attention=f"energy[norm={norm}]")
    params, buffers = model.init(config, seed=0, dtype=np.float64)
    x = val_ids[None, :T].astype(int)  # (1, T)
    moved = []
    for j in range(T):
        other = x.copy()
        other[0, j] = (other[0, j] + 1) % V
        both = np.concatenate([x, other])                                    # (2, T)
        logits = model.forward(params, both, config, buffers=buffers)[0]     # (2, T, V)
        moved.append(np.abs(logits[1] - logits[0]).max(axis=1))
    return np.array(moved).T

# %% tags=["plot"]
# Picture: two squares, position whose logits moved by token that was changed. With
# norm=sequence all cells but the first row are coloured; with norm=key the half above
# the diagonal is white.
fig, axes = plots.figure(9.6, 4.5, ncols=2)
for ax, norm in zip(axes, ("sequence", "key")):
    moved = influence(norm)
    above = moved[np.triu_indices(24, 1)]  # what later tokens did to earlier outputs
    print(f"norm={norm}: largest change of an earlier output {above.max():.1e}")
    logarithm = np.log10(np.where(moved > 0, moved, np.nan))
    image = ax.imshow(logarithm, cmap="cividis", vmin=-5, vmax=0)
    ax.set_facecolor("white")
    ax.grid(False)
    ax.set(xlabel="token that was changed", ylabel="position whose logits moved",
           title=f"norm={norm} (white: exactly zero)")
fig.suptitle("As published, a later token changes nearly every earlier output")
fig.colorbar(image, ax=axes, label="$\\log_{10}$ of the largest change");

# %% [markdown]
# With the published statistics every output but the very first (which has one key, and
# no choice) depends on every token. The future **leaks** into the past: the model is
# *not causal*. Its training loss, and its validation loss measured the usual way, come
# from predictions that could depend on the very character they predict.
#
# ## A certificate
#
# The validation kit asks four questions: (1) change what follows a prefix: do earlier
# outputs stay exactly the same? (2) is the gradient of an output exactly 0 at every
# later input? (3) does a prefix alone give the same as inside the whole? (4) for
# trained models, is the loss the same? It asks them of any function of yours, too.

# %%
print(causality("energy", options={"norm": "sequence"}))
print()
print(causality("affine"))

# %% [markdown]
# Lesson 06's mechanism fails in one way only: it looks at no later token, only at their
# *number*. That is why there are several questions.
#
# ## Exercise 2: the causal repair
#
# The gate of key $j$ may use only what is there when key $j$ arrives: mean and variance
# over the keys $0 \dots j$. Then it never changes again, and generation can keep it:
# this is `norm="key"`, the package's default. Where the paper is silent we chose:
# $z_j = (e_j - \text{mean}_j) / \sqrt{\text{var}_j + 10^{-8}}$, and $z_0 = 0$,
# as there is nothing to compare with.


# %% tags=["exercise"]
def normalise_causally(e):
    """e (T,) -> z (T,): each energy against the mean and variance up to its own"""
    ...


grader_07.check_normalise_causally(normalise_causally);


# %% tags=["solution"]
def normalise_causally(e):
    n = np.arange(1, len(e) + 1)
    mean = np.cumsum(e) / n
    var = np.array([e[:i].var() for i in n])
    z = (e - mean) / np.sqrt(var + 1e-8)
    z[0] = 0
    return z


grader_07.check_normalise_causally(normalise_causally);

# %% [markdown]
# ## Two losses
#
# How much of a loss comes from the leak? Compute it twice over the same predictions.
# **Teacher-forced**, as losses are published: the model reads the whole window at once,
# and every position predicts its next token. **Prefix-only**, as text is written: each
# prediction is made anew from its own prefix, and nothing after it exists. For a causal
# model the two are the same number.
#
# ## Exercise 3: the prefix-only loss


# %% tags=["exercise"]
def prefix_only_loss(predict, x, y):
    """x, y (T,) tokens and what follows each -> mean surprise in nats, a number

    predict: tokens (n,) -> logits (n, V)
    """
    ...


grader_07.check_prefix_only_loss(prefix_only_loss);


# %% tags=["solution"]
def prefix_only_loss(predict, x, y):
    total = 0.0
    for t in range(len(x)):
        logits = predict(x[:t + 1])[-1]  # (V,)  the last row: what follows x[t]
        logits = logits - logits.max()
        total += np.log(np.exp(logits).sum()) - logits[y[t]]
    return total / len(x)


grader_07.check_prefix_only_loss(prefix_only_loss);

# %% [markdown]
# ## Experiment: is the gain real?
#
# Three models that differ only in the attention: softmax, the energy gate as published,
# and its causal form (`lessons.train`: lesson 19's training, and gradients whose norm
# is above 1 are scaled back to 1). Windows are short, 16 characters: in a mean over 16
# tokens each one has a large share, so a model can find the leak within seconds of
# training. (Afterwards try `T=64`: is it found as quickly? A leak need not be used,
# which makes it hard to notice.)


# %%
def train(pool, attention, seed, T=16):
    """-> params, buffers, config"""
    config = model.Config(vocab_size=V, block_size=T, n_layer=2, n_head=4, n_embd=64,
                          attention=attention, position="rope", bias=True,
                          scaled_init=False)
    trained = lessons.train(pool, config, train_ids, steps=600, batch=32, lr=6e-3,
                            seed=seed)
    return *trained, config


models = {"softmax": "softmax",
          "energy, norm=sequence\n(as published)": "energy[norm=sequence]",
          "energy, norm=key\n(causal)": "energy[norm=key]"}
x, y = (a[::20] for a in data.blocks(val_ids, 16))  # (n, T) validation windows
windows, positions = leak.spread(*x.shape, x.size)  # every prediction of every window
results = {}

# %%
with parallel.workers(2) as pool:
    for name, attention in models.items():
        for seed in (0, 1):
            parts = train(pool, attention, seed)
            # two arrays (n T,), nats
            losses = leak.losses(*parts, x, y, windows, positions)
            results[name, seed] = [one.mean() for one in losses]

# %% tags=["plot"]
# Picture: validation losses of three models, two seeds and two ways to measure each.
# The published gate is lowest teacher-forced and highest prefix-only; for softmax and
# the causal gate both ways agree.
fig, ax = plots.figure(8.4, 4.0)
what = ("teacher-forced: the window in view", "prefix-only: as text is written")
for (name, seed), losses in results.items():
    first = (name, seed) == ("softmax", 0)
    for n, (loss, mark) in enumerate(zip(losses, "os")):
        place = list(models).index(name) + 0.24 * (n - 0.5)
        ax.plot(place, loss, mark, ms=7, color=plots.COLOURS[n], alpha=0.8,
                label=what[n] if first else None)
    forced, alone = losses
    print(f"{name.replace(chr(10), ' '):37s} seed {seed}: teacher-forced {forced:.3f}"
          f"   prefix-only {alone:.3f}   difference {alone - forced:+.4f}")
ax.set(ylabel="validation loss (nats per character)", xlim=(-0.5, 2.5),
       title="The published gate wins only with the future in view (two seeds)")
ax.set_xticks(range(3), list(models))
ax.legend(frameon=False, loc="upper left");

# %% [markdown]
# Teacher-forced, the published form beats softmax. Made to predict the way it would
# have to write, the same model, with the same parameters, is *worse* than softmax: the
# gain was the leak, and relying on it costs. For softmax and for the causal gate the
# two losses agree to rounding, and the causal gate is about level with softmax. Both
# seeds say the same. The models are very small and the windows short, so the sizes of
# the gaps say little about large models.
#
# **What we now know.** An energy gate is a bias $\ln g_j$ on the keys. A statistic over
# the sequence carries the future past any mask. A leak is caught by exact tests (change
# the suffix, look at the gradient, cut the prefix), and its *use* by two losses.
# Statistics over the keys up to $j$ repair it.
#
# **What remains unknown.** The published runs on TinyShakespeare report validation
# losses of 1.371 and 1.382 with the gate against 1.474 without: teacher-forced, with
# statistics over the block. How much of that remains for a causal gate at that size
# must be measured with both losses; until then the gain is not established for a model
# that writes.
#
# **Next:** attention without queries and keys: [lesson 08](08_gaussian_kernel.ipynb).
#
# **Source.** Energy-gated attention: arXiv 2605.21842 and 2605.26355 (formulas as in
# the authors' published code). In the package: `attention/energy.py`,
# `validate/causality.py`, `inspect/leak.py`.
