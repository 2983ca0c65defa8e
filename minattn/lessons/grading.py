"""How an exercise is graded: the student's function and ours run on the same inputs, in float64.

Any correct solution passes, however it is written: only the numbers it returns count, and those of
float32 may have float32's rounding. Inputs are random arrays of prime sizes or the validation kit's
cases, so plausible wrong solutions fail.
"""
import copy
import inspect
from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-9    # of the largest number in the right answer: far above rounding
SINGLE = 1e-5       # the same for an answer of float32 numbers
SOLVED = set()      # (lesson, check) of the exercises that were right in this process
OPEN = "not yet: write your solution in place of the dots and run the cell again."


class Exercise(NamedTuple):
    """What an answer is graded by.

    reference   the right function; it returns an array, a number, a bool, or a tuple of these
    inputs      tuples (positional arguments) or dicts (keyword arguments); each call gets copies
    returns     the names of what it returns, for the message: ("dq", "dk", "dv")
    hints       ((wrong function, what to say), ...): said to an answer that makes this mistake
    judged_as   where several answers are right: turns one into the function that is compared
    """
    reference: Callable
    inputs: list
    returns: tuple = ("the result",)
    hints: tuple = ()
    tolerance: float = TOLERANCE
    judged_as: Callable | None = None


def exercise(describe):
    """Decorator: describe() -> Exercise becomes check(candidate) -> bool, see grade()."""
    @wraps(describe)
    def check(candidate):
        right = grade(candidate, describe())
        if right:
            SOLVED.add((describe.__module__[-2:], describe.__name__))
        return right
    check.describe = describe
    return check


def grade(candidate, exercise):
    """Compare a student's function with the reference on each input -> True if all agree.

    Prints one sentence: right, not yet (None, dots or an error), or what is wrong and where.
    """
    wrong = _what_is_wrong(candidate, exercise)
    count = len(exercise.inputs)
    print(wrong or ("right: 1 input agrees." if count == 1 else f"right: {count} inputs agree."))
    return not wrong


def _what_is_wrong(candidate, exercise):
    """One sentence; an empty one if the answer is right."""
    if candidate is None or candidate is ...:
        return OPEN
    if not callable(candidate):
        return f"not yet: expected a function; got {type(candidate).__name__}."
    judged_as = exercise.judged_as or (lambda function: function)
    for n, given in enumerate(exercise.inputs, 1):
        where = f"on input {n} of {len(exercise.inputs)} ({_inputs(candidate, given)})"
        try:
            answer = _call(judged_as(candidate), given)
        except NotImplementedError:
            return OPEN
        except Exception as error:                       # whatever a student's code may raise
            return f"not yet: {where} your function raised {type(error).__name__}: {error}"
        if answer is None or answer is ...:
            return ("not yet: your function returns nothing; write your solution in place of the "
                    "dots.")
        expected = _call(exercise.reference, given)
        why = _difference(answer, expected, exercise)
        if why:
            return f"not right yet, {where}: {why}{_hint(answer, expected, given, exercise)}"
    return ""


def _call(function, given):
    given = copy.deepcopy(given)
    with np.errstate(all="ignore"):
        return function(**given) if isinstance(given, dict) else function(*given)


def _inputs(candidate, given):
    """An input in words, by the student's own names: the shapes of arrays, other values as such."""
    def word(x):
        return str(x.shape) if isinstance(x, np.ndarray) else getattr(x, "__name__", str(x))

    args, named = ((), given) if isinstance(given, dict) else (given, {})
    try:
        named = inspect.signature(candidate).bind(*args, **named).arguments
    except (TypeError, ValueError):                      # the call will say what is wrong
        args = [*args, *named.values()]
    if len(named) != len(args or named):                 # a function of (*given)
        return ", ".join(f"an array {word(x)}" if isinstance(x, np.ndarray) else word(x)
                         for x in args)
    return ", ".join(f"{name} {word(x)}" if isinstance(x, np.ndarray) else f"{name} = {word(x)}"
                     for name, x in named.items())


def _hint(answer, expected, given, exercise):
    """The hint of the known mistake that this answer makes, or an empty string.

    It may round in its own way: it must be far nearer to the mistake than to the right answer,
    and near to it.
    """
    judged_as = exercise.judged_as or (lambda function: function)
    most = max(exercise.tolerance, min(_distance(answer, expected) / 100, 0.01))
    nearest, hint = np.inf, ""
    for wrong, what in exercise.hints:
        near = _distance(answer, _call(judged_as(wrong), given))
        if near <= most and near < nearest:
            nearest, hint = near, f" {what}"
    return hint


def _distance(one, other):
    """The largest difference, relative to the largest number of `other`; inf if not comparable."""
    if isinstance(other, (tuple, list)):
        if not isinstance(one, (tuple, list)) or len(one) != len(other):
            return np.inf
        return max(map(_distance, one, other))
    try:
        one, other = np.asarray(one), np.asarray(other)
        numbers = one.astype(float), other.astype(float)
    except (TypeError, ValueError):
        return 0.0 if np.array_equal(one, other) else np.inf
    if one.shape != other.shape or (np.isnan(numbers[0]) != np.isnan(numbers[1])).any():
        return np.inf
    differ = (numbers[0] != numbers[1]) & ~np.isnan(numbers[0])          # inf - inf is nan
    return np.abs(numbers[0][differ] - numbers[1][differ]).max(initial=0) / _scale(numbers[1])


def _scale(x):
    return np.abs(x[np.isfinite(x)]).max(initial=1e-30)


def _difference(answer, expected, exercise):
    """Why these are not the same answer; an empty string if they are."""
    if not isinstance(expected, tuple):
        answer, expected = (answer,), (expected,)
    elif not isinstance(answer, (tuple, list)) or len(answer) != len(expected):
        return (f"expected {len(expected)} results ({', '.join(exercise.returns)}); "
                f"got {_kind(answer)}.")
    expected = [np.asarray(one) for one in expected]
    scales = [_scale(one) if one.dtype.kind == "f" else 0 for one in expected]
    scales = [max(scale, max(scales) / 100) for scale in scales]    # one of them may be all 0
    reasons = (_difference_of_one(*one, exercise.tolerance)
               for one in zip(answer, expected, exercise.returns, scales))
    return next(filter(None, reasons), "")


def _difference_of_one(answer, expected, name, scale, tolerance):
    floats = expected.dtype.kind == "f"
    try:
        in_float32 = np.asarray(answer).dtype == np.float32
        answer = np.asarray(answer, float if floats else None)      # 5.7 must not pass for 5
    except (TypeError, ValueError):
        return f"{name} should be {_kind(expected)}; got {_kind(answer)}."
    if answer.shape != expected.shape:
        return f"{name} should have shape {expected.shape}; got {answer.shape}."
    if not floats:
        wrong = answer != expected
        return _first_wrong(wrong, answer, expected, name) if np.any(wrong) else ""
    if np.isnan(answer).any() and not np.isnan(expected).any():
        return f"{name} contains nan."
    with np.errstate(over="ignore"):
        single = np.array_equal(answer, answer.astype(np.float32), equal_nan=True)
    most = scale * (max(tolerance, SINGLE) if single else tolerance)
    wrong = ~np.isclose(answer, expected, rtol=0, atol=most, equal_nan=True)
    in_float32 = in_float32 and tolerance < 10 * SINGLE      # else it has digits enough
    return _worst(wrong, answer, expected, name, scale, in_float32) if np.any(wrong) else ""


def _first_wrong(wrong, answer, expected, name):
    i = tuple(int(n) for n in np.argwhere(wrong)[0])
    return f"{name} should be {expected[i]}{_at(i)}; got {answer[i]}{_count(wrong)}."


def _worst(wrong, answer, expected, name, scale, in_float32):
    """Which number is furthest off, by how much, and where so little may come from."""
    off = np.full(wrong.shape, -1.0)
    off[wrong] = np.abs(answer[wrong] - expected[wrong])
    i = tuple(int(n) for n in np.unravel_index(np.argmax(off), off.shape))
    relative, because = off[i] / scale, ""
    if in_float32:
        because = " It is float32, which may keep too few digits here: try float64."
    elif relative < 1e-6:
        because = (f" That is {relative:.1g} of the largest number: a loss of digits, or a small "
                   "constant such as eps that is missing or in another place.")
    return (f"{name} should be {expected[i] + 0.0:.6g}{_at(i)}; got {answer[i] + 0.0:.6g}, "
            f"off by {off[i]:.2g}{_count(wrong)}.{because}")


def _at(i):
    return f" at {list(i)}" if i else ""


def _count(wrong):
    return f" ({np.sum(wrong)} of {wrong.size} entries differ)" if wrong.size > 1 else ""


def _kind(x):
    if isinstance(x, np.ndarray):
        return f"an array of shape {x.shape}"
    return f"{len(x)} results" if isinstance(x, (tuple, list)) else f"one {type(x).__name__}"
