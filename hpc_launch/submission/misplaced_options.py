"""Options of `submit` that stand after the training script, where they would be the script's. Pure.

A training script may have an option of the same name (`--output`), and then its text names it. The words by which
nothing would be submitted are refused nevertheless: a job that nobody wanted costs more than one word more.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence

from hpc_launch.errors import UsageError

SEPARATOR = "--"
"""After this word everything is the script's."""

# Of whoever writes these, nobody wants a job.
_NO_JOB = frozenset({"--dry-run", "--test-only", "--help", "-h"})

_SHELL = re.compile(r"#!.*[/ ](ba|da|k|z)?sh\b")
_DIRECTIVE = re.compile(r"^#SBATCH\s", re.MULTILINE)


def script_arguments(script: str, words: Sequence[str], options: Collection[str], text: str) -> tuple[str, ...]:
    """The arguments of a training script: the words after it, without a `--` that they begin with.

    Args:
        script: the training script.
        words: what follows it.
        options: the long options of `submit` that concern the submission.
        text: of the script; empty where it cannot be read here.

    Raises:
        UsageError: one of the words is an option of `submit`.
    """
    for word in itertools.takewhile(lambda word: word != SEPARATOR, words):
        typed = word.partition("=")[0]
        name = typed.replace("_", "-")
        if name in _NO_JOB or (name in options and not _has_option(text, name)):
            raise UsageError(
                f"{typed} stands after {script}: put an option of submit before {script}, or write "
                f"'submit {script} -- {typed}' if it is the script's own",
                option=name,
            )
    return tuple(words[1:] if words and words[0] == SEPARATOR else words)


def refuse_job_script(script: str, text: str) -> None:
    """See that a training script is none of the scripts that sbatch takes: Python would be given it on every rank.

    Raises:
        UsageError: it is one.
    """
    if _SHELL.match(text) and _DIRECTIVE.search(text):
        raise UsageError(
            f"{script} is a job script, with #SBATCH lines, and not a training script: 'sbatch {script}' submits it "
            "as it is; --template takes a file to make a job script from",
            option="--template",
        )


def _has_option(text: str, name: str) -> bool:
    """Whether a script has an option: as a string of Python that begins so, or as a case of a shell's."""
    spelled = name.replace("-", "[-_]").replace("[-_][-_]", "--", 1)
    return re.search(rf"""(?:["'|]|^\s*){spelled}(?=["'/=)|])""", text, re.MULTILINE) is not None
