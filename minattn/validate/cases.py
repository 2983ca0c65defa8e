"""The corners in which attention goes wrong, as named inputs: a list of cases for each mechanism.

A case is all that a run needs: arrays, options, and a random cotangent (with a cotangent of ones
the gradients of softmax vanish, and bugs hide). Every number fits bfloat16, and float16 too unless
the corner lies outside its range, so one case serves every precision, with exactly the same inputs.
Sizes are different primes: a swapped axis cannot fit. What each family is about is in families.py;
here its numbers are drawn.
"""
import fnmatch
import zlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from minattn import attention, checks, masks, memory, spec
from minattn.errors import InputError
from minattn.validate import covering, families, positions

SIZES = {"B": 2, "H": 3, "Tq": 7, "Tk": 7, "D": 11, "Dv": 13}
LARGE = 301  # tokens, queries and keys: more are the flag "large"
BITS = 8  # significant bits of every number: what bfloat16 holds


class Case(NamedTuple):
    id: str                     # "window/W=2"; with the mechanism's name in front of it, unique
    family: str                 # "window"
    mechanism: str
    arrays: dict                # argument -> float64 array, read-only, in the mechanism's order
    options: dict               # keyword options; "bias" and "allowed" are arrays
    cotangent: np.ndarray       # shaped as out
    flags: frozenset = frozenset()      # what it asks for: "window", "window=2", "Tq!=Tk", ...
    quick: bool = False         # part of the quick selection
    seed: int = 0
    layout: str = "contiguous"  # in memory, of its arrays: one of covering.LAYOUTS
    aside: str = "contiguous"   # of its mask and bias
    dout: str = "contiguous"    # of the gradient that comes in
    twin: dict | None = None    # arrays that differ in sample 0 only: the others must not change
    unmet: str = ""             # why the sizes asked for rule this case out


class Combination:
    """A case of the covering array: a row of settings, whose numbers are drawn when needed."""
    family, twin, unmet = "combinations", None, ""

    def __init__(self, mechanism, row, every, sizes, fixed, seed, quick=False):
        self.mechanism, self.row, self.every = mechanism, row, every
        self.sizes, self.fixed, self.seed, self.quick = sizes, fixed, seed, quick
        self.layout, self.aside, self.dout = (row[n] for n in ("layout", "aside", "dout"))
        self.id = f"combinations/{covering.named(row, every)}"
        row_of_mechanism = attention.mechanism(mechanism)
        options = {**covering.rules(row), **fixed}
        self.flags = frozenset().union(
            *(covering.asks(n, x, row_of_mechanism) for n, x in row.items()),
            fixed, (f"{n}={x}" for n, x in options.items()),
            {"large"} if sum(row["lengths"]) > LARGE else ())

    def plainer(self, part):
        """The same case with one setting at its usual value, or smaller in a size"""
        rows = covering.plainer(self.row, part, self.every, self.sizes)
        return [Combination(self.mechanism, row, self.every, self.sizes, self.fixed, self.seed)
                for row in rows]

    arrays = property(lambda self: _drawn(self)[0])
    options = property(lambda self: _drawn(self)[1])
    cotangent = property(lambda self: _drawn(self)[2])


@lru_cache(maxsize=2)
def _drawn(case):
    """arrays, options, cotangent"""
    mechanism, row = attention.mechanism(case.mechanism), case.row
    plain = {**row, **dict.fromkeys(("layout", "aside", "dout"), "contiguous")}
    name = f"{case.mechanism}/{covering.named(plain, case.every)}"     # a layout changes no number
    rng = np.random.default_rng([case.seed, zlib.crc32(name.encode())])
    size = covering.size_of(row)
    shapes = shapes_of(mechanism, row.get("extra", ()))
    arrays = draw_arguments(mechanism, shapes, size, rng)
    families.suit(arrays, size, row.get("sign", 1))
    options = {**covering.rules(row), **{n: row[n] for n in mechanism.options if n in row},
               **case.fixed}
    for name, make in (("allowed", covering.mask), ("bias", covering.bias)):
        if row[name]:
            x = make(row[name], size, rng)
            if case.aside == "expanded":
                x = np.broadcast_to(x, [size[s] for s in ("B", "H", "Tq", "Tk")])
            options[name] = x if name == "allowed" else exact(np.where(np.abs(x) < 2**-10, 0, x))
    if row.get("log_length"):
        options["log_length"] = exact(0.25 + rng.random(size["H"]) / 2)
    queries, _, values = roles(arrays)
    cotangent = draw((size["B"], size["H"], queries.shape[2], values.shape[3]), rng)
    if case.layout == "expanded":
        for name in arrays.keys() & {"k", "v", "keys", "values"}:
            arrays[name][:] = arrays[name][:, :1]
    if case.dout == "expanded":
        cotangent[:] = cotangent[:, :, :1]
    arrays = {n: exact(x) for n, x in arrays.items()}
    freeze(*arrays.values(), *options.values(), cotangent)
    return arrays, options, cotangent


def shapes_of(mechanism, extra):
    """{argument: "B H Tk D"} with these optional ones; with keys, x gives the queries alone"""
    shapes = {**mechanism.arguments, **{n: mechanism.optional[n] for n in extra}}
    if "keys" in extra:
        shapes = {n: s.replace(" T ", " Tq ") for n, s in shapes.items()}
    return shapes


def freeze(*values):
    """No array among them can be written to any more."""
    for x in values:
        if isinstance(x, np.ndarray):
            x.flags.writeable = False


def named(text):
    """"energy[norm=prefix]" -> the mechanism, {"norm": "prefix"}; InputError for more than one."""
    layers = spec.parse("mechanism", text)
    if len(layers) > 1 or len(layers[0]) > 1:
        raise InputError(f"expected one mechanism, such as energy[norm=prefix]; got {text!r}.")
    name, options = layers[0][0]
    if name in positions.ROWS:
        return positions.ROWS[name], dict(options)
    return attention.versioned(name, options)


def cases(mechanism, *, seed=0, quick=False, thorough=False, only=None, sizes=None, without=()):
    """The cases of one mechanism, in a fixed order: a tuple of Case.

    mechanism: a name, with options in brackets ("energy[norm=prefix]") to keep these fixed in every
    case. only: families or globs on the id ("window", "*/W=2*"), any of which may match. sizes:
    {"D": 64} or {"D": (64, 128)} for a kernel that knows only some sizes: each case takes those
    nearest to its own, and one whose point is another size says so in `unmet`. thorough: every
    three settings of the combinations meet, not only every two. InputError where nothing matches.
    """
    mechanism, fixed = named(mechanism)
    checks.options("mechanism option", mechanism.name, fixed, mechanism.options)
    sizes = {symbol: tuple(n) if isinstance(n, (tuple, list)) and n else (n,)
             for symbol, n in (sizes or {}).items()}
    for symbol, values in sizes.items():
        checks.choice("a size", symbol, (*SIZES, "T", "Hkv"))
        for n in values:
            checks.number(symbol, n, 1, integer=True)
    H, G = (sizes.get(n, ()) for n in ("H", "Hkv"))
    if H and G and all(h % g for h in H for g in G):
        raise InputError(f"H = {_either(H)} is no multiple of Hkv = {_either(G)}.")
    if "T" in sizes and sizes.keys() & {"Tq", "Tk"}:
        raise InputError("T is both Tq and Tk: name T, or the two of them.")
    seed = checks.number("seed", seed, 0, integer=True)
    found = _all(mechanism.name, id(mechanism.module), seed, tuple(sorted(sizes.items())),
                 tuple(sorted(fixed.items())), frozenset(without), 3 if thorough else 2)
    for glob in only or ():
        if not any(_matches(c, glob) for c in found):
            near = checks.nearest(glob, [name for c in found for name in (c.family, c.id)])
            raise InputError(f"no case of {mechanism.name} matches {glob!r}; "
                             f"--list shows them all.{near}")
    if only:
        found = tuple(c for c in found if any(_matches(c, glob) for glob in only))
    return tuple(c for c in found if c.quick) if quick else found


def _either(sizes):
    return " or ".join(map(str, sizes))


def _matches(case, glob):
    return case.family == glob or fnmatch.fnmatchcase(case.id, glob)


def family_names(mechanism):
    """The names of a mechanism's case families, in order."""
    return tuple(dict.fromkeys(c.family for c in cases(mechanism)))


def exact(x):
    """Each number rounded to 8 significant bits."""
    m, e = np.frexp(x)
    return np.ldexp(np.round(m * 2**BITS), e - BITS)


def draw(shape, rng, transform=None):
    """Random numbers: standard normal, or what one of families.DRAWS makes of these."""
    x = rng.standard_normal(shape)
    if transform is not None:
        x = transform(x, rng)
    return exact(np.where(np.abs(x) < 2**-10, 0, x))         # nothing that float16 would lose


def draw_arguments(mechanism, shapes, size, rng):
    """{argument: "B H Tk D"} -> {argument: array}"""
    return {name: draw([checks.extent(symbol, size) for symbol in shape.split()], rng,
                       transforms(mechanism).get(name)) for name, shape in shapes.items()}


def all_sizes(size):
    """Sizes, with those that follow from others: as many key heads as query heads, ..."""
    return {"Dv|1": size["Dv"], "T": size["Tk"], "G": size["H"], "n": size["D"] // 2, **size}


def transforms(mechanism):
    """What the mechanism's arguments look like: see families.DRAWS."""
    return families.DRAWS.get(mechanism.name, {})


@lru_cache(maxsize=32)
def _all(name, module_id, seed, sizes, fixed, without, strength):
    mechanism, sizes, fixed = positions.row(name), dict(sizes), dict(fixed)
    if "Hkv" in sizes:
        sizes["G"] = sizes.pop("Hkv")
        sizes = {"H": tuple(3 * n for n in sizes["G"]), **sizes}
    if "T" in sizes:
        sizes["Tq"] = sizes["Tk"] = sizes["T"]
        without = without | {"Tq!=Tk"}
    _weigh(sizes, 1)
    if name in positions.ROWS:
        plans = list(positions.plans(mechanism.name))
    else:
        plans = [*families.generic(mechanism, *covering.nearest(sizes, "Tk", [SIZES["Tk"]]), fixed),
                 *families.OWN.get(name, list)()]
    _weigh(sizes, len(plans))
    made = []
    for plan in plans:
        if all(plan.options.get(option, value) == value for option, value in fixed.items()):
            plan = plan._replace(options={**plan.options, **fixed})
            made.append(_make(mechanism, plan, seed, sizes))
    made = [case for case in made if case is not None]
    if name in positions.ROWS:
        return tuple(made)
    rows = covering.rows(mechanism, sizes, fixed, without, strength)
    every = covering.factors(mechanism, sizes, fixed, without)
    combinations = [Combination(name, row, every, sizes, fixed, seed, quick) for row, quick in rows]
    return (*made, *combinations)


def _weigh(sizes, count):
    """Raise InputError where the inputs of so many cases of these sizes exceed the memory."""
    B, H, Tq, Tk, D, Dv = (max(sizes.get(name, (n,))) for name, n in SIZES.items())
    entries = B * H * (Tq + Tk) * (D + Dv)
    memory.weigh(f"cases of these sizes ({entries:,} numbers in each)", 16 * count * entries,
                 "fix smaller sizes")          # float64, and most have a twin


def _make(mechanism, plan, seed, sizes):
    """Draw the numbers of a plan; None where it means nothing for this mechanism."""
    name = f"{mechanism.name}/{plan.family}/{plan.name}"
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    unmet = [f"it needs {s} = {n}, but you fixed {s} at {_either(sizes[s])}"
             for s, n in plan.sizes.items() if n not in sizes.get(s, (n,))]
    usual = positions.SIZES if mechanism.name in positions.ROWS else SIZES
    size = dict(zip(usual, covering.nearest(sizes, " ".join(usual), usual.values())))
    size["H"], G = covering.heads(sizes, usual["H"], usual["H"])
    size = all_sizes({**size, **({"G": G} if "G" in sizes else {}), **plan.sizes})
    if size["H"] % size["G"]:
        size["G"] = size["H"]                                # unmet, or no size of this mechanism
    if "T" in sizes and size["Tq"] != size["Tk"]:
        unmet.append("it needs Tq != Tk, but you fixed T, which is both")
    if plan.twin and size["B"] < 2:
        unmet.append("it needs at least two samples")
    shapes = shapes_of(mechanism, plan.extra)
    if size["Tq"] != size["Tk"] and any("T" in s.split() for s in shapes.values()):
        return None                                          # one array gives queries and keys
    arrays = draw_arguments(mechanism, shapes, size, rng)
    if plan.edit is not None:
        if plan.edit(arrays, size) is False:
            return None
        arrays = {n: exact(x) for n, x in arrays.items()}
    options = {}
    for n, value in plan.options.items():
        x = value(size, rng) if callable(value) else value
        is_float = isinstance(x, np.ndarray) and x.dtype != bool
        options[n] = exact(x) if is_float else x
    twin = dict(arrays)
    for n, x in arrays.items():
        if shapes[n].split()[0] == "B":                      # 8 times larger: its maxima move too
            other = 8 * draw((1, *x.shape[1:]), rng, transforms(mechanism).get(n))
            twin[n] = np.concatenate([other, x[1:]])
    cotangent = draw(mechanism.module.forward(**arrays, **options)[0].shape, rng)
    if plan.dout is not None:
        cotangent = exact(plan.dout(cotangent))
    freeze(*arrays.values(), *twin.values(), *options.values(), cotangent)
    flags = _flags(arrays, options, plan)
    return Case(f"{plan.family}/{plan.name}", plan.family, mechanism.name, arrays, options,
                cotangent, flags, plan.quick, seed, plan.layout,
                dout=plan.dout_layout, twin=twin if plan.twin else None, unmet="".join(unmet[:1]))


def _flags(arrays, options, plan):
    """What a case asks for, in the words by which it can be excluded."""
    named = (f"{n}={x}" for n, x in options.items() if not isinstance(x, np.ndarray))
    flags = {*options, *named, *plan.extra}
    if {plan.layout, plan.dout_layout} != {"contiguous"}:
        flags.add("strided")
    queries, keys, _ = roles(arrays)
    if queries is not None:
        if queries.shape[2] != keys.shape[2]:
            flags.add("Tq!=Tk")
        if not seen(arrays, options).any(axis=-1).all():
            flags.add("empty_rows")
    return frozenset(flags)


def roles(arrays):
    """Queries, keys and values, which may be one array; None for a position without any"""
    queries = arrays.get("q", arrays.get("x"))
    keys = arrays.get("k", arrays.get("keys", queries))
    return queries, keys, arrays.get("v", arrays.get("values", keys))


def seen(arrays, options):
    """Which key does each query see? -> bool, broadcasts to (B, H, Tq, Tk)"""
    Tq, Tk = (x.shape[2] for x in roles(arrays)[:2])
    rules = {n: x for n, x in options.items() if n in ("causal", "window", "prefix", "align")}
    see = masks.visible(Tq, Tk, **rules) & options.get("allowed", True)
    return see & (options["bias"] > -np.inf) if "bias" in options else see
