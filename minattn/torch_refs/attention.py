"""Every kind of attention as its paper writes it: build the weights, multiply them with v.

Tensors are (B, H, T, D); k and v may have G heads, G a divisor of H, and query head h then reads
head h // (H / G) of them (grouped keys, arXiv 2305.13245). Every function takes the same keyword
options, named `options` below:

    scale=None         factor of q kᵀ; None means 1/√D
    softcap=None       c: the scores become c·tanh(s/c) before the bias (arXiv 2408.00118)
    log_length=None    (H,) a: the scores are multiplied by a·log n_i, n_i the number of keys that
                       query i may see, at least 1 (arXiv 2501.19399)
    bias=None          finite tensor, broadcastable to (B, H, Tq, Tk), added to the scaled scores
    causal, window, prefix, align     see `visible`
    allowed=None       boolean, broadcastable to (B, H, Tq, Tk), True = may attend;
                       "and"-ed with `visible`
    return_weights     also return the (B, H, Tq, Tk) weights that multiplied v
    dropout=None       a function applied to the softmax (or kernel) weights, before all else

A query that may see no key gives out = 0 and zero gradients. Autograd would turn 0 · NaN into NaN,
so such rows get finite numbers *before* the softmax and zeros after it (a `where` on both sides).

A mechanism of your own is a function like these and its entry in ATTENTION, at the end.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

# what is no option of one mechanism
COMMON = ("scale", "softcap", "log_length", "bias", "causal", "window", "prefix", "allowed",
          "align", "return_weights", "dropout", "keys", "values")


def visible(Tq, Tk, *, causal=False, window=None, prefix=0, align="end", device=None):
    """Which key may each query see?  -> bool (Tq, Tk)

    Query i sits at key position p = i + Tk − Tq (align="end") or p = i (align="start").
    causal      key j with j <= p
    prefix=K    causal, widened: every query at p < K also sees all keys j < K
    window=W    implies causal, keeps only p − W < j: W keys up to the query's own, also of a prefix
    """
    if align not in ("end", "start"):
        raise ValueError(f"align must be 'end' or 'start', got {align!r}")
    p = torch.arange(Tq, device=device)[:, None] + (Tk - Tq if align == "end" else 0)  # (Tq, 1)
    j = torch.arange(Tk, device=device)[None, :]                                       # (1, Tk)
    mask = torch.ones(Tq, Tk, dtype=torch.bool, device=device)
    if causal or window is not None:
        mask = (j <= p) | ((j < prefix) & (p < prefix))
    if window is not None:
        mask = mask & (j > p - window)
    return mask


def _seen(shape, *, allowed=None, **masks):
    """`visible` and `allowed`, expanded to shape (B, H, Tq, Tk)."""
    mask = visible(*shape[-2:], **masks)
    return torch.broadcast_to(mask if allowed is None else mask & allowed, shape)


def _scores(q, k, *, scale=None, softcap=None, log_length=None, bias=None, **masks):
    """s = scale · q kᵀ + bias, and the boolean mask of the same shape."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    s = q @ _every_head(k, q.shape[1]).transpose(-1, -2) * scale                   # (B, H, Tq, Tk)
    seen = _seen(s.shape, **masks, device=s.device)
    if log_length is not None:
        n = seen.sum(-1, keepdim=True).clamp(min=1).to(s.dtype)
        s = s * log_length[:, None, None] * torch.log(n)
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    return s if bias is None else s + bias, seen


def _every_head(x, H):
    """(B, G, T, D) -> (B, H, T, D): each head serves H / G query heads in a row"""
    return x.repeat_interleave(H // x.shape[1], dim=1)


def _masked_softmax(s, seen):
    """softmax over the visible entries of each row; a row without any is all zeros."""
    seen = seen & ~torch.isneginf(s)                         # a bias may hide a whole row
    some = seen.any(-1, keepdim=True)                                              # (B, H, Tq, 1)
    s = torch.where(some, s.masked_fill(~seen, float("-inf")), 0)
    return torch.where(some, torch.softmax(s, -1), 0)


def _keep(weights):
    return weights


def _result(weights, v, return_weights):
    v = _every_head(v, weights.shape[1])
    out = weights @ v                         # (B, H, Tq, Tk), (B, H, Tk, Dv) -> (B, H, Tq, Dv)
    return (out, weights) if return_weights else out


def softmax_attention(q, k, v, *, return_weights=False, dropout=None, **options):
    """out = softmax(q kᵀ / √D) v over the visible keys (arXiv 1706.03762, eq. 1).

    q (B, H, Tq, D), k (B, H, Tk, D), v (B, H, Tk, Dv) -> (B, H, Tq, Dv)
    """
    P = _masked_softmax(*_scores(q, k, **options))
    return _result((dropout or _keep)(P), v, return_weights)


def sink_attention(q, k, v, sink, *, return_weights=False, dropout=None, **options):
    """A learned logit per head takes weight and gives no value (arXiv 2602.23057, eq. 3).

    P_j = exp(s_j) / (exp(sink) + Σ_k exp(s_k)): softmax of [s, sink], less its last column

    sink (H,). The sink is never masked; sink = −∞ is plain softmax attention.
    """
    s, seen = _scores(q, k, **options)
    column = sink[:, None, None].expand(*s.shape[:-1], 1)                          # (B, H, Tq, 1)
    seen = torch.cat([seen, column > float("-inf")], -1)
    P = _masked_softmax(torch.cat([s, column], -1), seen)
    return _result((dropout or _keep)(P[..., :-1]), v, return_weights)


def off_by_one_attention(q, k, v, **options):
    """P_j = exp(s_j) / (1 + Σ_k exp(s_k)) (arXiv 2602.23057, eq. 2): the sink at logit 0."""
    return sink_attention(q, k, v, q.new_zeros(q.shape[1]), **options)


def gated_attention(q, k, v, gate_logits, *, return_weights=False, **options):
    """softmax_attention(q, k, v) ⊙ sigmoid(gate_logits) (arXiv 2505.06708; 2602.23057, eqs. 4–5).

    gate_logits: see `gate`. Returned weights: before the gate.
    """
    out, P = softmax_attention(q, k, v, return_weights=True, **options)
    out = gate(out, gate_logits)
    return (out, P) if return_weights else out


def gate(out, gate_logits):
    """out (B, H, Tq, Dv), gate_logits alike; or one per head, (B, H, Tq, 1) or (B, H, Tq)"""
    if gate_logits.dim() < out.dim():
        gate_logits = gate_logits[..., None]
    return out * torch.sigmoid(gate_logits)


def squash(x, phi="linear_clip"):
    """φ of affine-scaled attention: 0 for x <= −5, 1 for x >= 5, else 0.1 x + 0.5.

    arXiv 2602.23057, eq. 11. The slope at both kinks is 0. "sigmoid" is the paper's ablation.
    """
    if phi == "sigmoid":
        return torch.sigmoid(x)
    if phi != "linear_clip":
        raise ValueError(f"phi must be 'linear_clip' or 'sigmoid', got {phi!r}")
    return torch.where(x <= -5, 0, torch.where(x >= 5, 1, 0.1 * x + 0.5))


def affine_attention(q, k, v, alpha_logits, alpha_ma, *, phi="linear_clip", length="total",
                     return_weights=False, dropout=None, **options):
    """Softmax weights scaled by α and shifted by β (arXiv 2602.23057, eqs. 6–8).

    α = φ(alpha_logits), β_i = (alpha_ma − α_i) / N
    a_ij = α_i P_ij + β_i on visible keys, 0 elsewhere;  out = a v

    alpha_logits (B, H, Tq), alpha_ma (H,): a running mean, a constant to the gradient
    The paper leaves N open under a mask: length="total" is N = Tk (its words), "visible" the
    number of keys that query i may see, an integer is itself. Masked keys get no β. Dropout acts
    on P only.
    """
    s, seen = _scores(q, k, **options)
    P = (dropout or _keep)(_masked_softmax(s, seen))
    if length == "visible":
        N = seen.sum(-1).clamp(min=1)      # (B, H, Tq); a row that sees no key has nothing to shift
    elif length == "total":
        N = k.shape[-2]
    elif isinstance(length, int):
        N = length
    else:
        raise ValueError(f"length must be 'total', 'visible' or an integer, got {length!r}")
    alpha = squash(alpha_logits, phi)                                              # (B, H, Tq)
    beta = (alpha_ma.detach()[:, None] - alpha) / N                                # (B, H, Tq)
    a = torch.where(seen, alpha[..., None] * P + beta[..., None], 0)               # (B, H, Tq, Tk)
    return _result(a, v, return_weights)


def running_mean(alpha_ma, alpha_logits, *, phi="linear_clip", momentum=0.9, axes="head",
                 use="after"):
    """In training: the buffers that this batch uses, and those to keep (arXiv 2602.23057, eq. 9).

    The paper's index leaves open whether a batch uses the mean from "after" or "before" its own
    part in it. alpha_ma (H,), alpha_logits (B, H, T); axes="layer" takes one mean over the heads
    too.
    """
    mean = squash(alpha_logits.detach(), phi).mean((0, 2))                         # (H,)
    if axes == "layer":
        mean = mean.mean().expand_as(mean)
    before = alpha_ma.clone()
    after = momentum * before + (1 - momentum) * mean
    return {"alpha_ma": {"after": after, "before": before}[use]}, {"alpha_ma": after}


def _running_statistics(energy, last):
    """Mean, population variance (B, H, N) and count (N,) of the keys 0..last[i]

    energy (B, H, Tk), last (N,)
    """
    member = torch.arange(energy.shape[-1], device=energy.device) <= last[:, None]     # (N, Tk)
    count = member.sum(-1)                                                             # (N,)
    n = count.clamp(min=1)                                              # no key: every sum is 0
    mean = torch.where(member, energy[..., None, :], 0).sum(-1) / n
    deviation = torch.where(member, energy[..., None, :] - mean[..., None], 0)       # (B, H, N, Tk)
    return mean, (deviation ** 2).sum(-1) / n, count


def standard_energy(energy, Tq, *, norm="key", eps=1e-8, align="end"):
    """The energy of each key in standard deviations from a mean; `norm`: both over which keys?

    "sequence"  (e_j − mean) / max(std, 1e-8) over all keys: as published (arXiv 2605.21842)
    "prefix"    (e_j − mean_i) / √(var_i + eps) over the keys up to the query's own position p(i);
                0 where that is one key or none. The published code samples so, but for eps's place.
    "key"       (e_j − mean_j) / √(var_j + eps) over the keys up to j; the first key gets 0
    "none"      e_j

    energy (B, H, Tk) -> (B, H, 1, Tk), or (B, H, Tq, Tk) for "prefix". Population variance over all
    these keys, masked or not.
    """
    Tk = energy.shape[-1]
    if norm == "none":
        return energy[..., None, :]
    if norm == "sequence":
        centred = energy - energy.mean(-1, keepdim=True)
        variance = (centred ** 2).mean(-1, keepdim=True)
        return (centred / variance.clamp(min=1e-16).sqrt())[..., None, :]           # max(std, 1e-8)
    if norm == "key":
        mean, variance, count = _running_statistics(energy, torch.arange(Tk, device=energy.device))
        z = (energy - mean) / torch.sqrt(variance + eps)
        return torch.where(count > 1, z, 0)[..., None, :]
    if norm == "prefix":
        p = torch.arange(Tq, device=energy.device) + (Tk - Tq if align == "end" else 0)
        mean, variance, count = _running_statistics(energy, p)             # (B, H, Tq) twice, (Tq,)
        z = (energy[..., None, :] - mean[..., None]) / torch.sqrt(variance + eps)[..., None]
        return torch.where(count[:, None] > 1, z, 0)                               # (B, H, Tq, Tk)
    raise ValueError(f"norm must be 'sequence', 'prefix', 'key' or 'none', got {norm!r}")


def energy_gated_attention(q, k, v, energy, alpha, tau, *, norm="key", eps=1e-8, stable=False,
                           align="end", return_weights=False, dropout=None, **options):
    """Each key's energy opens or closes it to all queries (arXiv 2605.21842, 2605.26355).

    g_j = sigmoid(α (ẽ_j − τ)), Â_ij = A_ij g_j / max(Σ_k A_ik g_k, 1e-8), out = Â v

    ẽ: `standard_energy` of energy (B, H, Tk); alpha (H,), tau (H,)
    Dropout acts on A, before the gate, as published.
    When every gate of a row is nearly closed, the clamp acts, and its weights sum to less than one.
    stable=True is softmax(s + log g), the same unclamped (dropout then acts on Â).
    """
    s, seen = _scores(q, k, align=align, **options)
    z = standard_energy(energy, q.shape[-2], norm=norm, eps=eps, align=align)  # (B, H, 1 or Tq, Tk)
    u = alpha[:, None, None] * (z - tau[:, None, None])
    if stable:
        weights = (dropout or _keep)(_masked_softmax(s + F.logsigmoid(u), seen))
    else:
        gated = (dropout or _keep)(_masked_softmax(s, seen)) * torch.sigmoid(u)
        weights = gated / gated.sum(-1, keepdim=True).clamp(min=1e-8)
    return _result(weights, v, return_weights)


def gaussian_kernel_attention(x, log_sigma, *, keys=None, values=None, eps=0.0, bias=None,
                              return_weights=False, dropout=None, **masks):
    """Tokens attend to neighbours in feature space, without projections (GKA: arXiv 2605.02144).

    K_ij = exp(−‖x_i − x_j‖² / (2 σ²)), σ = exp(log_sigma);  K̄ = K on visible keys, 0 elsewhere;
    W_ij = K̄_ij / (Σ_k K̄_ik + eps);  out = W values

    x (B, H, Tq, D), log_sigma (H,)
    keys (B, H, Tk, D), by default x;  values (B, H, Tk, Dv), by default keys
    `bias`, not in the paper, is added in the exponent; there is no `scale`. The paper has no eps.
    With eps = 0 each row's largest visible exponent (its nearest key) is subtracted first: one
    factor of numerator and denominator, so W is the same function, and a tiny σ cannot give 0/0.
    The differences take B·H·Tq·Tk·D numbers, for autograd several times over: keep T moderate.
    """
    keys = x if keys is None else keys
    values = keys if values is None else values
    distance2 = ((x[..., :, None, :] - keys[..., None, :, :]) ** 2).sum(-1)        # (B, H, Tq, Tk)
    exponent = -distance2 / (2 * torch.exp(log_sigma)[:, None, None] ** 2)
    exponent = exponent if bias is None else exponent + bias
    seen = _seen(exponent.shape, **masks, device=x.device)
    exponent = exponent.masked_fill(~seen, float("-inf"))                          # affinity 0
    if eps == 0:
        nearest = exponent.detach().amax(-1, keepdim=True)
        exponent = exponent - torch.where(seen.any(-1, keepdim=True), nearest, 0)
    affinity = torch.exp(exponent)
    total = affinity.sum(-1, keepdim=True) + eps
    W = affinity / torch.where(total > 0, total, 1)
    return _result((dropout or _keep)(W), values, return_weights)


def differential_attention(q, k, v, lam_logits, *, return_weights=False, dropout=None, **options):
    """Version 2: P = softmax(q_2h kᵀ) − λ_h softmax(q_2h+1 kᵀ), λ = sigmoid(lam_logits), out = P v

    (arXiv 2410.05258, its authors' second version.) q (B, 2H, Tq, D), lam_logits (B, H, Tq)
    Both heads of a pair read the same head of k and v. Dropout acts on P.
    """
    P = [_masked_softmax(*_scores(heads, k, **options)) for heads in (q[:, 0::2], q[:, 1::2])]
    weights = P[0] - torch.sigmoid(lam_logits)[..., None] * P[1]
    return _result((dropout or _keep)(weights), v, return_weights)


def differential_1_attention(q, k, v, lam_q1, lam_k1, lam_q2, lam_k2, gain, *, layer_index=0,
                             return_weights=False, dropout=None, **options):
    """Version 1 (arXiv 2410.05258, eqs. 1–3): P as above, and a norm of the heads' outputs.

    λ = exp(lam_q1·lam_k1) − exp(lam_q2·lam_k2) + λ_init, λ_init = 0.8 − 0.6 exp(−0.3 layer_index)
    out = (1 − λ_init) · gain ⊙ RMSNorm(P v)

    q (B, 2H, Tq, D), k (B, 2H, Tk, D), v (B, H, Tk, Dv); the lambdas (D,), gain (Dv,)
    Returned weights: P, before the norm.
    """
    start = 0.8 - 0.6 * float(torch.exp(torch.tensor(-0.3 * layer_index, dtype=torch.float64)))
    lam = torch.exp((lam_q1 * lam_k1).sum()) - torch.exp((lam_q2 * lam_k2).sum()) + start
    P = [_masked_softmax(*_scores(q[:, i::2], k[:, i::2], **options)) for i in (0, 1)]
    out, P = _result((dropout or _keep)(P[0] - lam * P[1]), v, True)
    out = out * torch.rsqrt(out.pow(2).mean(-1, keepdim=True) + 1e-5)
    out = (1 - start) * gain * out
    return (out, P) if return_weights else out


def collaborative_attention(q, k, v, mix, content, *, bias=None, return_weights=False, dropout=None,
                            **options):
    """Heads that share q and k (arXiv 2006.16362): head h scores (q ⊙ mix_h) kᵀ + content_h.

    All scores times sqrt(H/D); q (B, 1, Tq, D), k (B, 1, Tk, D), mix (H, D), content (B, H, Tk)
    softcap and log_length act on the dot products alone.
    """
    scale = (mix.shape[0] / mix.shape[1]) ** 0.5
    dots, seen = _scores(q * mix[:, None], k, scale=scale, **options)
    s = dots + content[:, :, None] * scale
    P = (dropout or _keep)(_masked_softmax(s if bias is None else s + bias, seen))
    return _result(P, v, return_weights)


def twice_the_queries(C, H, G):
    """differential: two query heads to a pair"""
    return (2 * H, C // H), (G, C // H), (G, C // H)


def half_as_wide(C, H, G):
    """differential, version 1: two heads of q and k to a pair, with half of its channels each"""
    return (2 * H, C // H // 2), (2 * H, C // H // 2), (H, C // H)


def shared(C, H, G, *, key_width=None):
    """collaborative: q and k for all heads"""
    return (1, key_width or C), (1, key_width or C), (H, C // H)


def kernel_features(u, rotate, *, qk_norm=True, rope_values=False):
    """The channels of each head (B, H, T, D) -> x and values of `gaussian_kernel_attention`.

    rotate applies rotary positions, if the model has them.
    """
    if qk_norm:
        u = u / torch.sqrt((u ** 2).mean(-1, keepdim=True) + 1e-6)
    x = rotate(u)
    return {"x": x, "values": x if rope_values else u}


def linear_attention(q, k, v, *, feature="elu", norm="rms", bias=None, return_weights=False,
                     dropout=None, **masks):
    """out_i = Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j) over the visible keys (arXiv 2006.16236).

    "elu"   φ(x) = elu(x) + 1, without its cancellation: eˣ where x ≤ 0
    "lln"   φ(q) = exp(α q), φ(k) = exp(β k), α = σ̃/σ_q, β = σ̃/σ_k, σ̃² = (σ_q² σ_k² + a)/(2 b)
            with a = 0.35487039, b = 0.14855178 (arXiv 2311.13541)
    σ is the standard deviation of all numbers of q or k (norm="tensor"; gradients pass through it);
    for "rms" each q and k is divided by its root mean square first, and σ_q = σ_k = 1.
    `bias`, not in the papers, multiplies the weights by exp(bias). No eps in the denominator: a row
    whose weights are all 0 gives 0.
    """
    if feature == "elu":
        phi_q, phi_k = (torch.where(x > 0, x + 1, torch.exp(x.clamp(max=0))) for x in (q, k))
    elif feature == "lln":
        if norm == "rms":
            q, k = (x / torch.sqrt((x ** 2).mean(-1, keepdim=True) + 1e-6) for x in (q, k))
            var_q = var_k = torch.ones_like(q[:1, :1, :1, :1])
        elif norm == "tensor":
            var_q, var_k = (x.var(correction=0).clamp(min=1e-12) for x in (q, k))
        else:
            raise ValueError(f"norm must be 'rms' or 'tensor', got {norm!r}")
        variance = (var_q * var_k + 0.35487039) / (2 * 0.14855178)                 # σ̃²
        phi_q = torch.exp(torch.sqrt(variance / var_q) * q)
        phi_k = torch.exp(torch.sqrt(variance / var_k) * k)
    else:
        raise ValueError(f"feature must be 'elu' or 'lln', got {feature!r}")
    kappa = phi_q @ _every_head(phi_k, q.shape[1]).transpose(-1, -2)               # (B, H, Tq, Tk)
    kappa = kappa if bias is None else kappa * torch.exp(bias)
    kappa = torch.where(_seen(kappa.shape, **masks, device=q.device), kappa, 0)
    total = kappa.sum(-1, keepdim=True)
    P = kappa / torch.where(total > 0, total, 1)
    return _result((dropout or _keep)(P), v, return_weights)


def cog_attention(q, k, v, *, bias=None, return_weights=False, dropout=None, **options):
    """Signed softmax (arXiv 2411.07176): P = sign(s) ⊙ softmax(|s|), s = q kᵀ / √D

    The mask comes after the absolute value; so does a bias, of which the paper says nothing.
    """
    s, seen = _scores(q, k, **options)
    size = torch.abs(s)
    P = torch.sign(s) * _masked_softmax(size if bias is None else size + bias, seen)
    return _result((dropout or _keep)(P), v, return_weights)


def length_scaled_attention(q, k, v, *, power=15, eps=1e-8, return_weights=False, dropout=None,
                            bias=None, **options):
    """Softplus weights with a length scale, sharpened (LSSA, LSSAR: arXiv 2501.13428).

    s = log D · log n_i · q̂ k̂ᵀ, q̂ = q/‖q‖, k̂ = k/‖k‖;  A = softplus(s) / Σ softplus(s)
    b = ReLU(n_i A − O_i)^power;  P = b / (Σ b + eps);  power=0: P = A

    n_i: the keys that query i may see; O_i = 1, but 0 where n_i <= 3. For a causal mask these are
    i and the first three rows, as in the accounts of the paper; eps is that of other authors' code.
    Literal: large powers overflow in float32 where n_i A is large.
    """
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    s, seen = _scores(q, k, scale=math.log(q.shape[-1]), log_length=q.new_ones(q.shape[1]),
                      bias=bias, **options)
    a = torch.where(seen, torch.logaddexp(s, torch.zeros_like(s)), 0)
    A = a / torch.where(seen.any(-1, keepdim=True), a.sum(-1, keepdim=True), 1)
    n = seen.sum(-1, keepdim=True)
    P = A
    if power > 0:
        b = torch.relu(n * A - torch.where(n > 3, 1, 0)) ** power
        P = b / (b.sum(-1, keepdim=True) + eps)
    return _result((dropout or _keep)(P), v, return_weights)


def forgetting_attention(q, k, v, forget_logits, *, align="end", return_weights=False, dropout=None,
                         **options):
    """Each token's gate lowers the scores of all keys before it (arXiv 2503.02130).

    D_ij = Σ_{l=j+1..p_i} log sigmoid(f_l);  out = softmax(q kᵀ / √D + D) v

    forget_logits (B, H, Tk). For a key ahead of the query, on which the paper is silent, the sum
    counts backwards: D_ij = −Σ_{l=p_i+1..j} log sigmoid(f_l). p_i ends with the keys at either end.
    """
    s, seen = _scores(q, k, align=align, **options)
    Tq, Tk = s.shape[-2:]
    total = F.pad(F.logsigmoid(forget_logits).cumsum(-1), (1, 0))     # of the first 0, 1, ..., Tk
    p = torch.arange(Tq, device=q.device) + (Tk - Tq if align == "end" else 0)
    D = total[..., (p + 1).clamp(0, Tk), None] - total[..., None, 1:]              # (B, H, Tq, Tk)
    P = _masked_softmax(s + D, seen)
    return _result((dropout or _keep)(P), v, return_weights)


def pointwise_attention(q, k, v, *, rule="relu", return_weights=False, dropout=None, **options):
    """Each weight from its own score; n_i keys are visible to query i.

    "relu"     P_ij = max(s_ij, 0) / n_i (arXiv 2410.13835)
    "sigmoid"  P_ij = 1 / (1 + exp(−(s_ij + b))) (arXiv 2409.04431). b is its constant; b = −log n_i
               makes it one of the row.
    """
    s, seen = _scores(q, k, **options)
    n = seen.sum(-1, keepdim=True).clamp(min=1).to(s.dtype)
    if rule == "relu":
        P = torch.relu(s) / n
    elif rule == "sigmoid":
        P = torch.sigmoid(s - torch.log(n))
    else:
        raise ValueError(f"rule must be 'relu' or 'sigmoid', got {rule!r}")
    return _result((dropout or _keep)(torch.where(seen, P, 0)), v, return_weights)


def sparse_attention(q, k, v, *, rule="topk", top=5, return_weights=False, dropout=None, **options):
    """Weights of exactly 0 for most keys; z = s less its largest visible entry in the row.

    "topk"       softmax over the scores that are at least the top-th visible one (arXiv 2506.14095)
    "sparsemax"  P = max(z − τ, 0), Σ P = 1 (arXiv 1602.02068)
    "entmax15"   P = max(z/2 − τ, 0)², Σ P = 1 (arXiv 1905.05702)

    Which keys have weight, S, is found by sorting and is a constant to the gradient. With n keys in
    S: τ = (Σ_S z − 1)/n, and for "entmax15" τ = mean − √((1 − Σ_S (z/2 − mean)²)/n).
    """
    s, seen = _scores(q, k, **options)
    seen = seen & ~torch.isneginf(s)
    s = torch.where(seen, s, 0)
    some = seen.any(-1, keepdim=True)
    hidden = s.masked_fill(~seen, float("-inf")).detach()
    if rule == "topk":
        least = hidden.topk(min(top, s.shape[-1]), -1).values[..., -1:]
        P = _masked_softmax(s, seen & (hidden >= least))
    elif rule in ("sparsemax", "entmax15"):
        power = 1 if rule == "sparsemax" else 2
        z = (s - torch.where(some, hidden.amax(-1, keepdim=True), 0)) / power
        u = z.detach().masked_fill(~seen, -2).clamp(min=-2).sort(-1, descending=True).values
        n = torch.arange(1, u.shape[-1] + 1, dtype=s.dtype, device=s.device)
        if rule == "sparsemax":
            inside = 1 + n * u > u.cumsum(-1)
        else:           # with u_n as τ, would the weights of the keys above it sum to less than 1?
            inside = ((u[..., None, :] - u[..., None]).clamp(min=0) ** 2).sum(-1) < 1
        n = inside.sum(-1, keepdim=True)
        S = (seen & (z.detach() >= u.gather(-1, n - 1))).to(s.dtype)
        n = S.sum(-1, keepdim=True).clamp(min=1)
        mean = (S * z).sum(-1, keepdim=True) / n
        if rule == "sparsemax":
            tau = mean - 1 / n
        else:
            tau = mean - torch.sqrt((1 - (S * (z - mean) ** 2).sum(-1, keepdim=True)) / n)
        P = S * torch.relu(z - tau) ** power
    else:
        raise ValueError(f"rule must be 'topk', 'sparsemax' or 'entmax15', got {rule!r}")
    return _result((dropout or _keep)(P), v, return_weights)


class Formula(NamedTuple):
    """A mechanism, and what the signature of its function does not say. Arguments go by name."""
    function: Callable
    inputs: Callable | None = None   # of the channels per head, instead of q, k and v from c_attn
    update: Callable | None = None   # in training: buffers to use, buffers to keep
    heads: Callable | None = None    # (C, H, G) -> heads and width of q, k and v; None: as usual
    on_top: Callable | None = None   # the same on top of another mechanism's output
    in_parameters: tuple = ()        # options that only decide the shapes or the initial values
    versions: dict = {}              # (option, value) -> the entry that it stands for


ATTENTION = {
    "softmax": Formula(softmax_attention),
    "off_by_one": Formula(off_by_one_attention),
    "sink": Formula(sink_attention),
    "gated": Formula(gated_attention, on_top=gate, in_parameters=("gate",)),
    "affine": Formula(affine_attention, update=running_mean),
    "energy": Formula(energy_gated_attention),
    "gaussian": Formula(gaussian_kernel_attention, inputs=kernel_features,
                        in_parameters=("sigma_init",)),
    "differential": Formula(differential_attention, heads=twice_the_queries,
                            versions={("version", 1): "differential_1"}),
    "differential_1": Formula(differential_1_attention, heads=half_as_wide),
    "collaborative": Formula(collaborative_attention, heads=shared),
    "linear": Formula(linear_attention),
    "cog": Formula(cog_attention),
    "forget": Formula(forgetting_attention),
    "lssa": Formula(length_scaled_attention),
    "pointwise": Formula(pointwise_attention),
    "sparse": Formula(sparse_attention),
}
