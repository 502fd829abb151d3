"""Divide the cores of a node among its local ranks. Pure.

Every core goes to one rank, whole. Each rank has a home, the NUMA node near its device, and two things are wanted that
can contradict each other: cores of the rank's own home, and as many cores for each. The cores of a node are divided
among those who live there, or, where nobody does, nearest; that is the answer as long as the poorest rank has three
quarters of an equal share. Where Slurm gave cores so unevenly that it has not, equal shares count first, and ranks get
of their home what there is: training goes as fast as its slowest rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from hpc_launch.node.topology import Core

# What the poorest rank must have of an equal share.
_ENOUGH = 0.75

Distance = Callable[[int, int], int]


def near(cores: Sequence[Core], homes: Sequence[int], distance: Distance) -> list[list[Core]]:
    """Divide cores among ranks that have their homes on given NUMA nodes.

    Args:
        cores: in order of NUMA node, cache and number; at least as many as ranks.
        homes: the home of each rank: a NUMA node, of which there need not be cores.
        distance: how far two NUMA nodes are from each other.
    """
    nodes = _by_node(cores)
    settled = [_nearest(nodes, home, distance)[0] for home in homes]
    shares = _at_home(nodes, settled, distance)
    if min(map(len, shares)) < _ENOUGH * len(cores) / len(homes):
        shares = _equal(nodes, settled, distance)
    return shares


def anywhere(cores: Sequence[Core], ranks: int, distance: Distance) -> list[list[Core]]:
    """Divide cores among ranks that may be anywhere: equally, and with as few NUMA nodes in a share as possible."""
    middles = [(2 * rank + 1) * len(cores) // (2 * ranks) for rank in range(ranks)]
    homes = [cores[middle].node for middle in middles]
    nodes = _by_node(cores)
    shares = _at_home(nodes, homes, distance)
    sizes = [*map(len, shares)]
    return shares if max(sizes) - min(sizes) <= 1 else _equal(nodes, homes, distance)


def _by_node(cores: Sequence[Core]) -> dict[int, list[Core]]:
    nodes: dict[int, list[Core]] = {}
    for core in cores:
        nodes.setdefault(core.node, []).append(core)
    return nodes


def _nearest(nodes: Iterable[int], home: int, distance: Distance) -> list[int]:
    return sorted(nodes, key=lambda node: (distance(node, home), node))


def _at_home(nodes: Mapping[int, list[Core]], homes: Sequence[int], distance: Distance) -> list[list[Core]]:
    """Give each node's cores to those who live there; those of other nodes to the nearest, the poorest first."""
    shares: list[list[Core]] = [[] for _ in homes]
    people = _people(homes)
    for node, ranks in people.items():
        _deal(nodes[node], ranks, shares)
    for node in sorted(nodes.keys() - people.keys()):
        least = min(distance(node, home) for home in people)
        nearest = [ranks for home, ranks in people.items() if distance(node, home) == least]
        _deal(nodes[node], min(nearest, key=lambda ranks: _each(ranks, shares)), shares)
    return shares


def _people(homes: Sequence[int]) -> dict[int, list[int]]:
    """The ranks that live on each node where any do."""
    return {node: [rank for rank, home in enumerate(homes) if home == node] for node in sorted(set(homes))}


def _each(ranks: Sequence[int], shares: Sequence[Sequence[Core]]) -> float:
    return sum(len(shares[rank]) for rank in ranks) / len(ranks)


def _deal(cores: Sequence[Core], ranks: Sequence[int], shares: list[list[Core]]) -> None:
    """Divide cores, each rank getting neighbours, so that the ranks have as equally many as possible then."""
    counts = dict.fromkeys(ranks, 0)
    for _ in cores:
        poorest = min(ranks, key=lambda rank: len(shares[rank]) + counts[rank])
        counts[poorest] += 1
    begin = 0
    for rank in ranks:
        shares[rank] += cores[begin : begin + counts[rank]]
        begin += counts[rank]


def _equal(nodes: Mapping[int, list[Core]], homes: Sequence[int], distance: Distance) -> list[list[Core]]:
    """Give all ranks the same number of cores, but for one: from their homes first, then from the nearest node."""
    few, odd = divmod(sum(map(len, nodes.values())), len(homes))
    quotas = [few] * len(homes)
    rest = {node: len(cores) - few * homes.count(node) for node, cores in nodes.items()}
    for _ in range(odd):
        # Those who find one at home.
        lucky = max((rank for rank in range(len(homes)) if quotas[rank] == few), key=lambda rank: rest[homes[rank]])
        quotas[lucky] += 1
        rest[homes[lucky]] -= 1
    shares: list[list[Core]] = [[] for _ in homes]
    left = dict(nodes)
    for node, ranks in _people(homes).items():
        wanted = sum(quotas[rank] for rank in ranks)
        _deal(nodes[node][:wanted], ranks, shares)
        left[node] = nodes[node][wanted:]
    for rank, home in enumerate(homes):
        for node in _nearest(left, home, distance):
            missing = quotas[rank] - len(shares[rank])
            shares[rank] += left[node][:missing]
            left[node] = left[node][missing:]
    return shares
