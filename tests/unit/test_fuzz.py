"""What is fuzzed: a little by hypothesis in every run of the tests, and long by atheris in the soak."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tests.fuzz.targets import TARGETS

FUZZ = Path(__file__).parents[1] / "fuzz" / "fuzz.py"
SECONDS = 60


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_find_nothing(name: str) -> None:
    """They are what the fuzzers begin with."""
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@settings(max_examples=60)
def test_changed_seeds_find_nothing(name: str, data: st.DataObject) -> None:
    """Some bytes are exchanged for others."""
    target = TARGETS[name]
    seed = data.draw(st.sampled_from(target.seeds))
    begin = data.draw(st.integers(0, len(seed)))
    end = data.draw(st.integers(begin, len(seed)))

    target.run(seed[:begin] + data.draw(st.binary(max_size=20)) + seed[end:])


@pytest.mark.soak
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not there: pip install atheris")
@pytest.mark.parametrize("name", TARGETS)
def test_fuzzers_find_nothing(name: str, tmp_path: Path) -> None:
    """However far they come in a minute."""
    done = subprocess.run(
        [sys.executable, str(FUZZ), name, str(SECONDS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS + 120,
    )

    assert done.returncode == 0, done.stdout + done.stderr
