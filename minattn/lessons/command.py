"""python -m minattn lessons: what there is to read, and how to open it."""
from pathlib import Path

from minattn.errors import InputError


def add_arguments(parser):
    parser.add_argument("--open", metavar="NN", nargs="?", const="00", help="open Jupyter on one lesson (default 00)")


def notebooks(folder=None):
    """(number, title, path) of every lesson beside this package; InputError where there are none."""
    import json
    folder = Path(folder or Path(__file__).parents[2] / "lessons")
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise InputError("the lessons are not installed with the package: clone the repository and run this from there.")
    first = [json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"] for path in paths]
    return [(path.name[:2], "".join(cell).splitlines()[0].lstrip("# "), path) for path, cell in zip(paths, first)]


def run(args):
    import importlib.util
    import os
    import subprocess
    import sys
    lessons = notebooks()
    jupyter = importlib.util.find_spec("jupyterlab") or importlib.util.find_spec("notebook")
    if args.open is not None:
        path = {number: path for number, _, path in lessons}.get(args.open.zfill(2))
        if path is None:
            raise InputError(f"there is no lesson {args.open}; there are {lessons[0][0]} to {lessons[-1][0]}.")
        if jupyter is None:
            raise InputError(f"Jupyter is not installed: python -m pip install jupyter, or read {os.path.relpath(path)} on a code host.")
        return subprocess.run([sys.executable, "-m", jupyter.name, str(path)]).returncode
    for number, title, path in lessons:
        print(f"{number}  {title.removeprefix(number).lstrip(' .:·-')}\n    {os.path.relpath(path)}")
    print("\nopen one: python -m minattn lessons --open 01" if jupyter else
          "\nto run them: python -m pip install jupyter, then python -m minattn lessons --open 01 (they can be read on a code host too)")
    return 0
