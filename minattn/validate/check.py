"""Is your function right, forward and backward, in every corner, in its own precision?

    report = check("energy", my_function, framework="torch", dtype="bfloat16")

Each case runs on its own: a case in which the function raises, hangs, or returns something of
another shape is a finding, and the others still run. Every case is run twice, and what it was given
is compared afterwards. The kit's own arithmetic does not depend on np.seterr.
"""
import contextlib
import ctypes
import fnmatch
import threading
import time
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np

from minattn import checks, files
from minattn.attention import MECHANISMS
from minattn.errors import InputError
from minattn.files import one_line
from minattn.validate import cases as case_module
from minattn.validate import covering, frameworks, packing, positions, precision, report
from minattn.validate.arithmetic import FORMATS
from minattn.validate.frameworks import Finding, Problem
from minattn.validate.report import DIFFERS, FAILED, NOT_COVERED, PASSED, Report, Result, Tensor

HANGS = 3                 # after so many, the rest is not run: each costs its whole time limit
LONG = 192                # tokens: beyond, a call with other options comes first
SLOW = 1.0                # seconds: calls that take longer are made less often
MOST_SECONDS = 1e6        # for one case: what threads can wait
DIFFERENT = 3             # so many failing combinations are made small ...
SHRINKING = 60.0          # ... in so many seconds each
GAVE_UP = f"not run, because {HANGS} cases hung before"
PLAIN = ("prime_sizes", "causal", "noncausal")      # failing here, most cases fail


class Setup(NamedTuple):
    """Everything but the case."""
    target: frameworks.Target
    adapter: frameworks.NumpyAdapter
    exclude: frozenset = frozenset()
    time_limit: float = 30.0
    unasked: tuple = ()       # what the function does not take and need not: see `unasked`
    shrunk: list = []         # the smallest cases found so far: (row, id, findings)
    conventions: str = "any"  # "ours": where they differ, it is wrong
    repeat: int = 1           # calls beside the first two that must give the same
    dtype: str = "float32"    # of the bounds: "tf32" holds float32 arrays to others

    @property
    def without(self):
        """What the combinations of settings leave out."""
        return tuple(sorted({*self.exclude, *self.unasked}))

    @property
    def no_gradients(self):
        """Why no gradient can be checked; empty if they can."""
        if "gradients" in self.exclude:
            return "you excluded them"
        if self.target.backward is None and not self.adapter.autodiff:
            return "a NumPy function needs a backward of its own, and none was given"
        return ""


@np.errstate(all="ignore")
def check(mechanism, fn, *, framework="numpy", dtype="float32", device="cpu", cases=None,
          backward=None, exclude=(), quick=False, thorough=False, seed=0, time_limit=30.0,
          sizes=None, skip_file=None, layout="BHTD", lse=None, conventions="any", repeat=1,
          show=True, progress=False):
    """Run fn through the mechanism's cases -> Report; prints it unless show=False.

    mechanism   a name, with options in brackets ("energy[norm=prefix]") to keep these fixed
    fn          takes the mechanism's array arguments in order (MECHANISMS[name].arguments), then
                its options by name, and returns out (B, H, Tq, Dv), or a tuple that begins with it.
                Or a pair (forward, backward), or a module with both: forward returns (out, cache),
                backward(dout, cache) a dict argument -> gradient.
    framework   whose arrays fn takes: "numpy", "torch", "jax", "mlx" or "tinygrad"; it
                differentiates where no backward is given
    dtype       of inputs, outputs, gradients: "float32", "float64", "float16" or "bfloat16"
                ("tf32": float32, of which matrix products read 10 bits)
    cases       globs on case ids, or Case objects; all if None. quick: a selection in seconds.
    thorough    every three settings of the combinations meet, not only every two: some minutes
    exclude     what fn does not do: an option ("window"), one value of it ("norm=prefix"), a family
                ("long"), one gradient ("dbias"), "gradients", "repeat" (equal results when called
                again), or another flag of a case ("Tq!=Tk", "empty_rows", "strided", ...). The
                report says "not covered".
    sizes       {"D": (64, 128), "Dv": 64}: sizes to keep to, of B, H, Hkv, Tq, Tk, T (both), D,
                Dv; of several values, each case takes the one nearest to its own
    layout      "BTHD": its arrays with four axes are (B, T, H, D), and so are out and gradients;
                masks and biases stay as they are
    lse         "e" or "2": it returns (out, lse), natural or to base 2, of shape (B, H, Tq); lse is
                checked, and the gradient that comes in through it (unless "dlse" is excluded). A
                forward of its own returns (out, lse, cache), a backward takes (dout, cache, dlse)
    conventions "any": a function whose rows that see nothing are NaN or the mean of all values, or
                one without `align` whose causal masks are aligned at the start, "differs by
                convention" in these cases if all else in them is right; "ours": then it is wrong
    repeat      every case is called so many times more, for races: all must give the same bits
    skip_file   lines "case-id-glob skip|xfail reason"; a glob that matches no case of any
                mechanism is refused

    InputError if the question itself makes no sense: an unknown name, nothing callable, a missing
    framework.
    """
    start = time.perf_counter()
    setup, chosen, rules = begin(
        mechanism, fn, framework=framework, dtype=dtype, device=device, cases=cases,
        backward=backward, exclude=exclude, quick=quick, thorough=thorough, seed=seed,
        time_limit=time_limit, sizes=sizes, skip_file=skip_file, layout=layout, lse=lse,
        conventions=conventions, repeat=repeat)
    results = list(until_too_many_hang((verdict(case, setup, rules) for case in chosen), chosen,
                                       progress))
    found = Report(mechanism, setup.target.name, framework, dtype, device, seed, results,
                   setup.no_gradients, time.perf_counter() - start, setup.unasked,
                   setup.repeat)
    if show:
        print(found)
    return found


def begin(mechanism, fn, *, cases=None, quick=False, thorough=False, seed=0, sizes=None,
          skip_file=None, **how):
    """check's arguments -> Setup, the cases to run, the rules of the skip file"""
    setup = prepare(mechanism, fn, sizes=sizes, **how)
    chosen = select(mechanism, cases, quick=quick, thorough=thorough, seed=seed, sizes=sizes,
                    without=setup.without)
    return setup, chosen, read_skips(skip_file, chosen) if skip_file is not None else []


def until_too_many_hang(results, chosen, progress=False):
    """The results of the cases, one by one; the last of them are not run after HANGS hangs."""
    if progress:
        from tqdm import tqdm
        results = tqdm(results, total=len(chosen), unit="case", leave=False, delay=1)
    hangs = 0
    for n, result in enumerate(results, 1):
        yield result
        hangs += any(f.kind == "hang" for f in result.findings)
        if hangs == HANGS:
            yield from (Result(c.id, c.family, NOT_COVERED, reason=GAVE_UP) for c in chosen[n:])
            return


@np.errstate(all="ignore")
def prepare(mechanism, fn, *, framework="numpy", dtype="float32", device="cpu", backward=None,
            exclude=(), time_limit=30.0, sizes=None, layout="BHTD", lse=None, conventions="any",
            repeat=1):
    """Check the question -> Setup, with which check_case answers it for one case."""
    target = frameworks.resolve(fn, backward, layout, lse)
    adapter = frameworks.adapter(framework, "float32" if dtype == "tf32" else dtype, device)
    checks.number("time_limit", time_limit, above=0, high=MOST_SECONDS)
    checks.mapping("sizes", sizes)
    row = case_module.named(mechanism)[0]
    if lse:
        checks.choice("the mechanism of an lse", row.name, precision.LSE)
    known = {"d" + n for n in (*row.arguments, *row.optional, "bias", "log_length", "lse")}
    known |= {"gradients", "repeat"}
    for case in case_module.cases(mechanism):
        known |= {case.family, *case.flags}
    exclude = checks.several("exclude", exclude)
    for name in exclude:
        if not isinstance(name, str) or name not in known:
            near = checks.nearest(name, known)
            raise InputError(f"no option, family or gradient of {mechanism} is called "
                             f"{name!r}.{near}")
    checks.choice("conventions", conventions, ("any", "ours"))
    lacks = unasked(target.forward, sizes or {}) if row.name not in positions.ROWS else ()
    if "align" in lacks:
        target = target._replace(hidden=("align",))
    return Setup(target, adapter, frozenset(exclude), time_limit, lacks, [], conventions,
                 checks.number("repeat", repeat, 1, integer=True), dtype)


def unasked(forward, sizes):
    """What newer kernels do and others need not: asked for where the function takes it by name, or
    the sizes name Hkv. A function of ours that takes any name has all of them; another may not."""
    names = {"softcap", "log_length", "grouped", "align"}
    names -= {"grouped"} if "Hkv" in sizes else set()
    if packing.takes_any_name(forward):
        names -= {"align"}
        if (getattr(forward, "__module__", None) or "").startswith("minattn."):
            return ()
    return tuple(sorted(names - packing.parameters(forward).keys()))


@np.errstate(all="ignore")
def select(mechanism, cases=None, *, quick=False, thorough=False, seed=0, sizes=None, without=()):
    """The cases to run: a tuple of Case."""
    if quick and thorough:
        raise InputError("a check is quick or thorough, not both.")
    cases = (cases,) if isinstance(cases, str) else cases
    if cases is not None:
        cases = checks.several("cases", cases)
        if not cases:
            raise InputError("no cases were chosen; leave `cases` out for all of them.")
        if all(isinstance(c, (case_module.Case, case_module.Combination)) for c in cases):
            name = case_module.named(mechanism)[0].name
            checks.choice("the mechanism of these cases", cases[0].mechanism, (name,))
            return cases
        for glob in cases:
            checks.text("each of cases", glob)
    return case_module.cases(mechanism, seed=seed, quick=quick and cases is None, only=cases,
                             thorough=thorough, sizes=sizes, without=without)


@np.errstate(all="ignore")
def check_case(case, setup):
    """Run one case -> Result; whatever the function does, this returns."""
    reason, right = _not_covered(case, setup), None
    if not reason:
        right = yardstick(case, setup)
        reason = right.reason
    if reason:
        return Result(case.id, case.family, NOT_COVERED, reason=reason)
    start = time.perf_counter()
    found = judge(case, setup, right)
    if found.status == FAILED and found.findings[0].kind != "hang":
        other = by_convention(case, setup, right) if setup.conventions == "any" else None
        found = other or found._replace(hint=hint(case, setup, right) or found.hint)
    return found._replace(seconds=time.perf_counter() - start)


def yardstick(case, setup):
    through_lse = setup.target.lse and not setup.no_gradients and "dlse" not in setup.exclude
    return precision.yardstick(case, setup.dtype, setup.target.lse, bool(through_lse))


def judge(case, setup, right, empty=None):
    """Call the function, and compare -> Result

    empty: rows (B, H, Tq) that see nothing, to which a function may give what is known elsewhere;
    `reason` then says what it gives.
    """
    findings, tensors, further, said, reason = [], [], 0, "", ""
    try:
        wanted = ()
        if not setup.no_gradients:
            wanted = [n[1:] for n in right.truth if n[0] == "d" and n not in setup.exclude]
        one = partial(frameworks.run, setup.target, setup.adapter, case, arrays=case.arrays,
                      wanted=wanted, dlse=right.dlse)
        # a GPU may add up in another order at every call
        loose = {} if str(setup.adapter.device) == "cpu" else right.bounds
        first, again, bare, twin = limited(lambda: calls(case, setup, one, loose),
                                           setup.time_limit * setup.repeat)
        results = first.tensors
        if empty is not None:
            reason, results = excused(case, results, right.truth, empty, setup.adapter.dtype)
        tensors = [compare(n, x, right.truth[n], right.bounds[n]) for n, x in results.items()]
        findings += [*first.findings, *modified(case, first)]
        findings += [Finding("values" if np.isfinite(t.error) else "not finite", str(t))
                     for t in tensors if not t.ok]
        further, said = first.further, first.hint
        findings += [*again, *aliases(first, setup.adapter)]
        if bare is not None and not findings and empty is None:
            t = compare("out", bare.tensors["out"], right.truth["out"], right.bounds["out"])
            findings += [] if t.ok else [Finding("values", f"where no gradient is asked for, {t}")]
        if twin is not None:
            findings += independent(case, first, twin, loose)
    except Exception as error:
        findings.append(frameworks.raised(error, setup))
    findings = tuple(f._replace(message=one_line(f.message, 400)) for f in findings)
    return Result(case.id, case.family, FAILED if findings else PASSED, findings, tuple(tensors),
                  reason, further=further, hint=said)


def calls(case, setup, one, loose):
    """The call itself, what changes when it is repeated, one without gradients, and the twin's"""
    start = time.perf_counter()
    if "repeat" not in setup.exclude and (case.family == "positions" or longest(case) > LONG):
        with contextlib.suppress(Exception):                 # the same shapes, other options
            wanted = [n for n in one.keywords["wanted"] if n in case.arrays]
            frameworks.run(setup.target, setup.adapter, changed(case, options=others(case)),
                           **{**one.keywords, "wanted": wanted})
    first, again, twin = one(), [], None
    quick = time.perf_counter() - start < SLOW
    if "repeat" not in setup.exclude:
        other = {n: x / 2 for n, x in case.arrays.items()}
        second = one(between=lambda: one(arrays=other))      # a layer in which another one stands
        again = [*repeated(first, second, loose), *shared(first, second, setup.adapter)]
        if quick and setup.adapter.strided and "expanded" not in (case.layout, case.aside):
            again += repeated(first, one(refilled=True), loose,
                              " with the same arrays, in which other numbers stood before")
        for _ in range(setup.repeat - 1):
            again = again or list(repeated(first, one(), loose))
    by_itself = setup.target.backward is None and not setup.no_gradients
    bare = one(wanted=(), dlse=None) if by_itself else None
    if case.twin is not None:
        twin = one(arrays=case.twin)
    return first, again, bare, twin


def longest(case):
    return max((x.shape[2] for x in case.arrays.values() if x.ndim > 2), default=0)


def others(case):
    """Options for another call with the same shapes"""
    if case.family == "positions":
        row = positions.row(case.mechanism)
        kept = {n: x for n, x in case.options.items() if n in positions.LENGTHS.get(row.name, ())}
        plain = kept.keys() == case.options.keys()
        return {**kept, **(positions.OTHERS[row.name] if plain else {})}
    return {} if case.options else {"causal": True}


def by_convention(case, setup, right):
    """The Result of a case in which a function differs by nothing but a convention, or None"""
    if case.family == "positions":
        return None
    forms, (Tq, Tk) = [("", case, right)], (x.shape[2] for x in case_module.roles(case.arrays)[:2])
    if "align" in setup.unasked and Tq != Tk and case.options.keys() & {"causal", "window"}:
        other = changed(case, options={**case.options, "align": "start"})
        says = "causal masks are aligned at the start (at the end in minattn)"
        forms.append((says, other, yardstick(other, setup)))
    for says, other, right in forms:
        found = says and judge(other, setup, right)
        empty = ~case_module.seen(other.arrays, other.options).any(axis=-1)
        empty = np.broadcast_to(empty, case.cotangent.shape[:3])
        if not (found and found.status == PASSED) and empty.any():
            quiet = changed(other, cotangent=np.where(empty[..., None], 0, case.cotangent))
            found = judge(quiet, setup, right, empty)
            says = "; ".join(filter(None, (says, found.reason)))
        if found and says and found.status == PASSED:
            return found._replace(status=DIFFERS, reason=says)
    return None


def excused(case, tensors, truth, empty, dtype):
    """What a function gives for rows that see nothing, and its tensors but for what that changes"""
    v = case_module.roles(case.arrays)[2]
    (B, H, _), eps = empty.shape, FORMATS[dtype].eps
    means = np.repeat(v.mean(axis=2, keepdims=True), H // v.shape[1], axis=1)
    if np.isnan(tensors["out"][empty]).all():
        says = "NaN"
    elif (np.abs(tensors["out"] - means)[empty] <= 8 * eps * np.abs(v).max()).all():
        says = "the mean of all values"
    else:
        return "", tensors
    found = {}
    for name, x in tensors.items():
        excuse = empty[..., None]
        if name != "out":                                    # NaN, where such a row may reach
            excuse = np.isnan(x)
            if name != "dbias" and x.ndim == 4 and H % x.shape[1] == 0:
                heads = empty.any(axis=2).reshape(B, x.shape[1], -1).any(axis=2)
                excuse = excuse & heads[..., None, None]
        found[name] = np.where(excuse, truth[name], x)
    return f"rows that see nothing are {says} (0 in minattn)", found


def changed(case, **changes):
    """A copy of a case, or of a combination"""
    same = {n: getattr(case, n) for n in case_module.Case._fields}
    return case_module.Case(**{**same, **changes})


def hint(case, setup, right):
    """What would make a plain case right, in a sentence; empty if nothing known does"""
    if case.family not in PLAIN:
        return ""
    layout, = {*frameworks.LAYOUTS} - {setup.target.layout}
    turned = setup._replace(target=setup.target._replace(layout=layout))
    if judge(case, turned, right).status == PASSED:
        return f"your function seems to take ({', '.join(layout)}): --layout {layout}"
    return ""


def verdict(case, setup, rules=(), alive=lambda: None):
    """check_case in the light of a skip file's rules; of a failing combination, the smallest

    alive: called before each further try.
    """
    rule = next((rule for rule in rules if _matches(rule[0], case)), None)
    if rule is None:
        return smallest(case, setup, check_case(case, setup), alive)
    _, action, reason = rule
    if action == "skip":
        return Result(case.id, case.family, report.SKIPPED, reason=reason)
    result = check_case(case, setup)
    status = {FAILED: report.XFAILED, PASSED: report.XPASSED}.get(result.status, result.status)
    return result._replace(status=status, reason=result.reason or reason)


def smallest(case, setup, result, alive):
    """A result, with the smallest case that fails like it and what is found there.

    Of a failing combination the settings are made usual one by one, then the sizes small, as long
    as it goes on to fail. A case that holds the settings of one already found counts as that one.
    """
    sorts = {f.kind for f in result.findings}
    if result.status != FAILED or case.family != "combinations" or "hang" in sorts:
        return result
    if known := known_as(case, result, setup.shrunk):
        return known
    if len(setup.shrunk) == DIFFERENT or not setup.adapter.alive():
        return result
    small, found, until = case, result.findings, time.monotonic() + SHRINKING
    settings = [n for n in case.row if n not in covering.SIZED]
    for part in (*covering.STEPS, *settings, *covering.STEPS):   # small ones take less time
        for other in small.plainer(part) if setup.adapter.alive() else ():
            alive()
            tried = check_case(other, setup)
            now = {f.kind for f in tried.findings}
            if "hang" in now or time.monotonic() > until:
                return result
            if sorts & now:
                small, found = other, tried.findings
                break
    setup.shrunk.append((small.row, small.id, found))
    return result._replace(smallest=small.id, findings=found)


def known_as(case, result, shrunk):
    """The result of a failing combination as that of the first smallest case that it holds and
    fails like, or None"""
    sorts = {f.kind for f in result.findings}
    for row, name, found in shrunk:
        if sorts & {f.kind for f in found} and covering.holds(case.row, row, case.every):
            return result._replace(smallest=name, findings=found)
    return None


def _not_covered(case, setup):
    """Why a case is out of the question for this function; empty if it is not."""
    flags = case.flags | {case.family}
    if packing.form(case, setup.target.forward):             # takes it without a mask
        flags -= {"allowed"}
    excluded = sorted(setup.exclude & flags)
    if excluded:
        return f"you excluded {', '.join(excluded)}"
    if case.family == "non_contiguous" and not setup.adapter.strided:
        return f"arrays of {setup.adapter.name} have no strides"
    if case.family == "combinations" and "empty_rows" in setup.exclude:
        if not case_module.seen(case.arrays, case.options).any(axis=-1).all():
            return "you excluded empty_rows"
    if "align" in setup.unasked and case.options.get("align") == "start":
        return "it takes no align"
    return case.unmet


def compare(name, actual, truth, bound):
    """One tensor beside the truth; what is not finite is infinitely wrong."""
    known = np.isfinite(truth)                               # the lse of a row that sees nothing
    actual, truth = np.where(known, actual, 0), np.where(known, truth, 0)
    error = np.abs(actual - truth)
    error = np.where(np.isfinite(actual), error, np.inf)
    at = tuple(int(i) for i in np.unravel_index(np.argmax(error), error.shape))
    scale = float(np.sqrt(np.mean(truth**2)))
    rms = float(np.sqrt(np.mean(error**2)))
    ratio = rms / scale if scale else float(np.inf if rms else 0)
    return Tensor(name, float(error[at]), bound, ratio, at, float(truth[at]), float(actual[at]),
                  float(np.abs(truth).max(initial=0)))


def modified(case, run):
    """Did the call change what it was given?"""
    for name, x in {**case.arrays, **case.options, "dout": case.cotangent}.items():
        if name in run.inputs_after and not np.array_equal(run.inputs_after[name], x):
            yield Finding("modified inputs", f"changes its input {name} in place.")


def same(x, y, bound=0):
    """Equal bit for bit, or within a bound; NaN equals NaN"""
    return np.allclose(x, y, rtol=0, atol=bound, equal_nan=True)


def repeated(first, second, loose, how=""):
    """Does the same call give the same numbers again? loose: what each tensor may differ by"""
    for name, x in first.tensors.items():
        y = second.tensors.get(name)
        if y is None or not same(x, y, loose.get(name, 0)):
            by = "" if y is None else f", by up to {np.nanmax(np.abs(x - y)):.2g}"
            among = how or ("" if name == "out" else " and another one runs before its backward")
            yield Finding("not repeatable",
                          f"{name} is different when the same call is made again{among}{by}.")


def shared(first, second, adapter):
    """Is what two calls return the same memory, while both are in use?"""
    for name, x in first.returned.items():
        if name in second.returned and adapter.same_memory(x, second.returned[name]):
            yield Finding("shared output", f"{name} is the same memory at every call: the next "
                                           "call overwrites the result of the one before.")


def aliases(run, adapter):
    """Is an output the memory of an input?"""
    for name, x in run.given.items():
        if adapter.belongs(x) and adapter.same_memory(run.returned["out"], x):
            yield Finding("shared output", f"out is the memory of its input {name}: what changes "
                                           "one changes the other.")


def independent(case, run, twin, loose):
    """With sample 0 changed, is every other sample the same, bit for bit? loose: as in repeated"""
    for name, x in run.tensors.items():
        given = case.arrays.get(name[1:])
        output = name in ("out", "lse")
        per_sample = output or given is not None and given is not case.twin[name[1:]]
        if per_sample and not same(x[1:], twin.tensors[name][1:], loose.get(name, 0)):
            yield Finding("depends on batch",
                          f"{name} of sample 1 changes when only sample 0 of the batch is changed.")


class _Stop(BaseException):
    """Thrown into a thread whose time is up."""


def limited(work, seconds):
    """work() in a thread of its own -> its result, or its exception; Problem when the time is up.

    A loop in Python is stopped. A call that never comes back from C is left behind, and the program
    goes on without it.
    """
    box = []

    def body():
        try:
            box.append((work(), None))
        except BaseException as error:
            box.append((None, error))
    thread = threading.Thread(target=body, daemon=True, name="minattn-check")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident),
                                                   ctypes.py_object(_Stop))
        thread.join(1)
        raise Problem("hang", f"did not come back within {seconds:g} s.")
    value, error = box[0]
    if error is not None and not isinstance(error, Exception):
        kind = type(error).__name__
        raise Problem("raised", f"tried to end the program: {kind}: {one_line(error)}.")
    if error is not None:
        raise error
    return value


def read_skips(path, chosen=None):
    """The lines of a skip file: [(glob, "skip" or "xfail", reason)]; # starts a comment.

    chosen: the cases to run; a glob must match one of them, or one of any mechanism.
    """
    try:
        text = files.read_text(path, follow=True).removeprefix("\ufeff")
    except InputError as error:
        raise InputError(f"the skip file: {error}") from None
    lines = [line.split("#")[0].strip().split(maxsplit=2) for line in text.splitlines()]
    for number, words in enumerate(lines, 1):
        if words and (len(words) < 3 or words[1] not in ("skip", "xfail")):
            got = " ".join(words)
            raise InputError(f"{path}, line {number}: expected 'case-id-glob skip|xfail reason'; "
                             f"got {got!r}.")
    rules = [tuple(words) for words in lines if words]
    for glob, *_ in rules if chosen is not None else ():
        known = (case for name in MECHANISMS for case in case_module.cases(name))
        if not any(_matches(glob, case) for case in chain(chosen, known)):
            near = checks.nearest(glob, {case.id for case in chosen})
            raise InputError(f"{path}: {glob!r} matches no case.{near}")
    return rules


def _matches(glob, case):
    names = case.id, f"{case.mechanism}/{case.id}"
    return any(fnmatch.fnmatchcase(name, glob) for name in names)
