"""Launch real workers on this machine, and see what they got.

Workers are small scripts that import no torch. Each leaves a record of itself in a file: its environment, arguments,
process id and so on, whatever becomes of its output.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil

from tests.support import LEAVE, wait_for

HPC_LAUNCH = (sys.executable, "-m", "hpc_launch")
LAUNCH_MODULE = (sys.executable, "-m", "hpc_launch.launch")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
TORCH_LAUNCH = (sys.executable, "-m", "torch.distributed.launch")

# Changes of the environment; None takes a variable away.
Environ = Mapping[str, str | None]

# No launch here takes longer, on however slow a machine: one that does hangs.
TIMEOUT = 240

# Outlives every test, and nobody waits for its end.
FOREVER = "import time\ntime.sleep(3600)"

_PROBE = """\
import json, os, sys
from pathlib import Path

_me = f"{os.getpid()}.json"
_folder = Path(os.environ["PROBE_RECORDS"])
_words = Path("/proc/self/cmdline").read_bytes().decode().split(chr(0))
_record = {"env": dict(os.environ), "argv": sys.argv, "pid": os.getpid(), "command": _words, "cwd": os.getcwd()}
(_folder / f".{_me}").write_text(json.dumps(_record))
(_folder / f".{_me}").rename(_folder / _me)
"""


@dataclass(frozen=True)
class Record:
    """What a worker said of itself when it began."""

    env: Mapping[str, str]
    argv: Sequence[str]
    pid: int
    command: Sequence[str]
    cwd: str

    def __getitem__(self, name: str) -> str | None:
        return self.env.get(name)


@dataclass(frozen=True)
class Finished:
    """A launcher that has ended: what it said, and the records of its workers, by attempt and rank."""

    status: int
    out: str
    err: str
    records: Sequence[Record]

    def seen(self, *names: str) -> list[tuple[str | None, ...]]:
        """List the values of these variables, worker by worker."""
        return [tuple(record[name] for name in names) for record in self.records]


class Running:
    """A launcher that runs."""

    def __init__(self, process: subprocess.Popen[bytes], records: Path, out: BinaryIO, err: BinaryIO) -> None:
        self.process = process
        self._records = records
        self._out = out
        self._err = err

    def records(self) -> list[Record]:
        """List the workers so far."""
        found = [Record(**json.loads(path.read_text())) for path in self._records.glob("[0-9]*.json")]
        return sorted(found, key=lambda record: [_number(record, name) for name in ("HPC_LAUNCH_ATTEMPT", "RANK")])

    def await_records(self, count: int) -> list[Record]:
        """Wait until so many workers have begun."""
        wait_for(lambda: len(self.records()) >= count or self.process.poll() is not None, TIMEOUT, "no workers")
        records = self.records()
        assert len(records) == count, self._read(self._err)
        return records

    def said(self) -> str:
        """Read its stderr so far; it shares the position in the file, which stays where it is."""
        descriptor = self._err.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def finish(self) -> Finished:
        """Wait for the end."""
        try:
            status = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs: {self._read(self._out)}\n{self._read(self._err)}") from None
        return Finished(status, self._read(self._out), self._read(self._err), self.records())

    @staticmethod
    def _read(stream: BinaryIO) -> str:
        stream.seek(0)
        return stream.read().decode()


def _number(record: Record, name: str) -> int:
    return int(record[name] or 0)


@contextlib.contextmanager
def running(
    folder: Path, *words: str, program: Sequence[str] = HPC_LAUNCH, env: Environ | None = None
) -> Iterator[Running]:
    """Start a launcher in `folder`; whatever is left of it afterwards is killed.

    `env` changes the environment.
    """
    records = Path(tempfile.mkdtemp(dir=folder, prefix="records-"))
    merged = {**os.environ, "PROBE_RECORDS": str(records), "CUDA_VISIBLE_DEVICES": "", **(env or {})}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [*program, *words],
            cwd=folder,
            env={name: value for name, value in merged.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            yield Running(process, records, out, err)
        finally:
            if process.poll() is None:
                launcher = psutil.Process(process.pid)
                for victim in (launcher, *launcher.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        victim.kill()
                process.wait()


def launch(folder: Path, *words: str, program: Sequence[str] = HPC_LAUNCH, env: Environ | None = None) -> Finished:
    """Run a launcher in `folder` to its end."""
    with running(folder, *words, program=program, env=env) as launcher:
        return launcher.finish()


def launch_nodes(folder: Path, *nodes: Sequence[str], common: Sequence[str] = ()) -> list[Finished]:
    """Run one launcher for each node, at the same time: its own words first, then those that all have."""
    with contextlib.ExitStack() as stack:
        launchers = [stack.enter_context(running(folder, *words, *common)) for words in nodes]
        return [launcher.finish() for launcher in launchers]


def write(path: Path, text: str) -> Path:
    """Write a file, and the directories that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def probe(folder: Path, body: str = "", name: str = "train.py") -> str:
    """Write a worker that leaves its record and then does `body`, if there is any; returns its name."""
    write(folder / name, _PROBE + (textwrap.dedent(body) or LEAVE))
    return name


def free_port() -> int:
    """Find a port that nobody uses, outside of the range that hpc-launch chooses from."""
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port: int = probe_socket.getsockname()[1]
    return port


def alive(pid: int) -> bool:
    """Say whether a process runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def one_task_step(host: str = "node7") -> dict[str, str]:
    """The variables of a Slurm step with one task, on a node of that name."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "2",
        "SLURM_STEP_NODELIST": host,
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_STEP_TASKS_PER_NODE": "1",
        "SLURM_JOB_NODELIST": host,
        "SLURMD_NODENAME": host,
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NTASKS": "1",
        "SLURM_GTIDS": "0",
    }
