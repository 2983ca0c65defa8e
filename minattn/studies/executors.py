"""Where runs are done: in this process, in processes on this machine, or on a Dask cluster.

All are concurrent.futures executors.
"""
import asyncio
import logging
import multiprocessing
import os
import signal
import threading
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker

from tqdm import tqdm

from minattn.errors import InputError


def cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Serial(Executor):
    """One after another, in this process, while it is submitted. Ctrl-C comes through."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:                           # as every executor does
            future.set_exception(error)
        return future


class Processes(Executor):
    """Each call in a fresh process, at most `workers` at a time.

    One that is killed takes only its own call with it (a pool of the standard library breaks as a
    whole), and none outlives this process. Leaving the `with` block by an exception, Ctrl-C say,
    interrupts those that are at work.
    """

    def __init__(self, workers):
        # Ctrl-C reaches a new process only once it can take it: it inherits from its thread that
        # interrupts wait. The first thread to start a process would also start multiprocessing's
        # tracker, which lets them come again.
        if os.name == "posix":
            resource_tracker.ensure_running()
        self.threads = ThreadPoolExecutor(workers, initializer=_interrupts, initargs=("SIG_BLOCK",))
        self.running, self.lock, self.stopped = set(), threading.Lock(), False

    def submit(self, fn, /, *args, **kwargs):
        return self.threads.submit(self._one, fn, args, kwargs)

    def _one(self, fn, args, kwargs):
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(theirs, fn, args, kwargs), daemon=True)
        with self.lock:
            if self.stopped:
                raise CancelledError
            process.start()
            self.running.add(process)
        theirs.close()
        try:
            done, value = ours.recv()
        except EOFError:
            process.join()
            code = process.exitcode
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            raise ChildProcessError(f"its process {how}; the same command takes it up "
                                    "again") from None
        finally:
            ours.close()
            process.join()
            with self.lock:
                self.running.discard(process)
        if not done:
            raise value
        return value

    def shutdown(self, wait=True, *, cancel_futures=False):
        if cancel_futures:
            with self.lock:
                self.stopped = True
                for process in self.running:
                    if os.name == "posix":
                        os.kill(process.pid, signal.SIGINT)       # it finishes its step and saves
                    else:
                        process.terminate()
        self.threads.shutdown(wait, cancel_futures=cancel_futures)

    def __exit__(self, kind, *_):
        self.shutdown(cancel_futures=kind is not None)


def _child(pipe, fn, args, kwargs):
    """One call, in its own process: answer (True, result) or (False, exception).

    Nothing after an interrupt.
    """
    if hasattr(os, "setsid"):
        os.setsid()                          # Ctrl-C is the parent's to pass on, once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())         # not a system semaphore, which a kill would leave
    try:
        _interrupts("SIG_UNBLOCK")
        answer = True, fn(*args, **kwargs)
        _interrupts("SIG_BLOCK")
    except KeyboardInterrupt:
        return
    except Exception as error:                           # raised again by the parent
        answer = False, error
    pipe.send(answer)


def _interrupts(how):
    """Let interrupts wait, or come; nothing where the system has no such thing."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(getattr(signal, how), {signal.SIGINT})


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def dask(address, timeout=10):
    """The executor of a Dask cluster, by its scheduler's address ("tcp://host:8786").

    Start each worker with one thread (`dask worker --nthreads 1`): a run sets properties of its
    whole process. A task whose worker is lost goes to another worker, which takes the run up at its
    last checkpoint: all must share one file system, with the run folders at the same path, and have
    this package installed.
    """
    try:
        from distributed import Client
    except ImportError:
        raise InputError("--scheduler needs Dask, which is not installed: pip install "
                         "'minattn[dask]' (or: pip install distributed).") from None
    try:
        client = Client(address, timeout=timeout)
    except (OSError, ValueError, TypeError, TimeoutError, asyncio.TimeoutError):    # or no address
        raise InputError(f"no Dask scheduler answers at {address} within {timeout} s: give the "
                         "address that `dask scheduler` printed when it began, such as "
                         "tcp://host:8786.") from None
    # a scheduler that is lost shows in the rows
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    with client:
        yield client.get_executor(pure=False)
