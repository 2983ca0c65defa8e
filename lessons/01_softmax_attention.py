# %% [markdown]
# # 01 · Softmax attention and its gradient
#
# **The question.** Attention becomes useful when its queries, keys and values are
# *learned*. Learning means: change every number a little, in the direction that makes a
# loss smaller. Which direction is that? **Time:** 25 minutes to read, 55 with the
# exercises. **You need:** lesson 00, matrix products, the derivative of $e^x$ and the
# chain rule. (The letters: [notation](NOTATION.md).)
#
# ## The picture: raise one score
#
# Each query is compared with every key, which gives one score per key; the softmax
# turns the scores of a row into weights that sum to 1. So weights *compete*: raise one
# score and its weight grows, and every other weight must shrink. Here are the weights
# of the last character of a short text, before and after one score is raised by 1.

# %%
import numpy as np

from minattn import plots
from minattn.attention import softmax
from minattn.lessons import grader_01, pictures


def weights(s):
    """s (Tq, Tk) -> P (Tq, Tk): rows positive, each with sum 1. Tq queries, Tk keys."""
    P = np.exp(s - s.max(axis=1, keepdims=True))  # minus the row's maximum: no overflow
    return P / P.sum(axis=1, keepdims=True)

word = "to be or not to be"
characters = np.random.default_rng(3).standard_normal((256, 6))
codes = characters[[ord(c) for c in word]]  # (T, 6)  a vector for every character
s = codes[-1:] @ codes.T / np.sqrt(6)                # (1, T)  the last row of scores
raised = s + np.eye(len(word))[9]              # (1, T)  the score of the only n, plus 1
before, after = weights(s)[0], weights(raised)[0]    # (T,), (T,)
slopes = np.diag(before) - np.outer(before, before)  # (T, T)  explained below

# %% tags=["plot"]
# Picture: on the left pairs of bars, the weights of 18 keys before and after one score
# is raised: one bar grows, all others shrink a little. On the right a square of slopes,
# red on the diagonal and pale blue elsewhere.
fig, (left, right) = plots.figure(11, 4.0, ncols=2, width_ratios=(1.35, 1))
place = np.arange(len(word))
left.bar(place - 0.2, before, 0.4, label="before", color=plots.COLOURS[5])
left.bar(place + 0.2, after, 0.4, label="after: one score raised by 1",
         color=plots.COLOURS[1])
letters = list(word.replace(" ", "␣"))
left.set_xticks(place, letters)
left.set(xlabel="key", ylabel="weight", title="One weight grows, all others shrink",
         ylim=(0, 0.16))
left.legend(frameon=False, loc="upper center")
most = -2 * slopes.min()             # a scale for what shrinks; the diagonal exceeds it
image = right.imshow(slopes, cmap="RdBu_r", vmin=-most, vmax=most)
right.grid(False)
right.set_xticks(place, letters)
right.set_yticks(place, letters)
right.set(xlabel="score that is raised", ylabel="weight that answers",
          title="Only its own score raises a weight")
fig.colorbar(image, label="slope: weight per unit of score", shrink=0.85, extend="max");

# %% [markdown]
# The right picture shows every such response at once: $\partial P_j / \partial s_k$, in
# red what grows and in blue what shrinks (the red diagonal goes beyond the scale). Its
# columns sum to 0, because the weights still sum to 1. The gradient of attention is
# this picture and four matrix products: two before it, two after it.
#
# ## The formula, forward
#
# For one head: queries $q$ are $(T_q, D)$, keys $k$ are $(T_k, D)$, values $v$ are
# $(T_k, D_v)$.
#
# $$ s_{ij} = \frac{q_i \cdot k_j}{\sqrt D} \quad (1), \qquad
#    P_{ij} = \frac{e^{s_{ij}}}{\sum_l e^{s_{il}}} \quad (2),
# \qquad o_i = \sum_j P_{ij}\, v_j \quad (3) $$
#
# (arXiv 1706.03762, eq. 1.) Hidden keys get the score $-\infty$, hence the weight 0,
# and the sums run over the others.

# %%
def attention(q, k, v, visible=True):
    """q (Tq, D), k (Tk, D), v (Tk, Dv) -> out (Tq, Dv), P (Tq, Tk)

    visible: (Tq, Tk) of bool
    """
    s = q @ k.T / np.sqrt(q.shape[1])           # (1)  (Tq, D), (D, Tk) -> (Tq, Tk)
    P = weights(np.where(visible, s, -np.inf))  # (2)  (Tq, Tk)
    return P @ v, P                             # (3)  (Tq, Tk), (Tk, Dv) -> (Tq, Dv)

# %% [markdown]
# ## The gradient, from the back
#
# Somewhere after attention there is a single number, the *loss* $L$: small is good. For
# every array $x$, write $dx$ for its *gradient*: the array of the same shape that holds
# $\partial L / \partial x$. Whatever comes after attention hands us $do$ (in code
# `dout`), called the *cotangent* of the output: how much $L$ grows per unit of each
# output. We want $dq$, $dk$, $dv$. Undo the three lines from the last to the first:

# %% tags=["plot"]
# Picture: boxes for q, k, s, P, v and out with their shapes. Blue arrows lead forward
# from q and k to s, from s to P, from P and v to out. Along each of them a dashed red
# arrow runs back, with the gradient that it carries: dout, dv, dP, ds, dq, dk.
pictures.backward_pass();

# %% [markdown]
# The rest of this lesson finds what is written in red.
#
# **(3) $o_i = \sum_j P_{ij} v_j$.** Value $j$ went into every row $i$ with the factor
# $P_{ij}$, so it collects gradient from every row with that factor; and weight $P_{ij}$
# multiplied $v_j$:
#
# $$ dv_j = \sum_i P_{ij}\, do_i, \qquad dP_{ij} = do_i \cdot v_j $$
#
# As matrices: `dv = P.T @ dout` is $(T_k, T_q)(T_q, D_v) \to (T_k, D_v)$, and
# `dP = dout @ v.T` is $(T_q, D_v)(D_v, T_k) \to (T_q, T_k)$. The shapes alone nearly
# dictate this, and that is a good first check.
#
# **(2) the softmax of a row.** Write $P_j = e^{s_j} / Z$ with $Z = \sum_l e^{s_l}$,
# leaving out the row's index. Raising $s_k$ raises the numerator if $j = k$, and $Z$ in
# any case, by $e^{s_k}$:
#
# $$ \frac{\partial P_j}{\partial s_k}
#    = \frac{e^{s_j} [j = k]}{Z} - \frac{e^{s_j} e^{s_k}}{Z^2}
#    = P_j \big( [j = k] - P_k \big) $$
#
# where $[j = k]$ is 1 if $j = k$ and 0 otherwise. That is the right picture, and the
# line `np.diag(before) - np.outer(before, before)`. By the chain rule
# $ds_k = \sum_j dP_j\, \partial P_j / \partial s_k$.
#
# ## Exercise 1: the gradient of a softmax
#
# Compute $ds$ without ever building the $T_k \times T_k$ matrix of slopes: combine the
# last two formulas on paper first, and see which sum remains.

# %% tags=["exercise"]
def softmax_backward(dP, P):
    """dP (Tq, Tk), P (Tq, Tk) with rows of sum 1 -> ds (Tq, Tk)"""
    ...

grader_01.check_softmax_backward(softmax_backward);

# %% tags=["solution"]
def softmax_backward(dP, P):
    return P * (dP - (P * dP).sum(axis=1, keepdims=True))  # minus one number per row

grader_01.check_softmax_backward(softmax_backward);

# %% [markdown]
# In words: $ds_k = P_k \,(dP_k - \sum_j P_j\, dP_j)$. The sum is the *mean* of $dP$
# under the weights. A score should rise if more weight on its key lowers the loss, that
# is, if $dP_k$ is below that mean. Only differences matter: adding a constant to a
# whole row of $dP$ changes nothing.
#
# **(1) $s_{ij} = q_i \cdot k_j / \sqrt D$.** A product again, so again two products:
#
# $$ dq_i = \frac{1}{\sqrt D} \sum_j ds_{ij}\, k_j, \qquad
#    dk_j = \frac{1}{\sqrt D} \sum_i ds_{ij}\, q_i $$
#
# ## Exercise 2: the whole backward
#
# Put the three steps into one function. The check runs it on one head of the validation
# kit's cases: several lengths, windows, padding, rows that see nothing. You need no
# mask: hidden keys have $P_{ij} = 0$, and that is enough. (Why? Check every place where
# $P$ appears.)

# %% tags=["exercise"]
def attention_backward(dout, q, k, v, P):
    """dout (Tq, Dv) -> dq (Tq, D), dk (Tk, D), dv (Tk, Dv)

    q (Tq, D), k (Tk, D), v (Tk, Dv), P (Tq, Tk)
    """
    ...

grader_01.check_attention_backward(attention_backward);

# %% tags=["solution"]
def attention_backward(dout, q, k, v, P):
    dP = dout @ v.T
    ds = P * (dP - (P * dP).sum(axis=1, keepdims=True))  # exercise 1
    ds = ds / np.sqrt(q.shape[1])                        # divided once, for both
    return ds @ k, ds.T @ q, P.T @ dout

grader_01.check_attention_backward(attention_backward);

# %% [markdown]
# Here is ours, each line below the line that it undoes, compared with the package. One
# identity saves work there: the mean that is subtracted is
# $\sum_j P_{ij}\,(do_i \cdot v_j) = do_i \cdot o_i$, in code
# `(dout * out).sum(axis=1)`. It needs no $T_q \times T_k$ array.

# %%
def backward(dout, q, k, v, P):
    """dout (Tq, Dv) -> dq (Tq, D), dk (Tk, D), dv (Tk, Dv)"""
    root = np.sqrt(q.shape[1])
    # (3) out = P @ v
    dv = P.T @ dout                                     # (Tk, Tq), (Tq, Dv) -> (Tk, Dv)
    dP = dout @ v.T                                     # (Tq, Dv), (Dv, Tk) -> (Tq, Tk)
    # (2) P = softmax of the rows of s
    ds = P * (dP - (P * dP).sum(axis=1, keepdims=True))  # (Tq, Tk)
    # (1) s = q @ k.T / sqrt(D)
    dq = ds @ k / root                                   # (Tq, Tk), (Tk, D) -> (Tq, D)
    dk = ds.T @ q / root                                 # (Tk, Tq), (Tq, D) -> (Tk, D)
    return dq, dk, dv

rng = np.random.default_rng(1)
# T = 7, D = 5, Dv = 3
q, k, v, dout = (rng.standard_normal((7, n)) for n in (5, 5, 3, 3))
visible = np.tri(7, dtype=bool)  # (7, 7)  causal: row i sees the keys j <= i
out, P = attention(q, k, v, visible)
ours = backward(dout, q, k, v, P)
one = (q[None, None], k[None, None], v[None, None])         # the package: (B, H, T, D)
_, cache = softmax.forward(*one, causal=True)

# %%
grads = softmax.backward(dout[None, None], cache)
for name, mine in zip("qkv", ours):
    far = np.abs(grads[name][0, 0] - mine).max()
    print(f"d{name}: largest difference from minattn {far:.0e}")
far = (dout * out).sum(axis=1) - (P * (dout @ v.T)).sum(axis=1)
print(f"the two forms of the mean differ by {np.abs(far).max():.0e}")

# %% [markdown]
# ## Saturation, and why the scores are divided by $\sqrt D$
#
# If one weight of a row is nearly 1, the softmax hardly responds any more. Use the
# formula of exercise 1. Let $b$ be the key with the largest weight and $R$ the range
# (largest minus smallest) of the row's $dP$. Another key has $|ds_k| \le P_k R$ with
# $P_k \le 1 - P_b$, and
# $|ds_b| = P_b\, |\sum_{j \ne b} P_j (dP_b - dP_j)| \le (1 - P_b) R$. **Where one
# weight is nearly 1, almost no gradient reaches the scores.**
#
# If the numbers in $q_i$ and $k_j$ are independent with mean 0 and variance 1, then
# $q_i \cdot k_j$ is a sum of $D$ terms of variance 1: its standard deviation is
# $\sqrt D$. Undivided, scores grow with $D$ and rows saturate. This is the reason that
# the paper gives (section 3.2.1).

# %%
sizes = 2 ** np.arange(2, 11)              # D from 4 to 1024
answer = {"undivided": [], "divided by $\\sqrt{D}$": []}
for D in sizes:
    q1 = rng.standard_normal((100, 1, D))    # 100 rows ...
    k1 = rng.standard_normal((100, 64, D))   # ... each with 64 keys of its own
    dots = (q1 @ k1.swapaxes(1, 2))[:, 0]  # (100, 1, D), (100, D, 64) -> (100, 64)
    dP = rng.standard_normal(dots.shape)
    for how, s in zip(answer, (dots, dots / np.sqrt(D))):
        P1 = weights(s)
        ds = P1 * (dP - (P1 * dP).sum(axis=1, keepdims=True))
        bound = (1 - P1.max(axis=1)) * np.ptp(dP, axis=1)                 # see above
        assert (np.abs(ds).max(axis=1) <= bound + 1e-12).all()
        answer[how].append(np.percentile(np.abs(ds).max(axis=1), (25, 50, 75)))

# %% tags=["plot"]
# Picture: the largest gradient of a score in a row, against the number of channels, on
# logarithmic axes. Divided by the root of D it stays level; undivided it falls steeply.
fig, ax = plots.figure(6.4, 3.6)
for (how, rows), style, n in zip(answer.items(), ("s--", "o-"), (1, 0)):
    (low, middle, high), colour = np.transpose(rows), plots.COLOURS[n]
    ax.loglog(sizes, middle, style, ms=4, label=how, color=colour)
    ax.fill_between(sizes, low, high, alpha=0.2, color=colour, lw=0)
ax.set(xlabel="channels $D$", ylabel="largest $|ds|$ of a row",
       title="Undivided scores saturate (median, quartiles of 100 rows)")
ax.set_xticks(sizes[::2], [str(D) for D in sizes[::2]], minor=False)
ax.legend(frameon=False);

# %% [markdown]
# ## Masks, and exercise 3: weights that survive
#
# In the backward a hidden key always has $P_{ij} = 0$, so what it gets from row $i$ is
# *exactly* 0. That holds if it was hidden with $-\infty$. Much software has used a
# "large" negative number instead:

# %%
s = np.array([[-2e4, -2e4, -3.0]])  # (1, 3)  the third key is the future
for fill in (-1e4, -np.inf):
    filled = np.where([False, False, True], fill, s)
    print(f"hidden with {fill:g}: weights", weights(filled)[0])

# %% [markdown]
# With a finite number the future gets all the weight as soon as the other scores fall
# below it. Write weights that survive everything: scores of $10^4$, scores far below 0,
# a hidden score above all visible ones, and a row that sees nothing (its weights are
# 0).

# %% tags=["exercise"]
def safe_weights(s, visible):
    """s (Tq, Tk) finite, visible (Tq, Tk) of bool -> P (Tq, Tk)

    0 where hidden; a row that sees nothing is all 0
    """
    ...

grader_01.check_weights(safe_weights);

# %% tags=["solution"]
def safe_weights(s, visible):
    s = np.where(visible, s, -np.inf)
    m = s.max(axis=1, keepdims=True)
    P = np.exp(s - np.where(m == -np.inf, 0, m))  # in an empty row exp(-inf - 0) = 0
    total = P.sum(axis=1, keepdims=True)
    return P / np.where(total == 0, 1, total)

grader_01.check_weights(safe_weights);

# %% [markdown]
# **What we now know.** The gradient of attention is two matrix products, a softmax that
# subtracts the weighted mean, and two more products: `dv = P.T @ dout`,
# `dP = dout @ v.T`, `ds = P * (dP - rowsum(dout * out))`, `dq = ds @ k / sqrt(D)`,
# `dk = ds.T @ q / sqrt(D)`. Where a weight is nearly 1 the scores get almost no
# gradient; hidden means $-\infty$.
#
# **What remains unknown.** Whether it is right. Two programs that agree may share a
# mistake, and lesson 18, [Is this gradient right?](18_is_this_gradient_right.ipynb),
# measures. And a model has more than attention: how its other layers learn is
# [lesson 02](02_character_model.ipynb).
#
# **Source.** Vaswani et al., *Attention is all you need*, arXiv 1706.03762, eq. 1 and
# section 3.2.1. The gradient is derived here.
