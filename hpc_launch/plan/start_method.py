"""Decide how workers start: forked from a process that has imported torch, or as new processes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_launch.errors import UsageError
from hpc_launch.plan.cpu_binding import openmp_places
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.plan.script_scan import scan
from hpc_launch.settings import PROCESS_WORDS, Settings

WARM, EXEC = "warm", "exec"

# What every worker imports.
ALWAYS = ("torch",)


@dataclass(frozen=True)
class StartMethod:
    """How workers start.

    Attributes:
        how: `warm` or `exec`.
        reason: who said so, or why it cannot be otherwise.
        modules: what is imported beforehand.
        preload: what is imported as well, where workers can be forked after that.
    """

    how: str
    reason: str
    modules: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()

    @property
    def warm(self) -> bool:
        """Whether workers are forked."""
        return self.how == WARM


def choose_start_method(
    settings: Settings, here: LaunchContext, script: Sequence[str], *, bound: bool = False
) -> StartMethod:
    """Say how the workers of a script are to start.

    Args:
        settings: what was asked for.
        here: this node.
        script: the script and its arguments.
        bound: each worker has CPUs of its own.

    Raises:
        UsageError: when `--start warm` asks for what cannot be.
    """
    asked = settings.origin("start").value
    if settings.start == EXEC:
        return StartMethod(EXEC, asked)
    reason = impossible(settings, here, bound=bound)
    if reason is not None and settings.start == WARM:
        raise UsageError(f"--start warm: {reason}; leave --start out", option="--start")
    if reason is None and settings.start != WARM and script:
        reason = _unwise(settings, here, script[0])
    if reason is not None:
        return StartMethod(EXEC, reason)
    return StartMethod(WARM, asked, ALWAYS, settings.preload)


def impossible(settings: Settings, here: LaunchContext, *, bound: bool = False) -> str | None:
    """Why workers cannot be forked at all."""
    option = "--numa-binding" if settings.numa_binding is not None else "--cpu-bind" if bound else ""
    places = openmp_places(here.environ) if option else None
    python, options = here.environ.get("PYTHON_EXEC"), " ".join(here.interpreter_options)
    processes = settings.nproc_per_node
    obstacles = (
        (settings.no_python, "--no-python starts a program"),
        (settings.given("start_method") and settings.start_method == "spawn", "--start-method spawn was asked for"),
        (
            isinstance(processes, str) and processes not in PROCESS_WORDS,
            f"torch had to be asked about --nproc-per-node {processes} before",
        ),
        (python and python != here.interpreter, f"PYTHON_EXEC is another Python ({python})"),
        (places, f"OpenMP takes its CPUs ({places}) when torch is imported, before workers have theirs ({option})"),
        (options, f"this Python was started with {options}, which the workers are not to have"),
    )
    return next((reason for true, reason in obstacles if true), None)


def _unwise(settings: Settings, here: LaunchContext, script: str) -> str | None:
    """Why a script had better not be forked, as far as its text says."""
    if settings.module:
        path = here.directory.joinpath(*script.split("."))
        place, candidates = (
            here.directory,
            [path.with_name(f"{path.name}.py"), path / "__init__.py", path / "__main__.py"],
        )
    else:
        path = here.directory / script
        place, candidates = path.parent, [path, path / "__main__.py"]
    found = scan(candidates, place, here.read)
    unwanted = sorted(found.imports & set(settings.exec_for))
    if unwanted:
        return f"the script imports {', '.join(unwanted)} (--exec-for)"
    if found.sets:
        name, line = next(iter(found.sets.items()))
        return f"{line} sets {name}, which is read when torch is imported"
    return None
