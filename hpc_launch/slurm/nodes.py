"""How single nodes stand, as scontrol(1) tells it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpc_launch.slurm.inventory import read_gpus
from hpc_launch.slurm.slurm_times import read_moment

_LINE = re.compile(r"^NodeName=(\S+).*$", re.MULTILINE)
_STATE = re.compile(r" State=(\S+)")
_BOOTED = re.compile(r" BootTime=(\S+)")
_GRES = re.compile(r" Gres=(\S*)")
# Whoever gives a reason can have anything in it; then Slurm says who it was, and when.
_REASON = re.compile(r" Reason=(.*) \[[^\[\]\s]*@(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\]")

# What no job is started on (slurm.h, node_states); `*` is how releases before 21.08 write that a node does not respond.
_GONE = frozenset({"DOWN", "DRAIN", "NOT_RESPONDING", "FAIL", "POWERED_DOWN", "POWERING_DOWN", "REBOOT_ISSUED"})


@dataclass(frozen=True)
class NodeRecord:
    """What the controller knows of a node.

    Attributes:
        name: its name.
        state: in Slurm's words: `MIXED`, `DOWN+NOT_RESPONDING`.
        reason: why it is so; empty where nobody has said.
        since: since when there is that reason, in seconds since the epoch; None without one.
        booted: when it booted; None where that is not known.
        gpus: how many GPUs Slurm has to give there.
    """

    name: str
    state: str
    reason: str = ""
    since: float | None = None
    booted: float | None = None
    gpus: int = 0

    @property
    def gone(self) -> bool:
        """Whether Slurm, or an administrator, knows that it is not as it should be: no job would be started there."""
        return bool(_GONE & {*self.state.split("+")})


def read_nodes(text: str) -> tuple[NodeRecord, ...]:
    """Read `scontrol --oneliner show node`, of one node or several."""
    return tuple(_node(match[1], match[0]) for match in _LINE.finditer(text) if _STATE.search(match[0]))


def _node(name: str, line: str) -> NodeRecord:
    reason, booted, state = _REASON.search(line), _BOOTED.search(line), _STATE.search(line)
    gres = _GRES.search(line)
    word = state[1] if state is not None else ""
    return NodeRecord(
        name=name,
        state=word.replace("*", "+NOT_RESPONDING").rstrip("~#!%$@^-"),
        reason=reason[1].strip() if reason is not None else "",
        since=read_moment(reason[2]) if reason is not None else None,
        booted=read_moment(booted[1]) if booted is not None else None,
        gpus=sum(read_gpus(gres[1]).values()) if gres is not None else 0,
    )
