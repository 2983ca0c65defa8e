"""How an exercise is graded: the student's function and ours run on the same inputs, in float64.

Any correct solution passes, however it is written: only the numbers it returns count. Inputs are
random arrays of prime sizes or the validation kit's cases, so plausible wrong solutions fail.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-9    # of the largest number in the right answer: far above rounding
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
    returns: tuple | None = None
    hints: tuple = ()
    tolerance: float = TOLERANCE
    judged_as: Callable | None = None


def exercise(describe):
    """Decorator: describe() -> Exercise becomes check(candidate) -> bool, see grade()."""
    def check(candidate):
        return grade(candidate, describe())
    check.__name__, check.__doc__, check.describe = describe.__name__, describe.__doc__, describe
    return check


def grade(candidate, exercise):
    """Compare a student's function with the reference on each input -> True if all agree.

    Prints one sentence: right, not yet (None, dots or an error), or what is wrong and where.
    """
    if candidate is None or candidate is ...:
        return _say(False, OPEN)
    if not callable(candidate):
        return _say(False, f"not yet: expected a function; got {type(candidate).__name__}.")
    if exercise.judged_as:
        candidate = exercise.judged_as(candidate)
    count = len(exercise.inputs)
    for n, given in enumerate(exercise.inputs, 1):
        where = f"on input {n} of {count} ({_shapes(given)})"
        try:
            answer = _call(candidate, given)
        except NotImplementedError:
            return _say(False, OPEN)
        except Exception as error:                       # whatever a student's code may raise
            return _say(False, f"not yet: {where} your function raised "
                               f"{type(error).__name__}: {error}")
        if answer is None or answer is ...:
            return _say(False, "not yet: your function returns nothing; "
                               "write your solution in place of the dots.")
        why = _difference(answer, _call(exercise.reference, given), exercise)
        if why:
            return _say(False, f"not right yet, {where}: {why}{_hint(answer, given, exercise)}")
    return _say(True, "right: 1 input agrees." if count == 1 else f"right: {count} inputs agree.")


def _say(right, sentence):
    print(sentence)
    return right


def _hint(answer, given, exercise):
    for wrong, what in exercise.hints:
        if exercise.judged_as:
            wrong = exercise.judged_as(wrong)
        if not _difference(answer, _call(wrong, given), exercise):
            return f" {what}"
    return ""


def _call(function, given):
    with np.errstate(all="ignore"):
        if isinstance(given, dict):
            return function(**{name: _copy(x) for name, x in given.items()})
        return function(*[_copy(x) for x in given])


def _copy(x):
    return x.copy() if isinstance(x, np.ndarray) else x


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
        name = exercise.returns[0] if exercise.returns else "the result"
        return _difference_of_one(answer, expected, name, exercise.tolerance)
    if not isinstance(answer, (tuple, list)) or len(answer) != len(expected):
        names = f" ({', '.join(exercise.returns)})" if exercise.returns else ""
        return f"expected {len(expected)} results{names}; got {_kind(answer)}."
    names = exercise.returns or [f"result {i}" for i in range(1, len(expected) + 1)]
    for a, e, name in zip(answer, expected, names):
        why = _difference_of_one(a, e, name, exercise.tolerance)
        if why:
            return why
    return ""


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
    if floats:
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=1e-30)
        with np.errstate(invalid="ignore"):                          # inf - inf
            same |= np.abs(answer - expected) <= tolerance * scale
        same |= np.isnan(answer) & np.isnan(expected)                # a known mistake gives nan too
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
