"""python -m minattn lessons: list the lessons, or open Jupyter on a copy of one."""
import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from minattn import files
from minattn.errors import InputError
from minattn.lessons import FOLDER

COPIES = Path("minattn-lessons")


def add_arguments(parser):
    parser.add_argument("--open", metavar="NN", nargs=argparse.REMAINDER, default=None,
                        help=f"open Jupyter on a copy of lesson NN (default 00) in ./{COPIES}; "
                             "arguments after NN are passed to Jupyter, e.g. --no-browser")


def lessons(folder=FOLDER):
    """{number: (title, notebook)} of every lesson in a folder; InputError if there is none."""
    found = {}
    for source in sorted(folder.glob("[0-9][0-9]_*.py")):
        heading = source.read_text(encoding="utf-8").splitlines()[1]         # # # 00 · Start here
        found[source.name[:2]] = heading.partition(" · ")[2], source.with_suffix(".ipynb")
    if not found:
        raise InputError(f"there are no lessons in {folder}; install minattn again, or clone it.")
    return found


def run(args):
    if args.open is not None:
        return open_copy(*args.open)
    for number, (title, notebook) in lessons().items():
        print(f"{number}  {title}\n    {os.path.relpath(notebook)}")
    print("\nTo work on one: minattn lessons --open 01")
    return 0


def open_copy(number="00", *options):
    """Open Jupyter on the user's copy of a lesson; a copy that exists is never overwritten."""
    if number.startswith("-"):
        number, options = "00", (number, *options)
    found = lessons()
    if number.zfill(2) not in found:
        raise InputError(f"there is no lesson {number}; there are {min(found)} to {max(found)}.")
    jupyter = importlib.util.find_spec("jupyterlab") or importlib.util.find_spec("notebook")
    if jupyter is None:
        raise InputError("Jupyter is not installed; run: python -m pip install jupyterlab")
    COPIES.mkdir(exist_ok=True)
    for source in [FOLDER / "README.md", *(notebook for _, notebook in found.values())]:
        if not os.path.lexists(COPIES / source.name):        # all of them: they link to each other
            files.write(COPIES / source.name, source.read_bytes())
    copy = COPIES / found[number.zfill(2)][1].name
    print(f"your copy: {copy} (kept as you leave it; delete it to start afresh)", flush=True)
    if getattr(os, "geteuid", lambda: 1)() == 0 and "--allow-root" not in options:
        options = ("--allow-root", *options)
    environment = {"MINATTN_DATA": os.path.abspath("data"), **os.environ}
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    command = [sys.executable, "-m", jupyter.name, str(copy), *options]
    return subprocess.run(command, env=environment).returncode
