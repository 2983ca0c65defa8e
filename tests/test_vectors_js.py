"""Golden vectors by a program in JavaScript, which has only the formulas of their schema."""
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from minattn.validate import vectors

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("node"),
                                                   reason="Node.js is not installed")]
CHECKER = Path(__file__).parent / "js" / "check_vectors.mjs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("vectors")
    vectors.write(where)
    return where


def node(*arguments):
    return subprocess.run(["node", str(CHECKER), *map(str, arguments)], capture_output=True,
                          text=True, timeout=120)


def test_softmax_affine_and_energy_from_the_schema(folder):
    done = node(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    index = json.loads((folder / vectors.INDEX).read_text())
    asked = sum("budgets" in about for case in index["cases"]
                if case["mechanism"] in ("softmax", "affine", "energy")
                for about in case["tensors"].values())
    assert f"tensors: {asked} passed, 0 failed" in done.stdout


def test_a_file_of_answers(folder, tmp_path):
    index = json.loads((folder / vectors.INDEX).read_text())
    keys = {f"{case['caseId']}/{name}" for case in index["cases"]
            for name, about in case["tensors"].items() if "budgets" in about}
    answers = {k: x for k, x in load_file(folder / vectors.PAYLOAD).items() if k in keys}
    save_file(answers, tmp_path / "right.safetensors")
    assert node(folder, tmp_path / "right.safetensors").returncode == 0
    name = "energy-causal-T/dtau"
    answers[name] = -answers[name]
    save_file(answers, tmp_path / "wrong.safetensors")
    done = node(folder, tmp_path / "wrong.safetensors")
    assert done.returncode == 1
    assert f"{name.replace('/', ' ')}: off by" in done.stdout and ", 1 failed" in done.stdout
