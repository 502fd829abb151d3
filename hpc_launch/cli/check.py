"""`hpc-launch check`."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import click

from hpc_launch.check import check_text, node_selection
from hpc_launch.check.findings import CheckLimits, judge_evidence
from hpc_launch.check.preflight import run_check
from hpc_launch.cli.click_options import CONTEXT, GroupedCommand, ProgramCall, launch_options, settings_of
from hpc_launch.plan.launch_context import gather_context

# Options of a run that say what it would need, which every probe is told, and those that say where.
_WHAT = ("nproc_per_node", "local_addr", "master_addr", "interface", "port_range", "log_dir", "profile")
_WHERE = ("nodes", "jobid")

_SIZE = re.compile(r"(\d+)([KMGT]?)(i?B)?", re.IGNORECASE)


def _size(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    """Read a number of bytes, as df and dd write it."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"'{text}' is not a size, such as 500M or 2G")
    return int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@launch_options(*_WHERE, *_WHAT, "verbose")
@click.option(
    "--max-skew",
    type=click.FloatRange(min=0),
    default=5.0,
    metavar="SECONDS",
    help="How far a node's clock may be from the others'. Default: 5.",
)
@click.option(
    "--min-free",
    callback=_size,
    default="100M",
    metavar="SIZE",
    help="What must be free in the log directory, in TMPDIR and in /dev/shm. Default: 100M.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=60.0,
    metavar="SECONDS",
    help="How long the nodes may take for each question. When half of them have answered, the others have four times "
    "as long as these had, and ten seconds at least. Default: 60.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check(
    context: click.Context,
    /,
    *,
    max_skew: float,
    min_free: int,
    timeout: float,
    as_json: bool,
    **given: Any,
) -> int:
    """Look at every node of a job before training does, and name the bad ones.

    Versions, clocks, directories, the way to the first node, every device, and an all-reduce over all ranks. In a job
    script it is a line before srun: `hpc-launch check || exit`. The exit status is 0 where all is well, and 1 where
    something was found.
    """
    settings = settings_of(context, given)
    here = gather_context(os.environ, settings, context.ensure_object(ProgramCall).command)
    told = {name: given[name] for name in _WHAT if given[name] is not None}
    asked = node_selection.select_nodes(settings, here, told, timeout)
    if asked is None:
        return 0  # the first task of the step does it for all
    limits = CheckLimits(max_skew, min_free)
    evidence = run_check(asked)
    findings = judge_evidence(evidence, limits)
    if as_json:
        click.echo(json.dumps(check_text.check_as_dict(evidence, findings), indent=2))
    else:
        click.echo(check_text.check_as_text(evidence, findings, limits))
    return int(not all(finding.note for finding in findings))
