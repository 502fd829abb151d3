"""Words for bash and values for #SBATCH lines come out as they went in."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings, strategies as st

from hpc_launch.submission.quoting import directive, undirected, word, words

# What a process can be given: any bytes but NUL, as Python shows them.
ANY_WORD = st.binary(max_size=20).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
NASTY = st.lists(
    st.one_of(ANY_WORD, st.text(st.sampled_from(" '\"$`\\\n\t!*?#%-=~{}[]();&|<>é数\u2028\x7f"), max_size=12)),
    max_size=6,
)
# Prints its arguments, with NULs between them.
SHOW = "import os, sys; os.write(1, b''.join(os.fsencode(w) + b'\\0' for w in sys.argv[1:]))"


@settings(max_examples=60)
@given(NASTY)
def test_bash_reads_words_as_they_are(texts: list[str]) -> None:
    """Any list of words goes through `set --` of a real bash unchanged, in one line of the script."""
    line = words(texts)
    script = f'set -euo pipefail\nset -- {line}\n{sys.executable} -c "$SHOW" "$@"\n'.encode("utf-8", "surrogateescape")
    done = subprocess.run(
        ["bash"], input=script, env={"SHOW": SHOW, "LC_ALL": "C.UTF-8"}, capture_output=True, check=True
    )

    assert "\n" not in line
    assert [part.decode("utf-8", "surrogateescape") for part in done.stdout.split(b"\0")[:-1]] == texts


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("train.py", "train.py"),
        ("1e-3", "1e-3"),
        ("two words", "'two words'"),
        ("", "''"),
        ("größe", "'größe'"),
        ("a\nb", r"$'a\nb'"),
        ("it's\t\\", r"$'it\'s\t\\'"),
        ("\u2028", r"$'\xe2\x80\xa8'"),
        ("\udcff", r"$'\xff'"),
    ],
)
def test_words_stay_readable(text: str, written: str) -> None:
    """What needs no quotes has none, and what is not printed is written in letters and numbers."""
    assert word(text) == written


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_what_a_line_has_is_what_was_meant(value: str) -> None:
    """A value is in one #SBATCH line, and is read back; or it is said that no line can have it."""
    line = directive("job-name", value)
    if line is None:
        assert not value.isprintable()
    else:
        assert "\n" not in line
        assert undirected(line.removeprefix("#SBATCH ")) == [f"--job-name={value}" if value else "--job-name"]


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
    assert directive("x", value) == line


def test_a_line_is_read_as_sbatch_reads_it() -> None:
    """Quotes are taken away, a backslash takes the next character as it is, # begins a comment."""
    assert undirected(r"""-N 4 --x="a b"c 'd' e\ f g#h # not --this""") == ["-N", "4", "--x=a bc", "d", "e f", "g#h"]
    with pytest.raises(ValueError, match="not closed"):
        undirected('--x="a')
