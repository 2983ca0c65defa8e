"""Positions through the kit: rotary, Morlet and decay, right and wrong."""
import re
from functools import partial

import numpy as np
import pytest

from minattn import cli
from minattn.errors import InputError
from minattn.positions import morlet, rotary
from minattn.validate import arithmetic, cases, check, positions, precision, report


@pytest.mark.parametrize("name", positions.ROWS)
def test_ours_pass_and_the_plain_formulas_are_the_same(name):
    module = positions.ROWS[name].module
    for dtype in ("float32", "float64"):
        found = check(name, module, dtype=dtype, show=False)
        assert found.ok and found.count(report.PASSED) == len(found.results) > 4, str(found)
        assert any(t.name[0] == "d" for t in found.results[0].tensors)
    assert f"as {name} positions" in str(found)
    for case in cases.cases(name):
        plain = precision.plain(case, arithmetic.Arithmetic("float64"))
        for tensor, x in precision.truth(case).items():
            np.testing.assert_allclose(plain[tensor], x, rtol=1e-9, atol=1e-10)


def rope(x, *, base=10000.0, start=0, pairs="half", bug="", torch):
    T, D = x.shape[2:]
    inv = 1 / base ** (torch.arange(0, D, 2).float() / D)
    angle = torch.outer(torch.arange(T).float() + (0 if bug == "start" else start), inv)
    angle = angle.to(x.dtype).float() if bug == "half" else angle
    if pairs == "half" or bug == "pairs":
        angle, (a, b) = torch.cat([angle, angle], -1), x.chunk(2, -1)
        turned = torch.cat([-b, a], -1)
    else:
        angle = angle.repeat_interleave(2, -1)
        turned = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
    sin = angle.sin() if bug != "sign" else -angle.sin()
    return (x.float() * angle.cos() + turned.float() * sin).to(x.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rotary_in_torch(dtype):
    torch = pytest.importorskip("torch")
    how = {"framework": "torch", "dtype": dtype, "show": False}
    for layout in ("BHTD", "BTHD"):
        fn = partial(rope, torch=torch)
        if layout == "BTHD":
            fn = lambda x, **o: rope(x.transpose(1, 2), torch=torch, **o).transpose(1, 2)
        assert check("rotary", fn, layout=layout, **how).ok
    wrong = {bug: {r.id for r in check("rotary", partial(rope, torch=torch, bug=bug), **how).failed}
             for bug in ("start", "pairs", "sign", "half")}
    assert "positions/start=1000" in wrong["start"] and "positions/T=7" not in wrong["start"]
    assert wrong["pairs"] == {r.id for r in check("rotary", partial(rope, torch=torch, bug="pairs"),
                                                  **how).results if "interleaved" in r.id}
    assert len(wrong["sign"]) == len(positions.CASES["rotary"])
    assert bool(wrong["half"]) == (dtype != "float32")       # angles in half precision


def test_one_kind_of_pairs_alone():
    def half(x, *, base=10000.0, start=0):
        return rotary.forward(x, base=base, start=start)
    how = {"backward": rotary.backward, "show": False}
    found = check("rotary", half, exclude=["pairs"], **how)
    assert found.ok and found.count(report.NOT_COVERED) == 4
    found = check("rotary", half, sizes={"D": 6, "T": 7}, exclude=["pairs"], **how)
    assert found.ok and "it needs D = 2, but you fixed D at 6" in str(found)
    with pytest.raises(InputError, match="Did you mean 'pairs'"):
        check("rotary[pair=half]", half)


def test_wrong_morlet_and_decay():
    def waves(log_omega, log_sigma, *, length, start=0, admissible=True, centre=None, bug=""):
        if bug == "start":
            start = 0
        if bug == "admissible":
            admissible = True
        return morlet.forward(length, log_omega, log_sigma, admissible=admissible, start=start,
                              centre=None if bug == "centre" else centre)
    pair = lambda bug: (partial(waves, bug=bug), morlet.backward)
    assert check("morlet", pair(""), show=False).ok
    for bug, case in (("start", "start=5"), ("admissible", "any"), ("centre", "centre")):
        failed = {r.id for r in check("morlet", pair(bug), show=False).failed}
        assert f"positions/{case}" in failed and "positions/T=7" not in failed

    def bias(slopes, *, Tq, Tk, align="end", sign=-1):
        i = np.arange(Tq)[:, None] + (Tk - Tq if align == "end" else 0)
        return (sign * slopes[:, None, None] * (i - np.arange(Tk))).astype(slopes.dtype)
    assert check("decay", bias, show=False).ok
    flipped = check("decay", partial(bias, sign=1), show=False)
    assert len(flipped.failed) == len(positions.CASES["decay"])


def as_contiguous(dy):
    """What a backward sees that reads memory as if dy had no gaps"""
    memory = dy
    while memory.base is not None:
        memory = memory.base
    return dy if dy.flags.c_contiguous else memory.ravel()[:dy.size].reshape(dy.shape)


def of_float16(x):
    return np.float16(x).astype(np.float64)


def rotary_with(bug):
    def forward(x, *, base=10000.0, start=0, pairs="half"):
        if bug == "negative start" and start < 0:
            start += 128
        if bug == "table":                                   # of so many positions
            start = min(start, 65536)
        if bug == "float16":
            p = of_float16(start + np.arange(x.shape[2]))
            rows = [rotary.forward(x[:, :, [i]], base=base, start=int(at), pairs=pairs)[0]
                    for i, at in enumerate(p)]
            right = rotary.forward(x, base=base, start=start, pairs=pairs)
            return np.concatenate(rows, axis=2), right[1]
        out, cache = rotary.forward(x, base=base, start=start, pairs=pairs)
        if bug == "wide heads":
            out[..., 200:] = x[..., 200:]
        return out, cache

    def backward(dy, cache):
        dx = rotary.backward(as_contiguous(dy) if bug == "layout" else dy, cache)["x"]
        if bug == "blocks" and dy.shape[2] > 512:             # each starts at the first position
            again = cache._replace(rotation=cache.rotation[:dy.shape[2] - 512])
            dx[:, :, 512:] = rotary.backward(dy[:, :, 512:], again)["x"][:, :, :512]
        return {"x": dx}
    return forward, backward


def morlet_with(bug):
    def forward(log_omega, log_sigma, *, length, **options):
        return morlet.forward(length, log_omega, log_sigma, **options)

    def backward(dpe, cache):
        if bug == "layout":
            dpe = as_contiguous(dpe)
        if bug == "tail":
            dpe = np.where(np.arange(len(dpe))[:, None] < 128, dpe, 0)
        grads = morlet.backward(dpe, cache)
        if bug == "whole blocks" and len(dpe) > 256:
            whole = np.arange(len(dpe))[:, None] < len(dpe) // 256 * 256
            grads["log_sigma"] = morlet.backward(np.where(whole, dpe, 0), cache)["log_sigma"]
        return grads
    return forward, backward


def decay_with(bug):
    def forward(slopes, *, Tq, Tk, align="end"):
        distance = np.arange(Tq)[:, None] + (Tk - Tq) * (align == "end") - np.arange(Tk)
        distance = of_float16(distance) if bug == "float16" else distance
        return (-slopes[:, None, None] * distance).astype(slopes.dtype), distance

    def backward(dbias, distance):
        if bug == "one byte" and max(dbias.shape) <= 256:
            distance = distance.astype(int).astype(np.int8)
        dbias = as_contiguous(dbias) if bug == "layout" else dbias
        dslopes = -(dbias * distance).sum(axis=(1, 2)).astype(dbias.dtype)
        mean = bug == "one head" and len(dslopes) == 1
        return {"slopes": dslopes / dbias.shape[1] if mean else dslopes}
    return forward, backward


WIDE = {"wide,T=1031", "wide,any,T=1031,start=-700", "wide,centre,T=515"}


@pytest.mark.parametrize("name, pair, bug, found_by", [
    ("rotary", rotary_with, "negative start",
     {"start=-3", "interleaved,T=1031,start=-515"}),
    ("rotary", rotary_with, "table", {"start=100003"}),
    ("rotary", rotary_with, "float16", {"start=2047", "start=100003"}),
    ("rotary", rotary_with, "wide heads", {"D=256"}),
    ("rotary", rotary_with, "layout", {"start=2047", "dy", "dy,D=64", "T=515,D=136"}),
    ("morlet", morlet_with, "tail", {"T=200,start=-150", "wide,T=129", *WIDE}),
    ("morlet", morlet_with, "layout", {"dy", "wide,any,T=1031,start=-700"}),
    ("decay", decay_with, "float16", {"Tq=2,Tk=2500"}),
    ("decay", decay_with, "one head", {"H=1"}),
    ("decay", decay_with, "layout", {"dy"}),
    ("rotary", rotary_with, "blocks",
     {"T=1031", "interleaved,T=1031,start=-515", "T=515,D=136"}),
    ("morlet", morlet_with, "whole blocks", WIDE), ("decay", decay_with, "one byte", {"T=200"})])
def test_far_positions_wide_heads_and_gradients_of_other_layouts(name, pair, bug, found_by):
    assert check(name, pair(""), show=False).ok
    failed = {r.id for r in check(name, pair(bug), show=False).failed}
    assert failed == {f"positions/{case}" for case in found_by}


def test_positions_by_name_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rope.py").write_text("from minattn.positions.rotary import *\n")
    assert cli.main(["check", "rotary", "rope.py"]) == 0
    assert "all good: 19 passed" in capsys.readouterr().out
    assert cli.main(["check", "rope.py:forward", "--mechanism", "rotary[pairs=half]"]) == 0
    assert cli.main(["check", "rotary", "rope.py", "--mechanism", "decay"]) == 2
    assert "name one function" in capsys.readouterr().err
    assert cli.main(["check", "rotary"]) == 2
    assert "name the function to check" in capsys.readouterr().err
    for name in ("rotary", "morlet", "decay"):               # sizes first: arrays come by name
        assert cli.main(["check", name, f"minattn.positions.{name}"]) == 0
        assert re.search("all good: [0-9]+ passed in", capsys.readouterr().out)
    assert cli.main(["check", "rotary", "--list"]) == 0
    assert "positions/start=1000" in capsys.readouterr().out
