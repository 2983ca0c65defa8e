"""Time to a loss: a preset of ours beside nanoGPT's CPU recipe (`nano`) in PyTorch, seed by seed.

Counted is the time inside training steps. Drawing batches, checkpoints and the evaluation at the
end, which is on the whole validation split, are left out on both sides.
"""
import dataclasses
import statistics
import sys

from minattn import checks, report_table, train
from minattn.bench.sides import Job, number, sides
from minattn.bench.step import presets

THEIRS = "nano"


def suite(args, problems):
    """Each preset and seed on both sides in turn -> a list of rows; prints a table."""
    seeds = range(checks.number("--seeds", args.seeds, 1, integer=True))
    rows = [{"preset": preset, "seed": seed, **_row(preset, seed, args)}
            for preset in presets(args, "fast") for seed in seeds]
    _print(rows)
    return rows


def _row(preset, seed, args):
    recipes = {"minattn": (preset, "bench.numpy_jobs")}
    if args.torch:
        recipes["PyTorch"] = (THEIRS, "bench.torch_jobs")
    row = {}
    for label, (name, module) in recipes.items():
        settings, shape = train.settings_for(name, {"seed": seed, "dropout": 0.0}
                                             if label == "PyTorch" else {"seed": seed})
        settings = dataclasses.replace(settings, eval_interval=settings.steps)
        spec = {"settings": dataclasses.asdict(settings), "shape": shape}
        print(f"seed {seed}: {name}, {label}", file=sys.stderr, flush=True)
        with sides({label: Job(module, "whole", spec, threads=args.threads)}) as group:
            (_, loss, seconds), = group[label]("job", "whole", spec, 1)["checks"]
            row[label] = {"steps": settings.steps, "seconds": seconds, "val_loss": loss,
                          "peak_bytes": group[label]("memory")["peak"]}
    row["ratio"] = row["minattn"]["seconds"] / row["PyTorch"]["seconds"] if args.torch else None
    return row


def _print(rows):
    lines = [("preset", "seed", "steps", "seconds", "val loss", "peak MB", f"PyTorch {THEIRS}: s",
              "val loss", "ratio")]
    for row in rows:
        ours, theirs = row["minattn"], row.get("PyTorch", {"seconds": None, "val_loss": None})
        lines.append((row["preset"], str(row["seed"]), str(ours["steps"]),
                      number(ours["seconds"], 1), number(ours["val_loss"], 4),
                      f"{ours['peak_bytes'] / 1e6:.0f}", number(theirs["seconds"], 1),
                      number(theirs["val_loss"], 4), number(row["ratio"], 3)))
    print("\nspeedrun: seconds inside training steps; losses on the whole validation split")
    print(report_table.text(lines, right=range(1, len(lines[0]))))
    for preset in dict.fromkeys(row["preset"] for row in rows):
        ours = [row["minattn"] for row in rows if row["preset"] == preset]
        losses = [run["val_loss"] for run in ours]
        print(f"{preset}: mean loss {statistics.mean(losses):.4f} (largest {max(losses):.4f}), "
              f"mean {statistics.mean(run['seconds'] for run in ours):.1f} s")
