"""The mechanisms, by name. Trainer, tests, validation and benchmarks loop over this table: a new mechanism is one
file beside the others and one line here.
"""
from typing import Any, NamedTuple

from minattn import checks
from minattn.attention import affine, energy, gated, gaussian, off_by_one, sink, softmax


class Mechanism(NamedTuple):
    """One row of the table, read off the module that implements it."""
    name: str
    module: Any              # has forward and backward
    arguments: dict          # array argument -> shape in symbols, in the order of forward's signature
    options: dict            # forward's own options -> default; the core's options come on top
    layer_options: dict      # options of the layer around it (how its arguments are made) -> default
    projections: dict        # argument made from the layer's input -> what is projected ("H", "H D", "+b" with bias)
    parameters: dict         # argument that is learned as it stands, per head -> initial value
    buffers: dict            # argument that is remembered but not learned -> initial value
    not_causal: dict         # (option, value) -> why the future leaks in
    not_cacheable: dict      # (option, value) -> why a prefix alone gives another answer than the prefix of a whole
    decode: Any              # forward for one query that sees every key, unchecked and without a cache; None: forward serves
    arxiv: str
    summary: str

    def extra_parameters(self):
        """What one layer learns beside softmax attention's 4 C^2 weights, as a formula in C channels and H heads."""
        parts = [] if "q" in self.arguments else ["-3 C^2"]
        for spec in self.projections.values():
            parts += ["C^2" if "D" in spec else "C H"] + ["H"] * ("+b" in spec)
        n = parts.count("H") + len(self.parameters)
        parts = [part for part in parts if part != "H"] + [f"{n} H" if n > 1 else "H"] * bool(n)
        return " + ".join(parts) or "0"

    def reason(self, table, options):
        """Why these options are in a table of exceptions, or an empty string."""
        settings = {**self.options, **options}
        return next((why for (option, value), why in table.items() if settings.get(option) == value), "")

    def leak(self, **options):
        """Why it is not causal with these options; an empty string if it is."""
        return self.reason(self.not_causal, options)

    def recompute(self, **options):
        """Why a key-value cache cannot serve it with these options; an empty string if one can."""
        return self.reason({**self.not_causal, **self.not_cacheable}, options)


def describe(name, module):
    return Mechanism(name, module, module.ARGUMENTS, getattr(module, "OPTIONS", {}), getattr(module, "LAYER_OPTIONS", {}),
                     getattr(module, "PROJECTIONS", {}), getattr(module, "PARAMETERS", {}), getattr(module, "BUFFERS", {}),
                     getattr(module, "NOT_CAUSAL", {}), getattr(module, "NOT_CACHEABLE", {}), getattr(module, "decode", None),
                     module.ARXIV, module.SUMMARY)


MECHANISMS = {name: describe(name, module) for name, module in {
    "softmax": softmax,
    "off_by_one": off_by_one,
    "sink": sink,
    "gated": gated,
    "affine": affine,
    "energy": energy,
    "gaussian": gaussian,
}.items()}


def mechanism(name):
    """The row for a name; InputError lists the known ones and suggests the nearest."""
    checks.choice("attention", name, MECHANISMS)
    return MECHANISMS[name]
