"""The papers' formulas a second time, word for word, in PyTorch: slow, short and independent.

The NumPy mechanisms are one core with small edits (a bias, an extra column, a running sum) and
backwards written by hand. Here nothing is clever: weights are full matrices, gates are multiplied
in and sums divided out, distances are summed squares, masked scores are minus infinity, and
autograd does every backward. Where the two formulations agree, a slip would have had to be made
twice, in two different ways. No file here imports the NumPy code.

    attention.py    softmax, sink, off-by-one, gated, affine-scaled, energy-gated, Gaussian kernel
    positions.py    learned, sinusoidal, rotary, decay (ALiBi) and Morlet positions
    gpt.py          the whole language model, loading the NumPy model's parameters by name
"""
# ruff: noqa: F401  (these names are for others)
try:
    import torch
except ImportError as error:
    text = "minattn.torch_refs needs PyTorch, an optional extra: pip install torch"
    raise ImportError(text) from error

from .attention import (
    ATTENTION,
    Formula,
    affine_attention,
    energy_gated_attention,
    gated_attention,
    gaussian_kernel_attention,
    off_by_one_attention,
    sink_attention,
    softmax_attention,
    visible,
)
from .gpt import GPT, load_run
from .positions import POSITIONS, Encoding, alibi_slopes, decay_bias, morlet, rotary, sinusoidal
