"""The same GPT as the NumPy model, written from its description, to compare by name.

Parameters keep the NumPy names and layout: linear weights are (in, out) and y = x @ W + b, so
nothing is transposed on the way in or out. `GPT.from_numpy` loads them; there are no initial
values here.

Nothing here knows a mechanism or a position by name. Each is an entry of ATTENTION (attention.py)
or POSITIONS (positions.py), called with what the parameters of its function are named after:

    h.i.attn.NAME.weight    NAME is a projection of the layer's input
    h.i.attn.NAME           NAME is a parameter with one number per head, or a buffer
    position.P.NAME         the same for a position P
    energy[norm=prefix]     norm is an option, in the brackets of the config's text
"""
import inspect
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .attention import ATTENTION, COMMON, Formula
from .positions import POSITIONS

DEFAULTS = dict(
    vocab_size=65, block_size=64, n_layer=2, n_head=2, n_embd=32, dropout=0.0,
    bias=True, qkv_bias=False, scaled_init=True,        # seen in the parameters; unused here
    gelu="tanh",                                        # or "exact"
    n_kv_head=None, qk_norm=False, softcap=None, log_length=False,
    attention="softmax", position="learned",            # see `parse`
    attention_options={}, position_options={},          # of older runs: for all that know them
    window=None,                                        # the same for all layers, or
    window_pattern="")            # "SSSL": S = block_size // 2, L = all; the last layer is always L


BY_LAYER = ("layer_index",)          # options that are a layer's own unless the text has them


# --------------------------------------------------------------------------- from the config's text

class Layer(NamedTuple):
    name: str
    formula: Formula
    options: dict           # every option of the formula, defaults included
    takes: list             # the arguments of its function
    on_top: list            # functions applied to its output
    window: int | None


def parse(text):
    """"sink/energy[norm=key]+gated" -> [{"sink": {}}, {"energy": {"norm": "key"}, "gated": {}}]

    Older runs have "," in place of "/".
    """
    return [dict(map(_part, _split(layer, "+"))) for layer in _split(text, "/,")]


def _split(text, separators):
    """Split where one of these characters stands outside of brackets."""
    return re.split(rf"[{separators}](?![^\[]*\])", text)


def _part(text):
    name, _, inside = text.strip().removesuffix("]").partition("[")
    pairs = (pair.partition("=") for pair in inside.split(",") if inside)
    return name, {option: _value(value) for option, _, value in pairs}


def _value(text):
    try:
        return json.loads(text)     # a number, true or false
    except ValueError:
        return text


def _options(entry):
    """name -> default of every option of an entry: the keyword-only parameters of its functions"""
    found = dict.fromkeys(entry.in_parameters)
    for function in filter(callable, entry):
        found.update((name, p.default) for name, p in inspect.signature(function).parameters.items()
                     if p.kind is p.KEYWORD_ONLY and name not in COMMON)
    return found


def _known(what, names, known):
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{what}: unknown {', '.join(unknown)}; known are {', '.join(known)}")


def _versions(parts, table):
    """{"differential": {"version": 1}} -> {"differential_1": {}}, another entry of the table"""
    found = {}
    for name, options in parts.items():
        row = name
        for (option, value), other in getattr(table.get(name), "versions", {}).items():
            if options.pop(option, None) == value:
                row = other
        found[row] = options
    return found


def _read(what, text, given, table):
    """Parse a config's text, every option of every name filled in; `given` came apart from it."""
    layers, known = [_versions(parts, table) for parts in parse(text)], {}
    for parts in layers:
        _known(what, parts, table)
        for name, own in parts.items():
            options = _options(table[name])
            _known(f"{what} {name}", own, options)
            known.update(options)
            options.update((option, given[option]) for option in options if option in given)
            options.update(own)
            parts[name] = {option: value for option, value in options.items()
                           if option not in table[name].in_parameters
                           and (option not in BY_LAYER or option in own)}
    _known(f"{what}_options", given, known)
    return layers


def _windows(config):
    """The window of each layer."""
    n, pattern = config["n_layer"], config["window_pattern"]
    if not pattern:
        return [config["window"]] * n
    if config["window"] is not None:
        raise ValueError("config: give window or window_pattern, not both")
    sizes = {"S": config["block_size"] // 2, "L": None}
    return [sizes[pattern[i % len(pattern)]] for i in range(n - 1)] + [None]


# ------------------------------------------------------------------------------------ calls by name

def _takes(function):
    """The names of the arguments that a function needs."""
    return [name for name, p in inspect.signature(function).parameters.items()
            if p.kind is p.POSITIONAL_OR_KEYWORD]


def _call(function, given, **options):
    """Call a function with those of the given values that it names, and with the options."""
    names = inspect.signature(function).parameters
    return function(**{name: given[name] for name in names if name in given}, **options)


class GPT(nn.Module):
    """A pre-LN decoder with tied embeddings; attention is always causal.

    x = wte[tokens] + positions
    per layer: x += c_proj(attention(ln_1(x))), then x += mlp(ln_2(x))
    logits = ln_f(x) wteᵀ
    """

    def __init__(self, config, params, buffers):
        """params, buffers: dict name -> tensor. From arrays: `from_numpy`."""
        super().__init__()
        _known("config", config, DEFAULTS)
        self.config = c = {**DEFAULTS, **config}
        attention = _read("attention", c["attention"], c["attention_options"], ATTENTION)
        self.layers = []
        for i, window in enumerate(_windows(c)):
            (name, options), *more = attention[i % len(attention)].items()
            for other, _ in more:
                if ATTENTION[other].on_top is None:
                    raise ValueError(f"attention: {other} cannot stand on top of {name}")
            on_top = [ATTENTION[other].on_top for other, _ in more]
            formula = ATTENTION[name]
            takes = _takes(formula.function)
            options = {**{by: i for by in BY_LAYER if by in _options(formula)}, **options}
            self.layers.append(Layer(name, formula, options, takes, on_top, window))
        self.positions, *more = _read("position", c["position"], c["position_options"], POSITIONS)
        if more:
            raise ValueError(f"position: {c['position']!r}: all layers share one")
        for name, value in params.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(value))  # no dots in names
        for name, value in buffers.items():
            self.register_buffer(name.replace(".", "/"), value)

    @classmethod
    def from_numpy(cls, config, params, buffers=None, dtype=torch.float64, **options):
        """A model that holds copies of these arrays, which must be those that it uses."""
        def tensors(arrays):
            return {name: torch.tensor(np.array(a), dtype=dtype) for name, a in arrays.items()}

        model = cls(config, tensors(params), tensors(buffers or {}), **options).eval()
        with torch.enable_grad():
            model(torch.zeros(1, 1, dtype=torch.long))[0].sum().backward()
        unused = [name.replace("/", ".") for name, p in model._parameters.items() if p.grad is None]
        if unused:
            raise ValueError(f"parameters that this config does not use: {', '.join(unused)}")
        model.zero_grad()
        return model.train()

    def gradients(self):
        """After loss.backward(): dict name -> array, in the NumPy layout; zeros where unused."""
        return {name.replace("/", "."): torch.zeros_like(p).numpy() if p.grad is None
                else p.grad.cpu().numpy().copy() for name, p in self._parameters.items()}

    def _find(self, name):
        """A parameter or a buffer, or None"""
        name = name.replace(".", "/")
        return self._parameters.get(name, self._buffers.get(name))

    def _get(self, name):
        if (found := self._find(name)) is None:
            raise ValueError(f"{name} is missing from the parameters and buffers")
        return found

    def _linear(self, x, name):
        return F.linear(x, self._get(name + ".weight").T, self._find(name + ".bias"))

    def _norm(self, x, name):
        weight, bias = self._get(name + ".weight"), self._find(name + ".bias")
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-5)

    def _dropout(self, x):
        return F.dropout(x, self.config["dropout"], self.training)

    def _heads(self, x):
        B, T = x.shape[:2]
        x = x.reshape(B, T, self.config["n_head"], -1)
        return x.transpose(1, 2)                                # (B, T, C) -> (B, H, T, D)

    def _split(self, qkv, formula, options):
        """What c_attn gives -> {"q", "k", "v"}: (B, heads, T, width)"""
        C, H = self.config["n_embd"], self.config["n_head"]
        G = self.config["n_kv_head"] or H
        shapes = [(H, C // H), (G, C // H), (G, C // H)]
        if formula.heads:
            shapes = _call(formula.heads, {"C": C, "H": H, "G": G, **options})
        parts = qkv.split([heads * width for heads, width in shapes], -1)
        return {name: part.unflatten(-1, shape).transpose(1, 2)
                for name, part, shape in zip("qkv", parts, shapes)}

    def _head_norm(self, x, name):
        """RMS norm of each head's channels, with a gain: (B, heads, T, width) -> the same"""
        x = x / torch.sqrt((x ** 2).mean(-1, keepdim=True) + 1e-6)
        return x * self._get(name + ".weight").view(x.shape[1], 1, x.shape[3])

    def _encode(self, kind, **facts):
        """What each position of this kind makes of these facts, its options and its parameters."""
        for name, options in self.positions.items():
            if POSITIONS[name].kind == kind:
                prefix = f"position/{name}/"
                arrays = {key.removeprefix(prefix): p for key, p in self._parameters.items()
                          if key.startswith(prefix)}
                yield _call(POSITIONS[name].function, {**options, **arrays, **facts})

    def _rotate(self, x):
        rotated = list(self._encode("rotation", x=x))
        if len(rotated) > 1:
            raise ValueError("position: one rotation at most")
        return rotated[0] if rotated else x

    def _embed(self, tokens):
        """wte[tokens] and the positions that are added to them: (B, T) -> (B, T, C)"""
        x = F.embedding(tokens, self._get("wte.weight"))
        for codes in self._encode("embedding", length=x.shape[1], n_embd=x.shape[2]):
            x = x + codes.to(x)
        return x

    def _argument(self, name, x):
        """A projection of x (B, T, C) -> (B, H, T[, D]); or a parameter or a buffer (H,)"""
        if self._find(name + ".weight") is None:
            return self._get(name)
        return self._heads(self._linear(x, name)).squeeze(-1)

    def _inputs(self, i, x):
        """What layer i's function takes, by name: from ln_1 of the residual stream, x (B, T, C)."""
        (_, formula, options, takes, _, _), a = self.layers[i], f"h.{i}.attn."
        if formula.inputs:
            given = _call(formula.inputs, options, u=self._heads(x), rotate=self._rotate)
        else:
            given = self._split(self._linear(x, a + "c_attn"), formula, options)
            if self.config["qk_norm"]:
                for name in ("q", "k"):
                    given[name] = self._head_norm(given[name], f"{a}{name}_norm")
            given["q"], given["k"] = self._rotate(given["q"]), self._rotate(given["k"])
        for name in takes:
            if name not in given:
                given[name] = self._argument(a + name, x)
        if formula.update and self.training:
            used, kept = _call(formula.update, {**given, **options})
            given.update(used)
            for name, value in kept.items():
                self._get(a + name).copy_(value)
        return given

    def _attention(self, i, x):
        """x = ln_1 of the residual stream (B, T, C) -> what the layer adds to it, before dropout"""
        layer, given = self.layers[i], self._inputs(i, x)
        facts = {"length": x.shape[1], "n_head": self.config["n_head"]}
        core = {}
        if self.config["softcap"] is not None:
            core["softcap"] = self.config["softcap"]
        if self.config["log_length"]:
            core["log_length"] = self._get(f"h.{i}.attn.log_length")
        biases = [bias.to(x) for bias in self._encode("bias", **facts)]
        y = _call(layer.formula.function, {**given, **layer.options}, causal=True,
                  window=layer.window, bias=sum(biases) if biases else None,
                  dropout=self._dropout, **core)
        return self._output(i, x, y)

    def _output(self, i, x, y):
        """What the heads give (B, H, T, D), after what is on top, projected back -> (B, T, C)"""
        a = f"h.{i}.attn."
        for function in self.layers[i].on_top:
            y = function(y, *(self._argument(a + name, x) for name in _takes(function)[1:]))
        return self._linear(y.transpose(1, 2).flatten(2), a + "c_proj")

    def _mlp(self, i, x):
        gelu = {"tanh": "tanh", "exact": "none"}[self.config["gelu"]]
        x = F.gelu(self._linear(x, f"h.{i}.mlp.c_fc"), approximate=gelu)
        return self._linear(x, f"h.{i}.mlp.c_proj")

    def forward(self, tokens, targets=None):
        """tokens, targets (B, T) integers -> logits (B, T, V), mean cross-entropy (or None)"""
        if tokens.shape[1] > self.config["block_size"]:
            raise ValueError(f"tokens: {tokens.shape[1]} positions, "
                             f"block_size {self.config['block_size']}")
        x = self._dropout(self._embed(tokens))                                     # (B, T, C)
        for i in range(self.config["n_layer"]):
            x = x + self._dropout(self._attention(i, self._norm(x, f"h.{i}.ln_1")))
            x = x + self._dropout(self._mlp(i, self._norm(x, f"h.{i}.ln_2")))
        logits = self._norm(x, "ln_f") @ self._get("wte.weight").T                 # (B, T, V)
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


def load_run(folder, dtype=torch.float64):
    """The trained model in a run's folder: config.json ("model") and checkpoint.safetensors.

    Returned in evaluation mode: call .train() to compare training steps.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())["model"]
    arrays = load_file(folder / "checkpoint.safetensors")
    params, buffers = ({name.removeprefix(kind): a for name, a in arrays.items()
                        if name.startswith(kind)} for kind in ("params/", "buffers/"))
    return GPT.from_numpy(config, params, buffers, dtype).eval()
