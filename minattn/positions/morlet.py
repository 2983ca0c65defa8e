"""Morlet positions (MoPE): sinusoidal positions with learned frequencies and learned decay.

Each pair of channels holds a Morlet wavelet: a cosine and a sine under a Gaussian bell, of width
sigma, around position 0. Wide bells give plain waves. Narrow ones forget: as initialised, after
about 15 tokens.
"""
from typing import NamedTuple

import numpy as np

from minattn import checks, memory

KIND = "embedding"
ARXIV = "2606.01258"
SUMMARY = ("Waves of learned frequency under a Gaussian bell of learned width, added to the "
           "token embedding.")
ARGUMENTS = {"log_omega": "C/2", "log_sigma": "C/2"}
OPTIONS = {"admissible": checks.Option(True, (True, False)),
           "centre": checks.Option(None, (True, False, None))}    # True: a trainable array (C/2,)
EVEN = "n_embd"

MAX_OMEGA = 0.95 * np.pi   # a little slower than the fastest wave that whole positions can carry
MIN_SIGMA = 1e-3
MIN_PRODUCT = 5.0          # omega sigma from which a bell holds enough waves to count as a wavelet


def initial(n):
    """The published start: n = C/2 pairs -> log_omega (n,), log_sigma (n,), float64.

    omega is spaced logarithmically from 1.0 to 0.99 pi, and sigma = 5 / omega. Published so,
    although the last omegas lie above the cap of 0.95 pi and every pair stands on the edge omega
    sigma = 5, where rounding decides on which side. Raises InputError when n is not a whole number
    >= 1.
    """
    n = checks.number("n", n, 1, integer=True)
    memory.weigh(f"{n:,} wavelets", 16 * n, "use fewer channels")
    log_omega = np.linspace(0.0, np.log(0.99 * np.pi), n)
    return log_omega, np.log(5.0) - log_omega


def parameters(n_embd, block_size, *, admissible=True, centre=None):
    """The published start; a centre starts at 0, where the published bells stand."""
    log_omega, log_sigma = initial(n_embd // 2)
    shape = log_omega.shape
    arrays = {"log_omega": (shape, log_omega), "log_sigma": (shape, log_sigma)}
    if centre:
        arrays["centre"] = shape, 0.0
    return arrays


def embed(length, n_embd, dtype, start, *, log_omega, log_sigma, admissible, centre):
    """What the model adds to its embeddings: see forward. centre: an array, or None or False."""
    centre = centre if isinstance(centre, np.ndarray) else None
    return forward(length, log_omega, log_sigma, admissible=admissible, centre=centre, start=start)


def effective(log_omega, log_sigma, admissible=True):
    """The omega (n,) and sigma (n,) in use, and omega sigma (n,) before it was raised to 5."""
    omega = np.minimum(np.exp(log_omega), MAX_OMEGA)
    sigma = np.maximum(np.exp(log_sigma), MIN_SIGMA)
    product = omega * sigma
    if admissible:   # after the cap, as published: 5 / sigma may lie above it
        omega = np.where(product < MIN_PRODUCT, MIN_PRODUCT / sigma, omega)
    return omega, sigma, product


class MorletCache(NamedTuple):
    cosine: np.ndarray      # (T, n)  kept: the derivatives of damped waves are damped waves
    sine: np.ndarray        # (T, n)
    position: np.ndarray    # (T, 1)
    offset: np.ndarray      # (T, n)  distance from the bell's centre, in sigmas
    omega: np.ndarray       # (n,)    as used
    sigma: np.ndarray       # (n,)
    projected: np.ndarray   # (n,)    omega is 5 / sigma here, so its gradient is sigma's
    capped: np.ndarray      # (n,)    no gradient to log_omega here
    floored: np.ndarray     # (n,)    no gradient to log_sigma here
    centred: bool           # was a centre given?


@checks.quiet
def forward(length, log_omega, log_sigma, *, admissible=True, centre=None, start=0):
    """Pairs of waves under bells, for the positions p = start, ..., start + length - 1.

    pe[t, 2k]     = cos(omega_k p) exp(-(p - mu_k)^2 / (2 sigma_k^2))
    pe[t, 2k + 1] = sin(omega_k p) exp(-(p - mu_k)^2 / (2 sigma_k^2)) omega = min(e^log_omega, 0.95
    pi), sigma = max(e^log_sigma, 1e-3); if admissible, omega := 5 / sigma where
    omega sigma < 5    (arXiv 2606.01258 and the code published with it)

    log_omega (n,), log_sigma (n,), float32 or float64 -> pe (T, 2n) with T = length, same dtype.
    mu = 0 as published; `centre` (n,) is our extension: it moves the bell, not the wave under it.
    Clamps stop the gradient, but not at equality (as torch.clamp); 5 / sigma hands omega's to
    sigma. Raises InputError for a negative length, or parameters that are not finite, of one length
    and one dtype.
    """
    length = checks.number("length", length, 0, integer=True)
    start = checks.number("start", start, low=-checks.FARTHEST, high=checks.FARTHEST, integer=True)
    checks.choice("admissible", admissible, (True, False))
    admissible = bool(admissible)
    checks.arrays(log_omega=(log_omega, "n"), log_sigma=(log_sigma, "n"))
    checks.finite(log_omega=log_omega, log_sigma=log_sigma)
    if centre is not None:
        checks.arrays(log_omega=(log_omega, "n"), centre=(centre, "n"))
        checks.finite(centre=centre)
    T, n = length, len(log_omega)
    memory.weigh(f"{T:,} positions of {2 * n:,} channels", 8 * T * n * log_omega.itemsize,
                 "shorten the sequence")
    omega, sigma, product = effective(log_omega, log_sigma, admissible)  # 1. clamp, project  (n,)
    position = np.arange(start, start + T, dtype=omega.dtype)[:, None]   #  (T, 1)
    offset = (position - (0 if centre is None else centre)) / sigma    # 2. from the centre   (T, n)
    bell = np.exp(-offset**2 / 2)                                      # 3. the envelope      (T, n)
    angle = omega * position                                           # 4. the phase         (T, n)
    cosine, sine = bell * np.cos(angle), bell * np.sin(angle)  # 5. the damped waves  (T, n), (T, n)
    pe = np.stack([cosine, sine], axis=-1).reshape(T, 2 * n)          # 6. interleave        (T, 2n)

    projected = (product < MIN_PRODUCT) & admissible
    capped, floored = np.exp(log_omega) > MAX_OMEGA, np.exp(log_sigma) < MIN_SIGMA
    return pe, MorletCache(cosine, sine, position, offset, omega, sigma, projected, capped, floored,
                           centre is not None)


@checks.quiet
def backward(dpe, cache):
    """dpe (T, 2n) -> {"log_omega": (n,), "log_sigma": (n,)}, and "centre": (n,) if there was one"""
    cosine, sine, position, offset, omega, sigma, projected, capped, floored, centred = cache
    T, n = cosine.shape
    checks.gradient("dpe", dpe, (T, 2 * n), cosine.dtype)

    # 6. pe = interleave(cosine, sine)
    dcosine, dsine = dpe[:, 0::2], dpe[:, 1::2]                          # (T, n), (T, n)

    # 5. cosine = bell * cos(angle), sine = bell * sin(angle)
    dangle = dsine * cosine - dcosine * sine                             # (T, n)
    dlog_bell = dcosine * cosine + dsine * sine                          # (T, n)  bell * dbell

    # 4. angle = omega * position
    dlog_omega = np.sum(dangle * position, axis=0) * omega               # (n,)    domega * omega

    # 3. log bell = -offset**2 / 2
    doffset = -dlog_bell * offset                                        # (T, n)

    # 2. offset = (position - centre) / sigma
    dcentre = -np.sum(doffset, axis=0) / sigma                           # (n,)
    dlog_sigma = -np.sum(doffset * offset, axis=0)                       # (n,)    dsigma * sigma

    # 1. where projected, log omega = log 5 - log sigma; elsewhere the clamps stop the gradient
    dlog_sigma -= np.where(projected, dlog_omega, 0)
    dlog_omega[projected | capped] = 0
    dlog_sigma[floored] = 0
    grads = {"log_omega": dlog_omega, "log_sigma": dlog_sigma}
    if centred:
        grads["centre"] = dcentre
    return grads
