"""Names and addresses: endpoints as text, and which addresses are this node's."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, strategies as st

from hpc_launch.errors import UsageError
from hpc_launch.node import network
from hpc_launch.node.network import Interface
from tests.support import mentions

ETHERNET = Interface("eth0", ("10.0.0.7", "2001:db8::7"))
INFINIBAND = Interface("ib0", ("10.1.0.7",))

names = st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z]{1,5})?", fullmatch=True)
addresses = st.ip_addresses().map(str)
ports = st.integers(0, 65535)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu01", ("gpu01", None)),
        ("gpu01:29400", ("gpu01", 29400)),
        ("gpu01:", ("gpu01", None)),
        ("10.0.0.1:0", ("10.0.0.1", 0)),
        ("[::1]", ("::1", None)),
        ("[::1]:29400", ("::1", 29400)),
        ("fe80::1", ("fe80::1", None)),
        ("[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
        (" gpu01:1 ", ("gpu01", 1)),
    ],
)
def test_splits(text: str, expected: tuple[str, int | None]) -> None:
    """A host and a port, IPv6 addresses in brackets or alone."""
    assert expected == network.split_endpoint(text)


@pytest.mark.parametrize(
    "text",
    ["", ":29400", "gpu01:http", "gpu01:65536", "gpu01:-1", "[::1", "[::1]29400", "[]:1", "gpu01:\u0661", "a:1_0"],
)
def test_refuses_what_is_no_endpoint(text: str) -> None:
    """The message has the text and the form that is expected."""
    with pytest.raises(UsageError, match="HOST:PORT") as caught:
        network.split_endpoint(text)
    assert str(caught.value).startswith(f"'{text}'")


@given(host=names | addresses, port=ports)
def test_joining_and_splitting_are_inverse(host: str, port: int) -> None:
    """Any name and any address with any port comes back as it was."""
    assert (host, port) == network.split_endpoint(network.join_endpoint(host, port))


@given(text=st.text(max_size=20) | st.text(alphabet="[]:%1a.", max_size=10))
def test_any_text_is_split_or_refused(text: str) -> None:
    """No text fails in another way, and what comes out is a host and a port."""
    try:
        host, port = network.split_endpoint(text)
    except UsageError:
        return
    assert host
    assert port is None or 0 <= port <= 65535


@given(address=addresses)
def test_addresses_are_known_from_names(address: str) -> None:
    """Addresses of both families are addresses, keep their form, and loopback is told from the rest."""
    assert network.is_address(address)
    assert address == network.short_name(address)
    assert ipaddress.ip_address(address).is_loopback == network.is_loopback(address)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu01", False),
        ("gpu01.cluster", False),
        ("1", False),
        ("", False),
        ("fe80::1%eth0", True),
        ("127.0.0.1", True),
    ],
)
def test_what_is_an_address(text: str, *, expected: bool) -> None:
    """Names are none; an address may have a zone."""
    assert expected is network.is_address(text)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("Gpu01.cluster.example", "gpu01"), ("gpu01", "gpu01"), ("10.0.0.1", "10.0.0.1"), ("fe80::1", "fe80::1")],
)
def test_short_names(host: str, expected: str) -> None:
    """A name loses its domain, an address nothing."""
    assert expected == network.short_name(host)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("192.0.2.1", False), ("2001:db8::1", False), ("no address", False)],
)
def test_which_addresses_are_local(address: str, *, expected: bool) -> None:
    """A socket can be bound to an address of this node only; 192.0.2.0/24 and 2001:db8::/32 belong to nobody."""
    assert expected is network.is_local(address)


def test_the_source_address_of_loopback_is_loopback() -> None:
    """The kernel says by which address it would send; no packet is sent, and nobody has to listen."""
    assert network.source_address("127.0.0.1") == "127.0.0.1"
    assert network.source_address("no address") is None


def test_names_resolve_or_not() -> None:
    """localhost has a loopback address; a name of the reserved domain has none."""
    assert "127.0.0.1" in network.resolve_name("localhost")
    assert network.resolve_name("nowhere.invalid") == ()


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put this process on gpu02.cluster, 10.0.0.2, with a resolver of its own."""
    known: Mapping[str, tuple[str, ...]] = {
        "gpu01": ("10.0.0.1",),
        "gpu02-ib": ("10.1.0.2",),
        "head": ("10.0.0.2",),
        "false-friend": ("127.0.1.1",),
        "localhost": ("127.0.0.1",),
    }
    own = {"10.0.0.2", "10.1.0.2", "127.0.0.1", "127.0.1.1"}
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu02.cluster")
    monkeypatch.setattr(network, "resolve_name", lambda name: known.get(name, ()))
    monkeypatch.setattr(network, "is_local", own.__contains__)


@pytest.mark.usefixtures("resolver")
@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["gpu01", "gpu02"], 1),
        (["gpu01", "gpu02.cluster"], 1),
        (["gpu02.other", "gpu02.cluster"], 1),
        (["GPU01", "GPU02"], 1),
        (["gpu02.another.domain", "gpu01"], 0),
        (["gpu01", "gpu02-ib"], 1),
        (["head", "gpu01"], 0),
        (["10.0.0.1", "10.0.0.2"], 1),
        (["localhost"], 0),
        (["false-friend", "gpu01"], None),
        (["gpu01", "127.0.0.1"], None),
        (["gpu01", "gpu03"], None),
        ([], None),
    ],
)
def test_the_position_in_a_list(hosts: Sequence[str], expected: int | None) -> None:
    """The host name decides, then its short form, then any address of this node but loopback."""
    assert expected == network.position(hosts)


@pytest.mark.usefixtures("resolver")
def test_the_advertised_address_leads_to_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first peer that resolves to somewhere else decides; loopback is never advertised."""
    routes = {"10.0.0.1": "10.0.0.2", "127.0.1.1": "127.0.0.1", "10.9.0.1": "127.0.0.1"}
    monkeypatch.setattr(network, "source_address", routes.get)

    assert network.advertised(["unknown", "false-friend", "10.9.0.1", "gpu01"]) == "10.0.0.2"
    assert network.advertised(["unknown", "false-friend"]) is None


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("eth0", "10.0.0.7"),
        ("ib0", "10.1.0.7"),
        ("10.1.0.0/16", "10.1.0.7"),
        ("10.1.2.3/16", "10.1.0.7"),
        ("2001:db8::/32", "2001:db8::7"),
        ("10.0.0.0/8", "10.0.0.7"),
    ],
)
def test_the_interface_that_was_asked_for(wanted: str, expected: str) -> None:
    """A name or a subnet chooses an address, the first that fits."""
    assert expected == network.address_of_interface(wanted, [ETHERNET, INFINIBAND])


@pytest.mark.parametrize(
    ("wanted", "among", "there"),
    [
        ("ib1", [ETHERNET, INFINIBAND], "eth0 (10.0.0.7, 2001:db8::7), ib0 (10.1.0.7)"),
        ("192.0.2.0/24", [INFINIBAND], "ib0 (10.1.0.7)"),
        ("eth", [], "none"),
    ],
)
def test_an_interface_that_is_not_here(wanted: str, among: Sequence[Interface], there: str) -> None:
    """The message names those that there are."""
    with pytest.raises(UsageError) as caught:
        network.address_of_interface(wanted, among)
    assert mentions(caught.value, f"--interface '{wanted}'", there)


def test_the_interfaces_of_this_node_are_usable_by_others() -> None:
    """Loopback and link-local addresses are left out, and each address leads back to its interface."""
    found = network.interfaces()
    texts = [address for interface in found for address in interface.addresses]

    assert [text for text in texts if network.is_loopback(text) or text.startswith("fe80")] == []
    assert [interface.name for interface in found] == [
        network.interface_of(interface.addresses[0], found) for interface in found
    ]
    assert network.interface_of("192.0.2.1", found) == ""
