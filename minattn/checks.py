"""Turn a wrong array or a mistyped name into one clear sentence."""
import difflib
from typing import Any, NamedTuple

import numpy as np

from minattn.errors import InputError, NotFinite

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def nearest(name, known):
    """' Did you mean ...?' when something close is known, else an empty string."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def choice(what, value, known):
    """Raise unless `value` is one of `known`; lists them and suggests the nearest."""
    if value not in known:
        listed = ", ".join(str(k) for k in known)
        raise InputError(f"{what} must be one of {listed}; got {value!r}.{nearest(value, known)}")


def number(what, value, low=None, *, integer=False, above=None, high=None):
    """Raise unless `value` is a finite number, low <= value <= high, value > above.

    With integer=True it must be an integer, Python's or NumPy's.
    """
    kinds = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    kind = "an integer" if integer else "a finite number"
    if isinstance(value, bool) or not isinstance(value, kinds) or not -np.inf < value < np.inf:
        raise InputError(f"{what} must be {kind}; got {value!r}.")
    bounds = [(f"at least {low}", low is None or value >= low),
              (f"above {above}", above is None or value > above),
              (f"at most {high}", high is None or value <= high)]
    if not all(met for _, met in bounds):
        asked = " and ".join(text for text, _ in bounds if "None" not in text)
        raise InputError(f"{what} must be {asked}; got {value!r}.")


class Option(NamedTuple):
    """A setting of a mechanism or a position: its default, and the values that it may have."""
    default: Any
    choices: tuple = ()           # values that are allowed as they stand
    number: dict | None = None    # or any number within these bounds: keywords of `number`
    examples: tuple = ()          # numbers that tests and the validation kit try

    def check(self, what, value):
        """Raise InputError unless this value is allowed."""
        if any(value is c or (type(value) is type(c) and value == c) for c in self.choices):
            return
        if self.number is None:
            choice(what, value, self.choices)
            raise InputError(f"{what} must be {type(self.default).__name__}; got {value!r}.")
        words = ", ".join(c for c in self.choices if isinstance(c, str))
        number(f"{what} ({words} or a number)" if words else what, value, **self.number)

    def others(self):
        """Every value worth a test beside the default."""
        return tuple(v for v in (*self.choices, *self.examples) if v != self.default)


def defaults(options):
    """{name: Option} -> {name: its default}"""
    return {name: option.default for name, option in options.items()}


def options(what, owner, given, known):
    """Raise InputError unless every given option is one of the known ones and has an allowed value.

    what: "attention option"; owner: whose options these are
    given {name: value}, known {name: Option}
    """
    for name, value in given.items():
        if name not in known:
            listed = ", ".join(known) or "no options"
            raise InputError(f"{owner} has no {what} {name!r}; it takes {listed}."
                             f"{nearest(name, known)}")
        known[name].check(f"{what} {name}", value)


def arrays(sizes=None, dtype=None, **named):
    """Check arrays against symbolic shapes and one common dtype.

    arrays(q=(q, "B H Tq D"), k=(k, "B H Tk D")) binds each symbol at its first use and raises
    InputError, naming the argument, the axis, what was expected and what came, at the first
    mismatch. A number in the shape must match as it stands; "Dv|1" is either. All arrays must be
    float32 or all float64. Returns the bound sizes as a dict.
    """
    sizes, first, dtype_from = dict(sizes or {}), {}, "the rest"
    for name, (array, shape) in named.items():
        symbols = shape.split()
        if not isinstance(array, np.ndarray):
            raise InputError(f"{name} must be a NumPy array of shape ({', '.join(symbols)}); "
                             f"got {type(array).__name__}.")
        if array.dtype not in FLOATS:
            raise InputError(f"{name} must be float32 or float64; got {array.dtype}.")
        if dtype is None:
            dtype, dtype_from = array.dtype, name
        elif array.dtype != dtype:
            raise InputError(f"{name} has dtype {array.dtype}, but {dtype_from} has {dtype}: "
                             "cast one of them.")
        if array.ndim != len(symbols):
            raise InputError(f"{name} must have {len(symbols)} axes ({', '.join(symbols)}); "
                             f"got shape {array.shape}.")
        for axis, (symbol, size) in enumerate(zip(symbols, array.shape)):
            if "|" in symbol:                                 # "Dv|1": either will do
                known, literal = symbol.split("|")
                symbol = literal if size == int(literal) else known
            expected = int(symbol) if symbol.isdigit() else sizes.setdefault(symbol, size)
            first.setdefault(symbol, name)
            if size != expected:
                shared = not symbol.isdigit() and first[symbol] != name
                source = f" as in {first[symbol]}" if shared else ""
                raise InputError(f"{name}: axis {axis} ({symbol}) must be {expected}{source}; "
                                 f"got {size} (shape {array.shape}).")
    return sizes


def finite(**named):
    """Raise unless every entry of these (small) parameter arrays is finite."""
    for name, array in named.items():
        if not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise NotFinite(name, f"must be finite; entry {where} is {array[where]}.")
