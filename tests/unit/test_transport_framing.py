"""The bytes of a connection: the frozen first frame, and frames that are authenticated."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, strategies as st

from hpc_launch.rendezvous.transport import framing
from hpc_launch.rendezvous.transport.framing import Frame, FrameKind, Offer, Opener, Opening, Sealer, WireError

KEY = bytes(range(32))
PAYLOADS = st.lists(
    st.tuples(st.sampled_from([FrameKind.CONTROL, FrameKind.BULK]), st.binary(max_size=300)), max_size=8
)

openings = st.builds(
    Opening,
    st.integers(0, 2**16 - 1),
    st.binary(min_size=32, max_size=32),
    st.lists(st.builds(Offer, st.integers(0, 255), st.binary(min_size=16, max_size=16)), max_size=8).map(tuple),
)


def test_the_first_frame_is_frozen() -> None:
    """Every version writes these bytes, in this order."""
    opening = Opening(1, bytes(range(32)), (Offer(3, b"i" * 16),))

    assert opening.encode() == b"\x8bhpcl\r\n\x00" + b"\x00\x01" + bytes(range(32)) + b"\x01" + b"\x03" + b"i" * 16


@given(openings, st.binary(max_size=100))
def test_a_first_frame_is_read_as_it_was_written(opening: Opening, rest: bytes) -> None:
    """Whatever follows it is left."""
    data = opening.encode()

    assert framing.decode_opening(data + rest) == (opening, len(data))


@given(openings, st.data())
def test_a_first_frame_is_waited_for_to_its_end(opening: Opening, data: st.DataObject) -> None:
    """A part of it is no error."""
    encoded = opening.encode()
    part = encoded[: data.draw(st.integers(0, len(encoded) - 1))]

    assert framing.decode_opening(part) is None


@given(st.binary(min_size=1, max_size=300).filter(lambda data: data[:1] != framing.MAGIC[:1]))
def test_another_protocol_is_known_by_its_first_byte(data: bytes) -> None:
    """What begins otherwise is refused at once."""
    with pytest.raises(WireError):
        framing.decode_opening(data)


def test_a_first_frame_with_too_many_offers_is_refused() -> None:
    """The number of offers says how much is read."""
    with pytest.raises(WireError):
        framing.decode_opening(framing.MAGIC + b"\x00\x01" + bytes(32) + b"\x09")


@given(st.binary(max_size=300))
def test_bytes_are_a_first_frame_or_refused(data: bytes) -> None:
    """Nothing else happens, whatever they are."""
    try:
        found = framing.decode_opening(data)
    except WireError:
        found = None

    assert found is None or found[0].encode() == data[: found[1]]


def sealed(frames: list[tuple[FrameKind, bytes]], key: bytes = KEY) -> list[bytes]:
    sealer = Sealer(key)
    return [sealer.seal(kind, payload) for kind, payload in frames]


def opened(data: bytes, key: bytes = KEY) -> list[Frame]:
    """Open all frames; raises at the first that is not authentic."""
    opener, frames, begin = Opener(key), [], 0
    while (found := opener.open(data, begin)) is not None:
        frame, begin = found
        frames.append(frame)
    return frames


@given(PAYLOADS)
def test_frames_are_opened_as_they_were_sealed(frames: list[tuple[FrameKind, bytes]]) -> None:
    """In their order, with their kinds."""
    assert opened(b"".join(sealed(frames))) == [Frame(kind, payload) for kind, payload in frames]


@given(PAYLOADS.filter(bool), st.data())
def test_a_flipped_bit_is_noticed(frames: list[tuple[FrameKind, bytes]], data: st.DataObject) -> None:
    """Wherever it is, no frame that was changed passes."""
    stream = bytearray(b"".join(sealed(frames)))
    place = data.draw(st.integers(0, 8 * len(stream) - 1))
    stream[place // 8] ^= 1 << place % 8
    good = [Frame(kind, payload) for kind, payload in frames]
    passed, opener, begin = [], Opener(KEY), 0
    try:
        while (found := opener.open(stream, begin)) is not None:
            frame, begin = found
            passed.append(frame)
    except WireError:
        pass

    assert (begin <= place // 8, passed) == (True, good[: len(passed)])


@given(PAYLOADS.filter(lambda frames: len(frames) > 1), st.data())
def test_frames_in_another_order_are_noticed(frames: list[tuple[FrameKind, bytes]], data: st.DataObject) -> None:
    """Each has its place."""
    order = data.draw(st.permutations(range(len(frames))).filter(lambda order: list(order) != sorted(order)))
    pieces = sealed(frames)

    with pytest.raises(WireError, match="not authentic"):
        opened(b"".join(pieces[i] for i in order))


def test_a_repeated_frame_is_noticed() -> None:
    """The counter has gone on."""
    (frame,) = sealed([(FrameKind.CONTROL, b"once")])

    with pytest.raises(WireError, match="not authentic"):
        opened(frame + frame)


def test_a_frame_of_another_key_is_noticed() -> None:
    """Each direction of each connection has its own."""
    with pytest.raises(WireError, match="not authentic"):
        opened(b"".join(sealed([(FrameKind.CONTROL, b"mine")], key=bytes(32))))


def test_a_truncated_frame_is_waited_for() -> None:
    """It is no frame yet."""
    (frame,) = sealed([(FrameKind.CONTROL, b"payload")])

    assert [opened(frame[:length]) for length in range(len(frame))] == [[]] * len(frame)


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (FrameKind.PROOF, framing.MAX_ANSWER + 2),
        (FrameKind.CONTROL, framing.MAX_CONTROL + 1),
        (FrameKind.BULK, framing.MAX_BULK + 1),
        (3, 0),
        (255, 1),
        (FrameKind.CONTROL, 2**32 - 1),
    ],
)
def test_a_frame_is_refused_by_its_head(kind: int, length: int) -> None:
    """What is too long, or of no kind, is not waited for."""
    with pytest.raises(WireError):
        opened(length.to_bytes(4, "big") + bytes([kind]))


@given(st.binary(max_size=400))
def test_bytes_of_a_stranger_pass_as_no_frame(data: bytes) -> None:
    """Whatever they are."""
    try:
        frames = opened(data)
    except WireError:
        frames = []

    assert frames == []


def test_the_longest_frames_pass() -> None:
    """The limits are those of what is sent."""
    frames = [(FrameKind.CONTROL, bytes(framing.MAX_CONTROL)), (FrameKind.BULK, bytes(framing.MAX_BULK))]

    assert [len(frame.payload) for frame in opened(b"".join(sealed(frames)))] == [framing.MAX_CONTROL, framing.MAX_BULK]


def test_keys_are_derived_as_rfc_5869_has_it() -> None:
    """The first 32 bytes of its first test case."""
    key = framing.hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)))

    assert key.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5), max_size=4))
def test_a_digest_tells_parts_apart(some: list[bytes], others: list[bytes]) -> None:
    """Two lists of parts have the same digest only if they are the same."""
    assert (framing.digest(*some) == framing.digest(*others)) == (some == others)


def test_an_id_names_a_key_on_one_connection_and_in_one_role() -> None:
    """Another nonce, another role and another key give other ids."""
    nonces = os.urandom(32), os.urandom(32)
    ids = {
        framing.salted_id(key, role, nonce)
        for key in (KEY, bytes(32))
        for role in (b"one", b"other")
        for nonce in nonces
    }

    assert len(ids) == 8
