#!/usr/bin/env bash
# Make the virtual environment .venv, or update it, with hpc-launch and some of its extras, installed editable.
# usage: make_venv.sh PYTHON EXTRA[,EXTRA...]
set -euo pipefail
python=$1 extras=$2
cd "$(dirname "$0")/.."

stop() { echo "make: $*" >&2; exit 1; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || stop "Python 3.10 or newer is needed: make PYTHON=..."
"$python" -c 'import ensurepip' 2>/dev/null || stop "Python's venv is missing: apt-get install python3-venv"
echo "Installing hpc-launch and what it needs in .venv ..."
[[ -x .venv/bin/pip ]] || "$python" -m venv .venv
tools/install_torch.sh .venv/bin/python
.venv/bin/pip install --quiet --editable ".[$extras]"
