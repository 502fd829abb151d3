"""Commands that differ between the tasks of one run by the task's own numbers. Pure.

`srun sh -c 'hpc-launch train.py --shard $SLURM_PROCID'` starts one run, although each task types another command. Two
trainings in one step type different commands as well, and must never meet. So commands are compared word by word: two
words are the same run's if they are equal, or if each holds a variable of its own task (its rank, its node) in the same
place.

What an agent sends is short: a digest of each word, and the text of those words only that hold such a value.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The variables that scripts put into commands, and the node's own name for itself (`hostname`).
_VARIABLES = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURMD_NODENAME")

# Longer commands are compared as a whole.
_MOST_WORDS, _LONGEST_WORD, _LONGEST_TEXTS = 80, 100, 300
_DIGITS = 6


@dataclass(frozen=True)
class Command:
    """A command as one task has typed it.

    Attributes:
        digests: of each word; none where the command is compared as a whole.
        texts: the words that hold a value of this task, by their position as text.
        task: the values of the task's variables, in a fixed order; empty where one is unset.
    """

    digests: tuple[str, ...] = ()
    texts: Mapping[str, str] | None = None
    task: tuple[str, ...] = ()


WHOLE = Command()
"""A command that is compared as a whole."""


def command_of(words: Sequence[str], environ: Mapping[str, str], host: str) -> Command:
    """Describe a command.

    Args:
        words: the working directory and the command.
        environ: the environment of the task.
        host: this node's name for itself.
    """
    task = (*(environ.get(name, "") for name in _VARIABLES), host)
    texts = {str(number): word for number, word in enumerate(words) if _holds(word, task)}
    short = (
        all(len(word) <= _LONGEST_WORD for word in texts.values()) and sum(map(len, texts.values())) <= _LONGEST_TEXTS
    )
    if len(words) > _MOST_WORDS or not short:
        return WHOLE
    return Command(tuple(map(_digest, words)), texts, task)


def similar(one: Command, other: Command) -> bool:
    """Whether two commands differ by values of their tasks only."""
    if not one.digests or len(one.digests) != len(other.digests):
        return False
    different = [
        number for number, (mine, its) in enumerate(zip(one.digests, other.digests, strict=True)) if mine != its
    ]
    return all(_same_pattern(one, other, str(number)) for number in different)


def _same_pattern(one: Command, other: Command, position: str) -> bool:
    mine, its = (one.texts or {}).get(position), (other.texts or {}).get(position)
    if mine is None or its is None:
        return False
    return any(
        a and b and _holds(mine, (a,)) and _pattern(mine, a) == _pattern(its, b)
        for a, b in zip(one.task, other.task, strict=False)
    )


def _holds(word: str, values: Sequence[str]) -> bool:
    return any(value and re.search(_bounded(value), word) for value in values)


def _pattern(word: str, value: str) -> str:
    """A word with a mark in the place of a value."""
    return re.sub(_bounded(value), "\0", word)


def _bounded(value: str) -> str:
    """A value that is no part of a longer number or name."""
    return rf"(?<![0-9A-Za-z]){re.escape(value)}(?![0-9A-Za-z])"


def _digest(word: str) -> str:
    return hashlib.sha256(word.encode(errors="surrogateescape")).hexdigest()[:_DIGITS]
