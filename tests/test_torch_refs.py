"""The PyTorch references alone: identities that the papers' formulas must satisfy."""
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minattn import model as numpy_model  # noqa: E402  (torch first)
from minattn import spec  # noqa: E402
from minattn import torch_refs as refs  # noqa: E402
from minattn.attention import MECHANISMS  # noqa: E402
from minattn.positions import POSITIONS  # noqa: E402
from minattn.torch_refs import gpt as torch_gpt  # noqa: E402
from minattn.torch_refs.attention import standard_energy  # noqa: E402

B, H, Tq, Tk, D, Dv = 2, 3, 5, 7, 11, 13
f64 = torch.float64
KINDS = ["softmax", "sink", "off_by_one", "gated", "gated_head", "affine_total", "affine_visible",
         "affine_sigmoid", "energy_key", "energy_prefix", "energy_sequence", "energy_none",
         "energy_stable",
         "gaussian", "gaussian_eps"]


def rand(*shape, seed=0):
    return torch.randn(shape, dtype=f64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def close(a, b, tol=1e-12):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def build(kind, Tq=Tq, Tk=Tk):
    """One mechanism as a function of a list of leaf tensors, and those tensors."""
    q, k, v = rand(B, H, Tq, D, seed=1), rand(B, H, Tk, D, seed=2), rand(B, H, Tk, Dv, seed=3)
    name, _, option = kind.partition("_")
    if kind in ("softmax", "off_by_one"):
        args, call = [q, k, v], getattr(refs, kind + "_attention")
    elif name == "sink":
        args, call = [q, k, v, rand(H)], refs.sink_attention
    elif name == "gated":
        args, call = [q, k, v, rand(B, H, Tq, 1 if option == "head" else Dv)], refs.gated_attention
    elif name == "affine":
        mean = torch.tensor([0.2, 0.5, 0.9], dtype=f64)
        extra = {"phi": "sigmoid"} if option == "sigmoid" else {"length": option}
        args = [q, k, v, rand(B, H, Tq, seed=4)]

        def call(q, k, v, a, **o):
            return refs.affine_attention(q, k, v, a, mean, **extra, **o)
    elif name == "energy":
        extra = {"stable": True} if option == "stable" else {"norm": option}
        args = [q, k, v, rand(B, H, Tk, seed=5), 1 + rand(H, seed=6) / 9, rand(H, seed=7)]

        def call(q, k, v, e, a, t, **o):
            return refs.energy_gated_attention(q, k, v, e, a, t, **extra, **o)
    else:
        extra = {"eps": 1e-3} if option else {}
        args = [q / 2, k / 2, v, rand(H, seed=8) / 5]

        def call(q, k, v, s, **o):
            return refs.gaussian_kernel_attention(q, s, keys=k, values=v, **extra, **o)
    return call, [arg.requires_grad_() for arg in args]


# --- masks

def rows(mask):
    return ["".join(".x"[int(cell)] for cell in row) for row in mask]


@pytest.mark.parametrize("Tq, Tk, options, expected", [
    (3, 3, {}, ["xxx", "xxx", "xxx"]),
    (3, 3, {"prefix": 2}, ["xxx", "xxx", "xxx"]),
    (3, 3, {"causal": True}, ["x..", "xx.", "xxx"]),
    (2, 4, {"causal": True}, ["xxx.", "xxxx"]),
    (2, 4, {"causal": True, "align": "start"}, ["x...", "xx.."]),
    (4, 2, {"causal": True}, ["..", "..", "x.", "xx"]),
    (4, 4, {"window": 2}, ["x...", "xx..", ".xx.", "..xx"]),
    (4, 4, {"causal": True, "window": 1}, ["x...", ".x..", "..x.", "...x"]),
    (5, 5, {"causal": True, "prefix": 3}, ["xxx..", "xxx..", "xxx..", "xxxx.", "xxxxx"]),
    (5, 5, {"window": 2, "prefix": 3}, ["xxx..", "xxx..", ".xx..", "..xx.", "...xx"]),
])
def test_visible(Tq, Tk, options, expected):
    assert rows(refs.visible(Tq, Tk, **options)) == expected


# --- what every mechanism shares

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 2, "prefix": 4},
                                     {"causal": True, "align": "start"}])
def test_autograd_agrees_with_differences(kind, options):
    call, args = build(kind)
    direction = [rand(*arg.shape, seed=20 + n) for n, arg in enumerate(args)]
    cotangent = rand(B, H, Tq, Dv, seed=9)

    def loss(step):
        return (call(*(arg + step * d for arg, d in zip(args, direction)),
                     **options) * cotangent).sum()

    slope = sum((g * d).sum()
                for g, d in zip(torch.autograd.grad(loss(0.0), args), direction)).item()
    with torch.no_grad():
        h = 2e-4
        estimate = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))).item() / (12 * h)
    assert slope == pytest.approx(estimate, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_fully_masked_row_is_zero_with_zero_gradients(kind):
    call, args = build(kind)
    allowed = torch.ones(B, 1, Tq, 1, dtype=torch.bool)
    allowed[1, 0, 2] = False
    out, weights = call(*args, allowed=allowed, return_weights=True)
    assert (out[1, :, 2] == 0).all() and (weights[1, :, 2] == 0).all() and (out[0, :, 2] != 0).all()
    for grad in torch.autograd.grad((out[1, :, 2] * rand(H, Dv)).sum(), args):
        assert (grad == 0).all()
    for grad in torch.autograd.grad((call(*args, allowed=allowed) * rand(B, H, Tq, Dv)).sum(),
                                    args):
        assert grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_what_multiplied_the_values(kind):
    call, args = build(kind)
    out, weights = call(*args, causal=True, return_weights=True)
    if kind.startswith("gated"):
        out = out / torch.sigmoid(args[3])
    close(out, weights @ args[2])
    assert (weights[..., ~refs.visible(Tq, Tk, causal=True)] == 0).all()
    if kind.split("_")[0] in ("softmax", "gated", "energy") or kind == "gaussian":
        close(weights.sum(-1), torch.ones(B, H, Tq, dtype=f64))


@pytest.mark.parametrize("kind", KINDS)
def test_who_sees_the_future(kind):
    """Only with statistics over the sequence do early outputs move with a late token."""
    call, args = build(kind, Tq=Tk)
    changed = [arg.detach().clone() for arg in args]
    for arg in changed:
        if arg.dim() > 2:
            arg[:, :, -1] += 1 + rand(*arg.shape[3:])
    before, after = (call(*a, causal=True) for a in (args, changed))
    assert torch.equal(before[:, :, :-1], after[:, :, :-1]) == (kind != "energy_sequence")
    assert not torch.equal(before[:, :, -1], after[:, :, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_prefix_computes(kind):
    """Affine with N = Tk depends on the sequence's length, energy over it on all of it."""
    call, args = build(kind, Tq=Tk)
    short = [arg[:, :, :4] if arg.dim() > 2 else arg for arg in args]
    whole, prefix = call(*args, causal=True)[:, :, 3], call(*short, causal=True)[:, :, 3]
    depends = kind in ("affine_total", "affine_sigmoid", "energy_sequence")
    assert ((whole - prefix).abs().max() > 1e-6) == depends
    if not depends:
        close(whole, prefix)


@pytest.mark.parametrize("shift", [1e2, -1e4, 1e6])
def test_shifted_scores_and_a_dominant_one(shift):
    q, k, v = (arg.detach() for arg in build("softmax")[1])
    close(refs.softmax_attention(q, k, v, bias=torch.tensor(shift)),
          refs.softmax_attention(q, k, v), 1e-9)
    spike = torch.zeros(Tk, dtype=f64)
    spike[4] = abs(shift)
    close(refs.softmax_attention(q, k, v, bias=spike), v[:, :, 4:5].expand(-1, -1, Tq, -1))


# --- sink and off-by-one

def test_sink_identities():
    call, (q, k, v, sink) = build("sink")
    s = q @ k.transpose(-1, -2) / math.sqrt(D)
    literal = s.exp() / (sink.exp()[:, None, None] + s.exp().sum(-1, keepdim=True))
    close(call(q, k, v, sink), literal @ v)
    close(refs.off_by_one_attention(q, k, v), s.exp() / (1 + s.exp().sum(-1, keepdim=True)) @ v)
    nothing = torch.full((H,), float("-inf"), dtype=f64)
    close(call(q, k, v, nothing), refs.softmax_attention(q, k, v))
    assert (call(q, k, v, nothing, allowed=torch.zeros(1, dtype=torch.bool)) == 0).all()


def test_sink_gradient_formula():
    call, (q, k, v, sink) = build("sink")
    cotangent = rand(B, H, Tq, Dv)
    out, P = call(q, k, v, sink, return_weights=True)
    expected = -((1 - P.sum(-1)) * (cotangent * out).sum(-1)).sum((0, 2))
    close(torch.autograd.grad((out * cotangent).sum(), sink)[0], expected)


# --- affine-scaled

def test_affine_row_sums():
    q, k, v, logits = build("affine_total")[1]
    mean = torch.tensor([0.2, 0.5, 0.9], dtype=f64)
    alpha, seen = 0.1 * logits + 0.5, refs.visible(Tq, Tk, causal=True).sum(-1)
    total, visible, seven = (
        refs.affine_attention(q, k, v, logits, mean, length=n, causal=True, return_weights=True)[1]
        for n in ("total", "visible", 7))
    close(total.sum(-1), alpha + seen.to(f64) / Tk * (mean[:, None] - alpha))
    close(visible.sum(-1), mean[:, None].expand(B, H, Tq))
    close(total, seven)


def test_affine_is_softmax_plus_a_running_sum():
    q, k, v, logits = (arg.detach() for arg in build("affine_total", Tq=Tk)[1])
    mean = torch.tensor([0.2, 0.5, 0.9], dtype=f64)
    alpha = (0.1 * logits + 0.5)[..., None]
    beta = (mean[:, None, None] - alpha) / Tk
    expected = alpha * refs.softmax_attention(q, k, v, causal=True) + beta * v.cumsum(2)
    close(refs.affine_attention(q, k, v, logits, mean, causal=True), expected)
    one, ones = torch.full_like(logits, 6.0), torch.ones(H, dtype=f64)
    close(refs.affine_attention(q, k, v, one, ones), refs.softmax_attention(q, k, v))


def test_affine_kinks_and_constants():
    x = torch.tensor([-6.0, -5.0, -4.0, 0.0, 4.0, 5.0, 6.0], dtype=f64, requires_grad=True)
    y = refs.attention.squash(x)
    close(y.detach(), torch.tensor([0, 0, 0.1, 0.5, 0.9, 1, 1], dtype=f64))
    close(torch.autograd.grad(y.sum(), x)[0], torch.tensor([0, 0, 0.1, 0.1, 0.1, 0, 0], dtype=f64))
    q, k, v, logits = build("affine_total")[1]
    mean = torch.full((H,), 0.5, dtype=f64, requires_grad=True)
    out = refs.affine_attention(q, k, v, logits, mean).sum()
    assert torch.autograd.grad(out, mean, allow_unused=True) == (None,)


# --- energy-gated

@pytest.mark.parametrize("norm", ["key", "prefix", "sequence", "none"])
def test_energy_gate_is_a_key_bias(norm):
    q, k, v, e, a, t = build("energy_key")[1]
    close(refs.energy_gated_attention(q, k, v, e, a, t, norm=norm, window=4),
          refs.energy_gated_attention(q, k, v, e, a, t, norm=norm, window=4, stable=True))


def test_energy_statistics_by_hand():
    e = rand(B, H, Tk, seed=5)
    key, prefix, whole = (standard_energy(e, Tq, norm=norm)
                          for norm in ("key", "prefix", "sequence"))
    for j in range(Tk):
        part = e[..., :j + 1]
        mean, var = part.mean(-1), part.var(-1, correction=0)
        close(key[:, :, 0, j], (e[..., j] - mean) / (var + 1e-8).sqrt())
        i = j - (Tk - Tq)                                             # the query that sits at key j
        if i >= 0:
            close(prefix[:, :, i], (e - mean[..., None]) / (var[..., None] + 1e-8).sqrt())
    # after the last key: all of them
    close(whole[:, :, 0], (e - mean[..., None]) / var.sqrt()[..., None])
    assert (key[..., 0] == 0).all()
    assert (standard_energy(e, Tk, norm="prefix")[:, :, 0] == 0).all()       # one key
    assert (standard_energy(e, Tk + 2, norm="prefix")[:, :, :3] == 0).all()  # none, none, one
    flat = torch.full((1, 1, 4), 3.0, dtype=f64, requires_grad=True)
    z = standard_energy(flat, 4, norm="sequence")
    assert (z == 0).all() and torch.autograd.grad(z[..., 0].sum(), flat)[0].isfinite().all()


def test_energy_with_all_gates_closed():
    q, k, v, e, _, _ = build("energy_none")[1]
    a, t = torch.ones(H, dtype=f64), torch.full((H,), 80.0, dtype=f64)
    stable = refs.energy_gated_attention(q, k, v, e, a, t, norm="none", stable=True)
    # log sigmoid(u) = u far below 0
    close(stable, refs.softmax_attention(q, k, v, bias=e[:, :, None]))
    literal = refs.energy_gated_attention(q, k, v, e, a, t, norm="none")
    assert literal.abs().max() < 1e-20                                  # the clamp has swallowed it


# --- Gaussian kernel

def test_gaussian_is_dot_product_attention():
    x, log_sigma = rand(B, H, Tk, D) / 2, rand(H) / 5
    inverse = torch.exp(-2 * log_sigma)[:, None, None]
    bias = -(x ** 2).sum(-1)[:, :, None] / 2 * inverse                        # (B, H, 1, Tk)
    for masks in ({}, {"causal": True}, {"window": 3}):
        seen = refs.visible(Tk, Tk, **masks)
        expected = refs.softmax_attention(x, x, x, scale=inverse, bias=bias, allowed=seen)
        close(refs.gaussian_kernel_attention(x, log_sigma, **masks), expected)


def test_gaussian_limits():
    x, values = rand(B, H, Tk, D), rand(B, H, Tk, Dv)
    tiny, huge = (torch.full((H,), s, dtype=f64) for s in (-12.0, 12.0))
    close(refs.gaussian_kernel_attention(x, tiny, values=values), values)
    running = values.cumsum(2) / torch.arange(1, Tk + 1)[:, None]
    close(refs.gaussian_kernel_attention(x, huge, values=values, causal=True), running, 1e-8)
    far = refs.gaussian_kernel_attention(x[:, :, :2], tiny, keys=x[:, :, 2:],
                                         return_weights=True)[1]
    close(far.sum(-1), torch.ones(B, H, 2, dtype=f64))             # no key is near: weights survive
    twins = refs.gaussian_kernel_attention(x[:, :, :1].expand(-1, -1, 4, -1), tiny,
                                           return_weights=True)[1]
    close(twins, torch.full_like(twins, 0.25))


def test_gaussian_sigma_gradient_and_eps():
    x, log_sigma = rand(B, H, Tk, D) / 2, (rand(H) / 5).requires_grad_()
    W = refs.gaussian_kernel_attention(x, log_sigma, causal=True, return_weights=True)[1]
    d2 = torch.cdist(x, x) ** 2
    slope = W * (d2 - (W * d2).sum(-1, keepdim=True)) / torch.exp(2 * log_sigma)[:, None, None]
    cotangent = rand(B, H, Tk, Tk)
    close(torch.autograd.grad((W * cotangent).sum(), log_sigma)[0],
          (slope * cotangent).sum((0, 2, 3)))
    K = torch.exp(-d2 / (2 * torch.exp(2 * log_sigma)[:, None, None]))
    W = refs.gaussian_kernel_attention(x, log_sigma, eps=0.1, return_weights=True)[1]
    close(W, K / (K.sum(-1, keepdim=True) + 0.1))


# --- positions

@pytest.mark.parametrize("pairs", ["half", "interleaved"])
def test_rotary(pairs):
    q = rand(2, 3, 12, seed=1)[:, :1].expand(2, 9, 12)
    k = rand(2, 3, 12, seed=2)[:, :1].expand(2, 9, 12)
    Q, K = refs.rotary(q, pairs=pairs), refs.rotary(k, pairs=pairs)
    close(Q.norm(dim=-1), q.norm(dim=-1))
    close(Q[:, 0], q[:, 0])
    products = Q @ K.transpose(-1, -2)
    close(products[:, 1:, 1:], products[:, :-1, :-1])                    # only the distance matters
    close(refs.rotary(q[:, 4:], start=4, pairs=pairs), Q[:, 4:])
    pair = torch.view_as_complex(q.reshape(2, 9, 6, 2).contiguous())
    angle = torch.arange(9, dtype=f64)[:, None] * 10000.0 ** (-torch.arange(6, dtype=f64) / 6)
    turned = torch.view_as_real(pair * torch.exp(1j * angle)).flatten(-2)
    order = torch.arange(12).reshape(6, 2).T.flatten() if pairs == "half" else torch.arange(12)
    close(refs.rotary(q[..., order], pairs=pairs), turned[..., order])


def test_decay_and_slopes():
    close(refs.alibi_slopes(8), torch.tensor([2.0 ** -h for h in range(1, 9)], dtype=f64))
    slopes = torch.tensor([1.0, 0.5], dtype=f64)
    bias = refs.decay_bias(2, 3, slopes)
    close(bias[0], torch.tensor([[-1.0, 0, 1], [-2, -1, 0]], dtype=f64))
    close(bias[1] * 2, bias[0])
    close(refs.decay_bias(2, 3, slopes, align="start")[0],
          torch.tensor([[0.0, 1, 2], [-1, 0, 1]], dtype=f64))


def test_sinusoidal():
    pe = refs.sinusoidal(9, 6)
    close(pe[:, 2], torch.sin(torch.arange(9.0, dtype=f64) / 10000 ** (2 / 6)))
    close((pe ** 2).sum(-1), torch.full((9,), 3.0, dtype=f64))
    close(refs.sinusoidal(4, 6, start=5), pe[5:])


def test_morlet_as_published():
    log_omega = torch.linspace(0, math.log(0.99 * math.pi), 128, dtype=f64)
    log_sigma = math.log(5) - log_omega
    pe = refs.morlet(30, log_omega, log_sigma)
    amplitude = pe.norm(dim=-1) / math.sqrt(128)
    for p, expected in ((0, 1.0), (1, 0.93), (5, 0.31), (10, 0.042), (20, 6e-5)):
        assert amplitude[p].item() == pytest.approx(expected, rel=0.05), p
    close(refs.morlet(10, log_omega, log_sigma, start=20), pe[20:])
    wave = refs.morlet(30, log_omega, torch.full_like(log_omega, 40.0))
    inner = torch.cos(log_omega.exp().clamp(max=0.95 * math.pi) * 4).sum()
    close(wave[11] @ wave[7], inner, 1e-10)
    centre = torch.full_like(log_omega, 3.0)
    peak = refs.morlet(4, log_omega, log_sigma, centre=centre)[3]
    close(peak.norm(), torch.tensor(128, dtype=f64).sqrt())


def test_morlet_clamps_stop_gradients():
    #                          free, capped, projected, free but with σ at its floor
    log_omega = torch.log(torch.tensor([1.0, 3.1, 0.5, 2.0], dtype=f64)).requires_grad_()
    log_sigma = torch.log(torch.tensor([9.0, 9.0, 4.0, 1e-4], dtype=f64)).requires_grad_()

    def grads(**options):
        pe = refs.morlet(6, log_omega, log_sigma, **options)
        return [g != 0
                for g in torch.autograd.grad((pe * rand(6, 8)).sum(), (log_omega, log_sigma))]

    omega, sigma = grads()
    assert omega.tolist() == [True, False, False, False]
    assert sigma.tolist() == [True, True, True, False]
    omega, sigma = grads(admissible=False)
    assert omega.tolist()[:3] == [True, False, True] and sigma.tolist() == [True, True, True, False]


# --- the model

SMALL = {"vocab_size": 17, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 12, "bias": True}
CONFIGS = {
    "softmax": {},
    "sink": {"attention": "sink", "position": "rope"},
    "cycle": {"attention": "off_by_one,gated", "position": "none", "bias": False, "gelu": "exact"},
    "affine": {"attention": "affine+gated", "position": "learned+rope",
               "attention_options": {"gate": "head"}},
    "energy": {"attention": "energy", "qkv_bias": True,
               "position": "morlet", "position_options": {"centre": True}},
    "gaussian": {"attention": "gaussian,gaussian+gated", "n_layer": 3, "window_pattern": "S",
                 "position": "rope"},
    "decay": {"attention": "softmax,gaussian", "position": "sinusoidal+decay", "window": 3},
}


def model(name, **changes):
    """The reference with random parameters, and tokens."""
    config = {**SMALL, **CONFIGS[name], **changes}
    params, buffers = numpy_model.init(numpy_model.Config(**config), 3, np.float64)
    rng = np.random.default_rng(3)
    params = {key: p + rng.standard_normal(p.shape) / 5 for key, p in params.items()}
    tokens = torch.randint(17, (3, 8), generator=torch.Generator().manual_seed(4))
    return refs.GPT.from_numpy(config, params, buffers), tokens


def arrays(named):
    return {name.replace("/", "."): tensor.detach().numpy().copy() for name, tensor in named}


@pytest.mark.parametrize("name", CONFIGS)
def test_model_is_causal_and_every_parameter_learns(name):
    gpt, tokens = model(name)
    gpt.eval()
    logits, loss = gpt(tokens, tokens.roll(-1, 1))
    loss.backward()
    grads = gpt.gradients()
    assert logits.shape == (3, 8, 17) and loss.item() > 0
    for key, grad in grads.items():
        assert np.isfinite(grad).all() and grad.any(), key
    assert {key: grad.shape for key, grad in grads.items()} == \
           {key: value.shape for key, value in arrays(gpt.named_parameters()).items()}
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 17
    assert torch.equal(gpt(changed)[0][:, :5], logits[:, :5])
    assert not torch.equal(gpt(changed)[0][:, 5:], logits[:, 5:])


def test_names_and_shapes():
    gpt, _ = model("affine")
    shapes = {name: value.shape for name, value in arrays(gpt.named_parameters()).items()}
    layer = {"ln_1.weight": (12,), "ln_1.bias": (12,), "ln_2.weight": (12,), "ln_2.bias": (12,),
             "attn.c_attn.weight": (12, 36), "attn.c_proj.weight": (12, 12),
             "attn.c_proj.bias": (12,),
             "attn.alpha_logits.weight": (12, 2), "attn.gate_logits.weight": (12, 2),
             "mlp.c_fc.weight": (12, 48), "mlp.c_fc.bias": (48,),
             "mlp.c_proj.weight": (48, 12), "mlp.c_proj.bias": (12,)}
    assert shapes == {"wte.weight": (17, 12), "position.learned.weight": (8, 12),
                      "ln_f.weight": (12,), "ln_f.bias": (12,),
                      **{f"h.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}}
    assert set(arrays(gpt.named_buffers())) == {"h.0.attn.alpha_ma", "h.1.attn.alpha_ma"}
    gaussian = arrays(model("gaussian")[0].named_parameters())
    assert "h.0.attn.c_attn.weight" not in gaussian and "h.0.attn.log_sigma" in gaussian
    assert "h.1.attn.gate_logits.weight" in gaussian
    assert "h.0.attn.gate_logits.weight" not in gaussian


def test_windows():
    def windows(**config):
        return [layer.window for layer in refs.GPT({**SMALL, **config}, {}, {}).layers]

    assert windows(n_layer=6, window_pattern="SSSL") == [4, 4, 4, None, 4, None]
    assert windows(window_pattern="S") == [4, None]
    assert windows(window=3) == [3, 3]
    with pytest.raises(ValueError, match="not both"):
        windows(window=3, window_pattern="SL")


@pytest.mark.parametrize("axes", ["head", "layer"])
@pytest.mark.parametrize("use", ["after", "before"])
def test_running_mean_of_affine(axes, use):
    gpt, tokens = model("affine", attention_options={"axes": axes, "use": use, "gate": "head"})
    params, buffers = arrays(gpt.named_parameters()), arrays(gpt.named_buffers())
    at_zero = refs.GPT.from_numpy(gpt.config, params, buffers).eval()(tokens)[0]
    train = gpt(tokens)[0]
    stored = [gpt._get(f"h.{i}.attn.alpha_ma").clone() for i in range(2)]
    for mean in stored:
        assert (mean > 0).all() and (mean < 0.1).all()
        assert ((mean[0] == mean[1]) == (axes == "layer"))
    assert torch.equal(train, at_zero) == (use == "before")       # "before": this batch still saw 0
    evaluated = gpt.eval()(tokens)[0]
    assert torch.equal(evaluated, train) == (use == "after")
    assert all(torch.equal(gpt._get(f"h.{i}.attn.alpha_ma"), stored[i]) for i in range(2))


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_run_comes_back(name, tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    gpt, tokens = model(name)
    gpt(tokens)                                                            # moves the running means
    tensors = {"params/" + key: value for key, value in arrays(gpt.named_parameters()).items()}
    tensors |= {"buffers/" + key: value for key, value in arrays(gpt.named_buffers()).items()}
    save_file(tensors, tmp_path / "checkpoint.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model": gpt.config}))
    assert torch.equal(refs.load_run(tmp_path)(tokens)[0], gpt.eval()(tokens)[0])


def test_mistakes_are_named():
    gpt, _ = model("affine")
    params, buffers = arrays(gpt.named_parameters()), arrays(gpt.named_buffers())
    name = "h.0.attn.c_proj.weight"
    with pytest.raises(RuntimeError, match="size"):
        refs.GPT.from_numpy(gpt.config, {**params, name: params[name][:, :5]}, buffers)
    with pytest.raises(ValueError, match="does not use: h.1.attn.sink"):
        refs.GPT.from_numpy(gpt.config, {**params, "h.1.attn.sink": np.zeros(2)}, buffers)
    with pytest.raises(ValueError, match="h.1.attn.alpha_ma is missing"):
        refs.GPT.from_numpy(gpt.config, params, {"h.0.attn.alpha_ma": np.zeros(2)})
    del params[name]
    with pytest.raises(ValueError, match=f"{name} is missing"):
        refs.GPT.from_numpy(gpt.config, params, buffers)


@pytest.mark.parametrize("config, message", [
    ({"attention": "soft"}, "attention: unknown soft; known are softmax, "),
    ({"attention": "energy/"}, "attention: unknown ; known are softmax, "),
    ({"attention": "energy[nrm=key]"},
     "attention energy: unknown nrm; known are norm, eps, stable"),
    ({"attention": "sink[norm=key]"}, "attention sink: unknown norm; known are"),
    ({"attention": "gated+affine"}, "affine cannot stand on top of gated"),
    ({"attention": "affine", "attention_options": {"ph": 1}}, "attention_options: unknown ph"),
    ({"position": "rotary"}, "position: unknown rotary; known are none, learned, "),
    ({"position": "rope", "position_options": {"bas": 1}}, "position_options: unknown bas"),
    ({"position": "rope/learned"}, "all layers share one"),
    ({"n_heads": 2}, "config: unknown n_heads; known are vocab_size, "),
])
def test_config_that_cannot_be(config, message):
    with pytest.raises(ValueError, match=message):
        refs.GPT({**SMALL, **config}, {}, {})


# --- the tables


@pytest.mark.parametrize("text", [
    "softmax", "energy[norm=prefix]+gated/softmax",
    "affine[length=19,phi=sigmoid]+gated[gate=head]",
    "gaussian[qk_norm=false,sigma_init=1.5]/sink/sink", "learned+rope[base=50.0,pairs=interleaved]",
    "energy,softmax"])
def test_text_is_read_as_everywhere(text):
    ours = [{part.name: part.options for part in parts} for parts in spec.parse("attention", text)]
    assert torch_gpt.parse(text) == ours


def test_options_differ_by_layer():
    text = "energy[norm=prefix]+gated/energy/affine[length=visible]"
    first, second, third = refs.GPT({**SMALL, "n_layer": 3, "attention": text}, {}, {}).layers
    assert first.options["norm"] == "prefix" and second.options["norm"] == "key"
    assert len(first.on_top) == 1 and not second.on_top and third.options["length"] == "visible"


@pytest.mark.parametrize("table, formulas, apart", [
    (MECHANISMS, refs.ATTENTION, {"eps", "stable"}), (POSITIONS, refs.POSITIONS, {"start"})],
    ids=["attention", "position"])
def test_every_name_has_its_formula(table, formulas, apart):
    """With the same options and defaults; those `apart` only the reference has."""
    assert list(table) == list(formulas)
    for name, row in table.items():
        options = torch_gpt._options(formulas[name])
        known = dict(row.all_options() if table is MECHANISMS else row.options)
        for option, _ in getattr(formulas[name], "versions", {}):     # another row of the table
            del known[option]
        assert options.keys() - (apart - known.keys()) == known.keys(), name
        for option in known.keys() - set(formulas[name].in_parameters):
            assert options[option] == known[option].default, (name, option)


@pytest.mark.parametrize("name", MECHANISMS)
def test_formula_takes_the_same_arguments(name):
    assert torch_gpt._takes(refs.ATTENTION[name].function) == list(MECHANISMS[name].arguments)


def test_dropout_only_in_training():
    gpt, tokens = model("energy", dropout=0.5)
    assert not torch.equal(gpt(tokens)[0], gpt(tokens)[0])
    gpt.eval()
    assert torch.equal(gpt(tokens)[0], gpt(tokens)[0])


def test_without_torch_one_clear_sentence():
    code = "import sys; sys.modules['torch'] = None; import minattn.torch_refs"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          cwd=Path(__file__).resolve().parent.parent)
    assert "ImportError: minattn.torch_refs needs PyTorch" in done.stderr
    assert "pip install torch" in done.stderr
