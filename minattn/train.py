"""The training loop: batches in, a falling loss, and a run folder that survives anything."""
import dataclasses
import math
import os
import signal
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minattn import (
    checks,
    data,
    engines,
    files,
    generate,
    memory,
    model,
    muon,
    optim,
    plots,
    runs,
)
from minattn.errors import InputError, NotFinite
from minattn.layers import layers

# Biases everywhere, and every weight starts from normal(0, 0.02), those back into the residual
# stream too. GPT-2 and nanoGPT start those smaller, and nanoGPT has no biases; at this size both
# differences help (nano, seed 0: validation loss 1.911 with nanoGPT's choices, 1.897 with the plain
# start, 1.882 with both).
BIASES_PLAIN_START = dict(bias=True, qkv_bias=True, scaled_init=False)

# The recipe of the short runs: Muon, attention that forgets, a linear cool-down to 0, no biases.
# docs/speedrun.md has what each part is worth.
MUON = dict(optimizer="muon", muon_steps=3, muon_lr=0.03, momentum=0.9, lr=6e-3, min_lr=0.0,
            beta2=0.95, weight_decay=0.0, schedule="linear", attention="forget", position="rope")

# Each preset names what it changes of the defaults below and of model.Config.
PRESETS = {
    # text that reads like a play in some twenty seconds on two cores
    "demo": dict(n_layer=3, n_head=6, n_embd=96, block_size=64, batch_size=20, steps=500, warmup=15,
                 eval_interval=100, **MUON),
    # the least time to the loss of nanoGPT's recipe for a CPU, 1.88
    "fast": dict(n_layer=2, n_head=4, n_embd=64, block_size=64, batch_size=20, steps=220, warmup=8,
                 **MUON | dict(lr=1e-2, momentum=0.85)),
    # below the loss of nanoGPT's recipe for a GPU, 1.4697, in some minutes on two cores
    "best": dict(n_layer=4, n_head=6, n_embd=192, block_size=128, batch_size=32, steps=1100,
                 warmup=20, chunks=4,
                 **MUON | dict(lr=4e-3, muon_lr=0.02, weight_decay=0.1)),
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
    lr: float = 1e-3                  # after the warm-up; then down to min_lr
    min_lr: float = 1e-4
    warmup: int = 100
    schedule: str = "cosine"          # of the learning rate; or "linear": lr, then a straight line
    cooldown: float = 0.7             # over the last share of the steps; for "linear"
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    optimizer: str = "adamw"          # or "muon": for the matrices inside the layers
    muon_lr: float = 0.02             # Muon's learning rate, with the schedule of lr
    momentum: float = 0.95            # Muon's
    muon_steps: int = 5               # of Newton-Schulz; or 3, at two thirds of the cost
    weight_decay: float = 0.1
    decay: str = "2d"                 # what decays: "2d" (matrices and embeddings) or "all"
    clip: float = 1.0                 # largest global gradient norm; 0: no clipping
    chunks: int = 2                   # parts of a batch that can run at once; changes the rounding
    eval_interval: int = 250          # steps between validation losses
    eval_blocks: int = 200            # validation windows in each; the last evaluation takes all
    checkpoint_interval: int = 100
    seed: int = 1337
    dtype: str = "float32"
    engine: str = "numpy"             # or "torch": the same model in PyTorch
    device: str = "cpu"               # PyTorch's: or "cuda"
    autocast: str = "none"            # PyTorch's: or "bfloat16", which trains faster on a GPU
    compile: bool = False             # PyTorch's

    def __post_init__(self):
        checks.text("corpus", self.corpus)
        checks.fields(self, "batch_size", "steps", "chunks", "eval_interval", "eval_blocks",
                      "checkpoint_interval", low=1, integer=True)
        checks.fields(self, "warmup", "seed", low=0, integer=True)
        checks.fields(self, "lr", "eps", above=0)
        checks.fields(self, "min_lr", "weight_decay", "clip", low=0)
        checks.fields(self, "beta1", "beta2", low=0, high=0.9999)
        checks.choice("optimizer", self.optimizer, ("adamw", "muon"))
        checks.fields(self, "muon_lr", above=0)
        checks.fields(self, "momentum", low=0, high=0.9999)
        checks.choice("muon_steps", self.muon_steps, muon.COEFFICIENTS)
        checks.choice("schedule", self.schedule, optim.SCHEDULES)
        checks.fields(self, "cooldown", low=0, high=1)
        checks.choice("decay", self.decay, ("2d", "all"))
        checks.choice("dtype", self.dtype, ("float32", "float64"))
        checks.choice("engine", self.engine, ("numpy", "torch"))
        checks.choice("device", self.device, ("cpu", "cuda"))
        checks.choice("autocast", self.autocast, ("none", "bfloat16"))
        checks.choice("compile", self.compile, (False, True))
        if self.engine == "numpy" and (self.device != "cpu" or self.autocast != "none"
                                       or self.compile):
            raise InputError("device, autocast and compile are PyTorch's: give engine = torch too, "
                             "or leave them out.")
        if self.autocast != "none" and self.dtype == "float64":
            raise InputError("autocast = bfloat16 changes float32 only, and this run has dtype = "
                             "float64: leave one of the two out.")


DEFAULTS = dataclasses.asdict(Settings())


def integer(text):
    return None if text.lower() == "none" else int(text)


def number(text):
    return None if text.lower() == "none" else float(text)


READ = {int | None: integer, float | None: number}
# every setting of a run -> what makes its value of a text
FIELDS = {field.name: READ.get(field.type, field.type)
          for cls in (Settings, model.Config) for field in dataclasses.fields(cls)
          if field.name != "vocab_size"}


class Interrupted(Exception):
    """A signal, or a closed output: the step was finished and saved. `code` is the exit code."""

    def __init__(self, message, code=130):
        super().__init__(message)
        self.code = code


class Diverged(Exception):
    """The loss, a gradient or a parameter is no longer finite."""


def settings_for(preset, overrides):
    """A preset with overrides -> (Settings, fields of model.Config)."""
    checks.choice("preset", preset, PRESETS)
    ours, shape = _divided({**PRESETS[preset], **overrides})
    return Settings(**ours), shape


def _divided(values):
    """{name: value} -> fields of Settings, fields of model.Config"""
    ours = {f.name for f in dataclasses.fields(Settings)}
    return ({name: value for name, value in values.items() if name in ours},
            {name: value for name, value in values.items() if name not in ours})


# ------------------------------------------------------------------------------- start and resume


def start(settings, shape, folder, *, overwrite=False, threads=None, data_dir="data", say=print):
    """Begin a run: load the corpus, make the model, and train to the end. -> runs.Run"""
    runs.vacant(folder, overwrite=overwrite)            # what cannot work fails before any download
    weigh(model.Config(**shape), settings)
    engines.check(settings)
    corpus = data.load_corpus(settings.corpus, data_dir=data_dir, say=say)
    vocabulary, config, batches, checkpoint = beginning(settings, shape, corpus)
    say(f"{corpus.name}: {len(corpus.text):,} characters, {len(vocabulary)} distinct "
        f"({corpus.where})")
    about, train = data.about(corpus), dataclasses.asdict(settings)
    text = os.path.expanduser(corpus.where)
    parts = config, train, vocabulary.characters, about
    with runs.create(folder, *parts, overwrite=overwrite, keep=text) as folder:
        run = runs.Run(folder, *parts, checkpoint)
        return _train(run, settings, batches, threads, say)


def beginning(settings, shape, corpus):
    """What a run begins with -> vocabulary, config, batches, checkpoint of step 0.

    InputError for whatever a run cannot be made of: a text too short, an option too small, ...
    """
    vocabulary = data.Vocabulary(corpus.text)
    config = model.Config(vocab_size=len(vocabulary), **shape)
    ids = vocabulary.encode(corpus.text)
    batches = Batches(ids, config, settings)
    checkpoint = fresh(config, settings)
    model.forward(checkpoint.params, ids[None, :1], config, buffers=checkpoint.buffers)  # options
    return vocabulary, config, batches, checkpoint


def weigh(config, settings):
    """Raise InputError where a training step cannot fit into the memory that there is.

    Counted is the least that is needed: every parameter with its gradient in each chunk, its two
    moments and the copy that a checkpoint starts from; and what one chunk keeps for its backward.
    """
    size = np.dtype(settings.dtype).itemsize
    tokens = -(-settings.batch_size // settings.chunks) * config.block_size
    each = config.n_layer * 20 * config.n_embd + 2 * config.vocab_size
    batch = 2 * 8 * settings.batch_size * config.block_size             # x and y, int64
    kept = size * tokens * each
    copies = 5 + min(settings.chunks, settings.batch_size)
    model.weigh(config, size * copies)
    memory.weigh(f"a batch of {settings.batch_size} x {config.block_size} tokens and the model",
                 batch + kept + size * copies * model.count_parameters(config),
                 "choose a smaller batch_size or block_size, or more chunks")


def fresh(config, settings):
    """Step 0 -> runs.Checkpoint"""
    weigh(config, settings)
    params, buffers = model.init(config, settings.seed, np.dtype(settings.dtype))
    zeros = {name: np.zeros_like(a) for name, a in params.items()}
    return runs.Checkpoint(params, buffers, zeros, zeros, 0, 0.0)


def resume(where, *, overrides=None, threads=None, data_dir="data", say=print):
    """Continue a run to its end, bit for bit as if it had never stopped.

    where: its folder, or a checkpoint in it. A run that stopped before its first checkpoint begins
    again. InputError if the run has other settings than `overrides`; a corpus may have another
    name there, if the text is the same.
    """
    where, folder, which = Path(where), Path(where), runs.CHECKPOINT
    if where.suffix == ".safetensors":
        folder, which = where.parent, where.name
    with runs.lock(folder):
        run = runs.read_config(folder)
        early = which == runs.CHECKPOINT and where == folder and runs.killed_early(folder)
        if not early:
            run = runs.load(folder, which)
        train, shape = _divided(overrides or {})
        text = _text(run, where, train.pop("corpus", None), data_dir, say)
        config = model.Config(**{**model.to_dict(run.config), **shape})
        if other := run.other_setting({**model.to_dict(config), **train}, DEFAULTS):
            raise InputError(f"--resume {files.quoted(where)}: that run has {other}; leave the "
                             "flag out, or start a new run with another --out.")
        try:
            settings = Settings(**run.train)
        except (InputError, TypeError) as error:
            raise InputError(f"--resume {where}: {folder / runs.CONFIG} has no usable settings: "
                             f"{error}") from None
        if early:
            run = run._replace(checkpoint=fresh(run.config, settings))
        dtype = run.checkpoint.params["wte.weight"].dtype
        if dtype != settings.dtype:
            raise InputError(f"--resume {where}: the checkpoint is from other settings: {dtype}, "
                             f"not {settings.dtype}.")
        engines.check(settings)
        step, steps = run.checkpoint.step, settings.steps
        if step > steps:
            raise InputError(f"{folder / which} is of step {step}, beyond the {steps} of "
                             f"{folder / runs.CONFIG}: one of them is damaged.")
        files.sweep(folder, runs.FILES)
        if step == steps:                        # a kill may have come before picture and sample
            say(f"{folder} is finished: {step} of {steps} steps are done.")
            return _finish(run, say)
        if which != runs.CHECKPOINT:             # a damaged one must not become the previous one
            files.write(folder / runs.CHECKPOINT, (folder / which).read_bytes())
        say(f"{folder}: continuing after step {step} of {steps}" if step else
            f"{folder}: beginning again, since it has no checkpoint")
        if step and not (folder / runs.METRICS).exists():
            say(f"{folder / runs.METRICS} is gone: it will lack steps 1 to {step}.")
        batches = Batches(data.Vocabulary(run.vocabulary).encode(text), run.config, settings)
        return _train(run, settings, batches, threads, say)


def _text(run, where, wanted, data_dir, say):
    """The text of a run, where it was or (wanted) under another name."""
    if wanted in (run.corpus["name"], run.train.get("corpus")):
        wanted = None
    try:
        text = data.run_text(run.corpus, wanted, data_dir=data_dir, say=say)
    except InputError as error:
        if wanted is not None:
            error = (f"that run has corpus = {run.corpus['name']!r}, and {wanted!r} is another "
                     f"text: {error}")
        raise InputError(f"--resume {files.quoted(where)}: {error} If the text has moved, name it "
                         "with --corpus.") from None
    if wanted is not None:
        say(f"{wanted}: the same text that this run knows as {run.corpus['name']}")
    return text


class Batches:
    """What a run trains on and is validated on: windows of two parts of one text."""

    def __init__(self, ids, config, settings):
        self.settings, self.block_size = settings, config.block_size
        self.train_ids, self.val_ids = data.split(ids)
        if min(len(self.train_ids), len(self.val_ids)) <= config.block_size:
            raise InputError(f"corpus {settings.corpus!r} is too short for block_size "
                             f"{config.block_size}: its {len(ids):,} characters are split "
                             f"{len(self.train_ids):,} / {len(self.val_ids):,}, and each part "
                             f"needs at least {config.block_size + 1:,}. Use a longer text or a "
                             "smaller --block-size.")
        self.val = data.blocks(self.val_ids, config.block_size)
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


def _train(run, settings, batches, threads, say):
    folder, config, checkpoint = run.folder, run.config, run.checkpoint
    threads = threads or min(os.cpu_count() or 1, settings.chunks)
    checks.number("threads", threads, 1, integer=True)
    leaks = dict.fromkeys((layer.mechanism.name, layer.mechanism.leak(**layer.options))
                          for layer in layers(config))
    for name, why in leaks:
        if why:
            say(f"warning: {name} is not causal: {why}. Losses below are measured with that "
                "leak.")
    say(f"{model.count_parameters(config):,} parameters, {settings.steps} steps of "
        f"{settings.batch_size} x {config.block_size} tokens, {threads} "
        + ("thread" if threads == 1 else "threads")
        + (f", PyTorch on {settings.device}" if settings.engine == "torch" else ""))
    steps, began = settings.steps, time.perf_counter() - checkpoint.seconds
    bound = run.bound()
    go_on = f"python -m minattn train --resume {files.quoted(folder)}"
    try:
        with (closing(runs.Metrics(folder, checkpoint)) as metrics, stopping() as asked,
              engines.start(checkpoint, config, settings, threads) as engine,
              _Output(sys.stdout, asked) as out, _Output(sys.stderr, asked) as err,
              tqdm(total=steps, initial=checkpoint.step, unit="step", dynamic_ncols=True, file=err,
                   mininterval=0.2 if err.isatty() else 5) as bar):
            for step in range(checkpoint.step + 1, steps + 1):
                row = _step(engine, step, batches, folder / runs.CHECKPOINT)
                seconds, stop = time.perf_counter() - began, bool(asked)
                row["seconds"] = round(seconds, 3)
                metrics.add(**row)
                _show(row, bar, steps, out)
                if step == steps or stop or step % settings.checkpoint_interval == 0:
                    runs.save_checkpoint(folder, runs.Checkpoint(
                        *engine.arrays(), step, seconds, bound, metrics.sync()))
                if stop and step < steps:
                    raise Interrupted(f"stopped after step {step} of {steps} and saved; continue "
                                      f"with: {go_on}", asked[0])
    except files.CannotWrite as error:
        error.way_out = f"make room, and continue from the last whole checkpoint with: {go_on}"
        raise
    return _finish(runs.load(folder), say)


def _step(engine, step, batches, good):
    """Training step `step`, and the validation loss if it is due -> the line of metrics.jsonl.

    good: the last checkpoint, for the error where something is not finite.
    """
    val_loss = None
    x, y = batches.training(step - 1)
    tick = time.perf_counter()
    try:
        loss, norm, lr = engine.train_step(x, y)
        speed = x.size / (time.perf_counter() - tick)
        if windows := batches.validation(step):
            val_loss = engine.mean_loss(*windows)
            if not math.isfinite(val_loss):
                raise NotFinite("the validation loss")
    except NotFinite as error:
        kept = "no checkpoint had been written yet"
        if good.exists():
            kept = f"the last good checkpoint is {good}"
        raise Diverged(f"step {step}: {error.name} is not finite; {kept}. "
                       "Try a smaller --lr, or a --clip.") from None
    return {"step": step, "train_loss": loss, "val_loss": val_loss, "grad_norm": norm, "lr": lr,
            "tokens_per_second": round(speed)}


def _show(row, bar, steps, out):
    if row["val_loss"] is not None:
        windows = "  (whole split)" if row["step"] == steps else ""
        bar.write(f"step {row['step']:5d}   train {row['train_loss']:.4f}   "
                  f"val {row['val_loss']:.4f}{windows}", file=out)
    speed = row["tokens_per_second"] / 1000
    bar.set_postfix_str(f"loss {row['train_loss']:.3f}, {speed:.1f}k tokens/s", refresh=False)
    bar.update()


def evenly(n, most):
    """At most `most` of the numbers below n, evenly spread: the windows of an evaluation."""
    return np.unique(np.linspace(0, n - 1, min(most, n)).astype(int))


def _finish(run, say):
    """Draw the loss and write a sample. The run is done: what goes wrong here is only said."""
    again = f"python -m minattn train --resume {files.quoted(run.folder)} makes it again"
    loss, sample = run.folder / runs.LOSS, run.folder / runs.SAMPLE
    plots.attempt(_draw_loss, run.folder, loss, say=say, way_out=again)
    if why := generate.recompute_reason(run.config):
        say(f"sampling without a key-value cache, each token from the whole prefix: {why}.")
    plots.attempt(_write_sample, run, sample, say=say, way_out=again)
    return run


def _draw_loss(folder, path):
    plots.loss(runs.read_metrics(folder), path)


def _write_sample(run, path):
    prompt, seed = generate.first_prompt(run.vocabulary), run.train["seed"]
    files.write(path, generate.text(run, prompt, 500, temperature=0.8, seed=seed))


@contextmanager
def stopping():
    """Once Ctrl-C, SIGTERM or SIGHUP comes, the list yielded holds an exit code: finish and save.

    Ctrl-C a second time stops at once. A signal that was ignored before (nohup) stays so.
    """
    asked = []

    def ask(number, frame):
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            asked.append(128 + number)
            _say_stopping("")

    if threading.current_thread() is not threading.main_thread():
        yield asked                              # only the main thread may take signals
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
               if hasattr(signal, name)]
    old = {number: signal.getsignal(number) for number in numbers}
    taken = [number for number in numbers
             if number == signal.SIGINT or old[number] not in (signal.SIG_IGN, None)]
    try:
        for number in taken:
            signal.signal(number, ask)
        yield asked
    finally:
        for number in taken:
            signal.signal(number, old[number])


def _say_stopping(why):
    try:
        print(f"\n{why}finishing this step and saving ...", file=sys.stderr)
    except (OSError, RuntimeError):              # the terminal is gone, or just being written to
        pass


class _Output:
    """A stream whose reader may go away: what is written then is dropped.

    If it is standard output, that asks to stop.
    """

    def __init__(self, stream, asked):
        self.stream, self.asked, self.gone = stream, asked, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        return self._safely(self.stream.write, text)

    def flush(self):
        self._safely(self.stream.flush)

    def _safely(self, do, *what):
        if self.gone:
            return None
        try:
            return do(*what)
        except OSError:
            self.gone = True
            if self.stream is sys.stdout and not self.asked:
                self.asked.append(128 + 13)      # as a shell says of SIGPIPE
                _say_stopping("standard output was closed: ")
            return None
