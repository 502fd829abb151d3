"""What the authenticated connections of agents cost: a hello, a frame, and a thousand agents that come at once.

`python tests/benchmarks/transport.py` prints a table. Everything goes over loopback, in this process and a second one.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import math
import multiprocessing
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection as Pipe

from hpc_launch.node import network
from hpc_launch.rendezvous.transport import client, framing, keys
from hpc_launch.rendezvous.transport.connection import Connection, pair
from hpc_launch.rendezvous.transport.framing import FrameKind, Opener, Sealer
from hpc_launch.rendezvous.transport.handshake import ConnectingSide, KeyMethod, ListeningSide, PeerProof
from hpc_launch.rendezvous.transport.keys import Keyring, Secret
from hpc_launch.rendezvous.transport.server import Server
from hpc_launch.rendezvous.transport.service import Greeting

PLACE = "benchmark/1/0/0"
SOURCES = (KeyMethod.SECRET, KeyMethod.STEP_SECRET, KeyMethod.KEY_FILE, KeyMethod.JOB_FILE)


def ring() -> Keyring:
    """Make the keyring of an agent that has a secret of every source."""
    return Keyring(
        PLACE, tuple(Secret(method.name, method, keys.derive_key(bytes([method]) * 32, PLACE)) for method in SOURCES)
    )


class Echo:
    """A service that sends back what it gets, and measures its thread."""

    def __init__(self) -> None:
        self.opened_count = 0
        self.spent = 0.0

    def greet(self, hello: bytes) -> Greeting:
        return Greeting(hello, stay=True)

    def opened(self, _connection: Connection) -> None:
        self.opened_count += 1

    def received(self, connection: Connection, payload: bytes) -> None:
        connection.send(payload)

    def received_bulk(self, connection: Connection, payload: bytes) -> None:
        connection.send_bulk(payload)

    def lost(self, _connection: Connection) -> None:
        pass

    def refused(self, _connection: Connection | None, _why: str) -> None:
        pass

    def turn(self, _now: float) -> float:
        self.spent = time.thread_time()
        return math.inf


@contextlib.contextmanager
def serving(service: Echo) -> Iterator[Server]:
    """Serve on a free port."""
    server = Server(network.listen(0), ring(), service, name="benchmark", silence=10)
    server.start()
    yield server
    server.close()


def per_call(action: Callable[[], object], seconds: float) -> float:
    """Measure an action: CPU seconds of this thread for each."""
    count, begin = 0, time.thread_time()
    while time.thread_time() - begin < seconds:
        action()
        count += 1
    return (time.thread_time() - begin) / count


def handshake_cpu(seconds: float) -> tuple[float, float]:
    """Measure the computing of a handshake alone: of the listening, and of the connecting side."""
    known = ring()
    spent = [0.0, 0.0]
    count, end = 0, time.monotonic() + 2 * seconds
    while time.monotonic() < end:
        begin = time.thread_time()
        listening = ListeningSide(known.place_key, known.known, os.urandom(32))
        greeting = listening.greeting
        middle = time.thread_time()
        here = ConnectingSide(known.place_key, known.known[-1:], os.urandom(32), bytes(200))
        here.feed(greeting)
        assert here.chosen is not None
        assert here.chosen.secret is not None
        proof = here.prove(here.chosen.secret)
        later = time.thread_time()
        assert isinstance(listening.feed(proof), PeerProof)
        _, answer = listening.answer(bytes(200), stay=True)
        last = time.thread_time()
        here.answered(answer)
        spent[0] += middle - begin + last - later
        spent[1] += later - middle + time.thread_time() - last
        count += 1
    return spent[0] / count, spent[1] / count


def come(port: int, count: int, gate: Pipe) -> None:
    """Be many agents that connect at once, in a process of their own; says how long that took."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    known = ring()

    def connect(_: int) -> Connection:
        while True:
            found = client.connect_to_agent("127.0.0.1", port, known, bytes(200), connect_timeout=30, patience=30)
            if isinstance(found, Connection):
                return found

    with ThreadPoolExecutor(256) as pool:
        gate.recv()
        begin = time.monotonic()
        found = list(pool.map(connect, range(count)))
        gate.send(time.monotonic() - begin)
        gate.recv()
    for one in found:
        one.close()


def at_once(count: int) -> tuple[float, float]:
    """Let many agents come at once: seconds until all are served, and CPU seconds of the server for each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    service = Echo()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with serving(service) as server:
        process = context.Process(target=come, args=(server.port, count, there))
        process.start()
        here.send(None)
        took = here.recv()
        spent = service.spent
        here.send(None)
        process.join()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return took, spent / count


def sealing(size: int, seconds: float) -> float:
    """Measure the sealing and opening of a frame, without a socket."""
    key, payload = bytes(32), bytes(size)
    sealer, opener = Sealer(key), Opener(key)

    def go() -> None:
        assert opener.open(sealer.seal(FrameKind.CONTROL, payload)) is not None

    return per_call(go, seconds)


def frames(size: int, seconds: float, *, bulk: bool) -> float:
    """Measure how many frames a second go one way, both ends in this thread."""
    there, here = pair()
    count, end, payload = 0, time.monotonic() + seconds, bytes(size)
    begin = time.monotonic()
    while time.monotonic() < end:
        for _ in range(32):
            if bulk:
                here.send_bulk(payload)
            else:
                here.send(payload)
        while here.waiting:
            here.flush()
            count += len(there.receive())
        count += len(there.receive())
    took = time.monotonic() - begin
    here.close()
    there.close()
    return count / took


def round_trip(count: int) -> float:
    """Measure a question and its answer by the server, in seconds."""
    with serving(Echo()) as server:
        here = client.connect_to_agent("127.0.0.1", server.port, ring(), b"", connect_timeout=10, patience=10)
        assert isinstance(here, Connection)
        here.socket.setblocking(True)
        begin = time.monotonic()
        for _ in range(count):
            here.send(b"question")
            while not here.receive():
                pass
        took = time.monotonic() - begin
        here.close()
    return took / count


def flood(seconds: float) -> tuple[float, int]:
    """Connect and hang up as fast as one thread can: the server's share of a CPU, and how many came."""
    service = Echo()
    with serving(service) as server:
        count, begin = 0, time.monotonic()
        while time.monotonic() - begin < seconds:
            with socket.create_connection(("127.0.0.1", server.port)) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            count += 1
        done = threading.Event()
        server.call(done.set)
        done.wait()
        return service.spent / (time.monotonic() - begin), count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    quick = parser.parse_args().quick
    seconds, agents = (0.05, 32) if quick else (1.0, 1024)
    listening, connecting_side = handshake_cpu(seconds)
    took, each = at_once(agents)
    share, count = flood(seconds)
    rows = [
        ("hello, computing of the listening side", f"{listening * 1e6:.0f} us CPU"),
        ("hello, computing of the connecting side", f"{connecting_side * 1e6:.0f} us CPU"),
        (f"hello, all that the server does, of {agents} agents", f"{each * 1e6:.0f} us CPU"),
        (f"{agents} agents come at once, until all are served", f"{took:.2f} s"),
        ("question and answer over loopback", f"{round_trip(100 if quick else 5000) * 1e6:.0f} us"),
        ("control frames of 100 bytes, one way", f"{frames(100, seconds, bulk=False):,.0f} a second"),
        ("bulk frames of 64 KiB, one way", f"{frames(framing.MAX_BULK, seconds, bulk=True) / 16:,.0f} MiB a second"),
        ("seal and open 100 bytes", f"{sealing(100, seconds) * 1e6:.1f} us CPU"),
        ("seal and open 64 KiB", f"{sealing(1 << 16, seconds) * 1e6:.0f} us CPU"),
        (
            "HMAC-SHA-256 of 64 KiB",
            f"{per_call(lambda: hmac.digest(b'k', bytes(1 << 16), 'sha256'), seconds) * 1e6:.0f} us CPU",
        ),
        (f"strangers that connect, speak and leave ({count / seconds:,.0f} a second)", f"{share:.0%} of a CPU"),
    ]
    table = "".join(f"| {what} | {value} |\n" for what, value in rows)
    sys.stdout.write(f"| what | cost |\n| --- | ---: |\n{table}")


if __name__ == "__main__":
    main()
