"""Build Slurm command lines: lists of words, run by nobody here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def run_step(command: Sequence[str], *, nodes: int, cpus_per_task: str = "") -> list[str]:
    """The srun line that starts one agent on each of `nodes` nodes.

    `--cpus-per-task` is repeated where the job has it, because srun of Slurm 22.05 to 23.02 does not take it from the
    job's variables, and the step would get one CPU (release notes of 22.05 and 23.11). `--ntasks` is needed beside
    `--ntasks-per-node`, because a job's SLURM_NTASKS would win over that (srun(1)).
    """
    line = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    if cpus_per_task:
        line.append(f"--cpus-per-task={cpus_per_task}")
    return [*line, *command]


def quote(command: Sequence[str]) -> str:
    """The command as a line for the shell."""
    return shlex.join(command)
