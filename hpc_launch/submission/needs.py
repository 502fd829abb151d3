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


def hold_lines(names: str) -> tuple[str, ...]:
    """Lines that find out, where the script runs, whether env(1) can hold signals back; they set the variable `hold`.

    Args:
        names: of the signals, separated by commas and without SIG.
    """
    return (
        f"# {names} would end a step that has just begun. env holds it back until hpc-launch listens (coreutils 8.31).",
        f"if env --block-signal={names} true 2> /dev/null; then hold=yes; else hold=; fi",
    )


def held(names: str) -> str:
    """What stands before a command that begins with these signals held back, after `hold_lines`."""
    return f"${{hold:+env --block-signal={names}}}"


def requeue(reasons: Sequence[str], said: Container[str]) -> dict[str, str]:
    """Slurm's option for a job that is to run again: on some clusters none does that does not say so.

    Args:
        reasons: the words of `--requeue`.
        said: the names of the options that are given; where one of them is about this, it counts.
    """
    return {"requeue": ""} if reasons and "requeue" not in said and "no-requeue" not in said else {}
