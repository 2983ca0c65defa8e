# %% [markdown]
# # 02 · A character model from nothing
#
# **The question.** How does a pile of random numbers learn to write? We build a whole
# language model, every layer with its gradient, and train it on real text while you
# wait. **Time:** 45 minutes to read, 120 with the exercises. **You need:** lesson 01
# (attention and its gradient), the chain rule.
#
# We keep one convention from lesson 01: $L$ is the *loss*, and `dx` is the array of its
# derivatives $\partial L / \partial x$, with the same shape as `x`. A layer is a
# `forward` and a `backward` that turns `dy` into `dx`. A model is layers in a row.

# %%
import timeit

import numpy as np
from threadpoolctl import threadpool_limits

from minattn import data, generate, lessons, model, optim, plots
from minattn.attention import softmax
from minattn.lessons import grader_02

threadpool_limits(1)  # one thread, so that times can be compared
corpus = lessons.text()
vocabulary = data.Vocabulary(corpus.text)
# numbers below V; the last tenth is kept for judging
train, val = data.split(vocabulary.encode(corpus.text).astype(int))
V = len(vocabulary)
print(f"{corpus.name}: {len(train):,} characters to learn from, "
      f"{len(val):,} to judge by (validation), V = {V} distinct")

# %% [markdown]
# ## The picture: guessing the next character by counting
#
# A language model does one thing: it looks at the characters so far and gives a
# probability to each of the $V$ possible next ones. The simplest looks at *one*
# character and counts what followed it in the text. Such a table of pairs is called a
# *bigram* model.
#
# How good is a guess? If the character that really comes had probability $p$, the
# *surprise* is $-\ln p$, in nats: 0 for certainty, $\ln V$ for an even guess among $V$.
# The **loss** is the mean surprise over $N$ places, $n = 1 \dots N$ with right answers
# $t_n$ (the *targets*):
#
# $$ L = -\frac1N \sum_n \ln p_n(t_n) $$

# %%
def pairs(ids):
    """ids (N,) -> (V, V): how often character b (column) follows a (row)"""
    return np.bincount(ids[:-1] * V + ids[1:], minlength=V * V).reshape(V, V)

counts = pairs(train) + 1                   # (V, V)  never 0: nothing is impossible
single = counts.sum(axis=0) / counts.sum()  # (V,)    without looking at anything
bigram = counts / counts.sum(axis=1, keepdims=True)  # (V, V)  row: this, column: next

baselines = {"even guess": np.log(V), "frequencies": -np.mean(np.log(single[val[1:]])),
             "bigram": -np.mean(np.log(bigram[val[:-1], val[1:]]))}
# cheating: counted on the text that judges
best = pairs(val) / np.maximum(pairs(val).sum(axis=1, keepdims=True), 1)
best = -np.mean(np.log(best[val[:-1], val[1:]]))
for name, loss in baselines.items():
    print(f"{name:12s} {loss:.3f} nats per character, "
          f"as good as choosing evenly among {np.exp(loss):.1f}")
print(f"no model that looks at one character can get below {best:.3f}: "
      "the bigram table of the validation text itself")

shown = [i for i, c in enumerate(vocabulary.characters)
         if c in "\n abcdefghijklmnopqrstuvwxyz"]
letters = [vocabulary.characters[i] for i in shown]
letters = [{"\n": "⏎", " ": "␣"}.get(c, c) for c in letters]

# %% tags=["plot"]
fig, ax = plots.figure(6.4, 5.4)
image = ax.imshow(bigram[np.ix_(shown, shown)], cmap="cividis", vmax=0.5)
ax.grid(False)
ax.set_xticks(range(len(shown)), letters, fontsize=8)
ax.set_yticks(range(len(shown)), letters, fontsize=8)
ax.set(xlabel="next character (⏎ line end, ␣ space)", ylabel="this character",
       title="What follows what: the bigram table")
fig.colorbar(image, label="probability (yellow: 0.5 and more)", shrink=0.8);

# %% [markdown]
# Find the bright square that says "after q comes u". The numbers are the bars to clear:
# a model above the bigram's loss has not even learned to use the last character; one
# below the last number, the best that any table of pairs can do, must look further
# back. That is what attention is for.
#
# ## The layers
#
# Rows come first: `x` is $(N, C)$, one row of $C$ *channels* for each of $N = BT$
# characters ($B$ texts of $T$). $W$ and $w$ are learned: *parameters*.
#
# **Linear**, $y = xW$, mixes channels. From lesson 01: a product hands back
# $dx = dy\,W^\top$ and $dW = x^\top dy$.
#
# **Embedding**: each character is given a row of a table $W$ $(V, C)$. It *is* a linear
# layer: with $E_{nv} = 1$ where character $n$ is $v$ and 0 elsewhere (*one-hot*),
# $y = EW$, so $dW = E^\top dy$.

# %%
def linear_backward(dy, x, W):
    return dy @ W.T, x.T @ dy  # (N, C_in), (C_in, C_out)

# %% [markdown]
# **Layer norm** keeps every row at a sane size: subtract the row's mean $\mu$, divide
# by its spread $s$, multiply by a learned gain $w$ (C,).
#
# $$ \hat x_c = \frac{x_c - \mu}{s}, \qquad
#    s = \sqrt{\tfrac1C \textstyle\sum_c (x_c - \mu)^2 + \epsilon}, \qquad
#    y_c = w_c\, \hat x_c $$
#
# ($\epsilon = 10^{-5}$ guards against a row of equal numbers.) Its gradient is the one
# that most people get wrong, because $\mu$ and $s$ depend on *every* channel:
# $\partial \mu / \partial x_e = 1/C$ and
# $\partial s / \partial x_e = (x_e - \mu)/(C s) = \hat x_e / C$. With $g = w\, dy$ for
# the gradient that reaches $\hat x$,
#
# $$ dx_e = \sum_c g_c \frac{\partial \hat x_c}{\partial x_e}
#         = \sum_c g_c \left( \frac{[c = e] - 1/C}{s}
#           {} - \frac{x_c - \mu}{s^2}\,\frac{\hat x_e}{C} \right)
#         = \frac1s \Big( g_e - \operatorname{mean}(g)
#           {} - \hat x_e \operatorname{mean}(g\,\hat x) \Big) $$
#
# ($[c = e]$ is 1 if $c = e$, else 0), and $dw_c = \sum_n dy_{nc}\, \hat x_{nc}$. The
# parts of the gradient that would merely shift or stretch the row are removed: the
# layer would undo them anyway.

# %%
def layer_norm_forward(x, w, eps=1e-5):
    xc = x - x.mean(axis=1, keepdims=True)  # (N, C)  centre
    s = np.sqrt(np.mean(xc * xc, axis=1, keepdims=True) + eps)  # (N, 1)  the spread
    xhat = xc / s                           # (N, C)
    return w * xhat, (xhat, s, w)

def layer_norm_backward(dy, cache):
    xhat, s, w = cache
    g = w * dy                                          # (N, C)  what reaches xhat
    shift = g.mean(axis=1, keepdims=True)               # (N, 1)
    stretch = np.mean(g * xhat, axis=1, keepdims=True)  # (N, 1)
    dx = (g - shift - xhat * stretch) / s               # (N, C)
    return dx, np.sum(dy * xhat, axis=0)                # dw (C,)

# %% [markdown]
# **GELU** bends: without something that is not a product, any number of linear layers
# would be one. It multiplies $x$ by a smooth step $h$ from 0 to 1, whose slope in $u$
# is $\tfrac12 (1 - \tanh^2 u) = 2h(1 - h)$:
#
# $$ y = x\,h, \quad h = \tfrac12 (1 + \tanh u), \quad
#    u = \sqrt{2/\pi}\,(x + 0.044715\,x^3), \qquad
#    \frac{dy}{dx} = h + x \cdot 2h(1 - h) \cdot \sqrt{2/\pi}\,(1 + 3
#    \cdot 0.044715\,x^2) $$
#
# **Cross-entropy** turns scores (*logits* $z$, $(N, V)$) into probabilities by a
# softmax and measures the loss $L$ of above. Since
# $-\ln p_n(t_n) = \ln \sum_v e^{z_{nv}} - z_{n t_n}$, its derivative is the
# probability, minus 1 at the right answer:
#
# $$ p_{nv} = \frac{e^{z_{nv}}}{\sum_u e^{z_{nu}}}, \qquad
#    \frac{\partial L}{\partial z_{nv}} = \frac{p_{nv} - [v = t_n]}{N} $$

# %%
def gelu_forward(x):
    c, a = float(np.sqrt(2 / np.pi)), 0.044715
    x2 = x * x
    h = (1 + np.tanh(c * (x + a * x2 * x))) / 2  # (N, 4C)
    slope = h + x * 2 * h * (1 - h) * c * (1 + 3 * a * x2)
    return x * h, slope                          # dx = dy * slope

def cross_entropy(z, targets):
    p = np.exp(z - z.max(axis=1, keepdims=True))  # (N, V)  minus the maximum
    p /= p.sum(axis=1, keepdims=True)
    right = np.arange(len(z)), targets
    loss = -np.mean(np.log(p[right]))
    p[right] -= 1
    return loss, p / len(z)  # L, dz (N, V)

# %% [markdown]
# ## Exercise 1: the embedding without the one-hot matrix
#
# $E$ is all zeros but for one 1 per row, a waste to build: `W[ids]` is the same as
# `E @ W`. Write the backward without $E$. (A character that occurs twice matters twice.
# That is where the obvious line of NumPy goes wrong.)

# %% tags=["exercise"]
def embedding_backward(dy, ids, V):
    """dy (N, C), ids (N,) integers below V -> dW (V, C)"""
    ...
grader_02.check_embedding_backward(embedding_backward);

# %% tags=["solution"]
def embedding_backward(dy, ids, V):
    dW = np.zeros((V, dy.shape[1]))
    np.add.at(dW, ids, dy)  # dW[ids] += dy would keep only one of equal ids
    return dW
grader_02.check_embedding_backward(embedding_backward);

# %% [markdown]
# ## Exercise 2: a simpler norm
#
# *RMS norm* does not subtract the mean: $y_c = x_c / s$ with
# $s = \sqrt{\frac1C \sum_c x_c^2 + \epsilon}$ and no gain. Find its gradient the way we
# found layer norm's.

# %% tags=["exercise"]
def rms_norm_backward(dy, x, eps=1e-6):
    """dy, x (N, C) -> dx (N, C), for y = x / sqrt(mean(x^2) + eps), row by row"""
    ...
grader_02.check_rms_norm_backward(rms_norm_backward);

# %% tags=["solution"]
def rms_norm_backward(dy, x, eps=1e-6):
    s = np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps)  # (N, 1)
    stretch = np.mean(dy * x, axis=1, keepdims=True) / s**2
    return (dy - x * stretch) / s  # only the stretch is taken out
grader_02.check_rms_norm_backward(rms_norm_backward);

# %% [markdown]
# ## The model
#
# A stream `x` of $C$ channels per character flows through. Each layer *adds* to it,
# twice: attention brings something from other characters, and an **MLP** (linear to
# $4C$ channels, GELU, linear back to $C$) works on what has come. At the end each row
# is compared with every character's row of the embedding table: the same table at both
# ends, so its gradient has two parts.
#
# - `x = wte[tokens] + position`: `wte` is $(V, C)$, and `position` $(T, C)$ a second
#   table, for the *place*: see lesson 03.
# - `x += attention(norm(x)) @ attn.c_proj`: `norm(x) @ attn.c_attn`, $(C, 3C)$, gives
#   q, k, v. They are cut into $H$ heads of $D = C/H$ channels; each head attends as in
#   lesson 01, and `attn.c_proj`, $(C, C)$, mixes what the heads found.
# - `x += gelu(norm(x) @ mlp.c_fc) @ mlp.c_proj`: $(C, 4C)$ and $(4C, C)$.
# - `logits = norm(x) @ wte.T`: $(N, V)$.
#
# In the backward a sum `x + f(x)` hands `dx` on as it is and adds what comes back
# through `f`. The rest is the functions above in reverse. The names of the parameters
# are the package's.

# %%
def forward_backward(params, tokens, targets, layers, H):
    """tokens, targets (B, T) -> loss, {name: gradient}: the whole model on one page"""
    wte, grads = params["wte.weight"], {}
    (B, T), (V, C) = tokens.shape, wte.shape
    E = np.eye(V, dtype=wte.dtype)[tokens.reshape(-1)]  # (N, V)  one-hot
    place = params["position.learned.weight"][:T]       # (T, C)
    x = E @ wte + np.tile(place, (B, 1))                # (N, C)

    def split(a):                                       # (N, C) -> (B, H, T, D)
        return a.reshape(B, T, H, C // H).swapaxes(1, 2)

    def merge(a):                                       # and back
        return a.swapaxes(1, 2).reshape(B * T, C)

    names = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    caches = []
    for i in range(layers):
        W = {name: params[f"h.{i}.{name}.weight"] for name in names}
        a, norm_1 = layer_norm_forward(x, W["ln_1"])
        q, k, v = np.split(a @ W["attn.c_attn"], 3, axis=1)    # (N, 3C) -> three (N, C)
        o, attn = softmax.forward(split(q), split(k), split(v), causal=True)
        x = x + merge(o) @ W["attn.c_proj"]
        m, norm_2 = layer_norm_forward(x, W["ln_2"])
        f, slope = gelu_forward(m @ W["mlp.c_fc"])                        # (N, 4C)
        x = x + f @ W["mlp.c_proj"]
        caches.append((W, a, norm_1, attn, merge(o), m, norm_2, f, slope))
    y, norm_f = layer_norm_forward(x, params["ln_f.weight"])
    loss, dz = cross_entropy(y @ wte.T, targets.reshape(-1))

    grads["wte.weight"] = dz.T @ y                      # (V, C)  the table's first part
    dx, grads["ln_f.weight"] = layer_norm_backward(dz @ wte, norm_f)
    for i in reversed(range(layers)):
        g, (W, a, norm_1, attn, o, m, norm_2, f, slope) = {}, caches[i]
        df, g["mlp.c_proj"] = linear_backward(dx, f, W["mlp.c_proj"])
        dm, g["mlp.c_fc"] = linear_backward(df * slope, m, W["mlp.c_fc"])
        d, g["ln_2"] = layer_norm_backward(dm, norm_2)
        dx = dx + d                                                # x + f(x): both ways
        do, g["attn.c_proj"] = linear_backward(dx, o, W["attn.c_proj"])
        part = softmax.backward(split(do), attn)
        dqkv = np.hstack([merge(part[name]) for name in "qkv"])    # (N, 3C)
        da, g["attn.c_attn"] = linear_backward(dqkv, a, W["attn.c_attn"])
        d, g["ln_1"] = layer_norm_backward(da, norm_1)
        dx = dx + d
        grads.update((f"h.{i}.{name}.weight", value) for name, value in g.items())
    # every text has the same places; and the second part of the table's gradient
    grads["position.learned.weight"] = dx.reshape(B, T, C).sum(axis=0)
    grads["wte.weight"] += E.T @ dx
    return loss, grads

# %% [markdown]
# There are two judges. *Differences*: after a small step along a random direction $r$,
# the loss must have changed by the dot product of gradient and $r$, times the step,
# whatever $r$ is. And the *package*, whose `model.py` has the same layers with more
# options.

# %%
config = model.Config(vocab_size=V, block_size=7, n_layer=2, n_head=3, n_embd=15)
params, _ = model.init(config, seed=0, dtype=np.float64)
tokens, targets = data.batch(train, 5, 7, seed=0, step=0)  # (5, 7) each
rng = np.random.default_rng(0)
# away from the tame start
params = {n: p + 0.3 * rng.standard_normal(p.shape) for n, p in params.items()}
loss, grads = forward_backward(params, tokens, targets, 2, 3)
_, expected, cache = model.forward(params, tokens, config, targets=targets)
theirs = model.backward(cache, config)
far = max(np.abs(grads[name] - theirs[name]).max() for name in theirs)
print(f"loss: ours {loss:.12f}, the package's {expected:.12f};",
      f"largest difference of any gradient {far:.0e}")

def loss_at(h, r):
    """The loss after a step h along r"""
    moved = {name: p + h * r[name] for name, p in params.items()}
    return forward_backward(moved, tokens, targets, 2, 3)[0]

# %%
for seed in range(3):
    r = {name: np.random.default_rng(seed).standard_normal(p.shape)
         for name, p in params.items()}
    slope = (loss_at(1e-5, r) - loss_at(-1e-5, r)) / 2e-5
    ours = sum(np.vdot(grads[name], r[name]) for name in r)
    print(f"direction {seed}: by differences {slope:+.8f}, by our gradient {ours:+.8f}")

# %% [markdown]
# ## Learning
#
# Now walk downhill. One step size does not fit all: some parameters have gradients a
# thousand times others'. **Adam** keeps running means, $m$ of the gradient $g$ and $v$
# of its square, and moves each parameter $p$ by about the learning rate $\eta$ (step
# $t = 1, 2, \dots$):
#
# $$ m \leftarrow \beta_1 m + (1 - \beta_1)\, g, \qquad
#    v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2, \qquad
#    p \leftarrow p - \eta\,
#    \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} $$
#
# (arXiv 1412.6980, algorithm 1; the divisions correct for means that start at 0).
# $\eta$ first rises, then falls: `optim.learning_rate`.

# %%
def adam(p, g, m, v, t, lr, betas=(0.9, 0.99), eps=1e-8):
    m += (1 - betas[0]) * (g - m)      # in place: running mean of the gradient
    v += (1 - betas[1]) * (g * g - v)  # and of its square
    p -= lr * (m / (1 - betas[0]**t)) / (np.sqrt(v / (1 - betas[1]**t)) + eps)

config = model.Config(vocab_size=V, block_size=48, n_layer=2, n_head=4, n_embd=64,
                      scaled_init=False)
STEPS, BATCH = 900, 16
params, _ = model.init(config, seed=0)  # float32: half the memory, twice the speed
moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in params.items()}
val_x, val_y = (a[::max(1, len(a) // 100)] for a in data.blocks(val, config.block_size))
# about 100 windows that do not overlap

def write(n, temperature=0.8, seed=0):
    """One character after another, each drawn at random: exercise 3"""
    ids = generate.stream(params, {}, config, vocabulary.encode("\n"), n,
                          temperature=temperature, seed=seed)
    return vocabulary.decode(np.array(list(ids)))

print(f"{model.count_parameters(config):,} parameters, "
      f"{STEPS} steps of {BATCH} x {config.block_size} characters")
losses, checked = [], []

# %%
for step in range(STEPS + 1):
    if step % 150 == 0 or step == 50:
        checked.append((step, model.forward(params, val_x, config, targets=val_y)[1]))
    if step in (0, 50, 150, STEPS):
        print(f"\n--- after {step} steps, validation loss {checked[-1][1]:.3f} ---\n"
              f"{write(160).strip()}")
    x, y = data.batch(train, BATCH, config.block_size, seed=0, step=step)
    loss, grads = forward_backward(params, x, y, config.n_layer, config.n_head)
    losses.append(loss)
    rate = optim.learning_rate(step, lr=4e-3, min_lr=2e-4, warmup=50, steps=STEPS)
    for name, p in params.items() if step < STEPS else ():
        adam(p, grads[name], *moments[name], step + 1, rate)

# %% tags=["plot"]
fig, ax = plots.figure(6.8, 4.2)
ax.plot(losses, color=plots.COLOURS[5], lw=0.7, alpha=0.7, label="train, each batch")
ax.plot(*zip(*checked), "o-", color=plots.COLOURS[0], ms=4,
        label=f"validation (last {checked[-1][1]:.3f})")
for (name, loss), n in zip(baselines.items(), (6, 3, 1)):
    colour = plots.COLOURS[n]
    ax.axhline(loss, color=colour, ls="--", lw=1)
    ax.text(STEPS, loss, f"{name} {loss:.2f}", va="bottom", ha="right", color=colour)
ax.set(xlabel="step", ylabel="loss (nats per character)",
       title="Each bar cleared in turn")
ax.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.48));

# %% [markdown]
# The curve starts at the even guess. Within some tens of steps the model knows how
# frequent each character is, then which follows which; and then it passes below what is
# possible for a model that looks at one character only. Does it use more, then? Measure
# the loss by how many characters were in view: at the first place of a window the model
# has one, at the last it has all 48. (This time on all of the validation text, so the
# mean differs slightly from the number above.)

# %%
everything = data.blocks(val, config.block_size)
p_right = []
for i in range(0, len(everything[0]), 200):
    z = model.forward(params, everything[0][i:i + 200], config)[0]    # (200, T, V)
    z = z.astype(np.float64)
    z -= np.log(np.exp(z).sum(axis=2, keepdims=True))  # log probabilities
    right = everything[1][i:i + 200, :, None]
    p_right.append(np.take_along_axis(z, right, axis=2)[..., 0])
surprise = -np.concatenate(p_right)                    # (windows, T)
line_ends = np.sum(everything[1] == vocabulary.encode("\n"), axis=1)
line = np.argmin(line_ends)                                       # a window with few
letter = np.array([c.isalpha() for c in vocabulary.characters])
now, before = letter[everything[1]], letter[everything[0]]
space = everything[1] == vocabulary.encode(" ")
means = {"first letter of a word": surprise[now & ~before].mean(),
         "letter inside a word": surprise[now & before].mean(),
         "space after a word": surprise[space & before].mean(),
         "other character after a word": surprise[~now & ~space & before].mean()}
for what, mean in means.items():
    print(f"mean surprise, {what:29s}{mean:.2f}")

# %% tags=["plot"]
fig, (left, right) = plots.figure(11, 3.8, ncols=2, width_ratios=(1, 1.9))
left.plot(np.arange(1, config.block_size + 1), surprise.mean(axis=0), "o-", ms=3)
left.axhline(best, color=plots.COLOURS[1], ls="--", lw=1)
left.text(config.block_size, best, "the best table of pairs", ha="right", va="bottom",
          color=plots.COLOURS[1])
left.set(xlabel="characters in view", ylabel="loss (nats per character)",
         title=f"More context, less surprise (mean {surprise.mean():.3f})")
right.bar(range(config.block_size), surprise[line], color=plots.COLOURS[0])
text = vocabulary.decode(everything[1][line])
letters = [{"\n": "⏎", " ": "␣"}.get(c, c) for c in text]
right.set_xticks(range(config.block_size), letters, fontsize=9)
right.set(xlabel="the character that came (␣ space, ⏎ line end)",
          ylabel="surprise (nats)", title="Where it is surprised");

# %% [markdown]
# With one character in view it can be no better than the best bigram table. The next
# few characters help most; beyond them the curve is flat apart from noise. After
# seconds of training, a small model uses little of what it can see. On the right is one
# line; the means above are over all of the validation text. The model is surprised most
# where it must guess a new word or a punctuation mark, less inside a word, and least by
# the space that ends one.
#
# ## Exercise 3: from scores to a choice
#
# To write, draw the next character from the model's probabilities, append it, repeat.
# The *temperature* $\tau$ divides the logits first: small is cautious, 1 is the model
# as it learned, large is wild. Often only the $k$ most likely characters are allowed
# (*top-k*).

# %% tags=["exercise"]
def sampling_probabilities(z, temperature, k):
    """z (V,) -> probabilities (V,): 0 but for the k largest logits (all different)"""
    ...
grader_02.check_sampling_probabilities(sampling_probabilities);

# %% tags=["solution"]
def sampling_probabilities(z, temperature, k):
    z = np.where(z >= np.sort(z)[-k], z, -np.inf) / temperature
    p = np.exp(z - z.max())
    return p / p.sum()
grader_02.check_sampling_probabilities(sampling_probabilities);

# %%
for temperature in (0.2, 0.8, 2.0):
    print(f"--- temperature {temperature} ---\n{write(150, temperature).strip()}\n")

# %% [markdown]
# ## Where the time goes
#
# A product of $(N, a)$ and $(a, b)$ is $2Nab$ operations, multiplications and
# additions; its backward is two products of that size. So a step costs 6 operations per
# character and weight. Attention's two products are $4T^2D$ per head and text, its
# backward twice that (what the mask hides is counted too). Other layers do a few
# operations per number. Does the clock agree? We time each kind of layer alone, as
# often as a step uses it.

# %%
L, H, C, T = config.n_layer, config.n_head, config.n_embd, config.block_size
N = BATCH * T
rows = lambda *shape: rng.standard_normal(shape).astype(np.float32)
x, dy, wide, z, w = rows(N, C), rows(N, C), rows(N, 4 * C), rows(N, V), rows(C)
ids = rng.integers(V, size=N)
E, wte = np.eye(V, dtype=np.float32)[ids], rows(V, C)
heads = rows(3, BATCH, H, T, C // H)
shapes = [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)] * L + [(C, V)]
products = [(rows(N, a), rows(a, b), rows(N, b)) for a, b in shapes]

# %%
def run(kind):
    """All layers of a kind, forward and backward, as often as a step uses them"""
    if kind == "linear":
        for a, W, d in products:
            a @ W
            linear_backward(d, a, W)
    if kind == "attention":
        for _ in range(L):
            softmax.backward(heads[0], softmax.forward(*heads, causal=True)[1])
    if kind == "layer norm":
        for _ in range(2 * L + 1):
            layer_norm_backward(dy, layer_norm_forward(x, w)[1])
    if kind == "GELU":
        for _ in range(L):
            np.multiply(*gelu_forward(wide))
    if kind == "cross-entropy":
        cross_entropy(z, ids)
    if kind == "embedding":
        E @ wte
        E.T @ dy
    if kind == "Adam":
        for name, p in params.items():
            adam(p, grads[name], *moments[name], 9, 0.0)

# %%
operations = {"linear": 6 * N * sum(a * b for a, b in shapes),
              "attention": 12 * L * N * T * C,
              "layer norm": 20 * (2 * L + 1) * N * C,
              "GELU": 18 * L * N * 4 * C,
              "cross-entropy": 8 * N * V,
              "embedding": 4 * N * V * C,
              "Adam": 14 * model.count_parameters(config)}
operations = {kind: count / 1e6 for kind, count in operations.items()}
milliseconds = {}
for kind in operations:
    seconds = timeit.repeat(lambda kind=kind: run(kind), number=1, repeat=15)
    milliseconds[kind] = 1e3 * np.median(seconds)

# %% tags=["plot"]
fig, ax = plots.figure(6.8, 4.0)
for y, label, what, n in ((-0.2, "operations", operations, 5),
                          (0.2, "time", milliseconds, 0)):
    share = [100 * value / sum(what.values()) for value in what.values()]
    bars = ax.barh(np.arange(len(what)) + y, share, 0.38, color=plots.COLOURS[n],
                   label=f"share of the {label}")
    ax.bar_label(bars, [f"{s:.1f}" for s in share], padding=3, fontsize=8)
ax.set_yticks(range(len(operations)), list(operations))
ax.invert_yaxis()
ax.set(xlabel="per cent of a training step", xlim=(0, 100),
       title=f"One step: {sum(operations.values()):.0f} million operations")
ax.legend(frameon=False, loc="lower right");

# %% [markdown]
# Matrix products are nearly all of the arithmetic, but not all of the time: elementwise
# layers do very little work per number they read. That is why the package's `ops.py`
# writes the same GELU and layer norm in passes over blocks that fit a core's cache
# ([where the time goes](../docs/where_the_time_goes.md)).
#
# **What we now know.** A language model is a few kinds of layers, each with a backward
# of a few lines; the whole gradient is those in reverse, and two independent judges
# agree with ours. Training learns frequencies first, then pairs, then more: a loss
# below the *best* bigram table's proves that it looks further back than one character.
# Products dominate the arithmetic.
#
# **What remains unknown.** We gave the model a table of places without asking why. What
# would it lose without one, and is a table the best way?
# [Lesson 03](03_positions.ipynb) asks. And one run with one seed is an anecdote:
# comparing models takes several.
#
# **Source.** The shape of the model: Radford et al., *Language models are unsupervised
# multitask learners* (GPT-2, 2019). Layer norm: arXiv 1607.06450, eq. 3. RMS norm:
# 1910.07467, eq. 4. GELU: 1606.08415, section 2. Adam: 1412.6980, algorithm 1. One
# table at both ends: 1608.05859.
