"""Which torch hpc-launch runs with, and what differs between its releases."""

from __future__ import annotations

import re
import socket
from datetime import timedelta
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not exported

from hpc_launch import torch_release
from hpc_launch.errors import UsageError
from tests.support import mentions

ROOT = Path(__file__).parents[2]
OLDEST = ".".join(map(str, torch_release.OLDEST))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pyproject.toml", r'"torch>=([\d.]+)"'),
        ("tools/install_torch.sh", r"torch>=([\d.]+)"),
        ("README.md", r"torch ([\d.]+) and newer"),
        ("docs/design.md", r"torch \(([\d.]+) and newer;"),
    ],
)
def test_the_oldest_release_is_the_same_everywhere(file: str, text: str) -> None:
    assert set(re.findall(text, (ROOT / file).read_text())) == {OLDEST}


@pytest.mark.parametrize("version", ["1.13.1", "2.3.1+cu121", "2.3.0a0+gitabc"])
def test_an_older_torch_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says what is there, and how to get what is needed."""
    monkeypatch.setattr(metadata, "version", lambda _: version)
    with pytest.raises(UsageError) as refused:
        torch_release.check_installed()

    assert mentions(refused.value, version, f"'torch>={OLDEST}'")


@pytest.mark.parametrize("version", ["2.4.0", "2.10.0", "2.4.0a0+git1234", "3.0", "main"])
def test_others_are_taken(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that is no release is somebody's own build."""
    monkeypatch.setattr(metadata, "version", lambda _: version)

    torch_release.check_installed()


def test_a_torch_that_pip_does_not_know_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be on the path of modules only."""

    def unknown(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", unknown)

    torch_release.check_installed()


@pytest.mark.parametrize(
    ("version", "takes"), [("2.4.1", False), ("2.7.1+cu126", False), ("2.8.0", True), ("2.14.1", True)]
)
def test_the_releases_whose_libuv_takes_sockets(version: str, takes: bool) -> None:
    assert torch_release.libuv_takes_sockets(version) == takes


def test_this_torch_is_one_of_them() -> None:
    """A store by libuv takes a socket in this torch exactly where it is said to."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    expected = torch_release.libuv_takes_sockets(torch.__version__)
    try:
        store = TCPStore(
            "127.0.0.1",
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=60),
            master_listen_fd=listener.detach(),
            use_libuv=True,
        )
    except RuntimeError:
        assert not expected
    else:
        assert (expected, store.libuvBackend) == (True, True)  # type: ignore[attr-defined]  # as above
