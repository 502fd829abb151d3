"""The reference of the command line is made from the commands, and is up to date."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hpc_launch.settings import specs

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/cli_reference.py"
PAGE = ROOT / "docs/cli.md"


@pytest.mark.parametrize("columns", ["30", "300"])
def test_the_reference_is_up_to_date(python: str, columns: str) -> None:
    """docs/cli.md is what the tool makes of the commands, however wide the terminal is."""
    environ = {**os.environ, "COLUMNS": columns, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([python, TOOL, "--check"], env=environ, capture_output=True, text=True, check=False)

    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("name", specs())
def test_every_option_is_in_it(name: str) -> None:
    """Each option is there with its flags and its variables."""
    spec, text = specs()[name], PAGE.read_text(encoding="utf-8")
    variables = [f"HPC_LAUNCH_{name.upper()}", *([f"PET_{name.upper()}"] if spec.torchrun_variable else [])]

    assert f"- `{', '.join(spec.flags)}" in text
    assert "  " + ", ".join(f"`{variable}`" for variable in variables) + "\n" in text
