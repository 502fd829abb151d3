"""Notice signals: each reaches every worker of every node once, whichever nodes it came to.

Slurm signals the tasks of a step one after the other; a person may signal a single one. What nodes agree on is *how
often* a signal came: the highest number that any of them has counted. A node passes a signal on to its workers when the
number passes what they have been told; so it does not matter who hears of it first, from whom, or how late.
"""

from __future__ import annotations

import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from hpc_launch.node import processes

# Signals that come to two nodes within this time are one: Slurm reaches the last of a thousand nodes some seconds
# after the first, or later where nodes on the way are down.
_SAME_SECONDS = 60.0

# How long a node that hears of a signal from another waits for its own, which may have gone to the workers as well.
_OWN_SECONDS = 2.0

# How often to look whether a worker can be told by now.
_LOOK_SECONDS = 0.2

# How long Slurm may take to signal the other processes of a step after the first, where it signals them all.
_OTHERS_SECONDS = 0.1


@dataclass
class Tally:
    """How often one signal came.

    Attributes:
        told: what the workers have been told.
    """

    told: int = 0
    _own: int = 0
    _since: float = 0.0

    def count_local(self, now: float) -> bool:
        """It came to this node; returns whether the workers are to be told."""
        if self._own < self.told and now - self._since > _SAME_SECONDS:
            self._own = self.told  # those before came to other nodes only
        self._own += 1
        return self.count_remote(self._own, now)

    def count_remote(self, count: int, now: float) -> bool:
        """It came to some node for the `count`-th time; returns whether the workers are to be told."""
        if count <= self.told:
            return False
        self.told, self._since = count, now
        return True


@dataclass(frozen=True)
class Delivery:
    """How far a notice signal has come on this node.

    Attributes:
        signum: which.
        number: for which time it came.
        told: how many workers have got it now.
        waiting: how many have no handler for it, and get it as soon as they have one.
        late: these had none when it came.
    """

    signum: signal.Signals
    number: int
    told: int
    waiting: int
    late: bool = False


@dataclass
class NoticeSignals:
    """One agent's part: what it is to tell its workers, and the other agents.

    Attributes:
        counts: gives how often each signal came to this agent so far.
        heard: tells whether a signal has reached the agent's other processes by itself.
        send: signals a worker, by process id.
        known: the signals that are passed on; None for all. Whatever others name besides is ignored: a worker must not
            get SIGKILL, or end this agent, because of a word from elsewhere.
    """

    counts: Callable[[], Mapping[signal.Signals, int]]
    heard: Callable[[int], bool]
    send: Callable[[int, int], None]
    known: Collection[signal.Signals] | None = None
    _tallies: dict[signal.Signals, Tally] = field(default_factory=dict)
    _seen: dict[signal.Signals, int] = field(default_factory=dict)
    # When to see whether the workers have got a signal by themselves, and whether they are to have it.
    _waiting: dict[signal.Signals, tuple[float, bool]] = field(default_factory=dict)
    _undelivered: list[tuple[int, signal.Signals]] = field(default_factory=list)
    # Signals that some worker had no handler for when they came, and those that none had.
    _awaited: set[signal.Signals] = field(default_factory=set)
    _unheard: set[signal.Signals] = field(default_factory=set)
    # Signals that came while there was no worker: the next ones get them (`begin`).
    _early: set[signal.Signals] = field(default_factory=set)
    _deliveries: list[Delivery] = field(default_factory=list)

    @property
    def told(self) -> bool:
        """Whether the workers have been told of anything; what no worker here has a handler for they do not know."""
        return any(tally.told and signum not in self._unheard for signum, tally in self._tallies.items())

    def deliveries(self) -> list[Delivery]:
        """What has come of signals since this was last asked: when they came, and when more workers got them."""
        found, self._deliveries = self._deliveries, []
        return found

    @property
    def pause(self) -> float:
        """Seconds until there is something to do."""
        due = [moment - time.monotonic() for moment, _ in self._waiting.values()]
        return max(0.0, min([*due, _LOOK_SECONDS if self._undelivered else math.inf]))

    def begin(self, workers: Sequence[int]) -> None:
        """New workers have been started: they know nothing yet, and what those before were told holds for them too."""
        for signum in {*self.counts(), *self._tallies}:
            self.heard(signum)  # what came before them has not reached them
        soon = {signum for signum, (_, wanted) in self._waiting.items() if wanted}  # `turn` passes these on
        told = {signum for signum, tally in self._tallies.items() if tally.told}
        self._undelivered = [(pid, signum) for signum in told - soon for pid in workers]
        self._awaited |= self._unheard

    def turn(self, workers: Sequence[int], others: Mapping[str, int]) -> dict[str, int]:
        """Look at what has come, and pass it on.

        Args:
            workers: process ids of the workers that run.
            others: how often each signal came to some node, by name.

        Returns:
            The signals that the workers are told of now, with their numbers, for the other agents.
        """
        now = time.monotonic()
        new, due_now = self._note_own(now), set[signal.Signals]()
        for name, count in others.items():
            signum = self._named(name)
            if signum is not None and count > self._tally(signum).told:
                self._waiting.setdefault(signum, (now + _OWN_SECONDS, True))
        for signum, (due, wanted) in [*self._waiting.items()]:
            if now < due:
                continue
            del self._waiting[signum]
            if self._tally(signum).count_remote(others.get(signum.name, 0), now):
                new[signum.name] = self._tally(signum).told
            heard = self.heard(signum)
            if not wanted:
                continue
            if not workers:
                self._early.add(signum)
            elif heard:
                self._deliveries.append(Delivery(signum, self._tally(signum).told, len(workers), 0))
            else:
                self._undelivered.extend((pid, signum) for pid in workers)
                due_now.add(signum)
        if workers:
            due_now, self._early = due_now | self._early, set()
        self._deliver(workers, due_now)
        return new

    def _named(self, name: str) -> signal.Signals | None:
        """The signal that another agent means; None for one that is not passed on here."""
        signum = signal.Signals.__members__.get(name)
        return signum if self.known is None or signum in self.known else None

    def _note_own(self, now: float) -> dict[str, int]:
        """See what has come to this agent; returns what is new to its workers."""
        new = {}
        for signum, count in self.counts().items():
            if count > self._seen.get(signum, 0):
                self._seen[signum] = count
                wanted = self._tally(signum).count_local(now)
                if wanted:
                    new[signum.name] = self._tally(signum).told
                _, before = self._waiting.get(signum, (now, False))
                self._waiting[signum] = now + _OTHERS_SECONDS, wanted or before
        return new

    def _tally(self, signum: signal.Signals) -> Tally:
        return self._tallies.setdefault(signum, Tally())

    def _deliver(self, workers: Sequence[int], due_now: Collection[signal.Signals]) -> None:
        """Signal the workers that do something about it. The others would die of it: they may still be starting."""
        owed, self._undelivered = self._undelivered, []
        sent: set[tuple[int, signal.Signals]] = set()
        for pid, signum in owed:
            if pid not in workers:
                continue
            if processes.would_die_of(pid, signum):
                self._undelivered.append((pid, signum))
            else:
                self.send(pid, signum)
                sent.add((pid, signum))
        told = Counter(signum for _, signum in sent)
        waiting = Counter(signum for _, signum in {*self._undelivered})
        for signum in {*due_now, *self._awaited}:
            self._note_delivery(signum, told[signum], waiting[signum], new=signum in due_now)

    def _note_delivery(self, signum: signal.Signals, sent: int, waiting: int, *, new: bool) -> None:
        if sent:
            self._unheard.discard(signum)
        elif new and waiting:
            self._unheard.add(signum)
        if new or sent:
            self._deliveries.append(Delivery(signum, self._tally(signum).told, sent, waiting, late=not new))
        if waiting:
            self._awaited.add(signum)
        else:
            self._awaited.discard(signum)
