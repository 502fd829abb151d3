"""The bytes of a connection: the first frame of each side, frozen for ever, and the authenticated frames after it.

Everything here is pure.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum

MAGIC = b"\x8bhpcl\r\n\x00"
"""The first bytes of each side. No text protocol begins with the first byte, and transfers as text change the rest."""

PROTOCOL = 1
"""The protocol of this version, apart from the frozen frame, which all versions share."""

NONCE_BYTES = 32
ID_BYTES = 16
MAC_BYTES = 16
MAX_OFFERS = 8

MAX_HELLO = 3 << 10
"""The most bytes of an upper layer's `hello`."""
MAX_METHOD_DATA = 768
"""The most bytes of a method's own data: a credential of munge has some 300."""
MAX_ANSWER = 64 << 10
"""The most bytes of an upper layer's `answer`."""
MAX_CONTROL = 4 << 20
"""The most bytes of a control frame's payload."""
MAX_BULK = 64 << 10
"""The most bytes of a bulk frame's payload."""

_HEAD = struct.Struct(f">{len(MAGIC)}sH{NONCE_BYTES}sB")
_OFFER = struct.Struct(f">B{ID_BYTES}s")
_FRAME = struct.Struct(">IB")
_LENGTH = struct.Struct(">H")
_COUNTER = struct.Struct(">Q")

FRAME_OVERHEAD = _FRAME.size + MAC_BYTES
MAX_OPENING = _HEAD.size + MAX_OFFERS * _OFFER.size
MAX_PROOF = _LENGTH.size + MAX_METHOD_DATA + FRAME_OVERHEAD + MAX_HELLO


class WireError(ValueError):
    """The bytes are none of this protocol, or were changed on the way."""


@dataclass(frozen=True)
class Offer:
    """A salted id in the first frame: its owner has a key, a method or a place that the other side may know as well."""

    method: int
    id: bytes


@dataclass(frozen=True)
class Opening:
    """The first frame of a side. Its form never changes, whatever the protocol number says.

    Attributes:
        protocol: the number of the protocol that the side speaks.
        nonce: random bytes, fresh for each connection.
        offers: salted ids, at most `MAX_OFFERS`.
    """

    protocol: int
    nonce: bytes
    offers: tuple[Offer, ...]

    def encode(self) -> bytes:
        """The frame as bytes."""
        head = _HEAD.pack(MAGIC, self.protocol, self.nonce, len(self.offers))
        return head + b"".join(_OFFER.pack(offer.method, offer.id) for offer in self.offers)


def decode_opening(data: bytes | bytearray) -> tuple[Opening, int] | None:
    """The first frame and its length; None where more bytes are needed.

    Raises:
        WireError: if the bytes are no first frame of any version.
    """
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise WireError("it does not speak this protocol")
    if len(data) < _HEAD.size:
        return None
    _, protocol, nonce, count = _HEAD.unpack_from(data)
    if count > MAX_OFFERS:
        raise WireError(f"it offers {count} keys, more than {MAX_OFFERS}")
    end = _HEAD.size + count * _OFFER.size
    if len(data) < end:
        return None
    offers = tuple(Offer(*_OFFER.unpack_from(data, _HEAD.size + i * _OFFER.size)) for i in range(count))
    return Opening(protocol, nonce, offers), end


class FrameKind(IntEnum):
    """The kinds of authenticated frames."""

    PROOF = 0
    CONTROL = 1
    BULK = 2


_LONGEST = {FrameKind.PROOF: MAX_ANSWER + 1, FrameKind.CONTROL: MAX_CONTROL, FrameKind.BULK: MAX_BULK}


@dataclass(frozen=True)
class Frame:
    """A frame of a peer, authenticated."""

    kind: FrameKind
    payload: bytes


class Sealer:
    """The sending half of a direction: it numbers frames and authenticates them."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._counter = 0

    def seal(self, kind: FrameKind, payload: bytes) -> bytes:
        """A frame as bytes; frames must be sent in the order in which they were sealed."""
        head = _FRAME.pack(len(payload), kind)
        mac = _mac(self._key, self._counter, head + payload)
        self._counter += 1
        return b"".join((head, payload, mac))


class Opener:
    """The receiving half of a direction: a frame passes that is intact and in its place.

    Args:
        key: the direction's key.
        longest: the most bytes of a payload, where it is less than the kind allows.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._counter = 0

    def open(self, data: bytes | bytearray, begin: int = 0, *, longest: int = MAX_CONTROL) -> tuple[Frame, int] | None:
        """The frame that begins there, and where it ends; None where more bytes are needed.

        Args:
            data: the received bytes.
            begin: the place of the frame in them.
            longest: the most bytes of a payload, if it is less than the kind allows.

        Raises:
            WireError: if the frame was changed, repeated, moved or made by another, or is too long.
        """
        if len(data) - begin < _FRAME.size:
            return None
        length, number = _FRAME.unpack_from(data, begin)
        try:
            kind = FrameKind(number)
        except ValueError:
            raise WireError(f"a frame of unknown kind {number}") from None
        if length > min(_LONGEST[kind], longest):
            raise WireError(f"a frame of {length} bytes")
        middle = begin + _FRAME.size + length
        end = middle + MAC_BYTES
        if len(data) < end:
            return None
        with memoryview(data) as view:
            body, mac = bytes(view[begin:middle]), bytes(view[middle:end])
        if not hmac.compare_digest(mac, _mac(self._key, self._counter, body)):
            raise WireError("a frame that is not authentic")
        self._counter += 1
        return Frame(kind, body[_FRAME.size :]), end


def _mac(key: bytes, counter: int, body: bytes) -> bytes:
    return hmac.digest(key, _COUNTER.pack(counter) + body, "sha256")[:MAC_BYTES]


def encode_method_data(data: bytes) -> bytes:
    """A method's own data, with its length."""
    return _LENGTH.pack(len(data)) + data


def decode_method_data(data: bytes | bytearray, begin: int) -> tuple[bytes, int] | None:
    """A method's own data, and where it ends; None where more bytes are needed.

    Raises:
        WireError: if there is too much of it.
    """
    if len(data) - begin < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(data, begin)
    if length > MAX_METHOD_DATA:
        raise WireError(f"a credential of {length} bytes")
    end = begin + _LENGTH.size + length
    return (bytes(data[begin + _LENGTH.size : end]), end) if len(data) >= end else None


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """A key of 32 bytes derived from another (RFC 5869, one block)."""
    return hmac.digest(hmac.digest(salt, key, "sha256"), info + b"\x01", "sha256")


def digest(*parts: bytes) -> bytes:
    """A digest of parts, unambiguous as to where each ends."""
    state = hashlib.sha256()
    for part in parts:
        state.update(_COUNTER.pack(len(part)))
        state.update(part)
    return state.digest()


def salted_id(key: bytes, role: bytes, nonce: bytes) -> bytes:
    """The id of a key for one connection: it names the key to those that have it, and nothing to others."""
    return hmac.digest(key, b"id|" + role + b"|" + nonce, "sha256")[:ID_BYTES]
