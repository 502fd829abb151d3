"""Which CPUs each local rank gets: its own, near its device, and as many as the others."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from hpc_launch import ranges
from hpc_launch.errors import ContextError, HpcLaunchError, UsageError
from hpc_launch.node import device_locations, devices, topology
from hpc_launch.node.device_locations import Location
from hpc_launch.node.devices import Devices
from hpc_launch.node.topology import Core, Topology
from hpc_launch.plan import cpu_binding, derivation, shares
from hpc_launch.plan.cpu_binding import Rule
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.settings import CpuBind, resolve, settings_files
from hpc_launch.slurm.environment import locate
from tests.support import lines_mention, mentions
from tests.unit import sysfs_trees


def node(root: Path, allowed: Iterable[int] | None = None, environ: Mapping[str, str] | None = None) -> LaunchContext:
    """Return a process on one of the machines."""
    environ = {**(environ or {})}
    cpus = frozenset(sysfs_trees.machine(root.name).cpus if allowed is None else allowed)
    found = devices.find_devices(environ, root)
    return LaunchContext(
        environ=environ,
        directory=Path("/project"),
        host="box",
        slurm=locate(environ),
        devices=found,
        cpus=len(cpus),
        position=lambda _: None,
        read=lambda _: "",
        allowed=cpus,
        topology=functools.partial(topology.read, cpus, root),
        locations=functools.partial(device_locations.find_locations, found, environ, root),
    )


def plan(here: LaunchContext, /, **options: str | bool) -> Plan:
    return derivation.make_plan(resolve(options, {}), here, ("train.py",))


def cpus(made: Plan) -> list[str]:
    return [ranges.fold(share.cpus) for share in made.binding.shares]


def rule(made: Plan) -> Rule:
    return made.binding.rule


def refused(kind: type[HpcLaunchError], here: LaunchContext, **options: str | bool) -> str:
    with pytest.raises(HpcLaunchError) as caught:
        plan(here, **options)
    assert type(caught.value) is kind
    return str(caught.value)


# ---- on the machines


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # The nodes without GPUs are shared by those beside them.
        (
            "dgx_a100",
            [
                f"{away}-{away + 7},{home}-{home + 7},{away + 128}-{away + 135},{home + 128}-{home + 135}"
                for away, home in ((32, 48), (40, 56), (0, 16), (8, 24), (96, 112), (104, 120), (64, 80), (72, 88))
            ],
        ),
        (
            "dgx_h100",
            [f"{first}-{first + 13},{first + 112}-{first + 125}" for first in range(0, 112, 14)],
        ),
        (
            "mi250x",
            [f"{first}-{first + 7},{first + 64}-{first + 71}" for first in (48, 56, 16, 24, 0, 8, 32, 40)],
        ),
        ("perlmutter", ["48-63,112-127", "32-47,96-111", "16-31,80-95", "0-15,64-79"]),
        ("juwels_booster", ["12-23,60-71", "0-11,48-59", "36-47,84-95", "24-35,72-83"]),
        ("gh200", ["0-71", "72-143", "144-215", "216-287"]),
        # The threads of core 0 are 0 and 24.
        (
            "interleaved",
            [
                f"{ranges.fold(range(core, core + 12, 2))},{ranges.fold(range(core + 24, core + 36, 2))}"
                for core in (0, 12, 1, 13)
            ],
        ),
        ("cloud", ["0-7", "8-15", "16-23", "24-31"]),
    ],
)
def test_each_rank_is_near_its_device(name: str, expected: Sequence[str], machines: Path) -> None:
    """On a whole machine with a rank per device, each has its part of the nearest NUMA node, and nothing is left."""
    made = plan(node(machines / name))

    assert cpus(made) == expected
    assert rule(made) is Rule.DEVICES
    assert made.omp_num_threads == len(sysfs_trees.machine(name).cpus) // len(expected)


def test_the_first_core_of_each_cache_can_be_the_systems(machines: Path) -> None:
    """Where a site keeps a core of each L3 cache for itself (Frontier), the others are shared out cache by cache."""
    allowed = set(range(128)) - set(range(0, 128, 8))

    made = plan(node(machines / "mi250x", allowed))

    assert cpus(made)[:4] == ["49-55,113-119", "57-63,121-127", "17-23,81-87", "25-31,89-95"]


def test_the_profile_of_such_machines_says_the_same(machines: Path) -> None:
    """`mi250x` is for where /sys cannot be seen, and comes to the CPUs that are found where it can."""
    profile = (
        settings_files.load_settings_files({"HOME": ""}, machines, "mi250x", machines)
        .layers[0]
        .entries["cpu_bind"]
        .value
    )
    found = node(machines / "mi250x", set(range(64)) - set(range(0, 64, 8)))

    assert cpus(plan(found, cpu_bind=profile)) == cpus(plan(found))


def test_one_core_of_the_machine_can_be_the_systems(machines: Path) -> None:
    """A core that is missing somewhere is missed by one rank there, and moves nobody away from home."""
    made = plan(node(machines / "mi250x", set(range(128)) - {0, 64}))

    assert cpus(made)[4:6] == ["1-8,65-72", "9-15,73-79"]
    assert [*map(len, (share.cpus for share in made.binding.shares))] == [16] * 4 + [16, 14] + [16] * 2
    assert (made.binding.summary, made.omp_num_threads) == ("14 to 16 CPUs each", 14)


def test_cpus_on_one_socket_only(machines: Path) -> None:
    """Where all CPUs that Slurm gave are on one socket, the ranks of the other get their part of them."""
    made = plan(node(machines / "dgx_h100", [*range(32), *range(112, 144)]))

    assert cpus(made) == [f"{first}-{first + 3},{first + 112}-{first + 115}" for first in range(0, 32, 4)]


def test_cpus_mostly_on_one_socket(machines: Path) -> None:
    """Where locality would leave ranks poor, all get the same number, from their homes first."""
    made = plan(node(machines / "dgx_h100", range(64)))

    assert cpus(made) == [ranges.fold(range(first, first + 8)) for first in range(0, 32, 8)] + [
        "32-37,56-57",
        "38-43,58-59",
        "44-49,60-61",
        "50-55,62-63",
    ]


def test_some_of_the_devices(machines: Path) -> None:
    """Ranks share all CPUs, those of the other socket too, if only devices at one socket are used."""
    made = plan(node(machines / "dgx_h100", environ={"CUDA_VISIBLE_DEVICES": "5,4"}))

    assert cpus(made) == ["0-27,56-83,112-139,168-195", "28-55,84-111,140-167,196-223"]
    assert [share.location for share in made.binding.shares] == [
        Location("0000:c3:00.0", 1),
        Location("0000:9d:00.0", 1),
    ]


def test_odd_cores(machines: Path) -> None:
    """Seven cores of 64, on three NUMA nodes, go to four ranks: two each but for one, the threads with them."""
    allowed = {5, 69, 20, 21, 84, 85, 50, 51, 52, 53, 114, 115, 116, 117}

    made = plan(node(machines / "perlmutter", allowed))

    assert sorted(len(share.cpus) for share in made.binding.shares) == [2, 4, 4, 4]
    assert {cpu for share in made.binding.shares for cpu in share.cpus} == allowed
    assert cpus(made)[0] == "50-51,114-115"


def test_unknown_places_are_said(machines: Path) -> None:
    """MIG ids do not say where they are: equal shares, and a word about it."""
    made = plan(node(machines / "dgx_h100", environ={"CUDA_VISIBLE_DEVICES": "MIG-1f00,MIG-2f00"}))

    assert cpus(made) == ["0-55,112-167", "56-111,168-223"]
    assert rule(made) is Rule.EQUAL_UNLOCATED


def test_ranks_without_devices(machines: Path) -> None:
    """CPU ranks get equal shares of as few NUMA nodes as possible."""
    here = dataclasses.replace(node(machines / "perlmutter"), devices=Devices())

    assert cpus(plan(here, nproc_per_node="2")) == ["0-31,64-95", "32-63,96-127"]
    assert cpus(plan(here, nproc_per_node="8"))[:3] == ["0-7,64-71", "8-15,72-79", "16-23,80-87"]
    assert [len(share.cpus) for share in plan(here, nproc_per_node="3").binding.shares] == [44, 42, 42]
    assert rule(plan(here, nproc_per_node="3")) is Rule.EQUAL


# ---- when ranks are left alone


@pytest.mark.parametrize(
    ("options", "environ", "allowed", "expected"),
    [
        ({"cpu_bind": "none"}, {}, range(16), (Rule.ASKED, "flag")),
        ({"numa_binding": "node"}, {}, range(16), (Rule.TORCH, "--numa-binding node")),
        ({"nproc_per_node": "1"}, {}, range(16), (Rule.ONE_RANK, "16")),
        ({}, {}, range(3), (Rule.FEW_CPUS, "4 3")),
        ({}, {}, [0, 1, 2, 64, 65, 66], (Rule.FEW_CORES, "4 3")),
        ({}, {"GOMP_CPU_AFFINITY": "0-7"}, range(16), (Rule.OPENMP, "GOMP_CPU_AFFINITY")),
        ({}, {"KMP_AFFINITY": "granularity=fine,explicit,proclist=[0-3]"}, range(16), (Rule.OPENMP, "KMP_AFFINITY")),
        ({}, {"OMP_PLACES": "{0:4},{4:4}"}, range(16), (Rule.OPENMP, "OMP_PLACES")),
    ],
)
def test_when_ranks_are_left_alone(
    options: dict[str, str], environ: dict[str, str], allowed: Iterable[int], expected: tuple[Rule, str], machines: Path
) -> None:
    """Nobody is bound where that could take something away, or where somebody else does it."""
    kind, words = expected
    made = plan(node(machines / "perlmutter", allowed, environ), **options)

    assert (cpus(made), rule(made), made.shares) == ([], kind, ())
    (shown,) = [item for item in made.derived if item.name == "cpu_bind"]
    assert (shown.value, shown.origin, mentions(shown.origin, words)) == ("none", made.binding.reason, True)
    assert cpu_binding.binding_table(made.binding, 4) == []
    warning = made.binding.warning
    assert bool(warning) == (kind is Rule.FEW_CORES)
    assert not warning or (mentions(warning, "4 3"), warning in made.warnings) == (True, True)


def test_cores_of_several_kinds_are_left_alone(machines: Path) -> None:
    """Half of the cores of a laptop are not half of its speed."""
    here = node(machines / "cloud")

    mixed = dataclasses.replace(here, topology=lambda: dataclasses.replace(here.topology(), mixed=True))
    nothing = dataclasses.replace(here, topology=Topology)

    assert rule(plan(mixed)) is Rule.MIXED_CORES
    assert rule(plan(nothing)) is Rule.UNKNOWN_CPUS


def test_what_is_not_needed_is_not_read(machines: Path) -> None:
    """Nothing is looked up where the ranks are left alone anyway."""

    def fail() -> Any:
        raise AssertionError

    here = dataclasses.replace(node(machines / "cloud"), topology=fail, locations=fail)

    assert cpus(plan(here, cpu_bind="none")) == []
    assert cpus(plan(here, nproc_per_node="1")) == []
    assert cpus(plan(here, cpu_bind="map:0/1/2/3")) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("environ", "how"),
    [
        ({}, "warm"),
        ({"OMP_PROC_BIND": "false"}, "warm"),
        ({"KMP_AFFINITY": "granularity=fine,none"}, "warm"),
        ({"KMP_AFFINITY": "disabled"}, "warm"),
        ({"OMP_PROC_BIND": "true"}, "exec"),
        ({"OMP_PROC_BIND": "spread", "OMP_PLACES": "cores"}, "exec"),
        ({"KMP_AFFINITY": "granularity=fine,compact,1,0"}, "exec"),
    ],
)
def test_openmp_takes_its_places_after_the_binding(environ: dict[str, str], how: str, machines: Path) -> None:
    """Where OpenMP binds threads to the CPUs that it has when it is loaded, workers are bound before: by exec."""
    here = node(machines / "perlmutter", environ=environ)

    assert plan(here).start.how == how
    assert plan(here, cpu_bind="none").start.how == "warm"
    if how == "exec":
        assert "--cpu-bind" in refused(UsageError, here, start="warm")


# ---- several tasks on a node


def step(task: int, tasks: int, **more: str) -> dict[str, str]:
    """The variables of a task of a step with several on this node."""
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "box",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": str(tasks),
        "SLURMD_NODENAME": "box",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task),
        "SLURM_CPUS_ON_NODE": "128",
        "SLURM_GPUS_ON_NODE": "4",
        **more,
    }


def test_tasks_that_slurm_has_bound_keep_their_cpus(machines: Path) -> None:
    """A task that has less than the step has its own CPUs."""
    made = plan(node(machines / "perlmutter", [*range(16), *range(64, 80)], step(1, 4)))

    assert (cpus(made), rule(made), made.omp_num_threads) == ([], Rule.TASKS_BOUND, 32)


def test_tasks_that_slurm_has_not_bound_divide_the_node(machines: Path) -> None:
    """Tasks that all have all CPUs of the step agree on who takes which, without a word."""
    plans = [plan(node(machines / "perlmutter", environ=step(task, 4))) for task in range(4)]

    assert all(made.binding == plans[0].binding for made in plans)
    assert [[ranges.fold(share.cpus) for share in made.shares] for made in plans] == [
        ["48-63,112-127"],
        ["32-47,96-111"],
        ["16-31,80-95"],
        ["0-15,64-79"],
    ]
    assert [made.shares[0].local_rank for made in plans] == [0, 1, 2, 3]


def test_tasks_that_see_one_device_each_share_equally(machines: Path) -> None:
    """A task that sees its own device only does not know the others', so none goes by the devices."""
    plans = [plan(node(machines / "perlmutter", environ=step(task, 4, CUDA_VISIBLE_DEVICES="0"))) for task in range(4)]

    assert [ranges.fold(made.shares[0].cpus) for made in plans] == [
        "0-15,64-79",
        "16-31,80-95",
        "32-47,96-111",
        "48-63,112-127",
    ]


def test_tasks_of_which_nothing_is_said_are_left_alone(machines: Path) -> None:
    """Without the number of the step's CPUs nobody knows whether a task has CPUs of its own."""
    environ = step(0, 4)
    del environ["SLURM_CPUS_ON_NODE"]

    assert rule(plan(node(machines / "perlmutter", environ=environ))) is Rule.TASKS_UNKNOWN


# ---- maps


def test_a_map_is_taken_as_it_is(machines: Path) -> None:
    """The first list is local rank 0's; lists may overlap, and there may be more than ranks."""
    made = plan(node(machines / "perlmutter"), cpu_bind="map:0-3,64/2-5/9/8/100", nproc_per_node="4")

    assert cpus(made) == ["0-3,64", "2-5", "9", "8"]
    assert (rule(made), made.omp_num_threads, made.start.how) == (Rule.ASKED, 1, "warm")


def test_a_map_must_be_possible(machines: Path) -> None:
    """A map needs a list for each rank, and CPUs that this process may use."""
    here = node(machines / "perlmutter", range(32))

    assert mentions(refused(UsageError, here, cpu_bind="map:0/1"), "--cpu-bind map 2 4 /")
    assert mentions(refused(ContextError, here, cpu_bind="map:0-3/30-35/1/2"), "--cpu-bind map 32-35 1 box 0-31")
    assert "leave one out" in refused(UsageError, here, cpu_bind="map:0/1/2/3", numa_binding="node")


@pytest.mark.parametrize("text", ["map", "map:", "map:0/", "map:0;1", "map:x", "map:3-1", "yes", "", "maps:0"])
def test_what_is_no_cpu_bind(text: str) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(UsageError, match="map:0-7,16/8-15,17"):
        resolve({"cpu_bind": text}, {})


def test_cpu_bind_is_read_from_anywhere() -> None:
    """A word or a map, from a flag or a variable."""
    assert resolve({"cpu_bind": "map:0-1/3,5"}, {}).cpu_bind == CpuBind("map:0-1/3,5", ((0, 1), (3, 5)))
    assert resolve({}, {"HPC_LAUNCH_CPU_BIND": "none"}).cpu_bind == CpuBind("none")
    assert str(resolve({}, {}).cpu_bind) == "auto"


# ---- devices of workers


def test_gpu_bind_isolate_is_virtual_local_rank(machines: Path) -> None:
    """One mechanism, two names; the masks are left as they are only if that is asked for."""
    here = node(machines / "perlmutter")

    assert [plan(here, **options).isolated for options in ({}, {"gpu_bind": "visible"}, {"gpu_bind": "none"})] == [
        False
    ] * 3
    assert plan(here, gpu_bind="isolate").isolated
    assert plan(here, virtual_local_rank=True).isolated
    assert plan(here, virtual_local_rank=True, gpu_bind="isolate").isolated
    assert "leave one out" in refused(UsageError, here, virtual_local_rank=True, gpu_bind="visible")
    migs = dataclasses.replace(here, devices=Devices(("MIG-a", "MIG-b"), "CUDA_VISIBLE_DEVICES", ""))
    assert [plan(migs, **options).isolated for options in ({}, {"gpu_bind": "none"})] == [True, False]


# ---- what is said


def test_the_table_says_what_each_rank_got(machines: Path) -> None:
    """A row for each local rank, with its device, the NUMA node near it, and its CPUs."""
    made = plan(node(machines / "perlmutter"))

    assert [line.split() for line in cpu_binding.binding_table(made.binding, made.omp_num_threads)[1:]] == [
        ["0", "0", "0000:03:00.0", "3", "48-63,112-127", "32"],
        ["1", "1", "0000:41:00.0", "2", "32-47,96-111", "32"],
        ["2", "2", "0000:82:00.0", "1", "16-31,80-95", "32"],
        ["3", "3", "0000:c1:00.0", "0", "0-15,64-79", "32"],
    ]
    assert made.binding.shares[0].as_dict() == {
        "local_rank": 0,
        "device": "0",
        "address": "0000:03:00.0",
        "numa_node": 3,
        "cpus": "48-63,112-127",
    }
    assert cpu_binding.binding_table(made.binding, None)[1].endswith("-")


def test_without_devices_a_line_says_it(machines: Path) -> None:
    """Where there is no device to tell of, a line does, in the form that --cpu-bind takes."""
    here = dataclasses.replace(node(machines / "perlmutter"), devices=Devices())

    assert lines_mention(
        cpu_binding.binding_table(plan(here, nproc_per_node="2").binding, 64), "--cpu-bind 0-31,64-95/32-63,96-127"
    )


# ---- any machine, any CPUs, any devices


@st.composite
def divisions(draw: st.DrawFn) -> tuple[list[Core], int, list[int]]:
    """Cores on some NUMA nodes, of which some are missing, a number of ranks, and their homes."""
    nodes = draw(st.integers(1, 8))
    per_node, threads = draw(st.integers(1, 12)), draw(st.integers(1, 2))
    total = nodes * per_node
    everything = [
        Core(tuple(core + total * thread for thread in range(threads)), core // per_node, core // 4 * 4)
        for core in range(total)
    ]
    cores = [core for core in everything if draw(st.integers(0, 9)) < draw(st.sampled_from([3, 8, 10]))] or everything
    ranks = draw(st.integers(1, min(16, len(cores))))
    homes = draw(st.lists(st.integers(0, nodes), min_size=ranks, max_size=ranks))
    return cores, ranks, homes


def far(node: int, other: int) -> int:
    """Sockets of two NUMA nodes."""
    return 10 if node == other else 12 if node // 2 == other // 2 else 32


@given(divisions())
def test_cores_are_divided_among_ranks_with_homes(case: tuple[list[Core], int, list[int]]) -> None:
    """Each core is one rank's; ranks of one home differ by a core at most, and the poorest is not much poorer."""
    cores, ranks, homes = case

    found = shares.near(cores, homes, far)

    assert sorted(core.cpus for share in found for core in share) == sorted(core.cpus for core in cores)
    sizes = [len(share) for share in found]
    assert len(sizes) == ranks
    assert max(sizes) - min(sizes) <= 1 or min(sizes) >= 0.75 * len(cores) / ranks
    for one, other in itertools.combinations(range(ranks), 2):
        if homes[one] == homes[other]:
            assert abs(sizes[one] - sizes[other]) <= 1
    assert found == shares.near(cores, homes, far)


@given(divisions())
def test_nobody_is_away_from_home_who_need_not_be(case: tuple[list[Core], int, list[int]]) -> None:
    """Two ranks do not sit on each other's homes."""
    cores, ranks, homes = case
    there = {core.node for core in cores}
    settled = [min((0 if node == home else far(node, home), node) for node in there)[1] for home in homes]

    found = shares.near(cores, homes, lambda node, other: 0 if node == other else far(node, other))

    for one, other in itertools.permutations(range(ranks), 2):
        if settled[one] != settled[other]:
            at_other = any(core.node == settled[other] for core in found[one])
            at_one = any(core.node == settled[one] for core in found[other])
            assert not (at_other and at_one)


@given(divisions())
def test_cores_are_divided_among_ranks_anywhere(case: tuple[list[Core], int, list[int]]) -> None:
    """Without homes each core is one rank's, and ranks differ by a core at most."""
    cores, ranks, _ = case

    found = shares.anywhere(cores, ranks, far)

    assert sorted(core.cpus for share in found for core in share) == sorted(core.cpus for core in cores)
    assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.parametrize("name", [name for name in sysfs_trees.NAMES if name != "plain"])
@given(data=st.data())
def test_any_cpus_of_a_machine(name: str, machines: Path, data: st.DataObject) -> None:
    """Whatever CPUs a process may use: shares are disjoint, of those, all of those, and cores stay whole."""
    made = sysfs_trees.machine(name)
    allowed = data.draw(st.sets(st.sampled_from(sorted(made.cpus)), min_size=1))
    here = node(machines / name, allowed)
    ranks = data.draw(st.integers(2, len(made.gpus)))

    found = plan(here, nproc_per_node=str(ranks)).binding

    cores = [core & allowed for core in made.cores if core & allowed]
    if len(cores) < ranks:
        assert found.shares == ()
        return
    taken = [set(share.cpus) for share in found.shares]
    assert sorted(itertools.chain(*taken)) == sorted(allowed)
    assert all(sum(bool(core & share) for share in taken) == 1 for core in cores)
