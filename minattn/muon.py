"""Muon: momentum whose update is replaced by the nearest matrix with equal singular values.

    m <- mu m + g                                  momentum
    u = g + mu m                                   Nesterov's look-ahead
    X = orthogonalise(u)                           u = U S V^T  ->  nearly U V^T
    w <- w (1 - lr wd) - lr sqrt(max(1, fan_out / fan_in)) X

(Keller Jordan, Muon: an optimizer for the hidden layers of neural networks, 2024.) It is for the
weight matrices inside the layers; embeddings, gains, biases and other vectors keep AdamW. A matrix
that holds several maps side by side (q, k and v) is treated as that many matrices.

Weights are stored (in, out) here, so fan_out is the number of columns.
"""
import math

import numpy as np

from minattn import checks
from minattn.errors import InputError

COEFFICIENTS = 3.4445, -4.7750, 2.0315


def orthogonalise(u, steps=5):
    """Newton-Schulz: push every singular value of u (n, m) towards 1 -> (n, m)

        X = u / |u|                                    no singular value exceeds 1
        X <- a X + b (X X^T) X + c (X X^T)^2 X         s -> a s + b s^3 + c s^5, `steps` times

    With the published a, b, c five steps leave the singular values between about 0.7 and 1.2; the
    exact U V^T is not the goal. All powers of X X^T commute, so for a matrix that is not square the
    steps are taken on the Gram matrix of its smaller side, and X is multiplied once at the end.
    """
    if type(u) not in checks.PLAIN or u.ndim != 2:
        raise InputError(f"Muon takes matrices; got {checks.kind(u)}.")
    checks.arrays(u=(u, "in out"))
    steps = checks.number("steps", steps, 0, integer=True, high=100)
    if u.shape[0] > u.shape[1]:
        return orthogonalise(u.T, steps).T
    a, b, c = COEFFICIENTS
    X = u / (np.linalg.norm(u) + 1e-7)
    square = u.shape[0] == u.shape[1]
    A, P = X @ X.T, None
    for _ in range(steps):
        M = b * A + c * (A @ A)
        M[np.diag_indices_from(M)] += a                # 1. M = a I + b A + c A^2
        if square:
            X = M @ X                                  # 2. X <- M X
            A = X @ X.T
        else:
            P = M if P is None else M @ P              # 2. the product of all M so far
            A = M @ A @ M                              #    the Gram matrix of P X
    return X if P is None else P @ X


def step(w, g, m, lr, *, momentum=0.95, weight_decay=0.0):
    """One Muon step of one matrix, in place: weight w, gradient g, momentum m, all (in, out)."""
    checks.arrays(w=(w, "in out"), g=(g, "in out"), m=(m, "in out"))
    for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
        checks.number(name, value)
    m *= momentum
    m += g
    X = orthogonalise(g + momentum * m)
    fan_in, fan_out = w.shape
    if weight_decay:
        w *= 1 - lr * weight_decay
    X *= lr * math.sqrt(max(1, fan_out / fan_in))
    w -= X
