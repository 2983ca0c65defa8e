"""Implementations that are wrong on purpose: a tool that claims to find bugs should find these.

A mutant is minattn/attention/naive.py with a line or two changed. Each mechanism has a file of
them, mutants/NAME.txt, with a section [forward] and a section [backward]; each mutant is written
like a diff:

    name: what is wrong
    seen in the released software where it happened
    - the lines of naive.py, in a row, whatever their indentation
    + what stands there instead

If the kit lets one pass, it has a hole; and a family of cases that no mutant needs must say why it
is there: python -m minattn validate-self.
"""
import ast
import re
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from minattn.attention import MECHANISMS, naive
from minattn.errors import InputError

CHANGE = re.compile(r"((?:^-.*\n?)+)((?:^\+.*\n?)+)", re.M)


class Mutant(NamedTuple):
    name: str
    mechanism: str
    wrong: str                # what is wrong, in one sentence
    change: str               # lines with - and +, as above
    backward: bool = False    # the forward is right, the gradients are not
    bug: str = ""             # the released software in which it happened

    def __str__(self):
        return f"{self.wrong} ({self.bug})" if self.bug else self.wrong

    def load(self):
        """A fresh module with forward and backward of this mutant."""
        module = ModuleType(f"minattn.validate.mutants.{self.name}")
        exec(compile(self.source(), f"<mutant {self.name}>", "exec"), module.__dict__)
        module.forward = getattr(module, self.mechanism + "_forward")
        module.backward = getattr(module, self.mechanism + "_backward")
        return module

    def source(self):
        """The whole text; InputError unless naive.py holds the lines to change exactly once."""
        lines = list(base(self.mechanism))
        for old, new in CHANGE.findall(self.change):
            old, new = ([line[2:] for line in part.splitlines()] for part in (old, new))
            code = [line.split("  # ")[0].strip() for line in lines]
            wanted = [line.strip() for line in old]
            found = [i for i in range(len(lines)) if code[i:i + len(old)] == wanted]
            if len(found) != 1:
                raise InputError(f"mutant {self.name!r}: naive.py has {old[0]!r} {len(found)} "
                                 "times, not once.")
            first = lines[found[0]]
            indent = first[:len(first) - len(first.lstrip())]
            lines[found[0]:found[0] + len(old)] = [indent + line for line in new]
        return "\n".join(lines)


@lru_cache(maxsize=32)
def base(mechanism):
    """The lines of naive.py less the pairs of other mechanisms, which may hold the same lines."""
    text = Path(naive.__file__).read_text(encoding="utf-8")
    others = {f"{name}_{way}" for name in MECHANISMS if name != mechanism
              for way in ("forward", "backward")}
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        if getattr(node, "name", None) in others:
            del lines[node.lineno - 1:node.end_lineno]
    return tuple(lines)


def none(mechanism):
    """The base itself, with nothing wrong."""
    return Mutant("none", mechanism, "nothing is wrong", "")


def read(mechanism):
    """The mutants of one mechanism, in order; none where it has no file."""
    path = Path(__file__).with_name("mutants") / f"{mechanism}.txt"
    backward = False
    for block in path.read_text(encoding="utf-8").strip().split("\n\n") if path.exists() else ():
        title, *change = block.splitlines()
        if title.startswith("["):
            backward = title == "[backward]"
            continue
        bug = change.pop(0).removeprefix("seen in ") if change[0].startswith("seen in ") else ""
        name, wrong = title.split(": ", 1)
        yield Mutant(name, mechanism, wrong, "\n".join(change), backward, bug)


MUTANTS = {m.name: m for mechanism in MECHANISMS for m in read(mechanism)}
