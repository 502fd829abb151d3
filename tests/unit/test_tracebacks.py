"""Exceptions are found in what Python writes, for real: each report here is made by an interpreter."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hpc_launch.records import tracebacks
from hpc_launch.records.tracebacks import Traceback

WRAPPED = """Caught ValueError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "/x/site-packages/torch/utils/data/_utils/worker.py", line 351, in _worker_loop
    data = fetcher.fetch(index)
  File "train.py", line 9, in __getitem__
    raise ValueError("sample 3 is corrupt")
ValueError: sample 3 is corrupt
"""


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("def f():\n    1 / 0\nf()", Traceback("ZeroDivisionError", "division by zero", "train.py:2")),
        ("raise ValueError('a\\nb\\nc')", Traceback("ValueError", "a", "train.py:1")),
        ("raise ValueError", Traceback("ValueError", "", "train.py:1")),
        ("raise KeyError('x: y')", Traceback("KeyError", "'x: y'", "train.py:1")),
        ("class Mine(Exception): pass\nraise Mine('m')", Traceback("Mine", "m", "train.py:2")),
        ("import json\njson.loads('{')", Traceback("json.decoder.JSONDecodeError", "Expecting property", "train.py:2")),
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise OSError('then') from e",
            Traceback("OSError", "then", "train.py:4"),
        ),
        ("import nothing_of_that_name", Traceback("ModuleNotFoundError", "No module named", "train.py:1")),
        ("x = (", Traceback("SyntaxError", "", "train.py:1")),
        (
            "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()\nraise OSError('main')",
            Traceback("OSError", "main", "train.py:5"),
        ),
        (
            f"raise ValueError({WRAPPED!r})",
            Traceback(
                "ValueError", "sample 3 is corrupt (raised as ValueError in DataLoader worker process 0)", "train.py:1"
            ),
        ),
        (
            "import sys, atexit\natexit.register(lambda: sys.stderr.write('bye\\n'))\nraise OSError('before')",
            Traceback("OSError", "before", "train.py:3"),
        ),
        ("print('well')", None),
        ("import sys\nsys.exit('no traceback')", None),
    ],
)
def test_reports_of_python(tmp_path: Path, python: str, script: str, expected: Traceback | None) -> None:
    """Type, message and place are those of the exception that ended the script."""
    (tmp_path / "train.py").write_text(script)
    done = subprocess.run([python, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    found = tracebacks.find_traceback(done.stderr.splitlines())
    prefixed = tracebacks.find_traceback([f"[rank3]: {line}" for line in done.stderr.splitlines()])

    assert prefixed == found
    if expected is None or found is None:
        assert found is expected
    else:
        assert found.type == expected.type
        assert found.message.startswith(expected.message)
        assert Path(found.where).name == expected.where


def test_a_group_of_exceptions() -> None:
    """The report of an ExceptionGroup (Python 3.11) is known by its first line."""
    lines = [
        "  + Exception Group Traceback (most recent call last):",
        '  |   File "train.py", line 1, in <module>',
        '  |     raise ExceptionGroup("several", [ValueError(1), KeyError(2)])',
        "  | ExceptionGroup: several (2 sub-exceptions)",
        "  +-+---------------- 1 ----------------",
        "    | ValueError: 1",
    ]

    assert tracebacks.find_traceback(lines) == Traceback("ExceptionGroup", "several (2 sub-exceptions)", "train.py:1")


@pytest.mark.parametrize("text", ["", "\n\n", "Traceback (most recent call last):", '  File "x", line 3', "Error: x"])
def test_no_report(text: str) -> None:
    """What is cut off, or only looks like a report, is none."""
    assert tracebacks.find_traceback(text.splitlines()) is None
    assert tracebacks.essence(text) in ("", text.strip().splitlines()[0] if text.strip() else "")
