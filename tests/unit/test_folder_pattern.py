"""submitit's fields in the folder of an executor: filled in as submitit does, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from submitit.core.utils import JobPaths

import hpc_launch
from hpc_launch.api import folder_pattern
from hpc_launch.errors import UsageError
from hpc_launch.submitit import ElasticTask
from tests.support import mentions


@pytest.mark.parametrize("job_id", ["12", "12_3", "local-20260101-120000-7"])
@pytest.mark.parametrize("folder", ["/logs", "/logs/%j", "/logs/%A/x", "/logs/run-%j-of-%A/%j/y"])
def test_fields_are_filled_in_as_submitit_does(folder: str, job_id: str) -> None:
    """The folder of each job, and the part that all share."""
    assert folder_pattern.job_folder(Path(folder), job_id) == JobPaths(folder, job_id).folder
    assert folder_pattern.shared_folder(Path(folder)) == JobPaths.get_first_id_independent_folder(folder)


def test_numbers_are_those_of_arrays() -> None:
    """Of any other job there is none, and submitit would say so when the job has been submitted."""
    assert folder_pattern.job_folder(Path("/logs/%A/%a"), "12_3") == Path("/logs/12/3")
    with pytest.raises(UsageError) as refused:
        folder_pattern.job_folder(Path("/logs/%a"), "12")
    assert mentions(refused.value, "%a %j")


@pytest.mark.parametrize("field", ["%t", "%u", "%x", "%N", "%3j", "%%"])
def test_other_fields_of_slurm_are_refused(tmp_path: Path, field: str) -> None:
    """sbatch would fill them in, and nobody else: the files would be in several places."""
    with pytest.raises(UsageError) as refused:
        hpc_launch.Executor(tmp_path / f"logs-{field}")
    with pytest.raises(UsageError):
        ElasticTask(int, log_dir=f"logs/{field}")

    assert mentions(refused.value, "folder", f"'{field}'", "%j %A %a")


def test_a_folder_may_have_a_percent_sign(tmp_path: Path) -> None:
    """It is a field before a letter only."""
    job = hpc_launch.submit(int, cluster="debug", folder=tmp_path / "100% sure, 5%")

    assert job.result() == 0
    assert (tmp_path / "100% sure, 5%/submitted").is_dir()


def test_a_job_of_no_array_has_no_number(tmp_path: Path) -> None:
    """The refusal comes before the submission."""
    with pytest.raises(UsageError, match="%a"):
        hpc_launch.submit(int, cluster="debug", folder=tmp_path / "%a")

    assert list(tmp_path.iterdir()) == []
