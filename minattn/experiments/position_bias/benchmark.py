"""One training step of the position-bias networks, beside the same network in PyTorch.

Both sides make the same savings: the last layer has one query, and without rotation it projects
that query onto the inputs and averages them before it projects the values. A step is forward, loss,
backward and AdamW; batches are made outside.
"""
import dataclasses

import numpy as np

from minattn import parallel, report_table, train
from minattn.bench import numpy_jobs
from minattn.bench.sides import Job, measure, milliseconds, number
from minattn.experiments.position_bias import recall_network, recall_training

session = numpy_jobs.session

HERE = "experiments.position_bias"
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
        jobs = {"minattn": Job(f"{HERE}.benchmark", "step", job, 3, args.threads)}
        for kind in args.torch_kinds:
            own = {**job, "compile": kind == "compile"}
            jobs[kind] = Job(f"{HERE}.torch_jobs", "step", own, 3, args.threads)
        found = measure(f"[{n + 1}/{len(CELLS)}] {what}", jobs, args, problems,
                        tolerance=TOLERANCE)
        seconds = found.seconds
        ratios = {label: found.ratio(label) for label in seconds if label != "minattn"}
        rows.append({"network": what, "job": job, "threads": args.threads, "turns": found.turns,
                     "seconds": seconds, "ratios": ratios})
        lines.append((what, *(milliseconds(seconds.get(label)) for label in labels),
                      number(ratios.get("eager")), number(ratios.get("compile"))))
    print(f"\nposition-bias networks: batch {BATCH} x {LENGTH} tokens, one training step, "
          f"{args.threads} threads, float32")
    print(report_table.text(lines, right=range(1, len(lines[0]))))
    return rows


def inputs(spec):
    """A position-bias network and one random batch: config, settings, params, x (B, T, C), y (B,)
    """
    config, settings = recall_network.Config(**spec["config"]), train.Settings(**spec["settings"])
    rng = np.random.default_rng(7)
    x = rng.standard_normal((settings.batch_size, spec["length"], config.width), np.float32)
    y = rng.integers(config.labels, size=settings.batch_size)
    return config, settings, recall_network.init(config, 0), x, y


def step(spec, session):
    """One training step of a position-bias network -> loss.

    On one thread: its products are too small to share.
    """
    config, settings, params, x, y = inputs(spec)
    state = parallel.start(params, decay=settings.decay)

    def work():
        loss, _ = recall_training.loss_and_gradients(state.params, config, x, y, state.grads)
        parallel.update(state, settings)
        return [loss]

    return work, 0
