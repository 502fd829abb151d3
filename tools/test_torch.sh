#!/usr/bin/env bash
# Run the tests that need no Slurm with one release of torch and one Python, in an environment of their own.
# usage: test_torch.sh PYTHON VERSION cpu|cuda [ARGUMENT OF PYTEST...]
set -euo pipefail
python=$1 version=$2 build=$3
shift 3
cd "$(dirname "$0")/.."

name=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
place=.venvs/torch-$version-$build-$name
echo "Installing hpc-launch with torch $version ($build) in $place ..."
[[ -x $place/bin/pip ]] || "$python" -m venv "$place"
tools/install_torch.sh "$place/bin/python" "$version" "$build"
"$place/bin/pip" install --quiet --editable ".[dev,examples]"
(($#)) || set -- tests/unit tests/local
exec "$place/bin/python" -m pytest -m "not soak" --numprocesses 2 --dist loadfile "$@"
