"""Training scripts that agree to leave, over real stores: hpc-launch's, torchrun's and their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpc_launch.runtime import stop_agreement
from tests.local.launching import HPC_LAUNCH, TIMEOUT, TORCHRUN, free_port, launch, probe, running
from tests.support import mentions, wait_for

PAGE = Path(__file__).parents[2] / "docs/runtime.md"

# Each rank says after how many calls it leaves.
LOOP = """
import time
from hpc_launch import runtime

rank = runtime.rank()
deadline, calls = time.monotonic() + 200, 0
{setup}
while not runtime.should_stop(all_ranks=True):
    calls += 1
    assert time.monotonic() < deadline
    (_folder / f"calls{{rank}}").touch()
    {between}
{end}
(_folder / f"left{{rank}}").write_text(str(calls))
"""


def loop(folder: Path, *, collective: bool) -> str:
    """Write a script that runs until it is told; with a collective in each step, or ranks of different speeds."""
    body = LOOP.format(
        setup="import torch, torch.distributed as dist; dist.init_process_group('gloo')" if collective else "",
        between="dist.all_reduce(torch.ones(1))" if collective else "time.sleep(0.001 * (1 + rank))",
        end="dist.destroy_process_group()" if collective else "",
    )
    return probe(folder, body)


def left(folder: Path) -> dict[str, str]:
    """Read at which call each rank has left."""
    return {path.name: path.read_text() for path in sorted(folder.glob("records-*/left*"))}


@pytest.mark.parametrize(
    ("program", "told", "signum"),
    [
        pytest.param(HPC_LAUNCH, 0, signal.SIGUSR1, id="hpc-launch-0"),
        pytest.param(HPC_LAUNCH, 1, signal.SIGTERM, id="hpc-launch-1"),
        pytest.param(TORCHRUN, 2, signal.SIGUSR2, id="torchrun-2"),
    ],
)
def test_all_leave_at_the_same_call(tmp_path: Path, program: Sequence[str], told: int, signum: int) -> None:
    """Whichever rank is told, all leave after the same number of calls, and the run ends well."""
    words = ("--nproc-per-node", "3", loop(tmp_path, collective=False))
    with running(tmp_path, *words, program=program) as launcher:
        records = launcher.await_records(3)
        wait_for(lambda: len([*tmp_path.glob("records-*/calls*")]) == 3, TIMEOUT, "they make no calls")
        [pid] = [record.pid for record in records if record["RANK"] == str(told)]
        os.kill(pid, signum)
        done = launcher.finish()
    calls = left(tmp_path)

    assert (done.status, list(calls)) == (0, ["left0", "left1", "left2"]), done.err
    assert len(set(calls.values())) == 1, calls
    assert "Traceback" not in done.err


@pytest.mark.parametrize("collective", [True, False])
def test_without_a_launcher(tmp_path: Path, python: str, collective: bool) -> None:
    """Rank 0 serves the port, alone or together with its process group, and stays until all have heard."""
    script = loop(tmp_path, collective=collective)
    records = tmp_path / "records-0"
    records.mkdir()
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "3"}
    common |= {"PROBE_RECORDS": str(records)}
    processes = [
        subprocess.Popen([python, script], cwd=tmp_path, env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(3)
    ]
    try:
        wait_for(lambda: len([*records.glob("calls*")]) == 3, TIMEOUT, "they make no calls")
        processes[2].send_signal(signal.SIGUSR2)
        errors = [process.communicate(timeout=TIMEOUT)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    calls = left(tmp_path)

    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert list(calls) == ["left0", "left1", "left2"]
    assert len(set(calls.values())) == 1, calls


def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody serves the store, the error is one line that names the place."""
    port = free_port()
    monkeypatch.setattr(stop_agreement, "_CONNECT_S", 1.0)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))

    with pytest.raises(RuntimeError) as caught:
        stop_agreement.open_store(serve=False)
    assert mentions(caught.value, f"should_stop(all_ranks=True) 127.0.0.1:{port}")
    assert "\n" not in str(caught.value)


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    """It leaves with a checkpoint when it is told, goes on from there, and says how far it is."""
    example = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    endless = example.replace("TOTAL = 2000", "TOTAL = 10**9").replace("step % 500", "step % 50")
    words = ("--nproc-per-node", "2", "--log-dir", "logs")
    with running(tmp_path, *words, probe(tmp_path, endless)) as launcher:
        records = launcher.await_records(2)
        wait_for((tmp_path / "checkpoint.pt").exists, TIMEOUT, "no checkpoint")
        os.kill(records[1].pid, signal.SIGUSR1)
        told = launcher.finish()
    step, total = progress(tmp_path)
    rest = launch(tmp_path, *words, probe(tmp_path, example.replace("TOTAL = 2000", f"TOTAL = {step + 7}")))

    assert (told.status, rest.status) == (0, 0), told.err + rest.err
    assert (step >= 50, total) == (True, 10**9)
    assert (step + 7, step + 7) == progress(tmp_path)


def progress(folder: Path) -> tuple[int, int]:
    """Read how far the last job has come."""
    word = json.loads((folder / "logs/latest/progress/rank_0.json").read_text())
    return word["step"], word["total"]
