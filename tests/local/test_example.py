"""The example without a launcher: told to leave, it goes on later, to the same result."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from tests.support import wait_for

EXAMPLE = Path(__file__).parents[2] / "examples/digits/train.py"


def start(python: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start it in a folder, where `out` gets what it says."""
    with (folder / "out").open("a") as out:
        return subprocess.Popen([python, str(EXAMPLE), *arguments], cwd=folder, stdout=out, text=True)


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
