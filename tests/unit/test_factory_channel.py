"""The channel to the worker factory: objects with descriptors, and nothing else."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from hpc_launch import codec
from hpc_launch.workers.factory_channel import Channel, GoneError
from hpc_launch.workers.factory_server import EndedWorker, Order


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and what it is connected to."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(10)
        yield Channel(theirs), ours


def test_an_object_arrives_with_its_descriptors(
    ends: tuple[Channel, socket.socket], tmp_path: os.PathLike[str]
) -> None:
    """An order as the factory gets it, and the end of a worker as the agent does."""
    here, there = ends[0], Channel(ends[1])
    order = Order(
        "python", ("-u", "train.py"), {"A": "\udcff", "B": ""}, (None, 7), forked=True, cpus=(0, 4), open_files=4096
    )
    handle = os.open(tmp_path, os.O_RDONLY)
    there.send(codec.plain(order), [handle])
    os.close(handle)
    facts, (arrived,) = here.receive()
    os.close(arrived)
    ended = EndedWorker(11, -9, 1.5, (0.5, 0.25, 1 << 20))
    there.send(ended)

    assert codec.build(Order, facts, outputs=(None, 7)) == order
    assert codec.build(EndedWorker, here.receive()[0]) == ended
    assert codec.plain(ended) == {"ended": 11, "status": -9, "time": 1.5, "usage": [0.5, 0.25, 1 << 20]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "closed"),
        (b"\0\0", "closed"),
        (b"\0\0\0\x05{}", "closed"),
        (b"\0\0\0\x02[]", "no JSON object"),
        (b"\0\0\0\x02{]", "no JSON object"),
        (b"\xff\xff\xff\xff", "4294967295 bytes"),
    ],
)
def test_what_is_no_message_ends_the_conversation(ends: tuple[Channel, socket.socket], data: bytes, words: str) -> None:
    """The other end is gone, or is none of ours."""
    channel, other = ends
    other.sendall(data)
    other.close()

    with pytest.raises(GoneError, match=words):
        channel.receive()
