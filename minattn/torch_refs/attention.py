"""Seven kinds of attention, each as its paper writes it: build the weights, then multiply them with v.

Tensors are (B, H, T, D). Every function takes the same keyword options, named `options` below:

    scale=None         factor of q kᵀ; None means 1/√D
    bias=None          finite tensor, broadcastable to (B, H, Tq, Tk), added to the scaled scores
    causal, window, prefix, align     see `visible`
    allowed=None       boolean, broadcastable to (B, H, Tq, Tk), True = may attend; "and"-ed with `visible`
    return_weights     also return the (B, H, Tq, Tk) weights that multiplied v
    dropout=None       a function applied to the softmax (or kernel) weights before anything else is done

A query that may see no key gives out = 0 and zero gradients. Autograd would turn 0 · NaN into NaN, so such
rows are replaced by harmless numbers *before* the softmax and by zeros after it (a `where` on both sides).
"""
import torch
import torch.nn.functional as F


def visible(Tq, Tk, *, causal=False, window=None, prefix=0, align="end", device=None):
    """Which key may each query see?  -> bool (Tq, Tk)

    Query i sits at key position p = i + Tk − Tq (align="end") or p = i (align="start").
    causal      key j with j <= p
    prefix=K    causal, widened: every query at p < K also sees all keys j < K. Not causal: nothing to widen.
    window=W    implies causal, keeps only p − W < j: W keys up to the query's own. It also cuts the prefix.
    """
    if align not in ("end", "start"):
        raise ValueError(f"align must be 'end' or 'start', got {align!r}")
    p = torch.arange(Tq, device=device)[:, None] + (Tk - Tq if align == "end" else 0)     # (Tq, 1)
    j = torch.arange(Tk, device=device)[None, :]                                           # (1, Tk)
    mask = torch.ones(Tq, Tk, dtype=torch.bool, device=device)
    if causal or window is not None:
        mask = (j <= p) | ((j < prefix) & (p < prefix))
    if window is not None:
        mask = mask & (j > p - window)
    return mask


def _seen(shape, *, causal=False, window=None, prefix=0, allowed=None, align="end", device=None):
    """`visible` and `allowed`, expanded to shape (B, H, Tq, Tk)."""
    mask = visible(*shape[-2:], causal=causal, window=window, prefix=prefix, align=align, device=device)
    return torch.broadcast_to(mask if allowed is None else mask & allowed, shape)


def _scores(q, k, *, scale=None, bias=None, **masks):
    """s = scale · q kᵀ + bias, and the boolean mask of the same shape."""
    s = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)        # (B, H, Tq, Tk)
    s = s if bias is None else s + bias
    return s, _seen(s.shape, **masks, device=s.device)


def _masked_softmax(s, seen):
    """softmax over the visible entries of each row; a row without any is all zeros."""
    some = seen.any(-1, keepdim=True)                                                      # (B, H, Tq, 1)
    s = torch.where(some, s.masked_fill(~seen, float("-inf")), 0)
    return torch.where(some, torch.softmax(s, -1), 0)


def _keep(weights):
    return weights


def _result(weights, v, return_weights):
    out = weights @ v                                 # (B, H, Tq, Tk), (B, H, Tk, Dv) -> (B, H, Tq, Dv)
    return (out, weights) if return_weights else out


def softmax_attention(q, k, v, *, return_weights=False, dropout=None, **options):
    """out = softmax(q kᵀ / √D) v over the visible keys (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    q (B, H, Tq, D), k (B, H, Tk, D), v (B, H, Tk, Dv) -> (B, H, Tq, Dv)
    """
    P = _masked_softmax(*_scores(q, k, **options))
    return _result((dropout or _keep)(P), v, return_weights)


def sink_attention(q, k, v, sink, *, return_weights=False, dropout=None, **options):
    """Each head has one learned logit that takes weight and gives no value (arXiv 2602.23057, eq. 3).

    P_j = exp(s_j) / (exp(sink) + Σ_k exp(s_k)): a softmax over the row [s, sink], its last column dropped.

    sink (H,). The sink is never masked; sink = −∞ is plain softmax attention.
    """
    s, seen = _scores(q, k, **options)
    column = sink[:, None, None].expand(*s.shape[:-1], 1)                                  # (B, H, Tq, 1)
    P = _masked_softmax(torch.cat([s, column], -1), torch.cat([seen, column > float("-inf")], -1))
    return _result((dropout or _keep)(P[..., :-1]), v, return_weights)


def off_by_one_attention(q, k, v, **options):
    """P_j = exp(s_j) / (1 + Σ_k exp(s_k)) (arXiv 2602.23057, eq. 2): the sink at logit 0."""
    return sink_attention(q, k, v, q.new_zeros(q.shape[1]), **options)


def gated_attention(q, k, v, gate_logits, *, return_weights=False, **options):
    """out = softmax_attention(q, k, v) ⊙ sigmoid(gate_logits) (arXiv 2505.06708; arXiv 2602.23057, eqs. 4–5).

    gate_logits (B, H, Tq, Dv), or (B, H, Tq, 1): one gate per head. Returned weights: before the gate.
    """
    out, P = softmax_attention(q, k, v, return_weights=True, **options)
    out = out * torch.sigmoid(gate_logits)
    return (out, P) if return_weights else out


def squash(x, phi="linear_clip"):
    """φ of affine-scaled attention (arXiv 2602.23057, eq. 11): 0 for x <= −5, 1 for x >= 5, else 0.1 x + 0.5.

    The slope at both kinks is 0. "sigmoid" is the alternative that the paper ablates.
    """
    if phi == "sigmoid":
        return torch.sigmoid(x)
    if phi != "linear_clip":
        raise ValueError(f"phi must be 'linear_clip' or 'sigmoid', got {phi!r}")
    return torch.where(x <= -5, 0, torch.where(x >= 5, 1, 0.1 * x + 0.5))


def affine_attention(q, k, v, alpha_logits, alpha_ma, *, phi="linear_clip", length="total",
                     return_weights=False, dropout=None, **options):
    """Softmax weights scaled by α and shifted by β: rows need not sum to one (arXiv 2602.23057, eqs. 6–8).

    α = φ(alpha_logits), β_i = (alpha_ma − α_i) / N, a_ij = α_i P_ij + β_i on visible keys, else 0, out = a v

    alpha_logits (B, H, Tq), alpha_ma (H,): a running mean, taken as a constant (no gradient enters it).
    The paper leaves N open under a mask: length="total" is N = Tk (its words), "visible" the number of keys
    that query i may see, an integer is itself. β never reaches a masked key. Dropout acts on P only.
    """
    s, seen = _scores(q, k, **options)
    P = (dropout or _keep)(_masked_softmax(s, seen))
    if length == "visible":
        N = seen.sum(-1).clamp(min=1)                # (B, H, Tq); a row that sees no key has nothing to shift
    elif length == "total":
        N = k.shape[-2]
    elif isinstance(length, int):
        N = length
    else:
        raise ValueError(f"length must be 'total', 'visible' or an integer, got {length!r}")
    alpha = squash(alpha_logits, phi)                                                      # (B, H, Tq)
    beta = (alpha_ma.detach()[:, None] - alpha) / N                                        # (B, H, Tq)
    a = torch.where(seen, alpha[..., None] * P + beta[..., None], 0)                       # (B, H, Tq, Tk)
    return _result(a, v, return_weights)


def _running_statistics(energy, last):
    """energy (B, H, Tk), last (N,) -> mean, population variance (B, H, N), count (N,) of keys 0..last[i]"""
    member = torch.arange(energy.shape[-1], device=energy.device) <= last[:, None]         # (N, Tk)
    count = member.sum(-1)                                                                 # (N,)
    n = count.clamp(min=1)                                                     # 0 keys: every sum is 0 anyway
    mean = torch.where(member, energy[..., None, :], 0).sum(-1) / n
    deviation = torch.where(member, energy[..., None, :] - mean[..., None], 0)             # (B, H, N, Tk)
    return mean, (deviation ** 2).sum(-1) / n, count


def standard_energy(energy, Tq, *, norm="key", eps=1e-8, align="end"):
    """The energy of each key in standard deviations from a mean; `norm` says over which keys both are taken.

    "sequence"  (e_j − mean) / max(std, 1e-8) over all keys: as published (arXiv 2605.21842); sees the future
    "prefix"    (e_j − mean_i) / √(var_i + eps) over the keys up to the query's own position p(i); 0 where
                that is one key or none. Sampling with the published code computes this, but for eps's place.
    "key"       (e_j − mean_j) / √(var_j + eps) over the keys up to j; the first key gets 0
    "none"      e_j

    energy (B, H, Tk) -> (B, H, 1, Tk), or (B, H, Tq, Tk) for "prefix". Population variance; blind to masks.
    """
    Tk = energy.shape[-1]
    if norm == "none":
        return energy[..., None, :]
    if norm == "sequence":
        centred = energy - energy.mean(-1, keepdim=True)
        variance = (centred ** 2).mean(-1, keepdim=True)
        return (centred / variance.clamp(min=1e-16).sqrt())[..., None, :]     # under the root: max(std, 1e-8)
    if norm == "key":
        mean, variance, count = _running_statistics(energy, torch.arange(Tk, device=energy.device))
        z = (energy - mean) / torch.sqrt(variance + eps)
        return torch.where(count > 1, z, 0)[..., None, :]
    if norm == "prefix":
        p = torch.arange(Tq, device=energy.device) + (Tk - Tq if align == "end" else 0)
        mean, variance, count = _running_statistics(energy, p)                       # (B, H, Tq) twice, (Tq,)
        z = (energy[..., None, :] - mean[..., None]) / torch.sqrt(variance + eps)[..., None]
        return torch.where(count[:, None] > 1, z, 0)                                       # (B, H, Tq, Tk)
    raise ValueError(f"norm must be 'sequence', 'prefix', 'key' or 'none', got {norm!r}")


def energy_gated_attention(q, k, v, energy, alpha, tau, *, norm="key", eps=1e-8, stable=False, align="end",
                           return_weights=False, dropout=None, **options):
    """Each key's energy opens or closes it to all queries (arXiv 2605.21842, 2605.26355; author's code).

    g_j = sigmoid(α (ẽ_j − τ)), Â_ij = A_ij g_j / max(Σ_k A_ik g_k, 1e-8), out = Â v;  ẽ: `standard_energy`

    energy (B, H, Tk), alpha (H,), tau (H,). Dropout acts on A, before the gate, as published.
    The literal form has no protection but the clamp: when every gate of a row is nearly closed, its weights
    sum to less than one. stable=True is softmax(s + log g), the same unclamped (dropout then acts on Â).
    """
    s, seen = _scores(q, k, align=align, **options)
    z = standard_energy(energy, q.shape[-2], norm=norm, eps=eps, align=align)            # (B, H, 1 or Tq, Tk)
    u = alpha[:, None, None] * (z - tau[:, None, None])
    if stable:
        weights = (dropout or _keep)(_masked_softmax(s + F.logsigmoid(u), seen))
    else:
        gated = (dropout or _keep)(_masked_softmax(s, seen)) * torch.sigmoid(u)
        weights = gated / gated.sum(-1, keepdim=True).clamp(min=1e-8)
    return _result(weights, v, return_weights)


def gaussian_kernel_attention(x, log_sigma, *, keys=None, values=None, eps=0.0, bias=None,
                              return_weights=False, dropout=None, **masks):
    """Tokens attend to neighbours in feature space, without q, k, v projections (GKA: arXiv 2605.02144).

    K_ij = exp(−‖x_i − x_j‖² / (2 σ²)), σ = exp(log_sigma);  K̄ = K on visible keys, 0 elsewhere;
    W_ij = K̄_ij / (Σ_k K̄_ik + eps);  out = W values

    x (B, H, Tq, D), log_sigma (H,), keys (B, H, Tk, D) default x, values (B, H, Tk, Dv) default keys
    `bias`, not in the paper, is added in the exponent; there is no `scale`. The paper gives no eps: 0 here.
    With eps = 0 each row's largest visible exponent (its nearest key) is subtracted first. That multiplies
    numerator and denominator by one number, so W is exactly the same function, and a tiny σ cannot give 0/0.
    The differences take B·H·Tq·Tk·D numbers, for autograd several times over: keep T moderate.
    """
    keys = x if keys is None else keys
    values = keys if values is None else values
    distance2 = ((x[..., :, None, :] - keys[..., None, :, :]) ** 2).sum(-1)                # (B, H, Tq, Tk)
    exponent = -distance2 / (2 * torch.exp(log_sigma)[:, None, None] ** 2)
    exponent = exponent if bias is None else exponent + bias
    seen = _seen(exponent.shape, **masks, device=x.device)
    exponent = exponent.masked_fill(~seen, float("-inf"))                                 # affinity exactly 0
    if eps == 0:
        nearest = exponent.detach().amax(-1, keepdim=True)
        exponent = exponent - torch.where(seen.any(-1, keepdim=True), nearest, 0)
    affinity = torch.exp(exponent)
    total = affinity.sum(-1, keepdim=True) + eps
    W = affinity / torch.where(total > 0, total, 1)
    return _result((dropout or _keep)(W), values, return_weights)
