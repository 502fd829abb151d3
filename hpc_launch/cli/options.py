"""The options of `run` as click knows them, made from the one table in `settings`."""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from hpc_launch.settings import OptionSpec, Settings, files, resolve, specs

_Function = TypeVar("_Function", bound=Callable[..., Any])


def dashes(word: str) -> str:
    """Spell a word with dashes: torchrun takes `--rdzv_backend` for `--rdzv-backend`, and so do we."""
    return word.replace("_", "-")


def launch_options(function: _Function, but: Container[str] = ()) -> _Function:
    """Give a command all options of `Settings`, but for some."""
    for name in reversed(specs()):
        if name not in but:
            function = launch_option(name)(function)
    return function


def launch_option(name: str) -> Callable[[_Function], _Function]:
    """Give a command one of these options."""
    return _decorate(name, specs()[name])


def _decorate(name: str, spec: OptionSpec) -> Callable[[_Function], _Function]:
    if not spec.is_flag:
        kind = click.Choice(spec.choices) if spec.choices else click.STRING
        return click.option(*spec.flags, name, type=kind, metavar=spec.metavar, default=None, help=spec.help)
    if name == "use_env":
        return click.option("--use-env/--no-use-env", name, default=None, help=spec.help)
    return click.option(*spec.flags, name, is_flag=True, default=None, help=spec.help)


@dataclass
class Call:
    """One call of the program.

    Attributes:
        command: its words.
        use_env: the default of --use-env, which depends on the name it was called by.
        verbose: whether errors come with tracebacks; known once the options are read.
    """

    command: tuple[str, ...] = ("hpc-launch",)
    use_env: bool = True
    verbose: bool = False


def settings_of(context: click.Context, given: dict[str, Any]) -> Settings:
    """The settings of a command: what was given, over what the environment and files say."""
    call = context.ensure_object(Call)
    flags = {name: value for name, value in given.items() if value is not None}
    said = files.load(os.environ, Path.cwd(), flags.get("profile", ""))
    settings = replace(resolve(flags, os.environ, said.layers, use_env=call.use_env), notes=said.notes)
    call.verbose = settings.verbose
    return settings


class GroupedCommand(click.Command):
    """A command that shows its options under the headings of the table."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, by group."""
        known = specs()
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                spec = known.get(parameter.name or "")
                groups.setdefault(spec.group if spec else "This command", []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


CONTEXT: dict[str, Any] = {
    "allow_interspersed_args": False,
    "ignore_unknown_options": False,
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "token_normalize_func": dashes,
}
