"""Answers to the exercises of lesson 22, right and wrong, and what a wrong one is told."""

import numpy as np


def by_svd(G):
    U, _, Vt = np.linalg.svd(G, full_matrices=False)
    return U @ Vt


def by_eigenvectors(G):
    """G (G^T G)^(-1/2), or from the other side"""
    if G.shape[0] < G.shape[1]:
        return by_eigenvectors(G.T).T
    squares, V = np.linalg.eigh(G.T @ G)
    return G @ (V / np.sqrt(squares)) @ V.T


def by_steps(G):
    """Newton-Schulz with coefficients that settle at 1"""
    X = G / np.linalg.norm(G)
    for _ in range(80):
        X = 1.5 * X - 0.5 * X @ X.T @ X
    return X.tolist()


def schulz_from_the_right(X, a, b, c):
    B = X.T @ X
    return X @ (a * np.eye(len(B)) + b * B + c * np.linalg.matrix_power(B, 2))


def schulz_by_terms(X, a, b, c):
    third = X @ X.T @ X
    return a * X + b * third + c * X @ X.T @ third


def schulz_by_einsum(X, a, b, c):
    third = np.einsum("ij,kj,kl->il", X, X, X)
    return (a * X + b * third + c * np.einsum("ij,kj,kl->il", X, X, third)).tolist()


def schulz_by_singular_values(X, a, b, c):
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    return U @ np.diag(s * (a + s**2 * (b + c * s**2))) @ Vt


def schulz(formula):
    return lambda X, a, b, c: formula(X, X @ X.T, a, b, c)


RIGHT = {
    "steepest": [by_svd, by_eigenvectors, by_steps],
    "newton_schulz_step": [
        schulz_from_the_right,
        schulz_by_terms,
        schulz_by_einsum,
        schulz_by_singular_values,
        lambda X, a, b, c: schulz_by_terms(X.T, a, b, c).T,
    ],
}
WRONG = {
    "steepest": [
        (lambda G: G / np.linalg.norm(G, 2), "the others may be 1"),
        (lambda G: G / np.sqrt((G**2).sum()), "sum of the squares"),
        (lambda G: np.where(G > 0, 1.0, -1.0), "Adam"),
        (lambda G: -by_svd(G), "The sign"),
        (lambda G: np.linalg.pinv(G).T, "inverted"),
        (lambda G: by_svd(G).T, "shape"),
        (lambda G: np.matmul(*np.linalg.svd(G)[::2]), "raised ValueError"),
        (lambda G: np.linalg.svd(G, full_matrices=False)[0], "shape"),
        (lambda G: by_svd(G) / 2, "should be"),
    ],
    "newton_schulz_step": [
        (lambda X, a, b, c: a * X + b * X**3 + c * X**5, "the single entries"),
        (schulz(lambda X, A, a, b, c: a * X + (b * A + c * A * A) @ X), "A @ A"),
        (schulz(lambda X, A, a, b, c: a * X + b * A @ X), "with c is missing"),
        (schulz(lambda X, A, a, b, c: a * X + c * A @ A @ X), "with b is missing"),
        (schulz(lambda X, A, a, b, c: b * A @ X + c * A @ A @ X), "a X is missing"),
        (schulz(lambda X, A, a, b, c: X + b * A @ X + c * A @ A @ X), "a X, not X"),
        (schulz(lambda X, A, a, b, c: a * X + b * A @ X + c * A @ A @ A @ X), "seventh power"),
        (schulz(lambda X, A, a, b, c: a * X + b * A @ X + c * A @ X), "fifth power"),
        (schulz(lambda X, A, a, b, c: a * X - b * A @ X - c * A @ A @ X), "negative already"),
        (schulz(lambda X, A, a, b, c: a * X + c * A @ X + b * A @ A @ X), "exchanged"),
        (schulz(lambda X, A, a, b, c: a + b * A @ X + c * A @ A @ X), "every entry"),
        (schulz(lambda X, A, a, b, c: a * np.eye(len(A)) + b * A + c * A @ A), "shape (5, 7)"),
        (lambda X, a, b, c: schulz_by_terms(X, a, b, c).T, "should have shape (5, 7); got (7, 5)"),
        (lambda X, a, b, c: a * X + b * X.T @ X @ X, "raised ValueError"),
        (lambda X, a, b, c: schulz_by_terms(X, a, b, c) / 2, "should be"),
    ],
}
