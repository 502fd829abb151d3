"""A batch job: what becomes of it, and what it wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import wait_for

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster

# A job in one of these does not change any more. (A job that is requeued is COMPLETING, then PENDING.)
FINAL = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        state: COMPLETED, FAILED, CANCELLED, ...
        exit_code: The exit code of the batch script.
        signal: The signal that ended the batch script, or 0.
        derived: The highest exit code of the job's steps.
        output: What the job wrote to its output file.
    """

    state: str
    exit_code: int
    signal: int
    derived: int
    output: str


@dataclass(frozen=True)
class Job:
    """A job of a cluster."""

    cluster: Cluster
    id: str

    def record(self) -> dict[str, str]:
        """Return what slurmctld knows about the job, by `scontrol`'s names."""
        question = ["scontrol", "show", "job", "--details", "--oneliner", self.id]
        line = self.cluster.ask(question).stdout.partition("\n")[0]
        return dict(re.findall(r"(\S+?)=(.*?)(?= [^\s=]+=|$)", line.strip()))

    def state(self) -> str:
        """Return the job's state."""
        return self.record()["JobState"]

    def output(self) -> str:
        """Return what the job has written so far."""
        record = self.record()
        paths = dict.fromkeys(Path(record[key]) for key in ("StdOut", "StdErr") if key in record)
        return "".join(path.read_text(errors="replace") for path in paths if path.is_file())

    def wait_for_state(self, *states: str, timeout: float = 60) -> str:
        """Wait until the job is in one of these states, and return which."""

        def reached() -> str | None:
            state = self.state()
            if state in FINAL and state not in states:
                raise AssertionError(f"job {self.id} will not be {' or '.join(states)}: {self.describe()}")
            return state if state in states else None

        return wait_for(reached, timeout, self.describe, pause=0.1) or ""

    def wait(self, timeout: float = 60) -> JobResult:
        """Wait until the job has ended, wherever it goes before that."""
        wait_for(lambda: self.state() in FINAL, timeout, self.describe, pause=0.2)
        record = self.record()
        exit_code, signal = map(int, record["ExitCode"].split(":"))
        derived = int(record.get("DerivedExitCode", "0:0").split(":")[0])
        return JobResult(record["JobState"], exit_code, signal, derived, self.output())

    def cancel(self) -> None:
        """Cancel the job."""
        self.cluster.run(["scancel", self.id])

    def signal(self, name: str, *options: str) -> None:
        """Send a signal to the job's steps, or with ``--batch`` or ``--full`` to its batch script."""
        self.cluster.run(["scancel", f"--signal={name}", *options, self.id])

    def describe(self) -> str:
        """Tell everything about the job that may explain why it is not where it should be."""
        record = self.cluster.run(["scontrol", "show", "job", self.id]).stdout
        return f"job {self.id}\n{record}\n--- its output\n{self.output()}\n{self.cluster.diagnose()}"
