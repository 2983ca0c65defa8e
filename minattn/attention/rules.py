"""Row rules: how a row of scores becomes a row of weights. The core does the rest.

    P, saved = rule.forward(s, rescored, heads)    s (b, h, R, K), -inf on hidden keys; overwritten
    ds = rule.backward(dP, P, saved)               dP may be overwritten

A tile of the core holds every key that its rows may see, so a rule always has whole rows. Hidden
keys get P = 0 and ds = 0, and so does a row that sees no key: never NaN. A count of keys has the
scores' dtype, since an integer count would turn float32 into float64.

A rule may also change the scores before biases and mask are added: see Rule.rescore.
"""
from dataclasses import dataclass

import numpy as np


class Rule:
    """What the core needs of a rule, for one that has no sink and leaves the scores as they are."""
    sink = None                    # logit (H,) of a key without a value: the softmax rule only
    has_lse = False                # is `saved` the log of each row's denominator?
    saves = 0                      # arrays as large as the scores that forward and rescore keep

    def rescore(self, s):
        """Change scale q k^T before biases and mask -> s, what the backward needs"""
        return s, None

    def rescore_backward(self, ds, rescored):
        return ds


@dataclass(frozen=True)
class Softmax(Rule):
    """P = exp(s - m) / (sum exp(s - m) + exp(sink - m)), m the largest of the row and the sink.

    saved: the log of the denominators, lse (b, h, R); -inf for a row that sees no key.
    Backward: ds = P (dP - rowsum(P dP)) + dlse P.
    """
    sink: np.ndarray | None = None
    has_lse = True

    def forward(self, s, rescored, heads=slice(None)):
        sink = None if self.sink is None else self.sink[heads, None]       # (h, 1)
        m = s.max(axis=3, initial=-np.inf)                     # 1. row maximum
        if sink is not None:
            m = np.maximum(m, sink)
        m[m == -np.inf] = 0
        s -= m[..., None]
        P = np.exp(s, out=s)                                   # 2. numerators, at most 1
        total = P @ np.ones(P.shape[3], P.dtype)               # 3. denominators: a faster sum
        if sink is not None:
            total += np.exp(sink - m)
        empty = total == 0
        total[empty] = 1
        P /= total[..., None]                                  # 4. weights
        return P, np.where(empty, -np.inf, m + np.log(total))

    def backward(self, dP, P, lse, dlse=None):
        # the row sum equals (dout * out).sum(axis=-1), but this way it rounds as dP does: a row
        # with a single key gets exactly 0
        dP -= np.einsum("bhij,bhij->bhi", P, dP)[..., None]
        if dlse is not None:                                   # the slope of lse is P
            dP += dlse[..., None]
        return np.multiply(dP, P, out=dP)


def visible_keys(s):
    """How many keys each row sees, at least 1: (b, h, R, K) -> (b, h, R, 1), in s's dtype"""
    seen = (s > -np.inf).astype(s.dtype)
    return np.maximum(seen @ np.ones((s.shape[3], 1), s.dtype), 1)    # a sum, but faster
