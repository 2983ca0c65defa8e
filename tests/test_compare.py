"""Comparisons: what is run, skipped, resumed and survived, and whether the numbers in the tables
are what they claim."""
import dataclasses
import math
import os
import re
import shutil
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
from run_cases import TINY, command, contents, copy, environment, flags, outcome
from scipy import stats

from minattn import cli, data, generate, model, ops, runs, studies, train
from minattn.attention import MECHANISMS
from minattn.errors import InputError
from minattn.inspect import leak
from minattn.positions import POSITIONS
from minattn.studies import executors, figures, measures, tables, work
from minattn.studies import plan as plans

pytestmark = pytest.mark.usefixtures("no_picture")

SMALL = TINY | dict(steps=20)
GRID = "softmax,energy[norm=sequence]"


def compare(out, corpus, *words, attention=GRID, seeds="0-1", workers=1, **fields):
    return cli.main(["compare", "--attention", attention, "--seeds", seeds, "--workers",
                     str(workers), "--prefix-positions", "90",
                     *flags(**SMALL | dict(corpus=corpus, out=out) | fields), *words])


def results(out):
    return tables.read_csv(out / tables.RESULTS)


def timeless(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def study(tmp_path_factory, corpus):
    """A finished comparison: two variants, two seeds."""
    out = tmp_path_factory.mktemp("study") / "out"
    assert compare(out, corpus) == 0
    return out


@pytest.fixture
def counted(monkeypatch):
    """How often a run was begun and resumed."""
    calls = {"start": 0, "resume": 0}

    def counting(name, original):
        def call(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)
        return call

    for name in calls:
        monkeypatch.setattr(train, name, counting(name, getattr(train, name)))
    return calls


# --------------------------------------------------------------------------------- what is compared


def test_syntax():
    assert plans.explicit("two heads: n_head=2 bias=false window=none lr=1e-2 "
                          "attention=energy[norm=key]") == (
        "two heads",
        {"n_head": 2, "bias": False, "window": None, "lr": 0.01, "attention": "energy[norm=key]"})
    assert plans.numbers("0-2,7, 1") == (0, 1, 2, 7)
    assert (plans.folder_name("energy[norm=none]/softmax morlet[admissible=false]")
            == "energy-norm=none.softmax_morlet-admissible=false")


def test_every_mechanism_and_position_can_be_compared(tmp_path):
    plan = plans.make(tmp_path, attention=",".join(MECHANISMS), position=",".join(POSITIONS),
                      seeds="0-2", baseline="sink decay")
    assert len(plan.variants) == len(MECHANISMS) * len(POSITIONS)
    assert len(plan.jobs()) == 3 * len(plan.variants)
    assert plan.baseline == "sink decay"
    assert len({job.folder for job in plan.jobs()}) == len(plan.jobs())


def test_settings_reach_the_runs(tmp_path):
    plan = plans.make(tmp_path, attention="softmax", variants=["deep: n_layer=6 lr=0.5"], seeds="4",
                      overrides={"n_layer": 2, "steps": 9})
    (a, b) = plan.jobs()
    assert (a.shape["n_layer"], a.settings.steps, a.settings.seed) == (2, 9, 4)
    assert (b.shape["n_layer"], b.settings.lr, b.settings.steps, b.settings.seed) == (6, 0.5, 9, 4)


LITTLE = ["--corpus", "builtin", "--n-embd", "8", "--n-head", "2", "--batch-size", "2"]
BAD = {
    "attention": (["--attention", "softmax,enrgy"], "attention must be one of softmax, off_by_one"),
    "nearest": (["--attention", "softmax,enrgy"], "got 'enrgy'. Did you mean 'energy'?"),
    "position": (["--attention", "softmax", "--position", "morlt"], "Did you mean 'morlet'?"),
    "option": (["--attention", "energy[norm=keys]"], "Did you mean 'key'?"),
    "option-form": (["--attention", "energy[norm]"], "option 'norm' is not NAME=VALUE"),
    "option-twice": (["--attention", "energy[norm=key,norm=none]"], "option norm is given twice"),
    "bracket": (["--attention", "energy[norm=key"], "unbalanced brackets"),
    "nothing": ([], "nothing to compare"),
    "empty": (["--attention", ""], "nothing to compare"),
    "empty-name": (["--attention", "softmax,,sink"], "contains an empty name"),
    "twice": (["--attention", "softmax,softmax"], "would share the folder softmax_learned"),
    "same": (["--attention", "softmax", "--variant", "b: attention=softmax"],
             "'softmax learned' and 'b' are the same"),
    "variant-form": (["--variant", "attention=softmax"], 'must be "NAME: FIELD=VALUE ..."'),
    "variant-field": (["--variant", "a: n_heads=2"], "Did you mean 'n_head'?"),
    "variant-value": (["--variant", "a: n_head=two"], "n_head must be an integer; got 'two'."),
    "variant-bool": (["--variant", "a: bias=perhaps"],
                     "bias must be true or false; got 'perhaps'."),
    "variant-name": (["--variant", "../a: n_head=2"], "must begin with a letter or a digit"),
    "variant-heads": (["--variant", "a: n_head=3"],
                      "variant 'a': n_embd must be divisible by n_head"),
    "seeds": (["--attention", "softmax", "--seeds", "a-b"],
              "numbers and ranges such as 0-4 or 0,3,7; got 'a-b'."),
    "seeds-backwards": (["--attention", "softmax", "--seeds", "3-1"], "got '3-1'."),
    "seeds-empty": (["--attention", "softmax", "--seeds", ""], "got ''."),
    "baseline": (["--attention", "softmax,sink", "--baseline", "sinks learned"],
                 "Did you mean 'sink learned'?"),
    "preset": (["--attention", "softmax", "--preset", "nanno"], "Did you mean 'nano'?"),
    "steps": (["--attention", "softmax", "--steps", "many"],
              "argument --steps: invalid int value: 'many'"),
    "workers": (["--attention", "softmax", "--workers", "0"], "--workers must be at least 1"),
    "prefix": (["--attention", "softmax", "--prefix-positions", "0"],
               "--prefix-positions must be at least 1"),
    "file": (["--attention", "softmax", "--out", "{home}/file"], "file is a file; name a folder."),
    "below-a-file": (["--attention", "softmax", "--out", "{home}/file/out"], "Not a directory"),
    "out": (["--attention", "softmax", "--out", ""], "--out must name a folder."),
    "corpus": (["--attention", "softmax", "--corpus", "nothing.txt"],
               "there is no corpus or file called 'nothing.txt'"),
    # what only a run itself could notice is noticed before any of them
    "base": (["--variant", "waves: position=sinusoidal[base=1e-320]", *LITTLE],
             "variant 'waves': base must be at least 1e-200"),
    "softcap": (["--attention", "softmax", "--softcap", "1e-60", *LITTLE],
                "softcap must be a number that float32 can hold"),
    "block": (["--variant", "long: block_size=200000", *LITTLE],
              "variant 'long': corpus 'builtin' is too short for block_size 200000"),
    "lengths": (["--attention", "softmax", "--position", "rope", "--lengths", "500000", *LITTLE],
                "--lengths must be below 100,000, the characters of the text; got 500000."),
    "long-name": (["--variant", 300 * "x" + ": n_head=2"], "must have at most 200 bytes"),
    "both": (["--attention", "softmax", "--scheduler", "tcp://127.0.0.1:1", "--workers", "2"],
             "leave one of the two out"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path, capsys, monkeypatch):
    words, message = BAD[case]
    (tmp_path / "file").write_text("a file")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(studies, "Progress",
                        lambda *args, **options: pytest.fail("it came to the runs"))
    assert cli.main(["compare", *(word.format(home=tmp_path) for word in words)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert not list(tmp_path.rglob("config.json"))


def test_other_settings_than_what_is_there(study, corpus, capsys):
    before = contents(study)
    assert compare(study, corpus, lr=0.5) == 2
    assert ("softmax_learned/seed-0 holds a run with lr = 0.01, not 0.5: give the settings it was "
            "made with") in capsys.readouterr().err
    assert contents(study) == before


def test_another_text_than_the_runs_had(corpus, tmp_path, capsys):
    """Under the same name: one table would mix runs on both."""
    out, text = tmp_path / "out", tmp_path / "text"
    shutil.copy(corpus, text)
    assert compare(out, text, attention="softmax", seeds="0") == 0
    before = contents(out)
    text.write_text("All is well. " * 300)
    assert compare(out, text, attention="softmax", seeds="0-1") == 2
    assert ("seed-0 holds a run on another text than" in capsys.readouterr().err
            and contents(out) == before)


# -------------------------------------------------------------------------------- run, skip, resume


def test_table(study):
    rows = tables.read_csv(study / tables.RESULTS)
    assert [(row["variant"], row["seed"], row["status"]) for row in rows] == [
        (f"{name} learned", seed, "done") for seed in (0, 1) for name in GRID.split(",")]
    page = (study / tables.TABLE).read_text(encoding="utf-8")
    for name in GRID.split(","):
        losses = [row["val_loss_prefix_only"] for row in rows
                  if row["variant"] == f"{name} learned"]
        line = next(line for line in page.splitlines()
                    if line.startswith(f"| {name} learned | 2 of 2 |"))
        assert f"| {np.mean(losses):.4f} ± {np.std(losses, ddof=1):.4f} |" in line
    assert (study / figures.CURVES).stat().st_size > 10_000
    assert (study / figures.DIFFERENCES).stat().st_size > 10_000


def test_measures_are_what_they_say(study, corpus):
    row = tables.read_csv(study / tables.RESULTS)[1]
    run = runs.load(study / row["folder"])
    params, buffers, config = run.checkpoint.params, run.checkpoint.buffers, run.config
    train_ids, val_ids = data.split(data.Vocabulary(run.vocabulary).encode(corpus.read_text()))
    x, y = data.blocks(val_ids, config.block_size)
    loss = model.forward(params, x, config, targets=y, buffers=buffers)[1]
    assert row["val_loss"] == pytest.approx(loss, abs=1e-6)
    assert row["sample_size"] == 90 and row["parameters"] == sum(a.size for a in params.values())
    assert row["leak"] == pytest.approx(row["sample_prefix_only"] - row["sample_teacher_forced"],
                                        abs=1e-12)
    assert abs(row["leak"]) > 1e-4
    assert row["val_loss_prefix_only"] == row["val_loss"] + row["leak"]
    assert row["gap"] == row["val_loss"] - row["train_loss_eval"]
    tx, ty = data.blocks(train_ids, config.block_size)
    some = np.unique(np.linspace(0, len(tx) - 1, len(x)).astype(int))
    loss = model.forward(params, tx[some], config, targets=ty[some], buffers=buffers)[1]
    assert row["train_loss_eval"] == pytest.approx(loss, abs=1e-6)
    metrics = runs.read_metrics(run.folder)
    assert row["train_loss_last"] == metrics[-1]["train_loss"]
    assert row["grad_norm_variance"] == pytest.approx(np.var([m["grad_norm"] for m in metrics]))
    found = measures.read(run.folder, 90)
    assert np.shape(found["entropy_by_layer"]) == (config.n_layer,)
    assert found["row_sum"] == pytest.approx(1, abs=1e-6)
    assert np.shape(found["row_sum_by_query"]) == (config.n_layer, config.block_size)


def test_spikes():
    # median 1, MAD 0.1: above 1.6 and above 1.9
    norms = [1.0, 1.1, 0.9, 1.2, 0.8, 1.0, 1.0, 1.65, 2.0]
    found = measures._training([{"train_loss": 1.0, "grad_norm": norm} for norm in norms])
    assert (found["spikes_6"], found["spikes_9"]) == (2, 1)


def test_finished_runs_are_left_alone(study, corpus, counted, monkeypatch):
    before = contents(study)
    monkeypatch.setattr(measures, "measure", lambda *args, **options: pytest.fail("measured again"))
    assert compare(study, corpus) == 0 and counted == {"start": 0, "resume": 0}
    assert contents(study) == before


def test_one_more_seed_and_variant(study, corpus, counted, tmp_path):
    out = copy(study, tmp_path / "out")
    assert compare(out, corpus, attention=GRID + ",sink", seeds="1-2") == 0
    # two at seed 2, sink at both
    assert counted == {"start": 4, "resume": 0}
    assert len(tables.read_csv(out / tables.RESULTS)) == 6


def test_other_positions_are_measured_without_training(study, corpus, counted, tmp_path):
    out = copy(study, tmp_path / "out")
    assert compare(out, corpus, "--prefix-positions", "40") == 0
    assert counted == {"start": 0, "resume": 0}
    assert {row["sample_size"] for row in tables.read_csv(out / tables.RESULTS)} == {40}


def test_longer_contexts(study, corpus, tmp_path, capsys):
    assert compare(study, corpus, "--lengths", "32") == 2
    assert "learned positions have parameters for 8 tokens" in capsys.readouterr().err
    for wrong, reason in (("4", "at least 8"), ("32,x", "numbers of tokens"),
                          ("32,", "numbers of tokens"), ("500000", "must be below")):
        status = compare(tmp_path / wrong, corpus, "--lengths", wrong, "--position", "none",
                         attention="softmax", seeds="0")
        page = capsys.readouterr()
        assert status and reason in page.out + page.err
    out = tmp_path / "out"
    assert compare(out, corpus, "--lengths", "40,8", "--position", "none",
                   attention="softmax,lssa", seeds="0") == 0
    assert "| variant | 8 tokens | 40 tokens |" in (out / tables.TABLE).read_text()
    row = results(out)[1]
    run = runs.load(out / row["folder"])
    ids = data.split(data.Vocabulary(run.vocabulary).encode(corpus.read_text()))[1]
    for length in (8, 40):
        losses = []
        config = dataclasses.replace(run.config, block_size=length)
        for end in np.linspace(40, len(ids) - 1, measures.LENGTH_WINDOWS).astype(int):
            x, y = ids[None, end - length:end], ids[end - 7:end + 1]
            logits = model.forward(run.checkpoint.params, x, config)[0][0, -8:]
            losses.append(ops.cross_entropy_forward(logits, y)[0])
        assert row[f"loss_at_{length}"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_a_run_that_was_killed_is_resumed(study, corpus, counted, tmp_path, monkeypatch):
    out, add = tmp_path / "out", runs.Metrics.add

    def stop(self, **row):
        if row["step"] == 17 and "energy" in str(self.path):
            raise KeyboardInterrupt
        add(self, **row)

    with monkeypatch.context() as patch:
        patch.setattr(runs.Metrics, "add", stop)
        assert compare(out, corpus, seeds="0") == 130
    assert counted == {"start": 2, "resume": 0}
    assert compare(out, corpus, seeds="0") == 0 and counted == {"start": 2, "resume": 1}
    both = [timeless(tables.read_csv(folder / tables.RESULTS))[:2] for folder in (out, study)]
    assert both[0] == both[1]


def test_a_run_that_was_killed_before_its_first_checkpoint(study, corpus, counted, tmp_path):
    out = copy(study, tmp_path / "out")
    folder = out / "softmax_learned" / "seed-1"
    for path in folder.iterdir():
        if path.name != runs.CONFIG:
            path.unlink()
    assert compare(out, corpus) == 0 and counted == {"start": 1, "resume": 0}
    assert outcome(folder) == outcome(study / "softmax_learned" / "seed-1")


def test_one_that_fails_does_not_stop_the_others(corpus, tmp_path, capsys):
    assert compare(tmp_path, corpus, "--variant", "wild: lr=1e30", attention="softmax",
                   seeds="0-1") == 1
    said = capsys.readouterr()
    assert "error: 2 of 4 runs failed" in said.err and "Traceback" not in said.err
    status = {(row["variant"], row["seed"]): row["status"]
              for row in tables.read_csv(tmp_path / tables.RESULTS)}
    assert status == {("softmax learned", 0): "done", ("softmax learned", 1): "done",
                      ("wild", 0): "failed", ("wild", 1): "failed"}
    assert re.search(r"\| wild, seed 1 \| diverged: step \d+: .* is not finite", said.out)


def test_an_error_in_one_run(study, corpus, tmp_path, capsys):
    out = copy(study, tmp_path / "out")
    folder = out / "softmax_learned" / "seed-0"
    for name in (runs.CHECKPOINT, runs.PREVIOUS):
        (folder / name).write_bytes(b"damaged")
    assert compare(out, corpus) == 1
    assert "checkpoint.safetensors is truncated" in capsys.readouterr().out
    assert sum(row["status"] == "done" for row in tables.read_csv(out / tables.RESULTS)) == 3


def test_a_damaged_run_is_healed_from_the_checkpoint_before(study, corpus, counted, tmp_path):
    """A sweep goes on from the previous checkpoint by itself, to the same numbers."""
    out = copy(study, tmp_path / "out")
    folder = out / "softmax_learned" / "seed-0"
    (folder / runs.CHECKPOINT).write_bytes(b"damaged")
    assert compare(out, corpus) == 0 and counted == {"start": 0, "resume": 1}
    assert timeless(results(out)) == timeless(results(study))


@pytest.mark.parametrize("change", [('"leak": ', '"lebk": '), ('"val_loss": ', '"val_loss": 1'),
                                    ('"entropy": ', '"entropy": null, "x": ')])
def test_damaged_measures_are_taken_again(change, study, corpus, counted, tmp_path):
    out = copy(study, tmp_path / "out")
    path = out / "softmax_learned" / "seed-0" / measures.MEASURES
    path.write_text(path.read_text().replace(*change, 1))
    assert compare(out, corpus) == 0 and counted == {"start": 0, "resume": 0}
    assert timeless(results(out)) == timeless(results(study))


def test_measures_that_were_being_written_when_killed(study, corpus, tmp_path):
    out = copy(study, tmp_path / "out")
    path = out / "softmax_learned" / "seed-0" / measures.MEASURES
    path.rename(f"{path}.01234567.tmp")
    assert compare(out, corpus) == 0 and contents(out).keys() == contents(study).keys()


def test_measures_are_believed_of_the_runs_own_settings_only(study, corpus, tmp_path, capsys):
    out = copy(study, tmp_path / "out")
    folder, other = (out / "softmax_learned" / f"seed-{seed}" for seed in (0, 1))
    for name in (measures.MEASURES, runs.CHECKPOINT, runs.METRICS):
        shutil.copy(other / name, folder / name)
    (folder / runs.PREVIOUS).unlink()
    assert compare(out, corpus) == 1
    assert "saved with seed = 1, not 0" in (out / tables.TABLE).read_text()
    (other / runs.CONFIG).unlink()
    assert compare(out, corpus, seeds="1", lr=0.5, attention="softmax") == 1
    assert "it has no config.json" in (out / tables.TABLE).read_text()


def test_a_report_that_fails_loses_no_run(corpus, tmp_path):
    plan = plans.make(tmp_path, attention="softmax", overrides=SMALL | {"corpus": str(corpus)},
                      prefix_positions=90)
    calls = []

    def report(rows):
        calls.append(rows)
        raise OSError(28, "No space left on device")
    rows = studies.run(plan, executors.Serial(), report=report)
    assert [row["status"] for row in rows] == ["done"] and len(calls) == 1


def test_waits_for_another_worker_on_the_same_run(study, corpus, tmp_path):
    """Thought dead and started elsewhere: the second waits, then finds everything done."""
    out = copy(study, tmp_path / "out")
    (out / "softmax_learned" / "seed-0" / measures.MEASURES).unlink()
    plan = plans.make(out, attention="softmax", overrides=SMALL | {"corpus": str(corpus)},
                      prefix_positions=90)
    rows = []
    thread = threading.Thread(target=lambda: rows.append(work.do(plan.jobs()[0])))
    with runs.lock(plan.jobs()[0].folder):
        thread.start()
        time.sleep(0.3)
        assert not rows
    thread.join(20)
    assert rows[0]["status"] == "done"


@pytest.mark.slow
def test_results_do_not_depend_on_the_executor(study, corpus, tmp_path):
    """Two processes at a time, with another number of threads each."""
    assert compare(tmp_path / "out", corpus, "--threads", "2", workers=2) == 0
    assert timeless(results(tmp_path / "out")) == timeless(results(study))


def test_any_executor(study, corpus, tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    plan = plans.make(tmp_path, attention="softmax", overrides=SMALL | {"corpus": str(corpus)},
                      prefix_positions=90, seeds="0")
    with ThreadPoolExecutor(1) as executor:
        rows = studies.run(plan, executor)
    expected = [row for row in tables.read_csv(study / tables.RESULTS)
                if (row["variant"], row["seed"]) == ("softmax learned", 0)]
    assert timeless(rows) == timeless(expected)


def test_processes():
    with executors.Processes(1) as executor:
        killed, ended, wrong, right = (executor.submit(*call) for call in (
            (signal.raise_signal, signal.SIGTERM), (os._exit, 3), (math.sqrt, -1.0),
            (math.sqrt, 9.0)))
        assert right.result(60) == 3
        with pytest.raises(ChildProcessError, match="killed by signal 15"):
            killed.result()
        with pytest.raises(ChildProcessError, match="ended with code 3"):
            ended.result()
        with pytest.raises(ValueError, match="math domain error|nonnegative"):
            wrong.result()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_from_outside(study, corpus, tmp_path, workers, how):
    """Ctrl-C says how to go on; after a kill -9 no worker is left; the same command then ends as if
    nothing had happened."""
    out = tmp_path / "out"
    words = ["compare", "--attention", GRID, "--seeds", "0-1", "--workers", workers,
             "--prefix-positions", 90,
             *flags(**SMALL | dict(corpus=corpus, out=out))]
    # where the caller ignores it
    code = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from minattn import cli; sys.exit(cli.main(sys.argv[1:]))")
    process = subprocess.Popen(command(*words, code=code), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=environment(),
                               start_new_session=True)
    until = time.monotonic() + 60
    while not list(out.glob("*/*/" + runs.CHECKPOINT)) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(how)
    said = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "give the same command again to go on" in said[1]
        assert "Traceback" not in said[1]
    time.sleep(1)
    for folder in {path.parent for path in out.glob("*/*/config.json")}:
        with runs.lock(folder):                                       # nobody is at work there
            pass
    assert compare(out, corpus) == 0
    assert timeless(results(out)) == timeless(results(study))


# --------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_paired_interval(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(2, n))
    found = tables.paired(dict(enumerate(a)), {**dict(enumerate(b)), 99: 1.0})
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    interval = found.mean - found.half, found.mean + found.half
    assert interval == pytest.approx((low, high), rel=1e-12)
    assert found.seeds == tuple(range(n)) and found.lower == np.sum(a < b)


def test_paired_over_few_seeds():
    assert tables.paired({1: 2.0}, {2: 1.0}) is None
    assert tables.paired({1: 2.0}, {1: 1.5}) == tables.Paired((1,), (0.5,), 0.5, None, 0)


def test_interaction_by_hand(tmp_path):
    """Both changes together against their sum, seed by seed; a variant that differs in anything
    else has no interaction."""
    made = plans.make(tmp_path, attention="softmax,energy[norm=key]", position="learned,rope",
                      seeds="0-2",
                      variants=("wide: attention=sink position=rope n_head=8",))
    names = [v.name for v in made.variants]
    assert tables.crossed(made.variants, "softmax learned") == [
        ("energy[norm=key] learned", "softmax rope", "energy[norm=key] rope")]
    assert tables.crossed(made.variants, "energy[norm=key] rope") == [
        ("softmax rope", "energy[norm=key] learned", "softmax learned")]
    rng = np.random.default_rng(0)
    loss = rng.normal(size=(5, 3))
    rows = [{"variant": name, "seed": seed, "status": "done", "sample_size": 7,
             **dict.fromkeys(measures.SCALARS, loss[i, seed])}
            for i, name in enumerate(names) for seed in range(3)]
    base, rope, energy, both = loss[:4]
    low, high = stats.ttest_1samp((both - energy) - (rope - base), 0).confidence_interval(0.95)
    page = tables.markdown(made, rows).split("## Interaction")[1]
    assert f"[{low:+.4f}, {high:+.4f}]" in page and "wide" not in page.split("## Attention")[0]


def test_results_round_trip(study, tmp_path):
    rows = tables.read_csv(study / tables.RESULTS)
    rows.append({name: rows[0][name] for name in tables.ABOUT}
                | {"status": "failed", "reason": 'a "quoted", reason\nin two lines', "seed": 7})
    (tmp_path / "r.csv").write_text(tables.to_csv(rows), encoding="utf-8", newline="")
    assert tables.read_csv(tmp_path / "r.csv") == rows
    (tmp_path / "r.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(InputError, match="is not a results.csv of compare"):
        tables.read_csv(tmp_path / "r.csv")


# ----------------------------------------------------------------------------------------- the leak


def trained_like(attention, rng, **options):
    """A model with large random weights and buffers, in float64: leaks show."""
    config = model.Config(vocab_size=11, block_size=13, n_layer=2, n_head=3, n_embd=30,
                          attention=attention, attention_options=options)
    params, buffers = model.init(config, 3, np.float64)
    params = {name: a + rng.normal(0, 0.3, a.shape) * ("weight" in name and a.ndim == 2)
              for name, a in params.items()}
    buffers = {name: np.full_like(a, 0.6) for name, a in buffers.items()}
    x, y = rng.integers(0, 11, (2, 5, 13))
    return params, buffers, config, x, y


@pytest.mark.parametrize("name", MECHANISMS)
def test_prefix_only_equals_teacher_forced_where_it_should(name):
    row, rng = MECHANISMS[name], np.random.default_rng(5)
    params, buffers, config, x, y = trained_like(name, rng)
    forced, alone = leak.losses(params, buffers, config, x, y, *leak.spread(5, 13, 65))
    loss = model.forward(params, x, config, targets=y, buffers=buffers)[1]
    assert forced.mean() == pytest.approx(loss, rel=1e-12)
    why = generate.recompute_reason(config)
    assert bool(why) == bool(row.recompute())
    if why:
        assert np.abs(alone - forced).max() > 1e-3
    else:
        assert np.abs(alone - forced).max() < 1e-12


def test_prefix_only_of_a_model_that_leaks():
    params, buffers, config, x, y = trained_like("energy", np.random.default_rng(6),
                                                 norm="sequence")
    windows, positions = leak.spread(5, 13, 31)
    forced, alone = leak.losses(params, buffers, config, x, y, windows, positions)
    for i, (w, t) in enumerate(zip(windows, positions)):
        for found, seen in ((forced, 13), (alone, t + 1)):
            logits = model.forward(params, x[w:w + 1, :seen], config, buffers=buffers)[0][0, t]
            assert found[i] == pytest.approx(np.log(np.exp(logits).sum()) - logits[y[w, t]],
                                             rel=1e-12)
    # the first token sees itself alone whatever its gate; after the last there is none
    nothing = (positions == 0) | (positions == 12)
    assert 0 < nothing.sum() < 10
    assert np.abs((alone - forced)[~nothing]).min() > 1e-6
    assert np.abs((alone - forced)[nothing]).max() < 1e-12


@pytest.mark.parametrize("n_windows, T, n",
                         [(7, 5, 35), (7, 5, 1000), (31, 64, 512), (1742, 64, 512), (3, 1, 2),
                          (2, 2, 3)])
def test_spread(n_windows, T, n):
    windows, positions = leak.spread(n_windows, T, n)
    pairs = set(zip(windows.tolist(), positions.tolist()))
    assert len(pairs) == len(windows) == min(n, n_windows * T)
    assert windows.max() < n_windows
    assert positions.max() < T
    counts = np.bincount(positions, minlength=T)
    assert counts.max() - counts.min() <= 1
    counts = np.bincount(windows, minlength=n_windows)
    assert counts.max() - counts.min() <= 1


def test_settings_of_a_job_are_those_of_the_trainer(tmp_path):
    """What a run must say of itself names every field of a run but the vocabulary's size."""
    job = plans.make(tmp_path, attention="softmax").jobs()[0]
    fields = {f.name for cls in (train.Settings, model.Config) for f in dataclasses.fields(cls)}
    assert job.expected().keys() == fields - {"vocab_size"}
