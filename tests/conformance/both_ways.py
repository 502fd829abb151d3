"""Run a script as a new process and as a forked one, and keep what either says."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("driver.py")

# A script that takes longer hangs.
DEADLINE = 120.0

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": os.environ.get("HOME", "/"),
    "LANG": "C.UTF-8",
    "PYTHONPATH": str(REPOSITORY),
    # What makes it a worker, which can be asked where it is.
    "HPC_LAUNCH_JOB_DIRECTORY": "/nowhere/logs/1.0",
    "HPC_LAUNCH_ATTEMPT": "0",
    "RANK": "0",
    # A worker leaves its exception in this file, which cannot be made: nothing of that may show.
    "TORCHELASTIC_ERROR_FILE": "/proc/nowhere/error.json",
}

# Starts Python with standard input closed.
CLOSING = "import os, sys; os.close(0); os.execv(sys.argv[1], sys.argv[1:])"

_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


@functools.cache
def pythons() -> dict[str, str]:
    """Find the Pythons that hpc-launch is for, by version: the one that runs the tests, and others on this machine."""
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    for version in ("3.10", "3.11", "3.12", "3.13"):
        programs = [*sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True)]
        on_path = shutil.which(f"python{version}")
        for program in [*map(str, programs), *([on_path] if on_path else [])]:
            if subprocess.run([program, "-c", "import hashlib"], capture_output=True, check=False).returncode == 0:
                found.setdefault(version, program)
    return found


@dataclass(frozen=True)
class Run:
    """How a script ended, and what it wrote."""

    status: int
    out: str
    err: str


class Starter:
    """Starts scripts in one folder and one environment, both ways."""

    def __init__(
        self,
        folder: Path,
        python: Sequence[str],
        environ: Mapping[str, str],
        driver: subprocess.Popen[bytes],
        talk: tuple[int, int],
    ) -> None:
        self.folder = folder
        self._python = python
        self._environ = environ
        self._driver = driver
        self._requests, answers = talk
        self._answers = os.fdopen(answers)
        self._count = 0

    def compare(self, *arguments: str, stdin: bytes | None = None, environ: Mapping[str, str] | None = None) -> Run:
        """Run `python -u ARGUMENTS` both ways, see that they are the same, and return what they did."""
        alone = self.alone(*arguments, stdin=stdin, environ=environ)
        forked = self.forked(*arguments, environ=environ)
        assert alone == forked
        return alone

    def _files(self, kind: str) -> tuple[Path, Path]:
        self._count += 1
        base = self.folder / ".outputs"
        base.mkdir(exist_ok=True)
        return base / f"{self._count}.{kind}.out", base / f"{self._count}.{kind}.err"

    def alone(self, *arguments: str, stdin: bytes | None = None, environ: Mapping[str, str] | None = None) -> Run:
        """Run it as a new process."""
        out, err = self._files("exec")
        given = self.folder / ".stdin"
        given.write_bytes(stdin or b"")
        with out.open("ab") as stdout, err.open("ab") as stderr, given.open("rb") as input_file:
            process = subprocess.run(
                [*self._python, "-u", *arguments],
                cwd=self.folder,
                env={**self._environ, **(environ or {})},
                stdin=input_file,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                timeout=DEADLINE,
                check=False,
            )
        return _run(process.returncode, out, err)

    def forked(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Run:
        """Fork it."""
        out, err = self._files("warm")
        request = {
            "arguments": ["-u", *arguments],
            "environ": {**self._environ, **(environ or {})},
            "out": str(out),
            "err": str(err),
        }
        os.write(self._requests, json.dumps(request).encode() + b"\n")
        answer = self._answers.readline()
        assert answer, f"the driver ended with {self._driver.wait(10)}: {err.read_text() if err.exists() else ''}"
        return _run(json.loads(answer)["status"], out, err)

    def close(self) -> None:
        """End the driver."""
        os.close(self._requests)
        self._answers.close()
        try:
            self._driver.wait(10)
        except subprocess.TimeoutExpired:
            driver = psutil.Process(self._driver.pid)
            for process in (driver, *driver.children(recursive=True)):  # a script that hangs among them
                process.kill()
            self._driver.wait()


@contextlib.contextmanager
def starter(
    folder: Path,
    python: str = sys.executable,
    *,
    environ: Mapping[str, str] | None = None,
    modules: Sequence[str] = (),
    stdin: bytes | None = b"",
) -> Iterator[Starter]:
    """Start a driver in a folder; `stdin` None is closed."""
    merged = {**ENVIRONMENT, **(environ or {})}
    given = folder / ".stdin"
    given.write_bytes(stdin or b"")
    command = [python] if stdin is not None else [python, "-c", CLOSING, python]
    read_requests, write_requests = os.pipe()
    read_answers, write_answers = os.pipe()
    with given.open("rb") as input_file:
        driver = subprocess.Popen(
            [*command, str(DRIVER), str(read_requests), str(write_answers), *modules],
            cwd=folder,
            env=merged,
            stdin=input_file,
            pass_fds=(read_requests, write_answers),
        )
    os.close(read_requests)
    os.close(write_answers)
    made = Starter(folder, command, merged, driver, (write_requests, read_answers))
    try:
        yield made
    finally:
        made.close()


def _run(status: int, out: Path, err: Path) -> Run:
    texts = [path.read_text(errors="surrogateescape") for path in (out, err)]
    for number, text in enumerate(texts):
        texts[number] = _ADDRESS.sub("0x", text).replace(".warm.", ".").replace(".exec.", ".")
    return Run(status, *texts)
