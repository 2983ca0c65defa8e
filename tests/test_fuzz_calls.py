"""Random command lines and random calls: one sentence each, or the right answer.

The seeds are fixed; `slow` runs longer. What was found once is in the corpus.
"""
import os
import warnings

import fuzz_calls
import fuzz_lines
import numpy as np
import pytest
from run_cases import train, write_corpus

from minattn import checks, cli, memory
from minattn.attention import MECHANISMS, softmax
from minattn.errors import InputError

pytestmark = pytest.mark.usefixtures("no_picture")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a finished run and its corpus."""
    home = tmp_path_factory.mktemp("home")
    assert train(home / "run", write_corpus(home)) == 0
    return home


def refused(words, capsys):
    """Exit code 2 and one bounded sentence."""
    assert cli.main(words) == 2, words
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, words
    assert 10 < len(said) < cli.LONGEST + 100


@pytest.mark.parametrize("line", fuzz_lines.CORPUS, ids=lambda line: line[:40])
def test_lines_that_were_wrong_once(line, home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    refused([word.format(home=home) for word in line.split()], capsys)


@pytest.mark.parametrize("count", [50, pytest.param(400, marks=pytest.mark.slow)])
def test_lines_with_a_number_that_is_none(count, home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    rng = np.random.default_rng(count)
    before = sorted(os.listdir(home))
    for _ in range(count):
        refused(fuzz_lines.refused(rng, home), capsys)
    assert sorted(os.listdir(home)) == before


@pytest.mark.parametrize("count", [600, pytest.param(3_000, marks=pytest.mark.slow)])
def test_calls(count):
    rng = np.random.default_rng(count)
    wrong = []
    for n in range(count):
        if n % 200 == 0:
            known = fuzz_calls.calls(rng)
        wrong.append(fuzz_calls.attempt(rng, known))
    assert not list(filter(None, wrong))


def test_calls_under_a_caller_who_makes_numpy_raise():
    """The answers of right calls do not depend on np.seterr, nor on the warnings filter."""
    rng = np.random.default_rng(0)
    known = fuzz_calls.calls(rng)
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in known:
            call.function(**call.arguments)
        q, k, v = 300 * np.ones((3, 1, 1, 4, 4), np.float32)
        k[:, :, 1:] *= -1                                # exp underflows
        assert np.isfinite(softmax.forward(q, k, v)[0]).all()


SIZES = {"B": 1, "H": 2, "G": 2, "Tq": 8, "Tk": 8, "T": 8, "D": 4, "Dv": 4, "Dv|1": 1}
VARIANTS = [(name, dict(options)) for name, row in MECHANISMS.items()
            for options in {(), *(((option, value),) for option, known in row.options.items()
                                  for value in known.others())}]
each_variant = pytest.mark.parametrize("name, options", sorted(VARIANTS, key=str), ids=str)


def inputs(name, size=1.0, dtype=float, **sizes):
    """Arrays for a mechanism -> {argument: array}"""
    rng = np.random.default_rng(0)
    return {argument: (size * rng.standard_normal([checks.extent(s, {**SIZES, **sizes})
                                                   for s in shape.split()])).astype(dtype)
            for argument, shape in MECHANISMS[name].arguments.items()}


@each_variant
def test_tiny_numbers_under_a_caller_who_makes_numpy_raise(name, options):
    module, arrays = MECHANISMS[name].module, inputs(name, 1e-25, np.float32)
    with np.errstate(all="raise"):
        out, cache = module.forward(**arrays, causal=True, **options)
        grads = module.backward(1e-25 * np.ones_like(out), cache)
        assert all(np.isfinite(x).all() for x in (out, *grads.values()))


@each_variant
@pytest.mark.parametrize("empty", ["B", "Tq", "Tk", "Tq Tk T", "D"])
@pytest.mark.filterwarnings("error")
def test_empty_axes(name, options, empty):
    """A result of that size, or, without channels, one sentence."""
    row, sizes = MECHANISMS[name], {**SIZES, **dict.fromkeys(empty.split(), 0)}
    arrays = inputs(name, **sizes)
    if "q" not in arrays and empty in ("Tq", "Tk"):          # one length for all
        return
    options = dict(options)                                  # the next test has the same dict
    if "log_length" not in row.refuses:
        options["log_length"] = np.ones(SIZES["H"])
    for shape in ("B 1 1 Tk", "B H Tq Tk", "Tq Tk"):
        options["allowed"] = np.ones([checks.extent(s, sizes) for s in shape.split()], bool)
        try:
            out, cache = row.module.forward(**arrays, causal=True, **options)
        except InputError as error:
            assert empty == "D" and "must be at least 1" in str(error)
            continue
        assert empty != "D"
        assert out.shape[:3] == (sizes["B"], sizes["H"], sizes["Tq"]) and not out.any()
        grads = row.module.backward(np.ones_like(out), cache)
        assert all(grads[n].shape == arrays[n].shape for n in arrays if n not in row.buffers)


@each_variant
def test_nan_behind_a_mask(name, options):
    """As the core's docstring says: from q and k it stays where it is seen, from v it does not."""
    row, arrays = MECHANISMS[name], inputs(name)
    if "q" not in arrays or row.leak(**options):
        return

    def out(**changed):
        return row.module.forward(**{**arrays, **changed}, causal=True, **options)[0]
    right = out()
    for changed in "qk":
        wrong = arrays[changed].copy()
        wrong[:, :, 7] = np.nan
        found = out(**{changed: wrong})
        assert np.array_equal(found[:, :, :7], right[:, :, :7]) and np.isnan(found[:, :, 7]).all()
    arrays["v"][:, :, 7] = 0
    assert np.isfinite(out()).all()


# ------------------------------------------------------------------------------------------- memory


def test_memory_is_weighed_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda: 10**9)
    memory.weigh("this", 10**8, "take less")
    with pytest.raises(InputError, match=r"this would need 12\.3 GB .* 1\.0 GB are .*: take less"):
        memory.weigh("this", 12_345_678_901, "take less")
    monkeypatch.setattr(memory, "_address_space", lambda: 10**8)
    assert memory.available() == (10**8, " below the limit of the address space (ulimit -v)")
    with pytest.raises(InputError, match="more than 10"):
        memory.weigh("this", 10**4000, "take less")


def test_memory_of_a_system_that_tells_nothing(monkeypatch):
    for name in ("_free", "_container", "_address_space"):
        monkeypatch.setattr(memory, name, lambda: None)
    assert memory.available() == (2**63, "")
