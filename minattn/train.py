"""The training loop: batches in, a falling loss, and a run folder that survives anything."""
import dataclasses
import math
import os
import signal
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minattn import checks, data, model, parallel, runs
from minattn.errors import InputError, NotFinite

# Biases everywhere, and every weight starts from normal(0, 0.02), those back into the residual
# stream too. GPT-2 and nanoGPT start those smaller, and nanoGPT has no biases; at this size both
# differences help (nano, seed 0: validation loss 1.911 with nanoGPT's choices, 1.897 with the plain
# start, 1.882 with both).
BIASES_PLAIN_START = dict(bias=True, qkv_bias=True, scaled_init=False)

# Each preset names what it changes of the defaults below and of model.Config.
PRESETS = {
    # learns enough to look like a play in some twenty seconds on two cores
    "demo": dict(n_layer=3, n_head=4, n_embd=96, block_size=64, batch_size=8, steps=1200, lr=3e-3,
                 min_lr=3e-4, warmup=50, eval_interval=300, **BIASES_PLAIN_START),
    # nanoGPT's recipe for a CPU, but with biases and a plain start
    "nano": dict(n_layer=4, n_head=4, n_embd=128, block_size=64, batch_size=12, steps=2000, lr=1e-3,
                 min_lr=1e-4, warmup=100, **BIASES_PLAIN_START),
    "laptop": dict(n_layer=4, n_head=4, n_embd=128, block_size=128, batch_size=32, steps=3000,
                   lr=1e-3, min_lr=1e-4, warmup=100, chunks=4, **BIASES_PLAIN_START),
    # the published runs of energy-gated attention and Morlet positions (arXiv 2605.26355)
    "paper": dict(n_layer=6, n_head=8, n_embd=256, block_size=256, batch_size=64, steps=5000,
                  lr=3e-4, min_lr=0.0, warmup=300, beta2=0.95, decay="all", dropout=0.1, bias=True,
                  scaled_init=False, eval_interval=500, chunks=8),
}


@dataclass(frozen=True)
class Settings:
    """All of a run but the model's shape. A run depends on these two and on nothing else."""
    corpus: str = "tinyshakespeare"   # or "builtin", or the path of a UTF-8 text
    batch_size: int = 12
    steps: int = 2000
    lr: float = 1e-3                  # after the warm-up; then half a cosine down to min_lr
    min_lr: float = 1e-4
    warmup: int = 100
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: str = "2d"                 # what decays: "2d" (matrices and embeddings) or "all"
    clip: float = 1.0                 # largest global gradient norm; 0: no clipping
    chunks: int = 2                   # parts of a batch that can run at once; changes the rounding
    eval_interval: int = 250          # steps between validation losses
    eval_blocks: int = 200            # validation windows in each; the last evaluation takes all
    checkpoint_interval: int = 100
    seed: int = 1337
    dtype: str = "float32"

    def __post_init__(self):
        for name in ("batch_size", "steps", "chunks", "eval_interval", "eval_blocks",
                     "checkpoint_interval"):
            checks.number(name, getattr(self, name), 1, integer=True)
        for name in ("warmup", "seed"):
            checks.number(name, getattr(self, name), 0, integer=True)
        for name in ("lr", "eps"):
            checks.number(name, getattr(self, name), above=0)
        for name in ("min_lr", "weight_decay", "clip"):
            checks.number(name, getattr(self, name), 0)
        for name in ("beta1", "beta2"):
            checks.number(name, getattr(self, name), 0, high=0.9999)
        checks.choice("decay", self.decay, ("2d", "all"))
        checks.choice("dtype", self.dtype, ("float32", "float64"))


class Interrupted(Exception):
    """Ctrl-C: the step was finished and saved."""


class Diverged(Exception):
    """The loss, a gradient or a parameter is no longer finite."""


def settings_for(preset, overrides):
    """A preset with overrides -> (Settings, fields of model.Config)."""
    checks.choice("preset", preset, PRESETS)
    values = {**PRESETS[preset], **overrides}
    ours = {f.name for f in dataclasses.fields(Settings)}
    shape = {name: value for name, value in values.items() if name not in ours}
    return Settings(**{name: values[name] for name in values if name in ours}), shape


# ------------------------------------------------------------------------------- start and resume


def start(settings, shape, folder, *, overwrite=False, threads=None, data_dir="data", say=print):
    """Begin a run: load the corpus, make the model, and train to the end. -> runs.Run"""
    runs.vacant(folder, overwrite=overwrite)            # what cannot work fails before any download
    model.Config(**shape)
    corpus = data.load_corpus(settings.corpus, data_dir=data_dir, say=say)
    vocabulary = data.Vocabulary(corpus.text)
    config = model.Config(vocab_size=len(vocabulary), **shape)
    ids = vocabulary.encode(corpus.text)
    batches = Batches(ids, config, settings)
    params, buffers = model.init(config, settings.seed, np.dtype(settings.dtype))
    model.forward(params, ids[None, :1], config, buffers=buffers)   # a mechanism may refuse options
    zeros = {name: np.zeros_like(a) for name, a in params.items()}
    checkpoint = runs.Checkpoint(params, buffers, zeros, zeros, 0, 0.0)
    say(f"{corpus.name}: {len(corpus.text):,} characters, {len(vocabulary)} distinct "
        f"({corpus.where})")
    with runs.create(folder, overwrite=overwrite) as folder:        # here an older run is removed
        runs.write_config(folder, config, dataclasses.asdict(settings), vocabulary.characters,
                          data.about(corpus))
        return _train(folder, config, settings, batches, checkpoint, threads=threads, say=say)


def resume(where, *, overrides=None, threads=None, data_dir="data", say=print):
    """Continue a run to its end, bit for bit as if it had never stopped.

    where: its folder, or a checkpoint in it.
    """
    where, folder, which = Path(where), Path(where), runs.CHECKPOINT
    if where.suffix == ".safetensors":
        folder, which = where.parent, where.name
    with runs.lock(folder):
        return _resume(where, runs.load(folder, which), which, overrides, threads, data_dir, say)


def _resume(where, run, which, overrides, threads, data_dir, say):
    folder = run.folder
    known, wanted = {**model.to_dict(run.config), **run.train}, dict(overrides or {})
    for name in ("attention", "position"):       # compared in their canonical spelling
        if name in wanted or f"{name}_options" in wanted:
            text, options = wanted.get(name, known[name]), wanted.pop(f"{name}_options", None)
            shape = {**model.to_dict(run.config), name: text, f"{name}_options": options}
            wanted[name] = getattr(model.Config(**shape), name)
    for name, value in wanted.items():
        if known.get(name) != value:
            raise InputError(f"--resume {where}: that run has {name} = {known.get(name)!r}, not "
                             f"{value!r}; leave the flag out, or start a new run with another "
                             "--out.")
    try:
        settings = Settings(**run.train)
    except (InputError, TypeError) as error:
        raise InputError(f"--resume {where}: {folder / runs.CONFIG} has no usable settings: "
                         f"{error}") from None
    came = run.checkpoint.params["wte.weight"].dtype
    if came != settings.dtype:
        raise InputError(f"--resume {where}: the checkpoint is from other settings: {came}, not "
                         f"{settings.dtype}.")
    try:
        text = data.run_text(run.corpus, data_dir=data_dir, say=say)
    except InputError as error:
        raise InputError(f"--resume {where}: {error}") from None
    if run.checkpoint.step >= settings.steps:
        say(f"{folder} is finished: {run.checkpoint.step} of {settings.steps} steps are done.")
        return _finish(run, say)                 # a kill may have come before picture and sample
    if which != runs.CHECKPOINT:                 # a damaged one must not become the previous one
        runs.write_aside(folder / runs.CHECKPOINT, (folder / which).read_bytes())
    say(f"{folder}: continuing after step {run.checkpoint.step} of {settings.steps}")
    ids = data.Vocabulary(run.vocabulary).encode(text)
    batches = Batches(ids, run.config, settings)
    return _train(folder, run.config, settings, batches, run.checkpoint, threads=threads, say=say)


class Batches:
    """What a run trains on and is validated on: windows of two parts of one text."""

    def __init__(self, ids, config, settings):
        self.settings, self.block_size = settings, config.block_size
        self.train_ids, val_ids = data.split(ids)
        if min(len(self.train_ids), len(val_ids)) <= config.block_size:
            raise InputError(f"corpus {settings.corpus!r} is too short for block_size "
                             f"{config.block_size}: its {len(ids):,} characters are split "
                             f"{len(self.train_ids):,} / {len(val_ids):,}, and each part needs at "
                             f"least {config.block_size + 1:,}. Use a longer text or a smaller "
                             "--block-size.")
        self.val = data.blocks(val_ids, config.block_size)
        self.some = evenly(len(self.val[0]), settings.eval_blocks)

    def training(self, step):
        """The batch of a step (from 0): x, y (batch_size, block_size)."""
        s = self.settings
        return data.batch(self.train_ids, s.batch_size, self.block_size, s.seed, step)

    def validation(self, done):
        """What to evaluate after this many steps: some windows, after the last all; or None."""
        if done == self.settings.steps:
            return self.val
        if done % self.settings.eval_interval == 0:
            return tuple(part[self.some] for part in self.val)
        return None


# --------------------------------------------------------------------------------------- the loop


def _train(folder, config, settings, batches, checkpoint, *, threads, say):
    threads = threads or min(os.cpu_count() or 1, settings.chunks)
    checks.number("threads", threads, 1, integer=True)
    for name, why in _leaks(config):
        say(f"warning: {name} is not causal: {why}. Losses below are measured with that leak.")
    say(f"{model.count_parameters(config):,} parameters, {settings.steps} steps of "
        f"{settings.batch_size} x {config.block_size} tokens, {threads} "
        + ("thread" if threads == 1 else "threads"))
    metrics = runs.Metrics(folder, keep=checkpoint.step)
    loop = _Loop(folder, config, settings, batches, checkpoint)
    with (closing(metrics), _stop_on_interrupt() as stop, parallel.workers(threads) as pool,
          _progress(settings.steps, checkpoint.step) as bar):
        while loop.state.step < settings.steps:
            row = loop.step(pool)
            loop.record(row, metrics, bar, stop)
    return _finish(runs.load(folder), say)


class _Loop:
    """A run in training: what its steps share."""

    def __init__(self, folder, config, settings, batches, checkpoint):
        self.folder, self.config, self.settings = folder, config, settings
        self.batches = batches
        self.state = parallel.start(checkpoint.params, checkpoint.buffers, settings.decay,
                                    m=checkpoint.m, v=checkpoint.v, step=checkpoint.step)
        self.began = time.perf_counter() - checkpoint.seconds

    def step(self, pool):
        """One training step, and the validation loss if it is due -> the line of metrics.jsonl."""
        state, step = self.state, self.state.step + 1
        x, y = self.batches.training(state.step)
        tick = time.perf_counter()
        try:
            loss, norm, lr = parallel.train_step(pool, state, x, y, self.config, self.settings)
        except NotFinite as error:
            raise self.diverged(step, error.name) from None
        speed = x.size / (time.perf_counter() - tick)
        val_loss = None
        if windows := self.batches.validation(step):
            val_loss = parallel.mean_loss(pool, state.params, state.buffers, *windows, self.config)
            if not math.isfinite(val_loss):
                raise self.diverged(step, "the validation loss")
        return {"step": step, "train_loss": loss, "val_loss": val_loss, "grad_norm": norm,
                "lr": lr, "tokens_per_second": round(speed), "seconds": round(self.seconds(), 3)}

    def record(self, row, metrics, bar, stop):
        """Show the step and write it down; raises Interrupted after Ctrl-C, once all is saved."""
        step, steps = row["step"], self.settings.steps
        if row["val_loss"] is not None:
            windows = "  (whole split)" if step == steps else ""
            bar.write(f"step {step:5d}   train {row['train_loss']:.4f}   "
                      f"val {row['val_loss']:.4f}{windows}")
        metrics.add(**row)
        speed = row["tokens_per_second"] / 1000
        bar.set_postfix_str(f"loss {row['train_loss']:.3f}, {speed:.1f}k tokens/s", refresh=False)
        bar.update()
        if step == steps or stop or step % self.settings.checkpoint_interval == 0:
            metrics.flush()
            runs.save_checkpoint(self.folder, self.checkpoint())
        if stop and step < steps:
            raise Interrupted(f"stopped after step {step} of {steps} and saved; continue with: "
                              f"python -m minattn train --resume {self.folder}")

    def checkpoint(self):
        state = self.state
        return runs.Checkpoint(state.params, state.buffers, state.named(state.m),
                               state.named(state.v), state.step, self.seconds())

    def seconds(self):
        return time.perf_counter() - self.began

    def diverged(self, step, what):
        """The exception that says what is not finite, and where the last good checkpoint is."""
        good = Path(self.folder) / runs.CHECKPOINT
        kept = "no checkpoint had been written yet"
        if good.exists():
            kept = f"the last good checkpoint is {good}"
        return Diverged(f"step {step}: {what} is not finite; {kept}. "
                        "Try a smaller --lr, or a --clip.")


def evenly(n, most):
    """At most `most` of the numbers below n, evenly spread: the windows of an evaluation."""
    return np.unique(np.linspace(0, n - 1, min(most, n)).astype(int))


def _finish(run, say):
    """Draw the loss and write a sample."""
    from minattn import generate, plots
    plots.loss(runs.read_metrics(run.folder), run.folder / runs.LOSS)
    if why := generate.recompute_reason(run.config):
        say(f"sampling without a key-value cache, each token from the whole prefix: {why}.")
    prompt = "\n" if "\n" in run.vocabulary else run.vocabulary[0]
    text = generate.text(run, prompt, 500, temperature=0.8, seed=run.train["seed"])
    runs.write_aside(run.folder / runs.SAMPLE, text.encode())
    return run


def _leaks(config):
    """(mechanism, reason) for those of the model that are not causal."""
    from minattn.layers import layers
    return dict.fromkeys((layer.mechanism.name, why) for layer in layers(config)
                         if (why := layer.mechanism.leak(**layer.options)))


class _stop_on_interrupt:
    """Ctrl-C once: finish the step and save. Twice: stop at once. True after the first."""

    def __enter__(self):
        self.asked = False
        try:
            self.old = signal.signal(signal.SIGINT, self._ask)
        except ValueError:                 # not in the main thread: leave the signals alone
            self.old = None
        return self

    def _ask(self, *_):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nfinishing this step and saving ...", file=sys.stderr)

    def __bool__(self):
        return self.asked

    def __exit__(self, *_):
        if self.old is not None:
            signal.signal(signal.SIGINT, self.old)


def _progress(steps, done):
    from tqdm import tqdm
    interval = 0.2 if sys.stderr.isatty() else 5
    return tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, mininterval=interval)
