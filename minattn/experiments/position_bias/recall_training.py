"""Train one network on in-context recall, and measure which positions it prefers.

Every batch is a function of the seed and the step, so a run that was killed continues bit for bit
from its checkpoint, and one that is given more steps continues as if it had had them from the start
(the learning rate is constant).
"""
import dataclasses
import json
import math
import os
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minattn import checks, files, ops, parallel, runs, train
from minattn.errors import InputError, NotFinite
from minattn.experiments.position_bias import recall_network, recall_task

RESULT = "result.json"
LOG, SAVE = 100, 1000        # steps per line of metrics.jsonl, and per checkpoint, a multiple
EVALUATE = 2000              # steps between evaluations on the way
ON_THE_WAY = 1000            # sequences per order of a pair in these
TOGETHER = 256               # sequences evaluated at a time
RESULT_KIND = {"of?": dict, "seed": int, "steps": int, "count": int, "gaps": {str: float},
               "loss": float, "accuracy": {str: [float]}, "train_loss": float,
               "train_accuracy": float, "seconds": float}


@dataclass(frozen=True)
class Training:
    """The paper's recipe (arXiv 2502.01951, appendix J); it takes 100,000 steps."""
    places: tuple = ()            # where the query's item is while training; (): anywhere
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-6

    def __post_init__(self):
        for place in self.places:
            checks.choice("train-bias", place, recall_task.PLACES)
        if len(set(self.places)) < len(self.places):
            raise InputError(f"train-bias names a position twice: {','.join(self.places)}.")
        checks.number("batch", self.batch, 1, integer=True)
        checks.number("lr", self.lr, above=0)
        checks.number("weight_decay", self.weight_decay, 0)

    def settings(self, steps):
        """For the trainer's update: AdamW at a constant rate, everything decays, no clipping."""
        return train.Settings(steps=steps, lr=self.lr, min_lr=self.lr, warmup=0, clip=0.0,
                              beta2=0.999, weight_decay=self.weight_decay, decay="all")


def train_network(folder, config, task, training, seed, steps, *, bar=True):
    """Train to `steps` in a run folder, from its checkpoint on -> (parameters, steps done)."""
    folder = Path(folder)
    world, settings = recall_task.world(task, seed), training.settings(steps)
    bound = bound_to(config, task, training, seed)
    old = load(folder, recall_network.parameter_shapes(config), bound)
    if old is None:
        old = runs.Checkpoint(recall_network.init(config, seed), {}, None, None, 0, 0.0)
    files.sweep(folder, (runs.CHECKPOINT, runs.PREVIOUS, runs.METRICS, RESULT))
    state = parallel.start(old.params, decay=settings.decay, m=old.m, v=old.v, step=old.step)
    if state.step >= steps:
        return state.params, state.step

    began, losses, right = time.perf_counter() - old.seconds, [], 0
    with (closing(runs.Metrics(folder, old)) as metrics, train.stopping() as asked,
          parallel.workers(1), _progress(steps, state.step, f"seed {seed}", bar) as shown,
          np.errstate(all="ignore")):
        while state.step < steps:
            rng = _rng(seed, 2, state.step)
            x, y = recall_task.training_batch(task, world, rng, training.batch, training.places)
            loss, correct = loss_and_gradients(state.params, config, x, y, state.grads)
            try:
                if not math.isfinite(loss):
                    raise NotFinite("the loss")
                parallel.update(state, settings)
            except NotFinite as error:
                raise NotFinite(f"seed {seed}, step {state.step}: {error.name}") from None
            losses.append(loss)
            right += correct
            last = state.step == steps
            if last or state.step % LOG == 0:
                row = {"step": state.step, "train_loss": math.fsum(losses) / len(losses),
                       "train_accuracy": right / (len(losses) * training.batch), "val_loss": None}
                losses, right = [], 0
                if last or state.step % EVALUATE == 0:
                    found = evaluate(state.params, config, task, world, seed, ON_THE_WAY)
                    row |= {"val_loss": found.pop("loss"), **found}
                metrics.add(**row, seconds=round(time.perf_counter() - began, 3))
                words = f"loss {row['train_loss']:.3f}, right {row['train_accuracy']:.3f}"
                shown.set_postfix_str(words, refresh=False)
                shown.update(state.step - shown.n)
            stop = bool(asked) and state.step % LOG == 0      # where a line of metrics is whole
            if last or stop or state.step % SAVE == 0:
                moments = state.named(state.m), state.named(state.v)
                seconds = time.perf_counter() - began
                runs.save_checkpoint(folder, runs.Checkpoint(state.params, {}, *moments, state.step,
                                                             seconds, bound, metrics.sync()))
            if stop and not last:
                raise KeyboardInterrupt
    return state.params, state.step


def bound_to(config, task, training, seed):
    """The settings that decide what a network becomes, as text, for its checkpoint."""
    parts = {"network": config, "task": task, "training": training}
    return json.dumps({**{name: dataclasses.asdict(part) for name, part in parts.items()},
                       "seed": seed}, sort_keys=True)


def loss_and_gradients(params, config, x, y, grads):
    """One batch -> (mean loss, number of right answers); the gradients are written into `grads`."""
    logits, cache = recall_network.forward(params, config, x)
    loss, softmax = ops.cross_entropy_forward(logits, y)
    dlogits = ops.cross_entropy_backward(1.0, softmax)["logits"]
    for name, grad in recall_network.backward(dlogits, cache, config).items():
        grads[name][...] = grad
    return loss, _right(logits, y)


def _right(logits, y):
    return int(np.count_nonzero(logits.argmax(axis=1) == y))


def evaluate(params, config, task, world, seed, count):
    """Novel classes, each pair of places in both orders, on the same `count` sequences.

    -> {"accuracy": {"first-middle": [of [first, middle], of [middle, first]], ...}, "gaps": {...},
        "loss": mean}
    A gap is the first accuracy minus the second: above 0, the network prefers the earlier place.
    """
    accuracy, losses = {}, []
    for n, pair in enumerate(recall_task.PAIRS):
        both = []
        for right, other in (pair, pair[::-1]):
            correct = 0
            for start in range(0, count, TOGETHER):
                some, rng = min(TOGETHER, count - start), _rng(seed, 3, n, start)
                x, y = recall_task.novel_batch(task, world, rng, some, right, other)
                logits, _ = recall_network.forward(params, config, x)
                correct += _right(logits, y)
                losses.append(ops.cross_entropy_forward(logits, y)[0] * some)
            both.append(correct / count)
        accuracy["-".join(pair)] = both
    gaps = {pair: a - b for pair, (a, b) in accuracy.items()}
    loss = math.fsum(losses) / (2 * len(accuracy) * count)
    return {"accuracy": accuracy, "gaps": gaps, "loss": loss}


def finish(folder, config, task, training, seed, steps, count, *, bar=True):
    """Train to the end, evaluate, write result.json -> its content. Nothing is done twice."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with runs.lock(folder):
        old = read_result(folder, config, task, training, seed)
        if old and old["steps"] == steps and old["count"] == count:
            return old
        params, done = train_network(folder, config, task, training, seed, steps, bar=bar)
        with parallel.workers(1):
            found = evaluate(params, config, task, recall_task.world(task, seed), seed, count)
        rows = runs.read_metrics(folder)
        if not rows:
            raise InputError(f"{folder / runs.METRICS} is gone, and the training loss with it: "
                             f"restore it, or remove {folder}, and the same command trains it "
                             "again.")
        result = {"of": json.loads(bound_to(config, task, training, seed)),
                  "seed": seed, "steps": done, "count": count, **found,
                  **{name: rows[-1][name] for name in ("train_loss", "train_accuracy", "seconds")}}
        files.write_json(folder / RESULT, result, indent=1)
    return result


def load(folder, shapes, bound=None):
    """The checkpoint of a run folder, or the previous one if it is damaged; None without any.

    bound: the settings that it must belong to (bound_to).
    """
    problem = None
    for name in (runs.CHECKPOINT, runs.PREVIOUS):
        path = Path(folder) / name
        if os.path.lexists(path):
            try:
                found = runs.read_checkpoint(path, shapes=shapes)
                if bound is not None:
                    runs.check_bound(path, found.config, bound)
                return found
            except InputError as error:
                problem = problem or error
    if problem:
        raise problem
    return None


def read_result(folder, config, task, training, seed):
    """result.json of one seed, or None if it cannot be read or is of another seed or settings."""
    try:
        found = files.read_json(Path(folder) / RESULT, RESULT_KIND)
    except InputError:                       # missing or damaged: the checkpoint is tested again
        return None
    wanted = json.loads(bound_to(config, task, training, seed))
    fits = found["seed"] == seed and found.pop("of", wanted) == wanted    # older ones have no "of"
    return found if fits else None


def _rng(seed, *what):
    return np.random.default_rng([seed, *what])


def _progress(steps, done, text, bar):
    from tqdm import tqdm
    return tqdm(total=steps, initial=done, desc=text, unit="step", dynamic_ncols=True,
                disable=not (bar and sys.stderr.isatty()))
