"""Messages as they are read; and one as a text of its own, for what agents leave for each other under a name. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from hpc_launch import codec
from hpc_launch.codec import CodecError
from hpc_launch.rendezvous.transport.peer_faults import MessageError

_Word = TypeVar("_Word", bound="Message")


def decode(data: bytes, kinds: Mapping[str, type]) -> Any:
    """Read a message of one of these kinds, by name.

    Raises:
        MessageError: for anything else.
    """
    try:
        return codec.decode(data, kinds)
    except CodecError as error:
        raise MessageError(str(error)) from None


@dataclass(frozen=True)
class Message:
    """Something that agents share as a text, and read as a kind that both know."""

    def encode(self) -> str:
        """The text."""
        return codec.write(self)

    @classmethod
    def decode(cls: type[_Word], data: str | bytes) -> _Word:  # noqa: PYI019 - Self is in typing from 3.11 on
        """The value of a text; fields of a newer version are passed over.

        Raises:
            MessageError: when it is not one.
        """
        try:
            return codec.read(cls, data)
        except CodecError as error:
            raise MessageError(str(error)) from None
