"""What a probe of `hpc-launch stacks` does on its node: look for the workers there, and take their stacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_launch.node import stack_dumps
from hpc_launch.records.stack_traces import ProcessStacks


class StackTasks:
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

    def _stacks(self, order: Mapping[str, Any]) -> tuple[ProcessStacks, ...]:
        self._doing("looking at the processes there")
        return dump_worker_stacks(
            order["job"],
            order["attempt"],
            self._host,
            dict(order["workers"].get(self._host, [])),
            ways=order["ways"],
            patience=order["patience"],
        )


def dump_worker_stacks(
    job: str, attempt: int, host: str, workers: Mapping[int, int], *, ways: Sequence[str], patience: float
) -> tuple[ProcessStacks, ...]:
    """The stacks of workers of this node, and of what is below them.

    A worker is known by what it has of its job. One that has got rid of that is known by its number.

    Args:
        job: the name of the job directory.
        attempt: the attempt.
        host: the name of this node.
        workers: those that are to run here: process ids, as their agents have written them down, by rank.
        ways: the ways to try, in order.
        patience: seconds for all of it.
    """
    known = stack_dumps.find_workers(job, attempt)
    found = {
        rank: known.get(rank, pid) for rank, pid in workers.items() if rank in known or stack_dumps.may_be_worker(pid)
    }
    gone = (ProcessStacks(rank, host, why="there is no such process there") for rank in workers if rank not in found)
    return (*stack_dumps.dump_stacks(found, host, ways=ways, patience=patience), *gone)
