"""Which nodes the next job had better be without, and how an attempt is told that has lost nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_launch.records import events, failure_messages, history, nodes_to_exclude, root_cause
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.events import EventLog
from hpc_launch.records.history_model import History
from hpc_launch.records.nodes_to_exclude import BadNode
from hpc_launch.records.root_cause import ENDED
from tests import histories
from tests.histories import Losses
from tests.support import lines_mention, mentions

ECC = "uncorrectable ECC error encountered"


def test_drained_and_lost_nodes(tmp_path: Path) -> None:
    """Not those that have come back, nor those that are up as Slurm says: their agents were killed."""
    found = nodes_to_exclude.find_bad_nodes(history.read_history(Losses(tmp_path / "1.0").write()))

    assert [node.host for node in found] == ["gpu003", "gpu004"]
    assert lines_mention([node.why for node in found], f"broken {ECC}", "lost DOWN+NOT_RESPONDING Not responding")
    assert nodes_to_exclude.find_bad_nodes(History(tmp_path)) == ()


@pytest.mark.parametrize(
    ("exception", "why"), [(("RuntimeError", f"CUDA error: {ECC}"), f"is broken ({ECC})"), (("ValueError", "nan"), "")]
)
def test_a_run_that_cannot_lose_nodes_has_bad_ones_as_well(
    tmp_path: Path, exception: tuple[str, str], why: str
) -> None:
    """The worker that failed first has evidence that its device is broken; and a node that is lost ends the run."""
    path = histories.write(tmp_path / "1.0", attempts=2, ending="failed", fails={0: 6, 1: 6}, exception=exception)
    EventLog(JobDirectory(tmp_path, "1.0").events("gpu001"), 0).record(
        events.NODE_LOST, when=1_718_000_122.0, attempt=1, hosts="gpu001"
    )

    found = nodes_to_exclude.find_bad_nodes(history.read_history(path))
    assert found == (BadNode("gpu001", "was lost"), *((BadNode("gpu002", why),) if why else ()))


def test_those_of_an_earlier_run_are_of_no_interest(tmp_path: Path) -> None:
    """The job runs again on whatever nodes Slurm has given it since."""
    exception = ("RuntimeError", f"CUDA error: {ECC}")
    path = histories.write(tmp_path / "1.0", attempts=2, requeues=[0], exception=exception)

    assert nodes_to_exclude.find_bad_nodes(history.read_history(path)) == ()


def test_advice_is_a_line() -> None:
    """What is the same is told once, and what would be too long is left out; the option has all nodes."""
    several = [BadNode(f"gpu{number}", "was lost") for number in range(3)]
    many = [BadNode(f"gpu{number}", f"is broken ({number})") for number in range(9)]

    assert nodes_to_exclude.bad_nodes_advice([]) == ""
    told = nodes_to_exclude.bad_nodes_advice([*several, BadNode("gpu7", "is broken")])
    assert mentions(told, "gpu[0-2] was lost", "gpu7 is broken", "--exclude=gpu[0-2,7]")
    assert told.count("was lost") == 1
    told = nodes_to_exclude.bad_nodes_advice(many)
    assert mentions(told, "gpu3 is broken", "--exclude=gpu[0-8]")
    assert not mentions(told, "gpu4")


def test_an_attempt_that_has_lost_nodes(tmp_path: Path) -> None:
    """What Slurm knows of a single node stands in the headline, of several below it."""
    path = Losses(tmp_path / "1.0").write()
    told = history.read_history(path)
    found = [cause for attempt in told.attempts if (cause := root_cause.root_cause_of(told, attempt))]
    blocks = [failure_messages.failure_block(cause) for cause in found]

    assert [cause.lost for cause in found[1:]] == ["gpu001", "gpu[004-005]"]
    assert lines_mention([block[0] for block in blocks[1:]], "lost gpu001", "lost gpu[004-005]")
    assert lines_mention(blocks[2][1:3], "gpu004 DOWN+NOT_RESPONDING", "gpu005 MIXED 41")
    state = {"host": "gpu001", "state": "DOWN", "gone": True, "reason": "it smokes", "waited": 2.0, "last": True}
    line = json.dumps({"time": 1_718_000_113.0, "event": "node state", "agent": 1, "attempt": 1, **state})
    with (path / "nodes/gpu002/events.jsonl").open("a") as stream:
        stream.write(f"{line}\n")
    told = history.read_history(path)
    cause = root_cause.root_cause_of(told, told.attempts[1])
    assert cause is not None
    assert lines_mention(failure_messages.failure_block(cause), "lost gpu001 DOWN it smokes", f"10 {ENDED}")
