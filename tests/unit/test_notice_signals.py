"""Notice signals between nodes: every worker gets each of them once, with a clock that the test moves."""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from unittest import mock

import pytest
from hypothesis import given, strategies as st

from hpc_launch.node import processes
from hpc_launch.workers import notice_signals as notices_module
from hpc_launch.workers.notice_signals import Delivery, NoticeSignals, Tally
from hpc_launch.workers.signals import AgentSignals
from tests.support import wait_for

USR1, USR2 = signal.SIGUSR1, signal.SIGUSR2

# How often agents look, and ask the store for what others say; as slow as a busy machine.
LOOK = 0.25
ASK = 0.5


@dataclass
class Clock:
    """Stands in for the module `time`."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Agent:
    """One node: what it got, and what its workers were sent."""

    store: Counter[str]
    workers: Sequence[int] = (1, 2)
    came: Counter[signal.Signals] = field(default_factory=Counter)
    sent: Counter[tuple[int, signal.Signals]] = field(default_factory=Counter)
    heard: Counter[int] = field(default_factory=Counter)
    others: dict[str, int] = field(default_factory=dict)
    asked: float = 0.0

    def __post_init__(self) -> None:
        self.notices = NoticeSignals(lambda: self.came, self.listen, self.send)

    def listen(self, signum: int) -> bool:
        """As a blocked signal is heard: once, however often it came."""
        return bool(self.heard.pop(signum, 0))

    def send(self, pid: int, signum: int) -> None:
        self.sent[(pid, signal.Signals(signum))] += 1

    def turn(self, now: float) -> dict[str, int]:
        if now >= self.asked + ASK:
            self.asked, self.others = now, dict(self.store)
        new = self.notices.turn(self.workers, self.others)
        for name, count in new.items():
            self.store[name] = max(self.store[name], count)
        return new

    @property
    def each(self) -> list[int]:
        """How often each worker was sent USR1."""
        return [self.sent[(pid, USR1)] for pid in self.workers]

    @property
    def told(self) -> int:
        return self.notices._tallies[USR1].told if USR1 in self.notices._tallies else 0


class Nodes:
    """Agents that have nothing but the store in common."""

    def __init__(self, count: int, clock: Clock) -> None:
        self.store: Counter[str] = Counter()
        self.agents = [Agent(self.store) for _ in range(count)]
        self._clock = clock

    def run(self, seconds: float, arrivals: Sequence[tuple[float, int]] = (), *, order: Sequence[int] = ()) -> None:
        """Let time pass. `arrivals` says when USR1 comes to which agent; `order` is that in which agents look."""
        begin, left = self._clock.now, sorted(arrivals)
        while self._clock.now < begin + seconds:
            while left and begin + left[0][0] <= self._clock.now:
                self.agents[left.pop(0)[1]].came[USR1] += 1
            for number in order or range(len(self.agents)):
                self.agents[number].turn(self._clock.now)
            self._clock.now += LOOK
        assert not left

    @property
    def each(self) -> list[list[int]]:
        return [agent.each for agent in self.agents]


@pytest.fixture
def clock() -> Iterator[Clock]:
    """Return the clock that agents look at; no worker would die of a signal."""
    with patched() as made:
        yield made


@contextlib.contextmanager
def patched() -> Iterator[Clock]:
    with (
        mock.patch.object(notices_module, "time", Clock()) as made,
        mock.patch.object(processes, "would_die_of", return_value=False),
    ):
        yield made


# ---- the numbers


def test_what_comes_here_first() -> None:
    """A signal is new that nobody has told of, and the others' word of it is no news."""
    tally = Tally()
    assert tally.count_local(0)
    assert not tally.count_remote(1, 1)
    assert (tally.told, tally.count_local(2), tally.count_remote(2, 3)) == (1, True, False)
    assert tally.told == 2


def test_what_comes_elsewhere_first() -> None:
    """The own one that follows within a minute is the same; the one after it is another."""
    tally = Tally()
    assert tally.count_remote(1, 0)
    assert not tally.count_local(59)
    assert tally.count_local(59)
    assert tally.told == 2


@pytest.mark.parametrize(("after", "new"), [(59.9, False), (60.0, False), (60.1, True), (3600, True)])
def test_a_late_own_one_is_another(after: float, new: bool) -> None:
    """What came to others only, long ago, is not what comes here now."""
    tally = Tally()
    assert tally.count_remote(3, 100)
    assert tally.count_local(100 + after) is new
    assert tally.told == 3 + new


def test_the_number_only_grows() -> None:
    """What others said earlier is heard of late, and is no news."""
    tally = Tally()
    assert tally.count_remote(5, 0)
    assert [tally.count_remote(number, 1) for number in (0, 1, 4, 5)] == [False] * 4
    assert (tally.told, tally.count_remote(7, 2), tally.told) == (5, True, 7)


# ---- nodes


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize(
    "arrivals",
    [
        [(0, 0), (0, 1), (0, 2)],
        [(0, 0), (0.3, 1), (0.6, 2)],
        [(0, 2), (4, 1), (9, 0)],
        [(0, 1), (1, 0), (50, 2)],
        [(3, 0)],
        [(3, 1)],
        [(3, 1), (3, 2)],
    ],
    ids=str,
)
def test_one_signal(clock: Clock, arrivals: list[tuple[float, int]], order: tuple[int, ...]) -> None:
    """Wherever it comes, in whatever order and how late, each worker of each node gets it once."""
    nodes = Nodes(3, clock)
    nodes.run(70, arrivals, order=order)

    assert nodes.each == [[1, 1]] * 3
    assert nodes.store == {"SIGUSR1": 1}
    assert all(agent.notices.told for agent in nodes.agents)


@pytest.mark.parametrize(
    "arrivals",
    [
        [(0, 0), (0, 1), (10, 0), (10, 1)],
        [(0, 0), (5, 1), (20, 1), (25, 0)],
        [(0, 0), (20, 0), (20.5, 1)],
        [(0, 0), (100, 0)],
        [(0, 0), (100, 1)],
        [(0, 0), (100, 1), (101, 0)],
        [(0, 0), (100, 0), (101, 1)],
    ],
    ids=str,
)
def test_two_signals(clock: Clock, arrivals: list[tuple[float, int]]) -> None:
    """Two that are meant to be two are two, for every worker, also where one of them came to a single node."""
    nodes = Nodes(2, clock)
    nodes.run(170, arrivals)

    assert nodes.each == [[2, 2]] * 2
    assert nodes.store == {"SIGUSR1": 2}


def test_signals_do_not_mix(clock: Clock) -> None:
    """Each kind is counted for itself."""
    nodes = Nodes(2, clock)
    first, second = nodes.agents
    first.came[USR1] += 1
    second.came[USR2] += 1
    nodes.run(10)

    expected = {(pid, signum): 1 for pid in (1, 2) for signum in (USR1, USR2)}
    assert [first.sent, second.sent] == [expected, expected]
    assert nodes.store == {"SIGUSR1": 1, "SIGUSR2": 1}


def test_it_is_told_at_once_and_passed_on_once(clock: Clock) -> None:
    """The others hear of it when it comes; the agent's own workers a moment later; and nobody hears of it again."""
    agent = Agent(Counter())
    assert agent.turn(clock.now) == {}
    assert not agent.notices.told
    agent.came[USR1] += 1
    assert agent.turn(clock.now) == {"SIGUSR1": 1}
    assert agent.each == [0, 0]
    clock.now += 0.11
    assert agent.turn(clock.now) == {}
    assert agent.each == [1, 1]
    for _ in range(200):
        clock.now += 1
        assert agent.turn(clock.now) == {}
    assert agent.each == [1, 1]


# ---- where Slurm signals all processes of a step


def test_workers_that_slurm_has_signalled(clock: Clock) -> None:
    """They have got it: the agent does not send it again, but the other agents hear of it."""
    nodes = Nodes(2, clock)
    for agent, delay in zip(nodes.agents, (0, 1.5), strict=True):
        clock.now += delay
        agent.came[USR1] += 1
        agent.heard[USR1] += 1
        nodes.run(0.25)
    nodes.run(60)

    assert nodes.each == [[0, 0]] * 2
    assert nodes.store == {"SIGUSR1": 1}


def test_it_is_asked_when_slurm_has_had_time(clock: Clock) -> None:
    """Slurm may signal the agent first, and the workers and the factory a moment later."""
    agent = Agent(Counter())
    agent.came[USR1] += 1
    agent.turn(clock.now)
    clock.now += 0.09
    agent.heard[USR1] += 1
    agent.turn(clock.now)
    clock.now += 0.02
    agent.turn(clock.now)

    assert (agent.each, agent.heard) == ([0, 0], {})


def test_only_one_node_s_workers_have_got_it(clock: Clock) -> None:
    """Who was not signalled by Slurm is told by the agent, here and elsewhere."""
    nodes = Nodes(3, clock)
    nodes.agents[1].came[USR1] += 1
    nodes.agents[1].heard[USR1] += 1
    nodes.run(20)

    assert nodes.each == [[1, 1], [0, 0], [1, 1]]


# ---- any order, any delay


def test_workers_of_the_next_attempt_are_told_what_those_before_were(clock: Clock) -> None:
    """The end is as near for them. What is owed to workers that are gone is owed to nobody."""
    nodes = Nodes(2, clock)
    nodes.run(5, [(0, 0)])
    agent = nodes.agents[1]
    agent.workers = (3, 4)
    agent.notices.begin(agent.workers)
    nodes.run(5)
    assert agent.sent == Counter({(pid, USR1): 1 for pid in (1, 2, 3, 4)})
    assert nodes.store["SIGUSR1"] == 1


def test_what_comes_between_two_attempts_reaches_the_next(clock: Clock) -> None:
    """Slurm has signalled all processes, but these workers were not there yet."""
    nodes = Nodes(1, clock)
    agent = nodes.agents[0]
    agent.came[USR1] += 1
    agent.heard[USR1] += 1
    agent.notices.begin(agent.workers)
    nodes.run(5)
    assert agent.each == [1, 1]


@pytest.mark.parametrize("heard", [0, 1])
def test_what_comes_while_there_is_no_worker_is_said_of_the_next(clock: Clock, heard: int) -> None:
    """Nobody has got it before: whether they have a handler for it is seen then."""
    agent = Agent(Counter(), workers=())
    agent.came[USR1] += 1
    agent.heard[USR1] += heard
    for _ in range(2):
        agent.turn(clock.now)
        clock.now += 1
    assert agent.notices.deliveries() == []
    agent.workers = (1, 2)
    agent.notices.begin(agent.workers)
    agent.turn(clock.now)
    agent.turn(clock.now)
    assert (agent.notices.deliveries(), agent.each) == ([Delivery(USR1, 1, 2, 0)], [1, 1])


def test_what_nobody_heard_is_said_of_the_next(clock: Clock) -> None:
    """The workers that had no handler are gone before they got one: those of the next attempt have heard it then."""
    agent = Agent(Counter())
    agent.came[USR1] += 1
    with mock.patch.object(processes, "would_die_of", return_value=True):
        for _ in range(2):
            agent.turn(clock.now)
            clock.now += 1
        assert (agent.notices.deliveries(), agent.notices.told) == ([Delivery(USR1, 1, 0, 2)], False)
        agent.workers = ()
        agent.turn(clock.now)
        agent.workers = (3, 4)
        agent.notices.begin(agent.workers)
        agent.turn(clock.now)
        assert (agent.notices.deliveries(), agent.notices.told) == ([], False)
    for _ in range(2):
        agent.turn(clock.now)
    assert (agent.notices.deliveries(), agent.notices.told) == ([Delivery(USR1, 1, 2, 0, late=True)], True)
    assert agent.each == [1, 1]


def test_what_comes_just_before_the_next_attempt_reaches_it_once(clock: Clock) -> None:
    """It is known to have come, and not yet whether the workers have got it by themselves."""
    agent = Agent(Counter(), workers=())
    agent.came[USR1] += 1
    agent.turn(clock.now)
    agent.workers = (1, 2)
    agent.notices.begin(agent.workers)
    for _ in range(5):
        agent.turn(clock.now)
        clock.now += 0.05
    assert (agent.each, agent.notices.deliveries()) == ([1, 1], [Delivery(USR1, 1, 2, 0)])


def test_a_signal_that_is_not_passed_on_is_not_taken_for_the_next(clock: Clock) -> None:
    """It came to another node before, and to all processes here; the next one comes to this agent alone."""
    nodes = Nodes(2, clock)
    here = nodes.agents[0]
    nodes.run(5, [(0, 1)])
    assert here.each == [1, 1]
    here.came[USR1] += 1
    here.heard[USR1] += 1
    nodes.run(5)
    here.came[USR1] += 1
    nodes.run(5)
    assert here.each == [2, 2]


def test_it_says_when_it_has_something_to_do(clock: Clock) -> None:
    """However seldom the agent looks otherwise."""
    agent = Agent(Counter())
    assert agent.notices.pause == math.inf
    agent.came[USR1] += 1
    agent.turn(clock.now)
    assert agent.notices.pause == pytest.approx(0.1)
    clock.now += 0.1
    agent.turn(clock.now)
    assert (agent.each, agent.notices.pause) == ([1, 1], math.inf)


@given(data=st.data())
def test_each_signal_reaches_each_worker_once(data: st.DataObject) -> None:
    """Signals to some nodes each, some sooner and some later: as many as were sent, for every worker of every node."""
    count = data.draw(st.integers(1, 4), "nodes")
    signals = data.draw(
        st.lists(
            st.dictionaries(st.integers(0, count - 1), st.integers(0, 200).map(lambda fifths: fifths / 5), min_size=1),
            min_size=1,
            max_size=4,
        ),
        "when each signal comes to which nodes",
    )
    # Rather more than a minute apart, from the last node to hear of one to the first to hear of the next.
    arrivals = [
        (number * 110.0 + delay, node) for number, delays in enumerate(signals) for node, delay in delays.items()
    ]
    order = data.draw(st.permutations(range(count)), "order")
    with patched() as clock:
        nodes = Nodes(count, clock)
        nodes.run(110.0 * len(signals), arrivals, order=order)

    assert nodes.each == [[len(signals)] * 2] * count
    assert nodes.store == {"SIGUSR1": len(signals)}


@given(data=st.data())
def test_nodes_agree_whatever_comes(data: st.DataObject) -> None:
    """Any signals at any time: in the end all know the same number; it is one that a node could count."""
    count = data.draw(st.integers(1, 4), "nodes")
    arrivals = data.draw(
        st.lists(st.tuples(st.integers(0, 600).map(lambda n: n / 5), st.integers(0, count - 1)), max_size=10),
        "arrivals",
    )
    order = data.draw(st.permutations(range(count)), "order")
    with patched() as clock:
        nodes = Nodes(count, clock)
        nodes.run(130, arrivals, order=order)
    own = Counter(node for _, node in arrivals)
    most = max(own.values(), default=0)

    [told] = {agent.told for agent in nodes.agents}
    assert (told == 0) == (not arrivals)
    assert told <= len(arrivals)
    # Signals that come at one moment are one, as always, and so are those that are passed on at one moment.
    assert all(bool(told) <= number <= told for numbers in nodes.each for number in numbers)
    distinct = {node: len({math.ceil(when / LOOK) for when, where in arrivals if where == node}) for node in own}
    assert told >= max(distinct.values(), default=0)
    assert told <= most or len(own) > 1


# ---- workers as they are

# Says that it is there; when it is told to, it does something about SIGUSR1.
LATE = """
import os, signal, sys, time
print("there", flush=True)
sys.stdin.readline()
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"told\\n"))  # print may be at work when the signal comes
print("ready", flush=True)
for _ in range(3600):
    time.sleep(1)
"""

Late = subprocess.Popen[str]


@pytest.fixture
def late(python: str) -> Iterator[Callable[[], Late]]:
    """Return what starts a worker that has no handler yet."""
    made: list[Late] = []

    def start() -> Late:
        process = subprocess.Popen([python, "-c", LATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        made.append(process)
        return process

    yield start
    for process in made:
        process.kill()
        with process:
            process.wait()


def says(process: Late) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: Late) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert says(process) == "ready"


def test_workers_that_are_still_starting(late: Callable[[], Late]) -> None:
    """Who would die of it gets it when he has a handler; the others need not wait for him."""
    first, second = late(), late()
    assert [says(process) for process in (first, second)] == ["there", "there"]
    go_on(first)
    sent: list[int] = []

    def send(pid: int, signum: int) -> None:
        sent.append(pid)
        processes.send(pid, signum)

    with mock.patch.object(notices_module, "time", Clock()) as clock:
        notices = NoticeSignals(lambda: {USR1: 1}, lambda _: False, send)
        pids = [first.pid, second.pid]
        for _ in range(20):
            notices.turn(pids, {})
            clock.now += 10
        assert sent == [first.pid]
        assert (notices.deliveries(), notices.told) == ([Delivery(USR1, 1, 1, 1)], True)
        assert says(first) == "told"
        assert second.poll() is None
        go_on(second)
        notices.turn(pids, {})
        assert says(second) == "told"
        for _ in range(20):
            notices.turn(pids, {})
        assert notices.deliveries() == [Delivery(USR1, 1, 1, 0, late=True)]
    assert sent == [first.pid, second.pid]
    assert [process.poll() for process in (first, second)] == [None, None]


def test_a_worker_that_never_cares(late: Callable[[], Late]) -> None:
    """It is left alone, as often as the signal comes; who is gone is owed nothing."""
    process = late()
    assert says(process) == "there"
    sent: list[int] = []
    came = {USR1: 0}
    with mock.patch.object(notices_module, "time", Clock()) as clock:
        notices = NoticeSignals(lambda: came, lambda _: False, lambda pid, _: sent.append(pid))
        for _ in range(5):
            came[USR1] += 1
            notices.turn([process.pid], {})
            clock.now += 100
            notices.turn([process.pid], {})
        assert len(notices._undelivered) == 5
        assert (notices.deliveries(), notices.told) == ([Delivery(USR1, number, 0, 1) for number in range(1, 6)], False)
        process.kill()
        wait_for(lambda: process.poll() is not None, 60, "it does not end")
        notices.turn([], {})
    assert (sent, notices._undelivered) == ([], [])


@pytest.mark.parametrize("name", ["SIGKILL", "SIGNONSENSE", "", "__class__"])
def test_a_signal_that_is_not_passed_on_is_ignored(name: str) -> None:
    """Another agent's word cannot make this one send workers anything but a notice signal, nor end it."""
    sent: list[tuple[int, int]] = []
    notices = NoticeSignals(dict, lambda _: False, lambda pid, signum: sent.append((pid, signum)), frozenset({USR1}))
    with mock.patch.object(notices_module, "_OWN_SECONDS", 0.0):
        told = [notices.turn([1], {name: 1}) for _ in range(2)]

    assert (told, sent, notices.told) == ([{}, {}], [], False)


@pytest.fixture
def signals() -> Iterator[AgentSignals]:
    """Return signals that are handled; what was there before is put back."""
    before = {signum: signal.getsignal(signum) for signum in (USR1, USR2)}
    made = AgentSignals([], ["SIGUSR1", "SIGUSR2"], at_once=False)
    made.handle()
    yield made
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_counts_are_those_of_the_moment(signals: AgentSignals) -> None:
    """Signals that come while somebody goes through the counts change nothing of them."""
    signal.raise_signal(USR1)
    counts = signals.notices
    seen = []
    for signum in counts:
        signal.raise_signal(USR2)
        signal.raise_signal(USR1)
        seen.append((signum, counts[signum]))

    assert (seen, signals.notices) == ([(USR1, 1)], {USR1: 2, USR2: 1})
