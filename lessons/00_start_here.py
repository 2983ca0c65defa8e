# %% [markdown]
# # 00 · Start here: what does attention do?
#
# **The question.** A model reads a text character by character. To guess what comes
# next it must look back: how does it decide *where* to look?
# **Time:** 10 minutes to read, 25 with the exercises. **You need:** Python, a little
# NumPy, what a matrix product is. (The letters: [notation](NOTATION.md).)
#
# Every lesson takes one idea from a picture to a formula, to a few lines of NumPy, to
# its gradient by hand, to an experiment on real text. Run the cells in order. An
# exercise is a function with dots in it: replace the dots, run the cell, and it says
# whether you are right. A solution is folded below it. `lessons.progress()` counts the
# exercises that you have solved, in all lessons.

# %%
import numpy as np

from minattn import lessons, plots
from minattn.attention import softmax
from minattn.lessons import grader_00

# %% [markdown]
# ## The picture
#
# Three names, which every lesson uses. There are $T$ tokens (here: characters), and
# each has three vectors of $D$ numbers:
#
# - a **query** $q_i$: what token $i$ is looking for;
# - a **key** $k_j$: what token $j$ has to offer;
# - a **value** $v_j$: what it hands over if it is chosen.
#
# Token $i$ compares its query with every key. The comparison is a dot product, the
# *score* $s_{ij} = q_i \cdot k_j / \sqrt D$. Scores become *weights* $P_{ij}$ that are
# positive and sum to 1, and what token $i$ receives is the weighted mean of the values.
#
# To see this without training anything, we choose the vectors ourselves: the query and
# the key of a token are both a vector that stands for its character. Each token then
# finds the earlier tokens equal to it.

# %%
word = "to be or not to be"
characters = sorted(set(word))
D = len(characters)
one_hot = np.eye(D)[[characters.index(c) for c in word]]  # (T, D)  a 1 at its character
q = k = 6 * one_hot                # (T, D)  6: how sharply equal characters attract
s = q @ k.T / np.sqrt(D)           # (T, D), (D, T) -> (T, T)
visible = np.tri(len(word), dtype=bool)  # row i sees the keys j <= i, not the future
s[~visible] = -np.inf
P = np.exp(s - s.max(axis=1, keepdims=True))
P /= P.sum(axis=1, keepdims=True)  # every row now sums to 1

# %% tags=["plot"]
# Picture: a triangle of weights on "to be or not to be", query by key, the future
# white. Each character gives its weight to itself and to the equal ones before it.
def draw(sharpness):
    e = np.exp((sharpness * one_hot) @ (sharpness * one_hot).T / np.sqrt(D)) * visible
    e /= e.sum(axis=1, keepdims=True)
    seen = np.where(visible, e, np.nan)  # what may not be seen stays white
    fig, ax = plots.figure(6.4, 5.6)
    image = ax.imshow(seen, cmap="cividis", vmin=0, vmax=1)
    ax.grid(False)
    letters = [c if c != " " else "␣" for c in word]
    ax.set_xticks(range(len(word)), letters)
    ax.set_yticks(range(len(word)), letters)
    ax.set(xlabel="key: the token that is looked at",
           ylabel="query: the token that looks",
           title="Each character finds the ones equal to it")
    fig.colorbar(image, label="weight $P_{ij}$", shrink=0.8)
    return fig


lessons.slider(draw, "sharpness", [0, 1, 2, 3, 4, 6, 8], start=6)

# %% [markdown]
# (Below the figure is a slider, in a notebook that runs: how sharply equal characters
# attract. At 0 every row is even.)
#
# Read the last row: the final `e` gives its attention to the two `e`s, itself and the
# one in the first `be`. The first token can only look at itself: its row is a single 1.
# The white half above the diagonal is the future, which a model that writes text must
# not see.

# %% [markdown]
# ## The formula, and six lines that compute it
#
# $$ s_{ij} = \frac{q_i \cdot k_j}{\sqrt D}, \qquad
#    P_{ij} = \frac{e^{s_{ij}}}{\sum_{l \le i} e^{s_{il}}},
# \qquad o_i = \sum_{j \le i} P_{ij}\, v_j $$
#
# (arXiv 1706.03762, eq. 1, with a causal mask: the future is hidden). The sums run over
# the visible keys only. This is all of attention. The papers in the later lessons
# change one part of it: what the tokens know of their place, how scores are made, how
# scores become weights, or what happens to the result.


# %%
def attention(q, k, v):
    """q, k (T, D), v (T, Dv) -> (T, Dv): a weighted mean of values per token"""
    T, D = q.shape
    s = q @ k.T / np.sqrt(D)             # (T, D), (D, T) -> (T, T)   compare
    s[~np.tri(T, dtype=bool)] = -np.inf  # hide the future: exp(-inf) = 0
    P = np.exp(s - s.max(axis=1, keepdims=True))  # minus the maximum: no overflow
    P /= P.sum(axis=1, keepdims=True)    # rows sum to 1
    return P @ v                         # (T, T), (T, Dv) -> (T, Dv)  mix


rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((3, 7, 5))  # three arrays (T, D) = (7, 5)
out = attention(q, k, v)
print("out", out.shape)

# %% [markdown]
# The package computes the same for $B$ texts and $H$ *heads* at once: arrays are
# $(B, H, T, D)$. Heads are independent attentions side by side. Each has its own
# queries, keys and values, so each can look for something else; their outputs are put
# next to each other.

# %%
one = (q[None, None], k[None, None], v[None, None])                  # (1, 1, T, D)
theirs, cache = softmax.forward(*one, causal=True)
print("largest difference from minattn:", f"{np.abs(theirs[0, 0] - out).max():.0e}")

# %% [markdown]
# ## Exercise 1: the mean of the past
#
# If all scores are equal, the weights are equal too. What does token $i$ receive then?
# Compute it without any scores.


# %% tags=["exercise"]
def mean_of_the_past(v):
    """v (T, Dv) -> (T, Dv): row i is the mean of v_0 ... v_i"""
    ...


grader_00.check_mean_of_the_past(mean_of_the_past);


# %% tags=["solution"]
def mean_of_the_past(v):
    return np.cumsum(v, axis=0) / np.arange(1, len(v) + 1)[:, None]


grader_00.check_mean_of_the_past(mean_of_the_past);

# %% [markdown]
# ## Exercise 2: a window
#
# Long texts are expensive: $T^2$ scores. A *sliding window* of $W$ lets token $i$ see
# itself and the $W - 1$ tokens before it. Write the mask.


# %% tags=["exercise"]
def window_mask(T, W):
    """-> (T, T) of bool: True where query i (row) may see key j (column)"""
    ...


grader_00.check_window_mask(window_mask);


# %% tags=["solution"]
def window_mask(T, W):
    distance = np.arange(T)[:, None] - np.arange(T)                  # (T, T)  i - j
    return (distance >= 0) & (distance < W)


grader_00.check_window_mask(window_mask);

# %% [markdown]
# ## Exercise 3: can the future change the past?
#
# Attention is *causal* if what token $i$ receives does not depend on what comes after
# it. Write a test that decides whether a given function `f(q, k, v)` is causal. (The
# project's validation kit does the same more thoroughly; lesson 07 is about a published
# mechanism that fails.)


# %% tags=["exercise"]
def is_causal(f, q, k, v):
    """Does no row of f(q, k, v) depend on a later row of q, k or v?

    f: (T, D), (T, D), (T, Dv) -> (T, Dv)
    """
    ...


grader_00.check_is_causal(is_causal);


# %% tags=["solution"]
def is_causal(f, q, k, v):
    whole = f(q, k, v)
    prefixes = [f(q[:n], k[:n], v[:n]) for n in range(1, len(q))]
    return all(np.allclose(part[-1], row) for part, row in zip(prefixes, whole))


grader_00.check_is_causal(is_causal);

# %% [markdown]
# ## What a sharper or flatter comparison does
#
# Multiply all scores by a number and the weights move between two extremes. 0 gives the
# mean of the past (exercise 1); a large number gives all the weight to the best key, or
# shares it evenly among several equally good ones. How many keys a row really uses is
# measured by the *entropy* $-\sum_j P_{ij} \ln P_{ij}$ (its unit, with this logarithm,
# is called a *nat*); its exponential is an effective number of keys.

# %%
corpus = lessons.text()
line = corpus.text[:corpus.text.index(" ", 60) + 1]                  # ends in a space
codes = rng.standard_normal((256, 16))[[ord(c) % 256 for c in line]]
# codes (T, 16): a random vector for every character
factors = np.geomspace(0.03, 30, 25)
used = []
for factor in factors:
    x = (codes * np.sqrt(factor))[None, None]
    P = softmax.forward(x, x, x, causal=True, return_weights=True)[-1]
    P = P[0, 0, -1]                # (T,)  the last row
    used.append(np.exp(-np.sum(P * np.log(np.maximum(P, 1e-300)))))

# %% tags=["plot"]
# Picture: effective number of keys against a factor of the scores, both logarithmic. It
# falls from all 74 tokens to the 9 that equal the last one.
fig, ax = plots.figure(6.4, 3.6)
ax.plot(factors, used, "o-", ms=4)
ax.axhline(len(line), color="gray", ls="--", lw=1)
ax.text(factors[0], 0.8 * len(line), f" all {len(line)} tokens", va="top", color="gray")
equal = (codes == codes[-1]).all(axis=1).sum()
ax.axhline(equal, color=plots.COLOURS[1], ls="--", lw=1)
ax.text(factors[0], equal, " tokens equal to the last one", va="bottom",
        color=plots.COLOURS[1])
ax.set(xscale="log", yscale="log", xlabel="scores multiplied by", xlim=(0.025, 36),
       ylabel="effective number of keys", ylim=(6, 100),
       title="Larger scores leave fewer keys in use")
ax.set_yticks([10, 30, 60], ["10", "30", "60"])
ax.set_xticks([0.1, 1, 10], ["0.1", "1", "10"]);

# %% [markdown]
# ## The map
#
# - **The basis**: the gradient (lesson 01) and how to check one (18), a whole model
#   (02) and how it learns to write (19), many heads (15), positions (03).
# - **Around it**: how a model learns (12, 22), whether a difference is real (13),
#   writing with a cache (14), why it is fast (16).
# - **One paper each**: fading position waves, arXiv 2606.01258 (04); sinks and affine
#   weights, 2602.23057 (05, 06); the energy gate, 2605.21842 (07); a Gaussian kernel in
#   place of queries and keys, 2605.02144 (08); what a mask alone does, 2502.01951 (09).
# - **Papers, continued**: energy gate and Morlet positions together, 2605.26355 (17);
#   the kernel on text and pictures (20); who is believed (21).
# - **Beyond**: checking a fast implementation (10), other rules for the weights (11).
#
# [The list of lessons](README.md) gives an order to read, and the files of the package
# for each.
#
# Every mechanism of the package is a pair of functions:
# `forward(arrays, options) -> out, cache` and `backward(dout, cache) -> gradients`.
# Nothing is kept between calls.
#
# **What we now know.** Attention is a weighted mean of values; the weights come from
# comparing a query with keys; a mask says what may be seen; equal scores give a plain
# mean, and the further apart the scores are, the fewer keys count.
#
# **What remains unknown.** Where queries, keys and values come from: they are
# *learned*, and for that we need the gradient. That is
# [lesson 01](01_softmax_attention.ipynb).
#
# **Source.** Vaswani et al., *Attention is all you need*, arXiv 1706.03762, eq. 1.
