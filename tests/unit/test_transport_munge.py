"""Credentials of munge, with a munged of the tests' own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_launch.rendezvous.transport import client, munge
from hpc_launch.rendezvous.transport.connection import Connection
from hpc_launch.rendezvous.transport.framing import MAX_METHOD_DATA, encode_method_data
from hpc_launch.rendezvous.transport.handshake import CONNECTING, make_opening
from hpc_launch.rendezvous.transport.keys import Keyring, collect_keys
from hpc_launch.rendezvous.transport.munge import Munge
from tests.conftest import REQUIRED
from tests.support import mentions, wait_for
from tests.unit.transport_support import PLACE, Remembering, connect, dial, is_hung_up, receive, serving, unknown_in


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[Path]:
    """Run a munged with a key of its own; gives its socket."""
    key, socket = folder / "munge.key", folder / "socket"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    paths = {"key-file": key, "socket": socket, "pid-file": folder / "pid", "seed-file": folder / "seed"}
    options = [f"--{option}={path}" for option, path in {**paths, "log-file": folder / "log"}.items()]
    process = subprocess.Popen(["munged", "--foreground", *options], stderr=subprocess.PIPE)
    try:
        wait_for(lambda: socket.exists() or process.poll() is not None, 20, "munged does not start")
        if process.poll() is not None:
            assert process.stderr is not None
            why = process.stderr.read().decode(errors="replace")
            (pytest.fail if REQUIRED else pytest.skip)(f"munged does not start: {why}")
        yield socket
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def tools() -> Iterator[Munge]:
    """Its commands, for a munged that runs."""
    if shutil.which("munged") is None:
        (pytest.fail if REQUIRED else pytest.skip)("there is no munged")
    # A directory of its own: the path of a socket is short, and munged wants it safe.
    with tempfile.TemporaryDirectory(prefix="munge", dir="/run" if os.geteuid() == 0 else None) as folder:
        Path(folder).chmod(0o755)
        with daemon(Path(folder)) as socket:
            found = munge.find_munge(os.environ["PATH"], socket)
            assert isinstance(found, Munge)
            yield found


def credential(tools: Munge) -> tuple[bytes, bytes]:
    made = tools.seal()
    assert made is not None
    return made


def test_a_credential_gives_the_key_that_it_was_made_with(tools: Munge) -> None:
    """To the same user."""
    key, sealed = credential(tools)

    assert tools.open(sealed) == key


def test_a_credential_is_short(tools: Munge) -> None:
    """It has its place in a handshake, with room to spare."""
    assert len(credential(tools)[1]) < MAX_METHOD_DATA // 2


def test_a_credential_counts_once(tools: Munge) -> None:
    """munged remembers it."""
    _, sealed = credential(tools)
    tools.open(sealed)

    assert tools.open(sealed) is None


@pytest.mark.parametrize("junk", [b"", b"junk", b"MUNGE:AAAA:", b"\0" * 100, b"MUNGE:" + b"A" * 700 + b":", b"--help"])
def test_junk_is_no_credential(tools: Munge, junk: bytes) -> None:
    """It does no harm."""
    assert tools.open(junk) is None


def sealed_by(tools: Munge, uid: int, *options: str) -> bytes:
    """Have another user make a credential."""
    command = [tools.munge, f"--socket={tools.socket}", *options]
    done = subprocess.run(
        command, input=b"ab" * 32, capture_output=True, check=True, user=uid, group=uid, extra_groups=[]
    )
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="speaks as another user")
def test_a_credential_of_another_user_is_none(tools: Munge) -> None:
    """Though it can be opened here."""
    assert tools.open(sealed_by(tools, 65534)) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="speaks as another user")
def test_a_credential_is_for_the_same_user_alone(tools: Munge) -> None:
    """Another one that gets hold of it learns no key."""
    _, sealed = credential(tools)
    done = subprocess.run(
        [tools.unmunge, f"--socket={tools.socket}"],
        input=sealed,
        capture_output=True,
        check=False,
        user=65534,
        group=65534,
        extra_groups=[],
    )

    assert (done.returncode != 0, len(done.stdout.partition(b"\n\n")[2])) == (True, 0)


def test_a_munged_that_is_not_there_is_no_method(tmp_path: Path) -> None:
    """The reason is one for -v."""
    if shutil.which("munge") is None:
        pytest.skip("no munge here")

    assert mentions(munge.find_munge(os.environ["PATH"], tmp_path / "socket"), "munged")


def test_without_its_commands_there_is_no_munge(tmp_path: Path) -> None:
    """PATH decides."""
    told = munge.find_munge(str(tmp_path))
    assert isinstance(told, str)
    assert (mentions(told, "munge"), mentions(told, "munged")) == (True, False)


def test_an_agent_collects_munge_last(tools: Munge, tmp_path: Path) -> None:
    """After all that is shared."""
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    found = collect_keys(environ, PLACE, job_file=None, leader=False, munge_socket=tools.socket)

    assert found.described == f"key file {tmp_path}/.config/hpc-launch/key, munge"


def test_agents_that_have_munge_alone_are_connected(tools: Munge) -> None:
    """Frames go both ways then."""
    service = Remembering(on_received=lambda connection, payload: connection.send(payload.upper()))
    with serving(service, Keyring(PLACE, munge=tools)) as server:
        here = connect(server, Keyring(PLACE, munge=tools), hello=b"I am 3")
        assert isinstance(here, Connection)
        here.send(b"question")
        frames = receive(here)
        here.close()

    assert (service.hellos, [frame.payload for frame in frames]) == ([b"I am 3"], [b"QUESTION"])


def test_agents_of_two_places_have_no_munge_in_common(tools: Munge) -> None:
    """Another run of the same user is passed by, without a credential."""
    with serving(keyring=Keyring(PLACE, munge=tools)) as server:
        found = connect(server, Keyring("cluster/2/0/0", munge=tools))

    assert isinstance(found, client.ConnectionFailure)
    assert found.kind is client.FailureKind.STRANGER


def junk(keyring: Keyring, data: bytes) -> bytes:
    return make_opening(keyring.place_key, keyring.known, CONNECTING, bytes(32)).encode() + encode_method_data(data)


def test_junk_costs_its_sender_the_connection(tools: Munge) -> None:
    """Agents are served meanwhile."""
    service, keyring = Remembering(), Keyring(PLACE, munge=tools)
    with serving(service, keyring) as server:
        strangers = [dial(server) for _ in range(20)]
        for stranger in strangers:
            stranger.sendall(junk(keyring, b"MUNGE:junk:"))
        here = connect(server, keyring)
        ends = [is_hung_up(stranger) for stranger in strangers]
        for stranger in strangers:
            stranger.close()
        assert isinstance(here, Connection)
        here.close()

    assert (service.hellos, ends) == ([b"hello"], [True] * 20)
    assert mentions(service.reasons[0], "127.0.0.1 munge")


def test_a_munged_that_hangs_keeps_the_server_going() -> None:
    """Credentials are checked by other threads; those who leave are not waited for."""
    gate, asked = threading.Event(), threading.Event()

    class Hanging(Munge):
        def open(self, credential: bytes) -> bytes | None:
            del credential
            asked.set()
            gate.wait(60)
            return None

    tools = Hanging("munge", "unmunge")
    service, keyring = Remembering(), Keyring(PLACE, munge=tools)
    with serving(service, keyring) as server:
        stranger = dial(server)
        stranger.sendall(junk(keyring, b"credential"))
        asked.wait(20)
        done = threading.Event()
        server.call(done.set)
        went_on = done.wait(20)
        stranger.close()
        wait_for(lambda: not unknown_in(server).unknown, 20, "it is still there")
        gate.set()

    assert went_on
