"""Commands that differ between the tasks of one run, and those of two runs in one step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hpc_launch.plan.similar_commands import Command, command_of, similar


def task(rank: int, local: int, node: int, *words: str) -> Command:
    """Return the command of a task, in the same working directory as the others."""
    environ = {
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local),
        "SLURM_NODEID": str(node),
        "SLURMD_NODENAME": f"gpu{node:03}",
    }
    return command_of(("/home/me", *words), environ, f"gpu{node:03}.cluster")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["train.py", "0", "0", "0"], ["train.py", "13", "1", "3"]),
        (["train.py", "--shard=0"], ["train.py", "--shard=13"]),
        (["train.py", "--log", "/tmp/gpu000/x"], ["train.py", "--log", "/tmp/gpu003/x"]),
        (["train.py", "--cache=/tmp/gpu000.cluster"], ["train.py", "--cache=/tmp/gpu003.cluster"]),
        (["train.py", "rank0"], ["train.py", "rank0"]),
    ],
)
def test_commands_of_one_run_differ_by_their_tasks_numbers(first: Sequence[str], second: Sequence[str]) -> None:
    assert similar(task(0, 0, 0, *first), task(13, 1, 3, *second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["train.py", "1"], ["train.py", "100"]),
        (["train.py", "--lr=1e-3"], ["train.py", "--lr=1e-4"]),
        (["train.py", "left"], ["train.py", "right"]),
        (["train.py", "10"], ["train.py", "13"]),
        (["train.py"], ["train.py", "13"]),
        (["train.py", "0"], ["eval.py", "13"]),
        (["train.py", "0-1"], ["train.py", "13-2"]),
    ],
)
def test_commands_of_two_runs_differ_otherwise(first: Sequence[str], second: Sequence[str]) -> None:
    assert not similar(task(0, 0, 0, *first), task(13, 1, 3, *second))


def test_long_commands_are_compared_as_a_whole() -> None:
    """They have no digests of words, and so are similar to none."""
    assert task(0, 0, 0, *map(str, range(500))) == Command()


def test_what_is_sent_is_short() -> None:
    """The text of words is sent only where it holds a value of the task."""
    command = task(13, 1, 3, "train.py", "--token=abc", "--shard=13")

    assert command.texts == {"3": "--shard=13"}
