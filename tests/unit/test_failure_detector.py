"""Who is waited for, and is given up because it does not answer."""

from __future__ import annotations

from hpc_launch.rendezvous.failure_detector import FailureDetector
from tests.support import wait_for

Place = tuple[str, int]


def test_doubts() -> None:
    """Who is late is asked, again and again, and given up after some silence: time alone does not count."""
    asked: list[Place] = []

    def ask(place: Place) -> bool:
        asked.append(place)
        return place == ("b", 2)

    doubts = FailureDetector(ask, 10)
    both: dict[int, Place] = {1: ("a", 1), 2: ("b", 2)}

    def turn(now: float) -> int | None:
        """Call, and have the answer of a call that was made."""
        found = doubts.turn(both, now)
        if doubts._call is not None:
            call = doubts._call[1]
            wait_for(lambda: call.done, 10, "the call does not end")
            found = doubts.turn(both, now)
        return found

    assert [turn(now) for now in (0.0, 9.9)] == [None, None]
    assert asked == []
    assert [turn(now) for now in (10.0, 10.1, 12.4)] == [None, None, None]
    assert asked == [("a", 1), ("b", 2), ("b", 2)]
    assert [turn(now) for now in (3600.0, 3600.1, 3603.0)] == [None, None, 2]
    assert asked[3:] == [("b", 2), ("a", 1), ("b", 2)]
    assert doubts.turn({}, 3607.0) is None
    assert turn(3609.0) is None  # it is waited for anew
