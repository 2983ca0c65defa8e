"""The command line: python -m minattn COMMAND. Each command imports what it needs when it runs."""
import argparse
import dataclasses
import importlib
import os
import sys

from minattn.errors import InputError


class Parser(argparse.ArgumentParser):
    """argparse with one sentence instead of a page of usage, and no flag with an empty value."""

    def error(self, message):
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args=None, namespace=None):
        try:
            found, rest = super().parse_known_args(args, namespace)
        except InputError:
            raise
        except (ValueError, IndexError) as error:              # --threads=--, in some Pythons
            self.error(f"cannot read the arguments: {error}")
        for action in self._actions:
            value = getattr(found, action.dest, None)
            values = value if isinstance(value, list) and value else [value]
            empty = [v for v in values if v == [] or v == "" and action.dest not in EMPTY_IS_READ]
            # []: what --seeds=-- leaves; what takes the rest of the line may take none
            if empty and value != action.default and action.nargs != argparse.REMAINDER:
                name = "/".join(action.option_strings) or action.metavar or action.dest
                raise InputError(f"{name} must not be empty.")
        return found, rest


# arguments for which an empty text means something, or is refused in other words
EMPTY_IS_READ = ("window_pattern", "attention", "out", "prompt", "resume", "seeds")
FAULT = "this is a fault of minattn, please report it; MINATTN_TRACEBACK=1 shows where it is:"
LONGEST = 2000                            # characters of an error: some repeat what was given
DEFAULT = " (default %(default)s)"        # the end of a flag's help

# name -> (what it does, the module that brings add_arguments and run; None: this one)
COMMANDS = {
    "train": ("train a character model", None),
    "sample": ("continue a text with a trained model", None),
    "compare": ("train several mechanisms, positions and seeds and compare them",
                "minattn.studies.command"),
    "list": ("list the mechanisms, positions and presets", None),
    "check": ("check your implementation of a mechanism, forward and backward",
              "minattn.validate.command"),
    "causality": ("test whether the future leaks into a kernel or a model",
                  "minattn.validate.causality"),
    "vectors": ("write golden vectors, or check results against them", "minattn.validate.vectors"),
    "validate-self": ("test that the kit catches every wrong implementation it knows",
                      "minattn.validate.self_check"),
    "lessons": ("list the lessons, or open one", "minattn.lessons.command"),
    "inspect": ("show what each head of a trained model attends to",
                "minattn.inspect.command"),
    "explore": ("type a text and see, in the browser, what models do with it",
                "minattn.inspect.explore"),
    "bias": ("train attention-only networks and measure which positions they prefer",
             "minattn.experiments.position_bias.command"),
    "vision": ("train tiny vision transformers on noisy shapes, with error bars",
               "minattn.experiments.vision.command"),
    "bench": ("time training and generation against PyTorch and JAX", "minattn.bench"),
}


def main(argv=None, *, loaded=None):
    """Run one command -> exit code.

    0 done, 1 something is wrong with what was checked or trained, 2 bad input, 130 Ctrl-C; 143, 129
    or 141 where SIGTERM, SIGHUP or a closed output ended a training, which is saved
    loaded() is called once the modules of the command are loaded
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:                     # closed by the caller: 2>&-
            setattr(sys, name, open(os.devnull, "w"))
    if sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")   # for letters that the terminal lacks
    try:
        argv = sys.argv[1:] if argv is None else list(argv)
        parser = build_parser(argv[0] if argv else None)
        args = parser.parse_args(argv)
        if args.command is None:
            parser.print_help()
            return 0
        if loaded:
            loaded()
        return args.run(args) or 0
    except InputError as error:
        return _say(error, 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_stdout()
        return 1
    except MemoryError as error:
        return _say(f"there is not enough memory for these sizes: choose smaller ones. {error}", 2)
    except OSError as error:                               # a full disk, say
        return _say(error, 1)
    except Exception as error:
        if os.environ.get("MINATTN_TRACEBACK"):
            raise
        return _say(f"{FAULT} {type(error).__name__}: {error}", 1)


def _say(error, code):
    """Print one sentence, whatever it quotes -> the exit code"""
    text = str(error).strip()
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}..."
    print(f"error: {text}", file=sys.stderr)
    return code


def _drop_stdout():
    """Nobody reads it: nothing that is still buffered may fail at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser(command=None):
    """The parser; only `command` gets its arguments, so that nothing else is imported."""
    from minattn import __version__
    about = "Attention from recent papers in plain NumPy: train, sample, validate, measure."
    parser = Parser(prog="minattn", description=about)
    parser.add_argument("--version", action="version", version=f"minattn {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, (text, module) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:])
        if name != command:
            continue
        if module is None:
            arguments, run = {"train": (_train_arguments, run_train),
                              "sample": (_sample_arguments, run_sample),
                              "list": (_list_arguments, run_list)}[name]
        else:
            room = importlib.import_module(module)
            arguments, run = room.add_arguments, room.run
        arguments(sub)
        sub.set_defaults(run=run)
    return parser


# -------------------------------------------------------------------------------------------- train


def _train_arguments(parser):
    from minattn import model, train
    add = parser.add_argument
    add("--preset", help=f"one of {', '.join(train.PRESETS)} (default nano)")
    add("--out", help="run folder (default runs/PRESET)")
    add("--resume", metavar="RUN", help="resume the run in this folder, or one of its checkpoints")
    add("--overwrite", action="store_true", help="replace an existing run")
    add("--threads", type=int, help="cores to use; NumPy's result does not depend on it")
    add("--data-dir", default="data", help="where corpora are kept" + DEFAULT)
    for group, cls in (("training", train.Settings), ("model", model.Config)):
        section = parser.add_argument_group(group, "defaults come from the preset")
        add_settings(section, [field.name for field in dataclasses.fields(cls)
                               if field.name in train.FIELDS])
    for what in ("attention", "position"):
        section.add_argument(f"--{what}-option", action="append", metavar="NAME=VALUE",
                             dest=f"{what}_options",
                             help=f"older form of an option in the brackets of --{what}")


# the help of each flag that sets a field of train.Settings or model.Config
SETTINGS = {
    "corpus": "tinyshakespeare, builtin, or the path of a UTF-8 text",
    "batch_size": "windows of text in each step",
    "steps": "training steps",
    "lr": "learning rate after the warm-up",
    "min_lr": "learning rate at the end",
    "warmup": "steps in which the learning rate rises to --lr",
    "schedule": "of the learning rate: cosine or linear",
    "cooldown": "share of the steps in which the linear schedule falls to --min-lr",
    "beta1": "AdamW: decay of the running mean of gradients",
    "beta2": "AdamW: decay of the running mean of their squares",
    "eps": "AdamW: added to the denominator",
    "optimizer": "adamw, or muon for the matrices inside the layers",
    "muon_lr": "Muon: learning rate",
    "momentum": "Muon: momentum",
    "muon_steps": "Muon: Newton-Schulz steps, 3 or 5",
    "weight_decay": "decoupled weight decay",
    "decay": "what decays: 2d (matrices and embeddings) or all",
    "clip": "largest global gradient norm; 0: no clipping",
    "chunks": "parts of a batch that can run at once; changes the rounding",
    "eval_interval": "steps between validation losses",
    "eval_blocks": "windows in each validation; the last one takes all",
    "checkpoint_interval": "steps between checkpoints",
    "seed": "of weights, batches and dropout",
    "dtype": "float32 or float64",
    "engine": "numpy, or torch: the same model in PyTorch",
    "device": "PyTorch: cpu, cuda, cuda:1, ...",
    "autocast": "PyTorch: dtype of matrix products, bfloat16 or none",
    "compile": "PyTorch: compile the training step",
    "block_size": "tokens of context",
    "n_layer": "layers",
    "n_head": "attention heads in each layer",
    "n_embd": "channels; each head has n_embd / n_head",
    "dropout": "on embeddings, attention weights and both branches of a layer",
    "bias": "biases in linear layers and layer norms",
    "qkv_bias": "biases of queries, keys and values",
    "gelu": "tanh or exact",
    "scaled_init": "smaller initial weights for projections back into the residual stream",
    "n_kv_head": "heads of keys and values, a divisor of n_head; none: n_head",
    "qk_norm": "normalise the queries and keys of each head",
    "softcap": "c: scores become c tanh(score / c); none: off",
    "log_length": "multiply scores by a log n, with n visible keys and a learned per head",
    "attention": "mechanism, as in energy[norm=prefix]+gated or energy/softmax; see minattn list",
    "position": "position encoding, as in learned+rope[base=100]; see minattn list",
    "window": "keys that a query sees, itself included; none: all before it",
    "window_pattern": "by layer, S (window of block_size / 2) or L (all): SSSL",
}


def add_settings(section, names):
    """A flag for each of these fields of train.Settings and model.Config."""
    from minattn import train
    for name in names:
        flag, kind, text = "--" + name.replace("_", "-"), train.FIELDS[name], SETTINGS.get(name)
        if kind is bool:
            section.add_argument(flag, action=argparse.BooleanOptionalAction, default=None,
                                 help=text)
        else:
            section.add_argument(flag, type=kind, metavar=name.upper(), help=text)


def given(args, names):
    """{name: value} of those flags that were given"""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def run_train(args):
    from minattn import checks, files, runs, spec, train
    fields = given(args, train.FIELDS)
    for name in ("attention_options", "position_options"):
        if texts := getattr(args, name):
            fields[name] = dict(spec.option(text) for text in texts)
    common = dict(threads=args.threads, data_dir=files.named("--data-dir", args.data_dir))
    if args.threads is not None:
        checks.number("--threads", args.threads, 1, integer=True)
    preset = "nano" if args.preset is None else args.preset
    try:
        if args.resume is not None:
            if args.out is not None or args.overwrite:
                raise InputError("--resume continues a run in its own folder: leave out --out and "
                                 "--overwrite.")
            checks.choice("preset", preset, train.PRESETS)
            overrides = {**train.PRESETS.get(args.preset, {}), **fields}
            where = files.named("--resume", args.resume, "run folder")
            run = train.resume(where, overrides=overrides, **common)
        else:
            settings, shape = train.settings_for(preset, fields)
            out = f"runs/{preset}" if args.out is None else files.named("--out", args.out)
            run = train.start(settings, shape, out, overwrite=args.overwrite, **common)
    except train.Interrupted as stop:
        try:
            print(stop, flush=True)
        except OSError:                      # nobody reads standard output any more
            print(stop, file=sys.stderr)
            _drop_stdout()
        return stop.code
    except train.Diverged as stop:
        print(f"error: {stop}", file=sys.stderr)
        return 1
    made = [name for name in (runs.LOSS, runs.SAMPLE) if (run.folder / name).is_file()]
    if runs.SAMPLE in made:
        made[-1] = "this sample.txt"
        print(f"\n{files.read_text(run.folder / runs.SAMPLE).strip()}\n")
    *some, last = "the checkpoint", runs.METRICS, *made
    print(f"done in {run.checkpoint.seconds:.0f} s: {run.folder}/ holds {', '.join(some)} and "
          f"{last}")
    prompt = ' --prompt "O, "' if set("O, ") <= set(run.vocabulary) else ""
    print(f"more text: python -m minattn sample {files.quoted(run.folder)}{prompt} --tokens 300")
    return 0


# ------------------------------------------------------------------------------------------- sample


def _sample_arguments(parser):
    add = parser.add_argument
    add("folder", metavar="RUN", help="a run folder")
    add("--prompt", help="text to continue (default: a new line, or the first character known)")
    add("--tokens", type=int, default=500, help="characters to write" + DEFAULT)
    add("--temperature", type=float, default=0.8, help="below 1: safer, above 1: wilder" + DEFAULT)
    add("--top-k", type=int,
        help="choose among the K most likely characters only; 1 is greedy")
    add("--seed", type=int, default=0, help="of the draws" + DEFAULT)
    add("--no-cache", action="store_true", help="recompute every prefix: slower, same text")


def run_sample(args):
    from minattn import data, files, generate, parallel, runs
    run = runs.load(files.named("RUN", args.folder, "run folder"))
    vocabulary = data.Vocabulary(run.vocabulary)
    prompt = generate.first_prompt(run.vocabulary) if args.prompt is None else args.prompt
    if not prompt:
        raise InputError("--prompt must have at least one character.")
    ids = vocabulary.encode(prompt)
    if why := generate.recompute_reason(run.config):
        print(f"no key-value cache, each token from the whole prefix: {why}.", file=sys.stderr)
    new = generate.stream(run.checkpoint.params, run.checkpoint.buffers, run.config, ids,
                          args.tokens, temperature=args.temperature, top_k=args.top_k,
                          seed=args.seed, cached=not args.no_cache)
    with parallel.workers(1):
        for n, token in enumerate(new):
            print((prompt if n == 0 else "") + vocabulary.decode([token]), end="", flush=True)
    print()
    return 0


# --------------------------------------------------------------------------------------------- list


def _list_arguments(parser):
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")


def run_list(args):
    from minattn import report_table
    from minattn.attention import MECHANISMS
    from minattn.positions import POSITIONS
    from minattn.train import PRESETS

    def show(rows):
        text = report_table.markdown(rows) if args.markdown else report_table.text(rows, rule=True)
        print(text + "\n")

    rows = [("attention", "paper", "what it changes", "file", "causal",
             "parameters a layer adds", "options")]
    for name, m in MECHANISMS.items():
        causal = ["yes", *(f"not with {_condition(pairs)}" for pairs in m.not_causal),
                  *(f"{_condition(pairs)} sees the length" for pairs in m.not_cacheable)]
        rows.append((name, m.arxiv, m.summary, _file(m.module), "; ".join(causal),
                     m.extra_parameters(), _defaults(m.all_options())))
    show(rows)
    show([("position", "paper", "what it does", "file", "kind", "options"),
          *((name, p.arxiv or "", p.summary, _file(p.module), p.kind, _defaults(p.options))
            for name, p in POSITIONS.items())])
    keys = ("n_layer", "n_head", "n_embd", "block_size", "batch_size", "steps")
    show([("preset", "layers", "heads", "channels", "block", "batch", "steps"),
          *((name, *(str(preset[key]) for key in keys)) for name, preset in PRESETS.items())])
    print("Options in brackets (energy[norm=prefix]); a gate on top (affine+gated); "
          "layers that alternate (energy/softmax); several positions (learned+rope).")
    return 0


def _file(module):
    return module.__name__.replace(".", "/") + ".py" if module else ""


def _condition(pairs):
    """(option, value, option, value) -> "option=value,option=value\""""
    return ",".join(f"{k}={v}" for k, v in zip(pairs[::2], pairs[1::2]))


def _defaults(options):
    return ", ".join(f"{name}={option.default}" for name, option in options.items())
