"""Random command lines that are wrong somewhere: a right one of each command, and a mutation."""
import argparse

from run_cases import TINY, flags

from minattn import cli, train

# values that no number, choice or path can be; the last two are numbers beyond every machine
WRONG = ("", " ", "x", "nan", "inf", "-inf", "1e400", "1.5", "-1", "0x10", "1e3", "²", "--", "-",
         "=", "[", "]]", "softmax[", "a=b", "/", ",", "+", "None", "true", "é\u0301", "\udc80",
         "\n", "../../..", "~", "x" * 5000, "[" * 3000, "9" * 400, "9" * 5000, "-" + "9" * 400,
         str(2**63), str(10**18), "1000000000000")

# what was found once is asked for ever; {home} has a run and a corpus
CORPUS = [
    "train --threads=--", "train --window=9223372036854775808", "train --n-layer 1000000000",
    "train --batch-size=1000000000", "train --n-embd=1000000000000000000", "train --preset=",
    "train --steps=" + "9" * 400, "train --warmup=" + "9" * 5000, "train --position rope[base=0]",
    "compare --attention softmax --n-layer 1000000000", "compare --attention softmax --workers=--",
    "bias --classes=" + "9" * 400, "bias --layers 1000000000", "bias --out=", "bias --seeds=--",
    "bias --seeds=" + "9" * 5000, "vision --attention softmax[layers=1000000000]",
    "check minattn.attention.softmax --sizes=D=²", "check --list --sizes=D=1000000000000000000",
    "check minattn.attention.softmax --sizes B=100000000", "check x:y --quick --time-limit=1e300",
    "check minattn.attention.softmax --sizes=D=" + "9" * 5000, "causality softmax --json=",
    "causality softmax --option=a=" + "[" * 10000, "sample {home}/run --top-k=" + "9" * 400,
]


def right(home):
    """A small right command line of each command: name -> words"""
    tiny = flags(**TINY | dict(corpus=home / "corpus.txt", steps=2))
    return {
        "train": [*tiny, "--out", str(home / "new")],
        "sample": [str(home / "run"), "--tokens", "2"],
        "compare": ["--attention", "softmax", *tiny, "--seeds", "0", "--workers", "1",
                    "--prefix-positions", "4", "--out", str(home / "compare")],
        "list": [],
        "check": ["minattn.attention.softmax", "--case", "plain", "--quick"],
        "causality": ["softmax", "--length", "6", "--forms", "prefix"],
        "vectors": ["header", str(home / "header.h")],
        "validate-self": ["--mutant", "no such"],
        "lessons": [],
        "inspect": [str(home / "run"), "--sequences", "1", "--out", str(home / "pictures")],
        "explore": [str(home / "none")],          # a right one would not end
        "bias": ["--classes", "8", "--steps", "2", "--sequences", "4", "--out", str(home / "bias")],
        "vision": ["--attention", "softmax[width=8,layers=1]", "--steps", "1", "--seeds", "0",
                   "--out", str(home / "vision")],
        "bench": ["--suite", "step", "--preset", "none"],
    }


def actions(command):
    """The flags of a command that take a value, with their argparse actions."""
    subs = next(a for a in cli.build_parser(command)._actions
                if isinstance(a, argparse._SubParsersAction))
    return [a for a in subs.choices[command]._actions if a.option_strings and a.nargs != 0]


def numeric(action):
    return action.type is not None and action.type is not str


def refused(rng, home):
    """A command line that must end with 2: a flag of numbers has a value that is none."""
    known = {name: [a for a in actions(name) if numeric(a)] for name in right(home)}
    name = rng.choice([name for name in known if known[name]])
    action = known[name][rng.integers(len(known[name]))]
    value = "None"
    while value in ("None", "0x10", "1000000000000"):          # --window None is one
        value = str(rng.choice(WRONG[:WRONG.index("true")] + WRONG[-7:-2]))
    if action.type in (float, train.number):
        value = str(rng.choice(["", "x", "nan", "inf", "1e400", "-1", "--", "²", "[" * 3000]))
    if action.dest == "seed" and value.isdecimal():             # any whole number is one
        value = "x"
    return [str(name), *right(home)[name], f"{action.option_strings[0]}={value}"]


def mutated(rng, home):
    """A command line with one or two mutations of any kind; it may still be right."""
    known = right(home)
    name = str(rng.choice(list(known)))
    words = [name, *known[name]]
    for _ in range(rng.integers(1, 3)):
        kind, at = rng.integers(6), int(rng.integers(1, len(words) + 1))
        value = str(rng.choice(WRONG))
        flags_ = actions(name)
        if kind <= 2 and flags_:
            flag = flags_[rng.integers(len(flags_))].option_strings[0]
            words += [f"{flag}={value}"] if rng.integers(2) else [flag, value]
        elif kind == 3 and at < len(words):
            words[at] = value
        elif kind == 4 and at < len(words):
            del words[at]
        else:
            words.insert(at, value)
    return words
