"""Type a text and see what trained models do with it, side by side, on a page in the browser.

    python -m minattn explore runs/softmax runs/energy

Everything that the page shows is computed here; page.py draws it with Bokeh (the extra `explore`).
"""
import importlib.util
from typing import NamedTuple

import numpy as np

from minattn import checks, data, files, generate, model, runs
from minattn.cli import DEFAULT
from minattn.errors import InputError
from minattn.inspect.look import look

LONGEST = 128             # characters, whatever the block_size: a longer map has no room on a page
FIRST_TEXTS = ("KING HENRY:\nWhat say you to the king", "To be, or not to be")
LIKELY = 10               # next characters that are shown
SHOWN = {" ": "␣", "\n": "↵", "\t": "⇥"}


class Model(NamedTuple):
    name: str
    run: runs.Run
    longest: int          # characters that it can read here

    def about(self):
        config = self.run.config
        return (f"{config.attention}, {config.position} positions, {config.n_layer} layers of "
                f"{config.n_head} heads, step {self.run.checkpoint.step}")


class View(NamedTuple):
    """What one model did with one text of T characters."""
    inside: list          # look.Inside, one per layer, each of one sequence
    likely: list          # (character, probability) of what comes next, the likeliest first


def load(folder):
    """A run folder -> Model; InputError if it is none, or none of a model that reads text."""
    from minattn.experiments.position_bias import inside as bias_run
    if bias_run.is_one(folder):
        raise InputError(f"{folder} is a run of `minattn bias`, whose networks read no text.")
    run = runs.load(folder)
    return Model(str(folder), run, min(run.config.block_size, LONGEST))


def first_text(models):
    """A text to begin with: one that every model can read"""
    shortest = min(one.longest for one in models)
    known = set.intersection(*(set(one.run.vocabulary) for one in models))
    for text in FIRST_TEXTS:
        if set(text) <= known:
            return text[:shortest]
    return generate.first_prompt("".join(sorted(known)) or models[0].run.vocabulary)


def view(one, text):
    """Let a model read a text -> View

    InputError for no text, one that is too long, or one with characters that the model lacks.
    """
    if not text:
        raise InputError("type at least one character.")
    if len(text) > one.longest:
        raise InputError(f"the text has {len(text)} characters; this model reads at most "
                         f"{one.longest} here.")
    ids = data.Vocabulary(one.run.vocabulary).encode(text)[None]
    params, buffers = one.run.checkpoint.params, one.run.checkpoint.buffers
    inside = look(params, buffers, one.run.config, ids)
    logits = model.forward(params, ids, one.run.config, buffers=buffers, last_only=True)[0]
    return View(inside, likely(logits[0, -1], one.run.vocabulary))


def likely(logits, vocabulary):
    """The likeliest next characters, with their probabilities, at temperature 1"""
    numerators = np.exp(logits.astype(np.float64) - logits.max())
    p = numerators / numerators.sum()
    return [(vocabulary[n], float(p[n])) for n in np.argsort(-p, kind="stable")[:LIKELY]]


def weights(layer):
    """The weights of a layer's heads, (H, T, T); nan where a query cannot see the key"""
    return np.where(layer.visible, layer.weights[0], np.nan)


def by_character(layer, head):
    """What a head computed for every character of the text: {label: (T,)}

    A gate with many channels is averaged over them. One that differs from query to query (an
    energy gate with norm=prefix) is that of the last query.
    """
    w, T = layer.weights[0, head], len(layer.visible)
    lines = {"mean weight received": (w * layer.visible).sum(axis=0) / layer.visible.sum(axis=0)}
    if np.abs(layer.weights.sum(axis=3) - 1).max() > 1e-3:
        lines["sum of weights given"] = w.sum(axis=1)
    for label, values in layer.computed.items():
        values = values[head, 0]                                      # (T,), (T, D) or (pairs,)
        lines[label] = values.mean(axis=1) if values.ndim == 2 else values[-T:]
    return lines


def shown(character):
    """A character as it stands on an axis"""
    return SHOWN.get(character, character)


# ------------------------------------------------------------------------------------- the command


def add_arguments(parser):
    parser.add_argument("folders", metavar="RUN", nargs="+",
                        help="run folders; their models stand side by side")
    parser.add_argument("--port", type=int, default=5006,
                        help="port on this machine; 0 takes a free one" + DEFAULT)
    parser.add_argument("--no-browser", action="store_true",
                        help="print the address and open no browser")


def run(args):
    """Serve the page until Ctrl-C -> 0"""
    checks.number("--port", args.port, 0, high=65535, integer=True)
    models = [load(files.named("RUN", folder, "run folder")) for folder in args.folders]
    if importlib.util.find_spec("bokeh") is None:
        raise InputError("Bokeh, which draws the page, is not installed; run: "
                         "python -m pip install bokeh")
    from minattn.inspect import page
    page.serve(models, args.port, open_browser=not args.no_browser)
    return 0
