# %% [markdown]
# # 18 · Is this gradient right?
#
# **The question.** A gradient was derived on paper and typed in. How do we know that it
# is right, and would the training not tell us? **Time:** 20 minutes to read, 45 with
# the exercises. **You need:** lesson 01 (attention and its gradient). (The letters:
# [notation](NOTATION.md).)

# %%
import numpy as np

from minattn import data, lessons, plots
from minattn.lessons import grader_18
from minattn.validate.gradients import directional


def weights(s):
    P = np.exp(s - s.max(axis=1, keepdims=True))
    return P / P.sum(axis=1, keepdims=True)


def attention(q, k, v, visible):
    """Lesson 01: q (Tq, D), k (Tk, D), v (Tk, Dv) -> out (Tq, Dv), P (Tq, Tk)"""
    P = weights(np.where(visible, q @ k.T / np.sqrt(q.shape[1]), -np.inf))
    return P @ v, P


def backward(dout, q, k, v, P):
    """And its gradient: dout (Tq, Dv) -> dq, dk, dv"""
    root, dP = np.sqrt(q.shape[1]), dout @ v.T
    ds = P * (dP - (P * dP).sum(axis=1, keepdims=True))
    return ds @ k / root, ds.T @ q / root, P.T @ dout

# %% [markdown]
# ## The picture: a slope can be measured
#
# Two programs that agree may share a mistake. But a derivative can be *measured*,
# without any calculus: take a step and see how far the loss moves. Here is a loss along
# a line through the keys, and the slope that our gradient claims for it.

# %%
rng = np.random.default_rng(1)
T, visible = 7, np.tri(7, dtype=bool)
# D = 5, Dv = 3
q, k, v, dout = (rng.standard_normal((T, n)) for n in (5, 5, 3, 3))
out, P = attention(q, k, v, visible)
ours = backward(dout, q, k, v, P)
u = rng.standard_normal(k.shape)       # the direction in which the keys move


def loss(h):
    """The loss after a step h of the keys along u"""
    return np.sum(dout * attention(q, k + h * u, v, visible)[0])


claimed = np.sum(ours[1] * u)
far = np.linspace(-1, 1, 81)

# %% tags=["plot"]
# Picture: a curve, the loss against the length of the step, and a straight dashed line
# that touches it at 0: the slope that the gradient claims.
fig, ax = plots.figure(6.2, 3.4)
ax.plot(far, [loss(h) for h in far], label="loss, measured")
ax.plot(far, loss(0) + claimed * far, "--", color=plots.COLOURS[1],
        label="the slope that our gradient claims")
ax.plot(0, loss(0), "ko", ms=4)
ax.set(xlabel="step $h$ of the keys along $u$", ylabel="loss $L$",
       title="The gradient claims a tangent, and it fits")
ax.legend(frameon=False);

# %% [markdown]
# ## The formula
#
# Let $L = \sum_{ij} do_{ij}\, o_{ij}$ with a fixed $do$ (then
# $\partial L / \partial o = do$), choose a direction $u$ in which to move an input $x$,
# and compare the slope that our gradient claims with the slope that two nearby values
# show:
#
# $$ \underbrace{\textstyle\sum dx \cdot u}_{\text{claimed}}
#    \approx \frac{L(x + h u) - L(x - h u)}{2 h} $$
#
# A random $u$ tests all entries of $dx$ at once: an error in any of them shows, unless
# errors happen to cancel.
#
# ## Exercise 1: measure a slope

# %% tags=["exercise"]
def slope(f, x, u, h):
    """The slope of f at x along u, as a number.

    f: array -> number; x and u of one shape; h: a small step
    """
    ...

grader_18.check_slope(slope);

# %% tags=["solution"]
def slope(f, x, u, h):
    return (f(x + h * u) - f(x - h * u)) / (2 * h)

grader_18.check_slope(slope);

# %% [markdown]
# How small should $h$ be? The Taylor series of $L$ says that this difference is off by
# a multiple of $h^2$. Four values can cancel that term too and leave $h^4$: with
# $\Delta(h) = L(x + hu) - L(x - hu)$, the slope is about
# $(8 \Delta(h) - \Delta(2h)) / (12 h)$: four thirds of the estimate with $h$ minus one
# third of that with $2h$. But $L$ is known to 16 digits only, and a rounding of
# $10^{-16}$ divided by $h$ grows as $h$ shrinks.

# %%
def difference(h):
    return loss(h) - loss(-h)


steps = np.geomspace(1e-9, 1, 46)
two = np.array([difference(h) / (2 * h) for h in steps])
four = np.array([(8 * difference(h) - difference(2 * h)) / (12 * h) for h in steps])

# %% tags=["plot"]
# Picture: relative error of the measured slope against the step, both logarithmic. Two
# V-shaped curves: rounding on the left, curvature on the right. With four values the
# lowest point is lower and lies at a larger step than with two.
fig, ax = plots.figure(6.4, 3.8)
for measured, label, style in ((two, "two values, error $h^2$", "o-"),
                               (four, "four values, error $h^4$", "^--")):
    error = np.maximum(np.abs(measured - claimed) / abs(claimed), 1e-16)
    ax.loglog(steps, error, style, ms=4, lw=1, label=label)
ax.axvline(1e-3, color="gray", ls="--", lw=1)
ax.text(2e-3, 1e-13, "the package's step", color="gray")
ax.set(xlabel="step $h$", ylabel="relative error of the slope of $dk$",
       title="The best step lies between rounding and curvature")
ax.legend(frameon=False);

# %% [markdown]
# At its best the measurement agrees to ten digits or more. No wrong formula does that
# by luck. The package has this as a function, which its tests call for every gradient
# of every mechanism:

# %%
def f(q, k, v):
    return attention(q, k, v, visible)[0]


arrays = {"q": q, "k": k, "v": v}
for line in directional(f, arrays, dict(zip("qkv", ours)), dout):
    print(f"d{line.argument}: claimed {line.written:+.9f}  "
          f"measured {line.measured:+.9f}  relative error {line.error:.0e}")

# %% [markdown]
# ## Why a cotangent of ones hides bugs
#
# It is tempting to test with $L = \sum o$, that is, $do = 1$ everywhere
# (`out.sum().backward()`, as one often sees). Take the softmax alone, with $dP = 1$
# everywhere: the rows of $P$ sum to 1 whatever the scores are, so $ds = 0$, and a
# backward that returns zeros, or has any wrong factor or sign, passes. For attention as
# a whole, here are six wrong versions, each measured with both cotangents. A bug that
# only mixes up *which* entry of $do$ goes where, or forgets a factor $do$, cannot be
# seen if they are all 1.

# %%
def backward_with(mean, dout, q, k, v, P, transposed=True):
    """backward with another mean in ds, or without the transpose in dk"""
    root = np.sqrt(q.shape[1])
    ds = P * (dout @ v.T - mean)
    return ds @ k / root, (ds.T if transposed else ds) @ q / root, P.T @ dout


def rows_reversed(dout, q, k, v, P):
    return backward(dout[::-1], q, k, v, P)


def channels_reversed(dout, q, k, v, P):
    return backward(dout[:, ::-1], q, k, v, P)


def column_sums(dout, q, k, v, P):
    dq, dk, dv = backward(dout, q, k, v, P)
    return dq, dk, np.repeat(P.sum(axis=0)[:, None], v.shape[1], axis=1)

# %%
def rowsum_of_out(dout, q, k, v, P):
    mean = (P @ v).sum(axis=1, keepdims=True)
    return backward_with(mean, dout, q, k, v, P)


def without_mean(dout, q, k, v, P):
    return backward_with(0, dout, q, k, v, P)


def not_transposed(dout, q, k, v, P):
    mean = (P * (dout @ v.T)).sum(axis=1, keepdims=True)
    return backward_with(mean, dout, q, k, v, P, transposed=False)


BUGS = {"none: right": backward, "dout's rows in the wrong order": rows_reversed,
        "dout's channels reversed": channels_reversed,
        "dv = column sums of P": column_sums,
        "rowsum(out) for rowsum(dout out)": rowsum_of_out,
        "mean dropped from ds": without_mean,
        "dk without the transpose": not_transposed}

# %%
ones, found = np.ones_like(P), {}
of_ones = P * (ones - (P * ones).sum(axis=1, keepdims=True))
print(f"softmax alone, dP = 1: largest |ds| {np.abs(of_ones).max():.0e}")
for kind, cotangent in (("ones", np.ones_like(dout)), ("random", dout)):
    found[kind] = []
    for wrong in BUGS.values():
        gradients = dict(zip("qkv", wrong(cotangent, q, k, v, P)))
        lines = directional(f, arrays, gradients, cotangent)
        found[kind].append(max(line.error for line in lines))

# %% tags=["plot"]
# Picture: for six wrong gradients and the right one, the relative error that a
# measurement finds, once with a cotangent of ones and once with a random one. With
# ones, four of the six wrong gradients look right; with random numbers none does.
fig, ax = plots.figure(8.6, 3.6)
for n, (kind, marker) in enumerate((("ones", "s"), ("random", "o"))):
    ax.semilogx(found[kind], np.arange(len(BUGS)) + 0.12 - 0.24 * n, marker,
                color=plots.COLOURS[1 - n], label=f"cotangent: {kind}")
ax.axvline(1e-7, color="gray", ls="--", lw=1)
ax.text(1.5e-7, 0, "found if to the right of this", color="gray", va="center")
ax.set_yticks(range(len(BUGS)), BUGS)
ax.invert_yaxis()
ax.set(xlabel="largest relative error of dq, dk, dv along a random direction",
       title="Four of six bugs hide behind ones")
ax.legend(frameon=False, fontsize=9, loc="center", bbox_to_anchor=(0.3, 0.5))
print("caught:", {kind: f"{sum(e > 1e-7 for e in errors[1:])} of {len(BUGS) - 1}"
                  for kind, errors in found.items()})

# %% [markdown]
# ## Exercise 2: a judge
#
# Write a test for any layer. It must accept every right gradient and reject all bugs
# like those above: choose the cotangent well.


# %% tags=["exercise"]
def gradient_is_right(forward, backward, x):
    """forward: x -> out; backward: (dout, x) -> dx; arrays of any shape

    -> True if backward is the gradient of forward at x, else False
    """
    ...


grader_18.check_gradient_is_right(gradient_is_right);


# %% tags=["solution"]
def gradient_is_right(forward, backward, x):
    rng, h = np.random.default_rng(0), 1e-5
    dout, u = rng.standard_normal(forward(x).shape), rng.standard_normal(x.shape)
    claimed = np.sum(backward(dout, x) * u)
    measured = np.sum(dout * (forward(x + h * u) - forward(x - h * u))) / (2 * h)
    return bool(abs(claimed - measured) <= 1e-6 * max(1, abs(measured)))


grader_18.check_gradient_is_right(gradient_is_right);

# %% [markdown]
# ## On real text: does the loss notice?
#
# Now let attention learn. Each of the text's $V$ different characters gets a row in
# three tables: a query and a key of 16 numbers, and a value of $V$ numbers. We read the
# output $o_i$, $V$ numbers, as one score for each possible *next* character, and turn
# it into probabilities $p$ by one more softmax. The loss is the mean of $-\ln p_y$,
# where $y$ is the character that really came (in *nats*; guessing evenly costs
# $\ln V$). Its gradient is that of a softmax (lesson 01): $dp_c$ is $-1/p_y$ at $c = y$
# and 0 elsewhere, so $do_c = p_c\,(dp_c + 1) = p_c - [c = y]$: the probabilities, with
# 1 subtracted at the right one.
#
# Learning means: subtract `rate` times the gradient from each table. We do it with our
# backward and with three others: one forgets `dq`, one forgets to divide by $\sqrt D$,
# one never moves queries and keys.

# %%
text, T = lessons.text().text, 32
vocabulary = data.Vocabulary(text)
ids, V = vocabulary.encode(text), len(vocabulary)  # every character as a number below V

# %%
def train(backward, steps=300, rate=30.0):
    """-> the loss of every step, and the tables of queries, keys and values"""
    rng, losses = np.random.default_rng(0), []
    tables = [0.5 * rng.standard_normal((V, 16)), 0.5 * rng.standard_normal((V, 16)),
              0.1 * rng.standard_normal((V, V))]
    for step in range(steps):
        moves, loss = [np.zeros_like(table) for table in tables], 0.0
        texts, nexts = data.batch(ids, 16, T, seed=0, step=step)    # (16, T), (16, T)
        for x, y in zip(texts, nexts):
            q, k, v = (table[x] for table in tables)  # (T, 16), (T, 16), (T, V)
            out, P = attention(q, k, v, np.tri(T, dtype=bool))
            p = weights(out)                          # (T, V)
            loss -= np.log(p[np.arange(T), y]).sum()
            p[np.arange(T), y] -= 1                   # now it is dout
            for move, gradient in zip(moves, backward(p, q, k, v, P)):
                np.add.at(move, x, gradient)       # a character may occur twice: add up
        tables = [table - rate * move / texts.size
                  for table, move in zip(tables, moves)]
        losses.append(loss / texts.size)
    return np.array(losses), tables

# %%
def without_dq(dout, q, k, v, P):
    dq, dk, dv = backward(dout, q, k, v, P)
    return 0 * dq, dk, dv

def undivided(dout, q, k, v, P):
    dq, dk, dv = backward(dout, q, k, v, P)
    root = np.sqrt(q.shape[1])
    return root * dq, root * dk, dv

def values_only(dout, q, k, v, P):
    return 0 * q, 0 * k, P.T @ dout


results = {"right": train(backward),
           "dq forgotten": train(without_dq),
           "division by $\\sqrt{D}$ forgotten": train(undivided),
           "values only": train(values_only)}
_, (wq, wk, _) = results["right"]
line = "to be, or not to be: that is"
x = vocabulary.encode("".join(c for c in line if c in vocabulary.characters))
_, P = attention(wq[x], wk[x], np.zeros((len(x), 1)), np.tri(len(x), dtype=bool))

# %% tags=["plot"]
# Picture: on the left four falling loss curves. Those of the right gradient and of two
# wrong ones end close together; with the values alone the loss stays higher. On the
# right the learned weights on a line of text:
# bright cells where a character meets its own kind.
fig, (left, right) = plots.figure(11.4, 5.2, ncols=2)
for (name, (losses, _)), style in zip(results.items(), ("-", "--", "-.", ":")):
    smooth = np.convolve(losses, np.ones(25) / 25, "valid")
    left.plot(np.arange(25, len(losses) + 1), smooth, style,
              label=f"{name}: {smooth[-1]:.2f} at the end")
left.axhline(np.log(V), color="gray", ls="--", lw=1, label=f"guessing evenly: ln {V}")
left.set(xlabel="step", ylabel="loss (nats per character), mean of 25 steps",
         title="Wrong gradients learn too, and one ends lowest")
left.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.95))
letters = list(vocabulary.decode(x).replace(" ", "␣"))
P[~np.tri(len(x), dtype=bool)] = np.nan              # the future stays white
image = right.imshow(P, cmap="cividis", vmin=0, vmax=1)
right.grid(False)
right.set_xticks(range(len(x)), letters, fontsize=8)
right.set_yticks(range(len(x)), letters, fontsize=8)
right.set(xlabel="key: looked at", ylabel="query: looks",
          title="Learned: look for your own character")
fig.colorbar(image, label="weight", shrink=0.85);

# %% [markdown]
# Every curve falls. With `dq` forgotten, the queries stay random and only the keys
# learn, yet the loss ends within 0.1 of the right one's. Had you seen just that curve,
# would you have suspected it? A falling loss proves that *something* is learned, not
# that the gradient is right.
#
# A wrong gradient can even end lower. Without the division by $\sqrt D = 4$, queries
# and keys move four times as far in each step. That is no better gradient: it is the
# right one with a larger rate for two of the three tables. Only a measurement tells a
# right gradient from a lucky one.
#
# On the right, most queries have learned to look at their own character: what comes
# next depends on it most. Where it occurs several times, all its places get the same
# weight, because nothing tells the query which of them is nearer.
#
# **What we now know.** A gradient can be measured to ten digits, in a random direction,
# by two or four values of the loss. A cotangent of ones hides bugs that a random one
# shows. A loss that falls shows neither that the gradient is right nor that it is
# wrong.
#
# **What remains unknown.** The attention that we trained cannot tell near from far
# (lesson 03). How a *whole model* is judged in this way: lesson 02. How to be sure of a
# faster attention, where rounding differs: [lesson 10](10_validate_your_kernel.ipynb).
#
# **Source.** Central differences are older than computers. In the package:
# `validate/gradients.py`.
