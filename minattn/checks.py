"""Turn a wrong array or a mistyped name into one clear sentence."""
import difflib

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


def option(text):
    """"NAME=VALUE" -> (name, value): the value a number, true / false, or a word."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"option {text!r} is not NAME=VALUE.")
    for kind in (int, float):
        try:
            return name.replace("-", "_"), kind(value)
        except ValueError:
            pass
    return name.replace("-", "_"), {"true": True, "false": False}.get(value.lower(), value)


def number(what, value, low=None, *, integer=False, above=None, high=None):
    """Raise unless `value` is a finite number (an integer if asked) with low <= value <= high and value > above."""
    kinds = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    kind = "an integer" if integer else "a finite number"
    if isinstance(value, bool) or not isinstance(value, kinds) or not -np.inf < value < np.inf:
        raise InputError(f"{what} must be {kind}; got {value!r}.")
    if (low is not None and value < low) or (above is not None and value <= above) or (high is not None and value > high):
        bounds = [f"at least {low}"] * (low is not None) + [f"above {above}"] * (above is not None)
        bounds += [f"at most {high}"] * (high is not None)
        raise InputError(f"{what} must be {' and '.join(bounds)}; got {value!r}.")


def arrays(sizes=None, dtype=None, **named):
    """Check arrays against symbolic shapes and one common dtype.

    arrays(q=(q, "B H Tq D"), k=(k, "B H Tk D")) binds each symbol at its first use and raises InputError, naming
    the argument, the axis, what was expected and what came, at the first mismatch. A number in the shape must match
    as it stands. All arrays must be float32 or all float64. Returns the bound sizes as a dict.
    """
    sizes, first, dtype_from = dict(sizes or {}), {}, "the rest"
    for name, (array, shape) in named.items():
        symbols = shape.split()
        if not isinstance(array, np.ndarray):
            raise InputError(f"{name} must be a NumPy array of shape ({', '.join(symbols)}); got {type(array).__name__}.")
        if array.dtype not in FLOATS:
            raise InputError(f"{name} must be float32 or float64; got {array.dtype}.")
        if dtype is None:
            dtype, dtype_from = array.dtype, name
        elif array.dtype != dtype:
            raise InputError(f"{name} has dtype {array.dtype}, but {dtype_from} has {dtype}: cast one of them.")
        if array.ndim != len(symbols):
            raise InputError(f"{name} must have {len(symbols)} axes ({', '.join(symbols)}); got shape {array.shape}.")
        for axis, (symbol, size) in enumerate(zip(symbols, array.shape)):
            expected = int(symbol) if symbol.isdigit() else sizes.setdefault(symbol, size)
            first.setdefault(symbol, name)
            if size != expected:
                source = "" if symbol.isdigit() or first[symbol] == name else f" as in {first[symbol]}"
                raise InputError(f"{name}: axis {axis} ({symbol}) must be {expected}{source}; got {size} (shape {array.shape}).")
    return sizes


def finite(**named):
    """Raise unless every entry of these (small) parameter arrays is finite."""
    for name, array in named.items():
        if not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise NotFinite(name, f"must be finite; entry {where} is {array[where]}.")
