"""The benchmarks measure what they say, and PyTorch's fast form is the literal one."""

import argparse
import collections
import copy
import importlib.util
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from gpt_cases import CASES as MODELS
from gpt_cases import config_of, inputs

from minattn import bench, checks, chunks, decode, generate, model, train
from minattn.attention import core
from minattn.attention_layer import KVCache
from minattn.bench import floor, growth, long, numpy_jobs, sample, sides, speedrun, step
from minattn.errors import InputError

TINY = dict(n_layer=2, n_head=2, n_embd=12, block_size=8, batch_size=3, steps=5, chunks=2)


def arguments(*given):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args([*given])


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(train.PRESETS, "tiny", TINY)
    monkeypatch.setattr(step, "MATMUL", 64)
    monkeypatch.setattr(sample, "PRESET", "tiny")
    monkeypatch.setattr(speedrun, "THEIRS", "tiny")
    monkeypatch.setattr(sample, "BATCHES", (1, 3))


# ----------------------------------------------------------------------------------- the arithmetic


def test_flops_by_hand(tiny):
    B, T, C, H, V = 3, 8, 12, 2, 65
    layer = 4 * C * C + 8 * C * C
    softmax = 3 * 2 * B * T * (2 * layer + C * V) + 3 * 2 * 2 * B * 2 * C * (T * (T + 1) // 2)
    assert step.flops(step.spec("tiny")) == softmax
    assert step.flops(step.spec("tiny", "energy")) == softmax + 3 * 2 * B * T * 2 * C * H
    assert step.flops(step.spec("tiny", "gaussian")) == softmax - 3 * 2 * B * T * 2 * 3 * C * C
    windowed = step.spec("tiny")
    windowed["config"]["window"] = 1
    assert step.flops(windowed) == softmax - 3 * 2 * 2 * B * 2 * C * (T * (T + 1) // 2 - T)


def test_ratios_are_paired_by_turn():
    assert sides.ratio([[1, 1, 9], [2], [50]], [[2], [4, 4], [100]]) == 0.5
    assert sides.spread([[3.0], [1.0, 2.0], [4.0, 5.0]]) == {"q1": 2.0, "median": 3.0, "q3": 4.0}
    assert sides.spread([[3.0]]) == {"q1": 3.0, "median": 3.0, "q3": 3.0}


@pytest.mark.parametrize(
    "other, found", [([[1.0, 2.0]], 0), ([[1.0, 2.1]], 1), ([[1.0]], 1), ([[1.0, float("nan")]], 1)]
)
def test_differences_are_found(other, found):
    problems = []
    sides.compare("it", {"minattn": [[1.0, 2.0]], "eager": other}, 1e-3, problems)
    assert len(problems) == found and all("differ" in problem for problem in problems)


def test_growth_exponent():
    T = (512, 2048, 4096, 8192)
    sizes = [3 * t**1.5 for t in T]
    assert long.exponent(T, [7, *sizes[1:]]) == pytest.approx(1.5)
    assert long.exponent(T, [*sizes[:2], 0, 0]) is None
    assert long.exponent((), ()) is None


def grown():
    """What the growth suite would find where time goes as size^1.5 and memory as size^0.5"""
    points = [
        {"what": what, "size": n, "bytes": 1e6 * n**0.5, "seconds": sides.spread([n**1.5])}
        for what, sizes in growth.SIZES.items()
        for n in sizes
    ]
    points[3]["seconds"] = sides.spread([4 * points[2]["seconds"]["median"]])
    part = {"seconds": sides.spread([0.5]), "turns": [[0.5]], "speedup": 1.5}
    threads = [
        {"preset": preset, "threads": n, "most": n, "step": part, "step_floor": part}
        for preset in growth.THREADS_OF
        for n in (1, 2)
    ]
    return {"points": points, "fits": growth._fits(points), "threads": threads}


def test_growth_is_fitted_and_shown(tmp_path):
    found = grown()
    batch, context = found["fits"][:2]
    assert batch["time"]["last"] == pytest.approx(2) and batch["time"]["all"] > 1.5
    assert context["time"] == pytest.approx({"all": 1.5, "last": 1.5})
    assert context["memory"] == pytest.approx({"all": 0.5, "last": 0.5})
    text = growth._text(*found.values(), arguments())
    assert "size^2.00" in text and "batch 32, context 128, 128 channels, 4 layers" in text
    growth.picture(found, tmp_path / "it.png")
    assert (tmp_path / "it.png").stat().st_size > 5000
    page = tmp_path / "page.md"
    page.write_text("a\n```\nb\n```\n```text\nold\n```\nc\n```text\nd\n```\n")
    for _ in range(2):                                     # and again
        growth.fill(page, "new\n\nlines")
        assert page.read_text() == (
            "a\n```\nb\n```\n```text\nnew\n\nlines\n```\nc\n```text\nd\n```\n")


@pytest.mark.parametrize("what, size", [(what, n) for what, ns in growth.SIZES.items() for n in ns])
def test_one_size_changes_at_a_time(what, size):
    base, other = growth.spec(), growth.spec(**{what: size})
    config, settings = ({name for name in a if a[name] != b[name]} for a, b in
                        zip(base.values(), other.values()))
    names = {"batch": {"batch_size"}, "context": {"block_size"}, "layers": {"n_layer"},
             "channels": {"n_embd", "n_head"}}[what]
    assert config | settings <= names and bool(config | settings) == (
        size != {"batch": 32, "context": 128, "layers": 4, "channels": 128}[what])
    assert other["config"]["n_embd"] == growth.HEAD * other["config"]["n_head"]
    model.Config(**other["config"])


@pytest.mark.slow
def test_growth(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(growth, "SIZES", {"batch": (4, 8), "context": (16, 64),
                                          "channels": (32, 64), "layers": (1, 2)})
    monkeypatch.setattr(growth, "THREADS_OF", ("tiny",))
    page = tmp_path / "page.md"
    page.write_text("```text\n```\n")
    given = ["--suite", "growth", "--repeat", "2", "--json", str(tmp_path / "it.json"),
             "--page", str(page), "--picture", str(tmp_path / "it.png")]
    assert bench.run(arguments(*given)) == 0
    out, err = capsys.readouterr()
    table = out[out.index("one training step"):].strip()   # a word on a busy machine may precede it
    assert "warning" not in err and table in page.read_text()
    found = json.loads((tmp_path / "it.json").read_text())["growth"]
    for fit in found["fits"]:
        assert 0 < fit["memory"]["all"] < 2.2, fit
    sizes = [row["bytes"] for row in found["points"]]
    assert all(small < large for small, large in zip(sizes[::2], sizes[1::2]))
    assert found["threads"][0]["threads"] == 1 and found["threads"][0]["step"]["speedup"] == 1
    assert found["threads"][-1]["most"] <= 2


def test_summary_of_a_row(tiny):
    times = {
        "minattn": [[1.0], [1.0]],
        "minattn softmax": [[0.5], [0.5]],
        "floor": [[0.8], [0.8]],
        "rate": [[0.25], [0.25]],
        "eager": [[2.0], [2.0]],
        "eager plain": [[1.25], [1.25]],
    }
    job = step.spec("tiny", "energy")
    row = step.summary(sides.Measured({}, times, {}), job, 2)
    assert row["best"] == {"eager": "eager plain", "compile": None, "jax": None} and row[
        "ratios"
    ] == {"eager": 0.5, "eager plain": 0.8}
    assert row["overhead"] == 2 and row["over_floor"] == 1.25
    assert row["rate"] == 2 * 2 * 64**3 / 0.25
    assert row["share"] == pytest.approx(step.flops(job) / row["rate"])


def test_options_are_read_and_every_case_is_known():
    assert (
        step.spec("paper", "energy[norm=prefix]", "rope")["config"]["attention"]
        == "energy[norm=prefix]"
    )
    paper = step.spec("paper")
    assert paper["config"]["dropout"] == 0 and paper["settings"]["batch_size"] == 16
    cells = step.cells(arguments("--preset", "nano, laptop"))
    assert len(cells) == 2 * len(step.CASES) and {cell[0] for cell in cells} == {"nano", "laptop"}
    cells = step.cells(
        arguments("--preset", "nano", "--attention", "sink,softmax", "--position", "rope")
    )
    assert cells == [("nano", "sink", "rope"), ("nano", "softmax", "rope")]


@pytest.mark.parametrize(
    "given, message",
    [
        (["--preset", "labtop"], "Did you mean 'laptop'"),
        (["--attention", "sotfmax"], "Did you mean 'softmax'"),
        (["--attention", "energy[nrm=key]"], "Did you mean 'norm'"),
        (["--attention", "energy[norm=keys]"], "norm must be one of"),
        (["--attention", "softmax,energy:norm=prefix:eps=0"], r"write energy\[norm=prefix,eps=0\]"),
        (["--position", "ropes"], "Did you mean 'rope'"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--repeat", "0"], "--repeat must be at least 1"),
        (["--suite", "long", "--longest", "100"], "--longest must be at least 512"),
        (["--picture", "it.png"], "add --suite long"),
        (["--page", "docs/growth.md"], "add --suite growth"),
        (["--suite", "growth", "--page", "no/page.md"], "no/page.md"),
        (["--suite", "growth", "--page", "pyproject.toml"], "no place for the tables"),
        (["--json", "no/such/folder.json"], "cannot write"),
        (["--json", "."], "cannot write"),
    ],
)
def test_mistakes_are_one_sentence(given, message):
    with pytest.raises(InputError, match=message):
        bench.run(arguments(*given))


class Watched(np.ndarray):
    """An array that notes every product of matrices that it takes part in."""

    products = None              # how often each pair of shapes

    def __array_ufunc__(self, ufunc, method, *given, out=None, **options):
        given = [plain(x) for x in given]
        if ufunc is np.matmul and not any(a_sum(x) for x in given):
            Watched.products[shapes(*given)] += 1
        options = {name: plain(x) for name, x in options.items()}
        if out is not None:
            options["out"] = tuple(map(plain, out))
        result = getattr(ufunc, method)(*given, **options)
        return result.view(Watched) if isinstance(result, np.ndarray) else result

    def __array_function__(self, *call):
        result = super().__array_function__(*call)         # np.where makes a plain array
        return result.view(Watched) if type(result) is np.ndarray else result


def plain(x):
    return x.view(np.ndarray) if isinstance(x, Watched) else x


def a_sum(x):
    """Does a product with it only add up? A vector, ones, or a triangle of ones"""
    return 1 in x.shape[-2:] or x.ndim < 2 or x.any() and set(np.unique(x)) <= {0, 1}


def shapes(a, b):
    return np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2:], b.shape[-2:]


@pytest.mark.parametrize("case, changes", [
    *((case, {}) for case in MODELS),
    *((case, {"block_size": 150}) for case in MODELS if case.startswith("linear")),
    ("softmax", {"block_size": 100, "keep": 0})], ids=str)
def test_the_floor_is_made_of_the_steps_own_products(case, changes, monkeypatch):
    if "keep" in changes:
        monkeypatch.setattr(core, "KEEP_BYTES", changes["keep"])
    config = config_of(case, **{name: n for name, n in changes.items() if name != "keep"})
    params, buffers, x, y = inputs(config)
    cache = model.forward(params, x, config, targets=y, buffers=buffers, training=True)[2]
    expected = collections.Counter(shapes(a, b) for a, b in floor.of_step(cache))
    monkeypatch.setattr(checks, "PLAIN", (*checks.PLAIN, Watched))
    monkeypatch.setattr(Watched, "products", collections.Counter())
    params = {name: a.view(Watched) for name, a in params.items()}
    cache = model.forward(params, x, config, targets=y, buffers=buffers, training=True)[2]
    model.backward(cache, config)
    assert Watched.products == expected


def test_the_floor_counts_the_flops_of_a_step(tiny):
    """Tiles of one block compute the whole square, of which `flops` counts the visible half."""
    job = step.spec("tiny")
    config, _, params, buffers, x, y = numpy_jobs.step_inputs(job)
    cache = model.forward(params, x, config, targets=y, buffers=buffers, training=True)[2]
    total = sum(2 * a.size * b.shape[-1] for a, b in floor.of_step(cache))
    hidden = TINY["n_layer"] * 3 * 3 * 2 * 2 * 12 * (8 * 7 // 2)
    assert total == step.flops(job) + hidden


@pytest.mark.parametrize("attention", ["softmax", "gaussian/energy"])
def test_the_floor_of_generation_reads_the_weights_that_a_step_reads(attention, monkeypatch):
    config = model.Config(**{**SMALL, "attention": attention})
    decoder = decode.prepare(*model.init(config, 3), config)
    read, product = [], decode._product

    def watched(x, linear):
        read.append((len(x), linear.weight))
        return product(x, linear)

    monkeypatch.setattr(decode, "_product", watched)
    decode.step(decoder, np.array([2, 0, 1]), KVCache(config.block_size))
    pairs = floor.of_token(decoder, 3)
    assert len(read) == len(pairs) and all(rows == a.shape[1] and weight is b
                                           for (rows, weight), (a, b) in zip(read, pairs))
    floor.timed(pairs)()


def test_the_floor_of_generation_has_every_token_of_every_sequence(tiny, monkeypatch):
    monkeypatch.setattr(generate, "TOGETHER", 2)
    done = []
    monkeypatch.setattr(floor, "timed", lambda pairs: lambda: done.append(pairs[0][0].shape[1]))
    with numpy_jobs.session(2) as session:
        numpy_jobs.sample_floor({**step.spec("tiny"), "tokens": 5}, session)[0]()
    assert sorted(done) == [1] * 5 + [2] * 5               # of 3 sequences


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")
def test_the_peak_counts_forked_processes():
    """While they work and after they have ended"""
    program = """
import numpy as np
from minattn import chunks
from minattn.bench import numpy_jobs, sides
before = numpy_jobs.peak()
helper = chunks.Helper(lambda n: float(np.ones(n).sum()))
helper.ask(40_000_000)
assert helper.answer() == 40_000_000
alive = numpy_jobs.peak() - before
helper.close()
print(alive > 320e6, abs(numpy_jobs.peak() - before - alive) < 50e6)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_every_thread_takes_its_chunks(tiny, monkeypatch):
    """The floor's products, on as many threads as there are, are those of all chunks."""
    monkeypatch.setattr(chunks, "can_fork", lambda: False)     # a process would keep its list
    monkeypatch.setitem(TINY, "chunks", 3)
    done = []
    monkeypatch.setattr(floor, "timed", lambda pairs: lambda: done.append(len(pairs)))
    for threads in (1, 2, 5):
        with numpy_jobs.session(threads) as session:
            numpy_jobs.step_floor(step.spec("tiny"), session)[0]()
        assert len(done) == 3 and len(set(done)) == 1
        done.clear()


# ------------------------------------------------------------------------------------ the processes


def test_a_side_that_fails_is_left_out(monkeypatch):
    good, bad = (
        sides.Job("bench.numpy_jobs", "matmul", {"n": 8}),
        sides.Job("bench.numpy_jobs", "no such job", {}),
    )
    problems = []
    with pytest.raises(sides.SideFailed, match="(?s)eager: .*no such job"):
        sides.measure("it", {"minattn": good, "eager": bad}, arguments(), problems, tolerance=0)
    monkeypatch.setattr(sides, "OPTIONAL", ("numpy_jobs",))
    found = sides.measure(
        "it", {"minattn": good, "eager": bad}, arguments("--repeat", "1"), problems, tolerance=0
    )
    assert (
        "left out: eager" in problems[0]
        and "no such job" in problems[0]
        and list(found.turns) == ["minattn"]
    )


def test_numpy_alone(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    given = (
        "--suite",
        "all",
        "--preset",
        "tiny",
        "--attention",
        "sink",
        "--repeat",
        "2",
        "--longest",
        "512",
        "--json",
        str(tmp_path / "it.json"),
        "--picture",
        str(tmp_path / "it.png"),
    )
    assert bench.run(arguments(*given)) == 0
    out = capsys.readouterr().out
    assert "jax ms" not in out and "minattn ms eager ms compile ms /eager /best share" in " ".join(
        out.split()
    )
    assert (
        "PyTorch is not installed" in out
        and "pip install torch" in out
        and "window 256" in out
        and "tokens/s" in out
    )
    found = json.loads((tmp_path / "it.json").read_text())
    row = found["step"][0]
    assert (
        set(row["turns"]) == {"minattn", "minattn softmax", "floor", "rate"}
        and len(row["turns"]["minattn"]) == 2
    )
    assert 1 < row["over_floor"] and "floor ms /floor" in " ".join(out.split())
    assert all(1 < r["over_floor"] for r in found["long"]["rows"])
    assert row["ratios"] == {} and 0 < row["share"] and row["peak_bytes"]["minattn"] > 10e6
    losses = [loss for loss, _ in row["checks"]["minattn"]]
    assert losses[0] == pytest.approx(np.log(65), abs=0.1) and losses[2] < losses[0]
    assert {(r["T"], r["window"]) for r in found["long"]["rows"]} == {(512, None), (512, 256)}
    assert all(r["array_bytes"] > 512 * 32 * 4 * 4 for r in found["long"]["rows"])
    assert (tmp_path / "it.png").stat().st_size > 5000


def test_heads_on_threads_give_the_whole():
    spec = {"T": 128, "H": 3, "D": 5, "window": 7}
    with numpy_jobs.session(2) as two, numpy_jobs.session(1) as one:
        assert numpy_jobs.attention(spec, one)[0]() == pytest.approx(
            numpy_jobs.attention(spec, two)[0]()
        )


@pytest.mark.slow
def test_beside_pytorch(tiny, tmp_path, capsys):
    pytest.importorskip("torch")
    given = (
        "--suite",
        "all",
        "--preset",
        "tiny",
        "--attention",
        "energy",
        "--repeat",
        "1",
        "--longest",
        "512",
        "--no-compile",
        "--json",
        str(tmp_path / "it.json"),
    )
    assert bench.run(arguments(*given)) == 0
    assert capsys.readouterr().err.count("warning") == 0
    found = json.loads((tmp_path / "it.json").read_text())
    assert set(found["step"][0]["ratios"]) == {"eager", "eager plain"}
    assert {row["side"] for row in found["long"]["rows"]} == {
        "minattn",
        "PyTorch",
        "PyTorch blocks",
        "PyTorch mask",
    }
    assert [row["attention"] for row in found["sample"]["rows"]] == ["energy"]
    assert all("PyTorch, 1 thread" in row["sides"] for row in found["sample"]["rows"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "suite, tables",
    [("run", "preset minattn s PyTorch s ratio"), ("bias", "network minattn ms eager ms")],
)
def test_whole_runs_and_networks_beside_pytorch(suite, tables, tiny, capsys, tmp_path):
    pytest.importorskip("torch")
    given = (
        "--suite",
        suite,
        "--preset",
        "tiny",
        "--repeat",
        "1",
        "--no-compile",
        "--json",
        str(tmp_path / "it.json"),
    )
    assert bench.run(arguments(*given)) == 0
    out, err = capsys.readouterr()
    assert tables in " ".join(out.split()) and "warning" not in err
    row = json.loads((tmp_path / "it.json").read_text())[suite][0]
    if suite == "run":
        assert (
            row["minattn"]["val_loss"] == pytest.approx(row["PyTorch"]["val_loss"], rel=1e-4)
            and row["ratio"] > 0
        )
    else:
        assert set(row["ratios"]) == {"eager"}


@pytest.mark.slow
def test_time_to_a_loss_beside_pytorch(tiny, monkeypatch, capsys, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.setitem(speedrun.RECORDS, "short", TINY | dict(attention="softmax"))
    given = "--suite", "speedrun", "--preset", "tiny,short", "--seeds", "2", "--json"
    assert bench.run(arguments(*given, str(tmp_path / "it.json"))) == 0
    rows = json.loads((tmp_path / "it.json").read_text())["speedrun"]
    assert [(row["recipe"], row["seed"]) for row in rows] == [
        ("tiny", 0), ("short", 0), ("tiny", 1), ("short", 1)]
    for row in rows:
        ours, theirs = row["minattn"], row["PyTorch"]
        if row["recipe"] == "tiny":                        # both sides train the same recipe
            assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)
        assert row["ratio"] == ours["seconds"] / theirs["seconds"] and ours["seconds"] > 0
    losses = [row["minattn"]["val_loss"] for row in rows[::2]]
    out = capsys.readouterr().out
    assert f"tiny: mean loss {np.mean(losses):.4f} ({min(losses):.4f} to" in out
    assert out.count("tiny, PyTorch") == 2


def test_a_recipe_that_does_not_exist():
    with pytest.raises(InputError, match="preset of the speedrun must be one of muon, .* fast"):
        bench.run(arguments("--suite", "speedrun", "--preset", "fats"))


@pytest.mark.slow
def test_jax_takes_the_same_steps(tiny):
    pytest.importorskip("jax")
    problems = []
    for attention, position in itertools.product(step.JAX["attention"], step.JAX["position"]):
        spec = step.spec("tiny", attention, position)
        spec["config"].update(
            bias=attention != "gated",
            qkv_bias=position == "rope",
            gelu="exact" if position == "rope" else "tanh",
        )
        spec["settings"].update(
            clip=0.3,
            decay="all" if attention == "sink" else "2d",
            weight_decay=1.0,
            lr=0.1,
            min_lr=0.1,
        )
        jobs = {
            label: sides.Job(f"bench.{label}_jobs", "step", spec, 3) for label in ("numpy", "jax")
        }
        found = sides.measure(
            f"{attention}, {position}", jobs, arguments("--repeat", "1"), problems, tolerance=5e-5
        )
        first, _, last = found.checks["numpy"]
        assert last[0] != pytest.approx(
            first[0], rel=1e-2
        )  # three steps of AdamW have left their mark
    assert not problems


@pytest.mark.slow
def test_the_column_of_jax(tiny, monkeypatch, capsys):
    pytest.importorskip("jax")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "jax" or None)
    given = arguments("--preset", "tiny", "--attention", "sink,energy", "--repeat", "1")
    assert bench.run(given) == 0
    out, err = capsys.readouterr()
    head, sink, energy = (
        line.split()
        for line in out.splitlines()
        if line.startswith(("attention", "sink", "energy"))
    )
    assert (
        " ".join(head[2:10]) == "minattn ms eager ms compile ms jax ms"
        and "minattn / jax." in out
        and "left out" not in err
    )
    assert sink[4:6] == ["-", "-"] and sink[6] != "-" and sink[8] == "-" and sink[9] != "-"
    assert energy[4:9] == ["-"] * 5


# ------------------------------------------------------------------------------ PyTorch's fast form

SMALL = {"vocab_size": 17, "block_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 20}
CASES = {
    "softmax": {},
    "window": {"window": 4},
    "window_pattern": {
        "window_pattern": "SL",
        "n_layer": 3,
        "bias": False,
        "gelu": "exact",
        "qkv_bias": True,
    },
    "none": {"position": "none"},
    "sinusoidal": {"position": "sinusoidal"},
    "morlet": {"position": "morlet", "position_options": {"centre": True, "admissible": False}},
    "rope": {"position": "rope", "n_embd": 24},
    "rope interleaved": {
        "position": "learned+rope",
        "n_embd": 24,
        "position_options": {"pairs": "interleaved"},
    },
    "decay": {"position": "decay"},
    "decay window": {"position": "decay", "window": 4},
    "sink": {"attention": "sink"},
    "sink decay window": {"attention": "sink", "position": "decay", "window": 4},
    "off_by_one": {"attention": "off_by_one,softmax"},
    "gated": {"attention": "gated"},
    "gated head": {"attention": "gated", "attention_options": {"gate": "head"}},
    "affine": {"attention": "affine"},
    "affine visible window": {
        "attention": "affine+gated",
        "window": 4,
        "attention_options": {"length": "visible"},
    },
    "affine sigmoid": {
        "attention": "affine",
        "attention_options": {"phi": "sigmoid", "length": 7, "use": "before"},
    },
    "affine layer": {"attention": "affine", "window": 30, "attention_options": {"axes": "layer"}},
    "energy key": {"attention": "energy"},
    "energy prefix": {"attention": "energy", "attention_options": {"norm": "prefix"}, "window": 4},
    "energy sequence": {"attention": "energy", "attention_options": {"norm": "sequence"}},
    "energy none": {
        "attention": "energy",
        "attention_options": {"norm": "none"},
        "position": "decay",
    },
    "gaussian": {"attention": "gaussian"},
    "gaussian rope": {"attention": "gaussian", "position": "rope", "n_embd": 24},
    "gaussian rope values": {
        "attention": "gaussian",
        "position": "rope",
        "n_embd": 24,
        "attention_options": {"rope_values": True},
    },
    "gaussian raw": {"attention": "gaussian", "attention_options": {"qk_norm": False}, "window": 4},
    "gaussian eps": {"attention": "gaussian", "torch": {"attention": "gaussian[eps=0.1]"}},
    "differential, by layer": {"attention": "differential[version=1]/differential/sparse+gated"},
    "linear lln": {"attention": "linear[feature=lln]"},
    "linear, chunks": {"attention": "linear", "block_size": 130},
    "cog, blocks": {"attention": "cog", "block_size": 130},
    "pointwise, blocks, window": {"attention": "pointwise", "block_size": 130, "window": 4},
    "lssa, blocks, rope": {
        "attention": "lssa",
        "block_size": 130,
        "position": "rope",
        "n_embd": 24,
    },
    "collaborative narrow": {"attention": "collaborative[key_width=6]"},
}
UNDER_EVERY_MASK = [
    "forget",
    "collaborative",
    "differential",
    "differential[version=1]",
    "linear",
    "cog",
    "pointwise",
    "pointwise[rule=sigmoid]",
    "sparse",
    "sparse[rule=sparsemax]",
    "sparse[rule=entmax15]",
    "lssa",
    "lssa[power=0]",
]
MASKS = {
    "": {},
    " window": {"window": 4},
    " decay": {"position": "decay"},
    " decay window": {"position": "decay", "window": 4},
}
CASES.update(
    (name + mask, {"attention": name, **fields})
    for name in UNDER_EVERY_MASK
    for mask, fields in MASKS.items()
)


def literal_and_fast(case, fused, dtype="float64", **changes):
    torch = pytest.importorskip("torch")
    from minattn.bench import torch_fast as fast
    from minattn.torch_refs import GPT

    torch.set_num_threads(1)  # for arrays as small as these, two only wait
    torch.manual_seed(3)
    fields = {**SMALL, **case, **changes}
    in_torch = fields.pop("torch", {})  # what only PyTorch's side has
    config, rng = model.Config(**fields), np.random.default_rng(3)
    params, buffers = model.init(config, 3, np.float64)
    params = {name: a + rng.standard_normal(a.shape) / 5 for name, a in params.items()}
    config = {**model.to_dict(config), **in_torch}
    tokens = torch.randint(17, (3, fields["block_size"]))
    return (
        GPT.from_numpy(config, params, buffers),
        fast.GPT.from_numpy(config, params, buffers, getattr(torch, dtype), fused=fused),
        tokens,
    )


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_fast_is_the_literal_model(case, fused):
    literal, fast, tokens = literal_and_fast(case, fused)
    results = []
    for gpt in (literal, fast):
        logits, loss = gpt(tokens, tokens.roll(-1, 1))
        loss.backward()
        short = gpt(tokens[:, :5])[0]  # a shorter sequence, and the buffers have moved
        results.append(
            (logits.detach(), short.detach(), gpt.gradients(), [b.numpy() for b in gpt.buffers()])
        )
    (logits, short, grads, buffers), (fast_logits, fast_short, fast_grads, fast_buffers) = results
    np.testing.assert_allclose(fast_logits, logits, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(fast_short, short, rtol=1e-9, atol=1e-9)
    assert set(grads) == set(fast_grads)
    for name, grad in grads.items():
        np.testing.assert_allclose(fast_grads[name], grad, rtol=1e-9, atol=1e-11, err_msg=name)
    for mine, other in zip(buffers, fast_buffers):
        np.testing.assert_allclose(other, mine, rtol=1e-12)


@pytest.mark.parametrize(
    "case",
    ["softmax", "sink", "energy key", "gaussian", "gaussian rope"]
    + [name for name in UNDER_EVERY_MASK if name != "lssa"],
)
def test_fast_in_float32(case):
    """Gaussian attention leaves out a bias there that is constant but for rounding.

    The power of 15 in lssa magnifies rounding in either form.
    """
    literal, fast, tokens = literal_and_fast(CASES[case], True, "float32")
    (_, loss), (_, fast_loss) = (gpt(tokens, tokens.roll(-1, 1)) for gpt in (literal, fast))
    loss.backward(), fast_loss.backward()
    assert fast_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    grads, fast_grads = literal.gradients(), fast.gradients()
    for name, grad in grads.items():
        np.testing.assert_allclose(fast_grads[name], grad, rtol=1e-3, atol=2e-5, err_msg=name)


def test_constants_are_exact_after_a_change_of_dtype():
    torch = pytest.importorskip("torch")
    _, fast, tokens = literal_and_fast(CASES["rope"], True)
    arrays = fast.state_dict()
    twice = copy.deepcopy(fast).float().double()
    twice.load_state_dict(arrays)
    assert torch.equal(twice(tokens)[0], fast(tokens)[0])


def test_dropout_takes_the_literal_form():
    torch = pytest.importorskip("torch")
    literal, fast, tokens = literal_and_fast(CASES["energy key"], True, dropout=0.5)
    results = []
    for gpt in (literal.train(), fast.train()):
        torch.manual_seed(1)
        results.append(gpt(tokens)[0])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        literal.eval()(tokens)[0], fast.eval()(tokens)[0], rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("T", [4, 8, 20])
def test_windowed_is_a_window(T):
    torch = pytest.importorskip("torch")
    from minattn.bench import torch_fast as fast
    from minattn.torch_refs import softmax_attention

    q, k, v, dout = torch.randn(
        4, 2, 3, T, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(T)
    )
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out, expected = fast.windowed(*inputs, 4), softmax_attention(*inputs, window=4)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for mine, other in zip(
        *(torch.autograd.grad((y * dout).sum(), inputs) for y in (out, expected))
    ):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "position, changes",
    [("learned", {}), ("rope", {"n_embd": 24}), ("sinusoidal", {}), ("none", {})],
)
def test_cached_generation(position, changes):
    torch = pytest.importorskip("torch")
    from minattn.bench.torch_fast import generate as continued

    literal, fast, tokens = literal_and_fast({"position": position, **changes}, True)
    view = tokens[:, :3]
    cached = torch.stack(list(continued(fast, view, 9)), 1)
    for step_ in range(9):
        new = literal.eval()(view)[0][:, -1].argmax(-1)
        assert torch.equal(cached[:, step_], new)
        view = torch.cat([view, new[:, None]], 1)
    with pytest.raises(ValueError, match="block_size"):
        next(continued(fast, view, 9))


@pytest.mark.parametrize("attention", ["affine", "energy[norm=sequence]", "linear[feature=lln]"])
def test_generation_refuses_what_it_cannot_do(attention):
    pytest.importorskip("torch")
    from minattn.bench import torch_fast as from_torch

    _, fast, tokens = literal_and_fast({"attention": attention}, True)
    with pytest.raises(ValueError, match=f"{attention.partition('[')[0]} with these options"):
        next(from_torch.generate(fast, tokens[:, :1], 2))


def test_generation_leaves_out_what_is_computed_anew(tiny, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    given = ("--suite", "sample", "--attention", "affine,softmax", "--repeat", "1")
    assert bench.run(arguments(*given)) == 0
    said = capsys.readouterr().out
    assert "at every token: affine: beta divides by the length" in said
    assert "softmax        1  minattn, 1 thread" in said, said


CONTINUED = [name for name in sample.CASES if name != "affine"]


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("attention", [*CONTINUED, "sparse[rule=topk,top=3]", "sink/energy+gated"])
def test_numpy_and_pytorch_generate_the_same(attention, position):
    torch = pytest.importorskip("torch")
    from minattn.bench import torch_fast as fast

    shape = {"block_size": 14, "n_embd": 24, "n_head": 3, "position": position}
    config = model.Config(**{**SMALL, **shape, "attention": attention})
    params, buffers = model.init(config, 5, np.float64)
    rng = np.random.default_rng(6)
    for value in params.values():                              # else one token repeats itself
        value += rng.normal(0, 0.3, value.shape)
    gpt = fast.GPT.from_numpy(model.to_dict(config), params, buffers).eval()
    for prompt in ([3], [3, 1, 4]):
        n = config.block_size - len(prompt) + 1
        mine = list(generate.stream(params, buffers, config, prompt, n, top_k=1))
        assert mine == [int(t) for t in fast.generate(gpt, torch.tensor([prompt]), n)]
