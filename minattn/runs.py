"""A run folder: what is in it, and how it is written so that a kill at any moment loses nothing.

    config.json                     every setting, the vocabulary, the corpus and its checksum
    metrics.jsonl                   one line per step
    checkpoint.safetensors          parameters, buffers, both moments of AdamW; step and seconds in
                                    its header
    checkpoint.previous.safetensors the one before
    loss.png  sample.txt

Files are written aside, synced and renamed. The checkpoint carries its own checksum.
"""
import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from minattn import model
from minattn.errors import InputError

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.jsonl", "checkpoint.safetensors"
PREVIOUS, LOSS, SAMPLE = "checkpoint.previous.safetensors", "loss.png", "sample.txt"
FILES = (CONFIG, METRICS, CHECKPOINT, PREVIOUS, LOSS, SAMPLE)


class InUse(InputError):
    """Another process is training in this folder."""


class Checkpoint(NamedTuple):
    params: dict
    buffers: dict
    m: dict              # AdamW's first moments, named as the parameters
    v: dict              # and its second
    step: int            # steps done
    seconds: float       # of training, all sittings together


PARTS = {"params": "params", "buffers": "buffers", "m": "adam_m", "v": "adam_v"}   # in the file


class Run(NamedTuple):
    folder: Path
    config: model.Config
    train: dict
    vocabulary: str
    corpus: dict
    checkpoint: Checkpoint | None

    def other_setting(self, wanted):
        """The first of these settings that the run has not: "lr = 0.01, not 0.5"; or None."""
        known = {**model.to_dict(self.config), **self.train}
        for name, value in wanted.items():
            if known.get(name) != value:
                return f"{name} = {known.get(name)!r}, not {value!r}"
        return None


# ----------------------------------------------------------------------------------------- writing


def write_aside(path, content):
    """Write bytes to a temporary file beside `path`, sync it, and rename it into place."""
    path = Path(path)
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(aside, path)


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


def make_folder(folder):
    """Make a folder that files can be written to; InputError if there can be none."""
    with _writable(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def vacant(folder, *, overwrite=False):
    """The files of a run to be replaced; InputError if one is there that should not be."""
    with _writable(folder):
        there = [path for name in FILES if (path := Path(folder) / name).exists()]
    if there and not overwrite:
        raise InputError(f"{folder} already holds a run: continue it with --resume {folder}, "
                         "replace it with --overwrite, or choose another --out.")
    return there


@contextmanager
def create(folder, *, overwrite=False):
    """Make the folder of a new run and lock it; InputError as vacant and make_folder."""
    folder = Path(folder)
    make_folder(folder)
    with lock(folder):
        for path in vacant(folder, overwrite=overwrite):
            path.unlink()
        yield folder


@contextmanager
def lock(folder):
    """Keep other processes from training in this folder; InUse if one is.

    The lock ends with the process.
    """
    try:
        import fcntl
        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):       # Windows; or no such folder, which the reader says better
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"another process is training in {folder}: let it finish, "
                        "or choose another --out.") from None
        except OSError:                  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def write_config(folder, config, train, vocabulary, corpus):
    content = {"model": model.to_dict(config), "train": train, "vocabulary": vocabulary,
               "corpus": corpus}
    write_aside(Path(folder) / CONFIG, (json.dumps(content, indent=1) + "\n").encode())


def save_checkpoint(folder, checkpoint):
    """Write the checkpoint; the last one becomes the previous one. A whole one is always there."""
    folder = Path(folder)
    tensors = {f"{there}/{name}": np.ascontiguousarray(array) for part, there in PARTS.items()
               for name, array in getattr(checkpoint, part).items()}
    header = {"step": str(checkpoint.step), "seconds": repr(checkpoint.seconds),
              "sha256": _digest(tensors)}
    content = save(tensors, metadata=header)
    if (folder / CHECKPOINT).exists():
        link = folder / (PREVIOUS + ".tmp")
        link.unlink(missing_ok=True)
        try:
            os.link(folder / CHECKPOINT, link)
        except OSError:                                        # a file system without hard links
            link.write_bytes((folder / CHECKPOINT).read_bytes())
        os.replace(link, folder / PREVIOUS)
    write_aside(folder / CHECKPOINT, content)


def _digest(tensors):
    digest = hashlib.sha256()
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
        content = json.loads(path.read_text(encoding="utf-8"))
        config, vocabulary = model.Config(**content["model"]), str(content["vocabulary"])
        if len(set(vocabulary)) != config.vocab_size:
            raise ValueError(f"vocab_size is {config.vocab_size}, but the vocabulary has "
                             f"{len(set(vocabulary))} characters")
        kinds = {"name": str, "sha256": str, "characters": int}
        corpus = {key: kind(content["corpus"][key]) for key, kind in kinds.items()}
        return Run(Path(folder), config, dict(content["train"]), vocabulary, corpus, None)
    except FileNotFoundError:
        raise InputError(f"{folder} is not a run folder: it has no {CONFIG}.") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None
    except InputError as error:
        raise InputError(f"{path} describes no model: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); "
                         "the run cannot be read without it.") from None


def load(folder, which=CHECKPOINT):
    """A run folder -> Run.

    InputError names what is missing, truncated, damaged or from other settings, and the previous
    good checkpoint if there is one.
    """
    run = read_config(folder)
    try:
        return run._replace(checkpoint=read_checkpoint(run.folder / which, run.config))
    except InputError as error:
        if which != CHECKPOINT:
            raise
        raise InputError(f"{error}{_previous_good(run)}") from None


def read_checkpoint(path, config=None, shapes=None):
    """A checkpoint file -> Checkpoint.

    Verified: whole, undamaged, and of this config (or with parameters of these shapes).
    """
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({error}).") from None
    if "sha256" not in header or "step" not in header:
        raise InputError(f"{path} is not a checkpoint of this program.")
    if _digest(tensors) != header["sha256"]:
        raise InputError(f"{path} is damaged: its contents do not match their checksum.")
    if shapes is None:
        shapes = {name: shape for name, (shape, _) in model.parameter_shapes(config).items()}
    came = {name: array.shape for name, array in _part(tensors, "params").items()}
    for name in shapes.keys() | came.keys():
        if came.get(name) != shapes.get(name):
            raise InputError(f"{path} is from other settings: {CONFIG} expects "
                             f"{shapes.get(name, 'nothing')} for {name}; "
                             f"got {came.get(name, 'nothing')}.")
    params, m, v = ({name: tensors[f"{PARTS[part]}/{name}"] for name in shapes}
                    for part in ("params", "m", "v"))
    return Checkpoint(params, _part(tensors, "buffers"), m, v, int(header["step"]),
                      float(header.get("seconds", 0)))


def _part(tensors, part):
    start = PARTS[part] + "/"
    return {name.removeprefix(start): array for name, array in tensors.items()
            if name.startswith(start)}


def _previous_good(run):
    """A sentence on what to go on from, after one on what is wrong with the checkpoint."""
    previous = run.folder / PREVIOUS
    if not (run.folder / CHECKPOINT).exists() and not previous.exists():
        return " The run stopped before its first checkpoint: begin again with --overwrite."
    try:
        step = read_checkpoint(previous, run.config).step
    except InputError:
        return ""
    return (f" The previous good checkpoint, of step {step}, is kept: "
            f"go on from it with --resume {previous}")


# ----------------------------------------------------------------------------------------- metrics


class Metrics:
    """metrics.jsonl, one line per step.

    `keep` first drops the lines of steps that a resumed run will do again.
    """

    def __init__(self, folder, keep=0):
        self.path = Path(folder) / METRICS
        rows = [row for row in read_metrics(folder) if row["step"] <= keep]
        write_aside(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self.file = open(self.path, "a", encoding="utf-8")
        self.flush, self.close = self.file.flush, self.file.close

    def add(self, **row):
        self.file.write(json.dumps(row) + "\n")


def read_metrics(folder):
    """The lines of metrics.jsonl as dicts, up to the first that a kill cut short or is not ours."""
    path, rows = Path(folder) / METRICS, []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            if row["step"] <= (rows[-1]["step"] if rows else 0) or "val_loss" not in row:
                break
        except (ValueError, KeyError, TypeError):
            break
        rows.append(row)
    return rows
