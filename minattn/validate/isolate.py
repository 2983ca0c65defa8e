"""Somebody's function in a process of its own: one that crashes, hangs or forks ends only itself.

The commands check and causality run every imported function this way. A child answers question by
question, one line of JSON each; when it dies or falls silent, the question at hand has a finding,
and a new child goes on with the next one. Two children may take turns. Each leads a process group,
and a guard beside it ends the whole group as soon as this process has gone or has let go of its
pipe: nothing is left behind. (What moves to a session of its own, as a daemon does, is out of
reach.)
"""
import contextlib
import importlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import cycle

import numpy as np

from minattn.errors import InputError
from minattn.files import one_line
from minattn.validate.frameworks import Finding
from minattn.validate.report import FAILED, Report, Result, Tensor

GRACE = 15.0            # seconds past the time limit before a silent child is ended
LINE = 1 << 20          # bytes of one answer
SHOWN = 1 << 16         # bytes of what the function prints; the rest is dropped
# The guard is a grandchild, which os.wait() in somebody's code does not find.
START = """
import os, signal, sys
question = sys.stdin.buffer.readline()
if hasattr(os, "fork"):
    if os.fork() == 0:
        if os.fork() == 0:
            os.close(1)
            os.close(2)
            os.read(0, 1)
            os.killpg(0, signal.SIGKILL)
        os._exit(0)
    os.wait()
from minattn.validate import isolate
isolate.main(question)
"""


def load(spec):
    """"module:function", "module:object.attribute", "file.py:function", "module" -> what it names.

    InputError, in one sentence, for whatever goes wrong on the way.
    """
    place, _, attribute = spec.rpartition(":") if ":" in spec else (spec, "", "")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with np.errstate():                                  # put back what the module sets
            found = _module(place)
        for name in attribute.split(".") if attribute else ():
            if not hasattr(found, name):
                raise InputError(f"{place} has nothing called {name!r}.")
            found = getattr(found, name)
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever somebody's module does when it is imported
        kind = type(error).__name__
        raise InputError(f"cannot import {place}: {kind}: {one_line(error)}") from None
    return found


def _module(place):
    if not place.endswith(".py"):
        return importlib.import_module(place)
    if not os.path.isfile(place):
        raise InputError(f"there is no file {place}.")
    name = os.path.splitext(os.path.basename(place))[0]
    about = importlib.util.spec_from_file_location(name, place)
    found = importlib.util.module_from_spec(about)
    sys.modules[name] = found
    about.loader.exec_module(found)
    return found


def check(question, *, progress=False):
    """question: check's arguments by name, "target" and "backward" as text for `load` -> Report

    Ctrl-C ends it early, with the results so far.
    """
    from minattn.validate.check import until_too_many_hang
    start = time.perf_counter()
    _cases({**question, "cases": None})                      # refused before a child starts?
    shrunk = []                                              # of both processes, as in Setup

    def result(case, answer):
        if isinstance(answer, Finding):
            return Result(case.id, case.family, FAILED, (answer,))
        return _as_one_process(case, *answer, shrunk)
    count, results = _side_by_side(question), []
    children = [_answers("check", question, _result, n, count) for n in range(count)]
    with contextlib.ExitStack() as stack:
        for child in children:
            stack.enter_context(contextlib.closing(child))
            next(child)
        (name, gradients, without, unasked), *_ = [next(child) for child in children]
        chosen = _cases(question, without)
        answers = map(next, cycle(children))
        with contextlib.suppress(KeyboardInterrupt):
            for found in until_too_many_hang(map(result, chosen, answers), chosen, progress):
                results.append(found)
    about = [question[n] for n in ("framework", "dtype", "device", "seed")]
    seconds = time.perf_counter() - start
    return Report(question["mechanism"], name, *about, results, gradients, seconds, unasked,
                  question.get("repeat", 1), len(chosen))


def planned(question):
    """The cases that `check` would run. No target: for a function that takes what cases without
    combinations ask for."""
    from minattn.validate.check import prepare
    if question["target"] is None:
        without = prepare(question["mechanism"], lambda *arrays: arrays,
                          exclude=question["exclude"], sizes=question["sizes"]).without
    else:
        with contextlib.closing(_answers("check", question, _result)) as child:
            next(child)
            without = next(child)[2]
    return _cases(question, without)


def causality(**question):
    """question: causality's arguments by name, "target" as text for `load` -> Certificate"""
    from minattn.validate.causality import certificate
    _, about, *found = _answers("causality", question, tuple)
    return certificate(*about, [("fail", [answer.message]) if isinstance(answer, Finding)
                                else answer for answer in found])


def _cases(question, without=()):
    from minattn.validate.check import select
    chosen = {name: question[name] for name in ("quick", "thorough", "seed", "sizes")}
    return select(question["mechanism"], question["cases"], without=without, **chosen)


def _result(result, row):
    """A Result again, and the row of the smallest case that fails like it or None, from JSON"""
    result = Result(*result)
    tensors = (Tensor(*t)._replace(index=tuple(t[4])) for t in result.tensors)
    row = row and {name: tuple(x) if isinstance(x, list) else x for name, x in row.items()}
    return result._replace(findings=tuple(Finding(*f) for f in result.findings),
                           tensors=tuple(tensors)), row


def _as_one_process(case, result, row, shrunk):
    """A failing combination counts as a smaller one that either process found before."""
    from minattn.validate.check import known_as
    if result.status != FAILED or case.family != "combinations":
        return result
    if known := known_as(case, result, shrunk):
        return known
    if row:
        shrunk.append((row, result.smallest, result.findings))
    return result


def _side_by_side(question):
    """How many processes share the cases of a check: two, but one where two could hide a race,
    where a device may lack room for a second, or where few cases are asked for"""
    alone = question["repeat"] > 1 or question["device"] != "cpu" or question["cases"] is not None
    return 1 if alone else min(2, os.cpu_count() or 1)


def _answers(job, question, read, first=0, step=1):
    """None when the child was started, what it says when it is ready, then read(answer) of the
    answers first, first + step, ...; a Finding in place of one that never came. InputError if the
    question cannot be put at all."""
    n, count = first, None
    while count is None or n < count:
        for kind, *news in _child(job, question, n, step, read):
            if kind == "started":
                if count is None:
                    yield
                continue
            if kind == "refused":
                raise InputError(news[0])
            if kind == "ready":
                if count is None:
                    count, *about = news
                    yield about
                continue
            yield Finding(*news) if kind == "lost" else news[0]
            n += step
            if n >= count:
                return


def _child(job, question, first, step, read):
    """What one child says, to its last breath."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    if step > 1:                     # with more threads than cores, they wait for one another
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // step)))
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    child = subprocess.Popen([sys.executable, "-c", START], env=env, start_new_session=True,
                             **pipes)
    said = queue.Queue()
    patience = question["time_limit"] * question.get("repeat", 1) + GRACE
    ready, doing = False, "importing"
    threads = [threading.Thread(target=_listen, args=(child.stdout, said, read), daemon=True),
               threading.Thread(target=_show, args=(child.stderr,), daemon=True)]
    for thread in threads:
        thread.start()
    try:
        with contextlib.suppress(BrokenPipeError):           # it has ended: that is noticed below
            child.stdin.write(json.dumps([job, question, first, step]).encode() + b"\n")
            child.stdin.flush()
        yield ("started",)
        while True:
            news, until = None, time.monotonic() + patience
            while news is None and time.monotonic() < until:
                ended = child.poll() is not None             # its own children may hold the pipe
                with contextlib.suppress(queue.Empty):
                    news = said.get(timeout=1 if ended else 0.1)
                if ended:
                    break
            if news and news[0] != "lost":
                ready = ready or news[0] == "ready"
                if news[0] == "again":                       # with a new process, and its device
                    return
                if news[0] == "start":
                    doing = "calling"
                else:
                    yield news
                continue
            if news is None and child.poll() is None:
                why = "hang", (f"did not come back within {question['time_limit']:g} s, "
                               "and had to be killed.")
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(1)
                how = "closed or wrote into the pipe of its results"
                if child.returncode is not None:
                    how = f"crashed the process ({_how(child.returncode)})"
                    if child.returncode == -9:
                        how += ", as when the memory is full"
                why = "raised", f"{how}."
            if not ready:
                raise InputError(f"{doing} {question['target']} {why[1]}")
            yield "lost", *why
            return
    finally:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        child.wait()
        for thread in threads:
            thread.join(1)


def _listen(pipe, said, read):
    """Its answers, line by line; ("lost",) at the end, or at anything that is none of them.

    JSON, because the function shares the process: nothing that it writes there can do more than
    spoil an answer.
    """
    with pipe, contextlib.suppress(ValueError, TypeError, LookupError, RecursionError):
        for line in iter(lambda: pipe.readline(LINE), b""):
            kind, *news = json.loads(line)
            if kind not in ("ready", "start", "done", "again", "refused"):
                break
            said.put((kind, read(*news)) if kind == "done" else (kind, *news))
    said.put(("lost",))


def _show(pipe):
    """What the function prints, to standard error; too much of it is read and dropped."""
    left = SHOWN
    with pipe:
        while text := pipe.read1(SHOWN).decode(errors="replace"):
            with contextlib.suppress(OSError, ValueError):   # nobody reads ours
                print(text[:left], end="", file=sys.stderr, flush=True)
                if 0 < left < len(text):
                    print("\n(more output of the function is not shown)", file=sys.stderr)
            left = max(0, left - len(text))


def _how(code):
    if code >= 0:
        return f"exit code {code}"
    return {s.value: s.name for s in signal.Signals}.get(-code, f"signal {-code}")


def main(line):
    """The child: answers on standard output; what the function prints goes to standard error."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    if hasattr(os, "fork"):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)         # the pipe is the guard's
    else:
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")                                   # memory full: Linux ends this first
    job, question, first, step = json.loads(line)

    def say(*news):
        out.write(json.dumps(news).encode() + b"\n")
    try:
        {"check": _check, "causality": _causality}[job](question, first, step, say)
    except InputError as error:
        say("refused", str(error))
    except OSError:                                          # the function closed our pipe
        os._exit(1)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(0)                                              # not held up by what hangs in a thread


def _check(question, first, step, say):
    from minattn.validate.check import begin, verdict, yardstick
    target = load(question.pop("target"))
    backward = question.pop("backward")
    setup, chosen, rules = begin(fn=target, backward=backward and load(backward), **question)
    say("ready", len(chosen), setup.target.name, setup.no_gradients, setup.without, setup.unasked)
    for case in chosen[first::step]:
        yardstick(case, setup)                               # before the clock runs
        alive = partial(say, "start", case.id)
        alive()
        found = verdict(case, setup, rules, alive)
        rows = (row for row, name, _ in setup.shrunk if name == found.smallest)
        say("done", found, next(rows, None))
        if not setup.adapter.alive():
            say("again")
            return


def _causality(question, first, _, say):
    from minattn.validate.causality import causality
    target = load(question.pop("target"))
    question["backward"] = question["backward"] and load(question["backward"])
    causality(target, **question, first=first, say=say)
