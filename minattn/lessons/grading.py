"""How an exercise is judged: the student's function and ours on the same inputs, in float64, and one sentence about it.

Any correct solution passes, whatever it looks like: what counts is the numbers that come back. Inputs are drawn at
random in prime sizes or taken from the validation kit's cases, so that plausible wrong solutions do not pass.
"""
import numpy as np

TOLERANCE = 1e-9          # of the largest number in the right answer: far above rounding, far below any mistake


def grade(candidate, reference, inputs, *, returns=None, hints=(), tolerance=TOLERANCE):
    """Call both with each input and compare -> True if all agree; prints one sentence.

    candidate   the student's function, or None / ... while the exercise is open
    reference   the right one: what it returns, an array, number, bool or tuple of these, is what is expected
    inputs      list of tuples (positional arguments) or dicts (keyword arguments); each call gets its own copies
    returns     names of what comes back, for the message: ("dq", "dk", "dv")
    hints       ((wrong function, what to say), ...): a solution that agrees with a well-known mistake is told which
    """
    if candidate is None or candidate is ...:
        return _say(False, "not yet: write your solution in place of the dots and run the cell again.")
    if not callable(candidate):
        return _say(False, f"not yet: expected a function; got {type(candidate).__name__}.")
    for n, given in enumerate(inputs, 1):
        where = f"input {n} of {len(inputs)}"
        try:
            came = _call(candidate, given)
        except NotImplementedError:
            return _say(False, "not yet: write your solution in place of the dots and run the cell again.")
        except Exception as error:                       # whatever a student's code may raise
            return _say(False, f"not yet: on {where} ({_shapes(given)}) your function raised {type(error).__name__}: {error}")
        if came is None or came is ...:
            return _say(False, "not yet: your function returns nothing; write your solution in place of the dots.")
        expected = _call(reference, given)
        if why := _differs(came, expected, returns, tolerance):
            told = next((f" {what}" for wrong, what in hints if not _differs(came, _call(wrong, given), returns, tolerance)), "")
            return _say(False, f"not right yet, on {where} ({_shapes(given)}): {why}{told}")
    return _say(True, f"right: {len(inputs)} input{'s' * (len(inputs) != 1)} agree{'s' * (len(inputs) == 1)}.")


def _say(right, sentence):
    print(sentence)
    return right


def _call(function, given):
    given = {n: _copy(x) for n, x in given.items()} if isinstance(given, dict) else [_copy(x) for x in given]
    with np.errstate(all="ignore"):
        return function(**given) if isinstance(given, dict) else function(*given)


def _copy(x):
    return x.copy() if isinstance(x, np.ndarray) else x


def _shapes(given):
    """An input in words: the shapes of arrays, the values of what is small."""
    pairs = given.items() if isinstance(given, dict) else [("", x) for x in given]
    words = [(name, f"an array {x.shape}" if isinstance(x, np.ndarray) else getattr(x, "__name__", str(x))) for name, x in pairs]
    return ", ".join(f"{name} = {word}" if name else word for name, word in words)


def _differs(came, expected, returns, tolerance):
    """Why these are not the same answer; an empty string if they are."""
    if isinstance(expected, tuple):
        if not isinstance(came, (tuple, list)) or len(came) != len(expected):
            return f"expected {len(expected)} results{_names(returns)}; got {_kind(came)}."
        names = returns or [f"result {i}" for i in range(1, len(expected) + 1)]
        return next((why for c, e, name in zip(came, expected, names) if (why := _differs(c, e, (name,), tolerance))), "")
    name = returns[0] if returns else "the result"
    expected = np.asarray(expected)
    try:
        came = np.asarray(came, float if expected.dtype.kind == "f" else None)      # 5.7 is not to pass for 5
    except (TypeError, ValueError):
        return f"{name} should be {_kind(expected)}; got {_kind(came)}."
    if came.shape != expected.shape:
        return f"{name} should have shape {expected.shape}; got {came.shape}."
    if expected.dtype.kind != "f":
        wrong = came != expected
    else:
        if np.isnan(came).any() and not np.isnan(expected).any():
            return f"{name} contains nan."
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=0)
        same = (came == expected) | (np.isnan(came) & np.isnan(expected))      # nan where a well-known mistake has it
        with np.errstate(invalid="ignore"):                                    # inf - inf
            wrong = ~(same | (np.abs(came - expected) <= tolerance * max(scale, 1e-30)))
    if not wrong.any():
        return ""
    i = tuple(int(n) for n in np.argwhere(wrong)[0])
    at = f" at {list(i)}" if i else ""
    many = f" ({wrong.sum()} of {wrong.size} entries differ)" if wrong.size > 1 else ""
    show = (lambda x: f"{x:.6g}") if expected.dtype.kind == "f" else str
    return f"{name} should be {show(expected[i])}{at}; got {show(came[i])}{many}."


def _names(returns):
    return f" ({', '.join(returns)})" if returns else ""


def _kind(x):
    if isinstance(x, np.ndarray):
        return f"an array of shape {x.shape}"
    return f"{len(x)} results" if isinstance(x, (tuple, list)) else f"one {type(x).__name__}"
