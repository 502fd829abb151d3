"""A server and those who connect to it: agents, strangers, and a man in the middle; over loopback."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpc_launch.node import network
from hpc_launch.rendezvous.transport import client, framing, unknown_peers
from hpc_launch.rendezvous.transport.client import ConnectionFailure, server_answers
from hpc_launch.rendezvous.transport.connection import Connection, pair
from hpc_launch.rendezvous.transport.framing import FrameKind, Opening
from hpc_launch.rendezvous.transport.handshake import CONNECTING, ConnectingSide, KeyMethod, KnownKey, make_opening
from hpc_launch.rendezvous.transport.keys import Keyring
from hpc_launch.rendezvous.transport.munge import Munge
from hpc_launch.rendezvous.transport.peer_faults import MessageError
from hpc_launch.rendezvous.transport.server import Server
from tests.support import lines_mention, mentions, wait_for
from tests.unit.transport_support import (
    PLACE,
    Remembering,
    connect,
    connect_to,
    connected,
    dial,
    is_hung_up,
    receive,
    relaying,
    ring,
    serving,
    unknown_in,
)

ROOT = Path(__file__).parents[2]


class Clock:
    """A clock that stands, until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def failed(found: Connection | ConnectionFailure) -> ConnectionFailure:
    assert isinstance(found, ConnectionFailure)
    return found


def awake(server: Server) -> None:
    """Have the server's thread go through a turn, and wait for it."""
    done = threading.Event()
    server.call(done.set)
    assert done.wait(20)


def accepted(server: Server) -> Callable[[], bool]:
    """Whether the server has the connections that were made: it greets them."""
    return lambda: bool(unknown_in(server).unknown)


# ---- agents


def test_agents_that_have_a_secret_in_common_are_connected() -> None:
    """Each hears what the other's upper layer says first, and frames go both ways."""
    service = Remembering(on_received=lambda connection, payload: connection.send(payload.upper()))
    with serving(service) as server:
        here = connected(server, hello=b"I am 3")
        here.send(b"question")
        frames = receive(here)
        here.close()

    assert (service.hellos, here.answer, [frame.payload for frame in frames]) == (
        [b"I am 3"],
        b"hello too",
        [b"QUESTION"],
    )


def test_the_listening_side_has_the_hello() -> None:
    """The service may ask for it again."""
    service = Remembering()
    with serving(service) as server:
        here = connected(server, hello=b"I am 3")
        wait_for(lambda: service.connections, 20, "not opened")
        here.close()

    assert (service.connections[0].hello, service.connections[0].peer) == (b"I am 3", "127.0.0.1")


def test_an_agent_that_is_turned_away_gets_an_answer() -> None:
    """It is authentic, as long as can be, and the connection ends."""
    service = Remembering(stay=False, answer=b"a" * framing.MAX_ANSWER)
    with serving(service) as server:
        found = failed(connect(server))
        wait_for(lambda: not unknown_in(server).leaving, 20, "it is still there")

    assert (found.kind, len(found.answer), service.connections, service.gone) == (
        client.FailureKind.TURNED_AWAY,
        framing.MAX_ANSWER,
        [],
        [],
    )


def test_bulk_goes_to_its_own_method() -> None:
    """It is no message."""
    service = Remembering()
    with serving(service) as server:
        here = connected(server)
        here.send_bulk(b"bulk")
        here.send(b"control")
        wait_for(lambda: service.bulk and service.payloads, 20, "not received")
        here.close()

    assert (service.bulk, service.payloads) == ([b"bulk"], [b"control"])


def test_a_connection_that_ends_is_lost() -> None:
    """It was closed at the other end."""
    service = Remembering()
    with serving(service) as server:
        connected(server).close()
        wait_for(lambda: service.gone, 20, "not lost")

    assert [connection.closed for connection in service.gone] == [True]


def test_a_connection_that_the_service_closes_is_not_lost() -> None:
    """It knows."""
    service = Remembering(on_received=lambda connection, _: connection.close())
    with serving(service) as server:
        here = connected(server)
        here.send(b"bye")
        receive(here)
        wait_for(lambda: not server.connections, 20, "it is still there")
        here.close()

    assert (here.closed, service.gone) == (True, [])


def test_a_descriptor_may_be_used_again_at_once() -> None:
    """The kernel gives the number of a closed connection to the next one."""
    service = Remembering(on_received=lambda connection, payload: connection.send(payload.upper()))
    with serving(service) as server:
        here = connected(server)
        wait_for(lambda: service.connections, 20, "not opened")
        ends: list[Connection] = []

        def exchange() -> None:
            held = service.connections[0].fileno()
            service.connections[0].close()
            while held not in [end.fileno() for end in ends]:
                ends.extend(pair())
            for end in ends[::2]:
                server.adopt(end)

        server.call(exchange)
        awake(server)
        ends[-1].send(b"again")
        frames = receive(ends[-1])
        for end in (here, *ends[1::2]):
            end.close()

    assert (server.error, [frame.payload for frame in frames]) == (None, [b"AGAIN"])


def test_frames_after_the_service_has_closed_are_not_handed_on() -> None:
    """Several may have come at once."""
    service = Remembering(on_received=lambda connection, _: connection.close())
    with serving(service) as server:
        here = connected(server)
        here._control.extend([b"one", b"two"])
        here.flush()
        receive(here)
        here.close()

    assert service.payloads == [b"one"]


def test_what_the_service_sends_at_once_arrives() -> None:
    """The first frames may come with the answer."""

    class Welcoming(Remembering):
        def opened(self, connection: Connection) -> None:
            super().opened(connection)
            connection.send(b"welcome")

    with serving(Welcoming()) as server:
        here = connected(server)
        frames = receive(here)
        here.close()

    assert [frame.payload for frame in frames] == [b"welcome"]


def test_much_is_sent_as_the_peer_takes_it() -> None:
    """The server's thread never waits for one connection."""
    service = Remembering()
    with serving(service) as server:
        slow, quick = connected(server), connected(server)
        wait_for(lambda: len(service.connections) == 2, 20, "not opened")
        first, second = service.connections
        for _ in range(4):
            server.call(lambda: first.send(bytes(framing.MAX_CONTROL)))
        server.call(lambda: second.send(b"now"))
        at_once = receive(quick)
        late = receive(slow, 4)
        slow.close()
        quick.close()

    assert ([frame.payload for frame in at_once], len(late)) == ([b"now"], 4)


def test_an_agent_may_have_a_connection_to_itself() -> None:
    """The local pair takes no part in a handshake."""
    service = Remembering(on_received=lambda connection, payload: connection.send(payload.upper()))
    there, here = pair(b"I am 0")
    with serving(service) as server:
        server.call(lambda: server.adopt(there))
        here.send(b"mine")
        frames = receive(here)
        here.close()
        wait_for(lambda: service.gone, 20, "not lost")

    assert ([frame.payload for frame in frames], service.connections[0].hello) == ([b"MINE"], b"I am 0")


def test_actions_run_in_the_thread_in_their_order() -> None:
    """Whoever calls does not wait."""
    ran: list[tuple[int, str]] = []
    with serving() as server:
        for number in range(100):
            server.call(lambda number=number: ran.append((number, threading.current_thread().name)))  # type: ignore[misc]
        awake(server)

    assert ran == [(number, "server") for number in range(100)]


def test_an_action_in_a_server_that_has_ended_does_not_run() -> None:
    """Nor does it fail."""
    with serving() as server:
        pass
    ran: list[int] = []
    server.call(lambda: ran.append(1))

    assert ran == []


def test_a_server_that_was_never_started_closes() -> None:
    """Its port is free then."""
    listener = network.listen(0)
    port = listener.getsockname()[1]
    Server(listener, ring("s"), Remembering(), name="never", silence=10).close()

    network.listen(port).close()


def test_an_idle_server_does_not_wake_up() -> None:
    """There are no turns without cause."""
    service = Remembering()
    with serving(service) as server:
        here = connected(server)
        awake(server)
        before = service.turns
        select.select([here], [], [], 0.5)
        turns = service.turns - before  # that of `awake` itself may be among them
        here.close()

    assert turns <= 1


def test_the_service_is_called_as_early_as_it_wants() -> None:
    """Its turn says when it has something to do."""
    service = Remembering(wait=0.001)
    with serving(service):
        wait_for(lambda: service.turns > 10, 20, lambda: f"{service.turns} turns")


def test_what_is_left_to_send_is_sent_at_the_end() -> None:
    """The last word of a leader reaches those who take it."""
    service = Remembering()
    with serving(service) as server:
        here = connected(server)
        wait_for(lambda: service.connections, 20, "not opened")
        server.call(lambda: service.connections[0].send(bytes(framing.MAX_CONTROL)))
        awake(server)
        ending = threading.Thread(target=lambda: server.close(linger=20))
        ending.start()
        frames = receive(here, 1)
        ending.join()
        here.close()

    assert [len(frame.payload) for frame in frames] == [framing.MAX_CONTROL]


def test_last_words_arrive_though_the_peer_speaks_too() -> None:
    """Closing with unread data resets a connection: what was on its way would be dropped."""
    service = Remembering()
    with serving(service) as server:
        here = connected(server)
        wait_for(lambda: service.connections, 20, "not opened")
        there = service.connections[0]

        def end() -> None:
            here.send(b"unread")
            there.send(bytes(1 << 16))
            server.close(linger=20)

        server.call(end)
        server._thread.join(20)
        frames = receive(here)
        here.close()

    assert [len(frame.payload) for frame in frames] == [1 << 16]


def test_descriptors_above_1023_are_served() -> None:
    """select(2) knows none of these."""
    program = """
    import resource, socket
    from tests.unit.transport_support import *
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    held = [socket.socket() for _ in range(1100)]
    service = Remembering(on_received=lambda connection, payload: connection.send(payload.upper()))
    with serving(service) as server:
        here = connected(server)
        here.send(b"high")
        print(here.fileno() > 1023, receive(here)[0].payload)
    """

    assert run(program) == "True b'HIGH'\n"


def run(program: str) -> str:
    """Run a program of its own, as it changes its limits."""
    code = textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_many_agents_are_served_at_once() -> None:
    """More than may be unknown at a time; on a busy machine too, as no time passes for the server."""
    service = Remembering()
    with serving(service, limit=8, clock=lambda: 0.0) as server:
        with ThreadPoolExecutor(64) as pool:
            found = list(pool.map(lambda number: connected(server, hello=str(number).encode()), range(200)))
        for one in found:
            one.close()

    assert (len(set(service.hellos)), service.reasons) == (200, [])


# ---- secrets, places, versions


def test_agents_without_a_common_secret_are_not_connected() -> None:
    """Both sides learn what the other has."""
    service = Remembering()
    with serving(service) as server:
        found = failed(connect(server, ring("another", method=KeyMethod.KEY_FILE)))
        wait_for(lambda: service.reasons, 20, "nothing was refused")

    assert (found.kind, service.hellos) == (client.FailureKind.NO_COMMON_SECRET, [])
    assert re.search("HPC_LAUNCH_SECRET.* key file", found.words)
    (reason,) = service.reasons
    assert re.search(r"^127\.0\.0\.1: .* key file.* HPC_LAUNCH_SECRET", reason)


def test_an_agent_of_another_run_is_a_stranger() -> None:
    """Though it is the same user's, with the same secret."""
    with serving() as server:
        found = failed(connect(server, ring("the secret", place="cluster/2/0/0")))

    assert found.kind is client.FailureKind.STRANGER


@pytest.mark.parametrize(("here", "there"), [(True, True), (True, False), (False, True), (False, False)])
def test_agents_without_secrets_are_connected_where_both_were_asked_to(here: bool, there: bool) -> None:
    """--insecure-rendezvous is nothing that one side could decide."""
    mine, theirs = (Keyring("place", insecure=asked) for asked in (here, there))
    with serving(keyring=theirs) as server:
        found = connect(server, mine)
        kind = found.kind if isinstance(found, ConnectionFailure) else None
        if isinstance(found, Connection):
            found.close()

    assert kind is (None if here and there else client.FailureKind.NO_COMMON_SECRET)


def test_another_version_is_named_on_both_sides() -> None:
    """By its first frame, whatever it does afterwards."""
    service = Remembering()
    with serving(service) as server, dial(server) as old:
        wait_for(accepted(server), 20, "not accepted")
        old.sendall(Opening(2, bytes(32), ()).encode())
        is_hung_up(old)
        wait_for(lambda: service.reasons, 20, "nothing was refused")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(Opening(2, bytes(32), ()).encode())
                is_hung_up(peer)

        thread = threading.Thread(target=answer)
        thread.start()
        found = failed(connect_to(listener.getsockname()[1]))
        thread.join()

    assert found.kind is client.FailureKind.VERSION
    assert mentions(found.words, "2 1")
    assert lines_mention(service.reasons, "127.0.0.1 2 1")


# ---- a man in the middle


def test_a_relay_is_a_stranger() -> None:
    """A relay on another port of the node has no proof that is of use."""
    service = Remembering()
    with serving(service) as server, relaying(server.port) as relay:
        found = connect_to(relay.port)

    assert isinstance(found, ConnectionFailure)
    assert (found.kind, service.hellos) == (client.FailureKind.STRANGER, [])


def test_a_relay_only_delays() -> None:
    """Where a port is forwarded, what is forwarded as it is arrives."""
    service = Remembering(on_received=lambda connection, payload: connection.send(payload.upper()))
    with serving(service) as server, relaying(server.port) as relay:
        here = connect_to(server.port, through=relay.port)
        assert isinstance(here, Connection)
        here.send(b"question")
        frames = receive(here)
        here.close()

    assert [frame.payload for frame in frames] == [b"QUESTION"]


def changed_at(place: int, *, to: bool) -> Callable[[bool, int, bytes], bytes]:
    """Change one bit of what goes one way."""

    def change(towards: bool, at: int, data: bytes) -> bytes:
        if towards is not to or not at <= place < at + len(data):
            return data
        copy = bytearray(data)
        copy[place - at] ^= 1
        return bytes(copy)

    return change


@pytest.mark.parametrize("to", [True, False])
def test_what_a_relay_changes_afterwards_is_noticed(to: bool) -> None:
    """No message was changed; the connection is broken."""
    service = Remembering(on_received=lambda connection, payload: connection.send(payload.upper()))
    handshake = Handshake.lengths()
    with serving(service) as server, relaying(server.port, changed_at(handshake[to] + 7, to=to)) as relay:
        here = connect_to(server.port, through=relay.port)
        assert isinstance(here, Connection)
        here.send(b"question")
        frames = receive(here)
        if to:
            wait_for(lambda: service.gone, 20, "not lost")
        here.close()

    assert (frames, service.payloads) == ([], [] if to else [b"question"])


class Handshake:
    """How long the handshake is each way."""

    @staticmethod
    def lengths() -> dict[bool, int]:
        with serving() as server, relaying(server.port) as relay:
            here = connect_to(server.port, through=relay.port)
            assert isinstance(here, Connection)
            here.close()
            return {to: len(data) for to, data in relay.sent.items()}


@pytest.mark.parametrize("to", [True, False])
def test_what_a_relay_changes_in_a_handshake_is_noticed(to: bool) -> None:
    """Wherever it does; a length that it makes longer is waited for in vain."""
    places = range(10, Handshake.lengths()[to], 7)
    outcomes = []
    with serving() as server:
        for place in places:
            with relaying(server.port, changed_at(place, to=to)) as relay:
                outcomes.append(isinstance(connect_to(server.port, patience=0.2, through=relay.port), Connection))

    assert outcomes == [False] * len(places)


def test_a_recorded_session_is_of_no_use() -> None:
    """What an agent has said once means nothing the next time."""
    service = Remembering()
    with serving(service) as server:
        with relaying(server.port) as relay:
            here = connect_to(server.port, through=relay.port)
            assert isinstance(here, Connection)
            here.send(b"stop")
            wait_for(lambda: service.payloads, 20, "not received")
            here.close()
        with dial(server) as replay:
            replay.sendall(relay.sent[True])
            hung_up = is_hung_up(replay)

    assert (hung_up, service.hellos, service.payloads) == (True, [b"hello"], [b"stop"])


def test_frames_that_are_sent_again_are_noticed() -> None:
    """Within the connection they belong to."""

    class Repeating:
        """Forwards the frame after the handshake twice."""

        def __init__(self, begin: int) -> None:
            self.begin = begin

        def __call__(self, to: bool, at: int, data: bytes) -> bytes:
            return data * 2 if to and at >= self.begin else data

    service = Remembering()
    with serving(service) as server, relaying(server.port, Repeating(Handshake.lengths()[True])) as relay:
        here = connect_to(server.port, through=relay.port)
        assert isinstance(here, Connection)
        here.send(b"once")
        wait_for(lambda: service.gone, 20, "not lost")
        here.close()

    assert (service.payloads, mentions(service.gone[0].why, "authentic")) == ([b"once"], True)


def test_who_sends_back_all_that_comes_is_a_stranger() -> None:
    """It says nothing first, and a server that echoes an opening learns nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener, serving() as server:

        def echo() -> None:
            peer, _ = listener.accept()
            with peer, dial(server) as true:
                peer.sendall(true.recv(4096))
                peer.sendall(peer.recv(4096))
                is_hung_up(peer)

        thread = threading.Thread(target=echo)
        thread.start()
        found = failed(connect_to(listener.getsockname()[1]))
        thread.join()

    assert found.kind is client.FailureKind.STRANGER


def test_a_connection_to_itself_is_none() -> None:
    """The kernel can connect a socket to its own port, where nothing listens (simultaneous open)."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    itself = socket.socket()
    itself.bind(("127.0.0.1", port))
    itself.connect(("127.0.0.1", port))

    found = connect_as(itself)

    assert (found.kind, itself.fileno()) == (client.FailureKind.STRANGER, -1)


def connect_as(opened: socket.socket) -> ConnectionFailure:
    """Connect, where the kernel gives this socket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_connection", lambda *_, **__: opened)
        return failed(connect_to(1))


def test_a_connection_that_was_reset_at_once_is_a_strangers() -> None:
    """The kernel does not say any more where it went."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        opened = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        there.close()
        select.select([opened], [], [], 20)
    found = connect_as(opened)

    assert (found.kind, opened.fileno()) == (client.FailureKind.STRANGER, -1)


def test_an_interrupted_handshake_leaves_no_connection() -> None:
    """As by Ctrl-C while munge is asked."""

    class Interrupted(Munge):
        def seal(self, timeout: float = 0) -> tuple[bytes, bytes] | None:
            raise KeyboardInterrupt(timeout)

    service, keyring = Remembering(), Keyring(PLACE, munge=Interrupted("munge", "unmunge"))
    with serving(service, keyring) as server:
        with pytest.raises(KeyboardInterrupt):
            connect(server, keyring)
        wait_for(lambda: not unknown_in(server).unknown, 20, "it is still there")

    assert service.hellos == []


def test_frames_may_come_with_the_proof() -> None:
    """They wait until the connection is open."""
    service, keyring = Remembering(), ring("the secret")
    with serving(service, keyring) as server, dial(server) as peer:
        machine = ConnectingSide(keyring.place_key, keyring.known, os.urandom(32), b"hello", port=server.port)
        while machine.chosen is None:
            machine.feed(peer.recv(4096))
        assert machine.chosen.secret is not None
        proof = machine.prove(machine.chosen.secret)
        assert machine._keyed is not None
        peer.sendall(proof + machine._keyed[0].seal(FrameKind.CONTROL, b"early"))
        wait_for(lambda: service.payloads, 20, "not received")

    assert (service.hellos, service.payloads) == ([b"hello"], [b"early"])


# ---- strangers at a server

GARBAGE = [
    b"\0",
    b"GET / HTTP/1.1\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b'{"do":"ready","agent":1}\n',
    b'{"run":"1.0.0","agent":0,"key":"x"}\n',
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    framing.MAGIC[:-1] + b"\x01",
    framing.MAGIC + b"\x00\x01" + bytes(32) + b"\xff",
    Opening(1, bytes(32), ()).encode(),
    Opening(0, bytes(32), ()).encode(),
    make_opening(bytes(32), [KnownKey(KeyMethod.SECRET, bytes(32), bytes(32))], CONNECTING, bytes(32)).encode(),
    b"\xff" * 4096,
    bytes(range(256)),
    "ü\n".encode("utf-16"),
    b"<?xml version='1.0'?>",
    b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.",
    b"*3\r\n$3\r\nSET\r\n",
    b"\x00\x00\x00\x00" * 3,
    b"\x7fELF" + bytes(60),
    b"EHLO example.org\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_stranger_is_hung_up_on_and_learns_nothing(garbage: bytes) -> None:
    """All that it gets is the first frame; agents are served as before."""
    service = Remembering()
    with serving(service) as server:
        got = b""
        with dial(server) as stranger:
            stranger.sendall(garbage)
            stranger.settimeout(20)
            try:
                while data := stranger.recv(4096):
                    got += data
            except ConnectionError:
                pass
        connected(server).close()
    opening = framing.decode_opening(got)

    assert (service.hellos, opening is None or opening[1] == len(got)) == ([b"hello"], True)


def test_a_stranger_that_leaves_is_forgotten() -> None:
    """It is no loss, and no refusal."""
    service = Remembering()
    with serving(service) as server:
        dial(server).close()
        connected(server).close()
        wait_for(lambda: not unknown_in(server).unknown, 20, "it is still there")

    assert service.reasons == []


def test_the_longest_handshake_is_short_enough() -> None:
    """An agent is known before it has sent more than a stranger may."""
    assert framing.MAX_OPENING + framing.MAX_PROOF <= unknown_peers.UNKNOWN_BYTES


def test_who_sends_too_much_before_it_is_known_is_hung_up_on() -> None:
    """Here a credential that never ends, byte by byte within its length."""
    keyring = ring("the secret")
    opening = make_opening(keyring.place_key, keyring.known, CONNECTING, bytes(32)).encode()
    data = (
        opening
        + framing.encode_method_data(bytes(framing.MAX_METHOD_DATA))
        + (framing.MAX_HELLO).to_bytes(4, "big")
        + b"\0"
    )
    service = Remembering()
    with serving(service) as server, dial(server) as stranger:
        stranger.sendall(data + bytes(4096))
        is_hung_up(stranger)
        wait_for(lambda: service.reasons, 20, "nothing was refused")

    assert service.hellos == []


def test_who_is_not_known_in_time_is_hung_up_on() -> None:
    """One that says nothing, one that is slow, and one that has shown the right id."""
    clock, service = Clock(), Remembering()
    keyring = ring("the secret")
    opening = make_opening(keyring.place_key, keyring.known, CONNECTING, bytes(32)).encode()
    with serving(service, clock=clock) as server, dial(server) as idle, dial(server) as slow, dial(server) as half:
        wait_for(lambda: len(unknown_in(server).unknown) == 3, 20, "not accepted")
        slow.sendall(framing.MAGIC[:3])
        half.sendall(opening)
        clock.now += unknown_peers.UNKNOWN_SECONDS - 0.1
        awake(server)
        before = len(unknown_in(server).unknown)
        clock.now += 0.2
        awake(server)
        ends = [is_hung_up(one) for one in (idle, slow, half)]

    assert (before, ends) == (3, [True] * 3)
    assert lines_mention(service.reasons, *["127.0.0.1 10"] * 3)


def test_a_server_wakes_up_for_those_that_have_had_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any other cause."""
    monkeypatch.setattr(unknown_peers, "UNKNOWN_SECONDS", 0.3)
    with serving() as server, dial(server) as idle:
        assert is_hung_up(idle)


def test_an_idle_flood_does_not_lock_agents_out() -> None:
    """The oldest of those that have most give way."""
    service = Remembering()
    with serving(service, limit=16) as server:
        flood = [dial(server) for _ in range(100)]
        connected(server).close()
        known = list(service.hellos)
        most = len(unknown_in(server).unknown)
        for one in flood:
            one.close()

    assert (known, most <= 16) == ([b"hello"], True)


def test_a_flood_gives_way_to_another_address() -> None:
    """An unknown peer of another node is not hung up on in its place."""
    clock, service = Clock(), Remembering()
    with serving(service, limit=4, clock=clock) as server:
        first = socket.create_connection(("127.0.0.1", server.port), source_address=("127.0.0.2", 0))
        wait_for(accepted(server), 20, "not accepted")
        flood = [dial(server) for _ in range(3)]
        wait_for(lambda: len(unknown_in(server).unknown) == 4, 20, "not accepted")
        clock.now += 1
        flood.append(dial(server))
        ended = is_hung_up(flood[0])
        left = {unknown.address for unknown in unknown_in(server).unknown.values()}
        for one in (first, *flood):
            one.close()

    assert (ended, left) == (True, {"127.0.0.1", "127.0.0.2"})


def test_refusals_are_reported_in_moderation() -> None:
    """A flood is not to fill a log."""
    service = Remembering()
    with serving(service, clock=Clock()) as server:
        for _ in range(40):
            with dial(server) as stranger:
                stranger.sendall(b"x")
                is_hung_up(stranger)

    assert len(service.reasons) == 10


def test_running_out_of_descriptors_neither_ends_nor_spins() -> None:
    """Agents are served again once there are some; meanwhile the server rests."""
    program = """
    import resource, socket, time
    from tests.unit.transport_support import *
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    service = Remembering()
    with serving(service) as server:
        held = []
        try:
            while True:
                held.append(socket.socket())
        except OSError:
            held.pop().close()
        waiting = []
        peer = held.pop()
        peer.close()
        stranger = socket.create_connection(("127.0.0.1", server.port))  # takes the last descriptor of this process
        wait_for(lambda: unknown_in(server).accept_again < math.inf, 20, "not noticed", pause=0.001)
        begin = time.thread_time(), time.process_time(), service.turns
        time.sleep(1)
        spent = time.process_time() - begin[1]
        turns = service.turns - begin[2]
        for one in (*held, stranger):
            one.close()
        connected(server).close()
        wait_for(lambda: service.hellos, 20, "not served")
        print(service.hellos, spent < 0.3, turns < 20, server.error)
    """

    assert run(program) == "[b'hello'] True True None\n"


def test_idle_strangers_give_way_where_descriptors_run_out() -> None:
    """An agent that comes after more of them than the server can have is served."""
    program = """
    import resource, sys
    from tests.unit.transport_support import *
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    service = Remembering()
    with serving(service) as server:
        print(server.port, flush=True)
        sys.stdin.read()
        print(service.hellos, server.error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        flood = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(150)]
        found = connect_to(port)
        for one in flood:
            one.close()
        said, _ = process.communicate()
        if isinstance(found, Connection):
            found.close()

    assert (isinstance(found, Connection), said) == (True, "[b'hello'] None\n")


def test_strangers_that_send_much_cost_nothing() -> None:
    """100 connections with 4 MB each: what they send is not read."""
    service = Remembering()
    with serving(service) as server:
        before = resident()
        block, ended = bytes(1 << 16), 0
        for _ in range(100):
            with dial(server) as stranger:
                try:
                    for _ in range(64):
                        stranger.sendall(block)
                except ConnectionError:
                    ended += 1
        grown = resident() - before

    assert (ended, grown < 20 << 20, service.hellos) == (100, True, [])


def resident() -> int:
    """This process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


# ---- what a known peer can do wrong, and what we can


UNUSABLE = "what a service says of a message"


def unusable(*_: object) -> None:
    raise MessageError(UNUSABLE)


def test_an_unusable_message_costs_its_sender_the_connection() -> None:
    """The others are served; the reason is reported."""
    service = Remembering(on_received=unusable)
    with serving(service) as server:
        here, other = connected(server), connected(server)
        wait_for(lambda: len(service.connections) == 2, 20, "not opened")
        here.send(b"nonsense")
        receive(here)
        left = server.connections
        ends = here.broken, len(service.gone), len(left)
        here.close()
        other.close()

    assert (ends, service.reasons) == ((True, 1, 1), [f"127.0.0.1: {UNUSABLE}"])


def test_an_unusable_hello_costs_its_sender_the_connection() -> None:
    """No answer is given."""
    service = Remembering(on_greet=unusable)
    with serving(service) as server:
        found = failed(connect(server))

    assert (found.kind, service.reasons, service.gone) == (
        client.FailureKind.STRANGER,
        [f"127.0.0.1: {UNUSABLE}"],
        [],
    )


@pytest.mark.parametrize("error", [KeyError("ours"), ValueError("ours"), OSError(5, "ours"), RecursionError("ours")])
def test_an_error_of_our_own_is_kept_and_ends_the_server(error: Exception) -> None:
    """It is never taken for a fault of the peer."""

    def fail(*_: object) -> None:
        raise error

    service = Remembering(on_received=fail)
    with serving(service) as server:
        here = connected(server)
        here.send(b"good")
        receive(here)
        server._thread.join(20)
        here.close()

    assert (server.error, service.reasons, service.gone) == (error, [], [])


def test_an_error_of_an_action_is_one_of_our_own() -> None:
    """It ends the server as well."""

    def fail() -> None:
        raise KeyError("ours")

    with serving() as server:
        server.call(fail)
        server._thread.join(20)

    assert isinstance(server.error, KeyError)


# ---- those who connect


def test_a_port_where_nothing_listens_refuses() -> None:
    """As an agent's port does after its end."""
    with serving() as server:
        pass

    assert failed(connect_to(server.port)).kind is client.FailureKind.REFUSED


def test_an_address_without_a_way_is_not_reached() -> None:
    """The kernel says so at once."""
    found = client.connect_to_agent("255.255.255.255", 9, ring("s"), b"", connect_timeout=1, patience=1)

    assert failed(found).kind is client.FailureKind.UNREACHABLE


@pytest.fixture
def full() -> Iterator[int]:
    """A port of a listener that takes no more connections, as packet filters make them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        held = []
        for _ in range(4):
            peer = socket.socket()
            peer.setblocking(False)
            peer.connect_ex(listener.getsockname())
            held.append(peer)
        yield listener.getsockname()[1]
        for peer in held:
            peer.close()


def test_a_filtered_port_takes_its_time(full: int) -> None:
    """No answer of the kernel is no refusal."""
    found = client.connect_to_agent("127.0.0.1", full, ring("s"), b"", connect_timeout=0.2, patience=1)

    assert failed(found).kind is client.FailureKind.TIMEOUT


def listening_once(behave: Callable[[socket.socket], object]) -> ConnectionFailure:
    """Connect to a stranger that listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                behave(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        found = failed(connect_to(listener.getsockname()[1], patience=0.5))
        thread.join()
    return found


@pytest.mark.parametrize("said", [b"", framing.MAGIC, framing.MAGIC + b"\x00\x01"])
def test_who_stops_speaking_is_silent(said: bytes) -> None:
    """As a process that is stopped, or a program that waits to be spoken to."""

    def wait(peer: socket.socket) -> None:
        peer.sendall(said)
        is_hung_up(peer)

    assert listening_once(wait).kind is client.FailureKind.SILENT


@pytest.mark.parametrize("said", [b"220 mail ready\r\n", b"\0", framing.MAGIC[:4] + b"..."])
def test_who_speaks_otherwise_is_a_stranger(said: bytes) -> None:
    """Its first byte is enough."""

    def greet(peer: socket.socket) -> None:
        peer.sendall(said)
        is_hung_up(peer)

    assert listening_once(greet).kind is client.FailureKind.STRANGER


def test_who_hangs_up_is_a_stranger() -> None:
    """It says nothing of an agent."""
    assert listening_once(lambda peer: peer.close()).kind is client.FailureKind.STRANGER


def test_a_flood_of_bytes_is_not_read_on() -> None:
    """A first frame ends, and a proof has a length."""

    def pour(peer: socket.socket) -> None:
        keyring = ring("the secret")
        peer.sendall(make_opening(keyring.place_key, keyring.known, b"listening", bytes(32)).encode())
        try:
            while True:
                peer.sendall(b"\xff" * 65536)
        except ConnectionError:
            pass

    assert listening_once(pour).kind is client.FailureKind.STRANGER


def test_a_server_that_answers_is_alive() -> None:
    """Its first byte is enough."""
    with serving() as server:
        assert server_answers("127.0.0.1", server.port, 20) is True


def test_a_listener_that_says_nothing_is_not_alive() -> None:
    """The kernel accepts connections for a process that is stopped."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert server_answers("127.0.0.1", listener.getsockname()[1], 0.2) is False


def test_a_listener_that_takes_no_more_is_not_known_to_be_stopped(full: int) -> None:
    """So many have called in vain."""
    assert server_answers("127.0.0.1", full, 0.2) is None


def test_a_port_without_an_agent_is_neither() -> None:
    """Nothing listens there, or a program of somebody else."""
    with serving() as server:
        pass
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        other = server_answers("127.0.0.1", listener.getsockname()[1], 20)
        thread.join()

    assert (server_answers("127.0.0.1", server.port, 1), other) == (None, None)
