"""Learned positions: a table with one trainable vector per position, added to the token embeddings.

What GPT-2 does. Nothing ties one position to the next, and a position beyond the table does not
exist.
"""
from typing import NamedTuple

import numpy as np

from minattn import checks
from minattn.errors import InputError

KIND = "embedding"
ARXIV = "1705.03122"
SUMMARY = "One trainable vector per position, read from a table and added to the token embedding."
ARGUMENTS = {"weight": "block_size C"}
OPTIONS = {}


class LearnedCache(NamedTuple):
    start: int         # the first row that was read
    length: int        # rows that were read
    block_size: int    # rows of the table, read or not
    channels: int
    dtype: np.dtype


def parameters(n_embd, block_size):
    """The table, drawn as the token embeddings are: std 0.02."""
    return {"weight": ((block_size, n_embd), ("normal", 0.02))}


def embed(length, n_embd, dtype, start, *, weight):
    """What the model adds to its embeddings: see forward."""
    return forward(length, weight, start=start)


def forward(length, weight, *, start=0):
    """Read the vectors of the positions start, ..., start + length - 1.

    pe_t = weight_{start + t}    (Gehring et al. 2017, arXiv 1705.03122, section 3.1)

    weight (block_size, C), float32 or float64 -> pe (T, C) with T = length, a copy, same dtype.
    Raises InputError when start + length exceeds block_size, or weight is not a finite float
    matrix.
    """
    length = checks.number("length", length, 0, integer=True)
    start = checks.number("start", start, 0, integer=True)
    checks.arrays(weight=(weight, "block_size C"))
    checks.finite(weight=weight)
    if start + length > len(weight):
        raise InputError("weight: axis 0 (block_size) must be at least start + length = "
                         f"{start + length}; got {len(weight)}.")
    pe = weight[start:start + length].copy()                        # 1. read the rows  (T, C)
    return pe, LearnedCache(start, length, *weight.shape, weight.dtype)


def backward(dpe, cache):
    """dpe (T, C) -> {"weight": (block_size, C)}"""
    start, T, block_size, C, dtype = cache
    checks.gradient("dpe", dpe, (T, C), dtype)

    # 1. pe = weight[start:start + length]: rows that were not read get no gradient
    dweight = np.zeros((block_size, C), dtype)
    dweight[start:start + T] = dpe
    return {"weight": dweight}
