"""python -m minattn lessons: list the lessons, or open Jupyter on a copy of one."""
import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from minattn import files
from minattn.browser import has_display
from minattn.errors import InputError
from minattn.lessons import FOLDER, solved, sources

COPIES = Path("minattn-lessons")
LOG = "jupyter.log"          # in COPIES: what Jupyter says, which is a lot


def add_arguments(parser):
    parser.add_argument("--open", metavar="NN", nargs=argparse.REMAINDER, default=None,
                        help=f"open Jupyter on a copy of lesson NN (default 00) in ./{COPIES}; "
                             "arguments after NN are passed to Jupyter, e.g. --no-browser")


def run(args):
    if args.open is not None:
        return open_copy(*args.open)
    mine = solved(COPIES)
    for number, (title, source) in sources().items():
        done, count = mine[number]
        marks = f"  ({done} of {count} exercises solved)" if done else ""
        print(f"{number}  {title}{marks}\n    {os.path.relpath(source.with_suffix('.ipynb'))}")
    print("\nTo work on one: minattn lessons --open 01")
    return 0


def open_copy(number="00", *options):
    """Open Jupyter on the user's copy of a lesson; a copy that exists is never overwritten."""
    if number.startswith("-"):
        number, options = "00", (number, *options)
    found = sources()
    if number.zfill(2) not in found:
        raise InputError(f"there is no lesson {number}; there are {min(found)} to {max(found)}.")
    if importlib.util.find_spec("jupyterlab") is None:
        raise InputError("Jupyter is not installed; run: python -m pip install jupyterlab")
    copy_lessons([source.with_suffix(".ipynb") for _, source in found.values()])
    copy = COPIES / found[number.zfill(2)][1].with_suffix(".ipynb").name
    if not copy.is_file():
        raise InputError(f"{copy} is not a file; move it away, and this command copies the lesson.")
    environment = {"MINATTN_DATA": os.path.abspath("data"), **os.environ}
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    command = [sys.executable, "-m", "jupyterlab", str(copy), *defaults(options), *options]
    return run_jupyter(command, environment, copy)


def copy_lessons(notebooks):
    """All of them, because they link to each other."""
    try:
        COPIES.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {COPIES} in {Path.cwd()}: {error.strerror}; "
                         "move away what stands in its place, or start from another folder."
                         ) from None
    for source in [*FOLDER.glob("*.md"), *notebooks]:
        if not os.path.lexists(COPIES / source.name):
            files.write(COPIES / source.name, source.read_bytes())


def defaults(options):
    """What Jupyter needs here, for root and without a display, unless the user has said it."""
    needed = ["--ServerApp.answer_yes=True"]               # Ctrl-C ends it without a question
    if getattr(os, "geteuid", lambda: 1)() == 0:
        needed.append("--allow-root")
    if not has_display():
        needed.append("--no-browser")
    return [one for one in needed if one not in options]


def run_jupyter(command, environment, copy):
    """Run Jupyter until it ends, with one line on the terminal: the address -> its exit code"""
    others = {server["pid"] for server in servers()}
    files.write(COPIES / LOG, "")
    with open(COPIES / LOG, "r+b") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    with signals_of(process):
        address = None
        while process.poll() is None:
            if address is None:
                address = address_of(copy, others)
                if address:
                    print(f"{address}  (your copy: {copy}; Ctrl-C ends Jupyter)", flush=True)
            time.sleep(0.2)
    if process.returncode and address is None:
        print(*last_words(), sep="\n", file=sys.stderr)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def servers():
    """The Jupyter servers of this user, as dictionaries"""
    try:
        from jupyter_server.serverapp import list_running_servers
    except ImportError:
        return []
    return list(list_running_servers())


def address_of(copy, others):
    """Where the server that has started on our folder shows a notebook, or None"""
    for server in servers():
        if server["pid"] not in others and Path(server["root_dir"]) == COPIES.resolve():
            token = f"?token={server['token']}" if server["token"] else ""
            return f"{server['url']}lab/tree/{quote(copy.name)}{token}"
    return None


def last_words():
    """The end of Jupyter's log, for an exit that its address did not precede"""
    return (COPIES / LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-5:]


@contextmanager
def signals_of(process):
    """Ctrl-C reaches Jupyter from the terminal; a request to end is passed on to it."""
    previous = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
                signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate())}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
