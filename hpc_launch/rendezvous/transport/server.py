"""The thread that serves an agent's listener: it takes connections, makes peers known, and hands on what they send.

What follows from a frame is for a service, in the same thread; a service must not block.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from hpc_launch.rendezvous.transport import wire
from hpc_launch.rendezvous.transport.connection import Connection, Kind, plain, set_keepalive
from hpc_launch.rendezvous.transport.faults import HandshakeError, MessageError
from hpc_launch.rendezvous.transport.handshake import Credential, Listening, Proved
from hpc_launch.rendezvous.transport.keys import Keyring

UNKNOWN_SECONDS = 10.0
"""A peer that is not known by then is hung up on."""
UNKNOWN_BYTES = 4 << 10
"""A peer that has sent more before it is known is hung up on."""
BACKLOG = 4096

# An unknown peer that has had so long is hung up on first where there are too many.
_GRACE_SECONDS = 0.1
# What is accepted at a time.
_ACCEPTS = 64
# How long nothing is accepted after descriptors or memory ran out.
_PAUSE_SECONDS = 0.25
# At the end: how often the kernel is asked whether all has arrived.
_DELIVERY_SECONDS = 0.005
# How many credentials are checked at a time.
_CHECKERS = 2
# How many refusals are reported in a span of so many seconds.
_REFUSALS = 10
_REFUSALS_SECONDS = 10.0

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True)
class Greeting:
    """The answer of a service to the `hello` of a known peer.

    Attributes:
        answer: for the peer.
        stay: whether the connection is kept.
    """

    answer: bytes
    stay: bool


class Service(Protocol):
    """What a server works for; all of this is called in the server's thread."""

    def greet(self, hello: bytes) -> Greeting:
        """A peer is known, and has said this first.

        Raises:
            MessageError: if that is unusable.
        """

    def opened(self, connection: Connection) -> None:
        """A connection is kept."""

    def received(self, connection: Connection, payload: bytes) -> None:
        """A control frame has come.

        Raises:
            MessageError: if it is unusable: the connection is dropped.
        """

    def received_bulk(self, connection: Connection, payload: bytes) -> None:
        """A bulk frame has come.

        Raises:
            MessageError: if it is unusable: the connection is dropped.
        """

    def lost(self, connection: Connection) -> None:
        """A connection is broken, for a reason of the peer's; one that was closed here is not lost."""

    def refused(self, connection: Connection | None, why: str) -> None:
        """A message, or a peer that never became known (None), was refused; of many, some are reported."""

    def turn(self, now: float) -> float:
        """All that has come was handed on; returns the seconds until this is to be called at the latest."""


@dataclass
class _Unknown:
    """A peer that has not proved yet who it is."""

    socket: socket.socket
    address: str
    since: float
    machine: Listening
    received: int = 0
    check: Future[bytes | None] | None = None


@dataclass
class _Leaving:
    """A peer that gets its answer, and is hung up on then."""

    socket: socket.socket
    unsent: bytearray
    until: float


class _Refusals:
    """Passes so many reports in a span of time, and counts the others."""

    def __init__(self) -> None:
        self._since = -math.inf
        self._count = 0

    def pass_on(self, now: float) -> bool:
        """Whether one more is reported."""
        if now - self._since > _REFUSALS_SECONDS:
            self._since, self._count = now, 0
        self._count += 1
        return self._count <= _REFUSALS


class Server:
    """Serves a listener; nothing is accepted before `start`.

    Attributes:
        port: where it listens.
        error: an exception of the service, or of this module: an error of our own. The thread has ended then.
    """

    def __init__(
        self,
        listener: socket.socket | None,
        keyring: Keyring,
        service: Service,
        *,
        name: str,
        silence: float,
        limit: int = 512,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve a listener.

        Args:
            listener: what peers connect to; the server closes it. None where there are no peers but a local end.
            keyring: what this agent has.
            service: what the server works for.
            name: the thread's.
            silence: seconds after which a node that does not answer is gone.
            limit: how many peers may be unknown at a time.
            clock: gives the time (time.monotonic).
        """
        self.port: int = listener.getsockname()[1] if listener is not None else 0
        self.error: BaseException | None = None
        self._listener = listener
        self._keyring = keyring
        self._service = service
        self._silence = silence
        self._limit = limit
        self._clock = clock
        self._unknown: dict[socket.socket, _Unknown] = {}
        self._from: Counter[str] = Counter()  # how many of them each address has
        self._known: set[Connection] = set()
        self._leaving: dict[socket.socket, _Leaving] = {}
        self._touched: dict[Connection, None] = {}
        self._actions: deque[Callable[[], None]] = deque()
        # Strangers do not use up what is reported of known peers.
        self._refusals = {known: _Refusals() for known in (False, True)}
        self._accept_again = math.inf
        self._full = False
        self._ending = threading.Event()
        self._linger = 0.0
        self._checkers: ThreadPoolExecutor | None = None
        self._reserve: int | None = _open_reserve()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ, self._wake)
        if listener is not None:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, lambda _mask: self._accept(listener))
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    # ---- for other threads

    def start(self) -> None:
        """Begin to serve."""
        if self._listener is not None:
            self._listener.listen(BACKLOG)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread.is_alive()

    def call(self, action: Callable[[], None]) -> None:
        """Run an action soon in the server's thread; in a server that has ended it is not run."""
        self._actions.append(action)
        with contextlib.suppress(OSError):  # full: it wakes anyhow; closed: it has ended
            self._waker.send(b"\0")

    def close(self, *, linger: float = 0.0) -> None:
        """End the thread, and close all that it has.

        Args:
            linger: seconds for what is not sent yet.
        """
        self._linger = linger
        self._ending.set()
        if self._thread.ident is None:
            self._close_all()
            return
        self.call(lambda: None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ---- for the service, in the thread

    @property
    def connections(self) -> frozenset[Connection]:
        """The connections that are kept."""
        return frozenset(self._known)

    def adopt(self, connection: Connection) -> None:
        """Serve a connection that was made elsewhere, for instance the end of a local pair."""
        connection.notify = self._touch
        self._known.add(connection)
        self._selector.register(
            connection.socket, selectors.EVENT_READ, lambda mask: self._serve_known(connection, mask)
        )
        self._service.opened(connection)
        self._touch(connection)
        if connection.pending:
            self._hand_on(connection)

    # ---- the thread

    def _serve(self) -> None:
        try:
            wait = self._turn()
            while not self._ending.is_set():
                for key, mask in self._selector.select(wait):
                    if self._selector.get_map().get(key.fd) is key:  # neither closed nor reused meanwhile
                        key.data(mask)
                wait = self._turn()
            self._send_rest()
        except BaseException as error:  # noqa: BLE001 - kept for the main thread, which raises it
            self.error = error
        finally:
            self._close_all()

    def _turn(self) -> float | None:
        """Run actions, let the service decide, and give the seconds until the next turn."""
        for _ in range(len(self._actions)):
            self._actions.popleft()()
        self._settle()
        now = self._clock()
        wait = self._service.turn(now)
        self._settle()
        if self._actions:
            return 0
        until = min(now + wait, self._next_deadline(now))
        return None if until == math.inf else max(0.0, until - self._clock())

    def _next_deadline(self, now: float) -> float:
        """Part with peers that have had their time; gives the moment at which others will have had it."""
        listener = self._listener
        if listener is not None and (now >= self._accept_again or (self._full and len(self._unknown) < self._limit)):
            self._accept_again, self._full = math.inf, False
            self._selector.register(listener, selectors.EVENT_READ, lambda _mask: self._accept(listener))
        for unknown in [*self._unknown.values()]:  # in the order in which they came
            if now < unknown.since + UNKNOWN_SECONDS:
                break
            self._reject(unknown, f"it was not known after {UNKNOWN_SECONDS:g} s")
        for leaving in [*self._leaving.values()]:
            if now < leaving.until:
                break
            self._part(leaving)
        ends = [self._accept_again]
        ends += [next(iter(self._unknown.values())).since + UNKNOWN_SECONDS] if self._unknown else []
        ends += [next(iter(self._leaving.values())).until] if self._leaving else []
        return min(ends)

    def _wake(self, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    # ---- unknown peers

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            if not self._make_room(listener):
                return
            try:
                accepted, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED and not self._free_descriptor(listener):
                    return
                continue  # there is a descriptor again, or that peer is gone already
            self._greet(accepted, plain(str(address[0])))

    def _greet(self, accepted: socket.socket, address: str) -> None:
        nonce = secrets.token_bytes(wire.NONCE_BYTES)
        machine = Listening(self._keyring.place_key, self._keyring.known, nonce, port=self.port)
        unknown = _Unknown(accepted, address, self._clock(), machine)
        try:
            accepted.setblocking(False)
            accepted.send(machine.greeting)  # the buffer of a new socket has room for it
        except OSError:
            accepted.close()
            return
        self._unknown[accepted] = unknown
        self._from[address] += 1
        self._selector.register(accepted, selectors.EVENT_READ, lambda _mask: self._listen(unknown))

    def _make_room(self, listener: socket.socket) -> bool:
        """See to it that one more unknown peer may come; otherwise pause."""
        if len(self._unknown) < self._limit:
            return True
        self._full = not self._evict(listener, "too many unknown peers")
        return not self._full

    def _free_descriptor(self, listener: socket.socket) -> bool:
        """There are no descriptors left: hang up on an unknown peer, or on the next one that waits, and pause."""
        if self._unknown:
            return self._evict(listener, "too many open files")
        if self._reserve is not None:
            os.close(self._reserve)
            with contextlib.suppress(OSError):
                listener.accept()[0].close()
        self._reserve = _open_reserve()
        self._pause(listener, self._clock() + _PAUSE_SECONDS)
        return False

    def _evict(self, listener: socket.socket, why: str) -> bool:
        """Hang up on the oldest of the address that has most: a flood is not to drive others out.

        One that has just come may be known in a moment: then this pauses instead, and returns False.
        """
        most = max(self._from, key=self._from.__getitem__)
        victim = next(unknown for unknown in self._unknown.values() if unknown.address == most)
        ready = victim.since + _GRACE_SECONDS
        if self._clock() < ready:
            self._pause(listener, ready)
            return False
        self._reject(victim, why)
        return True

    def _pause(self, listener: socket.socket, until: float) -> None:
        """Accept nothing until then; the kernel keeps those that wait."""
        if self._accept_again == math.inf:
            self._selector.unregister(listener)
        self._accept_again = until

    def _listen(self, unknown: _Unknown) -> None:
        try:
            data = unknown.socket.recv(UNKNOWN_BYTES + 1 - unknown.received)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        unknown.received += len(data)
        if not data:
            self._forget(unknown)
        elif unknown.received > UNKNOWN_BYTES:
            self._reject(unknown, f"it sent more than {UNKNOWN_BYTES} bytes before it was known")
        else:
            self._advance(unknown, lambda: unknown.machine.feed(data))

    def _advance(self, unknown: _Unknown, step: Callable[[], Credential | Proved | None]) -> None:
        try:
            found = step()
        except HandshakeError as error:
            self._reject(unknown, error.words)
            return
        if isinstance(found, Credential):
            self._check(unknown, found)
        elif isinstance(found, Proved):
            self._admit(unknown, found.hello)

    def _check(self, unknown: _Unknown, credential: Credential) -> None:
        """Have a credential checked elsewhere: that takes a command, which may hang."""
        tools = self._keyring.munge
        if tools is None:
            self._reject(unknown, "a credential of munge, and no munge here")
            return
        if self._checkers is None:
            self._checkers = ThreadPoolExecutor(_CHECKERS, thread_name_prefix="munge")
        unknown.check = self._checkers.submit(tools.open, credential.data)
        unknown.check.add_done_callback(lambda done: self.call(lambda: self._checked(unknown, done)))

    def _checked(self, unknown: _Unknown, done: Future[bytes | None]) -> None:
        if done.cancelled() or unknown.socket not in self._unknown:
            return
        key = done.result()
        if key is None:
            self._reject(unknown, "its credential of munge is not one of this user, or was used")
        else:
            self._advance(unknown, lambda: unknown.machine.supply(key))

    def _admit(self, unknown: _Unknown, hello: bytes) -> None:
        """A peer is known now."""
        try:
            greeting = self._service.greet(hello)
        except MessageError as error:
            self._reject(unknown, str(error))
            return
        channel, proof = unknown.machine.answer(greeting.answer, stay=greeting.stay)
        rest = unknown.machine.rest
        self._let_go(unknown)
        if greeting.stay:
            set_keepalive(unknown.socket, self._silence)
            connection = Connection(unknown.socket, channel, hello=hello, received=rest, unsent=proof)
            connection.flush()
            self.adopt(connection)
            return
        leaving = _Leaving(unknown.socket, bytearray(proof), self._clock() + UNKNOWN_SECONDS)
        self._leaving[unknown.socket] = leaving
        self._selector.register(unknown.socket, selectors.EVENT_WRITE, lambda _mask: self._see_off(leaving))
        self._see_off(leaving)

    def _see_off(self, leaving: _Leaving) -> None:
        try:
            sent = leaving.socket.send(leaving.unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            sent = len(leaving.unsent)
        del leaving.unsent[:sent]
        if not leaving.unsent:
            self._part(leaving)

    def _part(self, leaving: _Leaving) -> None:
        del self._leaving[leaving.socket]
        self._selector.unregister(leaving.socket)
        leaving.socket.close()

    def _reject(self, unknown: _Unknown, why: str) -> None:
        self._forget(unknown)
        self._report(None, f"{unknown.address}: {why}")

    def _forget(self, unknown: _Unknown) -> None:
        self._let_go(unknown)
        unknown.socket.close()
        if unknown.check is not None:
            unknown.check.cancel()  # the others' are not to wait for it

    def _let_go(self, unknown: _Unknown) -> None:
        """It is unknown no more: known now, or gone."""
        del self._unknown[unknown.socket]
        self._selector.unregister(unknown.socket)
        self._from[unknown.address] -= 1
        if not self._from[unknown.address]:
            del self._from[unknown.address]

    def _report(self, connection: Connection | None, why: str) -> None:
        if self._refusals[connection is not None].pass_on(self._clock()):
            self._service.refused(connection, why)

    # ---- known peers

    def _touch(self, connection: Connection) -> None:
        """See to a connection soon; watch no more for one that is broken: its descriptor may be another's at once."""
        self._touched[connection] = None
        if connection.broken:
            self._unwatch(connection)

    def _unwatch(self, connection: Connection) -> None:
        with contextlib.suppress(KeyError, ValueError):  # not watched any more; and closed besides
            self._selector.unregister(connection.socket)

    def _serve_known(self, connection: Connection, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            connection.flush()
            self._touch(connection)
        if mask & selectors.EVENT_READ:
            self._hand_on(connection)

    def _hand_on(self, connection: Connection) -> None:
        try:
            for frame in connection.receive():
                if connection not in self._known or connection.fileno() < 0:
                    return
                if frame.kind is Kind.BULK:
                    self._service.received_bulk(connection, frame.payload)
                else:
                    self._service.received(connection, frame.payload)
        except MessageError as error:
            self._report(connection, f"{connection.peer}: {error}")
            if connection.fileno() >= 0:
                self._drop(connection)
                self._service.lost(connection)

    def _settle(self) -> None:
        """Part with connections that are broken, and wait for those that could not send all."""
        while self._touched:
            touched, self._touched = self._touched, {}
            for connection in touched:
                if connection not in self._known:
                    continue
                if connection.broken:
                    ours = connection.fileno() < 0
                    self._drop(connection)
                    if not ours:
                        self._service.lost(connection)
                else:
                    events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.waiting else 0)
                    if self._selector.get_key(connection.socket).events != events:
                        self._selector.modify(connection.socket, events, self._selector.get_key(connection.socket).data)

    def _drop(self, connection: Connection) -> None:
        self._known.discard(connection)
        self._unwatch(connection)
        connection.notify = None
        connection.close()

    # ---- the end

    def _send_rest(self) -> None:
        """Send what is left, and see it arrive: closing a socket that has unread data drops what is on its way."""
        end = time.monotonic() + self._linger
        while (left := [one for one in self._known if not one.delivered]) and time.monotonic() < end:
            with selectors.DefaultSelector() as selector:
                for connection in left:
                    if connection.waiting:
                        selector.register(connection.socket, selectors.EVENT_WRITE, connection)
                for key, _ in selector.select(_DELIVERY_SECONDS):
                    key.data.flush()

    def _close_all(self) -> None:
        for connection in self._known:
            connection.notify = None
            connection.close()
        for connected in (*self._unknown, *self._leaving):
            connected.close()
        self._known.clear()
        self._unknown.clear()
        self._leaving.clear()
        if self._checkers is not None:
            self._checkers.shutdown(wait=False, cancel_futures=True)
        self._selector.close()
        if self._listener is not None:
            self._listener.close()
        self._woken.close()
        self._waker.close()
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None


def _open_reserve() -> int | None:
    """A descriptor to give up when there are no others."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
