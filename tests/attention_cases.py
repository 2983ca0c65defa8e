"""What the attention tests share: every mechanism with its options, every kind of mask, inputs, PyTorch references.

Sizes are different primes, so that a swapped axis cannot fit.
"""
from typing import NamedTuple

import numpy as np

from minattn.attention import MECHANISMS

SIZES = {"B": 2, "H": 3, "Tq": 5, "Tk": 7, "D": 11, "Dv": 13}


class Variant(NamedTuple):
    """A mechanism with one setting of its own options."""
    mechanism: str
    options: dict = {}
    sizes: dict = {}            # on top of SIZES
    extra: dict = {}            # optional array arguments, with their shapes

    @property
    def module(self):
        return MECHANISMS[self.mechanism].module

    @property
    def shapes(self):
        return {**MECHANISMS[self.mechanism].arguments, **self.extra}

    @property
    def square(self):
        """One array gives queries and keys: Tq = Tk = T."""
        return "T" in self.shapes.get("x", "").split()


KEYS = {"x": "B H Tq D", "keys": "B H Tk D"}
VARIANTS = {
    "softmax": Variant("softmax"),
    "off_by_one": Variant("off_by_one"),
    "sink": Variant("sink"),
    "gated-channel": Variant("gated", sizes={"Dv|1": SIZES["Dv"]}),
    "gated-head": Variant("gated", sizes={"Dv|1": 1}),
    **{f"affine-{phi}-{length}": Variant("affine", {"phi": phi, "length": length})
       for phi in ("linear_clip", "sigmoid") for length in ("total", "visible", 19)},
    **{f"energy-{norm}": Variant("energy", {"norm": norm}) for norm in ("key", "prefix", "sequence", "none")},
    "gaussian": Variant("gaussian"),
    "gaussian-keys": Variant("gaussian", extra=KEYS),
    "gaussian-keys-values": Variant("gaussian", extra={**KEYS, "values": "B H Tk Dv"}),
}

QUERIES_FIRST = {"Tq": 7, "Tk": 5}


def padding(B, H, Tq, Tk):
    """The last keys of each sequence are padding, another number in each."""
    return (np.arange(Tk) < Tk - 1 - np.arange(B)[:, None])[:, None, None]


def holes(B, H, Tq, Tk):
    """Arbitrary booleans; the second query of each sequence, and all of the last head's first, see nothing."""
    allowed = np.random.default_rng(3).random((B, H, Tq, Tk)) < 0.6
    allowed[:, :, 1] = allowed[0, -1] = False
    return allowed


MASKS = {       # name -> (options, sizes on top of SIZES); a function as `allowed` makes it for the sizes at hand
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
    "queries_first-causal": ({"causal": True}, QUERIES_FIRST),            # the first two see nothing
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


def draw(name, shape, rng):
    """Values at which every branch is taken; kinks are kept at a distance from where differences are measured."""
    x = rng.standard_normal(shape)
    if name == "alpha_logits":                    # inside the linear clip, but for every fourth
        x = np.where(rng.random(shape) < 0.25, 7 * np.sign(x), np.clip(2 * x, -4.5, 4.5))
    if name == "energy":                          # no two alike: where they cross, deviations of few keys bend sharply
        x = x.argsort(axis=-1).argsort(axis=-1) * 0.6 + 0.1 * x - 1
    usual = {"alpha": (2, 0.3), "tau": (0, 0.3), "alpha_ma": (0.5, 0.2), "log_sigma": (0.6, 0.2)}
    offset, spread = usual.get(name, (0, 1))
    return offset + spread * x


def inputs(variant, mask=None, seed=0, dtype=np.float64, **sizes):
    """Random arrays for forward, rounded to float32 so that both precisions start from the same numbers."""
    rng = np.random.default_rng(seed)
    sizes = {**sizes_of(variant, mask), **sizes}
    arrays = {}
    for name, symbols in variant.shapes.items():
        shape = tuple(sizes[s] for s in symbols.split())
        arrays[name] = draw(name, shape, rng).astype(np.float32).astype(dtype)
    return arrays


def cotangent(like, seed=0):
    return np.random.default_rng([seed, 9]).standard_normal(like.shape).astype(np.float32).astype(like.dtype)


def run(variant, arrays, dout=None, **options):
    """One forward and backward -> {"out", "weights", "d" + argument, ...}"""
    out, cache, weights = variant.module.forward(**arrays, **options, return_weights=True)
    grads = variant.module.backward(cotangent(out) if dout is None else dout, cache)
    return {"out": out, "weights": weights, **{"d" + name: grad for name, grad in grads.items()}}


REFERENCES = {"softmax": "softmax_attention", "off_by_one": "off_by_one_attention", "sink": "sink_attention",
              "gated": "gated_attention", "affine": "affine_attention", "energy": "energy_gated_attention",
              "gaussian": "gaussian_kernel_attention"}


def reference(variant, arrays, dout=None, **options):
    """The same from the literal formulas and autograd, in the precision of the arrays."""
    import torch

    from minattn import torch_refs
    torch.set_num_threads(1)                      # the tensors are tiny: threads would only wait for each other
    leaves = {name: torch.tensor(x, requires_grad=name != "alpha_ma") for name, x in arrays.items()}
    options = {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    out, weights = getattr(torch_refs, REFERENCES[variant.mechanism])(**leaves, **options, return_weights=True)
    dout = cotangent(out.detach().numpy()) if dout is None else dout
    out.backward(torch.tensor(dout))
    grads = {"d" + name: x.grad.numpy() for name, x in leaves.items() if x.grad is not None}
    return {"out": out.detach().numpy(), "weights": weights.detach().numpy(), **grads}


def error(actual, expected):
    """The largest difference relative to the largest expected value; where that is only rounding, relative to 0.01."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    actual, expected = (np.where(np.isneginf(expected), np.isneginf(x), x) for x in (actual, expected))
    scale = np.abs(expected).max()
    return float(np.abs(actual - expected).max() / (scale if scale > 1e-13 else 0.01))


def assert_close(actual, expected, tolerance):
    """Each tensor of two results within a tolerance."""
    assert actual.keys() == expected.keys()
    wrong = {name: e for name in expected if not (e := error(actual[name], expected[name])) <= tolerance}
    assert not wrong, f"relative errors over {tolerance}: {wrong}"
