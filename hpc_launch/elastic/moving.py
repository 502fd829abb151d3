"""The `slurm` rendezvous of a run that may lose nodes, its leader's too: `--nnodes MIN:MAX` and `--spares`.

Agents and their leader talk over connections of their own (`leading`), not through a store, whose answer an agent would
wait for as long as the kernel tries to reach a host that is gone. Where the leader is lost, the others look for each
other (`election`). Each round has its store for the workers.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch.distributed import (  # type: ignore[attr-defined]  # public, but its types do not export them
    HashStore,
    TCPStore,
)
from torch.distributed.elastic.rendezvous import RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousStoreInfo

from hpc_launch.elastic import claiming, finding, membership, stores, story
from hpc_launch.elastic.console import say
from hpc_launch.elastic.election import Election
from hpc_launch.elastic.leading import Leader
from hpc_launch.elastic.lines import Lines
from hpc_launch.elastic.membership import Knowledge, Membership
from hpc_launch.elastic.party import Party
from hpc_launch.elastic.post import GONE, SILENT
from hpc_launch.elastic.rendezvous import SlurmRendezvous
from hpc_launch.elastic.rounds import Ending, Message, RoundEnd, RoundPlan
from hpc_launch.elastic.search import Doubts, Search
from hpc_launch.elastic.story import Caller, Failed, Start, Story
from hpc_launch.errors import RendezvousError, RoundRefused
from hpc_launch.node import network
from hpc_launch.records import events
from hpc_launch.world import World

_Shared = TypeVar("_Shared", bound=Message)

# How often an agent that waits looks for news.
_LOOK_SECONDS = 0.02
# So often a leader is looked for at least before an agent gives up, which may have been stopped for most of the time.
_SEARCHES = 3
# How often an agent looks whom it waits for.
_DOUBT_SECONDS = 0.1
_FAREWELL_SECONDS = 15.0
# An answer that takes longer is none.
_ANSWER_SECONDS = 1.0


@dataclass
class _Alone:
    """The time without a leader.

    Attributes:
        since: when it began (time.monotonic).
        searches: how often one has been looked for since, in vain.
    """

    since: float = field(default_factory=time.monotonic)
    searches: int = 0


class SpareReleased(Exception):
    """The run has ended while this agent was a spare.

    Attributes:
        end: how.
    """

    def __init__(self, end: RoundEnd) -> None:
        super().__init__(end.cause)
        self.end = end


class MovingRendezvous(SlurmRendezvous):
    """One agent's end of it.

    Attributes:
        start: what the leader said of the current round.
        spared: is told of the plan of a round in which this node has no workers.
        idle: is called again and again as long as it has none.
    """

    def __init__(self, party: Party) -> None:
        super().__init__(party)
        self.spared: Callable[[RoundPlan], object] = lambda _: None
        self.idle: Callable[[], object] = lambda: None
        self.start: Start | None = None
        self._whole = party
        self._whereabouts = finding.Whereabouts(party)
        self._worker_server: TCPStore | None = None
        self._post: Leader | None = None
        self._election: Election | None = None
        self._seat: Lines | None = None
        self._search = Search(party.run_id, party.agent, uuid.uuid4().hex)
        self._doubts = Doubts(self._search.silent, party.node_timeout)
        self._next_doubt = 0.0
        self._begun = self._done = False
        self._known = Knowledge(Membership(0, tuple(range(party.agents))))
        self._story = Story()
        # Where those are that this agent is to join, if it comes late: the leader that it has found says it.
        self._others: Mapping[int, tuple[str, int]] = {}
        self._asked = 0
        self._answers: dict[int, Any] = {}
        self._refusal: RendezvousError | None = None

    # ---- what the agent asks

    def world(self, whole: World) -> World:
        """The nodes that have workers in this round, and the place of this one among them."""
        start = self._started()
        rank = list(start.active).index(self._whole.agent)
        return replace(whole, hosts=tuple(start.hosts), node_rank=rank, agents=len(start.active), agent_rank=rank)

    @property
    def hosts(self) -> Sequence[str]:
        """The nodes of the current round that have workers."""
        return tuple(self._started().hosts)

    @property
    def leads(self) -> bool:
        """Whether this agent leads the run."""
        return self._post is not None and self._post.leads

    @property
    def spares(self) -> int:
        """How many nodes of the round have no workers."""
        return len(self._started().agents) - len(self._started().active)

    def report_failure(self, status: int, cause: str, *, own: bool = True, fault: str = "") -> RoundEnd:
        """Say that something failed here; returns how the round really ended: perhaps because a node was lost."""
        self._send("failed", round=self._round, failed=story.plain(Failed(status, cause, own, fault)))
        end = RoundEnd(Ending.RESTART.value, self._party.agent, self._party.host, status, cause)
        return self._await_end(end, 4 * self._whole.node_timeout)

    def report_end(self, status: int, cause: str, signal: str = "") -> RoundEnd | None:
        """Say that this agent leaves for good, and takes the run with it."""
        end = RoundEnd(Ending.FAILED.value, self._party.agent, self._party.host, status, cause, signal)
        if self._end is not None and self._end.ending != Ending.RESTART.value:
            return self._end
        self._end = None
        self._send("stop", end=story.plain(end))
        return self._await_end(end, self._whole.node_timeout)

    def report_begun(self) -> None:
        """Say that the workers here have started; until all have, those that have may wait for them."""
        self._send("begun", round=self._round)

    def report_done(self) -> None:
        """Say that all workers here ended well; the last agent to do so ends the round."""
        self._send("done", round=self._round)
        self._done = True

    def end(self) -> RoundEnd | None:
        """How the current round ended; None while it goes on. Asks nobody: the leader says it."""
        if self._end is None:
            self._read()
        if self._end is None:
            self._mind_the_silent(waits=self._done or not self._begun)
        return self._end

    # ---- what concerns all rounds

    def clock(self) -> tuple[float, float] | None:
        """How many seconds this node's clock is ahead of the leader's, and how wrong that can be; None if unknown."""
        if self.leads:
            return 0.0, 0.0
        asked = time.time()
        told = self._inquire("clock")
        now = time.time()
        return None if told is None else ((asked + now) / 2 - float(told), (now - asked) / 2)

    def tell_notice(self, name: str, count: int) -> None:
        """Tell the other agents that a signal came for the `count`-th time."""
        # It is in what this agent says of itself, too: whoever leads next may be told in no other way.
        self._story = replace(self._story, notices=membership.merged([self._story.notices, {name: count}]))
        self._send("notice", name=name, count=count)

    def notices(self) -> Mapping[str, int]:
        """How often each signal came to some agent, by name."""
        self._read()
        return self._story.notices

    def share(self, name: str, message: Message) -> None:
        """Leave something for the other agents to read when they need it."""
        self._send("share", name=name, text=message.encode())

    def shared(self, name: str, kind: type[_Shared]) -> _Shared | None:
        """What was left; None as long as nothing was, or the leader is lost."""
        text = self._inquire("shared", name)
        return kind.decode(text) if text else None

    def count(self, name: str, amount: int) -> int:
        """Add to a counter of this round that all agents share; returns what it is then, -1 where nobody says so."""
        told = self._inquire("count", name, amount)
        return -1 if told is None else int(told)

    def first(self, what: str) -> bool:
        """Whether no other agent has asked this before, of those that this leader has heard."""
        told = self._inquire("first", what)
        return told is None or bool(told)

    # ---- torch's interface

    def num_nodes_waiting(self) -> int:
        """Nothing that torch's own agent would have to do."""
        return 0

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round and wait until it begins with workers on this node.

        Raises:
            SpareReleased: when the run ended before this node had any.
            RendezvousTimeout: when the first node did not come.
            RendezvousError: when fewer nodes are left than are wanted at least.
            RoundRefused: when others could go on without these nodes, or they do not fit together.
            RendezvousClosedError: when the run has ended.
        """
        if self._end is not None and self._end.ending != Ending.RESTART.value:
            raise RendezvousClosedError(self._end.cause or "the run has ended")
        if self._round >= 0 and self._end is None:
            self.report_failure(1, "a worker failed")
        self._end = self._plan = self.start = None
        if self._post is None:
            self._open_post()
        if self._seat is not None:
            self._present()
        start = self._await_start()
        where = RendezvousStoreInfo(start.round_plan.master_addr, start.round_plan.master_port)
        # Ranks follow from the plan (`Agent`): nothing is to be read from a store that may be gone the next moment.
        return RendezvousInfo(HashStore(), self._party.agent, self._party.agents, where)

    def shutdown(self) -> bool:
        """Leave; the leader goes last, so that all can read the end."""
        if self._seat is not None and self.is_closed():
            self._send("bye")
        if self._post is not None:
            if self._post.leads:
                deadline = time.monotonic() + _FAREWELL_SECONDS
                while self._post.callers - {self._whole.agent} and time.monotonic() < deadline:
                    time.sleep(_LOOK_SECONDS)
                self._whereabouts.remove()
                self._post.clear()
            self._post.close()
        if self._election is not None:
            self._election.close()
        if self._seat is not None:
            self._seat.close()
        self._post = self._election = self._seat = None
        self._worker_server = None
        return True

    # ---- words with the leader

    def _started(self) -> Start:
        if self.start is None:
            raise RendezvousError("there was no rendezvous yet")
        return self.start

    def _send(self, word: str, **facts: Any) -> None:
        if self._seat is not None and not self._seat.broken:
            self._seat.send(word, **facts)

    def _inquire(self, what: str, name: str = "", amount: int = 0) -> Any:
        """Ask the leader; None where it does not answer soon."""
        self._asked, deadline = self._asked + 1, time.monotonic() + _ANSWER_SECONDS
        self._answers.clear()  # late ones, to other questions
        self._send("ask", id=self._asked, what=what, name=name, amount=amount)
        while self._asked not in self._answers and self._seat is not None and time.monotonic() < deadline:
            self._read()
            time.sleep(_LOOK_SECONDS / 20)
        return self._answers.get(self._asked)

    def _read(self) -> None:
        """Hear what the leader has said, and notice that it is gone."""
        seat = self._seat
        if seat is None:
            return
        seat.flush()
        for said in seat.hear():
            self._take(said)
        if seat.broken and self._seat is seat:
            self._lose_leader(seat)

    def _take(self, said: Mapping[str, Any]) -> None:
        word = said["do"]
        if word == "propose":
            proposal = story.read_membership(said["membership"])
            self._known = self._known.accept(proposal)
            self._send("accept", membership=story.plain_membership(proposal))
        elif word == "go":
            self._begin(story.read(Start, said["start"]))
        elif word == "ping":
            self._send("pong", round=self._round)
        elif word == "begun":
            self._begun = self._begun or said["round"] == self._round
        elif word == "ended":
            self._story = story.together([self._story, story.read(Story, said["story"])])
            if self._end is None:
                self._end = story.read(RoundEnd, said["end"])
        elif word == "refuse":
            if said.get("again"):
                self._refusal = RendezvousError(said["why"])
                self._refusal.silent = not self.leads
            else:
                silent = not self.leads and not said.get("alone")
                self._refusal = RoundRefused(said["why"], exit_status=said["status"], silent=silent)
        else:
            self._note(word, said)

    def _note(self, word: str, said: Mapping[str, Any]) -> None:
        """What has nothing to do with rounds."""
        if word == "notices":
            self._story = replace(self._story, notices=said["counts"])
        elif word == "waiting":
            self._story = replace(self._story, waiting=said["who"])
            self._search.places.update(story.places(said["who"]))
        elif word == "places":
            self._others = story.places(said["who"])
            self._search.places.update(self._others)
        elif word == "told":
            self._answers[said["id"]] = said["value"]

    def _begin(self, start: Start) -> None:
        self._known = self._known.agree(start.membership)
        self._search.gone.clear()  # they have all answered
        self.start, self._story, self._round = start, start.run, start.run.round
        self._end = self._plan = None
        self._begun = self._done = self._opened().sought = False
        self._elections().end(start.leader)
        self._search.places.update(story.places(start.places))
        if self.leads and start.run.round:
            self._whereabouts.write(self._opened().port)  # for who comes late, and does not find the first node
        if self._whole.agent in start.active:
            rank = list(start.active).index(self._whole.agent)
            self._party = replace(self._whole, agent=rank, agents=len(start.active), hosts=start.hosts)
            self._plan = start.round_plan

    def _lose_leader(self, seat: Lines, why: str = GONE) -> None:
        """The leader is gone: the round is over."""
        leader = self._elections().leader
        host = self._whole.hosts[max(0, leader)]
        if seat.closed and self._end is None:  # otherwise it may have given this agent up
            self._search.gone.add(leader)
        seat.close()
        self._seat = None
        if self._end is None:
            cause = f"lost the agent on {host}, which led the run: {why}"
            self._end = RoundEnd(Ending.RESTART.value, -1, self._whole.host, 69, cause, lost=host)
            self.observer(events.NODE_LOST, hosts=host, **self._story.where)

    def _mind_the_silent(self, *, waits: bool) -> None:
        """Give up who is waited for and does not answer: agents, if this one leads, or else the leader.

        Args:
            waits: whether this agent waits for a word of the leader.
        """
        now, post, seat = time.monotonic(), self._post, self._seat
        if post is None or seat is None or now < self._next_doubt:
            return
        self._next_doubt = now + _DOUBT_SECONDS
        if post.leads:
            silent = self._doubts.turn(post.awaited, now)
            if silent is not None:
                post.give_up(silent)
            return
        leader, waits = self._elections().leader, waits or post.sought
        if self._doubts.turn({leader: self._search.places[leader]} if waits else {}, now) is not None:
            self._lose_leader(seat, SILENT)

    def _await_end(self, otherwise: RoundEnd, patience: float) -> RoundEnd:
        """Wait for the leader's word on how the round ended."""
        deadline = time.monotonic() + patience
        while self._end is None:
            if self._seat is None or time.monotonic() > deadline:
                self._end = otherwise
                break
            self._read()
            self._mind_the_silent(waits=True)
            if self._end is None:
                time.sleep(_LOOK_SECONDS)
        if otherwise.ending == Ending.FAILED.value and self._end.lost:
            self._end = otherwise  # it leaves, whoever else does
        return self._end

    # ---- the round begins

    def _open_post(self) -> None:
        """Listen, and find the first node, or be it."""
        party = self._whole
        asked = network.asked_address(party.local_addr, party.interface)
        self._own_address = asked or network.own_address(party.host, party.hosts, [party.host]) or ""
        if party.leader:
            self._own_address = finding.leader_address(party)
        self._post = Leader(party, stores.listen(party.ports), self._open_round_store, self._open_job, self.observer)
        self._election = Election(party, self._search, self._post)
        if party.leader:
            self._seat = self._election.lead()
            self._whereabouts.write(self._post.port)

    def _take_seat(self, alone: _Alone) -> _Alone:
        """Be with a leader, if there is one; returns since when there is none."""
        if self._seat is None:
            self._seat = self._look_for_leader()
            if self._seat is None:
                alone.searches += 1
                if alone.searches >= _SEARCHES and time.monotonic() - alone.since > 3 * self._whole.node_timeout:
                    host = self._whole.host
                    raise RoundRefused(f"{host} finds none of the other nodes, which could go on without it")
                return alone
            self._present()
        return _Alone()

    def _await_start(self) -> Start:
        """Wait for the word to begin here."""
        told, alone = False, _Alone()
        self._elections().begin()
        while True:
            alone = self._take_seat(alone)
            self._read()
            if self._refusal is not None:
                raise self._refusal
            self._mind_end_of_run()
            self._mind_the_silent(waits=self.start is None or not self._begun)
            if self.start is not None:
                if self._plan is not None:
                    return self.start
                if not told:
                    say(f"{self._whole.host} is a spare")
                    told = True
                    self.spared(self.start.round_plan)
                self.idle()
            elif self.leads and self._known.agreed.number:
                self._yield_to_another()
            time.sleep(_LOOK_SECONDS)

    def _mind_end_of_run(self) -> None:
        """See whether the run, or the round in which this node is a spare, has ended."""
        end = self._end
        if end is None:
            return
        if end.ending != Ending.RESTART.value:
            if self.start is not None and self._plan is None:
                raise SpareReleased(end)
            # Who left says why.
            raise RoundRefused(end.cause, exit_status=end.status, silent=True)
        self._end = self.start = None
        if self._seat is not None:
            self._present()

    def _present(self) -> None:
        """Tell the leader that this agent is there and ready, and what it knows."""
        party = self._whole
        caller = Caller(
            agent=party.agent,
            host=party.host,
            address=self._own_address,
            port=self._opened().port,
            workers=party.workers,
            software=party.software,
            problem=str(party.problem) if party.problem else "",
            status=party.problem.exit_status if party.problem else 0,
            agreed=story.plain_membership(self._known.agreed),
            accepted=[story.plain_membership(one) for one in self._known.accepted],
            story=story.plain(self._story),
            gone=sorted(self._search.gone),
        )
        self._send("ready", caller=story.plain(caller))

    # ---- who leads

    def _find_first(self) -> Lines:
        """The connection to the first node, where the run begins, or to whoever leads it when this one comes late."""
        found = finding.find_leader(self._whole, self._search.key)
        self._own_address = self._own_address or found.own_address
        self._search.places[found.leader] = found.leader_address, found.port
        return self._elections().follow(found.leader, found.lifeline.release())

    def _look_for_leader(self) -> Lines | None:
        """The connection to whoever leads, this agent perhaps; None where that is not known yet."""
        if self._known.agreed.number:
            return self._elections().look(self._known.agreed, map(int, self._story.waiting))
        return self._elections().join(self._others) if self._others else self._find_first()

    def _yield_to_another(self) -> None:
        """Follow another leader, if there is one whose round has begun without this one, or who comes before it."""
        seat = self._elections().resign(self._known.agreed, map(int, self._story.waiting))
        if seat is not None:
            if self._seat is not None:
                self._seat.close()
            self._seat = seat
            self._present()

    def _elections(self) -> Election:
        if self._election is None:
            raise RendezvousError("the rendezvous is not open")
        return self._election

    def _opened(self) -> Leader:
        if self._post is None:
            raise RendezvousError("the rendezvous is not open")
        return self._post

    # ---- for the post's thread

    def _open_round_store(self, number: int) -> tuple[str, int]:
        self._worker_server = None  # nobody uses that of the round before any more
        self._worker_server, port = stores.worker_store(self._whole, number)
        return self._own_address, port

    def _open_job(self) -> tuple[str, int]:
        run = claiming.claim(self._whole.job, self._whole.identity, self._whole.run_id)
        return run.job, run.first_attempt
