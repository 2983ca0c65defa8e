"""How tight are the bounds? Random stacks of attention: their rollout, and what the theorems allow.

    from minattn.experiments.position_bias.tightness import compare, tightness
    tightness("window", N=17, t=8, window=9, floor=0.01)     # how close 100 stacks came

python -m minattn.experiments.position_bias.tightness prints a table of all bounds.
"""
from typing import NamedTuple

import numpy as np

from minattn import checks, report_table
from minattn.errors import InputError
from minattn.experiments.position_bias import bounds
from minattn.experiments.position_bias.stacks import attention, graph, least_entry, random_stack
from minattn.inspect.rollout import rollout
from minattn.positions import rotary

PAPER_DECAY = float(-np.log(0.8))   # the slope of the paper's experiments (section 5)


class Comparison(NamedTuple):
    actual: np.ndarray   # (draws, N, N)   P^(t)[i, j] of each stack
    lower: np.ndarray    # (draws, N, N)   nan where the theorem says nothing
    upper: np.ndarray    # (draws, N, N)


def compare(bound, N, t, *, draws=100, rng=0, **setting):
    """The rollout of random stacks beside the bounds, with the constants of each stack itself.

    bound      the theorem            setting (with its default)
    "causal"   4.1                    floor=0.0, temperature=1.0     as random_stack takes them
    "window"   4.2                    window, floor, temperature
    "prefix"   4.3                    prefix, floor, temperature
    "decay"    4.5 (4.4 at t = 0)     m=-log 0.8, spread=1.0         logits uniform in [0, spread]
    "rope"     4.7 (4.6 at t = 0)     theta=pi/(delta + N - 1), delta=1.0, low=1.0, high=2.0
                                      |q| |k| from low to high, angles of q and k uniform within
                                      delta theta of each other

    Stacks have t + 1 layers; rng is a seed or numpy.random.Generator -> Comparison of arrays
    (draws, N, N), [query, key]. Raises InputError for an unknown bound and for settings that the
    mask or the theorem does not allow.
    """
    checks.choice("bound", bound, STACKS)
    masks = {"window", "prefix"}
    if {bound} & masks != setting.keys() & masks:
        needs = f"{bound}=... and no other mask" if bound in masks else "neither window nor prefix"
        came = ", ".join(setting) or "no setting"
        raise InputError(f"the bound {bound!r} needs {needs}; got {came}.")
    checks.number("t", t, 0, integer=True)
    checks.number("draws", draws, 1, integer=True)
    A, *limits = STACKS[bound](np.random.default_rng(rng), N, t, draws, **setting)
    P = rollout(A)[-1]
    bounded = np.tri(N, dtype=bool) | (np.arange(N) < setting.get("prefix", 0))     # no keys ahead
    lower, upper = (np.where(bounded, limit, np.nan) + np.zeros_like(P) for limit in limits)
    return Comparison(P, lower, upper)


def tightness(bound, N, t, **options):
    """How close the bounds are: P / upper and lower / P over all entries they limit; 1 is tight.

    Options as for compare -> {"upper": (median, largest), "lower": (median, largest)}; None for a
    bound that does not exist.
    """
    P, lower, upper = compare(bound, N, t, **options)
    above, below = ~np.isnan(upper), ~np.isnan(lower)
    ratios = {"upper": P[above] / upper[above], "lower": lower[below] / P[below]}
    return {side: (float(np.median(r)), float(r.max())) if r.size else None
            for side, r in ratios.items()}


def _masked(rng, N, t, draws, *, window=None, prefix=0, floor=0.0, temperature=1.0):
    mask = graph(N, causal=True, window=window, prefix=prefix)
    A = random_stack(mask, (t + 1, draws), rng, temperature=temperature, floor=floor)
    eps, j, lower = least_entry(A, mask)[:, None, None], np.arange(N), np.nan
    if window:
        upper = bounds.windowed(j, t, eps, bounds.hops(N, window))
    elif prefix:
        upper = bounds.prefixed(j, t, eps, prefix)
        lower = np.where(j < prefix, bounds.kappa(eps, prefix), np.nan)
    else:
        upper = bounds.causal(j, t, eps)
    return A, lower, np.where(j < max(prefix, 1), np.nan, upper)


def _decay(rng, N, t, draws, *, m=PAPER_DECAY, spread=1.0):
    mask, x = graph(N, causal=True), _distance(N)
    checks.number("spread", spread, 0)
    logits = rng.uniform(0, spread, (t + 1, draws, N, N))
    visible = logits[..., mask]
    width = np.ptp(visible, axis=(0, 2))[:, None, None]
    return (attention(logits - m * x, mask), *bounds.decay(x, t, m, width))


def _rope(rng, N, t, draws, *, theta=None, delta=1.0, low=1.0, high=2.0):
    mask, x = graph(N, causal=True), _distance(N)
    checks.number("delta", delta, 0)
    checks.number("low", low, above=0)
    theta = np.pi / (delta + N - 1) if theta is None else theta
    checks.number("high", high, low)
    checks.number("theta", theta, above=0)
    norm = np.sqrt(rng.uniform(low, high, (2, t + 1, draws, N)))             # of q and of k
    angle = rng.uniform(-delta * theta / 2, delta * theta / 2, norm.shape)   # before rotation
    pair = np.zeros(norm.shape + (4,))
    pair[..., 1], pair[..., 3] = norm * np.cos(angle), norm * np.sin(angle)
    q, k = rotary.forward(pair, base=theta**-2)[0]      # D = 4: the second pair of channels rotates
    r = norm[0][..., :, None] * norm[1][..., None, :]   # by base^(-2/4) = theta
    phi = np.abs(angle[0][..., :, None] - angle[1][..., None, :])            # (t + 1, draws, N, N)
    least, most = (f(r[..., mask], axis=(0, 2))[:, None, None] for f in (np.min, np.max))
    widest = phi[..., mask].max((0, 2))[:, None, None]
    constants = bounds.rope_constants(least, most, widest / theta, theta, N)
    return (attention(q @ k.swapaxes(-1, -2), mask), *bounds.rope(x, t, theta, constants))


def _distance(N):
    """i - j, and 0 for the keys ahead, which no walk reaches."""
    return np.maximum(np.subtract.outer(np.arange(N), np.arange(N)), 0)


SHOWN = (
    ("causal", 5, 1, {"floor": 0.1}),
    ("causal", 17, 4, {"floor": 0.02}),
    ("causal", 17, 16, {"floor": 0.02}),
    ("window", 5, 1, {"window": 3, "floor": 0.1}),
    ("window", 17, 4, {"window": 9, "floor": 0.05}),
    ("window", 17, 16, {"window": 9, "floor": 0.05}),
    ("prefix", 5, 1, {"prefix": 2, "floor": 0.1}),
    ("prefix", 17, 4, {"prefix": 4, "floor": 0.02}),
    ("prefix", 17, 16, {"prefix": 4, "floor": 0.02}),
    ("decay", 17, 0, {}),
    ("decay", 17, 4, {}),
    ("decay", 17, 4, {"m": 1.0}),
    ("rope", 17, 0, {}),
    ("rope", 17, 4, {}),
    ("rope", 17, 4, {"delta": 0.1, "high": 1.01}),
)


def report(draws=200):
    """Every bound at three settings, as a Markdown table."""
    def shown(pair):
        return "" if pair is None else " / ".join(f"{x:.2g}" for x in pair)

    rows = [("bound", "N", "t", "setting", "P / upper, median / largest",
             "lower / P, median / largest")]
    for bound, N, t, options in SHOWN:
        found = tightness(bound, N, t, draws=draws, **options)
        words = ", ".join(f"{name} {value}" for name, value in options.items()) or "default"
        rows.append((bound, str(N), str(t), words, shown(found["upper"]), shown(found["lower"])))
    return report_table.markdown(rows)


STACKS = {"causal": _masked, "window": _masked, "prefix": _masked, "decay": _decay, "rope": _rope}

if __name__ == "__main__":
    print(report())
