"""How two ends prove to each other that they have the same secret: two machines that take bytes and give bytes.

The listening side begins with its opening. The connecting side chooses the first of the listener's keys that it has
too, and answers with its own opening, a proof and the upper layer's `hello`. The listening side checks the proof, and
answers with its own and the upper layer's `answer`. Both keys of a connection depend on all that was said before, and
on the roles; so nothing of one connection is of use on another.

Nothing here touches a socket, a clock or a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from hpc_launch.rendezvous.transport import framing
from hpc_launch.rendezvous.transport.framing import FrameKind, Offer, Opener, Opening, Sealer, WireError
from hpc_launch.rendezvous.transport.peer_faults import HandshakeError, HandshakeFault

LISTENING, CONNECTING = b"listening", b"connecting"


class KeyMethod(IntEnum):
    """Where a key comes from, as the first frame names it. Numbers are never used again for something else.

    A peer needs the number to name what the other side has; two keys that are equal match wherever they come from.
    """

    PLACE = 0
    SECRET = 1
    STEP_SECRET = 2
    KEY_FILE = 3
    JOB_FILE = 4
    MUNGE = 5
    INSECURE = 6


NAMES = {
    KeyMethod.SECRET: "HPC_LAUNCH_SECRET",
    KeyMethod.STEP_SECRET: "HPC_LAUNCH_STEP_SECRET",
    KeyMethod.KEY_FILE: "the key file",
    KeyMethod.JOB_FILE: "a key in the job directory",
    KeyMethod.MUNGE: "munge",
    KeyMethod.INSECURE: "--insecure-rendezvous",
}


@dataclass(frozen=True)
class KnownKey:
    """A key that this side has, or a method by which it can get one.

    Attributes:
        method: where it comes from.
        id_key: what salted ids are made of.
        secret: what session keys are made of; None where the method makes a fresh one for each connection.
    """

    method: KeyMethod
    id_key: bytes = field(repr=False)
    secret: bytes | None = field(repr=False)


def place_key(place: str) -> bytes:
    """The id key of a place: public, as places are."""
    return framing.hkdf(place.encode(errors="surrogateescape"), b"hpc-launch", b"place")


def make_opening(place: bytes, known: Sequence[KnownKey], role: bytes, nonce: bytes) -> Opening:
    """The opening of a side: its place, and what it offers."""
    offers = [Offer(KeyMethod.PLACE, framing.salted_id(place, role, nonce))]
    offers += [Offer(one.method, framing.salted_id(one.id_key, role, nonce)) for one in known]
    return Opening(framing.PROTOCOL, nonce, tuple(offers[: framing.MAX_OFFERS]))


def named(opening: Opening) -> str:
    """What a side has, by its opening, in words."""
    methods = {method.value: method for method in KeyMethod}
    names = [NAMES.get(methods[offer.method], "") for offer in opening.offers if offer.method in methods]
    return ", ".join(name for name in names if name) or "none"


def _apart(opening: Opening, known: Sequence[KnownKey]) -> str:
    """What each of two sides has that have no secret in common, in words."""
    here = ", ".join(NAMES[one.method] for one in known) or "none"
    both = {one.method for one in known} & {offer.method for offer in opening.offers}
    different = "".join(f"; {NAMES[method]} differs" for method in sorted(both))
    return f"no secret in common: it has {named(opening)}; here there is {here}{different}"


def _common(opening: Opening, known: Sequence[KnownKey], role: bytes) -> KnownKey | None:
    """The first of the other side's keys that this side has too."""
    mine = {framing.salted_id(one.id_key, role, opening.nonce): one for one in known}
    return next((mine[offer.id] for offer in opening.offers if offer.id in mine), None)


def _same_place(opening: Opening, place: bytes, role: bytes) -> bool:
    wanted = framing.salted_id(place, role, opening.nonce)
    return any(offer.id == wanted for offer in opening.offers if offer.method == KeyMethod.PLACE)


def _check_opening(opening: Opening, place: bytes, known: Sequence[KnownKey], role: bytes) -> KnownKey:
    """The key that both have.

    Args:
        opening: what the other side has said first.
        place: the id key of this side's place.
        known: what this side has.
        role: the other side's.

    Raises:
        HandshakeError: where there is none, or where the other side speaks another protocol.
    """
    if opening.protocol != framing.PROTOCOL:
        raise HandshakeError(
            HandshakeFault.VERSION,
            f"another version of hpc-launch (protocol {opening.protocol}, this one speaks {framing.PROTOCOL})",
        )
    found = _common(opening, known, role)
    if found is not None:
        return found
    if not _same_place(opening, place, role):
        raise HandshakeError(HandshakeFault.STRANGER, "an agent of another run")
    raise HandshakeError(HandshakeFault.NO_COMMON_SECRET, _apart(opening, known))


@dataclass(frozen=True)
class ConnectionKeys:
    """What both directions of a connection are authenticated with."""

    sealer: Sealer
    opener: Opener


class HandshakeMachine:
    """What both sides of a handshake have in common: the bytes that have come and are not used yet."""

    def __init__(self, place: bytes, known: Sequence[KnownKey], nonce: bytes, role: bytes, port: int) -> None:
        self._place = place
        self._port = port
        self._known = known
        self._mine = make_opening(place, known, role, nonce)
        self._theirs: Opening | None = None
        self._role = role
        self._data = bytearray()

    @property
    def rest(self) -> bytes:
        """What the other side has sent after its proof."""
        return bytes(self._data)

    @property
    def begun(self) -> bool:
        """Whether a byte of the other side has come that belongs to an opening."""
        return self._theirs is not None or bool(self._data)

    def _take_opening(self) -> Opening | None:
        try:
            found = framing.decode_opening(self._data)
        except WireError as error:
            raise HandshakeError(HandshakeFault.STRANGER, str(error)) from None
        if found is None:
            return None
        opening, end = found
        del self._data[:end]
        return opening

    def _keys(self, secret: bytes, listening: Opening, connecting: Opening, data: bytes) -> tuple[bytes, bytes, bytes]:
        """The key of the connecting side's direction; then what the other direction's is made of."""
        # A relay on the leader's node listens on another port than the leader.
        port = str(self._port).encode()
        said = framing.digest(listening.encode(), connecting.encode(), data, self._place, port)
        salt = listening.nonce + connecting.nonce
        return framing.hkdf(secret, salt, b"hpc-launch 1 " + CONNECTING + said), salt, said


def _answering_key(secret: bytes, salt: bytes, said: bytes, proof: bytes) -> bytes:
    """The key of the listening side's direction: it depends on the connecting side's proof too."""
    return framing.hkdf(secret, salt, b"hpc-launch 1 " + LISTENING + framing.digest(said, proof))


class ConnectingSide(HandshakeMachine):
    """The connecting side.

    Args:
        place: the id key of the place.
        known: what this side has, strongest first.
        nonce: fresh random bytes.
        hello: what the upper layer says first.
        port: the port of the listening side; 0 if it has none.
    """

    def __init__(self, place: bytes, known: Sequence[KnownKey], nonce: bytes, hello: bytes, *, port: int = 0) -> None:
        if len(hello) > framing.MAX_HELLO:
            raise ValueError(f"a hello of {len(hello)} bytes, more than {framing.MAX_HELLO}")
        super().__init__(place, known, nonce, CONNECTING, port)
        self._hello = hello
        self._keyed: tuple[Sealer, Opener] | None = None
        self.chosen: KnownKey | None = None
        """The key that both have, once the other side's opening has come."""
        self.refusal = b""
        """What to send before hanging up, where the handshake failed: the other side learns why."""

    def feed(self, data: bytes) -> None:
        """Take what has come until a key is chosen; then `prove` follows.

        Raises:
            HandshakeError: if no handshake is possible.
        """
        self._data += data
        if self._theirs is not None:
            return
        self._theirs = self._take_opening()
        if self._theirs is not None:
            self.refusal = self._mine.encode()
            self.chosen = _check_opening(self._theirs, self._place, self._known, LISTENING)

    def prove(self, secret: bytes, method_data: bytes = b"") -> bytes:
        """What to send: this side's opening with the chosen key, and its proof.

        Args:
            secret: the chosen key's, or what the method has made.
            method_data: by which the other side gets the same.
        """
        if self.chosen is None or self._theirs is None:
            raise RuntimeError("nothing is chosen yet")
        self._mine = make_opening(self._place, [self.chosen], CONNECTING, self._mine.nonce)
        data = framing.encode_method_data(method_data)
        key, salt, said = self._keys(secret, self._theirs, self._mine, data)
        sealer = Sealer(key)
        proof = sealer.seal(FrameKind.PROOF, self._hello)
        self._keyed = sealer, Opener(_answering_key(secret, salt, said, proof))
        return self._mine.encode() + data + proof

    def answered(self, data: bytes) -> tuple[ConnectionKeys, bytes, bool] | None:
        """Take what has come after the proof; gives the channel, the answer, and whether the other side stays.

        Raises:
            HandshakeError: if the other side does not prove that it has the key.
        """
        if self._keyed is None:
            raise RuntimeError("nothing was proved yet")
        self._data += data
        sealer, opener = self._keyed
        try:
            found = opener.open(self._data, longest=framing.MAX_ANSWER + 1)
        except WireError as error:
            raise HandshakeError(HandshakeFault.STRANGER, f"no proof: {error}") from None
        if found is None:
            return None
        frame, end = found
        if frame.kind is not FrameKind.PROOF or frame.payload[:1] not in (b"\x00", b"\x01"):
            raise HandshakeError(HandshakeFault.STRANGER, "no proof: another frame")
        del self._data[:end]
        return ConnectionKeys(sealer, opener), frame.payload[1:], frame.payload[:1] == b"\x01"


@dataclass(frozen=True)
class Credential:
    """A method's data of the connecting side, from which somebody outside has to make the key."""

    data: bytes


@dataclass(frozen=True)
class PeerProof:
    """The other side has proved that it has the key.

    Attributes:
        hello: what its upper layer says first.
    """

    hello: bytes


class ListeningSide(HandshakeMachine):
    """The listening side.

    Args:
        place: the id key of the place.
        known: what this side has, strongest first.
        nonce: fresh random bytes.
        port: the port where it listens; 0 if there is none.
    """

    def __init__(self, place: bytes, known: Sequence[KnownKey], nonce: bytes, *, port: int = 0) -> None:
        super().__init__(place, known, nonce, LISTENING, port)
        self._chosen: KnownKey | None = None
        self._secret: bytes | None = None
        self._method_data: bytes | None = None
        self._channel: ConnectionKeys | None = None

    @property
    def greeting(self) -> bytes:
        """What to send first."""
        return self._mine.encode()

    def feed(self, data: bytes) -> Credential | PeerProof | None:
        """Take what has come.

        Returns:
            A credential from which to make a key for `supply`; or the other side's proof; or None while more must come.

        Raises:
            HandshakeError: if the other side is a stranger, or speaks another protocol, or has no secret in common.
        """
        self._data += data
        try:
            return self._advance()
        except WireError as error:
            raise HandshakeError(HandshakeFault.STRANGER, f"no proof: {error}") from None

    def supply(self, secret: bytes) -> Credential | PeerProof | None:
        """Take the key that a credential has given, and go on."""
        self._secret = secret
        return self.feed(b"")

    def _advance(self) -> Credential | PeerProof | None:
        if self._theirs is None:
            self._theirs = self._take_opening()
            if self._theirs is None:
                return None
            self._chosen = _check_opening(self._theirs, self._place, self._known, CONNECTING)
            self._secret = self._chosen.secret
        if self._method_data is None:
            found = framing.decode_method_data(self._data, 0)
            if found is None:
                return None
            self._method_data, end = found
            del self._data[:end]
            if self._secret is None:
                return Credential(self._method_data)
        if self._secret is None:
            return None  # the key is being made
        return self._check_proof(self._theirs, self._secret, framing.encode_method_data(self._method_data))

    def _check_proof(self, theirs: Opening, secret: bytes, data: bytes) -> PeerProof | None:
        key, salt, said = self._keys(secret, self._mine, theirs, data)
        opener = Opener(key)
        opened = opener.open(self._data, longest=framing.MAX_HELLO)
        if opened is None:
            return None
        frame, end = opened
        if frame.kind is not FrameKind.PROOF:
            raise WireError("another frame")
        answering = _answering_key(secret, salt, said, bytes(self._data[:end]))
        del self._data[:end]
        self._channel = ConnectionKeys(Sealer(answering), opener)
        return PeerProof(frame.payload)

    def answer(self, answer: bytes, *, stay: bool) -> tuple[ConnectionKeys, bytes]:
        """The channel, and what to send: this side's proof with the upper layer's answer."""
        if self._channel is None:
            raise RuntimeError("nothing was proved yet")
        if len(answer) > framing.MAX_ANSWER:
            raise ValueError(f"an answer of {len(answer)} bytes, more than {framing.MAX_ANSWER}")
        return self._channel, self._channel.sealer.seal(FrameKind.PROOF, bytes([stay]) + answer)
