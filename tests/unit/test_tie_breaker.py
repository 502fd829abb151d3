"""Tokens of memberships: of two halves one at most has it, whatever the file system does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hpc_launch.rendezvous import tie_breaker
from hpc_launch.rendezvous.membership import Half
from hpc_launch.rendezvous.tie_breaker import TieBreaker
from tests.support import wait_for
from tests.unit.agents_support import DEADLINE, together


def settled(asked: TieBreaker, half: Half) -> Callable[[], bool]:
    """Whether it is known what has come of taking a token."""
    return lambda: half in asked.taken | asked.refused


def take(directory: Path, half: Half) -> bool:
    """Take a token as an agent that has just begun to lead; whether it was to be had."""
    asked = TieBreaker()
    asked.take(directory, {half})
    wait_for(settled(asked, half), DEADLINE, "nothing comes of it")
    return half in asked.taken


def put(directory: Path, number: int) -> str:
    """Make a token; returns its name."""
    names: list[str] = []
    TieBreaker().put(directory, number, names.append)
    wait_for(lambda: names, DEADLINE, "no token")
    return names[0]


def test_one_half_has_it(tmp_path: Path) -> None:
    """Whoever asks first, of many that ask at once; and another leader of the same half as well."""
    for number in range(20):
        name = put(tmp_path / "memberships", number)
        first, second = Half(name, (0, 1)), Half(name, (2, 3))
        had = together([partial(take, tmp_path / "memberships", half) for half in (first, second) * 4])

        assert had in ([True, False] * 4, [False, True] * 4)


def test_who_does_not_see_it_does_not_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another directory, or none; then there is no name to be told, either."""
    monkeypatch.setattr(tie_breaker, "_PAUSE_SECONDS", 0.001)
    name = put(tmp_path / "here", 1)
    (tmp_path / "file").touch()

    assert not take(tmp_path / "there", Half(name, (0,)))
    assert put(tmp_path / "file" / "below", 1) == ""
    assert take(tmp_path / "here", Half(name, (0,)))


def test_old_ones_are_removed(tmp_path: Path) -> None:
    """Those of older memberships when a new one begins; all of them in the end."""
    held = TieBreaker()
    names = [put(tmp_path / "memberships", number) for number in (2, 10, 11)]
    assert take(tmp_path / "memberships", Half(names[0], (0,)))
    held.remove(tmp_path / "memberships", before=10)
    wait_for(
        lambda: {path.name for path in (tmp_path / "memberships").iterdir()} == {*names[1:]}, DEADLINE, "some stay"
    )
    held.clear(tmp_path / "memberships")

    assert [*tmp_path.iterdir()] == []
