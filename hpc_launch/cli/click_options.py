"""Options as click knows them, made from the tables."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from hpc_launch.settings import OptionSpec, Settings, resolve, settings_files, specs

# Beside torchrun's names for the same.
_OURS = frozenset({"--grace", "--log-line-prefix-template"})

# Options of torchrun that have no variable.
_WITHOUT_VARIABLE = ("--logs-specs", "--numa-binding")

# A single letter may be a short option.
_SHORTEST = 2

_Function = TypeVar("_Function", bound=Callable[..., Any])


def dashes(word: str) -> str:
    """Spell a word with dashes: torchrun takes `--rdzv_backend` for `--rdzv-backend`, and so do we."""
    return word.replace("_", "-")


@functools.cache
def torchrun_names() -> tuple[str, ...]:
    """The long options of torchrun, without dashes before them (torch/distributed/run.py)."""
    flags = (flag for spec in specs().values() if spec.torchrun_variable for flag in spec.flags if flag not in _OURS)
    return tuple(flag.removeprefix("--") for flag in (*flags, *_WITHOUT_VARIABLE) if flag.startswith("--"))


@functools.cache
def _all_names() -> frozenset[str]:
    return frozenset(flag.lstrip("-") for spec in specs().values() for flag in spec.flags)


def option_name(word: str) -> str:
    """An option in full: argparse, and so torchrun, takes any beginning of a name that no other one has.

    Only torchrun's own names can be left short, so that new options of ours make no line another one.
    """
    word = dashes(word)
    if len(word) < _SHORTEST or word in _all_names():
        return word
    found = [name for name in torchrun_names() if name.startswith(word)]
    return found[0] if len(found) == 1 else word


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

# Of commands that take a whole line of torchrun.
LINE_CONTEXT: dict[str, Any] = {**CONTEXT, "token_normalize_func": option_name}
