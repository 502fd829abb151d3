"""A connection that is authenticated: frames, their order, limits, and how it ends."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hpc_launch.rendezvous.transport import connection as module, framing
from hpc_launch.rendezvous.transport.connection import Connection, FrameKind, pair, set_keepalive
from hpc_launch.rendezvous.transport.framing import Frame, Opener, Sealer
from hpc_launch.rendezvous.transport.handshake import ConnectionKeys
from tests.support import mentions, wait_for
from tests.unit.transport_support import receive

ONE, OTHER = bytes(32), bytes(range(32))


def sockets() -> tuple[socket.socket, socket.socket]:
    """Connect two sockets over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    return here, there


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    """The two ends of a connection over loopback."""
    here, there = sockets()
    both = (
        Connection(here, ConnectionKeys(Sealer(ONE), Opener(OTHER))),
        Connection(there, ConnectionKeys(Sealer(OTHER), Opener(ONE))),
    )
    yield both
    for end in both:
        end.close()


@pytest.fixture
def watched() -> Iterator[tuple[Connection, socket.socket, Sealer]]:
    """One end of a connection, the plain socket at the other, and what seals frames for it."""
    here, there = sockets()
    end = Connection(here, ConnectionKeys(Sealer(ONE), Opener(OTHER)))
    yield end, there, Sealer(OTHER)
    end.close()
    there.close()


def fill(end: Connection) -> None:
    """Send bulk until no more is taken."""
    while end.send_bulk(bytes(framing.MAX_BULK)):
        pass


def test_frames_arrive_in_order_with_their_kinds(ends: tuple[Connection, Connection]) -> None:
    """Control and bulk frames on one connection."""
    here, there = ends
    here.send(b"first")
    here.send_bulk(b"bulk")
    here.send(b"")

    assert receive(there, 3) == [
        Frame(FrameKind.CONTROL, b"first"),
        Frame(FrameKind.BULK, b"bulk"),
        Frame(FrameKind.CONTROL, b""),
    ]


def test_both_ends_may_send_at_once(ends: tuple[Connection, Connection]) -> None:
    """Each direction has its own counter."""
    here, there = ends
    here.send(b"to")
    there.send(b"back")

    assert [frame.payload for end in (there, here) for frame in receive(end)] == [b"to", b"back"]


def test_the_longest_control_frame_arrives(ends: tuple[Connection, Connection]) -> None:
    """Though the kernel takes it in many parts."""
    here, there = ends
    here.send(b"x" * framing.MAX_CONTROL)
    frames: list[Frame] = []
    while not frames:
        here.flush()
        frames = there.receive()

    assert len(frames[0].payload) == framing.MAX_CONTROL


def test_frames_that_are_too_long_are_an_error_of_our_own(ends: tuple[Connection, Connection]) -> None:
    """They are not sent."""
    with pytest.raises(ValueError, match="control frame"):
        ends[0].send(bytes(framing.MAX_CONTROL + 1))
    with pytest.raises(ValueError, match="bulk frame"):
        ends[0].send_bulk(bytes(framing.MAX_BULK + 1))


def test_bulk_is_refused_where_too_much_waits(ends: tuple[Connection, Connection]) -> None:
    """Who sends it goes on when there is room."""
    here, there = ends
    fill(here)
    refused = here.send_bulk(bytes(framing.MAX_BULK))
    while here.waiting:
        here.flush()
        there.receive()

    assert (refused, here.send_bulk(bytes(framing.MAX_BULK)), here.broken) == (False, True, False)


def test_control_frames_overtake_bulk(ends: tuple[Connection, Connection]) -> None:
    """What waits here does not delay them; what is in the kernel already is little."""
    here, there = ends
    fill(here)
    queued = module.MAX_UNSENT_BULK // (framing.MAX_BULK + framing.FRAME_OVERHEAD)
    here.send(b"urgent")
    kinds: list[FrameKind] = []
    while FrameKind.CONTROL not in kinds:
        here.flush()
        kinds += [frame.kind for frame in there.receive()]

    assert kinds.index(FrameKind.CONTROL) < queued


def test_little_bulk_waits_in_the_kernel(watched: tuple[Connection, socket.socket, Sealer]) -> None:
    """Of four megabytes that wait, a control frame overtakes nearly all."""
    end, other, _ = watched
    fill(end)
    end.send(b"urgent")
    taken = bytearray()
    other.settimeout(20)
    while b"urgent" not in taken:
        taken += other.recv(1 << 20)
        end.flush()

    assert taken.index(b"urgent") < 1 << 20


def test_a_peer_that_takes_nothing_is_given_up(
    ends: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory for what waits is bounded."""
    monkeypatch.setattr(module, "MAX_UNSENT_CONTROL", 8 << 20)
    here, _ = ends
    for _ in range(4):
        here.send(bytes(framing.MAX_CONTROL))

    assert (here.broken, here.closed, bool(here.why)) == (True, False, True)


def test_a_closed_connection_is_noticed(ends: tuple[Connection, Connection]) -> None:
    """After what was sent before."""
    here, there = ends
    here.send(b"last")
    here.close()
    frames = receive(there, 2)

    assert (frames, there.broken, there.closed) == ([Frame(FrameKind.CONTROL, b"last")], True, True)


def test_a_reset_connection_is_closed(watched: tuple[Connection, socket.socket, Sealer]) -> None:
    """As by a process that was killed with unread data."""
    end, other, _ = watched
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    other.close()
    receive(end)

    assert (end.broken, end.closed) == (True, True)


def test_sending_to_a_closed_end_breaks_the_connection(ends: tuple[Connection, Connection]) -> None:
    """It raises nothing."""
    here, there = ends
    there.close()
    while not here.broken:
        here.send(b"x")
    here.send(b"y")

    assert (here.closed, here.waiting) == (True, False)


def test_what_is_not_authentic_breaks_the_connection(watched: tuple[Connection, socket.socket, Sealer]) -> None:
    """The peer is not said to be closed."""
    end, other, _ = watched
    other.sendall(Sealer(bytes([7] * 32)).seal(FrameKind.CONTROL, b"stop"))
    frames = receive(end)

    assert (frames, end.broken, end.closed, mentions(end.why, "authentic")) == ([], True, False, True)


def test_a_proof_after_the_handshake_breaks_the_connection(watched: tuple[Connection, socket.socket, Sealer]) -> None:
    """There is one only."""
    end, other, sealer = watched
    other.sendall(sealer.seal(FrameKind.PROOF, b"x"))

    assert (receive(end), mentions(end.why, "proof")) == ([], True)


def test_frames_before_a_bad_one_count(watched: tuple[Connection, socket.socket, Sealer]) -> None:
    """They were authentic."""
    end, other, sealer = watched
    other.sendall(sealer.seal(FrameKind.CONTROL, b"good") + bytes(100))

    assert receive(end, 2) == [Frame(FrameKind.CONTROL, b"good")]


def test_a_slow_frame_is_read_once_it_is_whole(watched: tuple[Connection, socket.socket, Sealer]) -> None:
    """Byte by byte."""
    end, other, sealer = watched
    early = []
    frame = sealer.seal(FrameKind.CONTROL, b"slow")
    for byte in frame[:-1]:
        other.sendall(bytes([byte]))
        select.select([end], [], [], 20)
        early += end.receive()
    other.sendall(frame[-1:])

    assert (early, receive(end)) == ([], [Frame(FrameKind.CONTROL, b"slow")])


def test_what_came_with_the_handshake_is_received_first() -> None:
    """No readiness of the socket tells of it."""
    here, there = sockets()
    rest = Sealer(OTHER).seal(FrameKind.CONTROL, b"early")
    with there:
        end = Connection(here, ConnectionKeys(Sealer(ONE), Opener(OTHER)), received=rest)
        pending = end.pending
        frames = end.receive()
        end.close()

    assert (pending, frames) == (True, [Frame(FrameKind.CONTROL, b"early")])


def test_waiting_is_notified(ends: tuple[Connection, Connection]) -> None:
    """Whoever minds the connection learns that it has to be flushed."""
    here, _ = ends
    seen: list[Connection] = []
    here.notify = seen.append
    here.send(b"short")
    before = len(seen)
    fill(here)

    assert (before, bool(seen), here.waiting) == (0, True, True)


def test_a_closed_end_sends_and_receives_nothing(ends: tuple[Connection, Connection]) -> None:
    """All its methods may still be called."""
    here, _ = ends
    here.close()
    here.close()
    here.flush()

    assert (here.receive(), here.waiting, here.fileno(), here.send_bulk(b"x")) == ([], False, -1, False)


def test_what_is_delivered_is_with_the_other_kernel(ends: tuple[Connection, Connection]) -> None:
    """Whether it was received there does not matter; what waits here is not delivered."""
    here, _ = ends
    here.send(b"x")
    wait_for(lambda: here.delivered, 20, "not delivered")
    fill(here)

    assert (here.waiting, here.delivered) == (True, False)


def test_a_local_pair_is_a_connection() -> None:
    """With the words of a greeting."""
    there, here = pair(b"hello", b"answer")
    here.send(b"to")
    there.send(b"back")
    got = [frame.payload for end in (there, here) for frame in receive(end)]
    words = there.hello, here.answer
    here.close()
    receive(there)
    there.close()

    assert (got, words, there.closed) == ([b"to", b"back"], (b"hello", b"answer"), True)


def test_pairs_have_keys_of_their_own() -> None:
    """What is sealed for one is not authentic in another."""
    (one, here), (other, there) = pair(), pair()
    sealed = here._channel.sealer.seal(FrameKind.CONTROL, b"x")
    for end in (one, here, other, there):
        end.close()

    with pytest.raises(framing.WireError, match="not authentic"):
        other._channel.opener.open(sealed)


@pytest.mark.parametrize(("timeout", "idle", "most"), [(10, 5, 10), (0.5, 1, 3), (60, 30, 60)])
def test_the_kernel_gives_up_a_silent_peer(timeout: float, idle: int, most: int) -> None:
    """It asks after half of the time, and has no answer after all of it."""
    with socket.socket() as peer:
        set_keepalive(peer, timeout)
        tcp = socket.IPPROTO_TCP
        found = peer.getsockopt(tcp, socket.TCP_KEEPIDLE)
        after = found + peer.getsockopt(tcp, socket.TCP_KEEPINTVL) * peer.getsockopt(tcp, socket.TCP_KEEPCNT)

        assert (found, after <= most, peer.getsockopt(tcp, socket.TCP_USER_TIMEOUT)) == (idle, True, most * 1000)


def test_a_local_pair_needs_no_keepalive() -> None:
    """Its option is one of TCP."""
    here, there = socket.socketpair()
    with here, there:
        set_keepalive(here, 10)

        assert here.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_a_process_that_ends_closes_its_connections() -> None:
    """As one that was killed does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = (
            "import os, socket, sys\n"
            "peer = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
            "os.kill(os.getpid(), 9)"
        )
        subprocess.run([sys.executable, "-c", program, str(listener.getsockname()[1])], check=False)
        accepted, _ = listener.accept()
    end = Connection(accepted, ConnectionKeys(Sealer(ONE), Opener(OTHER)))
    receive(end)
    end.close()

    assert end.closed
