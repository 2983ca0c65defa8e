"""What to compare, turned into runs of the trainer: a grid of mechanisms, positions and seeds, and
variants spelled out.

Mechanisms and positions are spelled as everywhere (minattn.spec), with commas between variants.
"""
import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

from minattn import checks, data, model, runs, spec, train
from minattn.errors import InputError
from minattn.inspect.lengths import check_text, reading

FIELDS = {name: kind for name, kind in train.FIELDS.items() if name != "seed"}


LONGEST = 200            # bytes of a folder's name: file systems end at 255 or earlier


class Variant(NamedTuple):
    name: str
    folder: str              # its name as a folder's
    settings: train.Settings
    shape: dict              # fields of model.Config, all but vocab_size


class Job(NamedTuple):
    """One run. Everything a worker needs, wherever it is."""
    variant: str
    seed: int
    folder: str              # the run folder, absolute: workers may stand elsewhere
    settings: train.Settings
    shape: dict
    measured: tuple          # Plan.prefix_positions and Plan.lengths
    threads: int | None
    data_dir: str

    def expected(self):
        """What config.json of the run folder must say."""
        return {**self.shape, **dataclasses.asdict(self.settings)}


class Plan(NamedTuple):
    folder: Path
    variants: tuple          # of Variant
    seeds: tuple
    baseline: str            # the name of a variant
    prefix_positions: int = 512
    lengths: tuple = ()      # contexts to evaluate at, longer than the training's
    threads: int | None = 1  # of one run
    data_dir: str = "data"

    def jobs(self):
        """Every run, seed by seed, so that what is finished early can already be compared."""
        home, data_dir = Path(self.folder).resolve(), str(Path(self.data_dir).resolve())
        return [Job(v.name, seed, str(home / v.folder / f"seed-{seed}"),
                    dataclasses.replace(v.settings, seed=seed), v.shape,
                    (self.prefix_positions, tuple(self.lengths)), self.threads, data_dir)
                for seed in self.seeds for v in self.variants]


def make(folder, *, attention="", position="learned", variants=(), seeds="0", preset="nano",
         overrides=None, baseline=None, lengths="", **options):
    """Texts, as the command line takes them -> Plan; InputError for what cannot be.

    attention, position   lists with commas: every pair is a variant, called "attention position"
    variants              "NAME: FIELD=VALUE ...", any setting of the trainer; after the grid
    seeds                 "0-4", "0,2,7"
    overrides             {setting: value} for all of them, on top of the preset
    baseline              the name of the variant to subtract; the first
    lengths               contexts to evaluate at, each at least block_size: "64,128,256"
    """
    lengths = contexts(lengths)
    checks.choice("preset", preset, train.PRESETS)
    if not attention and not variants:
        raise InputError("nothing to compare: name some with --attention softmax,energy "
                         "or --variant \"NAME: FIELD=VALUE ...\".")
    given, made = [explicit(text) for text in variants], []
    if attention:
        given = [(f"{a} {p}", {"attention": a, "position": p})
                 for a in spec.variants("attention", attention)
                 for p in spec.variants("position", position)] + given
    for name, fields in given:
        try:
            settings, shape = train.settings_for(preset, {**(overrides or {}), **fields})
            config = model.Config(**shape)
            train.weigh(config, settings)
            for length in lengths:
                reading(config, length)
            shape = model.to_dict(config)
        except InputError as error:
            raise InputError(f"variant {name!r}: {error}") from None
        del shape["vocab_size"]
        made.append(Variant(name, folder_name(name), settings, shape))
    for n, variant in enumerate(made):
        for other in made[:n]:
            if variant.folder == other.folder:
                raise InputError(f"variants {other.name!r} and {variant.name!r} would share the "
                                 f"folder {variant.folder}: leave one out, or give one another "
                                 "name with --variant.")
            if variant.settings == other.settings and variant.shape == other.shape:
                raise InputError(f"variants {other.name!r} and {variant.name!r} are the same: "
                                 "leave one out.")
    return Plan(Path(folder), tuple(made), numbers(seeds), chosen(baseline, made),
                lengths=lengths, **options)


def explicit(text):
    """"NAME: FIELD=VALUE ..." -> (name, {field: value})"""
    name, colon, rest = text.partition(":")
    name, fields = name.strip(), {}
    if not colon or not name:
        raise InputError(f"--variant {text!r} must be \"NAME: FIELD=VALUE ...\", as in "
                         "\"wide: attention=energy[norm=key] n_embd=192\".")
    for word in rest.split():
        field, equals, value = word.partition("=")
        field = field.replace("-", "_")
        if not equals:
            raise InputError(f"--variant {name!r}: {word!r} is not FIELD=VALUE.")
        checks.choice(f"--variant {name!r}: a field", field, FIELDS)
        fields[field] = value_of(field, value)
    return name, fields


def value_of(field, text):
    """A setting's value from its text, by the type of the field."""
    kind = FIELDS[field]
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        expected = {bool: "true or false", float: "a number"}.get(kind, "an integer")
        raise InputError(f"{field} must be {expected}; got {text!r}.") from None


def folder_name(name):
    """energy[norm=sequence] morlet -> energy-norm=sequence_morlet"""
    folder = name.replace("[", "-").replace("]", "").replace("/", ".")
    folder = re.sub(r"[^\w.=+,-]+", "_", folder)
    if not folder[0].isalnum():
        raise InputError(f"a variant's name must begin with a letter or a digit; got {name!r}.")
    if len(folder.encode()) > LONGEST:
        raise InputError(f"a variant's name must have at most {LONGEST} bytes, as it names a "
                         f"folder; {checks.shown(name)} has {len(folder.encode())}.")
    return folder


def numbers(text):
    """"0-4,7" -> (0, 1, 2, 3, 4, 7)"""
    seeds = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise InputError("--seeds must be numbers and ranges such as 0-4 or 0,3,7; "
                             f"got {text!r}.")
        first, last = int(found[1]), int(found[2] or found[1])
        if last - first > 9999:
            raise InputError(f"--seeds {text!r} are more than 10,000.")
        seeds += range(first, last + 1)
    return tuple(dict.fromkeys(seeds))


def contexts(text):
    """"64,128" -> (64, 128); "" -> ()"""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(re.fullmatch(r"[1-9]\d{0,5}", part) for part in parts):
        raise InputError(f"--lengths must be numbers of tokens such as 64,128,256; got {text!r}.")
    return tuple(sorted({int(part) for part in parts}))


def chosen(baseline, variants):
    """The variant that --baseline names.

    By its name, its folder's, or the attention alone if only one variant has it.
    """
    names = [v.name for v in variants]
    if baseline is None:
        return names[0]
    folders, attentions = [v.folder for v in variants], [name.partition(" ")[0] for name in names]
    for called in (names, folders, attentions):
        if called.count(baseline) == 1:
            return names[called.index(baseline)]
    raise InputError(f"--baseline must be one of {', '.join(map(repr, names))}; got {baseline!r}."
                     f"{checks.nearest(baseline, names)}")


def check_runs(plan, corpora):
    """InputError unless the runs already below plan.folder have the plan's settings and texts.

    corpora: as with_corpus returns them
    """
    for job in plan.jobs():
        if (Path(job.folder) / runs.CONFIG).exists():
            run = runs.read_config(job.folder)
            folder = plan.folder / Path(job.folder).relative_to(plan.folder.resolve())
            if other := run.other_setting(job.expected(), train.DEFAULTS):
                raise InputError(f"{folder} holds a run with {other}: give the "
                                 "settings it was made with, or choose another --out.")
            corpus = job.settings.corpus
            if run.corpus["sha256"] != corpora[corpus]["sha256"]:
                raise InputError(f"{folder} holds a run on another text than {corpus} is now: it "
                                 f"had {run.corpus['characters']:,} characters, now there are "
                                 f"{corpora[corpus]['characters']:,}; restore the text, or choose "
                                 "another --out.")


def with_corpus(plan, say):
    """Fetch the corpora, once and before any worker starts -> plan, {name: data.about it}

    Where another corpus came instead, all runs take that one. InputError for a variant that cannot
    begin on its text.
    """
    came = {name: data.load_corpus(name, data_dir=plan.data_dir, say=say)
            for name in dict.fromkeys(v.settings.corpus for v in plan.variants)}
    variants = tuple(
        v._replace(settings=dataclasses.replace(v.settings, corpus=came[v.settings.corpus].name))
        for v in plan.variants)
    for variant, before in zip(variants, plan.variants):
        corpus = came[before.settings.corpus]
        try:
            _, _, batches, _ = train.beginning(variant.settings, variant.shape, corpus)
            if plan.lengths:
                check_text(plan.lengths, batches.val_ids)
        except InputError as error:
            raise InputError(f"variant {variant.name!r}: {error}") from None
    return plan._replace(variants=variants), {x.name: data.about(x) for x in came.values()}
