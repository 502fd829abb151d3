"""Hand tasks to submitit, in a clean environment: `python -m hpc_launch.api.submitit_process <ORDER >JOBS`.

submitit calls sbatch with the environment that it finds, and sbatch gives all of it to the job. So this process is
started with the right one, and nobody's `os.environ` changes; nor does a notebook import submitit.
"""

from __future__ import annotations

import importlib
import pickle
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_launch import codec, secret_variables
from hpc_launch.api.agent_command import HELD_BACK
from hpc_launch.api.elastic_task import ElasticTask
from hpc_launch.api.submission_files import PICKLE_MODE
from hpc_launch.codec import CodecError
from hpc_launch.errors import SlurmError
from hpc_launch.submission import needs, sbatch


@dataclass(frozen=True)
class _Submitted:
    """What came of it: the ids of the jobs, or what Slurm said when it refused them."""

    jobs: tuple[str, ...] = ()
    refused: str | None = None


def submit_by_submitit(
    folder: Path, tasks: Sequence[ElasticTask], parameters: Mapping[str, Any], environ: Mapping[str, str]
) -> list[str]:
    """Submit tasks: one as a job, several as a job array.

    Args:
        folder: submitit's.
        tasks: what to run.
        parameters: of submitit's AutoExecutor.
        environ: what sbatch, and the job, are given, besides a secret of the job's own.

    Returns:
        The ids of the jobs, in the order of the tasks.

    Raises:
        SlurmError: Slurm refuses the job; the message is Slurm's.
    """
    order = pickle.dumps({"folder": str(folder), "tasks": list(tasks), "parameters": dict(parameters)})
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=order,
        capture_output=True,
        env=secret_variables.with_own_secret(environ),
        check=False,
    )
    try:
        answer = codec.read(_Submitted, done.stdout)
    except CodecError:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
        raise SlurmError(f"submitit could not be asked to submit: {last}") from None
    if answer.refused is not None:
        raise sbatch.refusal(answer.refused, "sbatch says nothing")
    return list(answer.jobs)


def main() -> None:
    """Do what `submit_by_submitit` asks."""
    order = pickle.load(sys.stdin.buffer)  # noqa: S301 - from `submit_by_submitit`
    submitit = importlib.import_module("submitit")
    failed = importlib.import_module("submitit.core.utils").FailedJobError
    # submitit's process is to live until it hands signals on to the agent. Its own way in is `python -u -m`.
    python = f"{needs.held(HELD_BACK)} {shlex.quote(sys.executable)}"
    executor = submitit.AutoExecutor(folder=order["folder"], cluster="slurm", slurm_python=python)
    executor.update_parameters(**order["parameters"])
    try:
        jobs = (
            executor.submit_array(order["tasks"]) if len(order["tasks"]) > 1 else [executor.submit(order["tasks"][0])]
        )
        for job in jobs:
            # submitit's copy of the call. A umask would become that of the job.
            Path(job.paths.submitted_pickle).chmod(PICKLE_MODE)
        answer = _Submitted(tuple(str(job.job_id) for job in jobs))
    except failed as error:
        answer = _Submitted(refused=str(error))
    print(codec.write(answer))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
