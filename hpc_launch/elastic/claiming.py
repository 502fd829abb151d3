"""The claim of a job directory for a run, made by its first node."""

from __future__ import annotations

import os
import time

from hpc_launch.plan.derive import local_job_name
from hpc_launch.plan.identity import Identity
from hpc_launch.records import claims
from hpc_launch.records.claims import ClaimedRun
from hpc_launch.records.directory import JobDirectory


def claim(job: JobDirectory, identity: Identity, *, private: bool = False) -> ClaimedRun:
    """Claim the directory in which a run goes on, or begins. It may wait for the file system.

    Args:
        job: the directory that the run has in the ordinary case; its name is empty outside of Slurm.
        identity: the run.
        private: let nobody else into the directory.

    Raises:
        LogDirError: when nothing can be written there.
    """
    lineage = identity.lineage
    return claims.claim_run(
        job.root,
        job.job or local_job_name(time.time(), os.getpid()),
        identity.program,
        lineage.incarnation,
        place=lineage.place,
        named=lineage.named,
        private=private,
    )
