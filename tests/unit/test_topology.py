"""The CPUs of a node and the places of its devices, on machines of many kinds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from hpc_launch.node import device_locations, devices, topology
from hpc_launch.node.device_locations import Location
from hpc_launch.node.devices import Devices
from hpc_launch.node.topology import Core, Topology
from tests.unit import sysfs_trees
from tests.unit.sysfs_trees import unpack, uuid, write

# Every agent reads these files when it starts. More than this is too much, on the largest of the machines.
MOST_FILES = 100


def cuda(mask: str) -> Devices:
    return Devices(tuple(mask.split(",")), "CUDA_VISIBLE_DEVICES", f"CUDA_VISIBLE_DEVICES={mask}")


def addresses(found: Devices, root: Path, environ: Mapping[str, str] | None = None) -> list[str]:
    return [place.address for place in device_locations.find_locations(found, environ or {}, root)]


# ---- CPUs


@pytest.mark.parametrize("name", sysfs_trees.NAMES)
def test_cores_caches_and_nodes_are_those_of_the_machine(name: str, machines: Path) -> None:
    """What follows from a few files is what the files of all CPUs say."""
    made = sysfs_trees.machine(name)

    found = topology.read(made.cpus, machines / name)

    assert {frozenset(core.cpus) for core in found.cores} == set(made.cores)
    assert all(made.nodes[core.node].issuperset(core.cpus) for core in found.cores)
    caches: dict[int, set[int]] = {}
    for core in found.cores:
        caches.setdefault(core.cache, set()).update(core.cpus)
    assert {min(cache): set(cache) for cache in made.caches} == caches
    for number in (number for number, cpus in made.nodes.items() if cpus and len(made.nodes) > 1):
        line = [max(found.distance(number, other), 10) for other in made.nodes]
        assert [*map(int, made.distances[number].split())] == line


@pytest.mark.parametrize("name", sysfs_trees.NAMES)
@given(data=st.data())
def test_what_may_not_be_used_is_left_out(name: str, machines: Path, data: st.DataObject) -> None:
    """Of whatever CPUs a process may use, each is in one core, beside those siblings that may be used too."""
    made = sysfs_trees.machine(name)
    allowed = data.draw(st.sets(st.sampled_from(sorted(made.cpus)), min_size=1, max_size=24))

    found = topology.read(allowed, machines / name)

    cores = {tuple(sorted(core & allowed)) for core in made.cores if core & allowed}
    assert sorted(core.cpus for core in found.cores) == sorted(cores)


@pytest.mark.parametrize("name", sysfs_trees.NAMES)
def test_few_files_are_read(name: str, machines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at a machine and its devices takes tens of files, whatever the number of CPUs."""
    made = sysfs_trees.machine(name)
    asked: list[str] = []
    real_open, real_access = os.open, os.access

    def count_open(path: str, flags: int) -> int:
        asked.append(path)
        return real_open(path, flags)

    def count_access(path: str, mode: int) -> bool:
        asked.append(path)
        return real_access(path, mode)

    monkeypatch.setattr(os, "open", count_open)
    monkeypatch.setattr(os, "access", count_access)

    topology.read(made.cpus, machines / name)
    cpu_files = len(asked)
    device_locations.find_locations(
        Devices(tuple(map(str, range(len(made.gpus)))), "CUDA_VISIBLE_DEVICES"), {}, machines / name
    )

    assert cpu_files <= 4 * len(made.nodes) + len(made.caches) + 5
    assert len(asked) <= MOST_FILES


def test_a_kernel_without_numa(tmp_path: Path) -> None:
    """Without NUMA nodes and caches all CPUs are of one node; siblings are asked for one by one."""
    for cpu in range(4):
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 2},{cpu % 2 + 2}")
    write(tmp_path / "sys/devices/system/cpu/online", "0-3")

    assert topology.read({0, 1, 2, 3}, tmp_path) == Topology((Core((0, 2)), Core((1, 3))))
    assert topology.read({1, 2, 3}, tmp_path).cores == (Core((1, 3), 0, 1), Core((2,), 0, 1))


def test_cores_with_and_without_threads(tmp_path: Path) -> None:
    """Where the first and the last CPU of a cache do not tell about the others, all are asked; the kinds are noted."""
    unpack("plain", tmp_path)
    system = tmp_path / "sys/devices/system"
    for name in (
        "cpu/online",
        "node/node0/cpulist",
        *(f"cpu/cpu{cpu}/cache/index3/shared_cpu_list" for cpu in range(6)),
    ):
        write(system / name, "0-5")
    for cpu in range(6):
        siblings = "0-1" if cpu in (0, 1) else "2-3" if cpu in (2, 3) else str(cpu)
        write(system / f"cpu/cpu{cpu}/topology/thread_siblings_list", siblings)
    write(system / "cpu/smt/active", "1")
    write(tmp_path / "sys/devices/cpu_atom/cpus", "4-5")

    found = topology.read(range(6), tmp_path)

    assert [core.cpus for core in found.cores] == [(0, 1), (2, 3), (4,), (5,)]
    assert found.mixed


def test_without_sysfs_nothing_is_known(tmp_path: Path) -> None:
    """Where sysfs is not there, no core is made up."""
    assert topology.read({0, 1}, tmp_path) == Topology()


def test_this_machine() -> None:
    """All CPUs that this process may use are in its topology, once."""
    allowed = os.sched_getaffinity(0)

    assert sorted(cpu for core in topology.read(allowed).cores for cpu in core.cpus) == sorted(allowed)


# ---- devices


def test_numbers_are_in_the_order_of_the_bus(machines: Path) -> None:
    """CUDA's devices are numbered by their PCI addresses, as the workers are told."""
    assert addresses(cuda("0,7,2"), machines / "dgx_a100") == ["0000:07:00.0", "0000:bd:00.0", "0000:47:00.0"]
    assert [place.node for place in device_locations.find_locations(cuda("0,1,2,3"), {}, machines / "perlmutter")] == [
        3,
        2,
        1,
        0,
    ]


def test_numbers_count_what_the_cgroup_allows(tmp_path: Path) -> None:
    """With ConstrainDevices, device 0 is the first of those that may be opened, whatever its file is called."""
    unpack("dgx_h100", tmp_path)
    for minor in (0, 1, 3, 4):
        (tmp_path / f"dev/nvidia{minor}").unlink()

    assert addresses(cuda("0,1"), tmp_path) == ["0000:52:00.0", "0000:c3:00.0"]
    assert addresses(cuda("0,4"), tmp_path) == []


def test_device_files_may_be_numbered_in_another_order(tmp_path: Path) -> None:
    """Which device file a GPU has is the driver's word."""
    unpack("perlmutter", tmp_path)
    driver = tmp_path / "proc/driver/nvidia/gpus"
    write(driver / "0000:03:00.0/information", "Device Minor: 2")
    write(driver / "0000:82:00.0/information", "Device Minor: 0")
    (tmp_path / "dev/nvidia2").unlink()

    assert addresses(cuda("0,1,2"), tmp_path) == ["0000:41:00.0", "0000:82:00.0", "0000:c1:00.0"]


def test_a_gpu_that_is_taken_out_is_not_counted(tmp_path: Path) -> None:
    """CUDA does not count a GPU that the driver was told to exclude."""
    unpack("perlmutter", tmp_path)
    write(tmp_path / "proc/driver/nvidia/gpus/0000:03:00.0/information", "Device Minor: \t 0\nGPU Excluded:\t Yes")

    assert addresses(cuda("0"), tmp_path) == ["0000:41:00.0"]


def test_ids_are_found_wherever_they_are(machines: Path) -> None:
    """A UUID, its beginning, and an old MIG id, which has the GPU's, say where the device is."""
    names = f"{uuid(5)},{uuid(2)[:12]},MIG-{uuid(7)}/1/0"

    assert addresses(cuda(names), machines / "dgx_h100") == ["0000:c3:00.0", "0000:52:00.0", "0000:df:00.0"]


def test_what_cannot_be_known_is_not_guessed(machines: Path) -> None:
    """MIG ids, other orders and a beginning that several ids have could be anywhere; with one, all are unknown."""
    far = machines / "dgx_h100"

    assert device_locations.find_locations(cuda("MIG-9f1d,MIG-77aa"), {}, far) == ()
    assert device_locations.find_locations(cuda(f"{uuid(1)},GPU-0000"), {}, far) == ()
    assert device_locations.find_locations(cuda("0,1"), {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, far) == ()


def test_where_all_are_near_one_node_so_is_each(tmp_path: Path) -> None:
    """Which of the GPUs a MIG device is on does not matter if they are all at the same NUMA node."""
    unpack("dgx_h100", tmp_path)
    for minor in range(4):
        (tmp_path / f"dev/nvidia{minor}").unlink()

    assert device_locations.find_locations(cuda("MIG-9f1d,MIG-77aa"), {}, tmp_path) == (
        Location("", 1),
        Location("", 1),
    )


def test_a_device_without_a_node_has_its_cpus(machines: Path) -> None:
    """A virtual machine gives no NUMA node: the CPUs that the bus names are what there is."""
    found = device_locations.find_locations(cuda("3"), {}, machines / "cloud")

    assert found == (Location("0004:00:00.0", -1, frozenset(range(32))),)


def test_a_driver_that_does_not_tell(tmp_path: Path) -> None:
    """Without /proc/driver/nvidia, as in some containers, nothing is known."""
    unpack("perlmutter", tmp_path)
    shutil.rmtree(tmp_path / "proc")

    assert device_locations.find_locations(cuda("0,1"), {}, tmp_path) == ()


def test_amd_devices_are_in_the_order_of_the_kfd_topology(machines: Path) -> None:
    """HIP numbers the dies of an MI250X node in this order, whose NUMA nodes are out of order."""
    found = devices.find_devices({}, machines / "mi250x")

    assert (len(found), found.variable) == (8, "HIP_VISIBLE_DEVICES")
    assert [place.node for place in device_locations.find_locations(found, {}, machines / "mi250x")] == [
        3,
        3,
        1,
        1,
        0,
        0,
        2,
        2,
    ]


def test_amd_masks_filter_one_after_the_other(machines: Path) -> None:
    """HIP's mask counts what ROCR's leaves, which may be named by ids."""
    environ = {"ROCR_VISIBLE_DEVICES": "4,GPU-00000000000003ea,7", "HIP_VISIBLE_DEVICES": "2,1"}
    found = devices.find_devices(environ, machines / "mi250x")

    assert addresses(found, machines / "mi250x", environ) == ["0000:de:00.0", "0000:c9:00.0"]
    outer = {"ROCR_VISIBLE_DEVICES": "6,0"}
    assert addresses(devices.find_devices(outer, machines / "mi250x"), machines / "mi250x", outer) == [
        "0000:d9:00.0",
        "0000:c1:00.0",
    ]


def test_amd_devices_that_the_cgroup_hides(tmp_path: Path) -> None:
    """The kernel does not let the properties of others' GPUs be read: they are not counted."""
    unpack("mi250x", tmp_path)
    for node in (4, 5, 7):
        properties = tmp_path / f"sys/class/kfd/kfd/topology/nodes/{node}/properties"
        properties.unlink()
        properties.mkdir()  # the error differs, and root meets one as well

    found = devices.find_devices({}, tmp_path)

    assert len(found) == 5
    assert addresses(found, tmp_path)[:2] == ["0000:c9:00.0", "0000:d1:00.0"]


def test_intel_devices(tmp_path: Path) -> None:
    """A card and tile says which card; a number does if the runtime counts cards."""
    write(tmp_path / "sys/devices/system/cpu/online", "0-3")
    made = sysfs_trees.Machine(nodes={0: frozenset({0, 1}), 1: frozenset({2, 3})})
    for number, address in enumerate(("0000:18:00.0", "0000:9a:00.0")):
        sysfs_trees.write_gpu(tmp_path, made, sysfs_trees.Gpu("intel", address, number, 128 + number), number)

    def found(mask: str, hierarchy: str = "FLAT") -> list[str]:
        tiles = Devices(tuple(mask.split(",")), "ZE_AFFINITY_MASK", "")
        return addresses(tiles, tmp_path, {"ZE_FLAT_DEVICE_HIERARCHY": hierarchy})

    assert found("1.0,0.1") == ["0000:9a:00.0", "0000:18:00.0"]
    assert found("1", "COMPOSITE") == ["0000:9a:00.0"]
    assert found("0,1") == []


def test_without_devices_nothing_is_looked_for(tmp_path: Path) -> None:
    """Nobody asks for the places of no devices."""
    assert device_locations.find_locations(Devices(), {}, tmp_path) == ()
