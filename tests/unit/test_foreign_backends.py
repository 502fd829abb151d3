"""The number of an attempt under another rendezvous backend, which its agents agree on by torch's store."""

from __future__ import annotations

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]  # public, but its types do not export it

from hpc_launch.agent import foreign_backends
from hpc_launch.agent.foreign_backends import agreed_label


def test_the_first_agent_says_it() -> None:
    """Others take its number, whatever is free for them."""
    store = HashStore()

    assert [agreed_label(store, rank, free=free) for rank, free in ((0, 4), (1, 0), (2, 3))] == [4, 4, 4]


def test_a_store_that_lives_on_has_the_number_of_before() -> None:
    """With static rendezvous agents restart at moments of their own, in any order: both call it the next attempt."""
    store = HashStore()
    assert [agreed_label(store, rank, free=0) for rank in (0, 1)] == [0, 0]

    assert [agreed_label(store, rank, free=1) for rank in (1, 0)] == [1, 1]


@pytest.mark.parametrize("said", ["-1", "1e3", "", "9" * 10, "../1"])
def test_what_is_no_number_is_not_believed(said: str) -> None:
    """Anybody who reaches the store can write there."""
    store = HashStore()
    store.set(foreign_backends._KEY, said)

    assert agreed_label(store, 1, free=7) == 7
