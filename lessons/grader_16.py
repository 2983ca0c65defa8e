"""Grades the exercises of lesson 16: why it is fast."""

import numpy as np

from minattn.lessons.grading import Exercise, exercise


@exercise
def check_operations():
    """N, T, L, C, V -> operations of one step, products only, forward and backward"""

    def count(times=3, per_product=2, attention=2, weights=12, table=1, its_times=None):
        def f(N, T, L, C, V):
            tables = table(L) if callable(table) else table
            products = times * per_product * N * (L * weights * C * C + tables * C * V)
            return products + (its_times or times) * L * attention * 2 * N * T * C

        return f

    return Exercise(
        count(),
        [(768, 48, 2, 64, 65), (101, 7, 3, 5, 11), (4096, 256, 6, 256, 65)],
        returns=("the number of operations",),
        hints=[
            (count(times=1), "That is the forward; the backward has two products for each."),
            (count(times=2), "The backward has two products for each of the forward."),
            (count(per_product=1), "A multiplication and an addition: 2 N a b for a product."),
            (count(attention=1), "Attention has two products: the scores and the means."),
            (count(attention=0), "Attention's own two products are missing."),
            (count(table=0), "The product with the table of characters is missing."),
            (count(table=lambda L: L), "The table of characters is used once, not in each layer."),
            (count(its_times=1), "Attention's products have a backward too."),
            (count(weights=8), "(C, 3C), (C, C), (C, 4C) and (4C, C): 12 C^2 weights."),
        ],
    )


@exercise
def check_in_blocks():
    """f, x (N, C), size -> (N, C); f is only ever right for whole rows, at most `size` of them"""
    rng = np.random.default_rng(0)

    def softmax_of_rows(x):
        P = np.exp(x - x.max(axis=1, keepdims=True))
        return P / P.sum(axis=1, keepdims=True)

    def counted(x):
        """Tells how many rows it was given"""
        return x + len(x)

    def reference(f, x, size):
        return np.concatenate([f(x[i : i + size]) for i in range(0, len(x), size)])

    def without_the_last(f, x, size):
        y = np.zeros(x.shape)
        for i in range(0, len(x) - size + 1, size):
            y[i : i + size] = f(x[i : i + size])
        return y

    shapes = ((13, 3, 5), (6, 2, 3), (3, 5, 7), (5, 2, 1))
    return Exercise(
        reference,
        [
            (f, rng.standard_normal((N, C)), size)
            for N, C, size in shapes
            for f in (softmax_of_rows, counted)
        ],
        hints=[
            (without_the_last, "The last block is shorter; it counts too."),
            (lambda f, x, size: f(x), "f got all rows at once: give it `size` rows at a time."),
            (
                lambda f, x, size: reference(f, x, 1),
                "f got one row at a time: give it `size` rows.",
            ),
            (
                lambda f, x, size: np.concatenate(
                    [f(part) for part in np.array_split(x, max(1, len(x) // size))]
                ),
                "Every block but the last has exactly `size` rows.",
            ),
        ],
    )


@exercise
def check_tiles():
    """T, b -> how many tiles of b x b have a pair j <= i"""

    def count(up=True, diagonal=1):
        def f(T, b):
            n = -(-T // b) if up else T // b
            return n * (n + diagonal) // 2

        return f

    return Exercise(
        count(),
        [(64, 64), (13, 5), (100, 64), (7, 1), (1024, 64), (3, 5)],
        returns=("the number of tiles",),
        hints=[
            (count(up=False), "The last rows count too: round T / b up."),
            (count(diagonal=-1), "Tiles on the diagonal have something to compute too."),
            (lambda T, b: (-(-T // b)) ** 2, "That is all tiles: those above the diagonal are "
                                            "hidden."),
            (lambda T, b: -(-T * (T + 1) // 2 // b**2), "Tiles on the diagonal are counted whole."),
        ],
    )
