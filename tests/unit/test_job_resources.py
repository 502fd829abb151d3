"""Jobs from Python: what is asked for, what submitit is told of it, and where it is to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpc_launch.api import agent_command, backend_choice, job_resources, resource_defaults
from hpc_launch.api.agent_command import submitit_parameters
from hpc_launch.api.backend_choice import choose_backend
from hpc_launch.api.job_resources import Resources
from hpc_launch.errors import ContextError, UsageError
from hpc_launch.slurm.environment import Allocation, Place, Step
from hpc_launch.slurm.inventory import NodeGroup
from hpc_launch.submission import needs
from tests.support import mentions


def test_keywords_are_divided() -> None:
    """What names a resource is the job's, all others are the function's."""
    keywords = {"nodes": 2, "lr": 0.1, "slurm_reservation": "x", "timeout_min": 3, "name": "a"}

    assert job_resources.divide_keywords(keywords) == (
        {"nodes": 2, "slurm_reservation": "x", "timeout_min": 3, "name": "a"},
        {"lr": 0.1},
    )


def test_submitits_names_are_understood() -> None:
    """Who comes from submitit need not learn new names; its prefix brings any option of sbatch."""
    given = {
        "timeout_min": 90,
        "mem_gb": 1.5,
        "slurm_partition": "gpu",
        "slurm_nodelist": "gpu01",
        "slurm_additional_parameters": {"reservation": "x"},
    }
    found = job_resources.read_resources(given, Resources(nodes=3, slurm={"wckey": "w"}))

    assert (found.nodes, found.minutes, found.mem, found.partition) == (3, 90, 1.5, "gpu")
    assert found.slurm == {"wckey": "w", "nodelist": "gpu01", "reservation": "x"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nods": 2}, "'nods' 'nodes'?"),
        ({"nodes": 0}, "nodes=0 1 '2:4'"),
        ({"nodes": True}, "nodes=True 1"),
        ({"nodes": "4:2"}, "nodes='4:2' 1"),
        ({"nodes": (1, 2, 3)}, "nodes=(1, 2, 3) 1"),
        ({"nodes": (1.5, 2)}, "nodes=(1.5, 2) 1"),
        ({"spares": -1}, "spares=-1 0"),
        ({"ranks_per_node": True}, "ranks_per_node=True 1"),
        ({"time": "soon"}, "time='soon' minutes '1-12:00:00'"),
        ({"requeue": "on-monday"}, "requeue='on-monday' on-notice on-timeout on-preempt on-failure never"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    """The message names the keyword, what was given, and what is expected."""
    with pytest.raises(UsageError) as refused:
        job_resources.read_resources(given)

    assert mentions(refused.value, message)


@pytest.mark.parametrize(
    ("time", "minutes"), [(None, None), (5, 5), ("90", 90), ("1:30:00", 90), ("1-0", 1440), ("0:30", 1), ("2:01", 3)]
)
def test_time_limits_are_whole_minutes(time: int | str | None, minutes: int | None) -> None:
    """No job gets less time than was asked for."""
    assert Resources(time=time).minutes == minutes


def test_one_task_is_started_on_each_node() -> None:
    """What submitit is told: sizes, CPUs repeated for srun, a shell that survives SIGTERM, requeues allowed."""
    resources = Resources(
        nodes=2,
        gpus_per_node=4,
        cpus_per_task=32,
        mem="64G",
        time="2:00:00",
        partition="gpu",
        name="train",
        setup=("module load cuda",),
        notice=120,
        array_parallelism=8,
        slurm={"reservation": "x"},
    )

    assert submitit_parameters(resources, requeue=("on-notice",)) == {
        "name": "train",
        "timeout_min": 120,
        "nodes": 2,
        "tasks_per_node": 1,
        "slurm_array_parallelism": 8,
        "slurm_signal_delay_s": 120,
        "slurm_setup": ["trap : TERM", *needs.hold_lines("USR1,USR2"), "module load cuda"],
        "slurm_srun_args": ["--cpus-per-task=32"],
        "slurm_additional_parameters": {
            "nodes": "2",
            "cpus-per-task": 32,
            "gpus-per-node": 4,
            "mem": "64G",
            "partition": "gpu",
            "reservation": "x",
            "requeue": True,
        },
    }


@pytest.mark.parametrize("option", ["requeue", "no-requeue"])
def test_whether_a_job_may_run_again_is_said_once(option: str) -> None:
    """What sbatch is told of it counts."""
    parameters = submitit_parameters(Resources(slurm={option: True}), requeue=("on-preempt",))

    assert parameters["slurm_additional_parameters"] == {"nodes": "1", option: True}


def test_what_sbatch_is_given_counts() -> None:
    """Options of sbatch by their own names come last, but where Slurm has to let other nodes live."""
    resources = Resources(partition="a", mem="1G", spares=1, slurm={"partition": "b", "mem": None, "no-kill": False})

    assert agent_command.slurm_options(resources) == {"nodes": "2", "partition": "b", "no-kill": True}


@pytest.mark.parametrize(
    ("given", "asked", "words", "there"),
    [
        ({"nodes": 4}, None, (), ()),
        ({"nodes": "4"}, None, (), ()),
        ({"nodes": "2:4"}, "2-4", ("--nnodes=2:4",), ("--nnodes=2:3",)),
        ({"nodes": (2, 4), "spares": 1}, "3-5", ("--nnodes=2:5", "--spares=1"), ("--nnodes=2:3", "--spares=1")),
        ({"nodes": 3, "spares": 2}, None, ("--spares=2",), ("--spares=2",)),
        ({"nodes": 4, "launch": {"nnodes": "2:4"}}, None, (), ()),
    ],
)
def test_a_run_that_goes_on_without_nodes(
    given: dict[str, Any], asked: str | None, words: tuple[str, ...], there: tuple[str, ...]
) -> None:
    """Slurm is asked for all nodes, and to let the others live; the agents hear how many are enough, and to spare."""
    resources = job_resources.read_resources(given)
    parameters = submitit_parameters(resources)
    more = parameters.get("slurm_additional_parameters", {})
    lossy = bool(words) or "launch" in given

    assert resources.may_lose_nodes == more.get("no-kill", False) == lossy
    assert parameters.get("slurm_srun_args", []) == ["--ntasks-per-node=1"] * (asked is not None)
    assert ("export SLURM_NO_KILL=set SLURM_KILL_BAD_EXIT=0" in parameters["slurm_setup"]) == lossy
    assert parameters.get("tasks_per_node") == (1 if asked is None else None)
    most = resources.all_nodes.maximum
    assert (more["nodes"], parameters["nodes"]) == (asked or str(most), most)
    assert (agent_command.node_words(resources), agent_command.node_words(resources, 3)) == (words, there)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nodes": 4}, ("--nodes=4",)),
        ({"nodes": "2:4"}, ("--nnodes=2:3",)),
        ({"nodes": 3, "spares": 1}, ("--nodes=4", "--spares=1")),
        ({"nodes": 4, "launch": {"nnodes": "2:4"}}, ()),
    ],
)
def test_nodes_are_said_once_in_an_allocation(given: dict[str, Any], words: tuple[str, ...]) -> None:
    """By --nodes, unless there is a range of them."""
    assert agent_command.allocation_words(job_resources.read_resources(given), 3) == words


def test_an_agent_that_is_alone_is_not_told_of_nodes(tmp_path: Path) -> None:
    """`launch` may have words about them for elsewhere."""
    resources = Resources(launch={"nnodes": "2:4", "spares": 1, "tee": 3})
    for options, left in ((("--standalone",), ["--tee=3"]), ((), ["--nnodes=2:4", "--spares=1", "--tee=3"])):
        words = agent_command.agent_words("py", resources, ["x"], log_dir=tmp_path, requeue=(), options=options)
        assert words[5 + len(options) : -1] == left


def test_what_nobody_says_is_left_to_slurm() -> None:
    """Without sizes there are none, but for the time limit that submitit always writes."""
    assert submitit_parameters(Resources()) == {
        "timeout_min": 60,
        "nodes": 1,
        "tasks_per_node": 1,
        "slurm_signal_delay_s": 90,
        "slurm_setup": ["trap : TERM", *needs.hold_lines("USR1,USR2")],
        "slurm_additional_parameters": {"nodes": "1"},
    }
    assert agent_command.slurm_options(Resources(gpus_per_node=0, mem=1.5)) == {"nodes": "1", "mem": "1536M"}
    assert submitit_parameters(Resources(time=1))["slurm_signal_delay_s"] == 20


@pytest.mark.parametrize(
    ("resources", "checkpointed", "words"),
    [
        (Resources(), False, ("on-preempt",)),
        (Resources(), True, ("on-notice", "on-preempt")),
        (Resources(requeue="never"), True, ()),
        (Resources(requeue="on-failure, on-timeout"), True, ("on-failure", "on-timeout")),
        (Resources(requeue=["on-failure"]), False, ("on-failure",)),
    ],
)
def test_who_runs_again(resources: Resources, *, checkpointed: bool, words: tuple[str, ...]) -> None:
    """A callable that can be checkpointed does so after a notice too, others after a preemption; one's word counts."""
    assert agent_command.requeue_words(resources, checkpointed=checkpointed) == words


def test_the_agents_line() -> None:
    """It is a line of `hpc-launch run`, with further options as they were given."""
    resources = Resources(
        ranks_per_node=2,
        max_restarts=1,
        max_requeues=3,
        launch={"tee": 3, "use_env": True, "role": None, "verbose": False},
    )
    line = agent_command.agent_words(
        "python", resources, ("train.py", "--x"), log_dir=Path("/logs"), requeue=("on-preempt", "on-notice")
    )

    assert line == [
        *("python", "-m", "hpc_launch", "run", "--log-dir=/logs", "--nproc-per-node=2", "--max-restarts=1"),
        *("--requeue=on-preempt,on-notice", "--max-requeues=3", "--tee=3", "--use-env", "train.py", "--x"),
    ]


# ---- sizes


def group(**more: Any) -> NodeGroup:
    facts: dict[str, Any] = {"partition": "gpu", "default": True, "nodes": 4, "cpus": 64, "memory": 1, "gpus": {"": 8}}
    return NodeGroup(**{**facts, **more})


@pytest.mark.parametrize(
    ("resources", "nodes", "cpus", "time"),
    [
        (Resources(gpus_per_node=2), (group(),), 16, 60),
        (Resources(gpus_per_node=2, cpus_per_task=3, time=5), (group(),), 3, 5),
        (Resources(gpus_per_node=2, slurm={"exclusive": True}), (group(),), None, 60),
        (Resources(ranks_per_node=4), (), 4, 60),
        (Resources(), (), None, 60),
        (Resources(), (group(time_limit="30:00"),), None, 30),
        (Resources(slurm={"time": "1"}), (group(time_limit="30:00"),), None, None),
    ],
)
def test_what_is_missing_is_derived(
    resources: Resources, nodes: tuple[NodeGroup, ...], cpus: int | None, time: int
) -> None:
    """CPUs are the GPUs' share of a node, or one for each rank; the time is what there is, and at most an hour."""
    found, _ = resource_defaults.complete_resources(resources, nodes)

    assert (found.cpus_per_task, found.time) == (cpus, time)


def test_too_many_nodes_are_noted() -> None:
    """Slurm may let such a job wait for ever."""
    _, notes = resource_defaults.complete_resources(Resources(nodes=9, time=1), (group(),))

    assert [note for note in notes if mentions(note, "--nodes=9 gpu 4")] != []
    _, notes = resource_defaults.complete_resources(Resources(nodes=(4, 9), spares=1, time=1), (group(),))
    assert [note for note in notes if mentions(note, "--nodes=5-10 gpu 4")] != []


# ---- where


def allocation(where: Place = Place.SHELL, hosts: int = 2, gpus: int | None = None) -> Allocation:
    names = tuple(f"n{number}" for number in range(hosts))
    return Allocation("12", "12", where, names, "n0", "/", 0, gpus_on_node=gpus)


STEP = Step("12", "12", 0, ("n0",), "n0", 0, 1, 0, 1, 0, 1, None, 1, (), "/", 0)


@pytest.mark.parametrize(
    ("asked", "here", "slurm", "resources", "chosen"),
    [
        ("auto", None, True, Resources(), "slurm"),
        ("auto", None, False, Resources(), "local"),
        ("auto", allocation(), True, Resources(nodes=2), "allocation"),
        ("auto", allocation(Place.TERMINAL), True, Resources(), "allocation"),
        ("auto", allocation(), True, Resources(nodes=3), "slurm"),
        ("auto", allocation(), True, Resources(nodes="2:4"), "allocation"),
        ("auto", allocation(), True, Resources(nodes="2:4", spares=1), "slurm"),
        ("auto", allocation(gpus=2), True, Resources(gpus_per_node=4), "slurm"),
        ("auto", allocation(Place.BATCH), True, Resources(), "slurm"),
        ("auto", STEP, True, Resources(), "slurm"),
        ("local", allocation(), True, Resources(), "local"),
        ("debug", None, False, Resources(), "debug"),
        ("slurm", allocation(), True, Resources(), "slurm"),
        ("allocation", allocation(Place.BATCH), True, Resources(nodes=2), "allocation"),
    ],
)
def test_where_a_job_runs(
    asked: str, here: Step | Allocation | None, *, slurm: bool, resources: Resources, chosen: str
) -> None:
    """An allocation to work in comes before the queue, and the queue before this machine."""
    assert choose_backend(asked, here, has_slurm=lambda: slurm, resources=resources).cluster == chosen


@pytest.mark.parametrize(
    ("asked", "here", "message"),
    [
        ("slurm", None, "cluster='slurm' sbatch"),
        ("allocation", None, "cluster='allocation'"),
        ("allocation", allocation(hosts=1), "cluster='allocation' 2 12 1"),
        ("cloud", None, "cluster='cloud' auto slurm allocation local debug"),
    ],
)
def test_where_none_can_run(asked: str, here: Allocation | None, message: str) -> None:
    """What is not to be had is said, with what is needed."""
    with pytest.raises((ContextError, UsageError)) as refused:
        choose_backend(asked, here, has_slurm=lambda: False, resources=Resources(nodes=2))

    assert mentions(refused.value, message)


def test_the_choice_says_why() -> None:
    """Where something is run that could be queued, the way to the queue is said."""
    found = choose_backend("auto", allocation(), has_slurm=lambda: True, resources=Resources())

    assert found.cluster == "allocation"
    assert mentions(found.why, "12 cluster='slurm'")


@pytest.mark.parametrize(
    ("resources", "devices", "ranks"),
    [
        (Resources(), 0, 1),
        (Resources(nodes=2, ranks_per_node=4), 0, 8),
        (Resources(nodes=2, gpus_per_node=4), 0, 8),
        (Resources(nodes=2, gpus_per_node=4), 2, 2),
        (Resources(nodes=2, ranks_per_node=4), 2, 8),
        (Resources(nodes=(1, 3), spares=1), 0, 3),
    ],
)
def test_on_one_machine_there_are_as_many_ranks(resources: Resources, devices: int, ranks: int) -> None:
    """But for GPUs that it does not have."""
    assert backend_choice.local_ranks(resources, devices)[0] == ranks
