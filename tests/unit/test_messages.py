"""The messages between agents: written, read, and refused where they cannot be meant."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from hpc_launch import codec
from hpc_launch.plan.similar_commands import command_of
from hpc_launch.rendezvous import messages
from hpc_launch.rendezvous.membership import Membership
from hpc_launch.rendezvous.messages import (
    FROM_AGENTS,
    FROM_COORDINATOR,
    Accept,
    Answer,
    Ask,
    Begun,
    Bye,
    Ended,
    Failed,
    Hello,
    Message,
    Notice,
    Notices,
    Ping,
    Purpose,
    Question,
    Ready,
    RefusalKind,
    Refused,
    RoundEnd,
    RoundEnding,
    RoundPlan,
    RunState,
    Share,
    Start,
    Stop,
    Told,
    Verdict,
    Waiting,
)
from hpc_launch.rendezvous.transport import framing
from hpc_launch.rendezvous.transport.peer_faults import MessageError

AGENTS = tuple(agent for agent in range(1024) if agent not in (7, 500))
STATE = RunState(
    3, 1, {"2": 1}, {"2": "is broken (Xid 79)"}, {"SIGUSR1": 2}, "12.0", 4, "12.0.0", {"5": ("10.0.0.5", 1)}
)
READY = Ready(
    agent=3,
    host="gpu04",
    address="10.0.0.4",
    port=20_000,
    workers=8,
    software={"torch": "2.13.0"},
    problem="",
    status=0,
    agreed=Membership(2, AGENTS, "2-abc", AGENTS[:-2]),
    accepted=(Membership(3, (0, 1)),),
    state=STATE,
    gone=(4,),
)
START = Start(
    membership=Membership(1, (0, 1, 2), "1-a", (0, 2)),
    hosts=("gpu01", "gpu03"),
    coordinator=1,
    plan=RoundPlan("10.0.0.1", 20_001, (4, 4), "12.0", 0, "12.0.0"),
    state=STATE,
    places={"0": ("10.0.0.1", 1), "1": ("10.0.0.2", 2)},
)
END = RoundEnd(RoundEnding.FAILED.value, 2, "gpu03", 143, "stopped by SIGTERM", "SIGTERM")
TO_COORDINATOR = [READY, Accept(Membership(1, (0, 1))), Begun(0), Failed(0, 1, "it broke"), Stop(END), Bye()]
TO_COORDINATOR += [Notice("SIGUSR1", 1), Share("hang/0", "{}"), Ask(1, Question.COUNT, "activity", 1)]
FROM = [START, Ping(), Ended(3, END, STATE), Notices({"SIGUSR2": 1}), Waiting({"5": ("::1", 3)}), Told(1, 2.0)]
FROM += [Refused(RefusalKind.MISSING, "gpu02 did not join", 69, ("gpu02",)), Told(2, "text"), Told(3, value=True)]


@pytest.mark.parametrize("message", TO_COORDINATOR, ids=lambda message: type(message).__name__)
def test_what_agents_send_comes_back_as_it_was(message: Any) -> None:
    assert messages.decode(codec.encode(message), FROM_AGENTS) == message


@pytest.mark.parametrize("message", FROM, ids=lambda message: type(message).__name__)
def test_what_coordinators_send_comes_back_as_it_was(message: Any) -> None:
    assert messages.decode(codec.encode(message), FROM_COORDINATOR) == message


@pytest.mark.parametrize(
    "message",
    [
        Hello(Purpose.JOIN, 1, "gpu02", "a1", "program", "train.py --lr 1"),
        Answer(Verdict.WELCOME, 0, "gpu01", "b2", 0, 4, 20_000),
    ],
    ids=["hello", "answer"],
)
def test_what_the_handshake_carries_comes_back_as_it_was(message: Any) -> None:
    assert messages.decode(codec.encode(message), codec.known(Hello, Answer)) == message


def test_the_longest_hello_fits_into_a_handshake() -> None:
    """The limits of its parts keep it below the transport's."""
    words = ("/" + "d" * 99, *(f"--option-{number}={number}-13" for number in range(10)), *map(str, range(100, 169)))
    command = command_of(words, {"SLURM_PROCID": "13", "SLURMD_NODENAME": "n" * 63}, "n" * 63)
    hello = Hello(
        Purpose.JOIN, 13, "n" * 63, "0" * 32, "0" * 64, "w" * 200, command.digests, command.texts or {}, command.task
    )

    assert command.digests
    assert len(codec.encode(hello)) <= framing.MAX_HELLO


def test_a_command_that_is_too_long_for_a_hello_is_left_out() -> None:
    """Characters that JSON writes with many bytes count as that: the digest alone tells the program then."""
    hello = Hello(Purpose.JOIN, 1, "gpu02", "a1", "program", "\U0001f600" * 400, ("abcdef",) * 80, {"1": "é" * 100})

    assert messages.fitting(hello) == Hello(Purpose.JOIN, 1, "gpu02", "a1", "program")


def test_a_membership_of_many_is_short() -> None:
    """Each agent tells the coordinator what it knows: of a thousand that is not the numbers of a thousand each."""
    assert len(json.dumps(Membership(5, AGENTS, "3-abc", AGENTS).plain())) < 100


def test_fields_of_a_newer_release_are_passed_over() -> None:
    facts = {**json.loads(codec.encode(READY)), "colour": "red"}

    assert messages.decode(json.dumps(facts).encode(), FROM_AGENTS) == READY


def test_fields_with_a_default_may_be_missing() -> None:
    facts = json.loads(codec.encode(READY))
    del facts["gone"]

    assert messages.decode(json.dumps(facts).encode(), FROM_AGENTS).gone == ()


LONG = "x" * (1 << 21)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agent", -1),
        ("agent", True),
        ("agent", 1 << 40),
        ("agent", "1"),
        ("agent", 1.5),
        ("port", 70_000),
        ("workers", -1),
        ("workers", 10**9),
        ("host", None),
        ("host", LONG),
        ("software", []),
        ("software", {"torch": 1}),
        ("software", {str(number): "" for number in range(1000)}),
        ("problem", LONG),
        ("status", 256),
        ("agreed", []),
        ("agreed", [0, [0, 1], "", ""]),
        ("agreed", [0, "0-", "", ""]),
        ("agreed", [0, "0-99999999999", "", ""]),
        ("agreed", [0, "5-1", "", ""]),
        ("agreed", [0, "0-1", "../token", ""]),
        ("agreed", [0, "0-1", "a/b", ""]),
        ("accepted", [[0, "0"]]),
        ("state", None),
        ("state", {"round": "0"}),
        ("state", {"notices": {"SIGNONSENSE": 1}}),
        ("state", {"notices": {"SIGUSR1": -1}}),
        ("state", {"notices": {"SIGUSR1": 1 << 60}}),
        ("state", {"job": "../../home"}),
        ("state", {"job": "/etc"}),
        ("state", {"job": ".."}),
        ("state", {"job": ".ssh"}),
        ("state", {"job": "a\nb"}),
        ("state", {"trouble": {"x": 1}}),
        ("state", {"trouble": {"99999999": 1}}),
        ("state", {"waiting": {"1": ["10.0.0.1"]}}),
        ("state", {"waiting": {"1": ["10.0.0.1", 70_000]}}),
        ("gone", "0"),
        ("gone", [-1]),
    ],
)
def test_fields_that_cannot_be_meant_are_refused(field: str, value: Any) -> None:
    """The error names the field."""
    facts = {**json.loads(codec.encode(READY)), field: value}

    with pytest.raises(MessageError, match=f"^Ready.{field}"):
        messages.decode(json.dumps(facts).encode(), FROM_AGENTS)


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (Notice("SIGUSR1", 1), "signal", "SIGNONSENSE"),
        (Notice("SIGUSR1", 1), "signal", ""),
        (Notice("SIGUSR1", 1), "count", 1 << 62),
        (Stop(END), "end", {"ending": "well", "agent": 0, "host": "a"}),
        (Stop(END), "end", {"ending": "failed", "agent": 0, "host": "a", "signal": "SIGX"}),
        (Failed(0, 1, "it broke"), "own", 1),
        (Share("name", "text"), "text", LONG + "x"),
        (Ask(1, Question.FIRST, "disk"), "what", "everything"),
        (Ask(1, Question.COUNT, "activity", 1), "amount", 1e99),
    ],
    ids=lambda value: str(value)[:20],
)
def test_messages_of_agents_that_cannot_be_meant_are_refused(message: Any, field: str, value: Any) -> None:
    facts = {**json.loads(codec.encode(message)), field: value}

    with pytest.raises(MessageError):
        messages.decode(json.dumps(facts).encode(), FROM_AGENTS)


@pytest.mark.parametrize(("ending", "status"), [("done", 0), ("restart", 1), ("failed", 0)])
def test_an_agent_alone_ends_a_run_only_as_failed(ending: str, status: int) -> None:
    """Success is what all agents say, and another attempt what the coordinator decides."""
    facts = {"do": "Stop", "end": {"ending": ending, "agent": 1, "host": "gpu02", "status": status}}

    with pytest.raises(MessageError, match="end"):
        messages.decode(json.dumps(facts).encode(), FROM_AGENTS)


def test_ranges_are_not_unfolded_beyond_the_number_of_agents() -> None:
    """A few bytes can write many numbers."""
    written = ",".join(["0-131071"] * 1000)
    facts = {**json.loads(codec.encode(READY)), "agreed": [1, written, "", ""]}

    with pytest.raises(MessageError, match="more than 131072 numbers"):
        messages.decode(json.dumps(facts).encode(), FROM_AGENTS)


def test_what_can_be_shared_can_be_told() -> None:
    """The answer to a question has room for what was shared."""
    longest = "x" * messages.MOST_SHARED

    assert messages.decode(codec.encode(Share("a", longest)), FROM_AGENTS).text == longest
    assert messages.decode(codec.encode(Told(1, longest)), FROM_COORDINATOR).value == longest


def plan(**changes: Any) -> dict[str, Any]:
    """Return the plan of a round as it is written."""
    return {"master_addr": "a", "master_port": 1, "workers": [[4, 2]], "job": "12.0", "first_attempt": 0, **changes}


def with_field(field: str, value: Any) -> bytes:
    """Return a start with another value of one field."""
    return json.dumps({**json.loads(codec.encode(START)), field: value}).encode()


def test_a_start_with_another_plan_is_read() -> None:
    """What follows is refused for one value each."""
    assert messages.decode(with_field("plan", plan()), FROM_COORDINATOR).plan.workers == (4, 4)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("hosts", ["gpu01"], "contradict each other"),
        ("coordinator", 9, "contradict each other"),
        ("membership", [1, "0-2", "1-a", "0"], "contradict each other"),
        ("membership", [1, "0-2", "", "1-a"], "Start.membership"),
        ("plan", plan(workers=[[4, 1]]), "contradict each other"),
        ("plan", plan(workers=[4, 4]), "RoundPlan.workers"),
        ("plan", plan(workers=[[4, 2, 1]]), "RoundPlan.workers"),
        ("plan", plan(workers=[[4, 0]]), "RoundPlan.workers"),
        ("plan", plan(workers=[[-1, 2]]), "RoundPlan.workers"),
        ("plan", plan(workers=[[4, 1 << 17], [4, 1]]), "more than 131072 agents"),
        ("plan", plan(job="../x"), "RoundPlan.job"),
        ("plan", plan(master_port=1 << 17), "RoundPlan.master_port"),
    ],
)
def test_a_start_that_contradicts_itself_is_refused(field: str, value: Any, why: str) -> None:
    with pytest.raises(MessageError, match=why):
        messages.decode(with_field(field, value), FROM_COORDINATOR)


@pytest.mark.parametrize(
    ("workers", "written"), [((4, 4), [[4, 2]]), ((), []), ((2, 4, 4, 2), [[2, 1], [4, 2], [2, 1]])]
)
def test_workers_are_written_as_runs_of_equal_numbers(workers: tuple[int, ...], written: list[list[int]]) -> None:
    """A plan is as long for a thousand nodes as for two."""
    made = RoundPlan("10.0.0.1", 20_001, workers, "12.0", 0, "12.0.0")

    assert json.loads(made.encode())["workers"] == written
    assert RoundPlan.decode(made.encode()) == made


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"1",
        b"null",
        b"[]",
        b"{}",
        b'{"do": 1}',
        b'{"do": "Start"}',
        b'{"do": "__init__"}',
        b'{"do": "Begun", "round": NaN}',
        b'{"do": "Begun", "round": 1e999}',
        b'{"do": "Begun", "round": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        messages.decode(data, FROM_AGENTS)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(kind=st.sampled_from(sorted({**FROM_AGENTS, **FROM_COORDINATOR})), data=st.data())
def test_whatever_stands_in_a_field_is_a_message_or_a_refusal(kind: str, data: st.DataObject) -> None:
    """Nothing but `MessageError` leaves the decoder."""
    known = {**FROM_AGENTS, **FROM_COORDINATOR}
    facts = {name: data.draw(values) for name in (one.name for one in dataclasses.fields(known[kind]))}
    text = json.dumps({"do": kind, **facts})
    try:
        found = messages.decode(text.encode(), known)
    except MessageError:
        return

    assert isinstance(found, known[kind])


def test_what_agents_share_is_checked_as_well() -> None:
    """A text that another agent has left is read as the kind that is expected, or not at all."""
    plan = START.plan

    assert RoundPlan.decode(plan.encode()) == plan
    with pytest.raises(MessageError):
        RoundPlan.decode("{}")
    with pytest.raises(MessageError):
        Message.decode("[]")


def test_words_are_cut_to_a_line() -> None:
    found = messages.one_line("one\ntwo\x00 " + LONG)

    assert "\n" not in found
    assert len(codec.encode(Failed(0, 1, found))) < 10_000


def test_what_agents_know_together_is_the_latest() -> None:
    """Of notices the greatest count, of the run what the newest round says."""
    older = RunState(1, 2, notices={"SIGUSR1": 3}, job="12.0", waiting={"1": ("a", 1)})

    merged = messages.merge([older, STATE])

    assert (merged.round, merged.spent, merged.notices) == (3, 2, {"SIGUSR1": 3})
    assert (merged.waiting, merged.run_id) == (STATE.waiting, "12.0.0")
