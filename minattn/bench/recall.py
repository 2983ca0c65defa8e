"""One training step of the position-bias networks, beside the same network in PyTorch.

Both sides make the same savings: the last layer asks with one query, and without rotation it takes
that query to the keys and averages before it projects. A step is forward, loss, backward and AdamW;
batches are made outside.
"""
import dataclasses

from minattn import report_table
from minattn.bench.sides import Job, measure, milliseconds, number, ratio, spread
from minattn.experiments.position_bias import recall_network, recall_training

CELLS = (("causal", "none", 2, False), ("causal", "rope", 2, True), ("causal", "none", 6, False),
         ("causal", "rope", 10, True))
BATCH, LENGTH = 128, 17
TOLERANCE = 2e-3                   # relative, of three steps' losses in float32


def suite(args, problems):
    """Every network -> a list of rows; prints a table."""
    rows, labels = [], ("minattn", "eager", "compile")
    settings = dataclasses.asdict(recall_training.Training().settings(1))
    settings["batch_size"] = BATCH
    lines = [("network", *(f"{label} ms" for label in labels), "/eager", "/compile")]
    for n, (mask, position, layers, residual) in enumerate(CELLS):
        what = f"{layers} layers, {mask}, {position}"
        if residual:
            what += ", residual"
        config = recall_network.Config(layers=layers, mask=mask, position=position,
                                       residual=residual)
        job = {"config": dataclasses.asdict(config), "settings": settings, "length": LENGTH}
        jobs = {"minattn": Job("numpy_jobs", "recall", job, 3, args.threads)}
        for kind in args.torch_kinds:
            own = {**job, "compile": kind == "compile"}
            jobs[kind] = Job("torch_jobs", "recall", own, 3, args.threads)
        times = measure(f"[{n + 1}/{len(CELLS)}] {what}", jobs, args, problems,
                        tolerance=TOLERANCE).turns
        seconds = {label: spread(turns) for label, turns in times.items()}
        ratios = {label: ratio(times["minattn"], times[label]) for label in times
                  if label != "minattn"}
        rows.append({"network": what, "job": job, "threads": args.threads, "turns": times,
                     "seconds": seconds, "ratios": ratios})
        lines.append((what, *(milliseconds(seconds.get(label)) for label in labels),
                      number(ratios.get("eager")), number(ratios.get("compile"))))
    print(f"\nposition-bias networks: batch {BATCH} x {LENGTH} tokens, one training step, "
          f"{args.threads} threads, float32")
    print(report_table.text(lines, right=range(1, len(lines[0]))))
    return rows
