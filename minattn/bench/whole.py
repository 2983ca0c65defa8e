"""A whole training run, from nothing to the last validation loss, beside the same run in PyTorch."""
import dataclasses
import os
import tempfile
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path

from minattn import data, model, optim, runs, train
from minattn.bench.sides import print_table, progress, sides


def spec(preset):
    """Everything that defines the run, as plain values."""
    settings, shape = train.settings_for(preset, {"dropout": 0.0})
    return {"settings": dataclasses.asdict(settings), "shape": shape}


def suite(args, torch, problems):
    """Each preset once on each side, one after the other -> a list of rows; prints a table."""
    rows = []
    for preset in (name.strip() for name in args.preset.split(",")):
        job, row = spec(preset), {"preset": preset}
        for label, module in (("minattn", "whole"), ("PyTorch", "torch_jobs"))[:2 if torch else 1]:
            progress(f"{preset}: the whole run, {label}")
            with sides({label: (module, args.threads)}) as group:
                answer = group[label]("job", "whole", job, 1)["checks"][0]
                row[label] = {"seconds": answer[0], "val_loss": answer[1], "peak_bytes": group[label]("memory")["peak"]}
        row["ratio"] = row["minattn"]["seconds"] / row["PyTorch"]["seconds"] if torch else None
        rows.append(row)
    table = [("preset", "minattn s", "PyTorch s", "ratio", "val loss", "PyTorch's", "peak MB")]
    for row in rows:
        ours, theirs = row["minattn"], row.get("PyTorch")
        both = [side for side in (ours, theirs) if side]
        table.append((row["preset"], f"{ours['seconds']:.1f}", f"{theirs['seconds']:.1f}" if theirs else "-",
                      f"{row['ratio']:.2f}" if theirs else "-", f"{ours['val_loss']:.4f}", f"{theirs['val_loss']:.4f}" if theirs else "-",
                      " / ".join(f"{side['peak_bytes'] / 1e6:.0f}" for side in both)))
    print("\nwhole runs: the same weights, batches and evaluations, the last on the whole validation split")
    print_table(table)
    return rows


class Plan:
    """What both sides share: the corpus, the weights to start from, batches, learning rates, when to evaluate on what."""

    def __init__(self, job):
        self.settings = train.Settings(**job["settings"])
        corpus = data.load_corpus(self.settings.corpus, say=lambda text: None)
        vocabulary = data.Vocabulary(corpus.text)
        self.config = model.Config(vocab_size=len(vocabulary), **job["shape"])
        self.train_ids, val = data.split(vocabulary.encode(corpus.text))
        self.val = data.blocks(val, self.config.block_size)
        self.some = train.evenly(len(self.val[0]), self.settings.eval_blocks)

    def batch(self, step):
        return data.batch(self.train_ids, self.settings.batch_size, self.config.block_size, self.settings.seed, step)

    def rate(self, step):
        s = self.settings
        return optim.learning_rate(step, lr=s.lr, min_lr=s.min_lr, warmup=s.warmup, steps=s.steps)

    def windows(self, done):
        """The validation windows to evaluate after this many steps, or None."""
        if done == self.settings.steps:
            return self.val
        return tuple(part[self.some] for part in self.val) if done % self.settings.eval_interval == 0 else None


def session(threads):
    """Our own run brings its own threads."""
    return nullcontext(threads)


def whole(job, threads):
    """minattn's trainer as a user starts it -> seconds of its loop, checkpoints, metrics and evaluations included; last loss."""
    def work():
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as quiet, redirect_stderr(quiet), redirect_stdout(quiet):
            run = train.start(train.Settings(**job["settings"]), job["shape"], Path(folder), threads=threads, say=lambda text: None)
            return run.checkpoint.seconds, runs.read_metrics(run.folder)[-1]["val_loss"]

    return work, 0


JOBS = {"whole": whole}
