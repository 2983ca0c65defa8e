"""Make the notebooks from their sources: python lessons/build.py [NN ...] [--check | --text]

A lesson's source is lessons/NN_name.py in jupytext's percent format; the notebook beside it has the
same cells, executed. A code cell tagged "exercise" ends in its check. The cell after it, tagged
"solution", is run here and must pass; in the notebook it is a folded text. A cell tagged "plot" is
folded too, and its figure is not. It may begin with the comment "# Picture: ...", which says in
words what is seen and becomes the figure's alternative text.

--check executes every source and fails if a cell raises or prints to stderr, a solution is not
right, the committed notebook was made from another source, or a limit of time (twice that for a new
notebook, as other machines are slower), length or size is broken. It also compares what the cells
print: the words must be those of the committed notebook, and every number must agree within 0.05 or
10 %, whichever allows more, because other processors round differently. Cells tagged "varies"
(times, texts that a model writes) are not compared. It writes nothing.

--text runs nothing: where only text has changed, the outputs of the notebook stay as they are. It
refuses a lesson whose code has changed.
"""
import argparse
import ast
import base64
import io
import itertools
import os
import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SECONDS, LINES, BYTES = 60, 600, 700_000
NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
# an absolute path, or a time
LEAKS = re.compile(r"(?<![\w./:])/[\w.-]+/[\w.-]|\b[A-Z]:\\|\b20\d\d-\d\d-\d\d[T ]\d\d:")
WIDGET = "application/vnd.jupyter.widget-view+json"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", metavar="NN", help="numbers of lessons (default all)")
    parser.add_argument("--check", action="store_true",
                        help="write nothing; fail if a notebook differs from its source")
    parser.add_argument("--text", action="store_true",
                        help="run nothing: keep the outputs of a notebook with the same code")
    args = parser.parse_args()
    sources = sorted(HERE.glob("[0-9][0-9]_*.py"))
    if args.lessons:
        sources = [source for source in sources if source.name[:2] in args.lessons]
    if not sources:
        parser.error(f"no lesson is called {' or '.join(args.lessons)}")
    failed = 0
    for source in sources:
        start, before = time.perf_counter(), processor_time()
        notebook, problems = unchanged(source) if args.text else execute(source)
        seconds = time.perf_counter() - start
        target = source.with_suffix(".ipynb")
        content = written(notebook)
        used = processor_time() - before       # other work on the machine slows the clock only
        problems += limits(source, content, min(seconds, used) if used else seconds,
                           2 * SECONDS if args.check else SECONDS)
        if args.check:
            problems += stale(target, notebook)
        elif not problems:
            aside = target.with_suffix(".tmp")
            aside.write_text(content, encoding="utf-8")
            aside.replace(target)
        exercises = sum("exercise" in tags(c) for c in notebook.cells)
        print(f"{source.stem:32s} {seconds:5.1f} s  {len(content) / 1e6:.2f} MB"
              f"  {exercises} exercises  {figures(notebook)} figures"
              f"  {'; '.join(problems) or 'ok'}", flush=True)
        failed += bool(problems)
    return 1 if failed else 0


def processor_time():
    """Seconds on a core of all child processes that have ended; 0 where the system has no count."""
    return os.times().children_user + os.times().children_system


def execute(source):
    """Run a source in a fresh kernel -> the notebook to publish, and what is wrong with it."""
    import jupytext
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    notebook = jupytext.read(source)
    path = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    arguments = ["--log-level=40", "--InlineBackend.figure_formats=['retina']"]
    options = {"kernel_name": "python3", "extra_arguments": arguments, "timeout": 600,
               "resources": {"metadata": {"path": str(HERE)}}}
    problems = []
    try:
        NotebookClient(notebook, **options).execute()
    except CellExecutionError as error:
        problems.append(str(error).strip().splitlines()[-1])
    previous = None
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                compress(output)
            if output.get("name") == "stderr":
                last = output.text.strip().splitlines()[-1]
                problems.append(f"a cell writes to stderr: {last[:100]}")
        if "solution" in tags(cell):
            said = "".join(o.get("text", "") for o in cell.outputs)
            if not said.startswith("right") or "not right" in said:
                problems.append(f"a solution is not accepted: {said.strip()[:100]}")
            if previous is None or "exercise" not in tags(previous):
                problems.append("a solution does not follow its exercise")
        previous = cell
    return published(notebook), problems


def unchanged(source):
    """The notebook with the text of its source and its own outputs, and a problem if it cannot."""
    import jupytext
    import nbformat
    notebook, target = jupytext.read(source), source.with_suffix(".ipynb")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"
             and "solution" not in tags(cell)]
    committed = nbformat.read(target, as_version=4) if target.exists() else notebook
    before = [cell for cell in committed.cells if cell.cell_type == "code"]
    if [cell.source for cell in cells] != [cell.source for cell in before]:
        return notebook, ["its code has changed: run it, without --text"]
    for cell, old in zip(cells, before):
        cell.outputs, cell.execution_count = old.outputs, old.execution_count
    return published(notebook), []


def tags(cell):
    return cell.metadata.get("tags", [])


def published(notebook):
    """Solutions folded, and nothing left that changes from run to run."""
    from nbformat.v4 import new_markdown_cell
    cells = []
    for n, cell in enumerate(notebook.cells):
        if "solution" in tags(cell):
            cell = new_markdown_cell("<details><summary>A solution</summary>\n\n"
                                     f"```python\n{cell.source}\n```\n\n</details>")
        cell.id = f"cell-{n}"
        cell.metadata = {"tags": tags(cell)} if tags(cell) else {}
        if "plot" in tags(cell):
            cell.metadata["jupyter"] = {"source_hidden": True}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"
                            and WIDGET not in o.get("data", {})]      # nothing runs behind a page
            for output in cell.outputs:
                size = output.pop("metadata", {}).get("image/png")
                if output.output_type != "stream":
                    output.metadata = described(output, cell.source)
                    output.metadata.update({"image/png": size} if size else {})
        cells.append(cell)
    notebook.cells = cells
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return notebook


def described(output, code):
    """The metadata of an output: for a figure, its alternative text.

    That is the comment at the beginning of the cell, if it starts with "Picture:"; otherwise the
    figure's titles and axes.
    """
    if "image/png" not in output.get("data", {}):
        return {}
    comment = itertools.takewhile(lambda line: line.startswith("#"), code.splitlines())
    text = " ".join(line.strip("# ") for line in comment)
    if not text.startswith("Picture: "):
        calls = [call for call in ast.walk(ast.parse(code)) if isinstance(call, ast.Call)]
        named = [(word.arg, word.value) for call in calls for word in call.keywords]
        named += [(call.func.attr.removeprefix("set_"), call.args[0]) for call in calls
                  if isinstance(call.func, ast.Attribute) and call.args]
        titles = {_words(value) for name, value in named if name in ("title", "suptitle")} - {""}
        axes = {_words(value) for name, value in named if name in ("xlabel", "ylabel")} - {""}
        text = (f"{'; '.join(sorted(titles)) or 'Figure'}. "
                f"Axes: {'; '.join(sorted(axes)) or 'none'}.")
    text = " ".join(text.removeprefix("Picture: ").replace("$", "").split())
    return {"alt": text[0].upper() + text[1:]}


def _words(value):
    """The text of a string in code, with dots for what an f-string puts in; else an empty one"""
    parts = value.values if isinstance(value, ast.JoinedStr) else [value]
    if not all(isinstance(one, ast.FormattedValue) or isinstance(getattr(one, "value", None), str)
               for one in parts):
        return ""
    return "".join(one.value if isinstance(one, ast.Constant) else "..." for one in parts)


def compress(output):
    """Show a figure of twice the pixels ("retina") at half its size, in at most 256 colours."""
    from PIL import Image
    image = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB")
    size = dict(zip(("width", "height"), (side // 2 for side in image.size)))
    small = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    output.data["image/png"] = base64.b64encode(small.getvalue()).decode()
    output.metadata = {"image/png": size}


def written(notebook):
    import nbformat
    return nbformat.writes(notebook, version=4) + "\n"


def figures(notebook):
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return sum("image/png" in o.get("data", {}) for o in outputs)


def limits(source, content, seconds, most=SECONDS):
    """What is too long, too large, too slow, or shows a path or a time of this machine."""
    import json
    problems = []
    lines = len(source.read_text(encoding="utf-8").splitlines())
    if lines > LINES:
        problems.append(f"{lines} lines, more than {LINES}")
    if len(content) > BYTES:
        problems.append(f"{len(content) / 1e6:.2f} MB, more than {BYTES / 1e6}")
    if seconds > most:
        problems.append(f"{seconds:.0f} s, more than {most}")
    for cell in json.loads(content)["cells"]:
        for output in cell.get("outputs", []):
            text = output.get("text") or json.dumps(output.get("data", {}).get("text/plain", ""))
            leak = LEAKS.search("".join(text))
            if leak:
                return [*problems, f"an output shows a path or a time: {leak.group()!r}"]
    return problems


def stale(target, notebook):
    """Was the committed notebook made from this source?"""
    import nbformat
    if not target.exists():
        return [f"{target.name} is missing: make lessons"]
    committed = nbformat.read(target, as_version=4)

    def cells(one):
        return [(cell.cell_type, cell.source) for cell in one.cells]

    if cells(committed) != cells(notebook) or figures(committed) != figures(notebook):
        return [f"{target.name} was not made from this source: make lessons"]
    return [f"cell {n} prints another result than in {target.name}: {why}"
            for n, (old, new) in enumerate(zip(committed.cells, notebook.cells))
            if "varies" not in tags(new) and (why := another_result(printed(old), printed(new)))]


def printed(cell):
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def another_result(old, new):
    """What differs between two printed texts by more than rounding may, or an empty string"""
    words, numbers = (NUMBER.sub("#", text).split() for text in (old, new)), []
    if len({tuple(one) for one in words}) > 1:
        return f"{new.strip()[:60]!r}"
    for one in (old, new):
        numbers.append([float(x.replace(",", "")) for x in NUMBER.findall(one)])
    for a, b in zip(*numbers):
        if abs(a - b) > max(0.05, 0.1 * max(abs(a), abs(b))):
            return f"{b:g} in place of {a:g}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
