"""How agents find the leader: real sockets on loopback, with strangers on the ports."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from hpc_launch.elastic import locator
from hpc_launch.elastic.locator import Found, Locator
from hpc_launch.node import network
from tests.support import wait_for

RUN = "4711.0.0"
HERE = "127.0.0.1"
PATIENCE = 10.0

# Where the leader of these tests is: its address, the agent's own, and the store's port.
THERE = (HERE, HERE, 5555)

# Every agent number is taken once in a run: those who look for the leader that the tests share get a new one each.
NEW_AGENTS = itertools.count(1000)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let silent strangers cost little."""
    monkeypatch.setattr(locator, "_ANSWER_SECONDS", 0.3)


@contextlib.contextmanager
def leader(run_id: str = RUN, port: int = 0, store_port: int = 5555) -> Iterator[Locator]:
    served = Locator(run_id, network.listen(port), store_port)
    try:
        yield served
    finally:
        served.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Locator]:
    """Return a leader that the tests share: none of them may disturb it."""
    with leader() as served:
        yield served


def seek(
    ports: Sequence[int], agent: int | None = None, *, patience: float = PATIENCE, key: str = "", name: str = HERE
) -> Found | str:
    number = next(NEW_AGENTS) if agent is None else agent
    return locator.find(RUN, number, lambda: [(name, ports)], time.monotonic() + patience, key)


def where(answer: Found | str) -> tuple[str, str, int] | str:
    """Return what an answer says, and take leave of the leader."""
    if isinstance(answer, str):
        return answer
    answer.lifeline.close()
    return answer.leader_address, answer.own_address, answer.port


def look(
    ports: Sequence[int], agent: int | None = None, *, patience: float = PATIENCE, key: str = "", name: str = HERE
) -> tuple[str, str, int] | str:
    return where(seek(ports, agent, patience=patience, key=key, name=name))


def free_port() -> int:
    """Return a port on which nobody listens (and which the kernel will not hand out again at once)."""
    with socket.create_server((HERE, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def stranger(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen as somebody else, who does `serve` with every connection."""
    ending = threading.Event()
    with socket.create_server((HERE, 0)) as listener:
        listener.settimeout(0.05)

        def accept() -> None:
            held = []
            while not ending.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                held.append(connection)
                with contextlib.suppress(OSError):
                    serve(connection)
            for connection in held:
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ending.set()
            thread.join()


def silent(_: socket.socket) -> None:
    """Accept, and say nothing."""


def closing(connection: socket.socket) -> None:
    connection.close()


def resetting(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()


def saying(answer: bytes) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(answer)

    return serve


STRANGERS = {
    "silent": silent,
    "closes at once": closing,
    "resets": resetting,
    "SSH": saying(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "HTTP": saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "bytes": saying(bytes(range(256)) * 64),
    "an endless line": saying(b"x" * 100_000),
    "a number": saying(b"1\n"),
    "a list": saying(b"[]\n"),
    "null": saying(b"null\n"),
    "deep JSON": saying(b"[" * 4000 + b"\n"),
    "JSON without our words": saying(b'{"status": "ok"}\n'),
    "no port": saying(json.dumps({"run": RUN}).encode() + b"\n"),
    "an endless port": saying(b'{"run": "4711.0.0", "port": Infinity}\n'),
    "a port that is none": saying(json.dumps({"run": RUN, "port": "http"}).encode() + b"\n"),
    "another run": saying(b'{"run": "4712.0.0", "port": 1}\n'),
    "half an answer": saying(b'{"run": "4711.0.0", "po'),
}


def test_the_leader_is_found(served: Locator) -> None:
    """The answer has the store's port, and by which addresses the two reach each other."""
    assert look([served.port]) == THERE


def test_the_leader_is_found_by_name(served: Locator) -> None:
    """A name is resolved, and each of its addresses is tried."""
    assert look([served.port], name="localhost")[2] == 5555


def test_a_leader_listens_on_both_families(served: Locator) -> None:
    """Where a node has IPv6, the leader is found by it too."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    assert look([served.port], name="::1") == ("::1", "::1", 5555)


def test_the_leader_of_another_run_is_not_joined() -> None:
    """Another run's leader on a candidate port is passed by, and said in the end."""
    with leader("4712.0.0") as other:
        assert f"{HERE}: nobody listens, but 1 ports belong to others" == look([other.port], patience=0)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("serve", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_is_never_joined(serve: Callable[[socket.socket], None], served: Locator) -> None:
    """Whatever a foreign program on the first candidate does, the leader on the next is found."""
    with stranger(serve) as port:
        assert f"{HERE}: nobody listens, but 1 ports belong to others" == look([port], patience=0)
        assert look([port, served.port]) == THERE


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\n",
        b"[" * 4000 + b"\n",
        b"{}\n",
        b"null\n",
        b'{"run": "4711.0.0"}\n',
        b'{"run": "4711.0.0", "agent": [], "key": {}}\n',
        b'{"run": "4711.0.0", "agent": Infinity, "key": ""}\n',
        b"x" * 10_000,
    ],
)
def test_the_leader_survives_strangers(words: bytes, served: Locator) -> None:
    """A stranger who talks to the leader is told nothing of the store, and the next agent is served."""
    with socket.create_connection((HERE, served.port)) as connection:
        connection.settimeout(PATIENCE)
        with contextlib.suppress(OSError):  # it may hang up before all is said
            connection.sendall(words)
            connection.shutdown(socket.SHUT_WR)
            assert b"5555" not in connection.recv(4096)
    assert look([served.port]) == THERE


def test_silent_strangers_do_not_keep_agents_waiting(served: Locator) -> None:
    """Connections that say nothing are held in threads of their own."""
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection((HERE, served.port)))
        assert look([served.port], patience=0) == THERE


def test_an_agent_number_is_taken_once(served: Locator) -> None:
    """Of two runs with the same name each agent number belongs to the first, who may ask again."""
    assert look([served.port], agent=1, key="first") == THERE
    assert isinstance(look([served.port], agent=1, key="second", patience=0), str)
    assert look([served.port], agent=1, key="first", patience=0) == THERE
    assert look([served.port], agent=2, key="second", patience=0) == THERE


def test_of_many_with_the_same_number_one_is_joined(served: Locator) -> None:
    """Agents that ask at the same moment are told apart too."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: look([served.port], agent=3, patience=0), range(16)))

    assert [answer for answer in answers if answer == THERE] == [THERE]


def test_all_agents_of_a_large_run_find_the_leader(served: Locator) -> None:
    """Two hundred agents at once are all served."""
    with ThreadPoolExecutor(200) as pool:
        answers = set(pool.map(lambda _: look([served.port]), range(200)))

    assert {THERE} == answers


def test_a_leader_that_comes_later_is_found() -> None:
    """Agents go on looking until the leader is there."""
    port, looked, turns = free_port(), threading.Event(), 0

    def places() -> list[tuple[str, list[int]]]:
        nonlocal turns
        turns += 1
        if turns == 2:  # the first turn found nobody
            looked.set()
        return [(HERE, [port])]

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(locator.find, RUN, 1, places, time.monotonic() + PATIENCE)
        assert looked.wait(PATIENCE)
        with leader(port=port):
            assert where(answer.result(PATIENCE)) == THERE


def test_a_taken_port_is_refused_so_that_the_next_is_tried(served: Locator) -> None:
    """A leader cannot share a port with anybody, on whichever of its addresses that one listens."""
    with stranger(silent) as port, pytest.raises(OSError, match="in use"):
        network.listen(port)
    with pytest.raises(OSError, match="in use"):
        network.listen(served.port)


def test_a_port_is_free_again_when_the_leader_has_closed() -> None:
    """The next attempt, or the next job, can have it at once."""
    with leader() as served:
        port = served.port
        assert look([port]) == THERE
    with leader(port=port):
        assert look([port]) == THERE


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (HERE, f"{HERE}: nobody listens"),
        ("nowhere.invalid", "nowhere.invalid does not resolve"),
        ("localhost", "localhost (127.0.0.1): nobody listens"),
    ],
)
def test_what_was_seen_is_said_in_the_end(name: str, expected: str) -> None:
    """After the deadline each name is reported with what it led to."""
    answer = look([free_port()], patience=0, name=name)

    assert isinstance(answer, str)
    assert expected in answer.split("; ")


def test_the_places_are_asked_for_again_in_each_turn(served: Locator) -> None:
    """Names that become known later are tried."""
    turns: Iterator[list[tuple[str, list[int]]]] = iter([[], [(HERE, [served.port])]])

    assert where(locator.find(RUN, 4, lambda: next(turns), time.monotonic() + PATIENCE)) == THERE


def joined(served: Locator, agent: int, key: str = "") -> Found:
    found = seek([served.port], agent, key=key)
    assert isinstance(found, Found)
    return found


def test_an_agent_that_takes_leave_is_not_missed() -> None:
    """The end of an agent that says so is no loss."""
    with leader() as served:
        joined(served, 1).lifeline.close()
        wait_for(lambda: not served._sessions, PATIENCE, "the leader to hear it")
        assert served.lost == ()


@pytest.mark.parametrize("end", [closing, resetting])
def test_an_agent_that_is_killed_is_missed(end: Callable[[socket.socket], None]) -> None:
    """The kernel closes what a killed process leaves, and the leader knows which agent it was; the others stay."""
    with leader() as served:
        stays, killed = joined(served, 1), joined(served, 2)
        wait_for(lambda: len(served.callers) == 2, PATIENCE, "the leader to hear that they are here")
        end(killed.lifeline._connection)
        wait_for(lambda: served.lost, PATIENCE, "the leader to see it")
        assert (served.lost, stays.lifeline.broken()) == ((2,), False)
        stays.lifeline.close()


def test_a_stranger_that_hangs_up_is_not_missed() -> None:
    """Only agents that have joined can be lost."""
    with leader() as served:
        socket.create_connection((HERE, served.port)).close()
        assert look([served.port]) == THERE
        wait_for(lambda: not served._sessions, PATIENCE, "the leader to hear them")
        assert served.lost == ()


def test_an_agent_that_gave_up_and_asks_again_is_not_missed() -> None:
    """Before an agent has said that it is here, its conversation may break: a busy leader may be too slow for it."""
    with leader() as served:
        with socket.create_connection((HERE, served.port)) as connection:
            connection.sendall(json.dumps({"run": RUN, "agent": 1, "key": "mine"}).encode() + b"\n")
            assert b"5555" in connection.recv(4096)
        wait_for(lambda: not served._sessions, PATIENCE, "the leader to see it")
        again = joined(served, 1, key="mine")
        assert served.lost == ()
        again.lifeline.close()


def test_an_agent_sees_that_the_leader_is_gone() -> None:
    """The lifeline is whole while the leader lives, and broken after its end."""
    with leader() as served:
        found = joined(served, 1)
        assert not found.lifeline.broken()
    assert wait_for(found.lifeline.broken, PATIENCE, "the end to be seen")
    found.lifeline.close()


def test_how_far_a_clock_is_off_is_asked_on_the_lifeline(served: Locator, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent learns by how much its clock is ahead, and how wrong that can be; the connection stays a lifeline."""
    found = seek([served.port])
    assert isinstance(found, Found)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + (0 if threading.current_thread().name == "locator" else 90))
    measured = found.lifeline.clock()
    assert measured is not None
    offset, error = measured

    assert abs(offset - 90) <= error + 1e-5
    assert not found.lifeline.broken()
    found.lifeline.close()


def test_a_leader_that_does_not_tell_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it long, nor takes a late answer for another; that it is gone is noticed all the same."""
    monkeypatch.setattr(locator, "_CLOCK_SECONDS", 0.05)
    with network.listen(0) as listener:
        ours = socket.create_connection((HERE, listener.getsockname()[1]), PATIENCE)
        theirs, _ = listener.accept()
    lifeline = locator.Lifeline(ours)
    assert lifeline.clock() is None
    assert lifeline.clock() is None
    assert json.loads(theirs.recv(100)) == {"do": "clock"}
    theirs.sendall(b'{"time": 123.0}\n')

    assert not lifeline.broken()
    theirs.close()
    assert lifeline.broken()
    lifeline.close()
