"""The channel to the probes: what is said arrives, who is silent is named, and nothing is waited for without end."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from hpc_launch.check.evidence import ConnectionResult
from hpc_launch.check.node_facts import look_at
from hpc_launch.check.reachability import Answerer, call, try_to_reach
from hpc_launch.errors import ContextError
from hpc_launch.node import network
from hpc_launch.probes import probe_protocol
from hpc_launch.probes.probe_session import ProbeSession
from tests.support import mentions, wait_for

NODES = ("n1", "n2", "n3")

# Plays srun and its probes. Its argument is a program of Python that may use:
#   say(number, record)   a probe says something
#   order()               the next order, None at the end
STAGE = """
import json, os, sys, time
from hpc_launch.probes import probe_protocol

def say(number, **record):
    for line in probe_protocol.encode_record(record).splitlines():
        print(f"{number}: {line}", flush=True)

def order():
    line = sys.stdin.readline()
    return json.loads(line) if line else None

def error(text):
    print(text, file=sys.stderr, flush=True)
"""


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for what never comes as long as for a real cluster."""
    monkeypatch.setattr("hpc_launch.probes.probe_session._LAUNCH", 0.0)


def session(play: str, patience: float = 60.0) -> ProbeSession:
    """Return a session with a step that is a play."""
    return ProbeSession([sys.executable, "-c", STAGE + play], {"PYTHONPATH": ":".join(sys.path)}, NODES, patience)


ALL_BEGIN = "for number in range(3): say(number, hello=f'n{number + 1}')\n"


@given(st.dictionaries(st.text(), st.text(max_size=3000)), st.text(alphabet="ab: \t", max_size=20))
def test_records_arrive_in_pieces(record: dict[str, str], noise: str) -> None:
    """A record of any length arrives, behind whatever was printed without a newline."""
    decoder = probe_protocol.RecordDecoder()
    lines = probe_protocol.encode_record(record).splitlines(keepends=True)

    assert all(len(line.encode()) < 1000 for line in lines)
    assert [decoder.feed(noise + line) for line in lines] == [*[None] * (len(lines) - 1), record]


@pytest.mark.parametrize("line", ["", "hello", "#hpc-launch-probe:", "#hpc-launch-probe:.{", "#hpc-launch-probe:.[1]"])
def test_what_is_not_ours_is_no_record(line: str) -> None:
    """Greetings of modules, and broken records, are passed over."""
    assert probe_protocol.RecordDecoder().feed(line) is None


def test_orders_arrive_as_they_were_given() -> None:
    """An order is a line, and what is no order ends them."""
    given = [{"order": 1, "do": "facts"}, {"order": 2, "do": "a\nb", "nodes": ["n1"]}]
    stream = io.StringIO(
        "".join(map(probe_protocol.encode_order, given)) + "[]\n" + probe_protocol.encode_order(given[0])
    )

    assert list(probe_protocol.orders(stream)) == given
    assert list(probe_protocol.orders(io.StringIO(""))) == []


def test_a_record_without_end_is_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a node says is kept up to a limit; what follows is read again."""
    monkeypatch.setattr(probe_protocol, "_LONGEST", 2000)
    decoder = probe_protocol.RecordDecoder()

    assert [decoder.feed(line) for line in probe_protocol.encode_record({"a": "x" * 3000}).splitlines()][-1] is None
    assert decoder.feed(probe_protocol.encode_record({"a": 1})) == {"a": 1}


def test_everyone_is_asked_and_answers() -> None:
    """An order reaches all, and their answers come back by node."""
    play = (
        ALL_BEGIN
        + "o = order()\nfor number in range(3): say(number, order=o['order'], answer=o['what'] * number)\norder()"
    )
    channel = session(play)
    assert channel.begin()
    answers = channel.ask("sing", what="la")
    channel.end()

    assert answers.given == {"n1": "", "n2": "la", "n3": "lala"}
    assert (channel.lost, channel.silent) == ({}, {})


def test_who_does_not_answer_is_named_with_what_it_did() -> None:
    """A probe that hangs is named with what it was doing, and is not asked again."""
    play = (
        ALL_BEGIN
        + """
o = order()
say(2, doing="reading /scratch")
for number in range(2): say(number, order=o["order"], answer=1)
o = order()
for number in range(2): say(number, order=o["order"], answer=2)
while order(): pass
time.sleep(600)
"""
    )
    channel = session(play, patience=1.0)
    channel.begin()
    channel.ask("facts")
    second = channel.ask("more")
    channel.end()

    assert channel.silent == {"n3": "reading /scratch"}
    assert second.given == {"n1": 2, "n2": 2}


def test_a_probe_that_ends_is_lost_with_its_last_word() -> None:
    """A probe that ends is named at once, with what it said last."""
    play = (
        ALL_BEGIN
        + """
error("1: slurmstepd-n2: error: it fell")
error("srun: error: n2: task 1: Exited with exit code 1")
o = order()
for number in (0, 2): say(number, order=o["order"], answer=1)
order()
"""
    )
    channel = session(play)
    channel.begin()
    answers = channel.ask("facts")
    channel.end()

    assert set(channel.lost) == {"n2"}
    assert mentions(channel.lost["n2"], "Exited with exit code 1", "it fell")
    assert set(answers.given) == {"n1", "n3"}


def test_a_node_on_which_slurm_cannot_start_anything() -> None:
    """When srun gives up because of one node, only that one is lost; the others' ends are srun's doing."""
    play = """
for number in (0, 2): say(number, hello="n")
error("srun: error: Task launch for StepId=1.0 failed on node n2: Communication connection failure")
error("srun: error: Application launch failed: Communication connection failure")
error("srun: error: n1: task 0: Killed")
"""
    channel = session(play)
    begun = channel.begin()
    channel.end()

    assert (begun, set(channel.lost)) == (False, {"n2"})
    assert channel.lost["n2"].endswith(": Communication connection failure")


def test_a_node_that_never_begins() -> None:
    """A node of which nothing is heard, not even from srun, is named when its time is over."""
    channel = session("for number in (0, 2): say(number, hello='n')\norder()\ntime.sleep(600)", patience=0.5)
    begun = channel.begin()
    channel.end()

    assert (begun, channel.silent, channel.begun) == (False, {"n2": "being started"}, ("n1", "n3"))


def test_a_step_that_is_cancelled() -> None:
    """When srun ends while all are asked, no node is said to hang."""
    channel = session(ALL_BEGIN + "order()\nerror('srun: error: it was cancelled')")
    channel.begin()
    channel.ask("facts")
    channel.end()

    assert (channel.aborted, channel.silent, channel.lost) == (True, {}, {})
    assert channel.complaint == "srun: error: it was cancelled"


def test_what_slurm_says_of_a_cancelled_step_is_kept() -> None:
    """Slurm kills the probes and says on one node why."""
    said = "0: slurmstepd-n1: error: *** STEP 4.0 ON n1 CANCELLED AT 2026-11-23T01:11:30 DUE TO TIME LIMIT ***"
    channel = session(ALL_BEGIN + f"error('srun: error: n2: task 1: Killed')\nerror({said!r})\norder()")
    channel.begin()
    channel.ask("facts")
    channel.end()

    assert channel.cancelled == "STEP 4.0 ON n1 CANCELLED AT 2026-11-23T01:11:30 DUE TO TIME LIMIT"


def test_without_srun(tmp_path: Path) -> None:
    """In a container without Slurm's commands it is said where to go."""
    with pytest.raises(ContextError, match="Slurm"):
        ProbeSession([str(tmp_path / "srun")], {}, NODES, 1.0).begin()


def test_a_probe_ends_with_its_input(python: str) -> None:
    """Nothing is left of a probe whose command is gone, and until then it answers."""
    order = json.dumps({"order": 1, "do": "clock"})
    done = subprocess.run(
        [python, "-m", "hpc_launch.probes.probe", "hpc_launch.check.check_probe:CheckTasks"],
        input=f"{order}\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    records = [probe_protocol.RecordDecoder().feed(line) or {} for line in done.stdout.splitlines()]

    assert [sorted(record) for record in records] == [["hello", "nodes"], ["answer", "order"]]


def test_a_probe_survives_what_it_cannot_do(python: str) -> None:
    """An order that fails is answered with the error."""
    orders = [json.dumps({"order": number, "do": do}) for number, do in enumerate(("nonsense", "clock"))]
    command = [python, "-m", "hpc_launch.probes.probe", "hpc_launch.check.check_probe:CheckTasks"]
    done = subprocess.run(
        command, input="\n".join(orders) + "\n", capture_output=True, text=True, check=True, timeout=60
    )
    _, bad, good = [probe_protocol.RecordDecoder().feed(line) or {} for line in done.stdout.splitlines()]

    assert (bad["order"], bad["error"], good["order"]) == (0, "KeyError: 'nonsense'", 1)


def test_a_call_is_answered() -> None:
    """Who calls the check hears its name, and what else may happen is told apart."""
    answerer = Answerer("mine", range(20000, 20100))
    assert answerer.port is not None
    try:
        assert call("mine", "127.0.0.1", answerer.port) == (ConnectionResult.OPEN, "")
        assert call("another", "127.0.0.1", answerer.port) == (ConnectionResult.STRANGER, "")
    finally:
        answerer.close()

    assert call("mine", "127.0.0.1", answerer.port) == (ConnectionResult.REFUSED, "")


def test_a_silent_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who accepts and says nothing is as good as nobody."""
    monkeypatch.setattr("hpc_launch.check.reachability.PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert call("mine", "127.0.0.1", silent.getsockname()[1]) == (ConnectionResult.SILENT, "")


def test_names_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without an address, and one that means this node, need no call."""
    addresses = {"gone": (), "here": ("127.0.1.1",)}
    monkeypatch.setattr(network, "resolve_name", addresses.__getitem__)
    found = try_to_reach("mine", ("gone", "here", "10.0.0.1"), "127.0.0.1", 1)

    assert [(attempt.name, attempt.way) for attempt in found] == [
        ("", ConnectionResult.LOOPBACK),
        ("gone", ConnectionResult.UNRESOLVED),
        ("here", ConnectionResult.LOOPBACK),
    ]


def test_a_directory_is_left_as_it_was(tmp_path: Path) -> None:
    """Looking at a directory writes in it, and leaves nothing."""
    place = look_at("log_dir", tmp_path)

    assert (place.error, list(tmp_path.iterdir())) == ("", [])
    assert place.free
    assert look_at("log_dir", tmp_path / "none").error == os.strerror(errno.ENOENT)


def test_a_free_port_is_freed_again() -> None:
    """The port of a closed answerer can be listened on."""
    answerer = Answerer("mine", range(20200, 20300))
    port = answerer.port
    assert port is not None
    answerer.close()
    wait_for(lambda: _can_listen(port), 10, "the port is still taken")


def _can_listen(port: int) -> bool:
    try:
        network.listen(port).close()
    except OSError:
        return False
    return True
