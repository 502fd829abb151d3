"""Whether a job runs again, and what its ledger remembers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from hpc_launch.plan import requeue
from hpc_launch.plan.requeue import Policy, Progress, Refusal, decide
from hpc_launch.records import requeue_ledger
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.requeue_ledger import REASONS, Ledger, LedgerEntry, Reason
from hpc_launch.settings import REQUEUE_REASONS
from tests.support import mentions

ALL = Policy(on=frozenset(REASONS), max_requeues=4, patience=3)
SILENT = Progress()
STUCK = Progress(marked=True, begin=100, step=100)
FURTHER = Progress(marked=True, begin=100, step=150)


def entry(reason: Reason = "timeout", *, progressed: bool = True, step: float | None = 100) -> LedgerEntry:
    """Return a line of the ledger."""
    counted = reason not in requeue.FREE
    return LedgerEntry(1.5, reason, "time limit", 0, 0, step, progressed=progressed, counted=counted)


IDLE = entry(progressed=False)


@pytest.mark.parametrize("reason", REASONS)
def test_a_reason_that_was_asked_for(reason: Reason) -> None:
    """The job runs again for the reasons of the policy, and only a preemption is free."""
    free = reason == "preempt"
    found = decide(ALL, reason, "time limit", (), FURTHER)

    assert (found.requeue, found.counted) == (True, not free)
    assert mentions(found.why, "time limit" if free else "1 4 time limit")


@pytest.mark.parametrize("reason", REASONS)
def test_a_reason_that_was_not_asked_for(reason: Reason) -> None:
    """Every reason has to be asked for by itself."""
    others = dataclasses.replace(ALL, on=frozenset(REASONS) - {reason})

    found = decide(others, reason, "time limit", (), FURTHER)

    assert (found.requeue, found.refusal) == (False, Refusal.NOT_ASKED)
    assert mentions(found.why, f"--requeue on-{reason}")


def test_the_words_of_the_option() -> None:
    """`--requeue` names the reasons; `never` names none."""
    assert Policy(frozenset({"notice", "preempt"}), 7, 2) == requeue.policy(("on-preempt", "on-notice"), 7, 2)
    assert Policy(frozenset(), 7, 2) == requeue.policy(("never",), 7, 2)
    assert Policy(frozenset(), 7, 2) == requeue.policy((), 7, 2)


def test_the_option_and_the_policy_know_the_same_reasons() -> None:
    """Every word that `--requeue` takes is a reason, and every reason has a word."""
    assert requeue.policy(REQUEUE_REASONS, 1, 1).on == frozenset(REASONS)


def test_the_ledger_is_the_jobs_and_not_an_attempts() -> None:
    """All runs of a job write in the same file."""
    assert JobDirectory(Path("logs"), "12").ledger == Path("logs/12/requeues.jsonl")


def test_the_budget() -> None:
    """Counted requeues are as many as `--max-requeues` says."""
    used = (entry("notice"), entry("failure"), entry("timeout"))

    last = decide(ALL, "timeout", "time limit", used, FURTHER)
    assert (last.requeue, last.counted, mentions(last.why, "4 time limit")) == (True, True, True)
    refused = decide(ALL, "timeout", "time limit", (*used, entry()), FURTHER)
    assert (refused.requeue, refused.refusal) == (False, Refusal.USED_UP)
    assert mentions(refused.why, "--max-requeues 4")


def test_preemptions_are_free() -> None:
    """They use up nothing, and are possible when all is used up."""
    preempted = (entry("preempt"),) * 50

    found = decide(ALL, "failure", "rank 3 failed", preempted, FURTHER)
    assert (found.requeue, mentions(found.why, "1 4 rank 3 failed")) == (True, True)
    assert decide(ALL, "preempt", "preemption", (entry(),) * 4, FURTHER).requeue


def test_no_budget_at_all() -> None:
    """`--max-requeues 0` leaves the free ones."""
    none = dataclasses.replace(ALL, max_requeues=0)

    assert not decide(none, "timeout", "time limit", (), FURTHER).requeue
    assert decide(none, "preempt", "preemption", (), FURTHER).requeue


@pytest.mark.parametrize(("ledger", "progress", "goes_on"), [
    ((IDLE, IDLE), STUCK, False),
    ((IDLE, IDLE), SILENT, False),
    ((IDLE,), STUCK, True),
    ((IDLE, IDLE), FURTHER, True),
    ((IDLE, IDLE, entry()), STUCK, True),
    ((IDLE, entry(), IDLE), STUCK, True),
    ((entry(), IDLE, IDLE), STUCK, False),
    ((IDLE, IDLE, entry("preempt")), STUCK, True),
    ((IDLE, entry("preempt", progressed=False), IDLE), STUCK, False),
    ((IDLE, entry("preempt", progressed=False)), STUCK, True),
])  # fmt: skip
def test_no_progress_for_some_runs_in_a_row(
    ledger: tuple[LedgerEntry, ...], progress: Progress, *, goes_on: bool
) -> None:
    """Three idle runs in a row end it; one with progress begins the count anew, an idle preempted one is left out."""
    found = decide(ALL, "timeout", "time limit", ledger, progress)

    assert goes_on == found.requeue
    assert found.refusal is (None if goes_on else Refusal.NO_PROGRESS)
    assert goes_on or mentions(found.why, "3 runtime.mark_progress")


def test_a_preemption_is_not_the_runs_fault() -> None:
    """The idle run that is preempted goes on, however many were idle before."""
    assert decide(ALL, "preempt", "preemption", (IDLE, IDLE), STUCK).requeue


FAILURE = "rank 1 on gpu002 (local rank 1) failed with exit status 3"


def failures(*causes: str, progressed: bool = False) -> tuple[LedgerEntry, ...]:
    """Return a ledger of failures."""
    return tuple(
        dataclasses.replace(entry("failure", progressed=progressed, step=None), cause=cause) for cause in causes
    )


@pytest.mark.parametrize(("ledger", "seconds", "goes_on"), [
    ((), 2, True),
    (failures(FAILURE), 2, False),
    (failures(FAILURE), 61, True),
    (failures("rank 0 on gpu001 (local rank 0) failed with exit status 3"), 2, False),
    (failures("lost gpu002"), 2, True),
    (failures(FAILURE, progressed=True), 2, True),
    ((*failures(FAILURE), entry("timeout", progressed=False, step=None)), 2, True),
])  # fmt: skip
def test_the_same_failure_at_once(ledger: tuple[LedgerEntry, ...], seconds: float, goes_on: bool) -> None:
    """A script that marks no progress is not run again for a failure that comes again within a minute."""
    found = decide(dataclasses.replace(ALL, patience=2), "failure", FAILURE, ledger, SILENT, seconds=seconds)

    assert found.refusal is (None if goes_on else Refusal.SAME_FAILURE)
    assert goes_on or mentions(found.why, "2 --requeue-patience", FAILURE)


def test_the_same_failure_as_often_as_was_asked_for() -> None:
    """--requeue-patience says how often; what fails for the first time is not the same failure."""
    assert decide(dataclasses.replace(ALL, patience=1), "failure", FAILURE, (), SILENT, seconds=1).requeue
    patient = dataclasses.replace(ALL, patience=3)
    assert decide(patient, "failure", FAILURE, failures(FAILURE), SILENT, seconds=1).requeue
    assert not decide(patient, "failure", FAILURE, failures(FAILURE, FAILURE), SILENT, seconds=1).requeue


def test_patience_of_one_run() -> None:
    """With a patience of one the first idle run is the last."""
    found = decide(dataclasses.replace(ALL, patience=1), "failure", "rank 0 failed", (), STUCK)

    assert found.refusal is Refusal.NO_PROGRESS
    assert mentions(found.why, "runtime.mark_progress")


def test_patience_without_end() -> None:
    """With a patience of 0 nobody asks for progress."""
    patient = dataclasses.replace(ALL, patience=0, max_requeues=99)

    assert decide(patient, "timeout", "time limit", (IDLE,) * 50, STUCK).requeue


def test_training_that_never_marks_progress_is_not_judged_by_it() -> None:
    """Without a single mark only the budget counts."""
    silent = (entry(progressed=False, step=None),) * 3

    found = decide(ALL, "timeout", "time limit", silent, SILENT)
    assert (found.requeue, mentions(found.why, "4 time limit")) == (True, True)


@pytest.mark.parametrize(("progress", "made"), [
    (Progress(), False),
    (Progress(begin=100, step=100), False),
    (Progress(marked=True), True),
    (Progress(marked=True, begin=100), True),
    (Progress(marked=True, step=0), True),
    (Progress(marked=True, begin=100, step=100), False),
    (Progress(marked=True, begin=100, step=90), False),
    (Progress(marked=True, begin=100, step=100.5), True),
])  # fmt: skip
def test_progress(progress: Progress, *, made: bool) -> None:
    """A run got further when its step is greater than at its beginning; without steps, when it marked anything."""
    assert made == progress.made


def test_training_that_is_complete_needs_no_other_run() -> None:
    """A notice that comes after the last step ends the job; a failure after it does not make it complete."""
    complete = Progress(marked=True, begin=100, step=1000000, total=1000000)

    found = decide(ALL, "notice", "USR1", (), complete)
    assert found.refusal is Refusal.COMPLETE
    assert mentions(found.why, "1000000")
    assert decide(ALL, "failure", "rank 0 failed", (), complete).requeue


def test_a_ledger_is_read_as_it_was_written() -> None:
    """An entry is one line, and comes back as it was."""
    entries = (entry("notice"), entry("preempt", step=None), dataclasses.replace(entry(), step=0.5, attempt=3))
    lines = [each.line() for each in entries]

    assert all(line.index("\n") == len(line) - 1 for line in lines)
    assert entries == requeue_ledger.parse_ledger("".join(lines)).entries


def test_broken_lines_are_left_out() -> None:
    """What a full disk or another version has left does not hide the rest."""
    good = entry()
    broken = [
        good.line()[:30],
        "null",
        "[1]",
        '{"reason": "timeout"}',
        json.dumps({**dataclasses.asdict(good), "reason": "boredom"}),
        json.dumps({**dataclasses.asdict(good), "time": "yesterday"}),
        json.dumps({**dataclasses.asdict(good), "time": 10**400}),
        "[" * 10**5,
    ]

    assert (good, good) == requeue_ledger.parse_ledger("\n".join([good.line(), *broken, good.line()])).entries


def test_what_an_entry_does_not_say_counts_against_the_job() -> None:
    """An entry of another version, with fields that are missing or not understood, is still a requeue."""
    expected = LedgerEntry(1.5, "timeout", "", 0, 0, None, progressed=False, counted=True)

    line = '{"time": 1.5, "reason": "timeout", "step": "12", "attempt": null, "new": 1}'
    assert Ledger((expected,)) == requeue_ledger.parse_ledger(line)


def test_a_ledger_without_a_version_is_the_first() -> None:
    """A job that was requeued by an hpc-launch whose lines had no version goes on where it was."""
    line = json.dumps(dataclasses.asdict(entry()))

    assert requeue_ledger.parse_ledger(line) == Ledger((entry(),))


def test_a_ledger_of_a_later_version_is_named() -> None:
    """Lines of a later version are no entries, and the ledger says that they are there."""
    later = json.dumps({"schema": requeue_ledger.SCHEMA + 1, **dataclasses.asdict(entry())})

    assert requeue_ledger.parse_ledger(f"{entry().line()}{later}\n") == Ledger((entry(),), requeue_ledger.SCHEMA + 1)


def test_only_the_last_entry_is_amended() -> None:
    """What else stands in a ledger, broken or with fields of another version, is kept as it is."""
    more = json.dumps({**dataclasses.asdict(entry()), "new": 1})
    text = f"{more}\nbroken\n{IDLE.line()}null\n"

    assert requeue_ledger.parse_ledger(text).amended(entry()) == f"{more}\nbroken\n{entry().line()}null\n"


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    """After a full disk the next entry begins a line of its own."""
    job = JobDirectory(tmp_path, "12.0")
    job.path.mkdir()
    job.ledger.write_text(entry().line()[:30])
    requeue_ledger.append_entry(job, requeue_ledger.load_ledger(job), entry())

    assert requeue_ledger.load_ledger(job).entries == (entry(),)


@given(st.text())
def test_any_file_can_be_read(text: str) -> None:
    """No content of the ledger is an exception."""
    assert all(found.reason in REASONS for found in requeue_ledger.parse_ledger(text).entries)


def test_a_requeue_by_slurm_is_known_in_earlier_ledgers() -> None:
    """Their lines have no field for it, but always the same words."""
    fields = dataclasses.asdict(dataclasses.replace(entry("preempt"), cause=requeue_ledger.BY_SLURM))
    del fields["by_slurm"]
    (early,) = requeue_ledger.parse_ledger(json.dumps(fields)).entries
    (other,) = requeue_ledger.parse_ledger(json.dumps({**fields, "cause": "preemption"})).entries

    assert (early.by_slurm, other.by_slurm) == (True, False)
