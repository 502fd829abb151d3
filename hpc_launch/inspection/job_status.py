"""How it is seen where a job stands: the job directory is read, and Slurm is asked."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from hpc_launch import hostlist
from hpc_launch.errors import HostlistError
from hpc_launch.inspection.job_search import slurm_step
from hpc_launch.inspection.job_state import FRESH, SlurmAnswer, State, judge_job_state, last_sign
from hpc_launch.inspection.output_files import OutputFolders, OutputSelection
from hpc_launch.inspection.slurm_query import SlurmQuery
from hpc_launch.inspection.status_view import JobStatus, RankState, RankStatus
from hpc_launch.node import processes
from hpc_launch.records import failure_messages, history, node_states, nodes_to_exclude, root_cause
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.history_model import Attempt, History, NodeEvent, ProgressMark, Worker
from hpc_launch.slurm.job import JobRecord


@dataclass(frozen=True)
class Observations:
    """What was seen beside the records.

    Attributes:
        slurm: what Slurm says; None where it is no job of Slurm's.
        outputs: when each rank of the last attempt wrote anything last, and on which node.
        alive: whether processes of it are there; None where that cannot be seen from here.
        now: the time.
        noted: what could not be read.
    """

    slurm: SlurmAnswer | None = None
    outputs: Mapping[int, tuple[float | None, str]] = field(default_factory=dict)
    alive: bool | None = None
    now: float = 0.0
    noted: tuple[str, ...] = ()


def read_status(directory: JobDirectory, *, eyes: SlurmQuery | None = None, now: float | None = None) -> JobStatus:
    """Look where a job stands.

    Args:
        directory: its directory.
        eyes: asks Slurm; without any, Slurm is asked if it was Slurm's job.
        now: the time, in seconds since the epoch; without it, the present.
    """
    found = history.read_history(directory.path)
    noted: list[str] = []
    outputs = _outputs(found, OutputFolders(directory, OutputSelection(), noted.append))
    newest = _newest(outputs)
    # The clock of the file system may be ahead of this machine's.
    now = max(filter(None, (time.time() if now is None else now, newest)))
    sign = last_sign(found, newest)
    step = slurm_step(directory)
    eyes = eyes if eyes is not None else SlurmQuery(step)
    seen = eyes.look(quiet=sign is None or now - sign > FRESH)
    alive = None if step is not None else _alive(found)
    return make_status(found, directory, Observations(seen, outputs, alive, now, tuple(noted)))


def without_directory(record: JobRecord) -> JobStatus:
    """Where a job stands that has not written anything yet, by Slurm's word alone."""
    looked = Observations(slurm=SlurmAnswer(record), now=time.time())
    return make_status(History(Path()), JobDirectory(Path(), record.label or record.job_id), looked)


def make_status(found: History, directory: JobDirectory, looked: Observations) -> JobStatus:
    """Put together what is known. Pure."""
    seen, now = looked.slurm, looked.now
    standing = judge_job_state(found, seen, alive=looked.alive, now=now, sign=last_sign(found, _newest(looked.outputs)))
    run = found.last_run
    attempt = found.last_attempt
    running = standing.state is State.RUNNING
    since = attempt.begin if attempt is not None else run.begin if run is not None else None
    record = seen.record if seen is not None else None
    fleet = node_states.node_states(found)
    failure, cause = _failure(found)
    return JobStatus(
        path=found.path,
        name=directory.job,
        script=run.plan.script if run is not None else (),
        standing=standing,
        slurm=seen,
        attempt=attempt.number if attempt is not None else None,
        begin=since,
        end=attempt.end if attempt is not None else None,
        restarts=sum(other.run == attempt.run for other in found.attempts) - 1 if attempt is not None else 0,
        world_size=attempt.world_size if attempt is not None else 0,
        hosts=fleet.working if run is not None and found.rolled(run) else _hosts(found, attempt),
        missing=_missing(found, attempt),
        fleet=fleet,
        states=tuple({state.host: state for state in found.node_states if state.host in fleet.lost}.values()),
        told=tuple(event for event in found.node_events if run is not None and event.run == run.first_attempt),
        bad=nodes_to_exclude.find_bad_nodes(found),
        ranks=_ranks(found, attempt, looked.outputs, running=running),
        job_end=record.end if record is not None and record.end is not None else found.end_time,
        requeues=found.requeues,
        notice=found.notices[-1] if found.notices and found.notices[-1].time >= (since or 0.0) else None,
        failure=failure,
        cause=cause if failure is not None and attempt is not None and failure[0] == attempt.number else "",
        now=now,
        unreadable=(*found.unreadable, *(line for line in looked.noted if line not in found.unreadable)),
    )


# --- ranks and nodes


def _ranks(
    found: History, attempt: Attempt | None, outputs: Mapping[int, tuple[float | None, str]], *, running: bool
) -> tuple[RankStatus, ...]:
    workers = {worker.rank: worker for worker in attempt.workers} if attempt is not None else {}
    marks = {mark.rank: mark for mark in found.progress}
    lost = node_states.lost_in(found, attempt.number) if attempt is not None else frozenset()
    return tuple(
        _rank(rank, workers.get(rank), outputs.get(rank, (None, "")), marks.get(rank), lost, running=running)
        for rank in sorted({*workers, *outputs})
    )


def _rank(
    rank: int,
    worker: Worker | None,
    output: tuple[float | None, str],
    mark: ProgressMark | None,
    lost: AbstractSet[str],
    *,
    running: bool,
) -> RankStatus:
    when, host = output
    if worker is None:  # nobody has written down that it was started, but it has files
        return RankStatus(rank, host, None, "", 0, RankState.UNKNOWN, None, when, mark)
    state = _state(worker, lost, running=running)
    return RankStatus(
        rank, worker.host, worker.local_rank, worker.device, worker.pid, state, worker.exitcode, when, mark
    )


def _state(worker: Worker, lost: AbstractSet[str], *, running: bool) -> RankState:
    if worker.exitcode is None and worker.ended is None and worker.host in lost:
        return RankState.LOST
    if worker.exitcode is None:
        return RankState.UP if running and worker.ended is None else RankState.UNKNOWN
    if worker.exitcode == 0:
        return RankState.DONE
    return RankState.STOPPED if worker.told else RankState.FAILED


def _failure(found: History) -> tuple[tuple[int, str] | None, str]:
    """Why the last attempt that failed did so: its number and a line, and the same in short."""
    ended = (one for one in reversed(found.attempts) if one.ending in ("restart", "failed") and not one.signal)
    failed = next(ended, None)
    if failed is None:
        return None, ""
    cause = root_cause.root_cause_of(found, failed)
    if cause is None:
        return (failed.number, failed.cause), failed.cause
    line = failure_messages.failure_headline(cause)
    return (failed.number, line), cause.groups[0].what if cause.groups else line


def _hosts(found: History, attempt: Attempt | None) -> tuple[str, ...]:
    named = found.last_run.plan.hosts if found.last_run is not None else ""
    try:
        planned = hostlist.expand(named) if named else ()
    except HostlistError:
        planned = ()
    return planned or (attempt.hosts if attempt is not None else tuple(node.host for node in found.nodes))


def _missing(found: History, attempt: Attempt | None) -> str:
    """The nodes that are awaited: whoever was, when an attempt began, has come."""
    begin = attempt.begin if attempt is not None else None
    named = _of(found.node_events, "missing", begin)
    return named[-1] if named else ""


def _of(events: tuple[NodeEvent, ...], kind: str, since: float | None) -> list[str]:
    return [event.hosts for event in events if event.kind == kind and event.time >= (since or 0.0)]


def _newest(outputs: Mapping[int, tuple[float | None, str]]) -> float | None:
    return max((time for time, _ in outputs.values() if time is not None), default=None)


# --- effects


def _outputs(found: History, folders: OutputFolders) -> dict[int, tuple[float | None, str]]:
    """When each rank of the last attempt wrote anything last, and on which node."""
    attempt = found.last_attempt
    if attempt is not None and attempt.workers:
        return {worker.rank: (_last_output(worker), worker.host) for worker in attempt.workers}
    numbers = folders.attempts()
    outputs: dict[int, tuple[float | None, str]] = {}
    for file in folders.files(numbers[-1:]):
        times = filter(None, (outputs.get(file.rank, (None, ""))[0], _changed(file.path)))
        outputs[file.rank] = max(times, default=None), file.host
    return outputs


def _last_output(worker: Worker) -> float | None:
    return max(filter(None, map(_changed, (worker.files.out, worker.files.err))), default=None)


def _changed(path: Path) -> float | None:
    """When a file was written to; None if it has nothing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime if status.st_size else None


def _alive(found: History) -> bool | None:
    """Whether an agent of the last run is there; None if they were on other machines, or are not known."""
    agents = found.last_run.agents if found.last_run is not None else ()
    here = socket.gethostname().partition(".")[0]
    if not agents or any(host not in (here, "localhost", "127.0.0.1") or not pid for host, pid in agents):
        return None
    return any(processes.alive(pid) for _, pid in agents)
