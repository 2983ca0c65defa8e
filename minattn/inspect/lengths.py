"""The loss of the same characters, read with longer and longer contexts.

A model trained on windows of block_size tokens may be asked to read more. Whether that helps or
ruins it depends on the positions and on the row rule.
"""
import dataclasses

import numpy as np

from minattn import checks, model, ops
from minattn.errors import InputError

TOKENS = 8192         # read at a time


def reading(config, length):
    """The config with windows of `length` tokens; InputError where it has no such windows."""
    checks.number("--lengths", length, config.block_size, integer=True)
    longer = dataclasses.replace(config, block_size=length)
    now, then = ({name: shape for name, (shape, _) in model.parameter_shapes(c).items()}
                 for c in (config, longer))
    if now != then:
        raise InputError(f"{config.position} positions have parameters for {config.block_size} "
                         f"tokens, so the model cannot read {length}; leave --lengths out, or "
                         "choose rope, decay, sinusoidal or none.")
    if config.window_pattern:
        raise InputError("with a window pattern, half of block_size is the window of some layers: "
                         "leave --lengths out, or give --window.")
    return longer


def check_text(lengths, ids):
    """InputError unless a text is longer than every one of these windows."""
    if max(lengths) >= len(ids):
        raise InputError(f"--lengths must be below {len(ids):,}, the characters of the text; "
                         f"got {max(lengths)}.")


def losses(params, buffers, config, ids, lengths, n, *, over=map):
    """Nats per character of the last block_size predictions of windows, for each length.

    ids (N,) a text; n windows, evenly spread. The predicted characters are the same for every
    length; only how many come before them differs: with length L, a window's last prediction reads
    L characters. lengths: whole numbers of at least block_size. -> {length: loss}
    Evaluation mode, in the precision of params. over: a map, which may use threads.
    """
    T = config.block_size
    check_text(lengths, ids)
    ends = np.linspace(max(lengths), len(ids) - 1, n).astype(int)

    def loss(length):
        config_here = reading(config, length)

        def nats(some):
            x = ids[some[:, None] + np.arange(-length, 0)]                    # (n, length)
            logits = model.forward(params, x, config_here, buffers=buffers)[0][:, -T:]
            y = ids[some[:, None] + np.arange(1 - T, 1)]
            part = ops.cross_entropy_forward(logits.reshape(-1, logits.shape[2]), y.ravel())[0]
            return part * len(some) / n
        return float(sum(over(nats, np.array_split(ends, -(-n * length // TOKENS)))))

    return {length: loss(length) for length in lengths}
