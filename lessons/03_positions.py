# %% [markdown]
# # 03 · Where am I?
#
# **The question.** Attention is a weighted mean, and a mean does not depend on the
# order of its terms. How is a model told where a character stands, and what does it
# lose if it is not? **Time:** 40 minutes to read, 65 with the exercises. **You need:**
# lessons 01 and 02, sine and cosine, a little of complex numbers. (The letters:
# [notation](NOTATION.md).)

# %%
import numpy as np

from minattn import data, lessons, model, parallel, plots
from minattn.attention import softmax
from minattn.lessons import grader_03
from minattn.positions import decay, rotary, sinusoidal
from minattn.train import Settings

corpus = lessons.text()
vocabulary = data.Vocabulary(corpus.text)
train, val = data.split(vocabulary.encode(corpus.text).astype(int))
rng = np.random.default_rng(0)

# %% [markdown]
# ## Without positions: a bag of characters
#
# The last token's output is $o = \sum_j P_j v_j$ with
# $P_j \propto e^{q \cdot k_j / \sqrt D}$. Put the earlier tokens in a different order,
# keys and values together, and the sum has the same terms. At the `h`, one layer of
# attention cannot tell "not h" from "ton h". Two layers can, if there is a causal mask:
# what a token in between has seen depends on where it stands, and it hands that on. We
# let two models without positions, with random weights, predict what follows a line,
# and then shuffle all of the line but its last character.


# %%
def logits_at_the_end(layers, ids):
    config = model.Config(vocab_size=len(vocabulary), block_size=64, n_layer=layers,
                          n_head=4, n_embd=32, position="none")
    params, _ = model.init(config, seed=0, dtype=np.float64)
    # larger weights than a fresh model's: its predictions differ more
    params = {name: 5 * p if p.ndim == 2 else p for name, p in params.items()}
    return model.forward(params, ids[None], config)[0][0, -1]  # (1, T) -> (V,)


line = val[:40]
shuffled = np.concatenate([rng.permutation(line[:-1]), line[-1:]])
for layers in (1, 2, 3):
    change = logits_at_the_end(layers, line) - logits_at_the_end(layers, shuffled)
    name = "1 layer" if layers == 1 else f"{layers} layers"
    print(f"{name}: shuffling what came before moves the prediction by "
          f"{np.abs(change).max():.0e}")

# %% [markdown]
# The first number is rounding, the others are not. So a causal mask leaks a little
# order into deeper models. The experiment below shows whether that is enough. First,
# the other ways to tell a model where it is. $p$ counts positions from 0, $C$ is the
# number of channels, $T$ the length.
#
# ## Adding: a table, or waves
#
# **Learned.** A table with a row for each position, added to the character's row:
# $x_p = \mathrm{wte}[\text{token}_p] + W_p$. Lesson 02 did this, and its gradient: row
# $p$ gets the sum over all texts of `dx` at place $p$,
# `dx.reshape(B, T, C).sum(axis=0)`. Nothing says that rows 7 and 8 are neighbours, and
# a row that was never read was never trained.
#
# **Sinusoidal.** No parameters: $C/2$ clocks, each turning at its own speed $\omega_k$,
# fast to slow:
#
# $$ \omega_k = b^{-2k/C}, \qquad \mathrm{pe}_{p,\,2k} = \sin(\omega_k p), \qquad
#    \mathrm{pe}_{p,\,2k+1} = \cos(\omega_k p), \qquad
#    k = 0 \dots C/2 - 1,\; b = 10000 $$


# %%
def waves(T, C, base=10000.0):
    omega = base ** (-2 * np.arange(C // 2) / C)  # (C/2,)     radians per position
    angle = np.arange(T)[:, None] * omega         # (T, C/2)
    pe = np.empty((T, C))
    pe[:, 0::2], pe[:, 1::2] = np.sin(angle), np.cos(angle)   # of every clock
    return pe


pe = waves(128, 64)
difference = pe - sinusoidal.forward(128, 64)[0]
print(f"largest difference from minattn: {np.abs(difference).max():.0e}")

# %% tags=["plot"]
# Picture: on the left 64 channels of waves over 128 positions, fast at the top and slow
# at the bottom. On the right dot products of three positions with all others, against
# the distance: the three curves lie on one another, highest at 0.
fig, (left, right) = plots.figure(10.5, 3.8, ncols=2, width_ratios=(1.5, 1))
image = left.imshow(pe.T, cmap="cividis", aspect="auto", vmin=-1, vmax=1)
left.grid(False)
left.set(xlabel="position $p$", ylabel="channel",
         title="Fast clocks first, slow ones last")
fig.colorbar(image, ax=left, label="value")
for start, colour in zip((10, 40, 70), plots.COLOURS):
    distance = np.arange(-start, 128 - start)
    right.plot(distance, pe @ pe[start], color=colour, lw=3 - start / 35,
               label=f"$p$ = {start}")
right.set(xlabel="distance to the other position", ylabel="dot product",
          title="Only the distance counts", xlim=(-60, 60))
right.legend(frameon=False);

# %% [markdown]
# Why do the three curves on the right coincide? By
# $\sin a \sin b + \cos a \cos b = \cos(a - b)$, two positions' dot product only knows
# their *distance*:
#
# $$ \mathrm{pe}_p \cdot \mathrm{pe}_{p'} = \sum_k \cos \omega_k (p - p') $$
#
# And moving on by $r$ turns every clock by the fixed angle $\omega_k r$, wherever it
# stands.
#
# ## Exercise 1: move all positions on
#
# Given encodings of *unknown* positions, write the encodings of the positions $r$
# later. (Use $\sin(a + b)$ and $\cos(a + b)$. A matrix can do this, so a linear layer
# can learn it.)


# %% tags=["exercise"]
def move(pe, r, base=10000.0):
    """pe (T, C): sinusoidal encodings of some positions p -> (T, C), those of p + r"""
    ...


grader_03.check_move(move);


# %% tags=["solution"]
def move(pe, r, base=10000.0):
    C = pe.shape[1]
    turn = r * base ** (-2 * np.arange(C // 2) / C)                  # (C/2,)
    sin, cos = pe[:, 0::2], pe[:, 1::2]                              # (T, C/2)
    moved = [sin * np.cos(turn) + cos * np.sin(turn),
             cos * np.cos(turn) - sin * np.sin(turn)]
    return np.stack(moved, axis=2).reshape(len(pe), C)


grader_03.check_move(move);

# %% [markdown]
# ## Turning: RoPE
#
# Added waves pass through the query and key projections before they meet, and through
# everything else. Rotary positions (RoPE) come later: *after* the projections, turn the
# queries and keys themselves (not the values). Take channels in pairs and read each
# pair as a complex number $z_k = q_{2k} + \mathrm i\, q_{2k+1}$, $\mathrm i^2 = -1$. To
# multiply by $e^{\mathrm i \theta}$ is to turn by the angle $\theta$:
#
# $$ z_k \leftarrow z_k\, e^{\mathrm i \omega_k p}, \qquad \omega_k = b^{-2k/D} $$
#
# The dot product of two real vectors is the real part of $\sum_k z_k \overline{w_k}$,
# the bar changing the sign of $\mathrm i$. So the score of a query $z$ at $p$ with a
# key $w$ at $p'$ is
#
# $$ \mathrm{Re} \sum_k z_k e^{\mathrm i \omega_k p}\;
#    \overline{w_k e^{\mathrm i \omega_k p'}}
#    = \mathrm{Re} \sum_k z_k \overline{w_k}\; e^{\mathrm i \omega_k (p - p')} $$
#
# and knows positions only through the distance, *whatever* the vectors are. A turn does
# not change lengths, and its gradient is the turn back: for $y = Rx$ with a rotation
# $R$, $dx = R^\top dy = R^{-1} dy$.


# %%
def rope(x, start=0, base=10000.0):
    T, D = x.shape[-2:]
    omega = base ** (-2 * np.arange(D // 2) / D)                      # (D/2,)
    turn = np.exp(1j * np.arange(start, start + T)[:, None] * omega)  # (T, D/2) complex
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * turn     # (..., T, D/2): every pair turned
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)       # (..., T, D)


q, k = rng.standard_normal((2, 9, 8))                                # (T, D) each
lengths = np.linalg.norm(rope(q), axis=1) - np.linalg.norm(q, axis=1)
dy, cache = k, rotary.forward(q, pairs="interleaved")[1]
back = rotary.backward(dy, cache)["x"]
differences = {
    "from minattn": rope(q) - rotary.forward(q, pairs="interleaved")[0],
    "of all scores, 1000 places later":
        rope(q) @ rope(k).T - rope(q, 1000) @ rope(k, 1000).T,
    "of lengths": lengths,
    "of dy . R x from (turned back dy) . x": np.vdot(dy, rope(q)) - np.vdot(back, q)}
for name, difference in differences.items():
    print(f"largest difference {name}: {np.abs(difference).max():.0e}")

# %% [markdown]
# ## Exercise 2: turn back
#
# Most published weights pair channel $k$ with channel $k + D/2$ instead of its
# neighbour (`pairs="half"` in the package, and its default). Write the *backward* of
# RoPE for that pairing.


# %% tags=["exercise"]
def rope_half_backward(dy, start=0, base=10000.0):
    """dy (..., T, D) at positions start, start + 1, ... -> dx (..., T, D)

    dy: the gradient of the turned vectors
    """
    ...


grader_03.check_rope_half_backward(rope_half_backward);


# %% tags=["solution"]
def rope_half_backward(dy, start=0, base=10000.0):
    T, D = dy.shape[-2:]
    omega = base ** (-2 * np.arange(D // 2) / D)                     # (D/2,)
    angle = np.arange(start, start + T)[:, None] * omega             # (T, D/2)
    da, db = dy[..., :D // 2], dy[..., D // 2:]
    return np.concatenate([da * np.cos(angle) + db * np.sin(angle),
                           db * np.cos(angle) - da * np.sin(angle)], axis=-1)


grader_03.check_rope_half_backward(rope_half_backward);

# %% [markdown]
# ## Subtracting: decay
#
# The bluntest way is ALiBi: subtract from the score a slope $m$ times the distance, so
# that each step back multiplies a key's weight by $e^{-m}$ before the weights are made
# to sum to 1. Each head $h = 1 \dots H$ has its own slope, from sharp to mild:
#
# $$ s_{ij} = \frac{q_i \cdot k_j}{\sqrt D} - m_h\,(i - j), \qquad m_h = 2^{-8h/H} $$


# %%
def decay_bias(T, H):
    m = 2.0 ** (-8 * np.arange(1, H + 1) / H)                        # (H,)
    distance = np.arange(T)[:, None] - np.arange(T)                  # (T, T)    i - j
    return -m[:, None, None] * distance                              # (H, T, T)


bias = decay_bias(9, 4)
difference = bias - decay.forward(9, 9, decay.alibi_slopes(4))[0]
print(f"largest difference from minattn: {np.abs(difference).max():.0e}")
zeros = np.zeros((1, 4, 9, 8))  # q, k, v: all scores equal
P = softmax.forward(zeros, zeros, zeros, bias=bias, causal=True,
                    return_weights=True)[-1]
print("the last token's weights, first to last key:")
for h, row in enumerate(P[0, :, -1], 1):
    print(f"h = {h}  m = {2.0**(-2 * h):.4f}  ", " ".join(f"{w:.2f}" for w in row))

# %% [markdown]
# ## Exercise 3: what would a slope learn?
#
# The slopes are constants, but they need not be. Given the weights $P$, the values and
# the gradient of the output $o = Pv$, find the gradient of each head's slope. (Lesson
# 01 gave $ds = P \odot (dP - \mathrm{rowsum}(dP \odot P))$ with $dP = do\, v^\top$,
# where $\odot$ multiplies entry by entry; the rest is the formula above.)


# %% tags=["exercise"]
def slope_gradient(P, v, do):
    """P (B, H, T, T), v and do (B, H, T, Dv) -> dm (H,)"""
    ...


grader_03.check_slope_gradient(slope_gradient);


# %% tags=["solution"]
def slope_gradient(P, v, do):
    T = P.shape[2]
    dP = do @ v.swapaxes(2, 3)                                       # (B, H, T, T)
    ds = P * (dP - np.sum(dP * P, axis=3, keepdims=True))
    return -np.sum(ds * (np.arange(T)[:, None] - np.arange(T)), axis=(0, 2, 3))


grader_03.check_slope_gradient(slope_gradient);

# %% [markdown]
# ## Relative or absolute? Kernels as pictures
#
# What does position alone contribute to the score of query place $i$ and key place $j$?
# Call it $K_{ij}$, the *kernel* of the positions. If it is *relative*, a function of
# $i - j$ alone, the picture has stripes along the diagonals. We measure how much of the
# variance below the diagonal is explained by the mean of each diagonal, in per cent.
# The third panel puts the waves through random projections $W_Q, W_K$, as a model does:
# $K = (\mathrm{pe}\,W_Q)(\mathrm{pe}\,W_K)^\top$. For RoPE we take one random query and
# one random key, the same at every place. Each picture has its own colours: bright is
# large. (The white half above the diagonal is the future, which a causal model never
# sees.)


# %%
def relative_share(K):
    """K (T, T) -> the share of the variance below its diagonal that i - j explains

    1 for stripes
    """
    i, j = np.tril_indices(len(K), -1)  # the pairs with i > j
    number = np.bincount(i - j)
    mean = np.bincount(i - j, K[i, j]) / np.maximum(number, 1)       # (T,)  by diagonal
    return 1 - np.var(K[i, j] - mean[i - j]) / np.var(K[i, j])


T, C = 32, 64
WQ, WK = rng.standard_normal((C, C)) / 8, rng.standard_normal((C, C)) / 8
table = rng.standard_normal((T, C))
q, k = np.tile(rng.standard_normal((2, 1, C)), (1, T, 1))     # (T, C) each: equal rows
kernels = {"learned table, untrained": table @ table.T,
           "sinusoidal": pe[:T] @ pe[:T].T,
           "sinusoidal, projected": (pe[:T] @ WQ) @ (pe[:T] @ WK).T,
           "RoPE": rope(q) @ rope(k).T,
           "decay": decay_bias(T, 4)[1]}

# %% tags=["plot"]
# Picture: five kernels of positions, query by key, the future white. Sinusoidal, RoPE
# and decay have diagonal stripes that depend on the distance alone; the learned table
# and the projected one do not.
fig, axes = plots.figure(11, 3.2, ncols=5)
for ax, (name, K) in zip(axes, kernels.items()):
    ax.imshow(np.where(np.tri(T, dtype=bool), K, np.nan), cmap="cividis")
    ax.grid(False)
    share = 100 * relative_share(K)
    ax.set(title=f"{name}\n{share:.0f} % depends on $i - j$ alone", xlabel="key $j$")
    ax.title.set_size(9)
fig.suptitle("Stripes along the diagonal: only the distance counts")
axes[0].set_ylabel("query $i$");

# %% [markdown]
# Striped: the bare waves, RoPE, decay. But the waves lose most of it as soon as there
# are projections between them, as in every model. A model *can* learn projections that
# keep the clocks apart; with RoPE it need not.
#
# ## The experiment: what is lost
#
# One layer, 64 channels, trained as in lesson 19 (`parallel.train_step`) on windows of
# 32 characters, two seeds each. Then we read windows of 128, four times as long as any
# in training, and look at the loss place by place. One entry needs explaining. The
# waves have size 1, the rows of a fresh `wte` size 0.02: added, the waves hide the
# characters. "small waves" has the same waves times 0.03 in place of the learned table,
# and does not train them.

# %%
STEPS, BATCH, SHORT, LONG = 360, 16, 32, 128
SETTINGS = Settings(steps=STEPS, lr=4e-3, min_lr=2e-4, warmup=50, beta2=0.99,
                    weight_decay=0.0, clip=0.0, chunks=1)
long_x, long_y = (a[:160] for a in data.blocks(val, LONG))           # (160, 128) each

# %%
def trained(position, seed, layers=1, table=None):
    """-> parameters, config, surprise at each place of a long window (LONG,)"""
    config = model.Config(vocab_size=len(vocabulary), block_size=LONG, n_layer=layers,
                          n_head=4, n_embd=64, scaled_init=False, position=position)
    params, _ = model.init(config, seed)
    state = parallel.start(params)
    for step in range(STEPS + 1):
        if table is not None:                                        # it is not trained
            state.params["position.learned.weight"][:] = table
        if step < STEPS:
            x, y = data.batch(train, BATCH, SHORT, seed, step)
            parallel.train_step(pool, state, x, y, config, SETTINGS)
    params = state.params
    z = model.forward(params, long_x, config)[0].astype(np.float64)  # (160, 128, V)
    z -= np.log(np.exp(z).sum(axis=2, keepdims=True))                # log probabilities
    surprise = -np.take_along_axis(z, long_y[:, :, None], axis=2)    # (160, 128, 1)
    return params, config, surprise.mean(axis=(0, 2))

# %%
runs = {"none": dict(position="none"),
        "none, 2 layers": dict(position="none", layers=2),
        "learned": dict(position="learned"),
        "sinusoidal": dict(position="sinusoidal"),
        "small waves": dict(position="learned", table=0.03 * waves(LONG, 64)),
        "decay": dict(position="decay"), "rope": dict(position="rope")}
with parallel.workers(1) as pool:
    results = {name: [trained(seed=seed, **options) for seed in (0, 1)]
               for name, options in runs.items()}

print("loss, nats per character    seed 0   seed 1     "
      f"places 1-{SHORT}   {SHORT + 1}-{LONG}")
for name, both in results.items():
    short = [surprise[:SHORT].mean() for _, _, surprise in both]
    long = np.mean([surprise[SHORT:].mean() for _, _, surprise in both])
    print(f"{name:26s} {short[0]:7.3f}  {short[1]:7.3f}        "
          f"{np.mean(short):7.3f}  {long:7.3f}")

# %%
counts = np.ones((len(vocabulary),) * 2)
np.add.at(counts, (train[:-1], train[1:]), 1)
share = counts / counts.sum(axis=1, keepdims=True)
bigram = -np.mean(np.log(share[val[:-1], val[1:]]))

# %% tags=["plot"]
# Picture: on the left the loss of seven models, two dots each: RoPE lowest, then decay;
# sinusoidal far above the rest. On the right the loss by place in a window four times
# as long as in training: decay stays level, RoPE and the learned table rise.
fig, (left, right) = plots.figure(11, 4.2, ncols=2, width_ratios=(1, 1.5))
ends = []
dashes = ("-", "--", "-.", "-", ":", "-", (0, (6, 1)))
for n, (name, both) in enumerate(results.items()):
    colour = plots.COLOURS[n % len(plots.COLOURS)]
    left.plot([s[:SHORT].mean() for _, _, s in both], [n, n], "o", color=colour)
    if name != "sinusoidal":
        s = np.mean([s for _, _, s in both], axis=0)
        smooth = np.convolve(s, np.ones(8) / 8, "valid")             # (LONG - 7,)
        right.plot(np.arange(4.5, LONG - 3), smooth, color=colour, ls=dashes[n])
        ends.append((smooth[-1], name, colour))
left.axvline(bigram, color="gray", ls="--", lw=1)
left.text(bigram, 5.5, " the bigram table\n of lesson 19", color="gray", va="center",
          fontsize=9)
left.set_yticks(range(len(results)), list(results))
left.invert_yaxis()
left.set(xlabel=f"loss on places 1 to {SHORT} (nats per character)",
         title="RoPE and decay win (two seeds)")
right.axvline(SHORT, color="gray", ls="--", lw=1)
right.set(xlabel="place in the window (mean of 8)", ylabel="loss (nats per character)",
          title="Beyond the trained length (line) only decay stays as good")
lowest = -np.inf
for end, name, colour in sorted(ends):  # a name at the end of each line, not overlaid
    lowest = max(end, lowest + 0.035)
    right.text(LONG - 2, lowest, name, color=colour, va="center", fontsize=9)
right.set_xlim(0, LONG + 26);

# %% [markdown]
# What we see, on the left:
#
# - **none** is only a little better than counting pairs. It knows the last character,
#   which flows past attention in the stream, and a bag of the others. A second layer
#   could count, but has hardly begun to.
# - **learned** and **small waves** gain little over that in such a short run, if
#   anything. Absolute places say nothing about distance until the projections have been
#   trained to compare them, at every pair of places.
# - **sinusoidal** at full size shows what happens if the waves are twenty or more times
#   as large as what they are added to. (The original model multiplies its token
#   embeddings by $\sqrt C$ before it adds: 1706.03762, section 3.4.)
# - **decay** and **rope** make scores depend on the distance from the first step on,
#   and win. Neither adds a single parameter.
#
# On the right, no encoding wins everything. Past the length of training the learned
# table gives rows that were never trained, and RoPE meets angles that it never saw.
# Even "none" gets worse, because a mean over more keys is a different mean from the one
# it was trained with. Decay goes on as before: what is far away has no weight in its
# sharp heads.
#
# Where do the heads look? The mean weight by distance, in four of these models (queries
# from the second half of a short window):

# %% tags=["plot"]
# Picture: mean weight against how far back a key is, four heads each. Without
# positions the curves are level; with learned places, decay and RoPE some heads peak
# within three characters.
fig, axes = plots.figure(11, 3.5, ncols=4, sharey=True)
for ax, name in zip(axes, ("none", "learned", "decay", "rope")):
    params, config, _ = results[name][0]
    seen = []
    model.forward(params, long_x[:100, :SHORT], config, weights=seen)
    last = seen[0][:, :, SHORT // 2:].mean(axis=0)  # (B, H, T, T) -> (H, T/2, T)
    # only queries that have at least T/2 keys behind them
    for h in range(4):
        mean = [np.diagonal(last[h], SHORT // 2 - r).mean() for r in range(SHORT // 2)]
        ax.plot(mean, "os^d"[h] + "-", ms=3, lw=1.2, label=f"head {h + 1}")
    ax.set(title=name, xlabel="characters back")
axes[0].set_ylabel("mean weight")
axes[-1].legend(frameon=False, fontsize=8)
fig.suptitle("Without positions no head can prefer a distance");

# %% [markdown]
# Without positions a head cannot prefer a distance: its curves are flat, apart from
# what the characters happen to reveal. Decay's first head is held to what is near, and
# its last one hardly feels its slope. With the table the heads have begun to choose.
# RoPE's heads do choose: most look at the last few characters, which decide the next
# one.
#
# **What we now know.** One layer of attention without positions sees a bag; a causal
# mask lets deeper layers count a little. Waves and turns both rest on $\cos(a - b)$:
# products of encodings that know only distances. For added waves that holds only before
# projections; RoPE turns after them, so its scores are relative whatever is learned. In
# a short training of a small model, relative encodings are clearly ahead; beyond the
# trained length only decay stays as good.
#
# **What remains unknown.** Do these gaps survive longer training and larger models? Two
# seeds of one small model are no law: try
# `minattn train --preset nano --position none`, then `learned` and `rope`. Can a wave
# that fades away combine both ideas? That is [lesson 04](04_morlet.ipynb). And do
# models prefer some places of what they read? Lesson 09.
#
# **Source.** Learned: arXiv 1705.03122, section 3.1. Sinusoidal: 1706.03762, section
# 3.5. RoPE: 2104.09864, eq. 12 to 15. Decay (ALiBi): 2108.12409, section 3, which also
# found that it reads longer texts than it was trained on. Causal models without
# positions do learn some: 2203.16634.
