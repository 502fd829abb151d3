"""When to say something again."""

from __future__ import annotations

from hpc_launch.backoff import Backoff


def test_soon_at_first_then_ever_less_often() -> None:
    """Pauses double, up to the longest; whoever asks late does not hear of it twice."""
    pace = Backoff(1.0, 10.0, 100.0)
    spoken = [tenth / 10 for tenth in range(500) if pace.due(100.0 + tenth / 10)]

    assert spoken == [1.0, 3.0, 7.0, 15.0, 25.0, 35.0, 45.0]
    assert [pace.due(1000.0), pace.due(1000.0)] == [True, False]
