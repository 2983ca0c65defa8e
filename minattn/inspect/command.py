"""Look inside a trained model: a table of its heads, and pictures of what they attend to.

    python -m minattn inspect runs/energy --sequences 16

A run folder of `minattn bias` will do as well. What a mechanism learns per head is read off its row in the registry. What
it makes of a text (gates, alpha) is read out of the forward's cache by the functions of COMPUTED: a mechanism
that is not listed there has one picture less.
"""
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minattn import checks, data, masks, model, parallel, runs
from minattn.attention_layer import attention_parameters
from minattn.errors import InputError
from minattn.inspect import figures, statistics
from minattn.layers import embeddings, layers
from minattn.positions import morlet

MOST = 256          # sequences at once: their maps are held in memory


class Inside(NamedTuple):
    """What one layer did with a text."""
    name: str               # of its mechanism, "+gated" included
    weights: np.ndarray     # (B, H, T, T)
    visible: np.ndarray     # (T, T) bool
    computed: dict          # label -> (H, n) every value that this text brought about: gates, alpha
    learned: dict           # label -> (values (H,), initial value or None if it is remembered, not learned)


# -------------------------------------------------------------------------------- what a mechanism's cache tells


def _gate(cache):
    return {"gate": _by_head(cache.gate.gate)}


def _affine(cache):
    return {"alpha": _by_head(cache.alpha), "beta": _by_head(cache.beta)}


def _energy(cache):
    T = cache.z.shape[2]
    log_gate = cache.attention.biases[0]                                  # (B, H, 1, T), or one that makes its own tiles
    if not isinstance(log_gate, np.ndarray):
        every = slice(None)
        log_gate = log_gate.tile(every, every, np.arange(T), slice(0, T))[:, :, np.tri(T, dtype=bool)]
    return {"energy gate": _by_head(np.exp(log_gate))}


COMPUTED = {"gated": _gate, "affine": _affine, "energy": _energy}


def _by_head(x):
    """(B, H, ...) -> (H, n)"""
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)


# ------------------------------------------------------------------------------------------------- looking inside


def look(params, buffers, config, ids):
    """Run a model on ids (B, T) once -> [Inside] per layer. Errors: minattn.model.forward."""
    stack, T, inside = [], ids.shape[1], []
    cache = model.forward(params, ids, config, buffers=buffers, weights=stack)[2]
    for layer, w, (_, attn, *_) in zip(layers(config), stack, cache.layers):
        row, prefix = layer.mechanism, f"h.{layer.index}.attn."
        computed = COMPUTED[row.name](attn.attention) if row.name in COMPUTED else {}
        if layer.gate:
            computed.update(_gate(attn))
        learned = {name: (params[prefix + name], first) for name, n, first, _ in attention_parameters(layer, config) if n is None}
        learned = {name.removeprefix("log_"): tuple(map(np.exp, pair)) if name.startswith("log_") else pair for name, pair in learned.items()}
        learned.update({name: (buffers[prefix + name], None) for name in row.buffers})
        visible = masks.visible(T, T, causal=True, window=layer.window)
        inside.append(Inside(layer.name, w, visible, computed, learned))
    return inside


def even(layer):
    """The same layer, had it spread its weights evenly over the visible keys: what the others are to be compared with."""
    w = layer.visible / layer.visible.sum(axis=1, keepdims=True)
    return Inside(f"even, {layer.visible.sum(axis=1).max()} keys", w[None, None], layer.visible, {}, {})


def top_sink(layer):
    """The key that is a sink most often -> keys (H,), fractions (H,); among those seen by enough queries to mean something,
    half as many as the key that most see."""
    seen = layer.visible.sum(axis=0)
    fraction = np.where(2 * seen >= seen.max(), statistics.sink_fraction(layer.weights, visible=layer.visible), -1)
    return fraction.argmax(axis=1), fraction.max(axis=1)


def table(inside):
    """The columns' names, a line per layer and head, and one per width of window for even weights: -> list of tuples of strings"""
    computed = list(dict.fromkeys(label for layer in inside for label in layer.computed))
    learned = list(dict.fromkeys(label for layer in inside for label in layer.learned))
    odd = any(np.abs(layer.weights.sum(axis=3) - 1).max() > 1e-3 for layer in inside)
    rows = [("layer", "head", "attention", "entropy", "first token", "top sink", *["row sum"] * odd,
             *(f"mean {label}" for label in computed), *learned)]
    references = {even(layer).name: even(layer) for layer in inside}.values()
    for n, layer in [*enumerate(inside), *(("-", layer) for layer in references)]:
        total, spread = statistics.row_sums(layer.weights)
        entropy, first = statistics.entropy(layer.weights), statistics.first_token_mass(layer.weights, layer.visible)
        keys, fractions = top_sink(layer)
        for h in range(layer.weights.shape[1]):
            sink = f"key {keys[h]}: {fractions[h]:.0%}" if fractions[h] > 0 else "none"
            rows.append((str(n), "-" if n == "-" else str(h), layer.name, f"{entropy[h]:.2f}", f"{first[h]:.3f}", sink,
                         *[f"{total[h]:.2f} +- {spread[h]:.2f}"] * odd,
                         *(f"{layer.computed[label][h].mean():.3g}" if label in layer.computed else "-" for label in computed),
                         *(f"{layer.learned[label][0][h]:.3g}" if label in layer.learned else "-" for label in learned)))
    return rows


def draw(inside, folder, wavelets=None):
    """Every picture that there is something to show in -> the files' names"""
    pictures = {"maps.png": lambda path: figures.maps(inside, 0, path),
                "rollout.png": lambda path: figures.rollout(inside, path),
                "sinks.png": lambda path: figures.sinks(inside, [even(layer) for layer in inside], path)}
    if len(inside[0].weights) > 1:
        pictures["maps_mean.png"] = lambda path: figures.maps(inside, None, path)
    if any(layer.computed for layer in inside):
        pictures["computed.png"] = lambda path: figures.computed(inside, path)
    if any(layer.learned for layer in inside):
        pictures["learned.png"] = lambda path: figures.learned(inside, path)
    if wavelets:
        pictures["wavelets.png"] = lambda path: figures.wavelets(*wavelets, path)
    for name, picture in pictures.items():
        picture(folder / name)
    return list(pictures)


def _wavelets(run):
    """The wavelets at the start and now: two of (omega (n,), sigma (n,), pe (T, 2n))"""
    prefix = "position.morlet."
    options = next(options for row, options in embeddings(run.config) if row.module is morlet)
    now = {name.removeprefix(prefix): a for name, a in run.checkpoint.params.items() if name.startswith(prefix)}
    start = dict(zip(("log_omega", "log_sigma"), (a.astype(now["log_omega"].dtype) for a in morlet.initial(len(now["log_omega"])))))
    admissible = options["admissible"]
    return [(*morlet.effective(a["log_omega"], a["log_sigma"], admissible)[:2],
             morlet.forward(run.config.block_size, admissible=admissible, **a)[0]) for a in (start, now)]


# ---------------------------------------------------------------------------------------------------- the command


def add_arguments(parser):
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument("--text", metavar="FILE", help="what to read (default: the validation part of the run's own corpus)")
    parser.add_argument("--sequences", type=int, default=16, help="how many, each of block_size characters (default %(default)s)")
    parser.add_argument("--out", help="where the pictures go (default RUN/inspect)")
    parser.add_argument("--data-dir", default="data", help="where corpora are kept (default %(default)s)")


def run(args):
    checks.number("--sequences", args.sequences, 1, integer=True, high=MOST)
    with parallel.workers(1):
        model_words, text, inside, wavelets = (_recall if _is_recall(args.folder) else _trained)(args)
    folder = _folder(Path(args.folder) / "inspect" if args.out is None else args.out)
    B, _, T, _ = inside[0].weights.shape
    print(f"{args.folder}: {model_words}; {B} sequence{'s' * (B > 1)} of {T} tokens of {text}")
    rows = table(inside)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip())
    print("entropy in nats; first token: mean weight on key 0; top sink: the key on which the largest share of queries put more than 0.2")
    print(f"{folder}/ holds {', '.join(draw(inside, folder, wavelets))}")
    return 0


def _trained(args):
    """A run of `minattn train` -> the model and the text in words, [Inside], wavelets or None"""
    run = runs.load(args.folder)
    name, ids = _text(run, args)
    blocks = data.blocks(ids, run.config.block_size)[0]
    some = blocks[np.unique(np.linspace(0, len(blocks) - 1, args.sequences).astype(int))]
    inside = look(run.checkpoint.params, run.checkpoint.buffers, run.config, some)
    return (f"{run.config.attention}, {run.config.position} positions, step {run.checkpoint.step}", name, inside,
            _wavelets(run) if any(row.module is morlet for row, _ in embeddings(run.config)) else None)


def _is_recall(folder):
    try:
        return "network" in json.loads((Path(folder) / runs.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _recall(args):
    """A run of `minattn bias`: its first seed, on sequences whose query may be about any item. As _run."""
    from minattn.experiments.position_bias import command, recall_network, recall_task, recall_training
    if args.text is not None:
        raise InputError(f"{args.folder} is a run of `minattn bias`, whose networks read no text: leave out --text.")
    settings, _ = command.read_config(args.folder)
    try:
        config, task = recall_network.Config(**settings["network"]), recall_task.Task(**settings["task"])
    except TypeError as error:
        raise InputError(f"{Path(args.folder) / runs.CONFIG} is damaged: {error}.") from None
    seeds = sorted(int(path.name[4:]) for path in Path(args.folder).glob("seed*") if path.name[4:].isdecimal())
    state = recall_training.load(Path(args.folder) / f"seed{seeds[0]}", recall_network.parameter_shapes(config)) if seeds else None
    if state is None:
        raise InputError(f"{args.folder} has no trained network yet: let `minattn bias` finish a seed.")
    x, _ = recall_task.training_batch(task, recall_task.world(task, seeds[0]), np.random.default_rng(0), args.sequences)
    T = x.shape[1]
    visible = masks.visible(T, T, causal=config.mask != "none", window=config.window, prefix=config.prefix or 0)
    inside = [Inside("softmax", w, visible, {}, {}) for w in recall_network.weights(state.params, config, x)]
    return f"{config.mask} mask, {config.position} positions, seed {seeds[0]}, step {state.step}", "in-context recall", inside, None


def _text(run, args):
    """What to read, in words, and its ids."""
    vocabulary = data.Vocabulary(run.vocabulary)
    if args.text is not None:
        return args.text, vocabulary.encode(data.load_corpus(args.text, data_dir=args.data_dir).text)
    try:
        text = data.run_text(run.corpus, data_dir=args.data_dir)
    except InputError as error:
        raise InputError(f"{error} Name another text with --text.") from None
    return f"{run.corpus['name']}, validation part", data.split(vocabulary.encode(text))[1]


def _folder(path):
    if path == "":
        raise InputError("--out must name a folder.")
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"--out {path} is a file; name a folder.") from None
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}; choose another --out.") from None
    return path
