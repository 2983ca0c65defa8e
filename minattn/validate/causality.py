"""Does the future leak? Four questions to a kernel, a trained model, or any function of tokens.

    1 suffix     change what follows a prefix: do earlier outputs stay, and do later ones change?
    2 gradient   back-propagate from one position: is the gradient at every later input exactly 0?
    3 prefix     evaluate a prefix alone: does its last output equal that of the whole?
    4 loss       trained models: is the loss the same when each prediction sees its prefix alone?

Each is reported apart, because they fail apart: a statistic over the whole sequence fails all
four, a division by the sequence's length only 3 and 4. Positions count from 0.

    print(causality("energy[norm=sequence]"))
    print(causality("runs/nano"))                                         # a run folder
    print(causality(my_kernel, mechanism="softmax", framework="torch"))
    print(causality(my_model, framework="torch"))      # tokens (B, T) -> logits (B, T, V)
"""
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minattn import attention, checks, spec
from minattn.errors import InputError
from minattn.files import one_line
from minattn.validate import cases, frameworks, isolate
from minattn.validate.check import limited
from minattn.validate.command import add_function, add_texts, sizes_of
from minattn.validate.report import write_file
from minattn.validate.subjects import NotCovered, _float64, _function, _kernel, _model

FORMS = {"suffix": "change what follows: does what came before stay?",
         "gradient": "does the gradient reach no later input?",
         "prefix": "does a prefix alone give the same?",
         "loss": "is the loss the same without what comes after?"}
LENGTH = 67
LONGEST = 1 << 17                              # time grows with the square of the length


class Certificate(NamedTuple):
    subject: str
    looked: str          # where it was cut, and so how far this goes
    forms: dict          # form -> "pass", "fail" or "not covered"
    findings: dict       # form -> sentences: what is wrong, why it is not covered, or what was seen

    @property
    def ok(self):
        return "fail" not in self.forms.values() and "pass" in self.forms.values()

    def to_json(self):
        return {**self._asdict(), "ok": self.ok}

    def __str__(self):
        lines = [f"causality of {self.subject}", f"  {self.looked}"]
        for n, (form, status) in enumerate(self.forms.items(), 1):
            lines.append(f"  {n} {form:9} {status:12} {FORMS[form]}")
            lines += [f"      {line}" for line in self.findings[form]]
        return "\n".join(lines)


def certificate(subject, looked, answers):
    """answers: for each of FORMS a status and its sentences"""
    status, findings = zip(*answers)
    return Certificate(subject, looked, dict(zip(FORMS, status)), dict(zip(FORMS, findings)))


@np.errstate(all="ignore")
def causality(target, *, mechanism=None, framework="numpy", options=None, backward=None,
              dtype="float64", device="cpu", length=LENGTH, sizes=None, layout="BHTD",
              forms=tuple(FORMS), tokens=None, corpus=None, data_dir="data", seed=0,
              time_limit=30.0, first=0, say=lambda *news: None):
    """Ask the four questions -> Certificate (.ok, .forms, .findings, str, .to_json()).

    target      a mechanism, as "energy[norm=sequence]"; a function with a mechanism's arguments
                (name the mechanism), as for minattn.validate.check, called with causal=True and
                `options`; a run folder; (params, buffers, config); or a function of tokens,
                (B, T) integers -> logits (B, T, V). "module:function" and "file.py:function" are
                imported
    framework   whose arrays the function takes, and who differentiates: "numpy" (a kernel's own
                backward), "torch" or "jax". A function of tokens is differentiated by their
                embeddings: in torch each look-up of the tokens in a table is noticed; in jax give
                the function attributes embed(tokens) and from_embeddings(embedded)
    length      tokens in the whole; a model's block_size if that is less
    sizes       {"D": 64} for a kernel that takes only some sizes; "T" is the length
    layout      "BTHD" for a kernel of arrays (B, T, H, D)
    forms       those to ask; the others are reported as not covered
    time_limit  seconds for each call of a function
    tokens      (x, y) for form 4; a run folder brings its own validation text (`corpus`: where)
    first, say  begin with this form; say("ready", ...), say("start") before each call of a
                function and say("done", (status, findings)) after each form: for the command line,
                which keeps a function in a process of its own
    Raises InputError if the target cannot be run at all.
    """
    checks.mapping("options", options)
    checks.mapping("sizes", sizes)
    sizes = dict(sizes or {})
    length = sizes.pop("T", length)
    for symbol, n in sizes.items():
        checks.choice("a size", symbol, ("B", "H", "Hkv", "D", "Dv", "Dv|1"))
        checks.number(symbol, n, 1, integer=True)
    forms = checks.several("forms", forms)
    for form in forms:
        checks.choice("form", form, FORMS)
    checks.number("length", length, 2, integer=True, high=LONGEST)
    checks.number("time_limit", time_limit, above=0)
    rng, parts, name = checks.random(seed), None, str(target)
    if isinstance(target, str) and target.partition("[")[0] in attention.MECHANISMS:
        target, mechanism = attention.mechanism(target.partition("[")[0]), target
    if isinstance(target, attention.Mechanism):
        mechanism = mechanism or target.name
        target, framework = target.module, "numpy"
    elif isinstance(target, tuple) and len(target) == 3:
        parts, name = target, "the model"
    elif isinstance(target, (str, Path)) and os.path.isdir(target):
        from minattn import runs
        run = runs.load(target)
        parts = run.checkpoint.params, run.checkpoint.buffers, run.config
        tokens = tokens or _windows(run, corpus, data_dir, rng)
    elif isinstance(target, (str, Path)):
        if not _foreign(name):
            known = attention.MECHANISMS
            raise InputError(f"{name!r} is neither a run folder, nor module:function, nor one of "
                             f"{', '.join(known)}.{checks.nearest(name, known)}")
        target = isolate.load(name)

    def timed(call):
        def called(*args):
            say("start")
            return limited(lambda: call(*args), time_limit)
        return called

    def prepared():
        if mechanism is None:
            return _function(target, framework, device, length)
        row, fixed = _with(mechanism, options or {})
        return _kernel(target, row, framework, fixed, backward, dtype, device, length, sizes,
                       layout)
    try:
        if parts is not None:
            parts = _float64(*parts)
            subject = _model(*parts, name, length)
        else:
            subject = timed(prepared)()
            subject = subject._replace(value=timed(subject.value), gradient=timed(subject.gradient))
        x = subject.draw(0, rng)
        y, again = subject.value(x), subject.value(x)
    except InputError:
        raise
    except Exception as error:                               # somebody else's code
        raise InputError(f"the target cannot be run: {frameworks.raised(error).message}") from None
    T = len(y)
    prefixes = edges(T, int(rng.integers(1, max(2, T - 1))))
    ask = {"suffix": lambda: _suffix(subject, x, prefixes, rng),
           "gradient": lambda: _gradient(subject, x, prefixes, rng),
           "prefix": lambda: _prefix(subject, x, y, prefixes),
           "loss": lambda: _loss(parts, tokens, rng)}
    answers, about = [], f"{subject.name}, {T} positions"
    looked = f"cut after {_listed(prefixes)} tokens; what begins later takes a greater --length"
    say("ready", len(FORMS), about, looked)
    for n, form in enumerate(FORMS):
        try:
            if form not in forms or n < first:
                raise NotCovered("not asked for")
            if form != "loss" and not prefixes:
                raise NotCovered("needs at least 2 positions")
            if not np.array_equal(y, again, equal_nan=True):
                raise NotCovered("the same input gives two different results, "
                                 "so that nothing can be said")
            wrong, seen = ask[form]()
            status, said = ("fail", wrong) if wrong else ("pass", [seen])
        except NotCovered as why:
            status, said = "not covered", [str(why)]
        except Exception as error:                           # somebody else's code
            status, said = "fail", [frameworks.raised(error).message]
        answers.append((status, [one_line(line, 400) for line in said]))
        if n >= first:
            say("done", answers[-1])
    return certificate(about, looked, answers)


def edges(T, *more):
    """The prefixes to try in T positions: short and late ones, and around the edges of tiles"""
    found = {1, 3, 7, T - 2, T - 1, *more}
    for step, until in ((16, 256), (64, 1024), (256, 4096), (4096, LONGEST)):
        found |= {*range(step, min(T, until) + 1, step)}
    found |= {t + i for t in (2**n for n in range(4, 17)) for i in (-1, 1)}
    return sorted(t for t in found if 0 < t < T)


def _with(mechanism, options):
    """"energy[norm=prefix]" and further options -> the mechanism, all options"""
    mechanism, named = cases.named(mechanism)
    for name in named.keys() & options.keys():
        if named[name] != options[name]:
            raise InputError(f"option {name} is given twice, as {named[name]!r} and "
                             f"{options[name]!r}.")
    return mechanism, {**named, **options}


def _foreign(target):
    """Is this text the name of something to import?"""
    known = target.partition("[")[0] in attention.MECHANISMS or os.path.isdir(target)
    return (":" in target or target.endswith(".py")) and not known


def _suffix(subject, x, prefixes, rng):
    wrong, leaking, ignored = [], [], []
    for way in range(2):
        if way:
            x = subject.draw(way, rng)
        y = subject.value(x)
        bad = np.flatnonzero(~np.isfinite(y).all(axis=1))
        wrong += [f"output at position {i} is not finite" for i in bad[:1]]
        for t in prefixes:
            other = subject.draw(way, rng, x)
            moved = _moved(y, subject.value(_mix(subject, x, other, slice(t, None))))
            if moved[:t].any():
                if not leaking:
                    said = _narrow(subject, x, y, other, t, int(np.argmax(moved)))
                    if way:
                        said += " (large numbers only: is a finite number used for -infinity?)"
                    wrong.append(said)
                leaking.append(t)
            if not way and not moved[t:].any():              # a ReLU of low scores may give all 0
                ignored.append(t)
    if leaking:
        wrong.append("an earlier output changed when everything was changed "
                     f"from token {_listed(leaking)} on")
    if ignored:
        wrong.append("no output changed when everything was changed "
                     f"from token {_listed(ignored)} on: it is ignored")
    return wrong, ("earlier outputs stay exactly and later ones move, "
                   f"for changes from token {_listed(prefixes)} on")


def _narrow(subject, x, y, other, t, i):
    """One token that is enough to move output i, in a sentence."""
    for j in range(len(y) - 1, t - 1, -1):
        z = subject.value(_mix(subject, x, other, slice(j, j + 1)))
        if _moved(y, z)[i]:
            return (f"output at position {i} changed when only token {j} changed "
                    f"(by {np.abs(z - y)[i].max():.1e})")
    return (f"output at position {i} changed when all tokens from {t} on changed, "
            "though no single one does it")


def _gradient(subject, x, prefixes, rng):
    wrong = []
    for i in (t - 1 for t in prefixes):
        grads = subject.gradient(x, i, rng)
        for name, g in grads.items():
            later = np.abs(g[i + 1:]).max(axis=1)
            if np.any(later != 0):                           # NaN too
                j = int(np.argmax(np.where(np.isnan(later), np.inf, later)))
                what = f"input {i + 1 + j} ({name})" if len(grads) > 1 else f"input {i + 1 + j}"
                wrong.append(f"the gradient of output {i} with respect to {what} "
                             f"is {later[j]:.1e}, not 0")
        if not any(np.any(g[:i + 1] != 0) for g in grads.values()):
            wrong.append(f"the gradient of output {i} is 0 with respect to every input: "
                         "it does not arrive at all")
    outputs = _listed(t - 1 for t in prefixes)
    return _few(wrong), f"exactly 0 at every later input, from output {outputs}"


def _prefix(subject, x, y, prefixes):
    wrong, tolerance, most, refused = [], subject.tolerance(), 0.0, {}
    for t in prefixes:
        part = {name: x[name].take(range(t), axis) for name, axis in subject.axes.items()}
        try:
            alone = subject.value({**x, **part})
        except Exception as error:                           # it may know some lengths only
            if isinstance(error, frameworks.Problem) and error.finding.kind == "hang":
                raise
            refused[t] = frameworks.raised(error).message
            continue
        if alone.shape != (t, y.shape[1]):
            wrong.append(f"f(x[:{t}]) has outputs for {len(alone)} positions")
            continue
        difference = np.abs(alone - y[:t]).max(axis=1)
        i = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
        most = np.fmax(most, difference[i])
        if not difference[i] <= tolerance * max(1.0, float(np.abs(y[:t]).max())):
            wrong.append(f"f(x[:{t}])[{i}] differs from f(x)[{i}] by {difference[i]:.1e}")
    lengths = f"prefixes of {_listed(refused)} tokens are refused" if refused else ""
    if refused:
        lengths += f" ({next(iter(refused.values()))})"
    if len(refused) == len(prefixes):
        raise NotCovered(lengths)
    seen = f"all outputs the same to {most:.0e} for prefixes of {{}} tokens"
    seen = seen.format(_listed({*prefixes} - {*refused}))
    return _few(wrong), "; ".join(filter(None, (seen, lengths)))


def _loss(parts, tokens, rng):
    if parts is None:
        raise NotCovered("only a model has a loss")
    if tokens is None:
        raise NotCovered("needs text: give tokens=(x, y)")
    if isinstance(tokens, str):
        raise NotCovered(tokens)
    from minattn.inspect.leak import leak
    positions = np.sort(rng.permutation(tokens[0].shape[1])[:32])
    forced, alone, n = leak(*parts, *tokens, positions)
    said = f"teacher-forced {forced:.4f}, prefix-only {alone:.4f} nats per token, at {n} positions"
    if abs(alone - forced) <= 1e-9:
        return [], said
    leaks = f"{alone - forced:+.4f} when a prediction is made from its own prefix alone"
    return [f"{said}: {leaks}"], said


def _windows(run, corpus, data_dir, rng):
    """Windows of a run's validation text -> (x, y), or a sentence where the text is not at hand."""
    from minattn import data
    try:
        text = data.run_text(run.corpus, corpus, data_dir=data_dir, say=lambda line: None,
                             download=False)
    except InputError as error:
        if corpus:
            raise
        return f"the text of this run is not at hand ({error}); if it has moved, name it as corpus"
    ids = data.Vocabulary(run.vocabulary).encode(text)
    x, y = data.blocks(data.split(ids)[1], run.config.block_size)
    some = np.sort(rng.permutation(len(x))[:16])
    return x[some], y[some]


def _mix(subject, x, other, part):
    """x, with this part of its positions taken from the other."""
    mixed = dict(x)
    for name, axis in subject.axes.items():
        mixed[name], at = x[name].copy(), (slice(None),) * axis + (part,)
        mixed[name][at] = other[name][at]
    return mixed


def _moved(y, z):
    """Which positions differ at all: (T,) bool"""
    return ((y != z) & ~(np.isnan(y) & np.isnan(z))).any(axis=1)


def _listed(numbers):
    found = sorted(set(numbers))
    if len(found) > 12:
        found = [*found[:9], f"... ({len(found) - 10} more)", found[-1]]
    return ", ".join(map(str, found))


def _few(sentences):
    if len(sentences) <= 3:
        return sentences
    return [*sentences[:3], f"... and {len(sentences) - 3} more like this"]


def add_arguments(parser):
    parser.add_argument("target", metavar="TARGET",
                        help="a mechanism (energy[norm=prefix]), a run folder, module:function or "
                             "file.py:function")
    add_function(parser, "D=64,T=256", "B, H, Hkv, D, Dv or T", "call")
    add_texts(
        parser,
        ("--mechanism", None, "whose arguments the function takes; without it, tokens -> logits"),
        ("--dtype", "float64", "dtype of a kernel's arrays (default %(default)s)"),
        ("--forms", ",".join(FORMS), "some of %(default)s"),
        ("--corpus", None, "where the text of the run is now, if it has moved"),
        ("--data-dir", "data", "where corpora are kept (default %(default)s)"))
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                        help="of a kernel: the same as in the brackets of its mechanism")
    parser.add_argument("--length", type=int, default=LENGTH,
                        help="sequence length (default %(default)s)")


def run(args):
    """-> 0 causal as far as asked, 1 not; InputError (exit code 2) where nothing could be asked."""
    same = ("target", "mechanism", "framework", "dtype", "device", "length", "corpus", "data_dir",
            "time_limit", "backward", "layout")
    question = {name: getattr(args, name) for name in same}
    question["options"] = dict(spec.option(text) for text in args.option)
    question["sizes"] = sizes_of(args.sizes)
    question["forms"] = tuple(args.forms.split(","))
    certificate = (isolate.causality if _foreign(args.target) else causality)(**question)
    print(certificate)
    if args.json is not None:
        write_file(args.json, json.dumps(certificate.to_json(), indent=1) + "\n")
    if set(certificate.forms.values()) == {"not covered"}:
        raise InputError("none of these questions can be asked of this target.")
    return 0 if certificate.ok else 1
