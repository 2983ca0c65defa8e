"""The position encodings, by name.

A new encoding is its module beside these, its row here, and its PyTorch formula in torch_refs. What
the module must have depends on its kind:

    "embedding"   added to the token embeddings:
                  parameters(n_embd, block_size, **options) -> {name: (shape, initial value)}
                  embed(length, n_embd, dtype, start, **arrays and options) -> codes (T, C), cache
                  backward(dcodes, cache) -> {name: gradient}
    "rotation"    of queries and keys:
                  forward(x, start=, **options) -> rotated x, cache;  backward(dy, cache) -> {"x"}
                  rotations(length, D, dtype, start=, **options) and rotate(x, rotations, **options)
    "bias"        on the scores:
                  bias(n_head, dtype, **options) -> an object with .tile, as attention.core takes it
"""
from types import ModuleType
from typing import NamedTuple

from minattn import checks
from minattn.positions import decay, learned, morlet, rotary, sinusoidal


class Position(NamedTuple):
    name: str
    module: ModuleType | None   # has forward and backward
    kind: str                   # "embedding", "rotation", "bias" or "none"
    arguments: dict             # trainable array -> its shape in symbols
    options: dict               # switch -> checks.Option
    even: str                   # what must be even: "n_embd", "n_embd / n_head" or ""
    arxiv: str | None
    summary: str


def describe(name, module):
    """The row of a module, read off its constants."""
    return Position(name, module, module.KIND, module.ARGUMENTS, module.OPTIONS,
                    getattr(module, "EVEN", ""), module.ARXIV, module.SUMMARY)


POSITIONS = {
    "none": Position("none", None, "none", {}, {}, "", None,
                     "No encoding: only a causal mask reveals the order."),
    **{name: describe(name, module) for name, module in {
        "learned": learned,
        "sinusoidal": sinusoidal,
        "rope": rotary,
        "decay": decay,
        "morlet": morlet,
    }.items()}}


def position(name):
    """The row for a name; InputError lists the known ones and suggests the nearest."""
    checks.choice("position", name, POSITIONS)
    return POSITIONS[name]
