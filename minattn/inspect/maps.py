"""The attention weights of a whole model, in every layer and head."""
import numpy as np

from minattn import model
from minattn.errors import InputError


def weights(params, buffers, config, ids):
    """The weights that multiply the values in the model's own forward (evaluation, no dropout).

    params, buffers, config as model.forward takes them; ids (B, T) integers below vocab_size
    -> a list with one (B, H, T, T) per layer, dtype of params:
       out[b, h, i] = sum_j weights[b, h, i, j] v[b, h, j]

    Rows need not sum to 1. Rows of sink and off_by_one sum to less; affine rows include the part
    that is spread evenly, so a weight may be negative and the sum is arbitrary; energy gates are
    included and normalised; Gaussian weights are those of the kernel, on the channels themselves. A
    gate on the output comes later and is not included. Raises InputError unless ids is such an
    array, at most block_size long.
    """
    ids = np.asarray(ids)
    if (ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu"
            or ids.min() < 0 or ids.max() >= config.vocab_size):
        raise InputError(f"ids must be (B, T) integers from 0 to {config.vocab_size - 1}, at least "
                         f"one; got shape {ids.shape}, dtype {ids.dtype}.")
    stack = []
    model.forward(params, ids, config, buffers=buffers, weights=stack)
    return stack
