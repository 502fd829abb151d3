"""Every name of submitit's executors and jobs is ours too, or refused with the name to use here."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import pytest
import submitit
from submitit.slurm.slurm import _get_default_parameters

import hpc_launch
from hpc_launch.api import job_resources, submitit_names
from hpc_launch.api.job_resources import NAMES, Resources
from hpc_launch.errors import UsageError
from tests.support import mentions

# A value of each parameter that is not a whole number.
VALUES: dict[str, Any] = {
    "name": "x",
    "job_name": "x",
    "setup": ["true"],
    "additional_parameters": {"reservation": "x"},
}

EXECUTORS = (submitit.AutoExecutor, submitit.SlurmExecutor, submitit.LocalExecutor)


def parameters() -> list[str]:
    """The names that submitit's own code knows: shared ones, those of each cluster with its prefix, of constructors."""
    shared = sorted(submitit.AutoExecutor._valid_parameters())
    slurm = sorted(_get_default_parameters())
    made = sorted(
        {
            name
            for executor in (submitit.SlurmExecutor, submitit.LocalExecutor)
            for name in inspect.signature(executor).parameters
        }
        - {"folder"}
    )
    local = sorted(submitit.LocalExecutor._valid_parameters())
    return [
        *shared,
        *slurm,
        *submitit.AutoExecutor._ctor_deprecated_args,
        *(f"slurm_{name}" for name in (*shared, *slurm, *made)),
        *(f"local_{name}" for name in (*shared, *local, *made)),
        *(f"debug_{name}" for name in shared),
    ]


@pytest.mark.parametrize("key", [key for key in dict.fromkeys(parameters()) if key != "conda_file"])
def test_every_parameter_is_ours_or_refused(key: str) -> None:
    """None of those that submitit has is unknown: a new one shows here."""
    bare = key.removeprefix("slurm_").removeprefix("local_").removeprefix("debug_")
    assert bare in submitit_names.PARAMETERS, "a new parameter of submitit's: say what it is here"
    counterpart = submitit_names.counterpart(key)
    assert counterpart is not None
    given = {key: VALUES.get(bare, 5)}
    if counterpart.refused:
        with pytest.raises(UsageError) as refused:
            job_resources.read_resources(given)
        assert mentions(refused.value, f"'{key}'")
        assert len(str(refused.value)) > len(f"'{key}'") + 40
        return
    found = job_resources.read_resources(given)

    assert found != Resources()
    assert counterpart.resource in {*NAMES, ""}


def test_the_table_has_nothing_else() -> None:
    """What submitit has no longer is not kept here."""
    known = {key.removeprefix("slurm_").removeprefix("local_").removeprefix("debug_") for key in parameters()}

    assert set(submitit_names.PARAMETERS) - known == set()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"slurm_job_name": "x"}, Resources(name="x")),
        ({"timeout_min": 60, "slurm_time": 30}, Resources(time=30)),
        ({"slurm_time": 30, "timeout_min": 60}, Resources(time=30)),
        ({"slurm_ntasks_per_node": 4}, Resources(ranks_per_node=4)),
        ({"slurm_num_gpus": 4}, Resources(gpus_per_node=4)),
        ({"slurm_max_num_timeout": 7}, Resources(max_requeues=7)),
        ({"slurm_max_pickle_size_gb": 0.5}, Resources(max_pickle_mb=512)),
        ({"slurm_signal_delay_s": 60}, Resources(notice=60)),
        ({"slurm_setup": ["module load x"]}, Resources(setup=["module load x"])),
        ({"slurm_mail_type": "END", "comment": "x"}, Resources(slurm={"mail-type": "END", "comment": "x"})),
        ({"slurm_requeue": True}, Resources(slurm={"requeue": True})),
        ({"slurm_additional_parameters": {"gpu_bind": "none"}}, Resources(slurm={"gpu-bind": "none"})),
        ({"slurm_additional_parameters": None, "mem_gb": None}, Resources()),
        ({"tasks_per_node": 4}, Resources(ranks_per_node=4)),
        ({"launch": {"no_use_env": True}}, Resources(launch={"no_use_env": True})),
        ({"tasks_per_node": 1, "cpus_per_task": 8}, Resources(ranks_per_node=1, cpus_per_task=8)),
        ({"ranks_per_node": 4, "cpus_per_task": 8}, Resources(ranks_per_node=4, cpus_per_task=8)),
    ],
    ids=str,
)
def test_what_parameters_become(given: dict[str, Any], expected: Resources) -> None:
    """A parameter for Slurm overrides a shared one, in whatever order; values are converted."""
    assert job_resources.read_resources(given) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tasks_per_node": 4, "cpus_per_task": 10}, "cpus_per_task=40 ranks_per_node=4"),
        ({"time": 5, "timeout_min": 6}, "time timeout_min"),
        ({"slurm_gpus_per_node": 1, "slurm_num_gpus": 2}, "slurm_gpus_per_node slurm_num_gpus"),
        ({"partion": "x"}, "'partion' 'partition'?"),
        ({"slurm_max_pickle_size_gb": "much"}, "slurm_max_pickle_size_gb='much'"),
        ({"slurm_max_pickle_size_gb": float("inf")}, "slurm_max_pickle_size_gb=inf"),
        ({"setup": 3}, "setup=3"),
        ({"requeue": True}, "requeue=True"),
        ({"slurm": "x"}, "slurm='x'"),
        ({"launch": {"tea": 3}}, "'tea' 'tee'?"),
        ({"launch": {"nproc_per_nod": 3}}, "'nproc_per_nod' 'nproc_per_node'?"),
        ({"launch": {"zzzzz": 3}}, "'zzzzz' --help"),
        ({"launch": {3: 3}}, "'3' --help"),
    ],
    ids=str,
)
def test_what_would_mean_something_else(given: dict[str, Any], words: str) -> None:
    """It is refused with the names to use."""
    with pytest.raises(UsageError) as refused:
        job_resources.read_resources(given)

    assert mentions(refused.value, words)


def test_a_line_of_setup_is_a_line() -> None:
    """And not a line for each of its letters; several lines are several."""
    assert Resources(setup="module load cuda\nexport X=1").setup_lines == ("module load cuda", "export X=1")


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.fixture
def executor(tmp_path: Path) -> hpc_launch.Executor:
    return hpc_launch.Executor(tmp_path, cluster="debug")


def test_every_attribute_of_an_executor_is_ours_or_refused(executor: hpc_launch.Executor) -> None:
    """Of the classes, and of what their constructors keep."""
    kept = {name for kind in EXECUTORS for name in inspect.signature(kind).parameters if name != "kwargs"}
    names = functools.reduce(set.union, map(public, EXECUTORS), kept | {"parameters"})
    ours = {name for name in names if hasattr(executor, name)}

    assert names - ours == set(submitit_names.EXECUTOR)
    with pytest.raises(AttributeError) as refused:
        _ = executor.parameters  # type: ignore[attr-defined]
    assert mentions(refused.value, "'parameters' resources")


def test_every_attribute_of_a_job_is_ours_or_refused(executor: hpc_launch.Executor) -> None:
    """The message says what there is instead; what nobody has is missing as ever."""
    job = executor.submit(int)
    names = public(submitit.Job) | public(submitit.SlurmJob) | public(submitit.LocalJob)
    ours = {name for name in names if hasattr(job, name)}

    assert names - ours == set(submitit_names.JOB)
    with pytest.raises(AttributeError) as refused:
        _ = job.paths  # type: ignore[attr-defined]
    assert mentions(refused.value, "'paths' directory logs(rank)")
    assert not hasattr(job, "nobodys")


def test_the_arguments_of_shared_methods_are_known(executor: hpc_launch.Executor) -> None:
    """A batch with submissions before its end is refused; submitit's default is not."""
    with pytest.raises(UsageError) as refused, executor.batch(allow_implicit_submissions=True):
        pass
    with executor.batch(allow_implicit_submissions=False):
        job = executor.submit(int)

    assert mentions(refused.value, "allow_implicit_submissions")
    assert job.result() == 0
