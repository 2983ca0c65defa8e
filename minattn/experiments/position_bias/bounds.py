"""How far attention can drift to the first tokens: bounds of arXiv 2502.01951 whose constants hold.

P = P^(t) is the rollout of t + 1 layers (minattn.inspect.rollout), eps their smallest visible
weight. Positions i (query) and j (key) count from 0: the paper's j - 1 is our j. Each function
quotes the paper's formula in the paper's own counting. Positions, distances and constants may be
arrays that broadcast.
"""
import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln

from minattn import checks
from minattn.errors import InputError


def _within(what, value, low, high=np.inf):
    """Like checks.number, for arrays: the value as a float64 array, or InputError."""
    array = np.asarray(value, float)
    if not ((array >= low) & (array <= high)).all():
        raise InputError(f"{what} must be between {low:g} and {high:g}; "
                         f"got {array.min():g} to {array.max():g}.")
    return array


def _shrink(j, eps):
    left = 1 - _within("j", j, 0) * _within("eps", eps, 0, 1)
    return _within("1 - j eps, what can stay out of the first j tokens,", left, 0, 1)


# ---------------------------------------------------------------- Theorems 4.1-4.3: masks collapse


def causal(j, t, eps):
    """Theorem 4.1, a causal mask: P_ij <= C (1 - (j-1) eps)^t for 1 < j <= i, C = 1 - eps.

    Here: (1 - eps)(1 - j eps)^t for j >= 1; for j = 0 just 1. Holds for every i. In each layer, the
    weight of any query on token j and later ones shrinks by at least j eps: the query sees the j
    tokens before, and those do not see j. (So (1 - j eps)^(t+1) holds as well, and is smaller.)
    """
    checks.number("t", t, 0, integer=True)
    return np.where(np.asarray(j) > 0, (1 - np.asarray(eps)) * _shrink(j, eps) ** t, 1.0)


def hops(N, window):
    """Layers that a window of w >= 2 keys needs from the first token to the last.

    h = ceil((N - 1) / (w - 1))
    """
    checks.number("N", N, 2, integer=True)
    checks.number("window", window, 2, integer=True, high=N)
    return -(-(N - 1) // (window - 1))


def windowed(j, t, eps, h):
    """Theorem 4.2, in a window: P_ij <= C (1 - (j-1) eps^h)^(t/(2h)), h = hops(N, window).

    Here, with a constant that holds for every t: (1 - j eps^h)^floor((t + 1) / h). A product of h
    layers is a causal matrix with entries of at least eps^h, and t + 1 layers contain
    floor((t + 1) / h) such products.
    """
    checks.number("t", t, 0, integer=True)
    checks.number("h", h, 1, integer=True)
    return _shrink(j, np.asarray(eps, float) ** h) ** ((t + 1) // h)


def prefixed(j, t, eps, prefix):
    """Theorem 4.3, behind a prefix of K tokens: P_ij <= C (1 - (j-K) eps)^t for K < j <= i.

    C = 1 - eps. Here: (1 - eps)(1 - (j + 1 - K) eps)^t for j >= K, and 1 for j < K.
    (causal's bound holds for j >= K, and is smaller.)
    """
    checks.number("t", t, 0, integer=True)
    checks.number("prefix", prefix, 1, integer=True)
    j = np.asarray(j)
    upper = (1 - np.asarray(eps)) * _shrink(np.maximum(j + 1 - prefix, 0), eps) ** t
    return np.where(j >= prefix, upper, 1.0)


def kappa(eps, prefix):
    """Theorem 4.3: liminf_t P_ik >= kappa > 0 for each of the K tokens of the prefix: eps / K.

    In fact P_ik >= eps at every t: in the bottom layer every query gives every prefix token at
    least eps.
    """
    checks.number("prefix", prefix, 1, integer=True)
    return _within("eps", eps, 0, 1) / prefix


def outside(t, eps, *, h=1, centers=1):
    """The limits of 4.1-4.3 at finite t: how much any query keeps outside the centers.

    At most (1 - K eps^h)^floor((t + 1) / h), with K centers (prefix K, else 1) which see only each
    other and are seen by every token within h layers (window: hops, else 1). So P_i,0 -> 1, or the
    sum over the prefix -> 1, as t grows. Same argument as `windowed`.
    """
    return windowed(centers, t, eps, h)


# ------------------------------------------------------------ Lemma 4.4, Theorem 4.5: linear decay


def decay_constants(spread, m, *, printed=False):
    """Lemma 4.4: C_min e^(-(i-j) m) <= A_ij <= C_max e^(-(i-j) m).   -> (C_min, C_max)

    For logits in a range of width spread = I_max - I_min. C_min = (1 - e^-m) e^-spread and
    C_max = e^spread: the softmax's sum has at least the term j = i, and is at most a geometric
    series. printed=True gives the paper's C_max = e^spread / (1 + e^-m), whose proof counts one
    term too many: it fails at i = j = 1 (here 0), where A = 1, and holds for every later query.
    """
    checks.number("m", m, above=0)
    upper = np.exp(_within("spread", spread, 0, 700))               # e^709 is the end of float64
    return -np.expm1(-m) / upper, upper / (1 + np.exp(-m)) if printed else upper


def decay(distance, t, m, spread, *, printed=False):
    """Theorem 4.5 with its constants: C_min^(t+1) B <= P_ij <= C_max^(t+1) B.   -> (lower, upper)

    B = binom(t + i-j, i-j) e^(-(i-j) m): each walk of t + 1 steps from j up to i has weight
    e^(-(i-j) m), and there are binom(t + i-j, i-j).
    """
    B = log_weight(distance, t, m=m)
    constants = decay_constants(spread, m, printed=printed)
    with np.errstate(over="ignore"):                                # inf is an upper bound too
        return tuple(np.exp((t + 1) * np.log(C) + B) for C in constants)


# -------------------------------------------------------------------- Lemma 4.6, Theorem 4.7: RoPE


def rope_constants(low, high, delta, theta, N):
    """Lemma 4.6, d = 2: the constants (C_min, C_max, c, c') of

        C_min e^(-c (i-j)^2 theta^2) <= A_ij <= C_max e^(-c' (i-j)^2 theta^2)

    low <= |q_i| |k_j| <= high (a scale of the logits included); delta theta is at least the angle
    between q_i and k_j before rotation. The paper does not give the constants. Ours: a logit is
    r cos u, |u| <= pi, within delta theta of (i-j) theta.
    cos u >= 1 - u^2/2 and u^2 <= 2 (i-j)^2 theta^2 + 2 delta^2 theta^2 give c = high;
    cos u <= 1 - 2 u^2/pi^2 and u^2 >= (i-j)^2 theta^2/2 - delta^2 theta^2 give c' = low/pi^2.
    The softmax's sum is at most N e^high and at least its term j = i, e^(low - high delta^2
    theta^2/2). Raises InputError unless (delta + N - 1) theta <= pi and 0 < low <= high.
    """
    checks.number("theta", theta, above=0)
    checks.number("N", N, 1, integer=True)
    low = _within("low", low, np.finfo(float).tiny)
    high = low + _within("high - low", high - low, 0)
    angle2 = (theta * _within("delta", delta, 0)) ** 2
    _within("(delta + N - 1) theta", np.sqrt(angle2) + (N - 1) * theta, 0, np.pi)
    upper = np.exp(high - low + 2 * low * angle2 / np.pi**2 + high * angle2 / 2)
    return np.exp(low - high - high * angle2) / N, upper, high, low / np.pi**2


def rope(distance, t, theta, constants, *, printed=False):
    """Theorem 4.7 with constants that hold, those of Lemma 4.6; x = i - j.   -> (lower, upper)

        C_min^(t+1) binom(t+x, x) e^(-c x^2 theta^2) <= P_ij
        P_ij <= C_max^(t+1) binom(t+x, x) e^(-c' x^2 theta^2 / (t+1))

    A walk of t + 1 steps d_l >= 0 that sum to x has weight at most
    C_max^(t+1) e^(-c' theta^2 sum d_l^2), where sum d_l^2 >= x^2 / (t+1) (Cauchy-Schwarz), and at
    least C_min^(t+1) e^(-c theta^2 sum d_l^2), where sum d_l^2 <= x^2. printed=True divides by 2
    instead of t + 1, as the paper's proof does, which is wrong from three steps (t = 2) on.
    """
    C_min, C_max, c, c_upper = constants
    parts = 2 if printed else t + 1
    below = log_weight(distance, t, theta=theta, c=c)
    above = log_weight(distance, t, theta=theta, c=c_upper / parts)
    with np.errstate(over="ignore", divide="ignore"):               # 0 and inf are bounds too
        return (np.exp((t + 1) * np.log(C_min) + below), np.exp((t + 1) * np.log(C_max) + above))


# -------------------------------------------------------------------- where the two forces balance


def log_weight(x, t, *, m=0.0, theta=0.0, c=1.0):
    """L(x) = log binom(t + x, x) - m x - c theta^2 x^2, x = i - j.

    More walks lead further back, and each has less weight. Decay has m > 0 (Theorem 4.5), RoPE
    theta > 0 (4.7). x and c may be arrays; x need not be an integer.
    """
    checks.number("t", t, 0, integer=True)
    x = _within("distance", x, 0)
    binomial = gammaln(t + x + 1) - gammaln(t + 1) - gammaln(x + 1)
    return binomial - m * x - c * theta**2 * x**2


def numerical_peak(t, N, *, m=0.0, theta=0.0, c=1.0):
    """The distance 0 ... N - 1 at which L is largest; N - 1 may mean that L still rises there."""
    return int(np.argmax(log_weight(np.arange(N), t, m=m, theta=theta, c=c)))


def decay_peak(t, m):
    """The critical distance by Stirling, x* = t / (e^m - 1)  (section 4.2).

    It grows with depth and shrinks with decay. Among integers, L is largest at floor(x*), and
    equally at x* - 1 where x* >= 1 is an integer.
    """
    checks.number("t", t, 0, integer=True)
    checks.number("m", m, above=0)
    return float(t / np.expm1(m))


def rope_peak(t, theta, c=1.0, *, printed=False):
    """The critical distance of RoPE by Stirling: the root of L'(x).

    L'(x) = log((t + x) / x) - 2 c theta^2 x. The root grows with t and shrinks with theta. Among
    integers, L is largest at floor(x*) or at x* rounded. printed=True takes 2 c theta x, as App. H
    has it: the square is lost there, and the root belongs to another L.
    """
    checks.number("t", t, 0, integer=True)
    checks.number("theta", theta, above=0)
    checks.number("c", c, above=0)
    if t == 0:
        return 0.0
    k = 2 * c * (theta if printed else theta**2)
    high = np.sqrt(t / k)                           # log(1 + t/x) <= t/x: the root is below this
    return float(brentq(lambda x: np.log1p(t / x) - k * x, 1e-12 * high, high))
