"""Bytes that are no conversation of agents: what scanners, other programs and earlier versions send."""

from __future__ import annotations

import json
import random
import struct

from hpc_launch.rendezvous.transport import framing
from hpc_launch.rendezvous.transport.framing import FrameKind, Offer, Opening, Sealer

_NONCE = bytes(range(framing.NONCE_BYTES))
_OPENING = Opening(framing.PROTOCOL, _NONCE, (Offer(2, bytes(framing.ID_BYTES)),)).encode()
_NO_DATA = framing.encode_method_data(b"")
_HEAD = struct.Struct(">IB")


def _json(**facts: object) -> bytes:
    return json.dumps(facts).encode() + b"\n"


def _frame(length: int, kind: int) -> bytes:
    """The head of a frame behind an opening, with few bytes after it."""
    return _OPENING + _NO_DATA + _HEAD.pack(length, kind) + bytes(64)


KINDS: dict[str, bytes] = {
    "nothing": b"",
    "a zero": b"\x00",
    "a newline": b"\n",
    "many zeros": bytes(1 << 16),
    "random bytes": random.Random(1).randbytes(64),
    "many random bytes": random.Random(2).randbytes(1 << 16),
    "http": b"GET / HTTP/1.1\r\nHost: gpu001\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(193),
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "torch's store": b"\x09\xce\xf7\x85\x3c" + bytes(16),
    "utf-16": "ready".encode("utf-16"),
    "deep json": b"[" * 4000 + b"\n",
    "a long line": b"x" * 8192,
    "an old question": _json(run="1.0.0", agent=1, key="x"),
    "an old ready": _json(do="ready", caller={}),
    "an old stop": _json(do="ready") + _json(do="stop", end={"ending": "done", "agent": 0, "host": "x", "status": 0}),
    "half a magic": framing.MAGIC[:4],
    "a magic": framing.MAGIC,
    "a magic as text": framing.MAGIC.replace(b"\r\n", b"\n"),
    "magics": framing.MAGIC * 64,
    "half an opening": _OPENING[:30],
    "an opening": _OPENING,
    "openings": _OPENING * 8,
    "protocol 0": Opening(0, _NONCE, ()).encode(),
    "protocol 65535": Opening(65535, _NONCE, (Offer(2, bytes(framing.ID_BYTES)),)).encode(),
    "255 offers": _OPENING[: len(framing.MAGIC) + 2 + framing.NONCE_BYTES] + b"\xff" + bytes(4000),
    "offers of unknown methods": Opening(
        framing.PROTOCOL, _NONCE, tuple(Offer(200 + one, bytes(framing.ID_BYTES)) for one in range(framing.MAX_OFFERS))
    ).encode(),
    "a credential": _OPENING + framing.encode_method_data(b"MUNGE:AwQFAAC=:"),
    "a credential that is too long": _OPENING + framing.encode_method_data(bytes(65535)),
    "a frame of an unknown kind": _frame(8, 9),
    "a frame of four gigabytes": _frame((1 << 32) - 1, FrameKind.PROOF),
    "a frame without an end": _frame(framing.MAX_HELLO, FrameKind.PROOF),
    "another frame than a proof": _OPENING + _NO_DATA + Sealer(bytes(32)).seal(FrameKind.CONTROL, b"{}"),
    "a proof with a false mac": _OPENING + _NO_DATA + Sealer(bytes(32)).seal(FrameKind.PROOF, b"{}"),
}
"""What is said, by what it is."""
