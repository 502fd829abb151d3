"""When the leader asks Slurm about lost nodes, and what it says of the answers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hpc_launch.agent import slurm_node_states
from hpc_launch.agent.slurm_node_states import SlurmNodeStates
from hpc_launch.records import events, failure_messages
from hpc_launch.records.history_model import NodeState
from hpc_launch.slurm.cluster_rules import ClusterRules
from hpc_launch.slurm.nodes import NodeRecord
from tests.support import lines_mention, mentions, wait_for

DEADLINE = 60.0
UP, DOWN = NodeRecord("gpu1", "MIXED", booted=5.0), NodeRecord("gpu1", "DOWN", "it smokes", since=7.0)


@dataclass
class Slurm:
    """What the controller says, one answer after the other; the last one again and again."""

    answers: list[NodeRecord | None]
    asked: list[Sequence[str]] = field(default_factory=list)
    heard: list[NodeState] = field(default_factory=list)
    wanted: bool = True

    def ask(self, names: Sequence[str]) -> tuple[NodeRecord, ...] | None:
        """Answer."""
        self.asked.append(names)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return None if answer is None else (answer,)


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return what makes views, which are closed in the end, of a Slurm that notices soon that a node is gone."""
    monkeypatch.setattr(slurm_node_states, "_MORE_SECONDS", 0.0)
    made: list[SlurmNodeStates] = []

    def make(slurm: Slurm, timeout: float = 0.05) -> SlurmNodeStates:
        rules = ClusterRules(slurmd_timeout=timeout)
        made.append(SlurmNodeStates(slurm.heard.append, lambda: slurm.wanted, slurm.ask, lambda: rules))
        return made[-1]

    yield make
    for view in made:
        view.close()
        if view._thread is not None:
            view._thread.join(DEADLINE)


def ended(view: SlurmNodeStates) -> bool:
    """Whether there is nothing more to ask."""
    return bool(view._lost) and not view._due


@pytest.mark.parametrize(
    ("answers", "states", "said"),
    [
        ([DOWN], ["DOWN"], "Slurm DOWN"),
        ([UP, DOWN], ["MIXED", "DOWN"], "Slurm DOWN"),
        ([UP], ["MIXED"] * 3, "Slurm MIXED"),
        ([None, None, DOWN], ["DOWN"], "Slurm DOWN"),
        ([None], [], ""),
    ],
)
def test_it_is_asked_until_it_knows(
    views: Any, capfd: pytest.CaptureFixture[str], answers: list[NodeRecord | None], states: list[str], said: str
) -> None:
    """Two more times where it says that the node is up, or nothing; a person is told the last word, once."""
    slurm = Slurm(answers)
    view = views(slurm)
    view.lost(["gpu1"])
    view.lost(["gpu1"])
    wait_for(lambda: ended(view), DEADLINE, "it asks and asks")
    view.close()
    view._thread.join(DEADLINE)
    told = capfd.readouterr().err

    assert [state.state for state in slurm.heard] == states
    assert [state.last for state in slurm.heard] == [*[False] * (len(states) - 1), *[True] * bool(states)]
    assert told.count("hpc-launch: gpu1: ") == bool(said)
    assert mentions(told, said)


def test_where_slurm_never_takes_a_node_for_down(views: Any) -> None:
    """It is asked once."""
    slurm = Slurm([UP])
    view = views(slurm, timeout=math.inf)
    view.lost(["gpu1"])
    wait_for(lambda: ended(view), DEADLINE, "it asks and asks")
    wait_for(lambda: slurm.heard, DEADLINE, "nothing is heard")

    assert [state.last for state in slurm.heard] == [True]


def test_who_does_not_lead_any_more_asks_no_more(views: Any) -> None:
    """Whoever leads then does."""
    slurm = Slurm([UP])
    view = views(slurm)
    view._due["gpu1"] = [0.0, 0.0]
    slurm.wanted = False
    view.lost(["gpu2"])
    wait_for(lambda: not view._due, DEADLINE, "it asks and asks")

    assert slurm.asked == []


def test_one_that_comes_back_is_of_no_interest(views: Any) -> None:
    """Unless it is lost again; several are asked about at once."""
    slurm = Slurm([UP])
    view = views(slurm, timeout=1000.0)
    view.lost(["gpu1", "gpu2"])
    wait_for(lambda: slurm.heard, DEADLINE, "nothing is heard")
    view.note(events.NODE_BACK, {"hosts": "gpu1"})
    view.note(events.NODES, {"hosts": "gpu[2-3]", "spares": "", "lost": ""})
    assert not view._due
    view.note(events.NODE_LOST, {"hosts": "gpu2"})
    wait_for(lambda: len(slurm.asked) == 2, DEADLINE, "it is not asked")
    view.note(events.NODES, {"hosts": "gpu3", "spares": "", "lost": "gpu[1-2]"})
    wait_for(lambda: len(slurm.asked) == 3, DEADLINE, "it is not asked")

    assert slurm.asked == [["gpu1", "gpu2"], ["gpu2"], ["gpu1"]]


def test_only_the_leader_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All agents write down that they have lost the leader, and only the one that leads asks Slurm."""
    seen: list[str] = []
    asked: list[Any] = []
    handler = cast("Any", SimpleNamespace(leads=False, observer=lambda event, **_: seen.append(event)))
    view = slurm_node_states.follow(handler)
    monkeypatch.setattr(view, "note", lambda *said: asked.append(said))
    handler.observer(events.NODE_LOST, hosts="gpu1")
    handler.leads = True
    handler.observer(events.NODE_LOST, hosts="gpu2")

    assert seen == [events.NODE_LOST] * 2
    assert asked == [(events.NODE_LOST, {"hosts": "gpu2"})]


def test_what_is_said_of_a_node() -> None:
    """Down with the reason; booted again; not noticed yet; up, so that something else must have happened."""
    lost = time.time()

    def word(**facts: Any) -> str:
        usual = {"state": "MIXED", "gone": False, "reason": "", "since": None, "booted": 5.0, "last": True}
        return failure_messages.slurms_word(NodeState(time=lost + 40, host="gpu1", waited=40, **{**usual, **facts}))

    clock = time.strftime("%H:%M:%S", time.localtime(lost + 7))
    told = [
        word(state="DOWN", gone=True, since=lost + 7, reason="it smokes"),
        word(state="IDLE+NOT_RESPONDING", gone=True),
        word(booted=lost + 7),
        word(last=False),
        word(),
    ]
    expected = (f"DOWN {clock} it smokes", "IDLE+NOT_RESPONDING", f"booted {clock} MIXED", "MIXED 40", "MIXED 40")
    assert lines_mention(told, *expected)
    assert len(set(told)) == len(told)
