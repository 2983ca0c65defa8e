"""Studies: the same training run under several mechanisms, positions and seeds, compared by losses
that no leak flatters, with error bars."""
import sys
import time
from concurrent.futures import CancelledError

from minattn import files, runs
from minattn.studies import figures, tables, work
from minattn.studies import plan as plans
from minattn.studies.progress import Progress

POLL = 0.1            # seconds between two looks at what has been finished


def run(plan, executor, *, report=None):
    """Bring every run of a plan to its end -> rows, one dict for each run, in the plan's order.

    executor: any concurrent.futures.Executor (what submit returns needs only done() and result()).
    A run that is there and measured is not done again, one that was interrupted is resumed; the run
    folders are the only state, so a worker elsewhere must see the same file system. Results do not
    depend on the executor. One that fails is a row with "status" "failed" and its "reason".
    report(rows so far) is called after each. Raises InputError, before any training, where the
    folder cannot be written or holds runs with other settings or of another text.
    """
    runs.make_folder(plan.folder)
    files.check_ours(plan.folder, (tables.RESULTS, tables.TABLE, *figures.PICTURES),
                     "*/seed-*[0-9]")
    plan, corpora = plans.with_corpus(plan, say=lambda line: print(line, file=sys.stderr))
    plans.check_runs(plan, corpora)
    jobs = plan.jobs()
    rows = {job.folder: work.finished(job) for job in jobs}             # None: not yet
    todo, pending = [job for job in jobs if not rows[job.folder]], {}

    def so_far():
        return [row for row in rows.values() if row]

    def collect():
        for future in [future for future in pending if future.done()]:
            job = pending.pop(future)
            rows[job.folder] = row = _result(future, job)
            progress.finished(row)
            try:
                if report:
                    report(so_far())
            except Exception as error:      # of a report, not of the run: the last one says more
                progress.note(f"warning: the report on the way failed: {files.one_line(error)}")

    with Progress(todo, len(jobs)) as progress:
        try:
            for job in todo:
                pending[executor.submit(work.do, job)] = job
                collect()
            while pending:
                time.sleep(POLL)
                collect()
        except KeyboardInterrupt:
            for future in pending:
                future.cancel()
            raise
    return so_far()


def _result(future, job):
    try:
        return future.result()
    except CancelledError:
        return work.failed(job, "given up by its executor (was the scheduler lost?); the same "
                                "command takes it up again")
    except Exception as error:                             # a worker was lost, say
        return work.failed(job, str(error) or type(error).__name__)

