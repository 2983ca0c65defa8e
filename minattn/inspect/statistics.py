"""One layer's attention weights in a few numbers: sinks, entropy, row sums.

Every function takes weights w (B, H, T, T), w[b, h, i, j] the weight of key j for query i, and
returns float64, one number per head (or per head and key), averaged over the sequences. Weights may
be negative and need not sum to 1 (affine). visible (T, T): booleans, which keys each query can see;
None: causal.
"""
import numpy as np

from minattn import checks
from minattn.errors import InputError


def first_token_mass(w, visible=None):
    """Mean weight on key 0 over the queries i >= 1 that can see it (query 0 has no choice): -> (H,)

    Weights count unscaled, also where a row does not sum to 1. nan where there is no such query.
    """
    w, visible = _checked(w, visible)
    some = w[:, :, 1:, 0][..., visible[1:, 0]]                        # (B, H, n)
    if not some.size:
        return np.full(w.shape[1], np.nan)
    return some.mean(axis=(0, 2), dtype=np.float64)


def entropy(w):
    """Mean entropy of the rows in nats, -sum_j p_ij log p_ij with p = |w| / sum |w|: -> (H,)

    For rows that are distributions this is their entropy. Rows of sinks are rescaled to sum 1; of
    affine weights the magnitudes count, which is our choice. Rows of zeros are left out (0 if all
    are).
    """
    w, _ = _checked(w, None)
    p = np.abs(w, dtype=np.float64)
    total = p.sum(axis=3, keepdims=True)
    p = np.divide(p, total, out=p, where=total > 0)
    rows = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=3)           # (B, H, T)
    return rows.sum(axis=(0, 2)) / np.maximum((total > 0).sum(axis=(0, 2, 3)), 1)


def row_sums(w):
    """Mean and standard deviation of the row sums, over rows and sequences: -> (H,), (H,)"""
    w, _ = _checked(w, None)
    sums = w.sum(axis=3, dtype=np.float64)                            # (B, H, T)
    return sums.mean(axis=(0, 2)), sums.std(axis=(0, 2))


def sink_fraction(w, tau=0.2, visible=None):
    """How often a key is a sink: the share of its queries whose weight on it is above tau.

    -> (H, T), averaged over the sequences; 0 for a key that no query sees.
    Only queries that see the key count (arXiv 2502.01951, App. K.4).
    Few queries see the last keys: under a causal mask the last one is seen by itself only.
    """
    w, visible = _checked(w, visible)
    checks.number("tau", tau)
    tau = w.dtype.type(tau)              # so that a float32 weight of 0.2 is not above 0.2
    above = ((w > tau) & visible).sum(axis=2)                         # (B, H, T)
    return above.mean(axis=0) / np.maximum(visible.sum(axis=0), 1)


def _checked(w, visible):
    T = checks.arrays(w=(w, "B H T T"))["T"]
    visible = np.tri(T, dtype=bool) if visible is None else np.asarray(visible)
    if visible.shape != (T, T) or visible.dtype != bool:
        raise InputError(f"visible must be ({T}, {T}) booleans, True where query i can see key j; "
                         f"got shape {visible.shape}, dtype {visible.dtype}.")
    return w, visible
