"""How long workers may take to end, with a clock that the test moves."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import pytest

from hpc_launch.agent import agent as agent_module
from hpc_launch.plan.derivation import make_plan
from hpc_launch.settings import resolve
from hpc_launch.workers import grace_period as window_module
from hpc_launch.workers.grace_period import GracePeriod, SlurmFacts
from hpc_launch.workers.signals import AgentSignals
from tests.support import mentions
from tests.unit.test_plan import here

# The seconds since the epoch when the clock stands at 0.
EPOCH = 1_700_000_000.0


@dataclass
class Clock:
    """Stands in for the module `time`."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return EPOCH + self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    """Return the clock that windows look at."""
    with mock.patch.object(window_module, "time", Clock()) as made:
        yield made


def nothing_came() -> AgentSignals:
    return AgentSignals(("SIGTERM", "SIGINT"), (), at_once=False)


def stopped(at: float) -> AgentSignals:
    signals = nothing_came()
    signals.stop, signals.stop_time = signal.SIGTERM, at
    return signals


def opened(grace: float | None, facts: SlurmFacts | None, signals: AgentSignals) -> GracePeriod:
    made = GracePeriod(grace, lambda: facts, signals)
    made.open()
    return made


@pytest.mark.parametrize(
    ("grace", "facts", "left", "reason"),
    [
        (None, None, 30.0, "30 --grace"),
        (None, SlurmFacts(kill_wait=5), 30.0, "30 --grace"),
        (90.0, None, 90.0, "90 --grace"),
        (90.0, SlurmFacts(kill_wait=5), 90.0, "90 --grace"),
        (0.0, None, 0.0, "0 s as --grace says"),
        (0.5, None, 0.5, "0.5 s as --grace says"),
    ],
)
def test_where_nothing_stops_the_run(
    clock: Clock, grace: float | None, facts: SlurmFacts | None, left: float, reason: str
) -> None:
    """Between attempts workers have torch's usual time, or what the user said; Slurm does not press."""
    window = opened(grace, facts, nothing_came())

    assert window.left == left
    assert mentions(window.reason, reason)
    clock.now += left / 2
    assert window.left == left / 2
    clock.now += left + 1
    assert window.left == 0
    assert mentions(window.reason, reason)


SLURM = "--signal=USR1@SECONDS"


@pytest.mark.parametrize(
    ("grace", "facts", "left", "reason"),
    [
        (None, None, 30.0, "30 --grace"),
        (90.0, None, 90.0, "90 --grace"),
        (None, SlurmFacts(), 29.0, f"29 KillWait 30 {SLURM}"),
        (None, SlurmFacts(kill_wait=120), 119.0, f"119 KillWait 120 {SLURM}"),
        (300.0, SlurmFacts(), 29.0, f"29 KillWait 30 {SLURM}"),
        (10.0, SlurmFacts(), 10.0, "10 --grace"),
        (None, SlurmFacts(kill_wait=1), 0.0, f"0 KillWait 1 {SLURM}"),
        # Preempted, with 200 s to go: KillWait begins after that.
        (None, SlurmFacts(grace_end=EPOCH + 1200), 229.0, f"229 KillWait 30 {SLURM}"),
        (60.0, SlurmFacts(grace_end=EPOCH + 1200), 60.0, "60 --grace"),
        (600.0, SlurmFacts(grace_end=EPOCH + 1200), 229.0, f"229 KillWait 30 {SLURM}"),
        # The end that Slurm tells is that of long ago.
        (None, SlurmFacts(grace_end=EPOCH + 10), 29.0, f"29 KillWait 30 {SLURM}"),
    ],
)
@pytest.mark.usefixtures("clock")
def test_where_a_signal_stops_the_run(grace: float | None, facts: SlurmFacts | None, left: float, reason: str) -> None:
    """In a step it is what Slurm gives, less what the agent needs; or what the user said, if that is less."""
    window = opened(grace, facts, stopped(1000.0))

    assert window.left == pytest.approx(left)
    assert mentions(window.reason, reason)
    assert mentions(window.reason, SLURM) == (SLURM in reason)


def test_slurm_counts_from_the_signal(clock: Clock) -> None:
    """The time that passed between the signal and the end of the workers is gone; --grace begins with the window."""
    signals = stopped(clock.now)
    clock.now += 12

    assert opened(None, SlurmFacts(), signals).left == pytest.approx(17)
    assert opened(20, SlurmFacts(), signals).left == pytest.approx(17)
    assert opened(15, SlurmFacts(), signals).left == 15
    assert opened(None, SlurmFacts(grace_end=EPOCH + 1100), signals).left == pytest.approx(100 + 30 - 12 - 1)
    assert opened(None, None, signals).left == 30


@pytest.mark.parametrize(("grace", "left", "reason"), [(3600.0, 29.0, "KillWait"), (25.0, 15.0, "--grace")])
def test_a_stop_during_a_restart(clock: Clock, grace: float, left: float, reason: str) -> None:
    """The window is open already when the signal comes: from then on Slurm's time counts, where it is shorter."""
    signals = nothing_came()
    window = opened(grace, SlurmFacts(), signals)
    assert window.left == grace
    clock.now += 10
    signals.stop, signals.stop_time = signal.SIGTERM, clock.now

    assert window.left == pytest.approx(left)
    assert reason in window.reason


def test_facts_that_come_late(clock: Clock) -> None:
    """Slurm is asked in a thread: what it says while the window is open counts at once."""
    said = [SlurmFacts()]
    window = GracePeriod(None, lambda: said[-1], stopped(clock.now))
    window.open()
    clock.now += 5
    assert window.left == pytest.approx(24)
    said.append(SlurmFacts(kill_wait=60))
    assert window.left == pytest.approx(54)
    said.append(SlurmFacts(kill_wait=60, grace_end=clock.time() + 100))
    assert window.left == pytest.approx(100 + 60 - 1)


@pytest.mark.parametrize("grace", [None, 3600.0])
@pytest.mark.usefixtures("clock")
def test_somebody_does_not_want_to_wait(grace: float | None) -> None:
    """A second SIGINT ends it at once, whatever there is left."""
    signals = stopped(1000.0)
    window = opened(grace, SlurmFacts(grace_end=EPOCH + 9999), signals)
    assert window.left > 29
    signals.hurry = True

    assert (window.left, window.reason) == (0, "SIGINT came again")


def test_slurm_is_not_asked_where_nothing_stops_the_run(clock: Clock) -> None:
    """The end of an attempt is none of Slurm's business, and its answer can take long."""
    asked: list[float] = []

    def ask() -> SlurmFacts:
        asked.append(clock.now)
        return SlurmFacts()

    signals = nothing_came()
    window = GracePeriod(None, ask, signals)
    window.open()
    assert (window.left, asked) == (30, [])
    signals.stop, signals.stop_time = signal.SIGTERM, clock.now
    assert not math.isclose(window.left, 30)
    assert asked


def test_facts_are_read_as_they_are_written() -> None:
    """The agents tell each other what Slurm says, also those of an older version."""
    facts = SlurmFacts(kill_wait=45, grace_end=EPOCH)
    assert SlurmFacts.decode(facts.encode()) == facts
    assert SlurmFacts.decode('{"kill_wait": 45.0, "more": 1}') == SlurmFacts(45.0)


# ---- the signals themselves


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put back what handles the signals of this process."""
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
    before = {signal.Signals[name]: signal.getsignal(signal.Signals[name]) for name in names}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("handlers")
def test_only_a_second_sigint_is_impatience() -> None:
    """Slurm sends SIGTERM again and again; the first stop signal stays the one that counts."""
    signals = AgentSignals(("SIGTERM", "SIGINT"), ("SIGUSR1", "SIGTERM"), at_once=False)
    signals.handle()
    signal.raise_signal(signal.SIGUSR1)
    assert (signals.stop, dict(signals.notices)) == (None, {signal.SIGUSR1: 1})
    signal.raise_signal(signal.SIGTERM)
    first = signals.stop_time
    signal.raise_signal(signal.SIGTERM)
    assert (signals.stop, signals.hurry) == (signal.SIGTERM, False)
    signal.raise_signal(signal.SIGINT)
    assert (signals.stop, signals.stop_time, signals.hurry) == (signal.SIGTERM, first, True)
    signal.raise_signal(signal.SIGUSR1)
    assert dict(signals.notices) == {signal.SIGUSR1: 2}
    signals.ignore()
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        assert signal.getsignal(signal.Signals[name]) is signal.SIG_IGN


def test_a_signal_that_came_to_another_node_only(clock: Clock) -> None:
    """What Slurm gives holds for all nodes, from the moment when this one heard of it, or was signalled itself."""
    signals = nothing_came()
    window = opened(None, SlurmFacts(kill_wait=10.0), signals)
    window.stopped = True
    assert window.left == pytest.approx(9.0)
    assert opened(None, None, signals).left == pytest.approx(30.0)
    clock.now += 2
    assert window.left == pytest.approx(7.0)
    signals.stop, signals.stop_time = signal.SIGTERM, clock.now - 1
    assert window.left == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45", 45.0), ("30.5", 30.5), ("0", 0.0), ("", None), ("²", None), ("-1", None), ("inf", None)],
)
def test_torch_s_variable(text: str, seconds: float | None) -> None:
    """What is no number of seconds is as good as nothing; --grace comes first."""
    environ = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": text}
    assert agent_module._grace(make_plan(resolve({}, {}), here(), ("train.py",)), environ) == seconds
    assert agent_module._grace(make_plan(resolve({"shutdown_timeout": "7"}, {}), here(), ("train.py",)), environ) == 7


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("notice", [(), ("SIGHUP",)], ids=["stop", "notice"])
def test_a_hangup_that_is_ignored_stays_ignored(notice: tuple[str, ...]) -> None:
    """By nohup, say. SIGINT, which scripts ignore for what is in the background, stops a run all the same."""
    for name in ("SIGHUP", "SIGINT"):
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    signals = AgentSignals(("SIGTERM", "SIGINT", "SIGHUP"), notice, at_once=False)
    signals.handle()
    signals.relay(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    assert (signals.stop, dict(signals.notices)) == (None, {})
    signal.raise_signal(signal.SIGINT)
    assert signals.stop == signal.SIGINT
