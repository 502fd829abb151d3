"""The failure detector: it calls agents that are waited for, and says which of them is to be given up.

One that does not answer, though its kernel keeps the connections, is stopped or hangs; one that takes long to end its
workers answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hpc_launch.rendezvous import known_agents
from hpc_launch.rendezvous.background_call import BackgroundCall

# How long after a call that was not answered the next one is.
_AGAIN_SECONDS = 1.0


@dataclass
class FailureDetector:
    """What an agent thinks of those that it waits for.

    Calls are counted, not seconds: all agents may have been stopped for a while, as when Slurm suspends the job. A call
    is made in the background: the agent's main loop does not wait for it.

    Attributes:
        silent: calls one, by its place; it may block.
        timeout: so many seconds after it began to wait for one it calls that one, and again as long as it is answered;
            one that has not answered for about as long is given up.
    """

    silent: Callable[[tuple[str, int]], bool]
    timeout: float
    _due: dict[int, float] = field(default_factory=dict)
    _missed: dict[int, int] = field(default_factory=dict)
    _call: tuple[int, BackgroundCall[bool]] | None = None

    def turn(self, awaited: Mapping[int, tuple[str, int]], now: float) -> int | None:
        """Call one of those that are waited for, if it is time to; gives one that is to be given up.

        Args:
            awaited: the agents that are waited for, and where they listen.
            now: when this is (time.monotonic).
        """
        self._due = {agent: self._due.get(agent, now + self.timeout) for agent in awaited}
        self._missed = {agent: self._missed.get(agent, 0) for agent in awaited}
        if self._call is not None:
            agent, call = self._call
            if not call.done:
                return None
            self._call = None
            return self._judge(agent, now, silent=call.result()) if agent in self._due else None
        agent = min(self._due, key=self._due.__getitem__, default=-1)
        if agent >= 0 and now >= self._due[agent]:
            place = awaited[agent]
            self._call = agent, BackgroundCall(lambda: self.silent(place), name="call")
        return None

    def _judge(self, agent: int, now: float, *, silent: bool) -> int | None:
        self._missed[agent] = self._missed[agent] + 1 if silent else 0
        self._due[agent] = now + (_AGAIN_SECONDS if silent else self.timeout)
        enough = max(2, round(self.timeout / (known_agents.CALL_SECONDS + _AGAIN_SECONDS)))
        return agent if self._missed[agent] >= enough else None
