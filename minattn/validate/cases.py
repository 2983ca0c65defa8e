"""The corners in which attention goes wrong, as named inputs: one list of cases per mechanism of the registry.

A case is all that a run needs: arrays, options, and a random cotangent (with a cotangent of ones the gradients of
softmax vanish and bugs hide). Every number fits bfloat16, and float16 too unless the corner lies outside its range, so
that one case serves every precision without an argument over the rounding of inputs. Sizes are different primes: a
swapped axis cannot fit. What each family asks is in families.py; here its numbers are drawn.
"""
import fnmatch
import zlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from minattn import attention, checks, masks
from minattn.errors import InputError
from minattn.validate import families

SIZES = {"B": 2, "H": 3, "Tq": 7, "Tk": 7, "D": 11, "Dv": 13}
BITS = 8                                       # significant bits of every number: what bfloat16 holds
CENTRES = {"alpha": (2, 0.3), "tau": (0, 0.3), "alpha_ma": (0.5, 0.2), "log_sigma": (0.6, 0.2)}     # mean, deviation


class Case(NamedTuple):
    id: str                     # "window/W=2"; with the mechanism's name in front of it, unique
    family: str                 # "window"
    mechanism: str
    arrays: dict                # argument -> float64 array (read-only), in the order of the mechanism's arguments
    options: dict               # keyword options; "bias" and "allowed" are arrays
    cotangent: np.ndarray       # shaped as out
    flags: frozenset = frozenset()      # what it asks of an implementation: "window", "window=2", "Tq!=Tk", "empty_rows", ...
    quick: bool = False         # part of the quick selection
    seed: int = 0
    layout: str = "contiguous"  # or "strided": hand the arrays over as views with gaps
    twin: dict | None = None  # the arrays with sample 0 changed: every other sample must come out the same, bit for bit
    unmet: str = ""             # why the sizes asked for rule this case out


def cases(mechanism, *, seed=0, quick=False, only=None, sizes=None):
    """The cases of one mechanism, in a fixed order: a tuple of Case.

    only: families or globs on the id ("window", "*/W=2*"), any of which may match. sizes: {"D": 64} for a kernel that
    knows only some sizes; a case whose point is another size then says so in `unmet`. InputError where nothing matches.
    """
    row = attention.mechanism(mechanism)
    known = (*SIZES, "T")
    for symbol, n in (sizes or {}).items():
        checks.choice("a size", symbol, known)
        checks.number(symbol, n, 1, integer=True)
    found = _all(row.name, id(row.module), seed, tuple(sorted((sizes or {}).items())))
    matches = lambda case, glob: fnmatch.fnmatchcase(case.id, glob) or case.family == glob     # noqa: E731
    for glob in only or ():
        if not any(matches(c, glob) for c in found):
            near = checks.nearest(glob, [name for c in found for name in (c.family, c.id)])
            raise InputError(f"no case of {mechanism} matches {glob!r}; --list shows them all.{near}")
    return tuple(c for c in found if (c.quick or not quick) and (not only or any(matches(c, glob) for glob in only)))


def family_names(mechanism):
    """The names of a mechanism's case families, in order."""
    return tuple(dict.fromkeys(c.family for c in cases(mechanism)))


def exact(x):
    """Each number rounded to 8 significant bits."""
    m, e = np.frexp(x)
    return np.ldexp(np.round(m * 2**BITS), e - BITS)


def draw(name, shape, rng):
    """Random values for one argument, such that every branch is taken."""
    x = rng.standard_normal(shape)
    if name == "alpha_logits":                               # three in four inside the linear clip
        x = np.where(rng.random(shape) < 0.25, 7 * np.sign(x), np.clip(2 * x, -4.5, 4.5))
    if name == "energy" and shape[-1] > 1:                   # the deviation of two equal energies is a sharp corner,
        x[..., 1] = x[..., 0] + 1                            # and identical_tokens visits it
    offset, spread = CENTRES.get(name, (0, 1))
    x = offset + spread * x
    return exact(np.where(np.abs(x) < 2**-10, 0, x))         # nothing that float16 would lose


@lru_cache(maxsize=32)
def _all(mechanism, module_id, seed, sizes):
    row = attention.mechanism(mechanism)
    fixed = dict(sizes)
    T = fixed.pop("T", None)
    if T:
        fixed = {"Tq": T, "Tk": T, **fixed}
    plans = [*families.generic(row, fixed.get("Tk", SIZES["Tk"])), *families.OWN.get(mechanism, list)()]
    return tuple(c for p in plans if (c := _make(row, p, seed, fixed)) is not None)


def _make(row, plan, seed, fixed):
    """Draw the numbers of a plan; None where it means nothing for this mechanism."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{row.name}/{plan.family}/{plan.name}".encode())])
    other = {s: n for s, n in plan.sizes.items() if fixed.get(s, n) != n}
    clash = [f"it needs {s} = {n}, but you fixed {s} at {fixed[s]}" for s, n in other.items()]
    size = {**SIZES, **fixed, **plan.sizes}
    clash += ["it needs at least two samples"] * (plan.twin and size["B"] < 2)
    size = {"Dv|1": size["Dv"], "T": size["Tk"], **size}
    shapes = {**row.arguments, **{name: row.optional[name] for name in plan.extra}}
    if "keys" in plan.extra:
        shapes = {n: s.replace(" T ", " Tq ") for n, s in shapes.items()}
    elif size["Tq"] != size["Tk"] and any("T" in s.split() for s in shapes.values()):
        return None                                          # one array gives queries and keys
    shapes = {n: tuple(size[s] for s in shape.split()) for n, shape in shapes.items()}
    arrays = {name: draw(name, shape, rng) for name, shape in shapes.items()}
    if plan.edit is not None:
        if plan.edit(arrays, size) is False:
            return None                                      # nothing here to edit
        arrays = {name: exact(x) for name, x in arrays.items()}
    options = {n: value(size, rng) if callable(value) else value for n, value in plan.options.items()}
    options = {n: exact(x) if isinstance(x, np.ndarray) and x.dtype != bool else x for n, x in options.items()}
    other = {n: 8 * draw(n, (1, *x.shape[1:]), rng) for n, x in arrays.items() if x.ndim > 1}     # its maxima move too
    twin = {n: np.concatenate([other[n], x[1:]]) if n in other else x for n, x in arrays.items()}
    out = row.module.forward(**arrays, **options)[0]
    cotangent = draw("dout", out.shape, rng)
    for x in (*arrays.values(), *twin.values(), cotangent, *(o for o in options.values() if isinstance(o, np.ndarray))):
        x.flags.writeable = False
    flags = _flags(arrays, options, plan)
    return Case(f"{plan.family}/{plan.name}", plan.family, row.name, arrays, options, cotangent, flags, plan.quick,
                seed, plan.layout, twin if plan.twin else None, "".join(clash[:1]))


def _flags(arrays, options, plan):
    """What a case asks for, in the words by which it can be excluded."""
    flags = {*options, *(f"{n}={x}" for n, x in options.items() if not isinstance(x, np.ndarray)), *plan.extra}
    queries = arrays.get("q", arrays.get("x"))
    keys = arrays.get("k", arrays.get("keys", queries))
    if queries is not None:
        Tq, Tk = queries.shape[2], keys.shape[2]
        rules = {n: x for n, x in options.items() if n in ("causal", "window", "prefix", "align")}
        see = masks.visible(Tq, Tk, **rules) & options.get("allowed", True)
        flags |= {"Tq!=Tk"} if Tq != Tk else set()
        flags |= {"empty_rows"} if not see.any(axis=-1).all() else set()
    return frozenset(flags | ({"strided"} if plan.layout == "strided" else set()))
