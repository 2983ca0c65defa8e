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
    found = measures.read(job.folder, *job.measured)
    return found and _row(job, "done", "", **measures.flat(found))


def failed(job, reason):
    return _row(job, "failed", reason)


def _row(job, status, reason, **numbers):
    return {"variant": job.variant, "seed": job.seed, "attention": job.shape["attention"],
            "position": job.shape["position"], "steps": job.settings.steps,
            "folder": os.path.join(*Path(job.folder).parts[-2:]), "status": status,
            "reason": reason, **numbers}


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
            runs.make_folder(job.folder, below=Path(job.folder).parents[1])
            while not (row := finished(job)):
                try:
                    with runs.lock(job.folder, again=True):      # or another begins in between
                        if not finished(job):
                            _train(job)
                            measures.measure(job.folder, *job.measured, threads=job.threads,
                                             data_dir=job.data_dir)
                except runs.InUse:                   # by one that was thought dead, say
                    time.sleep(0.5)
            return row
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
    if runs.killed_early(folder):                     # or there is nothing yet
        train.start(job.settings, job.shape, folder, overwrite=True, **options)
        return
    try:
        step = runs.load(folder).checkpoint.step
    except InputError as error:
        try:                                          # the one before leads to the same end
            train.resume(folder / runs.PREVIOUS, overrides=job.expected(), **options)
        except InputError:
            raise InputError(f"{error} Or remove {folder}, and the same command trains it "
                             "again.") from None
        return
    if step < job.settings.steps or not (folder / runs.SAMPLE).exists():
        train.resume(folder, overrides=job.expected(), **options)


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
