"""The trainer: the same bits for any number of threads and after any kill, and a run folder that is
always whole."""
import json
import os
import random
import signal
import subprocess
import time

import numpy as np
import pytest
from run_cases import (
    CASES,
    TINY,
    command,
    contents,
    copy,
    environment,
    flags,
    outcome,
    process,
    train,
)

from minattn import cli, data, generate, model, parallel, runs
from minattn import train as trainer
from minattn.attention import MECHANISMS
from minattn.errors import InputError

pytestmark = pytest.mark.usefixtures("no_picture")

GOOD = ("step", "train_loss", "val_loss", "grad_norm", "lr", "tokens_per_second", "seconds")
RESUME = "continue with: python -m minattn train --resume"


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """Run folders that were never interrupted, made when first asked for: name of the case ->
    folder"""
    made, home = {}, tmp_path_factory.mktemp("finished")

    def run(case="softmax", **fields):
        key = case, *fields.items()
        if key not in made:
            made[key] = home / str(len(made))
            assert train(made[key], corpus, **CASES[case] | fields) == 0
        return made[key]
    return run


@pytest.fixture(scope="module")
def stopped(corpus, tmp_path_factory):
    """A run that Ctrl-C stopped after step 16: checkpoints of steps 16 and 14."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_batch(patch, 16, lambda: signal.raise_signal(signal.SIGINT))
        assert train(folder, corpus) == 130
    return folder


def at_batch(patch, step, act):
    """Do something while the batch of a step (from 1) is drawn."""
    batch = data.batch

    def hooked(ids, batch_size, block_size, seed, n):
        if n == step - 1:
            act()
        return batch(ids, batch_size, block_size, seed, n)
    patch.setattr(data, "batch", hooked)


# ----------------------------------------------------------------------------------- the run folder


def test_run_folder(corpus, tmp_path):
    folder = tmp_path / "run"
    done = process("train", *flags(**TINY, preset="nano", corpus=corpus, out=folder))
    assert done.returncode == 0
    assert f" s: {folder}/ holds the checkpoint" in done.stdout
    assert "30/30" in done.stderr
    assert {p.name for p in folder.iterdir()} == set(runs.FILES)
    config = json.loads((folder / runs.CONFIG).read_text())
    assert set(config) == {"format", "version", "model", "train", "vocabulary", "corpus"}
    assert config["model"]["n_embd"] == 16
    tiny = {k: v for k, v in TINY.items() if k in config["train"]}
    assert tiny.items() <= config["train"].items()
    assert config["vocabulary"] == "".join(sorted(set(corpus.read_text())))
    assert config["corpus"]["characters"] == 3000
    rows = [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]
    assert all(tuple(row) == GOOD for row in rows)
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert [row["step"] for row in rows if row["val_loss"] is not None] == [10, 20, 30]
    assert rows[0]["lr"] == pytest.approx(1e-2 / 4) and max(row["lr"] for row in rows) == 1e-2
    assert (folder / runs.LOSS).read_bytes().startswith(b"\x89PNG")
    run = runs.load(folder)
    sample = generate.text(run, "\n", 500, temperature=0.8, seed=1337)
    assert (folder / runs.SAMPLE).read_text() == sample
    assert run.checkpoint.step == 30 and runs.load(folder, runs.PREVIOUS).checkpoint.step == 28
    assert 0 < run.checkpoint.seconds < 100


def test_loss_falls_and_the_last_validation_is_over_the_whole_split(finished, corpus):
    folder = finished()
    rows, run = runs.read_metrics(folder), runs.load(folder)
    first, last = (np.mean([row["train_loss"] for row in part]) for part in (rows[:3], rows[-3:]))
    assert first == pytest.approx(np.log(run.config.vocab_size), abs=0.3) and last < first - 0.3
    vocabulary = data.Vocabulary(run.vocabulary)
    x, y = data.blocks(data.split(vocabulary.encode(corpus.read_text()))[1], 8)
    loss = model.forward(run.checkpoint.params, x, run.config, targets=y)[1]
    assert rows[-1]["val_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("case", ["softmax", "affine"])
def test_torch_loads_the_checkpoint(finished, case):
    torch = pytest.importorskip("torch")
    from minattn.torch_refs.gpt import load_run
    folder = finished(case)
    run, x = runs.load(folder), np.arange(16).reshape(2, 8)
    exact = [{k: a.astype(float) for k, a in part.items()}
             for part in (run.checkpoint.params, run.checkpoint.buffers)]
    ours = model.forward(exact[0], x, run.config, buffers=exact[1])[0]
    with torch.no_grad():
        theirs = load_run(folder)(torch.tensor(x))[0].numpy()
    assert np.abs(ours - theirs).max() < 1e-11 * np.abs(theirs).max()


def test_overwrite_replaces_the_run_and_nothing_else(finished, corpus, tmp_path):
    folder = copy(finished("affine"), tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    assert train(folder, corpus, overwrite=True) == 0
    assert outcome(folder) == outcome(finished()) and (folder / "notes.txt").read_text() == "mine"


def test_what_a_mechanism_refuses_removes_nothing(finished, corpus, tmp_path, capsys, monkeypatch):
    """Not every value of an option is checked before the mechanism is called: it is, on one token,
    before an old run goes."""
    def refuse(*args, **options):
        raise InputError("softer must be above 0; got -1.")
    folder = copy(finished(), tmp_path / "run")
    before = contents(folder)
    capsys.readouterr()                                    # the progress of the run just made
    monkeypatch.setattr(MECHANISMS["softmax"].module, "forward", refuse)
    assert train(folder, corpus, overwrite=True) == 2 and contents(folder) == before
    assert train(tmp_path / "new", corpus) == 2 and not (tmp_path / "new").exists()
    assert capsys.readouterr().err == "error: softer must be above 0; got -1.\n" * 2


def test_float64(corpus, tmp_path):
    assert train(tmp_path / "run", corpus, dtype="float64", steps=3) == 0
    checkpoint = runs.load(tmp_path / "run").checkpoint
    assert {a.dtype for part in (checkpoint.params, checkpoint.m, checkpoint.v)
            for a in part.values()} == {np.dtype(float)}


# ------------------------------------------------------------------------------------------ threads


@pytest.mark.parametrize("case", CASES)
def test_same_bits_for_any_number_of_threads(case, finished, corpus, tmp_path, capsys):
    """Five sequences in two or three chunks, on one, two and three threads (and on as many as there
    are)."""
    for threads in (1, 2, 3):
        assert train(tmp_path / str(threads), corpus, **CASES[case], threads=threads) == 0
        assert outcome(tmp_path / str(threads)) == outcome(finished(case))
        assert f"{threads} thread" in capsys.readouterr().out


def test_chunks_change_only_the_rounding(corpus, tmp_path):
    """And the seed changes everything."""
    results = []
    for n, fields in enumerate((dict(chunks=1), dict(chunks=5), dict(seed=1))):
        assert train(tmp_path / str(n), corpus, dtype="float64", steps=5, **fields) == 0
        results.append(runs.load(tmp_path / str(n)).checkpoint.params)
    near, far = (max(np.abs(a - results[0][name]).max() for name, a in other.items())
                 for other in results[1:])
    assert 0 < near < 1e-9 and far > 1e-2


# -------------------------------------------------------------------------------------------- kills

# A real process that kills itself at the given moment: nothing of Python's own clean-up runs.
KILLED = """
import os, signal, sys
from minattn import cli, data, generate, runs

moment, count = sys.argv[1], int(sys.argv[2])
owner, name = {"batch": (data, "batch"), "replace": (os, "replace"), "fsync": (os, "fsync"),
               "link": (os, "link"), "text": (generate, "text")}[moment.split()[-1]]
original, calls = getattr(owner, name), 0
def hooked(*args, **options):
    global calls
    calls += 1
    if calls == count and moment.startswith("half"):
        os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
    if calls == count and not moment.startswith("after"):
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*args, **options)
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, name, hooked)
sys.exit(cli.main(sys.argv[3:]))
"""
MOMENTS = {                         # what is killed at the n-th call -> the steps that are safe
    "drawing a batch": ("batch", 18, 14),
    "the second checkpoint half written": ("half fsync", 6, 7),
    "before it becomes the previous one": ("replace", 4, 7),
    "before the new one is in place": ("replace", 5, 7),
    "when the new one is in place": ("after replace", 5, 14),
    "in the last step's checkpoint": ("half fsync", 12, 28),
    "before the sample": ("text", 1, 30),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_equals_never_stopped(moment, finished, corpus, tmp_path):
    what, count, safe = MOMENTS[moment]
    folder = tmp_path / "run"
    killed = process(what, count, "train", *flags(**TINY, preset="nano", corpus=corpus, out=folder),
                     code=KILLED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert runs.load(folder).checkpoint.step == safe
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert outcome(folder) == outcome(finished())
    aside = {f"{name}.tmp" for name in runs.FILES}
    assert {p.name for p in folder.iterdir()} - aside == set(runs.FILES)


@pytest.mark.parametrize("case", ["affine", pytest.param("dropout", marks=pytest.mark.slow)])
def test_killed_and_resumed_with_buffers_and_dropout(case, finished, corpus, tmp_path):
    """Resumed in a process of its own, with another number of threads, and killed there too."""
    folder = tmp_path / "run"
    process("batch", 12, "train",
            *flags(**TINY, **CASES[case], preset="nano", corpus=corpus, out=folder), code=KILLED)
    again = process("after replace", 5, "train", "--resume", folder, "--threads", 1, code=KILLED)
    assert again.returncode == -signal.SIGKILL and runs.load(folder).checkpoint.step == 21
    last = process("train", "--resume", folder, "--threads", 3)
    assert last.returncode == 0 and "continuing after step 21 of 30" in last.stdout, last.stderr
    assert outcome(folder) == outcome(finished(case))


def signalled(which, words, folder, delay):
    """Start a process, signal it some time after its first checkpoint -> (exit code, what it
    said)"""
    checkpoint = folder / runs.CHECKPOINT
    written = lambda: checkpoint.exists() and checkpoint.stat().st_mtime_ns
    before = written()
    child = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True, env=environment())
    while written() == before and child.poll() is None:
        time.sleep(0.01)
    time.sleep(delay)
    child.send_signal(which)
    said = child.communicate(timeout=100)
    return child.returncode, "".join(said)


@pytest.mark.parametrize("which, kills, steps", [(signal.SIGKILL, 1, 600), (signal.SIGINT, 1, 600),
                                                 pytest.param(signal.SIGKILL, 9, 4000,
                                                              marks=pytest.mark.slow)])
def test_stopped_from_outside_at_random_moments(which, kills, steps, finished, corpus, tmp_path):
    fields, folder = dict(steps=steps, checkpoint_interval=10), tmp_path / "run"
    words = ["train", *flags(**TINY | fields, preset="nano", corpus=corpus, out=folder)]
    for _ in range(kills):
        delay = random.uniform(0, 0.3)
        code, said = signalled(which, words, folder, delay)
        expected = {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[which]
        # 0: it was quicker than the signal
        assert code in (expected, 0), (delay, said)
        assert which != signal.SIGINT or code == 0 or f"{RESUME} {folder}" in said
        words = ["train", "--resume", str(folder)]
    resumed = process(*words)
    assert resumed.returncode == 0, resumed.stderr
    assert outcome(folder) == outcome(finished(**fields))


def test_interrupt_finishes_the_step_saves_and_says_how_to_go_on(stopped, finished, tmp_path,
                                                                 capsys):
    assert runs.load(stopped).checkpoint.step == 16
    assert runs.load(stopped, runs.PREVIOUS).checkpoint.step == 14
    assert [row["step"] for row in runs.read_metrics(stopped)] == list(range(1, 17))
    folder = copy(stopped, tmp_path / "run")
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert "continuing after step 16 of 30" in capsys.readouterr().out
    assert outcome(folder) == outcome(finished())


def test_interrupt_says_how_to_go_on(corpus, tmp_path, capsys, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    at_batch(monkeypatch, 3, lambda: signal.raise_signal(signal.SIGINT))
    assert train(tmp_path / "run", corpus) == 130
    said = capsys.readouterr()
    assert f"stopped after step 3 of 30 and saved; {RESUME} {tmp_path / 'run'}" in said.out
    assert "finishing this step" in said.err
    assert signal.getsignal(signal.SIGINT) is before


def test_second_interrupt_stops_at_once(corpus, finished, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        at_batch(patch, 9, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
        assert train(tmp_path / "run", corpus) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert runs.load(tmp_path / "run").checkpoint.step == 7
    assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert outcome(tmp_path / "run") == outcome(finished())


def test_interrupt_in_the_last_step_just_finishes(corpus, finished, tmp_path, monkeypatch):
    at_batch(monkeypatch, 30, lambda: signal.raise_signal(signal.SIGINT))
    assert train(tmp_path / "run", corpus) == 0
    assert outcome(tmp_path / "run") == outcome(finished())


def test_resume_of_a_finished_run_changes_no_number(finished, tmp_path, capsys):
    folder = copy(finished(), tmp_path / "run")
    before = {name: content for name, content in contents(folder).items() if name != runs.LOSS}
    for name in (runs.LOSS, runs.SAMPLE):
        (folder / name).unlink()
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert "is finished: 30 of 30 steps are done" in capsys.readouterr().out
    after = contents(folder)
    del after[runs.LOSS]
    assert after == before


# --------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("fields, message", [
    (dict(lr=1e30), "step 2: the loss is not finite; no checkpoint had been written yet"),
    (dict(lr=1e30, checkpoint_interval=1),
     "step 2: the loss is not finite; the last good checkpoint is"),
    (dict(lr=1e6, clip=0, warmup=0), "step 3: the gradient of wte.weight is not finite"),
    (dict(lr=1e39, warmup=0), "step 1: the parameter wte.weight is not finite"),
    (dict(lr=1e10, attention="affine", n_layer=3), "step 2: alpha_ma is not finite"),
])
def test_divergence(fields, message, corpus, tmp_path, capsys):
    assert train(tmp_path / "run", corpus, **fields) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: " + message) and "Try a smaller --lr" in last


def test_not_a_number_in_one_gradient(corpus, finished, tmp_path, capsys, monkeypatch):
    """The last good checkpoint is named, is good, and leads to the end that the run would have
    had."""
    original, folder = parallel.loss_and_gradients, tmp_path / "run"

    def poisoned(*args, out, seed, **options):
        result = original(*args, out=out, seed=seed, **options)
        if seed[1] == 16:
            out["h.0.mlp.c_fc.weight"][3, 5] = np.nan
        return result
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "loss_and_gradients", poisoned)
        assert train(folder, corpus) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: step 17: the gradient of h.0.mlp.c_fc.weight is not finite; "
                           "the last good checkpoint is "
                           f"{folder / runs.CHECKPOINT}.")
    assert runs.load(folder).checkpoint.step == 14 and len(runs.read_metrics(folder)) == 16
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert outcome(folder) == outcome(finished())


def test_not_a_number_in_the_validation_loss(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parallel, "mean_loss", lambda *_: float("nan"))
    assert train(tmp_path / "run", corpus) == 1
    assert "step 10: the validation loss is not finite; the last good" in capsys.readouterr().err
    assert runs.load(tmp_path / "run").checkpoint.step == 7


# ------------------------------------------------------------------------- damaged and foreign runs


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(bytes(content))


def foreign(path):
    """A whole checkpoint, of a wider model."""
    config = model.Config(vocab_size=58, block_size=8, n_layer=1, n_head=2, n_embd=18)
    params, buffers = model.init(config)
    folder = path.parent / "other"
    folder.mkdir()
    runs.save_checkpoint(folder, runs.Checkpoint(params, buffers, params, params, 16, 1.0))
    path.write_bytes((folder / runs.CHECKPOINT).read_bytes())


def tensors(path):
    from safetensors.numpy import save_file
    save_file({"x": np.zeros(3)}, path)


def folder_there(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "truncated": (cut, "truncated or not a safetensors file"),
    "empty": (lambda path: path.write_bytes(b""), "truncated or not a safetensors file"),
    "one bit flipped": (flip, "damaged: its contents do not match their checksum"),
    "text": (lambda path: path.write_text("hello" * 99), "truncated or not a safetensors file"),
    "missing": (lambda path: path.unlink(), "does not exist"),
    "a folder": (folder_there, "cannot read"),
    "another program's": (tensors, "not a checkpoint of this program"),
    "other settings": (foreign, "is from other settings: config.json expects"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_checkpoint(how, stopped, finished, tmp_path, capsys):
    """Refused; the previous one is named, untouched, and leads to the same end, even if killed
    before its first save."""
    damage, message = DAMAGE[how]
    folder = copy(stopped, tmp_path / "run")
    damage(folder / runs.CHECKPOINT)
    before = contents(folder)
    for words in (["train", "--resume", str(folder)], ["sample", str(folder)]):
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert message in said
        assert f"step 14, is kept: go on from it with --resume {folder / runs.PREVIOUS}" in said
    assert contents(folder) == before
    if how == "a folder":
        return
    with pytest.MonkeyPatch.context() as patch:
        at_batch(patch, 16, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
        assert cli.main(["train", "--resume", str(folder / runs.PREVIOUS)]) == 130
    assert runs.load(folder).checkpoint.step == 14
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert outcome(folder) == outcome(finished())


def test_killed_before_the_first_checkpoint(corpus, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    process("batch", 3, "train", *flags(**TINY, preset="nano", corpus=corpus, out=folder),
            code=KILLED)
    assert cli.main(["sample", str(folder)]) == 2
    assert cli.main(["train", "--resume", str(folder / runs.CHECKPOINT)]) == 2
    assert cli.main(["train", "--resume", str(folder / runs.PREVIOUS)]) == 2
    said = capsys.readouterr().err
    words = f"The run has no checkpoint: begin it again with --resume {folder}"
    assert said.count(words) == 3
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert "beginning again" in capsys.readouterr().out
    assert outcome(folder) == outcome(finished())


def test_both_checkpoints_damaged(stopped, tmp_path, capsys):
    folder = copy(stopped, tmp_path / "run")
    cut(folder / runs.CHECKPOINT)
    flip(folder / runs.PREVIOUS)
    assert cli.main(["train", "--resume", str(folder)]) == 2
    assert "is kept" not in capsys.readouterr().err


def edit(folder, change):
    content = json.loads((folder / runs.CONFIG).read_text())
    change(content)
    (folder / runs.CONFIG).write_text(json.dumps(content))


EDITS = {
    "n_layer a word": lambda c: c["model"].update(n_layer="two"),
    "n_layer more": lambda c: c["model"].update(n_layer=2),
    "n_embd less": lambda c: c["model"].update(n_embd=12),
    "attention other": lambda c: c["model"].update(attention="sink"),
    "attention unknown": lambda c: c["model"].update(attention="magic"),
    "attention a number": lambda c: c["model"].update(attention=5),
    "attention_options a list": lambda c: c["model"].update(attention_options=["norm"]),
    "window_pattern null": lambda c: c["model"].update(window_pattern=None),
    "position null": lambda c: c["model"].update(position=None),
    "unknown field": lambda c: c["model"].update(colour="red"),
    "model a list": lambda c: c.update(model=[1, 2]),
    "no model": lambda c: c.pop("model"),
    "no vocabulary": lambda c: c.pop("vocabulary"),
    "vocabulary a number": lambda c: c.update(vocabulary=7),
    "vocabulary shorter": lambda c: c.update(vocabulary=c["vocabulary"][:-1]),
    "vocab_size other": lambda c: c["model"].update(vocab_size=99),
    "train a number": lambda c: c.update(train=7),
    "train without fields": lambda c: c["train"].update(speed=3),
    "lr a word": lambda c: c["train"].update(lr="fast"),
    "steps negative": lambda c: c["train"].update(steps=-5),
    "corpus a word": lambda c: c.update(corpus="shakespeare"),
    "corpus other": lambda c: c["corpus"].update(sha256="0" * 64),
    "corpus gone": lambda c: c["corpus"].update(name="no-such-file.txt", path="nor-this.txt"),
    "dtype other": lambda c: c["train"].update(dtype="float64"),
}


@pytest.mark.parametrize("how", EDITS)
def test_edited_config(how, stopped, tmp_path, capsys):
    folder = copy(stopped, tmp_path / "run")
    edit(folder, EDITS[how])
    before = contents(folder)
    assert cli.main(["train", "--resume", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and contents(folder) == before


@pytest.mark.parametrize("content",
                         [b"", b"{", b"[1]", b"null", b'"x"', b"\xff\xfe", b"3", b"[" * 10**6])
def test_damaged_config(content, stopped, tmp_path, capsys):
    folder = copy(stopped, tmp_path / "run")
    (folder / runs.CONFIG).write_bytes(content)
    assert cli.main(["train", "--resume", str(folder)]) == 2
    assert "config.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("tail",
                         [b'{"step": 17, "tr', b'{"step": 17}\n{"st', b"\xff\xff", b"[]\n", b"{}\n",
                          b'{"step": null}\n'])
def test_metrics_cut_by_a_kill_or_damaged(tail, stopped, finished, tmp_path):
    folder = copy(stopped, tmp_path / "run")
    with open(folder / runs.METRICS, "ab") as file:
        file.write(tail)
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert outcome(folder) == outcome(finished())


def test_corpus_that_changed(stopped, corpus, tmp_path, capsys):
    folder, other = copy(stopped, tmp_path / "run"), tmp_path / "other.txt"
    other.write_text(corpus.read_text() + "!")
    edit(folder, lambda c: c["corpus"].update(name=str(other), path=None))
    assert cli.main(["train", "--resume", str(folder)]) == 2
    assert "differs from the one this run was trained on" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ writing


def test_no_room_left_on_the_disk(stopped, finished, tmp_path, capsys, monkeypatch):
    """The checkpoint that was there stays, and one sentence says what happened."""
    folder, calls = copy(stopped, tmp_path / "run"), []

    def full(handle):
        calls.append(handle)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert cli.main(["train", "--resume", str(folder)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: cannot write {folder / runs.METRICS}: No space left on device "
                           "(it needs ")
    assert f"last whole checkpoint with: python -m minattn train --resume {folder}" in said
    assert not list(folder.glob("*.tmp"))
    assert runs.load(folder).checkpoint.step == 16
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert outcome(folder) == outcome(finished())


def test_file_system_without_hard_links(stopped, finished, tmp_path, monkeypatch):
    folder = copy(stopped, tmp_path / "run")

    def no_links(*_):
        raise PermissionError
    monkeypatch.setattr(os, "link", no_links)
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert outcome(folder) == outcome(finished())
    assert runs.load(folder, runs.PREVIOUS).checkpoint.step == 28


def test_only_one_run_at_a_time_in_a_folder(stopped, corpus, tmp_path, capsys):
    folder = copy(stopped, tmp_path / "run")
    before = contents(folder)
    with runs.lock(folder):
        assert cli.main(["train", "--resume", str(folder)]) == 2
        assert train(folder, corpus, overwrite=True) == 2
        assert capsys.readouterr().err.count(f"another process is training in {folder}") == 2
        assert contents(folder) == before
    assert cli.main(["train", "--resume", str(folder)]) == 0


def test_start_is_a_function_too(corpus, tmp_path):
    """From Python: what the command line does, with messages where the caller wants them."""
    said = []
    settings, shape = trainer.settings_for("demo", TINY | dict(corpus=str(corpus), steps=2))
    run = trainer.start(settings, shape, tmp_path / "run", say=said.append)
    assert run.checkpoint.step == 2 and "3,000 characters" in said[0]
    with pytest.raises(InputError, match="already holds a run"):
        trainer.start(settings, shape, tmp_path / "run", say=said.append)
