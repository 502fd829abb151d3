"""What a new job must not get of the place it is submitted from."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, strategies as st

from hpc_launch.slurm.leaks import KEPT, for_submission
from tests.unit.slurm_variables import BATCH, ONE_TASK_PER_NODE

SHELL = {"HOME": "/home/ada", "PATH": "/bin", "SLURM_CONF": "/etc/other/slurm.conf", "OMP_NUM_THREADS": "2"}


@pytest.mark.parametrize(
    "name",
    [
        "SLURM_CPU_BIND",
        "SLURM_NTASKS",
        "SLURM_TRES_PER_TASK",
        "SLURMD_NODENAME",
        "SBATCH_PARTITION",
        "SRUN_EXPORT_ENV",
        "SALLOC_ACCOUNT",
        "PMI_RANK",
        "PMIX_NAMESPACE",
        "PMI2_RANK",
        "OMPI_COMM_WORLD_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "RANK",
        "LOCAL_RANK",
        "GROUP_RANK",
        "ROLE_RANK",
        "NODE_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "ROLE_NAME",
        "TORCHELASTIC_RUN_ID",
        "HPC_LAUNCH_ATTEMPT",
        "HPC_LAUNCH_JOB_DIRECTORY",
        "SPANK_X",
        "_SLURM_SPANK_OPTION_x",
    ],
)
def test_it_is_dropped_everywhere(name: str) -> None:
    """Layouts, options and ranks are never the new job's."""
    clean, dropped = for_submission({**SHELL, name: "1"})

    assert (name in clean, name in dropped) == (False, True)


def test_a_shell_is_left_alone() -> None:
    """Where nothing is of another job, nothing is dropped."""
    assert for_submission(SHELL) == (SHELL, ())


def test_what_a_launcher_gives_its_workers_is_dropped_there_only() -> None:
    """A number of threads is the user's own, but in a worker, where it is that worker's share."""
    clean, dropped = for_submission({**SHELL, "TORCHELASTIC_RUN_ID": "x"})

    assert ("OMP_NUM_THREADS" in clean, dropped) == (False, ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"))


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "ENVIRONMENT"])
def test_what_a_job_sets_is_dropped_in_a_job_only(name: str) -> None:
    """A user's own choice of devices stays; Slurm's for another job does not."""
    outside, _ = for_submission({**SHELL, name: "0"})
    inside, _ = for_submission({**SHELL, name: "0", "SLURM_JOB_ID": "12"})

    assert (name in outside, name in inside) == (True, False)


@pytest.mark.parametrize(
    ("folder", "kept"), [("/scratch/12", False), ("/tmp/job_12.x", False), ("/tmp", True), ("/scratch/112", True)]
)
def test_a_folder_of_the_job_is_dropped(folder: str, *, kept: bool) -> None:
    """TMPDIR goes along unless it is named after the job."""
    clean, _ = for_submission({**SHELL, "SLURM_JOB_ID": "12", "TMPDIR": folder})

    assert ("TMPDIR" in clean) == kept


def test_how_slurm_is_reached_is_kept() -> None:
    """A configuration that is not the default one stays in force."""
    clean, dropped = for_submission(dict.fromkeys(KEPT, "x"))

    assert (set(clean), dropped) == (set(KEPT), ())


def test_what_a_user_keeps_is_kept() -> None:
    """Names and patterns that were asked for go along."""
    environ = {"SBATCH_ACCOUNT": "a", "SBATCH_QOS": "b", "MASTER_PORT": "1", "SLURM_NTASKS": "2"}
    clean, dropped = for_submission(environ, ["SBATCH_*", "MASTER_PORT"])

    assert (sorted(clean), dropped) == (["MASTER_PORT", "SBATCH_ACCOUNT", "SBATCH_QOS"], ("SLURM_NTASKS",))


def test_users_settings_stay() -> None:
    """Variables that ask something of hpc-launch or torchrun are the user's word, as in a clean shell."""
    environ = {
        "HPC_LAUNCH_MAX_RESTARTS": "1",
        "PET_MAX_RESTARTS": "2",
        "HPC_LAUNCH_SUBMIT_NODES": "3",
        "NCCL_DEBUG": "I",
    }

    assert for_submission(environ) == (environ, ())


@pytest.mark.parametrize("environ", [ONE_TASK_PER_NODE, BATCH], ids=["step", "batch"])
def test_nothing_of_a_job_is_left(environ: Mapping[str, str]) -> None:
    """Of what Slurm sets in a step or a batch script, only the way to Slurm is left."""
    clean, _ = for_submission({**SHELL, **environ})

    assert not [name for name in clean if name.startswith(("SLURM", "PMI")) and name not in KEPT]


@given(st.dictionaries(st.sampled_from(["A", "SLURM_X", "SLURM_CONF", "RANK", "SLURM_JOB_ID"]), st.text()))
def test_every_variable_is_kept_or_told(environ: dict[str, str]) -> None:
    """What is left and what is dropped are together what there was, unchanged."""
    clean, dropped = for_submission(environ)

    assert {*clean, *dropped} == {*environ}
    assert all(environ[name] == value for name, value in clean.items())
