"""Does the kit find what it is made to find? Every mutant runs through every family, in float32.

The combinations of settings, which need no list of what goes wrong, are left out here.

    python -m minattn validate-self  # some five minutes; exit code 1 if a mutant survives
    python -m minattn validate-self --mutant 'sink_*'   # a few of them
    python -m minattn validate-self --show missing_scale

Per family it counts the mutants that it kills, and those that it alone kills: a family without any
of the latter could go and no mutant known here would notice, so KEPT says why it stays. The
causality certificate is another tool with the same purpose, so its three forms that apply to a
kernel are counted beside the families, not among them: "alone" means that no family of cases finds
it, or for a form that nothing else does.
"""
import fnmatch
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from minattn import checks
from minattn.attention import MECHANISMS
from minattn.errors import InputError
from minattn.validate import cases, families, mutants
from minattn.validate.report import write_file

# families that no mutant needs, and why they stay
KEPT = {
    "prime_sizes": "the plainest case of all: sizes are different primes, and nothing is special",
    "causal": "the plain statement of most kernels: the first to read when all of them fail",
    "noncausal": "what is left for a kernel without any mask, and the only case without an option",
    "padding": "the first case to read when a padding mask goes wrong",
    "packed": "for kernels that take cu_seqlens or segments, which no mutant does",
    "long": "several tiles and nothing else: to look at first when many large cases fail",
    "decode": "for kernels that take a block table, which no mutant does",
    "batch_independence": "says in words that sequences are mixed",
    "equal_scores": "a query of zeros; softmax has it elsewhere too, the others only here",
    "sink_far_below": "for kernels without masks and windows, which hidden_tiles needs",
    "repeated_tokens": "ties inside a causal row: sorting and caching by content go wrong here",
    "nearly_equal_scores": "rows in which lssa's weights fade, which other cases meet by chance",
    "forget_far": "keys left out by their gates alone, at gates as models have them",
    "all_scores_negative": "a dead row of ReLU weights: to look at when a layer does not learn",
    "support_of_one": "a gradient that is exactly 0: sorting and division at their edge",
    "many_small_terms": "for sums rounded to half precision; the mutants run in float32",
    "causality/suffix": "needs no right answer: serves whole models, to which no family applies",
    "causality/gradient": "as causality/suffix, for a leak through the backward alone",
    "causality/prefix": "as causality/suffix, for what depends on the length of the sequence",
}
FORMS = ("causality/suffix", "causality/gradient", "causality/prefix")


class Verdict(NamedTuple):
    """What became of one mutant."""
    mutant: mutants.Mutant
    killed: dict              # family -> what it found first
    seconds: float = 0.0

    @property
    def survives(self):
        return not self.killed


def judge(mutant, dtype="float32"):
    """Run one mutant through every family -> Verdict. The base itself (mutants.none) must pass."""
    from minattn.validate.check import check
    start, module = time.perf_counter(), in_float32(mutant.load(), dtype)
    killed = {}
    named = [f for f in cases.family_names(mutant.mechanism) if f != "combinations"]
    found = check(mutant.mechanism, module, dtype=dtype, cases=named, conventions="ours",
                  show=False)
    for result in found.failed:
        killed.setdefault(result.family, f"{result.id}: {result.findings[0].message}")
    if dtype == "float32":
        killed.update(causality_forms(mutant.mechanism, module))
    return Verdict(mutant, killed, time.perf_counter() - start)


def in_float32(module, dtype):
    """A module for arrays of another type, which computes in float32, as kernels do"""
    if dtype == "float32":
        return module

    def wide(x):
        return x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype != bool else x

    def forward(*arrays, **options):
        out, cache = module.forward(*map(wide, arrays), **{n: wide(x) for n, x in options.items()})
        return out.astype(arrays[0].dtype), cache

    def backward(dout, cache):
        grads = module.backward(wide(dout), cache)
        return {n: None if x is None else x.astype(dout.dtype) for n, x in grads.items()}
    return SimpleNamespace(forward=forward, backward=backward, __name__=module.__name__)


def causality_forms(mechanism, module):
    """The forms of the certificate that a kernel fails and should not: {"causality/suffix": why}"""
    from minattn.validate.causality import causality
    row, failed = MECHANISMS[mechanism], {}
    for variant in families.variants(row):
        options = {name: value for name, value in variant.items() if name in row.options}
        if row.leak(**options):
            continue
        forms = ["suffix", "gradient"]
        if not row.recompute(**options):
            forms.append("prefix")
        try:
            certificate = causality(module, mechanism=mechanism, options=options, forms=forms)
        except InputError:
            continue  # it cannot be run at all, which every family has seen
        for form, status in certificate.forms.items():
            if status == "fail":
                failed.setdefault(f"causality/{form}", certificate.findings[form][0])
    return failed


class Score(NamedTuple):
    """The kit against its mutants."""
    verdicts: tuple
    bases: tuple = ()         # of the base without a mutation: what kills one is a false alarm
    seconds: float = 0.0

    @property
    def ok(self):
        return not self.survivors and not self.alarms

    @property
    def alarms(self):
        return tuple(f"{v.mutant.mechanism}: {what}"
                     for v in self.bases for what in v.killed.values())

    @property
    def survivors(self):
        return tuple(v for v in self.verdicts if v.survives)

    def families(self):
        """family -> (mutants that it kills, those of them that it alone kills)"""
        mechanisms = dict.fromkeys(v.mutant.mechanism for v in self.verdicts)
        families = [f for name in mechanisms for f in cases.family_names(name)
                    if f != "combinations"]
        counts = {f: ([], []) for f in (*families, *FORMS)}
        for v in self.verdicts:
            of_cases = [f for f in v.killed if f not in FORMS]
            for family in v.killed:
                counts[family][0].append(v.mutant.name)
                if [family] == (of_cases or list(v.killed)):
                    counts[family][1].append(v.mutant.name)
        return counts

    def __str__(self):
        lines = [f"{'mutant':<30}{'mechanism':<12}{'in the':<10}killed by"]
        lines += [_line(v) for v in self.verdicts]
        lines += ["", f"{'family':<22}{'kills':>6}{'alone':>7}  the only one to find"]
        unneeded = []
        for family, (kills, alone) in self.families().items():
            named = ", ".join(alone[:3]) + (f" and {len(alone) - 3} more" if len(alone) > 3 else "")
            lines.append(f"{family:<22}{len(kills):>6}{len(alone):>7}  {named}".rstrip())
            if not alone:
                unneeded.append(family)
        if unneeded and len(self.verdicts) == len(mutants.MUTANTS):
            lines += ["", "families that find nothing alone, and why they stay:"]
            silent = "NO REASON GIVEN: remove it, or say why in KEPT"
            lines += [f"  {f:<20}{KEPT.get(f, silent)}" for f in unneeded]
        for v in self.survivors:
            lines += ["", f"SURVIVES {v.mutant.name} ({v.mutant.mechanism}): {v.mutant.wrong}",
                      *(f"    {line}" for line in v.mutant.change.splitlines())]
        if self.alarms:
            lines += ["", *(f"FALSE ALARM, nothing is wrong with {alarm}" for alarm in self.alarms)]
        dead = len(self.verdicts) - len(self.survivors)
        last = f"{dead} of {len(self.verdicts)} mutants killed in {self.seconds:.0f} s"
        return "\n".join([*lines, "", last])

    def to_json(self):
        verdicts = [{**v.mutant._asdict(), "killed": v.killed, "seconds": round(v.seconds, 3)}
                    for v in self.verdicts]
        families = {family: {"kills": len(kills), "alone": alone}
                    for family, (kills, alone) in self.families().items()}
        return {"ok": self.ok, "mutants": len(self.verdicts),
                "survivors": [v.mutant.name for v in self.survivors], "alarms": self.alarms,
                "seconds": round(self.seconds, 1), "verdicts": verdicts, "families": families}


def score(chosen=None, *, dtype="float32", progress=False):
    """Judge the mutants (all if None), and first the base of each of their mechanisms -> Score"""
    start = time.perf_counter()
    chosen = list(mutants.MUTANTS.values() if chosen is None else chosen)
    bases = [mutants.none(name) for name in dict.fromkeys(m.mechanism for m in chosen)]
    queue = [*bases, *chosen]
    if progress:
        from tqdm import tqdm
        queue = tqdm(queue, unit="mutant", leave=False)
    verdicts = tuple(judge(m, dtype) for m in queue)
    return Score(verdicts[len(bases):], verdicts[:len(bases)], time.perf_counter() - start)


def select(globs=None, mechanism=None):
    """The mutants by name and mechanism; InputError where nothing matches."""
    if mechanism is not None:
        checks.choice("--mechanism", mechanism, MECHANISMS)
    for glob in globs or ():
        if not fnmatch.filter(mutants.MUTANTS, glob):
            near = checks.nearest(glob, mutants.MUTANTS)
            raise InputError(f"no mutant is called {glob!r}; --list shows them all.{near}")
    chosen = [m for m in mutants.MUTANTS.values() if mechanism in (None, m.mechanism)
              and (not globs or any(fnmatch.fnmatchcase(m.name, glob) for glob in globs))]
    if not chosen:
        wanted = " or ".join(globs or ["anything"])
        raise InputError(f"no mutant of {mechanism} is called {wanted}; --list shows them all.")
    return chosen


def _line(verdict):
    m, killed = verdict.mutant, list(verdict.killed)
    by = ", ".join(killed)
    if len(killed) > 4:
        by = f"{len(killed)} families: {', '.join(killed[:3])}, ..."
    return f"{m.name:<30}{m.mechanism:<12}{_half(m):<10}{by or 'NOTHING: it survives'}"


def _half(mutant):
    return "backward" if mutant.backward else "forward"


# -------------------------------------------------------------------------------- the command line


def add_arguments(parser):
    parser.add_argument("--mutant", action="append", metavar="GLOB",
                        help="run only these mutants; may be repeated")
    parser.add_argument("--mechanism", help="only the mutants of this mechanism")
    parser.add_argument("--dtype", default="float32",
                        help="of inputs and results: float32 (default), or bfloat16 or float16, in "
                             "which mutants compute in float32 and certificates are left out")
    parser.add_argument("--list", action="store_true",
                        help="show the mutants, with what is wrong in each, and exit")
    parser.add_argument("--show", metavar="NAME",
                        help="show the lines in which a mutant differs, and exit")
    parser.add_argument("--json", metavar="FILE", help="write the score as JSON")


def run(args):
    """-> exit code 0: every mutant was found; 1: one was not, or the base was accused."""
    if args.show is not None:
        checks.choice("--show", args.show, mutants.MUTANTS)
        m = mutants.MUTANTS[args.show]
        print(f"{m.name} ({m.mechanism}): {m}\n{m.change}")
        return 0
    chosen = select(args.mutant, args.mechanism)
    if args.json is not None and not Path(args.json).parent.is_dir():
        raise InputError(f"cannot write {args.json}: there is no folder {Path(args.json).parent}.")
    if args.list:
        for m in chosen:
            print(f"{m.name:<30}{m.mechanism:<12}{_half(m):<10}{m}")
        return 0
    checks.choice("--dtype", args.dtype, ("float32", "bfloat16", "float16"))
    found = score(chosen, dtype=args.dtype, progress=sys.stderr.isatty())
    print(found)
    if args.json is not None:
        write_file(args.json, json.dumps(found.to_json(), indent=1))
    return 0 if found.ok else 1
