"""The exercises: right answers pass however they are written, wrong ones are told why.

answers/lesson_NN.py holds the answers to the exercises of a lesson, by the name of the exercise. A
grader's own hints are tested too: each mistake it knows must be told its own sentence.
"""

import importlib

import numpy as np
import pytest
from answers import lesson_10

from minattn.attention import softmax
from minattn.lessons import FOLDER
from minattn.positions import morlet

LESSONS = [path.stem[-2:] for path in sorted(FOLDER.glob("grader_[0-9][0-9].py"))]
GRADERS = {n: importlib.import_module(f"minattn.lessons.grader_{n}") for n in LESSONS}
ANSWERS = {n: importlib.import_module(f"answers.lesson_{n}") for n in LESSONS}
CHECKS = {
    (n, name.removeprefix("check_")): check
    for n in LESSONS
    for name, check in vars(GRADERS[n]).items()
    if name.startswith("check_")
}
HINTS = [(*key, i) for key, check in CHECKS.items() for i in range(len(check.describe().hints))]


def answers(table):
    """[(lesson, exercise, place in its list)] of RIGHT or WRONG"""
    return [
        (n, name, i)
        for n in LESSONS
        for name, given in getattr(ANSWERS[n], table).items()
        for i in range(len(given))
    ]


def each(table):
    """The same as parameters of a test; those of is_wrong run the whole kit, which is slow."""
    return [
        pytest.param(*which, marks=[pytest.mark.slow] if which[1] == "is_wrong" else [])
        for which in answers(table)
    ]


@pytest.mark.parametrize("lesson, exercise, i", each("RIGHT"))
def test_a_right_answer_passes(lesson, exercise, i, capsys):
    assert CHECKS[lesson, exercise](ANSWERS[lesson].RIGHT[exercise][i])
    assert capsys.readouterr().out.startswith("right: ")


@pytest.mark.parametrize("lesson, exercise, i", each("WRONG"))
def test_a_wrong_answer_is_told_why(lesson, exercise, i, capsys):
    answer, says = ANSWERS[lesson].WRONG[exercise][i]
    assert not CHECKS[lesson, exercise](answer)
    told = capsys.readouterr().out
    assert told.startswith("not yet" if "raised" in says else "not right yet") and says in told


@pytest.mark.parametrize("lesson, exercise, i", HINTS)
def test_a_known_mistake_is_told_its_hint(lesson, exercise, i, capsys):
    check = CHECKS[lesson, exercise]
    described = check.describe()
    wrong, says = described.hints[i]
    assert not check(wrong)
    assert capsys.readouterr().out.endswith(f" {says}\n")


def _single(function, inputs=False):
    """The same function with results rounded to float32, and its arrays too if inputs."""

    def rounded(x):
        if isinstance(x, (tuple, list)):
            return [rounded(one) for one in x]
        x = np.asarray(x)
        return x.astype(np.float32) if x.dtype.kind == "f" else x

    def f(*given):
        if inputs:
            given = [
                x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype == float else x
                for x in given
            ]
        came = function(*given)
        return came if came is None else rounded(came)

    return f


@pytest.mark.parametrize("lesson, exercise, i", each("RIGHT"))
def test_a_right_answer_passes_in_float32(lesson, exercise, i, capsys):
    """Its results rounded to float32; computed in float32 it passes, or is told what it lacks."""
    answer = ANSWERS[lesson].RIGHT[exercise][i]
    assert CHECKS[lesson, exercise](_single(answer))
    capsys.readouterr()
    if not CHECKS[lesson, exercise](_single(answer, inputs=True)):
        assert exercise in ("is_causal", "slope", "weights", "sampling_probabilities",
                            "gated_weights", "add_sink")
        assert "float32" in capsys.readouterr().out


@pytest.mark.parametrize("lesson, exercise, i", each("WRONG"))
def test_a_wrong_answer_fails_in_float32_too(lesson, exercise, i):
    answer, says = ANSWERS[lesson].WRONG[exercise][i]
    if "raised" not in says:
        assert not CHECKS[lesson, exercise](_single(answer))


@pytest.mark.parametrize("lesson, exercise", CHECKS)
def test_an_open_exercise_is_not_yet(lesson, exercise, capsys):
    for stub in (lambda *given, **named: None, lambda *given, **named: ..., None, ...):
        assert not CHECKS[lesson, exercise](stub)
        assert capsys.readouterr().out.startswith("not yet")


def test_a_miss_that_is_not_seen_at_six_digits_is_explained(capsys):
    almost = CHECKS["01", "softmax_backward"]
    assert not almost(lambda dP, P: (P * (dP - (P * dP).sum(axis=1, keepdims=True))) * (1 + 1e-8))
    said = capsys.readouterr().out
    assert "(dP (5, 7), P (5, 7))" in said and "eps" in said
    assert "off by " in said and "e-0" in said


def test_every_exercise_has_answers():
    for table in ("RIGHT", "WRONG"):
        assert {(n, name) for n, name, _ in answers(table)} == set(CHECKS)


def test_the_inputs_of_effective_reach_every_clamp():
    """Free, capped, floored and projected pairs, and one that is projected beyond the cap."""
    log_omega, log_sigma = CHECKS["04", "effective"].describe().inputs[0]
    omega, sigma, product = morlet.effective(log_omega, log_sigma)
    assert (np.exp(log_omega) > morlet.MAX_OMEGA).any()
    assert (np.exp(log_sigma) < morlet.MIN_SIGMA).any()
    assert (product >= 5).any() and (product < 5).any() and (omega > morlet.MAX_OMEGA).any()


def test_the_tiles_of_lesson_10_add_up_to_the_gradient():
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((1, 1, 7, n)) for n in (5, 5, 3, 3))
    out, cache = softmax.forward(q, k, v, causal=True)
    lse, see = cache.lse[0, 0, :, None], np.tri(7, dtype=bool)
    expected = softmax.backward(dout, cache)
    q, k, v, dout, out = (x[0, 0] for x in (q, k, v, dout, out))
    delta = (dout * out).sum(axis=1, keepdims=True)
    total = [np.zeros(x.shape) for x in (q, k, v)]
    for rows in (slice(0, 4), slice(4, 7)):
        for keys in (slice(0, 3), slice(3, 7)):
            parts = lesson_10.tile(
                dout[rows],
                q[rows],
                k[keys],
                v[keys],
                lse[rows],
                delta[rows],
                see[rows, keys],
                cache.scale,
            )
            for whole, part, at in zip(total, parts, (rows, keys, keys)):
                whole[at] += part
    for name, mine in zip("qkv", total):
        assert np.abs(mine - expected[name][0, 0]).max() < 1e-13
