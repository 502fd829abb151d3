"""The identity of a run: who may meet, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.errors import ContextError
from hpc_launch.plan.derivation import make_plan
from hpc_launch.plan.identity import Identity, run_id_of_workers
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.settings import resolve
from hpc_launch.slurm.environment import Traced
from tests.support import mentions
from tests.unit.slurm_variables import ARRAY, BATCH, HETEROGENEOUS, ONE_TASK_PER_NODE, SUBSET, task_of
from tests.unit.test_plan import here

ONE_NODE_BATCH = {**BATCH, "SLURM_JOB_NODELIST": "gpu01", "SLURM_JOB_NUM_NODES": "1"}


def identity(
    *script: str, environ: Mapping[str, str] | None = None, directory: str = "/project", **flags: Any
) -> Identity:
    place = here(environ or {}, directory=Path(directory), pid=99)
    return make_plan(resolve(flags, {}), place, script or ("train.py",)).identity


# ---- where


@pytest.mark.parametrize(
    ("environ", "flags", "place"),
    [
        (ONE_TASK_PER_NODE, {}, "alps/4711/0/0"),
        ({**ONE_TASK_PER_NODE, "SLURM_RESTART_COUNT": "2"}, {}, "alps/4711/0/2"),
        (SUBSET, {}, "alps/4711/1/0"),
        ({**HETEROGENEOUS, "SLURM_JOB_ID": "4712"}, {}, "alps/4711/0/0"),
        (ARRAY, {}, "alps/4711/0/0"),
        (ONE_NODE_BATCH, {}, "alps/4711/shell/0"),
        ({}, {}, "alone/box/99"),
        (ONE_TASK_PER_NODE, {"standalone": True}, "alone/box/99"),
        ({"PBS_JOBID": "88.head"}, {"hosts": "a,box"}, "hosts/88.head"),
    ],
)
def test_the_place(environ: Mapping[str, str], flags: Mapping[str, Any], place: str) -> None:
    """The place says cluster, job, step and restart count in Slurm; what the hosts have in common elsewhere."""
    assert identity(environ=environ, **flags).place == place


def test_every_node_has_the_same_place() -> None:
    """Agents on two nodes of a step, and of a list of hosts, derive the same place."""
    other = {**ONE_TASK_PER_NODE, "SLURMD_NODENAME": "gpu04", "SLURM_NODEID": "3", "SLURM_PROCID": "3"}
    by_step = {identity(environ=environ).place for environ in (ONE_TASK_PER_NODE, other)}
    by_hosts = {identity(hosts="box,other", node_rank=rank).place for rank in (0, 1)}
    by_hand = {
        identity(nnodes=2, node_rank=rank, rdzv_endpoint=head, rdzv_backend="slurm").place
        for rank, head in enumerate(("localhost:1234", "box:1234"))
    }
    assert (len(by_step), len(by_hosts), len(by_hand)) == (1, 1, 1)


def test_another_list_of_hosts_is_another_place() -> None:
    """Runs on other hosts do not meet."""
    assert identity(hosts="box,a").place != identity(hosts="box,b").place


# ---- what


@pytest.mark.parametrize(
    "other",
    [
        {"script": ("train.py", "2")},
        {"script": ("other.py", "1")},
        {"script": ("train.py 1",)},
        {"script": ("train.py", "1"), "directory": "/elsewhere"},
        {"script": ("train.py", "1"), "module": True},
        {"script": ("train.py", "1"), "no_python": True},
        {"script": ("train.py", "1"), "run_path": True},
    ],
)
def test_another_program(other: Mapping[str, Any]) -> None:
    """Another script, argument, working directory or way to start it makes another program."""
    script = other["script"]
    more = {name: value for name, value in other.items() if name != "script"}
    assert identity(*script, **more).program != identity("train.py", "1").program


@pytest.mark.parametrize("flags", [{"nproc_per_node": 2}, {"max_restarts": 3}, {"log_dir": "/scratch"}])
def test_settings_are_no_part_of_the_program(flags: Mapping[str, Any]) -> None:
    """Nodes whose settings differ run the same program."""
    assert identity(**flags).program == identity().program


def test_an_id_joins_different_programs() -> None:
    """With `--rdzv-id`, the id alone says which agents are one run."""
    mixed = [identity("server.py", rdzv_id="x"), identity("client.py", rdzv_id="x", directory="/elsewhere")]
    assert {(one.program, one.explicit) for one in mixed} == {(mixed[0].program, True)}


def test_an_id_parts_equal_programs() -> None:
    """Equal programs with different ids, or with an id and without, are different runs."""
    assert len({identity().program, identity(rdzv_id="a").program, identity(rdzv_id="b").program}) == 3


def test_the_words() -> None:
    """Messages show the command as it could be typed."""
    assert [identity("a b.py", "1").words, identity("pkg.train", module=True).words] == ["'a b.py' 1", "-m pkg.train"]


# ---- the name for the workers


def run_id(job: str, base: str, environ: Mapping[str, str] | None = None, **flags: Any) -> str:
    return run_id_of_workers(identity(environ=environ, **flags), "met", Path("/logs", job), base, "c0ffee00")


def test_the_ordinary_run_is_job_step_and_restart() -> None:
    """The only run of a step has the id that it always had."""
    assert run_id("4711.0", "4711.0", ONE_TASK_PER_NODE) == "4711.0.0"


def test_the_second_run_of_a_step_has_an_id_of_its_own() -> None:
    """Runs of one step differ in their id, and keep it apart from that of any restart."""
    assert run_id("4711.0-2", "4711.0", ONE_TASK_PER_NODE) == "4711.0-2.0"


def test_runs_of_a_shell_have_ids_of_their_own() -> None:
    """So do runs that a batch script has started without srun."""
    assert [run_id(name, "4711", ONE_NODE_BATCH) for name in ("4711", "4711-2")] == ["4711.shell.0", "4711.shell-2.0"]


@pytest.mark.parametrize("name", ["log_dir", "log_name"])
def test_runs_with_a_directory_of_their_own_have_ids_of_their_own(name: str) -> None:
    """Runs of one step whose files the user keeps apart are both the first there, but have different ids."""
    ids = {
        run_id_of_workers(
            identity(environ=ONE_TASK_PER_NODE, **{name: word}), "met", Path(f"/{word}/4711.0"), "4711.0", ""
        )
        for word in ("a", "b")
    }
    assert len(ids) == 2


def test_outside_of_slurm_the_id_is_unique() -> None:
    """Outside of Slurm nothing but chance tells the runs of the world from each other."""
    assert run_id("local-1-2", "local-1-2") == "local-1-2-c0ffee00"


def test_an_id_that_was_given_is_kept() -> None:
    """What the user said is what scripts read."""
    assert run_id("4711.0-2", "4711.0", ONE_TASK_PER_NODE, rdzv_id="mine") == "met"


# ---- an environment that was dropped


def alone(step: str, size: int | None, **flags: Any) -> Plan:
    """Plan a run in a process that only the kernel knows to be in a step."""
    return make_plan(resolve(flags, {}), here({}, traced=Traced("12", step), traced_size=lambda: size), ("train.py",))


@pytest.mark.parametrize(("step", "size"), [("0", 2), ("0", None), ("batch", 2), ("interactive", 3)])
def test_no_world_of_one_where_there_are_others(step: str, size: int | None) -> None:
    """A task that lost its environment does not train alone, where there are others or that is unknown."""
    with pytest.raises(ContextError, match=r"SLURM_\* variables are gone.*--hosts.*--standalone"):
        alone(step, size)


@pytest.mark.parametrize(("step", "size"), [("0", 1), ("batch", 1)])
def test_a_single_task_may_lose_its_environment(step: str, size: int) -> None:
    """The only task of a step, and the script of a job of one node, train as they always did, without a word."""
    made = alone(step, size)
    assert (len(made.world.hosts), made.warnings) == (1, ())


def test_a_script_that_may_have_others_is_told() -> None:
    """A batch script trains alone with a line that says so, where the size of its job is unknown."""
    assert [line for line in alone("batch", None).warnings if "SLURM_* variables are gone" in line] != []


def contained(environ: Mapping[str, str] | None = None, **flags: Any) -> list[str]:
    """Return what is said at the start of a run in a container."""
    made = make_plan(resolve(flags, {}), here(environ or {}, contained=True), ("train.py",))
    return [line for line in made.warnings if mentions(line, "SLURM_* --standalone")]


def test_a_container_without_variables_is_told() -> None:
    """It may be one of several, of which nothing else is to be seen."""
    assert len(contained()) == 1


@pytest.mark.parametrize("flags", [{"standalone": True}, {"hosts": "box"}])
def test_who_says_where_a_container_runs_is_believed(flags: Mapping[str, Any]) -> None:
    """Nothing is said where the nodes were named."""
    assert contained(**flags) == []


def test_a_container_with_variables_is_not_told() -> None:
    """They say all."""
    assert contained(task_of(2, 0)) == []


@pytest.mark.parametrize("flags", [{"standalone": True}, {"hosts": "box"}, {"master_addr": "box", "node_rank": 0}])
def test_who_says_where_it_runs_is_believed(flags: Mapping[str, Any]) -> None:
    """Flags that say which nodes take part are reason enough."""
    assert len(alone("0", 2, **flags).world.hosts) == 1
