"""What the repository says about itself agrees: the version, the wheel's files, the workflow."""
from pathlib import Path

import pytest

import minattn

ROOT = Path(__file__).parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere():
    assert f"\nversion: {minattn.__version__}\n" in read("CITATION.cff")
    assert f"\n## {minattn.__version__}\n" in read("CHANGELOG.md")
    assert 'version = { attr = "minattn.__version__" }' in read("pyproject.toml")


def test_the_workflow_runs_what_a_change_must_pass():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["ci"]
    assert job["steps"][-1] == {"run": ".ci/run"}
    pythons = [f"3.{minor}" for minor in range(10, 15)]
    assert job["strategy"]["matrix"]["python"] == pythons
    assert f'requires-python = ">={pythons[0]}"' in read("pyproject.toml")


def test_every_data_file_of_the_package_is_in_the_wheel():
    """setup.py takes *.h, *.json and *.txt; whatever else lies in the package would be left out."""
    kinds = {path.suffix for path in (ROOT / "minattn").rglob("*")
             if path.is_file() and "__pycache__" not in path.parts}
    assert kinds <= {".py", ".json", ".txt", ".h"}
    assert '"**/*.h", "**/*.json", "**/*.txt"' in read("setup.py")
