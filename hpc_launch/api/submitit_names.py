"""submitit's names, and what stands here in their place: parameters of its executors, attributes, methods. Pure.

The names are those of submitit 1.5 (`AutoExecutor._typed_parameters`, `slurm._make_sbatch_string`, `core.Job`). A test
compares them with the submitit that is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Counterpart:
    """What stands in the place of a parameter of submitit's.

    Attributes:
        resource: the resource of ours that it sets; empty where it is an option of sbatch, or refused.
        refused: what to say or do instead, where there is no such thing here; empty otherwise.
        convert: makes our value of submitit's.
    """

    resource: str = ""
    refused: str = ""
    convert: Callable[[Any], Any] = lambda value: value


# An option of sbatch, by the same name with dashes.
_SBATCH = Counterpart()

_STEP = Counterpart(
    refused="hpc-launch starts the step itself; options of the job go into slurm={...}, those of the agents into "
    "launch={...}"
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
    "stderr_to_stdout": Counterpart(refused="logs(rank) of a job has both streams of a rank"),
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
    "gpus_per_task": Counterpart(refused="say gpus_per_node: one task on each node, the agent, has all of its GPUs"),
    "srun_args": _STEP,
    "use_srun": _STEP,
    "teardown": Counterpart(refused="do it at the end of the function; setup=[...] has the lines before the start"),
    "python": Counterpart(refused="a job runs by the Python that submits it (sys.executable): submit by that one"),
}

_PREFIX = "slurm_"

# The prefixes of what is meant for another cluster than Slurm.
_ELSEWHERE = ("local_", "debug_")

# Attributes and methods of submitit's executors that ours does not have.
EXECUTOR: Mapping[str, str] = {
    "parameters": "resources has what the jobs get",
    "register_dev_folders": "the nodes see the folders of the submitting machine; nothing is archived",
    "which": "cluster='auto' chooses, and submit says in a line what it chose",
    "affinity": "cluster='auto' chooses, and submit says in a line what it chose",
    "name": "cluster has what was asked for",
    "job_class": "every job is a hpc_launch.Job",
    "max_num_timeout": "resources.max_requeues",
    "max_pickle_size_gb": "resources.max_pickle_mb",
    "python": "jobs run by sys.executable",
}

# Those of its jobs.
JOB: Mapping[str, str] = {
    "awaitable": "'await job' is results()",
    "cancel_at_deletion": "cancel() ends the job",
    "get_info": "record has what Slurm says, status() where each rank stands",
    "num_tasks": "there is a result for each rank: len(job.results())",
    "paths": "directory is the job directory, logs(rank) has what a rank wrote",
    "stderr": "logs(rank) has both streams of a rank",
    "stdout": "logs(rank) has both streams of a rank",
    "submission": "<job>_call.pkl in the folder 'submitted' has the call",
    "task": "result(rank=...) and logs(rank) are those of one rank",
    "task_id": "a job is one for all of its ranks",
    "watcher": "record has what Slurm says; it is asked once for all jobs",
}


def counterpart(key: str) -> Counterpart | None:
    """What stands in the place of a keyword; None where it is no parameter of submitit's.

    `slurm_` before anything else is an option of sbatch. What is meant for another cluster alone is refused: resources
    are the same wherever a job runs.
    """
    for prefix in _ELSEWHERE:
        found = PARAMETERS.get(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if found is not None:
            ours = found.resource or key.removeprefix(prefix)
            return found if found.refused else Counterpart(refused=f"say {ours}: it counts wherever a job runs")
    if key.startswith(_PREFIX):
        return PARAMETERS.get(key.removeprefix(_PREFIX), _SBATCH)
    return PARAMETERS.get(key)


def sbatch_option(key: str) -> str:
    """The option of sbatch, without its dashes, that a parameter of submitit's is."""
    return key.removeprefix(_PREFIX).replace("_", "-")


def is_for_slurm(key: str) -> bool:
    """Whether a keyword has the prefix of what is meant for Slurm: it counts more than one without."""
    return key.startswith(_PREFIX)


def refusal(key: str) -> str:
    """Why a parameter of submitit's is not taken, and what to say instead; empty where it is taken, or none."""
    found = counterpart(key)
    return f"'{key}' of submitit is not there: {found.refused}" if found is not None and found.refused else ""


def meaning(key: str) -> str:
    """What a parameter of submitit's is here, for a message about one that `submit` does not take; empty for others."""
    found = counterpart(key)
    if found is None or found.refused:
        return refusal(key)
    return f"'{key}' of submitit is {found.resource or _PREFIX + key} here"


def attribute_error(kind: str, name: str, known: Mapping[str, str]) -> AttributeError:
    """What is raised for an attribute that is not there; it names ours where submitit has one of that name."""
    hint = f": {known[name]}" if name in known else ""
    return AttributeError(f"'{kind}' has no '{name}'{' of submitit' if hint else ''}{hint}", name=name)
