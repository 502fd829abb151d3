"""Run a training script as planned."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence

from hpc_launch import held_signals, imports, slow_storage, torch_release
from hpc_launch.console import say
from hpc_launch.errors import HpcLaunchError, UsageError
from hpc_launch.launch import plain, srun_step
from hpc_launch.plan import derivation
from hpc_launch.plan.launch_context import LaunchContext, check_address, check_script
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.plan.start_method import WARM
from hpc_launch.plan.step_plan import wanted_allocation
from hpc_launch.records import directory
from hpc_launch.settings import PROCESS_WORDS, CpuBind, Settings
from hpc_launch.slurm.environment import Step
from hpc_launch.workers.factory import CannotBeWarmError, Factory, Imports, build_factory, spawn_factory
from hpc_launch.workers.script import home


def run_launcher(settings: Settings, script: Sequence[str], here: LaunchContext) -> None:
    """Start the script on this node's share of the ranks, and wait for the end of all.

    In an allocation, but outside of a step, that is the work of a step: then start it and wait for its end.

    Raises:
        HpcLaunchError: with the exit status that says how it failed.
    """
    job = wanted_allocation(settings, here)
    if job is not None:
        srun_step.run_as_step(settings, script, here, job)
        return
    if settings.plain:
        plain.run_plain(settings, script, here)
    with _held_back(settings.notice_signals) as mask:
        srun_step.refuse_login_node(settings, here)
        with _others_told(settings, script, here):
            plan = _prepare(settings, script, here)
            slow_storage.wait_for(lambda: directory.check_writable(plan.log_root), f"the log directory {plan.log_root}")
        torch_release.check_installed()  # the others cannot be told: that needs a torch of today
        with _others_told(settings, script, here):
            factory = _factory(plan, here.environ, mask)
        with imports.without_garbage_collection():
            from hpc_launch.agent.agent_run import run_agent  # noqa: PLC0415 - torch is slow to import

        run_agent(plan, here.environ, factory)


@contextlib.contextmanager
def _held_back(names: Sequence[str]) -> Iterator[Iterable[int]]:
    """Let signals wait until somebody listens: one may come while torch is imported, which can take minutes.

    Gives the signals that were blocked before, but for those that were held back already, and blocks no others in the
    end.
    """
    held = [signal.Signals[name] for name in names]
    mask = held_signals.without_held(signal.pthread_sigmask(signal.SIG_BLOCK, held), held)
    signal.pthread_sigmask(signal.SIG_SETMASK, {*mask, *held})
    try:
        yield mask
    except HpcLaunchError:
        while held and signal.sigtimedwait(held, 0) is not None:
            pass  # the error is what this process ends with
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _factory(plan: Plan, environ: Mapping[str, str], mask: Iterable[int]) -> Factory:
    """Import torch, the only time on this node, and make what forks the workers; or make what starts them.

    Args:
        plan: what to do.
        environ: the environment of the workers.
        mask: the signals that are to be blocked for the workers.
    """
    if not plan.start.warm:
        if plan.start.how != plan.settings.start:
            _explain(plan, plan.start.reason)
        return spawn_factory(mask)
    settings = {name: environ[name] for name, _ in plan.settings.default_env}
    if plan.omp_num_threads is not None:
        settings["OMP_NUM_THREADS"] = str(plan.omp_num_threads)
    try:
        place = home(plan.script[0], module=plan.settings.module or plan.settings.run_path)
        factory = build_factory(Imports(plan.start.modules, plan.start.preload, settings, place), mask)
    except CannotBeWarmError as error:
        if plan.settings.start == WARM:
            raise UsageError(f"--start warm: {error}; leave --start out", option="--start") from error
        _explain(plan, str(error))
        return spawn_factory(mask)
    for name, why in factory.left_out.items():
        _note(plan, f"each worker imports {name} (--preload) for itself: its import {why}")
    return factory


def _explain(plan: Plan, reason: str) -> None:
    """Say once why workers do not start as fast as they could."""
    _note(plan, f"workers are started by exec: {reason}")


def _note(plan: Plan, words: str) -> None:
    if plan.world.leader:
        say(f"note: {words}")


def _prepare(settings: Settings, script: Sequence[str], here: LaunchContext) -> Plan:
    check_script(settings, script[0], here.directory)
    if isinstance(settings.nproc_per_node, str) and settings.nproc_per_node not in PROCESS_WORDS:
        from hpc_launch.agent.agent_run import count_processes  # noqa: PLC0415 - torch is slow to import

        settings = dataclasses.replace(settings, nproc_per_node=count_processes(settings.nproc_per_node))
    plan = derivation.make_plan(settings, here, script)
    if plan.own_rendezvous and len(plan.world.hosts) > 1:
        check_address(settings, leader=plan.world.leader)
    return plan


@contextlib.contextmanager
def _others_told(settings: Settings, script: Sequence[str], here: LaunchContext) -> Iterator[None]:
    """Tell the other agents of an error that ends this one."""
    try:
        yield
    except HpcLaunchError as error:
        _tell_others(settings, script, here, error)
        raise


def _tell_others(settings: Settings, script: Sequence[str], here: LaunchContext, problem: HpcLaunchError) -> None:
    """Let the other agents of a step hear why this one cannot take part, so that none of them waits for it.

    What is wrong may be wrong on this node only (a file that is missing here, fewer devices). All nodes then end with
    the same status, and the first of them says why; where nobody can be told this returns.
    """
    if not isinstance(here.slurm, Step) or here.slurm.tasks == 1:
        return
    # Enough to find the others; whatever else was asked for may be the problem.
    bare = dataclasses.replace(
        settings,
        # A run that may lose nodes has a rendezvous of its own, which this node is to be heard in.
        nnodes=settings.nnodes if settings.may_lose_nodes else None,
        node_rank=None,
        nproc_per_node=None,
        cpu_bind=CpuBind("none"),
        virtual_local_rank=False,
        interface="auto",
        local_addr=None,
    )
    try:
        plan = derivation.make_plan(bare, here, script)
    except HpcLaunchError:
        return
    if plan.own_rendezvous and plan.world.agents > 1:
        from hpc_launch.agent.agent_run import refuse  # noqa: PLC0415 - torch is slow to import

        refuse(plan, here.environ, problem)
