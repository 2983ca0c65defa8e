# %% [markdown]
# # 11 · Twelve ways to weigh a key
#
# **The question.** Softmax is one way to turn a row of scores into a row of weights.
# What are the others, and what does each of them change? **Time:** 40 minutes to read,
# 60 with the exercises. **You need:** softmax attention and its gradient ([lesson
# 01](01_softmax_attention.ipynb)). Lessons 05 and 06 explain two of the rules at
# length, but are not needed here. (The letters: [notation](NOTATION.md).)

# %%
import math

import numpy as np

from minattn import attention, plots
from minattn.lessons import grader_11

# %% [markdown]
# ## The picture: one row of scores
#
# One query has compared itself with ten keys. We number the keys from the best match to
# the worst; none of the rules below cares about their order.

# %%
s = np.array([2.4, 1.9, 1.2, 0.6, 0.2, -0.3, -0.8, -1.2, -1.8, -2.8])  # (n,)
n = len(s)
keys = np.arange(1, len(s) + 1)

# %% tags=["plot"]
# Picture: ten bars that fall from 2.4 to -2.8.
fig, ax = plots.figure(6.0, 3.0)
ax.bar(keys, s, 0.6, color=plots.COLOURS[0])
ax.axhline(0, color="black", lw=0.8)
ax.set(xlabel="key", ylabel="score $s_j$", xticks=keys,
       title="One query's scores: five above zero, five below");

# %% [markdown]
# Softmax makes five decisions at once: (1) weights are never negative; (2) they sum to
# 1; (3) none is exactly 0; (4) only differences between scores count; (5) a large
# enough score takes everything. Each of the other eleven rules changes at least one of
# them.
#
# ## Calling all twelve
#
# We write none of them ourselves. In the package each rule belongs to a mechanism, and
# all mechanisms are called alike, `forward(q, k, v, ...)`; with `return_weights=True`
# the weights come back too. (Mechanisms that change the *scores* and then take the
# softmax are left out: `forget`, `energy`, `gaussian`, `collaborative`.)

# %%
RULES = {  # name: (mechanism of the package, options)
    "softmax": ("softmax", {}),
    "linear": ("linear", {"feature": "elu"}),
    "lssar": ("lssa", {"power": 15}),
    "entmax15": ("sparse", {"rule": "entmax15"}),
    "sparsemax": ("sparse", {"rule": "sparsemax"}),
    "topk": ("sparse", {"rule": "topk", "top": 4}),
    "off_by_one": ("off_by_one", {}),
    "relu": ("pointwise", {"rule": "relu"}),
    "sigmoid": ("pointwise", {"rule": "sigmoid"}),
    "affine": ("affine", {"length": "visible"}),
    "differential": ("differential", {}),
    "cog": ("cog", {}),
}
THEMES = ("sum to 1", "exact zeros", "any sum", "below zero")  # three rules each

# %%
def attend(name, q, k, v):
    """q (T, D), k (n, D), v (n, Dv), causal -> weights (T, n), the module, its cache"""
    mechanism, options = RULES[name]
    module = attention.MECHANISMS[mechanism].module
    q, k, v = q[None, None], k[None, None], v[None, None]    # (1, 1, T, D): one head
    more = []
    if name == "affine":                          # alpha = 4 / 10 + 1 / 2 = 0.9
        more = [np.full(q.shape[:3], 4.0), np.array([0.5])]  # alpha_ma = 0.5
    if name == "differential":                    # lambda = sigmoid(0) = 1 / 2
        more = [np.zeros(q.shape[:3])]
        q = np.concatenate([q, q / 2], axis=1)    # its second query: half the first
    _, cache, P = module.forward(q, k, v, *more, **options, causal=True,
                                 return_weights=True)
    return P[0, 0], module, cache


# %% [markdown]
# We want to choose the scores ourselves. With vectors of a single number, $D = 1$, the
# query 1 and the key $s_j$ have the score $1 \cdot s_j / \sqrt 1 = s_j$. LSSAR uses
# only the angle between query and key, its score being
# $\log D \cdot \log n \cdot \cos$: there we take $D = 64$ and the angle that gives
# $s_j$. (A row with one key has $\log 1 = 0$: LSSAR's score is 0 at any angle.) Linear
# attention sees the vectors, not their product, so one number per vector is its
# simplest case.


# %%
def vectors(name, s):
    """s (n,) -> a query (1, D) and keys (n, D) that have these scores"""
    if name != "lssar":
        return np.ones((1, 1)), s[:, None]
    top = math.log(64) * math.log(len(s))
    cos = s / top if top else np.ones(1)           # one key: any angle will do
    q, k = np.zeros((1, 64)), np.zeros((len(s), 64))
    q[0, 0] = 1
    k[:, 0], k[:, 1] = cos, np.sqrt(1 - cos**2)    # unit vectors
    return q, k


def weigh(name, s):
    """s (n,) -> weights (n,)"""
    q, k = vectors(name, s)
    return attend(name, q, k, k)[0][0]             # the values do not matter here

# %% tags=["plot"]
def panels(height, xlabel, ylabel):
    """A panel for each rule, four rows by theme -> figure, {name: axes}"""
    fig, axes = plots.figure(9.6, height, nrows=4, ncols=3, sharex=True, sharey=True)
    for ax in axes[3]:
        ax.set_xlabel(xlabel)
    for ax, theme in zip(axes[:, 0], THEMES):
        ax.set_ylabel(ylabel)
        ax.annotate(theme, (-0.32, 0.5), xycoords="axes fraction", rotation=90,
                    va="center", weight="bold")
    for ax, name in zip(axes.flat, RULES):
        ax.set_title(name)
    return fig, dict(zip(RULES, axes.flat))


# %% tags=["plot"]
# Picture: twelve panels of ten bars with softmax in gray behind. Linear is flatter,
# LSSAR gives key 1 nearly all; the second row has zeros, the third sums other than 1,
# the fourth weights below zero, largest for key 10 under cog.
fig, axes = panels(9.2, "key", "weight")
for name, ax in axes.items():
    P = weigh(name, s)
    ax.bar(keys, weigh("softmax", s), 0.9, color="lightgray")
    ax.bar(keys, P, 0.5, color=np.where(P < 0, plots.COLOURS[1], plots.COLOURS[0]))
    ax.plot(keys[P == 0], P[P == 0], "o", ms=5, mfc="white", mec="black")
    ax.axhline(0, color="black", lw=0.8)
    ax.text(10.4, 0.85, f"sum {P.sum():.2f}", ha="right")
    ax.set(ylim=(-0.42, 1.08), xticks=keys)
fig.suptitle("The same ten scores, twelve different rows (gray: softmax; "
             "orange: below zero; circle: exactly 0)");

# %% [markdown]
# Twelve formulas, in the order of the panels. All sums run over the $n$ keys that the
# query sees.
#
# **Sum to 1.**
#
# - **softmax** (arXiv 1706.03762): $P_j = e^{s_j} / \sum_l e^{s_l}$.
# - **linear** (2006.16236): $P_j = \varphi(q) \cdot \varphi(k_j) \,/ \sum_l \varphi(q)
#   \cdot \varphi(k_l)$, where $\varphi(x)$ is $x + 1$ above 0 and $e^x$ below. Above 0
#   the numerator grows linearly, not exponentially, so the row is flatter. In return,
#   running sums replace the row, and the cost of a sequence is linear in its length.
# - **lssar** (2501.13428): $A_j = \mathrm{softplus}(s_j) / \sum_l \mathrm{softplus}
#   (s_l)$, and $P_j$ is proportional to $\max(n A_j - 1, 0)^{15}$, with
#   $\mathrm{softplus}(s) = \ln(1 + e^s)$. Only keys above the mean of the row count,
#   and the 15th power leaves little but the best. If all keys are equal, none is above
#   the mean and all weights are 0. (Rows of at most three keys skip the $-1$.)
#
# **Exact zeros.**
#
# - **entmax15** (1905.05702): $P_j = \max(s_j / 2 - \tau, 0)^2$, with $\tau$ such that
#   the row sums to 1. It lies between softmax and sparsemax.
# - **sparsemax** (1602.02068): $P_j = \max(s_j - \tau, 0)$, again with $\tau$ such that
#   the row sums to 1. A key that lies 1 or more below the best gets nothing.
# - **topk** (2506.14095): softmax over the four largest scores (the number is an
#   option); the others get 0, however near they come.
#
# **Any sum.**
#
# - **off_by_one** (2602.23057): $P_j = e^{s_j} / (1 + \sum_l e^{s_l})$. The 1 is a key
#   of score 0 without a value ([lesson 05](05_sinks_and_gates.ipynb)). Against good
#   matches it hardly counts; if all scores are low, it takes almost everything.
# - **relu** (2410.13835): $P_j = \max(s_j, 0) / n$. A key's weight depends on its own
#   score alone: keys no longer compete. If no score is above 0, the row is silent.
# - **sigmoid** (2409.04431): $P_j = \mathrm{sigmoid}(s_j - \ln n)$, with
#   $\mathrm{sigmoid}(u) = 1 / (1 + e^{-u})$. No competition either, but every weight is
#   positive and none reaches 1. Many good keys may add up to much more than 1.
#
# **Below zero.**
#
# - **affine** (2602.23057): $P_j = \alpha (A_j - 1/n) + \alpha_\text{ma} / n$, where
#   $A$ is the softmax; here $\alpha = 0.9$, $\alpha_\text{ma} = 0.5$
#   ([lesson 06](06_affine_scaled.ipynb)). The row sums to $\alpha_\text{ma}$.
# - **differential** (2410.05258): $P_j = A_j - \lambda A'_j$, with $A$ and $A'$ the
#   softmax weights of two queries; here $\lambda = 1/2$, and the second query is half
#   the first. What both queries look at cancels in part. The row sums to $1 - \lambda$.
# - **cog** (2411.07176): $P_j = \mathrm{sign}(s_j)\, A_j$, with $A$ the softmax of
#   $|s|$. The key that fits worst of all, key 10, gets the weight farthest from 0: its
#   value is subtracted.
#
# ## Exercise 1: a row without a favourite
#
# All $n$ keys have the same score $c$. Which weight does each of them get? Answer for
# the six rules named below, by pencil first.


# %% tags=["exercise"]
def equal_keys(rule, n, c):
    """The weight of each of n keys that all have the score c: a number

    rule: "softmax", "sparsemax", "off_by_one", "relu", "sigmoid" or "cog"
    """
    ...


grader_11.check_equal_keys(equal_keys);


# %% tags=["solution"]
def equal_keys(rule, n, c):
    if rule == "off_by_one":
        return math.exp(c) / (1 + n * math.exp(c))
    if rule == "relu":
        return max(c, 0) / n
    if rule == "sigmoid":
        return 1 / (1 + n * math.exp(-c))  # exp(-(c - ln n)) = n exp(-c)
    if rule == "cog":
        return np.sign(c) / n
    return 1 / n


grader_11.check_equal_keys(equal_keys);

# %% [markdown]
# ## Does a large score take everything?
#
# Keep nine scores and move that of key 1 from far below the others to far above.

# %%
moved = np.linspace(-7, 9, 161)
response = {}
for name in RULES:
    rows = np.tile(s, (len(moved), 1))             # (161, n)
    rows[:, 0] = moved
    response[name] = np.array([weigh(name, row)[0] for row in rows])

# %% tags=["plot"]
# Picture: weight of key 1 against its score, twelve panels, softmax dashed. Eight rise
# to 1 like softmax; linear, relu, affine and differential do not; cog falls to -1 on
# the left.
fig, axes = panels(8.4, "score of key 1", "its weight")
for name, ax in axes.items():
    ax.axhline(0, color="black", lw=0.8)
    ax.plot(moved, response["softmax"], color="gray", ls="--", lw=1.2)
    ax.plot(moved, response[name], color=plots.COLOURS[0], lw=2)
    ax.set(ylim=(-1.05, 1.12), xticks=(-5, 0, 5))
fig.suptitle("A large score does not take everything under every rule "
             "(dashed: softmax)");

# %% [markdown]
# - Eight of the curves climb to 1 and stay there. **sparsemax** gets from 0 to 1 in
#   straight pieces, within two units; **lssar** rises steeply where key 1 becomes the
#   best; **topk** jumps up from 0 when key 1 enters the best four.
# - **linear** has reached one half at a score of 9. **relu** follows a straight line
#   that no other key can stop: at a score above 10 the weight exceeds 1.
# - **affine** levels off below 1. **differential** rises, then falls back towards
#   $1 - \lambda$: when key 1 has won in both of its maps, they cancel in part.
# - **cog** turns negative with the score, and a score far below 0 takes everything too.
#   The weight jumps at 0, which no gradient shows.
#
# ## Whole maps
#
# The phrase of lesson 00, with its vectors: query and key of a token are both a vector
# for its character, here of length 3. Equal characters have the score
# $9 / \sqrt 7 \approx 3.4$, different ones 0. (LSSAR does not see the length; equal
# characters have $\cos = 1$.)

# %% tags=["plot"]
# Picture: twelve maps on "to be or not to be", the future white. Equal characters have
# dark cells under all rules; under linear these hardly differ from the rest.
word = "to be or not to be"
characters = sorted(set(word))
x = 3 * np.eye(len(characters))[[characters.index(c) for c in word]]   # (T, D)
letters = [c if c != " " else "␣" for c in word]
future = ~np.tri(len(word), dtype=bool)
fig, axes = panels(11.6, "key", "query")
for name, ax in axes.items():
    P = np.ma.masked_array(attend(name, x, x, x)[0], future)           # (T, T)
    image = ax.imshow(P, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.grid(False)
    ax.set_xticks(range(len(word)), letters, fontsize=7)
    ax.set_yticks(range(len(word)), letters, fontsize=7)
fig.colorbar(image, ax=list(axes.values()), label="weight", shrink=0.4)
fig.suptitle("Linear hardly tells equal characters from others "
             "(white half: the future)");

# %% [markdown]
# Start with the first row, which sees one key, itself. The rules of the first two
# themes give it 1; **affine** and **differential** give it a half. **relu** gives it
# its score, 3.4, beyond the end of the colour scale; later rows divide by more and more
# keys.
#
# In the last row two of eighteen keys match. **linear** hardly tells them from the
# others: $\varphi(q) \cdot \varphi(k)$ is 22 for a match and 13 for any other key,
# where softmax compares $e^{3.4} = 30$ with 1. **topk** equals softmax here, because it
# keeps every key that ties for fourth place, and all sixteen others do. **cog** gives
# those 0: their score is 0, and so is its sign.
#
# ## The gradient: who learns?
#
# Write $dx$ for $\partial L / \partial x$, with $L$ the loss. Softmax has
# $ds_j = P_j (dP_j - \sum_l P_l\, dP_l)$: the smaller the weight, the smaller the
# gradient of the score, and a weight of exactly 0 gets none. The rules with exact zeros
# carry this further: a key outside the *support* (the keys with weight) gets no
# gradient, even if its value was the one that was needed.
#
# Take sparsemax. On the support $S$ the weights are $s_j - \tau$ and sum to 1, which
# determines $\tau$:
#
# $$ \sum_{j \in S} (s_j - \tau) = 1 \quad\Rightarrow\quad
#    \tau = \frac{\sum_{j \in S} s_j - 1}{|S|} $$
#
# ## Exercise 2: backward through sparsemax
#
# From $dP$ and $P$ alone, find $ds$. (A small change of the scores does not change
# $S$.)


# %% tags=["exercise"]
def sparsemax_backward(dP, P):
    """dP (n,), P (n,) the sparsemax of s -> ds (n,)"""
    ...


grader_11.check_sparsemax_backward(sparsemax_backward);


# %% tags=["solution"]
def sparsemax_backward(dP, P):
    on = P > 0
    return np.where(on, dP - dP[on].mean(), 0)


grader_11.check_sparsemax_backward(sparsemax_backward);

# %% [markdown]
# ## The table
#
# Nothing below is taken from a paper: every entry is measured.
#
# - `sum`, `at s-3`: the sum of the weights, and their sum when all scores fall by 3
# - `s+3`: the largest change of a weight when all scores rise by 3
# - `least`, `zeros`, `stuck`: the least weight, how many are exactly 0, and how many
#   keys get a gradient of exactly 0 (from a random loss)
# - `key 1`, `at 2s`: the weight of the best key, and the same when all scores double
# - `s=1`, `s=-1`: the weight of a key that is alone in its row, with that score


# %%
def without_gradient(name, s):
    """How many keys get a gradient of exactly 0"""
    v = np.random.default_rng(0).standard_normal((len(s), 1))
    _, module, cache = attend(name, *vectors(name, s), v)
    dk = module.backward(np.ones((1, 1, 1, 1)), cache)["k"][0, 0]      # (n, D)
    return int((dk == 0).all(axis=1).sum())


def change(before, after):
    largest = np.abs(after - before).max()
    return f"{largest:.2f}" if largest > 1e-9 else "none"


columns = {"sum": 7, "at s-3": 8, "s+3": 7, "least": 8, "zeros": 7, "stuck": 7,
           "key 1": 7, "at 2s": 7, "s=1": 7, "s=-1": 7}
print(f"{'':12}" + "".join(f"{name:>{width}}" for name, width in columns.items()))
for name in RULES:
    P = weigh(name, s)
    one, minus_one = weigh(name, np.array([1.0])), weigh(name, np.array([-1.0]))
    print(f"{name:12}{P.sum():7.2f}{weigh(name, s - 3).sum():8.2f}"
          f"{change(P, weigh(name, s + 3)):>7}{P.min():8.3f}{(P == 0).sum():7}"
          f"{without_gradient(name, s):7}{P[0]:7.2f}{weigh(name, 2 * s)[0]:7.2f}"
          f"{one[0]:7.2f}{minus_one[0]:7.2f}")

# %% [markdown]
# The first two columns show which rules can say that nothing fits: **off_by_one**,
# **relu** and **sigmoid** spend less when every score falls by 3. **cog** cannot: its
# sizes still sum to 1, and with all scores below 0 every value is subtracted. **lssar**
# is the exception to what was said about gradients: six keys have no weight, but each
# of them moves the mean of the row, and so gets a gradient.
#
# ## Exercise 3: which rule is in the box?
#
# You are handed a function `weigh(s)` for rows of any length. Inside is one of seven
# rules, but it weighs $c\, s$, with a $c$ between 1/2 and 2 that you are not told; for
# `topk` the number of keys kept is also unknown, from 2 to 5. So comparing with the
# formulas will not do: find experiments whose outcome depends on the rule alone.


# %% tags=["exercise"]
def which_rule(weigh):
    """The name of the rule in the box

    weigh: s (n,) -> weights (n,), for any n
    -> "softmax", "topk", "sparsemax", "off_by_one", "relu", "sigmoid" or "cog"
    """
    ...


grader_11.check_which_rule(which_rule);


# %% tags=["solution"]
def which_rule(weigh):
    s = np.linspace(-9, 0, 10)
    P = weigh(s)
    if P.min() < 0:
        return "cog"
    if np.allclose(weigh(s + 3), P, rtol=1e-6, atol=0):       # only differences count
        if P.min() > 0:
            return "softmax"
        nearly_equal = weigh(s / 1000)
        return "sparsemax" if nearly_equal.min() > 0 else "topk"
    s[-1] += 1
    if np.allclose(weigh(s)[:-1], P[:-1], rtol=1e-6, atol=0):  # keys do not compete
        return "sigmoid" if P.min() > 0 else "relu"
    return "off_by_one"


grader_11.check_which_rule(which_rule);

# %% [markdown]
# **What we now know.** Five decisions are hidden in the softmax: sign, sum, zeros, what
# a common shift does, and what a single large score can take. Each can be made
# differently, and one experiment on a row of numbers shows which way it went. A weight
# of exactly 0 usually means that the key learns nothing.
#
# **What remains unknown.** Which rule is better. A row of ten numbers cannot say: a
# model learns other queries and keys under each rule, and can undo much of what the
# pictures show; larger keys make **linear** sharper, for example. Training both and
# comparing over several seeds is the only test we know, and at the size of a laptop it
# is a weak one. [Which claims hold](../docs/results.md) lists what was tried here, with
# intervals: with three seeds, **linear** and **relu** end above softmax's loss, and for
# the other rules tried no difference could be told from the noise. A rule that is not
# on that page has not been compared by us. None of it says what happens in a model a
# thousand times larger.
#
# **Source.** Each formula carries its paper above. For **lssar** the package follows
# published accounts of the paper and other people's code; what those leave open is
# listed in `attention/lssa.py`. In the package: `attention/rules.py` says what a rule
# is; `sparse.py`, `pointwise.py`, `lssa.py`, `cog.py`, `linear.py` and
# `differential.py` beside it hold the new ones.
