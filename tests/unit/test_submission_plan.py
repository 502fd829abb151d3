"""Plans of submissions: what is derived, what is refused, what is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from hpc_launch.errors import UsageError
from hpc_launch.settings import Origin
from hpc_launch.settings.resolution import Resolved
from hpc_launch.slurm.inventory import NodeGroup, read_nodes
from hpc_launch.slurm.slurm_times import read_time_limit
from hpc_launch.submission import parameter_sweep, sbatch, submission_plan
from hpc_launch.submission.job_request import JobRequest, Software, Submission, SubmitContext
from hpc_launch.submission.job_script import ScriptDraft
from tests.support import mentions
from tests.unit.test_templates import TEMPLATES

DGX = NodeGroup("gpu", default=True, nodes=4, cpus=128, memory=1_000_000, gpus={"a100": 8}, time_limit="2-00:00:00")
SMALL = NodeGroup("gpu", default=True, nodes=2, cpus=24, memory=100_000, gpus={"t4": 2}, time_limit="2-00:00:00")
PLAIN = NodeGroup("cpu", default=False, nodes=9, cpus=4, memory=16_000, gpus={})
HERE = SubmitContext({}, launcher="/opt/venv/bin", slurm="/opt/slurm/bin", version="1")
DRAFTS = {path.stem: ScriptDraft(path.stem, path.read_text(), shipped=True) for path in TEMPLATES}


def made(
    *nodes: NodeGroup,
    template: str = "single_node",
    shipped: bool = True,
    chosen: str = "",
    environ: Mapping[str, str] | None = None,
    **asked: Any,
) -> Submission:
    """Plan a submission; what is not a field of a request is Slurm's option."""
    fields = {field.name for field in dataclasses.fields(JobRequest)}
    slurm = {name.replace("_", "-"): value for name, value in asked.items() if name not in fields}
    request = JobRequest("train.py", slurm=slurm, **{name: value for name, value in asked.items() if name in fields})
    draft = dataclasses.replace(DRAFTS[template], shipped=shipped)
    return submission_plan.make_submission(
        request, draft, HERE if environ is None else dataclasses.replace(HERE, environ=environ), nodes, chosen=chosen
    )


def options(submission: Submission) -> dict[str, str]:
    return ScriptDraft("made", submission.script, shipped=False).options()


def picked(submission: Submission, *names: str) -> tuple[str | None, ...]:
    found = options(submission)
    return tuple(found.get(name) for name in names)


SIZES = ("gpus-per-node", "cpus-per-task", "mem")


@pytest.mark.parametrize(
    ("nodes", "asked", "sizes"),
    [
        ([DGX], {"gpus_per_node": "2"}, ("2", "32", "250000M")),
        ([DGX], {"gpus_per_node": "8"}, ("8", "128", "0")),
        ([DGX], {"gpus_per_node": "a100:4"}, ("a100:4", "64", "500000M")),
        ([DGX], {}, ("4", "64", "500000M")),
        ([SMALL], {}, ("2", "24", "0")),
        ([DGX, SMALL], {"gpus_per_node": "2"}, ("2", "24", "100000M")),
        ([DGX, SMALL], {"gpus_per_node": "t4:1"}, ("t4:1", "12", "50000M")),
        ([DGX], {"gpus_per_node": "2", "exclusive": ""}, ("2", "128", "0")),
        ([DGX], {"gpus_per_node": "2", "cpus_per_task": "3", "mem": "7G"}, ("2", "3", "7G")),
        ([DGX], {"gpus_per_node": "2", "cpus_per_gpu": "5"}, ("2", "10", "250000M")),
        ([], {"gpus_per_node": "2", "cpus_per_gpu": "5"}, ("2", "10", "128G")),
        ([], {"gpus_per_node": "2"}, ("2", "32", "128G")),
        ([DGX], {"gpus_per_node": "h100:2"}, ("h100:2", "32", "128G")),
        ([DGX], {"gpus": "8", "nodes": "4"}, (None, "32", "250000M")),
        ([DGX], {"gres": "gpu:1,nvme:1"}, (None, "16", "125000M")),
        ([DGX], {"gres": "gpu:a100"}, (None, "16", "125000M")),
        ([DGX], {"gpus_per_node": "2", "mem": None}, ("2", "32", None)),
        ([DGX], {"gpus_per_node": "2", "mem_per_gpu": "9G"}, ("2", "32", None)),
    ],
)
def test_sizes_are_the_gpus_share(nodes: list[NodeGroup], asked: Any, sizes: tuple[str | None, ...]) -> None:
    """CPUs and memory are those of the GPUs that were asked for, of the node that has the least; words are kept."""
    assert picked(made(*nodes, **asked), *SIZES) == sizes


def test_an_administrators_sizes_are_kept() -> None:
    """Only templates that come with hpc-launch have sizes that are nobody's word."""
    assert picked(made(DGX, shipped=False, gpus_per_node="2"), *SIZES) == ("2", "32", "128G")
    assert picked(made(PLAIN, shipped=False), "time") == ("1-00:00:00",)


@pytest.mark.parametrize(
    ("nodes", "asked", "has"),
    [
        ([DGX], {"nodes": "5", "gpus_per_node": "1"}, "4 1"),
        ([DGX, SMALL], {"nodes": "5-9", "gpus_per_node": "4"}, "4 4"),
        ([SMALL], {"nodes": "3", "gpus_per_node": "t4:3"}, "0 3"),
        ([DGX, SMALL], {"nodes": "7", "gpus_per_node": None}, "6"),
    ],
)
def test_more_nodes_than_there_are(nodes: list[NodeGroup], asked: Any, has: str) -> None:
    """Slurm accepts such a job, unless it is told not to (EnforcePartLimits), and it waits for ever."""
    notes = made(*nodes, **asked).notes

    assert [note for note in notes if mentions(note, f"--nodes={asked['nodes']} gpu {has}")] != []


@pytest.mark.parametrize("asked", [{"nodes": "4"}, {"nodes": "2-9"}, {"nodes": "6", "gpus_per_node": "2"}, {}])
def test_as_many_nodes_as_there_are(asked: Any) -> None:
    assert not [note for note in made(DGX, SMALL, **asked).notes if "but partition" in note]
    assert not [note for note in made(nodes="99", gpus_per_node="2").notes if "but partition" in note]


def test_tasks_follow_the_gpus_where_each_has_one() -> None:
    found = made(DGX, template="task_per_gpu", gpus_per_node="8")

    assert picked(found, "ntasks-per-node", "cpus-per-task") == ("8", "16")


def test_a_node_without_gpus_has_no_more_cpus_than_it_has() -> None:
    assert picked(made(PLAIN, template="cpu", chosen="no GPUs"), "cpus-per-task", "nodes") == ("4", "1")


@pytest.mark.parametrize(
    ("asked", "time"),
    [({}, "06:00:00"), ({"time": "1-00:00:00"}, "1-00:00:00")],
)
def test_a_template_wants_no_more_time_than_there_is(asked: Any, time: str) -> None:
    short = dataclasses.replace(DGX, time_limit="06:00:00")

    assert picked(made(short, **asked), "time") == (time,)


@pytest.mark.parametrize(
    ("nodes", "asked", "name"),
    [
        ([], {}, "single_node"),
        ([DGX], {}, "single_node"),
        ([PLAIN], {}, "cpu"),
        ([PLAIN], {"gpus-per-node": "1"}, "single_node"),
        ([DGX], {"gpus-per-node": "0"}, "cpu"),
        ([DGX], {"nodes": "2"}, "multi_node"),
        ([DGX], {"nodes": "1-4"}, "multi_node"),
        ([DGX], {"nodes": "1", "gres": "gpu:2"}, "single_node"),
    ],
)
def test_the_template_fits_the_request(nodes: list[NodeGroup], asked: dict[str, str | None], name: str) -> None:
    assert submission_plan.choose_template(JobRequest("train.py", slurm=asked), nodes)[0] == name


def test_what_was_decided_is_told() -> None:
    """The template, each derived size, and variables that a user has set for sbatch."""
    notes = made(DGX, chosen="one node", environ={"SBATCH_ACCOUNT": "a b", "SLURM_NTASKS": "2"}).notes

    assert [note.split(" ")[0] for note in notes] == [
        "template",
        "4",
        "--cpus-per-task=64",
        "--mem=500000M",
        "SBATCH_ACCOUNT='a",
    ]


def test_a_job_that_may_lose_nodes_tells_slurm_so() -> None:
    """--no-kill for the job and for its step, and the spares are added to the nodes that were asked for."""
    spared = made(DGX, template="multi_node", nodes="2-4", spares=2, no_kill=True)

    assert picked(spared, "nodes", "no-kill") == ("4-6", "")
    assert "export SLURM_NO_KILL=set SLURM_KILL_BAD_EXIT=0\n" in spared.script
    assert [note for note in spared.notes if mentions(note, "--nodes=4-6 2")] != []
    assert "NO_KILL" not in made(DGX, template="multi_node", nodes="2").script
    with pytest.raises(UsageError, match=r"--spares 1\b.*\ball\b"):
        made(DGX, template="multi_node", nodes="all", spares=1)


@pytest.mark.parametrize(
    ("after", "dependency"),
    [
        (["12"], "afterok:12"),
        (["12:any", "13_4"], "afterany:12,afterok:13_4"),
        (["12:afternotok"], "afternotok:12"),
        (["12:start"], "after:12"),
        (["12:corr"], "aftercorr:12"),
    ],
)
def test_a_job_comes_after_others(after: list[str], dependency: str) -> None:
    assert picked(made(after=after), "dependency") == (dependency,)
    assert picked(made(after=after, dependency="singleton"), "dependency") == (f"singleton,{dependency}",)


@pytest.mark.parametrize("after", ["", "x", "12:later", "12,13", "12:"])
def test_other_conditions_are_refused(after: str) -> None:
    with pytest.raises(UsageError, match="JOB or JOB:STATE"):
        made(after=[after])


def limit(value: str) -> Resolved:
    return Resolved(value, Origin.SITE, "/etc/x: submit.partitions.gpu.max", 3)


@pytest.mark.parametrize(
    ("name", "asked", "start"),
    [
        ("max-nodes", {"nodes": "3"}, "--nodes 3 2 /etc/x"),
        ("max-gpus-per-node", {"gpus_per_node": "a100:3"}, "--gpus-per-node 3 2"),
        ("max-gpus-per-node", {"gres": "gpu:4"}, "--gpus-per-node 4 2"),
        ("max-time", {"time": "1-12"}, "--time 1-12"),
        ("max-time", {"time": "unlimited"}, "--time unlimited"),
    ],
)
def test_a_limit_is_looked_at_before_slurm_is_asked(name: str, asked: Any, start: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(limits={name: limit("2")}, **asked)
    assert mentions(caught.value, start)


def test_what_is_within_the_limits_is_fine() -> None:
    limits = {"max-nodes": limit("4"), "max-time": limit("12:00:00"), "max-gpus-per-node": limit("4")}

    assert picked(made(limits=limits, nodes="4"), "nodes", "time") == ("4", "12:00:00")


def test_a_job_that_is_to_run_again_says_so_to_slurm() -> None:
    """--requeue of hpc-launch goes with Slurm's own, and with a signal that comes in time."""
    assert picked(made(requeue=("on-notice",)), "requeue", "signal") == ("", "USR1@120")
    assert picked(made(requeue=("on-failure",)), "requeue", "signal") == ("", None)
    assert picked(made(requeue=("on-notice",), signal="USR2@60"), "requeue", "signal") == ("", "USR2@60")
    assert picked(made(), "requeue", "signal") == (None, None)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("fine name", "%x-%j.out"),
        ("a/b%j\\", "a_b_j_-%j.out"),
        ("x" * 200, f"{'x' * 25}-%j.out"),
    ],
)
def test_a_name_makes_a_file_name(name: str, output: str) -> None:
    assert picked(made(job_name=name), "output") == (output,)
    assert picked(made(job_name=name, output="%x"), "output") == ("%x",)


def test_the_job_is_named_after_its_script() -> None:
    assert picked(made(), "job-name") == ("train",)
    assert made(job_name="other").name == "other"


def test_relative_output_can_begin_elsewhere() -> None:
    """Where the working directory is a copy of the code, output goes where it would have gone."""
    found = made(output_directory="/home/50%", error="e/%j", output="/abs")

    assert picked(found, "output", "error") == ("/abs", "/home/50%%/e/%j")


@pytest.mark.parametrize(
    ("asked", "folders"),
    [
        ({}, ()),
        ({"output": "logs/a/%j.out", "error": "logs/b/x"}, ("logs/a", "logs/b")),
        ({"output": "/abs/50%%/x", "chdir": "/work"}, ("/abs/50%",)),
        ({"output": "logs/x", "chdir": "/project"}, ("/project/logs",)),
        ({"output": "%x/%j.out"}, ()),
    ],
)
def test_directories_of_output_files_are_known(asked: Any, folders: tuple[str, ...]) -> None:
    assert made(**asked).folders == folders


def test_points_are_tasks_of_an_array() -> None:
    """The array has a task for each point, and each task a file of its own."""
    parameters = (parameter_sweep.read_parameter("lr=1,2"), parameter_sweep.read_parameter("--wd=a,,b,c"))
    found = made(sweep=parameters)

    assert (found.points, *picked(found, "array", "output")) == (4, "0-3", "%x-%A_%a.out")
    assert picked(made(sweep=parameters, array="%2"), "array") == ("0-3%2",)
    assert picked(made(sweep=parameters, array="1,3"), "array") == ("1,3",)
    assert picked(made(sweep=parameters, array="0-3:2%1"), "array") == ("0-3:2%1",)
    assert "--wd a,b ;;" in found.script


@pytest.mark.parametrize("array", ["4", "0-9", "x", "0-3%x"])
def test_points_that_are_not_there_are_refused(array: str) -> None:
    with pytest.raises(UsageError, match="0-1"):
        made(sweep=(parameter_sweep.read_parameter("lr=1,2"),), array=array)


@pytest.mark.parametrize("text", ["lr", "=1", "lr=", "l r=1", "lr=1,1"])
def test_a_sweep_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--sweep"):
        parameter_sweep.read_parameter(text)


def test_a_sweep_is_not_for_a_template_with_points() -> None:
    with pytest.raises(UsageError, match="array"):
        made(template="array", sweep=(parameter_sweep.read_parameter("lr=1"),))
    with pytest.raises(UsageError, match="--lr"):
        made(sweep=(parameter_sweep.read_parameter("lr=1"), parameter_sweep.read_parameter("--lr=2")))


def test_a_job_without_the_environment_is_given_what_it_needs() -> None:
    """srun passes on what the script has, and the script finds hpc-launch."""
    alone = made(export="NONE").script
    with_venv = made(export="A,B", software=Software(venv="/my venv")).script

    assert "export SRUN_EXPORT_ENV=ALL" in alone
    assert 'export PATH=/opt/venv/bin:/opt/slurm/bin:"$PATH"' in alone
    assert "export SRUN_EXPORT_ENV=ALL" in with_venv
    assert 'export PATH=/opt/slurm/bin:"$PATH"' in with_venv
    assert "source '/my venv/bin/activate'" in with_venv
    assert "SRUN_EXPORT_ENV" not in made().script + made(export="ALL,A=1").script


def test_a_launcher_that_is_not_on_the_path_is_found() -> None:
    """Called by its whole path, hpc-launch is found by the job all the same, unless somebody sees to that."""
    here = dataclasses.replace(HERE, on_path=False)
    plain, with_setup = (
        submission_plan.make_submission(
            JobRequest("train.py", software=Software(setup=setup)), DRAFTS["cpu"], here, ()
        ).script
        for setup in ((), ("export PATH=/mine:$PATH",))
    )

    assert ('export PATH=/opt/venv/bin:"$PATH"' in plain, "/opt/venv/bin" in with_setup) == (True, False)


def test_software_comes_first_and_is_forgiven() -> None:
    """Lines of a site may use unset variables; they come in the order modules, venv, setup."""
    script = made(software=Software(("cuda/12", "a b"), "/v", ("export A=1",))).script
    block = "set -euo pipefail\n\nset +u\nmodule load cuda/12 'a b'\nsource /v/bin/activate\nexport A=1\nset -u\n"

    assert block in script
    assert "# module load" not in script


@pytest.mark.parametrize("template", ["apptainer", "pyxis"])
def test_an_image_is_for_a_template_that_takes_one(template: str) -> None:
    found = made(template=template, software=Software(image="/my image.sif"))

    assert found.script.index("export CONTAINER_IMAGE='/my image.sif'\n") < found.script.index(
        'CONTAINER_IMAGE="${CONTAINER_IMAGE:-'
    )
    with pytest.raises(UsageError, match=r"--image.*\bcpu\b"):
        made(template="cpu", software=Software(image="x"))


def test_a_check_comes_before_the_training() -> None:
    lines = made(check=True).script.splitlines()

    assert lines.index("hpc-launch check || exit") < next(n for n, line in enumerate(lines) if line.startswith("srun"))


def test_a_kept_variable_is_weaker_than_an_option() -> None:
    """sbatch hears its variables before the lines of the script: one that the script overrules goes."""
    environ = {"SBATCH_PARTITION": "a", "SBATCH_QOS": "b", "SBATCH_TIMELIMIT": "1"}
    found = made(environ=environ, keep=("SBATCH_*",), partition="c", time="2")

    assert (dict(found.environ), found.dropped) == ({"SBATCH_QOS": "b"}, ("SBATCH_PARTITION", "SBATCH_TIMELIMIT"))


def test_sinfo_is_read() -> None:
    """Types, sockets, several kinds of resources; the default partition; lines of another form."""
    text = (
        "gpu*|4|128|1000000|gpu:a100:8(S:0-1),gpu:t4:1,nvme:2|2-00:00:00\ncpu|9|4|16000|(null)|infinite\nwarning: x\n"
    )
    found = read_nodes(text)

    assert [(group.partition, group.default, group.gpus_of(), group.gpus_of("t4")) for group in found] == [
        ("gpu", True, 9, 1),
        ("cpu", False, 0, 0),
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("1:00:00", 3600), ("1-12", 129600), ("1-00:30", 88200), ("2-00:00:01", 172801)],
)
def test_time_limits_are_read(text: str, seconds: int) -> None:
    assert read_time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-1", "1-", "now+1"])
def test_other_times_are_not(text: str) -> None:
    assert read_time_limit(text) is None


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "nothing"),
        ("\n \n", "nothing"),
        ("sbatch: error: Batch job submission failed: Invalid qos\n", "Invalid qos"),
        ("sbatch: fatal: no space\nsbatch: error: a\nsbatch: b\nsbatch: error: a\n", "no space; a; b"),
        ("a site's own word", "a site's own word"),
    ],
)
def test_a_refusal_in_one_line(said: str, words: str) -> None:
    """It is Slurm's word, each once, without the name of the program that says it."""
    assert str(sbatch.refusal(said, "nothing")) == f"Slurm refuses the job: {words}"
