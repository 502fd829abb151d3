"""The files of a submission, beside the job directory that its run has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_launch import codec, file_ownership
from hpc_launch.codec import CodecError
from hpc_launch.records import directory

# In the folder of an executor, next to the job directories.
SUBMITTED = "submitted"

# The beginning of the names of jobs that run in the process that submits them.
IN_PROCESS = "debug-"

_LONGEST_CLUSTER = 100

# What calls and results hold is for their user only, whatever the umask says.
PICKLE_MODE = 0o600


@dataclass(frozen=True)
class JobFiles:
    """The files of one submission; every name comes from here. Those that are submitit's have submitit's names.

    Attributes:
        base: the directory that they are in.
        job_id: the job's id: `12`, `12_3` for one of an array, or what a job that Slurm does not know was called.
    """

    base: Path
    job_id: str

    @property
    def record(self) -> Path:
        """What was submitted: a `SubmissionRecord`."""
        return self.base / f"{self.job_id}.json"

    @property
    def call(self) -> Path:
        """The function with its arguments."""
        return self.base / f"{self.job_id}_call.pkl"

    @property
    def outcome(self) -> Path:
        """How it ended, an `Outcome`: written last, by the first task."""
        return self.base / f"{self.job_id}_outcome.json"

    @property
    def is_of_this_process(self) -> bool:
        """Whether the job ran in the process that submitted it: such a one has a name only."""
        return self.job_id.startswith(IN_PROCESS) and self.record.exists()

    @property
    def exist(self) -> bool:
        """Whether there is anything of it."""
        return self.record.exists() or self.outcome.exists() or self.call.exists()

    @property
    def process(self) -> Path:
        """Which process sees to it, of a job that Slurm does not."""
        return self.base / f"{self.job_id}_process.json"

    @property
    def log(self) -> Path:
        """What the agent of the first task says."""
        return self.base / f"{self.job_id}_0_log.out"

    @property
    def errors(self) -> Path:
        """What it says as an error."""
        return self.base / f"{self.job_id}_0_log.err"


def array_files(base: Path, array: str) -> list[JobFiles]:
    """The files of the jobs of an array, in the order of their numbers; nothing where there is no such array.

    A job that a submitit executor has submitted leaves a record only when it starts; submitit's copy of its call is
    there before.

    Args:
        base: the directory that they are in.
        array: the id of the array, such as `12`.
    """
    if not array.isdigit():
        return []
    name = re.compile(rf"{array}_(\d+)(\.json|_submitted\.pkl)")
    found = [match for path in base.glob(f"{array}_*") if (match := name.fullmatch(path.name))]
    if not any(match[2] == ".json" for match in found):
        return []
    return [JobFiles(base, f"{array}_{number}") for number in sorted({int(match[1]) for match in found})]


@dataclass(frozen=True)
class SubmissionRecord:
    """What was submitted.

    Attributes:
        job_id: the job's id.
        cluster: what runs it: `slurm`, `allocation`, `local` (see `api.backend_choice`), or what submitit calls it.
        name: what runs: a function, a script.
        script: the script with its arguments, without secrets; empty for a function.
        directory: its job directory.
        submitted: when, in seconds since the epoch; None in the record that a job makes of itself.
        resources: those that were asked for.
        command: the line that runs it, of a job that Slurm does not start: with all its words, secrets included.
    """

    job_id: str
    cluster: str = field(metadata={"check": codec.text(_LONGEST_CLUSTER)})
    name: str
    script: tuple[str, ...]
    directory: Path = field(metadata={"check": codec.path})
    submitted: float | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: the exit status of its agents, the same on all nodes.
        directory: its job directory.
        time: when, in seconds since the epoch.
        cancelled: the job was cancelled, outside of Slurm; Slurm itself knows of its own jobs.
    """

    status: int = field(metadata={"check": codec.whole})
    directory: Path
    time: float = 0.0
    cancelled: bool = False


def write_record(path: Path, record: SubmissionRecord) -> None:
    """Write what was submitted, for its user only where it has a command.

    Raises:
        LogDirError: it cannot be written.
    """
    write_json(path, codec.sparse(record), PICKLE_MODE if record.command else 0o666)


def read_record(path: Path) -> SubmissionRecord | None:
    """What was submitted; None where that is not written."""
    try:
        return codec.salvage(SubmissionRecord, read_json(path))
    except CodecError:
        return None


def read_outcome(path: Path) -> Outcome | None:
    """How a job ended; None where that is not written yet."""
    try:
        return codec.salvage(Outcome, read_json(path))
    except CodecError:
        return None


def write_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file of a submission, whole or not at all. Its directory may be one that several users share.

    Raises:
        LogDirError: it cannot be written.
    """
    try:
        with file_ownership.open_shared(path.parent) as folder:
            directory.put(folder, path.name, data, mode)
    except OSError as error:
        raise directory.unusable(path.parent, error) from error


def write_json(path: Path, value: Any, mode: int = 0o666) -> None:
    """Write an object, a dataclass or plain values, whole or not at all.

    Raises:
        LogDirError: it cannot be written.
    """
    write_file(path, codec.document(value).encode(), mode)


def read_own_json(path: Path) -> dict[str, Any]:
    """An object in a file of one's own, to act on it; empty where there is none."""
    try:
        return codec.parse(file_ownership.read_shared(path)) or {}
    except OSError:
        return {}


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file; empty where there is none that can be read."""
    try:
        return codec.parse(path.read_bytes()) or {}
    except OSError:
        return {}


def write_once(path: Path, data: bytes) -> None:
    """Write a pickle, whole; one that is there already stays. Several nodes may do so at the same time.

    Raises:
        OSError: it cannot be written.
    """
    if file_ownership.is_own(path):
        return
    with file_ownership.open_shared(path.parent) as folder:
        # What another node puts there meanwhile is the same; what another user has put there is not read.
        directory.put(folder, path.name, data, PICKLE_MODE)
