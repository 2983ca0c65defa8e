# %% [markdown]
# # 14 · Writing with a key-value cache
#
# **The question.** A model that has read 1000 characters writes one more. Must it read
# all 1001 again to write the next? **Time:** 20 minutes to read, 45 with the exercises.
# **You need:** lesson 00 (causal attention), lesson 19 (how a model writes).
# (The letters: [notation](NOTATION.md).)
#
# The short answer is no: what was computed for the earlier characters can be kept, *if*
# it does not depend on what comes later. We first write the cache, then look at
# attention that breaks the condition.

# %%
import time

import numpy as np

from minattn import data, generate, lessons, model, parallel, plots
from minattn.attention_layer import KVCache
from minattn.lessons import grader_14

# %% [markdown]
# ## The picture: what is computed again
#
# To write character $t + 1$, a model needs one row of its output: that of character
# $t$. A program that calls the model on the whole text computes every row, at every
# step. Row 0 is computed again and again, always with the same result.

# %% tags=["plot"]
# Picture: two squares of 12 steps by 12 characters. Without a cache every step computes
# all rows up to its own, a filled triangle of 78 cells. With a cache each step computes
# only its own row, the diagonal of 12 cells.
steps = 12
fig, axes = plots.figure(8.4, 3.9, ncols=2, sharey=True)
again = np.tri(steps)
for ax, done, title in ((axes[0], again, "Without a cache: 78 rows for 12 characters"),
                        (axes[1], np.eye(steps), "With a cache: 12 rows")):
    ax.imshow(np.where(done, 0.35, np.nan), cmap="cividis", vmin=0, vmax=1)
    ax.grid(False)
    ax.set(xlabel="character whose row is computed", title=title)
    ax.set_xticks(range(0, steps, 2))
axes[0].set(ylabel="step of writing");

# %% [markdown]
# Rows without a cache: $1 + 2 + \dots + T = T(T + 1)/2$. With it: $T$.
#
# ## The formula: one row of attention
#
# For one head, the row of the newest token $t$ is
#
# $$ o_t = \sum_{j \le t} P_{tj}\, v_j, \qquad
#    P_{tj} = \frac{e^{q_t \cdot k_j / \sqrt D}}
#                  {\sum_{l \le t} e^{q_t \cdot k_l / \sqrt D}} . $$
#
# It needs the query of token $t$ alone, but the keys and values of *all* tokens so far.
# So those are kept: the **key-value cache**. Earlier queries are never needed again.
#
# ## Exercise 1: one step


# %% tags=["exercise"]
def one_step(q, k, v, keys, values):
    """q, k (D,), v (Dv,): of the new token

    keys (t, D), values (t, Dv): of the t tokens before it; t may be 0
    -> out (Dv,), keys (t + 1, D), values (t + 1, Dv)
    """
    ...


grader_14.check_one_step(one_step);


# %% tags=["solution"]
def one_step(q, k, v, keys, values):
    keys, values = np.vstack([keys, k]), np.vstack([values, v])
    s = keys @ q / np.sqrt(len(q))                      # (t + 1,)
    P = np.exp(s - s.max())
    return P @ values / P.sum(), keys, values


grader_14.check_one_step(one_step);

# %% [markdown]
# ## Through all layers
#
# Is that allowed in the second layer? Its keys are made from the output of the first
# layer. Go up layer by layer. The input of the first layer at place $j$ depends on
# character $j$ only. If the input of a layer at place $j$ depends on characters
# $0 \dots j$ only, so do its key and its value there. Causal attention mixes what
# stands at places up to $j$, and norm and MLP work on each place alone, so its output
# at place $j$ again depends on characters $0 \dots j$ only.
#
# So nothing that is stored for place $j$ changes when a character is added after it.
# Let us see whether the package agrees. We give a model 40 characters at once, and then
# one at a time with a cache.

# %%
corpus = lessons.text()
vocabulary = data.Vocabulary(corpus.text)
train, val = data.split(vocabulary.encode(corpus.text).astype(int))


def shape(**changed):
    """A small model: its shape, and what is changed in it"""
    usual = {"block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 64,
             "position": "rope"}
    return model.Config(vocab_size=len(vocabulary), **{**usual, **changed})


config = shape()
with parallel.workers(2) as pool:
    params, buffers = lessons.train(pool, config, train, steps=200, batch=16, lr=0.006)
ids = val[None, :40]                                    # (1, 40)
whole = model.forward(params, ids, config)[0]           # (1, 40, V)
cache, rows = KVCache(config.block_size), []
for t in range(ids.shape[1]):
    logits = model.forward(params, ids[:, t:t + 1], config, kv_cache=cache)[0]
    rows.append(logits[:, 0])                           # (1, V)
far = np.abs(np.stack(rows, axis=1) - whole).max()
print(f"largest logit {np.abs(whole).max():.1f}; "
      f"one by one differs by less than 0.0001: {far < 1e-4}")

# %% [markdown]
# In floating point the two agree up to rounding, not bit for bit: products of other
# shapes are added up in another order. A text that is drawn from the probabilities is
# nearly always the same. (This one is longer than the 64 characters that the model can
# read; what happens then is explained below.)

# %% tags=["varies"]
prompt = vocabulary.encode("ROMEO:\n")
texts = [list(generate.stream(params, {}, config, prompt, 150, temperature=0.7, seed=1,
                              cached=cached)) for cached in (True, False)]
print(f"with and without a cache the same text: {texts[0] == texts[1]}\n")
print(vocabulary.decode(np.array(texts[0])))

# %% [markdown]
# ## Exercise 2: what a cache costs
#
# The cache trades arithmetic for memory. Every layer keeps a key and a value for every
# token and every head that has its own. (With *grouped* heads several queries share one
# key head; that is what they are for.)


# %% tags=["exercise"]
def cache_bytes(layers, key_heads, D, tokens, bytes_each):
    """Bytes of a cache: keys and values have D channels per head"""
    ...


grader_14.check_cache_bytes(cache_bytes);


# %% tags=["solution"]
def cache_bytes(layers, key_heads, D, tokens, bytes_each):
    return 2 * layers * key_heads * D * tokens * bytes_each


grader_14.check_cache_bytes(cache_bytes);

# %%
print("80 layers, 8 key heads of 128 channels, two bytes each, 100,000 tokens:",
      f"{2 * 80 * 8 * 128 * 100_000 * 2 / 1e9:.0f} GB for one text")

# %% [markdown]
# ## A prefix must mean the same
#
# Everything rests on one sentence: *what is stored for place $j$ does not change when
# the text goes on.* Two mechanisms of this course break it as published.
#
# - The **energy gate** with `norm="sequence"` ([lesson
#   07](07_energy_gate_and_leaks.ipynb)) compares the energy of a key with the mean over
#   the *whole* text. A new character moves that mean, and with it every gate and every
#   output.
# - **Affine-scaled attention** with `length="total"`
#   ([lesson 06](06_affine_scaled.ipynb)) divides by the length of the whole text.
#
# We add one character and look at the logits of all places *before* it.

# %%
def moved(attention):
    """How far the logits (T,) of 24 places move when a 25th character is read"""
    its = shape(attention=attention, block_size=25)
    fresh, buffers = model.init(its, seed=0, dtype=np.float64)
    rng = np.random.default_rng(1)                      # larger weights show more
    fresh = {name: p + 0.2 * rng.standard_normal(p.shape) for name, p in fresh.items()}
    before, after = (model.forward(fresh, val[None, :n], its, buffers=buffers)[0]
                     for n in (24, 25))                 # (1, 24, V), (1, 25, V)
    before, after = before[0], after[0, :24]
    return np.abs(after - before).max(axis=1) / np.abs(before).max()


ATTENTION = ["softmax", "energy[norm=key]", "affine[length=visible]",
             "energy[norm=sequence]", "affine[length=total]"]
changes = [moved(attention) for attention in ATTENTION]
for attention, change in zip(ATTENTION, changes):
    why = generate.recompute_reason(shape(attention=attention))
    print(f"{attention:23s} earlier logits change: {str(change.max() > 1e-9):6s}",
          f"cache: {'no, ' + why if why else 'yes'}")

# %% tags=["plot"]
# Picture: relative change of the logits at 24 earlier places when one more character is
# read, on a logarithmic axis. Two curves lie between a ten-thousandth and one: energy
# with norm=sequence and affine with length=total. The three others do not change.
fig, ax = plots.figure(7.2, 3.6)
for attention, change, style in zip(ATTENTION, changes, ("o", "s", "^", "D-", "v-")):
    ax.semilogy(np.maximum(change, 1e-17), style, ms=4, lw=1, label=attention)
ax.set(xlabel="place (place 24 is new; no change is drawn at $10^{-17}$)",
       ylabel="relative change of the logits",
       title="In two published forms a new character changes earlier logits")
ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5));

# %% [markdown]
# For these two, the predictions made while training on a whole window are not the ones
# that the model makes when it writes. That is worse than a slow program: the reported
# loss belongs to predictions that knew something of the text after them, and no program
# that writes can make those. Both mechanisms have a causal form (`key`, `visible`),
# which can be cached.
#
# ## Exercise 3: a cache that forgets
#
# With a sliding window of $W$ (lesson 00) the keys beyond the window are never needed
# again. Keep $W$ rows and overwrite the oldest: token $t$ goes to row $t \bmod W$. The
# rows are then out of order. Does that change the result?


# %% tags=["exercise"]
def window_step(q, k, v, keys, values, t):
    """Token t (from 0) of a sliding window: q, k (D,), v (Dv,)

    keys (W, D), values (W, Dv): token j < t stands in row j % W unless a later one
    does; rows that no token has used yet hold anything
    -> out (Dv,), keys (W, D), values (W, Dv)
    """
    ...


grader_14.check_window_step(window_step);


# %% tags=["solution"]
def window_step(q, k, v, keys, values, t):
    W = len(keys)
    keys[t % W], values[t % W] = k, v
    used = min(t + 1, W)
    s = keys[:used] @ q / np.sqrt(len(q))               # in any order: a sum over keys
    P = np.exp(s - s.max())
    return P @ values[:used] / P.sum(), keys, values


grader_14.check_window_step(window_step);

# %% [markdown]
# Attention is a sum over keys, so their order does not matter: where a token stood must
# be in the key itself (rotary positions put it there).
#
# **When the context is full.** A model trained on 64 characters has no place 64. Drop
# the oldest character and count again from 0? Then every place means something else,
# and the stored keys are worthless: with a learned table they contain the old places,
# and in all layers above the first they contain the character that was dropped. The
# package drops half of the context and reads the other half again. After that it can
# write half a context before it must read again.
#
# ## How much faster?
#
# We let the same model write with and without a cache, and take the ratio of the times.
# It depends on the machine and on what else it does; what should remain is that it
# grows with the length of the text.

# %% tags=["varies"]
long = shape(block_size=256)
fresh, _ = model.init(long, seed=0)


def seconds(n, cached):
    start = time.perf_counter()
    list(generate.stream(fresh, {}, long, prompt, n, cached=cached))
    return time.perf_counter() - start


lengths = (16, 60, 120, 240)
ratios = [np.median([seconds(n, False) / seconds(n, True) for _ in range(3)])
          for n in lengths]
for n, ratio in zip(lengths, ratios):
    print(f"{n:4d} characters: without a cache {ratio:.1f} times as long")

# %% [markdown]
# The arithmetic alone would give more: 120 times for 240 characters. But reading
# many rows at once is a product of matrices, at which processors are good, and reading
# one row is not: every weight is fetched from memory for a single multiplication
# ([lesson 16](16_why_it_is_fast.ipynb)).
#
# **What we now know.** To write one more character, a model computes one row: that of
# the last character. It needs the keys and values of all characters before, and a
# causal model may keep them in every layer. A mechanism that looks at the whole text
# may not, and the loss measured in training is not that of its predictions when it
# writes.
#
# **What remains unknown.** How to make the cache small. Fewer key heads, windows and
# compressed keys all give up something; how much depends on the task.
#
# **Source.** Shazeer, *Fast transformer decoding*, arXiv 1911.02150, describes the cost
# and shares one key head among all queries; grouped heads: 2305.13245. In the package:
# `attention_layer.py` (`KVCache`), `generate.py`, and `decode.py`, which is faster
# still.
