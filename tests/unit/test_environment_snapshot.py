"""What a run writes down of what it had around it."""

import pytest

from hpc_launch.agent import environment_snapshot


@pytest.mark.parametrize(
    "name", ["NCCL_DEBUG", "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LD_PRELOAD"]
)
def test_what_training_depends_on_is_written_down(name: str) -> None:
    assert environment_snapshot.relevant({name: "1", "HOME": "/home/me", "EDITOR": "vi"}) == {name: "1"}


@pytest.mark.parametrize(
    "name",
    [
        "SLURM_JWT",
        "WANDB_API_KEY",
        "HF_TOKEN",
        "HUGGINGFACEHUB_API_TOKEN",
        "CUDA_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "SLURM_PAT",
        "HF_PASSPHRASE",
    ],
)
def test_what_looks_like_a_secret_is_not(name: str) -> None:
    """Logs are read by more people than the environment."""
    assert environment_snapshot.relevant({name: "hidden"}) == {}


def test_long_values_are_cut() -> None:
    assert len(environment_snapshot.relevant({"LD_LIBRARY_PATH": "/x:" * 10_000})["LD_LIBRARY_PATH"]) == 1001


def test_versions_are_words() -> None:
    """Versions that this build of torch does not have are left out."""
    found = environment_snapshot.describe_environment({})["software"]

    assert found
    assert all(isinstance(version, str) and version for version in found.values())


def test_a_password_in_a_url_is_hidden() -> None:
    """The rest of the variable stays: it says where things went."""
    assert environment_snapshot.relevant({"WANDB_BASE_URL": "https://me:word@wandb.example"}) == {
        "WANDB_BASE_URL": "https://me:[hidden]@wandb.example"
    }


def test_more_names_can_be_left_out() -> None:
    """The setting --secret-names has patterns."""
    assert environment_snapshot.relevant({"WANDB_ENTITY": "me", "WANDB_MODE": "off"}, ["wandb_ent*"]) == {
        "WANDB_MODE": "off"
    }
