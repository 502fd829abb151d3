"""What a round needs before it begins, and how agents agree on its membership."""

from __future__ import annotations

from hpc_launch.rendezvous.membership import Membership
from hpc_launch.rendezvous.round_formation import RoundFormation, RoundPreparation


def test_each_need_is_asked_for_once() -> None:
    preparation = RoundPreparation()
    asked = [preparation.needs_job(0.0), preparation.needs_store(0, 0.0), preparation.needs_token(1, 0.0)]

    assert asked == [True, True, True]
    assert [preparation.needs_job(0.1), preparation.needs_store(0, 0.1), preparation.needs_token(1, 0.1)] == [False] * 3
    preparation.job_opened()
    preparation.store_opened(0, "10.0.0.1", 20_000)
    preparation.token_put(1, "1-token")
    assert preparation.asked == {}
    assert not preparation.needs_store(0, 0.2)
    assert not preparation.needs_token(1, 0.2)


def test_a_store_serves_one_round() -> None:
    preparation = RoundPreparation()
    preparation.store_opened(0, "10.0.0.1", 20_000)

    assert preparation.needs_store(1, 0.0)
    assert preparation.store is None


def test_a_token_goes_into_one_proposal() -> None:
    """Another membership needs another one."""
    preparation = RoundPreparation()
    preparation.needs_token(1, 0.0)
    preparation.token_put(1, "1-token")

    assert [preparation.take_token(), preparation.take_token()] == ["1-token", ""]
    assert preparation.needs_token(2, 0.0)


def test_a_token_that_comes_too_late_is_left_out() -> None:
    preparation = RoundPreparation()
    preparation.needs_token(1, 0.0)
    assert not preparation.needs_token(1, 2.0)
    preparation.token_put(1, "1-late")

    assert (preparation.asked, preparation.token, preparation.take_token()) == ({}, (1, ""), "")


def test_what_takes_long_is_named_once() -> None:
    """The log directory, which the token needs as well, before the store."""
    preparation = RoundPreparation()
    preparation.needs_store(0, 0.0)
    assert preparation.overdue(4.0) == ""
    preparation.needs_job(4.0)

    assert [preparation.overdue(6.0), preparation.overdue(7.0)] == ["the log directory", ""]


def test_a_membership_is_agreed_when_all_have_accepted_it() -> None:
    """Others, and other proposals, make no difference."""
    formation, proposal = RoundFormation(0.0), Membership(1, (0, 1, 2), "1-token", (0, 1))
    assert formation.accept(0, proposal) is None
    formation.propose(proposal)
    accepted = [(0, proposal), (1, Membership(1, (0, 1, 2))), (7, proposal), (2, proposal), (0, proposal)]
    assert [formation.accept(*one) for one in accepted] == [None] * 5

    assert formation.undecided == {1}
    assert formation.accept(1, proposal) == proposal
    assert formation.proposal is None


def test_the_loss_of_an_agent_takes_back_what_was_proposed_to_it() -> None:
    formation, proposal = RoundFormation(0.0), Membership(1, (0, 1))
    formation.propose(proposal)
    proposals = []
    for agent in (2, 1):
        formation.withdraw(agent)
        proposals.append(formation.proposal)

    assert proposals == [proposal, None]
    assert formation.accept(0, proposal) is None


def test_agents_that_end_their_workers_are_waited_for_longer() -> None:
    """The time without them begins anew while some do."""
    formation = RoundFormation(10.0)

    assert [formation.idle(now, busy=busy) for now, busy in ((12.0, False), (13.0, True), (15.0, False))] == [2, 0, 2]
