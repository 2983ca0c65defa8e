"""What goes wrong with attention, and where: the families of cases, and what each does to its inputs.

They come in two sorts: those that any mechanism of the registry gets, and those that belong to one mechanism's own
formula. A mechanism added to the registry gets the first sort without a line here. A plan names sizes, options and an
edit of the random arrays; cases.py draws the numbers.
"""
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


def variants(row):
    """Settings of a mechanism's own options, or sizes, that are cases of their own."""
    yield {}
    if any("Dv|1" in shape.split() for shape in row.arguments.values()):
        yield {"Dv|1": 1}
    for name, option in row.options.items():
        for value in option.others():
            yield {name: value}


class Plan(NamedTuple):
    """A case before its numbers are drawn."""
    family: str
    name: str
    options: dict = {}                  # a function(size, rng) stands for an array
    sizes: dict = {}                    # on top of SIZES
    edit: Callable | None = None # edit(arrays, size), in place
    extra: tuple = ()                   # names out of EXTRA
    quick: bool = False
    layout: str = "contiguous"
    twin: bool = False


# ------------------------------------------------------------------------------ families that every mechanism gets


def generic(row, T):
    """The plans of the families that need to know nothing of the mechanism; T tokens unless a plan says otherwise."""
    causal = {"causal": True}
    prime = {"Tq": 5, "Tk": 7}
    given = ("keys",) if row.optional else ()                # keys of their own, where one array would give both
    for variant in variants(row):                            # its own options meet every kind of mask
        own = {n: x for n, x in variant.items() if n in row.options}
        sizes = {n: x for n, x in variant.items() if n not in row.options}
        tag = "".join(f",{n}={x}" for n, x in variant.items())
        if row.optional:
            yield Plan("prime_sizes", "T=7" + tag, own, sizes)
        yield Plan("prime_sizes", "Tq=5,Tk=7" + tag, own, {**prime, **sizes}, quick=True)
        yield Plan("causal", "T" + tag, {**causal, **own}, sizes, quick=True)
        yield Plan("noncausal", "T" + tag, own, sizes, quick=not tag)
        yield Plan("window", "W=2" + tag, {**causal, "window": 2, **own}, sizes, quick=True)
        yield Plan("prefix", "K=3" + tag, {**causal, "prefix": 3, **own}, sizes, quick=not tag)
        yield Plan("padding", "keys,causal" + tag, {**causal, "allowed": padding, **own}, sizes, quick=not tag)
        yield Plan("fully_masked_row", "holes" + tag, {"allowed": holes, **own}, sizes, quick=not tag)
        for align in ("end", "start"):
            options = {**causal, "align": align, **own}
            yield Plan("tq_ne_tk", f"Tq=5,Tk=7,align={align}" + tag, options, {**prime, **sizes}, extra=given,
                       quick=not tag)
        yield Plan("identical_tokens", "T" + tag, own, sizes, edit=alike, quick=not tag)
    for name in row.optional:
        yield Plan("prime_sizes", name, extra=tuple({"keys": 0, name: 0}), sizes=prime, quick=True)
    for W in (1, T - 1, T, T + 5):
        yield Plan("window", f"W={W}", {**causal, "window": W}, quick=W in (1, T))
    yield Plan("window", "W=3,implied", {"window": 3})
    for K in (1, T, T + 5):
        yield Plan("prefix", f"K={K}", {**causal, "prefix": K})
    yield Plan("prefix", "K=4,W=3", {**causal, "prefix": 4, "window": 3})
    yield Plan("padding", "keys", {"allowed": padding})
    yield Plan("padding", "per_head", {"allowed": scattered})
    yield Plan("fully_masked_row", "sample", {"allowed": first_sample_hidden}, quick=True)
    yield Plan("fully_masked_row", "holes,causal", {**causal, "allowed": holes})
    for align in ("end", "start"):
        yield Plan("tq_ne_tk", f"Tq=1,Tk=7,align={align}", {**causal, "align": align}, {"Tq": 1, "Tk": 7}, extra=given)
        yield Plan("tq_ne_tk", f"Tq=7,Tk=5,align={align}", {**causal, "align": align}, {"Tq": 7, "Tk": 5}, extra=given,
                   quick=align == "end")
        options = {**causal, "window": 3, "align": align}
        yield Plan("tq_ne_tk", f"Tq=5,Tk=7,W=3,align={align}", options, prime, extra=given)
    for n in (97, 1025):
        size = {"B": 1, "H": 2 if n == 97 else 1, "Tq": n, "Tk": n}
        yield Plan("long", f"T={n},causal", causal, size, quick=n == 97)
    yield Plan("long", "T=97", {}, {"B": 1, "H": 2, "Tq": 97, "Tk": 97})
    yield Plan("long", "T=97,W=31", {**causal, "window": 31}, {"B": 1, "H": 2, "Tq": 97, "Tk": 97})
    for D in (1, 3, 59, 111):
        yield Plan("odd_head_dim", f"D={D}", causal, {"D": D, "Dv": D}, quick=D == 3)
    for amount in (0, 100, -100, 1e4, -1e4, 1e6, -1e6):
        yield Plan("score_shift", f"{amount:+.0e}".replace("e+0", "e") if amount else "0", causal, edit=shift(amount),
                   quick=abs(amount) == 1e6)
    yield Plan("dominant_score", "seen", edit=dominant(1e4), quick=True)
    yield Plan("dominant_score", "hidden,1e4", causal, edit=dominant(1e4), quick=True)
    yield Plan("dominant_score", "hidden,1e10", causal, {"D": 16}, edit=all_far_below_the_last, quick=True)
    yield Plan("equal_scores", "q=0", causal, edit=scaled(0, "q"), quick=True)
    yield Plan("tiny_values", "scores", causal, edit=scaled(2.0**-100, "q", "k", "x"), quick=True)
    yield Plan("tiny_values", "values", causal, edit=scaled(2.0**-100, "v"))
    yield Plan("large_values", "scores", causal, edit=scaled(64, "q", "k", "x"), quick=True)
    yield Plan("large_values", "values", causal, edit=scaled(4096, "v"))
    yield Plan("repeated_tokens", "pairs", causal, edit=pairs, quick=True)
    yield Plan("one_token", "T=1", {}, {"Tq": 1, "Tk": 1})
    yield Plan("one_token", "T=1,causal", causal, {"Tq": 1, "Tk": 1}, quick=True)
    yield Plan("batch_independence", "sample_0_changed", causal, twin=True, quick=True)
    yield Plan("non_contiguous", "strided", causal, layout="strided", quick=True)
    yield Plan("bias", "full", {**causal, "bias": bias("B", "H", "Tq", "Tk")}, quick=True)
    yield Plan("bias", "per_key", {"bias": bias("H", "1", "Tk")}, quick=True)
    if "q" in row.arguments:
        yield Plan("scale", "0.75", {**causal, "scale": 0.75}, quick=True)


def padding(size, rng):
    """The last keys of each sequence are padding, another number in each."""
    return (np.arange(size["Tk"]) < size["Tk"] - 1 - np.arange(size["B"])[:, None])[:, None, None]


def scattered(size, rng):
    allowed = rng.random([size[s] for s in ("B", "H", "Tq", "Tk")]) < 0.6
    allowed[..., 0] = True
    return allowed


def holes(size, rng):
    """Scattered; the second query of each sequence, and all of the last head's first, see nothing."""
    allowed = scattered(size, rng)
    allowed[:, :, min(1, size["Tq"] - 1)] = allowed[0, -1] = False
    return allowed


def first_sample_hidden(size, rng):
    return np.broadcast_to((np.arange(size["B"]) > 0)[:, None, None, None], (size["B"], 1, 1, size["Tk"])).copy()


def bias(*symbols):
    return lambda size, rng: rng.standard_normal([1 if s == "1" else size[s] for s in symbols])


def shift(amount):
    """Raise every score by about `amount`, which changes no weight: one channel of q and k is the same everywhere."""
    def edit(arrays, size):
        a = math.sqrt(abs(amount) * math.sqrt(size["D"]))
        if "q" in arrays:
            arrays["q"][..., 0], arrays["k"][..., 0] = a, math.copysign(a, amount)
        elif "x" in arrays and amount >= 0:
            arrays["x"][..., 0] = math.sqrt(amount)          # a kernel of distances: move all tokens far from zero
        else:
            return False
    return edit


def dominant(amount):
    """The last key's score is about `amount` for every query; all others are small."""
    def edit(arrays, size):
        if "q" not in arrays:
            return False
        a = math.sqrt(amount * math.sqrt(size["D"]))
        arrays["q"][..., 0], arrays["k"][..., 0], arrays["k"][:, :, -1, 0] = a, 0, a
    return edit


def all_far_below_the_last(arrays, size):
    """Every score is -2^34 but the last key's, 0: masked with any finite number above that, the hidden keys win.

    With D = 16 no product here needs rounding, so in any precision all these scores are equal.
    """
    if "q" not in arrays:
        return False
    arrays["q"][:] = arrays["k"][..., 0] = 0
    arrays["q"][..., 0], arrays["k"][:, :, :-1, 0] = 2.0**18, -(2.0**18)


def scaled(factor, *names):
    def edit(arrays, size):
        for name in names:
            if name in arrays:
                arrays[name] *= factor
        return any(name in arrays for name in names)
    return edit


def pairs(arrays, size):
    """Tokens 0 and 1 are alike, 2 and 3, and so on."""
    for x in arrays.values():
        if x.ndim > 2:
            x[:, :, 1::2] = x[:, :, :-1:2]


def alike(arrays, size):
    for x in arrays.values():
        if x.ndim > 2:
            x[:] = x[:, :, :1]


# ------------------------------------------------------------------------------- families of one mechanism's formula


def setting(**values):
    """An edit that fills whole arguments: a number, or a list to go around in."""
    def edit(arrays, size):
        for name, value in values.items():
            arrays[name][:] = np.resize(value, arrays[name].shape)
    return edit


def _sink():
    for level in (20, 1e4):
        yield Plan("sink_far_above", f"{level:g}", {"causal": True}, edit=setting(sink=level), quick=level == 20)
        yield Plan("sink_far_below", f"{-level:g}", {"causal": True}, edit=setting(sink=-level), quick=level == 20)


def _gated():
    for name, logits in (("open", 50), ("closed", -50), ("both", [50, -50, 1])):
        yield Plan("gate_saturated", name, {"causal": True}, edit=setting(gate_logits=logits), quick=name == "both")


def _affine():
    kinks = [-5, 5, 4.96875, -4.96875, 0, 5.03125, -5.03125, 20, -20]
    for phi in ("linear_clip", "sigmoid"):
        options = {"causal": True, "phi": phi}
        yield Plan("alpha_at_kinks", phi, options, edit=setting(alpha_logits=kinks), quick=phi != "sigmoid")
    for level in (0, 0.5, 1):
        yield Plan("alpha_ma", f"{level:g}", {"causal": True}, edit=setting(alpha_ma=level), quick=level == 0.5)


def _energy():
    for norm in ("key", "prefix", "none"):                   # gates of about exp(-80): their ratios are all that counts
        options = {"causal": True, "norm": norm}
        yield Plan("gate_all_closed", norm, options, edit=setting(tau=40, alpha=2), quick=norm == "key")
    def far_from_zero(arrays, size):
        arrays["energy"] += 64                               # mean(e^2) - mean(e)^2 would lose what deviation there is
    for norm in ("key", "prefix", "sequence"):
        yield Plan("large_values", f"energy,norm={norm}", {"norm": norm}, edit=far_from_zero, quick=norm == "key")


def _gaussian():
    def tiny(arrays, size):
        setting(log_sigma=-6)(arrays, size)
        pairs(arrays, size)                                  # tokens that are alike share, however small sigma is
    def others(size, rng):
        return ~np.eye(size["Tk"], dtype=bool)[None, None]   # without itself every distance is large: no 0 / 0
    yield Plan("sigma_tiny", "-6", {"causal": True}, edit=tiny, quick=True)
    yield Plan("sigma_tiny", "-6,others", {"allowed": others}, edit=setting(log_sigma=-6))
    yield Plan("sigma_huge", "6", {"causal": True}, edit=setting(log_sigma=6), quick=True)


OWN: dict[str, Any] = {"sink": _sink, "gated": _gated, "affine": _affine, "energy": _energy, "gaussian": _gaussian}
