"""Implementations that are wrong on purpose: whoever claims to find bugs should find these.

A mutant is minattn/validate/mutants_base.py, one plain dense implementation of every mechanism, with a line or two
changed. They stand in mutants_softmax.py (scores, masks, softmax, values), mutants_mechanisms.py (what each mechanism
adds) and mutants_backward.py (gradients), written like a diff:

    [mechanism]

    name: what is wrong (seen in the released software where it happened)
    - the lines of the base, in a row, whatever their indentation
    + what stands there instead

A kit that lets one of them pass has a hole, and a family of cases without which all of them would still be found must
say why it is there: python -m minattn validate-self.
"""
import re
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from minattn.errors import InputError
from minattn.validate import mutants_backward, mutants_base, mutants_mechanisms, mutants_softmax

TITLE = re.compile(r"(\w+): (.+?)(?: \(seen in (.+)\))?$")


class Mutant(NamedTuple):
    name: str
    mechanism: str
    wrong: str                # what is wrong, in one sentence
    change: str               # lines with - and +, as above
    backward: bool = False    # the forward is right, the gradients are not
    bug: str = ""             # the released software in which it happened

    def load(self):
        """A fresh module with forward and backward of this mutant."""
        module = ModuleType(f"minattn.validate.mutants.{self.name}")
        exec(compile(self.source(), f"<mutant {self.name}>", "exec"), module.__dict__)
        module.forward = getattr(module, self.mechanism + "_forward")
        module.backward = getattr(module, self.mechanism + "_backward")
        return module

    def source(self):
        """The whole text; InputError where the base no longer holds the lines that were to be changed."""
        lines = list(base())
        for old, new in re.findall(r"((?:^-.*\n?)+)((?:^\+.*\n?)+)", self.change, re.M):
            old, new = ([line[2:] for line in part.splitlines()] for part in (old, new))
            code = [line.split("  # ")[0].strip() for line in lines]
            found = [i for i in range(len(lines)) if code[i:i + len(old)] == [line.strip() for line in old]]
            if len(found) != 1:
                raise InputError(f"mutant {self.name!r}: mutants_base.py has {old[0]!r} {len(found)} times, not once.")
            indent = lines[found[0]][:-len(lines[found[0]].lstrip())]
            lines[found[0]:found[0] + len(old)] = [indent + line for line in new]
        return "\n".join(lines)


@lru_cache(maxsize=1)
def base():
    return tuple(Path(mutants_base.__file__).read_text(encoding="utf-8").splitlines())


def none(mechanism):
    """The base itself, with nothing wrong."""
    return Mutant("none", mechanism, "nothing is wrong", "")


def read(text, backward):
    """The mutants of one text, in order."""
    mechanism = None
    for block in re.split(r"\n\s*\n", text.strip()):
        title, *change = block.splitlines()
        if title.startswith("["):
            mechanism = title.strip("[]")
            continue
        name, wrong, bug = TITLE.match(title).groups()
        yield Mutant(name, mechanism, wrong, "\n".join(change), backward, bug or "")


MUTANTS = {m.name: m for text, backward in ((mutants_softmax.TEXT, False), (mutants_mechanisms.TEXT, False),
                                            (mutants_backward.TEXT, True)) for m in read(text, backward)}
