"""The gate of energy-gated attention with norm="prefix", which depends on the query too.

    log g_ij = log sigmoid( alpha ((e_j - mean_i) / std_i - tau) )

mean_i and std_i are statistics of the keys 1..i, up to the query's own position. The gate is a bias
that makes its own tiles, so no (Tq, Tk) array exists.
"""
from typing import NamedTuple

import numpy as np

from minattn.ops import log_sigmoid


class PrefixGate(NamedTuple):
    e: np.ndarray       # (B, H, Tk)  e_j - e_1: shifted so, and so is the mean, e keeps its digits
    mean: np.ndarray    # (B, H, Tk)  of the keys 1..j: query i uses the mean at its own position
    rstd: np.ndarray    # (B, H, Tk)
    alpha: np.ndarray   # (H,)
    tau: np.ndarray     # (H,)

    def _u(self, batch, heads, p, keys):
        """u = alpha ((e_j - mean_i) rstd_i - tau): (b, h, R, K), and each row's statistics"""
        at = np.clip(p, 0, self.e.shape[2] - 1)                 # before the first key all is hidden
        alpha, tau = self.alpha[heads, None, None], self.tau[heads, None, None]
        # np.take: a[:, :, at] would lie in memory in another order than the scores
        e = np.take(self.e[batch, heads], keys, axis=2)
        mean, rstd = (np.take(a[batch, heads], at, axis=2)[..., None]
                      for a in (self.mean, self.rstd))
        slope = (alpha * rstd).astype(self.e.dtype)
        u = e[:, :, None] * slope
        u -= (slope * mean).astype(u.dtype) + alpha * tau
        return u, at, mean[..., 0], rstd[..., 0]

    def tile(self, batch, heads, p, keys):
        return log_sigmoid(self._u(batch, heads, p, keys)[0])

    def gradient(self):
        return {name: np.zeros_like(array) for name, array in self._asdict().items()}

    def tile_backward(self, ds, batch, heads, p, keys, grads):
        u, at, mean, rstd = self._u(batch, heads, p, keys)
        np.exp(u, out=u)
        u += 1
        du = np.divide(ds, u, out=u)                            # ds (1 - g)    (b, h, R, K)
        alpha, tau = self.alpha[heads, None], self.tau[heads, None]
        e = np.take(self.e[batch, heads], keys, axis=2)
        rowsum = du @ np.ones(du.shape[3], du.dtype)            # (b, h, R)
        drstd = (du @ e[..., None])[..., 0] - mean * rowsum     # sum_j du_ij (e_j - mean_i)
        de = (rstd.astype(du.dtype)[:, :, None] @ du)[:, :, 0]  # sum_i du_ij rstd_i
        queries = slice(None), slice(None), at                  # two queries may share a position
        grads["e"][batch, heads][:, :, keys] += alpha * de
        np.add.at(grads["mean"][batch, heads], queries, -alpha * rstd * rowsum)
        np.add.at(grads["rstd"][batch, heads], queries, alpha * drstd)
        dalpha = rstd * drstd - tau * rowsum
        grads["alpha"][heads] += dalpha.sum(axis=(0, 2)).astype(du.dtype)
        grads["tau"][heads] -= self.alpha[heads] * rowsum.sum(axis=(0, 2))
