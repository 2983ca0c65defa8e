"""Everything is in pyproject.toml but this: the wheel carries lessons/ inside the package."""
from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["minattn*"]), "minattn.lessons.notebooks"],
    package_dir={"minattn.lessons.notebooks": "lessons"},
    package_data={
        "minattn": ["**/*.h", "**/*.json", "**/*.txt"],
        "minattn.lessons.notebooks": ["*.ipynb", "*.md"],
    },
)
