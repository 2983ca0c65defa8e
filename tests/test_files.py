"""Files: written whole or not at all, read only where they are what they should be, and what a
fixed-seed fuzzer makes of them."""
import hashlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import threading

import numpy as np
import pytest
from run_cases import TINY, command, contents, copy, environment, flags, outcome, process, train
from safetensors import safe_open
from safetensors.numpy import save

from minattn import cli, data, files, model, plots, runs
from minattn import train as trainer
from minattn.errors import InputError
from minattn.studies import measures, work
from minattn.studies import plan as plans
from minattn.validate import vectors

pytestmark = [pytest.mark.usefixtures("no_picture"),
              pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")]


# ----------------------------------------------------------------------------------- one file


def in_place_of(path, what):
    """Put a link, pipe, socket or folder where a file should be."""
    path.unlink(missing_ok=True)
    if what == "link":
        path.with_name("elsewhere").write_text("precious")
        path.symlink_to("elsewhere")
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        place, here = path.parent, os.getcwd()
        os.chdir(place)                      # an address may only be short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
        os.chdir(here)
    else:
        path.mkdir()


ODD = ("link", "pipe", "socket", "folder")


@pytest.mark.parametrize("what", ODD)
def test_only_plain_files_are_read_and_replaced(what, tmp_path):
    path = tmp_path / "x"
    in_place_of(path, what)
    before = os.lstat(path)
    with pytest.raises(InputError, match=f"cannot read .*x: a {what} stands in its place"):
        files.read(path)
    with pytest.raises(OSError, match=f"cannot write .*x: a {what} stands in its place"):
        files.write(path, "new")
    assert os.lstat(path)[:3] == before[:3] and not list(tmp_path.glob("*.tmp"))


def test_a_named_file_may_be_a_link_or_a_pipe(tmp_path):
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to("there")
    files.write(tmp_path / "link", "new", follow=True)
    assert files.read_text(tmp_path / "link", follow=True) == "new"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "new"
    files.write("/dev/null", "new", follow=True)
    assert not os.path.isfile("/dev/null")


def test_a_named_pipe_is_written_if_a_program_reads_it_and_never_waited_for(tmp_path):
    path, much = tmp_path / "pipe", "x" * 300_000               # more than a pipe holds
    os.mkfifo(path)
    with pytest.raises(files.CannotWrite, match="no program reads it"):
        files.write(path, "text", follow=True)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = threading.Thread(target=files.write, args=(path, much), kwargs={"follow": True})
    writer.start()
    assert select.select([reader], [], [], 10)[0]
    os.set_blocking(reader, True)
    with open(reader) as file:
        assert file.read() == much
    writer.join(10)
    assert not writer.is_alive() and path.is_fifo()


@pytest.mark.parametrize("number, said", [
    (28, r"No space left on device \(it needs 3 bytes; [\d,]+ are free there\); make room, or"),
    (13, "Permission denied; name another folder"),
])
def test_what_cannot_be_written_leaves_nothing(number, said, tmp_path, monkeypatch):
    def fail(_):
        raise OSError(number, os.strerror(number))
    path = tmp_path / "x"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(files.CannotWrite, match=f"cannot write {path}: {said}"):
        files.write(path, "new")
    assert contents(tmp_path) == {"x": b"old"}


def test_interrupted_writes_leave_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "x", "new")
    assert not contents(tmp_path)


def test_files_get_the_usual_permissions(tmp_path):
    files.write(tmp_path / "x", "new")
    (tmp_path / "y").write_text("new")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_only_what_a_kill_left_of_ours_is_swept(tmp_path):
    ours, stay = "a.json.0123abcd.tmp", ["a.json.tmp", "b.json.0123abcd.tmp", "a.json",
                                         "a.json.0123abcg.tmp"]
    for name in (ours, *stay):
        (tmp_path / name).write_text("x")
    files.sweep(tmp_path, ["a.json"])
    assert sorted(contents(tmp_path)) == sorted(stay)


def test_large_files_are_refused_by_their_size(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        file.truncate(1 << 40)                          # takes no room
    with pytest.raises(InputError, match="it has more than 268,435,456 bytes"):
        files.read(tmp_path / "x")


KIND = {"n": int, "x": float, "name?": str, "list": [{"a": (int, None)}], "map": {str: bool}}


@pytest.mark.parametrize("change, said", [
    ({}, ""), ({"name": "x", "more": 3}, ""), ({"x": 3}, ""), ({"list": [{"a": None}]}, ""),
    ({"n": True}, "n must be an integer; got True"), ({"n": 1.0}, "n must be an integer; got 1.0"),
    ({"x": float("nan")}, "x must be a finite number; got nan"),
    ({"x": 10**400}, "x must be a finite number; got 1000"),
    ({"name": None}, "name must be a text; got None"),
    ({"list": {}}, "list must be a list; got {}"), ({"list": [3]}, r"list[0] must be an object"),
    ({"list": [{}]}, "it has no a"), ({"map": {"k": 1}}, "k must be true or false; got 1"),
])
def test_kinds(change, said):
    right = {"n": 1, "x": 0.5, "list": [{"a": 1}], "map": {"k": True}}
    wrong = files.misfit({**right, **change}, KIND)
    assert wrong.startswith(said) and bool(wrong) == bool(said)
    del right["n"]
    assert files.misfit(right, KIND) == "it has no n"


@pytest.mark.parametrize("content, said", [
    (b"[" * 10**5, "nested too deeply"), (b"{", "is not JSON"), (b"\xff", "byte 0 is not UTF-8"),
    (b"[]", "must be an object"), (b'{"n": ' + b"9" * 5000 + b"}", "is not JSON"),
])
def test_json_that_is_none(content, said, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match=f"x is damaged: .*{said}"):
        files.read_json(tmp_path / "x")


def test_json_with_its_checksum(tmp_path):
    path = tmp_path / "x"
    files.write_json(path, {"a": 1.5, "b": ["é", None]})
    assert files.read_json(path) == {"a": 1.5, "b": ["é", None]}
    path.write_text(path.read_text().replace("1.5", "1.6"))
    with pytest.raises(InputError, match="do not match their checksum"):
        files.read_json(path)
    path.write_text('{"a": 1.6}')                       # of an older version
    assert files.read_json(path) == {"a": 1.6}


def test_messages_from_outside_are_one_line():
    assert files.one_line("a\x1b[31m\r\n  b\x07") == "a [31m b "
    assert len(files.one_line("x" * 10**5)) < 300


# --------------------------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert train(folder, corpus) == 0
    return folder


@pytest.fixture(scope="module")
def half(finished, tmp_path_factory):
    """The same run as a kill in its last two steps would leave it: checkpoints of step 28."""
    folder = copy(finished, tmp_path_factory.mktemp("half") / "run")
    shutil.copy(folder / runs.PREVIOUS, folder / runs.CHECKPOINT)
    for name in (runs.LOSS, runs.SAMPLE):
        (folder / name).unlink()
    return folder


def resume(folder, *words):
    return cli.main(["train", "--resume", str(folder), *words])


def forge(path, change, version=2):
    """Write a checkpoint again, changed, with a right checksum."""
    with safe_open(path, framework="np") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    change(header, tensors)
    if version == 1:
        header = {name: header[name] for name in ("step", "seconds")}
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    header["sha256"] = runs._digest(tensors, header if version == 2 else None)
    path.write_bytes(save(tensors, metadata=header))


def test_checkpoints_of_version_1_are_still_read(half, finished, tmp_path):
    """Their checksum: sha256 over names and numbers; no format, no settings, no metrics."""
    folder = copy(half, tmp_path / "run")
    path = folder / runs.CHECKPOINT
    forge(path, lambda header, tensors: None, version=1)
    with safe_open(path, framework="np") as file:
        digest = hashlib.sha256()
        for name in sorted(file.keys()):
            digest.update(name.encode() + file.get_tensor(name).tobytes())
        assert file.metadata().keys() == {"step", "seconds", "sha256"}
        assert file.metadata()["sha256"] == digest.hexdigest()
    config = json.loads((folder / runs.CONFIG).read_text())
    del config["format"], config["version"], config["corpus"]["path"]
    (folder / runs.CONFIG).write_text(json.dumps(config))
    assert resume(folder) == 0 and outcome(folder) == outcome(finished)


MOMENT, GAIN = "adam_m/wte.weight", "params/h.0.ln_1.weight"
FORGED = {
    "step a word": lambda h, t: h.update(step="abc"),
    "step empty": lambda h, t: h.update(step=""),
    "step negative": lambda h, t: h.update(step="-5"),
    "step beyond": lambda h, t: h.update(step="35"),
    "step endless": lambda h, t: h.update(step="9" * 5000),
    "seconds a word": lambda h, t: h.update(seconds="abc"),
    "seconds not a number": lambda h, t: h.update(seconds="nan"),
    "settings no JSON": lambda h, t: h.update(config="{"),
    "settings a list": lambda h, t: h.update(config="[]"),
    "settings other": lambda h, t: h.update(config=h["config"].replace('"lr": 0.01', '"lr": 0.1')),
    "metrics others": lambda h, t: h.update(metrics="10 " + "0" * 64),
    "version newer": lambda h, t: h.update(version="3"),
    "no moment": lambda h, t: t.pop(MOMENT),
    "no moments": lambda h, t: [t.pop(name) for name in list(t) if name.startswith("adam")],
    "unknown part": lambda h, t: t.update({"other/x": t[MOMENT]}),
    "moment transposed": lambda h, t: t.update({MOMENT: t[MOMENT].T}),
    "moment of integers": lambda h, t: t.update({MOMENT: t[MOMENT].astype(np.int32)}),
    "gain of bytes": lambda h, t: t.update({GAIN: t[GAIN].astype(np.int8)}),
    "gain of float64": lambda h, t: t.update({GAIN: t[GAIN].astype(float)}),
    "gain of float16": lambda h, t: t.update({GAIN: t[GAIN].astype(np.float16)}),
    "not a number": lambda h, t: t.update({GAIN: t[GAIN] * np.nan}),
    "second moment negative": lambda h, t: t.update({"adam_v/wte.weight": -1 - t[MOMENT] ** 2}),
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_checkpoint_is_one_sentence(how, half, tmp_path, capsys):
    """Its checksum is right, and still it is not believed."""
    folder = copy(half, tmp_path / "run")
    forge(folder / runs.CHECKPOINT, FORGED[how])
    before = contents(folder)
    assert resume(folder) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and (runs.CHECKPOINT in said[0] or runs.METRICS in said[0])
    assert contents(folder) == before


def test_every_setting_is_bound_to_the_checkpoint(half, tmp_path, capsys):
    """All but the name and the place of the text, whose checksum counts."""
    config = json.loads((half / runs.CONFIG).read_text())
    other = {str: "x", int: 1, float: 0.125, type(None): 3}
    for part in ("model", "train", "corpus"):
        for name, value in config[part].items():
            if name in ("corpus", "name", "path"):
                continue
            folder = copy(half, tmp_path / f"{part}-{name}")
            changed = json.loads(json.dumps(config))
            changed[part][name] = not value if isinstance(value, bool) else other[type(value)]
            if changed[part][name] == value:
                changed[part][name] = 2
            (folder / runs.CONFIG).write_text(json.dumps(changed))
            for words in (["train", "--resume", str(folder)], ["sample", str(folder)]):
                assert cli.main(words) == 2, (part, name)
                assert capsys.readouterr().err.count("\n") == 1
    config["vocabulary"] = config["vocabulary"][:-1] + "~"
    folder = copy(half, tmp_path / "vocabulary")
    (folder / runs.CONFIG).write_text(json.dumps(config))
    assert cli.main(["sample", str(folder)]) == 2
    assert "it was saved with vocabulary = " in capsys.readouterr().err


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("name", [runs.CONFIG, runs.METRICS, runs.CHECKPOINT])
def test_what_stands_in_a_files_place_is_refused(what, name, half, tmp_path, capsys):
    folder = copy(half, tmp_path / "run")
    in_place_of(folder / name, what)
    assert resume(folder) == 2
    assert f"{name}: a {what} stands in its place" in capsys.readouterr().err


@pytest.mark.parametrize("name", [f"{name}.tmp" for name in runs.FILES])
def test_nothing_is_written_through_a_link(name, half, tmp_path):
    folder, victim = copy(half, tmp_path / "run"), tmp_path / "victim"
    victim.write_text("precious")
    (folder / name).symlink_to(victim)
    assert resume(folder) == 0 and victim.read_text() == "precious"


def test_a_sample_that_cannot_be_written_does_not_fail_the_run(half, finished, tmp_path, capsys,
                                                               monkeypatch):
    def fail(*_):
        raise RuntimeError("no fonts")
    monkeypatch.setattr(plots, "loss", fail)
    folder = copy(half, tmp_path / "run")
    (folder / runs.SAMPLE).mkdir()
    assert resume(folder) == 0
    said = capsys.readouterr().out
    assert f"warning: {folder / runs.LOSS} could not be made: no fonts; the results" in said
    assert f"{runs.SAMPLE}: a folder stands in its place" in said
    assert f"train --resume {folder} makes it again" in said
    (folder / runs.SAMPLE).rmdir()
    monkeypatch.undo()
    assert resume(folder) == 0 and (folder / runs.SAMPLE).is_file()


def test_a_backend_that_is_not_there(half, tmp_path):
    """A notebook hands its own down; pictures in files need none."""
    folder = copy(half, tmp_path / "run")
    done = subprocess.run(command("train", "--resume", folder), capture_output=True, text=True,
                          env=environment() | {"MPLBACKEND": "module://no_such.backend_inline"})
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert (folder / runs.LOSS).read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------- metrics


BROKEN = {
    "a gap": lambda lines: lines[:9] + lines[10:],
    "a key": lambda lines: [*lines[:4], lines[4].replace("train_loss", "train_lpss"), *lines[5:]],
    "a quote": lambda lines: [*lines[:9], lines[9].replace('"train_loss"', '"train_loss'),
                              *lines[10:]],
    "a digit": lambda lines: [*lines[:9], lines[9].replace('"train_loss": ', '"train_loss": 1'),
                              *lines[10:]],
    "two lines changed": lambda lines: [lines[1], lines[0], *lines[2:]],
    "cut": lambda lines: lines[:20],
    "nothing": lambda lines: [],
    "deep": lambda lines: ["[" * 10**5],
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("how", BROKEN)
def test_damaged_metrics_are_never_read_around(how, version, half, finished, tmp_path, capsys):
    folder = copy(half, tmp_path / "run")
    path = folder / runs.METRICS
    forge(folder / runs.CHECKPOINT, lambda header, tensors: None, version)
    path.write_text("".join(line + "\n" for line in BROKEN[how](path.read_text().splitlines())))
    if how == "a digit" and version == 1:
        return                                   # no checksum of the metrics then
    assert resume(folder) == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    with pytest.raises(InputError, match="metrics.jsonl is damaged"):
        runs.read_metrics(folder)
    path.unlink()                                # the way out, and said
    assert resume(folder) == 0
    assert "it will lack steps 1 to 28" in capsys.readouterr().out
    assert [row["step"] for row in runs.read_metrics(folder)] == [29, 30]
    assert outcome(folder)[0] == outcome(finished)[0]


def test_metrics_that_cannot_be_appended(half, finished, tmp_path, capsys, monkeypatch):
    folder, written = copy(half, tmp_path / "run"), []

    class Full:
        """A disk with room for half a line."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, line):
            if written:
                raise OSError(28, "No space left on device")
            written.append(line)
            return self.file.write(line[:40])
    with monkeypatch.context() as patch:
        opened = files.open_to_append
        patch.setattr(files, "open_to_append", lambda path: Full(opened(path)))
        assert resume(folder) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot write {folder / runs.METRICS}: No space" in said and "--resume" in said
    assert (folder / runs.METRICS).read_bytes().endswith(b"}\n")
    assert resume(folder) == 0 and outcome(folder) == outcome(finished)


# --------------------------------------------------------------------- whose files, whose folder


def test_files_that_no_run_wrote_are_not_removed(corpus, tmp_path, capsys):
    """A text called sample.txt, in the folder that --out names."""
    folder = tmp_path / "letters"
    folder.mkdir()
    text = folder / runs.SAMPLE
    shutil.copy(corpus, text)
    before = contents(folder)
    for fields in ({}, {"overwrite": True}):
        assert train(folder, text, **fields) == 2
        assert "it may be yours, so nothing is removed" in capsys.readouterr().err
    assert contents(folder) == before


def test_overwrite_keeps_the_corpus_that_lies_in_the_folder(finished, corpus, tmp_path, capsys):
    folder = copy(finished, tmp_path / "run")
    shutil.copy(corpus, folder / runs.SAMPLE)
    before = contents(folder)
    assert train(folder, folder / runs.SAMPLE, overwrite=True) == 2
    assert "the corpus itself" in capsys.readouterr().err and contents(folder) == before


def no_room(_):
    raise OSError(28, os.strerror(28))


def test_a_full_disk_keeps_the_run_to_be_replaced(finished, corpus, tmp_path, capsys, monkeypatch):
    folder = copy(finished, tmp_path / "run")
    monkeypatch.setattr(os, "fsync", no_room)
    assert train(folder, corpus, overwrite=True, lr=0.5) == 1
    assert "cannot write" in capsys.readouterr().err and contents(folder) == contents(finished)


@pytest.mark.parametrize("words, name", [
    ("compare --attention softmax --corpus builtin --steps 1 --seeds 0 --out", "results.csv"),
    ("compare --attention softmax --corpus builtin --steps 1 --seeds 0 --out", "curves.png"),
    ("vision --attention softmax --steps 1 --seeds 0 --out", "table.md"),
    ("bias --classes 9 --steps 1 --sequences 1 --out", "results.json"),
    ("vectors write", "index.json"),
])
def test_files_that_another_program_wrote_are_not_replaced(words, name, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    assert cli.main([*words.split(), str(tmp_path)]) == 2
    assert f"holds {name}, and no " in capsys.readouterr().err
    assert contents(tmp_path) == {name: b"mine"}


def test_a_text_that_has_moved(corpus, tmp_path, capsys, monkeypatch):
    """From another folder its place is known; moved, it is told by its checksum."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(corpus, "t.txt")
    assert train("run", "t.txt", steps=8) == 0
    folder = tmp_path / "run"
    (folder / runs.CHECKPOINT).write_bytes((folder / runs.PREVIOUS).read_bytes())
    monkeypatch.chdir("/")
    assert resume(folder) == 0
    (tmp_path / "t.txt").rename(tmp_path / "moved.txt")
    assert resume(folder) == 2
    assert "If the text has moved, name it with --corpus." in capsys.readouterr().err
    assert resume(folder, "--corpus", str(tmp_path / "moved.txt")) == 0
    assert "the same text that this run knows as t.txt" in capsys.readouterr().out
    (tmp_path / "moved.txt").write_text("another" * 500)
    assert resume(folder, "--corpus", str(tmp_path / "moved.txt")) == 2
    assert "is another text" in capsys.readouterr().err


def test_home_is_expanded(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert train("~/runs/a", corpus, steps=2) == 0 and not (tmp_path / "~").exists()
    assert cli.main(["sample", "~/runs/a", "--tokens", "3"]) == 0
    assert resume("~/runs/a") == 0


def test_suggested_commands_can_be_pasted(tmp_path, capsys):
    """A folder with a space; a text without a new line."""
    text = tmp_path / "one line.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 40)
    folder = tmp_path / "my runs"
    assert train(folder, text, steps=2) == 0
    said = capsys.readouterr().out.splitlines()[-1].removeprefix("more text: python -m minattn ")
    done = subprocess.run(" ".join(command()) + " " + said, shell=True, env=environment(),
                          capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_prompt_in_another_normalisation():
    with pytest.raises(InputError, match=r"U\+0301.*Normalised to NFC"):
        data.Vocabulary("café").encode("cafe\u0301")


# ------------------------------------------------------------------------- signals, closed pipes


STOPPED = """
import os, signal, sys
from minattn import cli, data
batch, how = data.batch, sys.argv[1]
def hooked(ids, batch_size, block_size, seed, n):
    if n == 8:
        if how == "closed":
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
        else:
            signal.raise_signal(getattr(signal, how))
    return batch(ids, batch_size, block_size, seed, n)
data.batch = hooked
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("how, code, step", [("SIGTERM", 143, 9), ("SIGHUP", 129, 9),
                                             ("closed", 141, 11)])
def test_whatever_ends_it_the_step_is_saved(how, code, step, corpus, finished, tmp_path):
    """A closed output shows at its next line: that of the validation loss of step 10."""
    folder = tmp_path / "run"
    done = process(how, "train", *flags(**TINY, preset="nano", corpus=corpus, out=folder),
                   code=STOPPED)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert "finishing this step and saving" in done.stderr
    assert f"train --resume {folder}" in done.stdout + done.stderr
    assert runs.load(folder).checkpoint.step == step
    assert resume(folder) == 0 and outcome(folder) == outcome(finished)


def test_an_interrupt_while_modules_load_is_one_line(tmp_path):
    """NumPy is a stub that is interrupted while it loads, and turns that into another error."""
    (tmp_path / "numpy.py").write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except BaseException:\n"
        "    raise ImportError('half a NumPy')\n")
    where = environment()
    where["PYTHONPATH"] = os.pathsep.join([str(tmp_path), where["PYTHONPATH"]])
    done = subprocess.run(command("train", "--steps", "1"), env=where, capture_output=True,
                          text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_signal_that_was_ignored_stays_so():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with trainer.stopping() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked == [] and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


# ------------------------------------------------------------------------------------------ locks


def test_a_lock_that_waits(tmp_path):
    order = []

    def second():
        with runs.lock(tmp_path, wait=True):
            order.append("second")
    with runs.lock(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        with pytest.raises(runs.InUse), runs.lock(tmp_path):
            pass
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_lock_that_may_be_taken_again(tmp_path):
    with runs.lock(tmp_path, again=True):
        with runs.lock(tmp_path), runs.lock(tmp_path):
            pass
        process_lock = ("import sys; from minattn import runs\n"
                        "with runs.lock(sys.argv[1]): pass")
        assert "InUse" in process(tmp_path, code=process_lock).stderr
    with runs.lock(tmp_path):
        pass


@pytest.mark.parametrize("what", ["compare", "inspect"])
def test_the_same_command_at_the_same_time(what, corpus, finished, tmp_path):
    words = ["inspect", copy(finished, tmp_path / "run"), "--sequences", 2]
    if what == "compare":
        words = ["compare", "--attention", "softmax", "--seeds", "0-1", "--workers", 1,
                 "--prefix-positions", 20,
                 *flags(**TINY | dict(steps=9, corpus=corpus, out=tmp_path / "out"))]
    both = [subprocess.Popen(command(*words), env=environment(), stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=100) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert not list(tmp_path.rglob("*.tmp"))


# ----------------------------------------------------------------------------------------- fuzzer


def changed(content, rng):
    """Bytes with one small damage: a bit, a byte, a digit, a cut, a line, a piece twice."""
    content = bytearray(content)
    kind, at = rng.randrange(6), rng.randrange(len(content))
    digits = [n for n, byte in enumerate(content) if chr(byte).isdigit()]
    if kind == 0:
        content[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        content[at] = rng.randrange(256)
    elif kind == 2 and digits:
        at = rng.choice(digits)
        content[at] = rng.choice([c for c in b"0123456789" if c != content[at]])
    elif kind == 3:
        del content[at:]
    elif kind == 4:
        del content[at:at + rng.randrange(1, 40)]
    else:
        content[at:at] = content[max(0, at - rng.randrange(1, 40)):at] or b"x"
    return bytes(content)


def retyped(content, rng):
    """A JSON object with one value, at any depth, of another type."""
    content = json.loads(content)
    at = content
    while True:
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.7:
            at = at[key]
            continue
        at[key] = rng.choice([None, True, -1, 10**30, 1e308, "x", "", [], {}, [[]], "9" * 5000])
        return json.dumps(content).encode()


def tried(call):
    """-> what came, or None for one InputError; anything else is raised"""
    try:
        return call()
    except InputError as error:
        assert "\n" not in str(error)
        return None


def fuzz_run(folder, name, finished, times, rng):
    """Resume a run with one file damaged: refused, or the same end."""
    original, expected = (folder / name).read_bytes(), outcome(finished)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    for n in range(times):
        damage = retyped if name == runs.CONFIG and n % 3 == 0 else changed
        (folder / name).write_bytes(damage(original, rng))
        came = tried(lambda: trainer.resume(folder, say=lambda line: None))
        if came is not None:
            assert outcome(folder) == expected, (name, n)
        for path in folder.iterdir():
            path.unlink()
        for there, content in whole.items():
            (folder / there).write_bytes(content)


@pytest.fixture
def quiet(monkeypatch):
    """Sampling and the bar take longer than the rest."""
    monkeypatch.setattr(trainer, "tqdm", lambda *a, **k: Bar())
    monkeypatch.setattr(trainer.generate, "text", lambda *a, **k: "a sample")


class Bar:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __getattr__(self, name):
        return lambda *a, **k: None


TIMES = [pytest.param(0, 12), pytest.param(1, 400, marks=pytest.mark.slow)]


@pytest.mark.parametrize("seed, times", TIMES)
@pytest.mark.parametrize("name", [runs.CONFIG, runs.METRICS, runs.CHECKPOINT])
def test_fuzzed_runs(name, seed, times, half, finished, tmp_path, quiet):
    folder, done = copy(half, tmp_path / "run"), copy(finished, tmp_path / "done")
    (done / runs.SAMPLE).write_text("a sample")
    fuzz_run(folder, name, done, times, random.Random(seed))


@pytest.mark.parametrize("seed, times", TIMES)
def test_fuzzed_headers(seed, times, half, finished, tmp_path, quiet):
    """The first bytes of a checkpoint alone: its header."""
    folder, done = copy(half, tmp_path / "run"), copy(finished, tmp_path / "done")
    (done / runs.SAMPLE).write_text("a sample")
    path, rng, expected = folder / runs.CHECKPOINT, random.Random(seed), outcome(done)
    content, metrics = path.read_bytes(), (folder / runs.METRICS).read_bytes()
    size = int.from_bytes(content[:8], "little") + 8
    for n in range(times):
        path.write_bytes(changed(content[:size], rng) + content[size:])
        if tried(lambda: trainer.resume(folder, say=lambda line: None)) is not None:
            assert outcome(folder) == expected, n
        (folder / runs.METRICS).write_bytes(metrics)


@pytest.mark.parametrize("seed, times", TIMES)
def test_fuzzed_measures(seed, times, corpus, tmp_path):
    """Damaged ones are not believed: None, so that they are taken again."""
    plan = plans.make(tmp_path, attention="softmax", prefix_positions=20,
                      overrides=TINY | {"corpus": str(corpus), "steps": 3})
    job = plan.jobs()[0]
    assert work.do(job)["status"] == "done"
    path = tmp_path / "softmax_learned" / "seed-0" / measures.MEASURES
    right, content, rng = work.finished(job), path.read_bytes(), random.Random(seed)
    for n in range(3 * times):
        path.write_bytes((retyped if n % 3 == 0 else changed)(content, rng))
        assert work.finished(job) in (None, right), n


@pytest.mark.parametrize("seed, times", TIMES)
def test_fuzzed_vectors(seed, times, tmp_path, monkeypatch):
    """A few cases only; our own kernels answer, and a damaged index is one sentence."""
    every = list(vectors.golden.cases())
    monkeypatch.setattr(vectors.golden, "cases", lambda: every[:3] + every[-2:])
    vectors.write(tmp_path)
    right, path, rng = str(vectors.check(tmp_path)), tmp_path / vectors.INDEX, random.Random(seed)
    content = path.read_bytes()
    for n in range(2 * times):
        path.write_bytes((retyped if n % 3 == 0 else changed)(content, rng))
        assert tried(lambda: str(vectors.check(tmp_path))) in (None, right), n
    for _ in range(times):                         # of somebody else, without a checksum
        index = json.loads(retyped(content, rng))
        if isinstance(index, dict):
            index.pop(files.CHECKSUM, None)
        path.write_text(json.dumps(index))
        tried(lambda: vectors.check(tmp_path))


def test_model_config_is_read_as_it_was_written():
    """Settings are bound by their text: it must not depend on how they were spelt."""
    config = model.Config(vocab_size=3, attention="energy", attention_options={"norm": "key"})
    about = {"sha256": "x", "characters": 3, "name": "here"}
    again = model.Config(**json.loads(json.dumps(model.to_dict(config))))
    assert (runs.bound(config, {"lr": 1}, "abc", about)
            == runs.bound(again, {"lr": 1, "corpus": "there"}, "abc", {**about, "path": "/x"}))
