"""Time to a loss: recipes of ours beside nanoGPT's CPU recipe (`nano`) in PyTorch, seed by seed.

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
# earlier records, as changes of the preset `fast`: see docs/speedrun.md
NANO = dict(n_layer=4, n_embd=128, warmup=15, lr=6e-3, momentum=0.9)
RECORDS = {
    "muon": dict(attention="softmax", muon_steps=5, steps=200, **NANO),
    "three-steps": dict(attention="softmax", steps=200, **NANO),
    "forget": dict(steps=150, **NANO),
}


def recipes(args):
    """The names that --preset lists; InputError for one that does not exist."""
    names = presets(args, "fast")
    for name in names:
        checks.choice("--preset of the speedrun", name, [*RECORDS, *train.PRESETS])
    return names


def suite(args, problems):
    """For each seed PyTorch's side, then each recipe of ours -> a list of rows; prints a table."""
    rows = []
    for seed in range(args.seeds):
        theirs = _run("PyTorch", "bench.torch_jobs", THEIRS, seed, args) if args.torch else None
        for name in recipes(args):
            ours = _run("minattn", "bench.numpy_jobs", name, seed, args)
            ratio = ours["seconds"] / theirs["seconds"] if theirs else None
            rows.append({"recipe": name, "seed": seed, "minattn": ours, "PyTorch": theirs,
                         "ratio": ratio})
    _print(rows)
    return rows


def _run(side, module, name, seed, args):
    """One training run in a process of its own."""
    preset, changes = ("fast", RECORDS[name]) if name in RECORDS else (name, {})
    settings, shape = train.settings_for(preset, {**changes, "seed": seed})
    settings = dataclasses.replace(settings, eval_interval=settings.steps)
    spec = {"settings": dataclasses.asdict(settings), "shape": shape}
    print(f"seed {seed}: {name}, {side}", file=sys.stderr, flush=True)
    with sides({side: Job(module, "whole", spec, threads=args.threads)}) as group:
        (_, loss, seconds), = group[side]("job", "whole", spec, 1)["checks"]
        return {"steps": settings.steps, "seconds": seconds, "val_loss": loss,
                "peak_bytes": group[side]("memory")["peak"]}


def _print(rows):
    """Each run, and the mean and spread of each recipe."""
    lines = [("recipe", "seed", "steps", "seconds", "val loss", "peak MB", "ratio")]

    def line(name, seed, run, ratio):
        lines.append((name, str(seed), str(run["steps"]), number(run["seconds"], 1),
                      number(run["val_loss"], 4), f"{run['peak_bytes'] / 1e6:.0f}",
                      number(ratio, 3)))

    for row in rows:
        if row["PyTorch"] and row["recipe"] == rows[0]["recipe"]:
            line(f"{THEIRS}, PyTorch", row["seed"], row["PyTorch"], 1.0)
        line(row["recipe"], row["seed"], row["minattn"], row["ratio"])
    print("\nspeedrun: seconds inside training steps; losses on the whole validation split; "
          f"ratio: our seconds relative to PyTorch's for {THEIRS}")
    print(report_table.text(lines, right=range(1, len(lines[0]))))
    for name in dict.fromkeys(row["recipe"] for row in rows):
        part = [row for row in rows if row["recipe"] == name]
        losses = [row["minattn"]["val_loss"] for row in part]
        ratios = [row["ratio"] for row in part if row["ratio"]]
        print(f"{name}: mean loss {statistics.mean(losses):.4f} ({min(losses):.4f} to "
              f"{max(losses):.4f}), {statistics.mean(r['minattn']['seconds'] for r in part):.1f} s"
              + (f", ratio {statistics.mean(ratios):.3f}" if ratios else ""))
