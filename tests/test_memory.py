"""Memory grows with the number of tokens, not with its square, forward and backward."""
import tracemalloc

import numpy as np
import pytest
from attention_cases import VARIANTS, cotangent, inputs, run

from minattn.attention import core

T = 1303
SIZES = {"B": 1, "H": 2, "G": 2, "Tq": T, "Tk": T, "T": T, "D": 8, "Dv": 8, "Dv|1": 8}
LONG = {name: variant for name, variant in VARIANTS.items()
        if not variant.extra and ":" not in name and "sigmoid" not in name}


def peak(variant, **options):
    arrays = inputs(variant, dtype=np.float32, **SIZES)
    tracemalloc.start()
    try:
        out, cache = variant.module.forward(**arrays, **variant.options, **options)
        variant.module.backward(cotangent(out), cache)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("options", [{"causal": True}, {"window": 99, "prefix": 300}],
                         ids=["causal", "window_prefix"])
@pytest.mark.parametrize("name", LONG)
def test_no_square_array(name, options, monkeypatch):
    monkeypatch.setattr(core, "KEEP_BYTES", 0)
    assert peak(LONG[name], **options) < T * T * 4          # what the scores of one head would take


def test_short_sequences_keep_their_weights():
    """The test above would notice: with the weights kept, they are there."""
    assert peak(LONG["softmax"], causal=True) > T * T * 4


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_made_again_are_the_same_to_the_last_bit(name, monkeypatch):
    variant = VARIANTS[name]
    arrays = inputs(variant, dtype=np.float32)
    kept = run(variant, arrays, **variant.options, causal=True)
    monkeypatch.setattr(core, "KEEP_BYTES", 0)
    again = run(variant, arrays, **variant.options, causal=True)
    assert all(np.array_equal(kept[key], again[key]) for key in kept)
