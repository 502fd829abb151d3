"""Have Slurm run the job again: one agent asks, once, when a run has ended for a reason that was asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from hpc_launch.console import say
from hpc_launch.errors import HpcLaunchError, RendezvousError, RoundRefused, WorkerError
from hpc_launch.plan import requeue
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.plan.requeue import Policy, Progress
from hpc_launch.records import directory, requeue_ledger
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.progress_curve import last_words
from hpc_launch.records.requeue_ledger import Ledger, LedgerEntry, Reason
from hpc_launch.slurm import controller
from hpc_launch.slurm.controller import FailedRequest
from hpc_launch.slurm.environment import requeue_id, restart_count
from hpc_launch.slurm.job import Ending, JobRecord, ending_of
from hpc_launch.text import time_of_day

# A job is settled early in a thread while its workers end, and in the agent's own when they have ended.
_ONE_AT_A_TIME = threading.Lock()

# Seconds between two questions to a controller that does not answer, at first and later.
_FIRST_SECONDS, _SELDOM_SECONDS = 1.0, 10.0

# It is asked until the job ends, so long at most, and so long at least where Slurm is about to kill.
_LONGEST_SECONDS, _LEAST_SECONDS = 3600.0, 60.0

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
        seconds: how long it has lasted.
        end: when Slurm ends the job, in seconds since the epoch; None where that is not known, or never.
    """

    error: HpcLaunchError | None
    noticed: bool
    record: JobRecord | None
    job: JobDirectory
    first_attempt: int
    attempt: int
    seconds: float = math.inf
    end: float | None = None


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
        refused = _ask_on(run, job_id, before[-1]) if before[-1].unknown else ""
        return refused or _amend(policy, run, requeue_ledger.load_ledger(run.job))
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
    decision = requeue.decide(policy, reason, cause, before, progress, seconds=run.seconds)
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
    return _ask(run, job_id, book, entry) or decision.why if decision.requeue else decision.why


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


def _ask(run: EndedRun, job_id: str, book: Ledger, entry: LedgerEntry) -> str:
    """Ask Slurm, as the only agent of all runs of the job. Returns why Slurm refuses, or that the outcome is unknown.

    The ledger comes first: Slurm may end this process as soon as it has been asked.
    """
    if not directory.claim(run.job.requeue_claim(job_id, entry.restart_count)):
        return "another run of the job has it requeued"
    entry = dataclasses.replace(entry, unknown=True)
    requeue_ledger.append_entry(run.job, book, entry)
    return _ask_on(run, job_id, entry)


def _ask_on(run: EndedRun, job_id: str, entry: LedgerEntry) -> str:
    """Ask Slurm for a requeue that the ledger ends with, until it answers; returns as `_ask`."""
    refusal = _until_answered(run, job_id, entry.restart_count)
    if refusal is not None and not refusal.answered:
        return (
            f"unknown whether the job is requeued: Slurm's controller does not answer ({refusal.words}); "
            f"when it does, see 'squeue --job {job_id}', and 'scontrol requeue {job_id}' if it has ended"
        )
    book = requeue_ledger.load_ledger(run.job)
    written = book.entries[-1:] == (entry,)  # on a full disk it is not
    if refusal is None:
        if written:
            requeue_ledger.amend_entry(run.job, book, dataclasses.replace(entry, unknown=False))
        return ""
    if written:
        requeue_ledger.retract_entry(run.job, book)
    with contextlib.suppress(OSError):
        # So that this run can ask again when it has ended, or another one.
        run.job.requeue_claim(job_id, entry.restart_count).unlink(missing_ok=True)
    return f"not requeued: {refusal.words}"


def _until_answered(run: EndedRun, job_id: str, restarts: int) -> FailedRequest | None:
    """Ask until there is an answer, as long as the job lasts: it cannot end without the controller either.

    What was asked for may be done although nobody has answered, and a second requeue would end the next run: so Slurm
    is asked how the job stands before it is asked again. Whoever cancels the job meanwhile means it.
    """
    refusal = controller.requeue(job_id)
    if refusal is None or refusal.answered:
        return refusal
    until = _asked_until(run.end, time.time())
    say(f"Slurm's controller does not answer: it is asked for the requeue again until {time_of_day(until)}")
    pause = _FIRST_SECONDS
    while time.time() < until:
        record = controller.ask_job(job_id)
        ending = ending_of(record, restarts)
        if ending is Ending.REQUEUED:
            return None
        if ending.is_for_good:
            return FailedRequest("the job has been cancelled, or is over")
        if record is not None:
            refusal = controller.requeue(job_id)
            if refusal is None or refusal.answered:
                return refusal
        time.sleep(pause)
        pause = min(2 * pause, _SELDOM_SECONDS)
    return refusal


def _asked_until(end: float | None, now: float) -> float:
    """How long an answer is worth waiting for, of a job that ends at that time."""
    longest = now + _LONGEST_SECONDS
    return longest if end is None else min(max(end, now + _LEAST_SECONDS), longest)


def _reason(run: EndedRun, ending: Ending) -> tuple[Reason, str] | None:
    """Why the run ended, if that can be a reason to run again: what Slurm says comes first."""
    if ending.is_for_good:
        return None
    by_slurm: dict[Ending, tuple[Reason, str]] = {
        Ending.TIME_LIMIT: ("timeout", "time limit"),
        Ending.PREEMPTED: ("preempt", "preemption"),
        Ending.REQUEUED: ("preempt", requeue_ledger.BY_SLURM),
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
