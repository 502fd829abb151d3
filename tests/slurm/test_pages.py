"""The job scripts of the pages for those who come from torchrun and from srun, as they are to be in the end."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cluster import Cluster
from tests.slurm.jobs_support import ended, submit

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = re.compile(r"^```bash\n(#!.*?)^```", re.MULTILINE | re.DOTALL)


def scripts() -> dict[str, str]:
    """Return the job scripts that the pages end with, by page and number."""
    return {
        f"{page}-{number}": script
        for page in ("from-torchrun", "from-srun-python")
        for number, script in enumerate(SCRIPT.findall((DOCS / f"{page}.md").read_text()))
        if "# after" in script
    }


def test_job_scripts_of_the_pages(cluster: Cluster, tmp_path: Path) -> None:
    """Each would start eight ranks on two nodes, as hpc-launch explains in the job; that such jobs run, others test."""
    jobs = {}
    for name, script in scripts().items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").touch()
        explaining = script.replace(" hpc-launch ", " hpc-launch explain ")
        jobs[name] = submit(cluster, tmp_path / name, explaining, "--mem=100M")
    said = {name: ended(job, tmp_path / name).output for name, job in jobs.items()}
    plans = {
        name: re.findall(r"^8 ranks on 2 node.*?^ +nproc_per_node +(\d+) ", text, re.MULTILINE | re.DOTALL)
        for name, text in said.items()
    }

    # One plan for all tasks: two of four ranks each, or eight of one.
    assert plans == {"from-torchrun-1": ["4"], "from-srun-python-1": ["1"], "from-srun-python-2": ["4"]}, said
