"""What the notebooks import: a text, a short training, and graders that judge an exercise.

A lesson is two files of the folder lessons/ and a notebook made from the first: NN_name.py and
grader_NN.py, which notebooks import as minattn.lessons.grader_NN. grading.py is how graders judge.
"""
import json
import os
import re
from pathlib import Path

from minattn.errors import InputError
from minattn.lessons import grading

# The folder lies at the top of a clone; an installed package carries a copy of it inside.
_installed = Path(__file__).with_name("notebooks")
FOLDER = _installed if _installed.is_dir() else Path(__file__).parents[2] / "lessons"
__path__.append(str(FOLDER))


def text():
    """TinyShakespeare, fetched once; without it, the built-in plays and a line that says so.

    -> data.Corpus. It is kept in data/ of a clone, else in MINATTN_DATA, else in ./data.
    """
    from minattn import data
    folder = FOLDER.parent / "data"
    if FOLDER == _installed:
        folder = os.environ.get("MINATTN_DATA") or "data"
    said = []
    corpus = data.load_corpus("tinyshakespeare", data_dir=folder, say=said.append)
    if corpus.name != "tinyshakespeare":
        said.insert(0, "CAREFUL: this is another text than the lesson's, so numbers, samples and "
                       "even conclusions below differ from what is written.")
    if said:
        print(*said)
    return corpus


def sources(folder=FOLDER):
    """{number: (title, source)} of every lesson in a folder; InputError if there is none."""
    found = {}
    for source in sorted(folder.glob("[0-9][0-9]_*.py")):
        heading = source.read_text(encoding="utf-8").splitlines()[1]         # # # 00 · Start here
        found[source.name[:2]] = heading.partition(" · ")[2], source
    if not found:
        raise InputError(f"there are no lessons in {folder}; install minattn again, or clone it.")
    return found


def solved(folder="."):
    """{number: (exercises solved, exercises)}: right in the notebooks saved in folder, or just now
    in this notebook.
    """
    counts = {}
    for number, (_, source) in sources().items():
        names = re.findall(r"grader_\d\d\.(check_\w+)\(", source.read_text(encoding="utf-8"))
        right = grading.SOLVED | _saved(Path(folder) / source.with_suffix(".ipynb").name)
        counts[number] = sum((number, name) in right for name in set(names)), len(set(names))
    return counts


def _saved(notebook):
    """{(number, check)} of the exercises whose saved output begins with "right" """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        said = [("".join(cell["source"]), "".join(cell["outputs"][0]["text"]))
                for cell in cells if "exercise" in cell["metadata"].get("tags", ())
                and cell["outputs"]]
    except (OSError, ValueError, LookupError, TypeError):        # no copy, or another program's
        return set()
    calls = [re.search(r"grader_(\d\d)\.(check_\w+)\(", code)
             for code, output in said if output.startswith("right")]
    return {call.groups() for call in calls if call}


def progress(folder="."):
    """Print how many exercises of each lesson are solved; saved notebooks of the folder count."""
    counts = solved(folder)
    for number, (title, _) in sources().items():
        print(f"{counts[number][0]} of {counts[number][1]}  {number} {title}")
    done, count = (sum(column) for column in zip(*counts.values()))
    print(f"{done} of {count} exercises are solved; save a notebook to count its latest ones.")


def slider(draw, name, values, start):
    """Show the figure draw(start), and below it a slider: another of the values draws it anew.

    Without ipywidgets, and on a page that nothing runs behind, the first figure stays.
    """
    from IPython.display import display
    from matplotlib import pyplot

    def figure(value):
        fig = draw(value)
        pyplot.close(fig)                                # the cell's end would show it once more
        return fig

    shown = display(figure(start), display_id=True)
    try:
        from ipywidgets import SelectionSlider
    except ImportError:
        return
    one = SelectionSlider(options=[(f"{value:g}", value) for value in values], value=start,
                          description=name, style={"description_width": "initial"})
    one.observe(lambda change: shown.update(figure(change["new"])), "value")
    display(one)


def train(pool, config, ids, *, steps, batch, lr, seed=0, params=None, targets=None, each=None):
    """Train a small character model on ids (N,) with the trainer's own step -> params, buffers.

    AdamW without decay; the learning rate rises over 30 steps to `lr` and falls along a cosine to
    lr / 10; gradients with a norm above 1 are scaled back to 1. `batch` windows of
    config.block_size a step, in two chunks: the result does not depend on the number of threads.

    pool             from parallel.workers
    seed             of the fresh parameters and of the windows
    params           start from these instead; they are not changed
    targets(x, y)    what to predict from x in place of the next characters y, all (batch, T)
    each(buffers)    called after every step
    """
    from minattn import data, model, parallel
    from minattn.train import Settings
    settings = Settings(steps=max(1, steps), batch_size=batch, lr=lr, min_lr=lr / 10, warmup=30,
                        beta2=0.999, weight_decay=0.0, seed=seed)
    fresh, buffers = model.init(config, seed)
    state = parallel.start(params or fresh, buffers)
    for step in range(steps):
        x, y = data.batch(ids, batch, config.block_size, seed, step)
        y = targets(x, y) if targets else y
        parallel.train_step(pool, state, x, y, config, settings)
        if each:
            each(state.buffers)
    return state.params, state.buffers
