"""Where on the bus the accelerators of this process are, and so near which NUMA node. No driver library is asked.

A mask names devices by their ids, or by numbers among those that the process may use. Slurm's numbers are relative to
the device cgroup or to the node, as the site is configured (gres.conf), and a runtime counts only what it can open: so
do we. Whether a device file could be opened is asked of access(2), which the device cgroup answers too
(`devcgroup_inode_permission` in the kernel's fs/namei.c): opening a GPU that sleeps would take seconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_launch.node import devices
from hpc_launch.node.devices import Devices
from hpc_launch.node.topology import listed, text

_ADDRESS = re.compile(r"([0-9a-f]{4,}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


@dataclass(frozen=True)
class Location:
    """Where a device is.

    Attributes:
        address: its PCI address; empty where only the NUMA node is known.
        node: the NUMA node; -1 where the firmware does not say.
        cpus: the CPUs near it, where the NUMA node is not known.
    """

    address: str
    node: int
    cpus: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Found:
    """A device that this process may use, with the ids that masks may have for it."""

    location: Location
    ids: tuple[str, ...] = ()


def find_locations(found: Devices, environ: Mapping[str, str], root: Path = Path("/")) -> tuple[Location, ...]:
    """Say where each of the devices is, in their order; empty where that is not known of all of them.

    Args:
        found: the devices of this process.
        environ: the environment, with the masks.
        root: where dev/, proc/ and sys/ are.
    """
    if not found:
        return ()
    if os.access(f"{root}/dev/kfd", os.F_OK):
        usable, numbers = _amd(environ, found.variable, root), True
    elif found.variable == "ZE_AFFINITY_MASK":
        # Its numbers are cards or tiles, as the runtime is told (oneAPI Level Zero, ZE_FLAT_DEVICE_HIERARCHY).
        usable, numbers = _intel(root), environ.get("ZE_FLAT_DEVICE_HIERARCHY") == "COMPOSITE"
    else:
        # By the bus, unless the user has it otherwise: workers are told so (`workers.worker_environment`).
        usable, numbers = _nvidia(root), environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID") == "PCI_BUS_ID"
    places = [_match(token, usable, numbers=numbers) for token in found.tokens]
    located = tuple(place for place in places if place is not None)
    return located if len(located) == len(places) else ()


def _match(token: str, usable: Sequence[_Found], *, numbers: bool) -> Location | None:
    """What a token of a mask means: a number, or the beginning of an id, for CUDA an old MIG id with the GPU's."""
    card, tile, _ = token.partition(".")
    if card.isdecimal() and (numbers or tile):
        return usable[int(card)].location if int(card) < len(usable) else None
    name = re.sub(r"^MIG-(?=GPU-)", "", token).partition("/")[0]
    named = [one.location for one in usable if any(known.startswith(name) for known in one.ids)]
    if len(named) == 1 and not name.isdecimal():
        return named[0]
    # Whichever it is, there it is: of a MIG device only the driver's library knows the GPU.
    nodes = {one.location.node for one in usable}
    return Location("", nodes.pop()) if len(nodes) == 1 else None


def _nvidia(root: Path) -> list[_Found]:
    """The GPUs that the driver lists and the device cgroup allows, in the order of the bus.

    Their device files are not numbered in that order everywhere, so the driver is believed.
    """
    folder = f"{root}/proc/driver/nvidia/gpus"
    found = []
    for address in _addresses(folder):
        facts = text(f"{folder}/{address}/information")
        minor = re.search(r"^Device Minor:\s*(\d+)", facts, re.MULTILINE)
        uuid = re.search(r"^GPU UUID:\s*(GPU-\S+)", facts, re.MULTILINE)
        if minor is None:
            return []
        excluded = re.search(r"^GPU Excluded:\s*Yes", facts, re.MULTILINE)  # by the administrator; CUDA skips it
        if not excluded and _may_use(f"{root}/dev/nvidia{minor[1]}"):
            found.append(_Found(_location(address, root), (uuid[1],) if uuid else ()))
    return found


def _amd(environ: Mapping[str, str], variable: str, root: Path) -> list[_Found]:
    """The GPUs of the KFD topology, in its order, which is HIP's; the kernel hides what the cgroup does not allow.

    HIP reads its own mask, and CUDA's, as numbers among what the ROCR mask leaves.
    """
    found = []
    for facts in devices.kfd_gpus(root):
        place = facts.get("location_id", 0)  # bus, device and function, as PCI_DEVID has them
        address = f"{facts.get('domain', 0):04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7}"
        found.append(_Found(_location(address, root), (f"GPU-{facts.get('unique_id', 0):016x}",)))
    outer = "ROCR_VISIBLE_DEVICES"
    if outer not in environ or variable == outer:
        return found
    by_place = {one.location: one for one in found}
    kept = [_match(token, found, numbers=True) for token in devices.tokens(environ[outer])]
    return [by_place[place] for place in kept if place in by_place]


def _intel(root: Path) -> list[_Found]:
    """The GPUs of the kernel's two drivers that this process may open, in the order of the bus."""
    found = []
    for driver in ("xe", "i915"):
        for address in _addresses(f"{root}/sys/bus/pci/drivers/{driver}"):
            names = _names(f"{root}/sys/bus/pci/devices/{address}/drm")
            if any(name.startswith("renderD") and _may_use(f"{root}/dev/dri/{name}") for name in names):
                found.append(_Found(_location(address, root)))
    return sorted(found, key=lambda one: _position(one.location.address))


def _location(address: str, root: Path) -> Location:
    folder = f"{root}/sys/bus/pci/devices/{address}"
    node = text(f"{folder}/numa_node")
    if node and node != "-1":
        return Location(address, int(node))
    return Location(address, -1, listed(f"{folder}/local_cpulist"))


def _addresses(folder: str) -> list[str]:
    return sorted((name for name in _names(folder) if _ADDRESS.fullmatch(name)), key=_position)


def _position(address: str) -> tuple[int, ...]:
    match = _ADDRESS.fullmatch(address)
    return tuple(int(part, 16) for part in match.groups()) if match else ()


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - one call, and names are all that is wanted
    except OSError:
        return []


def _may_use(path: str) -> bool:
    return os.access(path, os.R_OK | os.W_OK)
