"""Which nodes of a run that may lose nodes are bad, and go behind the spares. Pure.

A failure is held against a node whose workers fail *alone*: no other node fails by itself at the same time. What is
wrong with the program, the data or the file system is wrong on several nodes, whichever of them is the first. Where one
node alone has evidence that it is broken, it is that one, whatever the others say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hpc_launch.rendezvous.messages import Failed, RunState

# After so many attempts that a node has ended alone it is bad; with evidence after the first one.
TROUBLE = 2

# So long at least a failure waits for others that explain it: a node that is gone, the same failure elsewhere.
_SETTLE_SECONDS = 0.5
# While workers start, nodes are not equally far, and the same failure comes up to so much later elsewhere.
_START_SECONDS, _START_PART, _LONGEST_SETTLE_SECONDS = 60.0, 0.25, 3.0


def settle_seconds(ran: float) -> float:
    """How long a failure waits for others, where the workers have run for so many seconds."""
    early = ran * _START_PART if ran < _START_SECONDS else 0.0
    return min(_SETTLE_SECONDS + early, _LONGEST_SETTLE_SECONDS)


def culprit(failures: Mapping[int, Failed]) -> int | None:
    """The agent whose node failed alone; None where none or several did.

    Args:
        failures: what each agent has said, by its number.
    """
    own = [agent for agent, failed in failures.items() if failed.own or failed.fault]
    suspects = [agent for agent in own if failures[agent].fault] or own
    return suspects[0] if len(suspects) == 1 else None


def noted(state: RunState, failures: Mapping[int, Failed]) -> RunState:
    """The state with what the failures of a round say of nodes."""
    agent = culprit(failures)
    if agent is None:
        return state
    name, fault = str(agent), failures[agent].fault
    trouble = {**state.trouble, name: state.trouble.get(name, 0) + 1}
    why = f"is broken ({fault})" if fault else f"has ended {trouble[name]} attempts alone"
    bad = name not in state.drained and (fault or trouble[name] >= TROUBLE)
    return replace(state, trouble=trouble, drained={**state.drained, **({name: why} if bad else {})})
