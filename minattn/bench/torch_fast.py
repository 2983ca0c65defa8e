"""The GPT of torch_refs again, as fast as PyTorch does it on a CPU: what the benchmarks measure
against.

torch_refs/gpt.py writes every mechanism as its paper does. Here each one in FORMS is brought into
the shape that PyTorch's fused attention takes, softmax(scale q k^T + mask) v with a constant mask,
by an identity:

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
    decay, windows     constant masks: here they cost the fused kernel no more than is_causal does

Each form in two versions: fused=True as above; fused=False with baddbmm, softmax and bmm over whole
rows, which wins where rows are short (at 64 tokens, and with torch.compile at 128 for biased keys).
flex_attention, which would do most of this by itself, has no backward on a CPU. A mechanism or
position without a form here takes the one of torch_refs. Measured on PyTorch 2.13.
"""
import math

import torch
import torch.nn.functional as F

from minattn.torch_refs import attention as att
from minattn.torch_refs import gpt
from minattn.torch_refs import positions as pos

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


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


def attend(q, k, v, *, fused, causal, mask=None, scale=None, key_bias=None, bias=None, sink=None):
    """Causal attention in the faster of PyTorch's forms; q, k, v (B, H, T, D) -> (B, H, T, D).

    causal (T, T): 0 where visible, -inf elsewhere; mask: the same with a window or a constant bias
    in it, None if there is neither. key_bias (B, H, T), bias (B, H, T, T) and sink (H,) may learn.
    """
    D = q.shape[-1]
    scale = D ** -0.5 if scale is None else scale
    if not fused or bias is not None:
        return _plain(q, k, v, causal if mask is None else mask, scale, key_bias, bias, sink)
    if key_bias is not None:
        q = F.pad(q, (0, 1), value=1 / scale)
        k = torch.cat([k, key_bias[..., None]], -1)
        v = F.pad(v, (0, 1))
    if sink is not None:
        return SinkAttention.apply(q, k, v, sink, scale, mask)[..., :D]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None,
                                          scale=scale)[..., :D]


def _plain(q, k, v, mask, scale, key_bias, bias, sink):
    B, H, T, D = q.shape
    if key_bias is not None:
        mask = mask + key_bias[:, :, None]
    if bias is not None:
        mask = mask + bias
    if mask.dim() > 2:
        mask = mask.expand(B, H, T, T).reshape(B * H, T, T)
    q, k, v = (x.reshape(B * H, T, D) for x in (q, k, v))
    s = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale)                         # (B H, T, T)
    if sink is not None:
        s = torch.cat([s, sink.repeat(B)[:, None, None].expand(-1, T, 1)], -1)
    return (torch.softmax(s, -1)[..., :T] @ v).view(B, H, T, D)


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

# Each takes the model, the layer's number, its input x (B, T, C) and the options of `attend`, and
# gives what the heads say (B, H, T, D), before a gate; None: these settings have no fast form.


def softmax(gpt, i, x, options):
    return attend(*gpt.qkv(i, x), **options)


def sink(gpt, i, x, options):
    return attend(*gpt.qkv(i, x), sink=gpt._get(f"h.{i}.attn.sink"), **options)


def off_by_one(gpt, i, x, options):
    q, k, v = gpt.qkv(i, x)
    return attend(q, k, v, sink=q.new_zeros(q.shape[1]), **options)


def affine(gpt, i, x, options):
    """alpha y + beta (sum of the visible v)"""
    layer, T = gpt.layers[i], x.shape[1]
    o, window = layer.options, layer.window
    q, k, v = gpt.qkv(i, x)
    logits = gpt._argument(f"h.{i}.attn.alpha_logits", x)                   # (B, H, T)
    alpha_ma = gpt._get(f"h.{i}.attn.alpha_ma")
    if gpt.training:
        used, kept = att.running_mean(alpha_ma, logits, phi=o["phi"], momentum=o["momentum"],
                                      axes=o["axes"], use=o["use"])
        alpha_ma.copy_(kept["alpha_ma"])
        alpha_ma = used["alpha_ma"]
    alpha = att.squash(logits, o["phi"])
    counts = {"total": T, "visible": torch.arange(1, T + 1, device=x.device).clamp(max=window or T)}
    count = counts.get(o["length"], o["length"])
    beta = (alpha_ma[:, None] - alpha) / count
    total = v.cumsum(2)
    if window is not None and window < T:
        total = total - F.pad(total[:, :, :-window], (0, 0, window, 0))
    return torch.addcmul(attend(q, k, v, **options) * alpha[..., None], beta[..., None], total)


def energy(gpt, i, x, options):
    """log sigmoid(alpha (z - tau)) as a bias on the keys, or (prefix) on each pair."""
    o, a = gpt.layers[i].options, f"h.{i}.attn."
    e = gpt._argument(a + "energy", x)                                      # (B, H, T)
    alpha, tau = (gpt._get(a + name)[:, None] for name in ("alpha", "tau"))
    q, k, v = gpt.qkv(i, x)
    if o["norm"] in ("key", "prefix"):
        mean, rstd = running_statistics(e, o["eps"])
        if o["norm"] == "prefix":
            slope = alpha * rstd                                           # (B, H, T), of the query
            u = slope[..., None] * e[:, :, None] - (slope * mean + alpha * tau)[..., None]
            return attend(q, k, v, bias=F.logsigmoid(u), **options)         # (B, H, T, T)
        e = (e - mean) * rstd
    elif o["norm"] == "sequence":
        e = att.standard_energy(e, e.shape[-1], norm="sequence")[:, :, 0]
    return attend(q, k, v, key_bias=F.logsigmoid(alpha * (e - tau)), **options)


def gaussian(gpt, i, x, options):
    """exp(-|x_i - x_j|^2 / 2 sigma^2) is softmax's numerator, of (x_i x_j - |x_j|^2 / 2) / sigma^2
    """
    o = gpt.layers[i].options
    if o["eps"]:
        return None
    u = gpt._heads(x)
    if o["qk_norm"]:
        u = F.rms_norm(u, u.shape[-1:], eps=1e-6)
    keys = gpt.rotate(u)
    inverse = torch.exp(-2 * gpt._get(f"h.{i}.attn.log_sigma"))[:, None]                   # (H, 1)
    values = keys if o["rope_values"] else u
    # After the norm |x_j|^2 is D for every key, up to the norm's eps of 1e-6, which is rounding in
    # float32; a constant cancels.
    key_bias = None
    if not o["qk_norm"] or x.dtype != torch.float32:
        key_bias = (keys * keys).sum(-1) * (-0.5 * inverse)                             # (B, H, T)
    return attend(keys * inverse[..., None], keys, values, scale=1.0, key_bias=key_bias, **options)


def gated(gpt, i, x, options):
    return att.gate(softmax(gpt, i, x, options), gpt._argument(f"h.{i}.attn.gate_logits", x))


FORMS = {"softmax": softmax, "gated": gated, "sink": sink, "off_by_one": off_by_one,
         "affine": affine, "energy": energy, "gaussian": gaussian}


def rotation(T, D, o):
    """cos and sin (T, D) of RoPE, sin with the sign of the other one of a pair"""
    angle = pos._angles(T, D // 2, base=o["base"], start=o["start"])                    # (T, D/2)
    pairs = (angle.cos(), angle.cos()), (-angle.sin(), angle.sin())
    if o["pairs"] == "half":
        return [torch.cat(pair, -1) for pair in pairs]
    return [torch.stack(pair, -1).flatten(1) for pair in pairs]


def decay_bias(T, H):
    return pos.decay_bias(T, T, pos.alibi_slopes(H))[None]


ROTATIONS, BIASES = {"rope": rotation}, {"decay": decay_bias}
EMBEDDED = ("none", "learned", "sinusoidal", "morlet")       # nothing to do in a layer


class GPT(gpt.GPT):
    """gpt.GPT with the same parameters and results, and the layer's inner loop replaced."""

    def __init__(self, config, params, buffers, fused=True):
        super().__init__(config, params, buffers)
        self.fused = fused
        self._tables()

    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)      # .double() and friends: constants are made anew, not
        self._tables()                       # rounded
        return self

    def _tables(self):
        """Constants: the masks of each layer, the rotation of q and k."""
        like = self._get("wte.weight")
        T, H, C = (self.config[key] for key in ("block_size", "n_head", "n_embd"))

        def mask(window=None):
            seen = att.visible(T, T, causal=True, window=window)
            return torch.zeros(T, T).masked_fill(~seen, -math.inf).to(like)

        windows = [layer.window for layer in self.layers]
        self.causal, self.masks = mask(), [None] * len(windows)
        bias = sum(BIASES[name](T, H).to(like) for name in self.positions if name in BIASES)
        if any(windows) or torch.is_tensor(bias):
            self.masks = [mask(window) + bias for window in windows]
        self.rotations = []
        for name, options in self.positions.items():
            if name in ROTATIONS:
                self.pairs = options["pairs"]
                tables = ROTATIONS[name](T, C // H, options)
                self.rotations = [table.to(like) for table in tables]
        self.literal = set(self.positions) - {*EMBEDDED, *ROTATIONS, *BIASES}

    def _linear(self, x, name):
        return F.linear(x, self._get(name + ".weight").t(), self._find(name + ".bias"))

    def rotate(self, x, start=0):
        """x cos + (the other of each pair) sin, in three passes; x (B, H, T, D)"""
        if not self.rotations:
            return x
        T, D = x.shape[-2:]
        cos, sin = (table[start:start + T] for table in self.rotations)
        if self.pairs == "half":
            other = x.roll(D // 2, -1)
        else:
            other = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return torch.addcmul(x * cos, other, sin)

    def qkv(self, i, x, start=0):
        """x (B, T, C) -> q, k, v (B, H, T, D), q and k rotated"""
        parts = self._linear(x, f"h.{i}.attn.c_attn").chunk(3, -1)
        q, k, v = (self._heads(part) for part in parts)
        return self.rotate(q, start), self.rotate(k, start), v

    def _attention(self, i, x):
        T, form, mask = x.shape[1], FORMS.get(self.layers[i].name), self.masks[i]
        if form is None or self.literal or (self.training and self.config["dropout"]):
            return super()._attention(i, x)
        y = form(self, i, x, {"fused": self.fused, "causal": self.causal[:T, :T],
                              "mask": None if mask is None else mask[..., :T, :T]})
        if y is None:
            return super()._attention(i, x)
        return self._output(i, x, y)


# ------------------------------------------------------------------------------------- generation

CACHED = {"softmax"}                         # mechanisms that `generate` can do, nothing on top


@torch.inference_mode()
def generate(gpt, prompt, n_tokens, *, temperature=1.0, top_k=None, seed=0):
    """Continue prompts (B, T) by n_tokens each with a key-value cache; yields (B,) tokens, one
    position at a time.

    Softmax attention without windows, embedded positions or RoPE, and no more than block_size
    tokens in view.
    """
    c, (B, T) = gpt.config, prompt.shape
    plain = all(layer.name in CACHED and not layer.on_top for layer in gpt.layers)
    plain = plain and gpt.masks[0] is None and not gpt.literal
    if not plain or T + n_tokens > c["block_size"] + 1:
        raise ValueError("generate: softmax attention without windows, and at most block_size "
                         "tokens in view")
    H, D, wte = c["n_head"], c["n_embd"] // c["n_head"], gpt._get("wte.weight")
    codes = gpt._embed(prompt.new_zeros(1, c["block_size"]))[0] - wte[0]           # (block_size, C)
    past = torch.empty(c["n_layer"], 2, B, H, c["block_size"], D, dtype=wte.dtype)
    draws = torch.Generator().manual_seed(seed)
    tokens, start = prompt, 0
    for _ in range(n_tokens):
        end = start + tokens.shape[1]
        x = F.embedding(tokens, wte) + codes[start:end]
        for i, (keys, values) in enumerate(past):
            q, k, v = gpt.qkv(i, gpt._norm(x, f"h.{i}.ln_1"), start)
            keys[:, :, start:end], values[:, :, start:end] = k, v
            y = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end],
                                               is_causal=start == 0)
            x = x + gpt._linear(y.transpose(1, 2).flatten(2), f"h.{i}.attn.c_proj")
            x = x + gpt._mlp(i, gpt._norm(x, f"h.{i}.ln_2"))
        logits = gpt._norm(x[:, -1:], "ln_f")[:, 0] @ wte.t()                              # (B, V)
        if top_k == 1:
            tokens = logits.argmax(-1, keepdim=True)
        else:
            if top_k is not None and top_k < logits.shape[-1]:
                least = logits.topk(top_k).values[:, -1:]
                logits = logits.masked_fill(logits < least, -math.inf)
            shares = torch.softmax(logits / temperature, -1)
            tokens = torch.multinomial(shares, 1, generator=draws)
        start = end
        yield tokens[:, 0]
