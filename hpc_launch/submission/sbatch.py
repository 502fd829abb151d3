"""Call sbatch: the one place that does."""

from __future__ import annotations

import difflib
import re
import subprocess
from dataclasses import dataclass

from hpc_launch import secret_variables
from hpc_launch.errors import SlurmError
from hpc_launch.slurm.directives import LETTERS
from hpc_launch.submission.job_request import Submission
from hpc_launch.submission.submit_options import OF_SBATCH

_PREFIX = re.compile(r"^sbatch: ((fatal|error|warning): )?(?P<said>.*)$")
# What getopt_long says of an option that sbatch does not have.
_UNKNOWN_OPTION = re.compile(r"unrecognized option '--([\w-]+)")
_START = re.compile(
    r"Job \d+ to start at (?P<when>\S+) using (?P<cpus>\d+) processors on (nodes )?(?P<nodes>\S+)"
    r"( in partition (?P<partition>\S+))?"
)


@dataclass(frozen=True)
class SubmittedJob:
    """A job that Slurm has accepted.

    Attributes:
        job_id: its number.
        cluster: the cluster, where it is not the one of this place.
        said: what Slurm, or a site's plugin, had to say about it.
    """

    job_id: str
    cluster: str = ""
    said: tuple[str, ...] = ()

    @property
    def parsable(self) -> str:
        """What `sbatch --parsable` prints."""
        return f"{self.job_id};{self.cluster}" if self.cluster else self.job_id


def run_sbatch(submission: Submission) -> SubmittedJob:
    """Submit a job.

    Raises:
        SlurmError: Slurm refuses it; the message is Slurm's.
    """
    done = _run(submission)
    job_id, _, cluster = done.stdout.strip().rpartition("\n")[2].partition(";")
    if done.returncode or not job_id.isdigit():
        raise refusal(done.stderr, f"sbatch ended with status {done.returncode}")
    return SubmittedJob(job_id, cluster, tuple(_lines(done.stderr)))


def verdict(submission: Submission) -> str:
    """Ask Slurm whether it would take the job, and when it would start. Nothing is submitted.

    Raises:
        SlurmError: it would not; the message is Slurm's.
    """
    done = _run(submission, "--test-only")
    if done.returncode:
        raise refusal(done.stderr, f"sbatch ended with status {done.returncode}", "would refuse")
    match = _START.search(done.stderr)
    if match is None:
        return "; ".join(_lines(done.stderr)) or "Slurm would take the job"
    where = f" of partition {match['partition']}" if match["partition"] else ""
    return f"would start at {match['when']} on {match['nodes']}{where}, with {match['cpus']} CPUs"


def _run(submission: Submission, *words: str) -> subprocess.CompletedProcess[str]:
    """Without a time limit: a controller that is busy makes sbatch wait, and a job may come of it."""
    try:
        return subprocess.run(
            [*submission.command, *words],
            env=secret_variables.with_own_secret(submission.environ),
            input=submission.script,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
    except OSError as error:
        raise SlurmError(f"cannot run sbatch: {error.strerror or error}: is this a machine of the cluster?") from error


def refusal(said: str, otherwise: str, how: str = "refuses") -> SlurmError:
    """What is raised where Slurm does not take a job.

    Args:
        said: what sbatch has written.
        otherwise: what is said where that is nothing.
        how: what Slurm does.
    """
    return SlurmError(f"Slurm {how} the job: {'; '.join(dict.fromkeys(_lines(said))) or otherwise}{_nearest(said)}")


def _nearest(said: str) -> str:
    """The option that was meant, where Slurm does not know one."""
    unknown = _UNKNOWN_OPTION.search(said)
    near = difflib.get_close_matches(unknown[1], [*OF_SBATCH, *LETTERS.values()], n=1) if unknown else []
    return f"; did you mean --{near[0]}?" if near else ""


def _lines(text: str) -> list[str]:
    said = (match["said"] if (match := _PREFIX.match(line)) else line for line in text.splitlines())
    return [line.strip().removeprefix("Batch job submission failed: ") for line in said if line.strip()]
