"""Words as bash reads them. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

# What bash's $'...' has a letter for, besides numbers.
_LETTERS = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\\": r"\\", "'": r"\'"}


def word(text: str) -> str:
    """A word for bash, in one line: what is not printed comes as `$'...'`, bytes that are no text too."""
    if text.isprintable():
        return shlex.quote(text)
    parts = (
        _LETTERS.get(character)
        or (character if character.isprintable() else "".join(f"\\x{byte:02x}" for byte in _bytes(character)))
        for character in text
    )
    return f"$'{''.join(parts)}'"


def words(texts: Iterable[str]) -> str:
    """Words for bash, in one line."""
    return " ".join(map(word, texts))


def _bytes(character: str) -> bytes:
    return character.encode("utf-8", "surrogateescape")
