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

# (a, b, c) of each Newton-Schulz step, by the number of steps. Five: Jordan's, which are the same
# in each. Three: in each the quintic nearest to 1 on the range that the singular values then lie
# in, starting from 0.003 to 1 (the greedy choice of Polar Express, arXiv 2505.16932).
COEFFICIENTS = {
    5: [(3.4445, -4.7750, 2.0315)] * 5,
    3: [(8.3837, -24.7659, 18.3571), (4.0434, -3.0114, 0.5695), (3.5056, -2.6267, 0.5257)],
}


def orthogonalise(u, steps=5):
    """Newton-Schulz: push every singular value of u (n, m) towards 1 -> (n, m)

        X = u / |u|                                    no singular value exceeds 1
        X <- a X + b (X X^T) X + c (X X^T)^2 X         s -> a s + b s^3 + c s^5, each step

    steps: 5 or 3, see COEFFICIENTS. Five leave the singular values between about 0.7 and 1.2, three
    leave those above 0.003 |u| between 0.35 and 1.65; the exact U V^T is not the goal. All powers
    of X X^T commute, so the steps are taken on the Gram matrix of the smaller side, and X is
    multiplied once at the end; where X is square, stepping with X itself takes one product less.
    """
    if type(u) not in checks.PLAIN or u.ndim != 2:
        raise InputError(f"Muon takes matrices; got {checks.kind(u)}.")
    checks.arrays(u=(u, "in out"))
    checks.choice("steps", checks.number("steps", steps, integer=True), COEFFICIENTS)
    if u.shape[0] > u.shape[1]:
        return orthogonalise(u.T, steps).T
    square = u.shape[0] == u.shape[1]
    X, P = u / (np.linalg.norm(u) + 1e-7), None
    A = X @ X.T
    for n, (a, b, c) in enumerate(COEFFICIENTS[steps]):
        M = A @ A
        M *= c
        M += b * A
        M[np.diag_indices_from(M)] += a                # 1. M = a I + b A + c A^2
        last = n + 1 == steps
        if square:
            X = M @ X                                  # 2. X <- M X
            A = None if last else X @ X.T.copy()       #    (the copy: dsyrk is the slower product)
        else:
            P = M if P is None else M @ P              # 2. the product of all M so far
            A = None if last else M @ A @ M            #    the Gram matrix of P X
    return X if P is None else P @ X


def step(w, g, m, lr, *, momentum=0.95, weight_decay=0.0, steps=5):
    """One Muon step of one matrix, in place: weight w, gradient g, momentum m, all (in, out)."""
    checks.arrays(w=(w, "in out"), g=(g, "in out"), m=(m, "in out"))
    for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
        checks.number(name, value)
    m *= momentum
    m += g
    X = orthogonalise(g + momentum * m, steps)
    fan_in, fan_out = w.shape
    if weight_decay:
        w *= 1 - lr * weight_decay
    X *= lr * math.sqrt(max(1, fan_out / fan_in))
    w -= X
