"""How far a comparison is."""
import sys
import threading

from tqdm import tqdm

from minattn.studies import work


class Progress:
    """Steps done over all runs and the time left, on stderr.

    Read from the run folders: workers can be anywhere.
    """

    def __init__(self, jobs, total):
        self.jobs, self.total, self.stderr = jobs, total, sys.stderr
        self.end, self.over = threading.Event(), total - len(jobs)

    def __enter__(self):
        tqdm.set_lock(threading.RLock())     # not a system semaphore, which a kill would leave
        self.interval = 0.5 if self.stderr.isatty() else 30
        self.done = [work.steps_done(job.folder) for job in self.jobs]
        self.bar = tqdm(total=sum(job.settings.steps for job in self.jobs),
                        initial=sum(self.done), unit="step", dynamic_ncols=True,
                        mininterval=self.interval, file=self.stderr, disable=not self.jobs)
        self._count()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self):
        while not self.end.wait(self.interval):
            self._count()

    def _count(self):
        for i, job in enumerate(self.jobs):
            done = min(work.steps_done(job.folder), job.settings.steps)
            self.bar.update(max(0, done - self.done[i]))
            self.done[i] = max(done, self.done[i])
        self.bar.set_postfix_str(f"{self.over} of {self.total} runs", refresh=False)

    def finished(self, row):
        self.over += 1
        what = f"failed: {row['reason']}"
        if row["status"] == "done":
            what = (f"val {row['val_loss']:.4f}, prefix-only {row['val_loss_prefix_only']:.4f}, "
                    f"{row['seconds']:.0f} s")
        self.bar.write(f"{row['variant']}, seed {row['seed']}: {what}", file=self.stderr)

    def note(self, text):
        self.bar.write(text, file=self.stderr)

    def __exit__(self, *_):
        self.end.set()
        self.thread.join()
        self._count()
        self.bar.close()
