"""The example without a launcher: told to leave, it goes on later, to the same result."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import torch

from tests.support import wait_for

EXAMPLE = Path(__file__).parents[2] / "examples/digits/train.py"


def start(python: str, folder: Path, *arguments: str, ranks: int = 0) -> subprocess.Popen[str]:
    """Start it in a folder, where `out` gets what it says; as several ranks by hpc-launch."""
    launcher = ["-m", "hpc_launch", "--nproc-per-node", str(ranks)] if ranks else []
    with (folder / "out").open("a") as out:
        # The network is small: on a busy machine threads that wait for each other take five times the CPU of one.
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        words = [python, *launcher, str(EXAMPLE), *arguments]
        return subprocess.Popen(words, cwd=folder, env=environ, stdout=out, text=True)


def checkpoint(folder: Path) -> dict[str, Any]:
    """Read the last one."""
    state: dict[str, Any] = torch.load(folder / "checkpoints/digits.pt", weights_only=True)
    return state


def test_it_leaves_when_told_and_goes_on_at_the_next_step(python: str, tmp_path: Path) -> None:
    """SIGTERM in the middle of an epoch ends it well; the network is the same in the end, to the last bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    reference = start(python, whole)
    interrupted = start(python, parts, "--step-seconds", "0.05")
    wait_for(lambda: "epoch 5" in (parts / "out").read_text(), 240, "it does not train", pause=0.01)
    interrupted.terminate()
    assert interrupted.wait(240) == 0
    left = checkpoint(parts)
    assert start(python, parts).wait(240) == reference.wait(240) == 0
    said = (parts / "out").read_text()
    final, expected = checkpoint(parts), checkpoint(whole)

    step = left["step"]
    assert f"digits: told to leave after step {step} of 440: " in said
    assert f"digits: going on after step {step} (epoch {left['epoch']}) of " in said
    assert re.findall("accuracy .* after .*", said) == re.findall("accuracy .* after .*", (whole / "out").read_text())
    assert (final["step"], final["epoch"], final["seen"]) == (440, 20, 0)
    assert all(torch.equal(values, final["model"][name]) for name, values in expected["model"].items())


def test_it_goes_on_with_other_ranks(python: str, tmp_path: Path) -> None:
    """What one process has begun, in the middle of an epoch, three go on with: as many steps, and as good a network."""
    alone = start(python, tmp_path, "--step-seconds", "0.05")
    wait_for(lambda: "epoch 5" in (tmp_path / "out").read_text(), 240, "it does not train", pause=0.01)
    alone.terminate()
    assert alone.wait(240) == 0
    step = checkpoint(tmp_path)["step"]
    assert start(python, tmp_path, ranks=3).wait(240) == 0
    said = (tmp_path / "out").read_text()
    final = checkpoint(tmp_path)
    found = re.search(r"digits: accuracy (\S+) after 20 epochs on 3 ranks", said)

    assert f"digits: going on after step {step} " in said
    assert (final["step"], final["epoch"], final["seen"]) == (440, 20, 0)
    assert [group["lr"] for group in final["optimiser"]["param_groups"]] == [0.05 * 63 / 64]
    assert found is not None
    assert float(found[1]) > 0.96


def test_each_point_of_a_sweep_has_its_own_checkpoint(python: str, tmp_path: Path) -> None:
    """Runs one after another, with other parameters, start afresh; one with the same goes on."""
    points = [["--lr", "0.04"], ["--lr", "0.03"], ["--seed", "1", "--lr", "0.03"], []]
    for point in (*points, points[0]):
        assert start(python, tmp_path, "--epochs", "1", "--min-accuracy", "0", *point).wait(240) == 0
    said = (tmp_path / "out").read_text()

    folder = tmp_path / "checkpoints"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.pt")} == {
        "lr=0.04/digits.pt",
        "lr=0.03/digits.pt",
        "lr=0.03,seed=1/digits.pt",
        "digits.pt",
    }
    assert re.findall("going on .* of (.*)", said) == ["checkpoints/lr=0.04/digits.pt"]


def test_each_sample_is_seen_once() -> None:
    """Four ranks see some of an epoch, three the rest: nothing twice, and equally much."""
    share = runpy.run_path(str(EXAMPLE))["share"]
    order = runpy.run_path(str(EXAMPLE))["shuffled"](1437, epoch=3)
    seen = {sample for rank in range(4) for sample in share(order, 0, rank, 4)[:80]}
    shares = [share(order, 320, rank, 3) for rank in range(3)]
    rest = {sample for one in shares for sample in one}

    assert seen == {*order[:320]}
    assert {len(one) for one in shares} == {372}
    assert len(rest) == 3 * 372
    assert not rest & seen
