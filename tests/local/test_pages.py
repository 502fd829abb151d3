"""The Python of the pages for those who come from notebooks and from submitit, run as it stands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.local.launching import TIMEOUT

DOCS = Path(__file__).parents[2] / "docs"
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["notebook.md", pytest.param("from-submitit.md", marks=pytest.mark.soak)])
def test_the_examples_run(python: str, tmp_path: Path, page: str) -> None:
    """One after another, in one program: on this machine, with a rank in the place of four GPUs."""
    blocks = [block for block in PYTHON.findall((DOCS / page).read_text()) if not block.startswith("# before")]
    program = tmp_path / "program.py"
    program.write_text("\n".join(blocks).replace("gpus_per_node=4", "ranks_per_node=1"))
    (tmp_path / "train.py").write_text("import os\nassert os.environ['WORLD_SIZE'] == '2'\n")
    done = subprocess.run(
        [python, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=2 * TIMEOUT, check=False
    )

    assert (len(blocks) > 3, done.returncode) == (True, 0), done.stderr
    assert "division by zero" in done.stdout or page != "notebook.md"


def test_the_example_of_a_kept_executor_runs(python: str, tmp_path: Path) -> None:
    """An ElasticTask in submitit's own local executor, whose results are loaded from its job directory."""
    section = (DOCS / "from-submitit.md").read_text().partition("## Keeping the executor")[2]
    [block] = PYTHON.findall(section)
    (tmp_path / "program.py").write_text(block)
    done = subprocess.run(
        [python, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[1024, 1024]"
