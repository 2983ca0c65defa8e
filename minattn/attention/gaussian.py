"""Gaussian kernel attention: tokens average their neighbours in feature space; no projections.

    K_ij = exp( -|x_i - x_j|^2 / (2 sigma_h^2) )    W = K / (sum over the visible keys)    out = W x
    sigma_h = exp(log_sigma_h), one width per head                              (arXiv 2605.02144)

-|x_i - x_j|^2 / 2 = x_i . x_j - |x_i|^2 / 2 - |x_j|^2 / 2, so W is dot-product attention with
q = x / sigma^2, k = v = x, a bias on the rows and one on the keys. That is stable for every sigma
and needs no epsilon. The rows' bias changes no weight, but with it the scores that matter are
small, and float32 loses no digits of the gradients to |x|^2.
"""
import math
from typing import Any, NamedTuple

import numpy as np

from minattn import checks
from minattn.attention import core

ARXIV = "2605.02144"
SUMMARY = "scores by a Gaussian kernel of the distance between tokens, without q, k, v projections"
ARGUMENTS = {"x": "B H T D", "log_sigma": "H"}
OPTIONAL = {"keys": "B H Tk D", "values": "B H Tk Dv"}
REFUSES = ("scale", "softcap", "log_length")
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
    keys_given: bool
    values_given: bool


@checks.quiet
def forward(x, log_sigma, *, keys=None, values=None, **options):
    """out_i = sum_j W_ij values_j, W normalised over the visible keys.

    x (B, H, Tq, D), log_sigma (H,)
    keys (B, H, Tk, D), x if None; values (B, H, Tk, Dv), the keys if None
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    Other options and errors: minattn.attention.core.attend, except REFUSES: sigma is the scale.
    """
    core.refuse(options, REFUSES)
    given = keys is not None, values is not None
    keys = x if keys is None else keys
    values = keys if values is None else values
    checks.arrays(x=(x, "B H Tq D"), keys=(keys, "B H Tk D"), values=(values, "B H Tk Dv"),
                  log_sigma=(log_sigma, "H"))
    checks.finite(log_sigma=log_sigma)
    inv = np.exp(-2 * log_sigma)[:, None, None]                             # 1. 1 / sigma^2
    q = x * inv                                                             # 2. x / sigma^2
    row_bias = np.einsum("bhid,bhid->bhi", x, x) * (-0.5 * inv[:, 0])       # 3. -|x|^2 / 2 sigma^2
    key_bias = np.einsum("bhjd,bhjd->bhj", keys, keys) * (-0.5 * inv[:, 0])
    biases = (row_bias[..., None], key_bias[:, :, None])
    out, attention, *weights = core.attend(                                 # 4. softmax(s) values
        q, keys, values, scale=1.0, own_bias=biases, **options)
    return (out, Cache(attention, x, keys, inv, row_bias, key_bias, *given), *weights)


@checks.quiet
def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"x", "log_sigma"} (and "keys", "values", "bias" where given)"""
    attention, x, keys, inv, row_bias, key_bias, keys_given, values_given = cache
    # 4. out = softmax(q k^T + row_bias + key_bias) v
    grads = core.attend_backward(dout, attention)
    dq, dkeys, dvalues = grads.pop("q"), grads.pop("k"), grads.pop("v")
    drow_bias, dkey_bias = grads.pop("own_bias")
    drow_bias, dkey_bias = drow_bias[..., 0], dkey_bias[:, :, 0]          # (B, H, Tq), (B, H, Tk)
    # 3. row_bias = -|x|^2 / (2 sigma^2), key_bias = -|key|^2 / (2 sigma^2)
    dkeys -= keys * (dkey_bias[..., None] * inv)
    # 2. q = x / sigma^2
    dx = (dq - x * drow_bias[..., None]) * inv
    # 1. every score is proportional to exp(-2 log_sigma): dlog_sigma = -2 sum ds s
    ds_s = np.einsum("bhi,bhi->h", drow_bias, row_bias)
    ds_s += np.einsum("bhj,bhj->h", dkey_bias, key_bias)
    ds_s += np.einsum("bhid,bhid->h", dq, attention.q)
    grads["log_sigma"] = -2 * ds_s
    # an array with several roles gets the sum of their gradients
    if values_given:
        grads["values"] = dvalues
    else:
        dkeys += dvalues
    if keys_given:
        grads["keys"] = dkeys
    else:
        dx += dkeys
    return {"x": dx, **grads}


def decode(x, log_sigma, *, keys, values, bias=None):
    """forward for one query, in generation: see core.attend_last. The query's own bias cancels."""
    inv = np.exp(-2 * log_sigma)[:, None]
    key_bias = np.einsum("bhjd,bhjd->bhj", keys, keys) * (-0.5 * inv)
    key_bias = key_bias[:, :, None] if bias is None else key_bias[:, :, None] + bias
    return core.attend_last(x * inv[..., None], keys, values, bias=key_bias)
