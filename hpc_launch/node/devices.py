"""Which accelerators this process may use, without asking a driver library.

The masks are lists of tokens (numbers, `GPU-…` or `MIG-…` ids). A rank's device is found by *indexing into* them: Slurm
writes numbers that are relative to the device cgroup or to the node, as the site is configured (gres.conf), and what is
not in the mask belongs to somebody else.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CUDA = "CUDA_VISIBLE_DEVICES"
_ROCR = "ROCR_VISIBLE_DEVICES"
_HIP = "HIP_VISIBLE_DEVICES"
_ZE = "ZE_AFFINITY_MASK"


@dataclass(frozen=True)
class Devices:
    """The accelerators visible to this process.

    Attributes:
        tokens: one per device, in order: what a mask of some of them is made of.
        variable: the mask that a worker's own mask goes into; empty where there is no device.
        source: where this is known from, for messages.
    """

    tokens: tuple[str, ...] = ()
    variable: str = ""
    source: str = "no device found"

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def exclusive(self) -> bool:
        """Whether a process can use only one of them: CUDA shows at most one MIG device to a process."""
        return any(token.startswith("MIG-") for token in self.tokens)


def find_devices(environ: Mapping[str, str], root: Path = Path("/")) -> Devices:
    """The devices of this process: its masks, else what the driver shows.

    Slurm often sets the masks of all makers (gres.conf without flags does), and HIP reads the CUDA mask as indices into
    what the ROCR mask leaves; the maker is therefore taken from the driver's device files.
    """
    if (root / "dev/kfd").exists():
        return _amd(environ, root)
    nvidia = (root / "dev/nvidiactl").exists()
    if _ZE in environ and not nvidia and (root / "dev/dri").exists():
        return _masked(_ZE, environ[_ZE])
    if _CUDA in environ:
        return _masked(_CUDA, environ[_CUDA])
    if nvidia:
        return _counted(_CUDA, _nvidia_count(root), "NVIDIA driver")
    for variable in (_ROCR, _HIP, _ZE):
        if variable in environ:
            return _masked(variable, environ[variable])
    return Devices()


def any_accelerator(root: Path = Path("/")) -> bool:
    """Whether a driver of NVIDIA's or AMD's is on this node, whatever this process may use of it."""
    return (root / "dev/nvidiactl").exists() or (root / "dev/kfd").exists()


def _amd(environ: Mapping[str, str], root: Path) -> Devices:
    outer = _masked(_ROCR, environ[_ROCR]) if _ROCR in environ else _counted(_HIP, _amd_count(root), "AMD driver")
    for variable in (_HIP, _CUDA):
        if variable in environ:
            inner = _masked(variable, environ[variable])
            # A number past the end ends the list, as it does for the runtime.
            usable = itertools.takewhile(lambda token: not token.isdigit() or int(token) < len(outer), inner.tokens)
            return Devices(tuple(usable), variable, f"{variable}={environ[variable]}")
    return outer


def tokens(mask: str) -> tuple[str, ...]:
    """The tokens of a mask. Pure."""
    found = (token.strip() for token in mask.split(",") if token.strip())
    # -1 ends the list (CUDA programming guide); NoDevFiles is what Slurm wrote before 19.05 for "none".
    return tuple(itertools.takewhile(lambda token: token not in ("-1", "NoDevFiles"), found))


def _masked(variable: str, mask: str) -> Devices:
    return Devices(tokens(mask), variable, f"{variable}={mask}")


def _counted(variable: str, count: int, source: str) -> Devices:
    return Devices(tuple(map(str, range(count))), variable, source) if count else Devices()


def _nvidia_count(root: Path) -> int:
    return sum(1 for path in (root / "dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))


def _amd_count(root: Path) -> int:
    return len(kfd_gpus(root))


def kfd_gpus(root: Path = Path("/")) -> list[dict[str, int]]:
    """The properties of the GPUs among the nodes of the KFD topology, in its order: CPUs have no SIMD units.

    Those that the device cgroup does not allow cannot be read (`kfd_devcgroup_check_permission` in the kernel).
    """
    nodes = sorted(
        (root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties"), key=lambda path: int(path.parent.name)
    )
    found = []
    for path in nodes:
        with contextlib.suppress(OSError):
            facts = (line.split() for line in path.read_text().splitlines())
            found.append({words[0]: int(words[1]) for words in facts if len(words) > 1})
    return [facts for facts in found if facts.get("simd_count", 0) > 0]
