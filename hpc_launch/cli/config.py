"""`hpc-launch config`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from hpc_launch.cli.click_options import CONTEXT, GroupedCommand, launch_options, settings_of
from hpc_launch.settings import Origin, Settings, settings_files, specs, toml_writer


@click.group(invoke_without_command=True)
@click.pass_context
def config(context: click.Context) -> None:
    """Show settings, and the files that they come from."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@config.command(cls=GroupedCommand, context_settings=CONTEXT)
@launch_options()
@click.option("--all", "everything", is_flag=True, help="Those that nobody has set as well.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(context: click.Context, /, *, everything: bool, as_json: bool, **given: Any) -> None:
    """Print the settings that have been set: each value, and the flag, variable or file and key that sets it.

    They are written as in a settings file, those of `hpc-launch submit` below [submit], and what the site allows below
    [policy]. What Slurm says is not among them: see `hpc-launch explain`.
    """
    settings = settings_of(context, given)
    names = [name for name in specs() if everything or settings.given(name)]
    submit = _submit_entries(settings)
    if as_json:
        entries = {
            name: _entry(getattr(settings, name), settings.origin(name), settings.places.get(name, ""))
            for name in names
        }
        tables = {"submit": submit, "policy": _policy_entries(settings)}
        click.echo(json.dumps(entries | {name: table for name, table in tables.items() if table}, indent=2))
        return
    for name in names:
        line = toml_writer.settings_line(specs()[name].key, getattr(settings, name))
        click.echo(f"{line}  # {settings.places.get(name, 'default')}" if not line.startswith("#") else line)
    policy = _policy_entries(settings)
    for heading, table in (("submit", submit), ("policy", policy)):
        for number, (name, entry) in enumerate(table.items()):
            if number == 0:
                click.echo(f"\n[{heading}]")
            click.echo(f"{toml_writer.settings_line(name, entry['value'])}  # {entry['place']}")
    for note in settings.notes:
        click.echo(f"# {note}")
    if not names and not submit and not policy:
        click.echo("# nothing is set: all values are defaults, or derived")


def _entry(value: Any, origin: Origin, place: str) -> dict[str, Any]:
    return {"value": toml_writer.toml_value(value), "origin": origin.value, "place": place}


def _policy_entries(settings: Settings) -> dict[str, dict[str, Any]]:
    policy = settings.policy
    return {name: _entry(value, Origin.SITE, policy.place(name)) for name, value in policy.rules.items()}


def _submit_entries(settings: Settings) -> dict[str, dict[str, Any]]:
    from hpc_launch.submission import submit_resolution  # noqa: PLC0415 - every node of every run imports the commands

    layers = settings_files.load_settings_files(os.environ, Path.cwd(), settings.profile or "").layers
    found = submit_resolution.submit_overview(os.environ, layers)
    return {name: _entry(item.value, item.origin, item.place) for name, item in found.items()}


@config.command("files", context_settings=CONTEXT)
@launch_options("profile")
def show_files(profile: str | None) -> None:
    """Print where settings files are looked for, and which are there. Those above count before those below.

    hpc-launch ignores a file that another user can change: see "Whose settings count" in docs/security.md.
    """
    looked = settings_files.load_settings_files(os.environ, Path.cwd(), profile or "").looked
    for entry in looked:
        why = f"  ({entry.why})" if entry.why else ""
        click.echo(f"{entry.origin.value:<12}  {entry.found:<9}  {entry.path}{why}")
