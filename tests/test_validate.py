"""The validation kit: cases, yardstick, findings, reports, and no false alarm."""
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import run_cases

from minattn import cli, masks
from minattn.attention import MECHANISMS, naive, register, softmax
from minattn.errors import InputError
from minattn.validate import (
    arithmetic,
    check,
    covering,
    golden,
    isolate,
    precision,
    report,
    results,
    vectors,
)
from minattn.validate import cases as kit
from minattn.validate.causality import causality
from minattn.validate.check import changed, check_case, prepare, read_skips, repeated
from minattn.validate.frameworks import resolve

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "validate_your_kernel.md"
SEEDS = range(int(os.environ.get("MINATTN_SEEDS", 5)))   # of the search for false alarms


def kinds(result):
    return {f.kind for f in result.findings}


def by_id(report):
    return {r.id: r for r in report.results}


# ------------------------------------------------------------------------------------------- cases


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_cases_are_the_families_of_the_specification(mechanism):
    found = kit.cases(mechanism)
    assert len({c.id for c in found}) == len(found)
    square = "x" in MECHANISMS[mechanism].arguments
    generic = {"prime_sizes", "causal", "noncausal", "window", "prefix", "padding",
               "fully_masked_row", "tq_ne_tk",
               "long", "odd_head_dim", "score_shift", "tiny_values", "large_values",
               "repeated_tokens",
               "identical_tokens", "one_token", "batch_independence", "non_contiguous", "bias",
               "combinations", "packed", "many_heads", "wide_heads", "long_decode", "far_from_zero"}
    generic |= set() if mechanism in ("lssa", "sparse") else {"hidden_tiles"}
    generic |= set() if square else {"decode"}
    if not square and mechanism not in ("lssa", "sparse", "collaborative",
                               "differential_1"):
        generic.add("faint_tiles")
    own = {"softmax": {"many_small_terms"}, "off_by_one": {"many_small_terms"},
           "sink": {"sink_far_above", "sink_far_below"}, "gated": {"gate_saturated"},
           "energy": {"gate_all_closed"}, "affine": {"alpha_at_kinks", "alpha_ma"},
           "gaussian": {"sigma_tiny", "sigma_huge"}, "cog": {"scores_at_zero"},
           "linear": {"features", "later_large_key"},
           "forget": {"forget_saturated", "forget_hidden_key", "forget_far"},
           "lssa": {"nearly_equal_scores"},
           "pointwise": {"all_scores_negative"},
           "differential": {"lambda_saturated"}, "differential_1": {"lambda_near_1"},
           "collaborative": {"content_dominates"},
           "sparse": {"ties_at_k", "support_of_one", "support_of_many"},
           }.get(mechanism, set())
    scores = set() if square else {"dominant_score", "equal_scores"}
    if "scale" not in MECHANISMS[mechanism].refuses:
        scores.add("scale")
    assert set(kit.family_names(mechanism)) == generic | scores | own
    quick = kit.cases(mechanism, quick=True)
    assert {c.family for c in quick} >= generic and len(quick) < len(found) * 0.6


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_inputs_are_exact_in_bfloat16_and_float16(mechanism):
    beyond = {"tiny_values", "score_shift", "dominant_score",
              "large_values", "wide_heads", "faint_tiles"}        # of float16's range
    for case in kit.cases(mechanism, seed=3):
        if case.family == "combinations" and not case.quick:
            continue
        numbers = [*case.arrays.values(), case.cotangent, *case.options.values()]
        numbers = [x for x in numbers if isinstance(x, np.ndarray) and x.dtype == np.float64]
        assert arithmetic.fits(numbers, "bfloat16") and arithmetic.fits(numbers, "float32"), case.id
        assert arithmetic.fits(numbers, "float16") or case.family in beyond, case.id
        assert not any(x.flags.writeable for x in numbers)


@pytest.mark.parametrize("seed", [-1, "x", 1.5, None])
def test_a_seed_that_is_none(seed):
    with pytest.raises(InputError, match="seed must be"):
        kit.cases("sink", seed=seed)


def test_cases_depend_on_the_seed_alone():
    one, same, other = (kit.cases("sink", seed=s) for s in (1, 1, 2))
    assert [c.id for c in one] == [c.id for c in other]
    for a, b, c in zip(one, same, other):
        assert all(np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays)
        assert not np.array_equal(a.cotangent, c.cotangent)


def test_flags_say_what_a_case_asks_for():
    flags = {c.id: c.flags for c in kit.cases("energy")}
    assert flags["window/W=2,norm=prefix"] == {"causal", "causal=True", "window", "window=2",
                                               "norm", "norm=prefix"}
    assert "empty_rows" in flags["tq_ne_tk/Tq=7,Tk=5,align=end"]
    assert "empty_rows" not in flags["tq_ne_tk/Tq=7,Tk=5,align=start"]
    assert "Tq!=Tk" in flags["prime_sizes/Tq=5,Tk=7"]
    assert "strided" in flags["non_contiguous/strided"]


def test_options_in_brackets_stay_fixed():
    found = {c.id: c for c in kit.cases("energy[norm=prefix]")}
    assert {c.options["norm"] for c in found.values()} == {"prefix"}
    assert all("norm=prefix" in c.flags for c in found.values())
    assert "gate_all_closed/prefix" in found and "gate_all_closed/key" not in found
    assert "causal/T" in found and not [name for name in found if name.startswith("causal/T,")]
    result = check("energy[norm=prefix]", MECHANISMS["energy"], cases=["causal", "window/W=2"],
                   show=False)
    assert result.ok and len(result.results) == 2 and result.mechanism == "energy[norm=prefix]"
    for wrong, words in (("energy[norm=prefx]", "Did you mean 'prefix'"),
                         ("energy[form=key]", "option 'form'"),
                         ("energy+gated", "one mechanism"), ("energy/softmax", "one mechanism")):
        with pytest.raises(InputError, match=words):
            kit.cases(wrong)


def test_sizes_can_be_kept_to():
    found = {c.id: c for c in kit.cases("gated", sizes={"D": 16, "Dv": 16, "T": 8})}
    case = found["causal/T"]
    assert case.arrays["k"].shape == case.arrays["gate_logits"].shape == (2, 3, 8, 16)
    assert not case.unmet
    assert "T=8" not in found and found["window/W=8"].options["window"] == 8
    assert "D = 59" in found["odd_head_dim/D=59"].unmet and "16" in found["odd_head_dim/D=59"].unmet
    result = check_case(found["odd_head_dim/D=59"], prepare("gated", MECHANISMS["gated"]))
    assert result.status == report.NOT_COVERED and "D = 59" in result.reason
    assert kit.cases("softmax", sizes={"B": 1}, only=["batch_independence"])[0].unmet


@pytest.mark.parametrize("kwargs", [{"only": ["wndow"]}, {"sizes": {"E": 3}}, {"sizes": {"D": 0}}])
def test_cases_refuse_what_they_do_not_know(kwargs):
    with pytest.raises(InputError):
        kit.cases("softmax", **kwargs)


# --------------------------------------------------------------------------------------- precision


def test_rounding_is_that_of_the_hardware():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(20000) * np.exp(rng.uniform(-110, 110, 20000))
    special = [0, -0.0, np.inf, -np.inf, np.nan, 65519.9, 65520, 1 + 2.0**-8, 1 + 3 * 2.0**-8,
               2.0**-140, 1e-45]
    x = np.concatenate([x, special])
    torch = pytest.importorskip("torch")
    for dtype in ("float16", "bfloat16", "float32"):
        # by way of float32, as PyTorch would: the numbers are first made to fit it
        y = arithmetic.round_to(x, "float32")
        expected = torch.tensor(y, dtype=torch.float32).to(getattr(torch, dtype)).double().numpy()
        np.testing.assert_array_equal(arithmetic.round_to(y, dtype), expected)


@pytest.mark.parametrize("bits", [29, 45])
def test_random_rounding_does_not_depend_on_what_was_rounded_before(bits, monkeypatch):
    found = []
    for before in (1, 100_000):
        monkeypatch.setattr(arithmetic, "_pool", {})
        arithmetic._noise(bits, before, np.random.default_rng(1))
        found.append(arithmetic._noise(bits, 50, np.random.default_rng(2)).copy())
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_random_rounding_takes_both_neighbours_and_leaves_exact_numbers(dtype):
    rng = np.random.default_rng(1)
    eps = arithmetic.FORMATS[dtype].eps
    exact = kit.exact(rng.standard_normal(100))
    np.testing.assert_array_equal(arithmetic.round_to(exact, dtype, rng), exact)
    found = arithmetic.round_to(np.full(4000, 1 + eps / 4), dtype, rng)
    # as likely as it is near
    assert set(found) == {1.0, 1 + eps}
    assert 0.2 < np.mean(found > 1) < 0.3


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_plain_arithmetic_computes_the_same_thing_in_both_forms(mechanism, quick):
    for case in kit.cases(mechanism, quick=quick):
        if case.family == "combinations":
            continue
        truth = precision.truth(case)
        exact = arithmetic.Arithmetic("float64")
        plain, early = (precision.plain(case, exact, early=early) for early in (False, True))
        assert truth.keys() <= plain.keys() and truth.keys() <= early.keys()
        # digits lost to large scores, and to a deviation of 0 (its floor is 1e-4)
        slack = 1e4 if re.search("1e6|1e10|1e4|identical", case.id) else 1
        for name, x in truth.items():
            bound = slack * (1e-11 * np.abs(x).max() + 1e-13)
            assert np.abs(plain[name] - x).max() <= bound, (case.id, name)
            assert np.abs(early[name] - x).max() <= 10 * bound, (case.id, name)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_plain_formulas_give_the_truth_of_the_combinations(mechanism):
    row = MECHANISMS[mechanism]
    for case in [c for c in kit.cases(mechanism, quick=True) if c.family == "combinations"][::3]:
        truth = precision.truth(case)
        out, cache = row.naive_forward(**case.arrays, **case.options)
        grads = row.naive_backward(case.cotangent, cache)
        found = {"out": out, **{"d" + name: x for name, x in grads.items()}}
        for name, x in truth.items():
            bound = 1e-10 * np.abs(x).max() + 1e-12
            assert np.abs(found[name] - x).max() <= bound, (case.id, name)


@pytest.mark.parametrize("strength", [2, 3])
def test_every_combination_of_settings_is_covered_and_the_usual_ones_most(strength):
    sizes = (5, 4, 3, 2, 2)
    rows = covering.covering(sizes, strength)
    for some in itertools.combinations(range(len(sizes)), strength):
        met = {tuple(row[i] for i in some) for row in rows}
        assert len(met) == np.prod([sizes[i] for i in some])
    assert len(rows) < {2: 26, 3: 80}[strength] and rows == covering.covering(sizes, strength)


def test_the_combinations_leave_out_what_is_excluded_and_keep_to_sizes():
    without = ("bias", "window", "grouped", "strided", "Tq!=Tk")
    found = [c for c in kit.cases("softmax", without=without, sizes={"D": 64, "Dv": 64})
             if c.family == "combinations"]
    assert len(found) > 30 and not any(c.flags & {*without} for c in found)
    assert {c.arrays["q"].shape[3] for c in found[::9]} == {64}
    assert {"causal", "prefix", "allowed", "scale", "softcap"} <= set().union(
        *(c.flags for c in found))
    grouped = kit.cases("softmax", sizes={"H": 6, "Hkv": 2}, only=["causal", "combinations"])
    assert {c.arrays["k"].shape[1] for c in grouped[:5]} == {2}
    for heads in (8, (4, 8)):                      # keys have as many, where nothing else is said
        for case in kit.cases("softmax", sizes={"H": heads}, without=["grouped"])[::7]:
            q, k = case.arrays["q"].shape[1], case.arrays["k"].shape[1]
            assert case.unmet or q == k and q in np.atleast_1d(heads), case.id


@pytest.mark.parametrize("sizes", [
    {"D": (8, 16), "Dv": (8, 16), "T": (16, 64)},
    {"B": (1, 4), "Tq": 1, "Tk": [16, 64], "H": (4, 8), "Hkv": (2, 4)}])
def test_of_several_sizes_each_case_takes_the_nearest(sizes):
    def forward(q, k, v, **options):
        for (B, H, T, D), Tk, name in ((q.shape, "Tq", "H"), (k.shape, "Tk", "Hkv")):
            for symbol, n in (("B", B), (name, H), ("T", T), (Tk, T), ("D", D)):
                assert n in np.atleast_1d(sizes.get(symbol, n)), f"{symbol} = {n} is unknown"
                met.setdefault(symbol, set()).add(n)
        assert ("T" not in sizes or q.shape[2] == k.shape[2])
        assert ("Dv" not in sizes or v.shape[3] in sizes["Dv"])
        return softmax.forward(q, k, v, **options)

    met = {}
    found = check("softmax", (forward, softmax.backward), sizes=sizes, quick=True, show=False)
    assert found.ok, str(found)
    assert all(met[symbol] == {*np.atleast_1d(n)} for symbol, n in sizes.items() if symbol in met)
    assert found.count("passed") > 0.7 * len(found.results)


@pytest.mark.slow
def test_a_fault_of_three_settings_is_found_by_a_thorough_check():
    """Decoding with wide heads, wrong for windows that begin in the middle"""
    def forward(q, k, v, **options):
        out, cache = softmax.forward(q, k, v, **options)
        wrong = q.shape[2] == 1 and q.shape[3] == 128 and 5 < options.get("window", 0) < 300
        return (1.5 * out if wrong else out), cache

    kernel, every = (forward, softmax.backward), "combinations/Tq=1,Tk=300,D=128,*"
    assert check("softmax", kernel, cases=[every], show=False).ok
    found = check("softmax", kernel, cases=[every + "W=[5m]*"], thorough=True, show=False)
    assert found.failed and all("W=mid" in r.id for r in found.failed)
    with pytest.raises(InputError, match="quick or thorough"):
        check("softmax", kernel, quick=True, thorough=True)


def test_a_failing_combination_is_made_small():
    def forward(q, k, v, *, window=None, **options):
        far = window is not None and k.shape[2] > 4
        return softmax.forward(q, k, v, window=window + 1 if far else window, **options)
    how = {"cases": ["combinations/Tq=64,Tk=64,D=1[16]*"], "show": False}
    found, again = (check("softmax", (forward, softmax.backward), **how) for _ in range(2))
    small = {r.smallest: r.id for r in reversed(found.failed)}
    assert small and small == {r.smallest: r.id for r in reversed(again.failed)}
    first, = (name for name in small if name.endswith("B=1,H=1,W=1"))
    assert re.fullmatch(r"combinations/Tq=5,Tk=5,D=1,Dv=1,B=1,H=1,W=1", first)
    assert f"WRONG {first}" in str(found) and f"shrunk from {small[first]}" in str(found)
    assert "expected" in next(r for r in found.failed if r.smallest == first).told()
    kept = check("softmax", (forward, softmax.backward), sizes={"D": 64, "Dv": 64, "T": 64},
                 cases=["combinations/*W=1*"], quick=True, show=False)
    assert kept.failed and not any("D=" in r.smallest or "T=" in r.smallest for r in kept.failed)


@pytest.mark.parametrize("layout", covering.LAYOUTS)
def test_inputs_stand_between_numbers_that_nobody_may_read(layout):
    x = np.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    x[:] = x[:, :1] if layout == "expanded" else x
    buffer, strides, offset = covering.place(x, layout)
    np.testing.assert_array_equal(covering.view(buffer, x.shape, strides, offset), x)
    held = x.size // (3 if layout == "expanded" else 1)
    assert np.isnan(buffer).sum() == buffer.size - held >= 2 * covering.GUARD
    assert strides == {"contiguous": [60, 20, 5, 1], "BTHD": [60, 5, 15, 1],
                       "packed": [180, 5, 45, 1], "expanded": [60, 0, 5, 1],
                       "transposed": [60, 20, 1, 4], "gaps": [120, 10, 30, 2]
                       }.get(layout, [60, 20, 5, 1])


def test_the_yardstick_refuses_what_a_precision_cannot_hold():
    case = {c.id: c for c in kit.cases("softmax")}
    assert "range of float16" in precision.yardstick(case["tiny_values/scores"], "float16").reason
    assert not precision.yardstick(case["tiny_values/scores"], "bfloat16").reason
    narrow, wide = (precision.yardstick(case["causal/T"], d).bounds["dq"]
                    for d in ("bfloat16", "float32"))
    assert 1e3 < narrow / wide < 1e6


@pytest.mark.parametrize("mechanism", ["softmax", "differential_1"])
@pytest.mark.parametrize("seed", [1, 5])
def test_errors_of_equal_rows_add_up(mechanism, seed):
    """128 queries see the same and get the same: in float32 every one of them is off by the same"""
    any_case = next(c for c in kit.cases(mechanism, seed=seed) if c.family == "combinations")
    row = {n: values[0] for n, values in any_case.every.items()}
    row.update(lengths=(128, 128), width=(128, 128), allowed="left B 1 1 Tk", bias="B 1 1 Tk",
               dout="expanded", scale=0.0, log_length=True)
    case = kit.Combination(mechanism, row, any_case.every, {}, {}, seed)
    found = check(mechanism, MECHANISMS[mechanism], cases=[case], show=False)
    assert found.ok, alarms(found)
    assert max(t.ratio for t in found.results[0].tensors) < 0.6


@pytest.mark.parametrize("seed", [2, 6])
def test_sums_of_terms_that_come_again_may_take_any_order(seed):
    """Rows that each add up to 0: row after row a sum stays small, by channel it grows"""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((6, 128))
    x = np.repeat(rows - rows.mean(axis=1, keepdims=True), 128, axis=0)
    rounded = arithmetic.Arithmetic("float32", rng, block=32).array(x)
    errors = [float(np.asarray(rounded.sum(axis=(0, 1)))) - x.sum() for _ in range(6)]
    channels = np.add.accumulate(x.astype(np.float32), axis=0)[-1]
    error = float(channels.astype(float).sum()) - x.sum()
    assert abs(error) < 3 * np.sqrt(np.mean(np.square(errors))) < 10 * abs(error)


def test_equal_numbers_are_rounded_alike_and_others_at_random():
    rng = np.random.default_rng(0)
    x = np.tile(rng.standard_normal(1000), (5, 1))
    found = arithmetic.blur(x, "float32", rng)
    assert np.array_equal(found[0], found[4])
    errors = (found[0] / x[0] - 1) * 2**23
    assert abs(errors.mean()) < 0.03 and 0.27 < errors.std() < 0.31
    assert abs(np.corrcoef(errors[1:], errors[:-1])[0, 1]) < 0.1
    assert not np.array_equal(found, arithmetic.blur(x, "float32", rng))


def test_a_gradient_that_nobody_can_see_has_a_floor():
    case, = kit.cases("sink", only=["sink_far_below/-20"])
    bounds = [precision.yardstick(case._replace(arrays={**case.arrays, "sink": np.full(3, s)}),
                                  "float32").bounds["dsink"] for s in (-60.0, -20.0)]
    assert 1e-15 < bounds[0] < 1e-12 and bounds[1] < 1e-9


@pytest.fixture
def warm(monkeypatch):
    """Softmax attention with a temperature per head, as a mechanism of the registry; 0 is 1."""
    def forward(q, k, v, log_temperature, **options):
        s = np.exp(-log_temperature)[:, None, None]
        out, cache = softmax.forward(q * s, k, v, **options)
        return out, (cache, q, s)

    def backward(dout, cache):
        cache, q, s = cache
        grads = softmax.backward(dout, cache)
        dlog = -(grads["q"] * q * s).sum(axis=(0, 2, 3))
        return {**grads, "q": grads["q"] * s, "log_temperature": dlog}

    def naive_forward(q, k, v, log_temperature, **options):
        s = np.exp(-naive.per_head(log_temperature))
        out, core = naive.softmax_forward(q * s, k, v, **options)
        return out, naive.Cache(**locals())

    def naive_backward(dout, c):
        grads = naive.softmax_backward(dout, c.core)
        dlog = -(grads["q"] * c.q * c.s).sum(axis=(-4, -2, -1))
        return {**grads, "q": grads["q"] * c.s, "log_temperature": dlog}
    module = SimpleNamespace(forward=forward, backward=backward, ARXIV="", SUMMARY="",
                             __name__="warm",
                             ARGUMENTS={**MECHANISMS["softmax"].arguments, "log_temperature": "H"})
    before = dict(MECHANISMS)
    register("warm", module, naive_forward, naive_backward)
    yield module
    MECHANISMS.clear()
    MECHANISMS.update(before)


def test_a_mechanism_registered_at_run_time_gets_all_of_the_kit(warm, monkeypatch, tmp_path):
    cases = ["causal", "window/W=2", "prime_sizes", "identical_tokens"]
    found = check("warm", warm, cases=cases, show=False)
    assert found.ok, alarms(found)
    wrong = (warm.forward, lambda dout, c: {**warm.backward(dout, c),
                                            "log_temperature": np.ones(3, "f")})
    found = check("warm", wrong, cases=cases, show=False)
    assert all("dlog_temperature" in r.findings[0].message for r in found.results)
    assert list(causality("warm").forms.values())[:3] == ["pass"] * 3
    monkeypatch.setattr(golden, "MECHANISMS", {"warm": MECHANISMS["warm"]})               # it alone
    names = {case["caseId"]: case for case in vectors.write(tmp_path)["cases"]}
    tensors = names["warm-causal-T"]["tensors"]
    assert tensors["log_temperature"]["axes"] == tensors["dlog_temperature"]["axes"] == "H"
    jsonschema = pytest.importorskip("jsonschema")
    index = json.loads((tmp_path / vectors.INDEX).read_text())
    index["cases"] = [names["warm-causal-T"]]
    jsonschema.validate(index, json.loads((tmp_path / vectors.SCHEMA).read_text()))
    compared = vectors.check(tmp_path)
    mine = [row for row in compared.rows if row.case.startswith("warm")]
    assert compared.ok and len([row for row in mine if row.status == "passed"]) > 100
    x = {n: t for n, t in results.read(tmp_path)[1].items() if n.startswith("warm-causal-T/")}
    answers = softmax.forward(x["warm-causal-T/q"], x["warm-causal-T/k"], x["warm-causal-T/v"],
                              causal=True)[0]
    assert np.abs(answers - x["warm-causal-T/out"]).max() > 0.1           # not those of softmax


# ---------------------------------------------------------------------------------- no false alarm


def torch_reference(mechanism):
    """The literal formula; energy without the published clamp that gate_all_closed is about."""
    import torch

    from minattn import torch_refs
    torch.set_num_threads(1)  # small arrays: more threads only wait for one another
    fn = torch_refs.ATTENTION[mechanism].function
    return fn if mechanism != "energy" else lambda *a, **o: fn(*a, stable=True, **o)


def alarms(report):
    """What a check of a right implementation complains about."""
    return [(r.id, f.message) for r in report.failed for f in r.findings]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_numpy_float32_and_float64_pass(mechanism):
    """On a few families; every case in float32: test_no_false_alarm_at_any_seed"""
    for dtype in ("float32", "float64"):
        found = check(mechanism, MECHANISMS[mechanism], dtype=dtype, seed=11, show=False,
                      cases=["causal", "score_shift", "identical_tokens", "tq_ne_tk"])
        assert found.ok and found.count(report.PASSED) == len(found.results), alarms(found)


@pytest.mark.parametrize("mechanism", ["softmax", "sparse"])
def test_torch_references_give_0_where_a_bias_hides_a_row(mechanism):
    pytest.importorskip("torch")
    some = tuple(c for c in kit.cases(mechanism, quick=mechanism == "softmax")
                 if c.family == "combinations" and c.row["bias"].startswith("-inf"))[:6]
    found = check(mechanism, torch_reference(mechanism), framework="torch", cases=some, show=False)
    assert some and found.ok, alarms(found)


# what the literal PyTorch forms really get wrong: they overflow, and their docstrings say so
OVERFLOWS = {"lssa": {"dominant_score/one_of_many"},
             "linear": {"later_large_key/lln,tensor", "features/lln,tensor,far"}}


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_no_false_alarm_at_any_seed(mechanism):
    pytest.importorskip("torch")
    for seed in SEEDS:
        # every case once, then the quick selection: every case at every seed takes most of an hour
        all_of, quick = (kit.cases(mechanism, seed=seed, quick=q) for q in (False, True))
        some = [c for c in (quick if seed != SEEDS[0] else all_of)
                if c.family != "combinations"
                # rounded, the k-th largest of so many scores may be another
                and (mechanism, c.family) != ("sparse", "decode")]
        for framework, dtype in (("numpy", "float32"), ("torch", "float32"), ("torch", "bfloat16")):
            fn = MECHANISMS[mechanism] if framework == "numpy" else torch_reference(mechanism)
            combined = [c for c in (all_of[::3] if framework == "numpy" else quick)
                        if c.family == "combinations"]       # each of them at one of the seeds
            cases = some + combined[seed::len(SEEDS)]
            found = check(mechanism, fn, framework=framework, dtype=dtype, cases=cases, seed=seed,
                          show=False)
            wrong = set() if framework == "numpy" else OVERFLOWS.get(mechanism, set())
            expected = wrong & {case.id for case in cases}
            assert {r.id for r in found.failed} == expected, (seed, framework, dtype, alarms(found))


# -------------------------------------------------------------------------- what is wrong is found


def plain_softmax(q, k, v, *, allowed=None, bias=None, scale=None, bug="", **rules):
    """A straightforward NumPy attention with switches that break it, and its backward."""
    if bug == "window" and "window" in rules:
        rules["window"] += 1
    see = masks.visible(q.shape[2], k.shape[2], **rules)
    see = see if allowed is None or bug == "allowed" else see & allowed
    scale = np.float32(1 / np.sqrt(q.shape[3]) if scale is None else scale)
    s = q @ k.swapaxes(2, 3) * scale + (0 if bias is None else bias)
    s = np.where(see, s, -1e4 if bug == "finite mask" else -np.inf).astype(q.dtype)
    m = np.maximum(s.max(axis=3, keepdims=True), -1e4)
    m = m if bug == "running maximum" else s.max(axis=3, keepdims=True)
    e = np.exp(s - np.where(m == -np.inf, 0, m))
    total = e.sum(axis=3, keepdims=True)
    P = e / np.where(total == 0, 1, total)
    P = P.astype(np.float16).astype(q.dtype) if bug == "float16 weights" else P
    out = P @ v
    return out, (q, k, v, P, out, scale, bias, bug)


def plain_softmax_backward(dout, cache):
    q, k, v, P, out, scale, bias, bug = cache
    delta = 0 if bug == "rowsum" else (dout * out).sum(axis=3, keepdims=True)
    ds = P * (dout @ v.swapaxes(2, 3) - delta)
    grads = {"q": ds @ k * (1 if bug == "dq scale" else scale), "k": ds.swapaxes(2, 3) @ q * scale}
    grads["v"] = P.swapaxes(2, 3) @ dout
    if bias is not None:
        full = (1,) * (4 - bias.ndim) + bias.shape
        grads["bias"] = ds.sum(axis=tuple(i for i in range(4) if full[i] == 1),
                               keepdims=True).reshape(bias.shape)
    return grads


@pytest.mark.parametrize("bug, family", [
    ("window", "window"), ("rowsum", "causal"), ("dq scale", "causal"),
    ("finite mask", "dominant_score"),
    ("allowed", "padding"), ("running maximum", "score_shift"), ("float16 weights", "noncausal")])
def test_subtle_bugs_are_found_where_they_are(bug, family):
    def forward(*arrays, **options):
        return plain_softmax(*arrays, bug=bug, **options)
    assert check("softmax", (plain_softmax, plain_softmax_backward), cases=[family], show=False).ok
    found = check("softmax", (forward, plain_softmax_backward), cases=[family], show=False)
    assert not found.ok and found.failed
    only_backward = bug in ("rowsum", "dq scale")
    wrong = {t.name for r in found.failed for t in r.tensors if not t.ok}
    # scores of 10^6, computed anew, may be off by 0.06: little is left that dq, times 1000, shows
    grads = {"dk", "dv"} if family == "score_shift" else {"dq"}
    assert ("out" not in wrong) == only_backward and grads <= wrong


def misbehave(how):
    """Softmax attention that misbehaves in the cases with a window, and nowhere else."""
    calls = []

    def forward(q, k, v, **options):
        if options.get("window") is None:
            return softmax.forward(q, k, v, **options)
        calls.append(1)
        if how == "raises":
            raise ZeroDivisionError("no window today")
        if how == "exits":
            sys.exit(3)
        if how == "hangs":
            while True:
                pass
        out, cache = softmax.forward(q, k, v, **options)
        if how == "modifies":
            k += 1
        if how == "random":
            out = out + np.float32(1e-9 + 1e-7 * len(calls))
        if how == "nan":
            out[0, 0, 0, 0] = np.nan
        out = {"shape": out[..., :-1], "dtype": out.astype(np.float64),
               "list": out.tolist()}.get(how, out)
        return (out if how == "no cache" else (out, (how, cache)))

    def backward(dout, cache):
        how, cache = cache if isinstance(cache[0], str) else ("", cache)
        grads = softmax.backward(dout, cache)
        if how == "missing":
            grads["k"] = None
        if how == "gradient shape":
            grads["v"] = grads["v"][:1]
        return list(grads.values()) if how == "gradients as a list" else grads
    return forward, backward


@pytest.mark.parametrize("how, kind, words", [
    ("raises", "raised",
     r"raised ZeroDivisionError: no window today \(test_validate.py, line \d+\)"),
    ("exits", "raised", "end the program"),
    ("hangs", "hang", "did not come back within 0.3 s"),
    ("modifies", "modified inputs", "changes its input k in place"),
    ("random", "not repeatable", "out is different when the same call is made again"),
    ("nan", "not finite", r"out is not finite: at \[0, 0, 0, 0\] it is nan"),
    ("shape", "shape", r"the output has shape \(2, 3, 7, 12\); expected \(2, 3, 7, 13\)"),
    ("dtype", "dtype", "the output is float64; float32 came in"),
    ("list", "dtype", "the output is of type list"),
    ("missing", "gradient", "the gradient of k is missing"),
    ("gradient shape", "shape", r"dv has shape \(1, 3, 7, 13\)"),
    ("gradients as a list", "gradient", "backward must return a dict"),
    ("no cache", "gradient", r"must return \(out, cache\)")])
def test_each_misbehaviour_is_its_own_finding(how, kind, words):
    cases = ["causal", "window/W=2", "noncausal"]
    found = check("softmax", misbehave(how), cases=cases, time_limit=0.3 if how == "hangs" else 30,
                  show=False)
    results = by_id(found)
    # the others still ran
    assert [results[i].status for i in ("causal/T", "noncausal/T")] == [report.PASSED] * 2
    finding = {f.kind: f.message for f in results["window/W=2"].findings}
    assert not found.ok and re.search(words, finding[kind]), finding
    first = words.split(" (")[0].split(r" \(")[0].split(":")[0]
    assert first in re.sub(r"\\", "", str(found)) or "\\" in words


def test_hanging_everywhere_ends_soon():
    def forward(*arrays, **options):
        time.sleep(60)
    start = time.perf_counter()
    found = check("softmax", forward, quick=True, time_limit=0.05, show=False)
    assert found.count(report.FAILED) == 3
    assert found.count(report.NOT_COVERED) == len(found.results) - 3
    assert "3 cases hung" in str(found) and time.perf_counter() - start < 15


def test_a_refused_option_is_said_by_name_and_can_be_excluded():
    def forward(q, k, v, *, causal=False):
        return softmax.forward(q, k, v, causal=causal)
    cases = ["causal", "window", "bias"]
    found = check("softmax", (forward, softmax.backward), cases=cases, show=False)
    assert kinds(by_id(found)["window/W=2"]) == {"arguments"}
    assert "does not take the option 'window'" in str(found)
    found = check("softmax", (forward, softmax.backward), cases=cases, exclude=["window", "bias"],
                  show=False)
    assert found.ok
    assert {r.status for r in found.results if r.family == "window"} == {report.NOT_COVERED}
    assert found.count(report.PASSED) == 1
    assert "not covered: window/W=2 and 6 more: you excluded window" in str(found)
    found = check("softmax", lambda q: q, cases=["causal"], show=False)
    message = found.results[0].findings[0].message
    assert message == ("does not take the mechanism's arguments, as f(q, k, v, causal=...): "
                       "too many positional arguments.")


def test_a_workspace_shared_between_layers_is_found():
    last = []

    def forward(q, k, v, **options):
        out, cache = softmax.forward(q, k, v, **options)
        last[:] = [cache]
        return out, cache
    how = {"cases": ["causal", "noncausal"], "show": False}
    assert check("softmax", (forward, softmax.backward), **how).ok
    found = check("softmax", (forward, lambda dout, _: softmax.backward(dout, last[0])), **how)
    assert all(kinds(r) == {"not repeatable"} for r in found.results)
    assert "another one runs before its backward" in str(found)
    runs = []

    def again(dout, cache):
        runs.append(id(cache))
        return {n: x * runs.count(id(cache)) for n, x in softmax.backward(dout, cache).items()}
    found = check("softmax", (forward, again), **how)
    assert kinds(found.results[0]) == {"not repeatable"}


def test_what_is_remembered_by_array_or_by_shape_is_found():
    kept = {}

    def by_array(q, k, v, *, allowed=None, **options):
        if allowed is not None and kept.get("mask") is not allowed:
            kept.update(mask=allowed, copy=allowed.copy())
        allowed = None if allowed is None else kept["copy"]
        return softmax.forward(q, k, v, allowed=allowed, **options)

    def by_shape(q, k, v, *, causal=False, **options):
        causal = kept.setdefault((q.shape, k.shape), causal) if q.shape[2] > 256 else causal
        return softmax.forward(q, k, v, causal=causal, **options)
    large = "combinations/Tq=323,*Dv=264,B=3,H=2"
    for forward, case in (by_array, "padding/keys"), (by_shape, large):
        how = {"cases": [case], "show": False}
        assert check("softmax", softmax, **how).ok
        found = check("softmax", (forward, softmax.backward), **how)
        assert found.failed, case
        if forward is by_array:
            assert "the same arrays, in which other numbers stood before" in str(found)


def test_samples_that_talk_to_each_other_are_found():
    def forward(q, k, v, **options):
        # too little for any tolerance
        return softmax.forward(q, k, v + np.float32(1e-7) * v[:1], **options)
    found = check("softmax", (forward, softmax.backward), cases=["causal", "batch_independence"],
                  show=False)
    assert [r.status for r in found.results] == [report.PASSED, report.FAILED]
    assert kinds(found.results[1]) == {"depends on batch"}


def test_a_running_mean_takes_no_gradient():
    module = MECHANISMS["affine"].module
    wrong = (module.forward, lambda dout, cache: {**module.backward(dout, cache),
                                                  "alpha_ma": np.ones(3, np.float32)})
    found = check("affine", wrong, cases=["causal/T"], show=False)
    message = found.results[0].findings[0].message
    assert "alpha_ma is a running mean that takes no gradient" in message


def test_without_a_backward_gradients_are_not_covered_and_never_passed():
    def forward(q, k, v, **options):
        return softmax.forward(q, k, v, **options)[0]
    found = check("softmax", forward, cases=["causal", "bias"], show=False)
    assert found.ok and all({t.name for t in r.tensors} == {"out"} for r in found.results)
    assert "gradients not covered: a NumPy function needs a backward" in str(found)
    assert "forward ok" in str(found)
    assert json.loads(found.to_json())["gradients_not_covered"]
    whole = check("softmax", softmax, cases=["causal", "bias/full"], exclude=["dbias"], show=False)
    assert {t.name for t in by_id(whole)["bias/full"].tensors} == {"out", "dq", "dk", "dv"}


def test_nothing_checked_is_not_all_good():
    found = check("softmax", softmax, cases=["window"], exclude=["window"], show=False)
    assert not found.ok and "nothing was checked" in str(found)


def tiled(half=(), tile=64, narrow_P=None, products=None, anew=False):
    """FlashAttention-2 in PyTorch, causal or not: powers of 2 in which a product and a difference
    round once, weights made again from the log-sum-exp, and sums in float32.

    half: sums that are not. narrow_P: the type of the weights in their product with the values.
    products: what is done to what a matrix product reads. anew: the backward rounds its scores in
    another order, as PyTorch's memory-efficient attention does on a GPU.
    """
    import torch
    log2_e = torch.tensor(1.4426950408889634)
    read = products or (lambda x: x)

    def exp(s, m):
        return torch.exp2((s.double() * log2_e - (m * log2_e).double()).float())

    def scores(q, k, i, j, scale, causal, off):
        s = scale * (read(q[:, :, i]) @ read(k[:, :, j]).transpose(2, 3))
        return s.masked_fill(j > i[:, None] + off, float("-inf")) if causal else s

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, causal):
            narrow = q.dtype
            kept = lambda x, name: x.to(narrow).float() if name in half else x
            scale, (q, k, v) = q.shape[3]**-0.5, (x.float() for x in (q, k, v))
            m = q.new_full((*q.shape[:3], 1), -1e30)
            total, out = torch.zeros_like(m), q.new_zeros(*q.shape[:3], v.shape[3])
            rows, off = torch.arange(q.shape[2]), k.shape[2] - q.shape[2]
            for keys in torch.arange(k.shape[2]).split(tile):
                s = scores(q, k, rows, keys, scale, causal, off)
                new = torch.maximum(m, s.amax(3, keepdim=True))
                p, rescale = exp(s, new), exp(m, new)
                total = kept(total * rescale + p.sum(3, keepdim=True), "row sums")
                p = read(p.to(narrow_P or narrow).float())
                out = kept(out * rescale + p @ read(v[:, :, keys]), "out")
                m = new
            out = (out / total).to(narrow)
            ctx.save_for_backward(q, k, v, out, m + torch.log(total))
            ctx.causal, ctx.off = causal, off
            return out

        @staticmethod
        def backward(ctx, dout):
            q, k, v, out, lse = ctx.saved_tensors
            narrow, scale, dout = dout.dtype, q.shape[3]**-0.5, dout.float()
            kept = lambda x, name: x.to(narrow).float() if name in half else x
            delta = torch.zeros_like(lse)
            for j in torch.arange(k.shape[2]).split(tile) if "delta" in half else ():
                p = exp(scores(q, k, torch.arange(q.shape[2]), j, scale, ctx.causal, ctx.off), lse)
                dp = dout @ v[:, :, j].transpose(2, 3)
                delta = kept(delta + (p * dp).sum(3, keepdim=True), "delta")
            if "delta" not in half:
                delta = (dout * out.float()).sum(3, keepdim=True)
            dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
            for j in torch.arange(k.shape[2]).split(tile):
                for i in torch.arange(q.shape[2]).split(tile):
                    s = (scores(q * scale, k, i, j, 1.0, ctx.causal, ctx.off) if anew else
                         scores(q, k, i, j, scale, ctx.causal, ctx.off))
                    p = exp(s, lse[:, :, i])
                    dp = read(dout[:, :, i]) @ read(v[:, :, j]).transpose(2, 3)
                    ds = read((p * (dp - delta[:, :, i])).to(narrow).float())
                    p = read(p.to(narrow).float()).transpose(2, 3)
                    dv[:, :, j] = kept(dv[:, :, j] + p @ read(dout[:, :, i]), "dv")
                    dk_ij, dq_ij = ds.transpose(2, 3) @ read(q[:, :, i]), ds @ read(k[:, :, j])
                    dk[:, :, j] = kept(dk[:, :, j] + scale * dk_ij, "dk")
                    dq[:, :, i] = kept(dq[:, :, i] + scale * dq_ij, "dq")
            return dq.to(narrow), dk.to(narrow), dv.to(narrow), None
    return lambda q, k, v, *, causal=False: Attention.apply(q, k, v, causal)


def test_a_gradient_that_passes_through_the_maximum_is_right():
    """As in transformers: where the sink is the largest, the rounding of the row comes to it."""
    torch = pytest.importorskip("torch")

    def attend(q, k, v, sink, *, scale):
        s = torch.cat([scale * q @ k.mT, sink.reshape(1, -1, 1, 1).expand(*q.shape[:3], 1)], dim=3)
        P = torch.softmax(s - s.amax(3, keepdim=True), 3)
        return P[..., :-1] @ v
    for seed in range(3):
        how = {"seed": seed, "sizes": {"Tq": 1, "Tk": 300}}
        case = changed(*kit.cases("sink", only=["noncausal"], **how), options={"scale": 0.0})
        found = check_case(case, prepare("sink", attend, framework="torch"))
        assert found.status == report.PASSED, found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_in_half_precision_from_tile_to_tile_are_found(dtype):
    torch = pytest.importorskip("torch")
    how = {"framework": "torch", "dtype": dtype, "cases": ["many_small_terms"], "show": False}
    found = check("softmax", tiled(), **how)
    assert found.ok and max(t.ratio for r in found.results for t in r.tensors) < 0.3
    for name in ("row sums", "out", "delta", "dq", "dk", "dv"):
        found = check("softmax", tiled(half=(name,)), **how)
        assert found.failed, name
    assert check("softmax", tiled(narrow_P=torch.float8_e4m3fn), **how).failed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("anew", [False, True])
def test_flash_attention_2_is_right(dtype, anew):
    pytest.importorskip("torch")
    cases = ["causal", "noncausal", "long/T=97*", "dominant_score/seen", "dominant_score/*1e4",
             "score_shift", "large_values", "tiny_values", "odd_head_dim", "identical_tokens"]
    found = check("softmax", tiled(anew=anew), framework="torch", dtype=dtype, cases=cases,
                  show=False, exclude=["window"])
    assert found.ok, alarms(found)


def test_tf32_has_bounds_of_its_own():
    torch = pytest.importorskip("torch")

    def ten_bits(x):
        return (x.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)

    def eight_bits(x):
        return x.bfloat16().float()
    how = {"framework": "torch", "cases": ["causal", "noncausal", "long/T=97"], "show": False}
    narrow = tiled(products=ten_bits)
    assert check("softmax", narrow, dtype="tf32", **how).ok
    assert check("softmax", narrow, **how).failed
    assert check("softmax", tiled(products=eight_bits), dtype="tf32", **how).failed
    assert check("softmax", softmax, dtype="tf32", cases=["causal"], show=False).ok


def test_torch_gradients_cut_off_or_missing():
    pytest.importorskip("torch")
    fn = torch_reference("softmax")
    how = {"framework": "torch", "cases": ["causal"], "show": False}
    cut = check("softmax", lambda *a, **o: fn(*(x.detach() for x in a), **o), **how)
    assert "cut off from the inputs" in cut.results[0].findings[0].message
    part = check("softmax", lambda q, k, v, **o: fn(q, k.detach(), v, **o), **how)
    assert [f.message for f in part.results[0].findings] == ["the gradient of k is missing."]
    wide = check("softmax", lambda *a, **o: fn(*(x.double() for x in a), **o), **how)
    assert "the output is float64; float32 came in" in wide.results[0].findings[0].message


def test_torch_function_with_a_backward_of_its_own():
    torch = pytest.importorskip("torch")

    def forward(*arrays, **options):
        out, cache = softmax.forward(*(x.numpy() for x in arrays), **options)
        return torch.from_numpy(np.ascontiguousarray(out)), cache

    def backward(dout, cache):
        return {n: torch.from_numpy(np.ascontiguousarray(x)) for n,
                x in softmax.backward(dout.numpy(), cache).items()}
    assert check("softmax", forward, backward=backward, framework="torch", cases=["causal"],
                 show=False).ok
    forward.backward = backward
    assert resolve(forward).backward is backward
    assert check("softmax", forward, framework="torch", cases=["causal"], show=False).ok


@pytest.mark.slow
def test_jax_functions_are_differentiated_by_jax():
    jax = pytest.importorskip("jax")

    def attention(q, k, v, *, causal=False, bias=None, bug=0.0):
        s = q @ k.swapaxes(2, 3) / np.float32(np.sqrt(q.shape[3])) + (0 if bias is None else bias)
        see = np.tri(*s.shape[2:], k=s.shape[3] - s.shape[2], dtype=bool) | (not causal)
        P = jax.nn.softmax(jax.numpy.where(see, s, -np.inf), axis=-1)
        return (P - bug * jax.lax.stop_gradient(P)) @ v / (1 - bug)
    cases = ["causal", "noncausal", "bias", "non_contiguous"]
    found = check("softmax", attention, framework="jax", cases=cases, show=False)
    assert found.ok and by_id(found)["non_contiguous/strided"].status == report.NOT_COVERED
    wrong = check("softmax", lambda *a, **o: attention(*a, bug=0.5, **o), framework="jax",
                  cases=["causal"], show=False)
    assert {t.name for t in wrong.results[0].tensors if not t.ok} == {"dq", "dk"}


# -------------------------------------------------------------------- questions that make no sense


@pytest.mark.parametrize("kwargs, words", [
    ({"mechanism": "sofmax"}, "Did you mean 'softmax'"), ({"fn": 3}, "callable"),
    ({"fn": (softmax.forward, 3)}, "callable"), ({"cases": ["nothing"]}, "no case"),
    ({"cases": []}, "no cases"), ({"cases": kit.cases("sink")}, "must be one of softmax"),
    ({"framework": "nunpy"}, "numpy"), ({"dtype": "float8"}, "float"), ({"device": "cuda"}, "cpu"),
    ({"exclude": ["windw"]}, "Did you mean 'window'"), ({"time_limit": 0}, "time_limit"),
    ({"cases": 3}, "cases must be several"),
    ({"sizes": 3}, "sizes must be a dict"), ({"cases": [3]}, "each of cases must be a string"),
    ({"exclude": "bias"}, "exclude must be several"), ({"exclude": [3]}, "is called 3")])
def test_questions_without_an_answer(kwargs, words):
    with pytest.raises(InputError, match=words):
        check(**{"mechanism": "softmax", "fn": softmax, "show": False, **kwargs})


def test_skip_file(tmp_path):
    rules = tmp_path / "known.txt"
    rules.write_text("# what we know\nwindow/*  skip  no windows yet\n"
                     "softmax/causal/T xfail issue 12\n"
                     "noncausal/* xfail  long gone\n")

    def forward(q, k, v, *, causal=False, **options):
        return softmax.forward(q, k, v, **options)
    cases = ["causal", "window/W=2", "noncausal", "bias"]
    found = check("softmax", (forward, softmax.backward), cases=cases, skip_file=rules, show=False)
    status = {r.id: (r.status, r.reason) for r in found.results}
    assert status["window/W=2"] == (report.SKIPPED, "no windows yet")
    assert status["causal/T"] == (report.XFAILED, "issue 12")
    assert status["noncausal/T"] == (report.XPASSED, "long gone")
    assert status["bias/full"][0] == report.FAILED and not found.ok
    rules.write_text("window/* ignore because")
    with pytest.raises(InputError, match="line 1"):
        read_skips(rules)


# -------------------------------------------------------------------------------------- the report


def wrong_report():
    return check("softmax", (lambda *a, **o: plain_softmax(*a, bug="window", **o),
                             plain_softmax_backward),
                 cases=["causal", "window"], exclude=["window=1"], show=False)


def test_report_names_the_worst_element_with_both_numbers():
    found = wrong_report()
    result = by_id(found)["window/W=2"]
    tensor = next(t for t in result.tensors if t.name == "out")
    case = kit.cases("softmax", only=["window/W=2"])[0]
    right = precision.truth(case)["out"]
    actual = plain_softmax(*(x.astype(np.float32) for x in case.arrays.values()), bug="window",
                           **case.options)[0]
    assert tensor.expected == right[tensor.index] and tensor.actual == actual[tensor.index]
    assert tensor.error == np.abs(actual - right).max() and tensor.rms_ratio > 0.01
    at = ", ".join(map(str, tensor.index))
    assert f"at [{at}] it is {tensor.actual:.6g}, expected {tensor.expected:.6g}" in str(found)
    assert re.search(r"causal +1 .* ok", str(found))
    assert re.search(r"window +7 .* 4 WRONG, 1 not covered", str(found))


def test_report_as_json_and_junit(tmp_path):
    found = wrong_report()
    data = json.loads(found.to_json(tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text()) == data
    assert data["ok"] is False
    assert data["mechanism"] == "softmax"
    assert len(data["cases"]) == len(found.results)
    case = next(c for c in data["cases"] if c["id"] == "window/W=2")
    assert case["findings"][0]["kind"] == "values"
    assert case["tensors"][0]["error"] > case["tensors"][0]["bound"]
    root = ElementTree.fromstring(found.to_junit(tmp_path / "r.xml"))
    suites = {s.get("name"): s for s in root}
    assert suites["softmax.window"].get("failures") == "4"
    assert suites["softmax.window"].get("skipped") == "1"
    assert suites["softmax.causal"].get("failures") == "0" and len(root.findall(".//failure")) == 4
    assert ElementTree.parse(tmp_path / "r.xml").getroot().tag == "testsuites"


def test_json_holds_what_is_not_finite():
    found = check("softmax", misbehave("nan"), cases=["window/W=2"], show=False)
    tensor = json.loads(found.to_json())["cases"][0]["tensors"][0]
    assert tensor["actual"] == "nan" and tensor["error"] == "inf"


# -------------------------------------------------------------------------------- the command line


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A folder with somebody's kernels, as the working directory."""
    (tmp_path / "kernels.py").write_text(
        "import ctypes\n"
        "from minattn.attention import energy, softmax\n"
        "def deaf(q, k, v, **options):\n"
        "    options.pop('window', None)\n"
        "    return softmax.forward(q, k, v, **options)\n"
        "def crash(q, k, v, **options):\n"
        "    print('about to work')\n"
        "    if options.get('window') == 2:\n"
        "        return ctypes.string_at(0)\n"
        "    return softmax.forward(q, k, v, **options)\n"
        "number = 3\n")
    (tmp_path / "broken.py").write_text("raise ValueError('half written')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    return tmp_path


def test_command_says_all_good(kernels, capsys):
    args = ["check", "kernels:energy", "--mechanism", "energy", "--dtype", "float64"]
    args += ["--case", "causal", "--case", "gate*"]
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert "all good: 7 passed" in out and "numpy float64" in out


def test_command_says_what_is_wrong_and_writes_it_down(kernels, capsys):
    args = ["check", "kernels.py:deaf", "--case", "window/W=[12]", "--case", "causal"]
    args += ["--json", "r.json", "--junit", "r.xml"]
    assert cli.main(args) == 1
    assert "WRONG window/W=2" in capsys.readouterr().out
    assert json.loads((kernels / "r.json").read_text())["ok"] is False
    assert len(ElementTree.parse(kernels / "r.xml").getroot().findall(".//failure")) == 2


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_command_survives_a_crash(kernels, capsys):
    assert cli.main(["check", "kernels:crash", "--case", "causal", "--case", "window/W=[12]"]) == 1
    out = capsys.readouterr().out
    assert "crashed the process (SIGSEGV)" in out
    assert "2 passed, 1 failed" in out
    assert "about to work" not in out


HOSTILE = """
import os, sys, threading, time
import numpy as np
from minattn.attention import softmax
np.seterr(all="raise")
class Silent(Exception):
    def __str__(self):
        raise ValueError
def only(misbehave):
    def forward(q, k, v, **options):
        if options.get("window") == 2:
            misbehave()
        with np.errstate(all="ignore"):
            return softmax.forward(q, k, v, **options)[0]
    return forward
def raises(error):
    raise error
def fork():
    if os.fork() == 0:
        time.sleep(600)
def scribble():
    for fd in range(3, 20):
        try:
            os.write(fd, b"[1, 2]")
        except OSError:
            pass
def memory():
    if open("/proc/self/oom_score_adj").read().strip() != "1000":
        raise ValueError
    raise MemoryError
ends = only(lambda: os._exit(0))
exits = only(lambda: sys.exit("x\\n" * 10**6))
killed = only(lambda: os.killpg(0, 9))
realtime = only(lambda: os.kill(os.getpid(), 40))
stuck = only(lambda: (10**7)**(10**7))
floods = only(lambda: [print("x" * 1000) for _ in range(3000)])
long = only(lambda: raises(ValueError("m\\n" * 10**6)))
silent = only(lambda: raises(Silent()))
full = only(memory)
forks = only(fork)
forks_and_ends = only(lambda: (fork(), os._exit(3)))
threads = only(lambda: threading.Thread(target=time.sleep, args=(600,)).start())
closes = only(lambda: os.closerange(0, 50))
scribbles = only(scribble)
reads = only(lambda: sys.stdin.read())
strict = only(lambda: np.seterr(all="raise"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals, forks and /proc")
@pytest.mark.parametrize("name, words", [
    ("ends", "exit code 0"), ("killed", "SIGKILL"), ("stuck", "had to be killed"), ("floods", ""),
    ("forks", ""), ("closes", "crashed"),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        ("exits", "end the program: SystemExit: x x x"), ("realtime", "signal 40"),
        ("long", "raised ValueError: m m m"), ("silent", "its text cannot be read"),
        ("full", "raised MemoryError"), ("forks_and_ends", "exit code 3"), ("threads", ""),
        ("scribbles", "pipe|crashed"), ("reads", ""), ("strict", "")))])
def test_whatever_a_kernel_does_costs_one_verdict(kernels, capsys, monkeypatch, name, words):
    monkeypatch.setattr(isolate, "GRACE", 8.0)
    (kernels / "hostile.py").write_text(HOSTILE)
    limit = "1" if name == "stuck" else "60"
    start = time.perf_counter()
    code = cli.main(["check", f"hostile.py:{name}", "--case", "causal", "--case", "window/W=[12]",
                     "--time-limit", limit])
    said = capsys.readouterr()
    assert code == bool(words) and "Traceback" not in said.err
    assert "2 passed, 1 failed" in said.out if words else "3 passed" in said.out
    assert re.search(words, said.out) and len(said.out) < 3000 and len(said.err) < 70_000
    assert time.perf_counter() - start < 30                  # nothing is waited for


CRASHES = """
import os
from minattn.positions.rotary import backward, forward as right
def forward(x, start=0, **options):
    if start in (1000, 5):
        os._exit(3)
    return right(x, start=start + (start == 2047), **options)
"""


def test_two_processes_share_the_cases_and_report_the_same(kernels, monkeypatch):
    (kernels / "crashes.py").write_text(CRASHES)
    found = []
    for cores in (1, 2):
        monkeypatch.setattr(isolate.os, "cpu_count", lambda n=cores: n)
        assert cli.main(["check", "rotary", "crashes", "--json", "found"]) == 1
        found.append(json.loads((kernels / "found").read_text()))
        for row in (found[-1], *found[-1]["cases"]):
            row.pop("seconds")
    assert found[0] == found[1]
    wrong = {row["id"]: row["findings"][0]["kind"] for row in found[1]["cases"]
             if row["status"] == report.FAILED}
    assert wrong == {"positions/start=1000": "raised", "positions/start=5,T=1": "raised",
                     "positions/start=2047": "values"}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["check", "causality"])
def test_no_process_outlives_the_command(kernels, command, how):
    """The kernel forks, then computes without ever letting the interpreter go."""
    (kernels / "stuck.py").write_text(
        "import os, time\n"
        "def f(q, k, v, **options):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(600)\n"
        "    open('began', 'w').close()\n"
        "    (10**7)**(10**7)\n")
    mark = f"{command}-{how}-{os.getpid()}".encode()
    child = subprocess.Popen([sys.executable, "-m", "minattn", command, "stuck.py:f",
                              "--mechanism", "softmax"], stderr=subprocess.DEVNULL,
                             env={**os.environ, "PYTHONPATH": str(ROOT), "MARK": mark.decode()})
    until = time.perf_counter() + 30
    while not (kernels / "began").exists() and time.perf_counter() < until:
        time.sleep(0.05)
    assert len(run_cases.processes(mark)) >= 4               # the command, kernel, fork, guard
    child.send_signal(how)
    child.wait(10)
    assert run_cases.gone(mark)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_check_reports_the_cases_before(kernels, capsys, monkeypatch, how):
    module = sys.modules["minattn.validate.check"]

    def one_by_one(*args, real=module.until_too_many_hang):
        for result in real(*args):
            yield result
            signal.raise_signal(how)
    monkeypatch.setattr(module, "until_too_many_hang", one_by_one)
    (kernels / "double.py").write_text("def f(q, k, v, **options):\n    return 2 * v\n")
    assert cli.main(["check", "double.py:f", "--json", "found", "--case", "causal",
                     "--case", "noncausal"]) == 130
    said = capsys.readouterr()
    first, *rest = (c.id for c in kit.cases("softmax", only=["causal", "noncausal"]))
    assert f"WRONG {first}\n" in said.out and "out is off by" in said.out and not said.err
    last = f"interrupted after 1 of {len(rest) + 1} cases"
    assert said.out.splitlines()[-1].startswith(f"{last}: 1 failed in ")
    assert json.loads((kernels / "found").read_text())["interrupted"] == last


def test_an_import_that_hangs_is_bounded_by_the_time_limit(kernels, capsys, monkeypatch):
    monkeypatch.setattr(isolate, "GRACE", 1.0)
    (kernels / "slow.py").write_text("import time\ntime.sleep(600)\n")
    for command in (["check"], ["causality", "--mechanism", "softmax"]):
        assert cli.main([*command, "slow.py:f", "--time-limit", "0.5"]) == 2
        assert "importing slow.py:f did not come back within 0.5 s" in capsys.readouterr().err


DEAD_DEVICE = """
import torch
import torch.nn.functional as F
ones = torch.ones
def lost(*args, **options):
    raise RuntimeError("CUDA error: misaligned address")
def f(q, k, v, *, causal=False, window=None, scale=None):
    if window is not None:
        torch.ones = lost
    if torch.ones is lost:
        lost()
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
"""


@pytest.mark.slow
def test_after_an_error_that_a_device_keeps_the_next_case_has_a_new_process(kernels, capsys):
    pytest.importorskip("torch")
    (kernels / "dead.py").write_text(DEAD_DEVICE)
    more = ["--framework", "torch", "--exclude", "gradients"]
    assert cli.main(["check", "dead.py:f", *more, "--case", "noncausal", "--case", "window/W=2",
                     "--case", "long/T=97,causal", "--case", "scale/0.75"]) == 1
    assert "3 passed, 1 failed" in capsys.readouterr().out


def test_on_a_gpu_a_gradient_may_differ_by_rounding_when_it_is_made_again():
    first, second = (SimpleNamespace(tensors={"dq": np.full(3, x)}) for x in (1.0, 1.0 + 1e-9))
    assert list(repeated(first, second, {}))
    assert not list(repeated(first, second, {"dq": 1e-8}))
    assert list(repeated(first, second, {"dq": 1e-10}))


@pytest.mark.parametrize("sizes", [{"H": 16, "Hkv": 1}, {"Tq": 1, "Tk": 513}])
def test_sizes_that_few_families_have_in_mind(sizes):
    chosen = [c for c in kit.cases("softmax", sizes=sizes) if c.family != "combinations"]
    assert sum(not c.unmet for c in chosen) > 40
    assert all(check_case(c, prepare("softmax", softmax, sizes=sizes)).status == report.PASSED
               for c in chosen if c.family in ("packed", "many_small_terms") and not c.unmet)


def test_rope_is_another_name_for_rotary(capsys):
    said = []
    for name in ("rope", "rotary"):
        assert cli.main(["check", name, "--list"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "interleaved" in said[0]


def test_a_caller_s_strict_arithmetic_is_not_the_kit_s():
    with np.errstate(all="raise"):
        assert check("softmax", softmax, cases=["causal", "tiny_values"], show=False).ok
        assert causality("softmax").ok


def test_one_output_buffer_for_all_calls_is_found():
    buffer = {}

    def forward(q, k, v, **options):
        out = softmax.forward(q, k, v, **options)[0]
        kept = buffer.setdefault(out.shape, np.empty_like(out))
        kept[...] = out
        return kept
    found = check("softmax", forward, cases=["causal"], show=False)
    assert kinds(found.results[0]) == {"shared output"}
    torch = pytest.importorskip("torch")
    kept = torch.empty(1)

    def same(q, k, v, **options):
        kept.resize_(v.shape)[...] = v
        return kept
    found = check("softmax", same, framework="torch", cases=["one_token"], show=False,
                  exclude=["gradients"])
    assert all("shared output" in kinds(result) for result in found.failed)
    assert found.failed


def test_further_outputs_and_a_forgotten_framework_are_mentioned():
    torch = pytest.importorskip("torch")

    def forward(q, k, v, **options):
        return softmax.forward(q, k, v, **options)[0], np.zeros(3)
    assert "further outputs not covered" in str(check("softmax", forward, cases=["causal"],
                                                      show=False))
    assert "further" not in str(check("softmax", softmax, cases=["causal"], show=False))
    found = eval("lambda q, k, v, **o: torch.softmax(q, 3) @ v", {"torch": torch})
    assert "framework torch" in str(check("softmax", found, cases=["causal"], show=False))


@pytest.mark.parametrize("content, words", [
    (b"casual/T skip known\n", "'casual/T' matches no case. Did you mean 'causal/T'"),
    ("causal/* skip später\n".encode("latin-1"), "UTF-8"),
    (bytes(range(256)), "UTF-8|line 1")])
def test_skip_files_that_cannot_be_meant(kernels, capsys, content, words):
    (kernels / "skips.txt").write_bytes(content)
    args = ["check", "kernels:energy", "--mechanism", "energy", "--case", "causal"]
    assert cli.main([*args, "--skip-file", "skips.txt"]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_skip_files_of_windows_and_of_other_mechanisms(tmp_path):
    rules = tmp_path / "known.txt"
    rules.write_bytes(b"\xef\xbb\xbfcausal/T skip known\r\nenergy/gate* skip not ours\r\n")
    found = check("softmax", softmax, cases=["causal", "noncausal"], skip_file=rules, show=False)
    assert [r.status for r in found.results] == [report.SKIPPED, report.PASSED]


@pytest.mark.parametrize("args, words", [
    (["kernels:nothing"], "kernels has nothing called 'nothing'"),
    (["broken:f"], "cannot import broken: ValueError: half written"),
    (["kernels:number"], "callable")])
def test_command_could_not_run(kernels, capsys, args, words):
    assert cli.main(["check", *args]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and len(error.splitlines()) == 1


@pytest.mark.parametrize("args", [[], ["k:f", "--mechanism", "sofmax"],
                                  ["k:f", "--case", "nothing"],
                                  ["k:f", "--sizes", "D"], ["k:f", "--time-limit", "0"],
                                  ["k:f", "--seed", "-1"]])
def test_command_refuses_before_it_starts(args, capsys):
    assert cli.main(["check", *args]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("command, sizes, words", [
    ("check", "Tq=64/128", "--sizes is written as D=64,Dv=64; got 'Tq=64/128'"),
    ("check", "T=64, Tq=64", "T is both Tq and Tk: name T, or the two of them"),
    ("check", "H=3,H=5,Hkv=2", "H = 3 or 5 is no multiple of Hkv = 2"),
    ("causality", "D=16,D=32", "D must be an integer")])
def test_commands_refuse_sizes_that_do_not_fit(command, sizes, words, capsys):
    assert cli.main([command, "minattn.attention.softmax", "--mechanism", "softmax",
                     "--sizes", sizes]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and len(error.splitlines()) == 1


def test_command_lists_the_cases(capsys):
    assert cli.main(["check", "--mechanism", "sink", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    plain = ("align", "grouped", "log_length", "softcap")    # what newer kernels do
    assert [line.split()[0] for line in lines] == [c.id for c in kit.cases("sink", without=plain)]
    assert not any("log_length" in line or "grouped" in line for line in lines)
    line = next(line for line in lines if line.startswith("window/W=2"))
    assert line.split()[1:] == ["quick", "causal,", "window"]


def test_what_is_listed_is_what_runs(kernels, capsys):
    """A function that takes no softcap has other combinations than one that does."""
    (kernels / "own.py").write_text(
        "from minattn.attention import softmax\n"
        "def plain(q, k, v, *, causal=False, window=None, allowed=None, bias=None, scale=None):\n"
        "    return softmax.forward(q, k, v, causal=causal, window=window, allowed=allowed,\n"
        "                           bias=bias, scale=scale)[0]\n")
    assert cli.main(["check", "own.py:plain", "--exclude", "prefix", "--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert not any(word in case for case in listed if case.startswith("combinations")
                   for word in ("softcap", "log_length", "G=", "prefix"))
    last = next(c for c in listed[::-1] if c not in {case.id for case in kit.cases("softmax")})
    assert cli.main(["check", "own.py:plain", "--exclude", "prefix", "--case", last]) == 0
    assert "all good: 1 passed" in capsys.readouterr().out


# ----------------------------------------------------------------- the pytest plugin and the guide


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def run_pytest(folder, *args):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def test_ten_line_example_of_the_plugin(tmp_path):
    example, = (b for b in blocks("python") if "pytest_plugin" in b)
    assert len(example.strip().splitlines()) <= 10
    (tmp_path / "test_kernel.py").write_text(example)
    (tmp_path / "tiled.py").write_text("from minattn.attention.softmax import *\n"
                                       "attention = forward, backward\n")
    example = example.replace('framework="torch"', 'framework="numpy"').replace('"bias"', '"scale"')
    (tmp_path / "test_kernel.py").write_text(example)
    names = ("causal/T", "window/W=2", "scale/0.75")
    done = run_pytest(tmp_path, *(f"test_kernel.py::TestTiled::test_case[{name}]"
                                  for name in names))
    assert done.returncode == 0, done.stdout
    assert "SKIPPED" in done.stdout
    assert "you excluded" in done.stdout
    assert re.search(r"PASSED .*causal/T", done.stdout)


def test_plugin_fails_in_plain_words(tmp_path):
    (tmp_path / "rules.txt").write_text("noncausal/* xfail known\nscale/* skip later\n")
    (tmp_path / "test_kernel.py").write_text(
        "from minattn.validate.pytest_plugin import suite\n"
        "from minattn.attention import softmax\n"
        "def kernel(q, k, v, *, causal=False, **options):\n"
        "    return softmax.forward(q, k, v, causal=not causal, **options)[0]\n"
        "TestKernel = suite('softmax', kernel, cases=['causal', 'noncausal', 'scale'],\n"
        "                   skip_file='rules.txt')\n")
    done = run_pytest(tmp_path)
    assert done.returncode == 1
    assert re.search(r"out is off by \S+ where \S+ is allowed: at \[", done.stdout)
    assert "Traceback" not in done.stdout
    assert "1 failed, 2 skipped, 1 xfailed" in done.stdout
    assert "gradients not covered" in done.stdout


@pytest.mark.slow
def test_the_guide_finds_its_bugs_and_its_repair_is_right(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    kernel, = (b for b in blocks("python") if "def attention" in b)
    diff, = blocks("diff")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    (tmp_path / "tiled.py").write_text(kernel)
    command = re.search(r"python -m minattn (check .*--quick.*)",
                        GUIDE.read_text(encoding="utf-8"))[1].split()
    assert cli.main(command) == 1
    out = capsys.readouterr().out
    told = [line for line in blocks("text")[0].splitlines()
            if line.startswith(("WRONG", "not covered"))]
    assert len(told) > 2
    assert [line for line in out.splitlines() if line.startswith(("WRONG", "not covered"))] == told

    lines = [line for line in diff.splitlines() if line]
    for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", "\n".join(lines) + "\n",
                               re.MULTILINE):
        old, new = (re.sub("^[-+]", "", text, flags=re.MULTILINE) for text in (old, new))
        assert kernel.count(old) == 1
        kernel = kernel.replace(old, new)
    (tmp_path / "tiled.py").write_text(kernel)
    assert cli.main(command) == 0
