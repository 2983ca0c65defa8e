"""The same plan on a Dask cluster: a scheduler and two workers, each a process, on the loopback
interface."""

import socket
import subprocess
import sys
import time

import pytest
from run_cases import TINY, command, environment, flags, process, write_corpus

from minattn import cli, runs
from minattn.studies import tables

WORDS = ["compare", "--attention", "softmax,energy", "--seeds", "0-1", "--prefix-positions", "60"]


def test_without_dask(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.chdir(tmp_path)
    assert cli.main([*WORDS, "--scheduler", "tcp://127.0.0.1:1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "pip install 'minattn[dask]'" in said


@pytest.mark.slow
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense"])
def test_no_scheduler_there(address, tmp_path):
    pytest.importorskip("distributed")
    done = process(*WORDS, "--scheduler", address, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"no Dask scheduler answers at {address}" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cluster(tmp_path):
    """-> (address, the two workers), all ended afterwards"""
    pytest.importorskip("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    started, logs = [], []

    def start(*words):
        logs.append(open(tmp_path / f"log-{len(logs)}", "w"))
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "dask", *words],
                stdout=logs[-1],
                stderr=subprocess.STDOUT,
                env=environment(),
                cwd=tmp_path,
            )
        )
        return started[-1]

    start("scheduler", "--host", "127.0.0.1", "--port", address.rsplit(":", 1)[1], "--no-dashboard")
    try:
        yield (
            address,
            [
                start(
                    "worker",
                    address,
                    "--nthreads",
                    "1",
                    "--no-nanny",
                    "--no-dashboard",
                    "--name",
                    f"w{n}",
                )
                for n in range(2)
            ],
        )
    finally:
        for one in reversed(started):
            one.kill()
            one.wait()
        for log in logs:
            log.close()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_a_worker_is_killed_in_the_middle(engine, cluster, tmp_path):
    """Every run still finishes, each counts once, and all is as it would have been in one
    process."""
    address, workers = cluster
    if engine == "torch":
        pytest.importorskip("torch")
    settings = flags(**TINY | dict(steps=400, corpus=write_corpus(tmp_path), engine=engine))
    out = tmp_path / "out"
    study = subprocess.Popen(
        command(*WORDS, *settings, "--scheduler", address, "--out", out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    until = time.monotonic() + 90
    while len(list(out.glob("*/*/" + runs.CHECKPOINT))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    begun = [path for path in out.glob("*/*") if (path / runs.CHECKPOINT).exists()]
    workers[0].kill()
    said = study.communicate(timeout=90)
    assert study.returncode == 0, said
    assert len(begun) == 2 and "100%" in said[1]
    assert cli.main([*WORDS, *settings, "--out", str(tmp_path / "here"), "--workers", "1",
                     "--threads", "1"]) == 0
    there, here = (tables.read_csv(folder / tables.RESULTS) for folder in (out, tmp_path / "here"))
    assert len(there) == 4
    assert [{**row, "seconds": 0} for row in there] == [{**row, "seconds": 0} for row in here]
    for row in there:
        assert [m["step"] for m in runs.read_metrics(out / row["folder"])] == list(range(1, 401))
