"""One training step of the position-bias networks (minattn.experiments.position_bias.recall_network), beside the same network in PyTorch.

Both sides make the same savings: the last layer asks with one query, and without rotation it takes that query to the keys and
averages before it projects. A step is forward, loss, backward and AdamW; batches are made outside.
"""
import dataclasses

from minattn.bench.sides import compare, milliseconds, prepare, print_table, progress, ratio, sides, spread, take_turns
from minattn.experiments.position_bias import recall_network

CELLS = (("causal", "none", 2, False), ("causal", "rope", 2, True), ("causal", "none", 6, False), ("causal", "rope", 10, True))
BATCH, LENGTH = 128, 17
TOLERANCE = 2e-3                   # relative, of three steps' losses in float32


def suite(args, torch, problems):
    """Every network -> a list of rows; prints a table."""
    rows = []
    for n, (mask, position, layers, residual) in enumerate(CELLS):
        what = f"{layers} layers, {mask}, {position}{', residual' * residual}"
        progress(f"[{n + 1}/{len(CELLS)}] {what}")
        config = recall_network.Config(layers=layers, mask=mask, position=position, residual=residual)
        job = {"config": dataclasses.asdict(config), "batch": BATCH, "length": LENGTH, "lr": 1e-3, "weight_decay": 1e-6}
        jobs = {"minattn": ("numpy_jobs", ("recall", job, 3))}
        for label in ("eager", "compile")[:2 - args.no_compile] if torch else ():
            jobs[label] = ("torch_jobs", ("recall", {**job, "compile": label == "compile"}, 3))
        with sides({label: (module, args.threads) for label, (module, _) in jobs.items()}) as group:
            answers = prepare(group, {label: work for label, (_, work) in jobs.items()}, problems)
            compare(what, answers, TOLERANCE, problems)
            times = take_turns(group, answers, args.repeat, problems)
        rows.append({"network": what, "job": job, "threads": args.threads, "turns": times,
                     "seconds": {label: spread(turns) for label, turns in times.items()},
                     "ratios": {label: ratio(times["minattn"], times[label]) for label in times if label != "minattn"}})
    print(f"\nposition-bias networks: batch {BATCH} x {LENGTH} tokens, one training step, {args.threads} threads, float32")
    table = [("network", "", "minattn ms", "eager ms", "compile ms", "/eager", "/compile")]
    for row in rows:
        shown = [f"{row['ratios'][label]:.2f}" if label in row["ratios"] else "-" for label in ("eager", "compile")]
        table.append((row["network"], "", *(milliseconds(row["seconds"].get(label)) for label in ("minattn", "eager", "compile")), *shown))
    print_table(table)
    return rows
