# %% [markdown]
# # 02 · A character model from nothing
#
# **The question.** Attention alone is not a model. Which other layers are needed, what
# are their gradients, and how do we know that the gradient of the whole is right?
# **Time:** 30 minutes to read, 70 with the exercises. **You need:** lesson 01
# (attention and its gradient), the chain rule. (The letters: [notation](NOTATION.md).)
#
# We keep one convention from lesson 01: $L$ is the *loss*, and `dx` is the array of its
# derivatives $\partial L / \partial x$, with the same shape as `x`. A layer is a
# `forward` and a `backward` that turns `dy` into `dx`. A model is layers in a row.

# %%
import numpy as np

from minattn import data, lessons, model
from minattn.attention import softmax
from minattn.lessons import grader_02, pictures

# %% tags=["plot"]
# Picture: a horizontal stream from the embedding to the scores. Two branches leave it
# and are added to it again, once per layer: norm and attention, norm and MLP. At the
# end come a norm and the product with the embedding table.
pictures.model();

# %% [markdown]
# A stream `x` of $C$ channels per character flows through the picture. Each layer
# *adds* to it, twice: attention brings something from other characters, and an *MLP*
# (two linear layers with a bend between them) works on each character alone. At the end
# each row is compared with every character's row of the embedding table, which gives
# one score per character: which comes next?
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
# **Layer norm** keeps all rows at about the same size: subtract the row's mean $\mu$,
# divide by its spread $s$, multiply by a learned gain $w$ (C,).
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
# **GELU** is the bend. Without a layer that is not linear, any number of linear layers
# could be replaced by a single one. GELU multiplies $x$ by a smooth step $h$ from 0 to
# 1, whose slope in $u$ is $\tfrac12 (1 - \tanh^2 u) = 2h(1 - h)$:
#
# $$ y = x\,h, \quad h = \tfrac12 (1 + \tanh u), \quad
#    u = \sqrt{2/\pi}\,(x + 0.044715\,x^3), \qquad
#    \frac{dy}{dx} = h + x \cdot 2h(1 - h) \cdot \sqrt{2/\pi}\,(1 + 3
#    \cdot 0.044715\,x^2) $$
#
# **Cross-entropy** turns scores (*logits* $z$, $(N, V)$) into probabilities by a
# softmax. The *loss* is the mean of $-\ln p_n(t_n)$ over all $N$ places, where $t_n$ is
# the character that really came (the *target*). Since
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
# $E$ is all zeros but for one 1 per row and need not be built: `W[ids]` is the same as
# `E @ W`. Write the backward without $E$. (A character may occur twice, and then both
# rows of $dy$ count. That is where the obvious line of NumPy goes wrong.)

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
# The names of the parameters are the package's.
#
# - `x = wte[tokens] + position`: `wte` is $(V, C)$, and `position` $(T, C)$ a second
#   table, for the *place*: see lesson 03.
# - `x += attention(norm(x)) @ attn.c_proj`: `norm(x) @ attn.c_attn`, $(C, 3C)$, gives
#   q, k, v. They are cut into $H$ heads of $D = C/H$ channels ([lesson
#   15](15_many_heads.ipynb)); each head attends as in lesson 01, and `attn.c_proj`,
#   $(C, C)$, mixes what the heads found.
# - `x += gelu(norm(x) @ mlp.c_fc) @ mlp.c_proj`: $(C, 4C)$ and $(4C, C)$.
# - `logits = norm(x) @ wte.T`: $(N, V)$. The same table stands at both ends, so its
#   gradient has two parts.
#
# First one layer, forward and backward. In the backward a sum `x + f(x)` hands `dx` on
# as it is and adds what comes back through `f`. The rest is the functions above in
# reverse.

# %%
NAMES = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")

def split(a, B, H):
    """(N, C) -> (B, H, T, D)"""
    return a.reshape(B, -1, H, a.shape[1] // H).swapaxes(1, 2)

def merge(a):
    """(B, H, T, D) -> (N, C)"""
    B, H, T, D = a.shape
    return a.swapaxes(1, 2).reshape(B * T, H * D)

# %%
def layer_forward(x, W, B, H):
    """x (N, C), W: the layer's weights by name -> (N, C), cache"""
    a, norm_1 = layer_norm_forward(x, W["ln_1"])
    q, k, v = np.split(a @ W["attn.c_attn"], 3, axis=1)        # (N, 3C) -> three (N, C)
    o, attn = softmax.forward(*(split(b, B, H) for b in (q, k, v)), causal=True)
    o = merge(o)
    x = x + o @ W["attn.c_proj"]
    m, norm_2 = layer_norm_forward(x, W["ln_2"])
    f, slope = gelu_forward(m @ W["mlp.c_fc"])                 # (N, 4C)
    x = x + f @ W["mlp.c_proj"]
    return x, (a, norm_1, attn, o, m, norm_2, f, slope)

# %%
def layer_backward(dx, W, cache, B, H):
    """dx (N, C) -> dx of the layer's input, {name: gradient}"""
    g, (a, norm_1, attn, o, m, norm_2, f, slope) = {}, cache
    df, g["mlp.c_proj"] = linear_backward(dx, f, W["mlp.c_proj"])
    dm, g["mlp.c_fc"] = linear_backward(df * slope, m, W["mlp.c_fc"])
    d, g["ln_2"] = layer_norm_backward(dm, norm_2)
    dx = dx + d                                                # x + f(x): both ways
    do, g["attn.c_proj"] = linear_backward(dx, o, W["attn.c_proj"])
    part = softmax.backward(split(do, B, H), attn)
    dqkv = np.hstack([merge(part[name]) for name in "qkv"])    # (N, 3C)
    da, g["attn.c_attn"] = linear_backward(dqkv, a, W["attn.c_attn"])
    d, g["ln_1"] = layer_norm_backward(da, norm_1)
    return dx + d, g

# %% [markdown]
# And the whole model. Every text of the batch has the same places, so the gradient of
# `position` is a sum over texts.

# %%
def forward_backward(params, tokens, targets, layers, H):
    """tokens, targets (B, T) -> loss, {name: gradient}: the whole model on one page"""
    wte, (B, T), caches = params["wte.weight"], tokens.shape, []
    W = [{n: params[f"h.{i}.{n}.weight"] for n in NAMES} for i in range(layers)]
    E = np.eye(len(wte), dtype=wte.dtype)[tokens.reshape(-1)]      # (N, V)  one-hot
    x = E @ wte + np.tile(params["position.learned.weight"][:T], (B, 1))   # (N, C)
    for i in range(layers):
        x, cache = layer_forward(x, W[i], B, H)
        caches.append(cache)
    y, norm_f = layer_norm_forward(x, params["ln_f.weight"])
    loss, dz = cross_entropy(y @ wte.T, targets.reshape(-1))
    grads = {"wte.weight": dz.T @ y}                           # the table's first part
    dx, grads["ln_f.weight"] = layer_norm_backward(dz @ wte, norm_f)
    for i in reversed(range(layers)):
        dx, g = layer_backward(dx, W[i], caches[i], B, H)
        grads.update((f"h.{i}.{n}.weight", value) for n, value in g.items())
    grads["position.learned.weight"] = dx.reshape(B, T, -1).sum(axis=0)
    grads["wte.weight"] += E.T @ dx                            # and the second
    return loss, grads

# %% [markdown]
# There are two judges. *Differences*: a small step $h$ along any direction $r$ must
# change the loss by $h$ times the dot product of gradient and $r$. And the *package*,
# whose `model.py` has the same layers with more options.

# %%
corpus = lessons.text()
vocabulary = data.Vocabulary(corpus.text)
train = vocabulary.encode(corpus.text[:10_000]).astype(int)
V = len(vocabulary)
config = model.Config(vocab_size=V, block_size=7, n_layer=2, n_head=3, n_embd=15)
params, _ = model.init(config, seed=0, dtype=np.float64)
tokens, targets = data.batch(train, 5, 7, seed=0, step=0)  # (5, 7) each
rng = np.random.default_rng(0)
# a fresh model's weights are small; larger ones show more
params = {n: p + 0.3 * rng.standard_normal(p.shape) for n, p in params.items()}

# %%
loss, grads = forward_backward(params, tokens, targets, 2, 3)
_, expected, cache = model.forward(params, tokens, config, targets=targets)
theirs = model.backward(cache, config)
far = max(np.abs(grads[name] - theirs[name]).max() for name in theirs)
print(f"loss: ours {loss:.12f}, the package's {expected:.12f};",
      f"largest difference of any gradient {far:.0e}")

# %%
def loss_at(h, r):
    """The loss after a step h along r"""
    moved = {name: p + h * r[name] for name, p in params.items()}
    return forward_backward(moved, tokens, targets, 2, 3)[0]

for seed in range(3):
    r = {name: np.random.default_rng(seed).standard_normal(p.shape)
         for name, p in params.items()}
    slope = (loss_at(1e-5, r) - loss_at(-1e-5, r)) / 2e-5
    ours = sum(np.vdot(grads[name], r[name]) for name in r)
    print(f"direction {seed}: by differences {slope:+.8f}, by our gradient {ours:+.8f}")

# %% [markdown]
# Both judges agree. (How small a step, and why directions at random:
# [lesson 18](18_is_this_gradient_right.ipynb).)
#
# **What we now know.** A language model is a few kinds of layers, each with a backward
# of a few lines. The whole gradient is those in reverse: a sum hands its gradient to
# both parts, a table used twice has two. Two independent judges agree with ours.
#
# **What remains unknown.** Whether it learns anything: that is
# [lesson 19](19_learning_to_write.ipynb).
#
# **Source.** The shape of the model: Radford et al., *Language models are unsupervised
# multitask learners* (GPT-2, 2019). Layer norm: arXiv 1607.06450, eq. 3. RMS norm:
# 1910.07467, eq. 4. GELU: 1606.08415, section 2. One table at both ends: 1608.05859.
