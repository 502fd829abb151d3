#!/usr/bin/env bash
# Install torch with the given Python, in the build that fits this machine: CUDA's several gigabytes only for a GPU.
# usage: install_torch.sh PYTHON [VERSION [cpu|cuda]]     without VERSION, any release that hpc-launch takes
set -euo pipefail
python=$1 version=${2:-} build=${3:-}

has_torch() {
    "$python" - "$version" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version

try:
    release = version("torch").partition("+")[0]
except PackageNotFoundError:
    sys.exit(1)
wanted = sys.argv[1]
sys.exit(release != wanted if wanted else tuple(map(int, release.split(".")[:2])) < (2, 4))
PYTHON
}

pip_install() { "$python" -m pip install --quiet "$@"; }

if has_torch; then
    exit
fi
torch=${version:+torch==$version}
torch=${torch:-torch>=2.4}
if [[ -z $build ]]; then
    [[ $(nvidia-smi -L 2>/dev/null) == GPU* ]] && build=cuda || build=cpu
fi
if [[ $build == cuda ]]; then
    pip_install "$torch"
    exit
fi
[[ ! -e /dev/kfd ]] || echo "torch: for the AMD GPU here, install a ROCm build (pytorch.org); this one uses the CPU"
# A site's own index may carry the CPU build; PyPI does not.
pip_install "torch==${version:-2.13.0}+cpu" 2>/dev/null ||
    pip_install --retries 1 --index-url https://download.pytorch.org/whl/cpu "$torch" ||
    { echo "torch: no CPU build of $torch found for $("$python" -V): install one with $python -m pip, then run make again" >&2
      exit 1; }
