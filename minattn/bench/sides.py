"""The sides of a benchmark: each is a process of its own that works when it is told to.

In one process, one side's matrix library would keep its threads spinning while the other is timed,
share its memory allocator and its settings, and count into its peak memory. Here a process that is
not being timed waits for a message. Each stretch of timed work begins with one untimed piece, in
which caches warm up and the last spinning threads of the other side go to sleep (OpenMP's do after
some milliseconds). So neither side needs any setting it would not have alone.
"""
import importlib
import math
import multiprocessing
import signal
import statistics
import sys
import time
import traceback
import tracemalloc
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

TURN = 0.2                                 # seconds of timed work in a turn, about
OPTIONAL = ("torch_jobs", "jax_jobs")      # sides that are left out when they fail


class Job(NamedTuple):
    """What a side does: a function of a module of minattn, and what it is given."""
    module: str
    name: str
    spec: dict
    checks: int = 1          # how often it is done before it is timed, to compare the results
    threads: int = 1


class Measured(NamedTuple):
    checks: dict             # label -> results of the untimed checks
    turns: dict              # label -> for each turn, a list of seconds
    peaks: dict              # label -> the most memory its process has held, in bytes

    @property
    def seconds(self):
        return {label: spread(turns) for label, turns in self.turns.items()}

    def ratio(self, label, ours="minattn"):
        """Our time relative to this side's"""
        return ratio(self.turns[ours], self.turns[label])


class SideFailed(Exception):
    """A side could not do its job; the message is its traceback."""


class Side:
    """One process. ask() and answer() are apart, so that several can prepare at the same time."""

    def __init__(self, label, job, trace=False):
        context = multiprocessing.get_context("spawn")
        self.label, self.optional = label, job.module.endswith(OPTIONAL)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, daemon=True,
                                       args=(theirs, job.module, job.threads, trace))
        self.process.start()
        theirs.close()

    def ask(self, *message):
        try:
            self.pipe.send(message)
        except BrokenPipeError:
            pass                                               # it has ended: the answer says so

    def answer(self):
        try:
            done, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(5)
            done, value = False, f"its process ended with code {self.process.exitcode}"
        if not done:
            raise SideFailed(f"{self.label}: {value}")
        return value

    def __call__(self, *message):
        self.ask(*message)
        return self.answer()

    def close(self):
        """With its pipe closed it ends by itself; one still at work after a while is stopped."""
        self.pipe.close()
        self.process.join(2)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def _serve(pipe, module, threads, trace):
    """Answer ("job", name, spec, checks), ("time", n) and ("memory",) until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)               # Ctrl-C is the parent's to handle
    work = None
    try:
        module = importlib.import_module(f"minattn.{module}")
        if trace:
            tracemalloc.start()
        with module.session(threads) as session:
            while True:
                command, *arguments = pipe.recv()
                if command == "job":
                    name, spec, checks = arguments
                    work = None                                # let go of the last one first
                    if trace:
                        tracemalloc.reset_peak()
                    work, input_bytes = getattr(module, name)(spec, session)
                    answer = {"input_bytes": input_bytes, "checks": [work() for _ in range(checks)]}
                elif command == "time":
                    work()
                    answer = [_seconds(work) for _ in range(arguments[0])]
                else:
                    answer = {"peak": getattr(module, "peak", peak_rss)(),
                              "arrays": tracemalloc.get_traced_memory()[1]}
                pipe.send((True, answer))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass                                                   # nobody is asking any more
    except Exception:
        pipe.send((False, traceback.format_exc(limit=-3).strip()))


def _seconds(work):
    tick = time.perf_counter()
    work()
    return time.perf_counter() - tick


def peak_rss(pid="self"):
    """The most memory a process has held, in bytes; on Linux not counting its parent's."""
    try:
        return int(status(pid)["VmHWM"].split()[0]) << 10
    except (OSError, KeyError):
        import resource
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def status(pid):
    """/proc/<pid>/status -> {"PPid": "12", "VmHWM": "345 kB", ...}"""
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


@contextmanager
def sides(jobs, trace=False):
    """Start a side for each label -> Job; they end with the block, whatever happens."""
    group = {label: Side(label, job, trace) for label, job in jobs.items()}
    try:
        yield group
    finally:
        for side in group.values():
            side.pipe.close()                                  # all at once: closing twice is safe
        for side in group.values():
            side.close()


def measure(what, jobs, args, problems, *, tolerance, unchecked=(), most=math.inf):
    """Do these jobs (label -> Job) side by side -> Measured.

    Their checks are compared, but for those of `unchecked` labels; then they are timed in turn.
    """
    print(what, file=sys.stderr, flush=True)
    with sides(jobs) as group:
        for label, job in jobs.items():                        # all prepare at once
            group[label].ask("job", job.name, job.spec, job.checks)
        answers = {label: _answer(group, label, problems) for label in jobs}
        checks = {label: answer["checks"] for label, answer in answers.items() if answer}
        compared = {label: checks[label] for label in checks if label not in unchecked}
        compare(what, compared, tolerance, problems)
        turns = take_turns(group, list(checks), args.repeat, problems, most)
        peaks = {label: side("memory")["peak"] for label, side in group.items()}
    return Measured(compared, turns, peaks)


def _answer(group, label, problems):
    """A side's answer. An optional one that fails (no compiler, say) leaves the group: None."""
    try:
        return group[label].answer()
    except SideFailed as failure:
        if not group[label].optional:
            raise
        problems.append(f"left out: {failure}")
        group.pop(label).close()
        return None


def take_turns(group, labels, turns, problems, most=math.inf):
    """Time these sides in turn -> label -> a list of seconds for each turn.

    After 3 turns, no more than fit into `most` seconds.
    """
    def one(label, steps):
        group[label].ask("time", steps)
        return _answer(group, label, problems)

    first = {label: seconds[0] for label in labels if (seconds := one(label, 1))}
    steps = {label: max(1, min(20, round(TURN / seconds))) for label, seconds in first.items()}
    turn = sum(seconds * (1 + steps[label]) for label, seconds in first.items())
    times = {label: [] for label in first}
    for _ in range(int(min(turns, max(3, most / turn)))):
        for label in times:
            if label in group:
                times[label].append(one(label, steps[label]))
    return {label: times[label] for label in times if label in group}


def spread(turns):
    """Quartiles over all steps of all turns, in seconds."""
    every = sorted(flat(turns))
    if len(every) == 1:
        every *= 2
    low, middle, high = statistics.quantiles(every, n=4, method="inclusive")
    return {"q1": low, "median": middle, "q3": high}


def ratio(ours, theirs):
    """Median over the turns of (our median) / (their median)."""
    median = statistics.median
    return median(median(a) / median(b) for a, b in zip(ours, theirs))


def compare(what, checks, tolerance, problems):
    """Note where the checks of a side are not those of the first; checks: label -> results."""
    (_, first), *others = ((label, flat(values)) for label, values in checks.items())
    for label, values in others:
        errors = [abs(a - b) / (abs(a) + 1e-9) for a, b in zip(first, values)]
        if len(first) != len(values) or not all(error <= tolerance for error in errors):
            problems.append(f"{what}: the results of minattn and {label} differ by "
                            f"{max(errors):.1e}")


def flat(values):
    """Nested lists -> one list"""
    if not isinstance(values, (list, tuple)):
        return [values]
    return [x for value in values for x in flat(value)]


def milliseconds(times):
    """Median (quartiles), or a dash."""
    if times is None:
        return "-"
    low, middle, high = (times[name] * 1e3 for name in ("q1", "median", "q3"))
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


def number(value, digits=2):
    """A number, or a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"
