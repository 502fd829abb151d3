"""A table for a person: columns as wide as they have to be, rows in colours. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_launch.inspection.terminal_colours import TerminalColours


def table_lines(
    names: Sequence[str], rows: Sequence[Sequence[str]], colours: Sequence[str], paint: TerminalColours
) -> list[str]:
    """The lines of a table; columns in which no row has anything are left out.

    Args:
        names: of the columns.
        rows: a cell for each column.
        colours: of each row.
        paint: paints.
    """
    cells = [names, *rows]
    used = [at for at in range(len(names)) if any(row[at] for row in rows)]
    widths = {at: max(len(row[at]) for row in cells) for at in used}
    lines = ["  ".join(f"{row[at]:{widths[at]}}" for at in used).rstrip() for row in cells]
    return [paint(line, colour) for line, colour in zip(lines, ["dim", *colours], strict=True)]
