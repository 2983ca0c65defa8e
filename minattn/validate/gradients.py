"""Is a hand-written gradient right? Step in a random direction and measure how the output moves.

For L(x) = sum(dout * f(x)) and a direction u, the chain rule says that L changes at the rate sum(dx
* u). The same rate can be measured without any calculus, from four values of f around x (the error
falls with step^4):

    measured = sum(dout * ( 8 (f(x + h u) - f(x - h u)) - (f(x + 2h u) - f(x - 2h u)) )) / (12 h)

At h = 1e-3 truncation and rounding both leave about 1e-11, so agreement to 1e-7 asks for the right
formula and not for luck. dout is random: with a dout of ones the gradients of softmax and layer
norm vanish, and bugs hide.
"""
from typing import NamedTuple

import numpy as np

from minattn.errors import InputError


class Slope(NamedTuple):
    """How fast L changes along one random direction of one argument."""
    argument: str
    written: float      # by the hand-written gradient: sum(gradient * direction)
    measured: float     # by central differences
    error: float        # |written - measured|, relative to the larger of the two


def directional(f, arrays, grads, dout, *, seed=0, step=1e-3):
    """Measure each hand-written gradient along one random direction.

    f         f(**arrays) -> the output, an array (or a number)
    arrays    name -> array, float64 wherever a gradient is checked
    grads     name -> hand-written gradient of sum(dout * f(**arrays)), for the arguments to check
    dout      what the gradients were made from, shaped as the output
    -> a list with one Slope per gradient. A slope below 1e-5 of |dout * f| is compared with that
    instead: differences of f hold no more digits. Raises InputError where an array is not float64,
    or a gradient is not shaped as its array.
    """
    rng = np.random.default_rng(seed)
    floor = 1e-5 * float(np.linalg.norm(np.multiply(dout, f(**arrays))))
    at = lambda name, x: f(**{**arrays, name: np.asarray(x)})
    slopes = []
    for name, grad in grads.items():
        x = arrays[name]
        if x.dtype != np.float64:
            raise InputError(f"{name} must be float64, or differences drown in rounding; "
                             f"got {x.dtype}.")
        if grad.shape != x.shape:
            raise InputError(f"the gradient of {name} must have its shape {x.shape}; "
                             f"got {grad.shape}.")
        u = rng.standard_normal(x.shape)
        near, far = (at(name, x + h * u) - at(name, x - h * u) for h in (step, 2 * step))
        measured = float(np.sum(dout * (8 * near - far)) / (12 * step))
        written = float(np.sum(grad * u))
        error = abs(written - measured) / (max(abs(written), abs(measured), floor) or 1)
        slopes.append(Slope(name, written, measured, error))
    return slopes


def assert_gradients(forward, backward, arrays, *, seeds=(0, 1, 2), tolerance=1e-7, step=1e-3,
                     **options):
    """Raise AssertionError, showing both numbers, unless backward agrees with central differences.

    forward(**arrays, **options) -> (output, cache, ...), backward(dout, cache) -> {name: gradient}.
    Each seed draws a new dout and new directions. Returns every Slope that was measured; the worst
    is max(slopes, key=lambda s: s.error).
    """
    slopes = []
    for seed in seeds:
        out, cache = forward(**arrays, **options)[:2]
        dout = np.random.default_rng([seed, 1]).standard_normal(np.shape(out))
        slopes += directional(lambda **a: forward(**a, **options)[0], arrays,
                              backward(dout, cache), dout, seed=seed, step=step)
    wrong = [s for s in slopes if not s.error <= tolerance]
    if wrong:
        lines = [f"{s.argument:>14} {s.written:20.12e} {s.measured:20.12e} {s.error:10.1e}"
                 for s in wrong]
        head = f"{'argument':>14} {'hand-written':>20} {'measured':>20} {'relative':>10}"
        first = f"gradients differ by more than {tolerance:g}:"
        raise AssertionError("\n".join([first, head, *lines]))
    return slopes
