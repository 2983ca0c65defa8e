"""What is seen inside a model is what the model did: maps, their statistics, and the command that
draws them."""
import re

import gpt_cases
import numpy as np
import pytest
from run_cases import contents, copy, write_corpus

from minattn import cli, data, masks, model, ops, plots, runs
from minattn.attention import MECHANISMS, describe, sink
from minattn.errors import InputError
from minattn.inspect import command, maps, statistics
from minattn.inspect import look as inspect
from minattn.layers import layers
from minattn.positions import POSITIONS

B, T = 3, 5


def look(case, **others):
    """A model of random, not small, parameters in float64 -> config, params, buffers, ids"""
    config = gpt_cases.config_of(case, **others)
    params, buffers = model.init(config, 3, np.float64)
    rng = np.random.default_rng(5)
    params = {name: a + rng.normal(0, 0.3, a.shape) for name, a in params.items()}
    buffers = {name: a + rng.uniform(0.2, 0.7, a.shape) for name, a in buffers.items()}
    # no token twice: its values would be the same
    ids = np.array([rng.permutation(config.vocab_size)[:T] for _ in range(B)])
    return config, params, buffers, ids


def values_of(cache):
    """The values in a mechanism's cache, wherever it keeps the core's."""
    if hasattr(cache, "maps"):
        return cache.maps[0].v
    return cache.v if hasattr(cache, "v") else values_of(cache.attention)


@pytest.mark.parametrize("case", gpt_cases.CASES)
def test_weights_times_values_are_what_the_layer_passes_on(case):
    config, params, buffers, ids = look(case)
    stack = maps.weights(params, buffers, config, ids)
    logits, _, cache = model.forward(params, ids, config, buffers=buffers)
    assert len(stack) == config.n_layer
    for layer, w, (_, attn, *_) in zip(layers(config), stack, cache.layers):
        v = values_of(attn.attention)                                            # (B, H, T, D)
        assert w.shape == (B, config.n_head, T, T) and w.dtype == np.float64
        # only one w makes this output
        assert T < v.shape[3]
        assert np.linalg.matrix_rank(v).min() == T
        out = w @ v
        for gate in (getattr(attn.attention, "gate", None), attn.gate):
            out = out if gate is None else out * gate.gate
        if hasattr(attn.attention, "scaled_gain"):
            assert not layer.mechanism.averages
            out = ops.rms_norm_forward(out, 1e-5)[0] * attn.attention.scaled_gain
        np.testing.assert_allclose(out.swapaxes(1, 2).reshape(B * T, -1), attn.merge.x, rtol=0,
                                   atol=1e-12)
    np.testing.assert_array_equal(logits,
                                  model.forward(params, ids, config, buffers=buffers,
                                                weights=[])[0])


@pytest.mark.parametrize("ids, said", [
    (np.array([1, 2]), r"ids must be \(B, T\) integers from 0 to 18.*got shape \(2,\)"),
    (np.zeros((2, 0), int), "at least one"), (np.zeros((2, 3)), "float64"),
    (np.full((2, 3), 19), "from 0 to 18"),
    (np.full((2, 3), -1), "from 0 to 18"), (np.zeros((1, 12), int), "block_size = 11"),
])
def test_ids_that_are_none(ids, said):
    config, params, buffers, _ = look("softmax")
    with pytest.raises(InputError, match=said):
        maps.weights(params, buffers, config, ids)


# --------------------------------------------------------------------------------------- statistics


def some(seed=0, T=7, H=3, causal=True):
    """Weights of both signs, (2, H, T, T)"""
    w = np.random.default_rng(seed).normal(0.1, 0.5, (2, H, T, T))
    return w * np.tri(T) if causal else w


def windowed(T, window):
    return masks.visible(T, T, causal=True, window=window)


@pytest.mark.parametrize("visible", [None, windowed(7, 3), np.ones((7, 7), bool)],
                         ids=["causal", "window", "all"])
def test_statistics_are_those_of_plain_loops(visible):
    w = some(causal=visible is None)
    see = np.tri(7, dtype=bool) if visible is None else visible
    first, entropy = statistics.first_token_mass(w, visible), statistics.entropy(w)
    mean, spread = statistics.row_sums(w)
    sink = statistics.sink_fraction(w, 0.3, visible)
    assert first.shape == entropy.shape == mean.shape == spread.shape == (3,)
    assert sink.shape == (3, 7)
    for h in range(3):
        masses, entropies, sums = [], [], []
        for b in range(2):
            for i in range(7):
                row = w[b, h, i]
                sums.append(row.sum())
                p = np.abs(row) / np.abs(row).sum()
                entropies.append(-sum(x * np.log(x) for x in p if x > 0))
                if i >= 1 and see[i, 0]:
                    masses.append(row[0])
        assert first[h] == pytest.approx(np.mean(masses), abs=1e-14)
        assert entropy[h] == pytest.approx(np.mean(entropies), abs=1e-14)
        assert (mean[h], spread[h]) == pytest.approx((np.mean(sums), np.std(sums)), abs=1e-14)
        for j in range(7):
            hits = [w[b, h, i, j] > 0.3 for b in range(2) for i in range(7) if see[i, j]]
            assert sink[h, j] == pytest.approx(np.mean(hits), abs=1e-14)


def test_uniform_causal_weights_by_formula():
    T = 11
    w = np.broadcast_to(np.tri(T) / np.arange(1, T + 1)[:, None], (2, 3, T, T)).astype(np.float32)
    i = np.arange(T)
    np.testing.assert_allclose(statistics.first_token_mass(w), np.mean(1 / (i[1:] + 1)), rtol=1e-6)
    np.testing.assert_allclose(statistics.entropy(w), np.mean(np.log(i + 1)), rtol=1e-6)
    np.testing.assert_allclose(statistics.row_sums(w)[0], 1, rtol=1e-6)
    # 1 / (i + 1) > 0.2 for the queries 0 to 3: of the T - j that see key j these are 4 - j
    np.testing.assert_array_equal(statistics.sink_fraction(w),
                                  np.broadcast_to(np.maximum(4 - i, 0) / (T - i), (3, T)))


def test_a_perfect_sink():
    w = np.zeros((1, 2, 6, 6))
    w[:, 0, :, 0] = 1
    w[:, 1] = np.eye(6)
    np.testing.assert_array_equal(statistics.first_token_mass(w), [1, 0])
    np.testing.assert_array_equal(statistics.entropy(w), [0, 0])
    np.testing.assert_array_equal(statistics.sink_fraction(w)[0], [1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(statistics.sink_fraction(w)[1], 1 / np.arange(6, 0, -1), rtol=1e-15)
    assert not statistics.sink_fraction(w, tau=1).any()                       # above, not at


def test_entropy_does_not_see_scale_sign_or_empty_rows():
    w = some()
    np.testing.assert_allclose(statistics.entropy(-0.3 * w), statistics.entropy(w), rtol=1e-14)
    empty = w.copy()
    # row 0 holds one weight: entropy 0, when it counts
    empty[:, :, 0] = 0
    np.testing.assert_allclose(statistics.entropy(empty) * 6, statistics.entropy(w) * 7, rtol=1e-13)
    assert not statistics.entropy(np.zeros_like(w)).any()


def test_one_token_has_no_first_token_mass_but_the_rest():
    w = np.ones((2, 3, 1, 1))
    assert np.isnan(statistics.first_token_mass(w)).all()
    assert np.isnan(statistics.first_token_mass(some(), windowed(7, 1))).all()
    np.testing.assert_array_equal(statistics.sink_fraction(w), np.ones((3, 1)))
    np.testing.assert_array_equal(statistics.entropy(w), np.zeros(3))


@pytest.mark.parametrize("call, said", [
    (lambda: statistics.entropy(some()[0]), "w must have 4 axes"),
    (lambda: statistics.entropy(some()[..., :5]), r"w: axis 3 \(T\) must be 7"),
    (lambda: statistics.row_sums(some().astype(int)), "w must be float32 or float64"),
    (lambda: statistics.sink_fraction(some(), visible=np.tri(7)),
     r"visible must be \(7, 7\) booleans.*dtype float64"),
    (lambda: statistics.first_token_mass(some(), np.ones((6, 7), bool)),
     r"visible must be \(7, 7\) booleans.*\(6, 7\)"),
    (lambda: statistics.sink_fraction(some(), tau="much"), "tau must be a finite number"),
])
def test_statistics_of_what_is_no_map(call, said):
    with pytest.raises(InputError, match=said):
        call()


# -------------------------------------------------------------------------------------- the command

SMALL = dict(n_layer=2, n_head=2, n_embd=12, block_size=7)
NEEDS = ["maps.png", "maps_mean.png", "rollout.png", "sinks.png"]


def write_run(folder, corpus, **config):
    """A run folder as training leaves one, of a model that was never trained -> folder"""
    text = corpus.read_text(encoding="utf-8")
    config = model.Config(**{**SMALL, "vocab_size": len(set(text)), **config})
    params, buffers = model.init(config, 7)
    zeros = {name: np.zeros_like(a) for name, a in params.items()}
    about = data.about(data.load_corpus(corpus))
    with runs.create(folder, config, {}, data.Vocabulary(text).characters, about):
        runs.save_checkpoint(folder, runs.Checkpoint(params, buffers, zeros, zeros, 3, 0.5))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A corpus and a run folder that no test changes."""
    home = tmp_path_factory.mktemp("inspect")
    write_run(home / "run", write_corpus(home))
    return home


@pytest.fixture
def unseen(monkeypatch):
    """Figures are made, but not laid out and rendered, which takes most of the time."""
    def save(fig, path):
        import matplotlib.pyplot as plt
        plt.close(fig)
        path.write_bytes(b"\x89PNG")
    monkeypatch.setattr(plots, "save", save)


def rows_of(said):
    """The table in what the command printed: -> names of the columns, rows"""
    lines = said.splitlines()
    head = lines[1]
    starts = [0] + [i for i in range(2, len(head)) if head[i] != " " and head[i - 2:i] == "  "]

    def cut(line):
        return [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None])]

    return cut(head), [cut(line) for line in lines[2:] if line[0] in "0123456789-"]


@pytest.mark.parametrize("attention, position, options, pictures", [
    *((name, "learned" if row.head_sizes else "rope", {},
       ["computed.png"] * hasattr(row.module, "computed")
       + ["learned.png"] * any(row.arguments[each] == "H" for each in (*row.parameters,
                                                                       *row.buffers)))
      for name, row in MECHANISMS.items()),
    ("affine+gated,softmax", "morlet", {}, ["computed.png", "learned.png", "wavelets.png"]),
    ("energy", "learned", {"norm": "prefix"}, ["computed.png", "learned.png"]),
])
def test_command(attention, position, options, pictures, tmp_path, capsys, unseen):
    folder = write_run(tmp_path / "run", write_corpus(tmp_path), attention=attention,
                       position=position, attention_options=options,
                       window_pattern="SL" if attention == "softmax" else "")
    assert cli.main(["inspect", str(folder), "--sequences", "3"]) == 0
    said = capsys.readouterr().out
    found = sorted(path.name for path in (folder / "inspect").iterdir())
    assert found == sorted(NEEDS + pictures) and all(name in said for name in found)

    head, rows = rows_of(said)
    run = runs.load(folder)
    text = (tmp_path / "corpus.txt").read_text(encoding="utf-8")
    val = data.split(data.Vocabulary(run.vocabulary).encode(text))[1]
    blocks = data.blocks(val, 7)[0]
    stack = maps.weights(run.checkpoint.params, run.checkpoint.buffers, run.config,
                         blocks[[0, (len(blocks) - 1) // 2, len(blocks) - 1]])
    assert [row[:2] for row in rows[:4]] == [["0", "0"], ["0", "1"], ["1", "0"], ["1", "1"]]
    entropy = np.concatenate([statistics.entropy(w) for w in stack])
    assert [float(row[3]) for row in rows[:4]] == pytest.approx(entropy, abs=0.006)
    # there the first layer sees 3 keys
    if attention != "softmax":
        first = np.concatenate([statistics.first_token_mass(w) for w in stack])
        assert [float(row[4]) for row in rows[:4]] == pytest.approx(first, abs=0.0006)
        assert len(rows) == 5
        assert rows[4][2] == "even, 7 keys"
        assert float(rows[4][4]) == pytest.approx(np.mean(1 / np.arange(2, 8)), abs=6e-4)
    else:
        assert [row[2] for row in rows[4:]] == ["even, 3 keys", "even, 7 keys"]
        assert float(rows[4][3]) == pytest.approx((np.log(2) + 5 * np.log(3)) / 7, abs=0.006)
        assert float(rows[4][4]) == 0.417
    mixed = [MECHANISMS[name] for name in re.split("[+,]", attention)]
    assert ("row sum" in head) == any(not row.stochastic for row in mixed)


@pytest.mark.slow
def test_pictures_of_all_mechanisms(place, tmp_path):
    folder = write_run(tmp_path / "run", place / "corpus.txt", attention=",".join(MECHANISMS),
                       n_layer=len(MECHANISMS), position="morlet")
    assert cli.main(["inspect", str(folder)]) == 0
    found = {path.name: path.read_bytes() for path in (folder / "inspect").iterdir()}
    assert found.keys() == {*NEEDS, "computed.png", "learned.png", "wavelets.png"}
    assert all(content.startswith(b"\x89PNG") and len(content) > 5000 for content in found.values())


def test_each_position(place, tmp_path, capsys):
    for name in POSITIONS:
        folder = write_run(tmp_path / name, place / "corpus.txt", position=name)
        inside = inspect.look(*runs.load(folder).checkpoint[:2], runs.load(folder).config,
                              np.arange(7)[None])
        assert len(inspect.table(inside)) == 1 + 4 + 1


@pytest.mark.parametrize("norm", ["key", "prefix", "sequence", "none"])
def test_energy_gate_is_what_makes_the_weights_differ_from_softmax(norm):
    config, params, buffers, ids = look("energy", attention_options={"norm": norm})
    layer = inspect.look(params, buffers, config, ids)[0]
    # the first layer has the same input
    P = maps.weights(params, buffers, gpt_cases.config_of("softmax"), ids)[0]
    g = np.zeros((B, config.n_head, T, T))
    values = layer.computed["energy gate"].reshape(config.n_head, B, -1).swapaxes(0, 1)
    if norm == "prefix":
        g[:, :, np.tri(T, dtype=bool)] = values
    else:
        g[:] = values[:, :, None]
    assert 0 < values.min() < values.max() < 1
    np.testing.assert_allclose(layer.weights, P * g / (P * g).sum(axis=3, keepdims=True),
                               atol=1e-12)
    assert list(layer.learned) == ["alpha", "tau"] and layer.learned["alpha"][1] == 2.0
    np.testing.assert_array_equal(layer.learned["tau"][0], params["h.0.attn.tau"])


def test_affine_alpha_and_beta_make_its_weights():
    config, params, buffers, ids = look("affine-visible")
    layer = inspect.look(params, buffers, config, ids)[0]
    P = maps.weights(params, buffers, gpt_cases.config_of("softmax"), ids)[0]
    alpha, beta = (layer.computed[name].reshape(config.n_head, B, T).swapaxes(0, 1)[..., None]
                   for name in ("alpha", "beta"))
    np.testing.assert_allclose(layer.weights, alpha * P + beta * np.tri(T), atol=1e-12)
    values, first = layer.learned["alpha_ma"]
    np.testing.assert_array_equal(values, buffers["h.0.attn.alpha_ma"])
    assert first is None


def test_gates_and_widths():
    config, params, buffers, ids = look("sink/affine+gated/gaussian")
    one, two, three = inspect.look(params, buffers, config, ids)
    assert [layer.name for layer in (one, two, three)] == ["sink", "affine+gated", "gaussian"]
    assert list(one.computed) == list(three.computed) == []
    assert list(two.computed) == ["alpha", "beta", "gate"]
    assert two.computed["gate"].shape == (3, B, T, 6)
    assert 0 < two.computed["gate"].min() < two.computed["gate"].max() < 1
    np.testing.assert_allclose(three.learned["sigma"][0], np.exp(params["h.2.attn.log_sigma"]),
                               rtol=1e-15)
    assert three.learned["sigma"][1] == pytest.approx(6**0.25) and one.learned["sink"][1] == 0
    lone = inspect.table([one, two, three])
    assert lone[0][6:] == ("row sum", "mean alpha", "mean beta", "mean gate", "sink", "alpha_ma",
                           "sigma")
    assert lone[1][7:] == ("-", "-", "-", f"{one.learned['sink'][0][0]:.3g}", "-", "-")
    assert lone[5][9] == f"{two.computed['gate'][1].mean():.3g}"


def test_a_mechanism_that_inspect_does_not_know(place, tmp_path, monkeypatch, unseen):
    monkeypatch.setitem(MECHANISMS, "mine", describe("mine", sink, *MECHANISMS["sink"][2:4]))
    folder = write_run(tmp_path / "run", place / "corpus.txt", attention="mine")
    assert cli.main(["inspect", str(folder)]) == 0
    assert {path.name for path in (folder / "inspect").iterdir()} == {*NEEDS, "learned.png"}


def test_top_sink_is_no_late_key():
    """Every query looks at itself: Sink_j = 1 / (T - j) is 1 for the last key, which nobody else
    sees."""
    eye = np.broadcast_to(np.eye(10), (2, 3, 10, 10))
    keys, fractions = inspect.top_sink(inspect.Inside("", eye, np.tri(10, dtype=bool), {}, {}))
    np.testing.assert_array_equal(keys, 5)
    np.testing.assert_allclose(fractions, 1 / 5)
    _, fractions = inspect.top_sink(inspect.Inside("", eye * 0.1, np.tri(10, dtype=bool), {}, {}))
    assert not fractions.any()


def test_wavelets_start_where_training_starts(place, tmp_path):
    folder = write_run(tmp_path / "run", place / "corpus.txt", position="morlet",
                       position_options={"centre": True})
    start, now = command.waves(runs.load(folder).checkpoint.params, runs.load(folder).config)
    for a, b in zip(start, now):
        np.testing.assert_array_equal(a, b)
    assert start[2].shape == (7, 12)


def test_own_text_and_folder(place, tmp_path, capsys, unseen):
    text = tmp_path / "mine.txt"
    text.write_text((place / "corpus.txt").read_text(encoding="utf-8")[:8], encoding="utf-8")
    before = contents(place)
    assert cli.main(["inspect", str(place / "run"), "--text", str(text), "--out",
                     str(tmp_path / "a" / "b")]) == 0
    said = capsys.readouterr().out
    assert f"1 sequence of 7 tokens of {text}" in said
    assert "maps.png" in said
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {*NEEDS} - {"maps_mean.png"}
    assert contents(place) == before


def test_one_token_of_context(place, tmp_path, capsys):
    folder = write_run(tmp_path / "run", place / "corpus.txt", block_size=1)
    assert cli.main(["inspect", str(folder)]) == 0


@pytest.mark.parametrize("words, said", [
    (["{home}/none"], "no folder has this name"),
    (["{home}"], "has no config.json"),
    (["{home}/corpus.txt"], "is not a run folder"),
    (["{home}/run", "--sequences", "0"], "--sequences must be at least 1"),
    (["{home}/run", "--sequences", "1000"], "at most 256; got 1000"),
    (["{home}/run", "--sequences", "few"], "invalid int value"),
    (["{home}/run", "--text", "{home}/none.txt"], "none.txt"),
    (["{home}/run", "--text", "{tmp}/other.txt"], "outside the vocabulary: '\u0424'"),
    (["{home}/run", "--text", "{tmp}/short.txt"], "needs at least 8 characters"),
    (["{home}/run", "--out", "{tmp}/short.txt"], "short.txt is a file; name a folder"),
    (["{home}/run", "--out", "{tmp}/short.txt/deep"], "cannot write to"),
    (["{home}/run", "--out", ""], "--out must name a folder"),
])
def test_bad_input(words, said, place, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("\u0424" * 30, encoding="utf-8")
    (tmp_path / "short.txt").write_text("e" * 7, encoding="utf-8")
    before = contents(place), contents(tmp_path)
    assert cli.main(["inspect", *(word.format(home=place, tmp=tmp_path) for word in words)]) == 2
    out, error = capsys.readouterr()
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert (contents(place), contents(tmp_path)) == before


def test_the_corpus_has_changed_or_gone(place, tmp_path, capsys):
    corpus = write_corpus(tmp_path)
    folder = write_run(tmp_path / "run", corpus)
    corpus.write_text(corpus.read_text(encoding="utf-8") + "!", encoding="utf-8")
    assert cli.main(["inspect", str(folder)]) == 2
    assert "differs from the one this run was trained on" in capsys.readouterr().err
    corpus.unlink()
    assert cli.main(["inspect", str(folder)]) == 2
    assert "Name another text with --text" in capsys.readouterr().err


def test_damaged_run(place, tmp_path, capsys):
    folder = copy(place / "run", tmp_path / "run")
    (folder / runs.CHECKPOINT).write_bytes((folder / runs.CHECKPOINT).read_bytes()[:-9])
    assert cli.main(["inspect", str(folder)]) == 2
    assert "truncated" in capsys.readouterr().err and not (folder / "inspect").exists()


# ---------------------------------------------------------------------------------- a run of `bias`


def test_run_of_bias(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["bias", "--steps", "2", "--sequences", "20", "--classes", "50", "--mask", "prefix",
             "--prefix", "3", "--seeds", "3", "--out"]
    assert cli.main([*words, str(folder)]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(folder), "--text", "builtin"]) == 2
    assert "leave out --text" in capsys.readouterr().err
    assert cli.main(["inspect", str(folder), "--sequences", "5"]) == 0
    said = capsys.readouterr().out
    assert "prefix mask" in said and "seed 3, step 2; 5 sequences of 17 tokens" in said
    assert {path.name for path in (folder / "inspect").iterdir()} == {*NEEDS}
    _, rows = rows_of(said)
    # the prefix sees itself; small weights are even ones
    even = np.log([3, 3, 3, *range(4, 18)]).mean()
    assert [float(row[3]) for row in rows] == pytest.approx([even] * 3, abs=0.02)
    (folder / "seed3" / runs.CHECKPOINT).unlink()
    (folder / "seed3" / runs.PREVIOUS).unlink(missing_ok=True)
    assert cli.main(["inspect", str(folder)]) == 2
    assert "no trained network yet" in capsys.readouterr().err
