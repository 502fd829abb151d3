#!/usr/bin/env bash
# Install torch with the given Python, in the build that fits this machine: CUDA's several gigabytes only for a GPU.
# usage: install_torch.sh PYTHON
set -euo pipefail
python=$1

has_torch() {
    "$python" - <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version

try:
    sys.exit(tuple(map(int, version("torch").split(".")[:2])) < (2, 4))
except PackageNotFoundError:
    sys.exit(1)
PYTHON
}

pip_install() { "$python" -m pip install --quiet "$@"; }

if has_torch; then
    exit
fi
if [[ $(nvidia-smi -L 2>/dev/null) == GPU* ]]; then
    pip_install 'torch>=2.4'
    exit
fi
[[ ! -e /dev/kfd ]] || echo "torch: for the AMD GPU here, install a ROCm build (pytorch.org); this one uses the CPU"
# A site's own index may carry the CPU build; PyPI does not.
pip_install 'torch==2.13.0+cpu' 2>/dev/null ||
    pip_install --retries 1 --index-url https://download.pytorch.org/whl/cpu 'torch>=2.4' ||
    { echo "torch: no CPU build found; install torch 2.4 or newer with $python -m pip, then run make again" >&2; exit 1; }
