"""The thread that serves an agent's listener: it makes peers known (`unknown_peers`), and hands on what they send.

What follows from a frame is for a service, in the same thread; a service must not block.
"""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from hpc_launch.rendezvous.transport.connection import Connection, FrameKind
from hpc_launch.rendezvous.transport.keys import Keyring
from hpc_launch.rendezvous.transport.peer_faults import MessageError
from hpc_launch.rendezvous.transport.service import ListenerService
from hpc_launch.rendezvous.transport.unknown_peers import Callbacks, UnknownPeers

# At the end: how often the kernel is asked whether all has arrived.
_DELIVERY_SECONDS = 0.005
# How many refusals are reported in a span of so many seconds.
_REFUSALS = 10
_REFUSALS_SECONDS = 10.0


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
        service: ListenerService,
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
        self._service = service
        self._clock = clock
        self._known: set[Connection] = set()
        self._touched: dict[Connection, None] = {}
        self._actions: deque[Callable[[], None]] = deque()
        # Strangers do not use up what is reported of known peers.
        self._refusals = {known: _Refusals() for known in (False, True)}
        self._ending = threading.Event()
        self._linger = 0.0
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ, self._wake)
        self._unknown_peers: UnknownPeers | None = None
        if listener is not None:
            callbacks = Callbacks(service.greet, self.adopt, partial(self._report, None), self.call)
            self._unknown_peers = UnknownPeers(
                listener, keyring, self._selector, callbacks, silence=silence, limit=limit, clock=clock
            )
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    # ---- for other threads

    def start(self) -> None:
        """Begin to serve."""
        if self._unknown_peers is not None:
            self._unknown_peers.listen()
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
        until = now + wait
        if self._unknown_peers is not None:
            until = min(until, self._unknown_peers.turn(now))
        return None if until == math.inf else max(0.0, until - self._clock())

    def _wake(self, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    # ---- known peers

    def _report(self, connection: Connection | None, why: str) -> None:
        if self._refusals[connection is not None].pass_on(self._clock()):
            self._service.refused(connection, why)

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
                if frame.kind is FrameKind.BULK:
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
        self._known.clear()
        if self._unknown_peers is not None:
            self._unknown_peers.close()
        self._selector.close()
        self._woken.close()
        self._waker.close()
