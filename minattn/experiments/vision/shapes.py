"""Noisy grey pictures of eight simple shapes, a small task for a vision transformer.

Each picture shows one shape at a random place, size, rotation and contrast, brighter or darker than
its ground. Some differ in a few pixels only (a ring and a frame, a cross and a plus turned as far
as both may be), so that a small network gets far from chance without solving the task completely.
"""
import numpy as np

from minattn import checks
from minattn.errors import InputError

RADIUS = (0.22, 0.42)           # of the side of the picture
TURN = np.deg2rad(18)           # at most, to either side: a plus turned by 45 degrees is a cross
CONTRAST = (0.5, 1.0)           # between shape and ground
NOISE = 0.1                     # standard deviation, per pixel

# How far outside its shape a point (u, v) lies, in radii: 0 on the edge, negative inside.


def circle(u, v):
    return np.hypot(u, v) - 0.8


def ring(u, v):
    return np.abs(np.hypot(u, v) - 0.63) - 0.17


def square(u, v):
    return np.maximum(np.abs(u), np.abs(v)) - 0.7


def frame(u, v):
    return np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.53) - 0.17


def triangle(u, v):
    return np.maximum(v - 0.5, 0.5 * (np.sqrt(3) * np.abs(u) - v) - 0.5)


def plus(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(u, v) - 0.2, np.maximum(u, v) - 0.9)


def cross(u, v):
    return plus((u + v) / np.sqrt(2), (u - v) / np.sqrt(2))


def bars(u, v):
    return np.maximum(np.abs(np.abs(u) - 0.48) - 0.17, np.abs(v) - 0.75)


SHAPES = {f.__name__: f for f in (circle, ring, square, frame, triangle, plus, cross, bars)}
LABELS = tuple(SHAPES)


def draw(n, rng, *, size=28, noise=NOISE):
    """Draw n pictures, each shape equally likely.

    rng: numpy.random.Generator -> images (n, size, size) float32, labels (n,), indices into LABELS.
    The centre is uniform over the places where the shape's circle of radius r lies inside the
    picture; edges are one pixel soft; the ground has mean 0. Raises InputError for n < 1, size < 8
    or noise < 0.
    """
    checks.number("n", n, 1, integer=True)
    checks.number("size", size, 8, integer=True)
    checks.number("noise", noise, 0)
    if not isinstance(rng, np.random.Generator):
        raise InputError("rng must be a numpy.random.Generator, as numpy.random.default_rng(seed); "
                         f"got {type(rng).__name__}.")
    labels = rng.integers(len(LABELS), size=n)
    r = size * rng.uniform(*RADIUS, n)                              # 1. radius, pixels     (n,)
    x0, y0 = (r + (size - 2 * r) * rng.random(n) for _ in "xy")     # 2. centre
    turn = rng.uniform(-TURN, TURN, n)
    contrast = rng.uniform(*CONTRAST, n) * rng.choice([-1, 1], n)
    r, x0, y0, turn, contrast = (a[:, None, None] for a in (r, x0, y0, turn, contrast))
    y, x = np.indices((size, size)) + 0.5                           #    middles of pixels
    u, v = (x - x0) / r, (y - y0) / r                               # 3. in radii (n, size, size)
    cos, sin = np.cos(turn), np.sin(turn)
    u, v = cos * u + sin * v, cos * v - sin * u                     # 4. turned
    outside = np.empty((n, size, size))
    for k, name in enumerate(LABELS):
        outside[labels == k] = SHAPES[name](u[labels == k], v[labels == k])
    images = contrast * np.clip(0.5 - outside * r, 0, 1)            # 5. 1 inside, 0 outside
    images += noise * rng.standard_normal(images.shape)             # 6.
    return images.astype(np.float32), labels
