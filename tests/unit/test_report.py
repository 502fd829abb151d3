"""What a report says of a job: how it went, how each rank ended, what was the same, what happened when."""

import json
import time
from collections.abc import Callable
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.review import reports
from hpc_launch.review.report import Report
from tests import histories
from tests.histories import Losses

BEGIN = 1_718_000_000.0

Event = dict[str, Any]


def report(path: Path, *, now: float = BEGIN + 1000, **facts: Any) -> Report:
    histories.write(path, **facts)
    return reports.of(path, now=now, zone=timezone.utc).report


def changed(job: Path, host: str, change: Callable[[Event], bool], *more: Event) -> Report:
    """Keep those of a node's events that a function wants, which may change them, and add some; report on that."""
    file = job / f"nodes/{host}/events.jsonl"
    events = [event for line in file.read_text().splitlines() if change(event := json.loads(line))]
    file.write_text("".join(f"{json.dumps(event)}\n" for event in [*events, *more]))
    return reports.of(job, now=BEGIN + 1000, zone=timezone.utc).report


def ends(told: Report, attempt: int) -> dict[str, str]:
    """How ranks ended, by ranks."""
    exits = next(exits for exits in told.exits if exits.attempt == attempt)
    return {line.ranks: line.kind for line in exits.lines}


@pytest.mark.parametrize(
    ("facts", "later", "word", "sentence"),
    [
        ({"attempts": 1}, 1000, "Done", "All 8 ranks ended well."),
        ({"attempts": 3}, 1000, "Done", "All 8 ranks ended well in attempt 2."),
        ({"nodes": 1, "per_node": 1, "attempts": 1}, 1000, "Done", "The only rank ended well."),
        ({"ending": "failed"}, 1000, "Failed", "It ended with status 1."),
        ({"ending": "failed", "exception": None}, 1000, "Failed", "It ended with status 137."),
        ({"ending": "stopped"}, 1000, "Stopped", "It was stopped by SIGTERM, and ended with status 143."),
        ({"attempts": 1, "ending": "failed", "requeues": [0]}, 1000, "Requeued", "The run has ended, and Slurm"),
        ({"attempts": 1, "ending": ""}, 40, "Running", "The last sign of life is of 2024-06-10 06:13:50: attempt 0."),
        ({"attempts": 1, "ending": ""}, 4000, "Unknown", "No end is recorded. The last sign of life is"),
    ],
)
def test_how_it_went(tmp_path: Path, facts: dict[str, Any], later: float, word: str, sentence: str) -> None:
    """In a word and a sentence; a job that is silent for long is not said to be dead."""
    verdict = report(tmp_path / "1.0", now=BEGIN + later, **facts).verdict

    assert verdict.word == word
    assert verdict.sentence.startswith(sentence)


def test_how_ranks_ended(tmp_path: Path) -> None:
    """The one that failed first is told from those that followed, and these from those that were stopped."""
    told = report(tmp_path / "1.0", attempts=2)

    assert ends(told, 0) == {
        "7": "failed first",
        "1-2,4-5": "failed because of others",
        "0,3,6": "stopped by hpc-launch",
    }
    assert ends(told, 1) == {"0-7": "finished"}
    assert told.root is not None
    assert (told.root.title, told.root.past) == ("Why attempt 0 failed", True)


def test_a_node_that_is_lost(tmp_path: Path) -> None:
    """Its ranks end with it in the picture, and a flag says when."""
    job = histories.write(tmp_path / "1.0", attempts=2, ending="done")
    said = {"time": BEGIN + 50, "event": "node lost", "agent": 0, "attempt": 0, "hosts": "gpu002"}
    changed(job, "gpu001", lambda _: True, said)
    told = changed(job, "gpu002", lambda event: event["event"] != "worker ended" or event["attempt"] == 1)

    assert ends(told, 0)["4-7"] == "lost with its node"
    assert told.overview is not None
    assert [(flag.label, flag.style) for flag in told.overview.flags] == [("gpu002 lost", "lost")]
    assert "lost gpu002" in " ".join(moment.text for moment in told.story)


def test_a_job_that_loses_nodes(tmp_path: Path) -> None:
    """Who was lost, came back, leads or is bad; how large each attempt was; and what to leave out of the next job."""
    told = reports.of(Losses(tmp_path / "1.0").write(), now=BEGIN + 1000, zone=timezone.utc).report
    facts = {fact.name: fact.value for fact in told.facts}
    broken = "gpu003 is broken (uncorrectable ECC error encountered)"

    assert told.verdict.sentence == "All 6 ranks ended well in attempt 3; 2 nodes lost on the way."
    assert (facts["Ranks"], facts["Nodes"]) == ("6 (10 at first)", "3: gpu[002-003,006]")
    assert (facts["Lost"], facts["Back"], facts["Drained"]) == ("2: gpu[004-005]", "1: gpu001", "1: gpu003")
    assert told.advice == (
        f"Bad nodes: {broken}; gpu004 was lost (Slurm: DOWN+NOT_RESPONDING, Not responding); for the next job: "
        "--exclude=gpu[003-004]"
    )
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
    assert ends(told, 2) == {"4-7": "lost with its node", "0-3,8-9": "stopped by hpc-launch"}
    assert told.root is not None
    assert told.root.blame.headline == "lost gpu[004-005]: their agents were killed, or the nodes are gone"
    assert [name for name, _ in told.root.blame.facts] == ["gpu004", "gpu005"]
    story = [moment.text for moment in told.story if "attempt" not in moment.text]
    assert story[1:6] == [
        broken,
        "gpu002 leads in place of gpu001",
        "lost gpu004, says gpu002",
        "lost gpu005, says gpu002",
        f"gpu004: Slurm says DOWN+NOT_RESPONDING since {clock(BEGIN + 190)}: Not responding",
    ]
    assert story[7] == "gpu001 is there again"
    assert [mark.text for mark in told.progress] == ["Step 400 in attempt 3, marked by rank 0 at 2024-06-10 06:16:40"]


def clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))


def test_ends_that_nobody_saw(tmp_path: Path) -> None:
    """They are unknown, and nothing else."""
    job = histories.write(tmp_path / "1.0", attempts=2)
    told = changed(job, "gpu002", lambda event: event["event"] != "worker ended")

    assert ends(told, 1) == {"4-7": "end not seen", "0-3": "finished"}


def test_what_was_the_same_before(tmp_path: Path) -> None:
    """The root cause says in which attempts it was the same."""
    told = report(tmp_path / "1.0", attempts=5, ending="failed", fails={1: 2})

    assert told.root is not None
    assert told.root.title == "Root cause"
    assert told.root.before == "The same happened in attempts 0-3."
    assert told.root.blame.followed == "7 other ranks followed: 3 ended by hpc-launch, 4 lost their connection."


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


def test_the_story_is_in_order(tmp_path: Path) -> None:
    """One thing after another, and no more of it than somebody reads."""
    told = report(tmp_path / "1.0", attempts=200)
    times = [moment.time for moment in told.story if moment.time]

    assert times == sorted(times)
    assert len(told.story) == 121
    assert "are left out here" in told.story[60].text
    assert len(told.attempts) == 101
    assert "100 attempts are left out here" in told.attempts[50].ending


def test_what_cannot_be_read_is_bounded(tmp_path: Path) -> None:
    """Of many nodes without records the first are named, and the others counted."""
    for number in range(130):
        (tmp_path / f"1.0/nodes/none{number:03d}").mkdir(parents=True)
    told = report(tmp_path / "1.0")

    assert told.verdict.word == "Done"
    assert len(told.unreadable) == 101
    assert told.unreadable[0] == "nodes/none000/events.jsonl: it is not there"
    assert told.unreadable[-1] == "and 30 more"
