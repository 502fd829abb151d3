"""Who initialises CUDA: every worker itself, once, and never the process that it is forked from.

A stand-in takes the place of CUDA's driver and writes down who calls it (`tests/standin_cuda.c`). What torch does needs
a build of torch for CUDA, of several gigabytes: `make torch BUILD=cuda` has one, and HPC_LAUNCH_TEST_CUDA_PYTHON is a
Python with one, and with what hpc-launch needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.local.launching import Finished, launch, probe, write
from tests.support import mentions

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests/standin_cuda.c"

CUDA_PYTHON = os.environ.get("HPC_LAUNCH_TEST_CUDA_PYTHON") or (sys.executable if torch.version.cuda else None)

# A worker that uses CUDA itself, and leaves as other workers do.
INITIALISES = """
import ctypes
ctypes.CDLL("libcuda.so.1").cuInit(0)
os._exit(0)
"""

# A worker that asks torch for a device that is not there.
ASKS_TORCH = """
import torch
try:
    torch.zeros(1, device="cuda")
except (RuntimeError, AssertionError) as error:
    print(str(error).splitlines()[0], flush=True)
os._exit(0)
"""

# What training scripts commonly import, as far as the Python at hand has it.
COMMON = (
    "numpy",
    "torch.distributed.fsdp",
    "torch.utils.data",
    "sklearn",
    "matplotlib.pyplot",
    "torchvision",
    "transformers",
    "accelerate",
    "lightning",
)


@dataclass(frozen=True)
class Driver:
    """The stand-in."""

    folder: Path

    @property
    def environ(self) -> dict[str, str | None]:
        """What processes need in their environment to find it instead of a real one."""
        return {
            "LD_LIBRARY_PATH": str(self.folder),
            "STANDIN_CUDA_LOG": str(self.folder / "log"),
            "CUDA_VISIBLE_DEVICES": None,
            "PYTHONPATH": f"{ROOT}:more",
        }

    def calls(self, name: str) -> Counter[int]:
        """How often each process has called a function of it, or has loaded it (`load`)."""
        log = self.folder / "log"
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return Counter(int(pid) for pid, call in lines if call == name)


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    """Return the stand-in, built."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = tmp_path / "driver"
    folder.mkdir()
    library = folder / "libcuda.so.1"
    options = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{library.name}"]
    subprocess.run(["gcc", *options, "-o", str(library), str(SOURCE)], check=True)
    return Driver(folder)


def left_out(done: Finished) -> list[str]:
    """Return why a module was not preloaded, or workers were not forked."""
    return [line for line in done.err.splitlines() if mentions(line, "hpc-launch note")]


def pids(done: Finished) -> Counter[int]:
    """Return the processes of the workers."""
    return Counter(record.pid for record in done.records)


# ---- with any torch


def test_a_worker_initialises_cuda_itself(driver: Driver, tmp_path: Path) -> None:
    """A module that only loads the driver leaves the start warm; cuInit is called in the workers alone."""
    write(tmp_path / "more/loads.py", "import ctypes\nctypes.CDLL('libcuda.so.1')\n")
    words = ["--preload", "loads", "--nproc-per-node", "2", probe(tmp_path, INITIALISES)]
    done = launch(tmp_path, *words, env=driver.environ)

    assert (done.status, len(done.records), left_out(done)) == (0, 2, []), done.err
    assert driver.calls("cuInit") == pids(done)
    [loader] = driver.calls("load")
    assert loader not in pids(done)


@pytest.mark.parametrize("start", ["auto", "warm"])
def test_a_preloaded_module_that_initialises_cuda(driver: Driver, tmp_path: Path, start: str) -> None:
    """A worker forked after it could not use CUDA: it is left out, one line names it, and the workers stay warm."""
    write(tmp_path / "more/initialises.py", "import ctypes\nctypes.CDLL('libcuda.so.1').cuInit(0)\n")
    words = ["--start", start, "--preload", "initialises", "--nproc-per-node", "2", probe(tmp_path, INITIALISES)]
    done = launch(tmp_path, *words, env=driver.environ)

    [line] = left_out(done)
    assert mentions(line, "initialises CUDA"), line
    tried = driver.calls("cuInit") - pids(done)
    assert (done.status, len(done.records), list(tried.values())) == (0, 2, [1]), done.err
    assert driver.calls("cuInit") == pids(done) + tried


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for CUDA")
def test_a_build_for_cpus_never_loads_the_driver(driver: Driver, tmp_path: Path) -> None:
    """So the tests below say nothing with it."""
    done = launch(tmp_path, probe(tmp_path, ASKS_TORCH), env=driver.environ)

    assert (done.status, len(done.records), driver.calls("load")) == (0, 1, Counter()), done.err


# ---- with a torch that is built for CUDA


@pytest.fixture
def cuda_python() -> str:
    """Return a Python whose torch is built for CUDA."""
    if CUDA_PYTHON is None:
        pytest.skip("needs a torch built for CUDA: make torch BUILD=cuda, or HPC_LAUNCH_TEST_CUDA_PYTHON")
    return CUDA_PYTHON


def has(python: str, module: str) -> bool:
    """Whether a Python can import a module."""
    words = [python, "-c", f"import {module}"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("module", [None, *COMMON])
def test_torch_initialises_cuda_in_the_workers_alone(
    driver: Driver, tmp_path: Path, cuda_python: str, module: str | None
) -> None:
    """Neither torch nor what is commonly preloaded calls cuInit when it is imported; each worker does so once."""
    if module is not None and not has(cuda_python, module):
        pytest.skip(f"{cuda_python} has no {module}")
    more = ["--preload", module] if module is not None else []
    words = ["--start", "warm", *more, "--nproc-per-node", "2", probe(tmp_path, ASKS_TORCH)]
    done = launch(tmp_path, *words, program=(cuda_python, "-m", "hpc_launch"), env=driver.environ)

    assert (done.status, len(done.records)) == (0, 2), done.err
    assert "forked" not in done.out
    assert driver.calls("cuInit") == pids(done)
    [loader] = driver.calls("load")
    assert loader not in pids(done)


def test_a_preloaded_module_that_asks_torch_for_devices(driver: Driver, tmp_path: Path, cuda_python: str) -> None:
    """torch does not call that its own use of CUDA, and would refuse it to workers that are forked afterwards."""
    write(tmp_path / "more/asks.py", "import torch\ntorch.cuda.is_available()\n")
    words = ["--preload", "asks", "--nproc-per-node", "2", probe(tmp_path, ASKS_TORCH)]
    done = launch(tmp_path, *words, program=(cuda_python, "-m", "hpc_launch"), env=driver.environ)

    [line] = left_out(done)
    assert mentions(line, "asks CUDA"), line
    assert "forked" not in done.out
    assert (done.status, driver.calls("cuInit") & pids(done)) == (0, pids(done)), done.err
