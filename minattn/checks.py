"""Turn a wrong array or a mistyped name into one clear sentence."""
import difflib
import functools
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from minattn.errors import InputError, NotFinite

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
PLAIN = (np.ndarray, np.memmap)   # a masked array or another subclass computes something else
NO_NUMBERS = (bool, np.timedelta64)     # though Python or NumPy counts them as integers
LARGEST = sys.maxsize             # no axis is longer, no array index larger
FARTHEST = 1 << 52                # no position is farther from 0: floats count no higher one by one
SHOWN = 80                        # characters of a value in an error


def quiet(function):
    """The same function, whatever the caller's np.seterr: small weights underflow, rightly."""
    @functools.wraps(function)
    def inside(*args, **kwargs):
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)
    return inside


def shown(value):
    """repr(value), cut short: for an error."""
    try:
        text = repr(value)
    except Exception:                    # an integer of 5,000 digits, or somebody else's object
        text = f"one of type {type(value).__name__} that is too long to print"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def nearest(name, known):
    """' Did you mean ...?' when something close is known, else an empty string."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def choice(what, value, known):
    """Raise unless `value` is one of `known`; lists them and suggests the nearest."""
    try:
        found = value in known
    except (TypeError, ValueError):      # a list cannot be a key; an array is equal to nothing
        found = False
    if not found:
        listed = ", ".join(str(k) for k in known)
        near = nearest(value, known) if isinstance(value, str) else ""
        raise InputError(f"{what} must be one of {listed}; got {shown(value)}.{near}")


def number(what, value, low=None, *, integer=False, above=None, high=None, most=LARGEST):
    """A finite number, low <= value <= high, value > above -> the same as Python's int or float.

    With integer=True it must be an integer. Python's and NumPy's numbers of every width are taken,
    and give the same result; booleans are not. An integer without a `high` is at most
    `most`, of either sign. Raises InputError for anything else.
    """
    kind, result = "an integer" if integer else "a finite number", None
    if isinstance(value, (int, np.integer)) and not isinstance(value, NO_NUMBERS):
        result = int(value)
    elif isinstance(value, (float, np.floating)) and not integer:
        result = float(value)
    if result is None or not integer and not _finite(result):
        raise InputError(f"{what} must be {kind}; got {shown(value)}.")
    if integer and high is None and not -most <= result <= most:
        low, high = (-most if low is None else low), most
    bounds = [(f"at least {low}", low is None or result >= low),
              (f"above {above}", above is None or result > above),
              (f"at most {high}", high is None or result <= high)]
    if not all(met for _, met in bounds):
        asked = " and ".join(text for text, _ in bounds if "None" not in text)
        raise InputError(f"{what} must be {asked}; got {shown(value)}.")
    return result


def holds(dtype, what, value):
    """Raise InputError where a number, not 0 itself, becomes 0 or infinite in this dtype."""
    held = abs(np.dtype(dtype).type(value))
    if value and not 0 < held < np.inf:
        raise InputError(f"{what} must be a number that {np.dtype(dtype)} can hold; "
                         f"got {shown(value)}.")


def flag(what, value):
    """True or False, Python's or NumPy's -> Python's; InputError for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{what} must be True or False; got {shown(value)}.")
    return bool(value)


def several(what, values):
    """A sequence of things, not one text -> tuple; InputError for anything else."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InputError(f"{what} must be several, as a tuple or list; got {shown(values)}.")
    return tuple(values)


def mapping(what, value):
    """Raise InputError unless this is a dict, or None for an empty one."""
    if not isinstance(value, dict | None):
        raise InputError(f"{what} must be a dict; got {shown(value)}.")


def text(what, value):
    """Raise InputError unless this is a str."""
    if not isinstance(value, str):
        raise InputError(f"{what} must be a string; got {shown(value)}.")


def _finite(value):
    try:
        return -np.inf < float(value) < np.inf
    except OverflowError:                # an integer beyond every float
        return False


def base(value):
    """The base of an encoding's wavelengths, above 0 -> float; InputError where angles overflow."""
    result = float(number("base", value, above=0))
    if result < 1e-200:
        raise InputError(f"base must be at least 1e-200, or angles overflow; got {shown(value)}.")
    return result


def fields(owner, *names, **bounds):
    """Check these fields of a frozen dataclass with `number`, and store Python's numbers."""
    for name in names:
        object.__setattr__(owner, name, number(name, getattr(owner, name), **bounds))


def floating(what, dtype):
    """float32 or float64, however it is spelled -> the np.dtype; InputError for another."""
    try:
        dtype = np.dtype(dtype)
    except (TypeError, ValueError):
        pass
    choice(what, dtype, FLOATS)
    return dtype


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
            raise InputError(f"{what} must be {type(self.default).__name__}; got {shown(value)}.")
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
    described = tuple(
        (name, symbols, type(array),
         *((array.dtype, array.shape) if type(array) in PLAIN else (None, None)))
        for name, (array, symbols) in named.items())
    return dict(_fit(tuple((sizes or {}).items()), dtype, described))


@lru_cache(1 << 12)
def _fit(sizes, dtype, described):
    """arrays(), from types and shapes alone: kept, since a model asks the same at every step."""
    sizes, first, dtype_from = dict(sizes), {}, "the rest"
    for name, symbols, kind, its_dtype, shape in described:
        symbols = symbols.split()
        if kind not in PLAIN:
            raise InputError(f"{name} must be a NumPy array of shape ({', '.join(symbols)}); "
                             f"got {kind.__name__}.")
        if its_dtype not in FLOATS:
            raise InputError(f"{name} must be float32 or float64; got {its_dtype}.")
        if dtype is None:
            dtype, dtype_from = its_dtype, name
        elif its_dtype != dtype:
            raise InputError(f"{name} has dtype {its_dtype}, but {dtype_from} has {dtype}: "
                             "cast one of them.")
        if len(shape) != len(symbols):
            raise InputError(f"{name} must have {len(symbols)} axes ({', '.join(symbols)}); "
                             f"got shape {shape}.")
        for axis, (symbol, size) in enumerate(zip(symbols, shape)):
            if "|" in symbol:                                 # "Dv|1": either will do
                known, literal = symbol.split("|")
                symbol = literal if size == int(literal) else known
            times, letters = _split_symbol(symbol)
            if letters:
                sizes.setdefault(letters, size // times)
            expected = extent(symbol, sizes)
            first.setdefault(letters, name)
            if size != expected:
                shared = letters and first[letters] != name
                source = f" as in {first[letters]}" if shared else ""
                raise InputError(f"{name}: axis {axis} ({symbol}) must be {expected}{source}; "
                                 f"got {size} (shape {shape}).")
    return sizes


def gradient(name, array, shape, dtype):
    """Raise InputError unless this gradient has the shape and dtype of what it is the gradient of.

    One comparison of each where all is well: it stands in every backward.
    """
    if type(array) in PLAIN and array.shape == shape and array.dtype == dtype:
        return
    raise InputError(f"{name} must be a NumPy array of {np.dtype(dtype)} and shape {shape}, as the "
                     f"output it belongs to; got {kind(array)}.")


def kind(value):
    """What an argument is, for an error: its type, and an array's dtype and shape."""
    if isinstance(value, np.ndarray):
        return f"{type(value).__name__} of {value.dtype} and shape {value.shape}"
    return type(value).__name__


def integers(name, array, below, *, axes):
    """Raise InputError unless this is an array of integers, 0 <= each < below, of so many axes."""
    if type(array) not in PLAIN or array.dtype.kind not in "iu" or array.ndim != axes:
        raise InputError(f"{name} must be a NumPy array of integers with {axes} "
                         f"{'axis' if axes == 1 else 'axes'}; got {kind(array)}.")
    if array.size:
        low, high = array.min(), array.max()
        if low < 0 or high >= below:
            raise InputError(f"{name} must be from 0 to {below - 1}; "
                             f"got {low if low < 0 else high}.")


def generator(rng):
    """Raise InputError unless rng is a numpy.random.Generator, or draws bytes as one, or None."""
    if rng is not None and (isinstance(rng, type) or not callable(getattr(rng, "bytes", None))):
        raise InputError("rng must be a numpy.random.Generator, as numpy.random.default_rng(0) "
                         f"makes one, or None; got {type(rng).__name__}.")


def random(seed):
    """numpy.random.default_rng(seed); InputError for a seed that it does not take."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError):
        raise InputError("seed must be an integer of at least 0, or a sequence of these; "
                         f"got {shown(seed)}.") from None


def extent(symbol, sizes):
    """The length of an axis: "3" -> 3, "H" -> sizes["H"], "2H" -> 2 sizes["H"]"""
    if symbol in sizes:
        return sizes[symbol]
    times, letters = _split_symbol(symbol)
    return times * sizes[letters] if letters else times


@lru_cache
def _split_symbol(symbol):
    """"2H" -> 2, "H"; "H" -> 1, "H"; "3" -> 3, no letters"""
    letters = symbol.lstrip("0123456789")
    digits = symbol[:len(symbol) - len(letters)]
    return int(digits or 1), letters


def finite(**named):
    """Raise unless every entry of these (small) parameter arrays is finite."""
    for name, array in named.items():
        if not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise NotFinite(name, f"must be finite; entry {where} is {array[where]}.")
