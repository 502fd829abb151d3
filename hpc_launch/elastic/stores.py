"""The stores of the `slurm` rendezvous: the agents' own, and a fresh one for the workers of each round."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but its types do not export it

from hpc_launch.elastic.party import Party
from hpc_launch.errors import RendezvousError, RoundRefused
from hpc_launch.node import network

# Blocking calls into torch hold back Python's signal handlers, so they are made in slices of this length.
_SLICE = timedelta(seconds=1)
_TIMEOUT = timedelta(seconds=60)


class AgentsStore:
    """What the agents tell each other, for as long as the run lives.

    Every method raises RendezvousError when the store is lost: torch says that in many ways, all of them RuntimeErrors.
    """

    def __init__(self, store: TCPStore, where: str, mind: Callable[[], None]) -> None:
        """Use a store that is open.

        Args:
            store: it.
            where: words for the node that hosts it.
            mind: raises where that node is gone: a store that is lost would be waited for long.
        """
        self._store = store
        self._where = where
        self._mind = mind

    def get(self, key: str) -> bytes | None:
        """What is there; None where nothing is."""
        with self._asking():
            return self._store.get(key) if self._store.check([key]) else None

    def get_all(self, keys: Sequence[str]) -> list[bytes]:
        """What is there under several keys, all of which are."""
        with self._asking():
            found: list[bytes] = self._store.multi_get(list(keys))
            return found

    def await_key(self, key: str) -> bytes | None:
        """What is there, once it is; None where it does not come within a second."""
        with self._asking(), contextlib.suppress(torch.distributed.DistStoreError):
            self._store.wait([key], _SLICE)
            return self._store.get(key)
        return None

    def set(self, key: str, text: str) -> None:
        """Leave something, whatever was there."""
        with self._asking():
            self._store.set(key, text)

    def propose(self, key: str, text: str, otherwise: str = "") -> bytes:
        """Leave something where there is still what one thinks, nothing for instance; returns what is there then."""
        with self._asking():
            return self._store.compare_set(key, otherwise, text)

    def add(self, key: str, amount: int) -> int:
        """Add to a number that begins at 0; returns what it is then."""
        with self._asking():
            return int(self._store.add(key, amount))

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        self._mind()
        with said_as_lost(self._where):
            yield


@contextlib.contextmanager
def said_as_lost(where: str) -> Iterator[None]:
    """Say in our words that a store was lost.

    Args:
        where: words for the node that hosts it.
    """
    try:
        yield
    except RuntimeError as error:
        raise RendezvousError(f"lost the store on {where}: {str(error).splitlines()[0]}") from error


def connect(address: str, port: int, where: str) -> TCPStore:
    """Be a client of a store.

    Args:
        address: of the node that hosts it.
        port: its port there.
        where: words for that node.

    Raises:
        RendezvousError: when there is none.
    """
    with said_as_lost(where):
        return TCPStore(address, port, is_master=False, timeout=_TIMEOUT)


def listen(ports: Sequence[int]) -> socket.socket:
    """Listen on the first port that is free.

    Raises:
        RendezvousError: when none is.
    """
    listener = network.first_free(ports)
    if listener is None:
        listing = str(ports[0]) if len(ports) == 1 else f"{len(ports)} ports from {ports[0]} on"
        raise RendezvousError(f"port taken: {listing} cannot be listened on; see --port-range and --rdzv-endpoint")
    return listener


def first_store(ports: Sequence[int]) -> tuple[TCPStore, int]:
    """Serve a store on the first port that is free; where a single port was named, on any."""
    for port in ports:
        with contextlib.suppress(RuntimeError):
            return _serve(port), port
    store = _serve(0)
    return store, store.port


def worker_store(party: Party, number: int) -> tuple[TCPStore, int]:
    """Serve a store for the workers of a round.

    Raises:
        RoundRefused: when the port that the user named is taken.
    """
    pinned = party.master_port
    if pinned is not None:
        try:
            return _serve(pinned), pinned
        except RuntimeError as error:
            raise RoundRefused(
                f"--master-port {pinned} is taken on {party.host}: choose another, or leave it out"
            ) from error
    used = number + 2  # past the ports that the locator and the stores before may have
    return first_store([*party.ports[used:], *party.ports[:used]])


def _serve(port: int) -> TCPStore:
    return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=_TIMEOUT)
