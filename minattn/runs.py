"""A run folder: what is in it, and how it is written so that a kill at any moment loses nothing.

    config.json                     every setting, the vocabulary, the corpus and its checksum
    metrics.jsonl                   one line per step
    checkpoint.safetensors          parameters, buffers, both moments of AdamW; in its header the
                                    step, the seconds, the settings and the checksum of the metrics
                                    that it belongs to
    checkpoint.previous.safetensors the one before
    loss.png  sample.txt

Files are written aside, synced and renamed. The checkpoint's own checksum covers every name, type,
shape, number and entry of the header. Checkpoints of version 1, which had less in their header and
a checksum of the numbers alone, are still read.
"""
import hashlib
import json
import math
import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from minattn import files, model
from minattn.checks import FLOATS
from minattn.errors import InputError, NotFinite
from minattn.layers import layers

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.jsonl", "checkpoint.safetensors"
PREVIOUS, LOSS, SAMPLE = "checkpoint.previous.safetensors", "loss.png", "sample.txt"
FILES = (CONFIG, METRICS, CHECKPOINT, PREVIOUS, LOSS, SAMPLE)
FORMAT, VERSION = "minattn run", 2
CONFIG_KIND = {"format?": str, "version?": int, "model": dict, "train": dict, "vocabulary": str,
               "corpus": {"name": str, "sha256": str, "characters": int, "path?": (str, None)}}
ROW_KIND = {"step": int, "train_loss": float, "val_loss": (float, None)}


class InUse(InputError):
    """Another process is at work in this folder."""


class Checkpoint(NamedTuple):
    params: dict
    buffers: dict
    m: dict              # AdamW's first moments, named as the parameters
    v: dict              # and its second
    step: int            # steps done
    seconds: float       # of training, all sittings together
    config: str | None = None             # the settings it belongs to, as `bound` spells them
    metrics: tuple | None = None          # (bytes, sha256) of the metrics.jsonl it belongs to


PARTS = {"params": "params", "buffers": "buffers", "m": "adam_m", "v": "adam_v"}   # in the file


class Run(NamedTuple):
    folder: Path
    config: model.Config
    train: dict
    vocabulary: str
    corpus: dict
    checkpoint: Checkpoint | None

    def bound(self):
        return bound(self.config, self.train, self.vocabulary, self.corpus)

    def other_setting(self, wanted, defaults):
        """The first of these settings that the run has not: "lr = 0.01, not 0.5"; or None.

        defaults: of settings that an older run does not know.
        """
        known = {**defaults, **model.to_dict(self.config), **self.train}
        for name, value in wanted.items():
            if known.get(name) != value:
                return f"{name} = {files.short(known.get(name))}, not {value!r}"
        return None


def bound(config, train, vocabulary, corpus):
    """The settings that decide what a run becomes, as text: all but the corpus's name and place."""
    train = {name: value for name, value in train.items() if name != "corpus"}
    corpus = {name: corpus[name] for name in ("sha256", "characters")}
    return json.dumps({"model": model.to_dict(config), "train": train, "vocabulary": vocabulary,
                       "corpus": corpus}, sort_keys=True)


# ----------------------------------------------------------------------------------------- writing


@contextmanager
def _writable(folder):
    """What cannot be written becomes one sentence about --out."""
    try:
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise InputError(f"--out {folder} is a file; name a folder.")
        yield
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; "
                         "choose another --out.") from None


def make_folder(folder, *, below=None):
    """Make a folder that files can be written to; InputError if there can be none.

    below: the folder that the user named; links on the way from there are not followed.
    """
    if below is not None:
        place = Path(folder)
        while place != Path(below) and place != place.parent:
            if place.is_symlink():
                raise InputError(f"{place} is a link, which may lead to somebody else's files: "
                                 "remove it, or name a folder with --out.")
            place = place.parent
    with _writable(folder):
        files.check_writable(folder)


def vacant(folder, *, overwrite=False):
    """The files of a run to be replaced; InputError if one is there that should not be."""
    folder = Path(folder)
    with _writable(folder):
        there = [path for name in FILES if os.path.lexists(path := folder / name)]
    if there and not _ours(folder):
        raise InputError(f"{folder} holds {', '.join(path.name for path in there)}, and no "
                         f"{CONFIG} that tells of a run: it may be yours, so nothing is removed; "
                         "choose another --out.")
    if there and not overwrite:
        raise InputError(f"{folder} already holds a run: continue it with --resume "
                         f"{files.quoted(folder)}, replace it with --overwrite, or choose another "
                         "--out.")
    return there


def _ours(folder):
    """Did this program write a run here? Its config.json or a checkpoint says so."""
    try:
        files.read_json(folder / CONFIG, CONFIG_KIND)
        return True
    except InputError:
        pass
    for name in (CHECKPOINT, PREVIOUS):
        try:
            read_header(folder / name)
            return True
        except InputError:
            pass
    return False


@contextmanager
def create(folder, *config, overwrite=False, keep=None):
    """Make the folder of a new run, lock it and write its config.json; an older run is removed.

    config: as config_text takes it. keep: a file that must not be removed, the corpus.
    InputError as vacant and make_folder; CannotWrite, and the older run is still there.
    """
    folder = Path(folder)
    make_folder(folder)
    with lock(folder):
        there = vacant(folder, overwrite=overwrite)
        for path in there:
            if keep is not None and os.path.exists(keep) and os.path.samefile(keep, path):
                raise InputError(f"--overwrite would remove {path}, the corpus itself: choose "
                                 "another --out, or move the text.")
        files.sweep(folder, FILES)
        with files.written_aside(folder / CONFIG, config_text(*config)):
            for path in reversed(there):  # config.json last: it tells that the others are ours
                path.unlink()
        yield folder


_mine = threading.local()                 # the folders that this thread may lock again


@contextmanager
def lock(folder, *, wait=False, again=False):
    """Keep other processes and threads from working in this folder; InUse if one is, or wait.

    The lock ends with the process. again: what this thread calls inside may lock the folder too.
    """
    try:
        import fcntl
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (ImportError, OSError):       # Windows; or no such folder, which the reader says better
        yield
        return
    held, which = _mine.__dict__.setdefault("folders", set()), os.fstat(handle)
    which = which.st_dev, which.st_ino
    try:
        if which in held:
            yield
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InUse(f"another process is training in {folder}: let it finish, "
                        "or choose another --out.") from None
        except OSError:                  # a file system without locks
            pass
        if again:
            held.add(which)
        try:
            yield
        finally:
            held.discard(which)
    finally:
        os.close(handle)


def config_text(config, train, vocabulary, corpus):
    content = {"format": FORMAT, "version": VERSION, "model": model.to_dict(config), "train": train,
               "vocabulary": vocabulary, "corpus": corpus}
    return json.dumps(content, indent=1) + "\n"


def save_checkpoint(folder, checkpoint):
    """Write the checkpoint; the last one becomes the previous one. A whole one is always there."""
    folder = Path(folder)
    tensors = {f"{there}/{name}": np.ascontiguousarray(array) for part, there in PARTS.items()
               for name, array in getattr(checkpoint, part).items()}
    header = {"format": FORMAT, "version": str(VERSION), "step": str(checkpoint.step),
              "seconds": repr(checkpoint.seconds)}
    if checkpoint.config is not None:
        header["config"] = checkpoint.config
    if checkpoint.metrics is not None:
        header["metrics"] = "{} {}".format(*checkpoint.metrics)
    header["sha256"] = _digest(tensors, header)
    content = save(tensors, metadata=header)
    if (folder / CHECKPOINT).exists():
        _keep_as_previous(folder)
    files.write(folder / CHECKPOINT, content)


def _keep_as_previous(folder):
    link = folder / f"{PREVIOUS}.{os.urandom(4).hex()}.tmp"
    try:
        os.link(folder / CHECKPOINT, link)
        os.replace(link, folder / PREVIOUS)
        link.unlink(missing_ok=True)             # still there where both were the same file already
    except OSError:                              # a file system without hard links
        link.unlink(missing_ok=True)
        files.write(folder / PREVIOUS, (folder / CHECKPOINT).read_bytes())


def _digest(tensors, header=None):
    """The checksum of a checkpoint; without a header that of version 1: names and numbers alone."""
    digest = hashlib.sha256()
    if header is not None:
        rest = {name: value for name, value in header.items() if name != "sha256"}
        about = {name: [array.dtype.str, array.shape] for name, array in tensors.items()}
        digest.update(json.dumps([rest, about], sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].tobytes())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------- reading


def read_config(folder):
    """config.json -> Run, without its checkpoint; InputError if it is missing or damaged."""
    path = Path(folder) / CONFIG
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a run folder: no folder has this name.")
    try:
        content = files.read_json(path, CONFIG_KIND,
                                  way_out="the run cannot be read without it")
    except files.Missing:
        raise InputError(f"{folder} is not a run folder: it has no {CONFIG}.") from None
    if content.get("format", FORMAT) != FORMAT or content.get("version", 1) not in (1, VERSION):
        raise InputError(f"{path} is of another format or a newer version: "
                         f"{files.short(content.get('format'))}, "
                         f"{files.short(content.get('version'))}; this program "
                         f"reads {FORMAT!r} up to version {VERSION}.")
    try:
        config, vocabulary = model.Config(**content["model"]), content["vocabulary"]
    except InputError as error:
        raise InputError(f"{path} describes no model: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); "
                         "the run cannot be read without it.") from None
    if "".join(sorted(set(vocabulary))) != vocabulary or len(vocabulary) != config.vocab_size:
        raise InputError(f"{path} is damaged: vocab_size is {config.vocab_size}, but the "
                         f"vocabulary has {len(set(vocabulary))} characters, or not in order; the "
                         "run cannot be read without it.")
    return Run(Path(folder), config, content["train"], vocabulary, content["corpus"], None)


def load(folder, which=CHECKPOINT):
    """A run folder -> Run.

    InputError names what is missing, truncated, damaged or from other settings, and the previous
    good checkpoint if there is one.
    """
    run = read_config(folder)
    try:
        checkpoint = read_checkpoint(run.folder / which, run.config)
    except InputError as error:
        if which != CHECKPOINT and not (isinstance(error, files.Missing)
                                        and killed_early(run.folder)):
            raise
        raise InputError(f"{error}{_previous_good(run)}") from None
    check_bound(run.folder / which, checkpoint.config, run.bound())
    return run._replace(checkpoint=checkpoint)


def checkpoint_header(folder):
    """The header of a run's checkpoint; InputError if it has none of its config.json's settings."""
    run, path = read_config(folder), Path(folder) / CHECKPOINT
    header = read_header(path)
    check_bound(path, header.get("config"), run.bound())
    return header


def check_bound(path, was, config):
    """InputError, naming the first difference, unless the settings that a checkpoint was saved with
    are these; both as `bound` spells them.
    """
    if was is None or was == config:                                  # None: version 1
        return
    try:
        was = files.parse_json(was)
    except InputError as error:
        raise InputError(f"{path} is damaged: of its settings, {error}.") from None
    old, new = _flat(was), _flat(json.loads(config))
    name = next((name for name in {**old, **new} if old.get(name) != new.get(name)), "a setting")
    raise InputError(f"{path} is from other settings than {CONFIG}: it was saved with {name} = "
                     f"{files.short(old.get(name))}, not {files.short(new.get(name))}; put the old "
                     "value back, or begin a new run.")


def _flat(content):
    """{"model": {"n_head": 2}, "vocabulary": "abc"} -> {"n_head": 2, "vocabulary": "abc"}"""
    flat = {}
    for part, value in content.items():
        flat |= value if isinstance(value, dict) else {part: value}
    return flat


def killed_early(folder):
    """Did this run stop before its first checkpoint? Then config.json alone says what it is."""
    return not any(os.path.lexists(Path(folder) / name) for name in (CHECKPOINT, PREVIOUS))


def read_header(path):
    """The header of a checkpoint, without its tensors -> dict; InputError if it is none."""
    return _open_checkpoint(path, tensors=False)[0]


def _open_checkpoint(path, tensors=True):
    """A checkpoint file -> its header, {name: array}"""
    files.check_plain(path)
    found = {}
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            if tensors:
                found = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise files.Missing(f"{path} does not exist.") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from None
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = files.one_line(error)
        raise InputError(f"{path} is truncated or not a safetensors file ({reason}).") from None
    if "sha256" not in header or "step" not in header:
        raise InputError(f"{path} is not a checkpoint of this program.")
    if header.get("version", "1") not in ("1", str(VERSION)):
        raise InputError(f"{path} is damaged or of a newer version, {header['version']!r}; this "
                         f"program reads up to version {VERSION}.")
    for name, most in (("step", 1 << 62), ("seconds", math.inf)):
        try:
            number = int(header["step"]) if name == "step" else float(header.get(name, 0))
        except ValueError:
            number = -1
        if not 0 <= number < most:
            raise InputError(f"{path} is damaged: its {name} is {files.short(header[name])}.")
    return header, found


def read_checkpoint(path, config=None, shapes=None):
    """A checkpoint file -> Checkpoint.

    Verified: whole, undamaged, finite, and of this config (or with parameters of these shapes).
    """
    header, tensors = _open_checkpoint(path)
    new = "version" in header
    if _digest(tensors, header if new else None) != header["sha256"]:
        raise InputError(f"{path} is damaged: its contents do not match their checksum.")
    buffers = {}
    if shapes is None:
        shapes = {name: shape for name, (shape, _) in model.parameter_shapes(config).items()}
        buffers = {f"h.{layer.index}.attn.{name}": (config.n_head,)
                   for layer in layers(config) for name in layer.mechanism.buffers}
    expected = {f"{PARTS[part]}/{name}": tuple(shape) for part in PARTS
                for name, shape in (buffers if part == "buffers" else shapes).items()}
    _check_tensors(path, tensors, expected)
    # in the order of a fresh model: sums over all parameters round by their order
    parts = {part: {name.removeprefix(f"{there}/"): tensors[name] for name in expected
                    if name.startswith(f"{there}/")} for part, there in PARTS.items()}
    return Checkpoint(**parts, step=int(header["step"]), seconds=float(header.get("seconds", 0)),
                      config=header.get("config"), metrics=_metrics_of(header))


def _metrics_of(header):
    """(bytes, sha256) of the metrics.jsonl that a checkpoint belongs to; None: of version 1."""
    size, _, sha256 = header.get("metrics", "").partition(" ")
    return (int(size), sha256) if size.isdecimal() else None


def _check_tensors(path, tensors, expected):
    """InputError unless these are the expected tensors, all of one type, and can be gone on from"""
    for name in [*expected, *(tensors.keys() - expected.keys())]:
        came = tensors[name].shape if name in tensors else "nothing"
        if came != expected.get(name, "nothing"):
            raise InputError(f"{path} is from other settings: {CONFIG} expects "
                             f"{expected.get(name, 'nothing')} for {name.removeprefix('params/')}; "
                             f"got {came}.")
    types = sorted({str(array.dtype) for array in tensors.values()})
    if len(types) != 1 or types[0] not in map(str, FLOATS):
        raise InputError(f"{path} is damaged: its tensors are {' and '.join(types)}; expected "
                         "float32 or float64, the same for all.")
    for name, array in tensors.items():
        if name.startswith("adam_v/"):
            fit = bool((array >= 0).all())               # a square: too large a one may be infinite
        else:
            fit = bool(np.isfinite(array).all())
        if not fit:
            raise NotFinite(f"{path}: {name}", "must be finite, and a second moment at least 0; "
                            "go on from an earlier checkpoint.")


def _previous_good(run):
    """A sentence on what to go on from, after one on what is wrong with the checkpoint."""
    previous = run.folder / PREVIOUS
    if killed_early(run.folder):
        return (" The run has no checkpoint: begin it again with --resume "
                f"{files.quoted(run.folder)}")
    try:
        step = read_checkpoint(previous, run.config).step
    except InputError:
        return ""
    return (f" The previous good checkpoint, of step {step}, is kept: "
            f"go on from it with --resume {files.quoted(previous)}")


# ----------------------------------------------------------------------------------------- metrics


class Metrics:
    """metrics.jsonl, one line per step, written as it comes.

    The lines of steps that a resumed run will do again are dropped; those of the checkpoint's steps
    must be the ones that it was saved with (InputError), unless the file is gone.
    """

    def __init__(self, folder, checkpoint):
        self.path = Path(folder) / METRICS
        try:
            content = _verified(self.path, checkpoint.step, checkpoint.metrics)
        except files.Missing:
            content = b""
        files.write(self.path, content)
        self.size, self.digest = len(content), hashlib.sha256(content)
        self.file = files.open_to_append(self.path)

    def add(self, **row):
        """Append one line; CannotWrite, and no part of it stays."""
        line = (json.dumps(row) + "\n").encode()
        try:
            rest = line
            while rest:
                rest = rest[self.file.write(rest):]
        except OSError as error:
            self.file.truncate(self.size)
            raise files.CannotWrite(self.path, error, len(line)) from None
        self.size += len(line)
        self.digest.update(line)

    def sync(self):
        """Bring every line to the disk -> (bytes, sha256), for the checkpoint that follows."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise files.CannotWrite(self.path, error) from None
        return self.size, self.digest.hexdigest()

    def close(self):
        self.file.close()


def _verified(path, step, metrics):
    """The bytes of metrics.jsonl up to the line of `step`; Missing without a file.

    metrics: (bytes, sha256) from the checkpoint of that step; None: of version 1.
    """
    if step == 0:
        return b""
    content = files.read(path)
    if metrics is None:
        kept, last = [], 0
        for line in content.splitlines(keepends=True):
            if last == step:
                break
            last = _row(path, line, last)["step"]
            kept.append(line)
        if last != step:
            raise InputError(f"{path} is damaged: it ends at step {last}, before its checkpoint's "
                             f"step {step}; {_WAY_OUT}.")
        return b"".join(kept)
    size, sha256 = metrics
    if hashlib.sha256(content[:size]).hexdigest() == sha256:
        return content[:size]
    for _ in map(_row_of(path), content[:size].splitlines()):   # says which line, where it can
        pass
    raise InputError(f"{path} is damaged: its lines up to step {step} are not those that the "
                     f"checkpoint was saved with; {_WAY_OUT}.")


_WAY_OUT = "restore it, or remove it to go on without those lines"


def _row_of(path):
    last = 0

    def read(line):
        nonlocal last
        row = _row(path, line, last)
        last = row["step"]
        return row
    return read


def _row(path, line, last):
    """One line, after that of step `last` -> dict; InputError if it is not ours."""
    try:
        row = files.parse_json(line.decode("utf-8"), ROW_KIND)
        if row["step"] <= last or "grad_norm" in row and 0 < last < row["step"] - 1:
            raise InputError(f"step {row['step']} comes after step {last}")
        return row
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged after step {last}: {files.one_line(error)}; "
                         f"{_WAY_OUT}.") from None


def read_metrics(folder):
    """The lines of metrics.jsonl as dicts; without a file, none.

    Those that belong to the checkpoint are verified (InputError). A last line that a kill cut
    short is left out.
    """
    path = Path(folder) / METRICS
    if not os.path.lexists(path):
        return []
    content, kept, header = files.read(path), b"", {}
    try:
        header = read_header(Path(folder) / CHECKPOINT)
    except InputError:
        pass                                     # there is none, and who needs it says so
    if header:
        kept = _verified(path, int(header["step"]), _metrics_of(header))
    read = _row_of(path)
    rows, lines = [], content.splitlines()
    for n, line in enumerate(lines):
        try:
            rows.append(read(line))
        except InputError:
            if sum(len(x) + 1 for x in lines[:n]) < len(kept) or n < len(lines) - 1:
                raise
    return rows
