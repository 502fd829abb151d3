"""Names and addresses: which of them are this node's, and by which one others reach it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_launch.errors import UsageError


def split_endpoint(text: str) -> tuple[str, int | None]:
    """Split `host`, `host:port`, `[ipv6]`, `[ipv6]:port` or a bare IPv6 address; the port is None where there is none.

    Raises:
        UsageError: when the port is not one.
    """
    text = text.strip()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"'{text}' is not an endpoint: expected HOST:PORT or [IPV6]:PORT")
        port = rest[1:]
    elif text.count(":") > 1:
        host, port = text, ""
    else:
        host, _, port = text.partition(":")
    if not host or (port and not (port.isascii() and port.isdigit() and int(port) < 2**16)):
        raise UsageError(f"'{text}' is not an endpoint: expected HOST:PORT with a port from 0 to 65535")
    return host, int(port) if port else None


def join_endpoint(host: str, port: int) -> str:
    """The inverse of `split_endpoint`: IPv6 addresses in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def short_name(host: str) -> str:
    """The host name without its domain; addresses stay as they are."""
    return host if is_address(host) else host.partition(".")[0].lower()


def is_address(text: str) -> bool:
    """Whether this is an IPv4 or IPv6 address rather than a name."""
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether this address never leaves the machine."""
    return _parse(address).is_loopback


def resolve_name(name: str) -> tuple[str, ...]:
    """The addresses of a name, in the resolver's order; none where it does not resolve."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    return tuple(dict.fromkeys(str(info[4][0]) for info in found))


def is_local(address: str) -> bool:
    """Whether an address is one of this node's: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def source_address(destination: str) -> str | None:
    """This node's address on the interface that leads to `destination` (an address); None where nothing does.

    Connecting a datagram socket sends nothing: it only asks the kernel for the route.
    """
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((destination, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def position(hosts: Sequence[str]) -> int | None:
    """Where this node stands in a list of names or addresses; None where it does not.

    Its host name decides (as written, then without domains); then whatever resolves to an address of this node.
    """
    here = socket.gethostname()
    for same in (str.lower, short_name):
        names = [same(host) for host in hosts]
        if same(here) in names:
            return names.index(same(here))
    for index, host in enumerate(hosts):
        # A name of another node that resolves to loopback here would be a false friend; `localhost` is not.
        addresses = [host] if is_address(host) else resolve_name(host)
        if any(is_local(address) and (host == "localhost" or not is_loopback(address)) for address in addresses):
            return index
    return None


def advertised(peers: Sequence[str]) -> str | None:
    """This node's address as seen by the first of `peers` that resolves to somewhere else; None where none does."""
    for peer in peers:
        for address in [peer] if is_address(peer) else resolve_name(peer):
            if is_loopback(address):
                continue
            found = source_address(address)
            if found is not None and not is_loopback(found):
                return found
    return None


@dataclass(frozen=True)
class Interface:
    """A network interface of this node with its addresses, IPv4 first; no link-local ones."""

    name: str
    addresses: tuple[str, ...]


def interfaces() -> tuple[Interface, ...]:
    """The interfaces by which this node could be reached, loopback left out."""
    import psutil  # noqa: PLC0415 - needed when nodes meet, and not quick to import

    found = []
    for name, entries in psutil.net_if_addrs().items():
        texts = [e.address for family in (socket.AF_INET, socket.AF_INET6) for e in entries if e.family == family]
        usable = tuple(text for text in texts if not (is_loopback(text) or _parse(text).is_link_local))
        if usable:
            found.append(Interface(name, usable))
    return tuple(found)


def address_of_interface(wanted: str, among: Sequence[Interface], said: str = "--interface") -> str:
    """The address that `--interface` means. Pure.

    Args:
        wanted: the name of an interface, or a subnet.
        among: the interfaces that there are.
        said: where it was said.

    Raises:
        UsageError: naming those that there are.
    """
    try:
        subnet = ipaddress.ip_network(wanted, strict=False)
    except ValueError:
        fitting = [address for interface in among if interface.name == wanted for address in interface.addresses]
    else:
        fitting = [address for interface in among for address in interface.addresses if _parse(address) in subnet]
    if not fitting:
        there = ", ".join(f"{interface.name} ({', '.join(interface.addresses)})" for interface in among) or "none"
        raise UsageError(f"{said}: no '{wanted}' with an address here; there is {there}", option="--interface")
    return fitting[0]


def asked_address(local_addr: str | None, interface: str, said: str = "--interface") -> str | None:
    """The address of this node that the user chose with --local-addr or --interface; None where it is left open.

    Args:
        local_addr: the one, as it was given.
        interface: the other.
        said: where the interface was said.

    Raises:
        UsageError: when there is no such interface here.
    """
    if local_addr:
        return local_addr
    return None if interface == "auto" else address_of_interface(interface, interfaces(), said)


def derive_own_address(host: str, hosts: Sequence[str], names: Sequence[str]) -> str | None:
    """The address of this node for the others: the one that its names mean to them, else the one on the way to them.

    Args:
        host: this node's name in `hosts`.
        hosts: all nodes.
        names: under which the others may look for this node.

    Returns:
        The address; loopback where this node is alone, None where it has no address at all.
    """
    if len(hosts) == 1:
        return "127.0.0.1"
    named = [address for name in names for address in resolve_name(name)]
    usable = [address for address in named if is_local(address) and not is_loopback(address)]
    found = next(iter(usable), None) or advertised([other for other in hosts if other != host])
    if found is not None:
        return found
    there = interfaces()
    return there[0].addresses[0] if there else None


def listen(port: int) -> socket.socket:
    """A listening socket on all addresses, IPv4 and IPv6 where there is both.

    Raises:
        OSError: when the port is taken.
    """
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def bound(address: str, port: int) -> socket.socket:
    """A socket that is bound to one address, and does not listen yet.

    Raises:
        OSError: when the port is taken, or the address is not this node's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)[0][4])
    except OSError:
        found.close()
        raise
    return found


def first_free(ports: Sequence[int]) -> socket.socket | None:
    """Listen on the first port that is free; None where none is."""
    for port in ports:
        with contextlib.suppress(OSError):
            return listen(port)
    return None


def interface_of(address: str, among: Sequence[Interface]) -> str:
    """The name of the interface that has an address; empty where none has. Pure."""
    return next((interface.name for interface in among if address in interface.addresses), "")


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(address.partition("%")[0])
