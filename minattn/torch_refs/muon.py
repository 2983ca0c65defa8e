"""Muon (Keller Jordan, 2024) as published, in the precision of its tensors.

    m <- mu m + g;   X = orthogonalise(g + mu m)
    w <- w (1 - lr wd) - lr sqrt(max(1, fan_out / fan_in)) X

torch.optim.Muon orthogonalises in bfloat16, which is too coarse to compare with.
"""
import torch


def orthogonalise(u, coefficients):
    """Newton-Schulz on u / |u|, transposed where it is tall: (n, m) -> (n, m)

    coefficients: (a, b, c) of each step
    """
    X = u / (u.norm() + 1e-7)
    X = X.T if X.shape[0] > X.shape[1] else X
    for a, b, c in coefficients:
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X.T if u.shape[0] > u.shape[1] else X


@torch.no_grad()
def update(params, grads, momenta, matrices, *, lr, momentum, weight_decay, coefficients):
    """One step, in place, of every matrix (name, columns); the dicts hold (in, out) tensors."""
    for name, columns in matrices:
        w, g, m = (tensors[name][:, columns] for tensors in (params, grads, momenta))
        m.mul_(momentum).add_(g)
        X = orthogonalise(g + momentum * m, coefficients)
        w.mul_(1 - lr * weight_decay).sub_(X, alpha=lr * max(1, w.shape[1] / w.shape[0]) ** 0.5)
