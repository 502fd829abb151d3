"""What a probe of `hpc-launch stacks` does on its node: look for the workers there, and take their stacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpc_launch.node import stacks
from hpc_launch.records.stacks import Seen


class Tasks:
    """The tasks of one probe.

    Args:
        environ: its environment.
        doing: is told what is about to be done that might never end.
    """

    def __init__(self, environ: Mapping[str, str], _: Path, doing: Callable[[str], None]) -> None:
        self._host = environ.get("SLURMD_NODENAME", "")
        self._doing = doing

    def do(self, order: Mapping[str, Any]) -> Any:
        """Do what is asked for by its name."""
        return {"stacks": self._stacks}[order["do"]](order)

    def _stacks(self, order: Mapping[str, Any]) -> list[dict[str, Any]]:
        self._doing("looking at the processes there")
        seen = look(
            order["job"],
            order["attempt"],
            self._host,
            order["ranks"].get(self._host, []),
            ways=order["ways"],
            patience=order["patience"],
        )
        return [one.as_dict() for one in seen]


def look(job: str, attempt: int, host: str, ranks: list[int], *, ways: list[str], patience: float) -> tuple[Seen, ...]:
    """The stacks of those ranks that are to run on this node, and of what is below them."""
    workers = {rank: pid for rank, pid in stacks.find(job, attempt).items() if rank in ranks}
    gone = (Seen(rank, host, why="there is no such process there") for rank in ranks if rank not in workers)
    return (*stacks.take(workers, host, ways=ways, patience=patience), *gone)
