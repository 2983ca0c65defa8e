"""The lessons' tools: how an exercise is graded, what a notebook becomes, and the command."""
import ast
import base64
import importlib.util
import io
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from minattn import cli, data, lessons, model, parallel
from minattn.errors import InputError
from minattn.lessons import command, grader_00, grading
from minattn.lessons.grading import Exercise, grade
from minattn.studies import tables

ROOT = Path(__file__).parents[1]
INPUTS = [(np.arange(6.0).reshape(2, 3),), (np.ones((5, 2)),)]


def rows(x):
    return x.sum(axis=1)


@pytest.mark.parametrize("candidate, said", [
    (rows, "right: 2 inputs agree."),
    (lambda x: np.array([sum(row) for row in x]), "right"),
    (lambda x: list(x.sum(axis=1)), "right"),
    (None, "not yet"),
    (..., "not yet"),
    (7, "not yet: expected a function; got int"),
    (lambda x: ..., "not yet: your function returns nothing"),
    (lambda x: 1 / 0, "raised ZeroDivisionError"),
    (lambda x: x.sum(axis=0), "should have shape (2,); got (3,)"),
    (lambda x: x.mean(axis=1),
     "(x (2, 3)): the result should be 12 at [1]; got 4, off by 8 (2 of 2 entries differ). "
     "That is the mean."),
    (lambda x: x.sum(axis=1) * np.nan, "contains nan"),
    (lambda x: "six", "should be an array"),
    (lambda x: x.sum(axis=1) + 1e-6, "not right yet"),
])
def test_grade(candidate, said, capsys):
    hints = [(lambda x: x.mean(axis=1), "That is the mean.")]
    assert grade(candidate, Exercise(rows, INPUTS, hints=hints)) == said.startswith("right")
    assert said in capsys.readouterr().out


def test_grade_of_several_results(capsys):
    def both(a, b):
        return a + b, a > b

    exercise = Exercise(both, [{"a": np.ones(3), "b": np.zeros(3)}], returns=("total", "larger"))
    assert grade(both, exercise)
    assert capsys.readouterr().out == "right: 1 input agrees.\n"
    assert not grade(lambda a, b: a + b, exercise)
    assert "expected 2 results (total, larger)" in capsys.readouterr().out
    assert not grade(lambda a, b: (a + b, a < b), exercise)
    assert "larger should be True" in capsys.readouterr().out


def test_a_fraction_is_not_a_whole_number(capsys):
    half = Exercise(lambda n: n // 2, [(5,)])
    assert grade(lambda n: n // 2, half) and grade(lambda n: float(n // 2), half)
    assert not grade(lambda n: n / 2, half)
    assert "should be 2; got 2.5" in capsys.readouterr().out


def test_a_student_cannot_change_the_inputs():
    def careless(x):
        x += 1
        return rows(x - 1)
    assert grade(careless, Exercise(rows, INPUTS)) and (INPUTS[1][0] == 1).all()


def test_a_short_training():
    text = data.load_corpus("builtin").text[:3000]
    vocabulary = data.Vocabulary(text)
    ids = vocabulary.encode(text)
    config = model.Config(vocab_size=len(vocabulary), block_size=13, n_layer=1, n_head=2,
                          n_embd=16, attention="affine")
    x, y = data.blocks(ids, 13)

    def trained(threads=1, steps=30, **options):
        seen = []
        with parallel.workers(threads) as pool:
            params, buffers = lessons.train(pool, config, ids, steps=steps, batch=7, lr=1e-2,
                                            each=seen.append, **options)
            losses = [parallel.mean_loss(pool, params, buffers, x, target, config)
                      for target in (y, x)]
        return params, losses, seen

    params, (of_next, of_same), seen = trained()
    assert of_next < np.log(len(vocabulary)) - 0.5
    again, losses, also_seen = trained(threads=2)
    assert losses == [of_next, of_same]
    assert all((again[name] == params[name]).all() for name in params)
    seen, also_seen = ([list(buffers.values()) for buffers in s] for s in (seen, also_seen))
    assert len(seen) == 30 and np.array_equal(seen, also_seen)
    assert np.all(np.diff(seen, axis=0) > 0)                    # alpha_ma rises from 0 towards 1/2
    assert trained(seed=1)[1] != losses
    assert trained(targets=lambda x, y: x)[1][1] < of_same - 0.5
    own, _ = model.init(config, 5)
    kept = {name: a.copy() for name, a in own.items()}
    start = trained(steps=0, params=own)[0]
    moved = trained(params=own)[0]
    for name in own:
        assert (own[name] == kept[name]).all() and (start[name] == kept[name]).all()
    assert (moved["wte.weight"] != own["wte.weight"]).any()


def build():
    spec = importlib.util.spec_from_file_location("build", ROOT / "lessons" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_solution_is_folded_and_nothing_changes_from_run_to_run():
    nbformat = pytest.importorskip("nbformat")
    v4 = nbformat.v4
    cells = [v4.new_code_cell("f = ...", metadata={"tags": ["exercise"], "scrolled": True}),
             v4.new_code_cell("f = 2", metadata={"tags": ["solution"]})]
    metadata = {"language_info": {"name": "python", "version": "3.11.7"}}
    notebook = build().published(v4.new_notebook(cells=cells, metadata=metadata))
    assert [c.cell_type for c in notebook.cells] == ["code", "markdown"]
    assert "<details>" in notebook.cells[1].source and "f = 2" in notebook.cells[1].source
    assert notebook.cells[0].metadata == {"tags": ["exercise"]} and "3.11" not in str(notebook)
    assert [c.id for c in notebook.cells] == ["cell-0", "cell-1"]
    plot = v4.new_code_cell("ax.set(title='Loss', xlabel='$t$')", metadata={"tags": ["plot"]},
                            outputs=[v4.new_output("display_data", {"image/png": "abc="})])
    plot = build().published(v4.new_notebook(cells=[plot])).cells[0]
    assert plot.metadata == {"tags": ["plot"], "jupyter": {"source_hidden": True}}
    assert plot.outputs[0].metadata == {"alt": "Loss. Axes: t."}
    said = "# Picture: a line\n# that falls.\nax.set(title='Loss')"
    output = v4.new_output("display_data", {"image/png": "abc="})
    assert build().described(output, said) == {"alt": "A line that falls."}


def test_a_figure_keeps_its_size_and_loses_bytes():
    nbformat, image = pytest.importorskip("nbformat"), pytest.importorskip("PIL.Image")
    rng, content = np.random.default_rng(0), io.BytesIO()
    pixels = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    image.fromarray(pixels).save(content, "png")
    before = base64.b64encode(content.getvalue()).decode()
    output = nbformat.v4.new_output("display_data", {"image/png": before})
    build().compress(output)
    assert len(output.data["image/png"]) < len(before) / 2
    assert output.metadata == {"image/png": {"width": 48, "height": 32}}
    again = image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    assert again.size == (96, 64)


def test_a_page_keeps_the_figure_of_a_slider_alone():
    nbformat = pytest.importorskip("nbformat")
    v4 = nbformat.v4
    outputs = [v4.new_output("display_data", {"image/png": "abc="}),
               v4.new_output("display_data", {"text/plain": "SelectionSlider()",
                                              build().WIDGET: {"model_id": "random"}})]
    page = build().published(v4.new_notebook(cells=[v4.new_code_cell("x", outputs=outputs)]))
    assert [list(output.data) for output in page.cells[0].outputs] == [["image/png"]]


def test_a_slider_draws_the_figure_anew(monkeypatch):
    shown = pytest.importorskip("IPython.display")
    widgets = pytest.importorskip("ipywidgets")
    from matplotlib import pyplot
    seen, drawn = [], []

    class Handle:
        def update(self, fig):
            seen.append(("again", fig))

    def display(what, display_id=False):
        seen.append(("first", what))
        return Handle() if display_id else None

    def draw(value):
        drawn.append(value)
        return pyplot.figure()

    monkeypatch.setattr(shown, "display", display)
    lessons.slider(draw, "width", [0.5, 1, 2], start=1)
    assert drawn == [1] and [how for how, _ in seen] == ["first", "first"]
    slider = seen[1][1]
    assert isinstance(slider, widgets.SelectionSlider) and slider.description == "width"
    assert [label for label, _ in slider.options] == ["0.5", "1", "2"]
    slider.value = 2
    assert drawn == [1, 2] and seen[2][0] == "again" and seen[2][1] is not seen[0][1]
    assert pyplot.get_fignums() == []

    monkeypatch.setitem(sys.modules, "ipywidgets", None)        # not installed: the figure stays
    lessons.slider(draw, "width", [0.5, 1, 2], start=0.5)
    assert drawn == [1, 2, 0.5] and len(seen) == 4


def test_text_alone_is_rewritten_without_running_it(tmp_path, monkeypatch, capsys):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("jupytext")
    module, source = build(), tmp_path / "00_x.py"
    source.write_text("# %% [markdown]\n# Better words.\n\n# %%\nprint(6 * 7)\n")
    v4 = nbformat.v4
    cell = v4.new_code_cell("print(6 * 7)", outputs=[v4.new_output("stream", text="42\n")])
    cell.execution_count = 3
    target = tmp_path / "00_x.ipynb"
    target.write_text(module.written(module.published(
        v4.new_notebook(cells=[v4.new_markdown_cell("Words."), cell]))))
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["build.py", "--text"])
    assert module.main() == 0
    cells = nbformat.read(target, as_version=4).cells
    assert cells[0].source == "Better words." and cells[1].outputs[0].text == "42\n"
    assert cells[1].execution_count == 3
    kept = target.read_bytes()
    source.write_text("# %% [markdown]\n# Other words.\n\n# %%\nprint(6 * 8)\n")
    assert module.main() == 1 and "its code has changed" in capsys.readouterr().out
    assert target.read_bytes() == kept


@pytest.mark.parametrize("old, new, why", [
    ("loss 2.10, 1,200 steps\n", "loss 2.14,   1,250 steps", ""),
    ("error 3e-16", "error 1e-13", ""),
    ("gap -0.02", "gap +0.02", ""),
    ("loss 2.10", "loss 2.40", "2.4 in place of 2.1"),
    ("gap -0.20", "gap +0.20", "0.2 in place of -0.2"),
    ("the sign is open", "better", "'better'"),
    ("1 2", "1", "'1'"),
])
def test_results_are_compared(old, new, why):
    assert build().another_result(old, new) == why


def test_a_notebook_with_other_results_is_stale(tmp_path):
    v4 = pytest.importorskip("nbformat").v4

    def notebook(text, **metadata):
        cell = v4.new_code_cell("print(f())", metadata=metadata,
                                outputs=[v4.new_output("stream", text=text)])
        return v4.new_notebook(cells=[cell])

    module, target = build(), tmp_path / "00_x.ipynb"
    target.write_text(module.written(notebook("loss 2.1\n")))
    assert module.stale(target, notebook("loss 2.11\n")) == []
    assert module.stale(target, notebook("loss 2.9\n", tags=["varies"])) == []
    assert "2.9 in place of 2.1" in module.stale(target, notebook("loss 2.9\n"))[0]


def test_limits(tmp_path):
    source = tmp_path / "00_x.py"
    source.write_text("# %%\n" * 601)
    content = json.dumps({"cells": [{"outputs": [{"text": ["saved to /home/me/x\n"]}]}]})
    problems = build().limits(source, content, 91)
    assert len(problems) == 3
    assert "601 lines" in problems[0] and "91 s" in problems[1] and "path" in problems[2]
    source.write_text("# %%\n")
    content = json.dumps({"cells": [{"outputs": [{"text": "3 / 4 of it"}]}]})
    assert build().limits(source, content, 1) == []
    assert build().limits(source, content, 91, 120) == []


def test_every_lesson_is_complete():
    """Numbers without gaps; source, notebook, grader and a row of the index for each."""
    index = (ROOT / "lessons" / "README.md").read_text(encoding="utf-8")
    found = lessons.sources()
    assert list(found) == [f"{n:02d}" for n in range(len(found))]
    assert len(re.findall(r"^\| \d\d \|", index, flags=re.M)) == len(found)
    for number, (title, source) in found.items():
        notebook = source.with_suffix(".ipynb")
        first = source.read_text(encoding="utf-8").splitlines()[:2]
        assert first == ["# %% [markdown]", f"# # {number} · {title}"]
        assert "(NOTATION.md)" in source.read_text(encoding="utf-8")
        assert notebook.exists() and (ROOT / "lessons" / f"grader_{number}.py").exists()
        assert f"\n| {number} | [" in index and f"]({notebook.name})" in index


def test_every_notebook_has_the_cells_of_its_source():
    """The cells only; make lessons-check runs them and compares the figures too."""
    nbformat, jupytext = pytest.importorskip("nbformat"), pytest.importorskip("jupytext")
    for _, path in lessons.sources().values():
        notebook = path.with_suffix(".ipynb")
        source = build().published(jupytext.read(path))
        committed = nbformat.read(notebook, as_version=4)
        assert [(c.cell_type, c.source) for c in source.cells] == [
            (c.cell_type, c.source) for c in committed.cells], notebook.name


def test_the_site_has_every_page_that_lessons_link_to():
    """Those that conf.py leaves out are links to nowhere, at which Sphinx stops."""
    conf = ast.parse((ROOT / "docs" / "conf.py").read_text(encoding="utf-8"))
    patterns = next(ast.literal_eval(node.value) for node in conf.body
                    if isinstance(node, ast.Assign)
                    and ast.unparse(node.targets[0]) == "include_patterns")
    for page in [*(ROOT / "lessons").glob("*.md"), *(ROOT / "lessons").glob("[0-9]*.py")]:
        for link in re.findall(r"\]\(([\w./]+\.(?:md|ipynb))", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve().relative_to(ROOT.resolve())
            assert any(target.parent == Path(pattern).parent and target.match(pattern)
                       for pattern in patterns), (page.name, link)


def test_cells_are_short():
    """At most 20 lines, figures apart; these are drawn in cells that Jupyter folds."""
    for number, (_, source) in lessons.sources().items():
        for cell in re.split(r"^# %%", source.read_text(encoding="utf-8"), flags=re.M)[1:]:
            kind, _, code = cell.partition("\n")
            if "[markdown]" not in kind and '"plot"' not in kind:
                size = sum(bool(line.strip()) for line in code.splitlines())
                assert size <= 20, (number, code)
                assert "plots.figure(" not in code, (number, code)


def test_an_open_exercise_stops_nothing():
    """No later cell may use the function that a student has not written yet."""
    for source in sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py")):
        open_names = set()
        for cell in source.read_text(encoding="utf-8").split("# %%")[1:]:
            kind, _, code = cell.partition("\n")
            if "[markdown]" in kind or "solution" in kind:
                continue
            tree = ast.parse(code)
            defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            if "exercise" in kind:
                open_names |= defined
            else:
                used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
                missing = (open_names - defined) & used
                assert not missing, f"{source.name}: {missing}"
        assert len(open_names) >= 2, source.name


def test_lesson_17_has_the_numbers_of_its_study():
    """They stand in the lesson because results/ is not installed."""
    code = (ROOT / "lessons" / "17_energy_and_morlet.py").read_text(encoding="utf-8")
    tree = ast.parse(code)
    study = next(ast.literal_eval(node.value) for node in tree.body
                 if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "STUDY")
    rows = tables.read_csv(ROOT / "results" / "energy" / "results.csv")
    for name, losses in study.items():
        norm = name.split()[0].rstrip(",")
        measure = "val_loss_prefix_only" if "prefix-only" in name else "val_loss"
        for mine, variant in zip(losses, ("softmax learned", f"energy[norm={norm}] learned",
                                          "softmax morlet", f"energy[norm={norm}] morlet")):
            theirs = tables.by_seed(rows, variant, measure)
            assert mine == [round(theirs[seed], 4) for seed in range(3)]


def test_the_list_of_lessons(capsys, tmp_path):
    assert cli.main(["lessons"]) == 0
    said = capsys.readouterr().out
    assert "00  Start here" in said and "00_start_here.ipynb" in said and "--open" in said
    with pytest.raises(InputError, match="no lessons in"):
        lessons.sources(tmp_path)


@pytest.fixture
def jupyter(tmp_path, monkeypatch):
    """A stand-in for JupyterLab that writes down how it was called; the working folder is new.

    It ends with 3, or waits until it is told to end if WAIT is set. Nothing else is installed.
    """
    stub = tmp_path / "stub" / "jupyterlab"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub / "__main__.py").write_text(
        "import json, os, sys, time\n"
        "from minattn.lessons import grader_00\n"
        "with open('called.json', 'w') as file:\n"
        "    json.dump([sys.argv[1:], os.environ['MINATTN_DATA']], file)\n"
        "print('much to say', file=sys.stderr)\n"
        "while os.environ.get('WAIT'):\n"
        "    time.sleep(0.05)\n"
        "sys.exit(3)\n")
    monkeypatch.syspath_prepend(str(stub.parent))
    monkeypatch.setenv("PYTHONPATH", str(stub.parent))
    monkeypatch.delenv("MINATTN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command.os, "geteuid", lambda: 1000, raising=False)
    monkeypatch.setattr(command, "servers", lambda: [])
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sys, "platform", "linux")

    def called():
        return json.loads((tmp_path / "called.json").read_text())
    return called


ALWAYS = "--ServerApp.answer_yes=True"


def test_open_works_on_a_copy(jupyter, tmp_path, capsys):
    copy = tmp_path / "minattn-lessons" / "01_softmax_attention.ipynb"
    assert cli.main(["lessons", "--open", "1", "--port", "8889"]) == 3
    given, data_dir = jupyter()
    assert given == [str(copy.relative_to(tmp_path)), ALWAYS, "--port", "8889"]
    assert data_dir == str(tmp_path / "data")
    assert capsys.readouterr().err == "much to say\n"             # it ended too early: why?
    assert copy.read_bytes() == (ROOT / "lessons" / copy.name).read_bytes()
    assert (copy.parent / "README.md").exists() and (copy.parent / "NOTATION.md").exists()
    assert len(list(copy.parent.glob("*.tmp"))) == 0

    copy.write_text("my solutions")                                   # a student's work stays
    assert cli.main(["lessons", "--open", "01"]) == 3
    assert copy.read_text() == "my solutions"


def test_open_as_root_and_without_a_display(jupyter, monkeypatch):
    first = str(command.COPIES / "00_start_here.ipynb")
    monkeypatch.setattr(command.os, "geteuid", lambda: 0, raising=False)
    assert cli.main(["lessons", "--open"]) == 3
    assert jupyter()[0] == [first, ALWAYS, "--allow-root"]
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("BROWSER", raising=False)
    assert cli.main(["lessons", "--open", "--port=1"]) == 3
    assert jupyter()[0] == [first, ALWAYS, "--allow-root", "--no-browser", "--port=1"]
    assert cli.main(["lessons", "--open", "00", "--no-browser", "--allow-root"]) == 3
    assert jupyter()[0] == [first, ALWAYS, "--no-browser", "--allow-root"]


def test_open_prints_one_line_with_the_address(jupyter, tmp_path, capsys, monkeypatch):
    other = {"pid": 1, "url": "http://localhost:8888/", "token": "old",
             "root_dir": str(tmp_path / "minattn-lessons")}
    mine = {**other, "pid": 2, "url": "http://localhost:8889/", "token": "new"}
    seen = []

    def servers():
        """The other one was there before; ours is told to end once its address has been read."""
        seen.append(1)
        if len(seen) == 3:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return [other, mine] if len(seen) > 2 else [other]

    monkeypatch.setattr(command, "servers", servers)
    monkeypatch.setenv("WAIT", "1")
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["lessons", "--open", "00"]) == 128 + signal.SIGTERM
    said = capsys.readouterr()
    assert said.err == "" and len(said.out.splitlines()) == 1
    assert said.out.startswith("http://localhost:8889/lab/tree/00_start_here.ipynb?token=new ")
    assert len(seen) == 3 and signal.getsignal(signal.SIGTERM) is before


def test_open_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["lessons", "--open", "77"]) == 2
    assert "there is no lesson 77; there are 00 to" in capsys.readouterr().err
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["lessons", "--open", "01"]) == 2
    assert "python -m pip install jupyterlab" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_open_says_what_stands_in_its_place(jupyter, tmp_path, capsys):
    folder = tmp_path / "minattn-lessons"
    folder.write_text("mine")
    assert cli.main(["lessons", "--open", "01"]) == 2
    said = capsys.readouterr().err
    assert "minattn-lessons" in said and "move away" in said and len(said.splitlines()) == 1
    assert folder.read_text() == "mine"
    folder.unlink()
    (folder / "01_softmax_attention.ipynb").mkdir(parents=True)
    assert cli.main(["lessons", "--open", "01"]) == 2
    assert "is not a file; move it away" in capsys.readouterr().err
    assert not (tmp_path / "called.json").exists()


def test_progress(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grading, "SOLVED", set())
    assert set(lessons.solved(tmp_path)) == set(lessons.sources())
    assert not any(done for done, _ in lessons.solved(tmp_path).values())
    name = "00_start_here.ipynb"
    notebook = json.loads((ROOT / "lessons" / name).read_text(encoding="utf-8"))
    exercises = [cell for cell in notebook["cells"] if cell["metadata"].get("tags") == ["exercise"]]
    exercises[0]["outputs"][0]["text"] = ["right: 3 inputs agree.\n"]
    exercises[1]["outputs"] = []
    (tmp_path / name).write_text(json.dumps(notebook))
    (tmp_path / "01_softmax_attention.ipynb").write_text("not a notebook")
    assert lessons.solved(tmp_path)["00"] == (1, 3)
    assert grader_00.check_mean_of_the_past(        # saved already: it does not count twice
        lambda v: np.cumsum(v, axis=0) / np.arange(1, len(v) + 1)[:, None])
    assert grader_00.check_window_mask(
        lambda T, W: np.tri(T, dtype=bool) & ~np.tri(T, k=-W, dtype=bool))
    assert lessons.solved(tmp_path)["00"] == (2, 3) and lessons.solved(tmp_path)["01"] == (0, 3)
    capsys.readouterr()
    lessons.progress(tmp_path)
    said = capsys.readouterr().out
    count = sum(count for _, count in lessons.solved().values())
    assert "2 of 3  00 Start here" in said and f"2 of {count} exercises" in said

    monkeypatch.setattr(command, "COPIES", tmp_path)
    assert cli.main(["lessons"]) == 0
    assert "00  Start here: what does attention do?  (2 of 3 exercises" in capsys.readouterr().out


def test_another_text_is_announced(tmp_path, monkeypatch, capsys):
    found = data.Corpus("tinyshakespeare", "First Citizen", "here")
    monkeypatch.setattr(data, "load_corpus", lambda name, **options: found)
    assert lessons.text() is found and capsys.readouterr().out == ""

    def without(name, *, say, **options):
        say("it could not be fetched.")
        return data.Corpus("builtin", "plays", "built in")

    monkeypatch.setattr(data, "load_corpus", without)
    assert lessons.text().name == "builtin"
    said = capsys.readouterr().out
    assert said.startswith("CAREFUL") and "could not be fetched" in said and said.count("\n") == 1
