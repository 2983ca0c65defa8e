"""What the attention tests share: mechanisms with their options, masks, inputs, references.

The variants are read off the registry: a mechanism that is registered before the tests are
collected goes through all of them. Sizes are different primes, so that a swapped axis cannot fit.
"""
import itertools
from typing import NamedTuple

import numpy as np

from minattn import checks, spec
from minattn.attention import MECHANISMS
from minattn.validate.families import DRAWS

SIZES = {"B": 2, "H": 3, "G": 3, "Tq": 5, "Tk": 7, "D": 11, "Dv": 13}


class Variant(NamedTuple):
    """A mechanism with one setting of its own options."""
    mechanism: str
    options: dict = {}
    sizes: dict = {}            # on top of SIZES
    extra: dict = {}            # optional array arguments, with their shapes

    @property
    def row(self):
        return MECHANISMS[self.mechanism]

    @property
    def module(self):
        return self.row.module

    @property
    def shapes(self):
        shapes = self.row.arguments
        if self.extra:          # the keys come apart from the queries
            shapes = {key: " ".join("Tq" if symbol == "T" else symbol for symbol in shape.split())
                      for key, shape in shapes.items()}
        return {**shapes, **self.extra}

    @property
    def differentiated(self):
        return self.shapes.keys() - self.row.buffers.keys()

    @property
    def batched(self):
        """The arguments with a batch axis."""
        return [key for key, shape in self.shapes.items() if shape.split()[0] == "B"]

    @property
    def square(self):
        """One array gives queries and keys: Tq = Tk = T."""
        return any("T" in shape.split() for shape in self.shapes.values())


def variants_of(name):
    """Every combination of options, either size of an axis, optional arrays -> {name: Variant}

    "energy[norm=prefix]" for options, "gated:1" for the other size, "gaussian+keys" for arrays.
    """
    row, found = MECHANISMS[name], {}
    values = [(option.default, *option.others()) for option in row.options.values()]
    for chosen in itertools.product(*values):
        options = {option: value for option, value in zip(row.options, chosen)
                   if value != row.options[option].default}
        found[str(spec.Part(name, options))] = Variant(name, options)
    symbols = {symbol for shape in row.arguments.values() for symbol in shape.split()}
    for either in (symbol for symbol in symbols if "|" in symbol):
        axis, number = either.split("|")
        found = {label + suffix: variant._replace(sizes={**variant.sizes, either: size})
                 for label, variant in found.items()
                 for suffix, size in (("", SIZES[axis]), (f":{number}", int(number)))}
    for n in range(len(row.optional)):
        extra = dict(itertools.islice(row.optional.items(), n + 1))
        found["+".join([name, *extra])] = Variant(name, extra=extra)
    return found


VARIANTS = {label: variant for name in MECHANISMS for label, variant in variants_of(name).items()}

QUERIES_FIRST = {"Tq": 7, "Tk": 5}


def padding(B, H, Tq, Tk):
    """The last keys of each sequence are padding, another number in each."""
    return (np.arange(Tk) < Tk - 1 - np.arange(B)[:, None])[:, None, None]


def holes(B, H, Tq, Tk):
    """Arbitrary booleans. In each sequence the second query sees nothing."""
    allowed = np.random.default_rng(3).random((B, H, Tq, Tk)) < 0.6
    allowed[:, :, 1] = allowed[0, -1] = False          # nor does any of the last head's first
    return allowed


# name -> (options, sizes on top of SIZES); a function as `allowed` makes it for the sizes at hand
MASKS = {
    "none": ({}, {}),
    "none-start": ({"align": "start"}, {}),
    "causal": ({"causal": True}, {}),
    "causal-start": ({"causal": True, "align": "start"}, {}),
    "window1": ({"window": 1}, {}),
    "window3": ({"window": 3}, {}),
    "window3-start": ({"window": 3, "align": "start"}, {}),
    "prefix4": ({"causal": True, "prefix": 4}, {}),
    "prefix4-window3": ({"window": 3, "prefix": 4}, {}),
    "padding": ({"allowed": padding}, {}),
    "padding-causal": ({"allowed": padding, "causal": True}, {}),
    "empty_rows": ({"allowed": holes}, {}),
    "empty_rows-window3": ({"allowed": holes, "window": 3}, {}),
    "queries_first": ({}, QUERIES_FIRST),
    "queries_first-causal": ({"causal": True}, QUERIES_FIRST),     # the first two see nothing
    "queries_first-causal-start": ({"causal": True, "align": "start"}, QUERIES_FIRST),
    "one_query": ({"causal": True}, {"Tq": 1}),
    "one_token": ({"causal": True}, {"Tq": 1, "Tk": 1}),
}


def sizes_of(variant, mask=None):
    sizes = {**SIZES, **variant.sizes, **(MASKS[mask][1] if mask else {})}
    if variant.square:
        sizes["Tq"] = sizes["Tk"]
    return {**sizes, "T": sizes["Tk"]}


def options_of(variant, mask="none"):
    """The forward's keyword options: the variant's own and the mask's."""
    size = sizes_of(variant, mask)
    options = {**MASKS[mask][0], **variant.options}
    if "allowed" in options:
        options["allowed"] = options["allowed"](*(size[s] for s in ("B", "H", "Tq", "Tk")))
    return options


# offset and spread of arguments for which normal(0, 1) would miss what matters
SCALES = {"alpha": (2, 0.3), "tau": (0, 0.3), "alpha_ma": (0.5, 0.2), "log_sigma": (0.6, 0.2),
          **dict.fromkeys(("lam_q1", "lam_k1", "lam_q2", "lam_k2"), (0, 0.15))}
# the same for one mechanism: rows so small that the norm's epsilon counts, or a row of one key has
# no gradient to lambda but rounding
SCALES_OF = {"differential_1": {"v": (0, 0.15)}}


def draw(name, shape, rng, mechanism=None):
    """Values at which every branch is taken; differences are not measured near kinks."""
    x = rng.standard_normal(shape)
    if name == "alpha_logits":      # inside the linear clip, but for every fourth
        return np.where(rng.random(shape) < 0.25, 7 * np.sign(x), np.clip(2 * x, -4.5, 4.5))
    if name == "energy":            # no two alike: deviations of few keys bend sharply there
        return x.argsort(axis=-1).argsort(axis=-1) * 0.6 + 0.1 * x - 1
    offset, spread = SCALES_OF.get(mechanism, {}).get(name, SCALES.get(name, (0, 1)))
    return offset + spread * x


def unchanged(x, rng):
    return x


def inputs(variant, mask=None, seed=0, dtype=np.float64, **sizes):
    """Random arrays for forward; float32's numbers, so that both precisions start from the same."""
    rng = np.random.default_rng(seed)
    sizes = {**sizes_of(variant, mask), **sizes}
    arrays = {}
    for name, symbols in variant.shapes.items():
        shape = tuple(checks.extent(s, sizes) for s in symbols.split())
        x = draw(name, shape, rng, variant.mechanism)
        if name in "qk":            # away from where a row rule jumps or bends
            x = DRAWS.get(variant.mechanism, {}).get(name, unchanged)(x, rng)
        arrays[name] = x.astype(np.float32).astype(dtype)
    return arrays


def cotangent(like, seed=0):
    x = np.random.default_rng([seed, 9]).standard_normal(like.shape)
    return x.astype(np.float32).astype(like.dtype)


def run(variant, arrays, dout=None, **options):
    """One forward and backward -> {"out", "weights", "d" + argument, ...}"""
    out, cache, weights = variant.module.forward(**arrays, **options, return_weights=True)
    grads = variant.module.backward(cotangent(out) if dout is None else dout, cache)
    return {"out": out, "weights": weights, **{"d" + name: grad for name, grad in grads.items()}}


def reference(variant, arrays, dout=None, **options):
    """The same from the literal formulas and autograd, in the precision of the arrays."""
    import torch

    from minattn import torch_refs
    torch.set_num_threads(1)                 # the tensors are tiny: threads would only wait
    leaves = {name: torch.tensor(x, requires_grad=name not in variant.row.buffers)
              for name, x in arrays.items()}
    options = {name: torch.tensor(x) if isinstance(x, np.ndarray) else x
               for name, x in options.items()}
    formula = torch_refs.ATTENTION[variant.mechanism].function
    out, weights = formula(**leaves, **options, return_weights=True)
    dout = cotangent(out.detach().numpy()) if dout is None else dout
    out.backward(torch.tensor(dout))
    grads = {"d" + name: x.grad.numpy() for name, x in leaves.items() if x.grad is not None}
    return {"out": out.detach().numpy(), "weights": weights.detach().numpy(), **grads}


def error(actual, expected):
    """The largest difference relative to the largest expected value (0.01 if that is rounding)."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    hidden = np.isneginf(expected)
    assert np.array_equal(np.isneginf(actual), hidden)
    actual, expected = (np.where(hidden, 0, x) for x in (actual, expected))
    scale = np.abs(expected).max()
    return float(np.abs(actual - expected).max() / (scale if scale > 1e-13 else 0.01))


def assert_close(actual, expected, tolerance):
    """Each tensor of two results within a tolerance."""
    assert actual.keys() == expected.keys()
    errors = {name: error(actual[name], expected[name]) for name in expected}
    wrong = {name: e for name, e in errors.items() if not e <= tolerance}
    assert not wrong, f"relative errors over {tolerance}: {wrong}"
