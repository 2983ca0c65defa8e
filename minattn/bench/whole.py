"""A whole training run, up to the last validation loss, beside the same run in PyTorch."""
import dataclasses
import sys

from minattn import report_table, train
from minattn.bench.sides import Job, number, sides
from minattn.bench.step import presets


def suite(args, problems):
    """Each preset once on each side, one after the other -> a list of rows; prints a table."""
    rows = []
    lines = [("preset", "minattn s", "PyTorch s", "ratio", "val loss", "PyTorch's", "peak MB")]
    modules = {"minattn": "bench.numpy_jobs"}
    if args.torch:
        modules["PyTorch"] = "bench.torch_jobs"
    for preset in presets(args):
        settings, shape = train.settings_for(preset, {"dropout": 0.0})
        spec = {"settings": dataclasses.asdict(settings), "shape": shape}
        row = {"preset": preset}
        for label, module in modules.items():
            job = Job(module, "whole", spec, threads=args.threads)
            print(f"{preset}: the whole run, {label}", file=sys.stderr, flush=True)
            with sides({label: job}) as group:
                (seconds, loss, _), = group[label]("job", job.name, job.spec, 1)["checks"]
                row[label] = {"seconds": seconds, "val_loss": loss,
                              "peak_bytes": group[label]("memory")["peak"]}
        ours, theirs = row["minattn"], row.get("PyTorch", {"seconds": None, "val_loss": None})
        row["ratio"] = ours["seconds"] / theirs["seconds"] if args.torch else None
        rows.append(row)
        peaks = (f"{row[label]['peak_bytes'] / 1e6:.0f}" for label in modules)
        lines.append((preset, number(ours["seconds"], 1), number(theirs["seconds"], 1),
                      number(row["ratio"]), number(ours["val_loss"], 4),
                      number(theirs["val_loss"], 4), " / ".join(peaks)))
    print("\nwhole runs: the same weights, batches and evaluations, the last on the whole "
          "validation split")
    print(report_table.text(lines, right=range(1, len(lines[0]))))
    return rows
