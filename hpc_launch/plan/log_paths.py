"""Where the files of a run go: the log directory, and the name of the job directory in it."""

from __future__ import annotations

from pathlib import Path

from hpc_launch.home import expand_home
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.settings import Settings
from hpc_launch.slurm.environment import Allocation, Step
from hpc_launch.text import stamp
from hpc_launch.world import World


def log_root(settings: Settings, here: LaunchContext) -> tuple[Path, str]:
    """The log directory, and who said so."""
    if settings.log_dir is not None:
        return here.directory / expand_home(settings.log_dir), settings.origin("log_dir").value
    submit = here.slurm.submit_directory if here.slurm else ""
    if submit:
        return Path(submit) / "logs", "directory of submission"
    return here.directory / "logs", "working directory"


def base_directory_name(settings: Settings, here: LaunchContext, found: World) -> tuple[str, str]:
    """The job directory's name in the ordinary case of one run, and who said so; empty where it is yet to be chosen."""
    if settings.log_name is not None:
        return settings.log_name, settings.origin("log_name").value
    name = _job_name(settings, here, found)
    return name, "job and step" if name else "chosen at start"


def _job_name(settings: Settings, here: LaunchContext, found: World) -> str:
    if isinstance(here.slurm, Step) and not settings.standalone:
        return f"{here.slurm.job_label}.{here.slurm.step_id}"
    if isinstance(here.slurm, Allocation) and not settings.standalone:
        return here.slurm.job_label
    if settings.rdzv_id is not None and len(found.hosts) > 1:
        return settings.rdzv_id.replace("/", "_").lstrip(".") or "none"
    return ""


def local_job_name(now: float, pid: int) -> str:
    """The name of a job directory outside of Slurm."""
    return f"local-{stamp(now)}-{pid}"
