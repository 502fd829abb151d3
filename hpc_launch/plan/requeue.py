"""Decide whether a job runs again, by what its ledger (`records.requeue_ledger`) says of earlier times. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from hpc_launch.records.failure_messages import failure_kind
from hpc_launch.records.requeue_ledger import REASONS, LedgerEntry, Reason

# Preemptions are nobody's fault, so they may be as many as there are.
FREE: frozenset[Reason] = frozenset({"preempt"})


# Seconds. A run or an attempt that fails so soon has not come far, and its failure will come again.
AT_ONCE_SECONDS = 60.0


@dataclass(frozen=True)
class Policy:
    """When a job is to run again.

    Attributes:
        on: the reasons for which it does; none at all is `--requeue never`.
        max_requeues: how many requeues there may be, those for a free reason apart.
        patience: how many runs in a row may make no progress; 0 is any number.
    """

    on: frozenset[Reason]
    max_requeues: int
    patience: int


def policy(words: Iterable[str], max_requeues: int, patience: int) -> Policy:
    """Make a policy of the words of `--requeue`: `on-notice`, `on-preempt`, ...; others (`never`) mean nothing."""
    on = {reason for reason in REASONS if f"on-{reason}" in words}
    return Policy(frozenset(on), max_requeues, patience)


@dataclass(frozen=True)
class Progress:
    """What the training has said by `runtime.mark_progress()`.

    Attributes:
        marked: whether it said anything in this run.
        begin: the step that it had reached before this run; None where it had said none.
        step: the step that it has reached; None where it said none.
        total: the steps that there are in all; None where it did not say.
    """

    marked: bool = False
    begin: float | None = None
    step: float | None = None
    total: float | None = None

    @property
    def made(self) -> bool:
        """Whether this run got further; without numbers, whether it marked anything."""
        return self.marked and (self.step is None or self.begin is None or self.step > self.begin)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.step is not None and self.total is not None and self.step >= self.total


class Refusal(Enum):
    """Why a job does not run again."""

    NOT_ASKED = "nobody asked for it"
    COMPLETE = "the training is complete"
    USED_UP = "it has been requeued often enough"
    NO_PROGRESS = "its runs make no progress"
    SAME_FAILURE = "it fails in the same way, at once"


@dataclass(frozen=True)
class Decision:
    """Whether the job runs again.

    Attributes:
        why: the line that a person reads.
        counted: whether a requeue counts against `--max-requeues`.
        refusal: why it does not run again; None where it does.
    """

    why: str
    counted: bool = False
    refusal: Refusal | None = None

    @property
    def requeue(self) -> bool:
        """Whether it is to be requeued."""
        return self.refusal is None


def decide(
    policy: Policy,
    reason: Reason,
    cause: str,
    ledger: Sequence[LedgerEntry],
    progress: Progress,
    *,
    seconds: float = math.inf,
) -> Decision:
    """Decide whether the job runs again.

    Args:
        policy: what was asked for.
        reason: why the run ended.
        cause: the same in words, for instance `time limit`.
        ledger: the requeues so far, in order.
        progress: what this run has got done.
        seconds: how long this run has lasted.
    """
    counted = reason not in FREE
    used = sum(entry.counted for entry in ledger)
    if reason not in policy.on:
        return _refused(Refusal.NOT_ASKED, f"--requeue does not say on-{reason}")
    if reason == "notice" and progress.complete:
        return _refused(Refusal.COMPLETE, f"the training is complete (step {_place(progress)})")
    if counted and used >= policy.max_requeues:
        return _refused(Refusal.USED_UP, f"--max-requeues {policy.max_requeues} is used up")
    idle = _runs_without_progress(ledger, progress)
    if counted and 0 < policy.patience <= idle and _speaks(ledger, progress):
        runs = "this run" if idle == 1 else f"{idle} runs in a row"
        return _refused(Refusal.NO_PROGRESS, f"{runs} made no progress (no new runtime.mark_progress)")
    same = _runs_with_failure(ledger, cause) if reason == "failure" and seconds < AT_ONCE_SECONDS else 0
    if 0 < policy.patience <= same and same > 1 and not progress.made:
        return _refused(
            Refusal.SAME_FAILURE,
            f"the same failure {same} times in a row, now within {seconds:.0f} s (--requeue-patience): {cause}",
        )
    number = f"{used + 1} of {policy.max_requeues}" if counted else "not counted"
    return Decision(f"requeued ({number}): {cause}", counted)


def _place(progress: Progress) -> str:
    """Where the training is; 15 digits, so that no step that is a whole number is written as 1e+06."""
    return " of ".join(f"{number:.15g}" for number in (progress.step, progress.total) if number is not None)


def _refused(refusal: Refusal, why: str) -> Decision:
    return Decision(f"not requeued: {why}", refusal=refusal)


def _speaks(ledger: Sequence[LedgerEntry], progress: Progress) -> bool:
    """Whether the training has ever marked progress: one that never does cannot be judged by it."""
    spoke = progress.marked or progress.step is not None
    return spoke or any(entry.progressed or entry.step is not None for entry in ledger)


def _runs_with_failure(ledger: Sequence[LedgerEntry], cause: str) -> int:
    """How many runs in a row, this one included, ended by a failure of this kind, without any progress meanwhile."""
    count = 1
    for entry in reversed(ledger):
        if entry.progressed or entry.reason != "failure" or failure_kind(entry.cause) != failure_kind(cause):
            break
        count += 1
    return count


def _runs_without_progress(ledger: Sequence[LedgerEntry], progress: Progress) -> int:
    """How many runs in a row, this one included, made none. A preempted run had no fair chance and is left out."""
    if progress.made:
        return 0
    idle = 1
    for entry in reversed(ledger):
        if entry.progressed:
            break
        idle += entry.counted
    return idle
