"""A small grammar that writes endless plays: the corpus for machines without a network.

builtin_corpus.json holds the words and templates. A template is a line of text with slots, such as
"The {a2} {P2} {V} the {a2} {t1}."; each slot is filled with a random word of its class. The digit
counts syllables (1 = king, 2 = captain, stressed on the first), so the verse falls into rough
iambic pentameter. Slots in capitals agree in number: the template above stands for two, one with
"captain keeps" and one with "captains keep". " / " breaks a verse line. Each scene has a theme,
whose things are named more often. Every word and template was written for this project.

The text is the same on every platform and Python: its only source of chance is
random.Random(seed).random(), the one method whose sequence Python promises never to change, and
only IEEE multiplication and comparison are applied to it.
"""
import json
import re
import textwrap
from pathlib import Path
from random import Random

TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
THEMES = TABLES["themes"]                                    # [{"t1": things, "t2": things}, ...]
NUMBERS = ["ONE", "TWO", "THREE", "FOUR", "FIVE"]
WORDS = {name: " ".join(lines).split() for name, lines in TABLES["words"].items()}
for _forms, _verbs in TABLES["verbs"].items():               # "v vd vn": base, past, participle
    WORDS.update(zip(_forms.split(), zip(*[verb.split() for verb in _verbs])))
for _noun in ("t1", "t2"):
    WORDS[_noun] = sorted({word for theme in THEMES for word in theme[_noun].split()})
for _plain, _with_s in TABLES["with_s"].items():
    WORDS[_with_s] = [word + "s" for word in WORDS[_plain]]


def _compile(lines):
    """Templates -> [(format string, names of its slots)], both numbers of those that have two."""
    compiled = []
    for line in lines:
        singular = plural = line.replace(" / ", "\n")
        for slot, (one, many) in TABLES["agreement"].items():
            singular = singular.replace(f"{{{slot}}}", one)
            plural = plural.replace(f"{{{slot}}}", many)
        for template in dict.fromkeys([singular, plural]):         # once if the two are the same
            slots = re.findall(r"\{(\w+)\}", template)
            compiled.append((re.sub(r"\{\w+\}", "%s", template), slots))
    return compiled


TEMPLATES = {name: _compile(lines) for name, lines in TABLES["templates"].items()}
CAST = TABLES["cast"]       # name -> what others call them, how they address them, their habits ...
HABITS = {name: _compile(person["habits"]) for name, person in CAST.items()}


def _pick(random, pool):
    return pool[int(random() * len(pool))]


def _sample(random, pool, count):
    pool = list(pool)
    return [pool.pop(int(random() * len(pool))) for _ in range(count)]


def _fill(random, templates, words):
    line, slots = _pick(random, templates)
    line = line % tuple([_pick(random, words[slot]) for slot in slots])
    return line[0].upper() + line[1:]


def _speech(random, name, words, cue):
    """What `name` says to a speech that ended in `cue`: first a reply, then lines of their own."""
    prose = CAST[name]["prose"]
    lines = []
    if random() < (0.8 if cue in "?!" else 0.15):
        replies = {"?": "answers", "!": "reactions"}.get(cue, "openers")
        lines.append(_fill(random, TEMPLATES[replies], words))
    if not lines or random() < 0.7:
        habit = int(random() * 3)                        # at most one line of a speech is a habit
        own = TEMPLATES["prose" if prose else "verse"]
        for i in range(1 + int(random() * random() * 6)):
            lines.append(_fill(random, HABITS[name] if i == habit else own, words))
    return textwrap.fill(" ".join(lines), 66, break_on_hyphens=False) if prose else "\n".join(lines)


def _scene(random, cast):
    """One scene, from "Enter" to "Exeunt", for some of the `cast`: a list of paragraphs."""
    here = _sample(random, cast, 2 + int(random() * 3))
    words = dict(WORDS)
    for noun, things in _pick(random, THEMES).items():
        theme = 8 * things.split()
        words[noun] = WORDS[noun] + theme
        words[noun + "s"] = WORDS[noun + "s"] + [word + "s" for word in theme]

    paragraphs = ["Enter " + ", ".join(here[:-1]) + " and " + here[-1] + "."]
    speaker, other, cue = here[0], here[1], "."
    for _ in range(10 + int(random() * 25)):
        absent = _pick(random, [name for name in cast[:6] if name not in here])
        words.update(N=[CAST[other]["called"]], M=[CAST[absent]["called"]],
                     title=CAST[other]["titles"], NAME=[speaker], OTHER=[other])
        speech = _speech(random, speaker, words, cue)
        paragraphs.append(f"{speaker}:\n{speech}")
        cue = speech[-1]
        if random() < 0.06:
            paragraphs.append(_fill(random, TEMPLATES["directions"], words))
        if len(here) > 2 and random() < 0.05:
            paragraphs.append(f"Exit {speaker}.")
            here.remove(speaker)
        elif len(here) < 5 and random() < 0.04:
            newcomer = _pick(random, [name for name in cast if name not in here])
            paragraphs.append(f"Enter {newcomer}.")
            here.append(newcomer)
            speaker, other, cue = newcomer, speaker, "."
            continue
        # Mostly the one spoken to answers, as long as they are still here.
        before = speaker
        if other not in here or random() < 0.3:
            speaker = _pick(random, [name for name in here if name != before])
        else:
            speaker = other
        other = before
        if before not in here:
            other = _pick(random, [name for name in here if name != speaker])
    if random() < 0.6:                                       # a couplet: two words that rhyme
        family = _pick(random, TABLES["rhymes"]).split()
        words["r"], words["s"] = ([word] for word in _sample(random, family, 2))
        paragraphs.append(f"{speaker}:\n{_fill(random, TEMPLATES['couplets'], words)}")
    return paragraphs + ["Exeunt."]


def text(n_chars=1_000_000, seed=1):
    """Write plays, act after act, and return their first n_chars characters (str).

    The same for every platform and Python; a shorter text is the beginning of a longer one.
    Raises ValueError if n_chars is below 1.
    """
    if n_chars < 1:
        raise ValueError(f"n_chars must be at least 1, got {n_chars}")
    random = Random(seed).random
    names, minor = list(CAST)[:12], list(CAST)[12:]
    parts, written = [], 0
    while True:
        cast = _sample(random, names, 6) + _sample(random, minor, 2)
        kind = _pick(random, ["TRAGEDY", "COMEDY", "HISTORY", "DREAM"])
        subject = f"{_pick(random, WORDS['a2'])} {_pick(random, WORDS['t2'])}"
        heading = f"THE {kind} OF THE {subject}\n\n".upper()
        for act in NUMBERS:
            heading += f"ACT {act}\n\n"
            for scene in NUMBERS[:2 + int(random() * 3)]:
                place = _pick(random, TABLES["places"]).capitalize()
                part = f"{heading}SCENE {scene}. {place}.\n\n"
                part += "\n\n".join(_scene(random, cast)) + "\n\n"
                parts.append(re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", part))
                written += len(parts[-1])
                heading = ""
                if written >= n_chars:
                    return "".join(parts)[:n_chars]
