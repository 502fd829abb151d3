"""Ask agents of a run that may lose nodes whether they lead, and those that are waited for whether they live.

Who calls is answered by a thread that does nothing else (`post`), however busy an agent is. So one that does not
answer, though its kernel keeps the connections, is stopped or hangs; one that takes long to end its workers is not.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

# How long an agent waits for another that does not answer, and until it asks that one again.
_CALL_SECONDS = 1.5
_AGAIN_SECONDS = 1.0
# How many are asked at a time at most.
_AT_ONCE = 64


@dataclass(frozen=True)
class Answer:
    """What an agent answers to the question whether it leads.

    Attributes:
        leader: itself if it does, or whom it is with; -1 while it looks for a leader.
        number: of the membership whose round it leads; -1 where none has begun.
        connection: to it, if it leads.
    """

    leader: int
    number: int
    connection: socket.socket | None

    def close(self) -> None:
        """Hang up."""
        if self.connection is not None:
            self.connection.close()


@dataclass
class Search:
    """What an agent knows of where the others are.

    Attributes:
        run_id: the name of the run.
        agent: the number of this agent.
        key: tells it from one of another run of the same name.
        places: where each agent listens: address and port.
        gone: those that have closed their connection, or do not listen any more.
    """

    run_id: str
    agent: int
    key: str
    places: dict[int, tuple[str, int]] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def first(self, agents: Iterable[int]) -> Answer | None:
        """Ask one after the other; what the first says that answers, None where none does.

        Those that are gone are left out. While none answers more of them are asked at a time: a whole rack may be off.
        """
        left, number = [agent for agent in agents if agent not in self.gone], 1
        while left:
            some, left = left[:number], left[number:]
            answers = [answer for answer in self.ask(some).values() if answer is not None]
            for answer in answers[1:]:
                answer.close()
            if answers:
                return answers[0]
            number = min(2 * number, _AT_ONCE)
        return None

    def ask(self, agents: Sequence[int]) -> dict[int, Answer | None]:
        """Ask agents at the same time whether they lead, or whomever they name; None for those that are not reached."""
        if len(agents) < 2:  # noqa: PLR2004 - one needs no threads
            return {agent: self._leader_by(agent) for agent in agents}
        with ThreadPoolExecutor(min(len(agents), _AT_ONCE)) as pool:
            return dict(zip(agents, pool.map(self._leader_by, agents), strict=True))

    def _leader_by(self, agent: int) -> Answer | None:
        answer = self._ask(agent)
        if answer is not None and answer.connection is None and answer.leader not in (-1, agent, self.agent):
            return self._ask(answer.leader) or answer
        return answer

    def silent(self, place: tuple[str, int]) -> bool:
        """Whether the agent there takes no calls; of a node that is gone the kernel says so where it is connected."""
        try:
            with socket.create_connection(place, timeout=_CALL_SECONDS) as connection:
                connection.sendall(self._question)
                connection.recv(1)
        except TimeoutError:
            return True  # also where so many have called in vain that the kernel takes no more calls for it
        except OSError:
            pass
        return False

    @property
    def _question(self) -> bytes:
        question = {"run": self.run_id, "agent": self.agent, "key": self.key, "again": True}
        return json.dumps(question).encode() + b"\n"

    def _ask(self, agent: int) -> Answer | None:
        if agent not in self.places:
            return None
        try:
            connection = socket.create_connection(self.places[agent], timeout=_CALL_SECONDS)
        except ConnectionRefusedError:
            self.gone.add(agent)  # it has listened for as long as it lived
            return None
        except OSError:
            return None
        try:
            connection.sendall(self._question)
            with connection.makefile("rb") as stream:
                said = json.loads(stream.readline(1 << 12))
            if said["run"] == self.run_id:
                self.gone.discard(agent)
                if said["leads"]:
                    return Answer(agent, int(said["number"]), connection)
                connection.close()
                return Answer(int(said["leader"]), -1, None)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        connection.close()
        return None


class Inquiry:
    """A question to several agents whether they lead, in a thread: whoever asks goes on meanwhile."""

    def __init__(self, search: Search, agents: Sequence[int]) -> None:
        self._lock = threading.Lock()
        self._found: list[Answer] | None = None
        self._dropped = False
        threading.Thread(target=self._ask, args=(search, agents), name="inquiry", daemon=True).start()

    @property
    def found(self) -> list[Answer] | None:
        """The leaders that have answered, all with their connections; None as long as some may do so."""
        return self._found

    def drop(self) -> None:
        """Nobody wants to know any more."""
        with self._lock:
            self._dropped = True
            for answer in self._found or ():
                answer.close()

    def _ask(self, search: Search, agents: Sequence[int]) -> None:
        found = [
            answer for answer in search.ask(agents).values() if answer is not None and answer.connection is not None
        ]
        with self._lock:
            self._found = found
        if self._dropped:
            self.drop()


@dataclass
class Doubts:
    """What an agent thinks of those that it waits for.

    Calls are counted, not seconds: all agents may have been stopped for a while, as when Slurm suspends the job.

    Attributes:
        silent: asks one, by its place.
        timeout: so many seconds after it began to wait for one it asks that one, and again as long as it is answered;
            one that has not answered for about as long is given up.
    """

    silent: Callable[[tuple[str, int]], bool]
    timeout: float
    _due: dict[int, float] = field(default_factory=dict)
    _missed: dict[int, int] = field(default_factory=dict)

    def turn(self, awaited: Mapping[int, tuple[str, int]], now: float) -> int | None:
        """Ask one of those that are waited for, if it is time to; gives one that is to be given up.

        Args:
            awaited: who they are, and where they listen.
            now: when this is (time.monotonic).
        """
        self._due = {agent: self._due.get(agent, now + self.timeout) for agent in awaited}
        self._missed = {agent: self._missed.get(agent, 0) for agent in awaited}
        agent = min(self._due, key=self._due.__getitem__, default=None)
        if agent is None or now < self._due[agent]:
            return None
        silent = self.silent(awaited[agent])
        self._missed[agent] = self._missed[agent] + 1 if silent else 0
        self._due[agent] = now + (_CALL_SECONDS + _AGAIN_SECONDS if silent else self.timeout)
        enough = max(2, round(self.timeout / (_CALL_SECONDS + _AGAIN_SECONDS)))
        return agent if self._missed[agent] >= enough else None
