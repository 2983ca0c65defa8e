"""One spelling for mechanisms and positions, everywhere: read here and printed here.

    energy[norm=prefix]            a name, its options in square brackets
    affine[length=visible]+gated   "+" puts a gate on top; learned+rope uses two positions
    energy/softmax                 "/" between layers: the layers alternate
    softmax,energy/softmax         "," between variants, where a command takes several
"""
import re
from typing import NamedTuple

from minattn import checks
from minattn.errors import InputError


class Part(NamedTuple):
    """One name with its options."""
    name: str
    options: dict

    def __str__(self):
        inside = ",".join(f"{name}={_word(value)}" for name, value in self.options.items()
                          if value is not None)                     # None: not given
        return f"{self.name}[{inside}]" if inside else self.name


def parse(what, text):
    """"energy[norm=key]+gated/softmax" -> [[Part, Part], [Part]], a list of parts for each layer.

    what: "attention" or "position", for the error. "," between layers, an older spelling, is read
    too. Raises InputError for text that is not of this form.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} must be a string such as energy[norm=key]; got {text!r}.")
    return [[_part(what, part, text) for part in _split(layer, "+")]
            for layer in _split(text, "/,")]


def show(layers):
    """The inverse of parse, in the one canonical spelling."""
    return "/".join("+".join(map(str, parts)) for parts in layers)


def variants(what, text):
    """"softmax, energy[norm=key,eps=0]" -> ["softmax", "energy[norm=key,eps=0]"]"""
    if "" in (variant.strip() for variant in _split(text, ",")):
        raise InputError(f"{what} {text!r} contains an empty name.")
    return [show(parse(what, variant)) for variant in _split(text, ",")]


def with_options(what, layers, options, known):
    """The layers, each part with those of these options that it knows; known: name -> {option: ...}

    Raises InputError for an option that no part knows, or that a part has already with another
    value.
    """
    parts = [part for layer in layers for part in layer]
    for name in options:
        if not any(name in known(part.name) for part in parts):
            takes = ", ".join(dict.fromkeys(n for part in parts for n in known(part.name)))
            raise InputError(f"{show(layers)} has no {what} option {name!r}; it takes "
                             f"{takes or 'no options'}.{checks.nearest(name, takes.split(', '))}")
    return [[_extended(what, part, options, known(part.name)) for part in layer]
            for layer in layers]


def option(text):
    """"NAME=VALUE" -> (name, value): a number, true, false, or a word."""
    name, equals, value = (word.strip() for word in text.partition("="))
    if not equals or not name or not value:
        raise InputError(f"option {text!r} is not NAME=VALUE.")
    return name.replace("-", "_"), _value(value)


def _split(text, separators):
    """Split where one of these characters stands outside of brackets."""
    return re.split(rf"[{separators}](?![^\[]*\])", text)


def _part(what, text, whole):
    if whole.count("[") != whole.count("]"):
        raise InputError(f"{what} {whole!r}: unbalanced brackets; write energy[norm=key].")
    if not text.strip():
        raise InputError(f"{what} {whole!r} contains an empty name.")
    if ":" in text:
        name, *inside = text.strip().split(":")
        raise InputError(f"{what} {whole!r}: write {name}[{','.join(inside)}].")
    found = re.fullmatch(r"\s*([\w-]+)\s*(?:\[([^\[\]]*)\])?\s*", text)
    if not found:
        raise InputError(f"{what} {whole!r}: expected NAME or NAME[OPTION=VALUE,...], with + on "
                         f"top and / between layers; got {text.strip()!r}.")
    name, inside = found[1], found[2]
    options = {}
    for word in inside.split(",") if inside else ():
        key, value = option(word)
        if key in options:
            raise InputError(f"{what} {whole!r}: option {key} is given twice.")
        options[key] = value
    return Part(name, options)


def _extended(what, part, options, known):
    own = {name: value for name, value in options.items() if name in known}
    for name, value in own.items():
        if part.options.get(name, value) != value:
            raise InputError(f"{what} option {name} is given twice, as {part.options[name]!r} "
                             f"and {value!r}.")
    return Part(part.name, {**part.options, **own})


def _value(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text.lower(), text)


def _word(value):
    return str(value).lower() if isinstance(value, bool) else str(value)

