"""The plan of a round: what the coordinator decides for all agents before their workers start. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_launch.codec import checked
from hpc_launch.rendezvous.messages.field_checks import COUNT, HOST, JOB, LINE, PORT, read_workers, write_workers
from hpc_launch.rendezvous.messages.message import Message


@dataclass(frozen=True)
class RoundPlan(Message):
    """What the coordinator decides for a round.

    Attributes:
        master_addr: where the store of the workers is.
        master_port: its port.
        workers: workers of each agent, by agent.
        job: name of the job directory.
        first_attempt: number of the job directory's first attempt of this run.
        run_id: the run's id for its workers (TORCHELASTIC_RUN_ID).
    """

    master_addr: str = checked(HOST)
    master_port: int = checked(PORT)
    workers: Sequence[int] = checked(read_workers, write=write_workers)
    job: str = checked(JOB)
    first_attempt: int = checked(COUNT)
    run_id: str = checked(LINE, "")
