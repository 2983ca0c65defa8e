"""What the tests of the trainer and of the command line share: a tiny run, and how to start, kill
and compare it.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import minattn
from minattn import builtin_corpus, cli, runs

TINY = dict(
    n_layer=1,
    n_head=2,
    n_embd=16,
    block_size=8,
    batch_size=5,
    steps=30,
    warmup=3,
    lr=1e-2,
    eval_interval=10,
    eval_blocks=3,
    checkpoint_interval=7,
)
CASES = {
    "softmax": {},
    "affine": dict(attention="affine+gated", chunks=3, dropout=0.1),  # has buffers
    "dropout": dict(attention="energy", dropout=0.2, position="rope", bias=True),
}


def write_corpus(folder):
    path = Path(folder) / "corpus.txt"
    path.write_text(builtin_corpus.text(3000), encoding="utf-8")
    return path


def flags(**fields):
    """n_layer=1, bias=False -> ["--n-layer", "1", "--no-bias"]"""
    words = []
    for name, value in fields.items():
        flag = name.replace("_", "-")
        words += (
            [f"--{flag}" if value else f"--no-{flag}"]
            if isinstance(value, bool)
            else [f"--{flag}", str(value)]
        )
    return words


def train(out, corpus, **fields):
    """In this process -> exit code"""
    return cli.main(
        ["train", *flags(**TINY | dict(corpus=corpus, out=out, preset="nano") | fields)]
    )


def command(*words, code=None):
    """A command line for a process of its own: python -m minattn WORDS, or python -c CODE WORDS"""
    return [sys.executable, *(["-c", code] if code else ["-m", "minattn"]), *map(str, words)]


def process(*words, code=None, **options):
    """Run it to its end -> subprocess.CompletedProcess"""
    return subprocess.run(
        command(*words, code=code),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=100,
        **options,
    )


def environment():
    """The variables of this process, with this minattn first on the path."""
    places = [str(Path(minattn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


def outcome(folder):
    """What must not depend on kills and threads: every array, the step, the metrics but for times,
    the sample.
    """
    run = runs.load(folder)
    arrays = {
        f"{part}/{name}": (a.dtype.str, a.shape, a.tobytes())
        for part in ("params", "buffers", "m", "v")
        for name, a in getattr(run.checkpoint, part).items()
    }
    rows = [
        {k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")}
        for row in runs.read_metrics(folder)
    ]
    return (
        arrays,
        run.checkpoint.step,
        rows,
        (Path(folder) / runs.SAMPLE).read_text(encoding="utf-8"),
    )


def contents(folder):
    """Every file below a folder, with its bytes: nothing may change where input was refused."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(Path(folder).rglob("*"))
    }


def copy(folder, to):
    return Path(shutil.copytree(folder, to))


def processes(mark):
    """The processes that have this in their environment: started by us, by whatever way."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and mark in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            pass                                             # it has just ended, or is another's
    return found


def gone(mark, seconds=15):
    """Do all of them end in time? They are ended if not."""
    until = time.perf_counter() + seconds
    while processes(mark) and time.perf_counter() < until:
        time.sleep(0.1)
    left = processes(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return not left
