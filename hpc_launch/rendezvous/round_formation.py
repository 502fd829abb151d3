"""The formation of a round: what is prepared for it, which membership is proposed, and who has accepted that. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from hpc_launch.backoff import Backoff
from hpc_launch.rendezvous.membership import Membership

# A token that is not there by then goes into no proposal.
_TOKEN_SECONDS = 1.0
# So long a preparation may take before a line says what is waited for.
_PREPARATION_SECONDS = 5.0
# How often a line says who is missing.
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 60.0


class Need(Enum):
    """What has to be there before a membership can be proposed, and may take a while."""

    JOB = "the job directory"
    STORE = "the workers' store"
    TOKEN = "the token of the membership"  # noqa: S105 - no password


@dataclass
class RoundPreparation:
    """What is there of what a round needs.

    Attributes:
        asked: what was asked for and has not come, with the time of the question.
        store: round, address and port of the workers' store.
        token: number and name of the token; an empty name where there is none.
        warned: a line has said what is waited for.
        checked: the agents that were found to fit together.
    """

    asked: dict[Need, float] = field(default_factory=dict)
    store: tuple[int, str, int] | None = None
    token: tuple[int, str] | None = None
    warned: bool = False
    checked: frozenset[int] = frozenset()

    def needs_job(self, now: float) -> bool:
        """Whether the job directory is to be asked for now, where it is not known."""
        return self._ask_for(Need.JOB, now)

    def needs_store(self, round_number: int, now: float) -> bool:
        """Whether the workers' store of a round is to be asked for now."""
        if self.store is not None and self.store[0] == round_number:
            return False
        self.store = None
        return self._ask_for(Need.STORE, now)

    def needs_token(self, number: int, now: float) -> bool:
        """Whether the token of a membership is to be asked for now; after a while none is waited for any more."""
        since = self.asked.get(Need.TOKEN)
        if since is not None and now - since > _TOKEN_SECONDS:
            del self.asked[Need.TOKEN]
            self.token = number, ""
        if self.token is not None and self.token[0] == number:
            return False
        return self._ask_for(Need.TOKEN, now)

    def job_opened(self) -> None:
        """The job directory is chosen."""
        self.asked.pop(Need.JOB, None)

    def store_opened(self, round_number: int, address: str, port: int) -> None:
        """The workers' store of a round is there."""
        self.asked.pop(Need.STORE, None)
        self.store = round_number, address, port

    def token_put(self, number: int, name: str) -> None:
        """The token of a membership is there, unless it comes too late; without a name there is none."""
        if self.asked.pop(Need.TOKEN, None) is not None:
            self.token = number, name

    def take_token(self) -> str:
        """The name of the token, for one proposal; empty where there is none."""
        token, self.token = self.token, None
        return token[1] if token is not None else ""

    def overdue(self, now: float) -> str:
        """What has been waited for too long, in words, once; empty where nothing has."""
        if self.warned or not any(now - since > _PREPARATION_SECONDS for since in self.asked.values()):
            return ""
        self.warned = True
        return "the log directory" if {Need.JOB, Need.TOKEN} & self.asked.keys() else "the workers' store"

    def _ask_for(self, need: Need, now: float) -> bool:
        if need in self.asked:
            return False
        self.asked[need] = now
        return True


class RoundFormation:
    """A round that has not begun yet.

    Args:
        now: when agents began to be waited for, in seconds.

    Attributes:
        since: when that was.
        pace: how often a line says who is missing.
        preparation: what is there of what the round needs.
        proposal: the membership that agents are asked to accept; None while there is none.
        undecided: the agents that have not accepted it yet.
    """

    def __init__(self, now: float) -> None:
        self.since = now
        self.pace = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE, now)
        self.preparation = RoundPreparation()
        self.proposal: Membership | None = None
        self.undecided: set[int] = set()
        self._last_busy = now

    def idle(self, now: float, *, busy: bool) -> float:
        """Seconds for which no agent has been busy, the last ones."""
        if busy:
            self._last_busy = now
        return now - self._last_busy

    def propose(self, membership: Membership) -> None:
        """Ask the agents of a membership to accept it."""
        self.proposal, self.undecided = membership, {*membership.agents}

    def accept(self, agent: int, accepted: Membership) -> Membership | None:
        """Note that an agent has accepted a membership; the proposal, if it is agreed by that."""
        proposal = self.proposal
        if proposal is None or agent not in self.undecided or accepted != proposal:
            return None
        self.undecided.discard(agent)
        if self.undecided:
            return None
        self.proposal = None
        return proposal

    def cancel(self) -> None:
        """No round begins: what agents have been asked to accept is proposed no more."""
        self.proposal = None

    def withdraw(self, agent: int) -> None:
        """An agent is lost: what it was to accept is proposed no more."""
        if self.proposal is not None and agent in self.proposal.agents:
            self.proposal = None
