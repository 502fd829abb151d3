"""`hpc-launch report` about jobs that have really run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import pages
from tests.local.launching import Finished, launch, probe

TRAIN = """
    from hpc_launch import runtime
    rank, attempt = runtime.rank(), runtime.attempt()
    print("rank", rank, "of attempt", attempt, flush=True)
    runtime.mark_progress(10 * (attempt + 1), 40, loss=0.5)
    if rank == 1 and attempt == 0:
        raise ValueError("the loss of <b>batch 17</b> is nan")
    if attempt == 0:
        import time
        time.sleep(600)
"""

SECRET = "nobody-is-to-read-this"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a job of three ranks whose first attempt fails; return its working directory."""
    folder = tmp_path_factory.mktemp("job 100%j")
    words = ["--nproc-per-node", "3", "--max-restarts", "1", probe(folder, TRAIN), "--lr", "1e-3"]
    done = launch(folder, *words, env={"NCCL_DEBUG": "WARN", "WANDB_API_KEY": SECRET})
    assert done.status == 0, done.err
    return folder


def report(folder: Path, *words: str) -> Finished:
    return launch(folder, "report", *words)


def test_a_page_about_a_job(job: Path) -> None:
    """The latest job's page is in its directory, has what happened, and leads to the files of all ranks."""
    done = report(job)
    assert done.status == 0, done.err
    path = job / done.out.strip()
    page = pages.read(path.read_text())
    files = [address for address in page.addresses if address.endswith(".out")]

    assert path == (job / "logs/latest/report.html").resolve()
    assert (page.from_elsewhere, page.problems, page.dead(path.parent)) == ([], [], [])
    assert {re.sub(r".*/", "", address) for address in files} == {"rank_0.out", "rank_1.out", "rank_2.out"}
    for text in (
        "Done",
        "All 3 ranks ended well in attempt 1.",
        "Why attempt 0 failed",
        "ValueError: the loss of <b>batch 17</b> is nan",
        "train.py --lr 1e-3",
        "Step 20 of 40 (50%) in attempt 1",
        "NCCL_DEBUG",
        "max_restarts",
    ):
        assert text in page.text, text
    assert SECRET not in page.text


def test_markdown_about_a_job(job: Path) -> None:
    """The same for a terminal or an issue, of a job that is named by its directory."""
    (directory,) = (path for path in (job / "logs").iterdir() if not path.is_symlink())
    done = report(job, "--markdown", f"logs/{directory.name}")

    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"# Job {directory.name}: Done\n")
    assert "failed first | ValueError: the loss of \\<b>batch 17\\</b> is nan |" in done.out


def test_a_page_elsewhere(job: Path) -> None:
    """With --output the page is where somebody wants it, and its links still lead to the files."""
    (job / "pages").mkdir()
    done = report(job, "--output", "pages/of it.html")

    assert (done.status, done.out) == (0, "pages/of it.html\n")
    assert pages.read((job / "pages/of it.html").read_text()).dead(job / "pages") == []


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["4711"], 66, "4711"),
        (
            ["--output", "nowhere/page.html"],
            73,
            "cannot write nowhere/page.html: No such file or directory; name another",
        ),
        (["--output", ""], 2, "--output"),
    ],
)
def test_what_cannot_be_done(job: Path, words: list[str], status: int, said: str) -> None:
    """One line says what is wrong, and nothing is left lying about."""
    done = report(job, *words)

    assert done.status == status
    assert said in done.err
    assert len(done.err.splitlines()) == 1


def test_the_benchmark_prints_its_table() -> None:
    """In its quick form it ends well, with a line for one size."""
    file = Path(__file__).parents[1] / "benchmarks/report.py"
    done = subprocess.run([sys.executable, str(file), "--quick"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert [line.startswith("| 4 | 2 |") for line in done.stdout.splitlines()] == [False, False, True]
