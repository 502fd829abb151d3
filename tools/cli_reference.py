"""Write docs/cli.md from the commands and the table of settings: `python tools/cli_reference.py`.

With --check nothing is written, and the exit status says whether the file is up to date.
"""  # noqa: INP001 - a program, not a package

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from hpc_launch.cli import cli
from hpc_launch.settings import OptionSpec, Settings, specs, toml_writer

PAGE = Path(__file__).parents[1] / "docs/cli.md"
WIDTH = 118

HEAD = """\
# Command line

<!-- Made by tools/cli_reference.py from the commands: change those, then run that program. -->
"""

AUTHORITY = """\
Every option can be written with dashes or underscores (`--rdzv-id`, `--rdzv_id`), and given as a variable: as
`HPC_LAUNCH_<NAME>`, and, where torchrun has the option as well, as torchrun's `PET_<NAME>`. Under the long name it can
be kept in a [settings file](guide.md#settings-files). The strongest voice wins: flag, `HPC_LAUNCH_<NAME>`,
`PET_<NAME>`, profile, the project's file, the user's, the site's, what Slurm or the host list says, default. An empty
variable says nothing; a switch is turned on by `1` and off by `0`. `hpc-launch explain` shows every value with its
origin, `hpc-launch config show` who has set what.
"""

ELSEWHERE = """\
What belongs to one run, one node or one command cannot be set in files: {names}.
"""

DROP_IN = """\
## `python -m hpc_launch.launch`

Stands in for `python -m torch.distributed.launch`: `run` with all its options, but `--use-env` is off unless it is
given, so that the script also gets `--local-rank=N`.
"""

COMPLETION = """\
## Shell completion

For bash, in `~/.bashrc` (for zsh `zsh_source`):

```sh
eval "$(_HPC_LAUNCH_COMPLETE=bash_source hpc-launch)"
```

For fish, in `~/.config/fish/completions/hpc-launch.fish`:

```sh
_HPC_LAUNCH_COMPLETE=fish_source hpc-launch | source
```

`hpc-launch --print-completion bash` (`zsh`, `fish`) prints the same script, to be kept in a file.
"""

STATUS = """\
## Exit status

0 after success, the failed worker's own status, or one of the launcher's: see [Exit statuses](exit-status.md).
"""


def page() -> str:
    """Return the text of the page."""
    return "\n".join(part.strip("\n") + "\n" for part in parts() if part)


def parts() -> Iterator[str]:
    """Yield the sections."""
    context = click.Context(cli, info_name="hpc-launch")
    yield HEAD
    yield code(f"hpc-launch {cli.subcommand_metavar}")
    yield description(cli)
    found = commands(context)
    yield table(["Command", "What it does"], [[f"`{name}`", summary(command)] for name, command in found.items()])
    for name, command in found.items():
        yield from sections(command, click.Context(command, info_name=name, parent=context))
    yield DROP_IN
    yield COMPLETION
    yield STATUS


def commands(context: click.Context) -> dict[str, click.Command]:
    """Return the commands by their names, the default one first."""
    names = sorted(cli.list_commands(context), key=lambda name: (name != "run", name))
    return {name: command for name in names if (command := cli.get_command(context, name)) is not None}


def sections(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the section of one command, and of those below it."""
    yield from section(command, context)
    if isinstance(command, click.Group):
        for name, below in sorted(command.commands.items()):
            yield from sections(below, click.Context(below, info_name=name, parent=context))


def section(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the section of one command; the options of `run` are explained there only."""
    known = specs()
    options = [item for item in command.params if isinstance(item, click.Option)]
    has_all = {item.name for item in options} >= set(known)
    own = [item for item in options if not (has_all and item.name in known)]
    yield f"## `{context.command_path}`"
    yield code(" ".join([context.command_path, *command.collect_usage_pieces(context)]))
    yield description(command)
    if command.name == "run":
        yield AUTHORITY
        names = ", ".join(f"`{spec.key}`" for spec in known.values() if spec.not_in_files)
        yield "\n".join(wrap(ELSEWHERE.format(names=names), ""))
        yield from groups(known)
        yield "### Only here"
    elif has_all:
        yield f"All options of [`hpc-launch run`](#hpc-launch-run){', and:' if own else '.'}"
    if own:
        yield "\n".join(entry(spelling(item), item.help or "") for item in own)


def groups(known: dict[str, OptionSpec]) -> Iterator[str]:
    """Yield the options of `run` under their headings."""
    defaults = {field.name: field.default for field in fields(Settings)}
    for group in dict.fromkeys(spec.group for spec in known.values()):
        yield f"### {group}"
        yield "\n".join(
            entry(
                flags(spec),
                f"{spec.help} {default(defaults[name], spec)}".strip(),
                ", ".join(f"`{variable}`" for variable in spec.variables),
            )
            for name, spec in known.items()
            if spec.group == group
        )


def entry(heading: str, text: str, more: str = "") -> str:
    """Return one option as an item of a list."""
    lines = [f"- `{heading}`\\", *wrap(text, "  ")]
    if more:
        lines[-1] += "\\"
        lines.append(f"  {more}")
    return "\n".join(lines)


def flags(spec: OptionSpec) -> str:
    """Return the flags of an option with their value: `-r, --redirects STREAMS`."""
    words = ", ".join(spec.flags)
    return words if spec.is_flag else f"{words} {spec.metavar}"


def spelling(option: click.Option) -> str:
    """Return the same for an option that is click's alone."""
    words = ", ".join(sorted(option.opts, key=len))
    return words if option.is_flag else f"{words} {option.metavar or 'TEXT'}"


def default(value: Any, spec: OptionSpec) -> str:
    """Return the sentence about a default; empty where the help says it, or how the value is derived."""
    if value is None or value == () or spec.is_flag or "default" in spec.help.lower():
        return ""
    return f"Default: `{f'{value:g}' if isinstance(value, float) else toml_writer.text(value)}`."


def description(command: click.Command) -> str:
    """Return the help text of a command: paragraphs, and blocks that click leaves alone as code."""
    blocks = []
    for block in inspect.cleandoc(command.help or "").split("\n\n"):
        first, _, rest = block.partition("\n")
        blocks.append(code(textwrap.dedent(rest)) if first == "\b" else "\n".join(wrap(block, "")))
    return "\n\n".join(blocks)


def summary(command: click.Command) -> str:
    """Return the first sentence of a command's help."""
    return " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def code(text: str) -> str:
    """Return a block of code."""
    return f"```text\n{text}\n```"


def wrap(text: str, indent: str) -> list[str]:
    """Return lines of a paragraph, of one width wherever this runs."""
    words = " ".join(text.split())
    return textwrap.wrap(
        words, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def main(args: list[str]) -> int:
    """Write the page, or check it."""
    text = page()
    if args == ["--check"]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        sys.stderr.write(f"{PAGE} is not up to date: run 'python tools/cli_reference.py'\n")
        return 1
    if args:
        sys.stderr.write("usage: python tools/cli_reference.py [--check]\n")
        return 2
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
