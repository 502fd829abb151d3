"""Agents that lose each other: never two worlds, never a stuck majority; and the decisions one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import pytest

from hpc_launch.rendezvous import membership
from hpc_launch.rendezvous.membership import Half, Knowledge, Membership, halves, may_form, quorum
from tests.unit import membership_model as model
from tests.unit.membership_model import State

# Numbers of agents, of spares among them and of faults. A fault is the death of an agent, a session that one of its
# ends gives up, or a leader that resigns; each loss of a network is made of some of them.
SIZES = [
    pytest.param(
        agents,
        spares,
        faults,
        marks=[pytest.mark.soak] if soak else [],
        id=f"{agents} agents, {spares} spares, {faults} faults",
    )
    for agents, spares, faults, soak in [
        (2, 0, 2, False),
        (3, 0, 1, False),
        (4, 0, 1, False),
        (3, 0, 2, False),
        (2, 0, 3, False),
        (2, 1, 3, False),
        (3, 1, 1, False),
        (3, 2, 2, False),
        (4, 1, 1, False),
        (4, 2, 1, False),
        (4, 3, 1, False),
        (2, 0, 4, True),
        (3, 0, 3, True),
        (4, 0, 2, True),
        (3, 1, 2, True),
        (4, 1, 2, True),
        (4, 2, 2, True),
        (4, 3, 2, True),
    ]
]

# Of these, that nobody is stuck takes long; the soak has larger sizes.
STUCK_IN_THE_SOAK = (3, 0, 2)


def reachable(agents: int, faults: int, *, tokens: bool, spares: int = 0) -> Iterator[State]:
    """Every state that can come about."""
    start = model.begin(agents, faults, tokens=tokens, spares=spares)
    seen, todo = {start}, [start]
    while todo:
        state = todo.pop()
        yield state
        for following in model.steps(state):
            if following not in seen:
                seen.add(following)
                todo.append(following)


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "no tokens"])
@pytest.mark.parametrize(("agents", "spares", "faults"), SIZES)
def test_there_are_never_two_worlds_and_a_majority_is_never_stuck(
    agents: int, spares: int, faults: int, tokens: bool
) -> None:
    """Whatever is lost, delayed or given up, in any order: of two memberships one at most has all its workers.

    From wherever it is, who may go on trains again when the faults stop; with one fault a majority always may.
    """
    settled: dict[State, State] = {}
    for state in reachable(agents, faults, tokens=tokens, spares=spares):
        assert len(model.training(state)) <= 1, state
        if (agents, spares, faults) == STUCK_IN_THE_SOAK or not model.alive(state):
            continue
        later = model.settle(state, settled)
        may = model.may_go_on(later) or (faults == 1 and model.has_majority(state))
        assert bool(model.training(later)) >= may, (state, later)


def test_the_model_would_find_two_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rule that is too weak (what an agent has accepted does not count) there are some."""
    monkeypatch.setattr(membership.Knowledge, "accept", lambda self, _: self)
    monkeypatch.setattr(membership, "quorum", lambda whole, present, _: bool(present & {*whole.agents}))

    assert any(len(model.training(state)) > 1 for state in reachable(3, 2, tokens=False))


def test_the_model_would_find_two_halves_that_both_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a token that both halves can take there are two worlds as well."""
    monkeypatch.setattr(
        membership, "quorum", lambda whole, present, _: 2 * len(present & {*whole.agents}) >= len(whole.agents)
    )

    assert any(len(model.training(state)) > 1 for state in reachable(2, 1, tokens=True))


@pytest.mark.parametrize(("agents", "spares", "faults"), [(2, 1, 1), (3, 2, 2), (4, 2, 1)])
def test_the_model_would_find_spares_that_go_on_alone(
    monkeypatch: pytest.MonkeyPatch, agents: int, spares: int, faults: int
) -> None:
    """Where enough spares may form a membership by themselves, those that have the workers train on as well."""
    monkeypatch.setattr(membership, "quorum", lambda whole, *there: quorum(replace(whole, active=()), *there))

    states = reachable(agents, faults, tokens=True, spares=spares)
    assert any(len(model.training(state)) > 1 for state in states)


def test_the_model_would_find_tokens_that_are_removed_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that did not hear what was agreed last still needs the token of the membership before."""
    monkeypatch.setattr(model, "oldest_in_question", lambda known: 1 + max(one.agreed.number for one in known))
    settled: dict[State, State] = {}
    laters = (model.settle(state, settled) for state in filter(model.alive, reachable(2, 3, tokens=True)))

    assert any(model.may_go_on(later) and not model.training(later) for later in laters)


@pytest.mark.parametrize("dead", [(0,), (1,), *combinations(range(4), 2)])
def test_any_half_goes_on_without_the_other(dead: tuple[int, ...]) -> None:
    """Half of the nodes are lost at once, whichever they are: the others train, as the token is there to be taken."""
    state = model.begin(2 * len(dead), 0)
    for agent in dead:
        state = model.die(state, agent)

    (world,) = model.training(model.settle(state, {}))
    assert set(world.agents) == set(range(2 * len(dead))) - set(dead)


@pytest.mark.parametrize(
    ("agents", "present", "enough"),
    [
        ((0, 1, 2, 3), {1, 2, 3}, True),
        ((0, 1, 2, 3), {0}, False),
        ((0, 1, 2, 3), {0, 3}, True),
        ((0, 1, 2, 3), {1, 2}, False),
        ((1, 3), {1}, True),
        ((1, 3), {3}, False),
        ((1, 2, 3), {0, 3}, False),
        ((0,), {0}, True),
    ],
)
def test_what_is_enough(agents: tuple[int, ...], present: set[int], enough: bool) -> None:
    """More than half, or half with the lowest where there is no token; strangers do not count."""
    assert membership.quorum(Membership(3, agents), present) is enough


def test_spares_alone_are_never_enough() -> None:
    """However many they are; with one node that has workers they are, if they are enough otherwise."""
    whole = Membership(3, (0, 1, 2, 3, 4), "x", (0, 1))
    known = Knowledge(whole)

    assert not membership.quorum(whole, {2, 3, 4})
    assert membership.quorum(whole, {1, 3, 4})
    assert not membership.quorum(whole, {1, 4})
    assert membership.only_spares({2: known, 3: known, 4: known})
    assert not membership.only_spares({1: known, 4: known})
    assert not membership.only_spares({0: Knowledge(Membership(0, (0, 1)))})
    assert halves({2: Knowledge(Membership(3, (0, 2), "x", (0,)))}) == frozenset()


def test_half_needs_the_token() -> None:
    """Exactly half is enough where these very agents have taken the token, whichever half it is."""
    whole = Membership(3, (0, 1, 2, 3), "x")

    assert membership.quorum(whole, {1, 2, 3})
    assert not membership.quorum(whole, {0, 1}, {Half("x", (2, 3)), Half("y", (0, 1))})
    assert membership.quorum(whole, {2, 3, 9}, {Half("x", (2, 3))})


def test_tokens_are_taken_only_where_they_help() -> None:
    """Of two memberships in question those present are half of each, or more of one; or too few of one."""
    whole = Knowledge(Membership(3, (0, 1, 2, 3), "x"))
    newer = whole.accept(Membership(4, (2, 3, 4, 5), "y"))
    lone = whole.accept(Membership(4, (1, 2, 4), "y"))

    assert halves({}) == halves({0: whole}) == halves({1: whole, 2: whole, 3: whole}) == frozenset()
    assert halves({1: whole, 2: whole}) == {Half("x", (1, 2))}
    assert halves({2: newer, 3: newer}) == {Half("x", (2, 3)), Half("y", (2, 3))}
    assert halves({1: lone, 3: whole}) == frozenset()
    assert membership.propose({2: newer, 3: newer}) == Membership(5, (2, 3))


def test_what_was_accepted_counts_until_something_newer_is_agreed() -> None:
    """Two of five that may have been agreed on go first; when it is known what became of them, they do not."""
    whole = Knowledge(Membership(0, (0, 1, 2, 3, 4)))
    proposal = Membership(1, (0, 1, 2))
    present = {2: whole.accept(proposal), 3: whole, 4: whole}
    newer = Membership(2, (0, 2, 3, 4))

    assert not may_form(present)
    assert may_form({**present, 1: whole})
    assert membership.propose({**present, 1: whole}) == Membership(2, (1, 2, 3, 4))
    assert may_form({**present, 3: whole.agree(newer)})
    assert whole.accept(proposal).agree(newer) == Knowledge(newer)


def test_spares_are_the_last_and_the_drained() -> None:
    """A bad node goes behind the spares, and works where there is no other."""
    assert membership.active((0, 2, 3, 5), 3) == (0, 2, 3)
    assert membership.active((0, 2, 3, 5), 3, (2, 4)) == (0, 3, 5)
    assert membership.active((0, 2, 3), 3, (0, 2)) == (0, 2, 3)
    assert membership.active((0, 2, 3), 2, (0, 2)) == (2, 3)  # the last one stays, where all that is left is as bad


def test_of_counts_the_greatest_stand() -> None:
    """What was told to some of the agents is known by all that are left."""
    assert membership.merged([{"SIGUSR1": 2}, {"SIGUSR1": 1, "SIGUSR2": 1}, {}]) == {"SIGUSR1": 2, "SIGUSR2": 1}


def test_who_is_missing() -> None:
    """Members of the newest agreed membership that are not there."""
    old, new = Knowledge(Membership(0, (0, 1, 2, 3))), Knowledge(Membership(4, (1, 2, 3)))
    assert membership.absent({1: old, 3: new}) == (2,)
