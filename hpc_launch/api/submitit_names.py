"""submitit's names and their counterparts here: parameters of its executors, attributes and methods. Pure.

The names are those of submitit 1.5 (`AutoExecutor._typed_parameters`, `slurm._make_sbatch_string`, `core.Job`). A test
compares them with the submitit that is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Counterpart:
    """The counterpart of a parameter of submitit's.

    Attributes:
        resource: the resource that the parameter sets; empty for an option of sbatch, and for a refused parameter.
        refused: what to use instead, for a refused parameter; empty otherwise.
        convert: converts submitit's value to that of the resource.
    """

    resource: str = ""
    refused: str = ""
    convert: Callable[[Any], Any] = lambda value: value


# An option of sbatch, by the same name with dashes.
_SBATCH = Counterpart()

_STEP = Counterpart(
    refused="hpc-launch starts the step itself; use slurm={...} for options of the job and launch={...} for options of "
    "the agents"
)


def _megabytes(gigabytes: float) -> int:
    return max(1, int(gigabytes * 1024))


# The parameters that AutoExecutor has for every cluster: `submit` takes these names for itself.
SHARED: Mapping[str, Counterpart] = {
    "name": Counterpart("name"),
    "timeout_min": Counterpart("time"),
    "mem_gb": Counterpart("mem"),
    "nodes": Counterpart("nodes"),
    "cpus_per_task": Counterpart("cpus_per_task"),
    "gpus_per_node": Counterpart("gpus_per_node"),
    "tasks_per_node": Counterpart("ranks_per_node"),
    "stderr_to_stdout": Counterpart(refused="job.logs(rank) returns both streams of a rank"),
}

# All parameters, without the prefix of a cluster (`slurm_`, `local_`, `debug_`), and those of the constructors.
PARAMETERS: Mapping[str, Counterpart] = {
    **SHARED,
    "job_name": Counterpart("name"),
    "time": Counterpart("time"),
    "mem": Counterpart("mem"),
    "num_gpus": Counterpart("gpus_per_node"),
    "ntasks_per_node": Counterpart("ranks_per_node"),
    "partition": Counterpart("partition"),
    "account": Counterpart("account"),
    "qos": Counterpart("qos"),
    "constraint": Counterpart("constraint"),
    "setup": Counterpart("setup"),
    "signal_delay_s": Counterpart("notice"),
    "array_parallelism": Counterpart("array_parallelism"),
    "additional_parameters": Counterpart("slurm"),
    "max_num_timeout": Counterpart("max_requeues"),
    "max_pickle_size_gb": Counterpart("max_pickle_mb", convert=_megabytes),
    "cpus_per_gpu": _SBATCH,
    "mem_per_gpu": _SBATCH,
    "mem_per_cpu": _SBATCH,
    "comment": _SBATCH,
    "exclude": _SBATCH,
    "gres": _SBATCH,
    "mail_type": _SBATCH,
    "mail_user": _SBATCH,
    "nodelist": _SBATCH,
    "dependency": _SBATCH,
    "exclusive": _SBATCH,
    "wckey": _SBATCH,
    "gpus_per_task": Counterpart(refused="use gpus_per_node: the only task of a node, the agent, gets all of its GPUs"),
    "srun_args": _STEP,
    "use_srun": _STEP,
    "teardown": Counterpart(refused="run it at the end of the function; setup=[...] holds the lines before the start"),
    "python": Counterpart(refused="a job runs with the Python that submits it (sys.executable)"),
}

_PREFIX = "slurm_"

# The prefixes of what is meant for another cluster than Slurm.
_ELSEWHERE = ("local_", "debug_")

# Attributes and methods of submitit's executors that ours does not have.
EXECUTOR: Mapping[str, str] = {
    "parameters": "resources",
    "register_dev_folders": "nothing: the nodes read the folders of the submitting machine",
    "which": "cluster='auto', with which submit prints its choice",
    "affinity": "cluster='auto', with which submit prints its choice",
    "name": "cluster",
    "job_class": "hpc_launch.Job",
    "max_num_timeout": "resources.max_requeues",
    "max_pickle_size_gb": "resources.max_pickle_mb",
    "python": "sys.executable",
}

# Those of its jobs.
JOB: Mapping[str, str] = {
    "awaitable": "'await job', which returns results()",
    "cancel_at_deletion": "cancel()",
    "get_info": "record (Slurm's answer) and status() (each rank)",
    "num_tasks": "len(job.results())",
    "paths": "directory (the job directory) and logs(rank)",
    "stderr": "logs(rank), both streams of a rank",
    "stdout": "logs(rank), both streams of a rank",
    "submission": "<job_id>_call.pkl in the folder 'submitted'",
    "task": "result(rank=...) and logs(rank)",
    "task_id": "one job for all ranks: result(rank=...) and logs(rank)",
    "watcher": "record, Slurm's last answer",
}


def counterpart(key: str) -> Counterpart | None:
    """The counterpart of a keyword; None for a keyword that is no parameter of submitit's.

    `slurm_` before any other name makes an option of sbatch. Parameters for another cluster alone are refused:
    resources apply wherever a job runs.
    """
    for prefix in _ELSEWHERE:
        found = PARAMETERS.get(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if found is not None:
            ours = found.resource or key.removeprefix(prefix)
            return found if found.refused else Counterpart(refused=f"use {ours}, which applies wherever a job runs")
    if key.startswith(_PREFIX):
        return PARAMETERS.get(key.removeprefix(_PREFIX), _SBATCH)
    return PARAMETERS.get(key)


def sbatch_option(key: str) -> str:
    """The option of sbatch, without its dashes, that a parameter of submitit's is."""
    return key.removeprefix(_PREFIX).replace("_", "-")


def is_for_slurm(key: str) -> bool:
    """Whether a keyword has the prefix of parameters for Slurm: such a keyword overrides one without."""
    return key.startswith(_PREFIX)


def refusal(key: str) -> str:
    """The message for a refused parameter of submitit's, with what to use instead; empty for any other name."""
    found = counterpart(key)
    return f"submitit's '{key}' does not exist here: {found.refused}" if found is not None and found.refused else ""


def meaning(key: str) -> str:
    """The hint for a parameter of submitit's that `submit` does not take by this name; empty for any other name."""
    found = counterpart(key)
    if found is None or found.refused:
        return refusal(key)
    return f"submitit's '{key}' is {found.resource or _PREFIX + key} here"


def attribute_error(kind: str, name: str, known: Mapping[str, str]) -> AttributeError:
    """The error for an attribute that does not exist; for a name of submitit's the message has its counterpart."""
    hint = f"; in place of submitit's: {known[name]}" if name in known else ""
    return AttributeError(f"'{kind}' has no attribute '{name}'{hint}")
