"""The same GPT as the NumPy model, written from its description: compare losses and gradients by name.

Parameters keep the NumPy names and layout: linear weights are (in, out) and y = x @ W + b, so nothing is
transposed on the way in or out. Initial values here only make the reference usable alone; to compare with the
NumPy model, use `GPT.from_numpy`.
"""
import json
import math
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import attention as att
from . import positions as pos

DEFAULTS = {
    "vocab_size": 65, "block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 32, "dropout": 0.0,
    "bias": True,              # of linear layers (not of q, k, v) and layer norms
    "qkv_bias": False,
    "gelu": "tanh",            # or "exact"
    "scaled_init": True,       # how the NumPy model starts; accepted and unused here
    "attention": "softmax",    # "a,b": layer i takes entry i mod 2; "x+gated": x's output times a gate
    "attention_options": {},
    "position": "learned",     # "a+b" applies both
    "position_options": {},
    "window": None,            # the same for all layers, or
    "window_pattern": "",      # e.g. "SSSL": S = block_size // 2, L = everything; the last layer is always L
}
ATTENTION_OPTIONS = {
    "phi": "linear_clip", "length": "total", "momentum": 0.9, "axes": "head", "use": "after",   # affine
    "norm": "key", "stable": False,                                                             # energy
    "eps": None,                                     # energy and gaussian; None = each function's own default
    "gate": "channel",                                                                          # gated
    "qk_norm": True, "rope_values": False, "sigma_init": None,                                                      # gaussian
}
POSITION_OPTIONS = {"base": 10000.0, "pairs": "half", "admissible": True, "centre": False, "start": 0}
MECHANISMS = ("softmax", "sink", "off_by_one", "affine", "energy", "gaussian")
POSITIONS = ("none", "learned", "sinusoidal", "rope", "decay", "morlet")


def _over(defaults, given, what):
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ValueError(f"{what}: unknown {', '.join(unknown)}; known are {', '.join(defaults)}")
    return {**defaults, **given}


def _brackets(text):
    """"energy[norm=key]/softmax" -> "energy,softmax", {"norm": "key"}"""
    options, words = {}, {"true": True, "false": False}
    for inside in re.findall(r"\[([^\]]*)\]", text):
        for pair in inside.split(","):
            name, _, value = pair.partition("=")
            try:
                options[name] = words[value] if value in words else json.loads(value)
            except ValueError:
                options[name] = value
    return re.sub(r"\[[^\]]*\]", "", text).replace("/", ","), options


def _mechanism(name):
    """"affine+gated" -> ("affine", True); "gated" alone is softmax with a gate."""
    parts = name.strip().split("+")
    base = [part for part in parts if part != "gated"] or ["softmax"]
    if len(base) != 1 or base[0] not in MECHANISMS:
        raise ValueError(f"attention: unknown {name!r}; known are {', '.join(MECHANISMS)}, and gated")
    return base[0], "gated" in parts


class GPT(nn.Module):
    """A pre-LN decoder with tied embeddings; attention is always causal.

    x = wte[tokens] + positions
    per layer: x += c_proj(attention(ln_1(x))), then x += mlp(ln_2(x))
    logits = ln_f(x) wteᵀ
    """

    def __init__(self, config):
        super().__init__()
        self.config = c = _over(DEFAULTS, config, "config")
        for what in ("attention", "position"):
            c[what], inside = _brackets(c[what])
            c[f"{what}_options"] = {**inside, **c[f"{what}_options"]}
        self.options = _over(ATTENTION_OPTIONS, c["attention_options"], "attention_options")
        self.position_options = _over(POSITION_OPTIONS, c["position_options"], "position_options")
        self.positions = c["position"].split("+")
        if set(self.positions) - set(POSITIONS):
            raise ValueError(f"position: {c['position']!r} is not made of {', '.join(POSITIONS)}")
        names = c["attention"].split(",")
        self.mechanisms = [_mechanism(names[i % len(names)]) for i in range(c["n_layer"])]
        if c["window"] is not None and c["window_pattern"]:
            raise ValueError("config: give window or window_pattern, not both")
        self.windows = [c["window"]] * c["n_layer"]
        if c["window_pattern"]:
            pattern = c["window_pattern"]
            kinds = [pattern[i % len(pattern)] for i in range(c["n_layer"] - 1)] + ["L"]
            self.windows = [{"S": c["block_size"] // 2, "L": None}[kind] for kind in kinds]
        for name, value in self._initial().items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(value))  # torch: no dots in names
        for i, (base, _) in enumerate(self.mechanisms):
            if base == "affine":
                self.register_buffer(f"h/{i}/attn/alpha_ma", torch.zeros(c["n_head"]))

    def _initial(self):
        """dict name -> tensor in the NumPy layout: weights normal(0, 0.02), biases 0, gains 1."""
        c, (C, H, V) = self.config, (self.config[key] for key in ("n_embd", "n_head", "vocab_size"))
        p = {"wte.weight": torch.randn(V, C) * 0.02}

        def linear(name, n_in, n_out, bias=False):
            p[name + ".weight"] = torch.randn(n_in, n_out) * 0.02
            if bias:
                p[name + ".bias"] = torch.zeros(n_out)

        def norm(name):
            p[name + ".weight"] = torch.ones(C)
            if c["bias"]:
                p[name + ".bias"] = torch.zeros(C)

        if "learned" in self.positions:
            p["position.learned.weight"] = torch.randn(c["block_size"], C) * 0.02
        if "morlet" in self.positions:
            log_omega = torch.linspace(0, math.log(0.99 * math.pi), C // 2)      # ω from 1 to 0.99 π, σ = 5/ω
            p["position.morlet.log_omega"] = log_omega
            p["position.morlet.log_sigma"] = math.log(5) - log_omega
            if self.position_options["centre"]:
                p["position.morlet.centre"] = torch.zeros(C // 2)
        for i, (base, gated) in enumerate(self.mechanisms):
            a = f"h.{i}.attn."
            norm(f"h.{i}.ln_1")
            if base != "gaussian":
                linear(a + "c_attn", C, 3 * C, c["qkv_bias"])
            linear(a + "c_proj", C, C, c["bias"])
            if base == "sink":
                p[a + "sink"] = torch.zeros(H)
            if base == "affine":
                linear(a + "alpha_logits", C, H)
            if base == "energy":
                linear(a + "energy", C, H, True)
                p[a + "alpha"], p[a + "tau"] = torch.full((H,), 2.0), torch.zeros(H)
            if base == "gaussian":
                p[a + "log_sigma"] = torch.full((H,), math.log(C // H) / 4)          # σ = D^(1/4)
            if gated:
                linear(a + "gate_logits", C, H if self.options["gate"] == "head" else C)
            norm(f"h.{i}.ln_2")
            linear(f"h.{i}.mlp.c_fc", C, 4 * C, c["bias"])
            linear(f"h.{i}.mlp.c_proj", 4 * C, C, c["bias"])
        norm("ln_f")
        return p

    @classmethod
    def from_numpy(cls, config, params, buffers=None, dtype=torch.float64):
        """A model that holds exactly these arrays; names and shapes must be the expected ones."""
        model = cls(config).to(dtype)
        for kind, own, given in (("parameters", model._parameters, params),
                                 ("buffers", model._buffers, buffers or {})):
            expected = {name.replace("/", "."): tuple(tensor.shape) for name, tensor in own.items()}
            found = {name: np.shape(array) for name, array in given.items()}
            if expected != found:
                wrong = sorted(n for n in expected | found if expected.get(n) != found.get(n))
                raise ValueError(f"{kind} differ: " + "; ".join(
                    f"{n} expected {expected.get(n)}, found {found.get(n)}" for n in wrong))
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(torch.from_numpy(np.array(given[name.replace("/", ".")])))
        return model

    def gradients(self):
        """After loss.backward(): dict name -> array, in the NumPy layout; zeros for an unused parameter."""
        return {name.replace("/", "."): np.zeros(p.shape) if p.grad is None else p.grad.cpu().numpy().copy()
                for name, p in self._parameters.items()}

    def _get(self, name):
        name = name.replace(".", "/")
        return self._parameters[name] if name in self._parameters else self._buffers.get(name)

    def _linear(self, x, name):
        y, bias = x @ self._get(name + ".weight"), self._get(name + ".bias")
        return y if bias is None else y + bias

    def _norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self._get(name + ".weight"), self._get(name + ".bias"), eps=1e-5)

    def _dropout(self, x):
        return F.dropout(x, self.config["dropout"], self.training)

    def _heads(self, x):
        B, T = x.shape[:2]
        return x.reshape(B, T, self.config["n_head"], -1).transpose(1, 2)          # (B, T, C) -> (B, H, T, D)

    def _rope(self, x):
        if "rope" not in self.positions:
            return x
        o = self.position_options
        return pos.rotary(x, base=o["base"], start=o["start"], pairs=o["pairs"])

    def _embed(self, tokens):
        """wte[tokens] plus every position code that is added to the embeddings: (B, T) -> (B, T, C)"""
        T, o = tokens.shape[1], self.position_options
        x = F.embedding(tokens, self._get("wte.weight"))
        if "learned" in self.positions:
            x = x + self._get("position.learned.weight")[:T]
        if "sinusoidal" in self.positions:
            x = x + pos.sinusoidal(T, x.shape[-1], base=o["base"], start=o["start"]).to(x)
        if "morlet" in self.positions:
            log_omega, log_sigma, centre = (self._get("position.morlet." + name)
                                            for name in ("log_omega", "log_sigma", "centre"))
            x = x + pos.morlet(T, log_omega, log_sigma, centre=centre,
                               admissible=o["admissible"], start=o["start"])
        return x

    def _alpha_ma(self, name, alpha_logits):
        """The running mean that this forward uses (arXiv 2602.23057, eq. 9); training updates the store.

        The paper's index leaves open whether the mean is used "after" or "before" this batch is folded in.
        """
        o, stored = self.options, self._get(name)                                          # (H,)
        if not self.training:
            return stored
        mean = att.squash(alpha_logits.detach(), o["phi"]).mean((0, 2))                    # (B, H, T) -> (H,)
        if o["axes"] == "layer":
            mean = mean.mean().expand_as(mean)
        before = stored.clone()
        stored.copy_(o["momentum"] * before + (1 - o["momentum"]) * mean)
        return {"after": stored.clone(), "before": before}[o["use"]]

    def _attention(self, i, x):
        """x = ln_1 of the residual stream (B, T, C) -> what the block adds to it, before dropout (B, T, C)"""
        (base, gated), a, o = self.mechanisms[i], f"h.{i}.attn.", self.options
        B, T, C = x.shape
        options = {"causal": True, "window": self.windows[i], "dropout": self._dropout}
        if "decay" in self.positions:
            slopes = pos.alibi_slopes(self.config["n_head"]).to(x)
            options["bias"] = pos.decay_bias(T, T, slopes)                                 # (H, T, T)
        eps = {} if o["eps"] is None else {"eps": o["eps"]}

        if base == "gaussian":
            u = self._heads(x)                                                  # plain slices of the channels
            if o["qk_norm"]:
                u = u / torch.sqrt((u ** 2).mean(-1, keepdim=True) + 1e-6)
            features = self._rope(u)
            y = att.gaussian_kernel_attention(features, self._get(a + "log_sigma"), **eps, **options,
                                              values=features if o["rope_values"] else u)
        else:
            q, k, v = (self._heads(part) for part in self._linear(x, a + "c_attn").split(C, -1))
            q, k = self._rope(q), self._rope(k)
            if base == "softmax":
                y = att.softmax_attention(q, k, v, **options)
            elif base == "sink":
                y = att.sink_attention(q, k, v, self._get(a + "sink"), **options)
            elif base == "off_by_one":
                y = att.off_by_one_attention(q, k, v, **options)
            elif base == "affine":
                alpha_logits = self._linear(x, a + "alpha_logits").transpose(1, 2)    # (B, T, H) -> (B, H, T)
                y = att.affine_attention(q, k, v, alpha_logits, self._alpha_ma(a + "alpha_ma", alpha_logits),
                                         phi=o["phi"], length=o["length"], **options)
            elif base == "energy":
                energy = self._linear(x, a + "energy").transpose(1, 2)                # (B, T, H) -> (B, H, T)
                y = att.energy_gated_attention(q, k, v, energy, self._get(a + "alpha"), self._get(a + "tau"),
                                               norm=o["norm"], stable=o["stable"], **eps, **options)
        if gated:
            gate = self._linear(x, a + "gate_logits")                                 # (B, T, C) or (B, T, H)
            y = y * torch.sigmoid(self._heads(gate))                            # (B, H, T, D) or (B, H, T, 1)
        return self._linear(y.transpose(1, 2).reshape(B, T, C), a + "c_proj")

    def _mlp(self, i, x):
        gelu = {"tanh": "tanh", "exact": "none"}[self.config["gelu"]]
        return self._linear(F.gelu(self._linear(x, f"h.{i}.mlp.c_fc"), approximate=gelu), f"h.{i}.mlp.c_proj")

    def forward(self, tokens, targets=None):
        """tokens, targets (B, T) integers -> logits (B, T, V), mean cross-entropy (None without targets)"""
        if tokens.shape[1] > self.config["block_size"]:
            raise ValueError(f"tokens: {tokens.shape[1]} positions, block_size {self.config['block_size']}")
        x = self._dropout(self._embed(tokens))                                             # (B, T, C)
        for i in range(self.config["n_layer"]):
            x = x + self._dropout(self._attention(i, self._norm(x, f"h.{i}.ln_1")))
            x = x + self._dropout(self._mlp(i, self._norm(x, f"h.{i}.ln_2")))
        logits = self._norm(x, "ln_f") @ self._get("wte.weight").T                         # (B, T, V)
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


def load_run(folder, dtype=torch.float64):
    """The trained model in `folder`: config.json ("model"), checkpoint.safetensors ("params/…", "buffers/…").

    Returned in evaluation mode: call .train() to compare training steps.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())["model"]
    arrays = load_file(folder / "checkpoint.safetensors")
    params, buffers = ({name.removeprefix(kind): a for name, a in arrays.items() if name.startswith(kind)}
                       for kind in ("params/", "buffers/"))
    return GPT.from_numpy(config, params, buffers, dtype).eval()
