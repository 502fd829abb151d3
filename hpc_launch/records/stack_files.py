"""The files of stacks in a job directory: one for people per rank, and one for programs with all that was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_launch.errors import LogDirError, reason
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.stack_traces import ProcessStacks
from hpc_launch.text import stamp


@dataclass(frozen=True)
class AllStacks:
    """All that was seen of a job, as its `stacks.json` has it.

    Attributes:
        job: the job.
        attempt: which of its attempts.
        time: when it was looked at, in seconds since the epoch.
        processes: what was seen.
    """

    job: str
    attempt: int
    time: float
    processes: Sequence[ProcessStacks]


def stacks_directory_name(moment: float) -> str:
    """The name of the directory for what is seen now; its users see to it that there is none yet."""
    return stamp(moment)


def reserve_directory(job: JobDirectory, moment: float) -> str:
    """Make such a directory, whose name nobody has; returns the name.

    Raises:
        LogDirError: naming the directory and the reason.
    """
    name = stacks_directory_name(moment)
    directory.make(job.stacks(name).parent)
    for number in range(1, 1000):
        chosen = name if number == 1 else f"{name}-{number}"
        try:
            job.stacks(chosen).mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise LogDirError(f"cannot write in {job.stacks(chosen)}: {reason(error)}") from error
        return chosen
    raise LogDirError(f"cannot write in {job.stacks(name)}: it is there already")


def write_ranks(job: JobDirectory, name: str, seen: Sequence[ProcessStacks]) -> None:
    """Write what was seen of each rank.

    Raises:
        LogDirError: naming the directory and the reason.
    """
    ranks: dict[tuple[str, int], list[ProcessStacks]] = {}
    for one in seen:
        ranks.setdefault((one.host, one.rank), []).append(one)
    for (host, rank), those in ranks.items():
        text = f"rank {rank} on {host}\n\n" + "\n".join(map(_text, those))
        directory.write_text(job.rank_stacks(name, host, rank), text, job.path)


def write_all(job: JobDirectory, name: str, attempt: int, moment: float, seen: Sequence[ProcessStacks]) -> None:
    """Write all that was seen for programs.

    Raises:
        LogDirError: naming the directory and the reason.
    """
    directory.write_json(job.stacks(name) / "stacks.json", AllStacks(job.job, attempt, moment, seen))


def _text(one: ProcessStacks) -> str:
    """What was seen of a process, for a person."""
    whose = f", child of {one.parent}" if one.parent else ""
    how = f"by {one.by}" if one.by else f"not seen: {one.why}" if one.why else ""
    about = "; ".join(filter(None, (one.state, how)))
    process = f"process {one.pid} ({one.name}){whose}: " if one.pid else ""
    return f"{process}{about}\n{one.text}"
