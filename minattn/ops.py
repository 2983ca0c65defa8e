"""The layers around attention, each forward directly above the backward that undoes it.

Rows come first: x is (N, C), N = batch * tokens, C channels. A forward returns (y, cache); a backward takes the
gradient of a scalar with respect to y and the cache, and returns a dict keyed by the forward's array arguments.
float32 in gives float32 out, float64 gives float64. Nothing here remembers anything between calls.
"""
import math
from typing import NamedTuple

import numpy as np

from minattn.checks import choice

ROWS_IN_CACHE = 1 << 16   # elements per block of an elementwise pass: a few such arrays fit in the caches of a core


def row_blocks(x):
    """Slices over the rows of x (N, C) such that one block of each array of a fused pass stays in cache."""
    step = max(1, ROWS_IN_CACHE // max(1, x.shape[1]))
    return (slice(i, i + step) for i in range(0, x.shape[0], step))


# ------------------------------------------------------------------------------------------------------- linear


class LinearCache(NamedTuple):
    x: np.ndarray        # (N, C_in)   kept: dweight needs it
    weight: np.ndarray   # (C_in, C_out)
    biased: bool


def linear_forward(x, weight, bias=None):
    """Mix the channels: y = x W + b.   x (N, C_in), weight (C_in, C_out), bias (C_out,) or None -> y (N, C_out)"""
    y = x @ weight                                                  # 1. (N, C_in), (C_in, C_out) -> (N, C_out)
    if bias is not None:
        y += bias                                                   # 2.
    return y, LinearCache(x, weight, bias is not None)


def linear_backward(dy, cache):
    """dy (N, C_out) -> {"x": (N, C_in), "weight": (C_in, C_out), "bias": (C_out,) if there was one}"""
    x, weight, biased = cache
    grads = {}
    # 2. y += bias: every row received it
    if biased:
        grads["bias"] = np.ones(len(dy), dy.dtype) @ dy             # the sum over rows, as a product: faster
    # 1. y = x @ weight
    grads["weight"] = x.T @ dy                                      # (C_in, N), (N, C_out) -> (C_in, C_out)
    grads["x"] = dy @ weight.T                                      # (N, C_out), (C_out, C_in) -> (N, C_in)
    return grads


# --------------------------------------------------------------------------------------------------- layer norm


class LayerNormCache(NamedTuple):
    xhat: np.ndarray     # (N, C)  kept: every gradient below needs it
    rstd: np.ndarray     # (N, 1)  kept: cheaper than taking the root again
    weight: np.ndarray   # (C,)
    biased: bool


def layer_norm_forward(x, weight, bias=None, eps=1e-5):
    """Centre each row, scale it to unit variance, then apply a learned gain and, if given, a bias.

    y = weight * (x - mean) / sqrt(var + eps) + bias, population variance over the channels (arXiv 1607.06450, eq. 3).

    x (N, C), weight (C,), bias (C,) or None -> y (N, C)
    """
    N, C = x.shape
    xhat, y, rstd = np.empty_like(x), np.empty_like(x), np.empty((N, 1), x.dtype)
    mean = x @ np.full((C, 1), 1 / C, x.dtype)                                           # a product is NumPy's fastest row sum
    for rows in row_blocks(x):
        xc = np.subtract(x[rows], mean[rows], out=xhat[rows])                            # 1. centre
        var = np.einsum("nc,nc->n", xc, xc)[:, None] / C
        rstd[rows] = 1 / np.sqrt(var + eps)                                              # 2. measure the spread
        xc *= rstd[rows]                                                                 # 3. scale
        np.multiply(xc, weight, out=y[rows])                                             # 4. gain
        if bias is not None:
            y[rows] += bias                                                              # 5. bias
    return y, LayerNormCache(xhat, rstd, weight, bias is not None)


def layer_norm_backward(dy, cache):
    """dy (N, C) -> {"x": (N, C), "weight": (C,), "bias": (C,) if there was one}"""
    xhat, rstd, weight, biased = cache
    N, C = dy.shape
    # 5, 4. y = xhat * weight + bias
    grads = {"weight": np.einsum("nc,nc->c", dy, xhat)}
    if biased:
        grads["bias"] = dy.sum(axis=0)
    # 3, 2, 1. xhat = (x - mean) * rstd. Mean and rstd depend on every x of the row: the part of dxhat that only
    # shifts the row, and the part that only stretches it, change nothing and are taken out.
    dx = np.empty_like(dy)
    shift = dy @ (weight / C)[:, None]                                                   # mean of dxhat = dy * weight
    for rows in row_blocks(dy):
        dxhat = np.multiply(dy[rows], weight, out=dx[rows])
        stretch = np.einsum("nc,nc->n", dxhat, xhat[rows])[:, None] / C
        dxhat -= shift[rows]
        dxhat -= xhat[rows] * stretch
        dxhat *= rstd[rows]
    grads["x"] = dx
    return grads


# --------------------------------------------------------------------------------------------------------- RMS norm


class RMSNormCache(NamedTuple):
    y: np.ndarray        # (..., D)  kept: the gradient is written in it
    rrms: np.ndarray     # (..., 1)


def rms_norm_forward(x, eps=1e-6):
    """Scale each row to unit mean square, without parameters: y = x / sqrt(mean(x^2) + eps)  (arXiv 1910.07467, eq. 4).

    x (..., D) -> y (..., D). The paper has no eps; 1e-6 is the usual guard against a row of zeros.
    """
    rrms = 1 / np.sqrt(np.einsum("...d,...d->...", x, x)[..., None] / x.shape[-1] + eps)     # 1. measure
    y = x * rrms                                                                             # 2. scale
    return y, RMSNormCache(y, rrms)


def rms_norm_backward(dy, cache):
    """dy (..., D) -> {"x": (..., D)}"""
    y, rrms = cache
    # 2, 1. y = x * rrms(x): what only stretches the row changes nothing
    stretch = np.einsum("...d,...d->...", dy, y)[..., None] / y.shape[-1]
    return {"x": (dy - y * stretch) * rrms}


# --------------------------------------------------------------------------------------------------------- GELU


class GeluCache(NamedTuple):
    slope: np.ndarray    # (N, C)  dy/dx, computed while x and tanh are still in cache: the backward is one product


def gelu_forward(x, form="tanh"):
    """Gaussian error linear unit, x * Phi(x)  (arXiv 1606.08415, section 2).

    form="tanh":  Phi(x) ~ (1 + tanh(u)) / 2,  u = sqrt(2/pi) (x + 0.044715 x^3)   (GPT-2's choice, and faster)
    form="exact": Phi(x) = (1 + erf(x / sqrt 2)) / 2

    x (N, C) -> y (N, C)
    """
    choice("gelu form", form, ("tanh", "exact"))
    y, slope = np.empty_like(x), np.empty_like(x)
    for rows in row_blocks(x):
        (_gelu_tanh if form == "tanh" else _gelu_exact)(x[rows], y[rows], slope[rows])
    return y, GeluCache(slope)


def _gelu_tanh(x, y, slope):
    c, a = math.sqrt(2 / math.pi), 0.044715
    x2 = x * x
    half = x2 * (c * a)
    half += c
    half *= x                                     # 1. u = c (x + a x^3)
    np.tanh(half, out=half)
    half *= 0.5
    half += 0.5                                   # 2. h = (1 + tanh u) / 2
    np.multiply(x, half, out=y)                   # 3. y = x h
    x2 *= 6 * c * a                               # slope = h + x h',   h' = 2 h (1 - h) u',   u' = c (1 + 3 a x^2)
    x2 += 2 * c
    x2 *= y
    np.subtract(1, half, out=slope)
    slope *= x2
    slope += half


def _gelu_exact(x, y, slope):
    from scipy.special import erf  # here and not above: NumPy has no erf, and only this form needs it
    phi = (erf(x / math.sqrt(2)) + 1) / 2         # 1. Phi(x)
    np.multiply(x, phi, out=y)                    # 2. y = x Phi(x)
    slope[:] = phi + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def gelu_backward(dy, cache):
    """dy (N, C) -> {"x": (N, C)}"""
    return {"x": dy * cache.slope}


# ----------------------------------------------------------------------------------------------------- embedding


class EmbeddingCache(NamedTuple):
    ids: np.ndarray      # (N,)
    shape: tuple         # (V, C)


def embedding_forward(ids, weight):
    """Look each token up: y_n = weight[ids_n].   ids (N,) integers below V, weight (V, C) -> y (N, C)"""
    return weight[ids], EmbeddingCache(ids, weight.shape)


def embedding_backward(dy, cache):
    """dy (N, C) -> {"weight": (V, C)}: each row of the table collects the gradients of the places that used it."""
    ids, shape = cache
    dweight = np.zeros(shape, dy.dtype)
    if len(ids):
        order = np.argsort(ids, kind="stable")                      # equal tokens side by side, in their own order
        used, first = np.unique(ids[order], return_index=True)
        dweight[used] = np.add.reduceat(dy[order], first, axis=0)
    return {"weight": dweight}


# ------------------------------------------------------------------------------------------------------- dropout


class DropoutCache(NamedTuple):
    keep: np.ndarray | None   # 0 or 1 / (1 - p); None where nothing is dropped


def keep_mask(shape, p, rng, dtype):
    """An array of 0 (with probability p) and 1 / (1 - p), drawn from rng: 16 random bits per entry, p to 1/65536."""
    drop = round(p * 65536)
    n = math.prod(shape)
    bits = np.frombuffer(rng.bytes(2 * n), np.dtype("<u2"))
    keep = (bits >= drop).astype(dtype).reshape(shape)
    keep *= 65536 / (65536 - drop)
    return keep


def dropout_forward(x, p, rng):
    """Zero each entry with probability p and scale the rest by 1 / (1 - p), so the mean stays (arXiv 1207.0580).

    rng: numpy.random.Generator, or None to drop nothing (evaluation). p is rounded to a multiple of 1/65536.
    x (N, C) -> y (N, C)
    """
    if rng is None or p == 0:
        return x, DropoutCache(None)
    keep = keep_mask(x.shape, p, rng, x.dtype)
    return x * keep, DropoutCache(keep)


def dropout_backward(dy, cache):
    """dy (N, C) -> {"x": (N, C)}"""
    return {"x": dy if cache.keep is None else dy * cache.keep}


# ------------------------------------------------------------------------------------------ softmax cross-entropy


class CrossEntropyCache(NamedTuple):
    probs: np.ndarray    # (N, V)
    targets: np.ndarray  # (N,)


def cross_entropy_forward(logits, targets):
    """Mean surprise of the right tokens, in nats: loss = mean_n( log sum_v exp(logits_nv) - logits_n,target ).

    logits (N, V), targets (N,) integers below V -> loss (float)
    """
    N = len(targets)
    probs = logits - logits.max(axis=1, keepdims=True)              # 1. subtract the true maximum: no overflow
    right = probs[np.arange(N), targets]
    np.exp(probs, out=probs)                                        # 2.
    total = probs.sum(axis=1, keepdims=True)                        # 3.
    probs /= total                                                  # 4. softmax
    loss = np.mean(np.log(total[:, 0]) - right, dtype=np.float64)   # 5. mean in float64: cheap, and it is reported
    return float(loss), CrossEntropyCache(probs, targets)


def cross_entropy_backward(dloss, cache):
    """dloss (number) -> {"logits": (N, V)}: (softmax - one_hot) * dloss / N"""
    probs, targets = cache
    N = len(targets)
    dlogits = probs * float(dloss / N)
    dlogits[np.arange(N), targets] -= float(dloss / N)
    return {"logits": dlogits}
