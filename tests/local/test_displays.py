"""Jobs that are shown in the kernel of a notebook, while what they are shown in is closed for a time."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.local.launching import TIMEOUT

CELLS = (
    """
import time
from pathlib import Path
import hpc_launch
from hpc_launch.api import notebook_display

def wait_for_file(name):
    while not Path(name).exists():
        time.sleep(0.05)

first = hpc_launch.submit(wait_for_file, str(Path("a").absolute()), cluster="local")
lost = hpc_launch.submit(wait_for_file, str(Path("b").absolute()), cluster="local")
display(first)
""",
    "display(lost)",
    """
publisher = get_ipython().display_pub
usual = publisher.publish

def closed(*args, **kwargs):
    raise RuntimeError("comm closed")

publisher.publish = closed
deadline = time.monotonic() + 60
while notebook_display._board.handle(first) or notebook_display._board.handle(lost):
    assert time.monotonic() < deadline
    notebook_display._board.settle()
publisher.publish = usual
""",
    "display(lost)",
    """
later = hpc_launch.submit(wait_for_file, str(Path("c").absolute()), cluster="local")
display(later)
""",
    """
for name in "abc":
    Path(name).touch()
for job in (first, lost, later):
    job.results(timeout=300)
""",
)


def test_a_closed_comm_ends_no_display(python: str, tmp_path: Path) -> None:
    """All jobs are shown as they end: in the place that is there again, in a new one, and one that came later."""
    cells: list[dict[str, Any]] = [
        {
            "cell_type": "code",
            "source": source,
            "outputs": [],
            "metadata": {},
            "execution_count": None,
            "id": str(number),
        }
        for number, source in enumerate(CELLS)
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "shown.ipynb").write_text(json.dumps(notebook))
    line = [python, "-m", "jupyter", "execute", "--output=shown.ipynb", "shown.ipynb"]
    try:
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    finally:
        for name in "abc":
            (tmp_path / name).touch()  # no job waits any longer
    assert done.returncode == 0, done.stderr
    executed = json.loads((tmp_path / "shown.ipynb").read_text())["cells"]
    shown = [_shown(cell) for cell in executed if "display(" in "".join(cell["source"])]

    assert len(shown) == 4, executed
    assert all(re.match(r"wait_for_file \(job local-\S+\): done", text) for text in shown), shown


def _shown(cell: dict[str, Any]) -> str:
    """What the cell shows in the end, in plain text."""
    [forms] = [output["data"] for output in cell["outputs"] if "data" in output]
    return "".join(forms["text/plain"])
