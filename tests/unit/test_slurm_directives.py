"""`#SBATCH` lines: what is written is read back, and read as sbatch reads it."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from hpc_launch.slurm import directives


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_what_a_line_has_is_what_was_meant(value: str) -> None:
    """A value is in one #SBATCH line, and is read back; or it is said that no line can have it."""
    line = directives.write("job-name", value)
    if line is None:
        assert not value.isprintable()
    else:
        assert "\n" not in line
        assert directives.read(line) == [("job-name", value)]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("2", "#SBATCH --x=2"),
        ("", "#SBATCH --x"),
        ("%x-%A_%a.out", "#SBATCH --x=%x-%A_%a.out"),
        ("gpu[1-3,5]", "#SBATCH --x=gpu[1-3,5]"),
        ("two words", '#SBATCH --x="two words"'),
        ('a"b\\c#', '#SBATCH --x="a\\"b\\\\c#"'),
        ("a\nb", None),
        ("x" * 5000, None),
    ],
)
def test_lines_stay_readable(value: str, line: str | None) -> None:
    """What needs no quotes has none."""
    assert directives.write("x", value) == line


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("#SBATCH --nodes=4", [("nodes", "4")]),
        ("#SBATCH --nodes 4 --requeue --mem 16G", [("nodes", "4"), ("requeue", ""), ("mem", "16G")]),
        ("#SBATCH -N 4 -J name -n8 -k", [("nodes", "4"), ("job-name", "name"), ("ntasks", "8"), ("no-kill", "")]),
        ("#SBATCH\t-t 10", [("time", "10")]),
        (r"""#SBATCH --x="a b"c -J e\ f --y='g#h' # not --this""", [("x", "a bc"), ("job-name", "e f"), ("y", "g#h")]),
        ("#SBATCH # nothing", []),
        ("##SBATCH --nodes=4", []),
        ("#SBATCH--nodes=4", []),
        (" #SBATCH --nodes=4", []),
        ("srun true", []),
    ],
)
def test_a_line_is_read_as_sbatch_reads_it(line: str, options: list[tuple[str, str]]) -> None:
    """Quotes are taken away, a backslash takes the next character as it is, # begins a comment; letters have names."""
    assert directives.read(line) == options


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('#SBATCH --x="a', 'a quote is not closed: "'),
        ("#SBATCH requeue", "no option: requeue"),
        ("#SBATCH --comment=two words", "no option: words"),
        ("#SBATCH -Z 4", "no option: -Z"),
        ("#SBATCH -- x", "no option: --"),
    ],
)
def test_what_cannot_be_read_is_named(line: str, why: str) -> None:
    """sbatch would refuse it, or read something else."""
    with pytest.raises(ValueError, match=why):
        directives.read(line)


@pytest.mark.parametrize(
    ("script", "number"),
    [("", 0), ("#!/bin/bash\n\n  # so\n#SBATCH -N 1\n", 4), ("#!/bin/bash\nsrun x\n#SBATCH -N 1\n", 1)],
)
def test_where_sbatch_stops_reading(script: str, number: int) -> None:
    """At the first command; comments and blank lines are none."""
    assert directives.end_of_head(script.splitlines()) == number
