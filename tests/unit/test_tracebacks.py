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


FATAL = """\
loss 1.0
Fatal Python error: Segmentation fault

Thread 0x00007f12a0ffb6c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait

Current thread 0x00007f12b0ff9b80 (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at
  File "/home/me/train.py", line 3 in deep
  File "/home/me/train.py", line 5 in <module>

Extension modules: torch._C (total: 1)
"""


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (FATAL, "/home/me/train.py:3"),
        (FATAL.replace("/home/me", "/usr/lib/python3.11"), "/usr/lib/python3.11/ctypes/__init__.py:519"),
        (FATAL.partition("Current")[0], "/usr/lib/python3.11/threading.py:324"),
        ("Fatal Python error: Aborted\n\n<no Python frame>\n", ""),
        ("loss 1.0\n", ""),
    ],
)
def test_where_a_fatal_signal_met_it(text: str, place: str) -> None:
    """The innermost frame of the user's own, of the thread that was hit."""
    assert tracebacks.fatal_place(text.splitlines()) == place


AT_EXIT = """\
terminate called without an active exception
Fatal Python error: Aborted

Thread 0x00007ff707494b80 (most recent call first):
  <no Python frame>

Extension modules: torch._C (total: 1)
"""


@pytest.mark.parametrize(
    ("text", "over"),
    [
        (AT_EXIT, True),
        (FATAL, False),
        (
            AT_EXIT.replace("  <no", '  File "train.py", line 1 in f\n\nThread 0x1 (most recent call first):\n  <no'),
            False,
        ),
        (AT_EXIT.partition("Fatal")[0], False),
        (AT_EXIT.partition("00007")[0] + "Fatal Python error: Segmentation fault\n\n", True),
        (AT_EXIT.partition("00007")[0].partition("\n")[2] + "Fatal Python error: Segmentation fault\n\n", False),
    ],
)
def test_a_script_that_was_over(text: str, over: bool) -> None:
    """No thread had a frame any more; a thread of a library without any says nothing while another has some."""
    assert tracebacks.script_was_over(text.splitlines()) is over
