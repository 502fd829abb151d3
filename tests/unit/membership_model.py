"""A model of agents that lose each other: everything that can happen, in any order, for a few agents and faults.

The decisions are those of `hpc_launch.rendezvous.membership`; the model has what is around them: agents that call a
leader or begin to lead, sessions whose two ends break at different times, messages on their way, leaders that give up,
agents that die. Whom an agent calls, and when, is left open: every way in which a network can be parted is among that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from hpc_launch.rendezvous.membership import (
    Half,
    Knowledge,
    Membership,
    active,
    halves,
    may_form,
    oldest_in_question,
    pool,
    propose,
    quorum,
)


class Agent(NamedTuple):
    """One agent.

    Attributes:
        known: what it knows.
        seat: the leader it is with; None while it looks for one.
        heard: what that has sent and it has not read yet, the oldest first.
        linked: whether the leader has the other end of this session.
        started: the membership as part of which its workers run.
    """

    known: Knowledge
    seat: int | None
    heard: tuple[tuple[str, Membership], ...] = ()
    linked: bool = True
    started: Membership | None = None


class Session(NamedTuple):
    """A leader's end of a session.

    Attributes:
        known: what the agent said, once it is ready for a new membership; None while its workers run.
        heard: what it has sent and the leader has not read yet.
        linked: whether the agent has the other end.
    """

    known: Knowledge | None
    heard: tuple[tuple[str, Knowledge | Membership], ...] = ()
    linked: bool = True


class Leader(NamedTuple):
    """What an agent has that leads.

    Attributes:
        sessions: by agent, itself among them.
        proposal: what it has proposed and is not agreed.
        accepted: who has accepted it.
        running: the membership that it has told to start.
    """

    sessions: tuple[tuple[int, Session], ...]
    proposal: Membership | None = None
    accepted: tuple[int, ...] = ()
    running: Membership | None = None


class State(NamedTuple):
    """All of it.

    Attributes:
        agents: By number; None for one that is dead.
        leaders: By number; None for one that does not lead.
        faults: How many may still happen.
        taken: The halves that have taken their tokens.
        tokens: Whether there are any.
        removed: Tokens of memberships before this number are gone.
        most: How many agents of a membership have workers at most; the others are spares.
    """

    agents: tuple[Agent | None, ...]
    leaders: tuple[Leader | None, ...]
    faults: int
    taken: frozenset[Half] = frozenset()
    tokens: bool = True
    removed: int = 0
    most: int = 99

    def agent(self, number: int, agent: Agent | None) -> State:
        """The state with another agent in one place."""
        return self._replace(agents=(*self.agents[:number], agent, *self.agents[number + 1 :]))

    def leader(self, number: int, leader: Leader | None) -> State:
        """The state with another leader in one place."""
        return self._replace(leaders=(*self.leaders[:number], leader, *self.leaders[number + 1 :]))


def begin(agents: int, faults: int, *, tokens: bool = True, spares: int = 0) -> State:
    """All are members and train but for the last ones, the spares; the first leads, and nothing has happened yet."""
    everyone = tuple(range(agents))
    whole = Membership(0, everyone, "0: first" if tokens else "", everyone[: agents - spares])
    known = Knowledge(whole)
    members = tuple(Agent(known, 0, started=whole) for _ in everyone)
    sessions = tuple((number, Session(None)) for number in everyone)
    leaders = (Leader(sessions, running=whole), *(None for _ in range(agents - 1)))
    return State(members, leaders, faults, tokens=tokens, most=agents - spares)


# ---- what can happen


def steps(state: State, *, faults: bool = True) -> Iterator[State]:
    """All states that can follow."""
    for number, agent in enumerate(state.agents):
        if agent is None:
            continue
        yield from _moves(state, number, agent)
        leader = state.leaders[number]
        if leader is not None:
            yield from _leads(state, number, leader)
        if faults and state.faults:
            spent = state._replace(faults=state.faults - 1)
            yield die(spent, number)
            if agent.seat is not None and agent.seat != number and agent.linked:
                yield _leave(spent, number)
                yield _drop(spent, agent.seat, number)
            if leader is not None and leader.running is None:
                yield _resign(spent, number)


def _moves(state: State, number: int, agent: Agent) -> Iterator[State]:
    """What an agent does as a member."""
    if agent.seat is None:
        for other, leader in enumerate(state.leaders):
            if leader is not None and other != number:
                yield _call(state, number, other)
        if state.leaders[number] is None:
            yield _call(state.leader(number, Leader(())), number, number)
    elif agent.heard:
        yield _hear(state, number, agent)
    elif not agent.linked:
        yield _leave(state, number)


def _hear(state: State, number: int, agent: Agent) -> State:
    (word, membership), *rest = agent.heard
    agent = agent._replace(heard=tuple(rest))
    if word == "propose":
        agent = agent._replace(known=agent.known.accept(membership))
        return _send(state.agent(number, agent), number, ("accept", membership))
    if word == "go":
        return state.agent(number, agent._replace(known=agent.known.agree(membership), started=membership))
    # The round has ended: its workers are stopped.
    agent = agent._replace(started=None)
    return _send(state.agent(number, agent), number, ("ready", agent.known))


def _leads(state: State, number: int, leader: Leader) -> Iterator[State]:
    """What an agent does as a leader."""
    for other, session in leader.sessions:
        if session.heard:
            yield _listen(state, number, leader, other, session)
        elif not session.linked:
            yield _drop(state, number, other)
    ready = {other: session.known for other, session in leader.sessions if session.known is not None}
    if leader.running is not None or leader.proposal is not None:
        return
    if may_form(ready, state.taken):
        proposal = propose(ready)
        proposal = replace(proposal, active=active(proposal.agents, state.most))
        if state.tokens:
            proposal = replace(proposal, token=f"{proposal.number}: of {number} for {proposal.agents}")
        state = state.leader(number, leader._replace(proposal=proposal, accepted=()))
        yield _tell(state, number, proposal.agents, ("propose", proposal))
    gone = {half.token for half in state.taken}
    for half in halves(ready) - state.taken:
        if half.token not in gone and int(half.token.partition(":")[0]) >= state.removed:
            yield state._replace(taken=state.taken | {half})


def _listen(state: State, number: int, leader: Leader, other: int, session: Session) -> State:
    (word, said), *rest = session.heard
    session = session._replace(heard=tuple(rest))
    if word == "ready":
        assert isinstance(said, Knowledge)
        return state.leader(number, _with(leader, other, session._replace(known=said)))
    leader = _with(leader, other, session)
    if said != leader.proposal:
        return state.leader(number, leader)
    leader = leader._replace(accepted=tuple(sorted({*leader.accepted, other})))
    proposal = leader.proposal
    if proposal is None or leader.accepted != proposal.agents:
        return state.leader(number, leader)
    members = {agent: one for agent, one in leader.sessions if agent in proposal.agents}
    needed = oldest_in_question(one.known for one in members.values() if one.known is not None)
    state = state._replace(removed=max(state.removed, needed))
    for agent, one in members.items():
        leader = _with(leader, agent, one._replace(known=None))
    leader = leader._replace(proposal=None, accepted=(), running=proposal)
    return _tell(state.leader(number, leader), number, proposal.agents, ("go", proposal))


# ---- what is done by that


def _with(leader: Leader, other: int, session: Session | None) -> Leader:
    sessions = dict(leader.sessions)
    sessions.pop(other, None)
    if session is not None:
        sessions[other] = session
    return leader._replace(sessions=tuple(sorted(sessions.items())))


def _call(state: State, number: int, other: int) -> State:
    """An agent begins a session; one that the leader still has with it is over."""
    if any(one == number for one, _ in (state.leaders[other] or Leader(())).sessions):
        state = _drop(state, other, number)
    leader, agent = state.leaders[other], state.agents[number]
    assert leader is not None
    assert agent is not None
    state = state.leader(other, _with(leader, number, Session(None, (("ready", agent.known),))))
    return state.agent(number, agent._replace(seat=other, heard=(), linked=True, started=None))


def _send(state: State, number: int, message: tuple[str, Knowledge | Membership]) -> State:
    """An agent says something to its leader; into the void if that has given the session up."""
    agent = state.agents[number]
    assert agent is not None
    leader = state.leaders[agent.seat] if agent.linked and agent.seat is not None else None
    if leader is None or agent.seat is None:
        return state
    session = dict(leader.sessions)[number]
    return state.leader(agent.seat, _with(leader, number, session._replace(heard=(*session.heard, message))))


def _tell(state: State, number: int, agents: tuple[int, ...], message: tuple[str, Membership]) -> State:
    """A leader says something to some of those that it has sessions with."""
    sessions = dict((state.leaders[number] or Leader(())).sessions)
    for other in agents:
        agent = state.agents[other]
        if other in sessions and sessions[other].linked and agent is not None:
            state = state.agent(other, agent._replace(heard=(*agent.heard, message)))
    return state


def _leave(state: State, number: int) -> State:
    """An agent has lost its leader, or its leader has lost it: its workers are stopped, and it looks for another."""
    agent = state.agents[number]
    assert agent is not None
    leader = state.leaders[agent.seat] if agent.linked and agent.seat is not None else None
    if leader is not None and agent.seat is not None:
        session = dict(leader.sessions)[number]
        state = state.leader(agent.seat, _with(leader, number, session._replace(linked=False)))
    return state.agent(number, agent._replace(seat=None, heard=(), linked=True, started=None))


def _drop(state: State, number: int, other: int) -> State:
    """A leader has lost an agent: a proposal with it is over, and a round in which it has workers."""
    leader = state.leaders[number]
    assert leader is not None
    agent, session = state.agents[other], dict(leader.sessions)[other]
    if session.linked and agent is not None:
        state = state.agent(other, agent._replace(linked=False))
    leader = _with(leader, other, None)
    if leader.proposal is not None and other in leader.proposal.agents:
        leader = leader._replace(proposal=None, accepted=())
    over = leader.running
    if over is None or other not in over.active:
        return state.leader(number, leader)
    state = state.leader(number, leader._replace(running=None))
    return _tell(state, number, over.agents, ("end", over))


def _resign(state: State, number: int) -> State:
    """A leader gives up: all its sessions end."""
    leader = state.leaders[number]
    assert leader is not None
    for other, session in leader.sessions:
        agent = state.agents[other]
        if session.linked and agent is not None:
            state = state.agent(other, agent._replace(linked=False))
    return state.leader(number, None)


def die(state: State, number: int) -> State:
    """An agent is gone, with all that it knew."""
    agent = state.agents[number]
    assert agent is not None
    if agent.seat is not None:
        state = _leave(state, number)
    if state.leaders[number] is not None:
        state = _resign(state, number)
    return state.agent(number, None)


# ---- what is to be true


def training(state: State) -> list[Membership]:
    """The memberships of which every agent that is no spare has its workers running."""
    begun = {agent.started for agent in state.agents if agent is not None and agent.started is not None}
    return [
        membership
        for membership in begun
        if all((agent := state.agents[number]) and agent.started == membership for number in membership.active)
    ]


def alive(state: State) -> dict[int, Knowledge]:
    """What those that are alive know."""
    return {number: agent.known for number, agent in enumerate(state.agents) if agent is not None}


def may_go_on(state: State) -> bool:
    """Whether those alive may form a membership, as soon as they have taken the tokens that no other half has."""
    known = alive(state)
    others = {half.token for half in state.taken - halves(known)}
    return may_form(known, halves(known)) and not any(half.token in others for half in halves(known))


def has_majority(state: State) -> bool:
    """Whether enough of the newest agreed membership is alive: more than half, or half if it can take its token."""
    known = alive(state)
    if not known:
        return False
    agreed = pool(known.values()).agreed
    here = tuple(agent for agent in agreed.agents if agent in known)
    return quorum(agreed, known.keys(), frozenset({Half(agreed.token, here)}))


def settle(state: State, settled: dict[State, State]) -> State:
    """Let no more faults happen and all reach each other: where that leads, when leaders follow their rule.

    The rule: whoever looks for a leader calls the one that has something running, or the first agent alive; a leader
    that has nothing running and is not that one gives up.

    Args:
        state: From where.
        settled: Where states lead, as far as that is known; it is added to.
    """
    first, way = min(alive(state)), []
    while state not in settled:
        way.append(state)
        following = next(_quiet(state, first), None)
        if following is None:
            settled[state] = state
            break
        state = following
    settled.update(dict.fromkeys(way, settled[state]))
    return settled[state]


def _quiet(state: State, first: int) -> Iterator[State]:
    """What happens without faults, messages before decisions."""
    leaders = [(number, leader) for number, leader in enumerate(state.leaders) if leader is not None]
    for number, agent in enumerate(state.agents):
        if agent is not None and agent.seat is not None and (agent.heard or not agent.linked):
            yield from _moves(state, number, agent)
    for number, leader in leaders:
        if any(session.heard or not session.linked for _, session in leader.sessions):
            yield next(_leads(state, number, leader))
    chosen = next((number for number, leader in leaders if leader.running), first)
    for number, leader in leaders:
        if number != chosen and leader.running is None:
            yield _resign(state, number)
    yield from _called(state, chosen)
    for number, leader in leaders:
        yield from _leads(state, number, leader)


def _called(state: State, chosen: int) -> Iterator[State]:
    """Who looks for a leader calls the one that is to lead."""
    ready = state if state.leaders[chosen] is not None else state.leader(chosen, Leader(()))
    for number, agent in enumerate(state.agents):
        if agent is not None and agent.seat is None and (number == chosen or ready is state):
            yield _call(ready, number, chosen)
