"""The entry point by which plain torchrun finds the `slurm` rendezvous (`torchrun.handlers`).

torch loads it while it loads its own rendezvous modules, so nothing of torch is imported here before it is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_launch.console import CONSOLE
from hpc_launch.plan import derivation
from hpc_launch.plan.launch_context import gather_context
from hpc_launch.settings import resolve, settings_files

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

# torchrun's agent counts its own restarts; the rendezvous is only not to refuse them.
_NO_BUDGET = 1 << 30


def entry_point() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """What torch calls to get the creator of handlers."""
    return create


def create(parameters: RendezvousParameters) -> RendezvousHandler:
    """Make a handler for torchrun: who takes part comes from the environment, as for `hpc-launch`.

    Raises:
        HpcLaunchError: where the environment does not say it.
    """
    from hpc_launch.rendezvous.handler import SlurmRendezvous  # noqa: PLC0415
    from hpc_launch.rendezvous.rendezvous_config import config_of  # noqa: PLC0415 - see above

    CONSOLE.serve()  # lines of the coordinator keep no agent waiting, whatever the console does
    named = parameters.run_id not in ("", "none")
    said = settings_files.load_settings_files(os.environ, Path.cwd())
    settings = resolve({"rdzv_id": parameters.run_id} if named else {}, os.environ, said.layers)
    plan = derivation.make_plan(settings, gather_context(os.environ, settings), ())
    config = replace(config_of(plan, os.environ), max_restarts=_NO_BUDGET, software={}, elastic=False)
    return SlurmRendezvous(replace(config, minimum=config.agents), agents_store=True)
