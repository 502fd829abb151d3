"""Which nodes to try two by two, and whom to blame when some pairs fail. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

Pair = tuple[str, str]

# A node that fails with so many others, while they do not fail with each other, is the one to blame.
_ENOUGH = 2

# More rounds than that tell nothing new about a node; a single bad pair of many nodes may stay unseen.
MOST_ROUNDS = 9


def rounds(nodes: Sequence[str]) -> list[list[Pair]]:
    """All pairs, in rounds in which each node has at most one partner (the circle method of tournaments)."""
    ring: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    found = []
    for _ in range(len(ring) - 1):
        half = len(ring) // 2
        meetings = zip(ring[:half], reversed(ring[half:]), strict=True)
        found.append([(one, other) for one, other in meetings if one is not None and other is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return found


def blame(pairs: Mapping[Pair, str]) -> tuple[tuple[str, ...], tuple[Pair, ...]]:
    """Say what explains the pairs that fail: single nodes where possible, and the pairs that are left.

    A node is blamed when it fails with several others, and more often than not.

    Args:
        pairs: what became of each pair that was tried: an error, or nothing.
    """
    failing = {pair for pair, error in pairs.items() if error}
    left = set(failing)
    nodes: list[str] = []
    while left:
        node, count = max(sorted(_counts(left).items()), key=lambda entry: entry[1])
        tried = sum(node in pair and not set(pair) & set(nodes) for pair in pairs)
        if count < _ENOUGH or 2 * count <= tried:
            break
        nodes.append(node)
        left = {pair for pair in left if node not in pair}
    return tuple(nodes), tuple(sorted(left))


def settled(pairs: Mapping[Pair, str]) -> bool:
    """Whether the pairs tried so far say who is to blame, so that no more rounds are needed."""
    nodes, left = blame(pairs)
    return bool(nodes) and not left


def _counts(pairs: Iterable[Pair]) -> Counter[str]:
    return Counter(node for pair in pairs for node in pair)
