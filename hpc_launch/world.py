"""Who takes part in a run: the nodes in rank order, and where this process stands among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_launch.settings import Origin


@dataclass(frozen=True)
class World:
    """The nodes of a run and the place of this agent among all agents.

    There is one agent per node, or, where Slurm started several tasks on a node, one agent per task with one worker
    each (`task_per_rank`).

    Attributes:
        hosts: names of the nodes, in rank order.
        node_rank: index of this node in `hosts`.
        agents: number of agents.
        agent_rank: number of this agent.
        local_agents: number of agents on this node.
        local_agent: number of this agent on this node.
        task_per_rank: each agent is one rank.
        origin: who said so.
        slots: workers on this node as the host file gives them; None where it does not.
    """

    hosts: tuple[str, ...]
    node_rank: int
    agents: int
    agent_rank: int
    local_agents: int = 1
    local_agent: int = 0
    task_per_rank: bool = False
    origin: Origin = Origin.DEFAULT
    slots: int | None = None

    @property
    def host(self) -> str:
        """Name of this node."""
        return self.hosts[self.node_rank]

    @property
    def leader(self) -> bool:
        """Whether this agent hosts the store: the first agent of the first node.

        It need not be agent 0: with one task per rank and an arbitrary distribution, Slurm may put task 0 on any
        node, and the others could not know on which.
        """
        return self.node_rank == 0 and self.local_agent == 0


def one_node(host: str, origin: Origin = Origin.DEFAULT) -> World:
    """This node alone."""
    return World(hosts=(host,), node_rank=0, agents=1, agent_rank=0, origin=origin)


def of_nodes(hosts: Sequence[str], node_rank: int, origin: Origin, slots: int | None = None) -> World:
    """One agent on each of `hosts`, this one being number `node_rank`."""
    return World(
        hosts=tuple(hosts),
        node_rank=node_rank,
        agents=len(hosts),
        agent_rank=node_rank,
        origin=origin,
        slots=slots,
    )
