"""Which nodes are bad: those that fail alone, again or with evidence."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from hpc_launch.rendezvous import node_blame
from hpc_launch.rendezvous.messages import Failed, RunState, merge
from tests.support import mentions

OWN = Failed(0, 1, "it broke", own=True, fault="")
FOLLOWED = Failed(0, 1, "lost", own=False, fault="")
BROKEN = Failed(0, 1, "lost", own=False, fault="Xid 79")


@pytest.mark.parametrize(
    ("failures", "culprit"),
    [
        ({3: OWN}, 3),
        ({3: FOLLOWED}, None),
        ({2: FOLLOWED, 3: OWN, 4: FOLLOWED}, 3),
        ({2: OWN, 3: OWN}, None),
        ({2: OWN, 3: BROKEN, 4: OWN}, 3),
        ({2: BROKEN, 3: BROKEN, 4: OWN}, None),
        ({}, None),
    ],
)
def test_who_failed_alone(failures: dict[int, Failed], culprit: int | None) -> None:
    """One that failed by itself while no other did; of those with evidence, the only one."""
    assert node_blame.culprit(failures) == culprit


def test_evidence_counts_at_once_and_failures_after_two_attempts() -> None:
    """What is held against a node outlives the leader that has noted it."""
    once = node_blame.noted(RunState(), {3: OWN, 4: FOLLOWED})
    twice = node_blame.noted(once, {3: OWN})
    both = node_blame.noted(node_blame.noted(twice, {1: BROKEN}), {3: BROKEN})

    assert node_blame.noted(once, {3: OWN, 4: OWN}) == once
    assert (once.drained, set(twice.drained)) == ({}, {"3"})
    assert mentions(twice.drained["3"], 2)
    assert [*merge([RunState(), both, twice]).drained.items()] == [*twice.drained.items(), ("1", "is broken (Xid 79)")]


@given(st.floats(0, 1e6))
def test_a_failure_waits_longest_while_nodes_still_start(ran: float) -> None:
    """Import errors come to slow nodes later; once all train together, what all have they have at the same time."""
    seconds = node_blame.settle_seconds(ran)

    assert 0.5 <= seconds <= 3
    assert seconds == 0.5 or ran < 60
    assert node_blame.settle_seconds(0) == node_blame.settle_seconds(60) == 0.5
