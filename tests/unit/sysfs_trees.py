"""Make the sysfs of other machines: what a few lines in tests/unit/sysfs say, in the files in which the kernel has it.

The lines are written after what is public of these machines (lscpu, nvidia-smi topo -m, rocm-smi, vendors' manuals):

    node N: CPUS; DISTANCES           a NUMA node; its CPUs are `-` for one that is memory only
    threads: CPUS +OFFSET | pairs     which CPUs are threads of one core; without this line there is no SMT
    caches: N cores                   how many cores of a NUMA node, in their order, share an L3 cache
    nvidia ADDRESS: node N, minor M   a GPU, with the number of its device file
    amd ADDRESS: node N               a GPU, in the order of the KFD topology
    intel ADDRESS: node N, minor M    a GPU, with the number of its render node
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hpc_launch import ranges

T = TypeVar("T")

FOLDER = Path(__file__).parent / "sysfs"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))


@dataclass(frozen=True)
class Gpu:
    """A GPU of a machine."""

    maker: str
    address: str
    node: int
    minor: int


@dataclass(frozen=True)
class Machine:
    """What the lines say.

    Attributes:
        nodes: CPUs by NUMA node.
        distances: the lines of distances.
        cores: the CPUs of each core.
        caches: the CPUs that share each L3 cache.
        gpus: the GPUs.
    """

    nodes: dict[int, frozenset[int]] = field(default_factory=dict)
    distances: dict[int, str] = field(default_factory=dict)
    cores: list[frozenset[int]] = field(default_factory=list)
    caches: list[frozenset[int]] = field(default_factory=list)
    gpus: list[Gpu] = field(default_factory=list)

    @property
    def cpus(self) -> frozenset[int]:
        """All CPUs."""
        return frozenset().union(*self.nodes.values())

    @property
    def smt(self) -> bool:
        """Whether cores have several threads."""
        return any(len(core) > 1 for core in self.cores)


def machine(name: str) -> Machine:
    """Read the lines of a machine."""
    made = Machine()
    threads, per_cache = "", 0
    for line in (FOLDER / f"{name}.txt").read_text().splitlines():
        kind, _, rest = line.partition(":") if not re.match(r"(nvidia|amd|intel) ", line) else line.partition(": ")
        words = kind.split()
        if words[0] == "node":
            cpus, _, distances = rest.partition(";")
            made.nodes[int(words[1])] = frozenset(ranges.unfold(cpus.strip().strip("-")))
            made.distances[int(words[1])] = distances.strip()
        elif words[0] == "threads":
            threads = rest.strip()
        elif words[0] == "caches":
            per_cache = int(rest.split()[0])
        elif words[0] in ("nvidia", "amd", "intel"):
            facts = dict(part.split() for part in rest.split(", "))
            made.gpus.append(Gpu(words[0], words[1], int(facts["node"]), int(facts.get("minor", len(made.gpus)))))
    made.cores.extend(_cores(made, threads))
    for members in made.nodes.values():
        own = [core for core in made.cores if core <= members]
        made.caches.extend(frozenset().union(*cores) for cores in _chunks(own, per_cache))
    return made


def _cores(made: Machine, threads: str) -> Iterator[frozenset[int]]:
    if not threads:
        yield from (frozenset({cpu}) for cpu in sorted(made.cpus))
        return
    cpus, how = threads.split()
    first = sorted(ranges.unfold(cpus))
    if how == "pairs":
        yield from map(frozenset, _chunks(first, 2))
    else:
        yield from (frozenset({cpu, cpu + int(how)}) for cpu in first)


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def unpack(name: str, root: Path) -> Machine:
    """Make the files of a machine below `root`."""
    made = machine(name)
    system = root / "sys/devices/system"
    write(system / "cpu/online", ranges.fold(made.cpus))
    write(system / "cpu/smt/active", str(int(made.smt)))
    write(system / "node/online", ranges.fold(made.nodes))
    write(system / "node/has_cpu", ranges.fold(number for number, cpus in made.nodes.items() if cpus))
    for number, cpus in made.nodes.items():
        write(system / f"node/node{number}/cpulist", ranges.fold(cpus))
        write(system / f"node/node{number}/distance", made.distances[number])
    for core in made.cores:
        for cpu in core:
            write(system / f"cpu/cpu{cpu}/topology/thread_siblings_list", ranges.fold(core))
    for cache in made.caches:
        for cpu in cache:
            write(system / f"cpu/cpu{cpu}/cache/index3/shared_cpu_list", ranges.fold(cache))
    for position, gpu in enumerate(made.gpus):
        write_gpu(root, made, gpu, position)
    if any(gpu.maker == "amd" for gpu in made.gpus):
        write(root / "dev/kfd")
        for number in made.nodes:
            write(root / f"sys/class/kfd/kfd/topology/nodes/{number}/properties", "cpu_cores_count 32\nsimd_count 0")
    return made


def write_gpu(root: Path, made: Machine, gpu: Gpu, position: int) -> None:
    """Write the files of one GPU, the n-th."""
    device = root / f"sys/bus/pci/devices/{gpu.address}"
    write(device / "numa_node", str(gpu.node))
    write(device / "local_cpulist", ranges.fold(made.nodes.get(gpu.node, made.cpus)))
    if gpu.maker == "nvidia":
        write(root / "dev/nvidiactl")
        write(root / f"dev/nvidia{gpu.minor}")
        facts = f"Model: \t\t NVIDIA\nGPU UUID: \t {uuid(position)}\nBus Location: \t {gpu.address}\n"
        write(root / f"proc/driver/nvidia/gpus/{gpu.address}/information", f"{facts}Device Minor: \t {gpu.minor}")
    elif gpu.maker == "intel":
        write(root / f"dev/dri/renderD{gpu.minor}")
        write(device / f"drm/renderD{gpu.minor}/dev", "226:128")
        write(root / f"sys/bus/pci/drivers/xe/{gpu.address}/vendor", "0x8086")
    else:
        domain, bus, rest = gpu.address.split(":")
        slot, function = rest.split(".")
        place = int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)
        facts = f"simd_count 440\nlocation_id {place}\ndomain {int(domain, 16)}\nunique_id {1000 + position}"
        write(root / f"sys/class/kfd/kfd/topology/nodes/{len(made.nodes) + position}/properties", facts)


def uuid(position: int) -> str:
    """The id of a machine's n-th NVIDIA GPU."""
    return f"GPU-{position:08x}-d0e8-4fb4-9a0c-6f3a1c2b5d7e"


def write(path: Path, text: str = "") -> None:
    """Write one of the kernel's files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
