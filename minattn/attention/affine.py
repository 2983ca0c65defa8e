"""Affine-scaled attention: scale the weights by alpha, then add beta to those of all visible keys.

    out_i = alpha_i (P v)_i + beta_i sum_{visible j} v_j            (arXiv 2602.23057, eq. 6)
    alpha = phi(x W_alpha)    per head and query                                (eq. 7)
    beta_i = (alpha_ma - alpha_i) / N_i                                         (eq. 8)
    alpha_ma <- rho alpha_ma + (1 - rho) mean(alpha)    a buffer, no gradient   (eq. 9)

The weight on key j is alpha (P_ij - 1/N) + alpha_ma / N: the deviation from uniform is scaled, and
weights may be negative. With a causal mask the second term is a running sum of v, so nothing here
is (Tq, Tk). The paper leaves N open under a mask: length="total" counts every key, "visible" those
that the query sees (each row then sums to alpha_ma), an integer is that number. "total" makes a
prefix alone differ from the prefix of a whole.
"""
from typing import Any, NamedTuple

import numpy as np

from minattn import checks, masks
from minattn.attention.core import attend, attend_backward, attend_last, repeat, sum_groups
from minattn.errors import InputError
from minattn.ops import sigmoid

ARXIV = "2602.23057"
SUMMARY = "scales the weights by alpha(x) and spreads the rest evenly over the visible keys"
ARGUMENTS = {"q": "B H Tq D", "k": "B G Tk D", "v": "B G Tk Dv",
             "alpha_logits": "B H Tq", "alpha_ma": "H"}
STOCHASTIC = False          # a row's weights do not sum to 1
OPTIONS = {"phi": checks.Option("linear_clip", ("linear_clip", "sigmoid")),
           "length": checks.Option("total", ("total", "visible"), {"low": 1, "integer": True},
                                   examples=(19,))}
PROJECTIONS = {"alpha_logits": False}       # x W_alpha, without a bias
BUFFERS = {"alpha_ma": 0.0}
LAYER_OPTIONS = {"momentum": checks.Option(0.9, number={"low": 0, "high": 1}, examples=(0.7,)),
                 "axes": checks.Option("head", ("head", "layer")),       # of the mean in eq. 9
                 "use": checks.Option("after", ("after", "before"))}    # ... this batch is in
NOT_CACHEABLE = {("length", "total"): "beta divides by the length of the whole sequence"}


class Cache(NamedTuple):
    attention: Any              # the core's cache; its out is P v
    alpha: np.ndarray           # (B, H, Tq)
    slope: np.ndarray           # (B, H, Tq)  phi'
    beta: np.ndarray            # (B, H, Tq)
    n: np.ndarray               # N, broadcastable to (B, H, Tq)
    sum_v: np.ndarray           # (B, H, Tq, Dv)  sum of the visible values
    seen: masks.Seen


@checks.quiet
def forward(q, k, v, alpha_logits, alpha_ma, *, phi="linear_clip", length="total", **options):
    """out = alpha * (P v) + beta * (sum of the visible values).

    q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv), alpha_logits (B, H, Tq), alpha_ma (H,), a
    constant
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    phi: "linear_clip" = clip(x / 10 + 1/2, 0, 1) (eq. 11) or "sigmoid". length: "total", "visible"
    or an integer. Other options and errors: minattn.attention.core.attend.
    """
    Pv, attention, *weights = attend(q, k, v, **options)                      # 1. softmax attention
    size = dict(zip(("B", "H", "Tq"), Pv.shape))
    checks.arrays(size, q.dtype, alpha_logits=(alpha_logits, "B H Tq"), alpha_ma=(alpha_ma, "H"))
    checks.finite(alpha_ma=alpha_ma)
    alpha, slope = phi_forward(alpha_logits, phi)                           # 2. alpha = phi(logits)
    seen = masks.seen(q.shape[2], k.shape[2], attention.mask, attention.allowed)
    n = _length(length, seen, k.shape[2], q.dtype)
    beta = (alpha_ma[:, None] - alpha) / n                        # 3. beta = (alpha_ma - alpha) / N
    sum_v = masks.sum_seen(attention.v, seen)                          # 4. S_i = sum of visible v_j
    out = alpha[..., None] * Pv
    out += beta[..., None] * sum_v                                   # 5. out = alpha (P v) + beta S
    if weights:
        weights = [alpha[..., None] * weights[0] + beta[..., None] * masks.dense(seen, q.dtype)]
    return (out, Cache(attention, alpha, slope, beta, n, sum_v, seen), *weights)


@checks.quiet
def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v", "alpha_logits"}; alpha_ma is a buffer and has none."""
    attention, alpha, slope, beta, n, sum_v, seen = cache
    checks.gradient("dout", dout, attention.out.shape, attention.out.dtype)
    # 5. out = alpha (P v) + beta S
    dalpha = np.einsum("bhid,bhid->bhi", dout, attention.out)
    dbeta = np.einsum("bhid,bhid->bhi", dout, sum_v)
    grads = attend_backward(dout * alpha[..., None], attention)             # 1. d(P v) = alpha dout
    # 4. S_i = sum of visible v_j: v_j collects gradient from every query that sees it
    dv = masks.sum_seeing(dout * beta[..., None], seen)
    grads["v"] += sum_groups(dv, grads["v"].shape[1])
    # 3. beta = (alpha_ma - alpha) / N
    dalpha -= dbeta / n
    # 2. alpha = phi(logits)
    grads["alpha_logits"] = dalpha * slope
    return grads


def decode(q, k, v, alpha_logits, alpha_ma, *, phi="linear_clip", length="total", **options):
    """forward for one query, in generation: see core.attend_last"""
    Pv = attend_last(q, k, v, **options)
    alpha, _ = phi_forward(alpha_logits, phi)
    n = k.shape[2] if isinstance(length, str) else length                   # it sees every key
    beta = (alpha_ma[:, None] - alpha) / Pv.dtype.type(n)
    sum_v = repeat(v.sum(axis=2, keepdims=True), q.shape[1])
    return alpha[..., None] * Pv + beta[..., None] * sum_v


def computed(cache):
    """What `minattn inspect` shows of a layer: arrays (B, H, ...) that the text brought about."""
    return {"alpha": cache.alpha, "beta": cache.beta}


@checks.quiet
def phi_forward(x, phi):
    """alpha = phi(x) and its slope, which is 0 at the two kinks of the linear clip (x = -5, 5)."""
    checks.choice("phi", phi, ("linear_clip", "sigmoid"))
    if phi == "sigmoid":
        alpha = sigmoid(x)
        return alpha, alpha * (1 - alpha)
    alpha = np.clip(x * 0.1 + 0.5, 0, 1)
    return alpha, np.where(np.abs(x) < 5, 0.1, 0).astype(x.dtype)


def update_moving_average(alpha_ma, alpha_logits, *, phi="linear_clip", momentum=0.9, axes="head"):
    """Eq. 9: one step of the moving average of alpha, (H,) -> (H,), without bias correction.

    The mean is over batch and positions, one per head; axes="layer" takes it over the heads too.
    """
    checks.choice("axes", axes, ("head", "layer"))
    momentum = checks.number("momentum", momentum, 0, high=1)
    checks.arrays(alpha_ma=(alpha_ma, "H"), alpha_logits=(alpha_logits, "B H T"))
    if not alpha_logits.size:
        raise InputError(f"alpha_logits must not be empty; got shape {alpha_logits.shape}.")
    alpha, _ = phi_forward(alpha_logits, phi)
    mean = alpha.mean(axis=(0, 2)) if axes == "head" else np.full_like(alpha_ma, alpha.mean())
    return (momentum * alpha_ma + (1 - momentum) * mean).astype(alpha_ma.dtype)


def update_buffers(stored, arguments, *, use="after", length=None, **options):
    """In training: the stored buffers {"alpha_ma": (H,)} -> those to use now, those to keep."""
    average = update_moving_average(stored["alpha_ma"], arguments["alpha_logits"], **options)
    kept = {"alpha_ma": average}
    return kept if use == "after" else stored, kept


def _length(length, seen, Tk, dtype):
    """N of eq. 8, as an array that broadcasts to (B, H, Tq); never 0."""
    if length == "visible":
        return np.maximum(masks.count_seen(seen), 1).astype(dtype)
    if length == "total":
        return np.array(max(Tk, 1), dtype)
    if isinstance(length, str):
        checks.choice("length", length, ("total", "visible", "an integer"))
    checks.number("length", length, 1, integer=True)
    return np.array(length, dtype)
