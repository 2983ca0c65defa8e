# %% [markdown]
# # 15 · Many heads
#
# **The question.** Every model of this course cuts its attention into heads. What can
# several heads do that one large head cannot, and what does it cost? **Time:** 20
# minutes to read, 45 with the exercises. **You need:** lesson 00 (attention), lessons
# 02 and 19 (a model and its training). (The letters: [notation](NOTATION.md).)

# %%
import numpy as np

from minattn import data, lessons, model, parallel, plots
from minattn.inspect import maps
from minattn.lessons import grader_15, pictures

# %% tags=["plot"]
# Picture: a diagram. From x, T by C, arrows lead to the queries, keys and values of
# four heads, T by D each. Every head attends on its own. Their outputs stand side by
# side, T by C again, and are multiplied by a C by C matrix, which gives the output.
pictures.many_heads();

# %% [markdown]
# ## Why one mean is not enough
#
# One head gives each token *one* weighted mean of values. A mean forgets who gave what:
# if half the weight is on the last character and half on the one before, the result is
# the same for `ab` and `ba`. Two heads keep them apart, because their outputs do not
# share channels.

# %%
a, b = np.eye(2)                                        # values of two characters
halves = np.array([0.5, 0.5])                           # one head, two keys
for text, values in (("ab", np.stack([a, b])), ("ba", np.stack([b, a]))):
    print(f"{text}: one head, half and half: {halves @ values};",
          f"two heads, one key each: {np.concatenate([values[0], values[1]])}")

# %% [markdown]
# ## The formula
#
# Let $x$ be $(T, C)$, the input of the layer, and $H$ the number of heads, each with
# $D = C/H$ channels. One product with a matrix $W_{QKV}$ of shape $(C, 3C)$ makes
# queries, keys and values. Head $h$ takes the channels $hD$ to $(h + 1)D - 1$ of each.
# Its output $o^h$, of shape $(T, D)$, is the attention of lesson 00. The results stand
# side by side again and are mixed by $W_O$, of shape $(C, C)$:
#
# $$ \mathrm{out} = \big[\, o^0 \;\; o^1 \;\cdots\; o^{H-1} \,\big]\, W_O
#    = \sum_h o^h\, W_O^h $$
#
# where $W_O^h$ is the block of the rows $hD$ to $(h + 1)D - 1$ of $W_O$. Read the sum:
# *heads add*. Each writes into all $C$ channels of the stream, and none sees what the
# others in the same layer have found.
#
# The number of weights is $4C^2$ for every $H$. The products take equally long, too:
# the scores of all heads together need $2 T^2 D H = 2 T^2 C$ operations (only the
# softmax is computed $H$ times). What changes is that one head of $C$ channels becomes
# $H$ heads, and each compares with only $D$ numbers.
#
# ## Exercise 1: cut into heads


# %% tags=["exercise"]
def split_heads(a, H):
    """a (T, C) -> (H, T, D): head h has the channels h D to (h + 1) D - 1, D = C / H"""
    ...


grader_15.check_split_heads(split_heads);


# %% tags=["solution"]
def split_heads(a, H):
    T, C = a.shape
    return a.reshape(T, H, C // H).swapaxes(0, 1)       # (T, H, D) -> (H, T, D)


grader_15.check_split_heads(split_heads);

# %% [markdown]
# ## Exercise 2: the whole layer


# %% tags=["exercise"]
def many_heads(x, W_qkv, W_o, H):
    """x (T, C), W_qkv (C, 3C), W_o (C, C) -> (T, C), causal

    the columns of W_qkv: C for the queries of all heads, C for keys, C for values
    """
    ...


grader_15.check_many_heads(many_heads);


# %% tags=["solution"]
def many_heads(x, W_qkv, W_o, H):
    (T, C), D = x.shape, x.shape[1] // H
    q, k, v = (a.reshape(T, H, D).swapaxes(0, 1)        # (H, T, D) each
               for a in np.split(x @ W_qkv, 3, axis=1))
    s = q @ k.swapaxes(1, 2) / np.sqrt(D)               # (H, T, T)
    s = np.where(np.tri(T, dtype=bool), s, -np.inf)
    P = np.exp(s - s.max(axis=2, keepdims=True))
    P /= P.sum(axis=2, keepdims=True)
    return (P @ v).swapaxes(0, 1).reshape(T, C) @ W_o


grader_15.check_many_heads(many_heads);

# %% [markdown]
# **The gradient** needs nothing new. Cutting and joining only move numbers, so their
# backward moves the gradients back: the backward of "join" is "cut", and the other way
# round. In between, each head has the gradient of lesson 01.
#
# ## What the heads of a trained model look at
#
# We train a model of two layers with four heads each on Shakespeare, and look at one
# line of the validation text.

# %%
corpus = lessons.text()
vocabulary = data.Vocabulary(corpus.text)
train, val = data.split(vocabulary.encode(corpus.text).astype(int))
shape = {"vocab_size": len(vocabulary), "block_size": 48, "n_layer": 2, "n_head": 4,
         "n_embd": 64, "position": "rope"}
config = model.Config(**shape)
with parallel.workers(2) as pool:
    params, _ = lessons.train(pool, config, train, steps=350, batch=16, lr=6e-3)
val_x, val_y = (a[::16] for a in data.blocks(val, 48))
start = corpus.text.index("\n", int(0.95 * len(corpus.text))) + 1     # a new line
line = corpus.text[start:start + 24]
weights = maps.weights(params, {}, config, vocabulary.encode(line)[None])
P = np.concatenate([w[0] for w in weights])            # (8, T, T): 2 layers, 4 heads

# %% tags=["plot"]
# Picture: eight heat maps, two layers by four heads, of the weights on one line of 24
# characters. The future is white. Some heads have bright cells next to the diagonal,
# others bright columns, such as those of spaces.
fig, axes = plots.figure(11, 5.9, nrows=2, ncols=4)
letters = list(line.replace(" ", "␣").replace("\n", "⏎"))
for n, (ax, its) in enumerate(zip(axes.flat, P)):
    seen = np.where(np.tri(len(line), dtype=bool), its, np.nan)
    image = ax.imshow(seen, cmap="cividis", vmin=0, vmax=1)
    ax.grid(False)
    ax.set_xticks(range(len(line)), letters, fontsize=6)
    ax.set_yticks(range(len(line)), letters, fontsize=6)
    ax.set_title(f"layer {n // 4}, head {n % 4}", fontsize=10)
fig.colorbar(image, ax=axes, label="weight", shrink=0.7)
fig.suptitle("One line, eight ways to look back (rows look, columns are looked at)");

# %% [markdown]
# A picture of one line invites stories. Numbers over many lines are better: how much
# weight does each head give to the character itself, to the one before, and to all that
# are more than three places back?

# %%
stack = maps.weights(params, {}, config, val_x[:60])
P = np.concatenate(stack, axis=1)                       # (60, 8, T, T)
T = P.shape[-1]
back = np.subtract.outer(np.arange(T), np.arange(T))    # (T, T)  how far back
print("head        itself   one back   more than three back   (mean weight)")
for n in range(8):
    mean = P[:, n, 8:].mean(axis=0)                     # queries with some past
    parts = [np.where(where[8:], mean, 0).sum(axis=1).mean()
             for where in (back == 0, back == 1, back > 3)]
    print(f"{n // 4}, {n % 4}    ", *(f"    {part:5.2f}" for part in parts))

# %% [markdown]
# No two heads are alike. Nobody told them to divide the work; they only began with
# different random weights.
#
# ## Which heads matter?
#
# Because heads add, one can be removed without touching the rest: set its block
# $W_O^h$ to 0 and measure the loss again.
#
# ## Exercise 3: a model without one head


# %% tags=["exercise"]
def without_head(W_o, h, H):
    """W_o (C, C) -> a new (C, C), with which head h of H adds nothing"""
    ...


grader_15.check_without_head(without_head);


# %% tags=["solution"]
def without_head(W_o, h, H):
    D = len(W_o) // H
    W_o = W_o.copy()
    W_o[h * D:(h + 1) * D] = 0                          # rows: the channels of head h
    return W_o


grader_15.check_without_head(without_head);

# %%
def loss_without(layer, heads):
    """The validation loss when these heads of a layer add nothing"""
    name, D = f"h.{layer}.attn.c_proj.weight", config.n_embd // config.n_head
    W_o = params[name].copy()
    for h in heads:
        W_o[h * D:(h + 1) * D] = 0
    return model.forward({**params, name: W_o}, val_x, config, targets=val_y)[1]


full = loss_without(0, ())
costs = [[loss_without(layer, [h]) - full for h in range(4)] for layer in range(2)]
together = [loss_without(layer, range(4)) - full for layer in range(2)]

# %% tags=["plot"]
# Picture: bars. How much the loss rises without each of the eight heads, and without
# all four heads of a layer. Every bar is above 0, and the bars of the first layer are
# higher than those of the second.
fig, ax = plots.figure(7.4, 3.6)
names = [f"{layer}, {h}" for layer in range(2) for h in range(4)]
bars = ax.bar(range(8), np.ravel(costs), color=[plots.COLOURS[0]] * 4
              + [plots.COLOURS[5]] * 4)
ax.bar_label(bars, [f"{cost:.2f}" for cost in np.ravel(costs)], fontsize=8)
bars = ax.bar([9, 10], together, color=[plots.COLOURS[0], plots.COLOURS[5]])
ax.bar_label(bars, [f"{cost:.2f}" for cost in together], fontsize=8)
ax.set_xticks([*range(8), 9, 10], [*names, "all\nof 0", "all\nof 1"])
ax.set(xlabel="removed: layer, head", ylabel="rise of the loss (nats)",
       title="Every head is worth something, those of the first layer most")
print(f"loss with all heads: {full:.2f}")

# %% [markdown]
# All four heads of a layer cost more than the sum of the four: where one is missing,
# the others do part of its work. Nor is removing a head after training the same as
# training without it: the other weights were trained together with it. In large trained
# models many heads can be removed one at a time almost for free (arXiv 1905.10650). So
# how many should there be?
#
# ## How many heads?
#
# We keep $C = 32$ channels and train with 1 to 16 heads, three seeds each (why three,
# and what they allow: [lesson 13](13_is_it_better.ipynb)).

# %%
COUNTS = (1, 2, 4, 8, 16)
small_x, small_y = (a[::8] for a in data.blocks(val, 32))


def final_loss(job):
    """(number of heads, seed) -> the validation loss after 150 steps"""
    heads, seed = job
    small = model.Config(**{**shape, "block_size": 32, "n_embd": 32, "n_head": heads})
    with parallel.workers(1) as one:
        p, _ = lessons.train(one, small, train, steps=150, batch=16, lr=0.01, seed=seed)
        return parallel.mean_loss(one, p, {}, small_x, small_y, small)


with parallel.workers(2) as pool:
    jobs = [(heads, seed) for heads in COUNTS for seed in range(3)]
    losses = np.reshape(list(pool.map(final_loss, jobs)), (len(COUNTS), 3))

# %% tags=["plot"]
# Picture: final loss against the number of heads, three dots each and a line through
# their means. From one to four heads the dots overlap; with sixteen heads the loss is
# clearly higher.
fig, ax = plots.figure(6.4, 3.5)
for n, its in enumerate(losses):
    ax.plot([n] * 3, its, "o", mfc="none", color=plots.COLOURS[0])
ax.plot(losses.mean(axis=1), "-", lw=1, color=plots.COLOURS[0])
ax.set_xticks(range(len(COUNTS)), [f"{h}\n{32 // h}" for h in COUNTS])
ax.set(xlabel="heads (above), channels of each (below)", ylabel="validation loss",
       title="Heads of two channels are too narrow")
print("16 heads minus 4, seed by seed:", *(f"{d:+.3f}" for d in losses[4] - losses[2]));

# %% [markdown]
# A head of two channels can hardly compare: each score is made of two products. From
# one to four heads the differences are smaller than three seeds can tell; that one head
# has only one mean does not show in so small a model.
#
# **What we now know.** Heads are independent attentions on their own channels; their
# outputs add up. They cost next to nothing: the number of weights and the products stay
# the same. Several heads keep several things apart; too many become too narrow to
# compare. A head can be removed by a block of zeros, and then the loss says what it was
# worth.
#
# **What remains unknown.** Whether a head "means" something. A clear pattern is a
# description, not yet an explanation: only an intervention, like the removal above,
# tests it.
#
# **Source.** Vaswani et al., arXiv 1706.03762, section 3.2.2. Removing heads: Michel et
# al., *Are sixteen heads really better than one?*, 1905.10650. In the package:
# `attention_layer.py` cuts and joins; `n_kv_head` lets several heads share keys.
