"""The attention weights of a whole model: who listened to whom, in every layer and head."""
import numpy as np

from minattn import model
from minattn.errors import InputError


def weights(params, buffers, config, ids):
    """The weights that multiply the values, as the model's own forward makes them (evaluation mode, no dropout).

    params, buffers, config as model.forward takes them; ids (B, T) integers below vocab_size
    -> a list, one (B, H, T, T) per layer, dtype of params: out[b, h, i] = sum_j weights[b, h, i, j] v[b, h, j]

    Rows need not sum to 1. Sink and off-by-one rows sum to less; affine rows hold the part that is spread evenly, so
    that a weight may be negative and the sum is anything; an energy gate is in the weights and normalised; Gaussian
    weights are those of the kernel, on the channels themselves. A gate on the output comes after and is not in them.
    Raises InputError for ids that are no such array, or longer than block_size.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= config.vocab_size:
        raise InputError(f"ids must be (B, T) integers from 0 to {config.vocab_size - 1}, at least one; "
                         f"got shape {ids.shape}, dtype {ids.dtype}.")
    stack = []
    model.forward(params, ids, config, buffers=buffers, weights=stack)
    return stack
