"""Colours, for terminals only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import IO, Any

from hpc_launch.text import visible

_CODES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}


class TerminalColours:
    """Writes words in colours, or leaves them as they are.

    Args:
        on: whether there are colours.
    """

    def __init__(self, on: bool = False) -> None:
        self.on = on

    def __call__(self, text: str, how: str) -> str:
        """A text in a colour (`_CODES`), or in none for an empty one; what a terminal would obey in it is shown."""
        shown = visible(text)
        return f"\x1b[{_CODES[how]}m{shown}\x1b[0m" if self.on and how and shown else shown


def for_stream(stream: IO[Any], environ: Mapping[str, str] = os.environ) -> TerminalColours:
    """The colours for a stream: none unless it is a terminal that has some (and none with NO_COLOR, no-color.org)."""
    return TerminalColours(stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb")
