"""In-context recall: eight items with their labels, then a query like some of them. Which label?

A sequence is x_1 y_1 ... x_n y_n x_query. Vectors x are noisy copies of class means, y the content
of the class's label; a sequence has few classes, several times each, so the answer can be read off
the sequence itself. We choose which item the query repeats, so the task measures which places a
network prefers.   (arXiv 2502.01951, section 5 and appendix J)
"""
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minattn import checks, memory
from minattn.errors import InputError

PLACES = ("first", "middle", "last")
PAIRS = (("first", "middle"), ("first", "last"), ("middle", "last"))


@dataclass(frozen=True)
class Task:
    """The sizes of the task; the defaults are the paper's."""
    items: int = 8
    width: int = 64
    classes: int = 2048
    labels: int = 32
    burst: int = 4                # copies of each class in a sequence
    noise: float = 0.75           # within a class, relative to the spread of the means
    scale: str = "paper"          # "paper": entries of variance 1/width; "code": of standard
                                  # deviation 1/width, as in the authors' code
    middle: int | None = None     # the item called "middle", from 0. None: items // 2, the fifth of
                                  # eight, as in the authors' code; the paper's n/2 is the fourth

    def __post_init__(self):
        least = {"items": 2, "width": 1, "classes": 1, "labels": 1, "burst": 1}
        for name, low in least.items():
            checks.fields(self, name, low=low, integer=True)
        memory.weigh(f"{self.classes:,} classes of width {self.width}",
                     8 * self.classes * self.width, "use fewer classes")
        checks.fields(self, "noise", low=0)
        checks.choice("scale", self.scale, ("paper", "code"))
        if self.items % self.burst:
            raise InputError("items must be a multiple of burst, so that each class comes equally "
                             f"often; got {self.items} and {self.burst}.")
        distinct = self.items // self.burst
        if distinct > self.classes:
            raise InputError(f"a sequence of {self.items} items needs {distinct} distinct classes "
                             f"(items / burst); there are {self.classes}: raise classes or burst.")
        if self.middle is not None:
            checks.fields(self, "middle", low=0, high=self.items - 1, integer=True)

    @property
    def length(self):
        """Tokens in a sequence."""
        return 2 * self.items + 1

    @property
    def std(self):
        """Standard deviation of the entries of means, noise and label contents."""
        return 1 / self.width if self.scale == "code" else 1 / math.sqrt(self.width)

    def place(self, name):
        """The item, from 0, that is called first, middle or last."""
        checks.choice("place", name, PLACES)
        middle = self.items // 2 if self.middle is None else self.middle
        return {"first": 0, "middle": middle, "last": self.items - 1}[name]


class World(NamedTuple):
    """What stays fixed while a network trains."""
    means: np.ndarray      # (K, d)
    contents: np.ndarray   # (L, d)  what a label looks like in the sequence
    label_of: np.ndarray   # (K,)


def world(task, seed):
    """Draw the class means, the label contents, and the label of each class -> World, float32."""
    rng = np.random.default_rng([seed, 0])
    means = _normal(rng, (task.classes, task.width), task.std)
    contents = _normal(rng, (task.labels, task.width), task.std)
    return World(means, contents, rng.integers(task.labels, size=task.classes))


def training_batch(task, world, rng, count, places=()):
    """Sequences of known classes: x (count, T, d) float32, y (count,) the right labels.

    places: the query repeats one of these items ("first", "middle", "last"), each equally often;
    (): any item.
    """
    # 1. which classes, each `burst` times, in which order, and which item the query repeats
    here = _distinct(rng, task.classes, count, task.items // task.burst)     # (B, n / burst)
    classes = np.take_along_axis(here, _order(task, rng, count), axis=1)     # (B, n)
    if places:
        items = np.array([task.place(name) for name in places])
        repeated = items[rng.integers(len(places), size=count)]
    else:
        repeated = rng.integers(task.items, size=count)                      # (B,)
    query = classes[np.arange(count), repeated]                              # (B,)
    # 2. vectors: noisy copies of the means; contents: those of the labels
    means = world.means[np.column_stack([classes, query])]                   # (B, n + 1, d)
    vectors = _copies(task, rng, means)
    labels = world.label_of[classes]                                         # (B, n)
    return _interleave(vectors, world.contents[labels]), world.label_of[query]


def novel_batch(task, world, rng, count, right, other):
    """Sequences of new classes, with two items that look the same: x (count, T, d), y (count,).

    The query repeats the class of the item at `right`; y is its label. The vector at `other` is
    replaced by the one at `right`, and keeps its own label. So a network that reads `right` answers
    right, and one that reads `other` is wrong unless the two labels agree. From the same rng state,
    [a, b] and [b, a] give the same sequences.
    """
    groups, rows = task.items // task.burst, np.arange(count)
    means = _normal(rng, (count, groups, task.width), task.std)              # new in every sequence
    label_of = rng.integers(task.labels, size=(count, groups))
    order = _order(task, rng, count)                                         # (B, n)
    a, b = task.place(right), task.place(other)
    shown = np.column_stack([order, order[:, a]])                            # (B, n + 1)
    vectors = _copies(task, rng, means[rows[:, None], shown])                # (B, n + 1, d)
    vectors[:, b] = vectors[:, a]
    labels = label_of[rows[:, None], order]
    return _interleave(vectors, world.contents[labels]), labels[:, a]


def largest_gap(task):
    """The gap of a network that looks at places only: how often two items have different labels.

    Another item is of another class with probability (n - burst) / (n - 1), and then has another
    label with probability 1 - 1/L: 4/7 * 31/32 = 0.5536 for the paper's sizes. (Not in the paper;
    it is the height of its plateaus.)
    """
    return (task.items - task.burst) / (task.items - 1) * (1 - 1 / task.labels)


def _normal(rng, shape, std):
    x = rng.standard_normal(shape, np.float32)
    x *= np.float32(std)
    return x


def _order(task, rng, count):
    """Which of a sequence's classes each item has, in random order: (count, items)"""
    groups = np.arange(task.items) // task.burst
    return rng.permuted(np.tile(groups, (count, 1)), axis=1)


def _distinct(rng, total, count, each):
    """`each` different numbers below `total`, in random order, for each of `count` rows."""
    picked = np.empty((count, each), int)
    for j in range(each):
        new = rng.integers(total - j, size=count)            # among those that are left
        for taken in np.sort(picked[:, :j], axis=1).T:       # skip the taken ones, smallest first
            new += new >= taken
        picked[:, j] = new
    return picked


def _copies(task, rng, means):
    """x = (mean + noise * eta) / sqrt(1 + noise^2), in place of the means."""
    shrink = 1 / math.sqrt(1 + task.noise**2)
    x = _normal(rng, means.shape, task.noise * task.std * shrink)
    means *= np.float32(shrink)
    x += means
    return x


def _interleave(vectors, contents):
    """x_1 y_1 ... x_n y_n x_query:   (B, n + 1, d), (B, n, d) -> (B, 2n + 1, d)"""
    B, n, d = contents.shape
    x = np.empty((B, 2 * n + 1, d), np.float32)
    x[:, 0::2], x[:, 1::2] = vectors, contents
    return x
