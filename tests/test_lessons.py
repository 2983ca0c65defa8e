"""The lessons' machinery: how an exercise is judged, what a notebook becomes, and the command that lists them."""
import ast
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from minattn import cli, data, lessons, model, parallel
from minattn.errors import InputError
from minattn.lessons import command, lesson_00
from minattn.lessons.grading import grade

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
    (lambda x: x.mean(axis=1), "should be 3 at [0]; got 1 (2 of 2 entries differ). That is the mean"),
    (lambda x: x.sum(axis=1) * np.nan, "contains nan"),
    (lambda x: "six", "should be an array"),
    (lambda x: x.sum(axis=1) + 1e-6, "not right yet"),
])
def test_grade(candidate, said, capsys):
    hints = [(lambda x: x.mean(axis=1), "That is the mean.")]
    assert grade(candidate, rows, INPUTS, hints=hints) == said.startswith("right")
    assert said in capsys.readouterr().out


def test_grade_of_several_results(capsys):
    both = lambda a, b: (a + b, a > b)                                           # noqa: E731
    given = [{"a": np.ones(3), "b": np.zeros(3)}]
    assert grade(both, both, given, returns=("total", "larger"))
    assert not grade(lambda a, b: a + b, both, given, returns=("total", "larger"))
    assert "expected 2 results (total, larger)" in capsys.readouterr().out
    assert not grade(lambda a, b: (a + b, a < b), both, given, returns=("total", "larger"))
    assert "larger should be True" in capsys.readouterr().out


def test_a_fraction_is_not_a_whole_number(capsys):
    assert grade(lambda n: n // 2, lambda n: n // 2, [(5,)]) and grade(lambda n: float(n // 2), lambda n: n // 2, [(5,)])
    assert not grade(lambda n: n / 2, lambda n: n // 2, [(5,)])
    assert "should be 2; got 2.5" in capsys.readouterr().out


def test_a_student_cannot_change_the_inputs():
    def careless(x):
        x += 1
        return rows(x - 1)
    assert grade(careless, rows, INPUTS) and (INPUTS[1][0] == 1).all()


def test_lesson_00(capsys):
    assert lesson_00.check_mean_of_the_past(lambda v: np.tril(np.ones((len(v),) * 2)) @ v / np.arange(1, len(v) + 1)[:, None])
    for wrong in (lambda v: np.broadcast_to(v.mean(0), v.shape), lambda v: np.cumsum(v, 0), lambda v: v, lambda v: np.cumsum(v, 1)):
        assert not lesson_00.check_mean_of_the_past(wrong)
    assert lesson_00.check_window_mask(lambda T, W: [[0 <= i - j < W for j in range(T)] for i in range(T)])
    for wrong in (lambda T, W: np.tri(T, dtype=bool), lambda T, W: [[0 <= i - j <= W for j in range(T)] for i in range(T)],
                  lambda T, W: [[0 <= j - i < W for j in range(T)] for i in range(T)],
                  lambda T, W: [[abs(i - j) < W for j in range(T)] for i in range(T)]):
        assert not lesson_00.check_window_mask(wrong)

    def changes_the_future(f, q, k, v):
        for n in range(1, len(v)):
            later = (np.arange(len(v)) >= n)[:, None]
            if not np.allclose(f(q, k, v)[:n], f(q, k * (1 + later), v - later)[:n]):
                return False
        return True
    assert lesson_00.check_is_causal(changes_the_future)

    def values_only(f, q, k, v):
        v2 = v.copy()
        v2[-1] += 1
        return np.allclose(f(q, k, v)[:-1], f(q, k, v2)[:-1])
    for wrong in (lambda *a: True, lambda *a: False, values_only):
        assert not lesson_00.check_is_causal(wrong)
    capsys.readouterr()


def test_a_short_training():
    text = data.load_corpus("builtin").text[:3000]
    vocabulary = data.Vocabulary(text)
    ids = vocabulary.encode(text)
    config = model.Config(vocab_size=len(vocabulary), block_size=13, n_layer=1, n_head=2, n_embd=16, attention="affine")
    x, y = data.blocks(ids, 13)

    def trained(threads=1, steps=30, **options):
        seen = []
        with parallel.workers(threads) as pool:
            params, buffers = lessons.train(pool, config, ids, steps=steps, batch=7, lr=1e-2, each=seen.append, **options)
            losses = [parallel.mean_loss(pool, params, buffers, x, target, config) for target in (y, x)]
        return params, losses, seen

    params, (of_next, of_same), seen = trained()
    assert of_next < np.log(len(vocabulary)) - 0.5
    again, losses, also_seen = trained(threads=2)
    assert losses == [of_next, of_same] and all((again[name] == params[name]).all() for name in params)
    assert len(seen) == 30 and np.array_equal(*([list(b.values()) for b in s] for s in (seen, also_seen)))
    assert np.all(np.diff([list(b.values()) for b in seen], axis=0) > 0)                    # alpha_ma rises from 0 towards 1/2
    assert trained(seed=1)[1] != losses
    assert trained(targets=lambda x, y: x)[1][1] < of_same - 0.5
    own, _ = model.init(config, 5)
    kept = {name: a.copy() for name, a in own.items()}
    start = trained(steps=0, params=own)[0]
    moved = trained(params=own)[0]
    assert all((own[name] == kept[name]).all() and (start[name] == kept[name]).all() for name in own)
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
    notebook = build().published(v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python", "version": "3.11.7"}}))
    assert [c.cell_type for c in notebook.cells] == ["code", "markdown"]
    assert "<details>" in notebook.cells[1].source and "f = 2" in notebook.cells[1].source
    assert notebook.cells[0].metadata == {"tags": ["exercise"]} and "3.11" not in str(notebook)
    assert [c.id for c in notebook.cells] == ["cell-0", "cell-1"]


def test_limits(tmp_path):
    source = tmp_path / "00_x.py"
    source.write_text("# %%\n" * 401)
    content = json.dumps({"cells": [{"outputs": [{"text": ["saved to /home/me/x\n"]}]}]})
    problems = build().limits(source, content, 91)
    assert len(problems) == 3 and "401 lines" in problems[0] and "91 s" in problems[1] and "path" in problems[2]
    source.write_text("# %%\n")
    assert build().limits(source, json.dumps({"cells": [{"outputs": [{"text": "3 / 4 of it"}]}]}), 1) == []


def test_every_source_has_its_notebook_and_its_number():
    sources = sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py"))
    assert [p.name[:2] for p in sources] == [f"{n:02d}" for n in range(11)]
    for source in sources:
        first = source.read_text(encoding="utf-8").splitlines()[:2]
        assert first[0] == "# %% [markdown]" and first[1].startswith(f"# # {source.name[:2]} · ")
        assert source.with_suffix(".ipynb").exists()


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
                assert not (open_names - defined) & used, f"{source.name}: {(open_names - defined) & used}"
        assert len(open_names) >= 3, source.name


def test_the_command(capsys, tmp_path):
    assert cli.main(["lessons"]) == 0
    said = capsys.readouterr().out
    assert "00  Start here" in said and "00_start_here.ipynb" in said and "--open" in said
    assert cli.main(["lessons", "--open", "77"]) == 2
    with pytest.raises(InputError, match="clone the repository"):
        command.notebooks(tmp_path)
