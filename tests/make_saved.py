"""Write tests/saved/attention.safetensors: PyTorch's results, for tests where PyTorch is missing.

    PYTHONPATH=. python tests/make_saved.py

Per variant of attention_cases: the arrays that go in (stored once where several variants share
them), the cotangent, the output and every gradient, float64, causal with padded keys. The same
file every time.
"""
from functools import lru_cache
from pathlib import Path

import numpy as np
from attention_cases import VARIANTS, inputs, options_of, reference
from safetensors.numpy import load_file, save_file

FILE = Path(__file__).parent / "saved" / "attention.safetensors"
MASK = "padding-causal"


def build(variants):
    """Name -> array: "q", or "energy.q" where it differs there; "energy.out", "energy.dq", ..."""
    saved = {}
    for name in variants:
        variant = VARIANTS[name]
        arrays, options = inputs(variant, MASK), options_of(variant, MASK)
        shape = variant.module.forward(**arrays, **options)[0].shape
        dout = np.random.default_rng(1).standard_normal(shape)
        results = reference(variant, arrays, dout, **options)
        for key, x in {**arrays, "dout": dout}.items():
            shared = np.array_equal(saved.setdefault(key, x), x)
            saved[key if shared else f"{name}.{key}"] = x
        saved.update({f"{name}.{key}": x for key, x in results.items() if key != "weights"})
    return {key: np.ascontiguousarray(x) for key, x in saved.items()}


@lru_cache
def saved():
    return load_file(FILE)


SAVED = [name for name in VARIANTS if f"{name}.out" in saved()]


def load(name):
    """arrays, dout and results of a variant"""
    prefix = f"{name}."
    own = {key.removeprefix(prefix): x for key, x in saved().items() if key.startswith(prefix)}
    given = {key: own.get(key, saved().get(key)) for key in (*VARIANTS[name].shapes, "dout")}
    dout = given.pop("dout")
    return given, dout, {key: x for key, x in own.items() if key not in given and key != "dout"}


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    save_file(build(VARIANTS), FILE)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")
