# %% [markdown]
# # 08 · Gaussian kernel attention: average those who are near
#
# **The question.** Attention learns three matrices to make queries, keys and values.
# What is left if we drop all three, and let every token simply average the tokens that
# resemble it? **Time:** 25 minutes to read, 60 with the exercises. **You need:** lesson
# 01 (softmax attention and its gradient). The idea (arXiv 2605.02144) is an old one of
# statistics, and that is where we begin. (The letters: [notation](NOTATION.md).)

# %%
import numpy as np

from minattn import lessons, plots
from minattn.attention import gaussian
from minattn.lessons import grader_08

# %% [markdown]
# ## The picture: smoothing a noisy curve
#
# Someone measured a function at $T$ places $x_j$, with noise: $y_j$. What is its value
# at $x_i$? Take the mean of all measurements, the near ones with more weight (Nadaraya
# and Watson, 1964):
#
# $$ K_{ij} = e^{-\lVert x_i - x_j\rVert^2/(2\sigma^2)}, \qquad
#    W_{ij} = \frac{K_{ij}}{\sum_k K_{ik}}, \qquad \hat y_i = \sum_j W_{ij}\, y_j $$
#
# $K$ is a *kernel*: 1 for equal places, less the further apart. $\sigma$ is its
# *bandwidth*: what counts as near.

# %%
def kernel_weights(x, sigma, visible=True):
    """x (T, D) -> W (T, T), rows sum to 1; visible (T, T) says who may see whom"""
    d2 = ((x[:, None] - x)**2).sum(axis=2)        # (T, T)  squared distances
    K = np.exp(-d2 / (2 * sigma**2)) * visible    # no exponent is above 0: no overflow
    return K / K.sum(axis=1, keepdims=True)       # no sum is below 1, because K_ii = 1

rng = np.random.default_rng(0)
T = 120
places = np.sort(rng.uniform(0, 1, (T, 1)), axis=0)                  # (T, 1)
truth = np.sin(9 * places) * (1 - places)                            # (T, 1)
y = truth + 0.25 * rng.standard_normal((T, 1))                       # (T, 1)

# %% tags=["plot"]
# Picture: noisy points and a smoothed curve through them, for three bandwidths: too
# narrow follows every point, the middle one follows the truth, too wide is flat. On the
# right the error against the bandwidth, lowest in the middle.
fig, axes = plots.figure(11, 3.2, ncols=4)
for ax, sigma, what in zip(axes, (0.003, 0.04, 0.4), ("noisy", "good", "flat")):
    ax.plot(places, y, ".", color="0.65", ms=4, label="measured")
    ax.plot(places, truth, color="black", lw=1, ls="--", label="truth")
    smoothed = kernel_weights(places, sigma) @ y
    ax.plot(places, smoothed, color=plots.COLOURS[1], label="smoothed")
    ax.set(xlabel="place $x$", title=rf"$\sigma = {sigma}$: {what}", ylim=(-1.3, 1.6))
axes[0].set_ylabel("value")
axes[0].legend(frameon=False, fontsize=8, loc="upper right")
sigmas = np.geomspace(0.001, 2, 40)
errors = [np.sqrt(np.mean((kernel_weights(places, s) @ y - truth)**2)) for s in sigmas]
axes[3].plot(sigmas, errors, color=plots.COLOURS[0])
axes[3].set(xscale="log", ylim=(0, None), xlabel=r"bandwidth $\sigma$",
            ylabel="root mean square error", title="Best in between");

# %% [markdown]
# Too narrow, and every place copies only itself, noise and all; too wide, and every
# place gets the same mean. The weights $W_{ij}$ are positive and sum to 1, and the
# result is a weighted mean of values: this *is* attention, with the distance as the
# comparison.
#
# ## The formula: tokens instead of places
#
# Let $x_i$ be the vector of token $i$ (normalised, and cut into heads of $D$ channels).
# It serves as place and as value:
#
# $$ o_i = \sum_{j \le i} W_{ij}\, x_j, \qquad
#    \sigma_h = e^{\ell_h} \ \text{learned, one number } \ell_h
#    \text{ (log\_sigma) per head } h $$
#
# (arXiv 2605.02144), where keys $j > i$ get $K_{ij} = 0$ before the division. No $W_Q$,
# $W_K$, $W_V$: in $H$ heads with $C$ channels together a layer has $C^2 + H$ numbers,
# with the output projection, where softmax attention has $4C^2$.

# %%
def gaussian_attention(x, sigma):
    """x (T, D) -> (T, D), causal"""
    return kernel_weights(x, sigma, np.tri(len(x))) @ x  # (T, T), (T, D) -> (T, D)

x = rng.standard_normal((13, 7))                                     # (T, D)
theirs, cache = gaussian.forward(x[None, None], np.log([1.7]), causal=True)
far = np.abs(theirs[0, 0] - gaussian_attention(x, 1.7)).max()
print("largest difference from minattn:", f"{far:.0e}")

word = "to be or not to be"  # as in lesson 00
# a random vector for every character: (T, D)
codes = rng.standard_normal((256, 16))[[ord(c) for c in word]]

# %% tags=["plot"]
# Picture: weights on "to be or not to be" for three bandwidths. Narrow: only equal
# characters. Wide: every row is even. The future is white.
def draw(middle):
    fig, axes = plots.figure(11, 3.9, ncols=3)
    for ax, sigma in zip(axes, (1, middle, 30)):
        W = kernel_weights(codes, sigma, np.tri(len(word)))
        seen = np.where(np.tri(len(word), dtype=bool), W, np.nan)
        image = ax.imshow(seen, cmap="cividis", vmin=0, vmax=1)
        ax.grid(False)
        ax.set_xticks(range(len(word)), word.replace(" ", "␣"), fontsize=8)
        ax.set(yticks=(), xlabel="key", title=rf"$\sigma = {sigma}$")
    axes[0].set_yticks(range(len(word)), word.replace(" ", "␣"), fontsize=8)
    axes[0].set_ylabel("query")
    fig.suptitle("Narrow: equal characters only; wide: the mean of the past")
    fig.colorbar(image, ax=axes, label="weight $W_{ij}$", shrink=0.85)
    return fig


lessons.slider(draw, "bandwidth in the middle", [1, 2, 3, 4, 5, 7, 10, 20, 30], start=3)

# %%
for sigma in (1, 3, 30):
    W = kernel_weights(codes, sigma, np.tri(len(word)))
    best = (W.max(axis=1) == W.diagonal()).all()
    print(f"sigma = {sigma:2d}:  no key outweighs the token itself: {best}")

# %% [markdown]
# Narrow: only equal characters see each other. Wide: the running mean of lesson 00. And
# at every width **each token is its own best key**, because no distance is below 0.
# Softmax attention can say "look at the token *before* me"; a Gaussian head can never
# give another token more weight than itself.
#
# ## The dot-product identity
#
# Multiply the square out:
# $\lVert x_i - x_j\rVert^2
# = \lVert x_i\rVert^2 + \lVert x_j\rVert^2 - 2\, x_i\cdot x_j$.
# The term $\lVert x_i\rVert^2$ is the same for all keys of a row, so it cancels in the
# division:
#
# $$ W_{ij} = \mathrm{softmax}_j\left(
#    \frac{x_i \cdot x_j - \tfrac12 \lVert x_j\rVert^2}{\sigma^2} \right) $$
#
# Dot-product attention, with a bias on the keys. So a fast program that knows only dot
# products (such a program is called a kernel too, in another sense) can compute it,
# although the paper says that it cannot be used. After an RMS norm, which gives all
# $x_j$ the same length, even the bias is constant and cancels.
#
# ## Exercise 1: only dot products
#
# A fast program computes `softmax(q @ k.T) @ v` and nothing else: no scale, no bias.
# Which $q$ and $k$ do you hand it? (You may give them one channel more.)

# %% tags=["exercise"]
def queries_and_keys(x, sigma):
    """x (T, D) -> q, k (T, as you like) such that softmax over j of q_i . k_j is W"""
    ...

grader_08.check_queries_and_keys(queries_and_keys);

# %% tags=["solution"]
def queries_and_keys(x, sigma):
    one, half = np.ones((len(x), 1)), (x**2).sum(axis=1, keepdims=True) / 2
    return np.hstack([x, one]) / sigma**2, np.hstack([x, -half])

grader_08.check_queries_and_keys(queries_and_keys);

# %% [markdown]
# ## The gradient, by hand
#
# Let $do$ be the gradient of the loss with respect to $o = W x$, and
# $s_{ij} = -\lVert x_i - x_j\rVert^2/(2\sigma^2)$ the scores. The first steps are those
# of lesson 01:
#
# $$ dW = do\; x^\top, \qquad
#    ds_{ij} = W_{ij}\Big(dW_{ij} - \sum_k W_{ik}\, dW_{ik}\Big) $$
#
# **The bandwidth.** Every score is proportional to $\sigma^{-2} = e^{-2\ell}$, so
# $\partial s_{ij}/\partial \ell = -2 s_{ij}$ and
# $d\ell = -2\sum_{ij} ds_{ij}\, s_{ij}$. **The tokens.** $x_i$ appears in three roles:
# as value, giving $W^\top do$; as query in row $i$; as key in column $i$. With
# $\partial s_{ij}/\partial x_i = -(x_i - x_j)/\sigma^2$ and
# $\partial s_{ij}/\partial x_j = +(x_i - x_j)/\sigma^2$, both together give
#
# $$ dx_i = (W^\top do)_i - \frac{1}{\sigma^2}\sum_j A_{ij}\,(x_i - x_j), \qquad
#    A = ds + ds^\top $$
#
# where the sum needs no differences:
# $\sum_j A_{ij}(x_i - x_j) = x_i \sum_j A_{ij} - (A x)_i$.
#
# ## Exercise 2: the gradient for log_sigma

# %% tags=["exercise"]
def gradient_log_sigma(x, W, do, sigma):
    """x (T, D), W (T, T), do (T, D), sigma -> dl, one number"""
    ...

grader_08.check_gradient_log_sigma(gradient_log_sigma);

# %% tags=["solution"]
def gradient_log_sigma(x, W, do, sigma):
    dW = do @ x.T
    ds = W * (dW - (W * dW).sum(axis=1, keepdims=True))
    s = -((x[:, None] - x)**2).sum(axis=2) / (2 * sigma**2)
    return -2 * (ds * s).sum()

grader_08.check_gradient_log_sigma(gradient_log_sigma);

# %% [markdown]
# ## Exercise 3: the gradient for the tokens

# %% tags=["exercise"]
def gradient_x(x, W, do, sigma):
    """x (T, D), W (T, T), do (T, D), sigma -> dx (T, D), all three roles together"""
    ...

grader_08.check_gradient_x(gradient_x);

# %% tags=["solution"]
def gradient_x(x, W, do, sigma):
    dW = do @ x.T
    ds = W * (dW - (W * dW).sum(axis=1, keepdims=True))
    A = ds + ds.T
    return W.T @ do - (A.sum(axis=1, keepdims=True) * x - A @ x) / sigma**2

grader_08.check_gradient_x(gradient_x);

# %%
do, direction = rng.standard_normal((2, *x.shape))  # a cotangent, and a direction for x
grads = gaussian.backward(do[None, None], cache)    # x (1, 1, T, D), log_sigma (1,)
h = 1e-5
up, down = (gaussian_attention(x + step * direction, 1.7) for step in (h, -h))
print(f"{'x, in a random direction':25s}  minattn {np.sum(grads['x'] * direction): .8f}"
      f"   central difference {np.sum(do * (up - down)) / (2 * h): .8f}")
up, down = (gaussian_attention(x, 1.7 * np.exp(step)) for step in (h, -h))
print(f"{'log_sigma':25s}  minattn {grads['log_sigma'][0]: .8f}"
      f"   central difference {np.sum(do * (up - down)) / (2 * h): .8f}")

# %% [markdown]
# ## What float32 loses in it
#
# Equal in mathematics is not equal in float32, which keeps some seven digits. The
# identity finds a small distance as a difference of large squares. We add the same
# offset to every channel, which changes no distance, and look at the error of $W$.

# %%
def by_identity(x, sigma):
    """x (T, D) -> W (T, T), every query sees every key; in the dtype of x"""
    s = (x @ x.T - (x**2).sum(axis=1) / 2) / sigma**2               # (T, T)
    P = np.exp(s - s.max(axis=1, keepdims=True))
    return P / P.sum(axis=1, keepdims=True)


tokens = rng.standard_normal((61, 16)).astype(np.float32)
offsets = np.geomspace(0.1, 1000, 13).astype(np.float32)
errors = {"differences": [], "identity": []}
for offset in offsets:
    x = tokens + offset
    true = kernel_weights(x.astype(float), 2.0)
    for way, compute in zip(errors, (kernel_weights, by_identity)):
        errors[way].append(np.abs(compute(x, 2.0) - true).max())

# %% tags=["plot"]
# Picture: the largest error of a weight against the offset, on logarithmic axes. With
# differences it stays near 1e-7; with the identity it grows to 0.1.
fig, ax = plots.figure(6.4, 3.4)
for (way, its), style in zip(errors.items(), ("o-", "s--")):
    ax.loglog(offsets, its, style, ms=4, label=way)
ax.set(xlabel="offset of every channel", ylabel="largest error of a weight",
       title="An offset costs the identity its digits")
ax.legend(frameon=False);

# %% [markdown]
# The error grows with the square of the offset, as $\lVert x_i\rVert^2$ does. In a
# model the norm in front of the layer keeps offsets small. (The gradient has a weak
# point of its own, for narrow kernels: `gaussian.py` says what the package does about
# it.)
#
# ## Exercise 4: repair it
#
# Keep the identity, for its speed, and lose no digits, without float64: what can you do
# to all tokens first that changes no distance?

# %% tags=["exercise"]
def weights_in_float32(x, sigma):
    """x (T, D) of float32 with a large common offset -> W (T, T), by dot products

    every query sees every key
    """
    ...

grader_08.check_weights_in_float32(weights_in_float32);

# %% tags=["solution"]
def weights_in_float32(x, sigma):
    x = x - x.mean(axis=0)  # the same shift for all: no distance changes
    s = (x @ x.T - (x**2).sum(axis=1) / 2) / sigma**2
    W = np.exp(s - s.max(axis=1, keepdims=True))
    return W / W.sum(axis=1, keepdims=True)

grader_08.check_weights_in_float32(weights_in_float32);

# %% [markdown]
# **What we now know.** Gaussian kernel attention is kernel smoothing among tokens: the
# bandwidth says how near is near, each token is its own best key, and the whole is
# dot-product attention with $q = k = v$, a scale of $1/\sigma^2$ and a bias on the
# keys. It saves three of four matrices. In float32 the identity loses digits to a
# common offset; shift the tokens first.
#
# **What remains unknown.** What is lost without the three matrices. Two experiments are
# in [lesson 20](20_a_kernel_reads_and_sees.ipynb).
#
# **Source.** arXiv 2605.02144; Nadaraya 1964 and Watson 1964 for the smoothing. In the
# package: `minattn/attention/gaussian.py`.
