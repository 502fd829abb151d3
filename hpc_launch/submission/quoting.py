"""Words as bash reads them, and values as sbatch reads them in `#SBATCH` lines. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

# What bash's $'...' has a letter for, besides numbers.
_LETTERS = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\\": r"\\", "'": r"\'"}

_PLAIN = re.compile(r"[\w./:,=@%+\[\]*^|&-]*", re.ASCII)

# sbatch reads lines into buffers of 8 KB (BUFSIZ).
_LONGEST = 2000


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


def directive(name: str, value: str) -> str | None:
    """The `#SBATCH` line of an option; None where such a line cannot have this value.

    sbatch takes quotes away there, and in and out of them a backslash before any character (22.05 to 24.11, tried); a
    `#` begins a comment. A line ends where it ends, whatever is quoted.

    Args:
        name: of the option, without dashes.
        value: empty for an option without one.
    """
    if not value:
        return f"#SBATCH --{name}"
    if not value.isprintable() or len(value) > _LONGEST:
        return None
    if not _PLAIN.fullmatch(value):
        value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH --{name}={value}"


def undirected(text: str) -> list[str]:
    """The words of what follows `#SBATCH`, read as sbatch reads them.

    Raises:
        ValueError: for a quote that is not closed.
    """
    found: list[str] = []
    current: str | None = None
    quote = ""
    characters = iter(text)
    for character in characters:
        if character == "\\":
            current = (current or "") + next(characters, "")
        elif quote:
            quote, current = ("", current) if character == quote else (quote, (current or "") + character)
        elif character in "\"'":
            quote, current = character, current or ""
        elif character.isspace():
            found += [] if current is None else [current]
            current = None
        elif character == "#" and current is None:
            break
        else:
            current = (current or "") + character
    if quote:
        raise ValueError(f"a quote is not closed: {quote}")
    return found + ([] if current is None else [current])


def _bytes(character: str) -> bytes:
    return character.encode("utf-8", "surrogateescape")
