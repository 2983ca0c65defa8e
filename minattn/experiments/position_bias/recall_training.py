"""Train one network on in-context recall, and ask it which places it prefers.

Every batch is a function of the seed and the step, so a run that was killed goes on bit for bit from its checkpoint, and
one that is given more steps goes on as if it had had them from the start (the learning rate is constant).
"""
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minattn import checks, ops, optim, parallel, runs
from minattn.errors import InputError
from minattn.experiments.position_bias import recall_network, recall_task
from minattn.train import Diverged

RESULT = "result.json"
LOG, SAVE = 100, 1000        # steps per line of metrics.jsonl, steps per checkpoint: the first divides the second
EVALUATE = 2000              # steps between evaluations on the way
ON_THE_WAY = 1000            # sequences per order of a pair in these
TOGETHER = 256               # sequences evaluated at a time


@dataclass(frozen=True)
class Training:
    """The paper's recipe (arXiv 2502.01951, appendix J), but for the number of steps: it takes 100,000."""
    places: tuple = ()            # where the query's item lies while training; (): anywhere
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-6

    def __post_init__(self):
        for place in self.places:
            checks.choice("train-bias", place, recall_task.PLACES)
        if len(set(self.places)) < len(self.places):
            raise InputError(f"train-bias names a place twice: {','.join(self.places)}.")
        checks.number("batch", self.batch, 1, integer=True)
        checks.number("lr", self.lr, above=0)
        checks.number("weight_decay", self.weight_decay, 0)


def train(folder, config, task, training, seed, steps, *, bar=True):
    """Train to `steps` in a run folder, from where its checkpoint stands -> (parameters, steps done)."""
    folder = Path(folder)
    world, shapes = recall_task.world(task, seed), recall_network.parameter_shapes(config)
    state = load(folder, shapes)
    if state is None:
        params = recall_network.init(config, seed)
        zeros = {name: np.zeros_like(a) for name, a in params.items()}
        state = runs.Checkpoint(params, {}, zeros, zeros, 0, 0.0)
    p, m, v = (np.concatenate([part[name].ravel() for name in shapes]) for part in (state.params, state.m, state.v))
    g = np.empty_like(p)
    params, grads, first, second = (optim.views_of(vector, shapes) for vector in (p, g, m, v))
    step, before, began = state.step, state.seconds, time.perf_counter()
    if step >= steps:
        return params, step

    metrics, losses, right = runs.Metrics(folder, keep=step), [], 0
    try:
        with parallel.workers(1), _progress(steps, step, f"seed {seed}", bar) as shown, np.errstate(all="ignore"):
            while step < steps:
                x, y = recall_task.training_batch(task, world, _rng(seed, 2, step), training.batch, training.places)
                loss, correct = loss_and_gradients(params, config, x, y, grads)
                step += 1
                optim.adamw(p, g, m, v, step, training.lr, weight_decay=training.weight_decay)
                losses.append(loss)
                right += correct
                last = step == steps
                if last or step % LOG == 0:
                    loss = math.fsum(losses) / len(losses)
                    if not (math.isfinite(loss) and np.isfinite(p).all()):
                        raise Diverged(f"seed {seed}, step {step}: the loss or a parameter is not finite; try a smaller --lr.")
                    row = {"step": step, "train_loss": loss, "train_accuracy": right / (len(losses) * training.batch), "val_loss": None}
                    if last or step % EVALUATE == 0:
                        found = evaluate(params, config, task, world, seed, ON_THE_WAY)
                        row |= {"val_loss": found["loss"], "accuracy": found["accuracy"], "gaps": found["gaps"]}
                    metrics.add(**row, seconds=round(before + time.perf_counter() - began, 3))
                    shown.set_postfix_str(f"loss {loss:.3f}, right {row['train_accuracy']:.3f}", refresh=False)
                    shown.update(step - shown.n)
                    losses, right = [], 0
                if last or step % SAVE == 0:
                    metrics.flush()
                    seconds = before + time.perf_counter() - began
                    runs.save_checkpoint(folder, runs.Checkpoint(params, {}, first, second, step, seconds))
    finally:
        metrics.close()
    return params, step


def loss_and_gradients(params, config, x, y, grads):
    """One batch -> (mean loss, how many answers were right); the gradients are written into `grads`."""
    logits, cache = recall_network.forward(params, config, x)
    loss, softmax = ops.cross_entropy_forward(logits, y)
    new = recall_network.backward(ops.cross_entropy_backward(1.0, softmax)["logits"], cache, config)
    for name, grad in grads.items():
        grad[...] = new[name]
    return loss, int(np.count_nonzero(logits.argmax(axis=1) == y))


def evaluate(params, config, task, world, seed, count):
    """Novel classes, each pair of places in both orders, on the same `count` sequences.

    -> {"accuracy": {"first-middle": [of [first, middle], of [middle, first]], ...}, "gaps": {...}, "loss": mean}
    A gap is the first accuracy less the second: above 0, the earlier place is preferred.
    """
    accuracy, losses = {}, []
    for n, pair in enumerate(recall_task.PAIRS):
        both = []
        for right, other in (pair, pair[::-1]):
            correct = 0
            for start in range(0, count, TOGETHER):
                some = min(TOGETHER, count - start)
                x, y = recall_task.novel_batch(task, world, _rng(seed, 3, n, start), some, right, other)
                logits, _ = recall_network.forward(params, config, x)
                correct += int(np.count_nonzero(logits.argmax(axis=1) == y))
                losses.append(ops.cross_entropy_forward(logits, y)[0] * some)
            both.append(correct / count)
        accuracy["-".join(pair)] = both
    gaps = {pair: a - b for pair, (a, b) in accuracy.items()}
    return {"accuracy": accuracy, "gaps": gaps, "loss": math.fsum(losses) / (2 * len(accuracy) * count)}


def finish(folder, config, task, training, seed, steps, count, *, bar=True):
    """Train to the end, evaluate, write result.json -> its content. What is already there is not done again."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with runs.lock(folder):
        old = read_result(folder)
        if old and old["steps"] == steps and old["count"] == count:
            return old
        params, done = train(folder, config, task, training, seed, steps, bar=bar)
        with parallel.workers(1):
            found = evaluate(params, config, task, recall_task.world(task, seed), seed, count)
        result = {"seed": seed, "steps": done, "count": count, **found}
        rows = runs.read_metrics(folder)
        result |= {"train_loss": rows[-1]["train_loss"], "train_accuracy": rows[-1]["train_accuracy"], "seconds": rows[-1]["seconds"]}
        runs.write_aside(folder / RESULT, (json.dumps(result, indent=1) + "\n").encode())
    return result


def load(folder, shapes):
    """The checkpoint of a run folder, the previous one if the last is damaged; None if there is none."""
    problem = None
    for name in (runs.CHECKPOINT, runs.PREVIOUS):
        if (Path(folder) / name).exists():
            try:
                return runs.read_checkpoint(Path(folder) / name, shapes=shapes)
            except InputError as error:
                problem = problem or error
    if problem:
        raise problem
    return None


def read_result(folder):
    """result.json of one seed, or None where there is none that can be read."""
    try:
        result = json.loads((Path(folder) / RESULT).read_text(encoding="utf-8"))
        return result if {"seed", "steps", "count", "gaps", "accuracy"} <= set(result) else None
    except (OSError, ValueError, TypeError):
        return None


def _rng(seed, *what):
    return np.random.default_rng([seed, *what])


def _progress(steps, done, text, bar):
    from tqdm import tqdm
    return tqdm(total=steps, initial=done, desc=text, unit="step", dynamic_ncols=True, disable=not (bar and sys.stderr.isatty()))
