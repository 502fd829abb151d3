"""Where a job stands: what it says itself, what Slurm says, and what nobody can see."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.inspection import end_condition, job_search, job_status, slurm_query, status_view, terminal_colours
from hpc_launch.inspection.chronology import make_chronology
from hpc_launch.inspection.job_state import SlurmAnswer, State
from hpc_launch.inspection.output_files import OutputSelection
from hpc_launch.inspection.slurm_query import SlurmQuery
from hpc_launch.inspection.status_view import JobStatus, RankState
from hpc_launch.inspection.timeline import make_timeline
from hpc_launch.records import events
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.events import EventLog
from hpc_launch.records.history import read_history
from hpc_launch.records.history_model import RecordedNotice
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import JobRecord, explain
from hpc_launch.slurm.steps import RunningStep
from tests import histories
from tests.histories import Losses
from tests.support import mentions

NOW = 1_718_000_500.0


def record(state: str, **more: Any) -> SlurmAnswer:
    step = more.pop("step", None)
    return SlurmAnswer(JobRecord("12", state, **more), step=step)


BLIND = SlurmAnswer(blind="nobody there")
FORGOTTEN = SlurmAnswer()


# ---- asking Slurm

ONE = JobRecord("12", "RUNNING", label="12")


@pytest.mark.parametrize(
    ("records", "accounting", "steps", "expected"),
    [
        (None, (), None, BLIND),
        ((), (), None, SlurmAnswer()),
        ((), (JobRecord("12", "TIMEOUT"),), None, SlurmAnswer(JobRecord("12", "TIMEOUT"))),
        ((ONE,), (), None, SlurmAnswer(ONE)),
        ((ONE,), (), ("12.batch",), SlurmAnswer(ONE, step=False)),
        ((ONE,), (), ("12.0",), SlurmAnswer(ONE, step=True)),
    ],
)
def test_what_slurm_says(
    monkeypatch: pytest.MonkeyPatch, records: Any, accounting: Any, steps: Any, expected: SlurmAnswer
) -> None:
    """The controller first, then accounting; and whether the step is there."""
    monkeypatch.setattr(slurm_query, "which", lambda _: "/bin/scontrol")
    monkeypatch.setattr(controller, "ask_jobs", lambda *_: records)
    monkeypatch.setattr(controller, "ask_accounting", lambda *_: accounting)
    named = None if steps is None else tuple(RunningStep(name, "", ()) for name in steps)
    monkeypatch.setattr(controller, "ask_steps", lambda *_: named)

    answer = slurm_query.ask(job_search.SlurmStep("12", 0), quiet=True)

    assert (answer.record, answer.step) == (expected.record, expected.step)
    assert bool(answer.blind) is bool(expected.blind)


def test_where_slurm_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container there is nobody to ask."""
    monkeypatch.setattr(slurm_query, "which", lambda _: None)

    answer = slurm_query.ask(job_search.SlurmStep("12", 0), quiet=False)

    assert mentions(answer.blind, "scontrol")
    assert replace(answer, blind="") == FORGOTTEN


def test_slurm_is_not_asked_all_the_time() -> None:
    """Whoever looks every second does not ask the controller every second."""
    asked: list[bool] = []

    def ask(_: job_search.SlurmStep, *, quiet: bool) -> SlurmAnswer:
        asked.append(quiet)
        return FORGOTTEN

    eyes = SlurmQuery(job_search.SlurmStep("12", 0), ask)
    assert [eyes.look(quiet=False) for _ in range(5)] == [FORGOTTEN] * 5
    assert (asked, SlurmQuery(None, ask).look(quiet=True)) == ([False], None)


# ---- a job directory


@pytest.fixture
def job(tmp_path: Path) -> JobDirectory:
    return JobDirectory(tmp_path / "logs", "47.0")


class Slurm(SlurmQuery):
    """Says the same always."""

    def __init__(self, seen: SlurmAnswer | None) -> None:
        super().__init__(None)
        self._seen = seen

    def look(self, *, quiet: bool) -> SlurmAnswer | None:  # noqa: ARG002 - as asked
        return self._seen


def seen(job: JobDirectory, slurm: SlurmAnswer | None = None, now: float = NOW, **made: Any) -> JobStatus:
    """Make a job directory and look at it."""
    if made:
        histories.write(job.path, **{"begin": NOW - 130, **made})
    return job_status.read_status(job, eyes=Slurm(slurm), now=now)


def rows(found: JobStatus) -> list[str]:
    """Return the lines of the table of ranks."""
    return status_view.text(found).partition("\n\n")[2].splitlines()


def head(found: JobStatus) -> dict[str, str]:
    """Return what is said of the whole job."""
    return {line[:9].strip(): line[10:] for line in status_view.text(found).partition("\n\n")[0].splitlines()}


RUNNING = record("RUNNING", end=NOW + 3000, nodes="gpu[001-002]", partition="main")


def test_a_job_that_runs(job: JobDirectory) -> None:
    """A screen has what one wants to know: state, attempt, time left, nodes, workers, progress, and the files."""
    found = seen(job, RUNNING, ending="", output=2)
    for worker in found.ranks:
        for path in job.path.glob(f"attempt_1/*/rank_{worker.rank}.*"):
            age = 725 if worker.rank == 6 else 1
            os.utime(path, (NOW - age, NOW - age))
    found = seen(job, RUNNING)
    said = head(found)

    assert (found.attempt, found.restarts, NOW - (found.begin or 0)) == (1, 1, 68)
    assert mentions(said.pop("attempt"), "1", "1 min 8 s", "1 restart")
    assert said == {
        "job": "47.0 train.py --lr 1e-3",
        "state": "running",
        "Slurm": "RUNNING on gpu[001-002], partition main",
        "time left": f"50 min, until {time.strftime('%H:%M', time.localtime(NOW + 3000))}",
        "nodes": "2: gpu[001-002]",
        "workers": "8: 8 up",
        "progress": "step 200 of 1,000, 20 %, loss 0.125; rank 0, 40 s ago",
        "failure": "attempt 0: rank 7 on gpu002 (local rank 3) failed with exit status 1: ValueError: loss is nan",
        "files": str(job.path),
    }
    assert rows(found) == [
        "ranks  nodes         state  last output  step",
        "0-5,7  gpu[001-002]  up     now          200",
        "6      gpu002        up     12 min ago",
    ]


HOSTILE = "\x1b]0;title\x07\x1b[2J\u202e\r"


def test_a_terminal_is_not_told_anything(job: JobDirectory) -> None:
    """Whatever records say of others is shown, and a terminal obeys none of it; the colours are the status's own."""
    told = record("RUNNING", nodes=f"gpu001{HOSTILE}", partition=HOSTILE)
    found = seen(job, told, ending="failed", requeues=[0], attempts=2)
    plan = json.loads(job.last_plan.read_text())
    job.last_plan.write_text(json.dumps({**plan, "script": [HOSTILE]}))
    looked = replace(
        seen(job, told), failure=(0, HOSTILE), unreadable=(HOSTILE,), hosts=(HOSTILE, *found.hosts), missing=HOSTILE
    )
    shown = [status_view.text(looked, terminal_colours.TerminalColours(on)) for on in (False, True)]

    assert [char for char in "\x1b\x07\u202e\r" if char in shown[0]] == []
    assert re.sub(r"\x1b\[\d+m", "", shown[1]) == shown[0]


def test_a_job_that_failed(job: JobDirectory) -> None:
    """Those that failed are told from those that were ended with them."""
    found = seen(job, FORGOTTEN, ending="failed", requeues=[0], attempts=2)

    assert head(found)["state"] == "failed, exit status 1"
    assert head(found)["workers"] == "8: 5 failed, 3 stopped"
    assert head(found)["requeues"].endswith("after attempt 0: time limit")
    assert rows(found)[1:] == [
        "0,3,6      gpu[001-002]  stopped                none         200",
        "1-2,4-5,7  gpu[001-002]  failed, exit status 1  none",
    ]


def test_a_job_that_was_stopped(job: JobDirectory) -> None:
    """For programs it has failed, as ever; the words say more."""
    found = seen(job, FORGOTTEN, ending="stopped")
    facts = status_view.status_as_dict(found)

    assert found.standing.state is State.STOPPED
    assert head(found)["state"] == "stopped by SIGTERM, exit status 143"
    assert (facts["state"], facts["words"]) == ("failed", "stopped by SIGTERM, exit status 143")


@pytest.mark.parametrize(
    ("hosts", "unheard", "said"),
    [
        (("gpu001", "gpu002"), (), ""),
        ((), ("gpu001", "gpu002"), "no worker has a handler"),
        (("gpu001",), ("gpu002",), "no worker gpu002 handler"),
    ],
)
def test_a_notice(job: JobDirectory, hosts: tuple[str, ...], unheard: tuple[str, ...], said: str) -> None:
    """Who did not hear it is named, here as in the report."""
    told = RecordedNotice(NOW - 60, 1, "SIGUSR1", 1, hosts, unheard)
    found = replace(seen(job, RUNNING, ending=""), notice=told)
    history = replace(read_history(job.path), notices=(told,))
    chronology = make_chronology(history, make_timeline(history, {}), {})
    [moment] = [entry.text for entry in chronology if "USR1" in entry.text]

    assert head(found)["notice"].startswith("SIGUSR1, 60 s ago")
    assert mentions(head(found)["notice"], *said.split())
    assert mentions(moment, "passed on" if hosts else "SIGUSR1 came", *said.split())
    assert ("handler" in moment, "handler" in head(found)["notice"]) == (bool(unheard), bool(unheard))
    facts = status_view.status_as_dict(found)["notice"]
    assert facts == {"time": NOW - 60, "signal": "SIGUSR1", "hosts": [*hosts], "unheard": [*unheard]}


def test_a_job_that_nobody_can_see(job: JobDirectory) -> None:
    """It is neither running nor over, and its workers are unknown, not down."""
    found = seen(job, BLIND, now=NOW + 10_000, ending="")

    assert (found.standing.state, found.time_left) == (State.UNKNOWN, None)
    assert head(found)["Slurm"].endswith(f": {BLIND.blind}")
    assert status_view.status_as_dict(found)["slurm"] == {"state": None, "reason": None, "cannot_see": BLIND.blind}
    assert head(found)["workers"] == "8: 8 unknown"


def test_a_job_that_waits(job: JobDirectory) -> None:
    """Before it has a directory, Slurm's word is all there is."""
    found = job_status.without_directory(JobRecord("47", "PENDING", reason="Priority", label="47", partition="gpu"))
    said = head(found)

    assert mentions(said.pop("files"), "no", "directory")
    assert said == {
        "job": "47",
        "state": f"waiting ({explain('Priority')})",
        "Slurm": "PENDING (Priority), partition gpu",
    }
    assert (found.path, status_view.status_as_dict(found)["directory"]) == (Path(), None)
    assert not job.path.exists()


def test_a_job_that_loses_nodes(job: JobDirectory) -> None:
    """Who works, who was lost and what Slurm says of it, who came back, who is bad; the same for programs."""
    Losses(job.path, "", NOW - 300).write()
    found = seen(job, RUNNING)
    told = head(found)

    assert told["nodes"] == "3: gpu[002-003,006]"
    assert told["back"].startswith("gpu001, ")
    assert mentions(told["back"], "next attempt")
    assert told["lost"].startswith("gpu[004-005], ")
    assert mentions(told["lost"].partition(";")[0], "2 min")
    assert mentions(told["lost"].partition(";")[2], "down", "Slurm", "gpu004")
    assert not mentions(told["lost"], "gpu005")
    assert told["drained"] == "gpu003 is broken (uncorrectable ECC error encountered)"
    assert told["workers"] == "6: 6 up"
    facts = status_view.status_as_dict(found)
    assert (facts["hosts"], facts["lost"], facts["back"]) == (
        ["gpu002", "gpu003", "gpu006"],
        ["gpu004", "gpu005"],
        ["gpu001"],
    )
    assert facts["drained"] == {"gpu003": "is broken (uncorrectable ECC error encountered)"}
    assert facts["slurm_of_lost"]["gpu005"]["state"] == "MIXED"


def test_a_bad_node_of_a_run_that_cannot_lose_any(job: JobDirectory) -> None:
    """The evidence is there all the same."""
    exception = ("RuntimeError", Losses.BROKEN)
    histories.write(job.path, begin=NOW - 130, attempts=1, ending="failed", fails={0: 5}, exception=exception)

    assert head(seen(job, RUNNING))["bad"] == "gpu002 is broken (uncorrectable ECC error encountered)"


def test_who_follows_a_job_is_told_of_nodes(job: JobDirectory) -> None:
    """What has happened since, and not what was before."""
    Losses(job.path, "", NOW - 300).write()
    told: list[str] = []
    ended = end_condition.EndCondition(job, OutputSelection(), told.append, Slurm(RUNNING))
    assert not ended()
    EventLog(job.events("gpu002"), 1).record(events.NODE_LOST, when=NOW, attempt=3, hosts="gpu006")
    ended._next = 0.0
    assert not ended()

    assert told == ["job 47.0: lost gpu006"]


def test_who_follows_a_job_sees_the_requeue_that_comes_after_the_end(job: JobDirectory) -> None:
    """The run has ended while Slurm still runs the job: its agent may be about to ask for a requeue."""
    histories.write(job.path, begin=NOW - 130, attempts=1, ending="failed", fails={0: 5})
    ended = end_condition.EndCondition(job, OutputSelection(), list[str]().append, Slurm(RUNNING))
    assert not ended()
    ended._eyes = Slurm(record("PENDING", restarts=1))
    ended._next = 0.0
    assert not ended()
    ended._eyes = Slurm(RUNNING)
    ended._next = 0.0
    assert not ended()
    ended._next = 0.0
    assert ended()


@pytest.mark.parametrize("slurm", [record("FAILED"), FORGOTTEN, None])
def test_an_end_that_slurm_confirms_counts_at_once(job: JobDirectory, slurm: SlurmAnswer | None) -> None:
    """As does one of a job that Slurm does not know."""
    histories.write(job.path, begin=NOW - 130, attempts=1, ending="failed", fails={0: 5})

    assert end_condition.EndCondition(job, OutputSelection(), list[str]().append, Slurm(slurm))()


def test_ranks_of_a_lost_node(job: JobDirectory) -> None:
    """They are lost with it, as long as no other attempt has begun."""
    histories.write(job.path, begin=NOW - 130, ending="", attempts=1)
    log = EventLog(job.events("gpu001"), 0)
    log.record(events.NODE_LOST, when=NOW - 30, attempt=0, hosts="gpu002")
    lost = {"host": "gpu002", "state": "DOWN", "gone": True, "reason": "it smokes", "waited": 1.0, "last": True}
    log.record(events.NODE_STATE, when=NOW - 29, attempt=0, **lost)
    told = head(seen(job, RUNNING))

    assert told["lost"] == "gpu002, 30 s ago: Slurm says DOWN: it smokes"
    assert told["workers"] == "8: 4 up, 4 lost"


def test_nodes_that_are_awaited_and_lost(job: JobDirectory) -> None:
    """Whoever is waited for is named, until the next attempt has begun."""
    histories.write(job.path, begin=NOW - 130, ending="", attempts=1)
    log = EventLog(job.events("gpu001"), 0)
    log.record(events.NODE_LOST, when=NOW - 30, hosts="gpu002")
    log.record(events.NODE_MISSING, when=NOW - 20, hosts="gpu002", joined=1, expected=2)
    found = seen(job, RUNNING)

    assert head(found)["nodes"] == "2: gpu[001-002]; waiting for gpu002"
    assert head(found)["lost"] == "gpu002, 30 s ago"
    log.record(events.ATTEMPT, when=NOW - 10, attempt=1, host="gpu001", world_size=8, agents=2)
    assert head(seen(job, RUNNING))["nodes"] == "2: gpu[001-002]"


def test_ranks_that_have_files_but_no_records(job: JobDirectory) -> None:
    """Where the records are gone, the output still says which ranks there were."""
    histories.write(job.path, begin=NOW - 130, ending="", output=2)
    for path in job.path.glob("nodes/*/events.jsonl"):
        path.write_text("\0\0\0 not JSON\n")
    found = seen(job, RUNNING)

    assert [rank.rank for rank in found.ranks] == list(range(8))
    assert {rank.state for rank in found.ranks} == {RankState.UNKNOWN}
    assert any(mentions(line, "nodes/gpu001/events.jsonl", "1 line") for line in found.unreadable)
    assert "unread" in head(found)


def test_thousands_of_ranks_are_readable(job: JobDirectory) -> None:
    """1,024 ranks are few lines, and one that is different is seen."""
    found = seen(job, RUNNING, ending="", nodes=128, per_node=8, attempts=1)
    ranks = [replace(rank, output=NOW - (rank.rank == 777) * 600) for rank in found.ranks]
    found = replace(found, ranks=tuple(ranks), now=NOW)

    assert rows(found)[1:] == [
        "0-776,778-1023  gpu[001-128]  up     now          100",
        "777             gpu098        up     10 min ago",
    ]


def test_as_many_groups_as_a_screen_has(job: JobDirectory) -> None:
    """Where all ranks differ, those groups that are small are shown, and the others together."""
    found = seen(job, RUNNING, ending="", nodes=8, per_node=8, attempts=1)
    ranks = [replace(rank, output=NOW - 60 * max(0, rank.rank - 3)) for rank in found.ranks]
    table = rows(replace(found, ranks=tuple(ranks), now=NOW))

    assert len(table) == 25
    assert "various" in table[-1]


@pytest.mark.parametrize("made", [{"ending": ""}, {"ending": "failed"}, {"requeues": [0]}, {"output": 2}, {}])
def test_a_status_for_programs(job: JobDirectory, made: dict[str, Any]) -> None:
    """It can be written as JSON, an unlimited job too, and says the same."""
    found = seen(job, record("RUNNING", end=float("inf")), **{"attempts": 2, **made})
    said = json.loads(json.dumps(status_view.status_as_dict(found), allow_nan=False))

    assert (said["state"], said["job"], len(said["ranks"])) == (found.standing.state.value, "47.0", 8)
    assert said["ranks"][7]["host"] == "gpu002"


def disturb(job: JobDirectory, number: int) -> None:
    """Do something to the job directory that should not be."""
    files = sorted(path for path in job.path.rglob("*") if path.is_file() and not path.is_symlink())
    path = files[number % len(files)]
    kind = number // len(files)
    if kind == 0:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == 1:
        path.write_bytes(b"")
    elif kind == 2:
        path.write_bytes(b"\0\xff{]\n" * 20)
    else:
        path.unlink()
        path.mkdir()


def test_nothing_in_the_directory_makes_it_fail(job: JobDirectory) -> None:
    """Whatever file is cut, emptied, foreign or a directory: there is a status, and what cannot be read is named."""
    made = histories.Made(nodes=1, per_node=1, begin=NOW - 130, output=1, requeues=[0])
    histories.write(job.path, made)
    count = len([path for path in job.path.rglob("*") if path.is_file() and not path.is_symlink()])
    for number in range(4 * count):
        histories.write(job.path, made)
        disturb(job, number)
        found = seen(job, RUNNING)
        assert status_view.text(found)
        assert json.dumps(status_view.status_as_dict(found))
        for path in sorted(job.path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_a_directory_that_is_not_there(job: JobDirectory) -> None:
    """It may have been removed meanwhile."""
    found = seen(job, FORGOTTEN)

    assert (found.standing.state, found.ranks) == (State.UNKNOWN, ())
    assert found.unreadable


# ---- whether something is still to come


def test_following_ends_with_the_job(job: JobDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has ended when Slurm says so, or it does twice; that it waits, or cannot be seen, is said once."""
    monkeypatch.setattr(end_condition, "_PAUSE", 0.0)
    monkeypatch.setattr(end_condition, "_PAUSE_PER_LOOK", 0.0)
    said: list[str] = []

    def ended(slurm: SlurmAnswer, attempts: frozenset[int] | None = frozenset({-1}), **made: Any) -> list[bool]:
        histories.write(job.path, **{"begin": NOW - 130, **made})
        ask = end_condition.EndCondition(job, OutputSelection(attempts=attempts), said.append, Slurm(slurm))
        return [ask(), ask()]

    assert ended(RUNNING, ending="") == [False, False]
    assert said == []
    assert ended(BLIND, ending="") == [False, False]
    words = job_status.read_status(job, eyes=Slurm(BLIND)).standing.words
    # How old its last sign of life is changes meanwhile.
    assert [line.partition(";")[0] for line in said] == [f"job 47.0: {words.partition(';')[0]}"]
    assert ended(record("TIMEOUT"), ending="") == [True, True]
    assert ended(RUNNING, ending="done") == [False, True]
    assert ended(RUNNING, frozenset({0}), ending="") == [True, True]
    assert ended(RUNNING, frozenset({0, 1}), ending="") == [False, False]


def test_waiting_for_a_directory(job: JobDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that Slurm knows is waited for, and it is said why it waits; without a name it stays the same one."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    waits = [JobRecord("47", "PENDING", reason=reason, label="47") for reason in ("Priority", "Priority", "Resources")]
    answers = iter([*(job_search.JobSearch(None, waiting) for waiting in waits), job_search.JobSearch(job)])
    said: list[str] = []

    asked: list[str] = []

    def search(one: str) -> job_search.JobSearch:
        asked.append(one)
        return next(answers)

    assert end_condition.wait_for_directory("", search, said.append) == job
    assert asked == ["", "47", "47", "47"]
    assert said == [
        f"job 47: waiting ({explain('Priority')})",
        f"job 47: waiting ({explain('Resources')})",
    ]


# ---- colours


class Terminal:
    """A stream that may be a terminal."""

    def __init__(self, *, there: bool) -> None:
        self._there = there

    def isatty(self) -> bool:
        return self._there


@pytest.mark.parametrize(
    ("there", "environ", "expected"),
    [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals(there: bool, environ: dict[str, str], expected: bool) -> None:
    """And for those who want them (no-color.org)."""
    chosen = terminal_colours.for_stream(Terminal(there=there), environ)  # type: ignore[arg-type]

    assert (expected, "\x1b[31mx\x1b[0m" if expected else "x") == (chosen.on, chosen("x", "red"))
