"""Does the kit find what it is made to find? Every mutant goes through every family of cases, in float32.

    python -m minattn validate-self                     # some two minutes; exit code 1 if a mutant survives
    python -m minattn validate-self --mutant 'sink_*'   # a few of them
    python -m minattn validate-self --show missing_scale

Per family it counts the mutants that it kills, and those that it alone kills: a family without any of the latter could
go and no mutant known here would notice, so KEPT says why it stays. The three forms of the causality certificate that
apply to a kernel count as families of their own.
"""
import fnmatch
import json
import sys
import time
from typing import NamedTuple

from minattn import checks
from minattn.attention import MECHANISMS
from minattn.errors import InputError
from minattn.validate import families, mutants

# families that no mutant needs, and why they stay
KEPT = {
    "causal": "the plain statement of what most kernels are for: the first case to read when everything else fails too",
    "noncausal": "all that is left for a kernel without masks, and the only case without an option of any kind",
    "identical_tokens": "deviations and distances of exactly 0; one_token meets them too, but has no second row to break",
    "repeated_tokens": "ties inside a causal row: sorting, caching by content and top-k go wrong here first",
    "causality/suffix": "needs no right answer to compare with: it serves whole models, where no family of cases applies",
    "causality/gradient": "finds a leak through the backward alone, for whole models too",
    "causality/prefix": "finds what depends on the length of the sequence, for whole models too",
}


class Verdict(NamedTuple):
    """What became of one mutant."""
    mutant: mutants.Mutant
    killed: dict              # family -> what it found first
    seconds: float = 0.0

    @property
    def survives(self):
        return not self.killed


def judge(mutant):
    """Send one mutant through every family -> Verdict. The base itself (mutants.none) must come back unscathed."""
    from minattn.validate.check import check
    start, module = time.perf_counter(), mutant.load()
    killed = {}
    for result in check(mutant.mechanism, module, show=False).failed:
        killed.setdefault(result.family, f"{result.id}: {result.findings[0].message}")
    return Verdict(mutant, {**killed, **_causality(mutant.mechanism, module)}, time.perf_counter() - start)


def _causality(mechanism, module):
    """The forms of the certificate that this kernel fails and should not."""
    from minattn.validate.causality import causality
    row, failed = MECHANISMS[mechanism], {}
    for variant in ({}, *families.VARIANTS.get(mechanism, ())):
        options = {name: value for name, value in variant.items() if name in row.options}
        if row.leak(**options):
            continue
        forms = ("suffix", "gradient") if row.recompute(**options) else ("suffix", "gradient", "prefix")
        try:
            certificate = causality(module, mechanism=mechanism, options=options, forms=forms)
        except InputError:
            continue                                         # it cannot be run at all, which every family has seen
        for form, status in certificate.forms.items():
            if status == "fail":
                failed.setdefault(f"causality/{form}", certificate.findings[form][0])
    return failed


class Score(NamedTuple):
    """The kit against its mutants."""
    verdicts: tuple
    seconds: float = 0.0

    @property
    def survivors(self):
        return tuple(v for v in self.verdicts if v.survives)

    def families(self):
        """family -> (mutants that it kills, those of them that it alone kills)"""
        counts = {}
        for v in self.verdicts:
            for family in v.killed:
                both = counts.setdefault(family, ([], []))
                both[0].append(v.mutant.name)
                if len(v.killed) == 1:
                    both[1].append(v.mutant.name)
        order = [f for name in MECHANISMS for f in _families(name)]
        return {f: counts.get(f, ([], [])) for f in dict.fromkeys([*order, *counts])}

    def __str__(self):
        lines = [f"{'mutant':<30}{'mechanism':<12}{'in the':<10}killed by"]
        lines += [_line(v) for v in self.verdicts]
        lines += ["", f"{'family':<22}{'kills':>6}{'alone':>7}  the only one to find"]
        unneeded = []
        for family, (kills, alone) in self.families().items():
            named = ", ".join(alone[:3]) + (f" and {len(alone) - 3} more" if len(alone) > 3 else "")
            lines.append(f"{family:<22}{len(kills):>6}{len(alone):>7}  {named}".rstrip())
            unneeded += [family] * (not alone)
        if unneeded:
            lines += ["", "families that find nothing alone, and why they stay:"]
            lines += [f"  {f:<20}{KEPT.get(f, 'NO REASON GIVEN: remove it, or say why in self_check.KEPT')}" for f in unneeded]
        for v in self.survivors:
            lines += ["", f"SURVIVES {v.mutant.name} ({v.mutant.mechanism}): {v.mutant.wrong}",
                      *(f"    {line}" for line in v.mutant.diff().splitlines())]
        dead = len(self.verdicts) - len(self.survivors)
        return "\n".join([*lines, "", f"{dead} of {len(self.verdicts)} mutants killed in {self.seconds:.0f} s"])

    def to_json(self):
        return {"mutants": len(self.verdicts), "killed": len(self.verdicts) - len(self.survivors),
                "seconds": round(self.seconds, 1),
                "families": {f: {"kills": len(kills), "alone": alone} for f, (kills, alone) in self.families().items()},
                "verdicts": [{"name": v.mutant.name, "mechanism": v.mutant.mechanism, "backward": v.mutant.backward,
                              "wrong": v.mutant.wrong, "bug": v.mutant.bug, "killed": v.killed} for v in self.verdicts]}


def score(chosen=None, *, progress=False):
    """Judge the mutants (all if None) -> Score"""
    start = time.perf_counter()
    chosen = list(mutants.MUTANTS.values() if chosen is None else chosen)
    if progress:
        from tqdm import tqdm
        chosen = tqdm(chosen, unit="mutant", leave=False)
    return Score(tuple(judge(m) for m in chosen), time.perf_counter() - start)


def select(globs=None, mechanism=None):
    """The mutants by name and mechanism; InputError where nothing matches."""
    if mechanism is not None:
        checks.choice("--mechanism", mechanism, MECHANISMS)
    for glob in globs or ():
        if not fnmatch.filter(mutants.MUTANTS, glob):
            raise InputError(f"no mutant is called {glob!r}; --list shows them all.{checks.nearest(glob, mutants.MUTANTS)}")
    chosen = [m for m in mutants.MUTANTS.values() if mechanism in (None, m.mechanism)
              and (not globs or any(fnmatch.fnmatchcase(m.name, glob) for glob in globs))]
    if not chosen:
        raise InputError(f"no mutant of {mechanism} is called {' or '.join(repr(g) for g in globs)}; --list shows them all.")
    return chosen


def _families(mechanism):
    from minattn.validate.cases import family_names
    return (*family_names(mechanism), "causality/suffix", "causality/gradient", "causality/prefix")


def _line(verdict):
    m, killed = verdict.mutant, list(verdict.killed)
    by = ", ".join(killed) if len(killed) <= 4 else f"{len(killed)} families: {', '.join(killed[:3])}, ..."
    return f"{m.name:<30}{m.mechanism:<12}{'backward' if m.backward else 'forward':<10}{by or 'NOTHING: it survives'}"


# --------------------------------------------------------------------------------------------------- the command line


def add_arguments(parser):
    parser.add_argument("--mutant", action="append", metavar="GLOB", help="only these mutants; may be repeated")
    parser.add_argument("--mechanism", help="only the mutants of this mechanism")
    parser.add_argument("--list", action="store_true", help="show the mutants, with what is wrong in each, and stop")
    parser.add_argument("--show", metavar="NAME", help="show the lines in which a mutant differs, and stop")
    parser.add_argument("--json", metavar="FILE", help="write the score as JSON")


def run(args):
    """Answer what the arguments ask -> exit code: 0 every mutant was found, 1 one survived or the clean base did not pass."""
    if args.show is not None:
        checks.choice("--show", args.show, mutants.MUTANTS)
        m = mutants.MUTANTS[args.show]
        print(f"{m.name} ({m.mechanism}): {m.wrong}" + f" ({m.bug})" * bool(m.bug) + f"\n{m.diff()}")
        return 0
    chosen = select(args.mutant, args.mechanism)
    if args.list:
        for m in chosen:
            print(f"{m.name:<30}{m.mechanism:<12}{'backward' if m.backward else 'forward':<10}{m.wrong}"
                  + f" ({m.bug})" * bool(m.bug))
        return 0
    clean = [judge(mutants.none(name)) for name in dict.fromkeys(m.mechanism for m in chosen)]
    alarms = [f"FALSE ALARM: {v.mutant.mechanism} without any mutation fails {what}" for v in clean for what in v.killed.values()]
    found = score(chosen, progress=sys.stderr.isatty())
    print("\n".join([str(found), *alarms]))
    if args.json is not None:
        try:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(found.to_json(), file, indent=1)
        except OSError as error:
            raise InputError(f"cannot write {args.json}: {error.strerror}.") from None
    return 1 if found.survivors or alarms else 0
