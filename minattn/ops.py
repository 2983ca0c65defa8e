"""The layers around attention, each forward directly above the backward that undoes it.

Rows come first: x is (N, C), N = batch * tokens, C channels. A forward returns (y, cache); a
backward takes the gradient of a scalar with respect to y and the cache, and returns a dict keyed by
the forward's array arguments. float32 in gives float32 out, float64 gives float64. Nothing is
remembered between calls.

Where a fast form hides the mathematics, the docstring gives the formula first. Fast means: a block
of rows at a time, so that each pass finds them in cache, and in place.
"""
import math
from typing import NamedTuple

import numpy as np

from minattn import checks
from minattn.errors import InputError

LAYER_NORM_EPS = 1e-5
GELU_SCALE, GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715
ROWS_IN_CACHE = 1 << 16   # elements per block: a few arrays of this size fit in one core's cache


def _check_rows(x, others=(), channels="C"):
    """Check x (N, C) and arrays of its dtype that go with it: (name, array or None, shape) each."""
    given = {name: (array, shape) for name, array, shape in others
             if array is not None or name != "bias"}
    checks.arrays(x=(x, f"N {channels}"), **given)


def row_blocks(x):
    """Slices over the rows of x (N, C), so short that a block of several arrays stays in cache."""
    step = max(1, ROWS_IN_CACHE // max(1, x.shape[1]))
    return (slice(i, i + step) for i in range(0, x.shape[0], step))


# ------------------------------------------------------------------------------------------- linear


class LinearCache(NamedTuple):
    x: np.ndarray        # (N, C_in)   kept: dweight needs it
    weight: np.ndarray   # (C_in, C_out)
    biased: bool


@checks.quiet
def linear_forward(x, weight, bias=None):
    """Mix the channels: y = x W + b.

    x (N, C_in), weight (C_in, C_out), bias (C_out,) or None -> y (N, C_out)
    """
    _check_rows(x, (("weight", weight, "C_in C_out"), ("bias", bias, "C_out")), "C_in")
    y = x @ weight                                 # 1. (N, C_in), (C_in, C_out) -> (N, C_out)
    if bias is not None:
        y += bias                                  # 2.
    return y, LinearCache(x, weight, bias is not None)


@checks.quiet
def linear_backward(dy, cache):
    """dy (N, C_out) -> {"x": (N, C_in), "weight": (C_in, C_out), "bias": (C_out,) if given}"""
    x, weight, biased = cache
    checks.gradient("dy", dy, (len(x), weight.shape[1]), x.dtype)
    grads = {}
    # 2. y += bias, for every row
    if biased:
        grads["bias"] = np.ones(len(dy), dy.dtype) @ dy   # dy.sum(axis=0), as a product: faster
    # 1. y = x @ weight
    grads["weight"] = x.T @ dy                     # (C_in, N), (N, C_out) -> (C_in, C_out)
    grads["x"] = dy @ weight.T                     # (N, C_out), (C_out, C_in) -> (N, C_in)
    return grads


# --------------------------------------------------------------------------------------- layer norm


class LayerNormCache(NamedTuple):
    xhat: np.ndarray     # (N, C)  kept: every gradient below needs it
    rstd: np.ndarray     # (N, 1)  kept: cheaper than taking the root again
    weight: np.ndarray   # (C,)
    biased: bool


@checks.quiet
def layer_norm_forward(x, weight, bias=None, eps=LAYER_NORM_EPS):
    """Centre each row, scale it to unit variance, then apply a learned gain and, if given, a bias.

        mean = x.mean(axis=1)                     var = ((x - mean)**2).mean(axis=1)
        xhat = (x - mean) / sqrt(var + eps)       y = xhat * weight + bias

    (arXiv 1607.06450, eq. 3)   x (N, C), weight (C,), bias (C,) or None -> y (N, C)
    """
    _check_rows(x, (("weight", weight, "C"), ("bias", bias, "C")), "C")
    eps = checks.number("eps", eps, 0)
    N, C = x.shape
    xhat, y, rstd = np.empty_like(x), np.empty_like(x), np.empty((N, 1), x.dtype)
    mean = x @ np.full((C, 1), 1 / C, x.dtype)                # x.mean(axis=1) as a product: faster
    for rows in row_blocks(x):
        xc = np.subtract(x[rows], mean[rows], out=xhat[rows])         # 1. centre
        var = np.einsum("nc,nc->n", xc, xc)[:, None] / C
        rstd[rows] = 1 / np.sqrt(var + eps)                           # 2. measure the spread
        xc *= rstd[rows]                                              # 3. scale: xc is xhat now
        np.multiply(xhat[rows], weight, out=y[rows])                  # 4. gain
        if bias is not None:
            y[rows] += bias                                           # 5. bias
    return y, LayerNormCache(xhat, rstd, weight, bias is not None)


@checks.quiet
def layer_norm_backward(dy, cache):
    """dy (N, C) -> {"x": (N, C), "weight": (C,), "bias": (C,) if given}

        dxhat = dy * weight
        dx = (dxhat - dxhat.mean(axis=1) - xhat * (dxhat * xhat).mean(axis=1)) * rstd
    """
    xhat, rstd, weight, biased = cache
    checks.gradient("dy", dy, xhat.shape, xhat.dtype)
    C = dy.shape[1]
    # 5, 4. y = xhat * weight + bias
    grads = {"weight": np.einsum("nc,nc->c", dy, xhat)}
    if biased:
        grads["bias"] = dy.sum(axis=0)
    # 3, 2, 1. xhat = (x - mean) * rstd. Shifting or stretching a row of x leaves xhat unchanged, so
    # those two parts of dxhat are removed: its mean, and its component along xhat.
    grads["x"] = np.empty_like(dy)
    shift = dy @ (weight / C)[:, None]                                # dxhat.mean(axis=1)
    for rows in row_blocks(dy):
        dxhat = np.multiply(dy[rows], weight, out=grads["x"][rows])
        stretch = np.einsum("nc,nc->n", dxhat, xhat[rows])[:, None] / C
        dxhat -= shift[rows]
        dxhat -= xhat[rows] * stretch
        dxhat *= rstd[rows]                                           # dxhat is dx now
    return grads


# ----------------------------------------------------------------------------------------- RMS norm


class RMSNormCache(NamedTuple):
    y: np.ndarray        # (..., D)  kept: the gradient is written in it
    rrms: np.ndarray     # (..., 1)


@checks.quiet
def rms_norm_forward(x, eps=1e-6):
    """Scale each row to unit mean square, without parameters (arXiv 1910.07467, eq. 4).

        y = x / sqrt(mean(x^2) + eps)

    x (..., D) -> y (..., D). The paper has no eps; 1e-6 is the usual guard against a row of zeros.
    """
    if type(x) not in checks.PLAIN or x.dtype not in checks.FLOATS or x.ndim < 1:
        raise InputError("x must be a float32 or float64 array of shape (..., D); "
                         f"got {checks.kind(x)}.")
    eps = checks.number("eps", eps, 0)
    mean_square = np.einsum("...d,...d->...", x, x)[..., None] / x.shape[-1]
    rrms = 1 / np.sqrt(mean_square + eps)          # 1. measure
    y = x * rrms                                   # 2. scale
    return y, RMSNormCache(y, rrms)


@checks.quiet
def rms_norm_backward(dy, cache):
    """dy (..., D) -> {"x": (..., D)}"""
    y, rrms = cache
    checks.gradient("dy", dy, y.shape, y.dtype)
    # 2, 1. y = x * rrms(x). Stretching a row of x leaves y unchanged: the part along y is removed.
    stretch = np.einsum("...d,...d->...", dy, y)[..., None] / y.shape[-1]
    return {"x": (dy - y * stretch) * rrms}


# ------------------------------------------------------------------------------------ sigmoid, GELU


@checks.quiet
def sigmoid(x):
    """1 / (1 + exp(-x)), computed as e / (1 + e) with e = exp(x): near 0 it keeps its digits."""
    # above 80 it is 1 in either precision; with an array, minimum takes a quarter of the time
    y = np.exp(np.minimum(x, np.full_like(x, 80)))
    y /= 1 + y
    return y


@checks.quiet
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)), accurate at both ends."""
    y = np.abs(x)
    np.exp(np.negative(y, out=y), out=y)
    np.log1p(y, out=y)
    y += np.maximum(x, np.zeros_like(x))
    return y


@checks.quiet
def log_sigmoid(x):
    """log(1 / (1 + exp(-x))) = -softplus(-x)"""
    y = softplus(-x)
    return np.negative(y, out=y)


class GeluCache(NamedTuple):
    slope: np.ndarray    # (N, C)  dy/dx: cheapest while x and Phi are in cache


@checks.quiet
def gelu_forward(x, form="tanh"):
    """Gaussian error linear unit: y = x Phi(x)  (arXiv 1606.08415, section 2).

        form="exact":  Phi(x) = (1 + erf(x / sqrt(2))) / 2
        form="tanh":   Phi(x) = (1 + tanh(u)) / 2,  u = c (x + a x^3), c = sqrt(2/pi), a = 0.044715
        slope:         dy/dx = Phi + x Phi',   with Phi' = 2 Phi (1 - Phi) u' in the tanh form

    The tanh form approximates the exact one, is faster, and is GPT-2's.   x (N, C) -> y (N, C)
    """
    checks.choice("gelu form", form, ("tanh", "exact"))
    _check_rows(x)
    y, slope = np.empty_like(x), np.empty_like(x)
    for rows in row_blocks(x):
        phi = twice_phi_minus_1(x[rows], form)
        phi *= 0.5
        phi += 0.5                                         # 1. Phi
        np.multiply(x[rows], phi, out=y[rows])             # 2. y = x Phi
        if form == "exact":
            density = np.exp(-x[rows] * x[rows] / 2)
            slope[rows] = phi + x[rows] * density / math.sqrt(2 * math.pi)
        else:                                              # slope = Phi + (1 - Phi) 2 u' y
            twice_du = x[rows] * x[rows]
            twice_du *= 6 * GELU_SCALE * GELU_CUBIC
            twice_du += 2 * GELU_SCALE                     # 2 u' = 2 c (1 + 3 a x^2)
            np.subtract(1, phi, out=slope[rows])
            y_twice_du = np.multiply(twice_du, y[rows], out=twice_du)
            slope[rows] *= y_twice_du
            slope[rows] += phi
    return y, GeluCache(slope)


def twice_phi_minus_1(x, form):
    """2 Phi(x) - 1: tanh(u) or erf(x / sqrt(2))."""
    if form == "exact":
        from scipy.special import erf  # not at the top: only this form needs more than NumPy
        return erf(x / math.sqrt(2))
    u = x * x
    u *= GELU_SCALE * GELU_CUBIC
    u += GELU_SCALE
    u *= x                                                 # u = x (c + c a x^2)
    return np.tanh(u, out=u)


@checks.quiet
def gelu_backward(dy, cache):
    """dy (N, C) -> {"x": (N, C)}"""
    checks.gradient("dy", dy, cache.slope.shape, cache.slope.dtype)
    return {"x": dy * cache.slope}


# ---------------------------------------------------------------------------------------- embedding


class EmbeddingCache(NamedTuple):
    ids: np.ndarray      # (N,)
    shape: tuple         # (V, C)


def embedding_forward(ids, weight):
    """Look up each token: y = weight[ids].   ids (N,) integers < V, weight (V, C) -> y (N, C)"""
    checks.arrays(weight=(weight, "V C"))
    checks.integers("ids", ids, len(weight), axes=1)
    return weight[ids], EmbeddingCache(ids, weight.shape)


def embedding_backward(dy, cache):
    """dy (N, C) -> {"weight": (V, C)}: dweight[v] = dy[ids == v].sum(axis=0)"""
    ids, shape = cache
    checks.arrays(dy=(dy, f"{len(ids)} {shape[1]}"))
    dweight = np.zeros(shape, dy.dtype)
    if len(ids):
        order = np.argsort(ids, kind="stable")     # equal tokens side by side, in their own order
        used, first = np.unique(ids[order], return_index=True)
        dweight[used] = np.add.reduceat(dy[order], first, axis=0)
    return {"weight": dweight}


# ------------------------------------------------------------------------------------------ dropout


class DropoutCache(NamedTuple):
    keep: np.ndarray | None   # 0 or 1 / (1 - p); None where nothing is dropped


def keep_mask(shape, p, rng, dtype):
    """An array of 0 (with probability p) and 1 / (1 - p), from 16 random bits per entry."""
    drop = round(p * 65536)
    n = math.prod(shape)
    bits = np.frombuffer(rng.bytes(2 * n), np.dtype("<u2"))
    keep = (bits >= drop).astype(dtype).reshape(shape)
    keep *= 65536 / (65536 - drop)
    return keep


def dropout_forward(x, p, rng):
    """Zero each entry with probability p and scale the rest by 1 / (1 - p): the mean is unchanged.

    (arXiv 1207.0580)  rng: numpy.random.Generator, or None to drop nothing, as in evaluation. p is
    rounded to a multiple of 1/65536.  x (N, C) -> y (N, C)
    """
    p = checks.number("p", p, 0, high=0.999)
    if rng is None or p == 0:
        return x, DropoutCache(None)
    _check_rows(x)
    checks.generator(rng)
    keep = keep_mask(x.shape, p, rng, x.dtype)
    return x * keep, DropoutCache(keep)


def dropout_backward(dy, cache):
    """dy (N, C) -> {"x": (N, C)}"""
    if cache.keep is None:
        return {"x": dy}
    checks.gradient("dy", dy, cache.keep.shape, cache.keep.dtype)
    return {"x": dy * cache.keep}


# ------------------------------------------------------------------------------------ cross-entropy


class CrossEntropyCache(NamedTuple):
    probs: np.ndarray    # (N, V)
    targets: np.ndarray  # (N,)


@checks.quiet
def cross_entropy_forward(logits, targets):
    """Mean negative log-likelihood of the targets, in nats.

        loss = mean_n( log(sum_v exp(logits_nv)) - logits_n,target )

    logits (N, V), targets (N,) integers below V -> loss (float)
    """
    checks.arrays(logits=(logits, "N V"))
    checks.integers("targets", targets, logits.shape[1], axes=1)
    if len(targets) != len(logits) or not logits.size:
        raise InputError(f"targets must have one entry for each row of logits {logits.shape}, and "
                         f"there must be one; got shape {targets.shape}.")
    probs = logits - logits.max(axis=1, keepdims=True)   # 1. subtract the row maximum: no overflow
    target_logits = probs[np.arange(len(targets)), targets]
    np.exp(probs, out=probs)                       # 2. numerators
    total = probs.sum(axis=1, keepdims=True)       # 3. denominators
    probs /= total                                 # 4. softmax
    loss = np.mean(np.log(total[:, 0]) - target_logits, dtype=np.float64)   # 5.
    return float(loss), CrossEntropyCache(probs, targets)


@checks.quiet
def cross_entropy_backward(dloss, cache):
    """dloss (number) -> {"logits": (N, V)}: (softmax - one_hot) * dloss / N"""
    probs, targets = cache
    if isinstance(dloss, np.ndarray) and dloss.ndim == 0:
        dloss = dloss[()]
    N, dloss = len(targets), checks.number("dloss", dloss)
    dlogits = probs * float(dloss / N)
    dlogits[np.arange(N), targets] -= float(dloss / N)
    return {"logits": dlogits}
