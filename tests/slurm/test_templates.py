"""The job templates on real clusters: each of them trains, ends with the script's status, and passes signals on.

Neither Apptainer nor pyxis can run here. In the place of Apptainer stands a program that takes its options, runs what
it is given without what a container would not have, and passes signals on as Apptainer's starter does when there is no
terminal. In the place of pyxis stands an `srun` that drops the options which pyxis adds to it. What is proven is that
the templates fit these: their words, their quoting, the status and the signals. That an image has what is needed, that
mounts and drivers get in, and that a site has set pyxis up, is not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster import Cluster, Job
from tests.slurm.jobs_support import DEADLINE, Ended, clean_environment, ended, write_probe
from tests.slurm.signals_support import STAYER, Running
from tests.support import LEAVE, mentions, wait_for

CHECKOUT = Path(__file__).parents[2]
TEMPLATES = sorted(path.stem for path in CHECKOUT.glob("sbatch_templates/*.sbatch"))

# What Apptainer does with the options of the template, and with signals (its master process, where nothing is a
# terminal). Slurm cannot be asked in a container that does not have its configuration.
APPTAINER = """#!/usr/bin/env python3
import os, signal, subprocess, sys

words = sys.argv[1:]
environ = {name: value for name, value in os.environ.items() if name != "SLURM_CONF"}
if words.pop(0) != "exec":
    sys.exit(255)
while words[0].startswith("--"):
    option = words.pop(0)
    if option == "--nv":
        continue
    value = words.pop(0)
    if option == "--env":
        name, _, text = value.partition("=")
        environ[name] = text
    elif option == "--pwd":
        os.chdir(value)
    elif option != "--bind" or not all(os.path.exists(part.split(":")[0]) for part in value.split(",")):
        sys.exit(f"FATAL: {option} {value}")
image = words.pop(0)
if not os.path.isfile(image):
    sys.exit(f"FATAL: could not open image {image}")
passed_on = set(signal.Signals) - {signal.SIGCHLD, signal.SIGURG, signal.SIGKILL, signal.SIGSTOP}
signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
child = subprocess.Popen(words, env=environ | {"APPTAINER_CONTAINER": image}, preexec_fn=lambda: signal.pthread_sigmask(
    signal.SIG_UNBLOCK, passed_on))
for signum in passed_on:
    signal.signal(signum, lambda number, _: child.send_signal(number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
status = child.wait()
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""

# Says which options of pyxis it was given, and runs srun without them.
PYXIS_SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
    case "$1" in
        --container-*=* | --no-container-entrypoint) echo "$1" >>"$CONTAINER_OPTIONS" ;;
        *) words+=("$1") ;;
    esac
    shift
done
PATH=${PATH#*:}
exec srun "${words[@]}" "$@"
"""

# What must arrive as it is, besides the words that say how the script is to end.
UGLY = ["two words", "it's", '"', "$HOME", "*", "", "\\", "a\nb", "ü", "%j", "-x"]


@dataclass(frozen=True)
class Small:
    """How a template is run here.

    Attributes:
        options: of sbatch, for a small size.
        ranks: how many ranks there are then.
        cpus: the CPUs of each node.
        arguments: what hpc-launch is given besides.
        after: what the script is given after its arguments.
    """

    options: str
    ranks: int
    cpus: int = 4
    arguments: str = ""
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ran:
    """What became of a template's job."""

    small: Small
    ended: Ended
    folder: Path
    project: Path


SMALL = {
    "amd": Small("--nodes=2 --gpus-per-node=2", 4),
    "apptainer": Small("--nodes=2 --gpus-per-node=2", 4),
    "array": Small("--array=1 --gpus-per-node=2", 2, after=("--lr", "1e-3", "--seed", "2")),
    "cpu": Small("--nodes=2", 4, arguments="--nproc-per-node 2"),
    "elastic": Small("--nodes=2 --gpus-per-node=2", 4, arguments="--max-restarts 0 --requeue never"),
    "multi_node": Small("--nodes=2 --gpus-per-node=2", 4),
    "pyxis": Small("--nodes=2 --gpus-per-node=2", 4),
    "requeue": Small("--nodes=2 --gpus-per-node=2", 4),
    "single_node": Small("--gpus-per-node=2", 2),
    "task_per_gpu": Small("--nodes=2 --gpus-per-node=2 --ntasks-per-node=2 --cpus-per-task=2", 4),
}


@dataclass(frozen=True)
class Site:
    """A cluster with the stand-ins for containers.

    Attributes:
        cluster: the cluster.
        folder: where all jobs have their folders.
        environ: what a job is submitted with.
    """

    cluster: Cluster
    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def submit(self, template: str, place: str, options: str, *words: str) -> tuple[Job, Path, Path]:
        """Submit a template from a folder, for a project in another one; both have a space in their names."""
        folder, project = self.folder / place / "submitted here", self.folder / place / "my project"
        for path in (folder, project):
            path.mkdir(parents=True)
        write_probe(project)
        (project / "stayer.py").write_text(STAYER)
        places = [str(self.folder / name) for name in ("pyxis", "apptainer") if name == template]
        command = ["sbatch", "--parsable", f"--chdir={project}", "--mem=500", "--time=30", "--cpus-per-task=4"]
        command += [*options.split(), str(CHECKOUT / f"sbatch_templates/{template}.sbatch"), *words]
        search = ":".join([*places, self.cluster.env["PATH"]])
        environ = {**self.environ, "PATH": search, "CONTAINER_OPTIONS": str(folder / "options")}
        with clean_environment():
            said = self.cluster.run(command, cwd=folder, env=environ).stdout.strip()
        return Job(self.cluster, f"{said}_1" if "--array" in options else said), folder, project


@pytest.fixture(scope="module")
def site(newest_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return furnished(newest_cluster, tmp_path_factory.mktemp("site"))


@pytest.fixture
def some_site(some_cluster: Cluster, tmp_path: Path) -> Site:
    """Return one on either cluster."""
    return furnished(some_cluster, tmp_path)


def furnished(cluster: Cluster, folder: Path) -> Site:
    """Put the stand-ins, and what stands for an image, into a folder."""
    for place, name, text in (("apptainer", "apptainer", APPTAINER), ("pyxis", "srun", PYXIS_SRUN)):
        (folder / place).mkdir()
        program = folder / place / name
        program.write_text(text)
        program.chmod(0o755)
    image = folder / "an image.sif"
    image.touch()
    return Site(cluster, folder, {"CONTAINER_IMAGE": str(image)})


@pytest.fixture(scope="module")
def jobs(site: Site) -> dict[str, Ran]:
    """Run all templates at the same time, with a script that fails."""
    words = {name: [*small.arguments.split(), "probe.py", "--exit", "0", "42", *UGLY] for name, small in SMALL.items()}
    submitted = {name: site.submit(name, f"run {name}", small.options, *words[name]) for name, small in SMALL.items()}
    return {
        name: Ran(SMALL[name], ended(job, folder), folder, project)
        for name, (job, folder, project) in submitted.items()
    }


def test_all_templates_are_run_here() -> None:
    """None is forgotten."""
    assert sorted(SMALL) == TEMPLATES


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_runs_the_script_and_ends_as_it_does(jobs: dict[str, Ran], template: str) -> None:
    """All ranks run the project's script with its words and all CPUs; the status is that of the rank that failed."""
    ran = jobs[template]
    assert (ran.ended.state, ran.ended.status) == ("FAILED", 42), ran.ended.job.describe()
    reports = ran.ended.tree.reports()
    assert list(reports) == list(range(ran.small.ranks)), ran.ended.output
    expected = ("--exit", "0", "42", *UGLY, *ran.small.after)
    assert {tuple(report.argv) for report in reports.values()} == {expected}
    assert {report.env["SLURM_CPUS_ON_NODE"] for report in reports.values()} == {str(ran.small.cpus)}
    assert {report.env["PWD"] for report in reports.values()} == {str(ran.project)}


def test_ranks_on_amd_have_the_mask_of_amd(jobs: dict[str, Ran]) -> None:
    """Slurm sets the masks of all makers here; the template leaves the one that counts."""
    for report in jobs["amd"].ended.tree.reports().values():
        assert report.env["ROCR_VISIBLE_DEVICES"] == "0,1"
        assert not {"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"} & report.env.keys()
        assert report.env["MIOPEN_USER_DB_PATH"].endswith(f"/miopen-{report.env['SLURM_JOB_ID']}")


def test_a_rank_of_a_task_is_the_tasks_and_sees_all_gpus(jobs: dict[str, Ran]) -> None:
    """With a task per GPU, ranks are Slurm's numbers, each has its CPUs, and all GPUs of the node are there."""
    reports = jobs["task_per_gpu"].ended.tree.reports()

    assert {report.env["CUDA_VISIBLE_DEVICES"] for report in reports.values()} == {"0,1"}
    assert [report.numbers("SLURM_PROCID", "SLURM_LOCALID") for report in reports.values()] == [
        (rank, rank % 2) for rank in range(4)
    ]
    assert {report.env["SLURM_CPUS_PER_TASK"] for report in reports.values()} == {"2"}


def test_a_point_of_a_sweep_has_its_own_directory(jobs: dict[str, Ran]) -> None:
    """The job directory and the output are the array's task's."""
    ran = jobs["array"]
    array = ran.ended.job.id.partition("_")[0]

    assert ran.ended.tree.path.name == f"{array}_1.0"
    assert (ran.project / f"train-{array}_1.out").exists()


def test_the_launcher_runs_in_the_container(jobs: dict[str, Ran], site: Site) -> None:
    """Apptainer gets the image, and ranks its environment and Slurm's; what is Slurm's own is not needed inside."""
    for report in jobs["apptainer"].ended.tree.reports().values():
        assert report.env["APPTAINER_CONTAINER"] == site.environ["CONTAINER_IMAGE"]
        assert (report.env["PYTHONNOUSERSITE"], report.env["CUDA_VISIBLE_DEVICES"]) == ("1", "0,1")
        assert "SLURM_CONF" not in report.env


def test_pyxis_gets_its_options(jobs: dict[str, Ran], site: Site) -> None:
    """srun has the image, the mounts and the working directory, each in one word."""
    ran = jobs["pyxis"]

    assert (ran.folder / "options").read_text().splitlines() == [
        f"--container-image={site.environ['CONTAINER_IMAGE']}",
        f"--container-mounts={ran.project}:{ran.project},{ran.folder}:{ran.folder}",
        f"--container-workdir={ran.project}",
        "--no-container-entrypoint",
    ]


# --- signals


@pytest.mark.parametrize(
    "template",
    [
        "apptainer",
        "elastic",
        "task_per_gpu",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("amd", "array", "pyxis")),
    ],
)
def test_signals_reach_the_ranks_and_these_have_their_time(some_site: Site, template: str) -> None:
    """A notice reaches each rank once; after scancel each can save, and what it says last is in the output."""
    small = SMALL[template]
    words = ["stayer.py", "--on", "SIGTERM", "1"]
    job, _, project = some_site.submit(template, f"told {template}", small.options, *words)
    running = Running(some_site.cluster, job, project, small.ranks)
    wait_for(lambda: len([*project.glob("up.*")]) == small.ranks, DEADLINE, running.describe)
    job.signal("USR1")
    running.await_signal("SIGUSR1")
    job.cancel()
    result = job.wait(DEADLINE)

    assert result.state == "CANCELLED", running.describe()
    assert running.saved() == dict.fromkeys(range(small.ranks), "whole"), running.describe()
    assert [counts["SIGUSR1"] for counts in running.got().values()] == [1] * small.ranks
    running.check_nothing_is_left()


# --- the elastic template

# Rank 1 fails in the first attempt of a run.
FAILS_ONCE = """
import os, sys

print("attempt", os.environ["HPC_LAUNCH_ATTEMPT"], "of", os.environ["WORLD_SIZE"], flush=True)
sys.exit(7 if os.environ["RANK"] == "1" and os.environ["HPC_LAUNCH_ATTEMPT"] == "0" else 0)
"""

# Runs until the file `go` is there, having said which turn it is.
WAITS = (
    """
import os, sys, time
from pathlib import Path

turn, attempt = os.environ.get("SLURM_RESTART_COUNT", "0"), os.environ["TORCHELASTIC_RESTART_COUNT"]
Path(f"up.{turn}.{attempt}.{os.environ['RANK']}").write_text(os.environ["WORLD_SIZE"])
while not Path("go").exists():
    time.sleep(0.02)
"""
    + LEAVE
)


def test_an_elastic_job_takes_the_nodes_that_are_free_and_outlives_a_failure(some_site: Site) -> None:
    """Of 2 to 3 nodes it gets three; a rank that fails costs a restart of all, and the job ends well."""
    some_site.cluster.wait_idle(DEADLINE)
    folder = some_site.folder / "fails once"
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(FAILS_ONCE)
    job, submitted, _ = some_site.submit("elastic", "elastic", "--nodes=2-3 --gpus-per-node=1", str(script))
    result = job.wait(DEADLINE)

    assert result.state == "COMPLETED", job.describe()
    written = [path.read_text() for path in submitted.glob(f"logs/{job.id}.0/attempt_*/*/*.out")]
    assert sorted(written) == ["attempt 0 of 3\n"] * 3 + ["attempt 1 of 3\n"] * 3


def test_an_elastic_job_goes_on_without_a_lost_node(cluster: Cluster, tmp_path: Path) -> None:
    """A node dies; the same turn of the job goes on with those that are left, to its end.

    With Slurm 24.11 srun ends with 1 when a node of its step has failed, whatever the tasks on the others end with.
    """
    (tmp_path / "train.py").write_text(WAITS)
    template = str(CHECKOUT / "sbatch_templates/elastic.sbatch")
    options = ["--nodes=2-3", "--gpus-per-node=1", "--cpus-per-task=2", "--mem=500"]
    with clean_environment():
        said = cluster.run(["sbatch", "--parsable", *options, template], cwd=tmp_path).stdout
    job = Job(cluster, said.strip())

    def ranks(attempt: int) -> list[str]:
        return [path.read_text() for path in tmp_path.glob(f"up.0.{attempt}.*")]

    wait_for(lambda: ranks(0) == ["3"] * 3, DEADLINE, job.describe)
    cluster.kill("gpu003")
    wait_for(lambda: ranks(1) == ["2"] * 2, DEADLINE, job.describe)
    (tmp_path / "go").touch()

    assert job.wait(DEADLINE).state == "COMPLETED", job.describe()
    assert [line for line in job.output().splitlines() if mentions(line, "attempt 0 lost gpu003")] != []


# --- what Slurm says of them


def test_check_says_what_slurm_says(some_cluster: Cluster, tmp_path: Path) -> None:
    """A template that fits the cluster is good; of one that does not, Slurm's refusal is a finding."""
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    fitting = some_cluster.run(["hpc-launch", "template", "check", "cpu"], cwd=tmp_path, env=environ)
    assert fitting.stdout.startswith(f"{CHECKOUT}/sbatch_templates/cpu.sbatch: good (")
    assert "Slurm: " in fitting.stdout
    large = some_cluster.run(["hpc-launch", "template", "check", "multi_node"], cwd=tmp_path, env=environ, check=False)
    assert (large.returncode, large.stdout.count("\n")) == (1, 1), large.stdout
    assert "Requested node configuration is not available" in large.stdout


@pytest.mark.parametrize("template", TEMPLATES)
def test_slurm_would_take_what_is_rendered(some_cluster: Cluster, tmp_path: Path, template: str) -> None:
    """`hpc-launch submit` makes of every template a job that this cluster would run."""
    write_probe(tmp_path)
    gpus = [] if template == "cpu" else ["--gpus-per-node=1"]
    for options in ([], ["--nodes=2", "--time=10", *gpus]):
        command = ["hpc-launch", "submit", f"--template={template}", "--test-only", *options, "probe.py", *UGLY]
        with clean_environment():
            said = some_cluster.run(command, cwd=tmp_path, check=False)
        assert (said.returncode, said.stdout[:14]) == (0, "would start at"), said.stdout + said.stderr
