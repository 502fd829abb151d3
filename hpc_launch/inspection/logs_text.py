"""Lines of workers for people, and for programs. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable

from hpc_launch import ranges
from hpc_launch.inspection.line_folding import FoldedLine
from hpc_launch.inspection.log_reader import LogLine
from hpc_launch.inspection.terminal_colours import TerminalColours
from hpc_launch.records import formatting
from hpc_launch.settings import Streams
from hpc_launch.text import date_and_time

# Ranks have the colours in turn, so that neighbours differ.
_COLOURS = ("cyan", "green", "yellow", "blue", "magenta")

_NAMES = {Streams.OUT: "stdout", Streams.ERR: "stderr"}


def logs_as_text(lines: Iterable[LogLine], paint: TerminalColours, *, times: bool = False) -> str:
    """Lines as the console has them: `[host:rank] line`, stderr's with a red bracket."""
    prefixes: dict[tuple[str, int, Streams], str] = {}
    found = []
    for line in lines:
        key = line.host, line.rank, line.stream
        prefix = prefixes.get(key)
        if prefix is None:
            colour = "red" if line.stream is Streams.ERR else _COLOURS[line.rank % len(_COLOURS)]
            prefix = prefixes[key] = paint(f"[{line.host}:{line.rank}]", colour)
        found.append(f"{f'{date_and_time(line.time)} ' if times else ''}{prefix} {line.text}\n")
    return "".join(found)


def folded_as_text(lines: Iterable[FoldedLine], paint: TerminalColours, *, times: bool = False) -> str:
    """Folded lines: `[gpu[001-004] ranks 0-31] line`; of one rank, as without folding."""
    return "".join(_folded(line, paint, times=times) for line in lines)


def _folded(line: FoldedLine, paint: TerminalColours, *, times: bool) -> str:
    hosts = formatting.fold_hosts(line.ranks.values())
    ranks = ranges.fold(line.ranks)
    label = f"[{hosts}:{ranks}]" if len(line.ranks) == 1 else f"[{hosts} ranks {ranks}]"
    colour = "red" if line.stream is Streams.ERR else "cyan"
    return f"{f'{date_and_time(line.time)} ' if times else ''}{paint(label, colour)} {line.text}\n"


def logs_as_json(lines: Iterable[LogLine]) -> str:
    """Lines as JSON, an object a line."""
    return "".join(
        json.dumps(
            {
                "time": round(line.time, 3),
                "attempt": line.attempt,
                "host": line.host,
                "rank": line.rank,
                "stream": _NAMES[line.stream],
                "text": line.text,
            }
        )
        + "\n"
        for line in lines
    )
