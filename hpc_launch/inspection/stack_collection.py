"""`hpc-launch stacks`: where every rank of a running job is. Nothing is sent to processes that would die of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_launch import codec, held_signals, hostlist, secret_variables
from hpc_launch.errors import ContextError, Interrupted, LogDirError
from hpc_launch.inspection import stack_probe
from hpc_launch.inspection.job_search import slurm_step
from hpc_launch.inspection.stacks_view import JobStacks
from hpc_launch.node.stack_dumps import WAYS
from hpc_launch.probes.probe_session import ProbeSession, python_line
from hpc_launch.records import history, stack_files
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.history_model import Attempt, Worker
from hpc_launch.records.stack_traces import ProcessStacks
from hpc_launch.slurm import controller, steps
from hpc_launch.slurm.job import JobRecord
from hpc_launch.slurm.steps import StepRequest

# The ways to take stacks, by the word for them.
BY = {"auto": WAYS, **{way: (way,) for way in WAYS}}

# Seconds for each question to the controller.
_PATIENCE = 5.0

# Seconds for which the last nodes are waited for after that, at least: the stacks come through one srun.
_MORE = 10.0

# So often a step is started anew without the nodes on which Slurm could not start it.
_STARTS = 3

# srun's input goes to the probes, each of its lines says whose it is, and a node that dies does not end the others.
# They need no GPU, however the job has asked for its own.
_OF_PROBES = ("--input=all", "--label", "--no-kill", "--gres=none")


def collect_stacks(
    directory: JobDirectory | Path,
    *,
    environ: Mapping[str, str] | None = None,
    ways: Sequence[str] = WAYS,
    patience: float = 30.0,
    write: bool = True,
) -> JobStacks:
    """The stacks of all ranks of a running job, from wherever this is.

    Under Slurm a step that shares the nodes of the job is started, with one process on each; elsewhere this machine is
    looked at. What is seen is written into the job directory: `stacks/<when>/<host>/rank_<r>.txt`.

    Args:
        directory: the job directory.
        environ: the environment; None for this process's own.
        ways: `py-spy`, `signal`: the ways to take stacks, in the order in which they are tried.
        patience: seconds that each node has.
        write: write it into the job directory.

    Raises:
        ContextError: when nothing of the job runs, or Slurm does not have it any more.
        Interrupted: when a signal ended it.
    """
    job = directory if isinstance(directory, JobDirectory) else JobDirectory(directory.parent, directory.name)
    now = time.time()
    attempt = _running(job)
    workers = tuple(worker for worker in attempt.workers if worker.ended is None)
    request = _Request(job, attempt.number, workers, tuple(ways), patience, os.environ if environ is None else environ)
    seen, notes = _seen(request)
    found = JobStacks(
        job.job, attempt.number, now, tuple(sorted(seen, key=lambda one: (one.rank, one.parent, one.pid)))
    )
    found = dataclasses.replace(found, notes=notes)
    return _written(found, job) if write else found


@dataclass(frozen=True)
class _Request:
    """What is to be looked at."""

    job: JobDirectory
    attempt: int
    workers: tuple[Worker, ...]
    ways: tuple[str, ...]
    patience: float
    environ: Mapping[str, str]

    @property
    def hosts(self) -> tuple[str, ...]:
        """The nodes of the workers, in the order of the ranks."""
        return tuple(dict.fromkeys(worker.host for worker in self.workers))

    def on(self, host: str) -> dict[int, int]:
        """The workers of a node: process ids by rank."""
        return {worker.rank: worker.pid for worker in self.workers if worker.host == host}

    def unseen(self, hosts: Mapping[str, str]) -> tuple[ProcessStacks, ...]:
        """What is said of the ranks of nodes, given the reasons."""
        return tuple(ProcessStacks(rank, host, why=why) for host, why in hosts.items() for rank in self.on(host))


def _running(job: JobDirectory) -> Attempt:
    """The attempt that runs, as far as the agents have written it down."""
    told = history.read_history(job.path)
    attempts = [attempt for attempt in told.attempts if attempt.workers]
    if not attempts:
        more = f": {told.unreadable[0]}" if told.unreadable else ""
        raise ContextError(f"nothing in {job.path} says that workers have started{more}; see 'hpc-launch status'")
    last = attempts[-1]
    if last.ending or all(worker.ended is not None for worker in last.workers):
        why = f" ({last.cause})" if last.cause else ""
        before = job.path / "stacks"
        seen = f"what was seen before is in {before}" if before.is_dir() else "see 'hpc-launch report'"
        raise ContextError(f"no rank of {job.job} runs: attempt {last.number} has ended{why}; {seen}")
    return last


def _seen(request: _Request) -> tuple[tuple[ProcessStacks, ...], tuple[str, ...]]:
    step = slurm_step(request.job)
    if step is None or not shutil.which("srun"):
        why = "this is no job of Slurm's" if step is None else "there is no srun here"
        return _here(request, why), ()
    record = controller.ask_job(step.job, _PATIENCE)
    if record is None:
        return _here(request, "Slurm knows no such job, or does not answer"), ()
    if record.state != "RUNNING":
        raise ContextError(f"no rank of {request.job.job} runs: job {step.job} is {record.state}")
    return _by_step(request, record)


def _here(request: _Request, why: str) -> tuple[ProcessStacks, ...]:
    """Look at this machine only: at all ranks where there is one host, else at those of the host that this is."""
    own = socket.gethostname()
    mine = [host for host in request.hosts if host.partition(".")[0] == own.partition(".")[0]]
    here = request.hosts if len(request.hosts) == 1 else mine
    seen = [
        one
        for host in here
        for one in stack_probe.dump_worker_stacks(
            request.job.job,
            request.attempt,
            host,
            request.on(host),
            ways=request.ways,
            patience=request.patience,
        )
    ]
    there = dict.fromkeys(request.hosts, f"not on this node, and {why}: call hpc-launch stacks there")
    return (*seen, *request.unseen({host: reason for host, reason in there.items() if host not in here}))


def _by_step(request: _Request, record: JobRecord) -> tuple[tuple[ProcessStacks, ...], tuple[str, ...]]:
    """Look at all nodes, by a step of probes."""
    nodes = set(hostlist.expand(record.nodes))
    reasons = {host: "Slurm has taken the node out of the job" for host in request.hosts if host not in nodes}
    left = tuple(host for host in request.hosts if host in nodes)
    notes: list[str] = []
    for _ in range(_STARTS):
        if not left:
            break
        asked = StepRequest(record.job_id, left, overlap=True, name="hpc-launch-stacks")
        probe = held_signals.holding(python_line("hpc_launch.inspection.stack_probe:StackTasks"), on_this_host=False)
        line = steps.srun_line(asked, [*_OF_PROBES, *probe])
        environ = secret_variables.without_secrets(steps.srun_environment(request.environ, record.job_id))
        session = ProbeSession(line, environ, left, request.patience)
        with _ended(session):
            if session.begin():
                answers = session.ask(
                    "stacks",
                    least=request.patience + _MORE,
                    job=request.job.job,
                    attempt=request.attempt,
                    workers={host: [*request.on(host).items()] for host in left},
                    ways=request.ways,
                    patience=request.patience,
                )
                reasons |= session.lost | answers.failed
                reasons |= {host: f"no answer in time ({doing})" for host, doing in session.silent.items()}
                seen = [codec.build(ProcessStacks, one) for given in answers.given.values() for one in given]
                reasons |= {host: "no answer" for host in left if host not in answers.given and host not in reasons}
                return (*seen, *request.unseen(reasons)), tuple(notes)
        # Where srun has given up at once, the others have not begun, and are silent through no fault of their own.
        silent = {host: f"no answer in time ({doing})" for host, doing in session.silent.items()}
        reasons |= session.lost or silent
        rest = tuple(host for host in left if host not in reasons)
        if session.complaint:
            notes.append(session.complaint)
        if rest == left:
            reasons |= dict.fromkeys(left, session.complaint or "srun says nothing")
        left = tuple(host for host in rest if host not in reasons)
    return request.unseen(reasons), tuple(notes)


@contextlib.contextmanager
def _ended(session: ProbeSession) -> Iterator[None]:
    """End the probes, whatever happens; signals end them, and not only this process."""

    def stop(number: int, _: object) -> None:
        raise Interrupted(number, signal.Signals(number).name)

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ValueError):  # not in the main thread: a notebook's
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                stack.callback(signal.signal, number, signal.signal(number, stop))
        stack.callback(session.end)
        yield


def _written(found: JobStacks, job: JobDirectory) -> JobStacks:
    """Write it down; where that is not possible, it is said."""
    try:
        name = stack_files.reserve_directory(job, found.time)
        stack_files.write_ranks(job, name, found.seen)
        stack_files.write_all(job, name, found.attempt, found.time, found.seen)
    except LogDirError as error:
        return dataclasses.replace(found, notes=(*found.notes, str(error)))
    return dataclasses.replace(found, path=job.stacks(name))
