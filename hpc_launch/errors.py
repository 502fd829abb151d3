"""Every way in which hpc-launch itself can fail, each with its exit status.

The tree:

    HpcLaunchError           70  the base: something inside went wrong
    +-- UsageError            2  an option, a value or a combination of them
    |   +-- HostlistError     2  a host list or host file that cannot be read
    +-- CallError            65  a function, its arguments or its result cannot be sent
    |   +-- ResultError        65  the results of some ranks cannot be read here
    +-- ScriptError          66  the training script is not there or not readable
    +-- JobNotFoundError     66  there is no directory of the job that is asked about
    +-- RendezvousError      69  the nodes did not come together
    |   +-- RendezvousTimeout 69  some of them never came
    |   +-- RoundRefused     69  one has a problem (then its status), or they run different programs
    |   +-- NoSecretError    77  the agents have no secret by which to know each other
    +-- SlurmError           71  Slurm refuses what is asked of it, or does not know any more
    +-- LogDirError          73  the job directory cannot be written
    +-- StepError            75  Slurm did not start the step that is to do the work
    +-- ContextError         78  what Slurm says and what was asked for contradict each other
    +-- WorkerError           *  a worker failed: its own status (128+N for signal N)
    +-- JobFailed             *  a job that was watched from Python ended without success: its own status
    |   +-- WorkerFailed      *  because of a worker, which left no exception
    +-- Interrupted       128+N  the launcher was told to stop by signal N

The numbers from 64 on are those of BSD's sysexits.h, which leaves 1 to 63 to the training scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class HpcLaunchError(Exception):
    """The base of all errors; its message is one line that says what was found, expected, and how to mend it."""

    exit_status: int = 70
    silent: bool = False
    """Whether it has been said already, by this process or by another node's agent."""


def reason(error: OSError | UnicodeDecodeError) -> str:
    """Why a file could not be read, in a few words."""
    return "it is not text" if isinstance(error, UnicodeDecodeError) else str(error.strerror or error)


def exit_status_of(returncode: int) -> int:
    """The exit status of a process from its return code, which subprocess gives as -N for signal N: then 128+N.

    So shells say it (bash(1), EXIT STATUS).
    """
    return returncode if returncode >= 0 else 128 - returncode


class UsageError(HpcLaunchError):
    """An option or its value is not usable.

    Attributes:
        option: the setting at fault, for instance ``--nnodes``; empty where several are.
    """

    exit_status = 2

    def __init__(self, message: str, *, option: str = "") -> None:
        super().__init__(message)
        self.option = option


class HostlistError(UsageError):
    """A host list or a host file cannot be read.

    Attributes:
        expression: the whole text.
        part: the part of it that is wrong.
    """

    def __init__(self, message: str, *, expression: str = "", part: str = "") -> None:
        super().__init__(message)
        self.expression = expression
        self.part = part


class CallError(HpcLaunchError):
    """A function, its arguments or its result cannot be sent between here and a job's workers."""

    exit_status = 65


class ResultError(CallError):
    """The results of some ranks cannot be read here: a class is missing, a file is damaged, or somebody else's.

    Attributes:
        results: what the other ranks returned, by rank.
        files: the file of each rank whose result cannot be read, by rank.
        errors: why it cannot be, by rank.
    """

    def __init__(
        self,
        message: str,
        *,
        results: Mapping[int, Any] | None = None,
        files: Mapping[int, Path] | None = None,
        errors: Mapping[int, Exception] | None = None,
    ) -> None:
        super().__init__(message)
        self.results = dict(results or {})
        self.files = dict(files or {})
        self.errors = dict(errors or {})


class ScriptError(HpcLaunchError):
    """The training script is missing or not readable."""

    exit_status = 66


class JobNotFoundError(HpcLaunchError):
    """There is no directory of the job that is asked about.

    Attributes:
        looked: where it was looked for.
    """

    exit_status = 66

    def __init__(self, message: str, *, looked: tuple[Path, ...] = ()) -> None:
        super().__init__(message)
        self.looked = looked


class RendezvousError(HpcLaunchError):
    """The nodes did not come together."""

    exit_status = 69


class RendezvousTimeout(RendezvousError):
    """Some nodes did not come in time.

    Attributes:
        missing: their names, in host-list order.
    """

    def __init__(self, message: str, *, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


class RoundRefused(RendezvousError):
    """The nodes met, and cannot start together: one of them has a problem, or they run different programs.

    The first node says it for all; the status is that of the problem.
    """

    def __init__(self, message: str, *, exit_status: int = RendezvousError.exit_status, silent: bool = False) -> None:
        super().__init__(message)
        self.exit_status = exit_status
        self.silent = silent


class NoSecretError(RendezvousError):
    """The agents of a run have no secret by which to know each other."""

    exit_status = 77


class SlurmError(HpcLaunchError):
    """Slurm refuses what is asked of it, cannot be asked, or does not know any more how a job ended."""

    exit_status = 71


class LogDirError(HpcLaunchError):
    """The job directory cannot be made or written."""

    exit_status = 73


class StepError(HpcLaunchError):
    """Slurm did not start a step: others have what it needs, for the most part."""

    exit_status = 75


class ContextError(HpcLaunchError):
    """What Slurm says about this place, and what was asked for, contradict each other."""

    exit_status = 78


class WorkerError(HpcLaunchError):
    """A worker failed for good; the message names it, the status is its own."""

    silent = True

    def __init__(self, message: str, *, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class JobFailed(HpcLaunchError):
    """A job ended without success, and no exception of a worker says why.

    Attributes:
        job_id: the job's id.
        state: what became of it, in Slurm's words: FAILED, TIMEOUT, CANCELLED and so on.
    """

    def __init__(self, message: str, *, job_id: str = "", state: str = "FAILED", exit_status: int = 1) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.state = state
        self.exit_status = exit_status or 1


class WorkerFailed(JobFailed):
    """A worker failed first, and left no exception that can be raised here: a crash, a signal, `os._exit`.

    Attributes:
        rank: which one.
        host: on which node.
        signal: the name of the signal that ended it, such as `SIGSEGV`; empty where none did.
        status: its exit status; 128+N for signal N.
        log: the file with its errors; empty where it is not known.
    """

    def __init__(
        self, message: str, *, job_id: str = "", rank: int, host: str, signal: str = "", status: int, log: str = ""
    ) -> None:
        super().__init__(message, job_id=job_id, exit_status=status)
        self.rank = rank
        self.host = host
        self.signal = signal
        self.status = status
        self.log = log


class Interrupted(HpcLaunchError):
    """The launcher was told to stop by a signal.

    Args:
        signum: number of the signal.
        name: its name.
        said: somebody has said so already.
    """

    def __init__(self, signum: int, name: str, *, said: bool = False) -> None:
        super().__init__(f"stopped by {name}")
        self.exit_status = 128 + signum
        self.silent = said
