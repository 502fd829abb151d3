"""The identity of a run: which agents may meet, and what a run is called. Pure.

Two questions have two answers. *Who may meet* is decided by the place (the same for all agents that can be of one run)
and by the program (agents of different programs pass each other by). *What continues* after a requeue is decided by
the place and by the order of the runs in it (`records.claims`), so that a change of the arguments changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_launch import redaction
from hpc_launch.plan.similar_commands import WHOLE, Command


@dataclass(frozen=True)
class Lineage:
    """What continues: the runs of one place, through all starts of their job.

    Attributes:
        place: where they are, for instance `cluster/job/step`; empty outside of Slurm, where no run is started again.
        incarnation: how often Slurm has started the job again.
        apart: the user gave this run a place for its files, so that other runs may have the same name elsewhere.
    """

    place: str = ""
    incarnation: int = 0
    apart: bool = False


@dataclass(frozen=True)
class Identity:
    """What tells the runs of one user from each other.

    Attributes:
        place: where a run may happen, for instance `cluster/job/step/restart`; the same on every node of a run, and
            what keys are derived for.
        program: a hex digest of the command and its working directory, or of the id that the user gave.
        words: the command as people read it.
        explicit: the user gave an id (`--rdzv-id`): agents with the same id are one run, whatever they start.
        lineage: what the run continues.
        command: the command of this task, to see whether that of another task differs by the task's numbers only.
    """

    place: str
    program: str
    words: str
    explicit: bool
    lineage: Lineage = Lineage()
    command: Command = WHOLE


# For agents that are made without a plan.
UNKNOWN = Identity(place="", program="", words="", explicit=False)


def of_id(place: str, rdzv_id: str, script: Sequence[str], *, module: bool = False) -> Identity:
    """The identity of a run that the user has named: its id alone says which agents are of it."""
    return Identity(place, _digest("id", rdzv_id), command_as_text(script, module=module), explicit=True)


def of_command(
    place: str,
    script: Sequence[str],
    directory: Path,
    *,
    module: bool = False,
    no_python: bool = False,
    run_path: bool = False,
) -> Identity:
    """The identity of a run that has no name: what is started, and where.

    Settings such as the number of workers are no part of it, because nodes of one run may differ in them.
    """
    how = [name for name, given in (("module", module), ("no_python", no_python), ("run_path", run_path)) if given]
    program = _digest("command", str(directory), how, list(script))
    return Identity(place, program, command_as_text(script, module=module), explicit=False)


def run_id_of_workers(identity: Identity, run_id: str, job: Path, base: str, token: str) -> str:
    """The id of a run in its workers' environment (TORCHELASTIC_RUN_ID), which no other run has.

    Args:
        identity: the run.
        run_id: the id by which its agents meet.
        job: the job directory that it has claimed.
        base: the name of that directory in the ordinary case of one run.
        token: a random word, for runs that nothing else tells from others.
    """
    if identity.explicit:
        return run_id
    lineage = identity.lineage
    if not lineage.place:
        return f"{job.name}-{token}"
    _, number, step = lineage.place.rsplit("/", 2)
    apart = f"-{_digest('path', str(job))[:8]}" if lineage.apart else ""
    return f"{number}.{step}{job.name.removeprefix(base)}.{lineage.incarnation}{apart}"


def command_as_text(script: Sequence[str], *, module: bool = False, secret_names: Sequence[str] = ()) -> str:
    """A command as people read it; values of secrets are left out."""
    shown = redaction.redacted_arguments(script, secret_names)
    return shlex.join(("-m", *shown) if module and shown else shown)


def place_in_slurm(cluster: str, job: str, step: int | None) -> str:
    """A place in Slurm, the same for all starts of the job.

    Args:
        cluster: the name of the cluster; empty where it is unknown.
        job: the id of the job, that of the leader in a heterogeneous one.
        step: the number of the step; None outside of steps.
    """
    return f"{cluster or 'slurm'}/{job}/{'shell' if step is None else step}"


def place_of_hosts(hosts: Sequence[str], job: str = "") -> str:
    """The place of a run on listed hosts: the job of another scheduler, or the list itself."""
    return f"hosts/{job or hashlib.sha256(','.join(hosts).encode()).hexdigest()[:16]}"


def place_by_hand(rdzv_id: str) -> str:
    """The place of a run whose nodes are described by hand, each by its own command line."""
    return f"hand/{rdzv_id or 'none'}"


def place_of_process(host: str, pid: int) -> str:
    """The place of an agent that meets no others."""
    return f"alone/{host}/{pid}"


def _digest(*parts: object) -> str:
    # JSON keeps the parts apart: ["a b"] is another command than ["a", "b"].
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
