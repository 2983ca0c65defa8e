"""PyTorch's side of benchmark.py."""
import torch
import torch.nn.functional as F

from minattn.bench import torch_jobs
from minattn.experiments.position_bias.benchmark import inputs

session = torch_jobs.session


class Recall(torch.nn.Module):
    """The network of recall_network.py with the same savings in its last layer; causal or no mask.
    """

    def __init__(self, config, params, length):
        super().__init__()
        self.residual, self.causal = config.residual, config.mask == "causal"
        self.rotates, self.scale = config.position == "rope", config.width**-0.5
        self.qkv = torch.nn.ParameterList(torch.from_numpy(params[f"layer{n}.qkv"].T.copy())
                                          for n in range(config.layers))
        self.head = torch.nn.ModuleList()
        for n in range(4):
            weight, bias = params[f"head{n}.weight"], params[f"head{n}.bias"]
            self.head.append(torch.nn.Linear(*weight.shape))
            self.head[-1].load_state_dict({"weight": torch.from_numpy(weight.T.copy()),
                                           "bias": torch.from_numpy(bias)})
        rate = 10000.0 ** (-2 * torch.arange(config.width // 2, dtype=torch.float64) / config.width)
        angle = (torch.arange(length)[:, None] * rate).repeat_interleave(2, -1)
        self.register_buffer("cos", angle.cos().float())
        self.register_buffer("sin", angle.sin().float())

    def rotate(self, x, at=slice(None)):
        if not self.rotates:
            return x
        crossed = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
        return x * self.cos[at] + crossed * self.sin[at]

    def forward(self, x, y):
        attend = F.scaled_dot_product_attention
        for qkv in self.qkv[:-1]:
            q, k, v = F.linear(x, qkv)[:, None].chunk(3, -1)
            out = attend(self.rotate(q), self.rotate(k), v, is_causal=self.causal)[:, 0]
            x = x + out if self.residual else out
        Wq, Wk, Wv = self.qkv[-1].chunk(3)
        last, keys = F.linear(x[:, -1:], Wq), x
        if self.rotates:
            last, keys = self.rotate(last, slice(-1, None)), self.rotate(F.linear(x, Wk))
        else:
            last = last @ Wk
        mean = attend(last[:, None], keys[:, None], x[:, None], scale=self.scale)[:, 0, 0]
        h = F.linear(mean, Wv)
        h = x[:, -1] + h if self.residual else h
        for linear in self.head[:-1]:
            h = torch.relu(linear(h))
        return F.cross_entropy(self.head[-1](h), y)


def step(spec, session):
    """One training step of a position-bias network -> loss."""
    config, settings, params, x, y = inputs(spec)
    network = Recall(config, params, spec["length"])
    training = torch_jobs.Training(network, settings, spec["compile"])
    batch = [*map(torch.from_numpy, (x, y))]
    return lambda: training.step(*batch), 0
