"""One spelling of mechanisms and positions: read, printed, and refused in one sentence."""

import dataclasses
import json

import numpy as np
import pytest
from run_cases import flags, write_corpus

from minattn import cli, model, runs, spec
from minattn.attention import MECHANISMS
from minattn.errors import InputError
from minattn.positions import POSITIONS


@pytest.mark.parametrize(
    "text, shown",
    [
        ("softmax", "softmax"),
        (" energy[ norm = prefix ] + gated/ softmax ", "energy[norm=prefix]+gated/softmax"),
        ("affine[length=7,phi=sigmoid]", "affine[length=7,phi=sigmoid]"),
        ("energy,softmax", "energy/softmax"),  # the older spelling of layers
        ("morlet[centre=TRUE]", "morlet[centre=true]"),
        ("rope[base=1e2]", "rope[base=100.0]"),
    ],
)
def test_reads_and_prints_one_spelling(text, shown):
    layers = spec.parse("attention", text)
    assert spec.show(layers) == shown
    assert spec.parse("attention", shown) == layers  # what is printed is read back


def test_values_have_types():
    ((part,),) = spec.parse("attention", "x[a=1,b=0.5,c=true,d=none,e-f=word]")
    assert part == spec.Part("x", {"a": 1, "b": 0.5, "c": True, "d": "none", "e_f": "word"})


def test_variants_are_separated_by_commas_outside_of_brackets():
    found = spec.variants("attention", "a[x=1,y=2], b+gated ,c/d")
    assert found == ["a[x=1,y=2]", "b+gated", "c/d"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("energy[norm=key", "unbalanced brackets"),
        ("energy[norm]", "'norm' is not NAME=VALUE"),
        ("energy[norm=]", "'norm=' is not NAME=VALUE"),
        ("energy[norm=key,norm=key]", "norm is given twice"),
        ("energy[norm=key]x", "expected NAME or NAME"),
        ("", "contains an empty name"),
        ("a//b", "contains an empty name"),
        ("a+", "contains an empty name"),
        (None, "must be a string"),
        (["a"], "must be a string"),
    ],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(InputError, match=message):
        spec.parse("attention", text)


def test_options_given_apart_are_the_same_model():
    """attention_options goes to every part that knows the option, as it did before there were
    brackets.
    """
    apart = model.Config(
        attention="energy,affine+gated",
        position="learned+rope",
        attention_options={"norm": "prefix", "gate": "head"},
        position_options={"base": 50},
    )
    assert apart == model.Config(
        attention="energy[norm=prefix]/affine+gated[gate=head]", position="learned+rope[base=50]"
    )
    assert "attention_options" not in model.to_dict(apart)
    assert model.Config(**model.to_dict(apart)) == apart
    assert dataclasses.replace(apart, n_layer=2).attention == apart.attention


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            dict(attention="energy[norm=key]", attention_options={"norm": "prefix"}),
            "norm is given twice",
        ),
        (dict(attention="energy", attention_options={"nrom": "key"}), "Did you mean 'norm'"),
        (dict(attention="energy", attention_options=["norm"]), "must be a dict"),
        (dict(attention="softmax+gated+gated"), "'\\+gated'"),
        (dict(attention="gated[gate=half]"), "Did you mean 'head'|one of"),
        (dict(attention="softmax[gate=head]"), "gate"),
        (dict(position="rope/learned"), "all layers share"),
        (dict(position="rope[pairs=quarter]"), "half, interleaved"),
    ],
)
def test_models_that_cannot_be(fields, message):
    with pytest.raises(InputError, match=message):
        model.Config(**fields)


def test_every_option_of_every_row_can_be_spelled():
    """Whatever a row declares can be asked for in brackets, and is what the layer gets."""
    for what, rows in (("attention", MECHANISMS), ("position", POSITIONS)):
        for name, row in rows.items():
            known = row.all_options() if what == "attention" else row.options
            for option, about in known.items():
                for value in about.others():
                    config = model.Config(**{what: spec.show([[spec.Part(name, {option: value})]])})
                    assert f"{option}=" in getattr(config, what) and config == model.Config(
                        **model.to_dict(config)
                    )


def test_run_folders_of_the_older_spelling_load_and_resume(tmp_path):
    """config.json once kept the options apart, and a comma between layers."""
    corpus = write_corpus(tmp_path)
    argv = [
        "train",
        "--corpus",
        str(corpus),
        "--attention",
        "energy[norm=prefix]/affine[length=7]",
        "--position",
        "rope[base=50]",
        "--steps",
        "4",
        "--checkpoint-interval",
        "2",
        *flags(n_layer=2, n_head=2, n_embd=16, block_size=8, batch_size=2),
    ]
    for name in ("new", "old"):
        assert cli.main([*argv, "--out", str(tmp_path / name)]) == 0
    path = tmp_path / "old" / runs.CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"].update(
        attention="energy,affine",
        position="rope",
        attention_options={"norm": "prefix", "length": 7},
        position_options={"base": 50},
    )
    path.write_text(json.dumps(config), encoding="utf-8")
    new, old = (runs.load(tmp_path / name) for name in ("new", "old"))
    assert (
        old.config == new.config and old.config.attention == "energy[norm=prefix]/affine[length=7]"
    )
    assert cli.main(["train", "--resume", str(tmp_path / "old" / runs.PREVIOUS)]) == 0
    for name, array in runs.load(tmp_path / "old").checkpoint.params.items():
        np.testing.assert_array_equal(array, new.checkpoint.params[name])
