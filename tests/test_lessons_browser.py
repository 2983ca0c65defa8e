"""In a real browser a notebook opens in JupyterLab, runs, and its slider moves a figure."""
import os
import re
import signal
import subprocess

import browser
import pytest
from run_cases import command, environment

CELL = '''\
from minattn import lessons, plots

def draw(height):
    fig, ax = plots.figure(4, 3)
    ax.plot([0, height])
    ax.set(ylim=(0, 5), title=f"height {height}")
    return fig

lessons.slider(draw, "height", [1, 2, 3, 4], start=2)
'''


@pytest.fixture
def address(tmp_path):
    """Where minattn lessons --open shows a copy of lesson 00, here a short notebook"""
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("jupyterlab")
    pytest.importorskip("ipywidgets")
    copy = tmp_path / "minattn-lessons" / "00_start_here.ipynb"
    copy.parent.mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python",
                                        "name": "python3"}}
    nbformat.write(notebook, copy)
    words = command("lessons", "--open", "00", "--no-browser")
    home = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR",
                                                    "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    server = subprocess.Popen(words, cwd=tmp_path, env={**environment(), **home}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              start_new_session=True)
    with server:
        yield server.stdout.readline().split()[0]
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:                  # Jupyter waits for a kernel, say
            os.killpg(server.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_slider_moves_its_figure(address, tmp_path):
    from selenium.webdriver import ActionChains, Keys
    with browser.opened(address, tmp_path / "profile") as driver:
        def all_of(selector):
            return browser.deep(driver, selector)

        def run():
            """Press Shift-Enter in the first cell -> whether the kernel has done it"""
            browser.click(driver, ".jp-CodeCell .cm-content")
            keys = ActionChains(driver).key_down(Keys.SHIFT)
            keys.send_keys(Keys.ENTER).key_up(Keys.SHIFT).pause(3).perform()
            prompts = browser.deep(driver, ".jp-InputPrompt", "innerText")
            return re.match(r"\[\d+\]", "".join(prompts))

        browser.wait(lambda: "Idle" in "".join(     # before, Jupyter would ask for a kernel
            browser.deep(driver, "#jp-main-statusbar", "innerText")))
        browser.wait(run)
        (handle,) = browser.wait(lambda: all_of(".widget-slider .noUi-handle"))
        (picture,) = browser.wait(lambda: all_of(".jp-OutputArea img"))
        first = picture.get_attribute("src")
        handle.send_keys(Keys.ARROW_RIGHT)
        browser.wait(lambda: browser.deep(driver, ".jp-OutputArea img", "src") != [first])
        assert "3" in browser.deep(driver, ".widget-readout", "innerText")
        if folder := os.environ.get("MINATTN_SCREENSHOTS"):
            driver.save_screenshot(f"{folder}/slider.png")
        assert len(all_of(".jp-OutputArea img")) == 1
        assert browser.complaints(driver, ["SEVERE"]) == []
