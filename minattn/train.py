"""The training loop: batches in, a falling loss, and a run folder that survives anything."""
import dataclasses
import hashlib
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minattn import checks, data, model, optim, parallel, runs
from minattn.errors import InputError

# Each preset names what it changes of the defaults below and of model.Config. Biases everywhere and one plain
# normal(0, 0.02) for all weights: at this size both help (nano, seed 0: validation loss 1.911 without either, 1.897 with
# the plain start, 1.882 with both).
GPT2 = dict(bias=True, qkv_bias=True, scaled_init=False)
PRESETS = {
    # learns enough to look like a play in some twenty seconds on two cores
    "demo": dict(n_layer=3, n_head=4, n_embd=96, block_size=64, batch_size=8, steps=1200, lr=3e-3, min_lr=3e-4, warmup=50,
                 eval_interval=300, **GPT2),
    # nanoGPT's recipe for a CPU
    "nano": dict(n_layer=4, n_head=4, n_embd=128, block_size=64, batch_size=12, steps=2000, lr=1e-3, min_lr=1e-4, warmup=100,
                 **GPT2),
    "laptop": dict(n_layer=4, n_head=4, n_embd=128, block_size=128, batch_size=32, steps=3000, lr=1e-3, min_lr=1e-4, warmup=100,
                   chunks=4, **GPT2),
    # the published runs of energy-gated attention and Morlet positions (arXiv 2605.26355)
    "paper": dict(n_layer=6, n_head=8, n_embd=256, block_size=256, batch_size=64, steps=5000, lr=3e-4, min_lr=0.0, warmup=300,
                  beta2=0.95, decay="all", dropout=0.1, bias=True, scaled_init=False, eval_interval=500, chunks=8),
}


@dataclass(frozen=True)
class Settings:
    """Everything about a run that is not the model's shape. A run is a function of these and of nothing else."""
    corpus: str = "tinyshakespeare"   # or "builtin", or the path of a UTF-8 text
    batch_size: int = 12
    steps: int = 2000
    lr: float = 1e-3                  # after the warm-up; a cosine takes it to min_lr at the last step
    min_lr: float = 1e-4
    warmup: int = 100
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: str = "2d"                 # what decays: "2d" (matrices and embeddings) or "all"
    clip: float = 1.0                 # largest global gradient norm; 0: no clipping
    chunks: int = 2                   # parts of a batch that can run at the same time; the result depends on it, not on threads
    eval_interval: int = 250          # steps between validation losses
    eval_blocks: int = 200            # windows of the validation split in each; the last evaluation takes them all
    checkpoint_interval: int = 100
    seed: int = 1337
    dtype: str = "float32"

    def __post_init__(self):
        for name in ("batch_size", "steps", "chunks", "eval_interval", "eval_blocks", "checkpoint_interval"):
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
    """The loss or a gradient is no longer finite."""


def settings_for(preset, overrides):
    """A preset with overrides -> (Settings, fields of model.Config)."""
    checks.choice("preset", preset, PRESETS)
    values = {**PRESETS[preset], **overrides}
    mine = {f.name for f in dataclasses.fields(Settings)}
    return Settings(**{k: v for k, v in values.items() if k in mine}), {k: v for k, v in values.items() if k not in mine}


def start(settings, shape, folder, *, overwrite=False, threads=None, data_dir="data", say=print):
    """Begin a run: load the corpus, make the model, and train to the end. -> runs.Run"""
    runs.vacant(folder, overwrite=overwrite)                       # what cannot work fails before any download
    model.Config(**shape)
    corpus = data.load_corpus(settings.corpus, data_dir=data_dir, say=say)
    vocabulary = data.Vocabulary(corpus.text)
    config = model.Config(vocab_size=len(vocabulary), **shape)
    ids = vocabulary.encode(corpus.text)
    _splits(ids, config, corpus.name)
    about = {"name": corpus.name, "sha256": hashlib.sha256(corpus.text.encode()).hexdigest(), "characters": len(corpus.text)}
    params, buffers = model.init(config, settings.seed, np.dtype(settings.dtype))
    zeros = {name: np.zeros_like(a) for name, a in params.items()}
    state = runs.Checkpoint(params, buffers, zeros, zeros, 0, 0.0)
    say(f"{corpus.name}: {len(corpus.text):,} characters, {len(vocabulary)} distinct ({corpus.where})")
    with runs.create(folder, overwrite=overwrite) as folder:       # from here on an older run is gone
        runs.write_config(folder, config, dataclasses.asdict(settings), vocabulary.characters, about)
        return _train(folder, config, settings, vocabulary, ids, state, threads=threads, say=say)


def resume(where, *, overrides=None, threads=None, data_dir="data", say=print):
    """Continue a run to its end, bit for bit as if it had never stopped. `where`: its folder, or a checkpoint in it."""
    where = Path(where)
    folder, which = (where.parent, where.name) if where.suffix == ".safetensors" else (where, runs.CHECKPOINT)
    with runs.held(folder):
        return _resume(where, runs.load(folder, which), which, overrides, threads, data_dir, say)


def _resume(where, run, which, overrides, threads, data_dir, say):
    folder = run.folder
    known = {**model.to_dict(run.config), **run.train}
    for name, value in (overrides or {}).items():
        if known.get(name) != value:
            raise InputError(f"--resume {where}: that run has {name} = {known.get(name)!r}, not {value!r}; "
                             "leave the flag out, or start a new run with another --out.")
    try:
        settings = Settings(**run.train)
    except (InputError, TypeError) as error:
        raise InputError(f"--resume {where}: {folder / runs.CONFIG} has no usable settings: {error}") from None
    came = run.checkpoint.params["wte.weight"].dtype
    if came != settings.dtype:
        raise InputError(f"--resume {where}: the checkpoint is from other settings: {came}, not {settings.dtype}.")
    wanted = run.corpus["name"]
    corpus = data.load_corpus(wanted, data_dir=data_dir, say=say, download=wanted == "tinyshakespeare")
    if hashlib.sha256(corpus.text.encode()).hexdigest() != run.corpus["sha256"]:
        raise InputError(f"--resume {where}: the corpus is not the one this run began with ({wanted}, "
                         f"{run.corpus['characters']:,} characters); found {corpus.name} with {len(corpus.text):,}.")
    vocabulary = data.Vocabulary(run.vocabulary)
    if run.checkpoint.step >= settings.steps:
        say(f"{folder} is finished: {run.checkpoint.step} of {settings.steps} steps are done.")
        return _finish(run, say)                                   # a kill may have come before the picture and the sample
    if which != runs.CHECKPOINT:                                   # a damaged one must not become the previous one
        runs.write_aside(folder / runs.CHECKPOINT, (folder / which).read_bytes())
    say(f"{folder}: continuing after step {run.checkpoint.step} of {settings.steps}")
    return _train(folder, run.config, settings, vocabulary, vocabulary.encode(corpus.text), run.checkpoint, threads=threads, say=say)


def _splits(ids, config, name):
    """Train and validation ids; InputError if a block does not fit into both."""
    train, val = data.split(ids)
    if min(len(train), len(val)) <= config.block_size:
        raise InputError(f"corpus {name!r} is too short for block_size {config.block_size}: its {len(ids):,} characters are split "
                         f"{len(train):,} / {len(val):,}, and each part needs at least {config.block_size + 1:,}. "
                         "Use a longer text or a smaller --block-size.")
    return train, val


def _train(folder, config, settings, vocabulary, ids, state, *, threads, say):
    threads = threads or min(os.cpu_count() or 1, settings.chunks)
    checks.number("threads", threads, 1, integer=True)
    train_ids, val_ids = _splits(ids, config, settings.corpus)
    val_x, val_y = data.blocks(val_ids, config.block_size)
    some = evenly(len(val_x), settings.eval_blocks)

    p, params, decayed = optim.flatten(state.params, settings.decay)
    shapes = {name: a.shape for name, a in _in_memory_order(params)}
    g = np.zeros_like(p)
    grads = optim.views_of(g, shapes)
    m, v = (np.concatenate([moment[name].ravel() for name in shapes]) for moment in (state.m, state.v))
    buffers, step, before = dict(state.buffers), state.step, state.seconds
    tokens = settings.batch_size * config.block_size

    def snapshot():
        moments = (optim.views_of(vector, shapes) for vector in (m, v))
        return runs.Checkpoint(params, buffers, *moments, step, before + time.perf_counter() - began)

    for name, layer in _leaks(config):
        say(f"warning: {name} is not causal: {layer}. Losses below are measured with that leak.")
    say(f"{model.count_parameters(config):,} parameters, {settings.steps} steps of {settings.batch_size} x {config.block_size} tokens, "
        f"{threads} thread{'s' * (threads > 1)}")
    metrics, loss, val_loss = runs.Metrics(folder, keep=step), float("nan"), None
    began = time.perf_counter()
    try:
        with _stop_on_interrupt() as stop, parallel.workers(threads) as pool, _progress(settings.steps, step) as bar:
            while step < settings.steps:
                x, y = data.batch(train_ids, settings.batch_size, config.block_size, settings.seed, step)
                tick = time.perf_counter()
                try:
                    loss, new_buffers = parallel.loss_and_gradients(pool, params, buffers, x, y, config, chunks=settings.chunks,
                                                                    out=grads, seed=(settings.seed, step, 1))
                except InputError as error:
                    if "must be finite" not in str(error):         # a layer noticed first: "alpha_ma must be finite ..."
                        raise
                    raise _diverged(step + 1, folder, str(error).split()[0]) from None
                norm = optim.global_norm(grads)
                if not math.isfinite(loss):
                    raise _diverged(step + 1, folder, "the loss")
                if not math.isfinite(norm):
                    raise _diverged(step + 1, folder, "the gradient of {}", grads)
                factor = optim.clip_factor(norm, settings.clip)
                if factor < 1:
                    g *= factor
                lr = optim.learning_rate(step, lr=settings.lr, min_lr=settings.min_lr, warmup=settings.warmup, steps=settings.steps)
                parallel.adamw(pool, p, g, m, v, decayed, step + 1, lr, settings.weight_decay,
                               betas=(settings.beta1, settings.beta2), eps=settings.eps)
                buffers, step = new_buffers, step + 1
                if not np.isfinite(p).all():
                    raise _diverged(step, folder, "the parameter {}", params)
                speed = tokens / (time.perf_counter() - tick)
                last = step == settings.steps
                val_loss = None
                if last or step % settings.eval_interval == 0:
                    part = slice(None) if last else some
                    val_loss = parallel.mean_loss(pool, params, buffers, val_x[part], val_y[part], config)
                    bar.write(f"step {step:5d}   train {loss:.4f}   val {val_loss:.4f}" + "  (whole split)" * last)
                    if not math.isfinite(val_loss):
                        raise _diverged(step, folder, "the validation loss")
                metrics.add(step=step, train_loss=loss, val_loss=val_loss, grad_norm=norm, lr=lr, tokens_per_second=round(speed),
                            seconds=round(before + time.perf_counter() - began, 3))
                bar.set_postfix_str(f"loss {loss:.3f}, {speed / 1000:.1f}k tokens/s", refresh=False)
                bar.update()
                if last or stop or step % settings.checkpoint_interval == 0:
                    metrics.flush()
                    runs.save_checkpoint(folder, snapshot())
                if stop and not last:
                    raise Interrupted(f"stopped after step {step} of {settings.steps} and saved; "
                                      f"continue with: python -m minattn train --resume {folder}")
    finally:
        metrics.close()
    return _finish(runs.load(folder), say)


def evenly(n, most):
    """At most `most` of the numbers below n, evenly spread: the validation windows of an evaluation on the way."""
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


def _in_memory_order(params):
    """(name, array) as they lie in the flat vector."""
    return sorted(params.items(), key=lambda item: item[1].__array_interface__["data"][0])


def _leaks(config):
    """(mechanism, reason) for those of the model that are not causal."""
    from minattn.attention_layer import plan
    return dict.fromkeys((layer.mechanism.name, why) for layer in plan(config) if (why := layer.mechanism.leak(**layer.kernel)))


def _diverged(step, folder, what, arrays=None):
    """The exception that says what is no longer finite, which of these arrays it was, and where the last good ones are."""
    what = what.format(next((name for name, a in (arrays or {}).items() if not np.isfinite(a).all()), "all parameters together"))
    good = Path(folder) / runs.CHECKPOINT
    kept = f"the last good checkpoint is {good}" if good.exists() else "no checkpoint had been written yet"
    return Diverged(f"step {step}: {what} is not finite; {kept}. Try a smaller --lr, or a --clip.")


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
    return tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, mininterval=0.2 if sys.stderr.isatty() else 5)
