"""The arguments of an array's tasks, written into a job script and read back."""

from __future__ import annotations

from pathlib import Path

from hpc_launch.slurm.array_points import point_line, read_points
from hpc_launch.submission import quoting

# What bash has to be given in quotes, or as $'...'.
WORDS = (
    "--lr",
    "1e-3",
    "",
    "two words",
    "it's",
    'a"b',
    "$x `y`",
    "new\nline",
    "tab\t\\n\r",
    "größe 数",
    "\udcff\x01",
    "';;'",
)


def test_what_is_written_is_read_back() -> None:
    """Whatever the words are; a line of something else is none."""
    points = [WORDS, ("--seed", "2"), tuple(reversed(WORDS))]
    lines = [point_line(number, quoting.words(words)) for number, words in enumerate(points)]
    script = "\n".join(['case "$SLURM_ARRAY_TASK_ID" in', *lines, "    *) exit 2 ;;", "esac", "    7) true ;;", ""])

    assert read_points(script) == dict(enumerate(points))


def test_the_template_is_read() -> None:
    """A person edits these lines: what is no word of bash costs its point only."""
    script = (Path(__file__).parents[2] / "sbatch_templates/array.sbatch").read_text()
    broken = script.replace("3) point=(--lr 1e-4 --seed 2)", "3) point=(--lr 'x)")

    assert read_points(script)[3] == ("--lr", "1e-4", "--seed", "2")
    assert sorted(read_points(broken)) == [0, 1, 2]


def test_a_script_without_points() -> None:
    assert read_points("#!/bin/bash\nsrun hpc-launch train.py\n") == {}
