"""What a job needs for hpc-launch to do its work, whoever writes its script: a template of ours, or submitit. Pure."""

from __future__ import annotations

from collections.abc import Container, Sequence

# Without it the shell of the script would die of the first SIGTERM, and take srun along.
TRAP = "trap : TERM"

# Of a job that goes on when a node is lost: an option of the job, and lines for its steps, which some clusters end
# for a task that has failed (KillOnBadExit).
MAY_LOSE_NODES = {"no-kill": ""}
STEPS_MAY_LOSE_NODES = (
    "# Also the step goes on when a node is lost (srun --no-kill --kill-on-bad-exit=0).",
    "export SLURM_NO_KILL=set SLURM_KILL_BAD_EXIT=0",
)


def requeue(reasons: Sequence[str], said: Container[str]) -> dict[str, str]:
    """Slurm's option for a job that is to run again: on some clusters none does that does not say so.

    Args:
        reasons: the words of `--requeue`.
        said: the names of the options that are given; where one of them is about this, it counts.
    """
    return {"requeue": ""} if reasons and "requeue" not in said and "no-requeue" not in said else {}
