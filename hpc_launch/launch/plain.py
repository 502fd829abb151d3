"""`--plain`: torchrun with the derived values, or the script itself, in the place of this process.

For the night in which hpc-launch itself may be what is in the way. Nothing of it runs once the workers start: it has no
agent, factory, rendezvous, binding, records, requeue or console then.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from hpc_launch import held_signals, redaction, secret_variables
from hpc_launch.console import flush, say
from hpc_launch.errors import ScriptError
from hpc_launch.node import limits
from hpc_launch.plan import derivation
from hpc_launch.plan.launch_context import LaunchContext, check_script
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.settings import Origin, Settings, specs, toml_writer

# What torchrun is told of the plan; all else that is torchrun's it is told as it was given.
_DERIVED = frozenset(
    {
        "nnodes",
        "nproc_per_node",
        "node_rank",
        "master_addr",
        "master_port",
        "rdzv_backend",
        "rdzv_endpoint",
        "rdzv_id",
        "standalone",
        "virtual_local_rank",
        "log_line_prefix_template",
    }
)

# torchrun has a variable for this, and no option (torch/distributed/launcher/api.py).
_PREFIX_VARIABLE = "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"

# Options of hpc-launch's own that the plan has used, and of torchrun's that its variables do not set.
_USED = frozenset(
    {
        "plain",
        "verbose",
        "profile",
        "hosts",
        "hostfile",
        "nodes",
        "jobid",
        "overlap",
        "port_range",
        "use_env",
        "omp_num_threads",
        "default_env",
        "gpu_bind",
        "open_files",
    }
)


@dataclass(frozen=True)
class Program:
    """What takes the place of this process.

    Attributes:
        words: the program and its arguments.
        environ: its environment.
    """

    words: tuple[str, ...]
    environ: Mapping[str, str]


def run_plain(settings: Settings, script: Sequence[str], here: LaunchContext) -> NoReturn:
    """Become what starts the workers; the exit status is that of this program.

    Raises:
        UsageError: for options that cannot be meant.
        ContextError: when what is asked for and what is there contradict each other.
        ScriptError: the script, or the program, is not there.
    """
    check_script(settings, script[0], here.directory)
    plan = derivation.make_plan(settings, here, script)
    program = program_of(plan, here)
    if plan.world.leader:
        say(f"note: --plain: {shlex.join(redaction.redacted_arguments(program.words, settings.secret_names))}")
        unused = ignored(settings)
        if unused:
            say(f"note: --plain: without effect: {', '.join(unused)}")
    flush()
    held_signals.release()
    limits.set_open_files(plan.open_files)
    try:
        os.execvpe(program.words[0], program.words, program.environ)  # noqa: S606 - a shell has no part in it
    except OSError as error:
        raise ScriptError(f"{program.words[0]}: {error.strerror}") from error


def program_of(plan: Plan, here: LaunchContext) -> Program:
    """What starts the workers of this agent. Pure.

    Args:
        plan: the run.
        here: this process.
    """
    if plan.world.task_per_rank and plan.own_rendezvous:
        return Program(_script(plan, here), _environment(plan, here))
    environ = secret_variables.without_secrets(here.environ)
    if plan.omp_num_threads is not None:
        environ["OMP_NUM_THREADS"] = str(plan.omp_num_threads)
    if plan.settings.log_line_prefix_template is not None:
        environ[_PREFIX_VARIABLE] = plan.settings.log_line_prefix_template
    module = "torch.distributed.run" if plan.settings.use_env else "torch.distributed.launch"
    return Program((here.interpreter, "-m", module, *_options(plan), *plan.script), environ)


def ignored(settings: Settings) -> tuple[str, ...]:
    """The flags of what was asked for on the command line or by a variable, and is not done. Pure."""
    asked = [name for name, origin in settings.origins.items() if origin in (Origin.FLAG, Origin.ENVIRONMENT)]
    known = specs()
    return tuple(
        known[name].flag
        for name in asked
        if not known[name].torchrun_variable and name not in _USED and name != "numa_binding"
    )


def _options(plan: Plan) -> list[str]:
    """The options of torchrun (torch/distributed/run.py)."""
    settings, world = plan.settings, plan.world
    words = [f"--nnodes={plan.nnodes if not plan.own_rendezvous else world.agents}"]
    words += [f"--nproc-per-node={plan.local_world_size}"]
    if not plan.own_rendezvous:
        words += [f"--rdzv-backend={plan.backend}", f"--rdzv-endpoint={plan.endpoint}", f"--rdzv-id={plan.run_id}"]
        words += [f"--node-rank={world.agent_rank}"]
    elif world.agents == 1:
        words += ["--standalone"]
    else:
        port = settings.master_port or plan.ports[0]
        words += [f"--node-rank={world.agent_rank}", f"--master-addr={plan.leaders[0]}", f"--master-port={port}"]
    words += ["--virtual-local-rank"] if plan.isolated else []
    words += [f"--numa-binding={settings.numa_binding}"] if settings.numa_binding is not None else []
    for name, spec in specs().items():
        if not settings.given(name) or not spec.torchrun_variable or name in _DERIVED:
            continue
        value = getattr(settings, name)
        words += [f"{spec.flag}={toml_writer.text(value)}"] if not spec.is_flag else [spec.flag] if value else []
    return words


def _script(plan: Plan, here: LaunchContext) -> tuple[str, ...]:
    """What a worker runs."""
    settings = plan.settings
    script, *arguments = plan.script
    local_rank = () if settings.use_env else (f"--local-rank={plan.world.local_agent}",)
    if settings.no_python:
        return (script, *local_rank, *arguments)
    python = here.environ.get("PYTHON_EXEC", here.interpreter)
    return (python, "-u", *(("-m",) if settings.module else ()), script, *local_rank, *arguments)


def _environment(plan: Plan, here: LaunchContext) -> dict[str, str]:
    """The environment of the one worker of this task, which is the same as without --plain."""
    from hpc_launch.workers.worker_environment import AttemptEnvironment, WorkerNumbers, worker_environment  # noqa: PLC0415 - for this case only

    world, settings = plan.world, plan.settings
    return worker_environment(
        here.environ,
        place=WorkerNumbers(
            world.agent_rank, world.agents, world.local_agent, world.local_agents, world.agent_rank, world.agents
        ),
        attempt=AttemptEnvironment(
            number=0,
            label=0,
            master_addr=settings.master_addr or plan.leaders[0],
            master_port=settings.master_port or plan.ports[0],
            max_restarts=0,
            run_id=plan.run_id,
            role=settings.role,
            use_agent_store=False,
        ),
        world=world,
        devices=plan.devices,
        isolated=plan.isolated,
        omp_num_threads=plan.omp_num_threads,
        slurm_env=settings.slurm_env,
        job_directory="",
        gpu_bind=settings.gpu_bind,
    )
