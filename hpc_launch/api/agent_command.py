"""The words that start the agent of a job, and what submitit is told of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_launch.api.job_resources import Resources
from hpc_launch.submission import needs

WORKER = "hpc_launch.api.function_worker"

# What `launch` may say about nodes: nothing to an agent that is alone.
_OF_NODES = frozenset({"nnodes", "spares"})

# What a callable that can be checkpointed runs again for, and any other. A time limit is seen coming (`notice`): where
# the checkpoint was not written by then there is nothing to go on with.
CHECKPOINTED = ("on-notice", "on-preempt")
OTHERS = ("on-preempt",)

# The signals that a job's first process must live through: submitit's own before the time limit is one of them.
HELD_BACK = "USR1,USR2"

# Minutes, where nobody says: submitit has five.
DEFAULT_MINUTES = 60


def agent_words(
    python: str,
    resources: Resources,
    what: Sequence[str],
    *,
    log_dir: Path,
    requeue: Sequence[str],
    options: Sequence[str] = (),
) -> list[str]:
    """The line that starts an agent: `hpc-launch run`, by the Python that is used here.

    Args:
        python: the interpreter.
        resources: what was asked for.
        what: `-m` and a module, or a script, its arguments following.
        log_dir: where the job directory goes.
        requeue: when the job is to run again.
        options: further options.
    """
    words = [python, "-m", "hpc_launch", "run", f"--log-dir={log_dir}"]
    if resources.ranks_per_node is not None:
        words.append(f"--nproc-per-node={resources.ranks_per_node}")
    if resources.max_restarts:
        words.append(f"--max-restarts={resources.max_restarts}")
    if requeue:
        words.append(f"--requeue={','.join(requeue)}")
    if resources.max_requeues is not None:
        words.append(f"--max-requeues={resources.max_requeues}")
    words += options
    left_out = _OF_NODES if "--standalone" in options else ()
    for name, value in resources.launch_options.items():
        if name not in left_out and value is not None and value is not False:
            words.append(f"--{name}" if value is True else f"--{name}={value}")
    return [*words, *what]


def allocation_words(resources: Resources, most: int) -> tuple[str, ...]:
    """The words about nodes for an agent that starts a step in an allocation of so many nodes."""
    words = node_words(resources, most)
    if "nnodes" in resources.launch_options or any(word.startswith("--nnodes=") for word in words):
        return words
    return (f"--nodes={resources.all_nodes.maximum}", *words)


def node_words(resources: Resources, most: int | None = None) -> tuple[str, ...]:
    """The words about nodes for an agent on each of them: how many are enough, and how many are to spare.

    Args:
        resources: what was asked for.
        most: how many nodes there are at most, if that is less than what was asked for.
    """
    everywhere = resources.all_nodes
    most = everywhere.maximum if most is None else min(most, everywhere.maximum)
    words = (f"--spares={resources.spares}",) if resources.spares else ()
    if resources.node_range.minimum < resources.node_range.maximum:
        return (f"--nnodes={resources.node_range.minimum}:{most}", *words)
    return words


def after_setup(setup: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    """A line that is run after lines of bash, as in a job script: a line that fails does not stop it.

    Args:
        setup: the lines of bash.
        words: the line.
    """
    return ("bash", "-c", "\n".join([*setup, 'exec "$@"']), "setup", *words) if setup else tuple(words)


def requeue_words(resources: Resources, *, checkpointed: bool) -> tuple[str, ...]:
    """When a job is to run again: what was said, else what its callable can do."""
    said = resources.requeue_words
    if said is None:
        return CHECKPOINTED if checkpointed else OTHERS
    return () if "never" in said else said


def slurm_options(resources: Resources) -> dict[str, Any]:
    """What Slurm is asked for, by the names of sbatch's options; True for one without a value, as submitit has it."""
    found: dict[str, Any] = {
        "nodes": str(resources.all_nodes).replace(":", "-"),
        "cpus-per-task": resources.cpus_per_task,
        "gpus-per-node": resources.gpus_per_node or None,
        "mem": _memory(resources.mem) if resources.mem is not None else None,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        **resources.slurm,
        **(dict.fromkeys(needs.MAY_LOSE_NODES, True) if resources.may_lose_nodes else {}),
    }
    return {name: value for name, value in found.items() if value is not None and value is not False}


def submitit_parameters(resources: Resources, *, requeue: Sequence[str] = ()) -> dict[str, Any]:
    """What `submitit.AutoExecutor.update_parameters` is given: one task on each node, an agent with its ranks.

    Args:
        resources: what was asked for.
        requeue: when the job is to run again.
    """
    minutes = resources.minutes or DEFAULT_MINUTES
    options = slurm_options(resources)
    # srun of Slurm 22.05 to 23.02 does not take the CPUs over from the job (slurm.commands.run_step).
    srun = [f"--cpus-per-task={resources.cpus_per_task}"] if resources.cpus_per_task else []
    ranged = resources.node_range.minimum < resources.node_range.maximum
    if ranged:
        # Said to sbatch, Slurm would count tasks, and stop at the first nodes that are enough.
        srun.append("--ntasks-per-node=1")
    steps = needs.STEPS_MAY_LOSE_NODES if resources.may_lose_nodes else ()
    found: dict[str, Any] = {
        "name": resources.name,
        "timeout_min": minutes,
        "nodes": resources.all_nodes.maximum,
        "tasks_per_node": None if ranged else 1,
        "slurm_array_parallelism": resources.array_parallelism,
        # Of a short job the larger part is to be over: a callable would be told at once, and never get anywhere.
        "slurm_signal_delay_s": min(resources.notice, minutes * 60 // 3),
        "slurm_setup": [needs.TRAP, *needs.hold_lines(HELD_BACK), *steps, *resources.setup_lines],
        "slurm_srun_args": srun or None,
        "slurm_additional_parameters": {**options, **dict.fromkeys(needs.requeue(requeue, options), True)},
    }
    return {name: value for name, value in found.items() if value is not None}


def _memory(mem: str | float) -> str:
    if isinstance(mem, str):
        return mem
    return f"{int(mem)}G" if mem == int(mem) else f"{int(mem * 1024)}M"
