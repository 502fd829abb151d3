"""`hpc-launch submit` on a real Slurm: what arrives, what does not, and what is said of how a job ended."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import Cluster, Job
from tests.slurm.jobs_support import JobTree, ended, write_probe
from tests.slurm.submit_support import call, command, completed, fast, finished, one_line, poison, prepare, said, stable
from tests.support import lines_mention, mentions, wait_for

# Job names, each of which is also an argument.
NAMES = [
    "two words",
    """it's "quoted" \\ twice""",
    "$HOME `id` $(id)",
    "new\nline",
    "tab\tand\rreturn",
    "größe 数 \u202e",
    "%j-%x-%%",
    "--lead=ing dash",
    "* [a-z]* ?",
    "a/b; c | d & e < f > g # h",
]

NODES = "--nodes=2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepare(tmp_path / "work")


# ---- what arrives


def test_nasty_names_and_arguments_arrive_unchanged(any_cluster: Cluster, folder: Path) -> None:
    """Ten job names and argument lists reach the script as they were typed, and every job has its output."""
    lists = [[name, "", "--x", *NAMES[:number]] for number, name in enumerate(NAMES)]
    jobs = [
        fast(any_cluster, folder, f"--job-name={name}", "--mem=100M", "train.py", *words)
        for name, words in zip(NAMES, lists, strict=True)
    ]
    for job, name, words in zip(jobs, NAMES, lists, strict=True):
        record = completed(job)
        facts = said(folder, job.id)

        assert (facts["env"]["SLURM_JOB_NAME"], facts["argv"]) == (name, words)
        assert "begins" in Path(record.output).read_text(), record


def test_words_arrive_at_every_rank(any_cluster: Cluster, folder: Path) -> None:
    """With the real launcher and the template that submit chooses: nodes, ranks, arguments, launcher options."""
    write_probe(folder)
    words = ["--name", *NAMES, ""]
    job = fast_real(any_cluster, folder, NODES, "--gpus-per-node=2", "--role", "my role", "probe.py", *words)
    reports = ended(job, folder).reports()

    assert [(report.env["WORLD_SIZE"], list(report.argv)) for report in reports.values()] == [("4", words)] * 4
    assert {report.env["ROLE_NAME"] for report in reports.values()} == {"my role"}
    assert {report.env["SLURM_CPUS_PER_TASK"] for report in reports.values()} == {"8"}


def fast_real(cluster: Cluster, folder: Path, *words: str) -> Job:
    """Submit a job that runs the launcher itself."""
    done = call(cluster, folder, "--parsable", *words)
    assert done.returncode == 0, done.stderr
    return Job(cluster, done.stdout.strip())


def test_a_submission_from_inside_a_job_is_one_from_a_clean_shell(any_cluster: Cluster, folder: Path) -> None:
    """Nothing of the surrounding job and its step, nor of what else is set there, reaches the new job's tasks."""
    words = ["--gpus-per-node=2", "--cpus-per-task=4", "--ntasks-per-node=2", "train.py", "x"]
    clean = finished(fast(any_cluster, folder, *words))
    inner = shlex.join(command("--parsable", "--template=./fast.sbatch", *words))
    poisoned = " ".join(f"{name}={shlex.quote(value)}" for name, value in poison().items())
    tmpdir = "TMPDIR=/tmp/${SLURM_JOB_ID}"
    script = f"srun --ntasks=1 --cpus-per-task=2 --gpus-per-task=1 env {poisoned} {tmpdir} {inner} >inner 2>errors\n"
    outer = any_cluster.sbatch(script, "--nodes=1", "--cpus-per-task=2", "--gpus=1", "--mem=500M", cwd=folder)
    outer.wait(120)
    errors = (folder / "errors").read_text()
    number = (folder / "inner").read_text().strip()
    assert number.isdigit(), errors + outer.describe()
    job = finished(Job(any_cluster, number))

    for rank in range(2):
        assert stable(said(folder, clean.id, rank)) == stable(said(folder, job.id, rank))
    records = clean.record(), job.record()
    for field in ("JobName", "Partition", "NumCPUs", "NumTasks", "CPUs/Task", "TimeLimit", "Account", "TresPerNode"):
        assert records[0].get(field) == records[1].get(field), field
    assert "SBATCH_ACCOUNT=nobody" in errors, "what a user has set is not dropped in silence"


# What workers see that says how a job was laid out: the rest is a port, a path, or a number of this job.
LAYOUT = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|OMP_NUM_THREADS|CUDA_VISIBLE_DEVICES|TORCHELASTIC_(MAX|USE)_\w+|S(RUN|BATCH)_.*"
    r"|SLURM_(N?TASKS?_?.*|NPROCS|CPU.*|GPUS.*|TRES.*|MEM.*|DISTRIBUTION|EXPORT_ENV|PROCID|LOCALID|NODEID|NNODES|JOB_NAME)"
)


def test_workers_of_a_submission_from_inside_a_job_are_those_of_a_clean_shell(
    some_cluster: Cluster, folder: Path
) -> None:
    """The same with the launcher itself, on two nodes, submitted from a worker's environment: --wait included."""
    write_probe(folder)
    words = ["--wait", NODES, "--gpus-per-node=2", "--log-dir=logs", "probe.py", "--reduce"]
    poisoned = [f"{name}={value}" for name, value in {**poison(), "HPC_LAUNCH_ATTEMPT": "7"}.items()]
    inner = ["srun", "--ntasks=1", "env", *poisoned, *command(*words)]
    outer = some_cluster.sbatch(
        shlex.join(inner), "--nodes=1", "--cpus-per-task=2", "--mem=500M", "-wgpu004", cwd=folder
    )
    assert outer.wait(240).exit_code == 0, outer.describe()
    clean = call(some_cluster, folder, *words)
    assert clean.returncode == 0, clean.stderr
    trees = [JobTree(path) for path in folder.glob("logs/*.0") if not path.is_symlink()]
    reports = [tree.reports() for tree in trees]
    seen = [
        {
            rank: {
                name: value for name, value in report.env.items() if LAYOUT.fullmatch(name) and name != "SLURM_TASK_PID"
            }
            for rank, report in found.items()
        }
        for found in reports
    ]

    assert [len(found) for found in seen] == [4, 4]
    assert {report.total for found in reports for report in found.values()} == {10}
    assert seen[0] == seen[1]


def test_kept_variables_go_along(cluster: Cluster, folder: Path) -> None:
    """--keep-environment passes on what a user means to pass on, and an option is stronger than it."""
    env = {"SBATCH_TIMELIMIT": "17", "SBATCH_PARTITION": "nowhere", "MASTER_PORT": "12345"}
    keep = "--keep-environment=SBATCH_*,MASTER_PORT"
    (folder / "fast.sbatch").write_text((folder / "fast.sbatch").read_text().replace("#SBATCH --time=60\n", ""))
    job = finished(fast(cluster, folder, keep, "--partition=main", "train.py", env=env))

    assert (job.record()["TimeLimit"], job.record()["Partition"]) == ("00:17:00", "main")
    assert said(folder, job.id)["env"]["MASTER_PORT"] == "12345"


@pytest.mark.parametrize("export", ["NONE", "NIL", "HOME,MINE=1"])
def test_a_job_without_the_environment_has_what_it_needs(some_cluster: Cluster, folder: Path, export: str) -> None:
    """--export keeps variables out; the launcher is found all the same, and tasks get what the script has."""
    setup = "--setup=export PYTHONPATH=" + shlex.quote(str(Path(__file__).parents[2]))
    write_probe(folder)
    env = {"SECRET": "1"}
    path = f"--setup=export PATH={Path(sys.executable).parent}:$PATH"
    small = ["--gpus-per-node=1", "--start=exec", "--console=all"]
    done = call(some_cluster, folder, "--parsable", f"--export={export}", setup, path, *small, "probe.py", env=env)
    job = Job(some_cluster, done.stdout.strip())
    reports = ended(job, folder).reports()

    assert {report.env.get("SECRET") for report in reports.values()} == {None}
    assert {report.env.get("MINE") for report in reports.values()} == {"1" if "MINE" in export else None}


def test_the_launcher_is_on_the_path_of_a_job_without_environment(cluster: Cluster, folder: Path) -> None:
    """Without modules, venv and setup the script adds the directory of the hpc-launch that has submitted it."""
    job = finished(fast(cluster, folder, "--export=NONE", "train.py"))

    assert said(folder, job.id)["env"]["PATH"].startswith(f"{Path(sys.executable).parent}:")


def test_software_is_made_available(cluster: Cluster, folder: Path) -> None:
    """Modules, venv and setup lines come before the training, and may use unset variables."""
    (folder / "my venv/bin").mkdir(parents=True)
    (folder / "my venv/bin/activate").write_text("export VIRTUAL_ENV=mine$UNSET\n")
    setup = ['--setup=module() { echo loads "$@"; }; export -f module', "--setup=export TWO='a  b'"]
    (folder / "hpc-launch.toml").write_text('[submit]\nvenv = "my venv"\n')
    job = finished(fast(cluster, folder, *setup, "train.py"))
    env = said(folder, job.id)["env"]

    assert (env["VIRTUAL_ENV"], env["TWO"]) == ("mine", "a  b")


# ---- what is asked of Slurm


def test_sizes_follow_the_gpus(some_cluster: Cluster, folder: Path) -> None:
    """CPUs and memory that nobody gave are the GPUs' share of the node; what somebody gave stays."""
    done = call(some_cluster, folder, "--gpus-per-node=1", "--dry-run", "train.py")
    assert {"#SBATCH --cpus-per-task=4", "#SBATCH --mem=1000M"} <= {*done.stdout.splitlines()}

    done = call(some_cluster, folder, "--gres=gpu:2", "-c3", "--mem-per-cpu=7M", "--dry-run", "train.py")
    options = {line.removeprefix("#SBATCH --") for line in done.stdout.splitlines() if line.startswith("#SBATCH")}
    assert {"gres=gpu:2", "cpus-per-task=3", "mem-per-cpu=7M"} <= options
    assert not [option for option in options if option.startswith(("gpus", "mem="))]


def test_a_sweep_is_an_array_with_a_point_for_each_task(some_cluster: Cluster, folder: Path) -> None:
    """Each task gets its own values after the arguments, and has an output of its own."""
    sweep = ["--sweep=lr=1e-3,1e-4", "--sweep=name=a b,$c"]
    array = fast(some_cluster, folder, *sweep, "--array=%2", "train.py", "--x")
    points = [["--lr", lr, "--name", name] for lr in ("1e-3", "1e-4") for name in ("a b", "$c")]
    tasks = [finished(Job(some_cluster, f"{array.id}_{number}")) for number in range(4)]
    found = [said(folder, task.record()["JobId"])["argv"] for task in tasks]

    assert found == [["--x", *point] for point in points]
    assert sorted(path.name for path in folder.glob("*.out")) == [f"train-{array.id}_{n}.out" for n in range(4)]


def test_the_status_of_an_array_is_the_highest(cluster: Cluster, folder: Path) -> None:
    """--wait counts the tasks, and ends with the highest status."""
    done = call(cluster, folder, "--template=./fast.sbatch", "--sweep=end=0,3,1", "--wait", "train.py")

    assert done.returncode == 3, done.stderr
    assert re.search("1 done, 2 failed|2 failed, 1 done", done.stderr)


def test_a_job_waits_for_another(some_cluster: Cluster, folder: Path) -> None:
    """--after starts a job when another has succeeded, and takes it away when that fails."""
    first = fast(some_cluster, folder, "train.py", "--wait", "go", "--end", "3")
    success, end = (fast(some_cluster, folder, f"--after={first.id}{how}", "train.py") for how in ("", ":any"))
    wait_for(lambda: success.record()["Reason"] == "Dependency", 60, success.describe)
    (folder / "go").touch()

    assert success.wait(120).state == "CANCELLED"
    finished(end)


def test_a_job_that_slurm_does_not_know_is_told(some_cluster: Cluster, folder: Path) -> None:
    """Slurm takes any number after --after, and starts the job at once or never."""
    done = call(some_cluster, folder, "--after=999999:any", "--dry-run", "train.py")

    assert [line for line in done.stderr.splitlines() if mentions(line, "note --after 999999")] != []


def test_slurm_is_asked_for_its_verdict(any_cluster: Cluster, folder: Path) -> None:
    """--test-only prints when the job would start, or why it would be refused, and submits nothing."""
    good = call(any_cluster, folder, "--test-only", NODES, "train.py")
    assert lines_mention(good.stdout.splitlines(), "gpu[001-002] main"), good

    bad = call(any_cluster, folder, "--test-only", "--nodes=99", "train.py")
    assert (bad.returncode, one_line(bad)[:6], ": all" in one_line(bad)) == (71, "Slurm ", True)
    assert any_cluster.run(["squeue", "--noheader"]).stdout == ""


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (["--partition=nope", "train.py"], 71, "Slurm .*[Ii]nvalid partition.*"),
        (["--sbatch-arg=--frob", "train.py"], 71, "Slurm .*unrecognized option '--frob'.*"),
        (["--time=soon", "train.py"], 71, "Slurm .*time.*"),
        (["--frobnicate", "train.py"], 2, ".*'--frobnicate'.*"),
        (["nothing.py"], 66, ".*'nothing.py'.*"),
        (["--max-restarts=x", "train.py"], 2, "--max-restarts: 'x' is not .*"),
    ],
)
def test_what_cannot_be_submitted_is_one_line(
    some_cluster: Cluster, folder: Path, words: list[str], status: int, line: str
) -> None:
    done = call(some_cluster, folder, *words)

    assert (done.returncode, bool(re.fullmatch(line, one_line(done)))) == (status, True), done


def test_a_dry_run_prints_what_would_be_submitted(some_cluster: Cluster, folder: Path) -> None:
    """The script that --dry-run prints is one that sbatch takes, and that does the same; nothing is left behind."""
    before = sorted(folder.iterdir())
    words = ["--template=./fast.sbatch", "--job-name=a  b", "train.py", "x y"]
    done = call(some_cluster, folder, "--dry-run", *words)
    assert (sorted(folder.iterdir()), some_cluster.run(["squeue", "--noheader"]).stdout) == (before, "")

    number = some_cluster.run(["sbatch", "--parsable"], cwd=folder, text=done.stdout).stdout.strip()
    finished(Job(some_cluster, number))
    facts = said(folder, number)
    assert (facts["env"]["SLURM_JOB_NAME"], facts["argv"]) == ("a  b", ["x y"])


# ---- how it ends


WAYS = [
    pytest.param(["--end", "0"], 0, "done", id="success"),
    pytest.param(["--end", "3"], 3, "failed, exit status 3", id="failure"),
    pytest.param(["--end", "-9"], 137, "failed, exit status 137", id="signal"),
    pytest.param(["--wait", "never"], 143, "cancelled, exit status 143", id="cancelled"),
]


@pytest.mark.parametrize(("words", "status", "line"), WAYS)
def test_wait_ends_with_the_status_of_the_job(
    some_cluster: Cluster, folder: Path, words: list[str], status: int, line: str
) -> None:
    """--wait tells each state once, ends with the job's status, and shows the end of the output of a failure."""
    arguments = command("--template=./fast.sbatch", "--wait", "train.py", *words)
    with some_cluster.popen(arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if "never" in words:
            some_cluster.run(["scancel", running(some_cluster, folder)])
        out, err = process.communicate(timeout=240)
    number = re.findall(r"^job (\d+): train", out)[0]
    states = re.findall(r"^hpc-launch: job \d+: (.*)$", err, re.MULTILINE)

    assert (process.returncode, states[-1]) == (status, line), err
    assert len(states) == len(set(states)), err
    assert ("the end of " in err, f"begins {number}.0" in err) == (status != 0, status != 0), err


def test_a_requeue_is_not_the_end(some_cluster: Cluster, folder: Path) -> None:
    """--wait and --follow stay until the job has ended for good, and show the output of all its runs."""
    again = '--setup=[ -n "${SLURM_RESTART_COUNT:-}" ] || { scontrol requeue $SLURM_JOB_ID; sleep 100; }'
    done = call(some_cluster, folder, "--template=./fast.sbatch", again, "--follow", "train.py")

    assert (done.returncode, done.stdout.count("begins")) == (0, 1), done.stderr
    assert re.search(r"waiting \(BeginTime: .*\n(.*\n)*.*done\n", done.stderr), done.stderr


def running(cluster: Cluster, folder: Path) -> str:
    """Wait until the only job's script has begun, and return the job's number."""
    path = wait_for(lambda: next(folder.glob("said/[!.]*"), None), 120, cluster.diagnose)
    assert path is not None
    return path.name.partition(".")[0]


def test_wait_tells_of_the_time_limit(cluster: Cluster, folder: Path) -> None:
    """A job that reaches its time limit is no success."""
    job = call(cluster, folder, "--template=./fast.sbatch", "--wait", "train.py", "--limit", "--wait", "never")

    assert (job.returncode, "timeout, exit status" in job.stderr) == (143, True), job.stderr


FORGETFUL = """#!/bin/sh
echo 'slurm_load_jobs error: Invalid job id specified' >&2
exit 1
"""


def test_accounting_tells_what_the_controller_has_forgotten(any_accounting_cluster: Cluster, folder: Path) -> None:
    """Where the controller knows a job no more, its end is what accounting says; without it, unknown, no success."""
    jobs = {status: fast(any_accounting_cluster, folder, "train.py", "--end", str(status)) for status in (0, 3)}
    for job in jobs.values():
        job.wait(120)
    (folder / "bin").mkdir()
    (folder / "bin/scontrol").write_text(FORGETFUL)
    (folder / "bin/scontrol").chmod(0o755)
    program = (
        "import sys; from hpc_launch.submission.job_watcher import JobWatcher, ask_job_state, exit_status;"
        "watcher = JobWatcher(lambda: ask_job_state(sys.argv[1]), lambda line: None);"
        "print(exit_status(watcher.until_ended()))"
    )
    path = f"{folder}/bin:{any_accounting_cluster.env['PATH']}"
    for status, job in jobs.items():
        done = any_accounting_cluster.run([sys.executable, "-c", program, job.id], env={"PATH": path})
        assert done.stdout == f"{status}\n"

    (folder / "bin/sacct").write_text("#!/bin/sh\nexit 1\n")
    (folder / "bin/sacct").chmod(0o755)
    done = any_accounting_cluster.run([sys.executable, "-c", program, job.id], env={"PATH": path}, check=False)
    assert (done.returncode, "SlurmError" in done.stderr) == (1, True)


def test_follow_shows_the_output_to_its_end(some_cluster: Cluster, folder: Path) -> None:
    """--follow shows what the job writes, while it does, and ends with its status."""
    words = ["--template=./fast.sbatch", "--job-name=a b", "--follow", "train.py", "--wait", "go", "--end", "4"]
    with some_cluster.popen(command(*words), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert re.fullmatch(r"begins \d+\.0\n", lines[1]), lines
        (folder / "go").touch()
        out, err = process.communicate(timeout=240)

    assert (process.returncode, "ends\n" in out, "failed, exit status 4" in err) == (4, True, True), out + err


def test_an_interrupt_leaves_the_job_running(cluster: Cluster, folder: Path) -> None:
    """Ctrl-C ends the watching only, and says how the job is ended."""
    words = ["--template=./fast.sbatch", "--follow", "train.py", "--wait", "go"]
    with cluster.popen(command(*words), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        number = running(cluster, folder)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    job = Job(cluster, number)

    assert (process.returncode, job.state()) == (130, "RUNNING")
    assert f"scancel {number}" in err
    (folder / "go").touch()
    finished(job)


def test_the_code_of_the_submission_is_run(cluster: Cluster, folder: Path) -> None:
    """--snapshot runs what git tracks as it was, although it is changed before the job starts."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (folder / "train.py").write_text("print('before')\n")
    for words in (["init", "-q"], ["add", "train.py", "not-hpc-launch"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    job = fast(cluster, folder, "--snapshot", "--hold", "train.py")
    (folder / "train.py").write_text("print('after')\n")
    cluster.run(["scontrol", "release", job.id])

    assert "before" in finished(job).output()
    assert (folder / f"train-{job.id}.out").exists()
    refused = call(cluster, folder, "--snapshot", "train.py")
    assert (refused.returncode, "uncommitted changes in train.py" in one_line(refused)) == (2, True)
