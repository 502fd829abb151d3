"""The job scripts of the pages for those who come from torchrun and from srun: those that they end with run."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cluster import Cluster
from tests.slurm.jobs_support import PROBE, ended, submit

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
    """Each starts eight ranks on two nodes, which see the words that stand after the script."""
    jobs = {}
    for name, script in scripts().items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.py").write_text(PROBE)
        jobs[name] = submit(cluster, folder, script, "--mem=500M", "--cpus-per-task=1")
    found = {name: ended(job, tmp_path / name) for name, job in jobs.items()}
    reports = {name: job.reports() for name, job in found.items()}

    assert len(found) == 3
    for name, ranks in reports.items():
        assert [report.numbers("RANK", "WORLD_SIZE") for report in ranks.values()] == [(n, 8) for n in range(8)], name
        assert {(*report.argv,) for report in ranks.values()} == {("--lr", "1e-3")}
