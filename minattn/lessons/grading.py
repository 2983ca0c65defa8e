"""How an exercise is graded: the student's function and ours run on the same inputs, in float64.

Any correct solution passes, however it is written: only the numbers it returns count. Inputs are
random arrays of prime sizes or the validation kit's cases, so plausible wrong solutions fail.
"""
import copy
from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-9    # of the largest number in the right answer: far above rounding
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
        where = f"on input {n} of {len(exercise.inputs)} ({_shapes(given)})"
        try:
            answer = _call(judged_as(candidate), given)
        except NotImplementedError:
            return OPEN
        except Exception as error:                       # whatever a student's code may raise
            return f"not yet: {where} your function raised {type(error).__name__}: {error}"
        if answer is None or answer is ...:
            return ("not yet: your function returns nothing; write your solution in place of the "
                    "dots.")
        why = _difference(answer, _call(exercise.reference, given), exercise)
        if why:
            hint = next((f" {what}" for wrong, what in exercise.hints if not
                         _difference(answer, _call(judged_as(wrong), given), exercise)), "")
            return f"not right yet, {where}: {why}{hint}"
    return ""


def _call(function, given):
    given = copy.deepcopy(given)
    with np.errstate(all="ignore"):
        return function(**given) if isinstance(given, dict) else function(*given)


def _shapes(given):
    """An input in words: the shapes of arrays, the values of what is small."""
    def word(x):
        if isinstance(x, np.ndarray):
            return f"an array {x.shape}"
        return getattr(x, "__name__", str(x))
    if isinstance(given, dict):
        return ", ".join(f"{name} = {word(x)}" for name, x in given.items())
    return ", ".join(word(x) for x in given)


def _difference(answer, expected, exercise):
    """Why these are not the same answer; an empty string if they are."""
    if not isinstance(expected, tuple):
        answer, expected = (answer,), (expected,)
    elif not isinstance(answer, (tuple, list)) or len(answer) != len(expected):
        return (f"expected {len(expected)} results ({', '.join(exercise.returns)}); "
                f"got {_kind(answer)}.")
    reasons = (_difference_of_one(*one, exercise.tolerance)
               for one in zip(answer, expected, exercise.returns))
    return next(filter(None, reasons), "")


def _difference_of_one(answer, expected, name, tolerance):
    expected = np.asarray(expected)
    floats = expected.dtype.kind == "f"
    try:
        answer = np.asarray(answer, float if floats else None)      # 5.7 must not pass for 5
    except (TypeError, ValueError):
        return f"{name} should be {_kind(expected)}; got {_kind(answer)}."
    if answer.shape != expected.shape:
        return f"{name} should have shape {expected.shape}; got {answer.shape}."
    if floats and np.isnan(answer).any() and not np.isnan(expected).any():
        return f"{name} contains nan."
    same = answer == expected
    if floats:                           # a known mistake may give nan: equal to the same mistake
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=1e-30)
        same = np.isclose(answer, expected, rtol=0, atol=tolerance * scale, equal_nan=True)
    if np.all(same):
        return ""
    i = tuple(int(n) for n in np.argwhere(~same)[0])
    at = f" at {list(i)}" if i else ""
    many = f" ({np.sum(~same)} of {same.size} entries differ)" if same.size > 1 else ""
    digits = ".6g" if floats else ""
    return f"{name} should be {expected[i]:{digits}}{at}; got {answer[i]:{digits}}{many}."


def _kind(x):
    if isinstance(x, np.ndarray):
        return f"an array of shape {x.shape}"
    return f"{len(x)} results" if isinstance(x, (tuple, list)) else f"one {type(x).__name__}"
