"""Why a run is requeued, and who asks: the part between the agent and the policy."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hpc_launch.agent import job_requeue
from hpc_launch.agent.job_requeue import EndedRun
from hpc_launch.errors import HpcLaunchError, Interrupted, RendezvousError, RoundRefused, UsageError, WorkerError
from hpc_launch.plan.derivation import make_plan
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.records import requeue_ledger
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.requeue_ledger import LedgerEntry
from hpc_launch.settings import resolve
from hpc_launch.slurm import controller
from hpc_launch.slurm.controller import FailedRequest
from hpc_launch.slurm.job import JobRecord
from tests.support import mentions
from tests.unit.test_plan import here

RUNNING = JobRecord("7", "RUNNING")
TIME_LIMIT = JobRecord("7", "COMPLETING", "TimeLimit")
PREEMPTED = JobRecord("7", "COMPLETING", "None", preempt_time=1.0)
IN_GRACE = JobRecord("7", "RUNNING", "None", end=9.0, preempt_time=1.0)
CANCELLED = JobRecord("7", "COMPLETING", "None")
SCRIPT_FAILED = JobRecord("7", "COMPLETING", "NonZeroExitCode")
REQUEUED = JobRecord("7", "COMPLETING", "None", restarts=1)

FAILED = WorkerError("rank 1 failed", exit_status=3)
LOST = RendezvousError("gpu002 is lost")
REFUSED = "Requested operation is presently disabled"
TERM = Interrupted(15, "SIGTERM")


def run(
    job: JobDirectory, error: HpcLaunchError | None, record: JobRecord | None, *, noticed: bool = False
) -> EndedRun:
    return EndedRun(error, noticed, record, job, first_attempt=2, attempt=3)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let Slurm accept every requeue; returns the ids that were asked for."""
    found: list[str] = []

    def accept(job: str) -> None:
        found.append(job)

    monkeypatch.setattr(controller, "requeue", accept)
    return found


def plan(words: str = "on-notice,on-timeout,on-preempt,on-failure", **more: str) -> Plan:
    return make_plan(resolve({"requeue": words, **more}, {}), here(), ("train.py",))


ENVIRON = {"SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    ("error", "record", "reason"),
    [
        (None, RUNNING, None),
        (FAILED, RUNNING, "failure"),
        (LOST, RUNNING, "failure"),
        (FAILED, None, "failure"),
        (TERM, RUNNING, None),
        (TERM, TIME_LIMIT, "timeout"),
        (FAILED, TIME_LIMIT, "timeout"),
        (TERM, PREEMPTED, "preempt"),
        (TERM, CANCELLED, None),
        (TERM, SCRIPT_FAILED, None),
        (TERM, None, None),
        (RoundRefused("no script there"), RUNNING, None),
        (UsageError("wrong"), RUNNING, None),
    ],
)
def test_why_a_run_is_requeued(
    tmp_path: Path,
    asked: list[str],
    error: HpcLaunchError | None,
    record: JobRecord | None,
    reason: str | None,
) -> None:
    """What Slurm says comes first; somebody's scancel, and what would go wrong again, are no reasons."""
    check_reason(tmp_path, asked, run(JobDirectory(tmp_path, "7.0"), error, record), reason)


@pytest.mark.parametrize(
    ("error", "record", "reason"),
    [
        (None, RUNNING, "notice"),
        (None, IN_GRACE, "preempt"),
        (FAILED, RUNNING, "notice"),
        (TERM, TIME_LIMIT, "timeout"),
        (FAILED, CANCELLED, None),
        (FAILED, SCRIPT_FAILED, None),
    ],
)
def test_why_a_run_is_requeued_after_a_notice(
    tmp_path: Path,
    asked: list[str],
    error: HpcLaunchError | None,
    record: JobRecord | None,
    reason: str | None,
) -> None:
    """A run that ends after a notice, however, was told to; unless Slurm knows better."""
    check_reason(tmp_path, asked, run(JobDirectory(tmp_path, "7.0"), error, record, noticed=True), reason)


def check_reason(folder: Path, asked: list[str], ended: EndedRun, reason: str | None) -> None:
    job = JobDirectory(folder, "7.0")
    job.path.mkdir()
    word = job_requeue.settle(plan(), ENVIRON, ended)
    if reason is None:
        assert (word, asked, job.ledger.exists()) == ("", [], False)
        return
    assert (word.partition(" ")[0], asked) == ("requeued", ["7"])
    [entry] = requeue_ledger.load_ledger(job).entries
    assert (entry.reason, entry.attempt, entry.restart_count) == (reason, 3, 0)
    assert entry.counted == (reason != "preempt")


def test_a_requeue_of_slurm_s_own_is_written_down(tmp_path: Path, asked: list[str]) -> None:
    """It is under way already, so nobody asks; the ledger and a line tell of it, and it is free."""
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    job_requeue.settle_early(plan("on-preempt"), ENVIRON, run(job, None, REQUEUED))
    mark(job, 0, json.dumps({"attempt": 3, "step": 50, "total": 100}))
    word = job_requeue.settle(plan("on-preempt"), ENVIRON, run(job, TERM, REQUEUED))
    assert mentions(word, "Slurm")
    assert asked == []
    [entry] = requeue_ledger.load_ledger(job).entries
    assert (entry.cause, entry.counted, entry.step) == ("requeued by Slurm", False, 50)


def test_one_agent_of_all_steps_asks(tmp_path: Path, asked: list[str]) -> None:
    """Two steps of a job end for the same reason: one of them has it requeued; after a restart it can be again."""
    jobs = [JobDirectory(tmp_path, f"7.{step}") for step in range(2)]
    for job in jobs:
        job.path.mkdir()
        job_requeue.settle(plan(), ENVIRON, run(job, FAILED, RUNNING))
    assert asked == ["7"]
    assert [job.ledger.exists() for job in jobs] == [True, False]
    job_requeue.settle(plan(), ENVIRON | {"SLURM_RESTART_COUNT": "1"}, run(jobs[1], FAILED, RUNNING))
    assert asked == ["7", "7"]


def test_what_slurm_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Slurm's words; the ledger holds only what happened."""
    monkeypatch.setattr(controller, "requeue", lambda _: FailedRequest(REFUSED))
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    word = job_requeue.settle(plan(), ENVIRON, run(job, FAILED, RUNNING))
    assert word.endswith(f": {REFUSED}")
    assert not job.ledger.exists()


AWAY = FailedRequest("Unable to contact slurm controller (connect failure)", answered=False)


@dataclass
class Away:
    """A controller that answers some questions, and some not; what it was asked, in order."""

    requeues: list[FailedRequest | None]
    records: list[JobRecord | None]
    asked: list[str] = field(default_factory=list)
    ledger: list[bool] = field(default_factory=list)
    now: float = 1000.0

    def requeue(self, _: str) -> FailedRequest | None:
        self.asked.append("requeue")
        return self.requeues.pop(0) if self.requeues else AWAY

    def ask_job(self, _: str) -> JobRecord | None:
        self.asked.append("job")
        return self.records.pop(0) if self.records else None

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Away]:
    """Return what makes such a controller."""

    def make(requeues: list[FailedRequest | None], records: list[JobRecord | None]) -> Away:
        made = Away(requeues, records)
        monkeypatch.setattr(controller, "requeue", made.requeue)
        monkeypatch.setattr(controller, "ask_job", made.ask_job)
        monkeypatch.setattr(job_requeue, "time", made)
        return made

    return make


def unknown(job: JobDirectory) -> list[bool]:
    """Whether the requeues of the ledger are known to be done."""
    return [entry.unknown for entry in requeue_ledger.load_ledger(job).entries]


def test_a_controller_that_comes_back_is_asked_again(tmp_path: Path, away: Callable[..., Away]) -> None:
    """After it was asked how the job stands: a second requeue would end the next run."""
    made = away([AWAY, None], [None, None, RUNNING])
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    assert job_requeue.settle(plan(), ENVIRON, run(job, FAILED, RUNNING)).startswith("requeued")
    assert made.asked == ["requeue", "job", "job", "job", "requeue"]
    assert unknown(job) == [False]


def test_what_was_done_without_an_answer(tmp_path: Path, away: Callable[..., Away]) -> None:
    """A controller that is busy does it all the same."""
    made = away([AWAY], [None, REQUEUED])
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    assert job_requeue.settle(plan(), ENVIRON, run(job, FAILED, RUNNING)).startswith("requeued")
    assert made.asked == ["requeue", "job", "job"]
    assert unknown(job) == [False]


@pytest.mark.parametrize(
    ("requeues", "records"),
    [([AWAY], [CANCELLED]), ([AWAY], [SCRIPT_FAILED]), ([AWAY, FailedRequest(REFUSED)], [RUNNING])],
)
def test_a_refusal_after_silence(
    tmp_path: Path, away: Callable[..., Away], requeues: list[FailedRequest | None], records: list[JobRecord | None]
) -> None:
    """Whoever cancels the job means it; what Slurm refuses did not happen."""
    away(requeues, records)
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    assert job_requeue.settle(plan(), ENVIRON, run(job, FAILED, RUNNING)).startswith("not requeued")
    assert (unknown(job), job.requeue_claim("7", 0).exists()) == ([], False)


@pytest.mark.parametrize(
    ("end", "seconds"), [(None, 3600), (1000.0 + 7200, 3600), (1000.0 + 900, 900), (1000.0, 60), (900.0, 60)]
)
def test_a_controller_that_stays_away(
    tmp_path: Path, away: Callable[..., Away], end: float | None, seconds: float
) -> None:
    """It is asked until the job ends; then nobody knows, which is said and written down."""
    made = away([], [])
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    ended = dataclasses.replace(run(job, FAILED, RUNNING), end=end)
    word = job_requeue.settle(plan(), ENVIRON, ended)
    assert mentions(word, "unknown", AWAY.words, "scontrol requeue 7"), word
    assert 0 <= made.now - 1000 - seconds <= 10
    assert made.asked.count("requeue") == 1
    assert unknown(job) == [True]

    # As after a requeue that was asked for while the workers ended.
    away([None], [])
    assert job_requeue.settle(plan(), ENVIRON, ended).startswith("requeued")
    assert unknown(job) == [False]


def test_the_ledger_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm may end the agent as soon as it has been asked."""
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    seen = []
    monkeypatch.setattr(controller, "requeue", lambda _: seen.append(unknown(job)))
    job_requeue.settle(plan(), ENVIRON, run(job, FAILED, RUNNING))
    assert (seen, unknown(job)) == ([[True]], [False])


@pytest.mark.parametrize("words", ["never", "on-timeout"])
def test_what_was_not_asked_for(tmp_path: Path, asked: list[str], words: str) -> None:
    """Nothing is done; where something was asked for, and not this, a line says so."""
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    word = job_requeue.settle(plan(words), ENVIRON, run(job, FAILED, RUNNING))
    assert asked == []
    assert word == ("" if words == "never" else "not requeued: --requeue does not say on-failure")


def test_a_notice_before_a_preemption_is_a_notice_where_only_that_was_asked_for(
    tmp_path: Path, asked: list[str]
) -> None:
    """Slurm can send the signal of --signal at the beginning of a preemption's GraceTime."""
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    assert job_requeue.settle(plan("on-notice"), ENVIRON, run(job, None, IN_GRACE, noticed=True)).startswith("requeued")
    [entry] = requeue_ledger.load_ledger(job).entries
    assert (entry.reason, entry.counted, asked) == ("notice", True, ["7"])


def mark(job: JobDirectory, rank: int, text: str) -> None:
    path = job.progress(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_requeue_while_the_workers_end(tmp_path: Path, asked: list[str]) -> None:
    """Where Slurm is about to kill it is asked at once, and once; how far workers then come is written down."""
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    mark(job, 0, json.dumps({"attempt": 3, "step": 40, "total": 100}))
    job_requeue.settle_early(plan(), ENVIRON, run(job, None, TIME_LIMIT))
    [entry] = requeue_ledger.load_ledger(job).entries
    assert (entry.reason, entry.step, asked) == ("timeout", 40, ["7"])
    mark(job, 0, json.dumps({"attempt": 3, "step": 50, "total": 100}))
    word = job_requeue.settle(plan(), ENVIRON, run(job, TERM, REQUEUED))
    [entry] = requeue_ledger.load_ledger(job).entries

    assert mentions(word, "requeued 1 10")
    assert (entry.reason, entry.step, entry.counted, asked) == ("timeout", 50, True, ["7"])


@pytest.mark.parametrize("record", [None, RUNNING, IN_GRACE, CANCELLED])
def test_what_can_wait_for_the_workers(tmp_path: Path, asked: list[str], record: JobRecord | None) -> None:
    """A requeue of a job that still runs would end it; whatever else it may be waits for the end of the workers."""
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    job_requeue.settle_early(plan(), ENVIRON, run(job, None, record, noticed=True))

    assert (asked, job.ledger.exists()) == ([], False)


def test_what_is_not_right_yet(tmp_path: Path, asked: list[str]) -> None:
    """A run that made no progress so far may make some in its last seconds: that decides."""
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    idle = [
        LedgerEntry(1.0, "timeout", "time limit", turn, turn, step=40, progressed=not turn, counted=True)
        for turn in (0, 1)
    ]
    job.ledger.write_text("".join(entry.line() for entry in idle))
    mark(job, 0, json.dumps({"attempt": 1, "step": 40, "total": 100}))
    environ = ENVIRON | {"SLURM_RESTART_COUNT": "2"}
    words = plan(requeue_patience="2")
    record = JobRecord("7", "COMPLETING", "TimeLimit", restarts=2)
    job_requeue.settle_early(words, environ, run(job, None, record))
    assert asked == []
    mark(job, 0, json.dumps({"attempt": 3, "step": 50, "total": 100}))
    job_requeue.settle(words, environ, run(job, TERM, record))

    assert asked == ["7"]
    assert [entry.step for entry in requeue_ledger.load_ledger(job).entries] == [40, 40, 50]


def test_progress_is_that_of_the_rank_which_came_furthest(tmp_path: Path, asked: list[str]) -> None:
    """Files that cannot be read are passed over; a mark of an earlier run is none of this one."""
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    before = LedgerEntry(1.0, "timeout", "time limit", 0, 1, step=40, progressed=True, counted=True)
    job.ledger.write_text(before.line())
    mark(job, 0, json.dumps({"attempt": 3, "step": 50, "total": 100}))
    mark(job, 1, json.dumps({"attempt": 3, "step": 45, "total": 100}))
    mark(job, 2, "{")
    mark(job, 3, "[1, 2]")
    job_requeue.settle(plan(), ENVIRON, run(job, FAILED, RUNNING))
    entry = requeue_ledger.load_ledger(job).entries[-1]
    assert (entry.step, entry.progressed, asked) == (50, True, ["7"])

    mark(job, 0, json.dumps({"attempt": 1, "step": 50, "total": 100}))
    mark(job, 1, json.dumps({"attempt": 1, "step": 45, "total": 100}))
    environ = ENVIRON | {"SLURM_RESTART_COUNT": "1"}
    job_requeue.settle(plan(), environ, run(job, FAILED, JobRecord("7", "RUNNING", restarts=1)))
    entry = requeue_ledger.load_ledger(job).entries[-1]
    assert (entry.step, entry.progressed) == (50, False)


def test_a_ledger_of_a_later_version_is_left_alone(tmp_path: Path, asked: list[str]) -> None:
    """The requeues that it has cannot be counted: one line says so, nothing is asked for, and nothing is written."""
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    job.ledger.write_text('{"schema": 2, "because": "time"}\n')
    word = job_requeue.settle(plan(), ENVIRON, run(job, FAILED, RUNNING))

    assert mentions(word, job.ledger, "2 1")
    assert (asked, job.ledger.read_text()) == ([], '{"schema": 2, "because": "time"}\n')


def test_what_slurm_refused_can_be_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller that refused while the workers ended is asked once more when they have."""
    answers = [FailedRequest(REFUSED), None]
    monkeypatch.setattr(controller, "requeue", lambda _: answers.pop(0))
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    job_requeue.settle_early(plan(), ENVIRON, run(job, None, TIME_LIMIT))

    assert mentions(job_requeue.settle(plan(), ENVIRON, run(job, TERM, TIME_LIMIT)), "requeued 1 10")
    assert len(requeue_ledger.load_ledger(job).entries) == 1


def test_a_requeue_whose_answer_was_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Slurm has the job run again, but did not say so in time, it is requeued."""
    monkeypatch.setattr(controller, "requeue", lambda _: FailedRequest("it took longer than 10 s", answered=False))
    monkeypatch.setattr(controller, "ask_job", lambda _: REQUEUED)
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()

    assert job_requeue.settle(plan(), ENVIRON, run(job, FAILED, RUNNING)).startswith("requeued (1 of 10)")


def test_one_thread_at_a_time_settles_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends while a thread asks Slurm for it waits, and finds in the ledger what that has done."""
    asking, goes_on = threading.Event(), threading.Event()

    def ask(_: str) -> None:
        asking.set()
        goes_on.wait(60)

    monkeypatch.setattr(controller, "requeue", ask)
    job = JobDirectory(tmp_path, "7.0")
    job.path.mkdir()
    with ThreadPoolExecutor(2) as pool:
        early = pool.submit(job_requeue.settle_early, plan(), ENVIRON, run(job, None, TIME_LIMIT))
        asking.wait(60)
        late = pool.submit(job_requeue.settle, plan(), ENVIRON, run(job, TERM, TIME_LIMIT))
        goes_on.set()
        early.result(60)

    assert (mentions(late.result(60), "requeued 1 10"), len(requeue_ledger.load_ledger(job).entries)) == (True, 1)
