"""The workers' stores: a fresh one for each round, on a fresh port of one address. And where agents listen."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but its types do not export it

from hpc_launch import torch_release
from hpc_launch.errors import RendezvousError, RoundRefused
from hpc_launch.node import network
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig

_TIMEOUT = timedelta(seconds=60)
# So many ports are tried; the next one is the kernel's choice.
_TRIES = 64
_BACKLOG = 4096


@contextlib.contextmanager
def lost_if_it_fails(where: str) -> Iterator[None]:
    """Name the node of a store that is lost: torch says so in many ways, all of them RuntimeErrors.

    Args:
        where: words for the node that hosts it.
    """
    try:
        yield
    except RuntimeError as error:
        raise RendezvousError(f"lost the store on {where}: {str(error).splitlines()[0]}") from error


def connect_to_store(address: str, port: int, where: str) -> TCPStore:
    """Be a client of a store.

    Args:
        address: of the node that hosts it.
        port: its port there.
        where: words for that node.

    Raises:
        RendezvousError: when there is none.
    """
    with lost_if_it_fails(where):
        return TCPStore(address, port, is_master=False, timeout=_TIMEOUT)


def listen_for_agents(ports: Sequence[int]) -> socket.socket:
    """Listen for agents on the first port that is free.

    Raises:
        RendezvousError: when none is.
    """
    listener = network.first_free(ports)
    if listener is None:
        listing = str(ports[0]) if len(ports) == 1 else f"{len(ports)} ports from {ports[0]} on"
        raise RendezvousError(f"port taken: {listing} cannot be listened on; see --port-range and --rdzv-endpoint")
    return listener


def worker_store(config: RendezvousConfig, address: str) -> TCPStore:
    """Serve a store for the workers of a round, on one address of this node.

    The port is random: only the plan of the round, which agents send each other on authenticated connections, has it.

    Args:
        config: this agent's.
        address: where the workers connect.

    Raises:
        RoundRefused: when the port that the user named is taken.
    """
    pinned = config.master_port
    if pinned is not None:
        listener = _bind(address, [pinned])
        if listener is None:
            raise RoundRefused(f"--master-port {pinned} is taken on {config.host}: choose another, or leave it out")
    else:
        chance = random.SystemRandom()
        some = [chance.choice(config.store_ports) for _ in range(_TRIES)] if config.store_ports else []
        listener = _bind(address, [*some, 0])
    if listener is None:
        raise RoundRefused(f"the workers' store cannot listen on {address} of {config.host}: name another --local-addr")
    try:
        return _serve(listener)
    except RuntimeError as error:
        raise RoundRefused(f"the workers' store on {config.host}: {str(error).splitlines()[0]}") from error


def _bind(address: str, ports: Sequence[int]) -> socket.socket | None:
    """Bind a socket to one address, and the first port that is free.

    Where the address is not this node's own (address translation) the socket is bound to all addresses.
    """
    for port in ports:
        try:
            return network.bound(address, port)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return network.first_free(ports)
    return None


def _serve(listener: socket.socket) -> TCPStore:
    address, port = listener.getsockname()[:2]
    listener.listen(_BACKLOG)
    # torch connects to its own store, and closes the descriptor with it.
    own = "127.0.0.1" if address in ("::", "0.0.0.0") else address  # noqa: S104 - compared with
    return TCPStore(
        own,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=_TIMEOUT,
        master_listen_fd=listener.detach(),
        use_libuv=torch_release.libuv_takes_sockets(torch.__version__),
    )
