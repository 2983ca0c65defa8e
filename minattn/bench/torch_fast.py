"""The GPT of torch_refs again, as fast as PyTorch does it on a CPU: what the benchmarks measure
against.

torch_refs/gpt.py writes every mechanism as its paper does. Here most are brought into the shape
that PyTorch's fused attention takes, softmax(scale q k^T + mask) v with a constant mask, by an
identity:

    sink, off_by_one   the fused kernel also knows each row's log-sum-exp, lse; the sink scales its
                       output by exp(lse - log(exp(lse) + exp(sink))), and its backward, given that
                       sum as lse, is the sink's own
    gated              the kernel's output times the gate
    affine             alpha times the kernel's output, plus beta times a running sum of v
    energy             a gate per key is a bias on it: one more channel, q = [q, 1/scale],
                       k = [k, bias], v = [v, 0]. A mask that learns would leave the fused kernel,
                       which costs more than the channel
    energy (prefix)    its bias differs by query and key and learns: no identity, so softmax over
                       whole rows
    gaussian           q = x / sigma^2, k = x, and -|x|^2 / (2 sigma^2) as a bias on the keys
    forget             the sum of log gates from j + 1 to i is one up to i, which a softmax does not
                       see, less one up to j: a bias on the keys
    differential       one call for either map; version 1 pads its narrow queries and keys
    decay, windows     constant masks: here they cost the fused kernel no more than is_causal does

Each of these in two versions: fused=True as above; fused=False with baddbmm, softmax and bmm over
whole rows, which wins where rows are short (at 64 tokens, and with torch.compile at 128 for biased
keys). flex_attention, which would do most of this by itself, has no backward on a CPU.

The others have one version, outside the fused kernel:

    cog, lssa, pointwise, sparse    their weights are no softmax of the scores: by_rows, in blocks
                                    of rows that leave out the keys after them
    collaborative                   the kernel would pad v to the width of the shared keys: by_rows
    linear                          sums over the keys so far, chunk by chunk

What has no form here (another position, an eps of gaussian, lln of linear) takes the one of
torch_refs. Measured on PyTorch 2.13.
"""
import math
from functools import partial

import torch
import torch.nn.functional as F

from minattn.torch_refs import attention as att
from minattn.torch_refs import gpt
from minattn.torch_refs import positions as pos

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


ROWS = 64            # in a block, or a chunk


class SinkAttention(torch.autograd.Function):
    """Softmax attention whose rows also weigh a sink; q, k, v (B, H, T, D), sink (H,)"""

    @staticmethod
    def forward(ctx, q, k, v, sink, scale, mask):
        out, lse = flash(q, k, v, 0.0, mask is None, attn_mask=mask, scale=scale)    # lse (B, H, T)
        total = torch.logaddexp(lse, sink[:, None])
        out = out * torch.exp(lse - total)[..., None]
        ctx.save_for_backward(q, k, v, sink, out, total)
        ctx.scale, ctx.mask = scale, mask
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v, sink, out, total = ctx.saved_tensors
        dq, dk, dv = flash_backward(dout, q, k, v, out, total, 0.0, ctx.mask is None,
                                    attn_mask=ctx.mask, scale=ctx.scale)
        dsink = -(torch.exp(sink[:, None] - total) * (dout * out).sum(-1)).sum((0, 2))
        return dq, dk, dv, dsink, None, None


class Threshold(torch.autograd.Function):
    """Sparsemax (power 1) and 1.5-entmax (2): P = max(z - tau, 0)^power, z = (s - max s) / power"""

    @staticmethod
    def forward(ctx, s, power):
        z = ((s - s.amax(-1, keepdim=True)) / power).clamp_(min=-2)
        u = z.sort(-1, descending=True).values
        n = torch.arange(1, s.shape[-1] + 1, dtype=s.dtype, device=s.device)
        mean = u.cumsum(-1) / n                                        # of the n largest
        if power == 1:
            tau = mean - 1 / n
        else:
            tau = mean - ((1 - (u * u).cumsum(-1)) / n + mean * mean).clamp_(min=0).sqrt_()
        last = (tau <= u).sum(-1, keepdim=True) - 1
        root = (z - tau.gather(-1, last)).clamp_(min=0)
        P = root if power == 1 else root * root
        ctx.save_for_backward(P)
        ctx.power = power
        return P

    @staticmethod
    def backward(ctx, dP):
        P, = ctx.saved_tensors
        slope = P.sign() if ctx.power == 1 else P.sqrt()
        ds = dP * slope
        mean = ds.sum(-1, keepdim=True) / slope.sum(-1, keepdim=True)
        return ds.addcmul_(slope, mean, value=-1), None


def attend(q, k, v, *, fused, mask, causal, scale=None, key_bias=None, bias=None, sink=None):
    """Causal attention in the faster of PyTorch's forms; q, k, v (B, H, T, D) -> (B, H, T, D).

    The fused form pads v, or q and k, where the other is wider.

    mask: a constant bias, -inf where a key is hidden; causal: it is the causal mask and no more.
    key_bias (B, H, T), bias (B, H, T, T) and sink (H,) may learn. A single query sees every key,
    and its key_bias need not learn.
    """
    Dv, single = v.shape[-1], q.shape[2] == 1
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not fused or bias is not None:
        return _plain(q, k, v, mask, scale, key_bias, bias, sink)
    causal = causal and not single
    if causal or single and sink is None:       # without a mask, SinkAttention is causal
        mask = None
    if key_bias is not None and single:
        mask = key_bias[:, :, None]
    elif key_bias is not None:
        q = F.pad(q, (0, 1), value=1 / scale)
        k = torch.cat([k, key_bias[..., None]], -1)
    width = max(q.shape[-1], Dv)
    q, k, v = (x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    if sink is not None:
        return SinkAttention.apply(q, k, v, sink, scale, mask)[..., :Dv]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal,
                                          scale=scale)[..., :Dv]


def _plain(q, k, v, mask, scale, key_bias, bias, sink):
    (B, H, T, _), Tk = q.shape, k.shape[2]
    if key_bias is not None:
        mask = mask + key_bias[:, :, None]
    if bias is not None:
        mask = mask + bias
    if mask.dim() > 2:
        mask = mask.expand(B, H, T, Tk).reshape(B * H, T, Tk)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    s = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale)                        # (B H, T, Tk)
    if sink is not None:
        s = torch.cat([s, sink.repeat(B)[:, None, None].expand(-1, T, 1)], -1)
    return (torch.softmax(s, -1)[..., :Tk] @ v).view(B, H, T, -1)


def by_rows(q, k, v, mask, rule):
    """rule(q k^T, mask) v, a block of rows at a time and without the keys after them.

    q (B, H, T, D), the last T of k (B, G, Tk, D), v (B, H, Tk, Dv): all heads that share a key in
    one product
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    (B, H, T, D), G, blocks = q.shape, k.shape[1], []
    for start in range(0, T, ROWS):
        end = min(start + ROWS, T)
        keys = k.shape[2] - T + end
        s = q[:, :, start:end].reshape(B, G, -1, D) @ k[:, :, :keys].transpose(2, 3)
        P = rule(s.view(B, H, end - start, keys), mask[..., start:end, :keys])
        blocks.append(P @ v[:, :, :keys])
    return torch.cat(blocks, 2)


def visible_keys(mask):
    """How many each query may see: (..., T, 1)"""
    return (mask > -math.inf).sum(-1, keepdim=True, dtype=mask.dtype)


def windowed(q, k, v, window):
    """Softmax attention to the last `window` keys, in time and memory linear in T.

    q, k, v (B, H, T, D), T a multiple. A block of `window` queries sees keys of its own block and
    of the one before: fused attention over pairs of blocks.
    """
    B, H, T, D = q.shape
    if T <= window:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    i, j = torch.arange(window)[:, None], torch.arange(2 * window)
    seen = (j > i) & (j <= i + window)                                                 # (W, 2W)
    heads = (x[:, :, :window] for x in (q, k, v))
    first = F.scaled_dot_product_attention(*heads, is_causal=True)
    q, k, v = (x.reshape(B * H, T // window, window, D) for x in (q, k, v))
    k, v = (torch.cat([x[:, :-1], x[:, 1:]], 2) for x in (k, v))             # (B H, T/W - 1, 2W, D)
    rest = F.scaled_dot_product_attention(q[:, 1:], k, v, attn_mask=seen)
    return torch.cat([first, rest.reshape(B, H, T - window, D)], 2)


def running_statistics(e, eps):
    """Mean and 1 / sqrt(variance + eps) of the keys up to each; e (B, H, T) -> twice (B, H, T)

    The second is 0 for the first key. Welford's sum: no difference of large numbers.
    """
    count = torch.arange(1, e.shape[-1] + 1, dtype=e.dtype, device=e.device)
    mean = e.cumsum(-1) / count
    squares = ((e - F.pad(mean[..., :-1], (1, 0))) * (e - mean)).cumsum(-1)
    return mean, torch.where(count > 1, torch.rsqrt(squares / count + eps), 0)


# ----------------------------------------------------------------------------- the forms, by name

# Each takes `attend` with the model's masks, the layer's options and masks, and by name what the
# function of torch_refs takes.


def softmax(attend, options, q, k, v):
    return attend(q, k, v)


def sink(attend, options, q, k, v, sink):
    return attend(q, k, v, sink=sink)


def off_by_one(attend, options, q, k, v):
    return attend(q, k, v, sink=q.new_zeros(q.shape[1]))


def gated(attend, options, q, k, v, gate_logits):
    return att.gate(attend(q, k, v), gate_logits)


def affine(attend, options, q, k, v, alpha_logits, alpha_ma):
    """alpha y + beta (sum of the visible v)"""
    T, Tk, window = q.shape[2], k.shape[2], options["window"]
    alpha = att.squash(alpha_logits, options["phi"])                        # (B, H, T)
    seen = torch.arange(Tk - T + 1, Tk + 1, device=q.device).clamp(max=window or Tk)
    counts = {"total": Tk, "visible": seen}
    beta = (alpha_ma[:, None] - alpha) / counts.get(options["length"], options["length"])
    total = v.sum(2, keepdim=True) if T == 1 else v.cumsum(2)
    if window is not None and window < T:
        total = total - F.pad(total[:, :, :-window], (0, 0, window, 0))
    return torch.addcmul(attend(q, k, v) * alpha[..., None], beta[..., None], total)


def energy(attend, options, q, k, v, energy, alpha, tau):
    """log sigmoid(alpha (z - tau)) as a bias on the keys, or (prefix) on each pair."""
    norm, alpha, tau = options["norm"], alpha[:, None], tau[:, None]
    if norm in ("key", "prefix"):
        mean, rstd = running_statistics(energy, options["eps"])
        if norm == "prefix":
            mean, rstd = (x[..., -q.shape[2]:] for x in (mean, rstd))   # (B, H, T), of the query
            slope = alpha * rstd
            shift = slope * mean + alpha * tau
            bias = F.logsigmoid(slope[..., None] * energy[:, :, None] - shift[..., None])
            return attend(q, k, v, bias=bias)                               # (B, H, T, Tk)
        energy = (energy - mean) * rstd
    else:
        energy = att.standard_energy(energy, energy.shape[-1], norm=norm)[:, :, 0]
    return attend(q, k, v, key_bias=F.logsigmoid(alpha * (energy - tau)))


def gaussian(attend, options, x, log_sigma, values, keys=None):
    """exp(-|x_i - x_j|^2 / 2 sigma^2) is softmax's numerator, of (x_i x_j - |x_j|^2 / 2) / sigma^2
    """
    keys = x if keys is None else keys
    inverse = torch.exp(-2 * log_sigma)[:, None]                                           # (H, 1)
    # After the norm |x_j|^2 is D for every key, up to the norm's eps of 1e-6, which is rounding in
    # float32; a constant cancels.
    key_bias = None
    if not options["qk_norm"] or x.dtype != torch.float32:
        key_bias = (keys * keys).sum(-1) * (-0.5 * inverse)                            # (B, H, Tk)
    return attend(x * inverse[..., None], keys, values, scale=1.0, key_bias=key_bias)


def forget(attend, options, q, k, v, forget_logits):
    return attend(q, k, v, key_bias=-F.logsigmoid(forget_logits).cumsum(-1))


def collaborative(attend, options, q, k, v, mix, content):
    H, D = mix.shape
    scale = (H / D) ** 0.5
    bias = (content * scale)[:, :, None]

    def rule(s, mask):
        return torch.softmax(s.add_(bias[..., :s.shape[-1]]).add_(mask), -1)

    return by_rows(q * (mix[:, None] * scale), k, v, options["mask"], rule)


def differential(attend, options, q, k, v, lam_logits):
    first, second = (attend(q[:, i::2], k, v) for i in (0, 1))
    return torch.addcmul(first, torch.sigmoid(lam_logits)[..., None], second, value=-1)


def differential_1(attend, options, q, k, v, lam_q1, lam_k1, lam_q2, lam_k2, gain):
    start = 0.8 - 0.6 * math.exp(-0.3 * options["layer_index"])
    lam = torch.exp(lam_q1 @ lam_k1) - torch.exp(lam_q2 @ lam_k2) + start
    first, second = (attend(q[:, i::2], k[:, i::2], v) for i in (0, 1))
    out = torch.addcmul(first, lam, second, value=-1)
    return F.rms_norm(out, gain.shape, (1 - start) * gain, eps=1e-5)


def linear(attend, options, q, k, v):
    """One product gives the sums with v and without it: [v, 1]"""
    q, k, v = F.elu(q) + 1, F.elu(k) + 1, F.pad(v, (0, 1), value=1.0)
    if options["causal"]:
        sums = running_sums(q, k, v)
    else:
        sums = by_rows(q, k, v, options["mask"], lambda kappa, mask: kappa * mask.exp())
    total = sums[..., -1:]
    return sums[..., :-1] / torch.where(total > 0, total, 1)


def running_sums(q, k, v):
    """sum over j <= i of (q_i . k_j) v_j: a chunk's own keys as in attention, and q S, where S is
    the sum of k^T v over the chunks before"""
    T = q.shape[2]
    q, k, v = (F.pad(x, (0, 0, 0, -T % ROWS)).unflatten(2, (-1, ROWS)) for x in (q, k, v))
    keys = k.transpose(-1, -2)                                              # (B, H, N, D, ROWS)
    before = F.pad((keys @ v)[:, :, :-1], (0, 0, 0, 0, 1, 0)).cumsum(2)
    return ((q @ keys).tril() @ v + q @ before).flatten(2, 3)[:, :, :T]


def cog(attend, options, q, k, v):
    def rule(s, mask):
        sign = s.detach().sign()
        return torch.softmax(torch.addcmul(mask, s, sign), -1) * sign

    return by_rows(q * q.shape[-1] ** -0.5, k, v, options["mask"], rule)


def pointwise(attend, options, q, k, v):
    q, mask = q * q.shape[-1] ** -0.5, options["mask"]
    n = visible_keys(mask)
    if options["rule"] == "relu":
        return by_rows(q, k, v, mask, lambda s, mask: s.add_(mask).relu_()) / n
    return by_rows(q, k, v, mask - n.log(), lambda s, mask: s.add_(mask).sigmoid_())


def sparse(attend, options, q, k, v):
    def rule(s, mask):
        s = s.add_(mask)
        if options["rule"] != "topk":
            return Threshold.apply(s, 1 if options["rule"] == "sparsemax" else 2)
        top = s.detach().topk(min(options["top"], s.shape[-1]), sorted=False).values
        return torch.softmax(s.masked_fill(s < top.amin(-1, keepdim=True), -math.inf), -1)

    return by_rows(q * q.shape[-1] ** -0.5, k, v, options["mask"], rule)


def lssa(attend, options, q, k, v):
    """b / (sum of b + eps) after the product with [v, 1]; a large b overflows as in torch_refs"""
    power, n = options["power"], visible_keys(options["mask"])

    def rule(s, mask):
        a = F.softplus(s.add_(mask), threshold=50)
        if not power:
            return a
        n = visible_keys(mask)
        return torch.addcmul(-(n > 3).to(s), a, n / a.sum(-1, keepdim=True)).relu_() ** power

    q = F.normalize(q, dim=-1) * (math.log(q.shape[-1]) * n.log())
    v = F.pad(v, (0, 1), value=1.0)
    sums = by_rows(q, F.normalize(k, dim=-1), v, options["mask"], rule)
    return sums[..., :-1] / (sums[..., -1:] + (options["eps"] if power else 0))


FORMS = {"softmax": softmax, "gated": gated, "sink": sink, "off_by_one": off_by_one,
         "affine": affine, "energy": energy, "gaussian": gaussian, "forget": forget,
         "collaborative": collaborative, "differential": differential,
         "differential_1": differential_1, "linear": linear, "cog": cog, "pointwise": pointwise,
         "sparse": sparse, "lssa": lssa}


def form_of(layer):
    """None: there is no fast one with these options."""
    if layer.options.get("feature") == "lln" or layer.name == "gaussian" and layer.options["eps"]:
        return None
    return FORMS.get(layer.name)


def rotation(T, D, options):
    """cos and sin (T, D) of RoPE, sin with the sign of the other one of a pair"""
    angle = pos._angles(T, D // 2, base=options["base"], start=options["start"])        # (T, D/2)
    pairs = (angle.cos(), angle.cos()), (-angle.sin(), angle.sin())
    if options["pairs"] == "half":
        return [torch.cat(pair, -1) for pair in pairs]
    return [torch.stack(pair, -1).flatten(1) for pair in pairs]


CONSTANT = ("none", "learned", "sinusoidal", "morlet",       # nothing to do in a layer
            "rope", "decay")                                 # tables


class GPT(gpt.GPT):
    """gpt.GPT with the same parameters and results, and the layer's inner loop replaced."""

    def __init__(self, config, params, buffers, fused=True):
        super().__init__(config, params, buffers)
        self.fused, self.start = fused, 0                    # start: tokens before, in generation
        literal = (any(name not in CONSTANT for name in self.positions)
                   or any(self.config[key] for key in ("n_kv_head", "softcap", "log_length")))
        self.forms = [None if literal else form_of(layer) for layer in self.layers]
        self._tables()

    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)      # .double() and friends: constants are made anew, not
        self._tables()                       # rounded
        return self

    def _tables(self):
        """Constants: the masks of each layer, the rotation of q and k."""
        like = self._get("wte.weight")
        T, H, C = (self.config[key] for key in ("block_size", "n_head", "n_embd"))

        def mask(window):
            seen = att.visible(T, T, causal=True, window=window)
            return torch.zeros(T, T).masked_fill(~seen, -math.inf).to(like)

        self.masks = {layer.window: mask(layer.window) for layer in self.layers}
        if "decay" in self.positions:
            bias = pos.decay(T, H)[None].to(like)
            self.masks = {window: mask + bias for window, mask in self.masks.items()}
        if "rope" in self.positions:
            sizes = {"C": C, "H": H, "G": self.config["n_kv_head"] or H}
            heads = [gpt._call(layer.formula.heads, {**sizes, **layer.options})
                     for layer in self.layers if layer.formula.heads]
            self.rotations = {}
            for width in {C // H, *(shapes[0][1] for shapes in heads)}:
                tables = rotation(T, width, self.positions["rope"])
                self.rotations[width] = [table.to(like) for table in tables]

    def _rotate(self, x):
        """RoPE as x cos + (the other of each pair) sin, in three passes; x (B, H, T, D)"""
        if "rope" not in self.positions:
            return super()._rotate(x)
        T, D = x.shape[-2:]
        cos, sin = (table[self.start:self.start + T] for table in self.rotations[D])
        if self.positions["rope"]["pairs"] == "half":
            other = x.roll(D // 2, -1)
        else:
            other = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return torch.addcmul(x * cos, other, sin)

    def _causal(self, layer):
        """Whether its mask is the causal one and no more"""
        return layer.window is None and "decay" not in self.positions

    def _attention(self, i, x):
        T, layer, form = x.shape[1], self.layers[i], self.forms[i]
        if form is None or (self.training and self.config["dropout"]):
            return super()._attention(i, x)
        masks = {"mask": self.masks[layer.window][..., :T, :T], "causal": self._causal(layer)}
        options = {**layer.options, "window": layer.window, **masks}
        masked = partial(attend, fused=self.fused, **masks)
        return self._output(i, x, form(masked, options, **self._inputs(i, x)))


# ------------------------------------------------------------------------------------- generation

KEPT = ("k", "v", "keys", "values", "energy", "forget_logits", "content")    # of every token so far


@torch.inference_mode()
def generate(gpt, prompt, n_tokens):
    """Continue prompts (B, T) greedily by n_tokens each with a key-value cache; yields (B,) tokens,
    one position at a time.

    No windows, embedded positions or RoPE, no more than block_size tokens in view, and no
    mechanism whose earlier outputs change with every new token.
    """
    c = gpt.config
    for form, layer in zip(gpt.forms, gpt.layers):
        anew = {"total", "sequence"} & {layer.options.get("length"), layer.options.get("norm")}
        if form is None or anew or not gpt._causal(layer):
            raise ValueError(f"generate: {layer.name} with these options has no form here")
    if prompt.shape[1] + n_tokens > c["block_size"] + 1:
        raise ValueError("generate: at most block_size tokens in view")
    wte, past, tokens, start = gpt._get("wte.weight"), [{} for _ in gpt.layers], prompt, 0
    codes = gpt._embed(prompt.new_zeros(1, c["block_size"]))[0] - wte[0]           # (block_size, C)
    for _ in range(n_tokens):
        end = start + tokens.shape[1]
        x = F.embedding(tokens, wte) + codes[start:end]
        for i, kept in enumerate(past):
            x = x + _continue(gpt, i, gpt._norm(x, f"h.{i}.ln_1"), kept, start)
            x = x + gpt._mlp(i, gpt._norm(x, f"h.{i}.ln_2"))
        logits = gpt._norm(x[:, -1:], "ln_f")[:, 0] @ wte.t()                              # (B, V)
        tokens, start = logits.argmax(-1, keepdim=True), end
        yield tokens[:, 0]


def _continue(gpt, i, x, kept, start):
    """gpt._attention(i, x) of the tokens from `start` on, which are added to what is kept."""
    layer, form, end = gpt.layers[i], gpt.forms[i], start + x.shape[1]
    gpt.start = start
    given = gpt._inputs(i, x)
    gpt.start = 0
    if form is linear:
        return gpt._output(i, x, _continue_sums(kept, **given))
    if "x" in given:
        given["keys"] = given["x"]
    for name in given.keys() & set(KEPT):
        new = given[name]
        if name not in kept:
            shape = (*new.shape[:2], gpt.config["block_size"], *new.shape[3:])
            kept[name] = new.new_empty(shape)
        kept[name][:, :, start:end] = new
        given[name] = kept[name][:, :, :end]
    masks = {"mask": gpt.masks[None][start:end, :end], "causal": True}
    options = {**layer.options, "window": None, **masks}
    return gpt._output(i, x, form(partial(attend, fused=True, **masks), options, **given))


def _continue_sums(kept, q, k, v):
    """linear: what is kept is the sum of k^T [v, 1], of one size for any number of tokens."""
    q, k, v = F.elu(q) + 1, F.elu(k) + 1, F.pad(v, (0, 1), value=1.0)
    before = kept.get("sums", 0)
    kept["sums"] = before + k.transpose(2, 3) @ v
    if q.shape[2] == 1:
        sums = q @ kept["sums"]
    else:                                                      # the prompt: nothing came before it
        sums = (q @ k.transpose(2, 3)).tril() @ v
    return sums[..., :-1] / sums[..., -1:]
