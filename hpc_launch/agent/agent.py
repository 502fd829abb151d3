"""The agent: torch's elastic agent, with workers, environments and rounds of our own.

It is torch's LocalElasticAgent with other steps (`torch_private.ElasticAgent`). With any other rendezvous backend
torch's loop runs it; with `slurm` the loop is the one here, in which all agents do the same at the same time. Here is
what is called and when; what is done then is in the parts that an agent is made of: `run_context`, `worker_pool`,
`round_supervisor`, `job_facts`, `recorder`, `log_messages`, and `workers.notice_signals`.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping

from torch.distributed import Store  # type: ignore[attr-defined]  # public, but its types do not export it
from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.multiprocessing import LogsSpecs

from hpc_launch import slow_storage
from hpc_launch.agent import failure_report, foreign_backends, hang_detector, log_messages
from hpc_launch.agent.failure_streak import FailureStreak
from hpc_launch.agent.job_facts import JobFacts
from hpc_launch.agent.job_monitor import JobMonitor
from hpc_launch.agent.output import Output
from hpc_launch.agent.peers import NullPeers, Peers
from hpc_launch.agent.recorder import Recorder
from hpc_launch.agent.round_supervisor import RoundSupervisor, judge_local_failure
from hpc_launch.agent.run_context import RunContext
from hpc_launch.agent.worker_pool import WorkerPool, environments
from hpc_launch.errors import HpcLaunchError, LogDirError
from hpc_launch.node.users import user_name
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.records import events, failure_messages, root_cause
from hpc_launch.records.directory import JobDirectory
from hpc_launch.rendezvous.handler import SlurmRendezvous, SpareReleased
from hpc_launch.rendezvous.messages import RoundEnd, RoundEnding, RoundPlan
from hpc_launch.settings import Origin
from hpc_launch.slurm import controller
from hpc_launch.slurm.environment import requeue_id, restart_count
from hpc_launch.slurm.job import Ending, JobRecord
from hpc_launch.torch_private import ElasticAgent, WorkerContext
from hpc_launch.workers.command_workers import Wakeup, wakeup
from hpc_launch.workers.factory import Factory
from hpc_launch.workers.grace_period import GracePeriod
from hpc_launch.workers.notice_signals import NoticeSignals
from hpc_launch.workers.signals import AgentSignals
from hpc_launch.working_directory import check_working_directory

# How long the other agents may take to write down what they know of a failure, once the workers here have ended.
_RECORDS_SECONDS = 5.0

# How long accounting may take to say who cancelled the job.
_ACCOUNTING_SECONDS = 3.0

# The longest sleep of an agent while its workers run. Other threads find out that a disk is full, and what Slurm says
# about the job; they do not wake the agent for that.
_IDLE_SECONDS = 2.0


class Agent(ElasticAgent):
    """One node's agent.

    Attributes:
        end: how the run ended, once it has.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        plan: Plan,
        environ: Mapping[str, str],
        logs_specs: LogsSpecs | None,
        *,
        factory: Factory,
        signals: AgentSignals,
        job_monitor: Callable[[Plan], JobMonitor | None],
    ) -> None:
        """Prepare it.

        Args:
            spec: torch's own.
            plan: what to do.
            environ: the environment that the workers' own is made from.
            logs_specs: where output goes, if somebody else decides.
            factory: makes the workers.
            signals: what has come to this process.
            job_monitor: begins to ask Slurm about the end of the job, where a plan makes that this agent's task.
        """
        super().__init__(spec, logs_specs, events=plan.settings.event_log_handler != "null")
        handler = spec.rdzv_handler
        self.end: RoundEnd | None = None
        self._own = handler if isinstance(handler, SlurmRendezvous) else None
        self._peers: Peers = self._own if self._own is not None else NullPeers()
        self._whole = plan.world
        self._environ = environ
        self._signals = signals
        self._context = RunContext(plan)
        self._recorder = Recorder(self._context, environ)
        self._slurm = JobFacts(self._peers, job_monitor, in_step=plan.world.origin is Origin.STEP)
        self._grace_period = GracePeriod(_grace(plan, environ), self._slurm.facts, signals)
        self._pool = WorkerPool(self._context, factory, self._grace_period, signals)
        self._notices = NoticeSignals(lambda: signals.notices, self._pool.heard, self._pool.send, signals.passed_on)
        self._output = Output(plan.settings, plan.world.host, logs_specs)
        self._told_of_disk = False
        self._begun_at = self._attempt_begun_at = time.monotonic()
        self._streak = FailureStreak()
        self._stop: RoundEnd | None = None
        self._stopped_at = 0.0
        self._job_ending = Ending.UNKNOWN
        if self._own is not None:
            self._own.observer = self._recorder.say
            self._own.spared, self._own.idle = self._record_as_spare, self._hear_notices

    # ---- what is asked when the run has ended

    @property
    def job(self) -> JobDirectory:
        """The job directory."""
        return self._context.job

    @property
    def begun(self) -> bool:
        """Whether there has been an attempt."""
        return self._context.number >= 0

    @property
    def attempts(self) -> tuple[int, int]:
        """The numbers of the first and of the last attempt of this run, in the job directory."""
        return self._context.first_label, self._context.label

    @property
    def seconds(self) -> float:
        """How long this run has lasted."""
        return time.monotonic() - self._begun_at

    @property
    def job_end(self) -> float | None:
        """When the job ends, in seconds since the epoch; None where that is not known, or it has no limit."""
        left = self._slurm.left
        return None if left is None else time.time() + left

    @property
    def noticed(self) -> bool:
        """Whether the workers have been told of a notice signal."""
        return self._notices.told

    @property
    def first(self) -> bool:
        """Whether this agent acts for all when the run has ended."""
        return self._own.leads if self._own is not None and self._own.elastic else self._context.leader

    def slurm_record(self) -> JobRecord | None:
        """What Slurm says of the job now that the run has ended; None where it says nothing."""
        return self._slurm.record(self._environ)

    def follow_slurm(self) -> None:
        """Begin to ask Slurm about the end of the job, if that is this agent's task by now."""
        self._slurm.follow(self._context.plan)

    def left(self, error: HpcLaunchError | None) -> None:
        """Write down how the run ended for this agent."""
        self._recorder.left(error.exit_status if error else 0, str(error) if error else "")

    def failure(self) -> RoundEnd:
        """The end of a run under another backend, whose agents know only their own failures."""
        failure = judge_local_failure(self._context, self._recorder)
        end = self._own_end(RoundEnding.FAILED, failure.status, failure.cause)
        log_messages.failure(self._context, root_cause.find_root_cause(self._recorder.summary(end.cause)), end.cause)
        return end

    def close(self) -> None:
        """End the factory, and whatever there still is of what it has started; show the rest of the output."""
        self._pool.close()
        before = self._signals.stop
        self._output.close(lambda: self._signals.hurry or self._signals.stop is not before)

    # ---- an attempt begins

    def rendezvous(self, group: WorkerGroup) -> None:
        """Meet the other agents, and write down the attempt that begins."""
        with self._signals.raising():
            if self._own is not None:
                super().rendezvous(group)
            else:
                with foreign_backends.lost_if_torch_fails(self._context.plan):
                    super().rendezvous(group)
        context, budget = self._context, group.spec.max_restarts
        if self._own is not None and self._own.elastic:
            context.move(self._own.world(self._whole))
            self.follow_slurm()
        if self._own is not None:
            context.job = JobDirectory(
                context.plan.log_root, self._own.plan.job
            )  # before a number says that it is known
            context.number, context.first_label = self._own.round_number, self._own.plan.first_attempt
            context.label = context.first_label + context.number
            self.remaining_restarts = max(0, budget - context.number)
        else:
            context.number = budget - self.remaining_restarts  # torch's agents count their own restarts
            if not self._recorder.opened:
                context.first_label = context.label
        self._write_down(group.workers[0].world_size)

    def _record_as_spare(self, plan: RoundPlan) -> None:
        """Begin to write down what is seen here, where there are no workers: a spare may lead."""
        if not self._recorder.opened:
            context = self._context
            context.job = JobDirectory(context.plan.log_root, plan.job)
            context.label = context.first_label = plan.first_attempt
            with contextlib.suppress(LogDirError):  # of no concern before it has workers
                self._recorder.open()

    def _write_down(self, world_size: int) -> None:
        """Write down the attempt that begins, and the run with the first."""
        if not self._recorder.opened:
            self._recorder.open()
            self._context.describe(self._environ)
            self._recorder.bound()
        self._context.make_directory()
        self._recorder.begin(world_size)

    def assign_worker_ranks(
        self, store: Store, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        """The ranks of the workers here, by the plan of the round: the others need not be asked."""
        if self._own is None:
            context = self._context
            free = context.label + 1
            if not self.begun:
                free = slow_storage.wait_for(context.job.next_attempt, context.place)
            context.label = foreign_backends.agreed_label(store, group_rank, free=free)
            return super().assign_worker_ranks(store, group_rank, group_world_size, spec)
        sizes = self._own.plan.workers
        first, whole = sum(sizes[:group_rank]), sum(sizes)
        return [Worker(local, first + local, first + local, whole, whole) for local in range(spec.local_world_size)]

    def start_workers(self, group: WorkerGroup) -> WorkerContext:
        """Start the workers of an attempt, and what follows their output."""
        check_working_directory()  # theirs too: without it no script is found, and another attempt would not help
        self._signals.handle()
        self._attempt_begun_at = time.monotonic()
        environs = environments(self._context, group, self._environ)
        self.watch(environs)
        logs = self._output.of_next_attempt(self._context.job)
        workers = self._pool.start(group.spec, environs, logs)
        self._output.start()
        self._notices.begin(self._pool.running)
        with self._recorder.together():
            for worker in group.workers:
                self._recorder.started(worker.local_rank, worker.global_rank, workers)
        return workers

    # ---- it goes on

    def monitor_workers(self, group: WorkerGroup) -> RunResult:
        """Look at the workers, and do what is due."""
        result = super().monitor_workers(group)
        self._pool.take_signals()
        self._recorder.look(self._pool.workers)
        self._pass_on_notices()
        self._mind_the_disk()
        self._slurm.pass_on()
        return result

    def _pass_on_notices(self) -> None:
        """Tell the workers here, and the other agents, of notice signals."""
        for name, number in self._notices.turn(self._pool.running, self._peers.notices()).items():
            self._peers.tell_notice(name, number)
            self._slurm.ask_again()
        for delivery in self._notices.deliveries():
            facts = {"number": delivery.number, "told": delivery.told, "waiting": delivery.waiting}
            self._recorder.say(events.NOTICE, signal=delivery.signum.name, **facts)
            if self._context.leader:
                log_messages.notice(delivery, self._slurm.left)

    def _hear_notices(self) -> None:
        """Tell the other agents of notice signals that come to this one, which has no workers."""
        for name, number in self._notices.turn([], self._peers.notices()).items():
            self._peers.tell_notice(name, number)
            self._slurm.ask_again()

    def _mind_the_disk(self) -> None:
        """Say once, on one node for all, that nothing can be written any more."""
        problem = self._output.problem
        if problem is not None and not self._told_of_disk:
            self._told_of_disk = True
            if self._peers.first("disk"):
                log_messages.full_disk(self._context, problem)

    # ---- it ends

    def end_workers(self, signum: signal.Signals) -> None:
        """End the workers of this attempt, and nothing else."""
        self._pool.stop(signum, then=self._tell_stop)
        self._output.finish()
        self._mind_the_disk()
        self._recorder.finish(self._pool.workers)

    def _tell_stop(self) -> None:
        """Say what stops the run, and how long that may take, when the workers have been told."""
        if self._stop is not None and self._context.leader:
            self._slurm.await_answer()
            self._job_ending = self._slurm.ending(self._stopped_at, restart_count(self._environ))
            if self._job_ending is not Ending.UNKNOWN:
                self._recorder.say(events.JOB_ENDING, ending=self._job_ending.value)
            log_messages.stop(self._context, self._stop, self._job_ending, self._grace_period.left)

    def tell_who_cancelled(self) -> None:
        """Say who cancelled the job, where accounting knows it; the workers have ended by now."""
        if self._job_ending not in (Ending.CANCELLED, Ending.CANCELLED_OR_OVER):
            return
        records = controller.ask_accounting(requeue_id(self._environ), _ACCOUNTING_SECONDS)
        user = user_name(next((record.cancelled_by for record in records), ""))
        if user:
            self._recorder.say(events.JOB_ENDING, ending=Ending.CANCELLED.value, user=user)
            log_messages.cancelled(user)

    def restart_workers(self, group: WorkerGroup) -> None:
        """Begin another attempt, as torch's own loop does it."""
        failed = root_cause.deciding_failure(self._recorder.workers)
        self._own_end(
            RoundEnding.RESTART, 1, failure_messages.failure_line(failed) if failed else "the group has changed"
        )
        super().restart_workers(group)

    def _own_end(self, how: RoundEnding, status: int, cause: str) -> RoundEnd:
        """The end of an attempt under another backend, as this agent alone sees it; it is written down."""
        world = self._context.world
        end = RoundEnd(how.value, world.agent_rank, world.host, status, cause)
        self._recorder.ended(end)
        return end

    # ---- all attempts

    def invoke_run(self) -> RunResult:
        """Go through all attempts: by torch's loop, or by that of the `slurm` rendezvous."""
        if self._own is None:
            result = super().invoke_run()
            if not result.is_failed():
                self._own_end(RoundEnding.DONE, 0, "")
            return result
        with wakeup() as alarm:
            while True:
                try:
                    self.initialize_workers(self.worker_group)
                except SpareReleased as released:
                    self.end = released.end
                    if released.end.ending != RoundEnding.DONE.value:
                        return RunResult(WorkerState.FAILED)
                    # torch wants to know of its workers, though there were none.
                    nothing = dict.fromkeys(worker.global_rank for worker in self.worker_group.workers)
                    return RunResult(WorkerState.SUCCEEDED, return_values=nothing)
                self._own.report_begun()
                self._recorder.clock(self._own.clock())
                end, result = self._watch(self._own, alarm).follow()
                self._end_round(self._own, end)
                if end.ending != RoundEnding.RESTART.value:
                    self.end = end
                    well = end.ending == RoundEnding.DONE.value
                    return result if well else RunResult(WorkerState.FAILED, failures=result.failures)

    def _watch(self, handler: SlurmRendezvous, alarm: Wakeup) -> RoundSupervisor:
        """What follows the round that has begun."""
        group = self.worker_group
        # torch's loop polls so often; here the end of a worker, signals and messages end a wait.
        interval = max(group.spec.monitor_interval, _IDLE_SECONDS)

        def monitor() -> RunResult:
            result = self.monitor_workers(group)
            group.state = result.state
            return result

        return RoundSupervisor(
            context=self._context,
            handler=handler,
            signals=self._signals,
            recorder=self._recorder,
            hang=hang_detector.watch(self._context, {worker.global_rank: worker.id for worker in group.workers}),
            monitor=monitor,
            wait=lambda seconds: alarm.wait(
                min(seconds, interval, self._notices.pause, handler.pause), self._pool.factory, handler.descriptors
            ),
        )

    def _end_round(self, handler: SlurmRendezvous, end: RoundEnd) -> None:
        """End the workers here, because the round has ended for all, and say why."""
        self._recorder.ended(end)
        self._grace_period.stopped = bool(end.signal)
        if end.signal:
            self._stop, self._stopped_at = end, time.monotonic()
            self._slurm.ask_again()
        # Who waits for a worker that is gone would not hear of anything less than SIGKILL.
        self.shutdown(signal.Signals[end.signal or ("SIGKILL" if end.lost else "SIGTERM")])
        if end.signal or not self._context.leader:
            return
        if end.ending == RoundEnding.RESTART.value:
            in_a_row = self._streak.add(end.cause, time.monotonic() - self._attempt_begun_at)
            # torch counts them down when it restarts workers; here that is done when the next round begins.
            log_messages.restart(self._context, end, in_a_row, max(0, self.remaining_restarts - 1))
        elif end.ending == RoundEnding.FAILED.value:
            hosts = Counter(handler.hosts)
            found, bad = failure_report.await_root_cause(
                self._context.job, self._context.label, hosts, _RECORDS_SECONDS
            )
            log_messages.failure(self._context, found, end.cause)
            log_messages.advice(bad)


def _grace(plan: Plan, environ: Mapping[str, str]) -> float | None:
    """Seconds that workers have to end, if somebody has said so."""
    if plan.settings.shutdown_timeout is not None:
        return plan.settings.shutdown_timeout
    try:
        seconds = float(environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
