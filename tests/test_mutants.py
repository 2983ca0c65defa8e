"""The kit's own test: each wrong implementation is found by the family that is there for it."""
import argparse
import json

import numpy as np
import pytest

from minattn.attention import MECHANISMS, softmax
from minattn.errors import InputError
from minattn.validate import check, mutants, self_check
from minattn.validate.cases import cases
from minattn.validate.mutants import MUTANTS

# a mutant -> the cases of one family that must find it
FOUND_BY = {
    "keys_reversed": "prime_sizes/*", "softmax_over_queries": "prime_sizes/*",
    "dv_not_transposed": "causal/T",
    "causal_sees_next": "causal/T", "causal_on_fast_path_only": "causal/T",
    "mask_ignored_backward": "causal/T",
    "causal_always": "noncausal/*", "rowsum_dropped": "noncausal/*", "rowsum_of_out": "noncausal/*",
    "window_plus_one": "window/W=2", "window_sees_future": "window/*implied",
    "wide_window_no_mask": "window/W=12",
    "prefix_ignored": "prefix/K=3", "prefix_beats_window": "prefix/K=4,W=3",
    "allowed_flipped": "padding/*",
    "mask_of_first_key": "padding/keys", "nan_behind_empty_rows": "fully_masked_row/sample",
    "mask_smallest_number": "fully_masked_row/sample",
    "always_aligned_at_start": "tq_ne_tk/Tq=5,Tk=7,align=end",
    "old_maximum_kept": "long/T=97", "dk_of_last_block": "long/T=97",
    "channels_beyond_64": "odd_head_dim/D=111",
    "maximum_from_minus_1e4": "score_shift/-1e6", "scores_clamped": "score_shift/-1e6",
    "mask_minus_1e4": "dominant_score/hidden,1e10", "mask_minus_1e9": "dominant_score/hidden,1e10",
    "zero_query_divided": "equal_scores/*", "small_values_flushed": "tiny_values/values",
    "output_saturates": "large_values/values", "repeated_keys_once": "repeated_tokens/*",
    "reads_as_contiguous": "non_contiguous/*", "writes_into_q": "noncausal/*",
    "dv_kept_between_calls": "noncausal/*",
    "bias_gradient_of_one_query": "bias/per_key", "scale_ignored": "scale/*",
    "one_nan": "noncausal/*",
    "all_zeros": "noncausal/*", "noise": "noncausal/*", "float16_weights": "noncausal/*",
    "float64_out": "noncausal/*",
    "sink_gradient_zero": "causal/T", "sink_clamped_above": "sink_far_above/20",
    "one_token_shortcut": "one_token/*",
    "sink_weight_by_subtraction": "sink_far_below/-20", "one_after_maximum": "causal/T",
    "zero_key_shifts_mask": "causal/T", "gate_cut_off": "gate_saturated/closed",
    "gate_derivative_halved": "causal/T",
    "beta_on_masked_keys": "causal/T", "ma_differentiated": "causal/T",
    "slope_at_kinks": "alpha_at_kinks/linear_clip",
    "scaled_by_batch": "batch_independence/*", "one_pass_variance": "large_values/energy*",
    "deviation_without_floor": "identical_tokens/*", "kernel_underflows": "sigma_tiny/*others",
    "beta_not_before_ma": "alpha_ma/0", "nothing_visible": "fully_masked_row/*visible",
    "statistics_of_the_future": "causal/T,norm=prefix",
    "renormaliser_clamped": "gate_all_closed/key",
    "kernel_without_half": "causal/T", "sigma_clamped": "sigma_huge/*",
    "tiny_sigma_is_identity": "sigma_tiny/-6",
    "power_overflows": "dominant_score/one*", "offset_by_position": "noncausal/T",
    "without_eps": "nearly_equal_scores/1/64*", "divided_by_zero_r": "causal/T",
    "forgets_the_key_itself": "causal/T", "gates_multiplied": "forget_saturated/closed",
    "gates_of_hidden_keys_skipped": "forget_hidden_key/*", "query_and_keys_forget": "causal/T",
    "value_role_forgotten": "causal/T", "values_have_no_gradient": "prime_sizes/values",
    "pairs_apart": "causal/T", "lambda_clamped": "lambda_saturated/*", "lambda_sign": "causal/T",
    "lambda_below_one": "lambda_near_1/W=1", "norm_over_all_heads": "causal/T",
    "layer_index_ignored": "causal/T,layer_index=3", "lambda_through_factor": "causal/T",
    "norm_without_epsilon": "fully_masked_row/holes", "keys_of_first_head": "causal/T",
    "ninth_head": "many_heads/H=9", "ninth_head_backward": "many_heads/H=9",
    "ninth_sample": "many_heads/B=9", "one_query_bias_of_first_head": "bias/per_head,Tq=1",
    "third_block_hides_diagonal": "long/T=131,causal",
    "channels_beyond_128": "wide_heads/D=256", "float16_wide_heads": "wide_heads/*k[*]2^20",
    "rowsum_of_128_channels": "wide_heads/D=256", "gate_gradient_of_128_channels": "wide_heads/*=1",
    "split_keys_dropped": "long_decode/*", "split_bias_of_first_block": "long_decode/*bias",
    "sink_of_every_block": "long_decode/*", "keys_counted_in_a_byte": "long_decode/*",
    "bias_gradient_of_last_block": "bias/per_key,Tq=131",
    "window_sums_as_differences": "far_from_zero/*length=visible",
    "variances_in_one_pass": "features/*far",
    "faint_weights_skipped": "faint_tiles/*", "forgotten_keys_pruned": "forget_far/*",
    "features_kept_from_zero": "features/elu,tiny",
    "last_channels_dropped": "odd_head_dim/D=111",
    "threshold_of_32": "support_of_many/*", "shared_statistics_once": "tq_ne_tk/Tq=9,Tk=5*",
    "content_clamped": "content_dominates/*", "content_after_mask": "content_dominates/last,causal",
}


def test_every_mutant_is_a_change_of_the_base():
    assert len(MUTANTS) >= 140
    seen = set()
    for m in MUTANTS.values():
        text = m.source()
        compile(text, m.name, "exec")
        assert text != "\n".join(mutants.base(m.mechanism)), m.name
        assert (m.mechanism, text) not in seen, m.name
        seen.add((m.mechanism, text))
    for name in {m.mechanism for m in MUTANTS.values()}:
        both = {m.backward for m in MUTANTS.values() if m.mechanism == name}
        assert both == {False, True}, f"{name} lacks a mutant of its forward or its backward"
    assert sum(bool(m.bug) for m in MUTANTS.values()) >= 12


def test_an_edit_whose_line_is_gone_is_refused():
    gone = mutants.Mutant("gone", "softmax", "nothing", "- out = Q @ v\n+ out = 0")
    with pytest.raises(InputError, match="'out = Q @ v' 0 times"):
        gone.source()
    twice = mutants.Mutant("twice", "softmax", "nothing",
                           "- if sink is not None:\n+ if True:")
    with pytest.raises(InputError, match="2 times, not once"):
        twice.source()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_base_is_right(mechanism):
    """On a few families, in float64 and float32; the slow run takes every case."""
    base = mutants.none(mechanism).load()
    report = check(mechanism, base, cases=["causal/*", "padding/*"], dtype="float64", show=False)
    assert report.ok, str(report)
    report = check(mechanism, base, cases=["causal/*", "padding/*", "window/*"], show=False)
    assert report.ok, str(report)


LARGE = ("power_overflows",)          # one key of 372 must dominate: half a minute


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in FOUND_BY])
def test_mutant_is_found(name):
    m = MUTANTS[name]
    report = check(m.mechanism, m.load(), cases=[FOUND_BY[name]], conventions="ours", show=False)
    assert report.failed, f"{name} ({m.wrong}) passes {FOUND_BY[name]}"


# a mutant -> the only cases of the quick selection that find it
ALONE = {"ninth_head": {"many_heads/H=9"}, "ninth_head_backward": {"many_heads/H=9"},
         "ninth_sample": {"many_heads/B=9"},
         "one_query_bias_of_first_head": {"bias/per_head,Tq=1", "long_decode/Tk=601,bias"},
         "third_block_hides_diagonal": {"long/T=131,causal"},
         "maximum_0_of_hidden_tiles": {"hidden_tiles/padding", "hidden_tiles/W=5"},
         "maximum_0_backward": {"hidden_tiles/padding", "hidden_tiles/W=5"},
         "float16_wide_heads": {"wide_heads/D=256,q/2^20,k*2^20"},
         "split_keys_dropped": {"long_decode/Tk=1023", "long_decode/Tk=601,bias"},
         "split_bias_of_first_block": {"long_decode/Tk=601,bias"},
         "bias_gradient_of_last_block": {"bias/per_key,Tq=131"}}


@pytest.mark.parametrize("name", ALONE)
def test_mutant_is_found_by_one_quick_case_alone(name):
    quick = [c.id for c in cases("softmax", quick=True) if c.family != "combinations"]
    report = check("softmax", MUTANTS[name].load(), cases=quick, conventions="ours", show=False)
    assert {r.id for r in report.failed} == ALONE[name]


@pytest.mark.parametrize("name", ["ninth_head", "ninth_sample"])
def test_heads_and_samples_beyond_8_are_among_the_combinations(name):
    crowded = [c for c in cases("softmax", quick=True) if c.family == "combinations"
               and min(c.row["heads"][0], c.row["B"]) > 8]
    assert any(c.row["heads"][0] > c.row["heads"][1] for c in cases("softmax")
               if c.family == "combinations" and c.row["B"] > 8)
    assert check("softmax", MUTANTS[name].load(), cases=crowded[:2], show=False).failed


def blocks_over_128(q):
    return q.shape[0] * q.shape[1] * -(-q.shape[2] // 64) > 128


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [
    blocks_over_128, lambda q: q.shape[1] > 16, lambda q: q.shape[2] > 1024,
    lambda q: q.shape[2] > 256 and q.shape[3] > 128, lambda q: q.shape[0] > 8 and q.shape[2] > 512])
def test_sizes_beyond_blocks_and_grids_are_among_the_combinations(wrong):
    """With a fault in the gradients of such sizes alone"""
    def backward(dout, cache):
        grads = softmax.backward(dout, cache)
        if wrong(grads["q"]):
            grads["v"][:, :, -1:] *= 0.9
        return grads
    some = [c for c in cases("softmax") if c.family == "combinations" and wrong(c.arrays["q"])][:1]
    assert not check("softmax", (softmax.forward, softmax.backward), cases=some, show=False).failed
    assert check("softmax", (softmax.forward, backward), cases=some, show=False).failed


@pytest.mark.parametrize("mechanism", ["sink", "gated", "energy", "gaussian", "forget", "affine",
                                       "differential", "differential_1", "collaborative"])
def test_hidden_tiles_are_found_in_every_softmax(mechanism):
    for name in ("maximum_0_of_hidden_tiles", "maximum_0_backward"):
        wrong = MUTANTS[name]._replace(mechanism=mechanism).load()
        report = check(mechanism, wrong, cases=["hidden_tiles"], show=False)
        assert len(report.failed) == 2


def test_backward_mutants_have_a_right_forward():
    x = np.random.default_rng(0)
    for m in MUTANTS.values():
        if m.backward and m.mechanism == "softmax":
            q, k, v = (x.standard_normal((2, 3, 5, d)) for d in (7, 7, 11))
            right = mutants.none("softmax").load().forward(q, k, v, causal=True)[0]
            np.testing.assert_array_equal(m.load().forward(q, k, v, causal=True)[0], right)


def test_causality_certificate_counts():
    found = self_check.causality_forms("softmax", MUTANTS["trace_of_the_future"].load())
    assert found.keys() == set(self_check.FORMS)
    assert "changed when only token" in found["causality/suffix"]
    # the length counts, as published
    assert not self_check.causality_forms("affine", mutants.none("affine").load())


# ----------------------------------------------------------------------------------- validate-self


def command(*words):
    parser = argparse.ArgumentParser()
    self_check.add_arguments(parser)
    return self_check.run(parser.parse_args(words))


def test_command_on_a_few(capsys, tmp_path):
    path = tmp_path / "score.json"
    assert command("--mutant", "scale_[bi]*", "--json", str(path)) == 0
    out = capsys.readouterr().out
    assert "2 of 2 mutants killed" in out and "scale_ignored" in out and "FALSE ALARM" not in out
    assert "families that find nothing alone" not in out  # says nothing about a few mutants
    score = json.loads(path.read_text(encoding="utf-8"))
    assert score["ok"]
    assert score["mutants"] == 2
    assert score["families"]["scale"]["alone"] == ["scale_ignored"]


@pytest.mark.slow
def test_command_in_half_precision(capsys):
    pytest.importorskip("ml_dtypes")
    assert command("--mutant", "scale_[bi]*", "--dtype", "bfloat16") == 0
    assert "2 of 2 mutants killed" in capsys.readouterr().out


def test_command_fails_when_a_mutant_survives(capsys, monkeypatch):
    harmless = mutants.Mutant("harmless", "softmax", "nothing",
                              "- s = scale * dots\n+ s = dots * scale")
    monkeypatch.setattr(mutants, "MUTANTS", {"harmless": harmless})
    assert command("--mutant", "harmless") == 1
    out = capsys.readouterr().out
    assert "SURVIVES harmless (softmax): nothing" in out
    assert "+ s = dots * scale" in out
    assert "0 of 1 mutants" in out


def test_command_fails_on_a_false_alarm(capsys, monkeypatch):
    broken = mutants.Mutant("none", "softmax", "nothing", "- out = P @ v\n+ out = P @ v + 1")
    monkeypatch.setattr(mutants, "none", lambda mechanism: broken)
    assert command("--mutant", "scale_ignored") == 1
    assert "FALSE ALARM, nothing is wrong with softmax" in capsys.readouterr().out


def test_command_shows_and_lists(capsys):
    assert command("--show", "maximum_from_minus_1e4") == 0
    assert capsys.readouterr().out.splitlines() == [
        "maximum_from_minus_1e4 (softmax): the running maximum starts at -1e4 (llm.c)",
        "- m = s.max(axis=-1, keepdims=True)",
        "+ m = np.maximum(s.max(axis=-1, keepdims=True), -1e4)"]
    assert command("--list", "--mechanism", "gated") == 0
    gated = [m for m in MUTANTS.values() if m.mechanism == "gated"]
    assert len(capsys.readouterr().out.splitlines()) == len(gated)


@pytest.mark.parametrize("words, message", [
    (["--mutant", "sink_ignord"], "Did you mean 'sink_ignored'"),
    (["--mechanism", "softmx"], "Did you mean 'softmax'"),
    (["--dtype", "float8", "--mutant", "scale_ignored"], "--dtype must be"),
    (["--show", "nothing_visibl"], "Did you mean 'nothing_visible'"),
    (["--mutant", "sink_*", "--mechanism", "gated"], "no mutant of gated is called"),
    (["--mutant", "scale_ignored", "--json", "no/such/folder/score.json"], "cannot write"),
])
def test_bad_input_is_one_sentence(words, message):
    with pytest.raises(InputError, match=message):
        command(*words)


@pytest.mark.slow
def test_every_mutant_is_killed():
    score = self_check.score()
    assert not score.alarms, score.alarms
    assert not score.survivors, [v.mutant.name for v in score.survivors]
    only_causality = [v.mutant.name for v in score.verdicts
                      if not v.killed.keys() - set(self_check.FORMS)]
    assert not only_causality
    unneeded = {family for family, (_, alone) in score.families().items() if not alone}
    kept = self_check.KEPT.keys()
    assert unneeded <= kept, f"say in KEPT why these stay: {unneeded - kept}"
    assert kept <= unneeded, f"these need no excuse: {kept - unneeded}"
