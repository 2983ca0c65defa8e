"""One run of a comparison: begun, taken up where it stopped, or found finished; then measured.

Called wherever a worker is.
"""
import contextlib
import json
import os
import time
from pathlib import Path

from minattn import runs, train
from minattn.errors import InputError
from minattn.studies import measures


def finished(job):
    """The row of a run that is there and measured, else None."""
    found = measures.read(job.folder, job.prefix_positions)
    return found and _row(job, found)


def failed(job, reason):
    return {**_about(job), "status": "failed", "reason": reason}


def _row(job, found):
    numbers = {name: found[name] for name in measures.SCALARS}
    return {**_about(job), "status": "done", "reason": "", **numbers}


def _about(job):
    expected = job.expected()
    return {"variant": job.variant, "seed": job.seed, "attention": expected["attention"],
            "position": expected["position"], "steps": job.settings.steps,
            "folder": os.path.join(*Path(job.folder).parts[-2:])}


def do(job):
    """Bring one run to its end and measure it -> its row.

    A row is a dict: who it is, "status" ("done" or "failed"), the reason, measures.SCALARS. What
    goes wrong is in the row, so that other runs go on. Ctrl-C is raised as KeyboardInterrupt once
    the run is saved. Doing it twice, or in two places at a time, does no harm: the run's lock lets
    one pass, the other waits for it and finds everything done.
    """
    try:
        with (open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere),
              contextlib.redirect_stderr(nowhere)):
            _when_free(job.folder, lambda: _train(job))
            return finished(job) or _row(job, _when_free(job.folder, lambda: _measure(job)))
    except train.Interrupted:
        raise KeyboardInterrupt from None
    except train.Diverged as error:
        return failed(job, f"diverged: {error}")
    except InputError as error:
        return failed(job, str(error))
    except Exception as error:               # one run's trouble is not the others'
        return failed(job, f"{type(error).__name__}: {error}")


def _train(job):
    folder = Path(job.folder)
    options = dict(threads=job.threads, data_dir=job.data_dir, say=lambda line: None)
    if not (folder / runs.CHECKPOINT).exists():       # none, or stopped before its first checkpoint
        train.start(job.settings, job.shape, folder, overwrite=True, **options)
    elif steps_done(folder) < job.settings.steps or not (folder / runs.SAMPLE).exists():
        train.resume(folder, overrides=job.expected(), **options)


def _measure(job):
    with runs.lock(job.folder):
        return measures.measure(job.folder, job.prefix_positions, threads=job.threads,
                                data_dir=job.data_dir)


def _when_free(folder, action):
    """Do it as soon as no other process trains in this folder: one thought dead may still work."""
    again = True
    while True:
        try:
            return action()
        except InputError:
            if _free(folder):
                if not again:
                    raise
                again = False                         # it may have become free just now
        time.sleep(0.5)


def _free(folder):
    try:
        with runs.lock(folder):
            return True
    except InputError:
        return False


def steps_done(folder):
    """The last step in metrics.jsonl, from its last lines only."""
    try:
        with open(Path(folder) / runs.METRICS, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1])["step"]
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return 0
