"""Five ways of telling a model where a token stands, each from its paper's formula.

Angles are computed in float64 and rounded to the input's dtype once, at the end.
"""
import math

import torch


def _angles(length, n, *, base, start, device=None):
    """p · base^(−l/n) for positions p = start .. start+length−1, pairs l = 0 .. n−1 -> float64 (length, n)"""
    p = start + torch.arange(length, dtype=torch.float64, device=device)
    return p[:, None] * float(base) ** (-torch.arange(n, dtype=torch.float64, device=device) / n)


def rotary(x, *, base=10000.0, start=0, pairs="half"):
    """Turn each pair of channels by an angle that grows with the position (RoPE, arXiv 2104.09864, eq. 34).

    (a, b) -> (a cos θ − b sin θ, a sin θ + b cos θ),  θ = p · base^(−2l/D) for pair l = 0 .. D/2−1

    x (..., T, D) -> same shape, D even. pairs="interleaved" takes channels (2l, 2l+1) as the paper does,
    "half" takes (l, l + D/2).
    """
    T, D = x.shape[-2:]
    if D % 2:
        raise ValueError(f"rotary: the last axis must be even, got {D}")
    angle = _angles(T, D // 2, base=base, start=start, device=x.device)                    # (T, D/2)
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
    """bias_hij = −(p_i − j) m_h: a key loses score with its age (arXiv 2108.12409; 2502.01951, eq. 2).

    slopes (H,) -> (H, Tq, Tk). Query i sits at key p_i = i + Tk − Tq (align="end") or i ("start"). Keys after
    p_i simply continue the line and get a positive bias: hiding them is the mask's business.
    """
    if align not in ("end", "start"):
        raise ValueError(f"align must be 'end' or 'start', got {align!r}")
    p = torch.arange(Tq, device=slopes.device)[:, None] + (Tk - Tq if align == "end" else 0)
    j = torch.arange(Tk, device=slopes.device)
    return -(p - j) * slopes[:, None, None]                                                # (H, Tq, Tk)


def sinusoidal(length, n_embd, *, base=10000.0, start=0):
    """PE(p)[2l] = sin(p / base^(2l/C)), PE(p)[2l+1] = cos(the same) (arXiv 1706.03762, section 3.5).

    -> float64 (length, C), p = start .. start+length−1
    """
    if n_embd % 2:
        raise ValueError(f"sinusoidal: the number of channels must be even, got {n_embd}")
    angle = _angles(length, n_embd // 2, base=base, start=start)                           # (T, C/2)
    return torch.stack([torch.sin(angle), torch.cos(angle)], -1).reshape(length, n_embd)


def morlet(length, log_omega, log_sigma, *, admissible=True, centre=None, start=0):
    """Waves under a Gaussian envelope, both learned (MoPE: arXiv 2606.01258, 2605.26355; author's code).

    ω = min(exp(log ω), 0.95 π);  σ = max(exp(log σ), 1e-3);  where ω σ < 5: ω := 5/σ (after the cap)
    PE(p)[2k], PE(p)[2k+1] = (cos, sin)(ω_k p) · exp(−(p − μ_k)² / (2 σ_k²)),  p = start .. start+length−1

    log_omega, log_sigma (n,) -> (length, 2n), interleaved. `centre` μ (n,) is our extension (None is the
    published 0); it moves the envelope, not the phase. A clamp that acts stops the gradient; ω := 5/σ sends
    it to σ. admissible=False drops that projection and keeps the cap and the floor.
    """
    omega = torch.clamp(torch.exp(log_omega), max=0.95 * math.pi)
    sigma = torch.clamp(torch.exp(log_sigma), min=1e-3)
    if admissible:
        omega = torch.where(omega * sigma < 5.0, 5.0 / sigma, omega)
    p = start + torch.arange(length, dtype=log_omega.dtype, device=log_omega.device)[:, None]  # (T, 1)
    mu = 0.0 if centre is None else centre
    envelope = torch.exp(-(p - mu) ** 2 / (2 * sigma ** 2))                                     # (T, n)
    wave = torch.stack([torch.cos(omega * p), torch.sin(omega * p)], -1)                        # (T, n, 2)
    return (wave * envelope[..., None]).reshape(length, -1)                                     # (T, 2n)
