"""Write tests/saved/gpt.safetensors: what PyTorch says, for machines that do not have it. From the repository root:

    PYTHONPATH=. python tests/make_saved_gpt.py
"""
from pathlib import Path

from gpt_cases import SAVED, TINY, config_of, inputs, run_torch
from safetensors.numpy import save_file

FILE = Path(__file__).parent / "saved" / "gpt.safetensors"
KEYS = ("logits", "loss", "losses", "norms", "grad/", "after/logits")     # the last hears from every parameter


def results():
    """CASE/KEY -> array, float64"""
    found = {}
    for case in SAVED:
        config = config_of(case, **TINY)
        result = run_torch(config, *inputs(config))
        found.update((f"{case}/{key}", array) for key, array in result.items() if key.startswith(KEYS))
    return found


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    save_file(results(), FILE)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")
