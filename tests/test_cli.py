"""The command line: what it refuses, in one sentence and with nothing lost, and what it prints."""
import dataclasses
import json
import os
import shlex
import subprocess

import pytest
from run_cases import TINY, command, contents, environment, flags, process, train, write_corpus

from minattn import cli, data, files, generate, model, runs, spec
from minattn import train as trainer
from minattn.attention import MECHANISMS
from minattn.positions import POSITIONS

pytestmark = pytest.mark.usefixtures("no_picture")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished run, a corpus, and files that are none."""
    home = tmp_path_factory.mktemp("place")
    corpus = write_corpus(home)
    assert train(home / "run", corpus) == 0
    (home / "empty.txt").write_bytes(b"")
    (home / "binary.bin").write_bytes(b"MZ\x90\0\3")
    (home / "latin1.txt").write_bytes("Là-bas".encode("latin-1"))
    (home / "short.txt").write_text("To be, or not to be")
    (home / "long.txt").write_text("To be, or not to be. " * 20)
    (home / "empty").mkdir()
    return home


NEW = ["train", "--corpus", "{home}/corpus.txt", "--out", "{home}/new", "--steps", "3"]
RUN = "{home}/run"
BAD = {
    "preset": (["train", "--preset", "nanno"],
               "one of demo, fast, best, nano, laptop, paper; got 'nanno'. Did you mean 'nano'?"),
    "attention": ([*NEW, "--attention", "enrgy"],
                  "attention must be one of {mechanisms}; got 'enrgy'. Did you mean 'energy'?"),
    "attention-twice": ([*NEW, "--attention", "affine+affine"],
                        "only '+gated' can be put on top of another mechanism"),
    "attention-empty": ([*NEW, "--attention", ""], "contains an empty name"),
    "attention-option": ([*NEW, "--attention", "affine", "--attention-option", "momentun=0.5"],
                         "Did you mean 'momentum'?"),
    "attention-option-value": ([*NEW, "--attention", "energy", "--attention-option", "norm=keys"],
                               "Did you mean 'key'?"),
    "attention-option-form": ([*NEW, "--attention-option", "norm"], "'norm' is not NAME=VALUE"),
    "position": ([*NEW, "--position", "rotary"],
                 "position must be one of {positions}; got 'rotary'."),
    "position-twice": ([*NEW, "--position", "rope+rope"], "position 'rope' is given twice"),
    "position-option": ([*NEW, "--position", "rope", "--position-option", "base=-1"],
                        "base must be above 0; got -1"),
    "command": (["trian"], "'trian'"),
    "flag": ([*NEW, "--learning-rate", "3"], "--learning-rate 3"),
    "heads": ([*NEW, "--n-embd", "16", "--n-head", "3"],
              "n_embd must be divisible by n_head; got 16 and 3."),
    "odd-rope": ([*NEW, "--position", "rope", "--n-embd", "18", "--n-head", "2"],
                 "n_embd / n_head must be even for rope"),
    "block": ([*NEW, "--block-size", "3000"],
              "is too short for block_size 3000: its 3,000 characters are split 2,700 / 300"),
    "block-validation": ([*NEW, "--block-size", "300"], "each part needs at least 301"),
    "corpus-short": (["train", "--corpus", "{home}/short.txt", "--out", "{home}/new"],
                     "is too short for block_size 64"),
    "corpus-empty": (["train", "--corpus", "{home}/empty.txt"], "empty.txt' is empty"),
    "corpus-binary": (["train", "--corpus", "{home}/binary.bin"], "byte 3 is NUL"),
    "corpus-latin1": (["train", "--corpus", "{home}/latin1.txt"], "is not UTF-8: byte 1 is 0xe0"),
    "corpus-missing": (["train", "--corpus", "{home}/nothing.txt"],
                       "there is no corpus or file called"),
    "corpus-misspelt": (["train", "--corpus", "tinyshakspeare"], "did you mean 'tinyshakespeare'?"),
    "corpus-folder": (["train", "--corpus", "{home}/empty"], "is a directory"),
    "steps-negative": ([*NEW, "--steps", "-5"], "steps must be at least 1; got -5."),
    "steps-none": ([*NEW, "--steps", "0"], "steps must be at least 1; got 0."),
    "steps-word": ([*NEW, "--steps", "many"], "argument --steps: invalid int value: 'many'"),
    "lr-zero": ([*NEW, "--lr", "0"], "lr must be above 0; got 0.0."),
    "lr-nan": ([*NEW, "--lr", "nan"], "lr must be a finite number; got nan."),
    "seed": ([*NEW, "--seed", "-1"], "seed must be at least 0; got -1."),
    "dtype": ([*NEW, "--dtype", "float16"],
              "dtype must be one of float32, float64; got 'float16'."),
    "threads": ([*NEW, "--threads", "0"], "--threads must be at least 1; got 0."),
    "window": ([*NEW, "--window", "0"], "window must be at least 1; got 0."),
    "window-pattern": ([*NEW, "--window-pattern", "SXL"],
                       "window_pattern must be one of S, L; got 'X'."),
    "out-exists": (["train", "--out", RUN],
                   "already holds a run: continue it with --resume {home}/run, replace it"),
    "out-file": ([*NEW, "--out", "{home}/short.txt"], "short.txt is a file; name a folder."),
    "out-below-a-file": ([*NEW, "--out", "{home}/short.txt/run"],
                         "cannot write to {home}/short.txt/run: Not a directory"),
    "out-endless": ([*NEW, "--out", "{home}/" + "x" * 300], "File name too long"),
    "out-nothing": ([*NEW, "--out", ""], "--out must name a folder."),
    "overwrite-and-wrong": (["train", "--out", RUN, "--overwrite", "--corpus", "{home}/latin1.txt"],
                            "is not UTF-8"),
    "overwrite-too-long": ([*NEW, "--out", RUN, "--overwrite", "--block-size", "5000"],
                           "is too short"),
    "resume-missing": (["train", "--resume", "{home}/nowhere"],
                       "nowhere is not a run folder: no folder has this name."),
    "resume-empty": (["train", "--resume", "{home}/empty"],
                     "empty is not a run folder: it has no config.json."),
    "resume-nothing": (["train", "--resume", ""], "--resume must name a run folder."),
    "resume-file": (["train", "--resume", "{home}/short.txt"], "short.txt is not a run folder"),
    "resume-checkpoint-missing": (["train", "--resume", RUN + "/other.safetensors"],
                                  "other.safetensors does not exist."),
    "resume-other-lr": (["train", "--resume", RUN, "--lr", "3"],
                        "that run has lr = 0.01, not 3.0; leave the flag out"),
    "resume-other-preset": (["train", "--resume", RUN, "--preset", "paper"],
                            "that run has block_size = 8, not 256"),
    "resume-unknown-preset": (["train", "--resume", RUN, "--preset", "papper"],
                              "Did you mean 'paper'?"),
    "resume-and-out": (["train", "--resume", RUN, "--out", "{home}/new"],
                       "leave out --out and --overwrite"),
    "resume-and-overwrite": (["train", "--resume", RUN, "--overwrite"],
                             "leave out --out and --overwrite"),
    "sample-missing": (["sample", "{home}/nowhere"], "nowhere is not a run folder"),
    "sample-no-run": (["sample"], "the following arguments are required: RUN"),
    "sample-prompt": (["sample", RUN, "--prompt", "O λόγος 7"],
                      "characters outside the vocabulary: '7γλοςό'"),
    "sample-prompt-empty": (["sample", RUN, "--prompt", ""],
                            "--prompt must have at least one character."),
    "sample-temperature-0": (["sample", RUN, "--temperature", "0"],
                             "temperature must be above 0; got 0.0."),
    "sample-temperature-negative": (["sample", RUN, "--temperature", "-1"],
                                    "temperature must be above 0; got -1.0."),
    "sample-top-k": (["sample", RUN, "--top-k", "0"], "top-k must be at least 1; got 0."),
    "sample-tokens": (["sample", RUN, "--tokens", "-1"], "tokens must be at least 0; got -1."),
    "sample-seed": (["sample", RUN, "--seed", "-1"], "seed must be at least 0; got -1."),
}


def filled(text, home):
    return text.format(home=home, mechanisms=", ".join(MECHANISMS), positions=", ".join(POSITIONS))


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, place, capsys, monkeypatch):
    """Exit code 2, one sentence on stderr, every file as it was."""
    words, message = BAD[case]
    monkeypatch.chdir(place)
    before = contents(place)
    assert cli.main([filled(word, place) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and filled(message, place) in said
    assert contents(place) == before


@pytest.mark.parametrize("case",
                         ["attention", "corpus-binary", "out-exists", "sample-prompt",
                          "resume-missing"])
def test_bad_input_in_a_process_of_its_own(case, place):
    words, message = BAD[case]
    done = process(*(filled(word, place) for word in words), cwd=place)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert filled(message, place) in done.stderr


@pytest.mark.parametrize("words, message", [
    (["--out", "run"], "already holds a run"),
    (["--out", "short.txt"], "is a file"),
    (["--n-head", "3"], "divisible"),
    (["--steps", "-1"], "at least 1"),
])
def test_refused_before_any_corpus_is_loaded(words, message, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(data, "load_corpus", lambda *_, **__: pytest.fail("it came to the corpus"))
    assert cli.main(["train", *words]) == 2 and message in capsys.readouterr().err


def test_read_only_folder(place, capsys, monkeypatch):
    """Noticed before the run that was to be replaced is touched. (A real one would not stop
    root.)"""
    def refuse(**_):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    before = contents(place)
    assert train(place / "run", place / "corpus.txt", overwrite=True) == 2
    assert f"cannot write to {place / 'run'}: Permission denied" in capsys.readouterr().err
    assert contents(place) == before


def test_too_large_for_the_memory(place, capsys):
    """Before the run that was to be replaced is touched."""
    before = contents(place)
    assert train(place / "run", place / "corpus.txt", overwrite=True, n_embd=10**14) == 2
    said = capsys.readouterr().err
    assert "n_embd = 100000000000000" in said and "are available" in said
    assert contents(place) == before


# -------------------------------------------------------------------------------------------- flags


def parsed(*words):
    return cli.build_parser("train").parse_args(["train", *words])


@pytest.mark.parametrize("cls", [trainer.Settings, model.Config])
def test_every_field_has_a_flag(cls):
    fields = {f.name: f.default for f in dataclasses.fields(cls)
              if f.default is not dataclasses.MISSING}
    del fields["vocab_size" if cls is model.Config else "corpus"]
    for name, default in fields.items():
        value = 7 if default is None else not default if isinstance(default, bool) else default
        assert getattr(parsed(*flags(**{name: value})), name) == value
        # not given: the preset decides
        assert getattr(parsed(), name) is None
    assert not hasattr(parsed(), "vocab_size") and parsed("--corpus", "x").corpus == "x"


@pytest.mark.parametrize("text, expected", [
    ("length=9", 9), ("momentum=0.5", 0.5), ("momentum=1e-3", 1e-3), ("qk-norm=false", False),
    ("qk-norm=True", True),
    ("norm=none", "none"), ("norm=key", "key"), ("x=a=b", "a=b"),
])
def test_options(text, expected):
    name, value = spec.option(*parsed("--attention-option", text).attention_options)
    assert name == text.partition("=")[0].replace("-", "_")
    assert value == expected
    assert type(value) is type(expected)


def test_energy_without_a_norm_can_be_asked_for(place, tmp_path):
    """norm=none is a word there, and not Python's None."""
    assert train(tmp_path / "run", place / "corpus.txt", attention="energy",
                 attention_option="norm=none", steps=2) == 0
    assert runs.load(tmp_path / "run").config.attention == "energy[norm=none]"


@pytest.mark.parametrize("preset", trainer.PRESETS)
def test_presets(preset, place, tmp_path):
    """Each name that a preset changes is a field, and flags win over it."""
    settings, shape = trainer.settings_for(preset, {"steps": 7})
    assert settings.steps == 7
    assert model.Config(**shape).n_layer == trainer.PRESETS[preset]["n_layer"]
    assert shape.keys() <= {f.name for f in dataclasses.fields(model.Config)}


def test_paper_preset_is_the_published_recipe():
    settings, shape = trainer.settings_for("paper", {})
    assert dict(n_layer=6, n_head=8, n_embd=256, block_size=256, dropout=0.1,
                scaled_init=False).items() <= shape.items()
    expected = dict(batch_size=64, steps=5000, lr=3e-4, min_lr=0.0, warmup=300, beta1=0.9,
                    beta2=0.95, weight_decay=0.1, clip=1.0)
    assert expected.items() <= dataclasses.asdict(settings).items() and settings.decay == "all"


# ------------------------------------------------------------------------------------------- sample


def test_sample(place, capsys):
    def sampled(*words):
        assert cli.main(["sample", str(place / "run"), "--tokens", "40", *words]) == 0
        return capsys.readouterr().out
    run = runs.load(place / "run")
    assert sampled() == generate.text(run, "\n", 40, temperature=0.8, seed=0) + "\n"
    assert sampled("--prompt", "O, ", "--seed", "3", "--temperature", "1.5", "--top-k", "9") == (
        generate.text(run, "O, ", 40, temperature=1.5, top_k=9, seed=3) + "\n")
    assert sampled("--no-cache") == sampled() != sampled("--seed", "1")
    assert sampled("--top-k", "1") == sampled("--top-k", "1", "--seed", "1")


@pytest.mark.parametrize("attention, option, why", [
    ("energy", "norm=sequence", "energy: the gate's mean and deviation run over later tokens too."),
    ("affine", "length=total", "affine: beta divides by the length of the whole sequence."),
])
def test_says_why_it_recomputes_and_what_leaks(attention, option, why, place, tmp_path, capsys):
    assert train(tmp_path / "run", place / "corpus.txt", steps=2, attention=attention,
                 attention_option=option) == 0
    said = capsys.readouterr().out
    assert f"each token from the whole prefix: {why}" in said
    assert ("warning: energy is not causal" in said) == (attention == "energy")
    assert cli.main(["sample", str(tmp_path / "run"), "--tokens", "3"]) == 0
    assert f"no key-value cache, each token from the whole prefix: {why}" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- surroundings


def test_without_a_network(place, tmp_path, capsys, monkeypatch):
    """One sentence, and a trained model all the same; it can be continued."""
    def unreachable(*_):
        raise OSError("Name or service not known")
    monkeypatch.setattr(data, "fetch", unreachable)
    monkeypatch.delenv("MINATTN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train",
                     *flags(**TINY | dict(preset="demo", steps=3, eval_blocks=1, n_embd=8)),
                     "--seed", "1"]) == 0
    said = capsys.readouterr().out
    assert ("could not be fetched (Name or service not known): using the built-in corpus instead"
            in said)
    assert "runs/demo" in said
    config = json.loads((tmp_path / "runs/demo" / runs.CONFIG).read_text())
    assert config["corpus"]["name"] == "builtin"
    assert cli.main(["train", "--resume", "runs/demo"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_text_and_paths_in_any_script(tmp_path, capsys):
    corpus, folder = tmp_path / "日本 語.txt", tmp_path / "прогон ∑ é"
    corpus.write_text("Ünïcödé → 日本語 🎉\r\n" * 40, encoding="utf-8")
    assert train(folder, corpus, steps=3) == 0
    assert cli.main(["sample", str(folder), "--prompt", "日本"]) == 0
    said = capsys.readouterr().out
    # "O, " is not in this vocabulary
    assert "日本" in said
    assert "\r" not in said
    assert f"sample {shlex.quote(str(folder))} --tokens" in said


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_terminal_that_lacks_the_letters(encoding, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("日本語 → " * 60, encoding="utf-8")
    assert train(tmp_path / "run", corpus, steps=3) == 0
    done = subprocess.run(command("sample", tmp_path / "run", "--prompt", "日", "--tokens", 5),
                          capture_output=True,
                          env=environment() | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 0 and done.stdout.startswith(rb"\u65e5") and done.stderr == b""


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("redirection, code",
                         [("2>&-", 0), (">&-", 0), ("<&-", 0), ("| head -c 9", 0),
                                               *([(">/dev/full", 1)]
                                                 if os.path.exists("/dev/full") else [])])
def test_streams_closed_or_full(redirection, code, place):
    words = shlex.join(command("sample", place / "run", "--tokens", 500))
    done = subprocess.run(f"{words} {redirection}", shell=True, capture_output=True, text=True,
                          env=environment(), timeout=60)
    assert "Traceback" not in done.stderr and done.returncode == code


# ------------------------------------------------------------------------------- list, help, import


def test_list(capsys):
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    for name in [*MECHANISMS, *POSITIONS, *trainer.PRESETS]:
        assert f"\n{name} " in said
    assert "2602.23057" in said and "momentum=0.9" in said


def test_every_setting_has_its_text_in_the_help():
    assert list(cli.SETTINGS) == list(trainer.FIELDS)


@pytest.mark.parametrize("words",
                         [[], ["--help"], ["train", "--help"], ["sample", "--help"],
                          ["list", "--help"], ["--version"]])
def test_help(words, capsys):
    if words in ([], ["--help"]):
        expected = list(cli.COMMANDS)
    else:
        expected = {"train": ["--n-layer", "--resume", "--attention-option"],
                    "sample": ["--top-k"]}.get(words[0], ["minattn"])
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().out
    assert code == 0 and all(word in said for word in expected)


@pytest.mark.parametrize("code, words, absent", [
    ("import minattn", [], {"numpy", "scipy", "matplotlib", "torch", "safetensors", "tqdm"}),
    ("from minattn.cli import main; main()", ["--help"],
     {"numpy", "scipy", "matplotlib", "torch", "safetensors", "tqdm"}),
    ("from minattn.cli import main; main()", ["--version"],
     {"numpy", "scipy", "matplotlib", "torch"}),
    ("from minattn.cli import main; main()", ["train", "--help"], {"scipy", "matplotlib", "torch"}),
    ("from minattn.cli import main; main()", ["list"], {"scipy", "matplotlib", "torch"}),
    ("from minattn.cli import main; main()", ["sample", "{home}/run", "--tokens", "3"],
     {"scipy", "matplotlib", "torch"}),
])
def test_quick_commands_import_little(code, words, absent, place):
    """Seen in the modules that were imported: time would depend on the machine."""
    watched = ("import atexit, sys; atexit.register(lambda: print('\\nimported', "
               f"sorted({absent!r} & set(sys.modules)))); {code}")
    done = process(*(word.format(home=place) for word in words), code=watched)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nimported []\n"), done.stdout


def test_python_m_minattn():
    done = process("--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: minattn") and done.stderr == ""
