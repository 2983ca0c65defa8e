"""Every bound of arXiv 2502.01951 on thousands of random stacks, on stacks that reach it, and the
misprints, which fail.
"""

from functools import partial
from itertools import product
from math import comb

import numpy as np
import pytest

from minattn.errors import InputError
from minattn.experiments.position_bias import bounds, figures
from minattn.experiments.position_bias.stacks import (
    attention,
    graph,
    least_entry,
    random_stack,
    steps,
)
from minattn.experiments.position_bias.tightness import PAPER_DECAY, STACKS, compare, tightness
from minattn.inspect.rollout import rollout

# every theorem at settings from even to sharp rows, short to long sequences, one layer to many
SETTINGS = [
    *(
        ("causal", N, t, dict(floor=floor, temperature=temperature))
        for N, t in ((2, 3), (5, 0), (5, 1), (7, 4), (17, 9))
        for floor, temperature in ((0.0, 10), (0.01, 1), (0.055, 0.05))
    ),
    *(
        ("window", N, t, dict(window=window, floor=floor))
        for N, window, t in ((3, 2, 1), (4, 3, 1), (7, 3, 5), (7, 7, 4), (17, 9, 11), (17, 2, 31))
        for floor in (0.0, 0.04, 0.11)
    ),
    *(
        ("prefix", N, t, dict(prefix=prefix, floor=floor))
        for N, prefix, t in ((5, 1, 0), (5, 2, 3), (7, 7, 2), (17, 4, 9))
        for floor in (0.0, 0.05)
    ),
    *(
        ("decay", N, t, dict(m=m, spread=spread))
        for N, t in ((2, 5), (7, 0), (7, 3), (17, 10))
        for m in (PAPER_DECAY, 2.0)
        for spread in (0.0, 0.3, 4.0)
    ),
    *(
        ("rope", N, t, dict(delta=delta, low=low, high=high))
        for N, t in ((2, 5), (7, 0), (7, 3), (17, 10))
        for delta, low, high in ((1e-3, 1, 1), (0.5, 5, 6), (3, 0.1, 8), (1, 200, 210))
    ),
    ("rope", 7, 4, dict(theta=0.05, delta=20)),
]


def slack(N, t):
    """How far rounding can carry a ratio of P and a bound.

    P is made of sums and products of numbers >= 0, so nothing cancels: a layer adds at most N + a
    few roundings, and its rows sum to 1 within N of them. 1 - j eps >= 1/N may lose another factor
    N of that in the bound. Logarithms of bounds, up to a few hundred here, are exact to as many
    roundings again.
    """
    return 4 * np.finfo(float).eps * ((t + 1) * N**2 + 300)


def holds(found, N, t):
    """No entry beyond its bounds; returns how many entries each speaks of."""
    assert not (found.actual > found.upper * (1 + slack(N, t))).any()
    assert not (found.actual < found.lower * (1 - slack(N, t))).any()
    return np.sum(~np.isnan(found.upper)), np.sum(~np.isnan(found.lower))


@pytest.mark.parametrize("bound", STACKS)
def test_bounds_hold_on_random_stacks(bound):
    draws, spoken = 150, np.zeros(2, int)
    mine = [setting for setting in SETTINGS if setting[0] == bound]
    for seed, (_, N, t, setting) in enumerate(mine):
        spoken += holds(compare(bound, N, t, draws=draws, rng=seed, **setting), N, t)
    assert len(mine) * draws >= 1200 and spoken[0] > 15_000  # something was compared
    assert (spoken[1] > 0) == (bound in ("prefix", "decay", "rope"))


# -------------------------------------------------------------- stacks that come as close as can be


def hoarding(mask, t, eps, at=None):
    """t + 1 equal layers: every visible entry is eps, what is left stays on the diagonal (or all
    rows' on one key).
    """
    A = eps * mask
    rest = 1 - A.sum(axis=1)
    A[
        np.arange(len(A)),
        np.arange(len(A)) if at is None else np.where(mask[:, at], at, np.arange(len(A))),
    ] += rest
    return np.array([A] * (t + 1))


@pytest.mark.parametrize("N, eps", [(2, 0.3), (7, 0.01), (7, 0.14), (13, 0.05)])
@pytest.mark.parametrize("t", (0, 1, 2, 3, 6, 7, 11))
def test_collapse_bounds_at_their_sharpest(N, eps, t):
    j = np.arange(N)
    causal, exact = graph(N, causal=True), 1 + slack(N, t)
    diagonal = rollout(hoarding(causal, t, eps))[-1].max(axis=0)
    np.testing.assert_allclose(
        diagonal[1:], (1 - j[1:] * eps) ** (t + 1), rtol=slack(N, t)
    )  # as `causal` says: reached
    assert bounds.causal(1, t, eps) == pytest.approx(
        diagonal[1], rel=slack(N, t)
    )  # so at j = 1 Theorem 4.1 is sharp
    for key in range(1, N):
        P = rollout(hoarding(causal, t, eps, at=key))[-1].max(axis=0)
        assert (P <= bounds.causal(j, t, eps) * exact).all() and (
            P <= (1 - j * eps) ** (t + 1) * exact
        ).all()
    for window in range(2, N + 1):
        mask, h = graph(N, window=window), bounds.hops(N, window)
        for key in (None, *range(N)):
            P = rollout(hoarding(mask, t, eps, at=key))[-1]
            assert (P.max(axis=0) <= bounds.windowed(j, t, eps, h) * exact).all()
            assert (P[:, 1:].sum(axis=1) <= bounds.outside(t, eps, h=h) * exact).all()
    for K in range(1, N + 1):
        mask = graph(N, causal=True, prefix=K)
        for key in (None, *range(N)):
            P = rollout(hoarding(mask, t, eps, at=key))[-1]
            assert (P.max(axis=0) <= bounds.prefixed(j, t, eps, K) * exact).all()
            assert (P[:, K:].sum(axis=1) <= bounds.outside(t, eps, centers=K) * exact).all()
            assert (P[:, :K] >= eps / exact).all()  # more than kappa, at every t
            assert (P[:, :K] >= bounds.kappa(eps, K) / exact).all()
    assert bounds.prefixed(1, t, eps, 1) == pytest.approx(diagonal[1], rel=slack(N, t))
    assert bounds.outside(t, eps) == pytest.approx(diagonal[1], rel=slack(N, t))


def test_window_bound_at_its_sharpest():
    """A window as wide as the sequence is the causal mask: h = 1, and (1 - j eps)^(t+1) is reached.
    Else h layers count as one.
    """
    assert bounds.windowed(3, 5, 0.1, 1) == pytest.approx(0.7**6, rel=1e-14)
    assert bounds.windowed(3, 5, 0.1, 2) == pytest.approx((1 - 3 * 0.01) ** 3, rel=1e-14)
    assert [float(bounds.windowed(2, t, 0.5, 3)) for t in (0, 1, 2, 4, 5)] == [
        1,
        1,
        0.75,
        0.75,
        0.75**2,
    ]
    P = rollout(hoarding(graph(3, window=2), 1, 0.2))[
        -1
    ]  # h = 2: token 0 reaches 2 in just one way
    assert P[2, 0] == pytest.approx(0.2**2, rel=1e-14)


def test_hops_are_the_eccentricity_of_the_center():
    for N in range(2, 12):
        for window in range(2, N + 1):
            assert bounds.hops(N, window) == steps(graph(N, window=window))[:, 0].max()


# ---------------------------------------------------------------------------------- limits in depth


@pytest.mark.parametrize(
    "setting, h, centers, t",
    [
        (dict(causal=True), 1, 1, 150),
        (dict(window=3), 3, 1, 1499),
        (dict(window=5), 2, 1, 499),
        (dict(causal=True, prefix=3), 1, 3, 60),
    ],
)
def test_limits_are_approached_as_fast_as_promised(setting, h, centers, t):
    N, eps = 7, 0.14 if "prefix" in setting or "causal" in setting else 0.19
    mask = graph(N, **setting)
    A = random_stack(mask, (t + 1, 8), 0, temperature=0.5, floor=eps)
    P = rollout(A)
    far = P[..., centers:].sum(axis=-1)  # (t + 1, 8, N)
    promised = np.array([bounds.outside(s, eps, h=h, centers=centers) for s in range(t + 1)])
    assert promised[-1] < 0.04 * centers and promised[-1] < promised[0]
    assert (far <= promised[:, None, None] * (1 + slack(N, t))).all()
    assert far[-1].max() < 1e-9  # the limit itself, at t
    if centers > 1:
        assert (P[..., :centers] >= eps * (1 - slack(N, t))).all()


def test_prefix_tokens_keep_their_share_but_no_more_than_eps_is_sure():
    """kappa: with eps on one prefix token in every layer, its share is eps for ever: 2 eps would be
    wrong.
    """
    N, K, eps, t = 7, 3, 0.05, 40
    P = rollout(hoarding(graph(N, causal=True, prefix=K), t, eps, at=0))[-1]
    np.testing.assert_allclose(P[:, 1], eps, rtol=1e-12)
    np.testing.assert_allclose(bounds.kappa(eps, K), eps / 3, rtol=1e-15)


# -------------------------------------------------------------------------------------------- decay


@pytest.mark.parametrize("t", (0, 1, 4, 12))
@pytest.mark.parametrize("m", (0.1, 2.0))
def test_the_kernel_of_decay_rolls_out_to_binomials(t, m):
    """Layers e^(-(i-j) m), rows not normalised, give B of Theorem 4.5 exactly: binom(t + x, x)
    e^(-m x).
    """
    N = 11
    x = np.subtract.outer(np.arange(N), np.arange(N))
    seen = x >= 0
    P = rollout([np.exp(-m * x) * seen] * (t + 1), stochastic=False)[-1]
    expected = np.array([comb(t + d, d) * np.exp(-m * d) for d in x[seen]])
    np.testing.assert_allclose(P[seen], expected, rtol=slack(N, t))
    np.testing.assert_allclose(np.exp(bounds.log_weight(x[seen], t, m=m)), expected, rtol=1e-13)


def test_decay_bounds_at_their_sharpest():
    """Equal logits: token 0 reaches the upper constant, and far from the start the lower one is
    reached.
    """
    N, t, m = 61, 3, 1.5
    x = np.arange(N)
    P = rollout([attention(-m * np.abs(np.subtract.outer(x, x)), graph(N, causal=True))] * (t + 1))[
        -1
    ]
    assert P[0, 0] == bounds.decay(0, t, m, 0.0)[1] == 1
    lower, _ = bounds.decay(x[:20], t, m, 0.0)
    np.testing.assert_allclose(P[-1, ::-1][:20], lower, rtol=1e-12)
    # two logits apart by the spread, one layer: key 1 against key 0 far behind
    A = attention(
        np.array([[0, 0], [0, 3.0]]) - 40 * np.abs(np.subtract.outer(x[:2], x[:2])),
        graph(2, causal=True),
    )
    assert A[1, 0] == pytest.approx(bounds.decay(1, 0, 40, 3.0)[0], rel=1e-12)
    A = attention(
        np.array([[0, 0], [3.0, 0]]) - 40 * np.abs(np.subtract.outer(x[:2], x[:2])),
        graph(2, causal=True),
    )
    assert A[1, 0] == pytest.approx(bounds.decay(1, 0, 40, 3.0)[1], rel=1e-12)


@pytest.mark.parametrize("t", (0, 3))
def test_the_printed_constant_of_decay_fails_at_the_first_token_and_only_there(t):
    N, m, spread = 7, PAPER_DECAY, 0.3  # spread < log(1 + e^-m) = 0.588
    logits = np.random.default_rng(0).uniform(0, spread, (t + 1, 500, N, N))
    x = np.maximum(np.subtract.outer(np.arange(N), np.arange(N)), 0)
    P = rollout(attention(logits - m * x, graph(N, causal=True)))[-1]
    printed = bounds.decay(x, t, m, spread, printed=True)[1]
    assert bounds.decay_constants(spread, m, printed=True)[1] == pytest.approx(
        np.exp(0.3) / 1.8, rel=1e-14
    )
    assert (P[:, 0, 0] == 1).all() and printed[0, 0] < (
        0.75 if t == 0 else 0.32
    )  # fails, and not by a little
    assert (P <= bounds.decay(x, t, m, spread)[1]).all()
    if t == 0:
        assert (P <= printed)[:, 1:].all()  # every later query has two terms to divide by


# --------------------------------------------------------------------------------------------- RoPE


@pytest.mark.parametrize("t", (0, 1, 2, 5))
@pytest.mark.parametrize("sharp", (0.01, 1.0, 9.0))
def test_rope_rollout_bounds_on_kernels(t, sharp):
    """Layers C e^(-c theta^2 x^2) stand for the two sides of Lemma 4.6: their rollouts must lie
    inside Theorem 4.7's bounds.
    """
    N, theta, constants = 13, 0.3, (0.6, 1.7, sharp / 0.09, sharp / 0.18)
    x = np.subtract.outer(np.arange(N), np.arange(N))
    seen, d = x >= 0, np.maximum(x, 0)
    below, above = (
        rollout([C * np.exp(-c * theta**2 * d**2) * seen] * (t + 1), stochastic=False)[-1][seen]
        for C, c in (constants[::2], constants[1::2])
    )
    lower, upper = bounds.rope(d[seen], t, theta, constants)
    assert (lower <= below * (1 + slack(N, t))).all() and (above <= upper * (1 + slack(N, t))).all()
    if t == 0:
        np.testing.assert_allclose([lower, upper], [below, above], rtol=1e-12)
    first = d[seen] <= 1  # x = 0 or 1: one walk like another
    np.testing.assert_allclose(lower[first], below[first], rtol=1e-12)
    even = d[seen] % (t + 1) == 0  # the even walk alone reaches the exponent:
    walk = 1.7 ** (t + 1) * np.exp(-constants[3] * theta**2 * (d[seen] // (t + 1)) ** 2 * (t + 1))
    np.testing.assert_allclose(
        (upper / np.exp(bounds.log_weight(d[seen], t)))[even], walk[even], rtol=1e-12
    )
    if t > 1 and sharp == 9:
        assert (above > bounds.rope(d[seen], t, theta, constants, printed=True)[1]).any()


def test_squares_of_steps():
    """sum d_l^2 lies between x^2 / hops and x^2; x^2 / 2, the step of the paper's proof, is too
    much from three hops on.
    """
    for hops, x in product((1, 2, 3, 4), range(9)):
        sums = [
            sum(d * d for d in walk)
            for walk in product(range(x + 1), repeat=hops)
            if sum(walk) == x
        ]
        assert x * x / hops <= min(sums) and max(sums) == x * x
        assert (min(sums) < x * x / 2) == (hops > 2 and x > 2)


def test_the_printed_theorem_47_fails():
    """q and k all alike and long, angles up to pi: the printed division by 2 promises less than
    many short steps bring.
    """
    N, t, r = 17, 15, 150.0
    x = np.maximum(np.subtract.outer(np.arange(N), np.arange(N)), 0)
    theta = np.pi / (N - 1)
    P = rollout([attention(r * np.cos(x * theta), graph(N, causal=True))] * (t + 1))[-1]
    constants = bounds.rope_constants(r, r, 0, theta, N)
    assert constants[1] == 1 and constants[3] == r / np.pi**2
    assert P[-1, 0] > 1000 * bounds.rope(N - 1, t, theta, constants, printed=True)[1]
    assert P[-1, 0] < bounds.rope(N - 1, t, theta, constants)[1]


def test_rope_constants_at_their_sharpest():
    """One layer: token 0 reaches C_max where all is equal; c and c' where an angle is small and
    where it is pi.
    """
    low, high, c, c_upper = bounds.rope_constants(1.0, 1.0, 1e-9, 0.1, 7)
    assert (low, high, c, c_upper) == pytest.approx((1 / 7, 1, 1, 1 / np.pi**2), rel=1e-12)
    low, high, c, c_upper = bounds.rope_constants(1.0, 3.0, 2.0, 0.1, 7)  # turn = 0.04
    assert low == pytest.approx(np.exp(-2 - 3 * 0.04) / 7) and high == pytest.approx(
        np.exp(2 + 0.08 / np.pi**2 + 0.06)
    )
    u = np.linspace(-np.pi, np.pi, 10_001)
    assert (np.cos(u) >= 1 - u**2 / 2 - 1e-15).all() and (
        np.cos(u) <= 1 - 2 * u**2 / np.pi**2 + 1e-15
    ).all()


# -------------------------------------------------------------------------------------------- peaks


@pytest.mark.parametrize("t", (0, 1, 2, 4, 10, 37))
def test_decay_peak_is_where_the_weight_is_largest(t):
    for m in (
        PAPER_DECAY + 1e-9,
        0.05,
        0.3141,
        1.0,
        3.0,
    ):  # off 0.8 by a hair: at x* whole, two are equal
        star = bounds.decay_peak(t, m)
        assert bounds.numerical_peak(t, 1000, m=m) == np.floor(star)
    L = bounds.log_weight(np.array([4 * t - 1, 4 * t]), t, m=PAPER_DECAY) if t else np.zeros(2)
    assert L[0] == pytest.approx(L[1], abs=1e-12)  # the tie at x* = 4t
    assert bounds.decay_peak(t, PAPER_DECAY) == pytest.approx(4 * t)


@pytest.mark.parametrize("t", (0, 1, 2, 4, 10, 37))
def test_rope_peak_is_where_the_weight_is_largest_and_the_printed_one_is_not(t):
    for theta, c in ((0.05, 1.0), (0.2, 0.3), (0.011, 7.0), (1.3, 1.0)):
        star, found = (
            bounds.rope_peak(t, theta, c),
            bounds.numerical_peak(t, 1000, theta=theta, c=c),
        )
        assert np.floor(star) <= found <= star + 0.5
        if t and theta < 1:
            wrong = bounds.rope_peak(t, theta, c, printed=True)
            assert wrong < 0.6 * star and abs(np.log1p(t / wrong) - 2 * c * theta * wrong) < 1e-9
    if t >= 4:
        assert (
            bounds.rope_peak(t, 0.05, printed=True) < bounds.numerical_peak(t, 1000, theta=0.05) - 5
        )


def test_peaks_move_as_the_paper_says():
    for peak, strength in (
        (bounds.decay_peak, (0.05, 0.2, 1.0)),
        (bounds.rope_peak, (0.01, 0.1, 0.5)),
    ):
        at = np.array([[peak(t, s) for s in strength] for t in (1, 2, 5, 20)])
        assert (np.diff(at, axis=0) > 0).all() and (np.diff(at, axis=1) < 0).all()


# ---------------------------------------------------------------------------- comparison, bad input


def test_comparison_measures_what_it_says():
    found = compare("prefix", 7, 2, prefix=3, floor=0.1, draws=5)
    assert all(a.shape == (5, 7, 7) for a in found)
    said = ~np.isnan(found.upper[0])
    assert (said == (np.tri(7, dtype=bool) & (np.arange(7) >= 3))).all()
    assert (~np.isnan(found.lower[0]) == np.broadcast_to(np.arange(7) < 3, (7, 7))).all()
    ratio = found.actual[:, said] / found.upper[:, said]
    assert tightness("prefix", 7, 2, prefix=3, floor=0.1, draws=5)["upper"] == (
        np.median(ratio),
        ratio.max(),
    )
    assert tightness("causal", 7, 2)["lower"] is None
    assert tightness("decay", 7, 0, spread=0)["upper"][1] == 1  # query 0, key 0
    a, b, c = (
        compare("rope", 5, 1, rng=rng, draws=3).actual for rng in (3, np.random.default_rng(3), 4)
    )
    assert (a == b).all() and (a != c).any()


def test_least_entries_give_the_bound_its_eps():
    mask = graph(7, causal=True)
    A = random_stack(mask, (4, 3), 0, floor=0.02)
    found, eps = compare("causal", 7, 3, draws=3, floor=0.02), least_entry(A, mask)
    np.testing.assert_array_equal(found.actual, rollout(A)[-1])  # the same seed draws the same
    np.testing.assert_allclose(found.upper[:, 6, 2], (1 - eps) * (1 - 2 * eps) ** 3, rtol=1e-14)


def test_figures_are_written(tmp_path):
    figures.collapse(tmp_path / "collapse.png", N=9, depth=3, draws=2)
    figures.peaks(tmp_path / "peaks.png", N=17)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["collapse.png", "peaks.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in tmp_path.iterdir())
    with pytest.raises(InputError, match="at most N = 7"):
        figures.collapse(tmp_path / "none.png", N=7)


ROPE = partial(bounds.rope_constants, theta=0.1, N=7)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: bounds.causal(1, -1, 0.1), "t must be at least 0"),
        (lambda: bounds.causal(1, 1.5, 0.1), "t must be an integer"),
        (lambda: bounds.causal(-1, 1, 0.1), "j must be between 0"),
        (lambda: bounds.causal(1, 1, 1.1), "eps must be between 0 and 1"),
        (
            lambda: bounds.causal(np.arange(5), 1, 0.3),
            "1 - j eps.* must be between 0 and 1; got -0.2",
        ),
        (lambda: bounds.causal(1, 1, np.nan), "eps must be between 0 and 1; got nan"),
        (lambda: bounds.windowed(1, 1, 0.1, 0), "h must be at least 1"),
        (lambda: bounds.hops(7, 1), "window must be at least 2"),
        (lambda: bounds.hops(7, 8), "window must be at least 2 and at most 7"),
        (lambda: bounds.hops(1, 2), "N must be at least 2"),
        (lambda: bounds.prefixed(1, 1, 0.1, 0), "prefix must be at least 1"),
        (lambda: bounds.kappa(0.1, 0), "prefix must be at least 1"),
        (lambda: bounds.decay(1, 1, 0.0, 1.0), "m must be above 0"),
        (lambda: bounds.decay(-1, 1, 0.1, 1.0), "distance must be between 0"),
        (lambda: bounds.decay(1, 1, 0.1, -1.0), "spread must be between 0"),
        (lambda: bounds.decay(1, 1, 0.1, 1e4), "spread .* 700"),
        (lambda: ROPE(0, 1, 0), "low must be"),
        (lambda: ROPE(2, 1, 0), "high - low must be between 0"),
        (lambda: ROPE(1, 2, -1), "delta must be between 0"),
        (
            lambda: ROPE(1, 2, 26),
            r"\(delta \+ N - 1\) theta must be between 0 and 3.14159; got 3.2",
        ),
        (lambda: bounds.decay_peak(3, 0), "m must be above 0"),
        (lambda: bounds.rope_peak(3, 0), "theta must be above 0"),
        (lambda: bounds.rope_peak(3, 1, 0), "c must be above 0"),
        (lambda: bounds.rope_peak(-3, 1), "t must be at least 0"),
        (
            lambda: compare("casual", 7, 3),
            "bound must be one of causal, window, .*Did you mean 'causal'",
        ),
        (lambda: compare("causal", 7, -1), "t must be at least 0"),
        (lambda: compare("causal", 7, 1, draws=0), "draws must be at least 1"),
        (lambda: compare("window", 7, 3, window=8), "at most N = 7"),
        (lambda: compare("decay", 7, 3, spread=-1), "spread must be at least 0"),
        (lambda: compare("window", 7, 3), "needs window=.*and no other"),
        (lambda: compare("causal", 7, 3, prefix=2), "needs neither"),
        (lambda: compare("rope", 7, 3, low=2, high=1), "high must be at least 2"),
        (lambda: compare("rope", 7, 3, theta=1), r"\(delta \+ N - 1\) theta"),
    ],
)
def test_arguments_that_are_none(call, said):
    with pytest.raises(InputError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_report_has_every_bound_at_three_settings():
    from minattn.experiments.position_bias import tightness

    lines = tightness.report(draws=3).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        name for name in tightness.STACKS for _ in range(3)
    ]
