"""`hpc-launch submit` as a command: what goes where, with a sbatch that only writes down how it was called."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import lines_mention, mentions

SBATCH = f"""#!{sys.executable}
import json, os, sys
call = {{"argv": sys.argv[1:], "env": dict(os.environ), "script": sys.stdin.read()}}
json.dump(call, open(os.environ["CALL"], "w"))
said, refuses = "Your budget: 5 hours", os.environ.get("REFUSES")
if "--test-only" in sys.argv:
    said = "Job 5 to start at 2026-01-02T03:04:05 using 8 processors on nodes n[1-2] in partition x"
elif refuses:
    said = "error: job_submit/lua: no account\\nsbatch: error: Batch job submission failed: Invalid account"
print("sbatch: " + said, file=sys.stderr)
if refuses:
    sys.exit(1)
print(os.environ.get("PRINTS", "1234"))
"""

SCONTROL = """#!/bin/sh
echo "JobId=1234 JobName=x UserId=ada(1) JobState=FAILED Reason=None ExitCode=5:0 StdOut=$PWD/out.txt Power="
"""


@dataclass(frozen=True)
class Shell:
    """A directory with a script, in which commands are called."""

    folder: Path

    def call(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        environ = {"CALL": str(self.folder / "call"), "PATH": f"{self.folder}/bin", "PYTHONPATH": str(ROOT), **env}
        return subprocess.run(
            [sys.executable, "-m", "hpc_launch", "submit", *words],
            cwd=self.folder,
            env={**{name: os.environ[name] for name in ("HOME", "XDG_CONFIG_HOME") if name in os.environ}, **environ},
            capture_output=True,
            text=True,
            check=False,
        )

    def recorded(self) -> dict[str, Any]:
        """What sbatch was called with."""
        found: dict[str, Any] = json.loads((self.folder / "call").read_text())
        return found

    def program(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text(text)
        (self.folder / "bin" / name).chmod(0o755)


ROOT = Path(__file__).parents[2]


@pytest.fixture
def alone(tmp_path: Path) -> Shell:
    """Return a shell without Slurm."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "train.py").touch()
    (tmp_path / "job.sh").write_text("#!/bin/bash\n#SBATCH --nodes=2\nsrun hpc-launch train.py\n")
    return Shell(tmp_path)


@pytest.fixture
def shell(alone: Shell) -> Shell:
    """Return a shell with a Slurm that takes every job."""
    alone.program("sbatch", SBATCH)
    return alone


def test_a_dry_run_needs_no_slurm(alone: Shell) -> None:
    """The script goes to stdout and can be kept; the rest to stderr; nothing is touched."""
    before = sorted(alone.folder.iterdir())
    done = alone.call(
        "--dry-run", "--nodes=2", "--max-restarts", "3", "--no-use-env", "--job-name=a\nb", "train.py", "-x"
    )

    assert (done.returncode, done.stdout[:12]) == (0, "#!/bin/bash\n")
    assert "set -- --no-use-env --max-restarts 3 train.py -x\n" in done.stdout
    assert mentions(done.stderr, "sbatch --parsable --job-name=a")
    assert sorted(alone.folder.iterdir()) == before


def test_without_slurm_it_says_so(alone: Shell) -> None:
    done = alone.call("train.py")

    assert done.returncode == 71
    assert mentions(done.stderr.splitlines()[-1], "sbatch", os.strerror(errno.ENOENT))


def test_a_person_and_a_script_can_read_what_is_printed(shell: Shell) -> None:
    """A line with the number; the number alone; the number and the cluster. What Slurm says is passed on."""
    assert shell.call("train.py").stdout == "job 1234: train\n"
    assert shell.call("--sweep=a=1,2", "train.py").stdout == "job 1234: train, 2 tasks\n"
    assert shell.call("--parsable", "train.py", PRINTS="12;big").stdout == "12;big\n"
    assert "Slurm: Your budget: 5 hours\n" in shell.call("train.py").stderr


def test_what_slurm_says_no_to_is_one_line(shell: Shell) -> None:
    done = shell.call("train.py", REFUSES="1")

    assert (done.returncode, done.stdout) == (71, "")
    assert done.stderr.splitlines()[-1].endswith(": job_submit/lua: no account; Invalid account")


def test_sbatch_gets_a_clean_environment_and_its_words(shell: Shell) -> None:
    """Nothing of another job; what is left out is told with -v; other options are passed on as they are."""
    poison = {"SLURM_NTASKS": "7", "SLURM_JOB_ID": "5", "RANK": "1", "CUDA_VISIBLE_DEVICES": "2"}
    words = ["-v", "--sbatch-arg=--wckey=a b", "--sbatch-arg", "--reboot", "-H", "-J", "my job", "train.py"]
    done = shell.call(*words, SLURM_CONF="/other", MINE="1", **poison)
    call = shell.recorded()

    assert not {*poison} & {*call["env"]}
    assert {"SLURM_CONF", "MINE"} <= {*call["env"]}
    assert call["argv"] == ["--parsable", "--wckey=a b", "--reboot"]
    assert {'#SBATCH --job-name="my job"', "#SBATCH --hold"} <= {*call["script"].splitlines()}
    assert f"submitted without {', '.join(sorted(poison))}" in done.stderr
    assert "submitted without" not in shell.call("train.py", **poison).stderr


def test_options_that_take_several_values_are_joined(shell: Shell) -> None:
    """A second --export does not replace the first."""
    shell.call("--export=ALL", "--export=A=1", "-x", "n1", "--exclude=n2", "train.py")

    assert {"#SBATCH --export=ALL,A=1", "#SBATCH --exclude=n1,n2"} <= {*shell.recorded()["script"].splitlines()}


def test_the_verdict_is_a_line(shell: Shell) -> None:
    assert lines_mention(shell.call("--test-only", "train.py").stdout.splitlines(), "2026-01-02T03:04:05 n[1-2] x 8")


@pytest.mark.parametrize("flag", ["--wait", "--follow"])
def test_a_failure_is_ours_and_its_output_is_shown(shell: Shell, flag: str) -> None:
    """The status of the job, and the end of what it wrote: once."""
    shell.program("scontrol", SCONTROL)
    (shell.folder / "out.txt").write_text("some words\n")
    done = shell.call(flag, "train.py")

    assert done.returncode == 5
    assert (done.stdout + done.stderr).count("some words") == 1
    assert mentions(done.stderr, "1234 failed 5")


def test_directories_of_the_output_are_made(shell: Shell) -> None:
    shell.call("--output=some/where/%j.out", "train.py")
    assert (shell.folder / "some/where").is_dir()

    done = shell.call("--output=train.py/%j.out", "train.py")
    assert (done.returncode, mentions(done.stderr, "train.py")) == (73, True)


def test_settings_count(shell: Shell) -> None:
    """Files, profiles and variables, and the template that a file names."""
    text = '[submit]\ntemplate = "cpu"\nnodes = 3\n[profiles.p.submit]\nnodes = 4\n'
    (shell.folder / "hpc-launch.toml").write_text(text)
    for words, env, nodes in [((), {}, 3), (("--profile=p",), {}, 4), ((), {"HPC_LAUNCH_SUBMIT_NODES": "5"}, 5)]:
        shell.call(*words, "train.py", **env)
        assert f"#SBATCH --nodes={nodes}" in shell.recorded()["script"].splitlines()
    assert mentions(shell.recorded()["script"], "cpu")


def test_a_script_of_an_image_may_be_missing_here(shell: Shell) -> None:
    """Only the nodes, or a container, may have what a whole path leads to."""
    done = shell.call("/opt/nowhere/train.py")

    assert (done.returncode, mentions(done.stderr, "note '/opt/nowhere/train.py'")) == (0, True)
    assert shell.call("-m", "some.module").returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--modules=apptainer", "--no-python", "apptainer", "exec"],
        ["--venv=env", "--no-python", "apptainer"],
        ["--export=ALL", "--no-python", "apptainer"],
    ],
    ids=lambda words: words[0],
)
def test_a_program_of_the_job_may_be_missing_here(shell: Shell, words: list[str]) -> None:
    """Where the job has another PATH; without that, or by a path, it is refused."""
    (shell.folder / "env/bin").mkdir(parents=True)
    (shell.folder / "env/bin/activate").touch()
    done = shell.call(*words)

    assert (done.returncode, mentions(done.stderr, "note", "'apptainer'")) == (0, True), done.stderr
    assert shell.call("--no-python", "apptainer").returncode == 66
    assert shell.call(*words[:2], "./apptainer").returncode == 66


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-t", "10:00", "train.py"], "-t --tee --time=10:00"),
        (
            ["--follow", "--sweep=a=1,2", "train.py"],
            "--follow --wait",
        ),
        (
            ["--follow", "--template=array", "train.py"],
            "--follow --wait",
        ),
        (["--dry-run", "--wait", "train.py"], "--dry-run --wait"),
        (["--venv=nowhere", "train.py"], "--venv {folder}/nowhere bin/activate"),
        (["--template=multi-nod", "train.py"], "'multi-nod' 'multi_node'?"),
        (["--node=2", "train.py"], "'--node' '--nodes'?"),
        (["train.py", "--dry-run"], "--dry-run train.py --"),
        (["train.py", "--lr", "1", "--nodes=2"], "--nodes train.py --"),
        (["--", "train.py", "--help"], "--help train.py --"),
        (["-m", "some.module", "--follow"], "--follow some.module --"),
        (["job.sh"], "'sbatch job.sh' --template"),
        (["--nproc-per-node=x y", "train.py"], None),
    ],
)
def test_mistakes_are_one_line(shell: Shell, words: list[str], line: str | None) -> None:
    done = shell.call(*words)

    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    if line:
        assert mentions(done.stderr, "hpc-launch:", line.format(folder=shell.folder))
    assert not (shell.folder / "call").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train.py", "--lr=1e-3", "--name", "x", "--max-restarts", "3"], "--lr=1e-3 --name x --max-restarts 3"),
        (["train.py", "--", "--dry-run", "--nodes=2"], "--dry-run --nodes=2"),
        (["train.py", "--output=x"], "--output=x"),
    ],
)
def test_what_follows_the_script_is_its_own(shell: Shell, words: list[str], line: str) -> None:
    """Options of a run after it too, as with torchrun; those of submit where the script has them, or after `--`."""
    (shell.folder / "train.py").write_text('parser.add_argument("--output")\n')
    done = shell.call(*words)

    assert done.returncode == 0, done.stderr
    assert f"set -- train.py {line}" in shell.recorded()["script"].splitlines()


def test_the_script_is_looked_at_where_it_runs(shell: Shell) -> None:
    """In the directory of --chdir: its options are its own, and a job script is refused there."""
    (shell.folder / "sub").mkdir()
    (shell.folder / "sub/train.py").write_text('parser.add_argument("--output")\n')
    (shell.folder / "sub/job.sh").write_text("#!/bin/bash\n#SBATCH --nodes=2\nsrun hpc-launch train.py\n")
    (shell.folder / "job.sh").write_text("#!/bin/bash\necho no job\n")
    done = shell.call("--chdir=sub", "train.py", "--output=x")
    refused = shell.call("--chdir=sub", "job.sh")

    assert done.returncode == 0, done.stderr
    assert "set -- train.py --output=x" in shell.recorded()["script"].splitlines()
    assert (refused.returncode, mentions(refused.stderr, "'sbatch job.sh'")) == (2, True), refused.stderr


def test_tee_is_still_tee(shell: Shell) -> None:
    """Streams by local rank look like a time, and are none."""
    shell.call("-t", "0:3", "train.py")

    assert "set -- --tee 0:3 train.py" in shell.recorded()["script"]


def test_config_show_has_what_is_set_for_submissions(shell: Shell) -> None:
    """Values and places, as in a file; nothing where nothing is set."""
    (shell.folder / "hpc-launch.toml").write_text("[submit]\nnodes = 3\n[submit.partitions.gpu]\nmax-nodes = 4\n")
    command = [sys.executable, "-m", "hpc_launch", "config", "show"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "HPC_LAUNCH_SUBMIT_QOS": "high"}
    done = subprocess.run(command, cwd=shell.folder, env=environ, capture_output=True, text=True, check=True)
    file = shell.folder / "hpc-launch.toml"

    assert done.stdout.partition("[submit]\n")[2].splitlines() == [
        'qos = "high"  # HPC_LAUNCH_SUBMIT_QOS',
        f'nodes = "3"  # {file}: submit.nodes',
        f"partitions.gpu.max-nodes = 4  # {file}: submit.partitions.gpu.max-nodes",
    ]


def test_a_copy_without_a_job_is_removed(shell: Shell) -> None:
    """--snapshot leaves its copy where a job runs it, and nothing where Slurm has refused."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "train.py"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], cwd=shell.folder, check=True)
    (shell.folder / "bin/git").symlink_to(shutil.which("git") or "/usr/bin/git")
    refused = shell.call("--snapshot", "train.py", REFUSES="1")
    assert (refused.returncode, list((shell.folder / "logs/snapshots").iterdir())) == (71, [])

    done = shell.call("--snapshot", "train.py")
    (copy,) = (shell.folder / "logs/snapshots").iterdir()
    assert (done.returncode, (copy / "code/train.py").is_file()) == (0, True)
    assert f"#SBATCH --chdir={copy}/code" in shell.recorded()["script"].splitlines()
    assert f"#SBATCH --output={shell.folder}/%x-%j.out" in shell.recorded()["script"].splitlines()


@pytest.mark.parametrize(("words", "there"), [(["--chdir=sub"], "sub/mylogs"), ([], "mylogs")])
def test_job_directories_are_not_within_a_copy(shell: Shell, words: list[str], there: str) -> None:
    """A relative log directory is that of the submission, and the copy is in it."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (shell.folder / "sub").mkdir()
    (shell.folder / "sub/train.py").touch()
    for line in (["init", "-q"], ["add", "train.py", "sub/train.py"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *line], cwd=shell.folder, check=True)
    (shell.folder / "bin/git").symlink_to(shutil.which("git") or "/usr/bin/git")
    done = shell.call("--snapshot", "--log-dir=mylogs", *words, "train.py")

    assert done.returncode == 0, done.stderr
    (line,) = [line for line in shell.recorded()["script"].splitlines() if line.startswith("set -- ")]
    assert line.endswith(f"--log-dir {shell.folder}/{there} train.py")
    assert [path.name for path in (shell.folder / there).iterdir()] == ["snapshots"]
