"""Grades the exercises of lesson 18: is this gradient right?"""

import numpy as np

from minattn.lessons.grading import Exercise, exercise


@exercise
def check_slope():
    """f, x, u, h -> the slope of f at x along u, to six digits."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((5, 5))

    def quadratic(x):
        return float(x @ A @ x)

    def waves(x):
        return float(np.sin(2 * x).sum())

    def log_of_a_sum(x):
        return float(np.log(np.exp(x).sum()))

    gradient = {
        quadratic: lambda x: (A + A.T) @ x,
        waves: lambda x: 2 * np.cos(2 * x),
        log_of_a_sum: lambda x: np.exp(x) / np.exp(x).sum(),
    }
    inputs = [(f, rng.standard_normal(5), 2 * rng.standard_normal(5), 1e-4) for f in gradient]
    return Exercise(
        lambda f, x, u, h: float(gradient[f](x) @ u),
        inputs,
        returns=("the slope",),
        tolerance=1e-6,
        hints=[
            (
                lambda f, x, u, h: (f(x + h * u) - f(x)) / h,
                "A step to one side bends away by h: step to both sides.",
            ),
            (
                lambda f, x, u, h: (f(x + h * u) - f(x - h * u)) / h,
                "From x - h u to x + h u it is two steps of h: twice too much.",
            ),
            (
                lambda f, x, u, h: (f(x + h * u) - f(x - h * u)) / (2 * h) / np.linalg.norm(u),
                "The slope belongs to u as it is: do not divide by its length.",
            ),
            (
                lambda f, x, u, h: f(x + h * u) - f(x - h * u),
                "That is the difference: divide it by the length of the step.",
            ),
            (
                lambda f, x, u, h: (f(x + h) - f(x - h)) / (2 * h),
                "That steps along all ones instead of along u.",
            ),
            (
                lambda f, x, u, h: (f(x - h * u) - f(x + h * u)) / (2 * h),
                "The sign is the wrong way round.",
            ),
        ],
    )


def _softmax(x):
    P = np.exp(x - x.max(axis=-1, keepdims=True))
    return P / P.sum(axis=-1, keepdims=True)


def _softmax_backward(dout, x):
    P = _softmax(x)
    return P * (dout - (P * dout).sum(axis=-1, keepdims=True))


A = np.random.default_rng(7).standard_normal((5, 5))

# (name, forward, backward, is it right?)
LAYERS = [
    ("product", lambda x: x @ A, lambda dout, x: dout @ A.T, True),
    ("product, not transposed", lambda x: x @ A, lambda dout, x: dout @ A, False),
    ("softmax", _softmax, _softmax_backward, True),
    ("softmax, zeros", _softmax, lambda dout, x: 0 * x, False),
    ("product, columns reversed", lambda x: x @ A, lambda dout, x: dout[:, ::-1] @ A.T, False),
    ("square", lambda x: x * x, lambda dout, x: 2 * x * dout, True),
    ("square, dout forgotten", lambda x: x * x, lambda dout, x: 2 * x, False),
    ("square, 1 % too much", lambda x: x * x, lambda dout, x: 2.02 * x * dout, False),
    ("sine", lambda x: 30 * np.sin(x), lambda dout, x: 30 * np.cos(x) * dout, True),
    ("sine, one entry", lambda x: np.sin(x), lambda dout, x: np.cos(x) * dout * (x != x[0, 0]),
     False),
    ("sum of rows", lambda x: x.sum(axis=0), lambda dout, x: np.tile(dout, (len(x), 1)), True),
    ("sum of rows, sign", lambda x: x.sum(axis=0), lambda dout, x: -np.tile(dout, (len(x), 1)),
     False),
]


@exercise
def check_gradient_is_right():
    """forward, backward, x -> bool, judged by layers with right and with wrong gradients"""
    x, inputs, right = np.random.default_rng(0).standard_normal((3, 5)), [], {}
    for name, forward, backward, is_right in LAYERS:

        def named(dout, x, f=backward):
            return f(dout, x)

        named.__name__ = name.replace(", ", "_but_").replace(" ", "_").replace("%", "percent")
        inputs.append((forward, named, x))
        right[named] = is_right

    def with_ones(forward, backward, x):
        rng, h = np.random.default_rng(0), 1e-5
        u = rng.standard_normal(x.shape)
        claimed = np.sum(backward(np.ones(forward(x).shape), x) * u)
        measured = np.sum(forward(x + h * u) - forward(x - h * u)) / (2 * h)
        return bool(abs(claimed - measured) <= 1e-6 * max(1, abs(measured)))

    return Exercise(
        lambda forward, backward, x: right[backward],
        inputs,
        hints=[
            (with_ones, "It accepts a bug that a cotangent of ones hides: choose a random one."),
            (lambda *given: True, "It says True of a wrong gradient."),
            (lambda *given: False, "It says False of a right gradient: allow for rounding."),
        ],
    )
