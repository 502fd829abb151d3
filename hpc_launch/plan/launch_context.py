"""What is true of this process and its node: looked at once, then passed on as a value."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_launch.errors import ContextError, ScriptError, UsageError, reason
from hpc_launch.node import containers, device_locations, devices, limits, network, terminal, topology
from hpc_launch.node.device_locations import Location
from hpc_launch.node.devices import Devices
from hpc_launch.node.topology import Topology
from hpc_launch.settings import Settings
from hpc_launch.slurm import controller
from hpc_launch.slurm.environment import Allocation, Step, Traced, locate, trace
from hpc_launch.slurm.steps import task_environment
from hpc_launch.world import World

# Seconds for a question to Slurm on a start that seems to have nothing to do with it.
_BRIEF_PATIENCE = 2.0


def _unknown() -> None:
    """Where there is nothing to ask."""


def _not_asked(_node: str) -> int:
    """Where it is not worth a question."""
    return 0


@dataclass(frozen=True)
class LaunchContext:
    """What is true of this process and its node.

    Attributes:
        environ: the environment.
        directory: the working directory.
        host: this node's name for itself.
        slurm: where in Slurm this is.
        devices: the accelerators it may use.
        cpus: the number of CPUs it may use (sched_getaffinity).
        position: says where this node stands in a list of names; a parameter because it asks the resolver.
        read: gives a file's text.
        command: the words by which hpc-launch was called, for a line that can be typed.
        interpreter: the Python that runs this.
        interpreter_options: with which options it was started, before the name of the program.
        again: the command line that starts the same once more, on another node as well.
        has_srun: whether srun is there, to start steps with.
        allowed: the CPUs it may use.
        topology: gives what shares a core or a NUMA node; a parameter because it reads many files.
        locations: gives where the devices are, in their order, if that can be known; for the same reason.
        pid: the id of this process.
        traced: the step that this is in although the environment does not say so; None for what is typed into a shell.
        traced_size: gives how many tasks that step has, or nodes the job of that script; a parameter because it asks
            Slurm.
        configured_gpus: gives how many GPUs Slurm has to give on a node, where it is worth a question: there is an
            accelerator, or somebody wants to know all (`explain`); 0 elsewhere.
        open_files: the soft and the hard limit of open files.
        typed_into: standard input is a terminal, and this process is in its foreground.
        contained: a container runtime has started this, and nobody types into it.
    """

    environ: Mapping[str, str]
    directory: Path
    host: str
    slurm: Step | Allocation | None
    devices: Devices
    cpus: int
    position: Callable[[Sequence[str]], int | None]
    read: Callable[[Path], str]
    command: tuple[str, ...] = ()
    interpreter: str = ""
    interpreter_options: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    has_srun: bool = False
    allowed: frozenset[int] = frozenset()
    topology: Callable[[], Topology] = Topology
    locations: Callable[[], tuple[Location, ...]] = tuple
    pid: int = 0
    traced: Traced | None = None
    traced_size: Callable[[], int | None] = _unknown
    configured_gpus: Callable[[str], int] = _not_asked
    open_files: tuple[int, int] = (1024, 1024)
    typed_into: bool = False
    contained: bool = False


def gather_context(
    environ: Mapping[str, str], settings: Settings, command: Sequence[str] = (), *, thorough: bool = False
) -> LaunchContext:
    """Look at this process and its node.

    Args:
        environ: the environment.
        settings: whether to look at Slurm (--standalone), which job is meant (--jobid), and what else the environment
            is to have (--default-env).
        command: the words by which hpc-launch was called.
        thorough: ask Slurm also what a start would not wait for.

    Raises:
        ContextError: when Slurm's variables contradict each other, or the job is not one to start something in.
    """
    environ = task_environment(environ)
    allowed = frozenset(os.sched_getaffinity(0))
    visible = devices.find_devices(environ)
    traced = None if settings.standalone else trace(environ, _own_cgroup())
    if traced is not None and has_job_control():
        traced = None
    slurm = None if settings.standalone else _place(environ, settings.jobid or "")
    return LaunchContext(
        environ={**dict(settings.default_env), **environ},
        directory=Path.cwd(),
        host=network.short_name(socket.gethostname()),
        slurm=slurm,
        devices=visible,
        cpus=len(allowed),
        position=network.position,
        read=Path.read_text,
        command=tuple(command),
        interpreter=sys.executable,
        interpreter_options=interpreter_options(sys.orig_argv),
        again=(sys.executable, *sys.orig_argv[1:]),
        has_srun=shutil.which("srun") is not None,
        allowed=allowed,
        topology=functools.partial(topology.read, allowed),
        locations=functools.partial(device_locations.find_locations, visible, dict(environ)),
        pid=os.getpid(),
        traced=traced,
        traced_size=functools.cache(lambda: controller.ask_size(traced, _BRIEF_PATIENCE)) if traced else _unknown,
        configured_gpus=_ask_configured_gpus if thorough or devices.any_accelerator() else _not_asked,
        open_files=limits.open_files_limits(),
        typed_into=terminal.in_foreground(),
        contained=slurm is None and containers.in_container(environ) and not os.isatty(0),
    )


@functools.cache
def _ask_configured_gpus(node: str) -> int:
    return controller.ask_configured_gpus(node, _BRIEF_PATIENCE)


def _place(environ: Mapping[str, str], job: str) -> Step | Allocation | None:
    """Where in Slurm this is, or the job that was asked for; in the step of that job it has been found already."""
    found = locate(environ, _own_cgroup(), shell=has_job_control())
    if not job or (isinstance(found, Step) and found.ours):
        return found
    if isinstance(found, Step):
        raise ContextError(
            f"--jobid {job} in a step of job {found.job_label}: each of its {found.tasks} task(s) would start a step: "
            "leave out srun, or --jobid"
        )
    return found if found and job in (found.job_id, found.job_label) else controller.ask_allocation(job)


def has_job_control() -> bool:
    """Whether this process was started by a shell into which somebody types.

    Such a shell has a terminal, and puts every command into a process group of its own; what srun or a script starts
    stays in that of the first process of its session.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(terminal)
    return os.getpgrp() != os.getsid(0)


def interpreter_options(words: Sequence[str]) -> tuple[str, ...]:
    """The options of a Python command line, but for `-m` which names the program. Pure.

    `-u` is no matter: workers have it anyway.
    """
    options = list(itertools.takewhile(lambda word: word.startswith("-") and word not in ("-m", "-c", "-"), words[1:]))
    return tuple(option for option in options if option != "-u")


def addresses(world: World) -> tuple[str, ...]:
    """What the name of the first node means on this one; nothing where it is alone."""
    return network.resolve_name(world.hosts[0]) if len(world.hosts) > 1 else ()


def _own_cgroup() -> str:
    try:
        return Path("/proc/self/cgroup").read_text()
    except OSError:
        return ""


def check_script(settings: Settings, script: str, directory: Path) -> None:
    """See that the training script can be started, so that a typo is one line and not one traceback per rank.

    Raises:
        ScriptError: naming the file.
    """
    if settings.module:
        return  # Python's import system finds it, and says what is wrong with it
    if settings.no_python:
        if shutil.which(directory / script if "/" in script else script) is None:
            raise ScriptError(f"no program '{script}' that could be run: not on PATH, or not executable (chmod +x)")
        return
    path = directory / script
    try:
        path.stat()
    except FileNotFoundError:
        raise ScriptError(f"no training script '{script}' in {directory}{_misplaced_option(script)}") from None
    except OSError as error:
        raise ScriptError(f"cannot look at the training script '{script}': {reason(error)}") from error
    if path.is_dir() and not (path / "__main__.py").exists():
        raise ScriptError(f"'{script}' is a directory without __main__.py: name a script, or use -m for a package")
    if not os.access(path, os.R_OK):
        raise ScriptError(f"the training script '{script}' is not readable by this user: chmod a+r it")


def check_address(settings: Settings, *, leader: bool) -> None:
    """See that this node has the address that was asked for, before anybody waits for it.

    Of the first node only, an address itself is looked at: people give all of them the same.

    Args:
        settings: what was asked for.
        leader: whether this is the first node.

    Raises:
        UsageError: naming where it was said.
    """
    address = network.asked_address(settings.local_addr, settings.interface, settings.places.get("interface", ""))
    if leader and address and network.is_address(address) and not network.is_local(address):
        raise UsageError(
            f"{settings.places['local_addr']}: {address} is no address of the first node: leave it out, or say "
            "--interface",
            option="--local-addr",
        )


def _misplaced_option(script: str) -> str:
    return "; is it an option without its value?" if script.startswith("-") or script.isdigit() else ""
