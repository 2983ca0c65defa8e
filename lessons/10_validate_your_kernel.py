# %% [markdown]
# # 10 · Is a faster implementation right?
#
# **The question.** Attention over $T$ tokens makes $T^2$ weights. A fast
# implementation, a *kernel*, never holds them all: it works through tiles. Its code is
# no longer the formula, so how do we know that it still computes it: in every corner,
# forward and backward, in 32 bits? **Time:** 50 minutes to read, 75 with the exercises.
# **You need:** lessons 00 and 01. The validation kit used here also checks kernels in
# PyTorch and JAX from the command line: [validate your kernel in five
# minutes](../docs/validate_your_kernel.md). (The letters: [notation](NOTATION.md).)
#
# ## The picture
#
# Cut the scores into tiles of 32 queries and 32 keys. Under a causal mask nearly half
# of the tiles lie in the future and need no work at all; those on the diagonal need the
# mask, and the others are whole. Now take one row of queries through its tiles from
# left to right. What must it remember? Only the largest score so far, $m$, the sum of
# the exponentials, and the weighted sum of values.

# %%
import inspect
import math
import tracemalloc

import numpy as np

from minattn import lessons, plots
from minattn.attention import softmax
from minattn.lessons import grader_10
from minattn.validate import check
from minattn.validate.causality import causality

TILE = 32
text, rng = lessons.text().text, np.random.default_rng(0)
codes = rng.standard_normal((256, 16))  # a random vector for every character
late = max(text[:224], key=text.index)  # the character that first comes last
# the scores of 224 characters: (T,)
s = 0.4 * codes[[ord(c) % 256 for c in text[:224]]] @ codes[ord(late) % 256]
start = np.arange(0, 224, TILE)
# the running maximum, and the log of the running sum of exp(s), after each tile: (7,)
m = np.maximum.accumulate(np.maximum.reduceat(s, start))
lse = np.logaddexp.accumulate(np.logaddexp.reduceat(s, start))

# %% tags=["plot"]
# Picture: on the left 7 by 7 tiles: 21 are skipped, 7 masked, 21 whole. On the right
# 224 scores as dots, and two steps that rise from tile to tile: the largest score so
# far and the log of the sum of exponentials so far.
fig, (left, right) = plots.figure(11, 4.2, ncols=2, width_ratios=(1, 1.5))
kind = np.tri(7) + np.tri(7, k=-1)  # 0 the future, 1 on the diagonal, 2 the past
left.imshow(kind, cmap="cividis", vmin=0, vmax=2)
left.grid(False)
for (i, j), n in np.ndenumerate(kind):
    left.text(j, i, ("skip", "mask", "whole")[int(n)], ha="center", va="center",
              fontsize=8, color="black" if n > 1 else "white")
left.set_xticks(range(7), start)
left.set_yticks(range(7), start)
left.set(xlabel="first key of the tile", ylabel="first query of the tile",
         title="Under a causal mask 21 of 49 tiles need no work")
right.plot(s, ".", color=plots.COLOURS[5],
           label=f"scores of one query, on real text: it looks for {late!r}")
ends = np.append(start, len(s))
right.step(ends, np.append(m, m[-1]), where="post", color=plots.COLOURS[0],
           label="$m$: the largest so far")
right.step(ends, np.append(lse, lse[-1]), "--", where="post", color=plots.COLOURS[1],
           label="log of the sum of exponentials so far")
for x in start:
    right.axvline(x - 0.5, color="gray", lw=0.6, ls=":")
right.set(xlabel="key", ylabel="score", ylim=(None, 1.6 * lse[-1]),
          title="From tile to tile a row keeps a maximum and a sum")
right.legend(frameon=False, loc="upper left");

# %% [markdown]
# ## The formula: a softmax that changes its mind
#
# Exponentials overflow unless the row's maximum is subtracted, but the maximum is known
# only at the end. So subtract the largest score *so far*, and when a larger one comes,
# rescale what was summed before. For one row let $\text{total} = \sum_j e^{s_j - m}$
# and $\text{acc} = \sum_j e^{s_j - m} v_j$ over the keys that were seen. With the
# scores of the next tile:
#
# $$ m' = \max(m, \max_j s_j), \quad
#    \text{total}' = e^{m - m'}\, \text{total} + \sum_j e^{s_j - m'}, \quad
# \text{acc}' = e^{m - m'}\, \text{acc} + \sum_j e^{s_j - m'} v_j $$
#
# (arXiv 1805.02867, algorithm 3; with values, arXiv 2205.14135, algorithm 1.) At the
# end $o = \text{acc} / \text{total}$. At the start $m = -\infty$ and the sums are 0.
# The same rule joins any two sets of keys, whoever summed them:
#
# ## Exercise 1: merge two parts
#
# Two machines have each processed some keys of the same $R$ queries. Merge what they
# found. Beware of rows for which a part, or both, has seen no key at all: there
# $m = -\infty$ and the sums are 0, and so it should stay if both are empty.

# %% tags=["exercise"]
def merge(m1, total1, acc1, m2, total2, acc2):
    """m (R, 1), total (R, 1), acc (R, Dv) of two parts -> those of both together

    m: the larger of the two
    """
    ...

grader_10.check_merge(merge);

# %% tags=["solution"]
def merge(m1, total1, acc1, m2, total2, acc2):
    m = np.maximum(m1, m2)
    safe = np.where(m == -np.inf, 0, m)  # -inf - -inf is nan, and -inf - 0 is -inf
    a, b = np.exp(m1 - safe), np.exp(m2 - safe)
    return m, a * total1 + b * total2, a * acc1 + b * acc2

grader_10.check_merge(merge);

# %% [markdown]
# ## The forward, tile by tile
#
# For $B$ texts and $H$ heads at once. `align` says where query $i$ sits when
# $T_k \ne T_q$: at key $i + T_k - T_q$ (`"end"`) or at key $i$ (`"start"`).


# %%
def scores(q, k, rows, keys, scale, causal, shift):
    """The scores of one tile, R queries and K keys: (B, H, R, K)

    -inf where the key is in the future
    """
    s = scale * (q[:, :, rows] @ k[:, :, keys].swapaxes(2, 3))  # (R, D), (D, K)
    if not causal:
        return s
    position = np.arange(q.shape[2])[rows, None] + shift    # (R, 1)  where queries sit
    visible = np.arange(k.shape[2])[keys] <= position       # (R, K)
    return np.where(visible, s, -np.inf).astype(q.dtype)


def tiles(Tq, Tk, causal, shift):
    """Pairs of slices: a block of queries and the blocks of keys that it can see."""
    for i in range(0, Tq, TILE):
        rows = slice(i, min(i + TILE, Tq))
        end = min(Tk, max(0, rows.stop + shift)) if causal else Tk
        yield rows, [slice(j, min(j + TILE, Tk)) for j in range(0, end, TILE)]

# %%
def merged(so_far, total, acc, s, v):
    """One tile more: scores s (B, H, R, K), values v (B, H, K, Dv)"""
    new = np.maximum(so_far, s.max(axis=3, keepdims=True))  # (B, H, R, 1)
    safe = np.where(new == -np.inf, 0, new).astype(s.dtype)
    e, old = np.exp(s - safe), np.exp(so_far - safe)        # (R, K), (R, 1)
    total = total * old + e.sum(axis=3, keepdims=True)
    acc = acc * old + e @ v                                 # (R, K), (K, Dv) -> (R, Dv)
    return new, total, acc

# %%
def forward(q, k, v, *, scale=None, causal=False, align="end"):
    """q (B, H, Tq, D), k (B, H, Tk, D), v (B, H, Tk, Dv) -> out, cache"""
    (B, H, Tq, D), (Tk, Dv) = q.shape, v.shape[2:]
    scale = D ** -0.5 if scale is None else scale
    shift = Tk - Tq if align == "end" else 0
    out = np.empty((B, H, Tq, Dv), q.dtype)
    m, log_total = np.empty((2, B, H, Tq, 1), q.dtype)
    for rows, blocks in tiles(Tq, Tk, causal, shift):
        so_far = np.full((B, H, rows.stop - rows.start, 1), -np.inf, q.dtype)
        total, acc = np.zeros_like(so_far), np.zeros_like(out[:, :, rows])
        for keys in blocks:
            s = scores(q, k, rows, keys, scale, causal, shift)
            so_far, total, acc = merged(so_far, total, acc, s, v[:, :, keys])
        total[total == 0] = 1                           # a row that sees nothing: 0 / 1
        out[:, :, rows] = acc / total
        m[:, :, rows] = np.where(so_far == -np.inf, 0, so_far)
        log_total[:, :, rows] = np.log(total)
    return out, (q, k, v, out, m, log_total, scale, causal, shift)


# %% [markdown]
# ## The backward, from the log of the sum
#
# The weights are gone. But one number per row brings any tile of them back: the
# *log-sum-exp*, $\text{lse}_i = m_i + \ln \text{total}_i$, because
# $P_{ij} = e^{s_{ij}} / e^{\text{lse}_i}$. And the mean that the softmax subtracts from
# $dP$ (lesson 01) needs no weights:
#
# $$ P_{ij} = e^{s_{ij} - \text{lse}_i}, \qquad \delta_i = do_i \cdot o_i, \qquad
#    ds_{ij} = P_{ij}\, (do_i \cdot v_j - \delta_i) $$
#
# (arXiv 2307.08691, algorithm 2.) Each tile adds its part to $dq$, $dk$ and $dv$.
#
# ## Exercise 2: one tile backward
#
# Write the part of one tile. A row that sees no key at all has lse $= -\infty$, and all
# its weights are 0. (Our `forward` keeps $m = \ln \text{total} = 0$ for such a row:
# $e^{-\infty - 0} = 0$ needs no special case.)

# %% tags=["exercise"]
def tile_backward(dout, q, k, v, lse, delta, visible, scale):
    """One tile: dout (R, Dv), q (R, D), k (K, D), v (K, Dv), lse (R, 1), delta (R, 1)

    visible (R, K) of bool, scale a number
    -> the part of this tile in dq (R, D), dk (K, D), dv (K, Dv)
    """
    ...

grader_10.check_tile_backward(tile_backward);

# %% tags=["solution"]
def tile_backward(dout, q, k, v, lse, delta, visible, scale):
    P = np.exp(scale * (q @ k.T) - lse)
    P = np.where(visible, P, 0)  # hidden and empty rows: whatever it was, 0
    ds = scale * P * (dout @ v.T - delta)
    return ds @ k, ds.T @ q, P.T @ dout

grader_10.check_tile_backward(tile_backward);


# %%
def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v"}"""
    q, k, v, out, m, log_total, scale, causal, shift = cache
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    lse = m + log_total                              # (B, H, Tq, 1)
    delta = (dout * out).sum(axis=3, keepdims=True)  # (B, H, Tq, 1)
    for rows, blocks in tiles(q.shape[2], k.shape[2], causal, shift):
        for keys in blocks:
            s = scores(q, k, rows, keys, scale, causal, shift)
            P = np.exp(s - lse[:, :, rows])                         # (R, K)
            dv[:, :, keys] += P.swapaxes(2, 3) @ dout[:, :, rows]   # (K, R), (R, Dv)
            dP = dout[:, :, rows] @ v[:, :, keys].swapaxes(2, 3)    # (R, Dv), (Dv, K)
            ds = scale * P * (dP - delta[:, :, rows])
            dq[:, :, rows] += ds @ k[:, :, keys]                    # (R, K), (K, D)
            dk[:, :, keys] += ds.swapaxes(2, 3) @ q[:, :, rows]     # (K, R), (R, D)
    return {"q": dq, "k": dk, "v": dv}


q, k, v, dout = rng.standard_normal((4, 1, 2, 100, 16))
out, cache = forward(q, k, v, causal=True)
right, theirs = softmax.forward(q, k, v, causal=True)
print(f"out: largest difference from minattn {np.abs(out - right).max():.0e}")

# %%
grads, expected = backward(dout, cache), softmax.backward(dout, theirs)
print({name: f"{np.abs(grads[name] - expected[name]).max():.0e}" for name in grads})

# %% [markdown]
# Agreement to the last digits, over tiles, with gradients. Most people stop here. Let
# us ask the kit: it runs the kernel through every *family* of cases, each a corner in
# which some attention has gone wrong, in float32, with random cotangents. Our kernel
# knows no windows, prefixes, padding or biases, so those are excluded, and with them
# `large` sizes, to save time: "not covered" is not "passed".

# %% tags=["varies"]
CANNOT = ("window", "prefix", "allowed", "bias", "large")
report = check("softmax", (forward, backward), exclude=CANNOT)

# %% [markdown]
# ## Reading the report
#
# A line is a family; the tensor named is the one that came nearest to its bound
# (`ratio` is error / bound), and `RMS` is the size of all its errors relative to the
# size of the truth. What is the bound? Truth is computed in float64, and a plain
# literal implementation in *your* precision, every operation rounded, says what
# rounding alone must cost. With eps for the distance from 1 to the next number
# ($1.2 \cdot 10^{-7}$ in float32), the bound is
#
# $$ \text{error} \le
#    2\,(\text{error of plain arithmetic} + \text{eps} \cdot \max |\text{truth}|) $$
#
# The kernel is **wrong** in one case, which nobody tries by hand: all visible scores of
# a row equal, near $-1.7 \cdot 10^{10}$. Then $\text{lse} = m + \ln \text{total}$, and
# numbers of that size lie more than 1000 apart in float32: $\ln \text{total}$ is lost.
# The weights of $n$ equal keys come back as 1 each, instead of $1/n$. The formula of
# the backward is right; the *number of digits* it passes through is not.

# %%
x, n = np.float32(-2.0**34), np.float32(5)  # a row's maximum, the number of its keys
print("one number, exp(s - (m + ln total)):", np.exp(x - (x + np.log(n))))
print("two numbers, exp(s - m - ln total): ", np.exp(x - x - np.log(n)))

# %% [markdown]
# This is not ours alone: kernels that keep one number per row in float32 share it, as
# [other people's kernels](../docs/third_party_kernels.md) shows. Whether such scores
# matter to you is your decision, but now you know. The cure is to keep both numbers and
# subtract the large one first. A function that changes one line of our source lets us
# try it, and will serve again in a moment:


# %%
def changed(*pairs):
    """(forward, backward) of this lesson with (old, new) pieces of source exchanged."""
    source = "\n".join(inspect.getsource(f)
                       for f in (scores, tiles, merged, forward, backward))
    for old, new in pairs:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    names = dict(globals())
    exec(source, names)
    return names["forward"], names["backward"]


CURE = ("np.exp(s - lse[:, :, rows])",
        "np.exp(s - m[:, :, rows] - log_total[:, :, rows])")
report = check("softmax", changed(CURE), exclude=CANNOT, show=False)
print("all good:", report.ok, "|", report.count("passed"), "passed,",
      len(report.failed), "failed")

# %% [markdown]
# ## Plant bugs
#
# A report that says "all good" is worth something only if it says otherwise when
# something is wrong. So we break the cured kernel on purpose, one line at a time, in
# ten ways. Several of these have been seen in released software
# (`python -m minattn validate-self --list` says where), and most leave every ordinary
# small example right.

# %%
CALL = "            s = scores(q, k, rows, keys, scale, causal, shift)\n            P"

# %%
BUGS = {
    "nothing": None,
    "acc not rescaled to the new maximum":
        ("acc = acc * old + e @ v", "acc = acc + e @ v"),
    "maximum starts at -1e4": ("1), -np.inf, q.dtype)", "1), -1e4, q.dtype)"),
    "hidden with -1e4, not -inf": ("(visible, s, -np.inf)", "(visible, s, -1e4)"),
    "no guard for empty rows":
        ("safe = np.where(new == -np.inf, 0, new)", "safe = new"),
    "last, shorter tile of keys dropped":
        ("for j in range(0, end, TILE)]",
         "for j in range(0, end - end % TILE or end, TILE)]"),
    "query i always sits at key i":
        ('shift = Tk - Tq if align == "end" else 0', "shift = 0"),
    "weights times values in float16":
        ("acc * old + e @ v",
         "acc * old + (e.astype('f2') @ v.astype('f2')).astype(e.dtype)"),
    "dk overwritten by each tile": ("dk[:, :, keys] += ds", "dk[:, :, keys] = ds"),
    "rowsum(out) for rowsum(dout out)": ("(dout * out).sum", "out.sum"),
    "mask forgotten in the backward": (CALL, CALL.replace("causal", "False")),
}

# %%
def report_of(bug):
    """What the kit says of the cured kernel with one of the bugs"""
    change = [] if bug == "nothing" else [BUGS[bug]]
    return check("softmax", changed(CURE, *change), exclude=CANNOT, show=False)


def verdicts(bug, family):
    """How the cases of a family went: passed, failed, ..."""
    return [result.status for result in reports[bug].families()[family]]


reports = {bug: report_of(bug) for bug in BUGS}
families = [family for family in reports["nothing"].families()
            if "passed" in verdicts("nothing", family)]
found = np.array([["failed" in verdicts(bug, family) for family in families]
                  for bug in BUGS])

# %% tags=["plot"]
# Picture: a table of bugs by families of cases; bright cells: this family finds this
# bug. The row of the right kernel is dark; most bugs have one to three bright cells.
fig, ax = plots.figure(10.5, 4.6)
ax.pcolormesh(found, cmap="cividis", edgecolors="white", lw=1)
ax.grid(False)
ax.set_xticks(np.arange(len(families)) + 0.5, families, rotation=45, ha="right")
ax.set_yticks(np.arange(len(BUGS)) + 0.5,
              [f"{bug}  ({n})" for bug, n in zip(BUGS, found.sum(axis=1))])
ax.invert_yaxis()
ax.set(xlabel="family of cases", ylabel="what is wrong (families that find it)",
       title="No family finds every bug (bright: found)");

# %% [markdown]
# Read it by columns: no family finds all of them. `combinations`, where every two
# settings of sizes and options meet, finds nine of ten, and it alone meets rows that
# see nothing. The other families are aimed at one thing each, so they say where to
# look: `long` and `many_small_terms` see what happens *between* tiles, `tq_ne_tk` tells
# where queries sit, and scores far from 0 reveal a finite number in place of $-\infty$.
# By rows: three bugs fall to almost any test, and each of the others to one, two or
# three families only. Here is what the report says of one of them:

# %%
for line in str(reports["dk overwritten by each tile"]).splitlines():
    if "WRONG" in line or "is off" in line:
        print(line)

# %% [markdown]
# What is *not* listed tells you the line: `out`, `dq` and `dv` are right, so weights,
# $\delta$ and $ds$ are; `dk` alone is off, and only where there is more than one block
# of queries.
#
# How near to its bound does a kernel come? If bounds were generous, half precision
# could hide behind them.

# %% tags=["plot"]
# Picture: error divided by bound for each family, logarithmic. The right kernel lies
# below 1 everywhere; products in float16 lie above 100 but for two families.
fig, ax = plots.figure(8.6, 3.8)
for bug, label, marker, n in (
        ("nothing", "float32, cured", "o", 0),
        ("weights times values in float16", "products in float16", "s", 1)):
    worst = []
    for family in families:
        ratios = [tensor.ratio for result in reports[bug].families()[family]
                  for tensor in result.tensors]
        worst.append(max(ratios, default=np.nan))
    ax.semilogy(np.arange(len(families)), np.maximum(worst, 1e-2), marker, label=label,
                color=plots.COLOURS[n])
ax.axhline(1, color="gray", ls="--", lw=1)
ax.text(len(families) - 0.6, 1.3, "bound", color="gray", ha="right")
ax.set_xticks(range(len(families)), families, rotation=45, ha="right")
ax.set(ylabel="error / bound, worst tensor",
       title="The right kernel stays inside the bound, half precision does not")
ax.legend(frameon=False);

# %% [markdown]
# Two families cannot tell: with one token, or with equal ones, half precision loses
# nothing, as the numbers of the cases have 8 bits each.
#
# ## Bugs from the wild
#
# These are not invented. Each of the following was in released software, and the kit
# keeps it as a wrong implementation that it must find:
#
# - triton #4541: the backward computes the weights again *without* the mask;
# - pytorch #108108 and onnx #7297: with more keys than queries, the causal mask starts
#   at the first key instead of ending at the last;
# - flash-attention #443 and pytorch #41508: a row that sees nothing is guarded in the
#   forward, and gives nan in the backward;
# - flash-attention #1973: the learned sink gets a gradient of zeros;
# - minGPT #75 and transformers #17121: hidden scores are $-10^4$, not $-\infty$;
# - keras #23038: where $D$ is no multiple of 8, a slower path runs without any mask.
#
# The numbers are those of the issues in the projects' repositories.
# `minattn validate-self --list` prints all of the kit's bugs.
#
# ## Causality, without any truth to compare with
#
# A mask can be wrong in ways that no comparison reveals. The *certificate* needs the
# kernel alone: (1) change the future: does the past stay, bit for bit? (2) does the
# gradient of an early output reach later inputs? (3) does a prefix alone give the same
# as within a longer text? (Form 4, the loss of a trained model, is in lesson 07.)

# %%
kernels = {"cured": [],
           "hidden with -1e4, not -inf": [BUGS["hidden with -1e4, not -inf"]],
           "mask forgotten in the backward": [BUGS["mask forgotten in the backward"]],
           "scale times log(number of keys)":
               [("scale = D ** -0.5 if scale is None else scale",
                 "scale = D ** -0.5 * math.log(Tk + 1)")]}
print(f"{'':34}{'suffix':>10}{'gradient':>10}{'prefix':>10}")
for name, change in kernels.items():
    forms = causality(changed(CURE, *change), mechanism="softmax").forms
    print(f"{name:34}{forms['suffix']:>10}{forms['gradient']:>10}{forms['prefix']:>10}")

# %% [markdown]
# Each form finds what the others miss. The last kernel never looks at a later token;
# yet what it says about a prefix depends on how *long* the whole text is: a model
# trained on whole texts would get a different attention when it writes token by token.
#
# ## Exercise 3: find ten bugs
#
# Write a function that is handed an implementation, `forward` and `backward` as ours,
# and says whether something is wrong. It is tried on two right ones and ten wrong ones,
# which take all options of the package's `softmax`. Use what you like: `softmax` as the
# truth, or the kit (its `conventions="ours"` demands 0 in rows that see nothing).

# %% tags=["exercise"]
def is_wrong(forward, backward):
    """Is one of these wrong? -> bool

    forward(q, k, v, scale=, causal=, align=, ...) -> out, cache
    backward(dout, cache) -> {"q", "k", "v"}
    """
    ...

grader_10.check_is_wrong(is_wrong);

# %% tags=["solution"]
def is_wrong(forward, backward):
    return not check("softmax", (forward, backward), quick=True, show=False,
                     exclude=["combinations"],        # they take longest
                     conventions="ours").ok           # rows that see nothing must be 0

grader_10.check_is_wrong(is_wrong);

# %% [markdown]
# ## On real text: what was gained
#
# The first characters of the text, a random vector for each: first that the cured
# kernel and the package agree, then the memory that forward and backward take beyond
# their inputs, compared with lesson 01's way, all weights at once.


# %%
def dense(q, k, v, dout):
    root = np.float32(math.sqrt(q.shape[3]))
    s = q @ k.swapaxes(2, 3) / root                                  # (B, H, T, T)
    s = np.where(np.tri(q.shape[2], dtype=bool), s, np.float32(-np.inf))
    P = np.exp(s - s.max(axis=3, keepdims=True))                     # (B, H, T, T)
    P /= P.sum(axis=3, keepdims=True)
    delta = (dout * (P @ v)).sum(axis=3, keepdims=True)              # (B, H, T, 1)
    ds = P * (dout @ v.swapaxes(2, 3) - delta) / root
    return ds @ k, ds.swapaxes(2, 3) @ q, P.swapaxes(2, 3) @ dout


def tiled(q, k, v, dout):
    grads = cured[1](dout, cured[0](q, k, v, causal=True)[1])
    return tuple(grads[name] for name in "qkv")


cured = changed(CURE)
lengths = (128, 256, 512, 1024, 2048)
peak = {"all weights at once": [], "tiles of 32 x 32": []}

# %%
for T in lengths:
    x = codes[[ord(c) % 256 for c in text[:T]]].astype(np.float32)   # (T, 16)
    x = x[None, None]
    dout = rng.standard_normal(x.shape, np.float32)
    results = []
    for name, function in zip(peak, (dense, tiled)):
        tracemalloc.start()
        results.append(function(x, x, x, dout))
        peak[name].append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
_, cache = softmax.forward(*[x.astype(float)] * 3, causal=True)
grads = softmax.backward(dout.astype(float), cache)
for name, result in zip(peak, results):
    far = max(np.abs(a - b).max() / np.abs(b).max()
              for a, b in zip(result, (grads[name] for name in "qkv")))
    print(f"{name}: off by {far:.0e} of the largest, at T = {T}")

# %% tags=["plot"]
# Picture: memory against the length of the text, both logarithmic. All weights at once:
# from 0.3 to 67 MB, a steep line; tiles: from 0.08 to 0.7 MB.
fig, ax = plots.figure(6.4, 3.8)
for (name, megabytes), n, style in zip(peak.items(), (1, 0), ("s--", "o-")):
    ax.loglog(lengths, megabytes, style, ms=4, label=name, color=plots.COLOURS[n])
ax.set_xticks(lengths, [str(T) for T in lengths])
ax.minorticks_off()
ax.set(xlabel="characters of the text, $T$", ylabel="MB beyond the inputs",
       title="All weights at once take $T^2$ memory, tiles take $T$")
ax.legend(frameon=False);

# %% [markdown]
# Twice the text takes four times the memory with all weights at once, and in the end
# about twice with tiles.
#
# **What we now know.** A softmax can be summed in any number of parts, each with the
# maximum it knows, and its backward needs two numbers per row. Agreement on ordinary
# inputs proves little: our first version was right to the last digit there, and wrong
# in a corner. A check is as good as the bugs it has been seen to find; a tolerance has
# to come from the rounding of the same arithmetic, and causality can be tested
# separately.
#
# **What remains unknown.** Which corners nobody has thought of: the kit's own list of
# wrong implementations, and which family finds which, is in
# [mutation_score.md](../docs/mutation_score.md). Speed is another question:
# [where the time goes](../docs/where_the_time_goes.md).
#
# **Source.** Milakov and Gimelshein, arXiv 1805.02867, algorithm 3 (the online sum);
# Dao et al., arXiv 2205.14135, algorithm 1 (tiles); Dao, arXiv 2307.08691, algorithm 2
# (the backward from the log-sum-exp). The bound has the form that attention-gym's tests
# use; the cases are this project's.
