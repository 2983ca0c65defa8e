"""Energy-gated attention: every key has an energy, and keys whose energy stands out weigh more.

    e_j = w . x_j + b                     one scalar per head and key
    z_j = (e_j - mean) / std              statistics chosen by `norm`
    g_j = sigmoid( alpha (z_j - tau) )
    weights_ij = P_ij g_j / sum_k P_ik g_k = softmax_j( s_ij + log g_j )

(arXiv 2605.26355, 2605.21842.) By the last equality the gate is a bias on the keys: no second
normalisation, and no division by zero to guard against. The published code drops weights before the
gate; here dropout follows the softmax.

As published, mean and deviation run over the whole block (norm="sequence"), so the gate of a key,
and with it the output at every position, depends on later tokens: not causal. The causal forms:
    "key"     statistics over the keys 1..j: one gate per key, cacheable (default)
    "prefix"  statistics over the keys 1..i of the query, as in sampling: the gate depends on (i, j)
    "none"    z = e
"""
from typing import Any, NamedTuple

import numpy as np

from minattn import checks
from minattn.attention.core import attend, attend_backward, attend_last
from minattn.attention.energy_prefix import PrefixGate
from minattn.ops import log_sigmoid, sigmoid

ARXIV = "2605.26355"
SUMMARY = "gates each key by its energy: a bias of log sigmoid(alpha (z - tau))"
ARGUMENTS = {"q": "B H Tq D", "k": "B G Tk D", "v": "B G Tk Dv",
             "energy": "B H Tk", "alpha": "H", "tau": "H"}
OPTIONS = {"norm": checks.Option("key", ("key", "prefix", "sequence", "none"))}
PROJECTIONS = {"energy": True}              # w . x + b
PARAMETERS = {"alpha": 2.0, "tau": 0.0}
NOT_CAUSAL = {("norm", "sequence"): "the gate's mean and deviation run over later tokens too"}
EPS = 1e-8       # a floor of the deviation ("sequence"), or added to the variance ("key", "prefix")


class Cache(NamedTuple):
    attention: Any
    z: np.ndarray                      # (B, H, Tk)  normalised energy; for "prefix" e_j - e_1
    one_minus_gate: np.ndarray | None  # (B, H, Tk)  None for "prefix"
    stats: Any                         # kept for the backward of the normalisation
    alpha: np.ndarray
    tau: np.ndarray
    norm: str


@checks.quiet
def forward(q, k, v, energy, alpha, tau, *, norm="key", **options):
    """out = softmax(s + log g) v.

    q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv), energy (B, H, Tk), alpha, tau (H,)
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    The statistics count every key, also those hidden by a window or `allowed`. For one key, z = 0.
    Other options and errors: minattn.attention.core.attend.
    """
    checks.choice("norm", norm, ("key", "prefix", "sequence", "none"))
    checks.arrays(q=(q, "B H Tq D"), k=(k, "B G Tk D"), energy=(energy, "B H Tk"),
                  alpha=(alpha, "H"), tau=(tau, "H"))
    checks.finite(alpha=alpha, tau=tau)
    norm = norm if energy.size else "none"                          # no keys have no mean
    z, stats = _normalise(energy, norm)                             # 1. z = (e - mean) / std
    if norm == "prefix":
        log_gate, one_minus_gate = PrefixGate(z, stats.dmean, stats.rstd, alpha, tau), None
    else:
        u = alpha[:, None] * (z - tau[:, None])                     # 2. u = alpha (z - tau)
        log_gate = log_sigmoid(u)[:, :, None, :]                    # 3. log g       (B, H, 1, Tk)
        one_minus_gate = sigmoid(-u)
    out, attention, *weights = attend(q, k, v, own_bias=(log_gate,), **options)     # 4.
    return (out, Cache(attention, z, one_minus_gate, stats, alpha, tau, norm), *weights)


@checks.quiet
def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v", "energy", "alpha", "tau"} (and "bias" if given)"""
    attention, z, one_minus_gate, stats, alpha, tau, norm = cache
    # 4. out = softmax(s + log g) v
    grads = attend_backward(dout, attention)
    (dlog_gate,) = grads.pop("own_bias")
    if norm == "prefix":
        dz, dstats = dlog_gate.pop("e"), (dlog_gate.pop("mean"), dlog_gate.pop("rstd"))
        grads.update(dlog_gate)
    else:
        # 3. log g: its slope is 1 - g
        du = dlog_gate[:, :, 0] * one_minus_gate                    # (B, H, Tk)
        # 2. u = alpha (z - tau)
        grads["alpha"] = (du * (z - tau[:, None])).sum(axis=(0, 2))
        grads["tau"] = -alpha * du.sum(axis=(0, 2))
        dz, dstats = du * alpha[:, None], None
    # 1. z = (e - mean) / std
    grads["energy"] = _normalise_backward(dz, z, stats, norm, dstats)
    return grads


def decode(q, k, v, energy, alpha, tau, *, norm="key", bias=None, **options):
    """forward for one query, in generation: see core.attend_last. k and v: the last keys"""
    z, stats = _normalise(energy, norm)
    first = energy.shape[2] - k.shape[2]
    if norm == "prefix":
        every, T = slice(None), energy.shape[2]
        gate = PrefixGate(z, stats.dmean, stats.rstd, alpha, tau)
        log_gate = gate.tile(every, every, np.array([T - 1]), np.arange(first, T))
    else:
        log_gate = log_sigmoid(alpha[:, None] * (z[:, :, first:] - tau[:, None]))[:, :, None]
    return attend_last(q, k, v, bias=log_gate if bias is None else log_gate + bias, **options)


def computed(cache):
    """What `minattn inspect` shows of a layer: its gates, (B, H, T), or one per visible pair"""
    log_gate, *_ = cache.attention.biases
    if cache.norm == "prefix":                                      # one per query and visible key
        every, T = slice(None), cache.z.shape[2]
        log_gate = log_gate.tile(every, every, np.arange(T), np.arange(T))
        log_gate = log_gate[:, :, np.tri(T, dtype=bool)]
    else:
        log_gate = log_gate[:, :, 0]
    return {"energy gate": np.exp(log_gate)}


# ------------------------------------------------------------------------------- the normalisation


def _normalise(energy, norm):
    """energy (B, H, Tk) -> z (B, H, Tk), what its backward needs"""
    if norm == "none":
        return energy, None
    if norm == "sequence":
        centred = energy - energy.mean(axis=-1, keepdims=True)
        std = np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True))
        return centred / np.maximum(std, EPS), std
    run = _running(energy)
    if norm == "prefix":
        return run.d.astype(energy.dtype), run
    return ((energy - run.mean) * run.rstd).astype(energy.dtype), run


def _normalise_backward(dz, z, stats, norm, dstats):
    if norm == "none":
        return dz
    if norm == "sequence":              # as in layer norm; below std's floor, only the mean counts
        along_z = np.where(stats >= EPS, z * np.mean(dz * z, axis=-1, keepdims=True), 0)
        dcentred = (dz - along_z) / np.maximum(stats, EPS)
        return dcentred - dcentred.mean(axis=-1, keepdims=True)
    if norm == "prefix":
        return (dz + _running_backward(*dstats, stats)).astype(dz.dtype)
    scaled = dz * stats.rstd            # "key": z_j = (e_j - mean_j) rstd_j
    denergy = scaled + _running_backward(-scaled, dz * (stats.d - stats.dmean), stats)
    return denergy.astype(dz.dtype)


class Running(NamedTuple):
    """Statistics of e_1..e_j, (B, H, Tk) each, in float64: running sums lose digits."""
    mean: np.ndarray
    rstd: np.ndarray    # 1 / sqrt(var_j + EPS); 0 at j = 1, where z is 0
    d: np.ndarray       # e_j - e_1: the shift changes no variance and keeps its digits
    dmean: np.ndarray   # running mean of d


def _running(energy):
    d = energy.astype(np.float64)
    first = d[..., :1].copy()
    d -= first                                                       # 1. shift
    n = np.arange(1, d.shape[-1] + 1)
    dmean = np.cumsum(d, axis=-1) / n                                # 2. running mean
    var = np.maximum(np.cumsum(d * d, axis=-1) / n - dmean**2, 0)    # 3. running variance
    rstd = np.where(n > 1, 1 / np.sqrt(var + EPS), 0)                # 4.
    return Running(dmean + first, rstd, d, dmean)


def _running_backward(dmean, drstd, run):
    """Gradients of the running mean and 1 / std -> that of the energy, (B, H, Tk)"""
    n = np.arange(1, run.d.shape[-1] + 1)
    dvar = -0.5 * run.rstd**3 * drstd                                # 4. rstd = (var + EPS)^(-1/2)
    dsum2 = dvar / n                                                 # 3. var = sum2 / n - mean^2
    dsum = (dmean - 2 * run.dmean * dvar) / n                        # 2. mean = sum / n
    return _sums_from(dsum) + 2 * run.d * _sums_from(dsum2)          # 1. the shift has no gradient


def _sums_from(x):
    """y_j = x_j + x_(j+1) + ... along the last axis, the transpose of np.cumsum"""
    return np.cumsum(x[..., ::-1], axis=-1)[..., ::-1]
