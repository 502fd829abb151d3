"""`hpc-launch template`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hpc_launch.submission import template_check, templates

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(invoke_without_command=True)
@click.pass_context
def template(context: click.Context) -> None:
    """List, show, copy and check job templates."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@template.command("list", context_settings=_CONTEXT)
def list_templates() -> None:
    """Print the templates: what each is for, and whose it is.

    Of templates with the same name the project's counts (.hpc-launch/templates), then the user's
    (~/.config/hpc-launch/templates), then the site's (/etc/hpc-launch/templates), then that of hpc-launch.
    """
    looked = templates.search_templates(os.environ, Path.cwd())
    found = looked.templates
    name_width = max(map(len, found))
    origin_width = max(len(entry.origin) for entry in found.values())
    for name, entry in found.items():
        summary = templates.summary(entry.text())
        click.echo(f"{name:<{name_width}}  {entry.origin:<{origin_width}}  {summary}")
    for lines in looked.ignored.values():
        for line in lines:
            click.echo(f"hpc-launch: note: template {line}", err=True)


@template.command(context_settings=_CONTEXT)
@click.argument("name")
@click.option("--path", is_flag=True, help="Print where it is instead.")
def show(name: str, *, path: bool) -> None:
    """Print the template NAME, or the one in the file NAME (with a slash in it)."""
    found = templates.get_template(name, os.environ, Path.cwd())
    click.echo(found.path if path else found.text(), nl=path)


@template.command(context_settings=_CONTEXT)
@click.argument("name")
@click.argument("destination", metavar="[DEST]", type=click.Path(path_type=Path), default=".")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def copy(name: str, destination: Path, *, force: bool) -> None:
    """Copy the template NAME, to be edited: to the file DEST, or into the directory DEST, by default this one."""
    found = templates.get_template(name, os.environ, Path.cwd())
    click.echo(templates.copy_template(found, destination, force=force))


@template.command(context_settings=_CONTEXT)
@click.argument("names", metavar="[NAME|PATH]...", nargs=-1)
@click.option("--no-slurm", is_flag=True, help="Do not ask Slurm whether it would take them (sbatch --test-only).")
@click.pass_context
def check(context: click.Context, names: tuple[str, ...], *, no_slurm: bool) -> None:
    """Say what is wrong with templates, a line each, and end with status 1 if anything is.

    Looked at are the names or paths given, else all templates: by bash, by shellcheck where it is installed, by Slurm
    where there is one, and for what makes them templates. Slurm's word is about this cluster and the sizes in the
    template.
    """
    here = Path.cwd()
    chosen = [templates.get_template(name, os.environ, here) for name in names] or templates.find_templates(
        os.environ, here
    ).values()
    wrong = False
    for entry in chosen:
        verdict = template_check.check_template(entry, os.environ, ask_slurm=not no_slurm)
        for finding in verdict.findings:
            place = entry.path if finding.line is None else f"{entry.path}:{finding.line}"
            click.echo(f"{place}: {finding.text}")
        if not verdict.findings:
            click.echo(f"{entry.path}: good ({', '.join(verdict.said)})")
        wrong = wrong or bool(verdict.findings)
    context.exit(1 if wrong else 0)
