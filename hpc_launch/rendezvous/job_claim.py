"""The claim of a job directory for a run, made by its first node before the first round."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass

from hpc_launch.console import say
from hpc_launch.node import processes
from hpc_launch.plan.identity import Identity, run_id_of_workers
from hpc_launch.plan.log_paths import local_job_name
from hpc_launch.records import claims
from hpc_launch.records.claims import Holder
from hpc_launch.records.directory import JobDirectory


@dataclass(frozen=True)
class ClaimedDirectory:
    """What the first node has decided about a run, for all agents of it.

    Attributes:
        job: the name of the job directory.
        first_attempt: the number of the run's first attempt in it.
        run_id: what workers read as TORCHELASTIC_RUN_ID.
    """

    job: str
    first_attempt: int
    run_id: str


def claim_job_directory(job: JobDirectory, identity: Identity, run_id: str) -> ClaimedDirectory:
    """Claim the directory in which a run begins or goes on. This waits for the file system.

    Args:
        job: the directory that the run has in the ordinary case; its name is empty outside of Slurm.
        identity: the run.
        run_id: the id by which its agents meet.

    Raises:
        LogDirError: when nothing can be written there.
    """
    lineage = identity.lineage
    base = job.job or local_job_name(time.time(), os.getpid())
    mine = claims.claim_run(
        job.root,
        base,
        identity.program,
        lineage.incarnation,
        place=lineage.place,
        holder=Holder(os.uname().nodename, os.getpid(), processes.start_time(os.getpid())),
        lives=_lives,
    )
    if mine.job != base:
        say(f"{job.root / base} is another run's: logs in {job.root / mine.job}")
    named = run_id_of_workers(identity, run_id, job.root / mine.job, base, uuid.uuid4().hex[:8])
    return ClaimedDirectory(mine.job, mine.first_attempt, named)


def _lives(holder: Holder) -> bool:
    """Whether a process is still there, as far as can be seen from this node."""
    return holder.host == os.uname().nodename and processes.is_same(holder.pid, holder.started)
