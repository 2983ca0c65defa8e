#!/usr/bin/env bash
# Build the sdist and the wheel, install the wheel in a fresh environment, and use it far from the
# repository: .ci/wheel.sh [PYTHON]. PYTHON needs the packages build and venv.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH MINATTN_DATA
python="$(command -v "${1:-python3}")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

"$python" -m build --outdir "$work/dist" . > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$work"/dist/*.whl
mkdir "$work/elsewhere"
cd "$work/elsewhere"
export PATH="$work/venv/bin:$PATH"

minattn --version
minattn list > list.txt
for command in $(python -c "from minattn.cli import COMMANDS; print(*COMMANDS)"); do
    minattn "$command" --help > /dev/null || { echo "minattn $command --help fails"; exit 1; }
done

minattn train --corpus builtin --steps 5 --batch-size 4 --block-size 16 --n-layer 1 --n-head 2 \
    --n-embd 16 --out run > train.txt
minattn sample run --tokens 40 > sample.txt
test -s sample.txt

printf '%s\n' 'from minattn.attention.softmax import backward, forward' > kernel.py
minattn check kernel.py:forward --backward kernel.py:backward --quick > check.txt
minattn causality energy > causality.txt
minattn vectors write vectors > vectors.txt
minattn lessons > lessons.txt
python - <<'PY'
from minattn.lessons import FOLDER, grader_18, sources
assert "site-packages" in str(FOLDER), FOLDER
assert all(source.with_suffix(".ipynb").exists() for _, source in sources().values())
assert grader_18.check_slope(lambda f, x, u, h: (f(x + h * u) - f(x - h * u)) / (2 * h))
PY
mkdir -p stub/jupyterlab                      # stands in for Jupyter, which needs a browser
echo 'print("opened")' > stub/jupyterlab/__main__.py
touch stub/jupyterlab/__init__.py
PYTHONPATH="$PWD/stub" minattn lessons --open 03 > opened.txt
grep -q opened opened.txt
test -s minattn-lessons/03_positions.ipynb
echo "the wheel works: $(basename "$work"/dist/*.whl)"
