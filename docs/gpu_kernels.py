"""PyTorch's CUDA kernels, and one in Triton, as `minattn check` calls them: see gpu.sh."""
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from minattn.torch_refs import visible


def seen(q, k, *, allowed=None, **mask):
    """Which keys each query may see: boolean, (B, H, Tq, Tk)"""
    see = visible(q.shape[2], k.shape[2], **mask, device=q.device)
    return (see if allowed is None else see & allowed).expand(*q.shape[:3], k.shape[2])


def backend(name):
    """scaled_dot_product_attention by one of its kernels"""
    def attention(q, k, v, *, scale=None, bias=None, **mask):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        causal, aligned = mask.get("causal", False), mask.get("align") == "start"
        with sdpa_kernel(name):
            if bias is None and mask.keys() <= {"causal", "align"} and (
                    not causal or aligned or q.shape[2] == k.shape[2]):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
            see = seen(q, k, **mask)
            see = see if bias is None else torch.where(see, bias, -torch.inf)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=see, scale=scale)
    return attention


flash = backend(SDPBackend.FLASH_ATTENTION)
efficient = backend(SDPBackend.EFFICIENT_ATTENTION)
cudnn = backend(SDPBackend.CUDNN_ATTENTION)
compiled = torch.compile(flex_attention, dynamic=False)


def flex(q, k, v, *, scale=None, bias=None, **mask):
    """FlexAttention, compiled on a GPU; on a CPU it has no backward, and stays eager"""
    torch._dynamo.config.cache_size_limit = 1000                # every case has shapes of its own
    see, bias = seen(q, k, **mask), None if bias is None else bias.expand(*q.shape[:3], k.shape[2])

    def score(s, b, h, i, j):
        s = s if bias is None else s + bias[b, h, i, j]
        return torch.where(see[b, h, i, j], s, -torch.inf)

    attend = compiled if q.is_cuda else flex_attention
    return attend(q, k, v, score_mod=score, scale=scale)


try:
    import triton
    import triton.language as tl
except ImportError:                                             # PyTorch for CUDA brings it
    triton = None
else:
    @triton.jit
    def _tiles(q, k, v, out, Tq, Tk, scale, shift, CAUSAL: tl.constexpr, D: tl.constexpr,
               SIZE: tl.constexpr):
        """SIZE queries of one head, over SIZE keys at a time: a running maximum and sum"""
        head, i, d = tl.program_id(1), tl.program_id(0) * SIZE + tl.arange(0, SIZE), tl.arange(0, D)
        rows = (head * Tq + i[:, None]) * D + d
        x = tl.load(q + rows, mask=i[:, None] < Tq, other=0.0).to(tl.float32)
        m = tl.full((SIZE,), float("-inf"), tl.float32)
        total, y = tl.zeros((SIZE,), tl.float32), tl.zeros((SIZE, D), tl.float32)
        for first in range(0, Tk, SIZE):
            j = first + tl.arange(0, SIZE)
            keys = (head * Tk + j[:, None]) * D + d
            a = tl.load(k + keys, mask=j[:, None] < Tk, other=0.0).to(tl.float32)
            b = tl.load(v + keys, mask=j[:, None] < Tk, other=0.0).to(tl.float32)
            see = j[None, :] < Tk
            if CAUSAL:
                see = see & (j[None, :] <= i[:, None] + shift)
            s = tl.dot(x, tl.trans(a), input_precision="ieee") * scale
            s = tl.where(see, s, float("-inf"))
            new = tl.maximum(m, tl.max(s, 1))
            safe = tl.where(new == float("-inf"), 0.0, new)
            p, r = tl.exp(s - safe[:, None]), tl.exp(m - safe)
            total = total * r + tl.sum(p, 1)
            y = y * r[:, None] + tl.dot(p, b, input_precision="ieee")
            m = new
        y = y / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out + rows, y.to(out.dtype.element_ty), mask=i[:, None] < Tq)


def tiled(q, k, v, *, scale=None, causal=False, align="end"):
    """The Triton kernel: forward only, heads of 16, 32, 64 ... channels, all of one width"""
    (B, H, Tq, D), Tk = q.shape, k.shape[2]
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out, size = torch.empty_like(q), 32
    _tiles[(-(-Tq // size), B * H)](q, k, v, out, Tq, Tk, D ** -0.5 if scale is None else scale,
                                    Tk - Tq if align == "end" else 0, causal, D, size)
    return out
