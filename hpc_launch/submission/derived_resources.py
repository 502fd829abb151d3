"""What a job needs besides what was asked for: the GPUs' share of their node's CPUs and memory, and no more time. Pure.

Only what nobody said is derived. The sizes in the templates that come with hpc-launch are nobody's word: they fit some
machine, and are made to fit this one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpc_launch.slurm.inventory import NodeGroup
from hpc_launch.slurm.slurm_times import read_time_limit
from hpc_launch.submission.job_script import ScriptDraft
from hpc_launch.submission.submit_options import GPU_OPTIONS, asks_for_gpus, replaced_by

_MEMORY = frozenset({"mem", "mem-per-cpu", "mem-per-gpu"})
_GPUS = re.compile(r"(?:(?:gres/)?gpu[:=])?(?:(?P<kind>[^:,]+):)?(?P<count>\d+)")


@dataclass(frozen=True)
class DerivedOption:
    """An option that nobody gave: its value, and where it is from."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class NodeGpus:
    """GPUs of one node, of one type where it is not empty."""

    count: int
    kind: str = ""


def merged_options(template: Mapping[str, str], asked: Mapping[str, str | None]) -> dict[str, str]:
    """The options of a job: those that were asked for, and those of the template that they leave standing."""
    gone = frozenset(name for option in asked for name in replaced_by(option))
    gres = asked.get("gres")
    if gres and asks_for_gpus(gres):
        gone |= GPU_OPTIONS
    left = {
        name: value
        for name, value in template.items()
        if name not in gone and not (name == "gres" and asks_for_gpus(value) and GPU_OPTIONS & asked.keys())
    }
    return left | {name: value for name, value in asked.items() if value is not None}


def node_counts(text: str) -> tuple[int, int] | None:
    """The least and the largest number of nodes in a value of --nodes; None where it is of another form."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?(?::\d+)?", text.strip())
    return (int(match[1]), int(match[2] or match[1])) if match else None


def spared(text: str, spares: int) -> str | None:
    """A value of --nodes with so many nodes besides; None where none can be added to it."""
    counts = node_counts(text)
    if counts is None:
        return None
    least, most = (count + spares for count in counts)
    return str(least) if least == most else f"{least}-{most}"


def gpus_of_a_node(options: Mapping[str, str]) -> NodeGpus | None:
    """The GPUs that a job asks for on each of its nodes; None where it asks for none, or that cannot be told."""
    if "gpus-per-node" in options:
        return _gpus(options["gpus-per-node"])
    if "gpus" in options:
        whole, nodes = _gpus(options["gpus"]), node_counts(options.get("nodes", "1"))
        if whole is None or nodes is None or nodes[0] != nodes[1] or not nodes[0] or whole.count % nodes[0]:
            return None
        return NodeGpus(whole.count // nodes[0], whole.kind)
    words = [word.strip() for word in options.get("gres", "").split(",") if asks_for_gpus(word)]
    if len(words) != 1:
        return None
    _, *kind = words[0].split(":")
    return NodeGpus(1, ":".join(kind)) if not kind or not kind[-1].isdigit() else _gpus(words[0])


def derive_options(
    asked: Mapping[str, str | None], template: ScriptDraft, nodes: Sequence[NodeGroup], longest: str = ""
) -> list[DerivedOption]:
    """Work out what is missing.

    Args:
        asked: what somebody asked for, by name; None for what is to be left out.
        template: the script that it goes into.
        nodes: what the nodes of the partition are like; nothing where that is not known.
        longest: the time limit that a file has for the partition; empty where none has.
    """
    limits = (longest, *(group.time_limit for group in nodes))
    there = template.options()
    found: list[DerivedOption] = []
    for rule in (_gpus_that_are_there, _tasks, _cpus, _memory, _time):
        so_far = {**asked, **{item.name: item.value for item in found}}
        free = frozenset(name for name in _NAMES if _nobody_said(name, so_far, template, there))
        item = rule(_Case(asked, so_far, merged_options(there, so_far), there, free, template.shipped, nodes, limits))
        found += [item] if item else []
    return found


def shortage(options: Mapping[str, str], nodes: Sequence[NodeGroup]) -> str | None:
    """Why a job with these options would wait for ever, unless Slurm refuses it; None where that is not known."""
    counts, gpus = node_counts(options.get("nodes", "1")), gpus_of_a_node(options)
    there = sum(group.nodes for group in nodes if gpus is None or group.gpus_of(gpus.kind) >= gpus.count)
    if not nodes or counts is None or counts[0] <= there:
        return None
    which = f" with {gpus.count} GPU{'s' if gpus.count > 1 else ''}" if gpus else ""
    count = f"{there} node{'s' if there != 1 else ''}{which}"
    return f"--nodes={options['nodes']}, but partition {nodes[0].partition} has {count}: Slurm may let such a job wait"


_NAMES = ("gpus-per-node", "ntasks-per-node", "cpus-per-task", "mem", "time")


@dataclass(frozen=True)
class _Case:
    """What a rule looks at.

    Attributes:
        asked: what somebody asked for; and `so_far`, with what earlier rules have derived.
        options: those of the job.
        template: those of the template.
        free: the names of what can be derived.
    """

    asked: Mapping[str, str | None]
    so_far: Mapping[str, str | None]
    options: Mapping[str, str]
    template: Mapping[str, str]
    free: frozenset[str]
    shipped: bool
    nodes: Sequence[NodeGroup]
    time_limits: Sequence[str]

    def tasks(self) -> int:
        """The tasks of a node."""
        text = self.options.get("ntasks-per-node", "1")
        return max(int(text), 1) if text.isdigit() else 1

    def fitting(self, gpus: NodeGpus) -> list[NodeGroup]:
        """The nodes that have so many GPUs."""
        return [group for group in self.nodes if group.gpus_of(gpus.kind) >= gpus.count > 0]


def _nobody_said(name: str, so_far: Mapping[str, str | None], template: ScriptDraft, there: Mapping[str, str]) -> bool:
    rivals = replaced_by(name)
    if rivals & so_far.keys() or (name == "gpus-per-node" and asks_for_gpus(so_far.get("gres") or "")):
        return False
    return template.shipped or not rivals & there.keys()


def _gpus_that_are_there(case: _Case) -> DerivedOption | None:
    """Of a template that wants more GPUs than any node has, take those that there are."""
    if "gpus-per-node" not in case.free or "gpus-per-node" not in case.template or not case.shipped:
        return None
    wanted, most = _gpus(case.template["gpus-per-node"]), max((group.gpus_of() for group in case.nodes), default=0)
    if wanted is None or not 0 < most < wanted.count:
        return None
    return DerivedOption("gpus-per-node", str(most), "all GPUs of a node")


def _tasks(case: _Case) -> DerivedOption | None:
    """With a task for each GPU, other GPUs are other tasks."""
    before, gpus = case.template.get("ntasks-per-node", "1"), gpus_of_a_node(case.options)
    planned = gpus_of_a_node(case.template)
    if "ntasks-per-node" not in case.free or not case.shipped or gpus is None or planned is None or before == "1":
        return None
    if before != str(planned.count) or gpus.count == planned.count:
        return None
    return DerivedOption("ntasks-per-node", str(gpus.count), "a task for each GPU")


def _cpus(case: _Case) -> DerivedOption | None:
    gpus, tasks = gpus_of_a_node(case.options), case.tasks()
    per_gpu = case.asked.get("cpus-per-gpu") or ""
    if per_gpu.isdigit() and gpus is not None and gpus.count:
        count = max(int(per_gpu) * gpus.count // tasks, 1)
        return DerivedOption(
            "cpus-per-task", str(count), f"{per_gpu} CPUs for each of {gpus.count} GPUs{_between(tasks)}"
        )
    if "cpus-per-task" not in case.free:
        return None
    if gpus is None or not gpus.count:
        least = min((group.cpus for group in case.nodes), default=0)
        wanted = case.template.get("cpus-per-task", "")
        if case.shipped and wanted.isdigit() and 0 < least < int(wanted) * tasks:
            return DerivedOption(
                "cpus-per-task", str(max(least // tasks, 1)), f"all {least} CPUs of a node{_between(tasks)}"
            )
        return None
    whole = "exclusive" in case.options
    shares = [
        (group.cpus if whole else group.cpus * gpus.count // group.gpus_of(gpus.kind), group)
        for group in case.fitting(gpus)
    ]
    if not shares:
        return None
    share, group = min(shares, key=lambda item: item[0])
    all_of_it = whole or gpus.count == group.gpus_of(gpus.kind)
    part = (
        f"all {group.cpus} CPUs of a node"
        if all_of_it
        else f"the share of {gpus.count} of {group.gpus_of(gpus.kind)} GPUs in the {group.cpus} CPUs of a node"
    )
    return DerivedOption("cpus-per-task", str(max(share // tasks, 1)), part + _between(tasks))


def _memory(case: _Case) -> DerivedOption | None:
    """Where a template of ours says how much memory: the GPUs' share of it."""
    gpus = gpus_of_a_node(case.options)
    if "mem" not in case.free or not case.shipped or "mem" not in case.template or gpus is None:
        return None
    fitting = case.fitting(gpus)
    if not fitting:
        return None
    if "exclusive" in case.options or all(gpus.count == group.gpus_of(gpus.kind) for group in fitting):
        return DerivedOption("mem", "0", "all memory of a node") if case.template["mem"] != "0" else None
    share, group = min(
        ((group.memory * gpus.count // group.gpus_of(gpus.kind), group) for group in fitting), key=lambda item: item[0]
    )
    whole = group.gpus_of(gpus.kind)
    return (
        DerivedOption("mem", f"{share}M", f"the share of {gpus.count} of {whole} GPUs in the memory of a node")
        if share
        else None
    )


def _time(case: _Case) -> DerivedOption | None:
    """Of a template that wants more time than the partition gives, take what it gives."""
    if "time" not in case.free or not case.shipped:
        return None
    wanted = read_time_limit(case.template.get("time", ""))
    limits = [(limit, text) for text in case.time_limits if (limit := read_time_limit(text))]
    if wanted is None or not limits or min(limits)[0] >= wanted:
        return None
    return DerivedOption("time", min(limits)[1], "the longest that the partition allows")


def _between(tasks: int) -> str:
    return f", between {tasks} tasks" if tasks > 1 else ""


def _gpus(text: str) -> NodeGpus | None:
    """Read `4` or `a100:4`; None for several types, or anything else."""
    match = _GPUS.fullmatch(text.strip())
    return NodeGpus(int(match["count"]), match["kind"] or "") if match else None


def largest_time(options: Mapping[str, str]) -> float | None:
    """The time limit of a job in seconds; None where it says none, or no time."""
    return read_time_limit(options["time"]) if "time" in options else None


def fits(limit: float | None, most: str) -> bool:
    """Whether a time limit is within another; an unknown one is."""
    return limit is None or limit <= (read_time_limit(most) or math.inf)
