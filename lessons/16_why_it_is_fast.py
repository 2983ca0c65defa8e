# %% [markdown]
# # 16 · Why it is fast
#
# **The question.** Two programs do the same arithmetic, and one takes three times as
# long. Where does the time go? **Time:** 20 minutes to read, 40 with the exercises.
# **You need:** lesson 02 (the layers of a model). (The letters:
# [notation](NOTATION.md).)
#
# Everything here is measured when you run it, on one core. Times belong to a machine,
# so we print ratios only, and the text claims no more than should hold on any of them.
# If one does not hold on yours, you have found something.

# %%
import time

import numpy as np
from threadpoolctl import threadpool_limits

from minattn import ops, plots
from minattn.attention import softmax
from minattn.lessons import grader_16

threadpool_limits(1)                   # one thread: a second one only adds to the noise
rng = np.random.default_rng(0)


def seconds(f):
    """Time of a call on a core, waiting not counted; the first call warms up"""
    f()
    calls, start = 0, time.thread_time()
    while calls < 3 or time.thread_time() - start < 0.1:
        f()
        calls += 1
    return (time.thread_time() - start) / calls


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)

# %% [markdown]
# ## The picture: the same arithmetic, at very different speeds
#
# A product of $(N, a)$ and $(a, b)$ is $2Nab$ operations, multiplications and
# additions. With $a = b = 2048$ the matrix on the right is always the same. Only the
# number of rows changes.

# %%
W = normal(2048, 2048)
rows = np.array([1, 2, 4, 8, 16, 64, 256])
rates = []
for N in rows:
    x, y = normal(N, 2048), np.empty((N, 2048), np.float32)
    time_of_one = seconds(lambda x=x, y=y: np.matmul(x, W, out=y))
    rates.append(2 * N * 2048 * 2048 / time_of_one)
rates = np.array(rates) / rates[-1]

# %% tags=["plot", "varies"]
# Picture: operations per second of a matrix product, relative to 256 rows, against the
# number of rows. With one row it is a small share; it rises towards 1.
fig, ax = plots.figure(6.4, 3.4)
ax.plot(rows, 100 * rates, "o-", ms=4)
ax.set(xscale="log", xlabel="rows of the left factor", ylim=(0, 125),
       ylabel="operations per second,\n% of those at 256 rows",
       title="One row uses a small part of the processor's speed")
ax.set_xticks(rows, [str(N) for N in rows])
ax.minorticks_off()
print(f"one row reaches {100 * rates[0]:.0f} % of the speed of 256")

# %% [markdown]
# One row needs every number of $W$ *once*: one multiplication and one addition for each
# number that is fetched. With 256 rows each number is used 256 times while it is near
# the processor. A core can multiply far more often than it can fetch. So the rule of
# this lesson is: **use each number often while it is near.** It explains why training
# on many characters at once is cheap per character, and why writing one character at a
# time is not ([lesson 14](14_writing_with_a_cache.ipynb)).
#
# ## Exercise 1: count the operations
#
# A model has $L$ layers of $C$ channels and a table of $V$ characters, used at the end
# as in lesson 02; each step reads $N$ characters in windows of $T$. Count products
# only, forward *and* backward. A product has two products of its own size in the
# backward. The scores of all heads in one layer take $2NTC$ operations in the forward,
# and so do the weighted means (what the mask hides is counted).


# %% tags=["exercise"]
def operations(N, T, L, C, V):
    """-> operations of one training step

    each layer: (C, 3C), (C, C), (C, 4C) and (4C, C); once: (C, V)
    """
    ...


grader_16.check_operations(operations);


# %% tags=["solution"]
def operations(N, T, L, C, V):
    weights = L * 12 * C * C + C * V
    return 3 * (2 * N * weights + L * 2 * 2 * N * T * C)


grader_16.check_operations(operations);

# %% [markdown]
# ## Does the clock agree with the count?
#
# We time each kind of layer, forward and backward, as often as one step of a model uses
# it, and compare the shares of the time with the shares of the arithmetic.

# %%
L, H, C, T, V, N = 2, 4, 64, 48, 65, 16 * 48
x, dy, wide, logits = normal(N, C), normal(N, C), normal(N, 4 * C), normal(N, V)
gain, ids = np.ones(C, np.float32), rng.integers(V, size=N)
q, k, v = normal(3, 16, H, T, C // H)
shapes = [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)] * L + [(C, V)]
products = [(normal(N, a), normal(a, b), normal(N, b)) for a, b in shapes]


# %%
def linear():
    for a, W, d in products:
        ops.linear_backward(d, ops.linear_forward(a, W)[1])


def attention():
    for _ in range(L):
        softmax.backward(q, softmax.forward(q, k, v, causal=True)[1])


def layer_norm():
    for _ in range(2 * L + 1):
        ops.layer_norm_backward(dy, ops.layer_norm_forward(x, gain)[1])


def gelu():
    for _ in range(L):
        ops.gelu_backward(wide, ops.gelu_forward(wide)[1])


def cross_entropy():
    ops.cross_entropy_backward(1.0, ops.cross_entropy_forward(logits, ids)[1])


# %%
LAYERS = {"linear": (linear, 6 * N * sum(a * b for a, b in shapes)),
          "attention": (attention, 12 * L * N * T * C),
          "layer norm": (layer_norm, 20 * (2 * L + 1) * N * C),
          "GELU": (gelu, 18 * L * N * 4 * C),
          "cross-entropy": (cross_entropy, 8 * N * V)}
times = np.array([seconds(f) for f, _ in LAYERS.values()])
counts = np.array([count for _, count in LAYERS.values()])

# %% tags=["plot"]
# Picture: shares of one training step in pairs of bars, operations and time. Linear
# layers have most of the operations and a smaller share of the time; layer norm and
# GELU have few operations and a visible share of the time.
fig, ax = plots.figure(6.8, 3.6)
for shift, label, values, n in ((-0.2, "operations", counts, 5),
                                (0.2, "time", times, 0)):
    share = 100 * values / values.sum()
    bars = ax.barh(np.arange(len(LAYERS)) + shift, share, 0.38, color=plots.COLOURS[n],
                   label=f"share of the {label}")
    ax.bar_label(bars, [f"{s:.0f}" for s in share], padding=3, fontsize=8)
ax.set_yticks(range(len(LAYERS)), LAYERS)
ax.invert_yaxis()
ax.set(xlabel="per cent of a training step", xlim=(0, 100),
       title="Products are most of the arithmetic, but less of the time")
ax.legend(frameon=False, loc="lower right");

# %% [markdown]
# Layer norm and GELU do a few operations with each number that they fetch, so they pay
# for fetching. How often must they fetch?
#
# ## Stay in the cache
#
# NumPy works one operation at a time: `h * (1 + np.tanh(x))` first writes all of
# `tanh(x)`, then reads it again to add 1, and so on. If the array is larger than the
# core's cache, every pass goes to memory and back. The remedy: cut the rows into blocks
# that fit, and do *all* passes on one block before the next.
#
# ## Exercise 2: in blocks


# %% tags=["exercise"]
def in_blocks(f, x, size):
    """f(rows) for every block of `size` rows of x (N, C), joined again -> (N, C)

    f: (n, C) -> (n, C), row by row; N need not be a multiple of size
    """
    ...


grader_16.check_in_blocks(in_blocks);


# %% tags=["solution"]
def in_blocks(f, x, size):
    y = np.empty_like(x)
    for start in range(0, len(x), size):
        y[start:start + size] = f(x[start:start + size])   # the last one may be shorter
    return y


grader_16.check_in_blocks(in_blocks);

# %%
def passes(rows):
    """A GELU in nine passes over the array"""
    return rows * (1 + np.tanh(0.8 * (rows + 0.045 * rows * rows * rows))) / 2


def by_blocks(x, size, y):
    for start in range(0, len(x), size):
        y[start:start + size] = passes(x[start:start + size])


large = normal(16_384, 256)                             # 16 MB
result = np.empty_like(large)
sizes = 4 ** np.arange(8)                               # rows in a block: 1 to 16,384
block_times = [seconds(lambda size=size: by_blocks(large, size, result))
               for size in sizes]
block_times = np.array(block_times) / min(block_times)

# %% tags=["plot", "varies"]
# Picture: time of nine elementwise passes against the rows in a block, relative to the
# best, on logarithmic axes. It is lowest in the middle and higher at both ends: highest
# for single rows.
fig, ax = plots.figure(6.4, 3.4)
ax.plot(sizes * 256, block_times, "o-", ms=4)
ax.set(xscale="log", yscale="log", xlabel="numbers in a block",
       ylabel="time, relative to the best",
       title="Blocks: too small pays for calls, too large for memory")
ax.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
ax.minorticks_off()
print("relative to the best block: the whole array at once takes "
      f"{block_times[-1]:.1f} times as long, row by row {block_times[0]:.0f} times")

# %% [markdown]
# There are two costs. A call of NumPy costs about a microsecond before it computes
# anything, and on the left there are very many calls. On the right every pass goes to
# memory. In between the blocks fit the cache. The package's `ops.py` cuts its layers in
# this way (`row_blocks`).
#
# ## Do not compute what is hidden
#
# A causal mask hides nearly half of all scores. A program that computes all of them
# first does nearly twice the work. The package cuts the queries into blocks of rows and
# computes only the keys that some row of the block may see.
#
# ## Exercise 3: how many tiles?
#
# Cut the $T \times T$ scores into square tiles of $b$ rows and columns (the last ones
# may be smaller). How many tiles have anything to compute under a causal mask?


# %% tags=["exercise"]
def tiles(T, b):
    """-> the number of tiles that contain a pair j <= i"""
    ...


grader_16.check_tiles(tiles);


# %% tags=["solution"]
def tiles(T, b):
    n = -(-T // b)                                      # T / b, rounded up
    return n * (n + 1) // 2                             # 1 + 2 + ... + n


grader_16.check_tiles(tiles);

# %%
lengths = (64, 128, 256, 512, 1024)
saved = []
for T in lengths:
    a = normal(1, 4, T, 32)
    saved.append(seconds(lambda a=a: softmax.forward(a, a, a, causal=True))
                 / seconds(lambda a=a: softmax.forward(a, a, a)))

# %% tags=["plot"]
# Picture: time of causal attention divided by that of attention without a mask, against
# the length of the text. Near 1 for short texts, and towards one half for long ones.
fig, ax = plots.figure(6.4, 3.2)
ax.plot(lengths, saved, "o-", ms=4, label="measured")
pairs = [(T / 64) * (T / 64 + 1) / 2 / (T / 64) ** 2 for T in lengths]
ax.plot(lengths, pairs, "--", color="gray", label="tiles of 64 rows, counted")
ax.set(xscale="log", xlabel="length of the text $T$", ylim=(0, 1.4),
       ylabel="causal / no mask", title="In long texts a causal mask saves nearly half")
ax.set_xticks(lengths, [str(T) for T in lengths])
ax.minorticks_off()
ax.legend(frameon=False);

# %% [markdown]
# In short texts the mask itself costs something, and there is only one block.
#
# **Threads.** A second core helps most if it works on its own for long: the package
# gives each thread a part of the batch, forward and backward, and they meet once per
# step. A framework that splits every operation over the cores makes them wait for each
# other after each. We do not measure that here; it needs a machine with nothing else to
# do ([where the time goes](../docs/where_the_time_goes.md) has measurements, and what
# was tried without success).
#
# **What we now know.** Arithmetic is cheap; fetching numbers is expensive. Products of
# large matrices use each number often and run near the speed of the processor; passes
# over large arrays do not. Blocks that fit the cache, no work for what is hidden, and
# few calls of useful size: that is most of what makes this package fast.
#
# **What remains unknown.** How much is left. A compiler can merge all passes over a
# block into one; NumPy cannot. [Benchmarks](../docs/benchmarks.md) compares with two
# that do.
#
# **Source.** The measurements above. Blocks of scores that stay near the processor are
# the idea of FlashAttention, arXiv 2205.14135.
