"""What a report says of a job: how it went, how each rank ended, what was the same, what happened when."""

import json
import time
from collections.abc import Callable
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.inspection import job_report
from hpc_launch.inspection.report_content import Report
from hpc_launch.inspection.timeline_lanes import LaneEnd
from hpc_launch.records.requeue_ledger import BY_SLURM
from hpc_launch.records.root_cause import ENDED, LOST
from tests import histories
from tests.histories import Losses
from tests.support import lines_mention, mentions

BEGIN = 1_718_000_000.0

Event = dict[str, Any]


def report(path: Path, *, now: float = BEGIN + 1000, **facts: Any) -> Report:
    histories.write(path, **facts)
    return job_report.report_on_job(path, now=now, zone=timezone.utc).report


def changed(job: Path, host: str, change: Callable[[Event], bool], *more: Event) -> Report:
    """Keep those of a node's events that a function wants, which may change them, and add some; report on that."""
    file = job / f"nodes/{host}/events.jsonl"
    events = [event for line in file.read_text().splitlines() if change(event := json.loads(line))]
    file.write_text("".join(f"{json.dumps(event)}\n" for event in [*events, *more]))
    return job_report.report_on_job(job, now=BEGIN + 1000, zone=timezone.utc).report


def ends(told: Report, attempt: int) -> dict[str, str]:
    """How ranks ended, by ranks."""
    exits = next(exits for exits in told.exits if exits.attempt == attempt)
    return {line.ranks: line.kind for line in exits.lines}


@pytest.mark.parametrize(
    ("facts", "later", "word", "said"),
    [
        ({"attempts": 1}, 1000, "Done", "8"),
        ({"attempts": 3}, 1000, "Done", "8 2"),
        ({"nodes": 1, "per_node": 1, "attempts": 1}, 1000, "Done", "rank"),
        ({"ending": "failed"}, 1000, "Failed", "1"),
        ({"ending": "failed", "exception": None}, 1000, "Failed", "137"),
        ({"ending": "stopped"}, 1000, "Stopped", "SIGTERM 143"),
        ({"attempts": 1, "ending": "failed", "requeues": [0]}, 1000, "Requeued", "Slurm"),
        ({"attempts": 1, "ending": ""}, 40, "Running", "2024-06-10 06:13:50 0"),
        ({"attempts": 1, "ending": ""}, 4000, "Unknown", "2024-06-10 06:13:50 hpc-launch status"),
    ],
)
def test_how_it_went(tmp_path: Path, facts: dict[str, Any], later: float, word: str, said: str) -> None:
    """In a word and a sentence; a job that is silent for long is not said to be dead."""
    verdict = report(tmp_path / "1.0", now=BEGIN + later, **facts).verdict

    assert verdict.word == word
    assert mentions(verdict.sentence, said)


def test_how_ranks_ended(tmp_path: Path) -> None:
    """The one that failed first is told from those that followed, and these from those that were stopped."""
    told = report(tmp_path / "1.0", attempts=2)

    assert ends(told, 0) == {"7": LaneEnd.CAUSE, "1-2,4-5": LaneEnd.FOLLOWED, "0,3,6": LaneEnd.STOPPED}
    assert ends(told, 1) == {"0-7": LaneEnd.FINISHED}
    assert told.root is not None
    assert (told.root.title, told.root.past) == ("Why attempt 0 failed", True)


def test_ranks_that_followed_are_counted_once(tmp_path: Path) -> None:
    """The story has as many as the root cause."""
    told = report(tmp_path / "1.0", attempts=2)
    assert told.root is not None
    blame = told.root.blame
    [ended] = [moment.text for moment in told.story if moment.text.startswith("attempt 0: rank 7")]

    assert mentions(blame.followed, 7)
    assert blame.followed.removesuffix(".") in ended


def test_a_node_that_is_lost(tmp_path: Path) -> None:
    """Its ranks end with it in the picture, and a flag says when."""
    job = histories.write(tmp_path / "1.0", attempts=2, ending="done")
    said = {"time": BEGIN + 50, "event": "node lost", "agent": 0, "attempt": 0, "hosts": "gpu002"}
    changed(job, "gpu001", lambda _: True, said)
    told = changed(job, "gpu002", lambda event: event["event"] != "worker ended" or event["attempt"] == 1)

    assert ends(told, 0)["4-7"] == LaneEnd.LOST
    assert told.overview is not None
    assert [(flag.label, flag.style) for flag in told.overview.flags] == [("gpu002 lost", "lost")]
    assert "lost gpu002" in " ".join(moment.text for moment in told.story)


def test_a_job_that_loses_nodes(tmp_path: Path) -> None:
    """Who was lost, came back, leads or is bad; how large each attempt was; and what to leave out of the next job."""
    told = job_report.report_on_job(Losses(tmp_path / "1.0").write(), now=BEGIN + 1000, zone=timezone.utc).report
    facts = {fact.name: fact.value for fact in told.facts}
    broken = f"gpu003 is broken ({Losses.BROKEN.removeprefix('CUDA error: ')})"

    assert mentions(told.verdict.sentence, "6 3 2 lost")
    assert (facts["Ranks"], facts["Nodes"]) == ("6 (10 at first)", "3: gpu[002-003,006]")
    assert (facts["Lost"], facts["Back"], facts["Drained"]) == ("2: gpu[004-005]", "1: gpu001", "1: gpu003")
    assert mentions(told.advice, broken, "gpu004 DOWN+NOT_RESPONDING --exclude=gpu[003-004]")
    assert [(line.number, line.ranks, line.hosts) for line in told.attempts] == [
        (0, "10", "gpu[001-005]; to spare: gpu006"),
        (1, "10", "gpu[001-002,004-006]; to spare: gpu003"),
        (2, "10", "gpu[002-006]"),
        (3, "6", "gpu[002-003,006]"),
    ]
    assert told.overview is not None
    assert [(flag.label, flag.style) for flag in told.overview.flags] == [
        ("gpu003 drained", "drained"),
        ("gpu001 lost", "lost"),
        ("gpu002 leads", "leads"),
        ("gpu004 lost", "lost"),
        ("gpu005 lost", "lost"),
        ("gpu001 back", "back"),
    ]
    assert ends(told, 2) == {"4-7": LaneEnd.LOST, "0-3,8-9": LaneEnd.STOPPED}
    assert told.root is not None
    assert mentions(told.root.blame.headline, "lost gpu[004-005]")
    assert [name for name, _ in told.root.blame.facts] == ["gpu004", "gpu005"]
    story = [moment.text for moment in told.story if "attempt" not in moment.text]
    assert lines_mention(
        story[1:6],
        broken,
        "gpu002 gpu001",
        "lost gpu004 gpu002",
        "lost gpu005 gpu002",
        f"gpu004 DOWN+NOT_RESPONDING {clock(BEGIN + 190)} Not responding",
    )
    assert mentions(story[7], "gpu001 there")
    assert lines_mention([mark.text for mark in told.progress], "400 3 0 2024-06-10 06:16:40")


def clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))


def test_ends_that_nobody_saw(tmp_path: Path) -> None:
    """They are unknown, and nothing else."""
    job = histories.write(tmp_path / "1.0", attempts=2)
    told = changed(job, "gpu002", lambda event: event["event"] != "worker ended")

    assert ends(told, 1) == {"4-7": LaneEnd.UNKNOWN, "0-3": LaneEnd.FINISHED}


def test_what_was_the_same_before(tmp_path: Path) -> None:
    """The root cause says in which attempts it was the same."""
    told = report(tmp_path / "1.0", attempts=5, ending="failed", fails={1: 2})

    assert told.root is not None
    assert told.root.title == "Root cause"
    assert mentions(told.root.before, "0-3")
    assert mentions(told.root.blame.followed, f"7 3 {ENDED} 4 {LOST}")


def test_what_differed_between_runs(tmp_path: Path) -> None:
    """Software that was another in another run is told."""
    job = histories.write(tmp_path / "1.0", attempts=2, requeues=[0])

    def change(event: Event) -> bool:
        if event.get("restart_count") == 1:
            event["versions"]["torch"] = "2.14.0"
        return True

    plans = [changed(job, host, change).plan for host in ("gpu001", "gpu002")]
    plan = plans[-1]
    assert plan is not None
    torch = next(value for value in plan.software if value.name == "torch")

    assert (torch.value, torch.before) == ("2.14.0", ("2.13.0",))


def story_of_two_runs(job: Path, *, requeues: list[Event], restarts: int) -> list[str]:
    """Tell of a job with a second run, which says how often Slurm had started it again."""
    histories.write(job, attempts=2, requeues=[0])
    (job / "requeues.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in requeues))

    def change(event: Event) -> bool:
        if event.get("restart_count"):
            event["restart_count"] = restarts
        return True

    changed(job, "gpu001", change)
    return [moment.text for moment in changed(job, "gpu002", change).story]


def test_a_second_run_by_hand_is_none_of_slurms(tmp_path: Path) -> None:
    """Outside of Slurm runs of one name share a directory."""
    by_hand = story_of_two_runs(tmp_path / "1.0", requeues=[], restarts=0)
    by_slurm = story_of_two_runs(tmp_path / "2.0", requeues=[], restarts=1)

    assert len(by_hand) == len(by_slurm)
    assert not any(mentions(text, "Slurm") for text in by_hand)
    assert [mentions(text, "Slurm started again") for text in by_slurm].count(True) == 1


@pytest.mark.parametrize("said", [{"by_slurm": True}, {}])
def test_a_requeue_that_nobody_asked_for(tmp_path: Path, said: Event) -> None:
    """Slurm did it by itself; the ledgers of earlier versions have words for that only."""
    entry = {"time": BEGIN + 80, "reason": "preempt", "cause": BY_SLURM, "restart_count": 0, "attempt": 0} | said
    entry |= {"step": None, "progressed": False, "counted": False}
    story = story_of_two_runs(tmp_path / "1.0", requeues=[entry], restarts=1)
    assert not any(mentions(text, "asked") for text in story)
    assert any(mentions(text, "Slurm by itself") for text in story)

    job = histories.write(tmp_path / "2.0", attempts=1, requeues=[0], ending="failed")
    (job / "requeues.jsonl").write_text(f"{json.dumps(entry)}\n")
    verdict = job_report.report_on_job(job, now=BEGIN + 1000, zone=timezone.utc).report.verdict
    assert mentions(verdict.sentence, "Slurm by itself")


def test_the_story_is_in_order(tmp_path: Path) -> None:
    """One thing after another, and no more of it than somebody reads."""
    told = report(tmp_path / "1.0", attempts=200)
    times = [moment.time for moment in told.story if moment.time]

    assert times == sorted(times)
    assert len(told.story) == 121
    assert (told.story[60].time, mentions(told.story[60].text, 282)) == ("", True)
    assert len(told.attempts) == 101
    assert mentions(told.attempts[50].ending, 100)


def test_what_cannot_be_read_is_bounded(tmp_path: Path) -> None:
    """Of many nodes without records the first are named, and the others counted."""
    for number in range(130):
        (tmp_path / f"1.0/nodes/none{number:03d}").mkdir(parents=True)
    told = report(tmp_path / "1.0")

    assert told.verdict.word == "Done"
    assert len(told.unreadable) == 101
    assert mentions(told.unreadable[0], "nodes/none000/events.jsonl")
    assert mentions(told.unreadable[-1], 30)
