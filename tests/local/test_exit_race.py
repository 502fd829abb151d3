"""How often a finished training dies while Python ends, by the way its workers were started. Long: for the soak only.

torch 2.13 has a thread of gloo's that may still run then (docs/what-happened.md): with torchrun and `--start exec` some
runs in a hundred end by SIGABRT or SIGSEGV. A forked worker is not to add to that, and what happens is to be said.
"""

from __future__ import annotations

import concurrent.futures
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.local.launching import HPC_LAUNCH, TORCHRUN, Finished, launch, write

TRAINING = """
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(8, 8))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(20):
    optimizer.zero_grad()
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
dist.destroy_process_group()
"""

RUNS = 300

# Launches at once, of four ranks each, beside processes that only compute: where a thread of gloo's has to wait for a
# CPU, its last work ends as late as Python does.
AT_ONCE = 2
BUSY = 4

# Deaths at exit: by abort(3), or by a fault in the report of the abort (faulthandler).
DEATHS = {128 + signal.SIGABRT, 128 + signal.SIGSEGV}

WAYS = {
    "warm": (HPC_LAUNCH, ["--start=warm"]),
    "exec": (HPC_LAUNCH, ["--start=exec"]),
    "torchrun": (TORCHRUN, ["--standalone"]),
}


@pytest.fixture
def busy_machine() -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(BUSY):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
@pytest.mark.usefixtures("busy_machine")
@pytest.mark.parametrize("way", WAYS)
def test_finished_trainings_end(tmp_path: Path, way: str) -> None:
    """Forked workers always end well; a worker that dies after its script is said to have done so."""
    program, options = WAYS[way]

    def run(number: int) -> Finished:
        folder = tmp_path / str(number)
        write(folder / "train.py", TRAINING)
        done = launch(folder, *options, "--nproc-per-node=4", "train.py", program=program)
        (folder / "status").write_text(str(done.status))
        return done

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        done = [*pool.map(run, range(RUNS))]
    print(way, Counter(one.status for one in done))  # noqa: T201 - the number is what this is for
    _check(way, [one for one in done if one.status])


def _check(way: str, failed: Sequence[Finished]) -> None:
    if way == "torchrun":
        assert all(one.status == 1 for one in failed), [one.err for one in failed]
        return
    assert way != "warm" or not failed, failed[0].err
    assert {one.status for one in failed} <= DEATHS, [one.err for one in failed]
    assert all(re.search("script had ended", one.err) for one in failed), [one.err for one in failed]
