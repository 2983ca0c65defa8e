"""A check in a separate process: a function that crashes or hangs ends only itself.

The command line runs every check this way. The child imports the function and reports case by case;
when it dies or falls silent, the case at hand has a finding, and a new child goes on with the next
one.
"""
import importlib
import importlib.util
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time

from minattn.errors import InputError
from minattn.validate.frameworks import Finding
from minattn.validate.report import FAILED, NOT_COVERED, Report, Result

GRACE = 10.0            # seconds past the time limit before a silent child is ended
START = 300.0           # seconds in which the child must have imported the function


def load(spec):
    """"module:function", "module:object.attribute", "file.py:function", "module" -> what it names.

    InputError, in one sentence, for whatever goes wrong on the way.
    """
    place, _, attribute = spec.rpartition(":") if ":" in spec else (spec, "", "")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if place.endswith(".py"):
            if not os.path.isfile(place):
                raise InputError(f"there is no file {place}.")
            name = os.path.splitext(os.path.basename(place))[0]
            about = importlib.util.spec_from_file_location(name, place)
            found = importlib.util.module_from_spec(about)
            sys.modules[name] = found
            about.loader.exec_module(found)
        else:
            found = importlib.import_module(place)
    except InputError:
        raise
    except BaseException as error:  # whatever somebody's module does when it is imported
        if isinstance(error, KeyboardInterrupt):
            raise
        text = (str(error).splitlines() or [""])[0]
        raise InputError(f"cannot import {place}: {type(error).__name__}: {text}") from None
    for name in attribute.split(".") if attribute else ():
        if not hasattr(found, name):
            raise InputError(f"{place} has nothing called {name!r}.")
        found = getattr(found, name)
    return found


def check(question, *, progress=False):
    """question: check's arguments by name, "target" and "backward" as text for `load` -> Report"""
    from minattn.validate.check import GAVE_UP, HANGS
    start = time.perf_counter()
    chosen = _cases(question)
    bar = None
    if progress:
        from tqdm import tqdm
        bar = tqdm(total=len(chosen), unit="case", leave=False, delay=1)
    results, hangs, name, gradients = [], 0, question["target"], ""
    try:
        while len(results) < len(chosen) and hangs < HANGS:
            for kind, *news in _child(question, len(results), question["time_limit"] + GRACE):
                if kind == "refused":
                    raise InputError(news[0])
                if kind == "ready":
                    name, gradients = news
                    continue
                case = chosen[len(results)]
                if kind == "done":
                    result = news[0]
                else:
                    result = Result(case.id, case.family, FAILED, (Finding(*news),))
                results.append(result)
                hangs += any(f.kind == "hang" for f in result.findings)
                if bar:
                    bar.update()
                if hangs >= HANGS:
                    break
    finally:
        if bar:
            bar.close()
    results += [Result(c.id, c.family, NOT_COVERED, reason=GAVE_UP) for c in chosen[len(results):]]
    about = [question[n] for n in ("framework", "dtype", "device", "seed")]
    seconds = time.perf_counter() - start
    return Report(question["mechanism"], name, *about, results, gradients, seconds)


def _cases(question):
    from minattn.validate.check import select
    chosen = {name: question[name] for name in ("quick", "seed", "sizes")}
    return select(question["mechanism"], question["cases"], **chosen)


def _child(question, first, patience):
    """What one child says: ("ready", ...), ("done", Result) per case; ("lost", ...) if it dies."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "minattn.validate.isolate"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    said = queue.Queue()

    def listen():
        try:
            while True:
                said.put(pickle.load(child.stdout))
        except (EOFError, pickle.UnpicklingError, OSError, ValueError):
            said.put(None)
    threading.Thread(target=listen, daemon=True).start()
    wait, running = START, False
    try:
        pickle.dump((question, first), child.stdin)
        child.stdin.close()
        while True:
            try:
                news = said.get(timeout=wait)
            except queue.Empty:
                child.kill()
                if not running:
                    raise InputError(f"importing {question['target']} took more than "
                                     f"{START:g} s.") from None
                yield "lost", "hang", (f"did not come back within {question['time_limit']:g} s, "
                                       "and had to be killed.")
                return
            if news is None:
                child.wait()
                if not running:
                    raise InputError(f"importing {question['target']} ended the process "
                                     f"({_how(child.returncode)}).")
                yield "lost", "raised", f"crashed the process ({_how(child.returncode)})."
                return
            if news[0] == "end":
                return
            running, wait = news[0] == "start", patience if news[0] == "start" else START
            if news[0] != "start":
                yield news
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def _how(code):
    return signal.Signals(-code).name if code and code < 0 else f"exit code {code}"


def main():
    """The child: answers on standard output; what the function prints goes to standard error."""
    from minattn.validate.check import prepare, read_skips, with_rule
    from minattn.validate.precision import yardstick
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    say = lambda *news: out.write(pickle.dumps(news))
    question, first = pickle.load(sys.stdin.buffer)
    try:
        target = load(question["target"])
        backward = question["backward"] and load(question["backward"])
        keep = ("framework", "dtype", "device", "exclude", "time_limit")
        setup = prepare(question["mechanism"], target, backward=backward,
                        **{name: question[name] for name in keep})
        rules = read_skips(question["skip_file"]) if question["skip_file"] else []
        chosen = _cases(question)
    except InputError as error:
        say("refused", str(error))
        return
    say("ready", setup.target.name, setup.no_gradients)
    for case in chosen[first:]:
        yardstick(case, setup.adapter.dtype)                 # before the clock runs
        say("start", case.id)
        say("done", with_rule(case, setup, rules))
    say("end")
    sys.stdout.flush()
    os._exit(0)                                              # not held up by what hangs in a thread


if __name__ == "__main__":
    main()
