"""Words for bash come out as they went in."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings, strategies as st

from hpc_launch.submission.quoting import word, words

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
