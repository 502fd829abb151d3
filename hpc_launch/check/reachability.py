"""Whether one node reaches another: who listens, who calls, and what is in the way."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Sequence

from hpc_launch.check.evidence import ConnectionAttempt, ConnectionResult
from hpc_launch.node import network

# A connection in a cluster takes a millisecond. A packet that got lost is sent again after one second and after three.
PATIENCE = 4.0

_LONGEST_LINE = 256


class Answerer:
    """Listens on a port like the first node of a run, and tells callers the name of the check.

    Attributes:
        port: the port; None where none of the candidates is free.
    """

    def __init__(self, name: str, ports: Sequence[int]) -> None:
        self._name = name.encode() + b"\n"
        self._listener = network.first_free(ports)
        self.port: int | None = None
        if self._listener is not None:
            self.port = self._listener.getsockname()[1]
            self._thread = threading.Thread(target=self._serve, args=(self._listener,), name="answerer", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop, and free the port."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # which wakes accept; close alone would not
            self._thread.join()
            self._listener.close()
            self._listener = None

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.sendall(self._name)


def try_to_reach(name: str, leaders: Sequence[str], address: str, port: int) -> list[ConnectionAttempt]:
    """Try to reach a node as a run would: by its names, and by the address that it gives to the workers.

    Args:
        name: of the check, which is what it answers.
        leaders: names that agents look up.
        address: which workers get as MASTER_ADDR.
        port: where it listens.
    """
    wanted = [("", address)]
    for leader in leaders:
        if not network.is_address(leader):
            wanted += [(leader, found) for found in network.resolve_name(leader) or ("",)]
    ways: dict[str, tuple[ConnectionResult, str]] = {}
    attempts = []
    for leader, candidate in wanted:
        if candidate not in ways:
            ways[candidate] = _way(name, candidate, port)
        attempts.append(ConnectionAttempt(leader, candidate, *ways[candidate]))
    return attempts


def _way(name: str, address: str, port: int) -> tuple[ConnectionResult, str]:
    if not address:
        return ConnectionResult.UNRESOLVED, ""
    if network.is_loopback(address):
        return ConnectionResult.LOOPBACK, ""
    return call(name, address, port)


def call(name: str, address: str, port: int) -> tuple[ConnectionResult, str]:
    """Call an address, and see whether it is the check that answers."""
    try:
        with socket.create_connection((address, port), timeout=PATIENCE) as connection:
            connection.settimeout(PATIENCE)
            with connection.makefile("rb") as stream:
                answer = stream.readline(_LONGEST_LINE).decode(errors="replace").strip()
    except ConnectionRefusedError:
        return ConnectionResult.REFUSED, ""
    except TimeoutError:
        return ConnectionResult.SILENT, ""
    except OSError as error:
        unreachable = error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL)
        return (ConnectionResult.NO_ROUTE if unreachable else ConnectionResult.FAILED), str(error.strerror or error)
    return (ConnectionResult.OPEN, "") if answer == name else (ConnectionResult.STRANGER, "")
