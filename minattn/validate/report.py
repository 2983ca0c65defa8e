"""What a check found: per case and tensor, as a table to read, as JSON, and as JUnit XML."""
import json
import math
import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from minattn import files
from minattn.errors import InputError
from minattn.validate.positions import ROWS

PASSED, FAILED, NOT_COVERED = "passed", "failed", "not covered"
DIFFERS = "differs by convention"
SKIPPED, XFAILED, XPASSED = "skipped", "expected failure", "passed, though failure was expected"
JUNIT = {FAILED: "failure",
         **dict.fromkeys((DIFFERS, NOT_COVERED, SKIPPED, XFAILED), "skipped")}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]")     # characters that XML cannot hold
DETAILS = 12              # kinds of findings that the table spells out


class Tensor(NamedTuple):
    """One output or gradient beside the truth."""
    name: str             # "out", "dq", ...
    error: float          # largest absolute error; inf where the result is not finite
    bound: float
    rms_ratio: float      # RMS(error) / RMS(truth): 1 where all is zero, 1.4 where all is unrelated
    index: tuple          # of the worst element
    expected: float       # there
    actual: float
    largest: float        # of the truth

    @property
    def ok(self):
        return self.error <= self.bound

    @property
    def ratio(self):
        return self.error / self.bound if self.bound else math.inf if self.error else 0.0

    def __str__(self):
        at = ", ".join(str(i) for i in self.index)
        where = f"at [{at}] it is {self.actual:.6g}, expected {self.expected:.6g}"
        if not math.isfinite(self.error):
            return f"{self.name} is not finite: {where}."
        return (f"{self.name} is off by {self.error:.2g} where {self.bound:.2g} is allowed: "
                f"{where} (RMS ratio {self.rms_ratio:.2g}).")


class Result(NamedTuple):
    """What became of one case."""
    id: str
    family: str
    status: str
    findings: tuple = ()      # of frameworks.Finding
    tensors: tuple = ()       # of Tensor
    reason: str = ""          # why it was not covered, skipped or expected to fail; how it differs
    seconds: float = 0.0
    further: int = 0          # outputs that nothing was compared with
    hint: str = ""            # what would make it right
    smallest: str = ""        # the smallest case that fails like it, which findings are about

    def told(self):
        """The findings in lines, or why there is no verdict."""
        lines = [f.message for f in self.findings] or [f"{self.status}: {self.reason}"]
        if self.smallest not in ("", self.id):
            lines.insert(0, f"in the smallest case that still fails, {self.smallest}:")
        return "\n".join(lines + [self.hint] * bool(self.hint))


class Report:
    """The results of one check. `.ok` is True if something was checked and nothing was found."""

    def __init__(self, mechanism, target, framework, dtype, device, seed, results, gradients="",
                 seconds=0.0, unasked=(), repeat=1, planned=0):
        self.mechanism, self.target, self.framework = mechanism, target, framework
        self.dtype, self.device, self.seed = dtype, device, seed
        self.results, self.seconds = tuple(results), seconds
        self.unasked = tuple(unasked)       # what the function does not take and need not
        self.repeat = repeat                # how often each case was called again
        self.gradients = gradients          # why no gradient was checked; empty if they were
        self.interrupted = ""               # after how many of the cases
        if len(self.results) < planned:
            self.interrupted = f"interrupted after {len(self.results)} of {planned} cases"

    @property
    def ok(self):
        checked = any(self.count(s) for s in (PASSED, DIFFERS, XFAILED, XPASSED))
        return checked and not self.failed and not self.interrupted

    @property
    def failed(self):
        """The results with something wrong."""
        return tuple(r for r in self.results if r.status == FAILED)

    def count(self, status):
        return sum(r.status == status for r in self.results)

    def families(self):
        """family -> its results, in order"""
        return grouped(self.results, lambda r: r.family)

    def __str__(self):
        how = f"{self.framework} {self.dtype} on {self.device}, seed {self.seed}"
        kind = "positions" if self.mechanism.partition("[")[0] in ROWS else "attention"
        head = (f"{'family':<20}{'cases':>6}  {'worst':<14}{'error':>9}{'bound':>9}{'ratio':>9}"
                f"{'RMS':>9}  verdict")
        lines = [f"{self.target} as {self.mechanism} {kind}, {how}", "", head]
        lines += [_row(family, results, self.gradients)
                  for family, results in self.families().items()]
        lines += ["", *self._findings(), *self._not_covered()]
        if self.gradients:
            lines.append(f"gradients not covered: {self.gradients}")
        if self.unasked:
            names = {"grouped": "grouped key heads (--sizes Hkv=2 asks for them)",
                     "align": "align (it takes none)",
                     **{n: f"{n} (it does not name it)" for n in ("log_length", "softcap")}}
            lines.append(f"not asked for: {', '.join(names.get(n, n) for n in self.unasked)}")
        if self.repeat > 1:
            lines.append(f"each case was called {self.repeat + 1} times, for races")
        if any(r.further for r in self.results):
            lines.append("further outputs not covered: only the first is compared")
        statuses = (PASSED, FAILED, DIFFERS, XFAILED, XPASSED, SKIPPED, NOT_COVERED)
        counts = [f"{self.count(s)} {s.replace('differs', 'differ')}"
                  for s in statuses if self.count(s)]
        verdict = "all good" if self.ok else "nothing was checked"
        if self.count(DIFFERS):
            verdict = "all good but for conventions"
        if self.failed:
            verdict = "something is wrong"
        verdict = self.interrupted or verdict
        return "\n".join([*lines, f"{verdict}: {', '.join(counts)} in {self.seconds:.1f} s"])

    def _findings(self):
        """What is wrong, told once: wrong numbers by family, anything else by its message."""
        for sentence in dict.fromkeys(r.hint for r in self.results if r.hint):
            yield f"HINT  {sentence}"
        told = grouped(self.failed, _sort)
        for results in list(told.values())[:DETAILS]:
            first = results[0]
            yield f"WRONG {first.smallest or first.id}{_more(results)}"
            if first.smallest not in ("", first.id):
                yield f"      (the smallest that still fails, shrunk from {first.id})"
            yield from (f"      {f.message}" for f in first.findings)
        if len(told) > DETAILS:
            yield (f"      ... and {len(told) - DETAILS} more sorts of findings; "
                   "the JSON and JUnit files hold them all")
        if told:
            yield ""

    def _not_covered(self):
        for status in (DIFFERS, NOT_COVERED, SKIPPED, XFAILED, XPASSED):
            having = [r for r in self.results if r.status == status]
            for reason, results in grouped(having, lambda r: r.reason).items():
                yield f"{status}: {results[0].id}{_more(results)}: {reason}"

    def to_json(self, path=None):
        """The whole report as JSON text, written to a file as well if one is named."""
        names = ("mechanism", "target", "framework", "dtype", "device", "seed", "ok",
                 "interrupted")
        data = {name: getattr(self, name) for name in names}
        data.update(device=str(self.device), gradients_not_covered=self.gradients,
                    seconds=round(self.seconds, 3), cases=[_plain(r) for r in self.results])
        return _written(json.dumps(data, indent=1, allow_nan=False) + "\n", path)

    def to_junit(self, path=None):
        """The report as JUnit XML text, a suite per family, written to a file if one is named."""
        root = ElementTree.Element("testsuites", name=f"minattn check {self.mechanism}")
        for family, results in self.families().items():
            name = f"{self.mechanism}.{family}"
            suite = ElementTree.SubElement(root, "testsuite", name=name)
            tags = []
            for r in results:
                case = ElementTree.SubElement(suite, "testcase", classname=name, name=r.id,
                                              time=f"{r.seconds:.4f}")
                if r.status in JUNIT:
                    tags.append(JUNIT[r.status])
                    said = CONTROL.sub("?", r.told())
                    node = ElementTree.SubElement(case, tags[-1], message=said.splitlines()[0])
                    node.text = said
            counts = {"tests": len(results), "errors": 0, "failures": tags.count("failure"),
                      "skipped": tags.count("skipped")}
            suite.attrib.update({name: str(n) for name, n in counts.items()})
        return _written(ElementTree.tostring(root, encoding="unicode") + "\n", path)


def grouped(results, key):
    """key(result) -> the results with that key, both in order"""
    found = {}
    for r in results:
        found.setdefault(key(r), []).append(r)
    return found


def _sort(r):
    """What makes two failures one: their smallest case, or wrong numbers in one family, or words"""
    if r.smallest or any(f.kind in ("values", "not finite") for f in r.findings):
        return r.smallest or r.family
    return tuple(f.message for f in r.findings)


def _more(results):
    return f" and {len(results) - 1} more" if len(results) > 1 else ""


def _row(family, results, forward_only):
    """One line of the table: the tensor that comes nearest to its bound, or passes it the most."""
    tensors = [t for r in results for t in r.tensors]
    numbers = " " * 50
    if tensors:
        t = max(tensors, key=lambda t: t.ratio)
        rms = "-"                                            # the truth is 0 but for rounding
        if t.largest > t.bound:
            rms = f"{t.rms_ratio:.1e}"
        numbers = f"{t.name:<14}{t.error:>9.1e}{t.bound:>9.1e}{t.ratio:>9.2g}{rms:>9}"
    bad, done, differ = (sum(r.status == s for r in results) for s in (FAILED, PASSED, DIFFERS))
    rest = len(results) - bad - done - differ
    verdict = []
    if bad:
        verdict.append(f"{bad} WRONG")
    elif done:
        verdict.append("forward ok" if forward_only else "ok")
    if differ:
        verdict.append(f"{differ} by convention")
    if rest:
        verdict.append(f"{rest} not covered" if verdict else "not covered")
    return f"{family:<20}{len(results):>6}  {numbers}  {', '.join(verdict)}"


def _plain(r):
    """A result as JSON can hold it."""
    tensors = []
    for t in r.tensors:
        numbers = {name: x if not isinstance(x, float) or math.isfinite(x) else str(x)
                   for name, x in t._asdict().items()}
        tensors.append({**numbers, "ok": t.ok})
    return {**r._asdict(), "seconds": round(r.seconds, 4), "tensors": tensors,
            "findings": [f._asdict() for f in r.findings]}


def write_file(path, content, *, follow=True):
    """Text or bytes into a file, whose folder is made; InputError where that cannot be done.

    follow: the user named it, so a link is followed, and a pipe or device is written into.
    """
    path = Path(path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content, follow=follow)
    except files.CannotWrite as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}.") from None


def _written(text, path):
    if path is not None:
        write_file(path, text)
    return text
