"""Which ports to try: a sequence that every node of a run computes alike, without talking."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

# So many tries find a free port even on a node where nine of ten are taken.
CANDIDATES = 32


def candidates(run_id: str, ports: Sequence[int]) -> tuple[int, ...]:
    """The ports of a run, in the order in which they are tried.

    A hash rather than digits of the job id: two steps of a job, two runs of a requeued job and jobs whose ids differ
    by a round number all get different ports.
    """
    found: dict[int, None] = {}
    for number in range(CANDIDATES):
        digest = hashlib.sha256(f"{run_id}#{number}".encode()).digest()
        found[ports[int.from_bytes(digest[:8], "big") % len(ports)]] = None
    return tuple(found)
