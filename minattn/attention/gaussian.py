"""Gaussian kernel attention: tokens average their neighbours in feature space; no query, key or value projections.

    K_ij = exp( -|x_i - x_j|^2 / (2 sigma_h^2) )        W = K / (sum over the visible keys)        out = W x
    sigma_h = exp(log_sigma_h), one width per head                                       (arXiv 2605.02144)

|x_i|^2 is the same for a whole row and cancels, so W = softmax_j( (x_i . x_j - |x_j|^2 / 2) / sigma^2 ): dot-product
attention with q = x / sigma^2, k = v = x and a bias on the keys. Stable for every sigma, and no epsilon. The rows get
their -|x_i|^2 / (2 sigma^2) all the same: it changes no weight, but then every score is -|x_i - x_j|^2 / (2 sigma^2) as
above, small for the keys that matter, and float32 loses no digits of the gradients to |x|^2.
"""
import math
from typing import Any, NamedTuple

import numpy as np

from minattn import checks
from minattn.attention.core import attend, attend_backward

ARXIV = "2605.02144"
SUMMARY = "a Gaussian kernel of the distance between tokens; no q, k, v projections"
ARGUMENTS = {"x": "B H T D", "log_sigma": "H"}
OPTIONAL = {"keys": "B H Tk D", "values": "B H Tk Dv"}
LAYER_OPTIONS = {"qk_norm": checks.Option(True, (True, False)),          # RMS-norm the features
                 "rope_values": checks.Option(False, (False, True)),     # rotate the values too
                 "sigma_init": checks.Option(None, (None,), {"above": 0}, examples=(1.7,))}


def initial_log_sigma(head_size, sigma_init=None, **options):
    """The scores' usual scale: sigma^2 = sqrt(D), unless a width is given."""
    return math.log(sigma_init or head_size**0.25)


PARAMETERS = {"log_sigma": initial_log_sigma}


class Cache(NamedTuple):
    attention: Any
    x: np.ndarray             # (B, H, Tq, D)
    keys: np.ndarray          # (B, H, Tk, D)
    inv: np.ndarray           # (H, 1, 1)        1 / sigma^2
    row_bias: np.ndarray      # (B, H, Tq)       -|x|^2 / (2 sigma^2)
    key_bias: np.ndarray      # (B, H, Tk)       -|key|^2 / (2 sigma^2)
    own: tuple                # (keys were given, values were given)
    has_bias: int             # how many biases the caller brought (-1: one plain array)


def forward(x, log_sigma, *, keys=None, values=None, bias=None, **options):
    """out_i = sum_j W_ij values_j, W normalised over the visible keys.

    x (B, H, Tq, D), log_sigma (H,); keys (B, H, Tk, D), x if None; values (B, H, Tk, Dv), the keys if None
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    Other options and errors: minattn.attention.core.attend, except scale, which sigma replaces.
    """
    if "scale" in options:
        checks.choice("option", "scale", ("bias", "causal", "window", "prefix", "allowed", "align", "dropout", "rng"))
    own = keys is not None, values is not None
    keys = x if keys is None else keys
    values = keys if values is None else values
    checks.arrays(x=(x, "B H Tq D"), keys=(keys, "B H Tk D"), values=(values, "B H Tk Dv"), log_sigma=(log_sigma, "H"))
    checks.finite(log_sigma=log_sigma)
    inv = np.exp(-2 * log_sigma)[:, None, None]                                   # 1. 1 / sigma^2
    q = x * inv                                                                   # 2. queries
    row_bias = np.einsum("bhid,bhid->bhi", x, x) * (-0.5 * inv[:, 0])             # 3. -|x|^2 / (2 sigma^2): cancels, but
    key_bias = np.einsum("bhjd,bhjd->bhj", keys, keys) * (-0.5 * inv[:, 0])       #    with it s = -distance^2 / (2 sigma^2)
    theirs = () if bias is None else bias if isinstance(bias, tuple) else (bias,)
    out, attention, *weights = attend(q, keys, values, scale=1.0, **options,
                                       bias=(row_bias[..., None], key_bias[:, :, None], *theirs))            # 4.
    count = -1 if isinstance(bias, np.ndarray) else len(theirs)
    return (out, Cache(attention, x, keys, inv, row_bias, key_bias, own, count), *weights)


def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"x", "log_sigma"} (and "keys", "values", "bias" where given)"""
    attention, x, keys, inv, row_bias, key_bias, (own_keys, own_values), has_bias = cache
    # 4. out = softmax(q k^T + row_bias + key_bias) v
    core = attend_backward(dout, attention)
    drow_bias, dkey_bias, *dtheirs = core["bias"]
    drow_bias, dkey_bias = drow_bias[..., 0], dkey_bias[:, :, 0]                  # (B, H, Tq), (B, H, Tk)
    # 3. row_bias = -|x|^2 / (2 sigma^2), key_bias = -|key|^2 / (2 sigma^2)
    dkeys = core["k"] - keys * (dkey_bias[..., None] * inv)
    # 2. q = x / sigma^2
    dx = (core["q"] - x * drow_bias[..., None]) * inv
    # 1. every score is proportional to 1 / sigma^2 = exp(-2 log_sigma): dlog_sigma = -2 sum ds s
    ds_s = np.einsum("bhid,bhid->h", core["q"], attention.q)
    ds_s += np.einsum("bhi,bhi->h", drow_bias, row_bias) + np.einsum("bhj,bhj->h", dkey_bias, key_bias)
    grads = {"log_sigma": -2 * ds_s}
    if has_bias:
        grads["bias"] = dtheirs[0] if has_bias == -1 else tuple(dtheirs)
    # one x plays three parts, so its gradient is their sum
    if own_values:
        grads["values"] = core["v"]
    else:
        dkeys = dkeys + core["v"]
    if own_keys:
        grads["keys"] = dkeys
    else:
        dx = dx + dkeys
    return {"x": dx, **grads}
