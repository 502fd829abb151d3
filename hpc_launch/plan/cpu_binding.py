"""Decide which CPUs each local rank runs on. Pure.

Left alone, ranks and their data loaders wander over the node, and a rank whose device hangs on the other socket copies
all that it trains on across. A share of its own near its device costs nothing, as long as it takes nothing away: so
there is none where CPUs are too few, where somebody else has bound the ranks, or where nothing is known of the CPUs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hpc_launch import ranges
from hpc_launch.errors import ContextError, UsageError
from hpc_launch.node.device_locations import Location
from hpc_launch.node.topology import Topology
from hpc_launch.plan import shares
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.settings import Settings
from hpc_launch.slurm.environment import Step
from hpc_launch.text import count
from hpc_launch.world import World

# OpenMP's variables that name CPUs by their numbers, the same for all ranks, and values by which they do.
_NUMBERED = {
    "GOMP_CPU_AFFINITY": re.compile(r"."),
    "KMP_AFFINITY": re.compile(r"explicit|proclist|norespect"),
    "OMP_PLACES": re.compile(r"\{"),
}
# Those by which OpenMP takes places among the CPUs that it has when it is loaded, and values by which it does not.
_PLACED = {
    "OMP_PROC_BIND": re.compile(r"false", re.IGNORECASE),
    "OMP_PLACES": None,
    "KMP_AFFINITY": re.compile(r"(.*,)?(none|disabled)(,.*)?"),
}


class Rule(Enum):
    """What decided which CPUs the ranks have."""

    ASKED = "an option"
    TORCH = "torch binds the workers"
    ONE_RANK = "there is nothing to divide"
    TASKS_UNKNOWN = "whether Slurm has bound the tasks is not known"
    TASKS_BOUND = "Slurm has bound the tasks"
    OPENMP = "a variable of OpenMP names CPUs"
    FEW_CPUS = "fewer CPUs than ranks"
    FEW_CORES = "fewer cores than ranks"
    UNKNOWN_CPUS = "nothing is known of the CPUs"
    MIXED_CORES = "cores of several kinds"
    DEVICES = "each near its device"
    EQUAL = "equal shares, as there are no devices"
    EQUAL_UNLOCATED = "equal shares, as the places of the devices are not known"


@dataclass(frozen=True)
class CpuShare:
    """What one local rank gets.

    Attributes:
        local_rank: which one.
        cpus: the CPUs that it runs on.
        device: its device, as the mask names it; empty for none, or where that is not known.
        location: where that is; None where it is not known.
    """

    local_rank: int
    cpus: tuple[int, ...]
    device: str = ""
    location: Location | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the records: plain values."""
        place = self.location or Location("", -1)
        node = place.node if place.node >= 0 else None
        return {
            "local_rank": self.local_rank,
            "device": self.device or None,
            "address": place.address or None,
            "numa_node": node,
            "cpus": ranges.fold(self.cpus),
        }


@dataclass(frozen=True)
class Binding:
    """Which CPUs the local ranks of a node run on.

    Attributes:
        rule: what decided it.
        reason: the same for people.
        shares: one for each local rank of this node, those of other agents included; none where they are not bound.
        warning: what is probably not meant; empty for nothing.
    """

    rule: Rule
    reason: str
    shares: tuple[CpuShare, ...] = ()
    warning: str = ""

    @property
    def located(self) -> bool:
        """Whether there are devices, and it is known where."""
        return any(share.location for share in self.shares)

    @property
    def fewest(self) -> int | None:
        """The CPUs of the local rank that has the fewest; None where they are not bound."""
        return min((len(share.cpus) for share in self.shares), default=None)

    @property
    def summary(self) -> str:
        """In a word or two."""
        if not self.shares:
            return "none"
        sizes = sorted({len(share.cpus) for share in self.shares})
        return f"{count(sizes[0], 'CPU')} each" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} CPUs each"


def given_cpus(here: LaunchContext, found: World, step: Step | None) -> int:
    """How many CPUs the local ranks of this agent may count on.

    What Slurm gave counts, also where it does not bind tasks to it and others may come to use the rest.
    """
    given = step.cpus_on_node if step is not None and not found.task_per_rank else None
    return min(here.cpus, given or here.cpus)


def decide_binding(
    settings: Settings, here: LaunchContext, found: World, step: Step | None, local_world_size: int
) -> Binding:
    """Say which CPUs each local rank of this node runs on.

    Args:
        settings: what was asked for.
        here: this node.
        found: who takes part.
        step: the Slurm step of the run, if it has one.
        local_world_size: workers of this agent.

    Raises:
        UsageError: for a map that cannot be meant.
        ContextError: for one with CPUs that this process may not use.
    """
    ranks = local_world_size * found.local_agents
    if settings.cpu_bind.lists:
        return _mapped(settings, here, ranks)
    obstacle = _obstacle(settings, here, found, step, ranks)
    if obstacle is not None:
        return Binding(*obstacle)
    topology = here.topology()
    if not topology.cores:
        return Binding(Rule.UNKNOWN_CPUS, "sysfs says nothing about the CPUs")
    if topology.mixed:
        return Binding(Rule.MIXED_CORES, "the cores are of different kinds")
    if len(topology.cores) < ranks:
        cores = count(len(topology.cores), "core")
        warning = f"{ranks} local ranks share {cores}"
        return Binding(Rule.FEW_CORES, f"{ranks} local ranks, but {cores}", warning=warning)
    return _divided(topology, here, ranks, same_devices=_all_see_the_same(here, found, step, ranks))


def _divided(topology: Topology, here: LaunchContext, ranks: int, *, same_devices: bool) -> Binding:
    """Divide the cores, by the devices if it is known which rank has which, and where they are."""
    places: Sequence[Location | None] = here.locations()[:ranks] if same_devices else ()
    homes = [_home(place, topology) for place in places if place is not None]
    known = [home for home in homes if home is not None]
    if len(known) == ranks:
        cores = shares.near(topology.cores, known, topology.distance)
        rule, reason = Rule.DEVICES, "near their devices"
    else:
        cores = shares.anywhere(topology.cores, ranks, topology.distance)
        rule, reason = Rule.EQUAL, "equal shares"
        if here.devices:
            rule, reason = Rule.EQUAL_UNLOCATED, "equal shares: where the devices are is not known"
    tokens = here.devices.tokens if same_devices else ("",) * ranks
    made = (
        CpuShare(rank, tuple(sorted(cpu for core in own for cpu in core.cpus)), token, place)
        for rank, own, token, place in zip(range(ranks), cores, tokens, places or [None] * ranks, strict=False)
    )
    return Binding(rule, reason, tuple(made))


def _home(place: Location, topology: Topology) -> int | None:
    return place.node if place.node >= 0 else topology.node_of(place.cpus)


def _obstacle(
    settings: Settings, here: LaunchContext, found: World, step: Step | None, ranks: int
) -> tuple[Rule, str] | None:
    """Why the ranks had better be left alone, as far as it is known without looking at the CPUs."""
    on_node = (step.cpus_on_node if step is not None else None) or 0
    cpus = given_cpus(here, found, step)
    named = next((name for name, numbers in _NUMBERED.items() if numbers.search(here.environ.get(name, ""))), "")
    obstacles = (
        (settings.cpu_bind.text == "none", Rule.ASKED, settings.origin("cpu_bind").value),
        (settings.numa_binding is not None, Rule.TORCH, f"--numa-binding {settings.numa_binding} is torch's"),
        (ranks == 1, Rule.ONE_RANK, f"one local rank has all {count(here.cpus, 'CPU')}"),
        (found.task_per_rank and not on_node, Rule.TASKS_UNKNOWN, "Slurm does not say whether each task is bound"),
        (found.task_per_rank and here.cpus < on_node, Rule.TASKS_BOUND, "Slurm has bound each task"),
        (named, Rule.OPENMP, f"{named} names CPUs"),
        (cpus < ranks, Rule.FEW_CPUS, f"{ranks} local ranks, but {count(cpus, 'CPU')}"),
    )
    return next(((rule, reason) for true, rule, reason in obstacles if true), None)


def _all_see_the_same(here: LaunchContext, found: World, step: Step | None, ranks: int) -> bool:
    """Whether each rank's device is known here: a task that sees its own only cannot know those of the others."""
    if len(here.devices) < ranks:
        return False
    return not found.task_per_rank or (step is not None and step.gpus_on_node == len(here.devices))


def _mapped(settings: Settings, here: LaunchContext, ranks: int) -> Binding:
    """Take the lists of --cpu-bind map, the first for local rank 0."""
    lists = settings.cpu_bind.lists
    if settings.numa_binding is not None:
        raise UsageError("--cpu-bind map and --numa-binding both bind workers: leave one out", option="--cpu-bind")
    if len(lists) < ranks:
        raise UsageError(
            f"--cpu-bind map: {count(len(lists), 'list')} of CPUs for {ranks} local ranks: separate them by /",
            option="--cpu-bind",
        )
    allowed = here.allowed
    for rank, cpus in enumerate(lists[:ranks]):
        beyond = set(cpus) - allowed
        if beyond:
            foreign, own = ranges.fold(beyond), ranges.fold(allowed)
            raise ContextError(
                f"--cpu-bind map: CPU {foreign} for local rank {rank} on {here.host}, where this process may use {own} "
                "only: choose among these, or ask Slurm for more (srun --cpus-per-task, --exclusive)"
            )
    tokens = here.devices.tokens if len(here.devices) >= ranks else ("",) * ranks
    made = tuple(CpuShare(rank, tuple(sorted(set(cpus))), tokens[rank]) for rank, cpus in enumerate(lists[:ranks]))
    return Binding(Rule.ASKED, settings.origin("cpu_bind").value, made)


def openmp_places(environ: Mapping[str, str]) -> str | None:
    """The variable by which OpenMP takes its CPUs when it is loaded, which must then be after a worker was bound."""
    for name, without in _PLACED.items():
        value = environ.get(name, "").strip()
        if value and not (without is not None and without.fullmatch(value)):
            return name
    return None


def binding_table(binding: Binding, threads: int | None) -> list[str]:
    """What each local rank of a node got, for people: a row each, or one line where there are no devices to tell of.

    Args:
        binding: of the node.
        threads: OMP_NUM_THREADS; None where it is not ours.
    """
    if not binding.shares:
        return []
    if not binding.located:
        each = "/".join(ranges.fold(share.cpus) for share in binding.shares)
        return [f"CPUs of the local ranks (--cpu-bind): {each}"]
    head = ("local rank", "device", "at", "NUMA node", "CPUs", "threads")
    rows = [head, *(_row(share, threads) for share in binding.shares)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(share: CpuShare, threads: int | None) -> tuple[str, ...]:
    facts = share.as_dict()
    words = (facts[name] for name in ("local_rank", "device", "address", "numa_node"))
    return (*("-" if word is None else str(word) for word in words), ranges.fold(share.cpus), str(threads or "-"))
