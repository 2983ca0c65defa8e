"""The mechanisms, by name. Trainer, tests, validation kit and benchmarks loop over this table.

A new mechanism is its module beside the others, its row here, its naive pair in naive.py, and its
PyTorch formula in torch_refs: docs/add_a_mechanism.md shows all four.
"""
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from minattn import checks
from minattn.attention import (
    affine,
    cog,
    collaborative,
    differential,
    differential_1,
    energy,
    forget,
    gated,
    gaussian,
    linear,
    lssa,
    naive,
    off_by_one,
    pointwise,
    sink,
    softmax,
    sparse,
)


class Mechanism(NamedTuple):
    """One row of the table. Its fields are read off the constants of the module."""
    name: str
    module: Any              # has forward and backward
    naive_forward: Callable  # the same, dense and plain: see naive.py
    naive_backward: Callable
    arguments: dict          # array argument -> shape, as "B H Tq D", in the order of forward
    optional: dict           # further array arguments that may be left out -> shape
    options: dict            # forward's own options -> checks.Option; the core's come on top
    layer_options: dict      # options of the layer around it -> checks.Option
    projections: dict        # argument that is a projection of the layer's input -> has it a bias?
    parameters: dict         # argument that is learned, of the shape in arguments -> initial value
    buffers: dict            # argument that is remembered but not learned -> initial value
    not_causal: dict         # (option, value, ...) -> why the future leaks in
    not_cacheable: dict      # (option, value, ...) -> why a prefix alone gives another result
    on_top_of: str           # the mechanism on which it stands when none is named; "": it is whole
    head_sizes: Any          # (n_embd, n_head, **layer_options) -> {"D": ...}; None: C / H each
    refuses: tuple           # options of the core that mean nothing here
    absolute: bool           # does a constant added to every score change the weights?
    stochastic: bool         # are a row's weights at least 0, with a sum of 1?
    averages: bool           # is the output weights @ v, with nothing done to it afterwards?
    versions: dict           # (option, value) -> the mechanism that it stands for
    decode: Any              # forward for one query that sees every key; None: forward serves
    continue_from: Any       # forward from a state instead of earlier keys; None: it needs the keys
    arxiv: str
    summary: str

    def all_options(self):
        """Every option that the mechanism's name can carry in brackets."""
        return {**self.options, **self.layer_options}

    def settings(self, **given):
        """Every option of forward, with defaults where none is given."""
        return {**checks.defaults(self.options), **given}

    def extra_parameters(self):
        """What one layer learns beside softmax attention's 4 C^2 weights, in terms of C and H."""
        H, D = 1 << 10, 1 << 20                             # far apart, so that no two terms meet
        C = H * D
        size = {"H": H, "G": H, "D": D, "Dv": D, "Dv|1": D}
        if self.head_sizes:
            size.update(self.head_sizes(C, H, **checks.defaults(self.layer_options)))

        def count(name):
            """Numbers of an argument for one token."""
            axes = (s for s in self.arguments[name].split() if s[0] not in "BT")
            return math.prod(checks.extent(symbol, size) for symbol in axes)

        extra = C * (sum(count(name) for name in ("q", "k", "v") if name in self.arguments) - 3 * C)
        extra += sum(C * count(name) + biased * count(name)
                     for name, biased in self.projections.items())
        extra += sum(map(count, self.parameters))
        terms = []
        for letters, unit in (("C^2", C * C), ("C H", C * H), ("C", C), ("D", D), ("H", H)):
            n = round(extra / unit)
            extra -= n * unit
            if n:
                terms.append(letters if n == 1 else f"{n} {letters}")
        return " + ".join(terms).replace("+ -", "- ") or "0"

    def reason(self, table, options):
        """Why these options are in a table of exceptions, or an empty string."""
        settings = self.settings(**options)
        for condition, why in table.items():
            pairs = zip(condition[::2], condition[1::2])
            if all(settings.get(name) == value for name, value in pairs):
                return why
        return ""

    def leak(self, **options):
        """Why it is not causal with these options; an empty string if it is."""
        return self.reason(self.not_causal, options)

    def recompute(self, **options):
        """Why a key-value cache cannot serve it with these options; an empty string if one can."""
        return self.reason({**self.not_causal, **self.not_cacheable}, options)


def describe(name, module, naive_forward=None, naive_backward=None):
    """The row of a module; its naive pair is looked up in naive.py unless given."""
    def constant(field, default):
        return getattr(module, field, default)
    return Mechanism(
        name, module,
        naive_forward or getattr(naive, f"{name}_forward"),
        naive_backward or getattr(naive, f"{name}_backward"),
        module.ARGUMENTS, constant("OPTIONAL", {}), constant("OPTIONS", {}),
        constant("LAYER_OPTIONS", {}), constant("PROJECTIONS", {}), constant("PARAMETERS", {}),
        constant("BUFFERS", {}), constant("NOT_CAUSAL", {}), constant("NOT_CACHEABLE", {}),
        constant("ON_TOP_OF", ""), constant("head_sizes", None), constant("REFUSES", ()),
        constant("ABSOLUTE", False), constant("STOCHASTIC", True), constant("AVERAGES", True),
        constant("VERSIONS", {}), constant("decode", None), constant("continue_from", None),
        module.ARXIV, module.SUMMARY)


MECHANISMS = {name: describe(name, module) for name, module in {
    "softmax": softmax,
    "off_by_one": off_by_one,
    "sink": sink,
    "gated": gated,
    "affine": affine,
    "energy": energy,
    "gaussian": gaussian,
    "differential": differential,
    "differential_1": differential_1,
    "collaborative": collaborative,
    "linear": linear,
    "cog": cog,
    "forget": forget,
    "lssa": lssa,
    "pointwise": pointwise,
    "sparse": sparse,
}.items()}


def register(name, module, naive_forward, naive_backward):
    """Add a mechanism of your own for as long as the program runs -> its row."""
    MECHANISMS[name] = describe(name, module, naive_forward, naive_backward)
    return MECHANISMS[name]


def mechanism(name):
    """The row for a name; InputError lists the known ones and suggests the nearest."""
    checks.choice("attention", name, MECHANISMS)
    return MECHANISMS[name]


def versioned(name, options):
    """The row for a name with these options, and the options less one that chose the row

    differential[version=1] is the row differential_1.
    """
    row, options = mechanism(name), dict(options)
    for (option, value), other in row.versions.items():
        if option in options:
            row.all_options()[option].check(f"option {option}", options[option])
            if options.pop(option) == value:
                row = mechanism(other)
    return row, options
