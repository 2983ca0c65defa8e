"""PyTorch's side of the benchmarks: the same jobs as in numpy_jobs.py, in its fastest correct form (torch_refs.fast)."""
import tempfile
import time
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from minattn import model
from minattn.bench.numpy_jobs import attention_inputs, recall_inputs, step_inputs
from minattn.bench.step import PLAIN_UP_TO
from minattn.bench.whole import Plan
from minattn.torch_refs import fast


@contextmanager
def session(threads):
    torch.set_num_threads(threads)
    yield threads


def gpt(spec):
    """The model with the same weights, and a batch -> model, x, y"""
    config, params, buffers, x, y = step_inputs(spec)
    own = fast.GPT.from_numpy(model.to_dict(config), params, buffers, torch.float32, fused=spec.get("fused", True))
    return own, torch.from_numpy(x), torch.from_numpy(y)


def adamw(parameters, *, decay, weight_decay, **options):
    """PyTorch's AdamW, fused where it runs."""
    decayed = [p for p in parameters if decay == "all" or p.dim() >= 2]
    others = [p for p in parameters if not (decay == "all" or p.dim() >= 2)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    try:
        return torch.optim.AdamW(groups, **options, fused=True)
    except RuntimeError:                                       # before PyTorch 2.4 a CPU had none
        return torch.optim.AdamW(groups, **options, foreach=True)


def step(spec, session):
    """One training step -> loss and norm of the gradient. AdamW and clipping are PyTorch's own."""
    own, x, y = gpt(spec)
    parameters = list(own.train().parameters())
    optimiser = adamw(parameters, **{key: spec[key] for key in ("decay", "weight_decay", "lr", "betas", "eps")})
    call = own
    if spec["compile"]:
        import torch._inductor.config as inductor
        inductor.compile_threads = 1                           # no helper processes that stay behind
        call = torch.compile(own, dynamic=False, fullgraph=True)

    def work():
        loss = call(x, y)[1]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, spec["clip"])
        optimiser.step()
        return loss.item(), norm.item()

    return work, 0


def attention(spec, session):
    """Softmax attention alone, forward and backward -> means of some rows of out, dq, dk, dv.

    form "fused": is_causal, "mask": fused with a boolean mask, "blocks": fast.windowed.
    """
    inputs = attention_inputs(spec)
    q, k, v, dout = (torch.from_numpy(a) for a in inputs)
    for x in (q, k, v):
        x.requires_grad_()
    T, window = spec["T"], spec["window"]

    def forward():
        if spec["form"] == "fused":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if spec["form"] == "blocks":
            return fast.windowed(q, k, v, window)
        age = torch.arange(T)[:, None] - torch.arange(T)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=(age >= 0) & (age < window))

    def work():
        q.grad = k.grad = v.grad = None
        out = forward()
        out.backward(dout)
        return [float(a[0, 0, ::T // 64].abs().mean()) for a in (out.detach(), q.grad, k.grad, v.grad)]

    return work, inputs.nbytes


def sample(spec, session):
    """Greedy generation of a whole block from one token, keys and values kept -> the tokens."""
    own, x, _ = gpt(spec)
    own.eval()

    def work():
        return [new.tolist() for new in fast.generate(own, x[:, :1], spec["tokens"], top_k=1)]

    return work, 0


def whole(spec, session):
    """The run of whole.py: the same weights, batches and evaluations, a checkpoint as often -> seconds of its loop, last loss."""
    plan = Plan(spec)
    s, config = plan.settings, plan.config
    params, buffers = model.init(config, s.seed, np.float32)
    fused = config.block_size > PLAIN_UP_TO                    # the faster form where rows are short: see torch_refs.fast
    own = fast.GPT.from_numpy(model.to_dict(config), params, buffers, torch.float32, fused=fused)
    parameters = list(own.parameters())
    optimiser = adamw(parameters, decay=s.decay, weight_decay=s.weight_decay, lr=s.lr, betas=(s.beta1, s.beta2), eps=s.eps)

    def evaluate(x, y):
        own.eval()
        with torch.inference_mode():
            parts = zip(torch.from_numpy(x).split(64), torch.from_numpy(y).split(64))
            return sum(own(a, b)[1].item() * len(a) for a, b in parts) / len(x)

    def work():
        began, val_loss = time.perf_counter(), None
        with tempfile.TemporaryDirectory() as folder:
            for done in range(s.steps):
                x, y = (torch.from_numpy(part) for part in plan.batch(done))
                for group in optimiser.param_groups:
                    group["lr"] = plan.rate(done)
                loss = own.train()(x, y)[1]
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, s.clip)
                optimiser.step()
                loss.item()                                    # every step's loss is written down, as minattn does
                if (windows := plan.windows(done + 1)) is not None:
                    val_loss = evaluate(*windows)
                if (done + 1) % s.checkpoint_interval == 0 or done + 1 == s.steps:
                    torch.save({"model": own.state_dict(), "optimiser": optimiser.state_dict()}, f"{folder}/checkpoint.pt")
        return time.perf_counter() - began, val_loss

    return work, 0


class Recall(torch.nn.Module):
    """The network of minattn.experiments.position_bias.recall_network, with the same savings in its last layer. Causal or no mask."""

    def __init__(self, config, params, length):
        super().__init__()
        self.config = config
        self.qkv = torch.nn.ParameterList(torch.from_numpy(params[f"layer{n}.qkv"].T.copy()) for n in range(config.layers))
        self.head = torch.nn.ModuleList()
        for n in range(4):
            weight, bias = params[f"head{n}.weight"], params[f"head{n}.bias"]
            self.head.append(torch.nn.Linear(*weight.shape))
            self.head[-1].load_state_dict({"weight": torch.from_numpy(weight.T.copy()), "bias": torch.from_numpy(bias)})
        rate = 10000.0 ** (-2 * torch.arange(config.width // 2, dtype=torch.float64) / config.width)
        angle = torch.arange(length)[:, None] * rate
        self.register_buffer("cos", angle.cos().float().repeat_interleave(2, -1))
        self.register_buffer("sin", angle.sin().float().repeat_interleave(2, -1))

    def turn(self, x, places):
        if self.config.position != "rope":
            return x
        crossed = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
        return x * self.cos[places] + crossed * self.sin[places]

    def forward(self, x, y):
        causal, scale = self.config.mask == "causal", self.config.width**-0.5
        for qkv in self.qkv[:-1]:
            q, k, v = F.linear(x, qkv)[:, None].chunk(3, -1)
            out = F.scaled_dot_product_attention(self.turn(q, slice(None)), self.turn(k, slice(None)), v, is_causal=causal)[:, 0]
            x = x + out if self.config.residual else out
        Wq, Wk, Wv = self.qkv[-1].chunk(3)
        last, keys = F.linear(x[:, -1:], Wq), x
        if self.config.position == "rope":
            last, keys = self.turn(last, slice(-1, None)), self.turn(F.linear(x, Wk), slice(None))
        else:
            last = last @ Wk
        mean = F.scaled_dot_product_attention(last[:, None], keys[:, None], x[:, None], scale=scale)[:, 0, 0]
        h = F.linear(mean, Wv)
        h = x[:, -1] + h if self.config.residual else h
        for linear in self.head[:-1]:
            h = torch.relu(linear(h))
        return F.cross_entropy(self.head[-1](h), y)


def recall(spec, session):
    """One training step of a position-bias network -> loss."""
    config, params, x, y = recall_inputs(spec)
    own, x, y = Recall(config, params, spec["length"]), torch.from_numpy(x), torch.from_numpy(y)
    parameters = list(own.parameters())
    optimiser = adamw(parameters, decay="all", weight_decay=spec["weight_decay"], lr=spec["lr"])
    call = own
    if spec["compile"]:
        import torch._inductor.config as inductor
        inductor.compile_threads = 1
        call = torch.compile(own, dynamic=False, fullgraph=True)

    def work():
        loss = call(x, y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss.item()

    return work, 0


JOBS = {"whole": whole, "step": step, "attention": attention, "sample": sample, "recall": recall}
