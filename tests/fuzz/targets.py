"""Targets of the fuzzers: each takes bytes as a stranger, or a relay, or a peer of another version could send them.

A target knows which exceptions the code may raise and catches them; any other, and every broken promise, is a finding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hpc_launch import codec
from hpc_launch.codec import CodecError
from hpc_launch.rendezvous import messages
from hpc_launch.rendezvous.messages import Hello, Purpose, RoundEnd, RoundPlan, RunState
from hpc_launch.rendezvous.transport import framing
from hpc_launch.rendezvous.transport.framing import Frame, FrameKind, Opener, Opening, Sealer, WireError
from hpc_launch.rendezvous.transport.handshake import (
    CONNECTING,
    LISTENING,
    ConnectingSide,
    Credential,
    KeyMethod,
    KnownKey,
    ListeningSide,
    PeerProof,
    make_opening,
    place_key,
)
from hpc_launch.rendezvous.transport.peer_faults import HandshakeError, MessageError

_KEY = bytes(range(32))
_OTHER_KEY = bytes(32)
_PLACE = place_key("cluster/1/0/0")
_KNOWN = (KnownKey(KeyMethod.SECRET, _KEY, _KEY), KnownKey(KeyMethod.MUNGE, _OTHER_KEY, None))
# Of the machines that are fuzzed, and of those that made the seeds: so no seed is a valid handshake.
_NONCE, _SEED_NONCE = b"n" * 32, b"s" * 32

_PEOPLE = codec.known(Hello, messages.Answer)
_KINDS: Mapping[str, type] = {**messages.FROM_AGENTS, **_PEOPLE}


@dataclass(frozen=True)
class Target:
    """A function that is fuzzed.

    Attributes:
        run: takes any bytes.
        seeds: bytes that lead far into it.
    """

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


class Broken(AssertionError):
    """A promise of the code under test is broken."""


def promise(kept: bool, words: str) -> None:
    """Raise where a promise is not kept."""
    if not kept:
        raise Broken(words)


def pieces(data: bytes) -> Iterable[bytes]:
    """Cut bytes into parts, as their first byte says."""
    step = data[0] + 1 if data else 1
    return (data[begin : begin + step] for begin in range(1, len(data), step))


def first_frame(data: bytes) -> None:
    """A first frame is read as it is written, or refused."""
    try:
        found = framing.decode_opening(data)
    except WireError:
        return
    if found is not None:
        opening, end = found
        promise(opening.encode() == data[:end], "a first frame is written as it was read")
        promise(end <= framing.MAX_OPENING, "a first frame is short")


def foreign_frames(data: bytes) -> None:
    """Whoever does not have the key gets no frame through."""
    with contextlib.suppress(WireError):
        promise(Opener(_KEY).open(data) is None, "a frame without the key is not authentic")


_FRAMES = (
    Frame(FrameKind.CONTROL, b'{"do":"Stop"}'),
    Frame(FrameKind.BULK, bytes(40)),
    Frame(FrameKind.CONTROL, b""),
    Frame(FrameKind.CONTROL, b"last"),
)


def _sealed() -> list[bytes]:
    sealer = Sealer(_KEY)
    return [sealer.seal(frame.kind, frame.payload) for frame in _FRAMES]


def relayed_frames(data: bytes) -> None:
    """A relay that drops, repeats, moves, cuts and changes frames gets no frame through out of its place."""
    stream, frames = bytearray(), _sealed()
    for choice in data[:32]:
        frame = bytearray(frames[choice & 3])
        if choice & 4:
            place = (choice >> 3) % len(frame)
            frame[place] ^= 1 << (choice >> 5)
        elif choice & 8:
            del frame[(choice >> 4) :]
        stream += frame
    passed, opener, begin = [], Opener(_KEY), 0
    try:
        while (found := opener.open(stream, begin)) is not None:
            frame_, begin = found
            passed.append(frame_)
    except WireError:
        pass
    promise(tuple(passed) == _FRAMES[: len(passed)], "frames pass in their places only")


def listening(data: bytes) -> None:
    """A stranger proves nothing to a listener, wherever its bytes are cut."""
    machine = ListeningSide(_PLACE, _KNOWN, _NONCE)
    try:
        for piece in pieces(data):
            outcome = machine.feed(piece)
            if isinstance(outcome, Credential):
                promise(len(outcome.data) <= framing.MAX_METHOD_DATA, "a credential is short")
                outcome = machine.supply(_OTHER_KEY)
            promise(not isinstance(outcome, PeerProof), "only who has the key proves it")
    except HandshakeError as error:
        promise(error.words.isprintable(), "the reason is one line")


def connecting(data: bytes) -> None:
    """A false listener proves nothing to who connects, wherever its bytes are cut."""
    machine, proved = ConnectingSide(_PLACE, _KNOWN, _NONCE, b"hello"), False
    try:
        for piece in pieces(data):
            if not proved:
                machine.feed(piece)
                if machine.chosen is not None:
                    machine.prove(machine.chosen.secret or _OTHER_KEY, b"credential")
                    proved = True
                    promise(machine.answered(b"") is None, "only who has the key proves it")
            else:
                promise(machine.answered(piece) is None, "only who has the key proves it")
    except HandshakeError as error:
        promise(error.words.isprintable(), "the reason is one line")


def message(data: bytes) -> None:
    """A message is one, and is written as it was read; or it is refused in one line."""
    try:
        found = messages.decode(data, _KINDS)
    except MessageError as error:
        promise(str(error).isprintable(), "the reason is one line")
        return
    again = messages.decode(codec.encode(found), _KINDS)
    promise(again == found, "a message is read as it was written")


def note(data: bytes) -> None:
    """The same for what agents share as a text."""
    for kind in (RoundPlan, RoundEnd, RunState):
        try:
            found = codec.read(kind, data)
        except CodecError as error:
            promise(str(error).isprintable(), "the reason is one line")
            continue
        promise(codec.read(kind, codec.write(found)) == found, "a note is read as it was written")


def _seeds_of_listening() -> tuple[bytes, ...]:
    found = []
    for cut in (b"\xff", b"\x00", b"\x10"):
        for known in _KNOWN:
            there = ListeningSide(_PLACE, _KNOWN, _SEED_NONCE)
            here = ConnectingSide(_PLACE, (known,), _SEED_NONCE, b"hello")
            here.feed(there.greeting)
            found.append(cut + here.prove(known.secret or _OTHER_KEY, b"MUNGE:AwQFAAD:"))
    return (*found, b"\x20" + Opening(2, _NONCE, ()).encode())


def _seeds_of_connecting() -> tuple[bytes, ...]:
    found = []
    for known in _KNOWN:
        greeting = make_opening(_PLACE, (known,), LISTENING, _SEED_NONCE).encode()
        found.append(b"\xff" + greeting + Sealer(_KEY).seal(FrameKind.PROOF, b"\x01answer"))
        found.append(b"\x07" + greeting + Sealer(_OTHER_KEY).seal(FrameKind.PROOF, b"\x00"))
    return (*found, b"\x20" + Opening(2, _NONCE, ()).encode())


_NOTES = (
    codec.write(RoundPlan("10.0.0.1", 29500, (8, 8), "1234", 0)).encode(),
    codec.write(RoundEnd("failed", 1, "node2", 139, "rank 3 was killed by SIGSEGV", "SIGTERM")).encode(),
    codec.write(RunState(3, 1, {"0": 2}, {"1": "its disk"}, {"SIGUSR1": 1}, "1234", 2)).encode(),
)
_MESSAGES = (
    codec.encode(Hello(Purpose.JOIN, 3, "node3", "instance", "program", "train.py")),
    *(b'{"do":"%s","agent":1,"host":"node1","number":1,"agents":"0-3"}' % name.encode() for name in _KINDS),
)

TARGETS = {
    "first_frame": Target(
        first_frame,
        (make_opening(_PLACE, _KNOWN, CONNECTING, _SEED_NONCE).encode(), Opening(7, _NONCE, ()).encode()),
    ),
    "foreign_frames": Target(foreign_frames, (Sealer(_OTHER_KEY).seal(FrameKind.CONTROL, b"stop"),)),
    "relayed_frames": Target(relayed_frames, (bytes(range(4)), bytes([0, 1, 1, 2]), bytes([0, 5, 9]))),
    "listening": Target(listening, _seeds_of_listening()),
    "connecting": Target(connecting, _seeds_of_connecting()),
    "message": Target(message, _MESSAGES),
    "note": Target(note, _NOTES),
}
"""What is fuzzed, by name."""
