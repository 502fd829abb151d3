"""The recorder writes down what happens to this agent and its workers, in the node's events (`records.events`)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import hpc_launch
from hpc_launch import codec, slow_storage
from hpc_launch.agent import failure_evidence
from hpc_launch.agent.failure_evidence import KernelBaseline
from hpc_launch.agent.run_context import RunContext
from hpc_launch.backoff import Backoff
from hpc_launch.console import say
from hpc_launch.errors import LogDirError
from hpc_launch.node import processes
from hpc_launch.node.oom_kills import OomKillCounts
from hpc_launch.records import claims, directory, events
from hpc_launch.records.directory import JobDirectory, RankFiles
from hpc_launch.records.events import EventLog
from hpc_launch.records.history_model import Attempt, Failure, Usage, Worker
from hpc_launch.rendezvous.messages import RoundEnd
from hpc_launch.slow_storage import Background
from hpc_launch.slurm.environment import restart_count
from hpc_launch.workers.command_workers import CommandWorkers

# A sign of life is given after a minute, then ever less often: some five thousand of them in a month.
_BEAT_SECONDS, _LONGEST_BEAT_SECONDS = 60, 600

# What is said before it is known where to write; a leader that waits for hours says more.
_MOST_HELD = 100

# The end of the run waits so long for events that are not written yet.
_LAST_SECONDS = 10.0

# An event: its name, when it happened, and what else there is to say of it.
_Event = tuple[str, float, dict[str, Any]]


class Recorder:
    """One agent's records.

    What is said before the job directory is known is kept until then.
    """

    def __init__(self, context: RunContext, environ: Mapping[str, str]) -> None:
        self._context = context
        self._restarts = restart_count(environ)
        self._log: EventLog | None = None
        self._lock = threading.Lock()  # the rendezvous has a thread of its own
        self._held: list[_Event] = []
        self._writer: Background[_Event] = Background("records", self._write)
        self._begun = time.time()
        self._attempt: int | None = None
        self._workers: dict[int, Worker] = {}
        self._files: dict[int, RankFiles] = {}
        self._before = KernelBaseline(OomKillCounts(None, None))
        self._beat = Backoff(_BEAT_SECONDS, _LONGEST_BEAT_SECONDS, time.monotonic())
        self._waiting: set[int] = set()

    @property
    def opened(self) -> bool:
        """Whether it is known where to write."""
        return self._log is not None

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The workers of this attempt, as far as they are known, by local rank."""
        return tuple(worker for _, worker in sorted(self._workers.items()))

    def say(self, event: str, *, when: float | None = None, **facts: Any) -> None:
        """Have an event written down, or keep it until there is a place for it. Nobody waits for the file."""
        if self._attempt is not None:
            facts = {"attempt": self._attempt, **facts}
        said = event, time.time() if when is None else when, facts
        with self._lock:
            if self._log is not None:
                self._writer.put(said)
            elif len(self._held) < _MOST_HELD:
                self._held.append(said)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Write the events of a while in one go, at its end."""
        return self._writer.together()

    def settle(self, seconds: float) -> bool:
        """Wait until all is written, so long at most; returns whether it is."""
        return self._writer.settle(seconds)

    def open(self) -> None:
        """Begin to write, in the job directory.

        Raises:
            LogDirError: when that cannot be.
        """
        world = self._context.world
        job = self._context.job
        private = self._context.plan.settings.private_logs

        def open_log() -> EventLog:
            directory.make(job.path, private=private)
            return EventLog(job.events(world.host), world.agent_rank, job.path)

        log = slow_storage.wait_for(open_log, self._context.place)
        facts = {
            "host": world.host,
            "node_rank": world.node_rank,
            "agents": world.agents,
            "pid": os.getpid(),
            "run_id": self._context.plan.run_id,
            "first_attempt": self._context.first_label,
            "restart_count": self._restarts,
            "versions": {
                "hpc-launch": hpc_launch.__version__,
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "kernel": platform.release(),
            },
        }
        with self._lock:
            self._log, held, self._held = log, self._held, []
            for said in ((events.RUN, self._begun, facts), *held):
                self._writer.put(said)

    def _write(self, said: Sequence[_Event]) -> None:
        """Append events to the file, in the writer's thread. Their times are those at which they were said."""
        log = self._log
        assert log is not None  # noqa: S101 - nothing is handed over before
        with log.together():
            for event, when, facts in said:
                log.record(event, when=when, **facts)

    def bound(self) -> None:
        """Write down which CPUs the workers are given, where they are."""
        plan = self._context.plan
        if plan.shares:
            shares = [share.as_dict() for share in plan.shares]
            self.say(events.BINDING, why=plan.binding.reason, omp_num_threads=plan.omp_num_threads, shares=shares)

    def begin(self, world_size: int) -> None:
        """An attempt begins."""
        world = self._context.world
        self._attempt, self._workers, self._waiting = self._context.label, {}, set()
        self._before.close()
        self._before = KernelBaseline.now()
        self.say(events.ATTEMPT, host=world.host, world_size=world_size, agents=world.agents)

    def clock(self, measured: tuple[float, float] | None) -> None:
        """How far the clock is ahead of the leader's, and how wrong that can be."""
        if measured is not None:
            self.say(events.CLOCK, offset=round(measured[0], 6), error=round(measured[1], 6))

    def started(self, local_rank: int, rank: int, workers: CommandWorkers) -> None:
        """A worker has been started."""
        pid = workers.pids()[local_rank]
        paths = (workers.stdouts, workers.stderrs, workers.error_files)
        self._files[local_rank] = RankFiles(*(Path(files.get(local_rank, "")) for files in paths))
        world, now = self._context.world, time.time()
        place = world.local_agent if world.task_per_rank else local_rank
        device = self._device(place)
        self.say(events.WORKER_STARTED, rank=rank, local_rank=place, pid=pid, device=device)
        self._workers[local_rank] = Worker(
            rank=rank,
            host=world.host,
            agent=world.agent_rank,
            local_rank=place,
            device=device,
            pid=pid,
            started=now,
            ended=None,
            exitcode=None,
            told="",
            usage=None,
            failure=None,
            files=self._context.job.rank(self._context.label, world.host, rank),
        )

    def look(self, workers: CommandWorkers | None) -> None:
        """Write down which workers have ended since; from time to time, that this agent is there."""
        if workers is not None:
            with self.together():
                for local_rank, end in [*workers.endings.items()]:
                    user, system, max_rss = end.usage
                    usage = Usage(round(user, 3), round(system, 3), max_rss)
                    told = workers.told.get(local_rank)
                    self._ended(local_rank, end.status, end.time, told.name if told else "", usage)
        if self._beat.due(time.monotonic()):
            running = {worker.rank: worker.pid for worker in self.workers if worker.ended is None}
            waiting = {rank for rank, pid in running.items() if processes.hung_in(pid)}
            # Any process waits for a disk now and then; one that does so twice in a row, minutes apart, hangs.
            self.say(events.HEARTBEAT, running=len(running), waiting=sorted(waiting & self._waiting))
            self._waiting = waiting

    def finish(self, workers: CommandWorkers | None) -> None:
        """The workers of this attempt are gone: write down what was not yet."""
        self.look(workers)
        for worker in self.workers:
            if worker.ended is None and workers is not None and worker.pid in workers.hung:
                failure = Failure(hung=processes.hung_in(worker.pid) or "the kernel")
                facts: dict[str, Any] = {"exitcode": None, "told": "SIGKILL", "failure": codec.sparse(failure)}
                self.say(events.WORKER_ENDED, rank=worker.rank, local_rank=worker.local_rank, **facts)

    def ended(self, end: RoundEnd) -> None:
        """The attempt has ended, for all agents or for this one."""
        self.say(
            events.ROUND_ENDED,
            ending=end.ending,
            by=end.host,
            status=end.status,
            cause=end.cause,
            signal=end.signal,
            **({"hang": True} if end.hang else {}),
        )

    def summary(self, cause: str) -> Attempt:
        """What is known here of this attempt, which has failed."""
        workers, host = self.workers, self._context.host
        return Attempt(
            number=self._attempt or 0,
            run=0,
            world_size=len(workers),
            hosts=(host,),
            begin=None,
            end=None,
            ending="failed",
            status=1,
            cause=cause,
            signal="",
            by=host,
            workers=workers,
            decided=time.time(),
        )

    def left(self, status: int, cause: str) -> None:
        """This agent leaves; where the directory is known, this is written down even if the agents had never met."""
        if self._log is None and not self._open_unmet():
            return
        self.say(events.RUN_ENDED, status=status, cause=cause)
        if not self.settle(_LAST_SECONDS):
            say(f"{self._context.host}: the last records are missing: {self._context.place} does not answer")

    def _open_unmet(self) -> bool:
        """Begin to write although no other agent was met, unless the directory is another run's."""
        context, plan = self._context, self._context.plan
        lineage, program = plan.identity.lineage, plan.identity.program

        def find() -> tuple[JobDirectory, int]:
            name = claims.find_run(plan.log_root, plan.job_name, program, lineage.incarnation, place=lineage.place)
            job = JobDirectory(plan.log_root, name)
            return job, job.next_attempt() if name else 0

        if plan.job_name:
            try:
                job, first_label = slow_storage.wait_for(find, context.place)
                if job.job:
                    context.job, context.label = job, first_label
                    context.first_label = first_label
                    self.open()
            except LogDirError:
                return False
        return self._log is not None

    def _ended(self, local_rank: int, exitcode: int, when: float, told: str, usage: Usage) -> None:
        worker = self._workers.get(local_rank)
        if worker is None or worker.ended is not None:
            return
        facts: dict[str, Any] = {"exitcode": exitcode, "told": told, "usage": codec.plain(usage)}
        failure = Failure()
        if exitcode != 0:
            files, before = self._files[local_rank], self._before
            failure = slow_storage.wait_for(
                lambda: failure_evidence.gather_evidence(files, worker.pid, exitcode, before, ended=when),
                self._context.place,
            )
            if told and failure.exception is None:
                failure = Failure()  # it was well
            elif Path(failure.log).parent == worker.files.err.parent:
                failure = dataclasses.replace(failure, log=Path(failure.log).name)  # the directory can be moved
        self._workers[local_rank] = dataclasses.replace(
            worker,
            ended=when,
            exitcode=exitcode,
            told=told,
            usage=usage,
            failure=failure if failure != Failure() else None,
        )
        if failure != Failure():
            facts["failure"] = codec.sparse(failure)
        self.say(events.WORKER_ENDED, rank=worker.rank, local_rank=worker.local_rank, when=when, **facts)

    def _device(self, local_rank: int) -> str:
        """What a worker uses, for people."""
        tokens = self._context.plan.devices.tokens
        if not tokens:
            return ""
        token = tokens[local_rank % len(tokens)]
        return f"GPU {token}" if token.isdigit() else token
