"""What `minattn explore` shows is what the model did; its page works in a real browser."""
import os
import signal
import subprocess
from pathlib import Path

import browser
import numpy as np
import pytest
from run_cases import command, environment, write_corpus
from test_inspect import SMALL, write_run

from minattn import cli, data, generate, model
from minattn.attention import MECHANISMS
from minattn.errors import InputError
from minattn.inspect import explore, look

TEXT = "O, be"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("explore")
    write_corpus(place)
    return place


def load(home, attention, name=None, **config):
    folder = home / (name or attention)
    if not folder.exists():
        write_run(folder, home / "corpus.txt", attention=attention, **config)
    return explore.load(folder)


@pytest.mark.parametrize("attention", [*MECHANISMS, "affine+gated", "energy[norm=prefix]/sink"])
def test_the_view_is_what_the_model_did(attention, home):
    one = load(home, attention)
    seen = explore.view(one, TEXT)
    T = len(TEXT)
    assert len(seen.inside) == 2 and len(seen.likely) == explore.LIKELY
    ids = data.Vocabulary(one.run.vocabulary).encode(TEXT)[None]
    params, buffers = one.run.checkpoint.params, one.run.checkpoint.buffers
    inside = look.look(params, buffers, one.run.config, ids)
    for layer, again in zip(seen.inside, inside):
        maps = explore.weights(layer)
        assert maps.shape == (2, T, T)
        np.testing.assert_array_equal(np.isnan(maps), ~np.tri(T, dtype=bool)[None].repeat(2, 0))
        np.testing.assert_array_equal(np.nan_to_num(maps), again.weights[0])
        for h in range(2):
            lines = explore.by_character(layer, h)
            assert all(values.shape == (T,) and np.isfinite(values).all()
                       for values in lines.values())
            assert set(layer.computed) <= set(lines)
            stochastic = np.allclose(layer.weights.sum(axis=3), 1, atol=1e-3)
            assert ("sum of weights given" in lines) == (not stochastic)
            seeing = np.arange(T, 0, -1)                           # queries that see each key
            np.testing.assert_allclose(lines["mean weight received"] * seeing,
                                       np.nansum(maps[h], axis=0), rtol=1e-5, atol=1e-7)
    logits = model.forward(params, ids, one.run.config, buffers=buffers)[0][0, -1]
    p = np.exp(logits - logits.max(), dtype=np.float64)
    p /= p.sum()
    assert [p for _, p in seen.likely] == pytest.approx(sorted(p, reverse=True)[:10], rel=1e-5)
    greedy = next(generate.stream(params, buffers, one.run.config, ids[0], 1, top_k=1))
    assert seen.likely[0][0] == one.run.vocabulary[greedy]


def test_what_was_computed_stands_at_its_character(home):
    one = load(home, "energy[norm=prefix]/affine+gated", name="mixed", position="rope")
    first, second = explore.view(one, TEXT).inside
    T = len(TEXT)
    every = np.zeros((T, T))
    every[np.tri(T, dtype=bool)] = first.computed["energy gate"][1, 0]
    np.testing.assert_array_equal(explore.by_character(first, 1)["energy gate"],
                                  every[-1].astype(np.float32))
    lines = explore.by_character(second, 0)
    np.testing.assert_array_equal(lines["alpha"], second.computed["alpha"][0, 0])
    assert second.computed["gate"].shape == (2, 1, T, 6)
    np.testing.assert_allclose(lines["gate"], second.computed["gate"][0, 0].mean(axis=1))


def test_probabilities_are_ranked_and_sum_to_one():
    vocabulary = "abcd"
    found = explore.likely(np.log(np.array([0.1, 0.4, 0.3, 0.2])) + 1000, vocabulary)
    assert [c for c, _ in found] == ["b", "c", "d", "a"]
    assert [p for _, p in found] == pytest.approx([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize("text, said", [
    ("", "type at least one character"), ("O, be O, be", "has 11 characters.*at most 7"),
    ("O @", "outside the vocabulary: '@'")])
def test_a_text_that_cannot_be_read(text, said, home):
    with pytest.raises(InputError, match=said):
        explore.view(load(home, "softmax"), text)


def test_the_first_text_is_one_that_every_model_reads(home):
    short, other = load(home, "softmax"), load(home, "sink")
    assert SMALL["block_size"] == 7
    assert explore.first_text([short]) == explore.FIRST_TEXTS[1][:7]
    other = other._replace(run=other.run._replace(vocabulary="\nabc"))
    assert explore.first_text([short, other]) == "\n"
    other = other._replace(run=other.run._replace(vocabulary="@"))
    assert explore.first_text([short, other]) in short.run.vocabulary


def test_characters_that_would_not_be_seen():
    assert [explore.shown(c) for c in "a \n"] == ["a", "␣", "↵"]


def test_wrong_command_lines(home, tmp_path, monkeypatch, capsys):
    load(home, "softmax")
    run = str(home / "softmax")

    def said(*words):
        assert cli.main(["explore", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.splitlines()) == 1
        return error

    assert "no folder has this name" in said(str(tmp_path / "none"))
    assert "no folder has this name" in said(run, str(tmp_path / "none"))
    assert "--port must be at least 0 and at most 65535" in said(run, "--port", "70000")
    assert "RUN" in said()
    (tmp_path / "config.json").write_text('{"network": {}}')
    assert "run of `minattn bias`" in said(str(tmp_path))
    monkeypatch.setattr(explore.importlib.util, "find_spec", lambda name: None)
    assert "python -m pip install bokeh" in said(run)


def test_a_port_in_use(home, capsys):
    pytest.importorskip("bokeh")
    import socket
    load(home, "softmax")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert cli.main(["explore", str(home / "softmax"), "--port", port]) == 2
    error = capsys.readouterr().err
    assert f"cannot listen on port {port}" in error and len(error.splitlines()) == 1
    assert "--port" in error


def test_the_page_is_built_and_follows_the_text(home):
    """Without a browser: Bokeh's document alone"""
    pytest.importorskip("bokeh")
    from bokeh.document import Document
    from bokeh.models import TextAreaInput

    from minattn.inspect import page
    mixed = load(home, "energy[norm=prefix]/affine+gated", name="mixed", position="rope")
    document = Document()
    page.build(document, [mixed, load(home, "softmax")])
    assert next(document.select({"type": TextAreaInput})).value == explore.FIRST_TEXTS[1][:7]
    part = page.Part(mixed)
    part.read(TEXT)
    maps = part.all.source.data["image"]
    assert len(maps) == 4 and maps[3].shape == (5, 5)
    cells = part.one_head.source.data
    np.testing.assert_array_equal(cells["weight"][0],
                                  explore.weights(explore.view(mixed, TEXT).inside[0])[0])
    assert cells["query"][0][5] == ", (1)" and cells["key"][0][5] == "O (0)"
    assert part.one_head.figure.xaxis[0].major_label_overrides[2] == "␣"
    assert "alpha" not in part.lines.sources
    part.choose(1, 1)
    assert "alpha" in part.lines.sources and "layer 1, head 1" in part.lines.figure.title.text
    assert part.lines.sources["energy gate"].data["x"] == []
    assert part.view.likely[0][0] in part.one.run.vocabulary
    part.read("O @")
    assert "outside the vocabulary" in part.heading.text and part.text == TEXT
    part.read("O")
    assert "wrong" in part.heading.text and part.one_head.source.data["size"] == [1]


@pytest.fixture(scope="module")
def address(home):
    """Of the page of two models; Ctrl-C ends its server, quietly."""
    pytest.importorskip("bokeh")
    load(home, "energy[norm=prefix]/affine+gated", name="mixed", position="rope")
    load(home, "softmax")
    words = command("explore", home / "mixed", home / "softmax", "--port", 0, "--no-browser")
    server = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.PIPE)
    line = server.stdout.readline()
    assert line.startswith("http://127.0.0.1:") and line.endswith("  (Ctrl-C ends it)\n")
    yield line.split()[0]
    server.send_signal(signal.SIGINT)
    assert server.communicate(timeout=120) == ("", "") and server.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [browser.LAPTOP, browser.PHONE], ids=["laptop", "phone"])
def test_the_page_in_a_browser(size, address, tmp_path):
    with browser.opened(address, tmp_path / "profile", size) as driver:
        browser.resize(driver, size[0], 2500)                  # all of it, or most
        (text,) = browser.wait(lambda: browser.deep(driver, "textarea"))
        assert text.get_attribute("value") == explore.FIRST_TEXTS[1][:7]
        figures = browser.wait(lambda: browser.deep(driver, ".bk-Figure"))
        places = {figure: figure.rect for figure in figures}
        figures.sort(key=lambda one: (places[one]["x"] > size[0] / 2, places[one]["y"]))
        assert len(figures) == 8                               # four of a model, then the other's
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= size[0]                                 # nothing sticks out of the page
        side_by_side = figures[0].rect["y"] == figures[4].rect["y"]
        assert side_by_side == (size is browser.LAPTOP)

        before = still(figures[0])
        text.clear()
        text.send_keys("O be")
        browser.wait(lambda: figures[0].screenshot_as_png != before)
        after = still(figures[0])
        assert not words_of(driver, ".wrong")
        text.send_keys("@")
        browser.wait(lambda: "outside the vocabulary: '@'" in words_of(driver, ".wrong"))
        assert still(figures[0]) == after                      # what was seen last stays

        from selenium.webdriver import ActionChains
        mouse = ActionChains(driver)
        for x in (-80, -78):                                   # a cell that is seen
            mouse.move_to_element_with_offset(figures[1], x, 60)
        mouse.perform()
        said = browser.wait(lambda: words_of(driver, ".bk-tooltip-content"))
        assert "query" in said and "key" in said and "weight" in said
        if picture := os.environ.get("MINATTN_SCREENSHOTS"):
            browser.whole_page(driver, Path(picture) / f"explore_{size[0]}.png")

        (shown,) = set(browser.deep(driver, "select", "value"))
        assert shown == "layer 0, head 0"
        ActionChains(driver).move_to_element_with_offset(figures[0], 60, 60).click().perform()
        browser.wait(lambda: "layer 1, head 1" in browser.deep(driver, "select", "value"))
        assert browser.complaints(driver) == []
        assert all(one.startswith(address) for one in browser.asked(driver))


def still(figure):
    """A picture of a figure, once it no longer changes"""
    pictures = [None]

    def settled():
        pictures.append(figure.screenshot_as_png)
        return pictures[-1] == pictures[-2]
    browser.wait(settled)
    return pictures[-1]


def words_of(driver, selector):
    return " ".join(browser.deep(driver, selector, "innerText")).strip()
