"""Options as click knows them, made from the tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from hpc_launch.settings import OptionSpec, Settings, resolve, settings_files, specs

_Function = TypeVar("_Function", bound=Callable[..., Any])


def dashes(word: str) -> str:
    """Spell a word with dashes: torchrun takes `--rdzv_backend` for `--rdzv-backend`, and so do we."""
    return word.replace("_", "-")


def launch_options(*names: str) -> Callable[[_Function], _Function]:
    """Give a command these options of runs; all of them where none is named."""
    known = specs()
    return with_options({name: known[name] for name in names or known})


def with_options(options: Mapping[str, OptionSpec]) -> Callable[[_Function], _Function]:
    """Give a command options, by the names of its parameters."""

    def decorate(function: _Function) -> _Function:
        for name in reversed([*options]):
            function = _option(name, options[name])(function)
        return function

    return decorate


def _option(name: str, spec: OptionSpec) -> Callable[[_Function], _Function]:
    if name == "use_env":
        return click.option("--use-env/--no-use-env", name, default=None, help=spec.help)
    if spec.is_flag:
        return click.option(*spec.flags, name, is_flag=True, default=None, help=spec.help)
    kind = click.Choice(spec.choices) if spec.choices else click.STRING
    return click.option(
        *spec.flags, name, type=kind, multiple=spec.multiple, metavar=spec.metavar, default=None, help=spec.help
    )


@dataclass
class ProgramCall:
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
    call = context.ensure_object(ProgramCall)
    flags = {name: value for name, value in given.items() if value is not None}
    said = settings_files.load_settings_files(os.environ, Path.cwd(), flags.get("profile", ""))
    settings = replace(resolve(flags, os.environ, said.layers, use_env=call.use_env), notes=said.notes)
    call.verbose = settings.verbose
    return settings


class GroupedCommand(click.Command):
    """A command that shows its options under the headings of the tables."""

    first_headings: tuple[str, ...] = ()

    def heading(self, parameter: click.Parameter) -> str:
        """What is above a parameter; empty where it is not shown."""
        spec = specs().get(parameter.name or "")
        return spec.group if spec else "This command"

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, by group."""
        groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in self.first_headings}
        for parameter in self.get_params(ctx):
            record, heading = parameter.get_help_record(ctx), self.heading(parameter)
            if record is not None and heading:
                groups.setdefault(heading, []).append(record)
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
