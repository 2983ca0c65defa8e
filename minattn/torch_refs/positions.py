"""Five ways of telling a model where a token stands, each from its paper's formula.

Angles are computed in float64 and rounded to the input's dtype once, at the end.

A position of your own is a function like these and its entry in POSITIONS, at the end.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch


def _angles(length, n, *, base, start, device=None):
    """p · base^(−l/n) for p = start .. start+length−1, l = 0 .. n−1 -> float64 (length, n)"""
    p = start + torch.arange(length, dtype=torch.float64, device=device)
    return p[:, None] * float(base) ** (-torch.arange(n, dtype=torch.float64, device=device) / n)


def rotary(x, *, base=10000.0, start=0, pairs="half"):
    """Rotate each pair of channels by an angle that grows with its position (arXiv 2104.09864).

    (a, b) -> (a cos θ − b sin θ, a sin θ + b cos θ),  θ = p · base^(−2l/D) for pair l = 0 .. D/2−1

    x (..., T, D) -> same shape, D even. pairs="interleaved" takes channels (2l, 2l+1) as the paper
    does, "half" takes (l, l + D/2).
    """
    T, D = x.shape[-2:]
    if D % 2:
        raise ValueError(f"rotary: the last axis must be even, got {D}")
    angle = _angles(T, D // 2, base=base, start=start, device=x.device)            # (T, D/2)
    cos, sin = torch.cos(angle).to(x.dtype), torch.sin(angle).to(x.dtype)
    if pairs == "half":
        a, b = x[..., :D // 2], x[..., D // 2:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    if pairs == "interleaved":
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)
    raise ValueError(f"pairs must be 'half' or 'interleaved', got {pairs!r}")


def alibi_slopes(n_head):
    """m_h = 2^(−8h/H) for h = 1 .. H, any H, powers of two or not (ALiBi, arXiv 2108.12409)."""
    return torch.tensor([2 ** (-8 * h / n_head) for h in range(1, n_head + 1)], dtype=torch.float64)


def decay_bias(Tq, Tk, slopes, *, align="end"):
    """bias_hij = −(p_i − j) m_h: a key loses score with its age (arXiv 2108.12409).

    slopes (H,) -> (H, Tq, Tk). Query i sits at key p_i = i + Tk − Tq (align="end") or i ("start").
    Keys after p_i continue the line and get a positive bias: a mask hides them.
    """
    if align not in ("end", "start"):
        raise ValueError(f"align must be 'end' or 'start', got {align!r}")
    p = torch.arange(Tq, device=slopes.device)[:, None] + (Tk - Tq if align == "end" else 0)
    j = torch.arange(Tk, device=slopes.device)
    return -(p - j) * slopes[:, None, None]                                        # (H, Tq, Tk)


def decay(length, n_head):
    """The bias of ALiBi on self-attention's scores -> float64 (H, T, T)"""
    return decay_bias(length, length, alibi_slopes(n_head))


def learned(length, weight, *, start=0):
    """A table of vectors, weight (block_size, C) -> the rows from start on, (length, C)"""
    return weight[start:start + length]


def sinusoidal(length, n_embd, *, base=10000.0, start=0):
    """PE(p)[2l] = sin(p / base^(2l/C)), PE(p)[2l+1] = cos(the same) (arXiv 1706.03762, sec. 3.5).

    -> float64 (length, C), p = start .. start+length−1
    """
    if n_embd % 2:
        raise ValueError(f"sinusoidal: the number of channels must be even, got {n_embd}")
    angle = _angles(length, n_embd // 2, base=base, start=start)                   # (T, C/2)
    return torch.stack([torch.sin(angle), torch.cos(angle)], -1).reshape(length, n_embd)


def morlet(length, log_omega, log_sigma, *, admissible=True, centre=None, start=0):
    """Waves under a Gaussian envelope, both learned (arXiv 2606.01258, 2605.26355).

    ω = min(exp(log ω), 0.95 π);  σ = max(exp(log σ), 1e-3);  where ω σ < 5, then ω := 5/σ
    PE(p)[2k], PE(p)[2k+1] = (cos, sin)(ω_k p) · exp(−(p − μ_k)² / (2 σ_k²))

    log_omega, log_sigma (n,) -> (length, 2n), interleaved, for p = start .. start+length−1
    `centre` μ (n,) is our extension (None is the published 0); it moves the envelope, not the
    phase. A clamp that acts stops the gradient; ω := 5/σ sends it to σ. admissible=False drops
    that projection and keeps the cap and the floor.
    """
    omega = torch.clamp(torch.exp(log_omega), max=0.95 * math.pi)
    sigma = torch.clamp(torch.exp(log_sigma), min=1e-3)
    if admissible:
        omega = torch.where(omega * sigma < 5.0, 5.0 / sigma, omega)
    p = start + torch.arange(length, dtype=log_omega.dtype, device=log_omega.device)[:, None]
    mu = 0.0 if centre is None else centre
    envelope = torch.exp(-(p - mu) ** 2 / (2 * sigma ** 2))                        # (T, n)
    wave = torch.stack([torch.cos(omega * p), torch.sin(omega * p)], -1)           # (T, n, 2)
    return (wave * envelope[..., None]).reshape(length, -1)                        # (T, 2n)


class Encoding(NamedTuple):
    """How the model uses a position's function; its other arguments are parameters, by name."""
    kind: str                  # "embedding": (length, n_embd) -> codes (T, C), added to the tokens'
    #                                "rotation": (x) -> x, of queries and keys
    #                                "bias": (length, n_head) -> (H, T, T), added to the scores
    function: Callable | None
    in_parameters: tuple = ()      # options that only decide which parameters there are


POSITIONS = {
    "none": Encoding("none", None),
    "learned": Encoding("embedding", learned),
    "sinusoidal": Encoding("embedding", sinusoidal),
    "rope": Encoding("rotation", rotary),
    "decay": Encoding("bias", decay),
    "morlet": Encoding("embedding", morlet, in_parameters=("centre",)),
}
