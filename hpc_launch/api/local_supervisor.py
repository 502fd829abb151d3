"""See to a job that was started here, and outlive who has: `python -m hpc_launch.api.local_supervisor BASE JOB`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from hpc_launch import codec
from hpc_launch.api import agent_process
from hpc_launch.api.submission_files import JobFiles, SubmissionRecord, read_own_json, write_json
from hpc_launch.errors import HpcLaunchError
from hpc_launch.node import processes
from hpc_launch.records.claims import Holder
from hpc_launch.records.directory import JobDirectory


def start_supervised(files: JobFiles) -> None:
    """Start what the record of a job names. It is nobody's child, and goes on when this process ends.

    Raises:
        HpcLaunchError: it could not be started.
    """
    with files.log.open("ab") as out, files.errors.open("ab") as errors:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(files.base), files.job_id],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            check=False,
        )
    if done.returncode:
        raise HpcLaunchError(f"job {files.job_id} could not be started: see {files.errors}")


def main(base: str, job_id: str) -> None:
    """Leave a process behind that runs the agent, or the step, and writes down how it ended."""
    files = JobFiles(Path(base), job_id)
    # `cancel` signals this process as soon as its id is in the file: a signal waits until the agent can get it.
    signal.pthread_sigmask(signal.SIG_BLOCK, agent_process.STOPS)
    pid = os.fork()  # this process has a single thread
    if pid:
        write_json(files.process, Holder(socket.gethostname(), pid, processes.start_time(pid)))
        return
    os.setsid()
    record = codec.build(SubmissionRecord, read_own_json(files.record))
    job = record.directory
    ending = agent_process.run_agent_process(record.command)
    agent_process.conclude(files, JobDirectory(job.parent, job.name), ending.status, {}, cancelled=ending.stopped)


if __name__ == "__main__":
    main(*sys.argv[1:])
