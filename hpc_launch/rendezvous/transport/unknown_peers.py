"""The peers that are not known yet: those that have connected, and have not proved who they are.

They cost little: a limited number of them is let in, for a limited time, and is heard for a limited number of bytes. A
flood of them drives nobody else out.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import selectors
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from hpc_launch.rendezvous.transport import framing
from hpc_launch.rendezvous.transport.connection import Connection, plain_address, set_keepalive
from hpc_launch.rendezvous.transport.handshake import Credential, ListeningSide, PeerProof
from hpc_launch.rendezvous.transport.keys import Keyring
from hpc_launch.rendezvous.transport.peer_faults import HandshakeError, MessageError
from hpc_launch.rendezvous.transport.service import Greeting

UNKNOWN_SECONDS = 10.0
"""A peer that is not known by then is hung up on."""
UNKNOWN_BYTES = 4 << 10
"""A peer that has sent more before it is known is hung up on."""
_BACKLOG = 4096

# An unknown peer that has had so long is hung up on first where there are too many.
_GRACE_SECONDS = 0.1
# What is accepted at a time.
_ACCEPTS = 64
# How long nothing is accepted after descriptors or memory ran out.
_PAUSE_SECONDS = 0.25
# How many credentials are checked at a time.
_CHECKERS = 2

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass
class _Unknown:
    """A peer that has not proved yet who it is."""

    socket: socket.socket
    address: str
    since: float
    machine: ListeningSide
    received: int = 0
    check: Future[bytes | None] | None = None


@dataclass
class _Leaving:
    """A peer that gets its answer, and is hung up on then."""

    socket: socket.socket
    unsent: bytearray
    until: float


@dataclass(frozen=True)
class Callbacks:
    """What a server does with peers, in its thread.

    Attributes:
        greet: answers what a peer has said first; raises MessageError if that is unusable.
        keep: serves the connection of a peer that is known now.
        refused: is told of a peer that never became known, and why.
        call: runs something soon in the server's thread; may be called from others.
    """

    greet: Callable[[bytes], Greeting]
    keep: Callable[[Connection], None]
    refused: Callable[[str], None]
    call: Callable[[Callable[[], None]], None]


class UnknownPeers:
    """Accepts peers from a listener, and sees each of them through the handshake.

    Attributes:
        unknown: those that have not proved yet who they are, in the order in which they came.
        leaving: those that get their answer and are hung up on then.
        accept_again: when that goes on after a pause.
    """

    def __init__(
        self,
        listener: socket.socket,
        keyring: Keyring,
        selector: selectors.BaseSelector,
        callbacks: Callbacks,
        *,
        silence: float,
        limit: int,
        clock: Callable[[], float],
    ) -> None:
        """Accept nothing yet.

        Args:
            listener: what peers connect to.
            keyring: what this agent has.
            selector: of the server's thread.
            callbacks: what the server does with peers.
            silence: seconds after which a node that does not answer is gone.
            limit: how many peers may be unknown at a time.
            clock: gives the time.
        """
        self.unknown: dict[socket.socket, _Unknown] = {}
        self.leaving: dict[socket.socket, _Leaving] = {}
        self.accept_again = math.inf
        self._listener, self._keyring, self._selector, self._callbacks = listener, keyring, selector, callbacks
        self._silence, self._limit, self._clock = silence, limit, clock
        self._port: int = listener.getsockname()[1]
        self._from: Counter[str] = Counter()  # how many of them each address has
        self._full = False
        self._checkers: ThreadPoolExecutor | None = None
        self._reserve: int | None = _open_reserve()
        listener.setblocking(False)
        self._watch()

    def listen(self) -> None:
        """Let peers connect."""
        self._listener.listen(_BACKLOG)

    def turn(self, now: float) -> float:
        """Part with peers that have had their time; gives the moment at which others will have had it."""
        if now >= self.accept_again or (self._full and len(self.unknown) < self._limit):
            self.accept_again, self._full = math.inf, False
            self._watch()
        for unknown in [*self.unknown.values()]:
            if now < unknown.since + UNKNOWN_SECONDS:
                break
            self._reject(unknown, f"it was not known after {UNKNOWN_SECONDS:g} s")
        for leaving in [*self.leaving.values()]:
            if now < leaving.until:
                break
            self._part(leaving)
        ends = [self.accept_again]
        ends += [next(iter(self.unknown.values())).since + UNKNOWN_SECONDS] if self.unknown else []
        ends += [next(iter(self.leaving.values())).until] if self.leaving else []
        return min(ends)

    def close(self) -> None:
        """Hang up on all, and listen no more."""
        for connected in (*self.unknown, *self.leaving):
            connected.close()
        self.unknown.clear()
        self.leaving.clear()
        if self._checkers is not None:
            self._checkers.shutdown(wait=False, cancel_futures=True)
        self._listener.close()
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    # ---- they come

    def _watch(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ, lambda _mask: self._accept())

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            if not self._make_room():
                return
            try:
                accepted, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED and not self._free_descriptor():
                    return
                continue  # there is a descriptor again, or that peer is gone already
            self._greet(accepted, plain_address(str(address[0])))

    def _greet(self, accepted: socket.socket, address: str) -> None:
        nonce = secrets.token_bytes(framing.NONCE_BYTES)
        machine = ListeningSide(self._keyring.place_key, self._keyring.known, nonce, port=self._port)
        unknown = _Unknown(accepted, address, self._clock(), machine)
        try:
            accepted.setblocking(False)
            accepted.send(machine.greeting)  # the buffer of a new socket has room for it
        except OSError:
            accepted.close()
            return
        self.unknown[accepted] = unknown
        self._from[address] += 1
        self._selector.register(accepted, selectors.EVENT_READ, lambda _mask: self._listen(unknown))

    def _make_room(self) -> bool:
        """See to it that one more unknown peer may come; otherwise pause."""
        if len(self.unknown) < self._limit:
            return True
        self._full = not self._evict("too many unknown peers")
        return not self._full

    def _free_descriptor(self) -> bool:
        """There are no descriptors left: hang up on an unknown peer, or on the next one that waits, and pause."""
        if self.unknown:
            return self._evict("too many open files")
        if self._reserve is not None:
            os.close(self._reserve)
            with contextlib.suppress(OSError):
                self._listener.accept()[0].close()
        self._reserve = _open_reserve()
        self._pause(self._clock() + _PAUSE_SECONDS)
        return False

    def _evict(self, why: str) -> bool:
        """Hang up on the oldest of the address that has most: a flood is not to drive others out.

        One that has just come may be known in a moment: then this pauses instead, and returns False.
        """
        most = max(self._from, key=self._from.__getitem__)
        victim = next(unknown for unknown in self.unknown.values() if unknown.address == most)
        ready = victim.since + _GRACE_SECONDS
        if self._clock() < ready:
            self._pause(ready)
            return False
        self._reject(victim, why)
        return True

    def _pause(self, until: float) -> None:
        """Accept nothing until then; the kernel keeps those that wait."""
        if self.accept_again == math.inf:
            self._selector.unregister(self._listener)
        self.accept_again = until

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

    def _advance(self, unknown: _Unknown, step: Callable[[], Credential | PeerProof | None]) -> None:
        try:
            found = step()
        except HandshakeError as error:
            self._reject(unknown, error.words)
            return
        if isinstance(found, Credential):
            self._check(unknown, found)
        elif isinstance(found, PeerProof):
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
        unknown.check.add_done_callback(lambda done: self._callbacks.call(lambda: self._checked(unknown, done)))

    def _checked(self, unknown: _Unknown, done: Future[bytes | None]) -> None:
        if done.cancelled() or unknown.socket not in self.unknown:
            return
        key = done.result()
        if key is None:
            self._reject(unknown, "its credential of munge is not one of this user, or was used")
        else:
            self._advance(unknown, lambda: unknown.machine.supply(key))

    def _admit(self, unknown: _Unknown, hello: bytes) -> None:
        """A peer is known now."""
        try:
            greeting = self._callbacks.greet(hello)
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
            self._callbacks.keep(connection)
            return
        leaving = _Leaving(unknown.socket, bytearray(proof), self._clock() + UNKNOWN_SECONDS)
        self.leaving[unknown.socket] = leaving
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
        del self.leaving[leaving.socket]
        self._selector.unregister(leaving.socket)
        leaving.socket.close()

    def _reject(self, unknown: _Unknown, why: str) -> None:
        self._forget(unknown)
        self._callbacks.refused(f"{unknown.address}: {why}")

    def _forget(self, unknown: _Unknown) -> None:
        self._let_go(unknown)
        unknown.socket.close()
        if unknown.check is not None:
            unknown.check.cancel()  # the others' are not to wait for it

    def _let_go(self, unknown: _Unknown) -> None:
        """It is unknown no more: known now, or gone."""
        del self.unknown[unknown.socket]
        self._selector.unregister(unknown.socket)
        self._from[unknown.address] -= 1
        if not self._from[unknown.address]:
            del self._from[unknown.address]


def _open_reserve() -> int | None:
    """A descriptor to give up when there are no others."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
