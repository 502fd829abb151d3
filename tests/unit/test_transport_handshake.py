"""Two machines prove to each other that they have the same secret; without sockets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import pytest
from hypothesis import given, settings, strategies as st

from hpc_launch.rendezvous.transport import framing
from hpc_launch.rendezvous.transport.framing import FrameKind, Offer, Opening
from hpc_launch.rendezvous.transport.handshake import (
    CONNECTING,
    LISTENING,
    ConnectingSide,
    ConnectionKeys,
    Credential,
    KeyMethod,
    KnownKey,
    ListeningSide,
    PeerProof,
    make_opening,
    place_key,
)
from hpc_launch.rendezvous.transport.peer_faults import HandshakeError, HandshakeFault
from tests.support import mentions

PLACE = place_key("cluster/1/0/0")


def known(text: str, method: KeyMethod = KeyMethod.SECRET) -> KnownKey:
    key = framing.hkdf(text.encode(), b"test", b"")
    return KnownKey(method, key, key)


COMMON = known("common")
MUNGE = KnownKey(KeyMethod.MUNGE, bytes(32), None)


def listening(*keys: KnownKey, place: bytes = PLACE) -> ListeningSide:
    return ListeningSide(place, keys or (COMMON,), os.urandom(32))


def connecting(*keys: KnownKey, place: bytes = PLACE, hello: bytes = b"hello") -> ConnectingSide:
    return ConnectingSide(place, keys or (COMMON,), os.urandom(32), hello)


@dataclass
class Meeting:
    """What became of a handshake that went well."""

    listening: ConnectionKeys
    connecting: ConnectionKeys
    hello: bytes
    answer: bytes
    stays: bool
    chosen: KnownKey


def meet(there: ListeningSide, here: ConnectingSide, *, answer: bytes = b"answer", stay: bool = True) -> Meeting:
    here.feed(there.greeting)
    assert here.chosen is not None
    assert here.chosen.secret is not None
    proved = there.feed(here.prove(here.chosen.secret))
    assert isinstance(proved, PeerProof)
    channel, proof = there.answer(answer, stay=stay)
    answered = here.answered(proof)
    assert answered is not None
    return Meeting(channel, answered[0], proved.hello, answered[1], answered[2], here.chosen)


def fault(there: ListeningSide, here: ConnectingSide) -> tuple[HandshakeFault, str]:
    """Let the connecting side fail."""
    with pytest.raises(HandshakeError) as raised:
        here.feed(there.greeting)
    return raised.value.fault, raised.value.words


def test_hello_and_answer_go_with_the_proofs() -> None:
    """So a round trip suffices once the listener has greeted."""
    met = meet(listening(), connecting(hello=b"I am 3"), answer=b"I am 0", stay=True)

    assert (met.hello, met.answer, met.stays) == (b"I am 3", b"I am 0", True)


def test_the_listening_side_may_turn_away() -> None:
    """The answer says so, and is authentic."""
    assert meet(listening(), connecting(), stay=False).stays is False


@pytest.mark.parametrize("size", [0, framing.MAX_HELLO])
def test_a_hello_may_have_any_size_up_to_the_limit(size: int) -> None:
    """It is read whole."""
    assert len(meet(listening(), connecting(hello=bytes(size))).hello) == size


def test_a_longer_hello_is_an_error_of_our_own() -> None:
    """Nothing is sent."""
    with pytest.raises(ValueError, match="hello"):
        connecting(hello=bytes(framing.MAX_HELLO + 1))


def test_a_longer_answer_is_an_error_of_our_own() -> None:
    """Nothing is sent."""
    there, here = listening(), connecting()
    here.feed(there.greeting)
    there.feed(here.prove(COMMON.secret or b""))

    with pytest.raises(ValueError, match="answer"):
        there.answer(bytes(framing.MAX_ANSWER + 1), stay=True)


def test_the_longest_answer_passes() -> None:
    """It is read whole."""
    assert len(meet(listening(), connecting(), answer=bytes(framing.MAX_ANSWER)).answer) == framing.MAX_ANSWER


def test_frames_go_both_ways_afterwards() -> None:
    """With one key for each direction."""
    met = meet(listening(), connecting())
    to, back = (
        met.connecting.sealer.seal(FrameKind.CONTROL, b"to"),
        met.listening.sealer.seal(FrameKind.CONTROL, b"back"),
    )
    there, here = met.listening.opener.open(to), met.connecting.opener.open(back)

    assert [found[0].payload for found in (there, here) if found is not None] == [b"to", b"back"]


def test_a_frame_that_comes_back_is_noticed() -> None:
    """A reflected frame has the key of the other direction."""
    met = meet(listening(), connecting())

    with pytest.raises(framing.WireError):
        met.connecting.opener.open(met.connecting.sealer.seal(FrameKind.CONTROL, b"echo"))


def test_the_listeners_order_decides() -> None:
    """Of several common keys the first that it offers is used."""
    one, other = known("one"), known("other", KeyMethod.KEY_FILE)

    assert meet(listening(other, one), connecting(one, other)).chosen == other


def test_equal_keys_match_wherever_they_come_from() -> None:
    """What one node has from the step another may have from the user."""
    met = meet(listening(known("same", KeyMethod.STEP_SECRET)), connecting(known("same", KeyMethod.SECRET)))

    assert met.chosen.method is KeyMethod.SECRET


def test_sides_without_a_common_secret_say_what_each_has() -> None:
    """The reason is one line."""
    there, here = listening(known("a"), known("b", KeyMethod.KEY_FILE)), connecting(known("c", KeyMethod.JOB_FILE))

    kind, words = fault(there, here)

    assert kind is HandshakeFault.NO_COMMON_SECRET
    assert re.search("HPC_LAUNCH_SECRET.* key file.* job directory", words)


def test_sides_with_different_values_of_a_secret_say_so() -> None:
    """Otherwise both would name the same."""
    assert fault(listening(known("a")), connecting(known("b")))[1].endswith("; HPC_LAUNCH_SECRET differs")


def test_the_listener_learns_that_there_is_no_common_secret() -> None:
    """The other side leaves its opening behind, which proves nothing."""
    there, here = listening(known("a")), connecting(known("b", KeyMethod.KEY_FILE))
    fault(there, here)

    with pytest.raises(HandshakeError, match=r"key file.* HPC_LAUNCH_SECRET"):
        there.feed(here.refusal)


def test_an_agent_of_another_place_is_a_stranger() -> None:
    """Another job of the same user, perhaps: both have other keys then."""
    elsewhere = place_key("cluster/2/0/0")

    assert fault(listening(known("x"), place=elsewhere), connecting(known("y")))[0] is HandshakeFault.STRANGER


def test_the_same_secret_in_another_place_proves_nothing() -> None:
    """The place is in the transcript, besides being in the keys."""
    there, here = listening(place=place_key("cluster/2/0/0")), connecting()
    here.feed(there.greeting)

    with pytest.raises(HandshakeError):
        there.feed(here.prove(COMMON.secret or b""))


@pytest.mark.parametrize("protocol", [0, 2, 65535])
def test_both_sides_name_another_version(protocol: int) -> None:
    """The frozen frame says which protocol a side speaks."""
    foreign = Opening(protocol, bytes(32), ()).encode()
    for machine in (listening(), connecting()):
        with pytest.raises(HandshakeError) as raised:
            machine.feed(foreign)

        assert raised.value.fault is HandshakeFault.VERSION
        assert mentions(raised.value.words, protocol, 1)


def test_a_key_that_is_only_claimed_is_noticed() -> None:
    """An id is copied easily; the proof needs the key."""
    there, here = listening(), connecting()
    here.feed(there.greeting)

    with pytest.raises(HandshakeError, match="not authentic"):
        there.feed(here.prove(bytes(32)))


def test_a_false_listener_is_noticed() -> None:
    """One that has copied the ids of a true one cannot answer."""
    there, here = listening(), connecting()
    here.feed(there.greeting)
    here.prove(COMMON.secret or b"")

    with pytest.raises(HandshakeError, match="not authentic"):
        here.answered(framing.Sealer(bytes(32)).seal(FrameKind.PROOF, b"\x01answer"))


def test_what_comes_back_is_no_opening_of_the_other_side() -> None:
    """Ids are salted with the role: a listener that gets its own opening knows none of them."""
    there = listening()

    with pytest.raises(HandshakeError) as raised:
        there.feed(there.greeting)

    assert raised.value.fault is HandshakeFault.STRANGER


def test_a_handshake_that_comes_back_is_noticed() -> None:
    """A proof that is reflected is none of the other side."""
    there, here = listening(), connecting()
    here.feed(there.greeting)
    sent = here.prove(COMMON.secret or b"")

    with pytest.raises(HandshakeError):
        here.answered(sent[-(5 + 5 + 16) :])


def test_a_recorded_handshake_is_of_no_use() -> None:
    """The listener's nonce is another one the next time."""
    there, here = listening(), connecting()
    here.feed(there.greeting)
    recorded = here.prove(COMMON.secret or b"")
    assert isinstance(there.feed(recorded), PeerProof)

    with pytest.raises(HandshakeError, match="not authentic"):
        listening().feed(recorded)


def test_a_recorded_answer_is_of_no_use() -> None:
    """The connecting side's nonce is another one the next time, even where the listener's were the same."""
    nonce = os.urandom(32)
    first = ListeningSide(PLACE, (COMMON,), nonce)
    here = connecting()
    here.feed(first.greeting)
    first.feed(here.prove(COMMON.secret or b""))
    _, answer = first.answer(b"answer", stay=True)
    again = connecting()
    again.feed(first.greeting)
    again.prove(COMMON.secret or b"")

    with pytest.raises(HandshakeError, match="not authentic"):
        again.answered(answer)


def test_a_fake_listener_cannot_join_two_handshakes() -> None:
    """A proof that was made for its opening is of no use with the true listener."""
    true, here = listening(), connecting()
    false = make_opening(PLACE, [COMMON], LISTENING, os.urandom(32))
    here.feed(false.encode())
    sent = here.prove(COMMON.secret or b"")

    with pytest.raises(HandshakeError, match="not authentic"):
        true.feed(sent)


def test_weaker_offers_cannot_be_forced_by_a_change() -> None:
    """Who takes the stronger offers out on the way changes what both keys depend on."""
    strong, weak = known("strong"), known("weak", KeyMethod.INSECURE)
    there, here = listening(strong, weak), connecting(strong, weak)
    opening = framing.decode_opening(there.greeting)
    assert opening is not None
    offers = opening[0].offers
    here.feed(Opening(opening[0].protocol, opening[0].nonce, (offers[0], offers[2])).encode())
    assert here.chosen == weak

    with pytest.raises(HandshakeError, match="not authentic"):
        there.feed(here.prove(weak.secret or b""))


@given(st.data())
@settings(max_examples=300)
def test_a_bit_that_is_flipped_on_the_way_breaks_a_handshake(data: st.DataObject) -> None:
    """In whichever of its three parts it is, no two sides believe each other then."""
    there, here = listening(), connecting()
    part = data.draw(st.sampled_from(["greeting", "proof", "answer"]))

    def passed(name: str, content: bytes) -> bytes:
        if name != part:
            return content
        place = data.draw(st.integers(0, 8 * len(content) - 1))
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        return bytes(changed)

    believed = False
    try:
        here.feed(passed("greeting", there.greeting))
        if here.chosen is not None and isinstance(
            there.feed(passed("proof", here.prove(COMMON.secret or b""))), PeerProof
        ):
            _, answer = there.answer(b"answer", stay=True)
            believed = here.answered(passed("answer", answer)) is not None
    except HandshakeError:
        pass

    assert not believed


@given(st.lists(st.integers(1, 60), max_size=40))
def test_a_handshake_may_come_in_pieces(lengths: list[int]) -> None:
    """Wherever the network cuts it."""

    def pieces(data: bytes) -> list[bytes]:
        found = []
        for length in lengths:
            found.append(data[:length])
            data = data[length:]
        return [*found, data]

    there, here = listening(), connecting()
    for piece in pieces(there.greeting):
        here.feed(piece)
    outcomes = [there.feed(piece) for piece in pieces(here.prove(COMMON.secret or b""))]
    proved = [outcome for outcome in outcomes if outcome is not None]
    _, answer = there.answer(b"answer", stay=True)
    answers = [here.answered(piece) for piece in pieces(answer)]
    answered = [one[1:] for one in answers if one is not None]

    assert (proved, answered) == ([PeerProof(b"hello")], [(b"answer", True)])


@given(st.binary(max_size=600))
@settings(max_examples=300)
def test_a_stranger_proves_nothing(garbage: bytes) -> None:
    """Whatever follows an opening with the right id."""
    there = listening()
    mine = make_opening(PLACE, [COMMON], CONNECTING, bytes(32))
    try:
        outcome = there.feed(mine.encode() + garbage)
    except HandshakeError:
        outcome = None

    assert outcome is None


def test_what_follows_a_proof_is_kept() -> None:
    """The first frames may come with it."""
    there, here = listening(), connecting()
    here.feed(there.greeting)
    there.feed(here.prove(COMMON.secret or b"") + b"more")

    assert there.rest == b"more"


def test_another_frame_than_a_proof_is_none() -> None:
    """Though it is authentic."""
    there, here = listening(), connecting()
    here.feed(there.greeting)
    here.prove(COMMON.secret or b"")
    assert here._keyed is not None
    theirs = make_opening(PLACE, [COMMON], CONNECTING, here._mine.nonce)
    frame = framing.Sealer(here._keyed[0]._key).seal(FrameKind.CONTROL, b"hello")

    with pytest.raises(HandshakeError, match="another frame"):
        there.feed(theirs.encode() + framing.encode_method_data(b"") + frame)


def test_a_credential_is_checked_elsewhere() -> None:
    """The listener goes on once it has the key."""
    there, here = listening(MUNGE), connecting(MUNGE)
    here.feed(there.greeting)
    first = there.feed(here.prove(b"k" * 32, b"MUNGE:...") + b"more")

    assert (first, there.supply(b"k" * 32), there.rest) == (Credential(b"MUNGE:..."), PeerProof(b"hello"), b"more")


def test_what_comes_while_a_credential_is_checked_waits() -> None:
    """It is neither lost nor taken for a credential."""
    there, here = listening(MUNGE), connecting(MUNGE)
    here.feed(there.greeting)
    sent = here.prove(b"k" * 32, b"credential")
    outcomes = [there.feed(sent[:-10]), there.feed(sent[-10:]), there.supply(b"k" * 32)]

    assert outcomes == [Credential(b"credential"), None, PeerProof(b"hello")]


def test_a_credential_with_another_key_proves_nothing() -> None:
    """As when somebody has put another credential in its place."""
    there, here = listening(MUNGE), connecting(MUNGE)
    here.feed(there.greeting)
    there.feed(here.prove(b"k" * 32, b"credential"))

    with pytest.raises(HandshakeError, match="not authentic"):
        there.supply(b"l" * 32)


def test_the_credential_is_in_the_transcript() -> None:
    """It cannot be exchanged for another with the same key."""
    there, here = listening(MUNGE), connecting(MUNGE)
    here.feed(there.greeting)
    there.feed(here.prove(b"k" * 32, b"one").replace(b"one", b"two"))

    with pytest.raises(HandshakeError, match="not authentic"):
        there.supply(b"k" * 32)


def test_a_credential_that_is_too_long_is_refused() -> None:
    """By its length alone."""
    there = listening(MUNGE)
    mine = make_opening(PLACE, [MUNGE], CONNECTING, bytes(32))

    with pytest.raises(HandshakeError, match="credential of 769 bytes"):
        there.feed(mine.encode() + (769).to_bytes(2, "big"))


def test_offers_have_no_room_for_more_than_a_first_frame_takes() -> None:
    """What is weakest is left out."""
    keys = [known(str(number)) for number in range(20)]

    assert len(make_opening(PLACE, keys, LISTENING, bytes(32)).offers) == framing.MAX_OFFERS


def test_offers_of_later_versions_are_passed_by() -> None:
    """An id that is not known here, of a method that is not known here, changes nothing."""
    there, here = listening(), connecting()
    opening = framing.decode_opening(there.greeting)
    assert opening is not None
    here.feed(Opening(1, opening[0].nonce, (Offer(200, bytes(16)), *opening[0].offers)).encode())

    assert here.chosen == COMMON


@given(openings=st.binary(max_size=400))
def test_no_bytes_do_more_than_fail(openings: bytes) -> None:
    """A machine raises HandshakeError, and nothing else."""
    words = []
    for machine in (listening(), connecting()):
        try:
            machine.feed(framing.MAGIC + openings)
        except HandshakeError as error:
            words.append(error.words)

    assert all(words)


def test_keys_are_not_shown() -> None:
    """Not in what is printed of them."""
    assert "key" not in repr(COMMON)
