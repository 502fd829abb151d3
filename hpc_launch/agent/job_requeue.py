"""Have Slurm run the job again: one agent asks, once, when a run has ended for a reason that was asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from hpc_launch.errors import HpcLaunchError, RendezvousError, RoundRefused, WorkerError
from hpc_launch.plan import requeue
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.plan.requeue import Policy, Progress
from hpc_launch.records import directory, requeue_ledger
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.progress_curve import last_words
from hpc_launch.records.requeue_ledger import Ledger, LedgerEntry, Reason
from hpc_launch.slurm import controller
from hpc_launch.slurm.environment import requeue_id, restart_count
from hpc_launch.slurm.job import Ending, JobRecord, ending_of

# A job is settled early in a thread while its workers end, and in the agent's own when they have ended.
_ONE_AT_A_TIME = threading.Lock()

_SLURM_DOES_IT = "Slurm itself has the job run again: not counted"


@dataclass(frozen=True)
class EndedRun:
    """A run that has ended, as far as this matters here.

    Attributes:
        error: what ended it; None when all workers ended well.
        noticed: the workers were told of a notice signal.
        record: what Slurm said of the job when it ended; None where it said nothing.
        job: the job directory.
        first_attempt: the first attempt of the run.
        attempt: the last.
    """

    error: HpcLaunchError | None
    noticed: bool
    record: JobRecord | None
    job: JobDirectory
    first_attempt: int
    attempt: int


def settle(plan: Plan, environ: Mapping[str, str], run: EndedRun) -> str:
    """Have the job requeued if that was asked for and is right. It waits for a thread that does so already.

    Returns:
        What was done, or why not, for a person to read; empty where nothing was asked for.
    """
    with _ONE_AT_A_TIME:
        return _settle(plan, environ, run)


def _settle(plan: Plan, environ: Mapping[str, str], run: EndedRun) -> str:
    settings = plan.settings
    policy = requeue.policy(settings.requeue, settings.max_requeues, settings.requeue_patience)
    job_id = requeue_id(environ)
    restarts = restart_count(environ)
    book = requeue_ledger.load_ledger(run.job)
    before = book.entries
    if not book.later and before and before[-1].restart_count == restarts and before[-1].attempt >= run.first_attempt:
        return _amend(policy, run, book)
    ending = ending_of(run.record, restarts)
    found = _reason(run, ending)
    if not policy.on or not job_id or found is None:
        return ""
    if book.later:
        return _SLURM_DOES_IT if ending is Ending.REQUEUED else _later(run.job, book.later)
    reason, cause = found
    if reason == "preempt" and run.noticed and reason not in policy.on:
        reason = "notice"
    progress = _progress(run, before[-1].step if before else None)
    decision = requeue.decide(policy, reason, cause, before, progress)
    entry = LedgerEntry(
        time=round(time.time(), 3),
        reason=reason,
        cause=cause,
        restart_count=restarts,
        attempt=run.attempt,
        step=progress.step,
        progressed=progress.made,
        counted=decision.counted and ending is not Ending.REQUEUED,
        by_slurm=ending is Ending.REQUEUED,
    )
    if ending is Ending.REQUEUED:
        requeue_ledger.append_entry(run.job, book, entry)
        return _SLURM_DOES_IT
    return _ask(run.job, job_id, book, entry) or decision.why if decision.requeue else decision.why


def settle_early(plan: Plan, environ: Mapping[str, str], run: EndedRun) -> None:
    """Settle it while the workers still end, where Slurm is about to kill: afterwards there may be no time left.

    Only where Slurm has ended the job already, so that the requeue takes none of the workers' time, and only if it is
    right without what they have yet to do.
    """
    ending = ending_of(run.record, restart_count(environ))
    over = run.record is not None and run.record.state == "COMPLETING"
    if ending is Ending.REQUEUED or (over and ending in (Ending.TIME_LIMIT, Ending.PREEMPTED)):
        settle(plan, environ, run)


def _later(job: JobDirectory, version: int) -> str:
    """Why nothing is done on the word of a ledger that is not understood: the requeues in it cannot be counted."""
    known = requeue_ledger.SCHEMA
    return f"not requeued: {job.ledger} is of a later hpc-launch (schema {version}, here {known}): go on with that"


def _amend(policy: Policy, run: EndedRun, book: Ledger) -> str:
    """Write down how far a run came that has been requeued early; returns what was done."""
    *before, entry = book.entries
    progress = _progress(run, before[-1].step if before else None)
    entry = dataclasses.replace(entry, step=progress.step, progressed=progress.made)
    requeue_ledger.amend_entry(run.job, book, entry)
    if entry.by_slurm:
        return _SLURM_DOES_IT
    decision = requeue.decide(policy, entry.reason, entry.cause, before, progress)
    return decision.why if decision.requeue else f"requeued: {entry.cause}"


def _ask(job: JobDirectory, job_id: str, book: Ledger, entry: LedgerEntry) -> str:
    """Ask Slurm, as the only agent of all runs of the job; returns why it does not do it."""
    claim = job.requeue_claim(job_id, entry.restart_count)
    if not directory.claim(claim):
        return "another run of the job has it requeued"
    refusal = controller.requeue(job_id)
    # A controller that is busy may do what it was asked for without an answer in time.
    if refusal and ending_of(controller.ask_job(job_id), entry.restart_count) is not Ending.REQUEUED:
        with contextlib.suppress(OSError):
            claim.unlink(missing_ok=True)  # so that this run can ask again when it has ended, or another one
        return f"not requeued: {refusal}"
    requeue_ledger.append_entry(job, book, entry)
    return ""


def _reason(run: EndedRun, ending: Ending) -> tuple[Reason, str] | None:
    """Why the run ended, if that can be a reason to run again: what Slurm says comes first."""
    by_slurm: dict[Ending, tuple[Reason, str] | None] = {
        Ending.TIME_LIMIT: ("timeout", "time limit"),
        Ending.PREEMPTED: ("preempt", "preemption"),
        Ending.REQUEUED: ("preempt", requeue_ledger.BY_SLURM),
        Ending.CANCELLED: None,
    }
    if ending in by_slurm:
        return by_slurm[ending]
    failed = isinstance(run.error, (WorkerError, RendezvousError)) and not isinstance(run.error, RoundRefused)
    if run.noticed and (run.error is None or failed):
        return (
            "notice",
            "the workers left after a notice signal" if run.error is None else f"notice signal, {run.error}",
        )
    return ("failure", str(run.error)) if failed else None


def _progress(run: EndedRun, begin: float | None) -> Progress:
    """What the workers have marked, the one that has come furthest for all."""
    marks = last_words(run.job)
    furthest = max(marks, key=lambda mark: -1.0 if mark.step is None else mark.step, default=None)
    return Progress(
        marked=any(mark.attempt >= run.first_attempt for mark in marks),
        begin=begin,
        step=None if furthest is None else furthest.step,
        total=None if furthest is None else furthest.total,
    )
