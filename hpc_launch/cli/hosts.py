"""`hpc-launch hosts`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from hpc_launch import hostlist
from hpc_launch.errors import UsageError, reason
from hpc_launch.home import expand_home
from hpc_launch.slurm import environment


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("hostlists", nargs=-1)
@click.option("--fold", "as_fold", is_flag=True, help="Print them as one host list.")
@click.option("--count", is_flag=True, help="Print how many there are.")
@click.option("--slice", "piece", metavar="START:STOP", help="Take a part, by Python's rules: 0:2, -1:, ::2.")
@click.option("--unique", is_flag=True, help="Drop repeated names.")
@click.option("--hostfile", type=click.Path(dir_okay=False, path_type=Path), help="Read them from a host file.")
def hosts(
    hostlists: tuple[str, ...], *, as_fold: bool, count: bool, piece: str | None, unique: bool, hostfile: Path | None
) -> None:
    """Expand HOSTLISTS ('gpu[01-04,07]') as Slurm does, one name a line.

    Without any, those of this Slurm step or job. '-' reads lists from standard input.
    """
    names = _names(hostlists, hostfile)
    if unique:
        names = tuple(dict.fromkeys(names))
    if piece is not None:
        names = hostlist.select(names, piece)
    if count:
        click.echo(len(names))
    elif as_fold:
        click.echo(hostlist.fold(names))
    elif names:
        click.echo("\n".join(names))


def _names(hostlists: tuple[str, ...], hostfile: Path | None) -> tuple[str, ...]:
    if hostfile is not None:
        try:
            listed = tuple(entry.host for entry in hostlist.parse_hostfile(expand_home(hostfile).read_text()))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--hostfile: cannot read {hostfile}: {reason(error)}") from error
    elif hostlists:
        listed = ()
    else:
        place = environment.locate(os.environ)
        if place is None:
            raise UsageError("no host list given, and this is no Slurm job: name one, as in 'hosts gpu[01-04]'")
        listed = place.hosts
    for text in hostlists:
        listed += hostlist.expand(sys.stdin.read() if text == "-" else text)
    return listed
