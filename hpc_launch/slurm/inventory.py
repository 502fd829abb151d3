"""What the nodes of a partition are like, as sinfo(1) tells it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# One line for each kind of node: partition, nodes, CPUs, memory in MB, generic resources, time limit.
FORMAT = "%P|%D|%c|%m|%G|%l"

_GPU = re.compile(r"gpu(?::(?P<kind>[^:,()]+))?:(?P<count>\d+)")


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one partition that are alike.

    Attributes:
        default: whether it is the partition of jobs that name none.
        cpus: of one node, as Slurm counts them.
        memory: of one node, in MB.
        gpus: of one node, by type; the type is empty where Slurm knows none.
        time_limit: the longest time limit in the partition, as Slurm writes it; `infinite` where there is none.
    """

    partition: str
    default: bool
    nodes: int
    cpus: int
    memory: int
    gpus: Mapping[str, int]
    time_limit: str = "infinite"

    def gpus_of(self, kind: str = "") -> int:
        """How many GPUs a node has, of one type or of any."""
        return self.gpus.get(kind, 0) if kind else sum(self.gpus.values())


def read_nodes(text: str) -> tuple[NodeGroup, ...]:
    """Read what `sinfo --noheader --exact --format FORMAT` prints; lines of another form are passed over."""
    found = []
    for line in text.splitlines():
        words = line.strip().split("|")
        if len(words) != FORMAT.count("|") + 1 or not all(word.isdigit() for word in words[1:4]):
            continue
        partition, nodes, cpus, memory, gres, limit = words
        found.append(
            NodeGroup(
                partition=partition.removesuffix("*"),
                default=partition.endswith("*"),
                nodes=int(nodes),
                cpus=int(cpus),
                memory=int(memory),
                gpus=read_gpus(gres),
                time_limit=limit,
            )
        )
    return tuple(found)


def read_gpus(gres: str) -> dict[str, int]:
    """Count the GPUs in `gpu:a100:4(S:0-1),gpu:4,nvme:1`, by type."""
    found: dict[str, int] = {}
    for word in re.sub(r"\([^)]*\)", "", gres).split(","):
        match = _GPU.fullmatch(word)
        if match:
            kind = match["kind"] or ""
            found[kind] = found.get(kind, 0) + int(match["count"])
    return found
