"""The sides of a benchmark: each lives in a process of its own and does its work when it is told to.

In one process, one side's matrix library would keep its threads spinning while the other is timed, share its memory
allocator and its settings, and count into its peak memory. Here a process that is not being timed waits for a message;
each stretch of timed work begins with one untimed piece, in which caches warm up and the last spinning threads of the
other side go to sleep (OpenMP's do after some milliseconds). So neither side needs any setting it would not have alone.
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

TURN = 0.2             # seconds of timed work in a turn, about


class SideFailed(Exception):
    """A side could not do its job; the message is its traceback."""


class Side:
    """One process: ask for something, then take the answer, so that several can prepare at the same time."""

    def __init__(self, label, module, threads, trace=False):
        context = multiprocessing.get_context("spawn")
        self.label, self.optional, (self.pipe, theirs) = label, module.endswith(("torch_jobs", "jax_jobs")), context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, module, threads, trace), daemon=True)
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
            raise SideFailed(f"{self.label}: its process ended with code {self.process.exitcode}") from None
        if not done:
            raise SideFailed(f"{self.label}: {value}")
        return value

    def __call__(self, *message):
        self.ask(*message)
        return self.answer()

    def close(self):
        """With its pipe closed it ends by itself; one that is still at work after a while is stopped."""
        self.pipe.close()
        self.process.join(2)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def _serve(pipe, module, threads, trace):
    """Answer ("job", name, spec, checks), ("time", n) and ("memory",) until the process is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)               # Ctrl-C is the parent's to handle
    work = None
    try:
        module = importlib.import_module(module)
        if trace:
            tracemalloc.start()
        with module.session(threads) as session:
            while True:
                command, *arguments = pipe.recv()
                if command == "job":
                    name, spec, checks = arguments
                    work = None                                # let go of the last one first
                    work, held = module.JOBS[name](spec, session)
                    answer = {"held": held, "checks": [work() for _ in range(checks)]}
                elif command == "time":
                    work()
                    answer = [_seconds(work) for _ in range(arguments[0])]
                else:
                    answer = {"peak": peak_rss(), "arrays": tracemalloc.get_traced_memory()[1]}
                pipe.send((True, answer))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass                                                   # nobody is asking any more
    except Exception:
        pipe.send((False, traceback.format_exc(limit=-3).strip()))


def _seconds(work):
    tick = time.perf_counter()
    work()
    return time.perf_counter() - tick


def peak_rss():
    """The most memory this process has held, in bytes; in Linux since it began, not since its parent did."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def sides(wanted, trace=False):
    """Start a side for each label -> (module, threads); they end with the block, whatever happens."""
    group = {label: Side(label, f"minattn.bench.{module}", threads, trace)
             for label, (module, threads) in wanted.items()}
    try:
        yield group
    finally:
        for side in group.values():
            side.pipe.close()                                  # all at once: closing twice does no harm
        for side in group.values():
            side.close()


def prepare(group, jobs, problems):
    """Give each side its job (name, spec, how often to do it as a check), all at once -> label -> its answer."""
    for label, job in jobs.items():
        group[label].ask("job", *job)
    return {label: answer for label in jobs if (answer := _answer(group, label, problems)) is not None}


def _answer(group, label, problems):
    """What a side has to say. One of PyTorch's or JAX's that fails (no compiler, say) leaves the group, and that is noted."""
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

    first = {label: seconds[0] for label in labels if (seconds := one(label, 1)) is not None}
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
    every = sorted(t for turn in turns for t in turn)
    low, middle, high = statistics.quantiles(every, n=4, method="inclusive") if len(every) > 1 else every * 3
    return {"q1": low, "median": middle, "q3": high}


def ratio(ours, theirs):
    """Median over the turns of (our median) / (their median)."""
    return statistics.median(statistics.median(a) / statistics.median(b) for a, b in zip(ours, theirs))


def compare(what, answers, tolerance, problems):
    """Note where the checks of a side are not those of the first."""
    (_, first), *others = ((label, flat(answer["checks"])) for label, answer in answers.items())
    for label, values in others:
        errors = [abs(a - b) / (abs(a) + 1e-9) for a, b in zip(first, values)]
        if len(first) != len(values) or not all(error <= tolerance for error in errors):
            problems.append(f"{what}: the results of minattn and {label} differ by {max(errors):.1e}")


def flat(values):
    return [x for value in values for x in (flat(value) if isinstance(value, (list, tuple)) else [value])]


def progress(text):
    print(text, file=sys.stderr, flush=True)


def print_table(rows):
    """Columns to the right, but the first two."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [text.ljust(width) if i < 2 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())


def milliseconds(times):
    """Median (quartiles), or a dash."""
    return "-" if times is None else f"{times['median'] * 1e3:.1f} ({times['q1'] * 1e3:.1f}-{times['q3'] * 1e3:.1f})"
