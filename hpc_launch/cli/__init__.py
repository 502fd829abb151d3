"""The command line: words in, one call, an exit status out."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from hpc_launch import __version__, held_signals
from hpc_launch.cli.click_options import ProgramCall
from hpc_launch.console import CONSOLE, let_go, tell
from hpc_launch.errors import HpcLaunchError
from hpc_launch.workers.script import Become, Script, run_script
from hpc_launch.working_directory import check_working_directory

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

# Each is in the module of its name, which is imported when the command is used: a start does not wait for the others.
_COMMANDS = (
    "check",
    "config",
    "env",
    "explain",
    "hosts",
    "logs",
    "report",
    "run",
    "stacks",
    "status",
    "submit",
    "template",
)


# What others call these.
_ALIASES = {
    "help": "--help",
    "version": "--version",
    "list": "status",
    "ls": "status",
    "ps": "status",
    "log": "logs",
    "tail": "logs -f",
    "queue": "status",
    "doctor": "check",
    "launch": "run",
    "start": "run",
    "sbatch": "submit",
    "templates": "template list",
    "settings": "config",
}

# Words that are less alike than this have nothing to do with each other (difflib).
_NEAR, _ALIKE = 0.7, 0.8

# Options that a line has room for.
_MOST_NAMED = 6


def _command(name: str) -> click.Command:
    found: click.Command = getattr(importlib.import_module(f"hpc_launch.cli.{name}"), name)
    return found


def _options(context: click.Context | None) -> list[str]:
    """The long options of a command, in the order of their names."""
    params = context.command.get_params(context) if context is not None else []
    return sorted(option for param in params for option in param.opts if option.startswith("--"))


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _refuse_mistyped(word: str) -> None:
    """See that a first word is not a command that was mistyped, or is called otherwise: it would be taken for a script.

    Raises:
        click.UsageError: naming the command that is meant.
    """
    if word in _COMMANDS or not word.isalpha() or Path(word).exists():
        return
    near = difflib.get_close_matches(word.lower(), _COMMANDS, n=1, cutoff=_NEAR)
    meant = _ALIASES.get(word.lower(), near[0] if near else "")
    if meant:
        raise click.UsageError(f"there is neither a command nor a script '{word}'; did you mean 'hpc-launch {meant}'?")


class _RunByDefault(click.Group):
    """A group whose first word, where it is not a command, belongs to `run`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        """Their names."""
        return [*_COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of a name; None where there is none."""
        return _command(cmd_name) if cmd_name in _COMMANDS else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"-h", "--help", "--version"}
        if not args:
            args = ["--help"]
        if not ctx.resilient_parsing:
            _refuse_mistyped(args[0])
        if args[0] not in own and args[0] not in _COMMANDS and not ctx.resilient_parsing:
            args = ["run", *args]
        if args[0] != "run":
            held_signals.release()  # no other command has a use for them
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        """The commands, and the options of `run`."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            run = _command("run")
            context = click.Context(run, info_name="run", parent=ctx)
            found += run.shell_complete(context, incomplete)
        return found


@click.group(
    cls=_RunByDefault,
    context_settings=_CONTEXT,
    subcommand_metavar="[run] [OPTIONS] SCRIPT [ARGS]...  |  COMMAND [ARGS]...",
)
@click.version_option(__version__, prog_name="hpc-launch")
def cli() -> None:
    """Launch PyTorch training on the nodes of a Slurm job, of a host list, or on this one.

    \b
        srun hpc-launch train.py --lr 1e-3      in a batch script: nothing else is needed
        hpc-launch train.py                     on one machine
        hpc-launch --hosts 'gpu[1-4]' train.py  without Slurm, on each of these hosts

    What stands before the script are options of `run` (see `hpc-launch run --help`); what follows it is the script's
    own. A script that is named like a command is written ./logs, or after `run`.
    """  # noqa: D301 - click wants a real backspace before text that it is to leave alone


def main(args: Sequence[str] | None = None) -> None:
    """The console script."""
    _leave(_status(cli, _words(args), "hpc-launch"), own_process=args is None)


def launch_main(args: Sequence[str] | None = None) -> None:
    """`python -m hpc_launch.launch`: `run` with the local rank as an argument of the script."""
    status = _status(_command("run"), _words(args), "python -m hpc_launch.launch", use_env=False)
    _leave(status, own_process=args is None)


def _words(args: Sequence[str] | None) -> list[str]:
    return list(sys.argv[1:] if args is None else args)


def _leave(status: int | Script, *, own_process: bool) -> None:
    """End this process; or, in a forked worker, let it be the training script.

    An agent ends without Python's teardown: with torch that takes 0.3 s, and a crash in it would change the status of a
    run that has ended well. Everything is closed by now, and only the console may have something left to write.

    Args:
        status: the exit status, or the script.
        own_process: whether this process was started for the command; no other code runs after it then.
    """
    if isinstance(status, Script):
        run_script(status)
        return
    let_go()
    if own_process and "torch" in sys.modules:
        CONSOLE.settle()
        os._exit(status)
    sys.exit(status)


def _status(command: click.Command, args: list[str], name: str, *, use_env: bool = True) -> int | Script:
    """Run a command and return its exit status; errors are one line, with a traceback after -v."""
    call = ProgramCall(command=(*name.split(), *args), use_env=use_env)
    try:
        check_working_directory()
        status = command.main(args, prog_name=name, standalone_mode=False, obj=call)
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        # Without click's usage lines: the message names the option, and one line is read.
        page = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else name
        tell(f"{name}: {_message(error)}  (see '{page} --help')")
        status = error.exit_code
    except click.Abort:
        status = 130
    except HpcLaunchError as error:
        if call.verbose:
            tell(traceback.format_exc().rstrip())
        if not error.silent:
            tell(f"{name}: {error}")
        status = error.exit_status
    except Become as worker:
        return worker.script
    except Exception:  # noqa: BLE001 - whatever it is, it is a fault of our own, and no script's status 1
        tell(f"{traceback.format_exc()}{name}: this is a fault of hpc-launch: please report it with the lines above")
        status = HpcLaunchError.exit_status
    return status if isinstance(status, int) else 0


def _message(error: click.ClickException) -> str:
    """What is wrong, with the one option that is nearest to an unknown one (click names several)."""
    if isinstance(error, click.NoSuchOption):
        said, known = f"no such option '{error.option_name}'", _options(error.ctx)
        begun = sorted((option for option in known if option.startswith(error.option_name)), key=len)
        if len(begun) > 1:
            return f"{said}; did you mean '{begun[0]}'? It could also be {', '.join(begun[1:_MOST_NAMED])}"
        near = begun or difflib.get_close_matches(error.option_name, known, n=1, cutoff=_NEAR)
        # A beginning that was mistyped is like the beginning of what is meant.
        size = len(error.option_name)
        near = near or [option for option in known if _alike(error.option_name, option[:size]) > _ALIKE]
        return said + (f"; did you mean '{near[0]}'?" if near else "")
    return error.format_message()
