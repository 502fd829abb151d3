"""A message as a text of its own, for what agents leave for each other under a name. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from hpc_launch.rendezvous import codec

_Word = TypeVar("_Word", bound="Message")


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
        return codec.read(cls, data)
