"""A run's steps in PyTorch: the literal model of torch_refs, autograd and PyTorch's AdamW.

The same start, batches, chunks and schedule as in NumPy, so the same losses and parameters up to
rounding; only dropout draws other numbers. Muon is torch_refs/muon.py. With autocast, training
steps compute what PyTorch's autocast picks in bfloat16; losses of the validation split are always
in the run's own precision.
"""
import math
from contextlib import contextmanager

import numpy as np
import torch

from minattn import chunks, files, model, muon, optim, parallel
from minattn.errors import InputError, NotFinite
from minattn.torch_refs import muon as torch_muon
from minattn.torch_refs.gpt import GPT


@contextmanager
def start(checkpoint, config, settings, threads):
    """The engine of these settings at this checkpoint; PyTorch's threads and seed stay its own."""
    before = torch.get_num_threads()
    gpus = range(torch.cuda.device_count()) if settings.device == "cuda" else ()
    try:
        torch.set_num_threads(threads)
        with torch.random.fork_rng(gpus):
            yield Torch(checkpoint, config, settings)
    except torch.cuda.OutOfMemoryError as error:
        raise MemoryError(f"(The GPU's: {error})") from None
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise InputError("--compile: PyTorch cannot compile this model on this machine, leave it "
                         f"out ({files.one_line(error)}).") from None
    finally:
        torch.set_num_threads(before)


class Torch:
    def __init__(self, checkpoint, config, settings):
        self.settings, self.step = settings, checkpoint.step
        try:
            gpt = GPT.from_numpy(model.to_dict(config), checkpoint.params, checkpoint.buffers,
                                 getattr(torch, settings.dtype))
        except ValueError as error:              # a mechanism of the user's own, say
            raise InputError(f"--engine torch: minattn.torch_refs has no such model: "
                             f"{error}") from None
        self.gpt = gpt.to(settings.device)
        self.call = torch.compile(gpt, dynamic=False) if settings.compile else gpt
        self.params, self.buffers = ({name.replace("/", "."): a for name, a in named} for named in
                                     (gpt.named_parameters(), gpt.named_buffers()))
        self.m, self.v = ({name: self._tensor(arrays[name]) for name in self.params}
                          for arrays in (checkpoint.m, checkpoint.v))
        self.matrices = model.matrices(config) if settings.optimizer == "muon" else ()
        taken = {name for name, _ in self.matrices}
        rest = {name: p for name, p in self.params.items() if name not in taken}
        self.adamw = adamw(rest.values(), settings)
        for name, p in rest.items():
            self.adamw.state[p] = {"step": self._tensor(float(self.step), torch.float32),
                                   "exp_avg": self.m[name], "exp_avg_sq": self.v[name]}

    def _tensor(self, a, dtype=None):
        return torch.tensor(a, dtype=dtype, device=self.settings.device)

    def train_step(self, x, y):
        s, lr = self.settings, parallel.learning_rate(self.step, self.settings)
        # dropout's seed, so that a resumed run drops what it would have dropped
        torch.manual_seed(int(np.random.SeedSequence([s.seed, self.step]).generate_state(1)[0]))
        loss = self._gradients(self._tensor(x), self._tensor(y))
        if not math.isfinite(loss):
            raise NotFinite("the loss")
        grads = {name: p.grad for name, p in self.params.items()}
        norms = torch.stack([torch.linalg.vector_norm(g) for g in grads.values()])
        norm = torch.linalg.vector_norm(norms).item()
        if not math.isfinite(norm):
            _must_be_finite("the gradient of", grads)
            raise NotFinite("the gradient of all parameters together")
        if (factor := optim.clip_factor(norm, s.clip)) < 1:
            torch._foreach_mul_(list(grads.values()), factor)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        torch_muon.update(self.params, grads, self.m, self.matrices, lr=s.muon_lr * lr / s.lr,
                          momentum=s.momentum, weight_decay=s.weight_decay,
                          coefficients=muon.COEFFICIENTS[s.muon_steps])
        _must_be_finite("the parameter", self.params)
        self.step += 1
        return loss, norm, lr

    def _gradients(self, x, y):
        """Loss of a batch; its gradient, and its buffers, are sums over the chunks, as in NumPy."""
        s, total = self.settings, 0
        old = {name: b.clone() for name, b in self.buffers.items()}
        new = {name: torch.zeros_like(b) for name, b in old.items()}
        self.gpt.train()
        self.gpt.zero_grad()
        for part in chunks.split(len(x), s.chunks):
            share = len(x[part]) / len(x)
            with torch.autocast(s.device, torch.bfloat16, enabled=s.autocast == "bfloat16"):
                loss = share * self.call(x[part], y[part])[1]
            loss.backward()
            total = total + loss.detach()
            for name, b in self.buffers.items():
                new[name] += share * b
                b.copy_(old[name])
        for name, b in self.buffers.items():
            b.copy_(new[name])
        return float(total)

    @torch.no_grad()
    def mean_loss(self, x, y):
        self.gpt.eval()
        size = self.settings.batch_size
        parts = (slice(i, i + size) for i in range(0, len(x), size))
        return math.fsum(len(x[part]) * float(self.gpt(self._tensor(x[part]),
                                                       self._tensor(y[part]))[1])
                         for part in parts) / len(x)

    def arrays(self):
        return [{name: a.detach().cpu().numpy() for name, a in tensors.items()}
                for tensors in (self.params, self.buffers, self.m, self.v)]


def adamw(parameters, settings):
    """PyTorch's AdamW with these train.Settings, fused where it runs."""
    groups = [{"params": [], "weight_decay": decay} for decay in (settings.weight_decay, 0.0)]
    for p in parameters:
        group = 0 if settings.decay == "all" or p.dim() >= 2 else 1
        groups[group]["params"].append(p)
    groups = [group for group in groups if group["params"]]
    options = {"lr": settings.lr, "betas": (settings.beta1, settings.beta2), "eps": settings.eps}
    try:
        return torch.optim.AdamW(groups, **options, fused=True)
    except RuntimeError:                                       # before PyTorch 2.4 a CPU had none
        return torch.optim.AdamW(groups, **options, foreach=True)


def _must_be_finite(what, tensors):
    """NotFinite names the first tensor that is not."""
    finite = torch.stack([torch.isfinite(a).all() for a in tensors.values()]).tolist()
    for name, fine in zip(tensors, finite):
        if not fine:
            raise NotFinite(f"{what} {name}")
