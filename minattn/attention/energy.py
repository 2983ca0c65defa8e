"""Energy-gated attention: every key carries an energy, and a key whose energy stands out is heard louder.

    e_j = w . x_j + b                     one scalar per head and key
    z_j = (e_j - mean) / std              statistics chosen by `norm`
    g_j = sigmoid( alpha (z_j - tau) )
    weights_ij = P_ij g_j / sum_k P_ik g_k = softmax( s_ij + log g_j )              (arXiv 2605.26355, 2605.21842)

By the last equality the gate is a bias on the keys: no second normalisation, and nothing to guard against zero. With
dropout the published code drops weights before the gate; here they are dropped after the softmax that holds it.

As published the mean and deviation run over the whole block (norm="sequence"), so the gate of a key, and with it the
output at every position, depends on later tokens: not causal. The causal forms:
    "key"     statistics over the keys 1..j: one gate per key, cacheable (default)
    "prefix"  statistics over the keys 1..i of the query: what sampling would compute; the gate depends on (i, j)
    "none"    z = e
"""
from typing import Any, NamedTuple

import numpy as np

from minattn import checks, masks
from minattn.attention.core import attend, attend_backward
from minattn.ops import log_sigmoid, sigmoid

ARXIV = "2605.26355"
SUMMARY = "a gate on each key, opened by its energy, as a bias log sigmoid(alpha (z - tau))"
ARGUMENTS = {"q": "B H Tq D", "k": "B H Tk D", "v": "B H Tk Dv",
             "energy": "B H Tk", "alpha": "H", "tau": "H"}
OPTIONS = {"norm": checks.Option("key", ("key", "prefix", "sequence", "none"))}
PROJECTIONS = {"energy": True}              # w . x + b
PARAMETERS = {"alpha": 2.0, "tau": 0.0}
NOT_CAUSAL = {("norm", "sequence"): "the gate's mean and deviation run over later tokens too"}
EPS = 1e-8                                  # floor of the deviation ("sequence"), added to the variance ("key", "prefix")


class Cache(NamedTuple):
    attention: Any
    z: np.ndarray                 # (B, H, Tk)  normalised energy; for "prefix" e_j - e_1
    closed: np.ndarray | None  # (B, H, Tk)  1 - g
    stats: Any                    # what the normalisation needs to undo itself
    alpha: np.ndarray
    tau: np.ndarray
    norm: str
    has_bias: int                 # how many biases the caller brought (-1: one plain array)


def forward(q, k, v, energy, alpha, tau, *, norm="key", bias=None, **options):
    """out = softmax(s + log g) v.

    q (B, H, Tq, D), k (B, H, Tk, D), v (B, H, Tk, Dv), energy (B, H, Tk), alpha (H,), tau (H,)
    -> out (B, H, Tq, Dv), cache [, weights (B, H, Tq, Tk)]
    The statistics count every key, also those that a window or `allowed` hides. Where only one key counts, z = 0.
    Other options and errors: minattn.attention.core.attend.
    """
    checks.choice("norm", norm, ("key", "prefix", "sequence", "none"))
    size = checks.arrays(q=(q, "B H Tq D"), k=(k, "B H Tk D"), energy=(energy, "B H Tk"), alpha=(alpha, "H"), tau=(tau, "H"))
    checks.finite(alpha=alpha, tau=tau)
    z, stats = _normalise(energy, norm)                                           # 1. z = (e - mean) / std
    if norm == "prefix":
        p = masks.positions(size["Tq"], size["Tk"], options.get("align", "end"))
        gate = PrefixGate(z, stats.dmean, stats.rstd, alpha, tau, p)
        closed = None
    else:
        u = alpha[:, None] * (z - tau[:, None])                                   # 2. u = alpha (z - tau)
        gate = log_sigmoid(u)[:, :, None, :]                                      # 3. log g           (B, H, 1, Tk)
        closed = sigmoid(-u)
    theirs = () if bias is None else bias if isinstance(bias, tuple) else (bias,)
    out, attention, *weights = attend(q, k, v, bias=(gate, *theirs), **options)   # 4. softmax(s + log g) v
    count = -1 if isinstance(bias, np.ndarray) else len(theirs)
    return (out, Cache(attention, z, closed, stats, alpha, tau, norm, count), *weights)


def backward(dout, cache):
    """dout (B, H, Tq, Dv) -> {"q", "k", "v", "energy", "alpha", "tau"} (and "bias" if one was given)"""
    attention, z, closed, stats, alpha, tau, norm, has_bias = cache
    # 4. out = softmax(s + log g) v
    grads = attend_backward(dout, attention)
    dgate, *dtheirs = grads.pop("bias")
    if has_bias:
        grads["bias"] = dtheirs[0] if has_bias == -1 else tuple(dtheirs)
    if norm == "prefix":
        dz, dstats = dgate.pop("e"), (dgate.pop("mean"), dgate.pop("rstd"))
        grads.update(dgate)
    else:
        # 3. log g: its slope is 1 - g
        du = dgate[:, :, 0] * closed                                              # (B, H, Tk)
        # 2. u = alpha (z - tau)
        grads["alpha"] = (du * (z - tau[:, None])).sum(axis=(0, 2))
        grads["tau"] = -alpha * du.sum(axis=(0, 2))
        dz, dstats = du * alpha[:, None], None
    # 1. z = (e - mean) / std
    grads["energy"] = _normalise_backward(dz, z, stats, norm, dstats)
    return grads


# --------------------------------------------------------------------------------------------- the normalisation


class Running(NamedTuple):
    mean: np.ndarray    # (B, H, Tk)  of e_1..e_j, float64 as below: running sums lose digits
    rstd: np.ndarray    # (B, H, Tk)  1 / sqrt(var_j + EPS); 0 at j = 1, where z is 0
    d: np.ndarray       # (B, H, Tk)  e_j - e_1: shifting by the first key keeps the variance and its digits
    dmean: np.ndarray   # (B, H, Tk)  running mean of d


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
    later = lambda x: np.cumsum(x[..., ::-1], axis=-1)[..., ::-1]    # noqa: E731  running sums undone: sums from j on
    return later(dsum) + 2 * run.d * later(dsum2)                    # 1. the shift changes neither: no gradient


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
    if norm == "sequence":                                           # layer norm's backward; below the floor, only the mean
        dcentred = dz - np.where(stats >= EPS, z * np.mean(dz * z, axis=-1, keepdims=True), 0)
        dcentred /= np.maximum(stats, EPS)
        return dcentred - dcentred.mean(axis=-1, keepdims=True)
    if norm == "prefix":
        return (dz + _running_backward(*dstats, stats)).astype(dz.dtype)
    scaled = dz * stats.rstd                                         # "key": z_j = (e_j - mean_j) rstd_j
    return (scaled + _running_backward(-scaled, dz * (stats.d - stats.dmean), stats)).astype(dz.dtype)


class PrefixGate(NamedTuple):
    """log sigmoid(alpha ((e_j - mean_i) rstd_i - tau)), one tile at a time: this gate depends on query and key."""
    e: np.ndarray       # (B, H, Tk)  less the first, and so is the mean: only the difference counts, and it keeps its digits
    mean: np.ndarray    # (B, H, Tk)  statistics of the keys 1..j; query i uses those at its own position
    rstd: np.ndarray
    alpha: np.ndarray
    tau: np.ndarray
    p: np.ndarray       # (Tq,) positions of the queries

    def _u(self, batch, heads, p, keys):
        at = np.clip(p, 0, self.e.shape[2] - 1)                      # before the first key nothing is visible anyway
        alpha, tau = self.alpha[heads, None, None], self.tau[heads, None, None]
        mean, rstd = (a[batch, heads][:, :, at, None] for a in (self.mean, self.rstd))
        slope = (alpha * rstd).astype(self.e.dtype)
        u = self.e[batch, heads][:, :, None, keys] * slope
        u -= (slope * mean).astype(u.dtype) + alpha * tau
        return u, at, mean[..., 0], rstd[..., 0]

    def tile(self, batch, heads, p, keys):
        return log_sigmoid(self._u(batch, heads, p, keys)[0])

    def gradient(self):
        return {"e": np.zeros_like(self.e), "mean": np.zeros_like(self.mean), "rstd": np.zeros_like(self.rstd),
                "alpha": np.zeros_like(self.alpha), "tau": np.zeros_like(self.tau)}

    def tile_backward(self, ds, batch, heads, p, keys, grads):
        u, at, mean, rstd = self._u(batch, heads, p, keys)
        du = ds * sigmoid(-u)                                        # (b, h, R, K)
        e, alpha = self.e[batch, heads][:, :, keys], self.alpha[heads, None]
        row = du.sum(axis=3)                                         # sum_j du_ij           (b, h, R)
        dz_e = (du @ e[..., None])[..., 0] - mean * row              # sum_j du_ij (e_j - mean_i)
        grads["e"][batch, heads][:, :, keys] += alpha * (rstd.astype(du.dtype)[:, :, None] @ du)[:, :, 0]
        np.add.at(grads["mean"][batch, heads], (slice(None), slice(None), at), -alpha * rstd * row)
        np.add.at(grads["rstd"][batch, heads], (slice(None), slice(None), at), alpha * dz_e)
        grads["alpha"][heads] += (rstd * dz_e - self.tau[heads, None] * row).sum(axis=(0, 2)).astype(du.dtype)
        grads["tau"][heads] -= self.alpha[heads] * row.sum(axis=(0, 2))
