"""Many agents, driven at random through failures, slow joins and simultaneous failures, always agree."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError

from hpc_launch.errors import RoundRefused
from hpc_launch.rendezvous.handler import SlurmRendezvous
from hpc_launch.rendezvous.messages import RoundEnd, RoundEnding
from tests.support import wait_for
from tests.unit.agents_support import DEADLINE, begin, config, configs, end_of, finish

SEEDS = [pytest.param(number, marks=[pytest.mark.soak] if number >= 8 else []) for number in range(200)]

FAIL, DONE, CLOSE, WAIT = "fail", "done", "close", "wait"


@dataclass(frozen=True)
class Part:
    """What one agent does in one round.

    Attributes:
        late: seconds that it comes late.
        after: seconds after which it acts, counted from its own start of the round.
        act: fail, finish (`done`), `close` the rendezvous whatever is left of the budget, or only `wait`.
        instant: act when all others of this kind do, too.
    """

    late: float
    after: float
    act: str
    instant: bool


@dataclass
class Story:
    """A run: what every agent does in every round, and what it saw.

    `refused` are those who were refused another attempt: somebody closed the rendezvous when the round had just ended
    for it.
    """

    agents: int
    budget: int
    parts: list[list[Part]]
    meetings: list[threading.Barrier | None]
    seen: list[list[tuple[int, str, int, RoundEnd]]] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)


def invent(seed: int) -> Story:
    """Make up a story; the same for the same seed."""
    chance = random.Random(seed)
    agents, budget = chance.choice([2, 3, 5, 8, 8, 12]), chance.randrange(5)
    parts, meetings = [], []
    for number in range(budget + 1):
        calm = number == budget and chance.random() < 0.5
        failing = set() if calm else set(chance.sample(range(agents), chance.choice([1, 1, 2, agents])))
        instant = len(failing) > 1 and chance.random() < 0.5
        if instant:
            failing = set(range(agents))
        parts.append(
            [
                Part(
                    late=chance.choice([0, 0, 0, 0.02, 0.1, 0.3]),
                    after=chance.choice([0, 0, 0.01, 0.05, 0.1]),
                    act=chance.choice([FAIL] * 9 + [CLOSE]) if agent in failing else chance.choice([DONE, DONE, WAIT]),
                    instant=instant,
                )
                for agent in range(agents)
            ]
        )
        if not failing:  # somebody who only waits would wait for ever
            parts[-1] = [Part(part.late, part.after, DONE, instant=False) for part in parts[-1]]
        meetings.append(threading.Barrier(agents) if instant else None)
    return Story(agents, budget, parts, meetings, [[] for _ in range(agents)])


def live(handler: SlurmRendezvous, story: Story) -> None:
    """Be one agent, from the first round to the last."""
    agent = handler._config.agent
    number = 0
    while True:
        part = story.parts[number][agent]
        time.sleep(part.late)
        try:
            info = handler.next_rendezvous()
        except RoundRefused as refused:
            if refused.exit_status != 1:  # that of a rendezvous which was closed
                raise
            story.refused.add(agent)
            return
        assert (info.rank, info.world_size, handler.round_number) == (agent, story.agents, number)
        end = act(handler, part, story.meetings[number])
        story.seen[agent].append((number, handler.plan.master_addr, handler.plan.master_port, end))
        if end.ending != RoundEnding.RESTART.value:
            with pytest.raises(RendezvousClosedError):
                handler.next_rendezvous()
            return
        number += 1


def act(handler: SlurmRendezvous, part: Part, meeting: threading.Barrier | None) -> RoundEnd:
    """Play one's part in a round; returns its end."""
    if meeting is not None:
        meeting.wait(DEADLINE)
    else:
        began = time.monotonic()
        wait_for(lambda: handler.end() or time.monotonic() - began >= part.after, DEADLINE, "no end", pause=0.003)
    if handler.end() is None:
        if part.act == DONE:
            handler.report_done()
        elif part.act == FAIL:
            handler.report_failure(100 + handler._config.agent, f"agent {handler._config.agent} failed")
        elif part.act == CLOSE:
            handler.set_closed()
    return end_of(handler)


@pytest.mark.parametrize("seed", SEEDS)
def test_agents_always_agree(tmp_path: Path, seed: int) -> None:
    """All see the same rounds with the same endpoints and the same ends, and restart as often as the budget allows."""
    story = invent(seed)
    run = config(tmp_path, story.agents, max_restarts=story.budget)
    handlers = [SlurmRendezvous(one) for one in configs(run)]

    def whole_life(handler: SlurmRendezvous) -> None:
        try:
            live(handler, story)
        finally:
            handler.shutdown()

    tasks = [begin(lambda handler=handler: whole_life(handler), handler._config.host) for handler in handlers]  # type: ignore[misc]
    finish(tasks)

    assert [task.error for task in tasks] == [None] * story.agents
    history = story.seen[0]
    assert story.seen == [history] * story.agents
    assert [number for number, *_ in history] == list(range(len(history)))
    assert len(history) - 1 <= story.budget
    for number, _, _, end in history:
        acts = [part.act for part in story.parts[number]]
        if end.ending == RoundEnding.DONE.value:
            assert set(acts) == {DONE}
        elif acts[end.agent] == CLOSE:
            assert (end.ending, end.status) == (RoundEnding.FAILED.value, 1)
        else:
            assert acts[end.agent] == FAIL
            assert end.ending == (RoundEnding.RESTART if number < story.budget else RoundEnding.FAILED).value
            assert end.status == 100 + end.agent
    assert story.refused == (set(range(story.agents)) if history[-1][3].ending == RoundEnding.RESTART.value else set())
    assert not story.refused or any(part.act == CLOSE for part in story.parts[len(history) - 1])
    assert len({port for _, _, port, _ in history}) >= len(history) - 1  # chance may choose one twice
