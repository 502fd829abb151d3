"""The example notebook, run as it stands: on a cluster, where its job is queued, and without one."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster
from tests.slurm.jobs_support import DEADLINE

NOTEBOOK = Path(__file__).parents[2] / "examples/notebook/digits.ipynb"


class Executed:
    """The notebook, with its outputs."""

    def __init__(self, path: Path) -> None:
        self._outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", [])]

    def text(self, stream: str) -> str:
        """Return what all cells have printed."""
        return "".join("".join(output["text"]) for output in self._outputs if output.get("name") == stream)

    def shown(self, kind: str) -> list[str]:
        """Return everything that was shown in a form."""
        data: list[dict[str, Any]] = [output["data"] for output in self._outputs if "data" in output]
        return ["".join(forms[kind]) for forms in data if kind in forms]


def command(python: str) -> list[str]:
    return [python, "-m", "jupyter", "execute", f"--output={NOTEBOOK.name}", NOTEBOOK.name]


def prepare(folder: Path) -> dict[str, str]:
    """Put the notebook there, with less to train; returns an environment in which nobody's own settings count."""
    text = NOTEBOOK.read_text()
    assert "train, epochs=20, " in text
    (folder / NOTEBOOK.name).write_text(text.replace("train, epochs=20, ", "train, epochs=6, "))
    own = {"HOME": "home", "IPYTHONDIR": "ipython", "JUPYTER_CONFIG_DIR": "jupyter", "MPLCONFIGDIR": "matplotlib"}
    return {name: str(folder / value) for name, value in own.items()}


def check(executed: Executed, nodes: list[int]) -> None:
    """All ranks have trained, and the job is shown as done, with what they have marked."""
    [card] = executed.shown("text/html")
    [figure] = executed.shown("image/png")

    assert re.findall(r"rank (\d) on node (\d): accuracy 0\.9\d\d$", executed.text("stdout"), re.MULTILINE) == [
        (str(rank), str(node)) for rank, node in enumerate(nodes)
    ]
    assert ">done</span>" in card
    assert (card.count('aria-valuenow="100"'), len(re.findall("<title>rank [0-3]</title>", card))) == (4, 4)
    assert "rank 3: accuracy 0.9" in executed.text("stdout")
    assert executed.shown("text/plain")[-1].startswith("0.9")
    assert len(figure) > 10_000


def test_the_example_on_a_cluster(cluster: Cluster, python: str, tmp_path: Path) -> None:
    """Two nodes of two ranks train; the job, which has waited, run and ended, is shown as it is in the end."""
    cluster.run(command(python), cwd=tmp_path, env=prepare(tmp_path), timeout=2 * DEADLINE)
    executed = Executed(tmp_path / NOTEBOOK.name)
    [card] = executed.shown("text/html")
    plain = executed.shown("text/plain")[0]

    check(executed, [0, 0, 1, 1])
    assert re.match(r"train \(job \d+\): done, on gpu\[001-002\], 4 ranks, ", plain)
    assert ">Slurm</span>" in card


@pytest.mark.soak
def test_the_example_without_slurm(python: str, tmp_path: Path) -> None:
    """The same four ranks run on this machine."""
    environment = {**os.environ, **prepare(tmp_path), "PATH": f"{Path(python).parent}:/usr/bin:/bin"}
    done = subprocess.run(
        command(python),
        cwd=tmp_path,
        env=environment,
        timeout=2 * DEADLINE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    executed = Executed(tmp_path / NOTEBOOK.name)

    check(executed, [0, 0, 0, 0])
    assert "this machine" in executed.shown("text/html")[0]
