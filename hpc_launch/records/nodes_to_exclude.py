"""Which nodes the next job had better be without, and why. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_launch.records import formatting, hardware_faults, node_states, root_cause
from hpc_launch.records.history_model import History, NodeState

# So many things that are held against nodes are told; --exclude has all nodes.
_MOST = 4


@dataclass(frozen=True)
class BadNode:
    """A node that the next job had better be without, and why: words that go on with its name."""

    host: str
    why: str


def find_bad_nodes(history: History) -> tuple[BadNode, ...]:
    """The bad nodes of the last run: drained, lost for good, or the root cause of a failure with evidence for it.

    A node of which Slurm says that it is up is not bad because its agent was killed.
    """
    if not history.runs:
        return ()
    fleet = node_states.node_states(history)
    found = dict(fleet.drained)
    for attempt in history.attempts:
        cause = root_cause.root_cause_of(history, attempt) if attempt.run == history.runs[-1].first_attempt else None
        for worker in cause.groups[0].workers if cause is not None and cause.groups else ():
            fault = hardware_faults.evidence_of(worker)
            if fault:
                found.setdefault(worker.host, f"is broken ({fault})")
    states = {state.host: state for state in history.node_states}
    for host in fleet.lost:
        state = states.get(host)
        if state is None or state.gone or not state.last:
            found.setdefault(host, _lost(state))
    return tuple(BadNode(host, why) for host, why in sorted(found.items()))


def _lost(state: NodeState | None) -> str:
    if state is None or not state.gone:
        return "was lost"
    return f"was lost (Slurm: {state.state}{f', {state.reason}' if state.reason else ''})"


def bad_nodes_advice(bad: Sequence[BadNode]) -> str:
    """What to do about bad nodes, in a line; empty where there are none."""
    alike: dict[str, list[str]] = {}
    for node in bad:
        alike.setdefault(node.why, []).append(node.host)
    groups = [(formatting.fold_hosts(hosts), why, len(hosts) > 1) for why, hosts in alike.items()]
    named = [f"{'each of ' if several else ''}{hosts} {why}" for hosts, why, several in groups[:_MOST]]
    more = ["and others"] if len(alike) > _MOST else []
    every = formatting.fold_hosts(node.host for node in bad)
    return f"bad nodes: {'; '.join([*named, *more])}; for the next job: --exclude={every}" if bad else ""
