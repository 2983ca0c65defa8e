"""What goes wrong with attention, and where: families of cases, and how each changes its inputs.

Every mechanism of the registry gets the generic families without a line here. OWN has those that
belong to one mechanism's formula, and DRAWS has what its arguments should look like. A plan names
sizes, options and an edit of the random arrays; cases.py draws the numbers.
"""
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

# rounding decides which of many scores lie beyond a threshold, and so the result
KINKED = ("lssa", "sparse")


def variants(mechanism, fixed=()):
    """Settings of a mechanism's options, or sizes, that get their own cases."""
    yield {}
    if any("Dv|1" in shape.split() for shape in mechanism.arguments.values()):
        yield {"Dv|1": 1}
    for name, option in mechanism.options.items():
        for value in option.others() if name not in fixed else ():
            yield {name: value}


class Plan(NamedTuple):
    """A case before its numbers are drawn."""
    family: str
    name: str
    options: dict = {}                  # a function(size, rng) stands for an array
    sizes: dict = {}                    # on top of SIZES
    edit: Callable | None = None        # edit(arrays, size), in place; False: nothing here to edit
    extra: tuple = ()                   # names out of EXTRA
    quick: bool = False
    layout: str = "contiguous"
    twin: bool = False
    dout: Callable | None = None        # dout(random numbers) -> the gradient that comes in
    dout_layout: str = "contiguous"


# -------------------------------------------------------------- families that every mechanism gets


def generic(mechanism, T, fixed=()):
    """The plans of the families that need to know nothing of the mechanism.

    T tokens unless a plan says otherwise; options in `fixed` do not vary.
    """
    causal = {"causal": True}
    prime, wide = {"Tq": 5, "Tk": 7}, {"D": 256, "Dv": 256}
    given = ("keys",) if mechanism.optional else ()          # where one array would give both
    for variant in variants(mechanism, fixed):  # its own options meet every kind of mask
        own = {n: x for n, x in variant.items() if n in mechanism.options}
        sizes = {n: x for n, x in variant.items() if n not in mechanism.options}
        tag = "".join(f",{n}={x}" for n, x in variant.items())
        plan = partial(with_variant, own, sizes, tag)
        if mechanism.optional:
            yield plan("prime_sizes", "T=7", {})
        yield plan("prime_sizes", "Tq=5,Tk=7", {}, prime, quick=True)
        yield plan("causal", "T", causal, quick=True)
        yield plan("noncausal", "T", {}, quick=not tag)
        yield plan("window", "W=2", {**causal, "window": 2}, quick=True)
        yield plan("prefix", "K=3", {**causal, "prefix": 3}, quick=not tag)
        yield plan("padding", "keys,causal", {**causal, "allowed": padding}, quick=not tag)
        yield plan("fully_masked_row", "holes", {"allowed": holes}, quick=not tag)
        for align in ("end", "start"):
            yield plan("tq_ne_tk", f"Tq=5,Tk=7,align={align}", {**causal, "align": align}, prime,
                       extra=given, quick=not tag)
        yield plan("identical_tokens", "T", {}, edit=alike, quick=not tag)
        if not own:
            yield plan("wide_heads", "D=256", causal, wide, edit=suit, quick=True)
    for name in mechanism.optional:
        extra = tuple(dict.fromkeys(("keys", name)))
        yield Plan("prime_sizes", name, extra=extra, sizes=prime, quick=True)
    for W in (1, T - 1, T, T + 5):
        yield Plan("window", f"W={W}", {**causal, "window": W}, quick=W in (1, T))
    yield Plan("window", "W=3,implied", {"window": 3})
    for K in (1, T, T + 5):
        yield Plan("prefix", f"K={K}", {**causal, "prefix": K})
    yield Plan("prefix", "K=4,W=3", {**causal, "prefix": 4, "window": 3})
    yield Plan("padding", "keys", {"allowed": padding})
    yield Plan("padding", "per_head", {"allowed": scattered})
    one = {"B": 1}
    yield Plan("packed", "causal", {**causal, "allowed": packed}, one, quick=True)
    yield Plan("packed", "T=97,causal", {**causal, "allowed": packed},
               {"B": 1, "H": 2, "Tq": 97, "Tk": 97})
    yield Plan("packed", "T", {"allowed": packed}, one)
    if not mechanism.optional:
        yield Plan("decode", "Tk=97", {"allowed": padding}, {"Tq": 1, "Tk": 97}, quick=True)
    yield Plan("fully_masked_row", "sample", {"allowed": first_sample_hidden}, quick=True)
    yield Plan("fully_masked_row", "holes,causal", {**causal, "allowed": holes})
    for align in ("end", "start"):
        options = {**causal, "align": align}
        yield Plan("tq_ne_tk", f"Tq=1,Tk=7,align={align}", options, {"Tq": 1, "Tk": 7}, extra=given)
        yield Plan("tq_ne_tk", f"Tq=7,Tk=5,align={align}", options, {"Tq": 7, "Tk": 5}, extra=given,
                   quick=align == "end")
        yield Plan("tq_ne_tk", f"Tq=5,Tk=7,W=3,align={align}", {**options, "window": 3}, prime,
                   extra=given)
    long = {"B": 1, "H": 2, "Tq": 97, "Tk": 97}
    yield Plan("long", "T=97,causal", causal, long, quick=True)
    yield Plan("long", "T=131,causal", causal, {"B": 1, "H": 1, "Tq": 131, "Tk": 131}, quick=True)
    yield Plan("long", "T=97", {}, long)
    yield Plan("long", "T=97,W=31", {**causal, "window": 31}, long)
    tiles = {"B": 1, "H": 2, "Tq": 193, "Tk": 193}
    yield Plan("window", "W=64,T=193", {**causal, "window": 64}, tiles, edit=suit)
    yield Plan("prefix", "K=64,T=193", {**causal, "prefix": 64}, tiles, edit=suit)
    yield Plan("prefix", "K=128,W=65,T=193", {**causal, "prefix": 128, "window": 65}, tiles,
               edit=suit)
    few = {"B": 1, "H": 2, "Tq": 1}                          # split-K: a few blocks share the keys
    yield Plan("long_decode", "Tk=1023", {}, {**few, "Tk": 1023}, edit=suit, extra=given,
               quick=True)
    yield Plan("long_decode", "Tk=601,bias", {"bias": bias("H", "1", "Tk")}, {**few, "Tk": 601},
               edit=suit, extra=given, quick=True)
    values = (*given, "values") if given else ()
    yield Plan("far_from_zero", "values", causal, extra=values, edit=moved(30, "v", "values"),
               quick=True)
    yield Plan("far_from_zero", "hidden_values,W=5", {**causal, "window": 5}, WINDOWS,
               extra=values, edit=moved(30, "v", "values", end=-70), quick=True)
    for D in (1, 3, 59, 111):
        yield Plan("odd_head_dim", f"D={D}", causal, {"D": D, "Dv": D}, quick=D == 3)
    yield Plan("score_shift", "0", causal, edit=shift(0))
    for amount in (100, -100, 1e4, -1e4, 1e6, -1e6):
        name = f"{amount:+.0e}".replace("e+0", "e")
        yield Plan("score_shift", name, causal, edit=shift(amount), quick=abs(amount) == 1e6)
    yield Plan("dominant_score", "seen", edit=dominant(1e4), quick=True)
    yield Plan("dominant_score", "hidden,1e4", causal, edit=dominant(1e4), quick=True)
    yield Plan("dominant_score", "hidden,1e10", causal, {"D": 16}, edit=all_far_below_the_last,
               quick=True)
    yield Plan("equal_scores", "q=0", causal, edit=scaled(0, "q"), quick=True)
    scores = ("q", "k", "x")
    yield Plan("tiny_values", "scores", causal, edit=scaled(2.0**-100, *scores), quick=True)
    yield Plan("tiny_values", "values", causal, edit=scaled(2.0**-100, "v"))
    yield Plan("large_values", "scores", causal, edit=scaled(64, *scores), quick=True)
    yield Plan("large_values", "scores,D=64", causal, {"D": 64}, edit=scaled(64, *scores))
    yield Plan("large_values", "values", causal, edit=scaled(4096, "v"))
    yield Plan("repeated_tokens", "pairs", causal, edit=pairs, quick=True)
    yield Plan("one_token", "T=1", {}, {"Tq": 1, "Tk": 1})
    yield Plan("one_token", "T=1,causal", causal, {"Tq": 1, "Tk": 1}, quick=True)
    yield Plan("batch_independence", "sample_0_changed", causal, twin=True, quick=True)
    yield Plan("non_contiguous", "strided", causal, layout="gaps", quick=True)
    yield Plan("bias", "full", {**causal, "bias": bias("B", "H", "Tq", "Tk")}, quick=True)
    yield Plan("bias", "per_key", {"bias": bias("H", "1", "Tk")}, quick=True)
    yield Plan("bias", "per_head,Tq=1", {"bias": bias("H", "1", "Tk")}, {"Tq": 1}, extra=given,
               quick=True)
    yield Plan("many_heads", "H=9", causal, {"H": 9}, quick=True)
    yield Plan("many_heads", "B=9", causal, {"B": 9}, quick=True)
    if mechanism.name not in KINKED:
        yield Plan("bias", "per_key,Tq=131", {"bias": bias("H", "1", "Tk")}, {"Tq": 131},
                   extra=given, quick=True)
        yield Plan("faint_tiles", "T=257", {}, {"B": 1, "H": 2, "Tq": 65, "Tk": 257}, edit=faint,
                   quick=True)
        low = {"bias": constant(-200)} if mechanism.optional else {}     # else q and k see to it
        tiles = {"B": 2, "H": 1, "Tq": 135, "Tk": 135, "D": 5, "Dv": 5}
        for name, options in (("padding", {"allowed": tiles_of_padding}),
                              ("W=5", {**causal, "window": 5})):
            yield Plan("hidden_tiles", name, {**options, **low}, tiles, edit=far_below, quick=True)
    if "scale" not in mechanism.refuses:
        yield Plan("scale", "0.75", {**causal, "scale": 0.75}, quick=True)


def with_variant(own, sizes, tag, family, name, options, more_sizes=(), **rest):
    """A plan in which the mechanism's own options, or sizes, have other values too"""
    return Plan(family, name + tag, {**options, **own}, {**dict(more_sizes), **sizes}, **rest)


def padding(size, rng):
    """The last keys of each sequence are padding, another number in each."""
    lengths = size["Tk"] - 1 - np.arange(size["B"])
    return (np.arange(size["Tk"]) < lengths[:, None])[:, None, None]


def tiles_of_padding(size, rng):
    """The first 64 keys of the first sequence are padding, the first 128 of the second, ..."""
    return (np.arange(size["Tk"]) >= 64 + 64 * np.arange(size["B"])[:, None])[:, None, None]


def packed(size, rng):
    """Four sequences side by side, the second of one token: each sees itself only"""
    Tq, Tk = size["Tq"], size["Tk"]
    sequence = np.searchsorted([Tk // 3, Tk // 3 + 1, 3 * Tk // 4], np.arange(Tk), side="right")
    own = sequence[np.maximum(np.arange(Tq) + Tk - Tq, 0)]
    return (own[:, None] == sequence)[None, None]


def scattered(size, rng):
    allowed = rng.random([size[s] for s in ("B", "H", "Tq", "Tk")]) < 0.6
    allowed[..., 0] = True
    return allowed


def holes(size, rng):
    """Scattered; each sequence's second query, and the last head of the first, see nothing."""
    allowed = scattered(size, rng)
    allowed[:, :, min(1, size["Tq"] - 1)] = allowed[0, -1] = False
    return allowed


def first_sample_hidden(size, rng):
    allowed = np.ones((size["B"], 1, 1, size["Tk"]), bool)
    allowed[0] = False
    return allowed


def bias(*symbols):
    return lambda size, rng: rng.standard_normal([1 if s == "1" else size[s] for s in symbols])


def constant(number):
    return lambda size, rng: np.full((1, 1, 1, size["Tk"]), float(number))


def shift(amount, channel=0):
    """Raise every score by about `amount`, which changes no weight: a constant channel in q, k."""
    def edit(arrays, size):
        a = math.sqrt(abs(amount) * math.sqrt(size["D"]))
        if "q" in arrays:
            arrays["q"][..., channel], arrays["k"][..., channel] = a, math.copysign(a, amount)
        elif "x" in arrays and amount >= 0:
            arrays["x"][..., 0] = math.sqrt(amount)          # distances: move all tokens far from 0
        else:
            return False
    return edit


def far_below(arrays, size):
    """Scores of about -200, whose exp is 0 in float32; a sink among them, if there is one."""
    shift(-200, channel=-1)(arrays, size)
    if "sink" in arrays:
        arrays["sink"] -= 200


def faint(arrays, size):
    """From tile to tile scores fall by 7, in every other head rise, and values grow or shrink as
    much: what is left out because of its weight is missing in the sum."""
    if not arrays.keys() >= {"q", "k", "v"} or arrays.keys() & {"mix", "gain"}:
        return False
    for x in arrays["k"], arrays["v"]:
        level = np.stack([np.arange(size["Tk"]) // 64 * -7.0] * x.shape[1])
        level[1::2] = level[1::2, ::-1]
        if x is arrays["k"]:
            x[..., -1] = level * math.sqrt(size["D"])
        else:
            x *= np.exp(-level)[..., None]
    arrays["q"][..., -1] = 1


def dominant(amount):
    """The last key's score is about `amount` for every query; all others are small."""
    def edit(arrays, size):
        if "q" not in arrays:
            return False
        a = math.sqrt(amount * math.sqrt(size["D"]))
        arrays["q"][..., 0], arrays["k"][..., 0], arrays["k"][:, :, -1, 0] = a, 0, a
    return edit


def all_far_below_the_last(arrays, size):
    """Every score is -2^34 but the last key's, 0: with a finite mask above that, hidden keys win.

    With D = 16 no product here needs rounding, so in any precision all these scores are equal.
    """
    if "q" not in arrays or "mix" in arrays:     # the mix's gradient would be rounding of 1e10
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


WINDOWS = {"B": 1, "H": 2, "Tq": 64, "Tk": 515}


def moved(amount, *names, end=None):
    """Add so much to these arguments, before token `end`: running sums, and squares, are large,
    and their differences lose digits."""
    def edit(arrays, size):
        for name in names:
            if name in arrays:
                arrays[name][:, :, :end] += amount
        return any(name in arrays for name in names)
    return edit


def sums_grow():
    """Where values are summed up key by key: in half precision the sums stop growing."""
    return Plan("far_from_zero", "values,T=1025", {"causal": True},
                {"B": 1, "H": 1, "Tq": 1025, "Tk": 1025}, edit=moved(30, "v"))


def pairs(arrays, size):
    """Tokens 0 and 1 are alike, 2 and 3, and so on."""
    for x in arrays.values():
        if x.ndim > 2:
            x[:, :, 1::2] = x[:, :, :-1:2]


def alike(arrays, size):
    for x in arrays.values():
        if x.ndim > 2:
            x[:] = x[:, :, :1]


# ------------------------------------------------------------- families of one mechanism's formula


def setting(**values):
    """An edit that fills whole arguments: a number, or a list to go around in."""
    def edit(arrays, size):
        for name, value in values.items():
            arrays[name][:] = np.resize(value, arrays[name].shape)
    return edit


def levels(family, argument, named, quick, **options):
    """Causal cases, one for each of the named numbers that fill a whole argument"""
    for name, level in named.items():
        yield Plan(family, name, {"causal": True, **options}, edit=setting(**{argument: level}),
                   quick=name == quick)


def near_one(x):
    return 1 + np.tanh(x) / 16


def _softmax():
    """Sums that half precision loses when they are added up from tile to tile.

    The first 128 terms are 1; all others, each far below the spacing of the sum in half precision,
    come to a tenth of it (for float16 to an eightieth, in the second head of row_sums). Elsewhere
    the arithmetic is nearly exact, so that bounds are narrow. The small terms differ: roundings of
    equal ones would add up, in any precision.
    """
    small, many = 1 / 300, {"B": 1, "H": 2, "Tq": 8, "Tk": 4096, "D": 16, "Dv": 16}

    def row_sums(arrays, size):                              # and P v
        q, k, v = arrays.values()
        q[:], k[:, :, :128] = 1, 0
        k *= 0.3
        weight = small / 8 ** (np.arange(k.shape[1]) % 2)    # two sorts of heads
        k[:, :, 128:, 0] = np.log(weight)[:, None] * math.sqrt(size["D"])
        v[:] = np.sign(v[:, :, :1]) * near_one(v)
        v[:, :, 128:] *= -1

    def weights(arrays, size):                               # 0.52 of the largest: 1/2 in 4 bits
        q, k, v = arrays.values()
        q[:], k[:] = near_one(q), 0.005 * np.sign(k) * near_one(k)
        q[..., 0], k[:, :, 0] = 1, 0
        k[:, :, 1:, 0] = math.log(0.52) * math.sqrt(size["D"])
        v[:] = np.sign(v[:, :, :1]) * near_one(v)
        v[:, :, 0] = 0

    def key_tiles(arrays, size):                             # dq
        q, k, v = arrays.values()
        q[:] = 0
        k[:], v[:] = (np.sign(x[:, :, :1]) * near_one(x) for x in (k, v))
        k[:, :, 128:] *= 0.06
        v[:, :, 128:] *= -1

    def query_tiles(arrays, size):                           # dk, dv
        q, k, v = arrays.values()
        k[:] = 0
        q[:], v[:] = np.sign(q[:, :, :1]), np.sign(v)

    def first_rows(dout):
        dout[:] = np.sign(dout[:, :, :1]) * near_one(dout)
        dout[:, :, 128:] *= small
        return dout

    def beyond_float16(arrays, size):                        # but not their products
        arrays["q"] *= 2.0**-20
        arrays["k"] *= 2.0**20

    yield Plan("wide_heads", "D=256,q/2^20,k*2^20", {"causal": True}, {"D": 256, "Dv": 256},
               edit=beyond_float16, quick=True)
    yield Plan("many_small_terms", "row_sums", {}, many, edit=row_sums, quick=True)
    yield Plan("many_small_terms", "weights", {}, {**many, "Tk": 8}, edit=weights, quick=True)
    yield Plan("many_small_terms", "key_tiles", {}, many, edit=key_tiles)
    yield Plan("many_small_terms", "query_tiles", {}, {**many, "Tq": 4096, "Tk": 8},
               edit=query_tiles, dout=first_rows, quick=True)


def _sink():
    yield from levels("sink_far_above", "sink", {"20": 20, "10000": 1e4}, "20")
    yield from levels("sink_far_below", "sink", {"-20": -20, "-10000": -1e4}, "-20")


def _gated():
    named = {"open": 50, "closed": -50, "both": [50, -50, 1]}
    yield from levels("gate_saturated", "gate_logits", named, "both")


def _affine():
    kinks = [-5, 5, 4.96875, -4.96875, 0, 5.03125, -5.03125, 20, -20]
    for phi in ("linear_clip", "sigmoid"):
        yield from levels("alpha_at_kinks", "alpha_logits", {phi: kinks}, "linear_clip", phi=phi)
    yield Plan("far_from_zero", "hidden_values,W=5,length=visible",
               {"causal": True, "window": 5, "length": "visible"}, WINDOWS,
               edit=moved(30, "v", end=-70), quick=True)
    yield sums_grow()
    yield from levels("alpha_ma", "alpha_ma", {"0": 0, "0.5": 0.5, "1": 1}, "0.5")


def _energy():
    for norm in ("key", "prefix", "none"):  # gates of about exp(-80): only ratios count
        yield Plan("gate_all_closed", norm, {"causal": True, "norm": norm},
                   edit=setting(tau=40, alpha=2), quick=norm == "key")
    for norm in ("key", "prefix", "sequence"):
        yield Plan("large_values", f"energy,norm={norm}", {"norm": norm},
                   edit=moved(64, "energy"), quick=norm == "key")
    # far enough that even sums of squares of numbers with 8 bits are rounded in float32
    yield Plan("far_from_zero", "energy,Tq=3,Tk=509,norm=key", {"norm": "key"},
               {"B": 1, "H": 1, "Tq": 3, "Tk": 509}, edit=moved(240, "energy"))
    yield Plan("tq_ne_tk", "Tq=9,Tk=5,align=start,norm=prefix",    # several queries share the last
               {"causal": True, "align": "start", "norm": "prefix"}, {"Tq": 9, "Tk": 5}, quick=True)


def _gaussian():
    def tiny(arrays, size):
        setting(log_sigma=-6)(arrays, size)
        pairs(arrays, size)  # equal tokens share, however small sigma is

    def others(size, rng):
        return ~np.eye(size["Tk"], dtype=bool)[None, None]   # only large distances: no 0 / 0

    yield Plan("sigma_tiny", "-6", {"causal": True}, edit=tiny, quick=True)
    yield Plan("sigma_tiny", "-6,others", {"allowed": others}, edit=setting(log_sigma=-6))
    yield from levels("sigma_huge", "log_sigma", {"6": 6}, "6")


def _differential():
    named = {"open": 30, "closed": -30, "either": [30, -30, 1]}
    yield from levels("lambda_saturated", "lam_logits", named, "either")


def _differential_1():
    def near_1(arrays, size):
        """lambda = exp(ln 1.8) - 1 + 0.2, up to rounding: single keys leave rows near 0."""
        level = math.sqrt(math.log(1.8) / size["D"])
        setting(lam_q1=level, lam_k1=level, lam_q2=0, lam_k2=0)(arrays, size)

    for W in (1, 3):
        yield Plan("lambda_near_1", f"W={W}", {"causal": True, "window": W}, edit=near_1,
                   quick=W == 1)


def _collaborative():
    def last_content(arrays, size):
        arrays["content"][..., -1] = 64

    yield Plan("content_dominates", "last", edit=last_content)
    yield Plan("content_dominates", "last,causal", {"causal": True}, edit=last_content, quick=True)


def _linear():
    def later_large_key(arrays, size):
        arrays["k"][:, :, -1] *= 64

    for options in ({}, {"feature": "lln"}, {"feature": "lln", "norm": "tensor"}):
        name = ",".join(options.values()) or "elu"
        yield Plan("features", name, {"causal": True, **options}, quick=name == "lln,tensor")
        yield Plan("later_large_key", name, {"causal": True, **options}, edit=later_large_key,
                   quick=name == "elu")
    yield Plan("features", "lln,tensor,far", {"feature": "lln", "norm": "tensor"},
               {"B": 1, "H": 2, "Tq": 131, "Tk": 131}, edit=moved(20, "q", "k"), quick=True)
    yield Plan("features", "elu,tiny", {"causal": True}, edit=moved(-12, "k"), quick=True)
    yield sums_grow()
    long = {"B": 1, "H": 2, "Tq": 211, "Tk": 211}
    for feature in ("elu", "lln"):
        yield Plan("long", f"T=211,{feature}", {"causal": True, "feature": feature}, long,
                   quick=True)


def _cog():
    def every_other_key_zero(arrays, size):
        arrays["k"][:, :, ::2] = 0

    for name, options in (("value", {}), ("bias", {"bias": bias("H", "1", "Tk")})):
        yield Plan("scores_at_zero", name, {"causal": True, **options}, edit=every_other_key_zero,
                   quick=name == "bias")


def _forget():
    def but_the_third(size, rng):
        return np.arange(size["Tk"])[None, None, None] != 2

    def far_away(arrays, size):
        arrays["q"] *= 6
        setting(forget_logits=2)(arrays, size)

    named = {"open": 50, "closed": -800, "either": [50, -800, 1]}  # a product of gates underflows
    yield from levels("forget_saturated", "forget_logits", named, "either")
    yield Plan("forget_far", "large_scores", {"causal": True},
               {"B": 1, "H": 2, "Tq": 257, "Tk": 257, "D": 16}, edit=far_away, quick=True)
    yield Plan("forget_hidden_key", "third", {"causal": True, "allowed": but_the_third}, quick=True)


def _pointwise():
    def all_negative(arrays, size):
        arrays["q"][..., 0], arrays["k"][..., 0] = 8, -8

    for rule in ("relu", "sigmoid"):
        yield Plan("all_scores_negative", rule, {"causal": True, "rule": rule}, edit=all_negative,
                   quick=rule == "relu")


def _sparse():
    def in_threes(arrays, size):
        """Three keys each have the same score: with a scale of 1/4 no product needs rounding."""
        arrays["q"][:] = arrays["k"][:] = 0
        arrays["q"][..., 0], arrays["k"][..., 0] = 1, -(np.arange(size["Tk"]) // 3)

    def all_in_the_support(arrays, size):
        arrays["q"][..., 0] /= 256
        arrays["q"][..., 1:] = 0

    for top in (2, 5):
        yield Plan("ties_at_k", f"top={top}", {"top": top, "scale": 0.25}, edit=in_threes,
                   quick=top == 2)
    for rule in ("sparsemax", "entmax15"):
        yield Plan("support_of_one", rule, {"causal": True, "rule": rule}, edit=scaled(8, "q"),
                   quick=True)
    yield Plan("support_of_many", "sparsemax", {"rule": "sparsemax"}, {"Tk": 41},
               edit=all_in_the_support, quick=True)


def _lssa():
    def all_but_the_first_opposite(arrays, size):
        arrays["q"][:] = arrays["k"][..., 1:] = 0
        arrays["q"][..., 0], arrays["k"][..., 0], arrays["k"][:, :, 0, 0] = 1, -1, 1

    def alike_but_for(difference):
        def edit(arrays, size):
            arrays["k"] *= difference
            arrays["k"][..., 0] = 1
        return edit

    many = {"B": 1, "H": 1, "Tq": 521, "Tk": 521}
    yield Plan("dominant_score", "one_of_many", {"causal": True}, many,
               edit=all_but_the_first_opposite)                # r^15 is beyond float32
    for name, difference in (("1/4", 1 / 4), ("1/64", 1 / 64)):
        for power in (15, 3):
            yield Plan("nearly_equal_scores", f"{name},power={power}",
                       {"causal": True, "power": power}, edit=alike_but_for(difference),
                       quick=power == 15)


# mechanism -> the plans of its own families
OWN: dict[str, Any] = {own.__name__[1:]: own for own in (
    _softmax, _sink, _gated, _affine, _energy, _gaussian, _differential, _differential_1,
    _collaborative, _linear, _cog, _forget, _lssa, _pointwise, _sparse)}
OWN["off_by_one"] = _softmax


# ------------------------------------------------------------ what arguments look like


def around(mean, deviation):
    def transform(x, rng):
        return mean + deviation * x
    return transform


def across_the_clip(x, rng):
    """Three in four inside the linear clip, the others beyond it."""
    return np.where(rng.random(x.shape) < 0.25, 7 * np.sign(x), np.clip(2 * x, -4.5, 4.5))


def spread_at_the_start(x, rng):
    """The first two differ by 1: equal energies are a sharp corner, left to identical_tokens."""
    if x.shape[-1] > 1:
        x[..., 1] = x[..., 0] + 1
    return x


def beside_zero(x, rng):
    """None within 1/16 of 0, where the slope of elu has a corner"""
    return x + np.where(x < 0, -1 / 16, 1 / 16)


def decided_by_sign(x, rng):
    """The first channel decides the sign of a score: q.k is near 9 or -9, where a rule jumps at 0.
    """
    x *= x.shape[-1]**-0.25                     # what the others add to q.k has a deviation of 1
    x[..., 0] = np.where(x[..., 0] < 0, -3, 3)
    return x


def queries_of_one_sign(x, rng):
    """With keys_of_two_signs: q.k is near 9, but near -9 for every third key."""
    x = decided_by_sign(x, rng)
    x[..., 0] = 3
    return x


def keys_of_two_signs(x, rng):
    x = queries_of_one_sign(x, rng)
    x[..., 1::3, 0] = -3
    return x


def queries_of_levels(x, rng):
    """With keys_of_levels: neighbouring scores of a row are 0.59 apart, and little else matters.

    No score is near another one, or near where sparsemax or entmax gives it no weight.
    """
    x *= 0.2
    x[..., 0] = 0.59 * math.sqrt(x.shape[-1])
    return x


def keys_of_levels(x, rng):
    """0 1 2 3 4 5 6 5 4 ... and, in every other head, 6 5 4 3 2 1 0 1 2 ...

    After the first seven each level is a little higher when it comes again: no two are equal.
    """
    x *= 0.1
    steps = np.arange(x.shape[-2]) + 6 * (np.arange(x.shape[1]) % 2)[:, None]
    again = np.maximum(np.arange(x.shape[-2]) - 1, 0) // 6
    x[..., 0] = 6 - np.abs(steps % 12 - 6) + again / 8
    return x


def suit(arrays, size, sign=1):
    """In place: long sequences are not all forgotten, wide tokens not all far apart; the sign of
    what is learned per head may alternate"""
    for name, shift in (("forget_logits", math.log(size["Tk"])),
                        ("log_sigma", math.log(size["D"] / 11) / 2)):
        if name in arrays:
            arrays[name] += shift
    for name, x in arrays.items():
        if x.ndim == 1 and name != "log_sigma" and sign < 0:
            x[1::2] *= -1


# mechanism -> {argument: (standard normal numbers, rng) -> its numbers}; others stay as they are
DRAWS: dict[str, Any] = {
    "affine": {"alpha_logits": across_the_clip, "alpha_ma": around(0.5, 0.2)},
    "energy": {"energy": spread_at_the_start, "alpha": around(2, 0.3), "tau": around(0, 0.3)},
    "gaussian": {"log_sigma": around(0.6, 0.2)},
    "linear": {"q": beside_zero, "k": beside_zero},
    "cog": {"q": decided_by_sign, "k": decided_by_sign},
    "pointwise": {"q": queries_of_one_sign, "k": keys_of_two_signs},
    "differential_1": {**dict.fromkeys(("lam_q1", "lam_k1", "lam_q2", "lam_k2"), around(0, 0.2)),
                       "gain": around(1, 0.3)},
    "sparse": {"q": queries_of_levels, "k": keys_of_levels},
    "morlet": {"log_sigma": around(1, 0.5)},
}
