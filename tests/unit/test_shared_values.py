"""What agents share through their coordinator."""

from __future__ import annotations

import pytest

from hpc_launch.rendezvous import shared_values
from hpc_launch.rendezvous.messages import Ask, Question
from hpc_launch.rendezvous.shared_values import SharedValues
from hpc_launch.rendezvous.transport.peer_faults import MessageError


def test_the_last_text_under_a_name_is_told() -> None:
    """And nothing where none was left."""
    values = SharedValues()
    values.put("end", "early")
    values.put("end", "late")

    assert values.answer(Ask(1, Question.SHARED, "end"), 0) == "late"
    assert values.answer(Ask(2, Question.SHARED, "other"), 0) == ""


def test_counters_begin_anew_in_each_round() -> None:
    values = SharedValues()
    counted = [values.answer(Ask(1, Question.COUNT, "activity", 2), number) for number in (0, 0, 1)]

    assert counted == [2, 4, 2]


def test_one_is_the_first_of_the_whole_run() -> None:
    values = SharedValues()

    assert [values.answer(Ask(1, Question.FIRST, "disk"), number) for number in (0, 0, 1)] == [True, False, False]


def test_no_agent_fills_the_memory_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that takes the place of another counts once."""
    monkeypatch.setattr(shared_values, "_MOST_SHARED", 2)
    monkeypatch.setattr(shared_values, "_MOST_SHARED_TEXT", 10)
    values = SharedValues()
    for _ in range(3):
        values.put("a", "12345678")
    values.put("b", "12")

    with pytest.raises(MessageError, match="shared"):
        values.put("b", "123")
    with pytest.raises(MessageError, match="shared"):
        values.put("c", "")


def test_there_is_an_end_of_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_values, "_MOST_SHARED", 2)
    values = SharedValues()
    for name in "abc":
        values.answer(Ask(1, Question.FIRST, name), 0)

    with pytest.raises(MessageError, match="more than 2 counters"):
        values.answer(Ask(1, Question.COUNT, "d"), 0)
