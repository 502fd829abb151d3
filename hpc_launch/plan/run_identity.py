"""What tells this run from others (`identity`), from what was asked for and where this process is. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from hpc_launch.plan import identity
from hpc_launch.plan.identity import Identity, Lineage
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.plan.similar_commands import WHOLE, command_of
from hpc_launch.settings import Origin, Settings
from hpc_launch.slurm.environment import Step
from hpc_launch.world import World

# Job ids of the other schedulers whose host files people bring: all nodes of a job see the same one.
_FOREIGN_JOB_IDS = ("PBS_JOBID", "LSB_JOBID", "OAR_JOB_ID", "COBALT_JOBID", "JOB_ID")


def decide_identity(settings: Settings, here: LaunchContext, found: World, script: Sequence[str]) -> Identity:
    """What tells the run from others: who may meet, and what it continues."""
    lineage = _lineage(settings, here)
    in_slurm = lineage.place and found.origin in (Origin.STEP, Origin.JOB)
    place = f"{lineage.place}/{lineage.incarnation}" if in_slurm else _place_outside(settings, here, found)
    if settings.rdzv_id is not None:
        made = identity.of_id(place, settings.rdzv_id, script, module=settings.module)
    else:
        made = identity.of_command(
            place,
            script,
            here.directory,
            module=settings.module,
            no_python=settings.no_python,
            run_path=settings.run_path,
        )
    command = WHOLE
    if not made.explicit:
        command = command_of((str(here.directory), *script), here.environ, here.host)
    words = identity.command_as_text(script, module=settings.module, secret_names=settings.secret_names)
    return replace(made, lineage=lineage, command=command, words=words)


def _lineage(settings: Settings, here: LaunchContext) -> Lineage:
    """What the run continues: by the step where it is in one, as that has the same number in each start of the job."""
    slurm = here.slurm
    by_user = settings.origin("log_dir") in (Origin.FLAG, Origin.ENVIRONMENT, Origin.TORCHRUN_ENVIRONMENT)
    apart = by_user or settings.log_name is not None
    if settings.standalone or slurm is None:
        return Lineage(apart=apart)
    place = identity.place_in_slurm(
        here.environ.get("SLURM_CLUSTER_NAME", ""),
        here.environ.get("SLURM_JOB_ID_HET_GROUP_0") or slurm.job_id,
        slurm.step_id if isinstance(slurm, Step) else None,
    )
    return Lineage(place, slurm.restart_count, apart)


def _place_outside(settings: Settings, here: LaunchContext, found: World) -> str:
    if len(found.hosts) == 1:
        return identity.place_of_process(here.host, here.pid)
    if found.origin is Origin.HOSTS:
        return identity.place_of_hosts(found.hosts, _foreign_job(here))
    # Nothing else is surely the same on all: each node may have another name or address for the first one.
    return identity.place_by_hand(settings.rdzv_id or "")


def run_id(settings: Settings, here: LaunchContext, found: World, step: Step | None) -> tuple[str, str]:
    """The id by which the agents of a run meet (torchrun's --rdzv-id), and who said so."""
    if settings.rdzv_id is not None:
        return settings.rdzv_id, settings.origin("rdzv_id").value
    if step is not None:
        return f"{step.job_id}.{step.step_id}.{step.restart_count}", "job, step and restart count"
    if found.origin is Origin.HOSTS:
        job = _foreign_job(here)
        digest = hashlib.sha256(",".join(found.hosts).encode()).hexdigest()[:8]
        return f"hosts-{job or digest}", "job id" if job else "host list"
    return "none", Origin.DEFAULT.value


def _foreign_job(here: LaunchContext) -> str:
    return next((here.environ[name] for name in _FOREIGN_JOB_IDS if here.environ.get(name)), "")
