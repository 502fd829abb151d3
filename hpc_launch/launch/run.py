"""Run a training script as planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from hpc_launch.errors import LogDirError
from hpc_launch.plan import derive
from hpc_launch.plan.here import check_script, gather
from hpc_launch.records import directory
from hpc_launch.settings import PROCESS_WORDS, Settings


def run(settings: Settings, script: Sequence[str], environ: Mapping[str, str]) -> None:
    """Start the script on this node's share of the ranks, and wait for the end of all.

    Raises:
        HpcLaunchError: with the exit status that says how it failed.
    """
    here = gather(environ)
    check_script(settings, script[0], here.directory)
    if isinstance(settings.nproc_per_node, str) and settings.nproc_per_node not in PROCESS_WORDS:
        from hpc_launch.elastic.run import count_processes  # noqa: PLC0415 - torch is slow to import

        settings = dataclasses.replace(settings, nproc_per_node=count_processes(settings.nproc_per_node))
    plan = derive.make(settings, here, script)
    problem = None
    try:
        directory.check_writable(plan.log_root)
    except LogDirError as error:
        if len(plan.world.hosts) == 1:
            raise
        problem = error  # the other nodes are told, so that none of them waits

    from hpc_launch.elastic.run import run as run_agent  # noqa: PLC0415 - torch is slow to import

    run_agent(plan, environ, problem)
