"""Every way to tell attention where a token stands, by name.

A new encoding is one file beside this one, which states its own facts as constants, and one registry line.
"""
from types import ModuleType
from typing import NamedTuple

from minattn.positions import decay, learned, morlet, rotary, sinusoidal


class Position(NamedTuple):
    name: str
    module: ModuleType | None   # has forward and backward
    kind: str                   # "embedding" added to tokens, "rotation" of q, k, "bias" to scores, "none"
    arguments: dict[str, str]   # trainable array -> its shape in symbols
    options: dict[str, object]  # switch -> its default
    arxiv: str | None
    summary: str


def _read(name, module):
    return Position(name, module, module.KIND, module.ARGUMENTS, module.OPTIONS, module.ARXIV, module.SUMMARY)


POSITIONS: dict[str, Position] = {
    "none": Position("none", None, "none", {}, {}, None, "No encoding: only a causal mask tells order."),
    "learned": _read("learned", learned),
    "sinusoidal": _read("sinusoidal", sinusoidal),
    "rope": _read("rope", rotary),
    "decay": _read("decay", decay),
    "morlet": _read("morlet", morlet),
}
