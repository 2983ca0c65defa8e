"""Grades the exercises of lesson 08: Gaussian kernel attention."""

import numpy as np

from minattn.attention import gaussian
from minattn.lessons.grading import Exercise, exercise
from minattn.validate.cases import cases


def _weights(x, sigma):
    """x (T, D) -> W (T, T), every query sees every key."""
    return gaussian.forward(
        x[None, None], np.log([float(sigma)]).astype(x.dtype), return_weights=True
    )[2][0, 0]


def _softmax(s):
    P = np.exp(s - s.max(axis=1, keepdims=True))
    return P / P.sum(axis=1, keepdims=True)


def _from_cases():
    """(x, W, do, sigma) of each sample and head of the kit's causal case."""
    (case,) = cases("gaussian", only=["causal/*"])[:1]
    x, log_sigma = case.arrays["x"], case.arrays["log_sigma"]
    W = gaussian.forward(x, log_sigma, **case.options, return_weights=True)[2]
    return [
        (x[b, h], W[b, h], case.cotangent[b, h], float(np.exp(log_sigma[h])))
        for b in range(len(x))
        for h in range(len(log_sigma))
    ]


@exercise
def check_queries_and_keys():
    """x (T, D), sigma -> q, k such that the softmax of q k^T is the kernel's W;
    judged by that softmax.
    """
    rng = np.random.default_rng(0)

    def attended(function):
        def weights(x, sigma):
            came = function(x, sigma)
            if came is None or came is ...:
                return None
            q, k = came
            return _softmax(np.asarray(q) @ np.asarray(k).T)

        return weights

    def extended(key_bias, scale):
        return lambda x, sigma: (
            scale(sigma) * np.hstack([x, np.ones((len(x), 1))]),
            np.hstack([x, key_bias((x**2).sum(axis=1, keepdims=True))]),
        )

    usual = lambda sigma: 1 / sigma**2
    return Exercise(
        _weights,
        [(rng.standard_normal((7, 5)), 1.3), (rng.standard_normal((13, 3)) + 0.5, 0.7)],
        returns=("the softmax of q k^T",),
        judged_as=attended,
        hints=[
            (
                lambda x, sigma: (x / sigma**2, x),
                "The keys' |x_j|^2 is missing: long keys must not win by their length.",
            ),
            (extended(lambda n: -n, usual), "The square of the length counts half."),
            (extended(lambda n: n / 2, usual), "The bias on the keys has a minus sign."),
            (
                extended(lambda n: -n / 2, lambda sigma: 1 / sigma),
                "Divide by sigma^2, not by sigma.",
            ),
            (
                extended(lambda n: -n / 2, lambda sigma: 1 / (2 * sigma**2)),
                "Too flat by a factor 2: the 2 of the exponent and that of 2 x_i . x_j cancel.",
            ),
            (extended(lambda n: -n / 2, lambda sigma: 1), "sigma is missing."),
        ],
    )


@exercise
def check_weights_in_float32():
    """x (T, D) float32 with a large offset, sigma -> W (T, T); judged at 1e-4,
    which float32 keeps if nothing is lost.
    """
    rng = np.random.default_rng(0)
    given = [
        ((rng.standard_normal((13, 5)) + 700 * rng.standard_normal(5)).astype(np.float32), 1.5),
        ((rng.standard_normal((61, 11)) / 2 + 1000).astype(np.float32), 0.75),
    ]

    def by_differences(x, sigma):
        return _softmax(-((x[:, None] - x) ** 2).sum(axis=2) / np.float32(2 * sigma**2))

    def as_it_stands(x, sigma):
        return _softmax((x @ x.T - (x**2).sum(axis=1) / 2) / np.float32(sigma**2))

    return Exercise(
        lambda x, sigma: _weights(x.astype(np.float64), sigma),
        given,
        returns=("W",),
        tolerance=1e-4,
        hints=[
            (
                as_it_stands,
                "That is the identity as it stands: |x|^2 is some millions here, and float32 "
                "rounds away the distances.",
            ),
            *(
                (
                    lambda x, sigma, f=f: f(x - x.mean(axis=1, keepdims=True), sigma),
                    "That shifts every token by its own mean, so distances change: shift all by "
                    "the same vector.",
                )
                for f in (by_differences, as_it_stands)
            ),
            (
                lambda x, sigma: by_differences(
                    x / np.linalg.norm(x, axis=1, keepdims=True), sigma
                ),
                "A norm changes the distances.",
            ),
            (
                lambda x, sigma: by_differences((x - x.mean(axis=0)) / x.std(axis=0), sigma),
                "The shift is right; dividing by a deviation changes the distances.",
            ),
        ],
    )


@exercise
def check_gradient_log_sigma():
    """x (T, D), W (T, T), do (T, D), sigma -> number."""

    def parts(x, W, do, sigma):
        dW = do @ x.T
        return (
            W * (dW - (W * dW).sum(axis=1, keepdims=True)),
            ((x[:, None] - x) ** 2).sum(axis=2) / sigma**2,
            dW,
        )

    def reference(x, W, do, sigma):
        ds, d2, _ = parts(x, W, do, sigma)
        return float((ds * d2).sum())

    def row_sum_missing(x, W, do, sigma):
        _, d2, dW = parts(x, W, do, sigma)
        return float((W * dW * d2).sum())

    def at_dW(x, W, do, sigma):
        _, d2, dW = parts(x, W, do, sigma)
        return float((dW * d2).sum())

    def shortened(x, W, do, sigma):
        ds, _, _ = parts(x, W, do, sigma)
        return float(-2 * (ds * (x @ x.T)).sum() / sigma**2)

    return Exercise(
        reference,
        _from_cases(),
        returns=("dl",),
        hints=[
            (lambda *a: -reference(*a), "The sign: a wider kernel raises every score towards 0."),
            (lambda *a: reference(*a) / 2, "The 2 of exp(-2 l) is missing."),
            (
                lambda *a: reference(*a) / a[3],
                "That is the gradient for sigma; for log_sigma it is multiplied by sigma.",
            ),
            (row_sum_missing, "The softmax: subtract the row sum of W dW from dW."),
            (at_dW, "That is dW; the scores lie on the other side of the softmax."),
            (
                shortened,
                "The scores are minus the squared distance: the lengths of the keys are missing.",
            ),
        ],
    )


@exercise
def check_gradient_x():
    """x (T, D), W (T, T), do (T, D), sigma -> (T, D)."""

    def parts(x, W, do):
        dW = do @ x.T
        return W * (dW - (W * dW).sum(axis=1, keepdims=True))

    def pull(x, A, sigma):
        return (A.sum(axis=1, keepdims=True) * x - A @ x) / sigma**2

    def reference(x, W, do, sigma):
        ds = parts(x, W, do)
        return W.T @ do - pull(x, ds + ds.T, sigma)

    def made(f):
        return lambda x, W, do, sigma: f(x, W, do, sigma, parts(x, W, do))

    return Exercise(
        reference,
        _from_cases(),
        returns=("dx",),
        hints=[
            (
                lambda x, W, do, sigma: W.T @ do,
                "That is the role of value; query and key are missing.",
            ),
            (
                made(lambda x, W, do, sigma, ds: -pull(x, ds + ds.T, sigma)),
                "The role of value, W^T do, is missing.",
            ),
            (
                made(lambda x, W, do, sigma, ds: W.T @ do - pull(x, ds, sigma)),
                "The role of key is missing: A = ds + ds^T.",
            ),
            (
                made(lambda x, W, do, sigma, ds: W.T @ do - pull(x, ds.T, sigma)),
                "The role of query is missing: A = ds + ds^T.",
            ),
            (
                made(lambda x, W, do, sigma, ds: W.T @ do + pull(x, ds + ds.T, sigma)),
                "The sign of the second term.",
            ),
            (
                made(lambda x, W, do, sigma, ds: W.T @ do - pull(x, (ds + ds.T) / 2, sigma)),
                "A is ds plus its transpose, not the mean of the two.",
            ),
            (
                made(lambda x, W, do, sigma, ds: W @ do - pull(x, ds + ds.T, sigma)),
                "o = W x gives W^T do: transposed.",
            ),
            (
                made(lambda x, W, do, sigma, ds: W.T @ do - pull(x, ds + ds.T, 1)),
                "1 / sigma^2 is missing.",
            ),
        ],
    )
