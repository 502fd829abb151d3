"""The CPUs of this node: which share a core, a cache and a NUMA node, as sysfs says.

What is read is kept small, because every agent reads it: a list per NUMA node and per L3 cache, and the siblings of the
first and the last CPU of each node, from which those between follow. The files are described in the kernel's
Documentation/ABI/stable/sysfs-devices-node and sysfs-devices-system-cpu.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_launch import ranges

# Of another node when the kernel gives no distance (ACPI 6.5, 5.2.17: 10 is here).
_ELSEWHERE = 20


@dataclass(frozen=True)
class Core:
    """The hardware threads of one core, of those that this process may use.

    Attributes:
        cpus: their numbers, in order.
        node: the NUMA node; 0 where there are none.
        cache: the first of the CPUs that share its L3 cache and may be used; the node's first where that is not known.
    """

    cpus: tuple[int, ...]
    node: int = 0
    cache: int = 0


@dataclass(frozen=True)
class Topology:
    """The CPUs that this process may use.

    Attributes:
        cores: in order of NUMA node, cache and number; none where sysfs says nothing.
        distances: of NUMA nodes with CPUs to all nodes, as the firmware gives them.
        mixed: there are cores of several kinds, so that equal numbers of them are no equal shares.
    """

    cores: tuple[Core, ...] = ()
    distances: Mapping[tuple[int, int], int] = field(default_factory=dict)
    mixed: bool = False

    def distance(self, node: int, other: int) -> int:
        """How far two NUMA nodes are from each other."""
        return 0 if node == other else self.distances.get((node, other), _ELSEWHERE)

    def node_of(self, cpus: Iterable[int]) -> int | None:
        """The NUMA node that all of these CPUs belong to, of those that this process may use; None for several."""
        wanted = frozenset(cpus)
        nodes = {core.node for core in self.cores if wanted.intersection(core.cpus)}
        return nodes.pop() if len(nodes) == 1 else None


def read(allowed: Iterable[int], root: Path = Path("/")) -> Topology:
    """Look at the CPUs that this process may use.

    Args:
        allowed: their numbers (sched_getaffinity(2)).
        root: where sys/ is.
    """
    system = f"{root}/sys/devices/system"
    usable = frozenset(allowed)
    if not text(f"{system}/cpu/online"):
        return Topology()
    numbers = sorted(listed(f"{system}/node/has_cpu"))
    nodes = {number: listed(f"{system}/node/node{number}/cpulist") for number in numbers}
    nodes = nodes or {0: usable}  # a kernel without NUMA
    threads = text(f"{system}/cpu/smt/active") != "0"
    cores: list[Core] = []
    for number, members in nodes.items():
        mine = members & usable
        caches = _caches(mine, f"{system}/cpu")
        groups = _siblings(members, mine, f"{system}/cpu") if threads and mine else {(cpu,) for cpu in mine}
        found = (tuple(cpu for cpu in group if cpu in mine) for group in groups)
        cores += [Core(cpus, number, caches[cpus[0]]) for cpus in found if cpus]
    cores.sort(key=lambda core: (core.node, core.cache, core.cpus))
    # Laptops and desktops: the kernel has a PMU for each kind of core (Intel's "hybrid" processors).
    mixed = os.access(f"{root}/sys/devices/cpu_atom", os.F_OK)
    return Topology(tuple(cores), _distances(numbers, f"{system}/node"), mixed)


def _caches(cpus: frozenset[int], folder: str) -> dict[int, int]:
    """The first CPU of the L3 cache of each CPU; of all of them, where caches are not known."""
    found: dict[int, int] = {}
    for cpu in sorted(cpus):
        if cpu not in found:
            members = listed(f"{folder}/cpu{cpu}/cache/index3/shared_cpu_list") & cpus or cpus
            found.update(dict.fromkeys({*members, cpu} - found.keys(), min(members)))
    return found


def _siblings(members: frozenset[int], usable: frozenset[int], folder: str) -> set[tuple[int, ...]]:
    """Which of the CPUs of a NUMA node are threads of one core.

    Cores are numbered alike all through a node, 0,64 and 1,65 and so on or 0,1 and 2,3: so the first and the last
    tell. Where they do not, each CPU is looked at.
    """

    def ask(cpu: int) -> tuple[int, ...]:
        return tuple(sorted(listed(f"{folder}/cpu{cpu}/topology/thread_siblings_list") or {cpu}))

    first, last = min(members), max(members)
    model = ask(first)
    groups: set[tuple[int, ...]] = set()
    left = set(members)
    while left:
        group = tuple(cpu - first + min(left) for cpu in model)
        if not left.issuperset(group):
            break
        groups.add(group)
        left.difference_update(group)
    if left or ask(last) not in groups:
        return {ask(cpu) for cpu in members & usable}
    return groups


def _distances(numbers: list[int], folder: str) -> dict[tuple[int, int], int]:
    """The lines of the nodes' `distance` files: a number for each node that is online, those without CPUs included."""
    if len(numbers) < 2:  # noqa: PLR2004 - nothing is far away
        return {}
    online = sorted(listed(f"{folder}/online"))
    return {
        (number, other): int(distance)
        for number in numbers
        for other, distance in zip(online, text(f"{folder}/node{number}/distance").split(), strict=False)
    }


def text(path: str) -> str:
    """The text of one of the kernel's small files; empty where it cannot be read.

    With three system calls, where `Path.read_text` makes twice as many.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 1 << 16).decode(errors="replace").strip()
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def listed(path: str) -> frozenset[int]:
    """The numbers in one of the kernel's small files, as `0-3,8`; none where it cannot be read."""
    return frozenset(ranges.unfold(text(path)))
