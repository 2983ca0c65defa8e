"""Write tests/saved/attention.safetensors: what the PyTorch references say, for tests where PyTorch is missing.

    python tests/make_saved.py

Per variant of attention_cases: the arrays that go in (stored once where several variants share them), the cotangent,
the output and every gradient, float64, causal with padded keys. The same file every time.
"""
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FILE = HERE / "saved" / "attention.safetensors"
MASK = "padding-causal"


def build():
    """Name -> array: "q", or "energy-key.q" where that variant's differs; "energy-key.out", "energy-key.dq", ..."""
    from attention_cases import VARIANTS, inputs, options_of, reference
    saved = {}
    for name, variant in VARIANTS.items():
        arrays = inputs(variant, MASK)
        shape = (variant.module.forward(**arrays, **options_of(variant, MASK))[0]).shape
        dout = np.random.default_rng(1).standard_normal(shape)
        results = reference(variant, arrays, dout, **options_of(variant, MASK))
        for key, x in {**arrays, "dout": dout}.items():
            shared = np.array_equal(saved.setdefault(key, x), x)
            saved[key if shared else f"{name}.{key}"] = x
        saved.update({f"{name}.{key}": x for key, x in results.items() if key != "weights"})
    return {key: np.ascontiguousarray(x) for key, x in saved.items()}


def load():
    """variant -> (arrays, dout, results), from the file"""
    from attention_cases import VARIANTS
    from safetensors.numpy import load_file
    saved, cases = load_file(FILE), {}
    for name, variant in VARIANTS.items():
        find = lambda key, name=name: saved.get(f"{name}.{key}", saved[key])
        own = {key[len(name) + 1:]: x for key, x in saved.items() if key.startswith(f"{name}.")}
        results = {key: x for key, x in own.items() if key == "out" or key[0] == "d" and key[1:] in variant.shapes}
        cases[name] = {key: find(key) for key in variant.shapes}, find("dout"), results
    return cases


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    from safetensors.numpy import save_file
    FILE.parent.mkdir(exist_ok=True)
    save_file(build(), FILE)
    print(f"{FILE.relative_to(HERE.parent)}: {FILE.stat().st_size:,} bytes")
