"""Linear attention: a product of features of q and k takes the place of exp(q . k).

    kappa_ij = phi(q_i) . phi(k_j)     P_ij = kappa_ij / sum_k kappa_ik     out = P v

    feature="elu"   phi(x) = x + 1 for x > 0, e^x else                       (arXiv 2006.16236)
    feature="lln"   phi(q) = e^(alpha q), phi(k) = e^(beta k)                (arXiv 2311.13541)
                    alpha^2 = (b + C1 / a) / C2     a, b: variances of all numbers of q and of k
                    beta^2  = (a + C1 / b) / C2     so that kappa spreads as exp(q . k) does

Two exact forms. (a) P is the softmax of log kappa, so every mask, bias, window and dropout of the
core serves, and a bias multiplies kappa by exp(bias). (b) Without any of these a causal layer needs
only sums over the keys so far, in time and memory linear in T: linear_recurrence.py. `forward`
takes (b) where it costs less.

As published, lln is not causal (norm="tensor"): a and b run over the whole tensor. The causal form
is norm="rms", the default: each q and k is divided by its own root mean square, and a = b = 1.
What the papers leave open, as chosen here: a, b are differentiated too (the authors' code takes
them for constants); the guard in the denominator (1e-6, 1e-8 in their code) is left out, a row
whose kappa is all 0 gives 0; each phi(q) and phi(k) of lln, and a phi(q) of elu that is below 1, is
taken relative to its largest channel.
"""
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minattn import checks
from minattn.attention import core, linear_recurrence
from minattn.attention.rules import Softmax
from minattn.ops import rms_norm_backward, rms_norm_forward

ARXIV = "2006.16236"
SUMMARY = "a product of positive features for exp(q k): linear in the sequence's length"
ARGUMENTS = {"q": "B H Tq D", "k": "B G Tk D", "v": "B G Tk Dv"}
OPTIONS = {"feature": checks.Option("elu", ("elu", "lln")),
           "norm": checks.Option("rms", ("rms", "tensor"))}           # of lln
REFUSES = ("scale", "softcap", "log_length")
NOT_CAUSAL = {("feature", "lln", "norm", "tensor"):
              "the scales of q and k are variances over the whole tensor, later tokens too"}
C1, C2 = 0.35487039, 2 * 0.14855178      # fitted by the authors of lln
FLOOR = 1e-12                            # of a variance


@dataclass(frozen=True)
class LogKernel(Softmax):
    """The softmax of log kappa. kappa = 0 has weight 0 and gets no gradient."""
    saves = 1

    def rescore(self, kappa):
        with np.errstate(divide="ignore"):
            return np.log(kappa), kappa

    def rescore_backward(self, ds, kappa):
        smallest = np.full_like(kappa, np.finfo(kappa.dtype).smallest_subnormal)
        ds /= np.maximum(kappa, smallest)                         # where kappa = 0, so is ds
        return ds


class Cache(NamedTuple):
    attention: Any
    recurrent: bool
    phi: tuple               # of q, of k
    scaled: Any              # of lln: what made the exponents, see _scale


@checks.quiet
def forward(q, k, v, *, feature="elu", norm="rms", **options):
    """out_i = sum_j kappa_ij v_j / sum_j kappa_ij over the visible keys.

    q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv)
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    norm is for lln; elu takes q and k as they are.
    Other options and errors: minattn.attention.core.attend, except REFUSES: features have no scale.
    """
    core.refuse(options, REFUSES)
    checks.choice("feature", feature, ("elu", "lln"))
    checks.choice("norm", norm, ("rms", "tensor"))
    core.check_arguments(q, k, v)
    phi_q, phi_k, top, scaled = _features(q, k, feature, norm)    # 1. features
    if linear_recurrence.serves(q, k, v, **options):              # 2. average, form (b)
        out, attention, _ = linear_recurrence.forward(phi_q, phi_k, v, top)
        return out, Cache(attention, True, (phi_q, phi_k), scaled)
    biases = () if top is None else (core.repeat(top, q.shape[1])[:, :, None],)
    out, attention, *weights = core.attend(                       # 2. average, form (a)
        phi_q, phi_k, v, scale=1.0, own_bias=biases, rule=LogKernel(), **options)
    return (out, Cache(attention, False, (phi_q, phi_k), scaled), *weights)


@checks.quiet
def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v"} (and "bias" if one was given)"""
    # 2. average; top cancels: it has no gradient
    undo = linear_recurrence.backward if cache.recurrent else core.attend_backward
    grads = undo(dout, cache.attention)
    grads.pop("own_bias", None)
    # 1. features
    if cache.scaled is None:
        for name, phi in zip("qk", cache.phi):
            grads[name] *= np.minimum(phi, np.ones_like(phi))     # the slope: 1 or e^x
        return grads
    dx, dy = grads.pop("q"), grads.pop("k")
    dx *= cache.phi[0]
    dy *= cache.phi[1]
    return {**_scale_backward(dx, dy, cache.scaled), **grads}


@checks.quiet
def continue_from(state, q, k, v, *, feature="elu", norm="rms"):
    """Generation in constant memory: attention to all tokens so far, of which `state` is left.

    state: what the last call returned, None at the start
    q (B, H, T, D), k (B, G, T, D), v (B, G, T, Dv) of T new tokens; unchecked
    -> out (B, H, T, Dv), state
    """
    phi_q, phi_k, top, _ = _features(q, k, feature, norm)
    out, _, state = linear_recurrence.forward(phi_q, phi_k, v, top, state)
    return out, state


def _features(q, k, feature, norm):
    """-> phi(q), phi(k), what was taken from each key's exponents, what the backward needs"""
    if feature == "elu":
        lowest = np.minimum(q.max(axis=3, keepdims=True), 0)      # a query's factor cancels
        return _elu_plus_1(q, lowest), _elu_plus_1(k), None, None
    x, y, scaled = _scale(q, k, norm)
    top = y.max(axis=3)                                           # a bias of the key
    return _exp_below_top(x), _exp_below_top(y), top, scaled


def _elu_plus_1(x, less=0):
    """x + 1 above 0, elsewhere e^(x - less) as it stands: elu(x) + 1 would lose its digits

    less: 0 for a row in which any x is above 0
    """
    zeros = np.zeros_like(x)                       # faster than the number 0
    y = np.minimum(x, zeros)
    y -= less
    np.exp(y, out=y)
    y += np.maximum(x, zeros)
    return y


def _exp_below_top(x):
    """exp(x - the largest of its row), in the place of x"""
    x -= x.max(axis=3, keepdims=True)
    return np.exp(x, out=x)


def _scale(q, k, norm):
    """The exponents of lln, alpha q and beta k -> x, y, what the backward needs"""
    if norm == "rms":
        (q, q_norm), (k, k_norm) = rms_norm_forward(q), rms_norm_forward(k)
        alpha = ((1 + C1) / C2)**0.5                              # 2.1355
        return alpha * q, alpha * k, (alpha, q_norm, k_norm)
    a, b = (max(float(z.var(dtype=np.float64)) if z.size else 0, FLOOR) for z in (q, k))
    alpha, beta = ((b + C1 / a) / C2)**0.5, ((a + C1 / b) / C2)**0.5
    return alpha * q, beta * k, (alpha, beta, a, b, q, k)


def _scale_backward(dx, dy, scaled):
    if len(scaled) == 3:
        alpha, q_norm, k_norm = scaled
        return {"q": alpha * rms_norm_backward(dx, q_norm)["x"],
                "k": alpha * rms_norm_backward(dy, k_norm)["x"]}
    alpha, beta, a, b, q, k = scaled
    dalpha2 = float((dx * q).sum()) / (2 * alpha * C2)            # of C2 alpha^2 = b + C1 / a
    dbeta2 = float((dy * k).sum()) / (2 * beta * C2)
    da, db = dbeta2 - dalpha2 * C1 / a**2, dalpha2 - dbeta2 * C1 / b**2
    return {"q": alpha * dx + _variance_backward(da, a, q),
            "k": beta * dy + _variance_backward(db, b, k)}


def _variance_backward(dvar, var, x):
    return 2 * dvar / x.size * (x - x.mean()) if var > FLOOR else np.zeros_like(x)
