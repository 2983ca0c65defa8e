"""Chunks in forked processes: the bits of threads, whatever becomes of the processes.

Each test is a program by itself: a process of tests may have threads of its own, and so not fork.
"""
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")

# affine has buffers, dropout draws numbers, and seven sequences in three chunks are not equal parts
BEGIN = """
import os, signal, sys, threading, time
import numpy as np
from minattn import chunks, model, parallel, train
from minattn.errors import InputError, NotFinite

SHAPE = dict(vocab_size=11, block_size=12, n_layer=2, n_head=2, n_embd=8, dropout=0.2)
config = model.Config(**SHAPE, attention="affine", attention_options={"use": "before"})
settings = train.Settings(batch_size=7, chunks=3, optimizer="muon")
rng = np.random.default_rng(0)
x, y = rng.integers(0, 11, (2, 7, 12))

def steps(threads, pool, between=lambda state, n: None, n=4, shared=True):
    state = parallel.start(*model.init(config, 0), matrices=model.matrices(config))
    if shared:
        parallel.share(state, config, settings, threads)
    losses = []
    for i in range(n):
        between(state, i)
        losses.append(parallel.train_step(pool, state, x, y, config, settings)[0])
    return state, losses

def same(one, other):
    return (one[1] == other[1] and np.array_equal(one[0].p, other[0].p)
            and np.array_equal(one[0].m, other[0].m)
            and all(np.array_equal(a, other[0].buffers[name])
                    for name, a in one[0].buffers.items()))

def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
"""


def program(text, **options):
    return subprocess.Popen([sys.executable, "-c", BEGIN + text], stdout=subprocess.PIPE, text=True,
                            **options)


def run(text):
    process = program(text)
    assert process.communicate(timeout=60)[0] == "done\n" and process.returncode == 0


def test_processes_give_the_bits_of_threads():
    run("""
teams = []
for n in (1, 2, 3, 9):
    with parallel.workers(1) as pool:            # its thread ends with the block
        teams.append(steps(n, pool))
assert [len(s.team.helpers) if s.team else 0 for s, _ in teams] == [0, 1, 2, 2]
with parallel.workers(2) as pool:
    threads = steps(2, pool, shared=False)
assert threads[0].team is None and all(same(threads, team) for team in teams)
print("done")
""")


def test_a_killed_process_changes_nothing():
    run("""
def kill(state, i):
    if i == 1:
        os.kill(state.team.helpers[0].pid, signal.SIGKILL)
    if i > 1:
        assert len(state.team.helpers) == 1

with parallel.workers(1) as pool:
    assert same(steps(3, pool, kill), steps(1, pool))
print("done")
""")


def test_an_error_in_a_chunk_is_the_callers():
    """The helper's chunk has the token that is too large; the next batch is computed as ever."""
    run("""
with parallel.workers(1) as pool:
    state, _ = steps(3, pool, n=1)
    pids = [helper.pid for helper in state.team.helpers]
    good = x[6, 3]
    x[6, 3] = 11
    try:
        parallel.train_step(pool, state, x, y, config, settings)
        raise SystemExit("no error")
    except InputError as error:
        assert str(error).startswith("tokens"), error
    x[6, 3] = good
    assert not any(map(lives, pids))
    alone = steps(1, pool, n=1)
    for s in (state, alone[0]):
        parallel.train_step(pool, s, x, y, config, settings)
    assert same((state, 0), (alone[0], 0))
print("done")
""")


def test_a_process_killed_at_work_changes_nothing():
    run("""
original = chunks.gradients

def dies(chunk, params, config):
    if os.getpid() != parent and chunk.seed[1] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(chunk, params, config)

parent, chunks.gradients = os.getpid(), dies
with parallel.workers(1) as pool:
    state, losses = steps(3, pool)
    assert state.team.helpers == [] and same((state, losses), steps(1, pool))
print("done")
""")


def test_without_a_process_threads_do_it():
    run("""
def none():
    raise BlockingIOError(11, "Resource temporarily unavailable")

fork, os.fork = os.fork, none
with parallel.workers(2) as pool:
    alone = steps(3, pool)
assert alone[0].team is None
os.fork = fork
with parallel.workers(2) as pool:
    assert same(alone, steps(3, pool))
print("done")
""")


def test_a_gradient_that_is_not_finite():
    run("""
with parallel.workers(1) as pool:
    state, _ = steps(3, pool, n=1)
    state.params["h.0.mlp.c_fc.weight"][:] = 1e30
    try:
        parallel.train_step(pool, state, x, y, config, settings)
        raise SystemExit("no error")
    except NotFinite as error:
        assert error.name.startswith("the gradient of h.0.")
    assert len(state.team.helpers) == 2
print("done")
""")


def test_children_that_nobody_waits_for():
    run("""
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with parallel.workers(1) as pool:
    state, _ = steps(3, pool)
    os.kill(state.team.helpers[0].pid, signal.SIGKILL)
    state.team.close()
print("done")
""")


def test_a_process_with_other_threads_does_not_fork():
    run("""
with parallel.workers(2) as pool:
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    state, _ = steps(3, pool)
    assert state.team is None
    stop.set()
print("done")
""")


def test_a_process_with_jax_does_not_fork():
    """A stub in its place: it is enough that the name is there."""
    run("""
sys.modules["jax"] = None
with parallel.workers(2) as pool:
    state, _ = steps(3, pool)
    assert state.team is None
print("done")
""")


def test_close_ends_the_processes():
    run("""
with parallel.workers(1) as pool:
    state, _ = steps(3, pool)
pids = [helper.pid for helper in state.team.helpers]
assert len(pids) == 2 and all(map(lives, pids))
state.team.close()
state.team.close()
assert not any(map(lives, pids))
print("done")
""")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_is_the_parents(number):
    """As Ctrl-C sends it: the helpers work on, since the parent wants to finish its step."""
    run(f"""
os.setpgid(0, 0)
with parallel.workers(1) as pool:
    state, _ = steps(3, pool, n=1)               # the helpers have begun
signal.signal({int(number)}, lambda *_: None)
os.killpg(0, {int(number)})
for helper in state.team.helpers:
    helper.ask([])
    assert helper.answer() == []
print("done")
""")


def test_helpers_end_with_a_parent_that_is_killed():
    process = program("""
with parallel.workers(1) as pool:
    state, _ = steps(3, pool)
    print(*(helper.pid for helper in state.team.helpers), flush=True)
    time.sleep(60)
""")
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(pids) == 2
    until = time.monotonic() + 20
    while any(map(works, pids)):
        assert time.monotonic() < until
        time.sleep(0.05)


def works(pid):
    """A process that has ended, and that nobody has waited for, has no command line left."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
