"""Write tests/saved/gpt.safetensors: PyTorch's results, for tests where PyTorch is missing.

    PYTHONPATH=. python tests/make_saved_gpt.py
"""
from pathlib import Path

from gpt_cases import SAVED, TINY, config_of, inputs, run_torch
from safetensors.numpy import save_file

FILE = Path(__file__).parent / "saved" / "gpt.safetensors"
KEYS = ("logits", "loss", "losses", "norms", "grad/", "after/logits")  # the last has them all


def results():
    """CASE/KEY -> array, float64"""
    found = {}
    for case in SAVED:
        config = config_of(case, **TINY)
        result = run_torch(config, *inputs(config))
        found.update((f"{case}/{key}", a) for key, a in result.items() if key.startswith(KEYS))
    return found


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    save_file(results(), FILE)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")
