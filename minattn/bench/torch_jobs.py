"""PyTorch's side of the benchmarks: the jobs of numpy_jobs.py, in its fastest correct form."""
import tempfile
import time
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from minattn import data, model, parallel, train
from minattn.bench import torch_fast
from minattn.bench.numpy_jobs import attention_inputs, step_inputs
from minattn.bench.step import PLAIN_UP_TO
from minattn.torch_engine import adamw


@contextmanager
def session(threads):
    torch.set_num_threads(threads)
    yield threads


def fast_gpt(config, params, buffers, fused=True):
    return torch_fast.GPT.from_numpy(model.to_dict(config), params, buffers, torch.float32,
                                     fused=fused)


class Training:
    """A module that returns its loss (or a tuple with it in second place), and steps with it."""

    def __init__(self, module, settings, compiled=False):
        self.call, self.clip = module, settings.clip
        self.parameters = list(module.parameters())
        self.optimiser = adamw(self.parameters, settings)
        if compiled:
            import torch._inductor.config as inductor
            inductor.compile_threads = 1                       # no helper processes that stay
            self.call = torch.compile(module, dynamic=False, fullgraph=True)

    def step(self, *batch):
        """-> loss and, where it is clipped, norm of the gradient"""
        result = self.call(*batch)
        loss = result[1] if isinstance(result, tuple) else result
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        found = [loss]
        if self.clip:
            found.append(torch.nn.utils.clip_grad_norm_(self.parameters, self.clip))
        self.optimiser.step()
        return [number.item() for number in found]


def step(spec, session):
    """One training step -> loss and norm of the gradient. AdamW and clipping are PyTorch's own."""
    config, settings, params, buffers, x, y = step_inputs(spec)
    gpt = fast_gpt(config, params, buffers, spec["fused"]).train()
    training, batch = Training(gpt, settings, spec["compile"]), [*map(torch.from_numpy, (x, y))]
    return lambda: training.step(*batch), 0


def attention(spec, session):
    """Softmax attention alone, forward and backward -> means of some rows of out, dq, dk, dv.

    form "fused": is_causal, "mask": fused with a boolean mask, "blocks": torch_fast.windowed.
    """
    inputs = attention_inputs(spec)
    q, k, v, dout = (torch.from_numpy(a) for a in inputs)
    for x in (q, k, v):
        x.requires_grad_()
    T, window, attend = spec["T"], spec["window"], F.scaled_dot_product_attention

    def masked():
        age = torch.arange(T)[:, None] - torch.arange(T)
        return attend(q, k, v, attn_mask=(age >= 0) & (age < window))

    forms = {"fused": lambda: attend(q, k, v, is_causal=True), "mask": masked,
             "blocks": lambda: torch_fast.windowed(q, k, v, window)}
    forward = forms[spec["form"]]

    def work():
        q.grad = k.grad = v.grad = None
        out = forward()
        out.backward(dout)
        return [float(a[0, 0, ::T // 64].abs().mean())
                for a in (out.detach(), q.grad, k.grad, v.grad)]

    return work, inputs.nbytes


def sample(spec, session):
    """Greedy generation of a whole block from one token, with a key-value cache -> the tokens."""
    config, _, params, buffers, x, _ = step_inputs(spec)
    gpt, prompt = fast_gpt(config, params, buffers).eval(), torch.from_numpy(x[:, :1])

    def work():
        new = torch_fast.generate(gpt, prompt, spec["tokens"])
        return [tokens.tolist() for tokens in new]

    return work, 0


def whole(spec, session):
    """The run of whole.py: the same weights, batches and evaluations, a checkpoint as often.

    -> seconds of its loop, last loss, seconds inside its steps
    """
    settings = train.Settings(**spec["settings"])
    corpus = data.load_corpus(settings.corpus, say=lambda text: None)
    vocabulary = data.Vocabulary(corpus.text)
    config = model.Config(vocab_size=len(vocabulary), **spec["shape"])
    batches = train.Batches(vocabulary.encode(corpus.text), config, settings)
    params, buffers = model.init(config, settings.seed, np.float32)
    fused = config.block_size > PLAIN_UP_TO                    # else the plain form is faster
    gpt = fast_gpt(config, params, buffers, fused)
    training = Training(gpt, settings)

    def evaluate(x, y):
        gpt.eval()
        with torch.inference_mode():
            parts = zip(torch.from_numpy(x).split(64), torch.from_numpy(y).split(64))
            loss = sum(gpt(a, b)[1].item() * len(a) for a, b in parts) / len(x)
        gpt.train()
        return loss

    def work():
        began, val_loss, steps = time.perf_counter(), None, 0.0
        with tempfile.TemporaryDirectory() as folder:
            for done in range(1, settings.steps + 1):
                for group in training.optimiser.param_groups:
                    group["lr"] = parallel.learning_rate(done - 1, settings)
                batch = [*map(torch.from_numpy, batches.training(done - 1))]
                tick = time.perf_counter()
                training.step(*batch)
                steps += time.perf_counter() - tick
                if windows := batches.validation(done):
                    val_loss = evaluate(*windows)
                if done % settings.checkpoint_interval == 0 or done == settings.steps:
                    torch.save({"model": gpt.state_dict(),
                                "optimiser": training.optimiser.state_dict()},
                               f"{folder}/checkpoint.pt")
        return time.perf_counter() - began, val_loss, steps

    return work, 0
