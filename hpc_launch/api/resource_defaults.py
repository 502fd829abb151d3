"""What a Slurm job needs besides what was asked for: CPUs for its ranks, and a time limit that there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hpc_launch.api.agent_command import DEFAULT_MINUTES, slurm_options
from hpc_launch.api.job_resources import Resources
from hpc_launch.slurm.inventory import NodeGroup
from hpc_launch.slurm.slurm_times import read_time_limit
from hpc_launch.submission import derived_resources
from hpc_launch.submission.job_script import ScriptDraft

# Nobody's sizes: everything that is not asked for is free to be derived.
_BLANK = ScriptDraft("", "", shipped=False)

_CPU_OPTIONS = frozenset({"cpus-per-gpu", "exclusive", "cpus-per-task"})


def complete_resources(resources: Resources, nodes: Sequence[NodeGroup]) -> tuple[Resources, tuple[str, ...]]:
    """Fill in what nobody has said.

    Args:
        resources: what was asked for.
        nodes: what the nodes of the partition are like; nothing where that is not known.

    Returns:
        The resources, and what was derived, in lines.
    """
    notes = []
    if resources.cpus_per_task is None and not _CPU_OPTIONS & resources.slurm.keys():
        cpus, why = _cpus(resources, nodes)
        if cpus:
            resources = dataclasses.replace(resources, cpus_per_task=cpus)
            notes.append(f"cpus_per_task={cpus}: {why}")
    if resources.time is None and "time" not in resources.slurm:
        minutes, why = _minutes(nodes)
        resources = dataclasses.replace(resources, time=minutes)
        notes.append(f"time={minutes} minutes: {why}")
    short = derived_resources.shortage(_options(resources), nodes)
    return resources, (*notes, *([short] if short else []))


def _options(resources: Resources) -> dict[str, str]:
    options = slurm_options(resources)
    known: dict[str, str] = {name: str(options[name]) for name in ("nodes", "gpus-per-node") if name in options}
    return {**known, "ntasks-per-node": "1"}


def _cpus(resources: Resources, nodes: Sequence[NodeGroup]) -> tuple[int, str]:
    """The GPUs' share of a node, else a CPU for each rank."""
    derived = {item.name: item for item in derived_resources.derive_options(_options(resources), _BLANK, nodes)}
    if "cpus-per-task" in derived:
        return int(derived["cpus-per-task"].value), derived["cpus-per-task"].reason
    ranks = resources.ranks or 1
    return (ranks, f"one for each of {ranks} ranks") if ranks > 1 else (0, "")


def _minutes(nodes: Sequence[NodeGroup]) -> tuple[int, str]:
    limits = [seconds for group in nodes if (seconds := read_time_limit(group.time_limit)) is not None]
    longest = min(limits, default=float("inf")) / 60
    if 1 <= longest < DEFAULT_MINUTES:
        return int(longest), "the longest that the partition allows"
    return DEFAULT_MINUTES, "nobody said"
