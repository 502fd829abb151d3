"""What is wrong with a template: the places in it that break the contract, and what bash, shellcheck and Slurm say.

The contract is what makes a template one: `hpc-launch submit` can put another script and other options into it, and the
job that it starts ends with the right status, in time, and on every node.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpc_launch.errors import SlurmError, UsageError, reason
from hpc_launch.slurm import directives, leaks
from hpc_launch.submission import sbatch
from hpc_launch.submission.job_request import Submission
from hpc_launch.submission.templates import JobTemplate, summary

# What only the process that is a rank may say.
_OF_RANKS = re.compile(r"(?:(?:LOCAL_|GROUP_|ROLE_|NODE_)?(?:RANK|WORLD_SIZE)|MASTER_(?:ADDR|PORT)|PET_\w+)")
_ASSIGNED = re.compile(rf"(?<![\w$-])({_OF_RANKS.pattern})=")
_REFERRED = re.compile(r"\$\{?(SLURM_(?:PROCID|NODEID|LOCALID))\b")

# Options whose values may have a $ and mean it.
_ANY_TEXT = ("job-name", "comment")

_PARAMETERS = ('"$@"', '"${@}"', '"${@:-')
_DEFAULT_SCRIPT = re.compile(r'"\$\{@:-[^"}]+\}"')

# shellcheck: what a template sources (a virtual environment) is not there to be read.
_NOT_FOLLOWED = "SC1090,SC1091"
_SHELLCHECK = ("shellcheck", "--shell=bash", "--format=gcc", f"--exclude={_NOT_FOLLOWED}")
_SHELLCHECK_LINE = re.compile(r".*?:(\d+):\d+: \w+: (.*)")
_BASH_LINE = re.compile(r".*?: line (\d+): (.*)")

# What sbatch says where it reaches no Slurm.
_SILENT = ("Unable to contact slurm controller", "Could not establish a configuration source")


@dataclass(frozen=True)
class TemplateFinding:
    """Something that is wrong.

    Attributes:
        line: where, counted from one; None where it is about the whole.
        text: what, and how to mend it.
    """

    line: int | None
    text: str


@dataclass(frozen=True)
class TemplateVerdict:
    """What has been found.

    Attributes:
        findings: what is wrong, from the first line on.
        said: who has nothing against it, or could not be asked, in words.
    """

    findings: tuple[TemplateFinding, ...]
    said: tuple[str, ...]


@dataclass(frozen=True)
class _Command:
    """A logical line of bash: the lines that backslashes join. Comments and what is in single quotes are blanks."""

    line: int
    text: str


# --- the contract


def contract(text: str) -> tuple[TemplateFinding, ...]:
    """What in a template breaks the contract. Pure."""
    lines = text.splitlines()
    commands = _commands(text)
    rules: tuple[Callable[[Sequence[str], Sequence[_Command]], Iterable[TemplateFinding]], ...] = (
        _head,
        _directives,
        _options,
        _ranks,
        _stops_at_errors,
        _outlives_srun,
        _ends_with_srun,
    )
    found = (finding for rule in rules for finding in rule(lines, commands))
    return tuple(sorted(found, key=lambda finding: finding.line or 0))


def _head(lines: Sequence[str], _: Sequence[_Command]) -> Iterator[TemplateFinding]:
    if not lines or not re.fullmatch(r"#!\s*(/usr)?/bin/(env\s+)?bash\s*", lines[0]):
        yield TemplateFinding(1, "the first line is not '#!/bin/bash'")
    if not summary("\n".join(lines)):
        yield TemplateFinding(2, "the first comment does not say in a sentence what this template is for")


def _directives(lines: Sequence[str], _: Sequence[_Command]) -> Iterator[TemplateFinding]:
    first = directives.end_of_head(lines) + 1
    there = [number for number, line in enumerate(lines, 1) if line.startswith("#SBATCH")]
    if not there:
        yield TemplateFinding(
            None, "there is no #SBATCH line: the job would have Slurm's own defaults, one task on one CPU"
        )
    for number in there:
        if number > first:
            yield TemplateFinding(
                number, f"Slurm reads no #SBATCH after the first command, which is in line {first}: move it up"
            )


def _options(lines: Sequence[str], _: Sequence[_Command]) -> Iterator[TemplateFinding]:
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.startswith("#SBATCH"):
            continue
        options = _read(line)
        if not options:
            yield TemplateFinding(number, f"'{line.strip()}' is not written '#SBATCH --name=value'")
        for name, value in options:
            yield from _option(number, name, value)
            if name in seen:
                yield TemplateFinding(number, f"--{name} is given twice, first in line {seen[name]}: keep one")
            seen.setdefault(name, number)


def _read(line: str) -> list[tuple[str, str]]:
    """The options of an #SBATCH line; none where it cannot be read."""
    try:
        return directives.read(line)
    except ValueError:
        return []


def _option(number: int, name: str, value: str) -> Iterator[TemplateFinding]:
    if "$" in value and name not in _ANY_TEXT:
        yield TemplateFinding(
            number, f"--{name}: Slurm does not replace variables here; %j is the job's number (sbatch(1))"
        )
    if name == "gpus-per-task":
        yield TemplateFinding(
            number,
            "--gpus-per-task shows each task its own GPUs alone, which NCCL may not survive: use --gpus-per-node",
        )
    if name == "signal" and re.match(r"R?B", value):
        yield TemplateFinding(number, f"--signal={value} tells this shell only: leave B out, and the workers are told")


def _ranks(_: Sequence[str], commands: Sequence[_Command]) -> Iterator[TemplateFinding]:
    for command in commands:
        for name in dict.fromkeys(_ASSIGNED.findall(command.text)):
            yield TemplateFinding(
                command.line, f"{name} is set for all tasks alike: leave it to hpc-launch, which runs in them"
            )
        for name in dict.fromkeys(_REFERRED.findall(command.text)):
            yield TemplateFinding(command.line, f"{name} is 0 in a job script: only the tasks know theirs")


def _stops_at_errors(_: Sequence[str], commands: Sequence[_Command]) -> Iterator[TemplateFinding]:
    if not any(re.fullmatch(r"set -euo pipefail", command.text) for command in commands):
        yield TemplateFinding(None, "there is no 'set -euo pipefail': a failing 'module load' would go unnoticed")


def _outlives_srun(_: Sequence[str], commands: Sequence[_Command]) -> Iterator[TemplateFinding]:
    if not any(re.fullmatch(r"trap (:|) *(SIG)?TERM", command.text) for command in commands):
        yield TemplateFinding(
            None, "there is no 'trap : TERM' before srun: at the time limit the shell would end before the workers do"
        )


def _ends_with_srun(lines: Sequence[str], commands: Sequence[_Command]) -> Iterator[TemplateFinding]:
    if not commands:
        yield TemplateFinding(None, "there is no command: 'srun hpc-launch \"${@:-train.py}\"' is to be the last")
        return
    last = commands[-1]
    words = last.text.split()
    if words[0] == "exec":
        yield TemplateFinding(
            last.line, "'exec srun' would get the SIGTERM that is meant for the shell: leave exec out"
        )
        words = words[1:]
    if words[:1] != ["srun"]:
        started = [command.line for command in commands if command.text.startswith("srun ")]
        where = f"; srun is in line {started[-1]}" if started else ""
        yield TemplateFinding(last.line, f"the last command is not srun, whose exit status is to be the job's{where}")
        return
    if re.search(r"[|;&]", _without_double_quotes(last.text)):
        yield TemplateFinding(
            last.line, "srun is to stand alone, without '|', ';' or '&': its exit status is to be the job's"
        )
    if "hpc-launch" not in words:
        yield TemplateFinding(last.line, "srun does not start hpc-launch")
    if not any(form in last.text for form in _PARAMETERS):
        yield TemplateFinding(
            last.line, 'what follows the template on the command line is dropped: end with "${@:-train.py}"'
        )
    elif not _DEFAULT_SCRIPT.search(last.text):
        yield TemplateFinding(last.line, 'without arguments nothing would be run: write "${@:-train.py}"')
    given = any(name == "cpus-per-task" for line in lines if line.startswith("#SBATCH") for name, _ in _read(line))
    if given and not any(word.startswith(("--cpus-per-task", "-c", "${SLURM_CPUS_PER_TASK:+--cpus")) for word in words):
        yield TemplateFinding(last.line, "srun of Slurm 22.05 to 23.02 does not take --cpus-per-task over: repeat it, "
                      'as ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}')  # fmt: skip


# --- bash, as far as it is needed


def _commands(text: str) -> list[_Command]:
    """The commands of a script, a logical line each."""
    found: list[_Command] = []
    begin, parts = 0, list[str]()
    for number, line in enumerate(_masked(text).splitlines(), 1):
        begin = begin if parts else number
        goes_on = line.endswith("\\")
        parts.append(line[:-1] if goes_on else line)
        if not goes_on:
            joined = " ".join(part.strip() for part in parts).strip()
            if joined:
                found.append(_Command(begin, joined))
            parts = []
    if any(part.strip() for part in parts):
        found.append(_Command(begin, " ".join(parts).strip()))
    return found


def _masked(text: str) -> str:
    """A script with blanks instead of comments and of what stands in single quotes. Here-documents are not known."""
    found: list[str] = []
    quote, before, position = "", "\n", 0
    while position < len(text):
        char = text[position]
        if quote == "'":
            quote = "" if char == "'" else quote
            found.append("\n" if char == "\n" else " ")
        elif char == "\\" and text[position + 1 : position + 2] != "\n":
            found.append(text[position : position + 2])
            position += 1
        elif char == "'" and not quote:
            quote = "'"
            found.append(" ")
        elif char == '"':
            quote = "" if quote else '"'
            found.append(char)
        elif char == "#" and not quote and before in " \t\n;":
            end = text.find("\n", position)
            position = len(text) if end < 0 else end
            before = "\n"
            continue
        else:
            found.append(char)
        before = char
        position += 1
    return "".join(found)


def _without_double_quotes(text: str) -> str:
    return re.sub(r'"(\\.|[^"\\])*"', "", text)


# --- those who know better


def check_template(template: JobTemplate, environ: Mapping[str, str], *, ask_slurm: bool = True) -> TemplateVerdict:
    """Check a template in every way that is possible here.

    Args:
        template: which.
        environ: the environment.
        ask_slurm: whether Slurm is asked too, where there is one.

    Raises:
        UsageError: the template cannot be read, or a program that is there not run.
    """
    text = template.text()
    findings: list[TemplateFinding] = []
    said: list[str] = []
    for name, answer in (
        ("bash", _ask(["bash", "-n", str(template.path)], _BASH_LINE, environ)),
        ("the contract", contract(text)),
        ("shellcheck", _ask([*_SHELLCHECK, str(template.path)], _SHELLCHECK_LINE, environ)),
    ):
        findings += answer or ()
        said += [] if answer else [f"{name} is not here" if answer is None else name]
    if ask_slurm:
        taken, words = _by_slurm(text, environ)
        findings += [] if taken is not False else [TemplateFinding(None, words)]
        said.append(words)
    return TemplateVerdict(tuple(sorted(findings, key=lambda finding: finding.line or 0)), tuple(said))


def _ask(command: Sequence[str], form: re.Pattern[str], environ: Mapping[str, str]) -> list[TemplateFinding] | None:
    """What a program says about a file; None where there is no such program."""
    if shutil.which(command[0], path=environ.get("PATH")) is None:
        return None
    try:
        done = subprocess.run(
            command,
            env={**environ, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise UsageError(f"cannot run {command[0]}: {reason(error)}") from error
    said = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    found = [
        TemplateFinding(int(match[1]), f"{command[0]}: {match[2]}") for match in map(form.fullmatch, said) if match
    ]
    if done.returncode and not found:
        found.append(TemplateFinding(None, f"{command[0]}: {' '.join(said) or f'status {done.returncode}'}"))
    return found


def _by_slurm(text: str, environ: Mapping[str, str]) -> tuple[bool | None, str]:
    """Whether Slurm would take the script, and its words; None where it cannot be asked."""
    if shutil.which("sbatch", path=environ.get("PATH")) is None:
        return None, "Slurm is not here"
    try:
        return True, f"Slurm: {sbatch.verdict(Submission(text, (), leaks.for_submission(environ)[0]))}"
    except SlurmError as error:
        if any(words in str(error) for words in _SILENT):
            return None, "Slurm does not answer"
        return False, str(error)
