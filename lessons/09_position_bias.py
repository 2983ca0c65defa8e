# %% [markdown]
# # 09 · Position bias: does the beginning always win?
# **The question.** A causal model reads a text in which nothing tells it that the
# beginning matters. Does it use all places equally? If not, what is the cause: the
# training or the mask? **Time:** 30 minutes to read, 65 with the exercises. **You
# need:** attention ([lesson 01](01_softmax_attention.ipynb)), positions ([lesson
# 03](03_positions.ipynb)), first-token mass ([lesson 05](05_sinks_and_gates.ipynb)); 02
# for training. (The letters: [notation](NOTATION.md).)
#
# The theorems are those of *On the emergence of position bias in transformers* (arXiv
# 2502.01951). They are about attention alone; on the way we look at what a residual
# changes. Tokens count from 0 as in the package, so the paper's token 1 is our token 0.

# %%
import math

import numpy as np

from minattn import data, lessons, model, parallel, plots
from minattn.experiments.position_bias import bounds, stacks
from minattn.experiments.position_bias.stacks import attention, graph, random_stack
from minattn.inspect import maps
from minattn.inspect import rollout as package
from minattn.lessons import grader_09

# %% [markdown]
# ## The picture: a mask is a graph
# Draw an arrow from token $j$ to token $i$ wherever query $i$ may see key $j$:
# information can flow along it, one arrow per layer. (Every token also sees itself;
# these loops are not drawn.) A token from which *every* token can be reached, in one
# step or several, is a **center node** (Definition 3.1), drawn in orange.

# %%
N = 6
rules = {"causal": {"causal": True}, "window of 3": {"window": 3},
         "prefix of 3": {"causal": True, "prefix": 3}, "no mask": {}}

# %% tags=["plot"]
# Picture: four graphs of six tokens with arrows from each key to the queries that see
# it. Causal and window: arrows point right, token 0 is the only center. Prefix of 3:
# the tokens 0 to 2 are centers. No mask: all are.
(fig, axes), a = plots.figure(11, 3.2, ncols=4), np.linspace(0, np.pi, 40)
for ax, (name, rule) in zip(axes, rules.items()):
    M = graph(N, **rule)  # (N, N) booleans: M[i, j], query i sees key j
    for i, j in np.argwhere(M & ~np.eye(N, dtype=bool)):
        height = (i - j) / 2                   # below the line: an arrow to the left
        ax.plot((i + j) / 2 - height * np.cos(a), height * np.sin(a), color="gray",
                lw=0.9)
        ax.plot((i + j) / 2, (i - j) / 2, ">" if i > j else "<", color="gray", ms=5)
    centers = stacks.center_nodes(M)
    colours = [plots.COLOURS[4] if token in centers else "white" for token in range(N)]
    ax.scatter(range(N), np.zeros(N), s=190, c=colours, edgecolors="black", zorder=3)
    for token in range(N):
        ax.text(token, 0, token, ha="center", va="center_baseline", zorder=4,
                fontsize=9)
    ax.set(title=name, ylim=(-2.9, 2.9), aspect="equal")
    ax.axis("off")
fig.suptitle("From a center (shaded) every token can be reached");

# %% [markdown]
# Under a causal mask all arrows point right: token 0 reaches all and nothing reaches
# it, so it is the only center. A window makes the path longer and leaves the center
# where it is. A prefix of $K$ tokens that all see each other makes $K$ centers. Without
# a mask every token is one.
# ## Exercise 1: who is a center?
# The matrix product counts **walks**: $(M^L)_{ij}$ is the number of those of $L$ steps
# along the arrows from $j$ to $i$, waiting (a loop) allowed. With loops, what can be
# reached at all can be reached in $N - 1$ steps.

# %% tags=["exercise"]
def is_center(M):
    """M (N, N) of bool -> (N,) of bool: who reaches everybody?

    M: query i (row) sees key j (column); every token sees itself
    """
    ...
grader_09.check_is_center(is_center);

# %% tags=["solution"]
def is_center(M):
    # walks from j to i (N, N), in floats, which hold large counts
    walks = np.linalg.matrix_power(M.astype(float), len(M) - 1)
    return (walks > 0).all(axis=0)  # column j: from j to everyone
grader_09.check_is_center(is_center);

# %% [markdown]
# How many walks of $L$ steps are there in the causal graph from $j$ to $i$? The $i - j$
# steps to the right have to be shared out among $L$ layers, some getting none: that is
# a choice of $i - j$ out of $L - 1 + i - j$,
#
# $$ (M^L)_{ij} = \binom{L - 1 + i - j}{i - j}, \qquad i \ge j. $$
#
# The further back, the more walks. Keep that in mind: half of what follows rests on it.

# %%
L, M = 4, graph(N, causal=True)
walks = np.linalg.matrix_power(M.astype(int), L)
print(f"walks of {L} steps to the last token:", *walks[-1],
      "  binomials:", *(math.comb(L - 1 + N - 1 - j, N - 1 - j) for j in range(N)))

# %% [markdown]
# ## Rollout: follow attention through the layers
# Give each arrow its weight: layer $t = 0, 1, \dots$ has an attention matrix $A^{(t)}$
# whose rows sum to 1 and which is 0 where the mask hides. One layer of attention alone
# turns the tokens $X$ $(N, C)$ into $A^{(t)} X W_V^{(t)}$; the matrix $W_V$ of the
# values mixes channels, not places. So the share of token $j$ in what token $i$ holds
# after layers $0 \dots t$ is an entry of the product of the $A$s, the **rollout**:
#
# $$ P^{(t)} = A^{(t)} A^{(t-1)} \cdots A^{(0)} \qquad \text{(eq. 4)} $$
#
# Multiplied out, $P^{(t)}_{ij}$ is the sum over all walks of $t + 1$ steps from $j$ to
# $i$, each counting with the product of its arrows' weights; rows still sum to 1. Try
# it with *equal* weights, row $i$ being $1/(i + 1)$ up to the diagonal:

# %%
N = 17
causal = graph(N, causal=True)
equal, P = causal / causal.sum(axis=1, keepdims=True), np.eye(N)  # (N, N), (N, N)
for t in range(4):
    P = equal @ P                                             # (N, N), (N, N) -> (N, N)
    layers = "1 layer : " if t == 0 else f"{t + 1} layers: "
    print(f"{layers}token {N - 1} is made of", " ".join(f"{p:.2f}" for p in P[-1]))
difference = P - package.rollout([equal] * 4)[-1]
print(f"largest difference from minattn: {np.abs(difference).max():.0e}")

# %% [markdown]
# No row prefers the beginning. Yet after two layers the last token holds more of token
# 0 than of any other. Why? Token 0 can only look at itself, token 1 must spend half on
# token 0, and so on: a token that attends to an early token receives the beginning, and
# so does a token that attends to that one.
#
# A real layer also has a *residual*: each token keeps what it has, and attention is
# added. The usual convention (arXiv 2005.00928) is to give each of the two half,
# $(A^{(t)} + I)/2$ in place of $A^{(t)}$, where $I$ is the identity.
# ## Exercise 2: one more layer

# %% tags=["exercise"]
def one_more_layer(P, A, residual):
    """P (N, N), A (N, N) -> (N, N): the rollout with one more layer

    P: of the layers below; A: the next layer's weights
    residual: True if half of the token stays
    """
    ...
grader_09.check_one_more_layer(one_more_layer);

# %% tags=["solution"]
def one_more_layer(P, A, residual):
    if residual:
        A = (A + np.eye(len(A))) / 2
    return A @ P  # (N, N), (N, N) -> (N, N)
grader_09.check_one_more_layer(one_more_layer);

# %% [markdown]
# ## Theorem 4.1, with its proof
# Suppose every visible weight in every layer is at least some $\varepsilon > 0$. (Lemma
# A.1: softmax of bounded scores has such an $\varepsilon$.) Under a causal mask, for
# every token $j \ge 1$ and every query $i$,
#
# $$ P^{(t)}_{ij} \le (1 - j\varepsilon)^{t+1}, $$
#
# which goes to 0 with depth; as rows sum to 1, all goes to token 0. **Proof.** One more
# layer gives query $i$ the mean $\sum_k A_{ik} P_{kj}$ of what the tokens $k \le i$
# hold of token $j$. The $j$ tokens before $j$ hold nothing of it, and a query $i \ge j$
# spends at least $j\varepsilon$ on them. So the largest entry of column $j$ is
# multiplied by $1 - j\varepsilon$ or less in each layer, and before the first it is 1,
# in $P = I$. (The paper states $C (1 - j\varepsilon)^t$, with $C = 1 - \varepsilon$ in
# its proof, which is a little weaker.) In the same way the tokens 1, 2, ... *together*
# shrink by $1 - \varepsilon$ per layer:
#
# $$ 1 - P^{(t)}_{i0} \le (1 - \varepsilon)^{t+1} . $$
#
# Random stacks on the left. On the right one that reaches the bound: all visible
# weights are $\varepsilon$, the rest stays with the token.

# %%
L, eps, draws, t = 32, 0.02, 50, np.arange(32)  # t = 0 ... L - 1
# softmax of random scores, all visible weights at least eps: (L, draws, N, N)
stacks = random_stack(causal, (L, draws), 1, floor=eps)
slowest = eps * causal
slowest[np.arange(N), np.arange(N)] += 1 - slowest.sum(axis=1)  # the rest: to itself

# %% tags=["plot"]
# Picture: share of a later token against the number of layers, logarithmic, with
# dashed bounds. Left, random stacks fall far below their bounds; right, the slowest
# stack lies on them.
fig, axes = plots.figure(10, 3.9, ncols=2, sharey=True)
shown = {f"the worst of {draws} random stacks": package.rollout(stacks),
         "the slowest stack": package.rollout([slowest] * L)}
for ax, (title, P) in zip(axes, shown.items()):
    # the largest share of token j over draws and queries: (L, N)
    worst = P.reshape(L, -1, N, N).max(axis=(1, 2))
    for n, j in enumerate((1, 4, 12)):
        bound = (1 - j * eps) ** (t + 1)        # (L,)
        ax.plot(t + 1, worst[:, j], "os^"[n], ms=3.5, color=plots.COLOURS[n],
                label=f"token {j}")
        ax.plot(t + 1, bound, "--", color=plots.COLOURS[n], lw=1.2, label="its bound")
    bound = (1 - np.arange(1, N) * eps) ** (t[:, None] + 1)  # (L, N - 1)
    held = (worst[:, 1:] <= bound * (1 + 1e-12)).all()
    rest = (1 - P[..., 0]).reshape(L, -1).max(axis=1)        # (L,)
    rest_held = (rest <= (1 - eps) ** (t + 1) * (1 + 1e-12)).all()
    print(f"{title}: holds for each later token: {held}, "
          f"for all of them together: {rest_held}")
    ax.set(xlabel="layers", title=title, yscale="log", ylim=(1e-7, 1.5))
axes[0].set_ylabel(f"share of a later token, any query ($\\varepsilon = {eps}$)")
axes[1].legend(frameon=False, fontsize=8, ncols=3, loc="lower left")
fig.suptitle("Every bound holds, and the slowest stack lies on it");

# %% [markdown]
# Random stacks fall far faster than the bound; it is a guarantee for the worst case,
# and there it is exact.
#
# ## Other masks, and the residual
# - **Window** of $w$ keys (Theorem 4.2). Token 0 needs
#   $h = \lceil (N - 1)/(w - 1) \rceil$ layers to reach the end; $h$ layers together are
#   one causal matrix with entries of at least $\varepsilon^h$. The same proof gives
#   $(1 - j\varepsilon^h)^{\lfloor (t+1)/h \rfloor}$: slower.
# - **Prefix** of $K$ (Theorem 4.3). The $K$ centers together get everything, and each
#   keeps some of it.
# - **Residual** (no theorem in the paper). In $(A + I)/2$ visible weights are at least
#   $\varepsilon/2$, so Theorem 4.1 holds with that: about half the speed, the same end.
#   That is about this convention; in a real network the two halves need not be halves.
# - **Decay**: the score minus $m$ times the distance. Each $A$ prefers what is near;
#   what many of them do is the next section.

# %%
hops = {f"window of {w}": bounds.hops(N, w) for w in (9, 3)}
print("layers to carry token 0 to the end:", hops)
m = -math.log(0.8)                                              # the paper's slope
x = np.maximum(np.arange(N)[:, None] - np.arange(N), 0)         # (N, N) distances i - j
rng = np.random.default_rng(2)
masks = {"causal": {"causal": True}, "window of 9": {"window": 9},
         "window of 3": {"window": 3}, "prefix of 4": {"causal": True, "prefix": 4},
         "no mask": {}}
kinds = {name: random_stack(graph(N, **rule), (L, draws), rng)
         for name, rule in masks.items()}
s = rng.standard_normal((L, draws, N, N)) - m * x
kinds["decay"] = attention(s, causal)                           # softmax of the visible

# %% tags=["plot"]
# Picture: share of the last token that comes from token 0, against layers, for six
# masks, without and with a residual. Causal masks and windows rise towards 1, the
# window of 3 most slowly; without a mask the share stays low.
fig, axes = plots.figure(10.4, 4.0, ncols=2, sharey=True)
dashes = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), ":", (0, (6, 3)))
for colour, dash, (name, stacks) in zip(plots.COLOURS, dashes, kinds.items()):
    for ax, residual in zip(axes, (False, True)):
        last = package.rollout(stacks, residual=residual)[:, :, -1]
        last = last.mean(axis=1)  # (L, N)  the last token's row, mean over draws
        ax.plot(t + 1, last[:, 0], ls=dash, color=colour, label=name)
        if name == "prefix of 4":
            ax.plot(t + 1, last[:, :4].sum(axis=1), ls=dash, lw=3, color=colour,
                    label="prefix of 4, all four")
for ax, title in zip(axes, ("attention alone", "with a residual: $(A + I)/2$")):
    ax.set(xlabel="layers", title=title, ylim=(0, 1.03))
axes[0].set_ylabel(f"share of token {N - 1} that comes from token 0")
fig.suptitle("Depth gives everything to token 0; a residual slows it down")
fig.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, ncols=7,
           loc="outside lower center");

# %% [markdown]
# ## Decay: two forces
# A decay of slope $m$ multiplies a key's weight by $e^{-m}$ per step back. Let the
# scores before that lie in an interval of width $r$ (the paper's $I_\max - I_\min$).
# Then (Lemma 4.4)
#
# $$ C_\min\, e^{-(i-j)m} \le A_{ij} \le C_\max\, e^{-(i-j)m}, \qquad
#    C_\min = (1 - e^{-m})\, e^{-r}, \quad C_\max = e^{r} . $$
#
# The paper prints $C_\max = e^{r} / (1 + e^{-m})$; its proof counts one key too many.
# That bound fails for the very first token, which sees only itself:

# %%
r = 0.1
s = rng.uniform(0, r, (200, N, N))
A = attention(s - m * x, causal)                                # (200, N, N)
printed = math.exp(r) / (1 + math.exp(-m))
for name, C_max in (("e^r", math.exp(r)), ("printed", printed)):
    above = A > C_max * np.exp(-m * x) * (1 + 1e-12)
    fails = np.flatnonzero(above.any(axis=(0, 2)))
    print(f"C_max {name:8s} = {C_max:.3f}   bound at i = j = 0: {C_max:.3f}, "
          f"A is {A[0, 0, 0]:.0f}   fails for queries {fails}")
C_min = (1 - math.exp(-m)) * math.exp(-r)
print("lower bound holds:", bool((A >= C_min * np.exp(-m * x) * causal).all()))

# %% [markdown]
# Now the rollout. A walk from $j$ to $i$, however its steps are spread, is multiplied
# by $e^{-(i-j)m}$ in all, and there are $\binom{t+i-j}{i-j}$ walks of $t + 1$ steps. So
# (Theorem 4.5), up to constants as above for each layer, $P^{(t)}_{ij}$ is like
# $e^{\ell(x)}$,
#
# $$ \ell(x) = \ln \binom{t + x}{x} - m x, \qquad x = i - j . $$
#
# *More walks lead further back; each of them weighs less.* From $x$ to $x + 1$ the
# binomial grows by the factor $(t + x + 1)/(x + 1)$. That is more than $e^{m}$ as long
# as $x + 1$ is less than the **critical distance** $x^* = t / (e^{m} - 1)$. So a token
# receives most from about $x^*$ back: further with depth, nearer with decay. (If that
# is before the beginning, the beginning wins.)
# ## Exercise 3: where is the peak?
# Distances are whole numbers, and $L$ layers mean $t = L - 1$.

# %% tags=["exercise"]
def critical_distance(layers, m):
    """layers >= 1, slope m > 0 -> the whole distance x >= 0 at which l(x) is largest"""
    ...
grader_09.check_critical_distance(critical_distance);

# %% tags=["solution"]
def critical_distance(layers, m):
    return math.floor((layers - 1) / (math.exp(m) - 1))  # l(x + 1) > l(x) if x + 1 < x*
grader_09.check_critical_distance(critical_distance);

# %%
long = np.arange(81)
distance = np.maximum(long[:, None] - long, 0)
A = attention(-m * distance, graph(81, causal=True))  # (81, 81)  equal scores, decay m

# %% tags=["plot"]
# Picture: share of the last token against distance, for 1 to 13 layers. The peak moves
# from distance 0 to about 50 as layers are added; each peak bears its number of layers.
fig, ax = plots.figure(7.6, 3.9)
for colour, depth in zip(plots.COLOURS, (1, 2, 3, 5, 9, 13)):
    row = package.rollout([A] * depth)[-1, -1, ::-1]            # (81,) by distance
    star = bounds.decay_peak(depth - 1, m)
    layers = "1 layer" if depth == 1 else f"{depth} layers"
    ax.plot(long, row, color=colour,
            label=f"{layers}: $x^*$ = {star:.0f}, largest at {row[:80].argmax()}")
    top = np.interp(star, long, row)
    ax.plot(star, top, "o", color=colour)
    ax.annotate(depth, (star, top), (4, 4), textcoords="offset points", color=colour)
ax.set(xlabel="distance $x$ to the token looked at", ylabel="share of the last token",
       ylim=(0, 0.21),
       title=f"More layers move the peak back (decay $m$ = {m:.2f}, 81 tokens)")
ax.legend(frameon=False, fontsize=9);

# %% [markdown]
# Thirteen layers of the *same* matrix look back some fifty tokens, and what arrives at
# the beginning stays there (the hook at the right end, left out of "largest at").
# ## A real text
# How much of this survives in a small language model, with its residuals, MLPs and four
# heads? Two models of four layers, one without positions, one with RoPE, before and
# after a short training (lesson 19's, in a few lines). We average the heads and follow
# the last of 64 characters down through the layers.

# %%
corpus = lessons.text()
vocabulary = data.Vocabulary(corpus.text)
train_ids, val_ids = data.split(vocabulary.encode(corpus.text))
T = 64
windows = data.blocks(val_ids, T)[0][::40]               # (n, T)  validation text

# %%
shown = {}
with parallel.workers(2) as pool:
    for position in ("none", "rope"):
        config = model.Config(vocab_size=len(vocabulary), block_size=T, n_layer=4,
                              n_head=4, n_embd=48, position=position, scaled_init=False)
        fresh, _ = model.init(config, seed=0)
        shown.setdefault("none, untrained", maps.weights(fresh, {}, config, windows))
        params, _ = lessons.train(pool, config, train_ids, steps=250, batch=8, lr=6e-3)
        # four of (n, H, T, T)
        shown[f"{position}, trained"] = maps.weights(params, {}, config, windows)

# %% tags=["plot"]
# Picture: share of the last character by place, logarithmic, for three models.
# Attention alone: the untrained model has most at the first character; RoPE, trained,
# less. With a residual the last character keeps most of itself.
fig, axes = plots.figure(10.4, 3.8, ncols=2, sharey=True)
titles = ("attention alone", "with a residual: $(A + I)/2$")
for ax, residual, title in zip(axes, (False, True), titles):
    print("share of the first character after 1, 2, 3, 4 layers,",
          title.replace("$", ""))
    for (name, layers), style in zip(shown.items(), ("o-", "s-", "^-")):
        A = [w.mean(axis=1) for w in layers]    # four of (n, T, T)  mean over the heads
        last = package.rollout(A, residual=residual)[:, :, -1]  # (4, n, T)
        last = last.mean(axis=1)                                # (4, T)  over texts
        ax.plot(np.arange(T), last[-1], style, ms=3, lw=1, label=name)
        print(f"    {name:15s}", " ".join(f"{p:.3f}" for p in last[:, 0]))
    ax.axhline(1 / T, color="gray", ls="--", lw=1)
    ax.set(xlabel="character of the window", yscale="log", ylim=(3e-4, 1), title=title)
axes[0].set_ylabel("share of the last character")
fig.suptitle("The first character holds the most, and RoPE takes some of it back")
axes[0].legend(frameon=False, fontsize=9);

# %% [markdown]
# The untrained model is the theory's case: scores near 0, nearly equal weights. One
# layer gives the first character no more than its share, $1/T$ (dashed), and the
# first-token mass of lesson 05 would find nothing. Yet after four layers of attention
# alone it holds about a third. Training with RoPE teaches the heads to look nearby and
# takes part of that back: *learned weights can work against the mask*. With residuals
# everything is slower, and the last character keeps at least $1/2^4$ of itself (far
# right).
#
# **What we now know.** A mask is a graph, and deep attention alone ends at its center
# nodes: under a causal mask at the first token, the rest shrinking at least as fast as
# $(1 - \varepsilon)^{t+1}$. Windows and residuals slow that down, a prefix shares it.
# Decay pulls the other way: the peak lies $x^* = t / (e^m - 1)$ back. Training may work
# against the mask, as with RoPE.
#
# **What remains unknown.** The theorems are about attention without residual, MLP and
# norm; with a residual the paper has experiments only, in which more depth can mean
# less bias. And shares are not decisions: what a network *answers* is
# [lesson 21](21_who_is_believed.ipynb).
#
# **Source.** arXiv 2502.01951: eq. 4; Definition 3.1; Theorems 4.1 to 4.3 and 4.5;
# Lemmas A.1 and 4.4 (RoPE's theorem 4.7 is in `experiments/position_bias/bounds.py`).
# Residual rollout: 2005.00928. In the package: `inspect/rollout.py`,
# `experiments/position_bias/`.
