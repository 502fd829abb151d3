"""`#SBATCH` lines: options in a job script, as sbatch reads them (sbatch(1)). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_LINE = re.compile(r"#SBATCH\s(.*)")

# What sbatch's letters stand for.
LETTERS = {
    "A": "account",
    "B": "extra-node-info",
    "C": "constraint",
    "D": "chdir",
    "F": "nodefile",
    "G": "gpus",
    "H": "hold",
    "I": "immediate",
    "J": "job-name",
    "L": "licenses",
    "M": "clusters",
    "N": "nodes",
    "O": "overcommit",
    "Q": "quiet",
    "S": "core-spec",
    "W": "wait",
    "a": "array",
    "b": "begin",
    "c": "cpus-per-task",
    "d": "dependency",
    "e": "error",
    "i": "input",
    "k": "no-kill",
    "m": "distribution",
    "n": "ntasks",
    "o": "output",
    "p": "partition",
    "q": "qos",
    "s": "oversubscribe",
    "t": "time",
    "v": "verbose",
    "w": "nodelist",
    "x": "exclude",
}

_PLAIN = re.compile(r"[\w./:,=@%+\[\]*^|&-]*", re.ASCII)

# sbatch reads lines into buffers of 8 KB (BUFSIZ).
_LONGEST = 2000


def write(name: str, value: str) -> str | None:
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


def end_of_head(lines: Sequence[str]) -> int:
    """The number of the first line of a script that is a command: sbatch reads no options from there on."""
    commands = (number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#"))
    return next(commands, len(lines))


def read(line: str) -> list[tuple[str, str]]:
    """The options of a line by their long names, with their values; none where it is no `#SBATCH` line.

    Raises:
        ValueError: naming what is no option.
    """
    match = _LINE.match(line)
    return [*_options(_words(match[1]))] if match else []


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The options in the words of a line: `--name=value`, `--name value`, `-N 4`, `-N4`."""
    left = list(words)
    while left:
        word = left.pop(0)
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
        else:
            name, equals, value = LETTERS.get(word[1:2], "") if word.startswith("-") else "", "", word[2:]
        if not name:
            raise ValueError(f"no option: {word}")
        if not equals and not value and left and not left[0].startswith("-"):
            value = left.pop(0)
        yield name, value


def _words(text: str) -> list[str]:
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
