"""From a template to a job script: lines are replaced and added, all others stay as an administrator wrote them. Pure.

A template has these places, in this order: one block of `#SBATCH` lines before the first command; `set -euo pipefail`;
`trap : TERM`; and as its last command `srun ... hpc-launch ... "${@:-train.py}"`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hpc_launch.errors import UsageError
from hpc_launch.slurm import array_points, directives
from hpc_launch.submission import needs, quoting
from hpc_launch.submission.submit_options import GPU_OPTIONS, asks_for_gpus, replaced_by

_DIRECTIVE = re.compile(r"#SBATCH\s")
_STRICT = re.compile(r"set -euo pipefail\s*")
_TRAP = re.compile(r"trap (:|'') (SIG)?TERM\s*")
_SIGNAL = re.compile(r"(R:)?[^B:]+")
_LAUNCHER = re.compile(r"(?<=\s)hpc-launch(?=\s)")
_CONTAINER = re.compile(r"\bapptainer\b|\bsingularity\b|--container-")
_ARGUMENTS = re.compile(r'"\$(@|\{@(:-[^}]*)?\})"')

# What a template's head says to those who edit and submit it by hand.
_BY_HAND = re.compile(r"# (To (edit|submit): |An option given to sbatch wins)")
_HINT = re.compile(r"# (module load|source) ")


@dataclass(frozen=True)
class ScriptChanges:
    """What a job script has beyond its template.

    Attributes:
        options: Slurm's options by name; None for one whose line goes, and empty for one without a value.
        reasons: what stands above the line of an option, by its name.
        origin: what the head says about how the script was made; a line or more.
        software: lines of bash that make the software available.
        exports: lines of bash that follow these.
        arguments: the words for hpc-launch.
        points: more words for it, in the order of the tasks of a job array.
        preflight: a line of bash to be run before srun; empty for none.
    """

    options: Mapping[str, str | None] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    origin: Sequence[str] = ()
    software: Sequence[str] = ()
    exports: Sequence[str] = ()
    arguments: Sequence[str] = ()
    points: Sequence[Sequence[str]] = ()
    preflight: str = ""


@dataclass(frozen=True)
class ScriptDraft:
    """A job script to start from.

    Attributes:
        name: what it is called.
        text: the script.
        shipped: whether it comes with hpc-launch, so that its sizes are nobody's word.
    """

    name: str
    text: str
    shipped: bool

    def options(self) -> dict[str, str]:
        """Slurm's options in its lines, by name.

        Raises:
            UsageError: for a line that cannot be read.
        """
        lines = self.text.splitlines()
        return {name: value for line in lines[: directives.end_of_head(lines)] for name, value in self._read(line)}

    def _read(self, line: str) -> list[tuple[str, str]]:
        """The options of a line; none where it is not Slurm's."""
        try:
            return directives.read(line)
        except ValueError as error:
            raise UsageError(f"template {self.name}: {line.strip()}: {error}", option="--template") from None


def render_job_script(template: ScriptDraft, changes: ScriptChanges) -> tuple[str, tuple[str, ...]]:
    """Make the job script.

    Returns:
        The script, and the words that have to be given to sbatch because no `#SBATCH` line can have them.

    Raises:
        UsageError: for a template without one of the places.
    """
    lines = template.text.splitlines()
    end = directives.end_of_head(lines)
    if not any(_DIRECTIVE.match(line) for line in lines[:end]):
        raise _lacks(template, "#SBATCH line before its first command")
    strict = _place(template, lines, _STRICT, "line 'set -euo pipefail'")
    trap = _place(template, lines, _TRAP, "line 'trap : TERM'")
    last = _last_command(template, lines)
    if not end <= strict < trap < last:
        raise UsageError(
            f"template {template.name}: 'set -euo pipefail', 'trap : TERM' and the srun line are to stand in this "
            "order, after the #SBATCH lines",
            option="--template",
        )
    head, rest = _head(template, lines[:end], changes)
    before_trap, before_last = _above(lines, trap), _above(lines, last)
    commands = lines[max(before_last, trap + 1) :]
    signal = changes.options.get("signal", template.options().get("signal"))
    if signal:
        commands = _holding_back(commands, signal)
    middle = lines[strict + 1 : before_trap]
    if changes.software:
        middle = [line for line in middle if not _HINT.match(line)]
    script = [
        *head,
        *lines[end : strict + 1],
        *_software(changes),
        *_squeezed(middle),
        *_arguments(changes),
        *lines[before_trap : max(before_last, trap + 1)],
        *([changes.preflight, ""] if changes.preflight else []),
        *commands,
    ]
    return "\n".join(script) + "\n", tuple(rest)


# --- the #SBATCH lines


def _head(template: ScriptDraft, lines: Sequence[str], changes: ScriptChanges) -> tuple[list[str], list[str]]:
    """The lines before the first command, and what they cannot say."""
    goes = _going(changes.options)
    made, rest = _made(changes)
    written: list[str] = []
    waiting = dict(made)
    last = 0
    for line in lines:
        pairs = template._read(line)  # noqa: SLF001 - the same module
        if not pairs:
            if not _BY_HAND.match(line):
                written.append(line)
            continue
        kept = [(name, value) for name, value in pairs if not goes(name, value)]
        replaced = [name for name, _ in pairs if name in waiting]
        if kept != pairs and not (len(replaced) == len(pairs) == 1 and made[replaced[0]][-1] == line):
            del written[_said_of_it(written) :]
        if kept == pairs:
            written.append(line)
        else:
            written += [text for name, value in kept if (text := directives.write(name, value)) is not None]
            for name in replaced:
                written += waiting.pop(name)
        last = len(written)
    written[last:last] = [line for lines in waiting.values() for line in lines]
    return _with_origin(_squeezed(written), changes.origin), rest


def _said_of_it(written: Sequence[str]) -> int:
    """Where the comment begins that is said of the line that comes next; the script's own is not."""
    number = len(written)
    while number > 0 and written[number - 1].startswith("#") and not _DIRECTIVE.match(written[number - 1]):
        number -= 1
    return number or len(written)


def _going(options: Mapping[str, str | None]) -> _Going:
    names = frozenset(name for option in options for name in replaced_by(option)) | frozenset(options)
    gres = options.get("gres")
    by_gres = bool(gres) and asks_for_gpus(gres or "")
    by_gpus = bool(GPU_OPTIONS & options.keys())
    return _Going(names | (GPU_OPTIONS if by_gres else frozenset()), by_gpus)


@dataclass(frozen=True)
class _Going:
    """Which of a template's options do not stay."""

    names: frozenset[str]
    gpus: bool

    def __call__(self, name: str, value: str) -> bool:
        return name in self.names or (name == "gres" and self.gpus and asks_for_gpus(value))


def _made(changes: ScriptChanges) -> tuple[dict[str, list[str]], list[str]]:
    """The new lines of each option; and the words for sbatch, of those that no line can have."""
    made: dict[str, list[str]] = {}
    rest: list[str] = []
    for name, value in changes.options.items():
        if value is None:
            continue
        line = directives.write(name, value)
        if line is None:
            rest.append(f"--{name}={value}")
            continue
        made[name] = [f"# {changes.reasons[name]}", line] if name in changes.reasons else [line]
    return made, rest


def _with_origin(lines: list[str], origin: Sequence[str]) -> list[str]:
    """Say, in the comments that a script begins with, how it was made."""
    if not origin:
        return lines
    end = next((number for number, line in enumerate(lines) if not line.startswith("#") or _DIRECTIVE.match(line)), 0)
    head = lines[:end]
    while head and head[-1] == "#":
        head.pop()
    return [*head, "#", *(f"# {line}" for line in origin), *([""] if lines[end:][:1] != [""] else []), *lines[end:]]


# --- the commands


def _software(changes: ScriptChanges) -> list[str]:
    # A site's own scripts may use variables that are not set.
    lines = ["", "set +u", *changes.software, "set -u"] if changes.software else []
    return [*lines, *(["", *changes.exports] if changes.exports else [])]


def _arguments(changes: ScriptChanges) -> list[str]:
    lines = ["# What hpc-launch gets: its own options, the training script, and what is the script's."]
    lines += [*_unexpanded(changes.arguments), f"set -- {quoting.words(changes.arguments)}", ""]
    if changes.points:
        lines += ["# The points of the sweep: each is one task of the job array."]
        lines += _unexpanded(word for point in changes.points for word in point)
        lines += ['case "$SLURM_ARRAY_TASK_ID" in']
        lines += [array_points.point_line(number, quoting.words(point)) for number, point in enumerate(changes.points)]
        lines += ['    *) echo "the sweep has no point $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;', "esac", ""]
    return lines


def _unexpanded(words: Iterable[str]) -> list[str]:
    """What tells shellcheck that a `$` in quotes is meant as it is."""
    return ["# shellcheck disable=SC2016"] if any("$" in word or "`" in word for word in words) else []


def _holding_back(lines: Sequence[str], signal: str) -> list[str]:
    """The last command, and the comments above it, so that a signal of `--signal` does not end a step that begins.

    The nodes may have older coreutils than this host. In a container those are the image's, which nobody knows here.
    """
    text = "\n".join(lines)
    if not _SIGNAL.fullmatch(signal) or "--block-signal" in text or _CONTAINER.search(text):
        return [*lines]
    name = signal.removeprefix("R:").partition("@")[0]
    number = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    held = _LAUNCHER.sub(f"{needs.held(name)} hpc-launch", "\n".join(lines[number:]), count=1)
    return [*needs.hold_lines(name), "", *lines[:number], *held.split("\n")]


def _place(template: ScriptDraft, lines: Sequence[str], form: re.Pattern[str], what: str) -> int:
    found = [number for number, line in enumerate(lines) if form.fullmatch(line)]
    if not found:
        raise _lacks(template, what)
    return found[0]


def _last_command(template: ScriptDraft, lines: Sequence[str]) -> int:
    """The line with which the last command begins, after seeing that it starts hpc-launch with the arguments."""
    commands = [number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    number = commands[-1] if commands else 0
    while number > 0 and lines[number - 1].endswith("\\") and not lines[number - 1].startswith("#"):
        number -= 1
    whole = " ".join(lines[number:]) if lines else ""
    if not (re.match(r"srun\s", whole) and "hpc-launch" in whole and _ARGUMENTS.search(whole)):
        raise _lacks(template, """srun ... hpc-launch ... "${@:-train.py}" as its last command""")
    return number


def _above(lines: Sequence[str], number: int) -> int:
    """Where the comments directly above a line begin."""
    while number > 0 and lines[number - 1].startswith("#"):
        number -= 1
    return number


def _squeezed(lines: Sequence[str]) -> list[str]:
    """Leave one blank line of several, and one `#` line."""
    return [line for before, line in zip(["x", *lines], lines, strict=False) if line not in ("", "#") or line != before]


def _lacks(template: ScriptDraft, what: str) -> UsageError:
    return UsageError(f"template {template.name} has no {what}: see docs/templates.md", option="--template")
