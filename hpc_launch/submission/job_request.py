"""A job as it is asked for, and as it is going to be submitted: values, without any effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_launch.settings.resolution import Resolved
from hpc_launch.slurm import commands
from hpc_launch.submission.parameter_sweep import SweepParameter


@dataclass(frozen=True)
class Software:
    """What a job script does before it starts anything.

    Attributes:
        modules: environment modules to load.
        venv: a virtual environment to activate, by its absolute path; empty for none.
        setup: lines of bash, after both.
        image: a container image, for templates that take one as CONTAINER_IMAGE; empty for none.
    """

    modules: tuple[str, ...] = ()
    venv: str = ""
    setup: tuple[str, ...] = ()
    image: str = ""


@dataclass(frozen=True)
class JobRequest:
    """A job that somebody wants.

    Attributes:
        options: the words for hpc-launch before the training script.
        script: the training script.
        arguments: its arguments.
        slurm: Slurm's options by name; None for one that the template is not to have, empty for one without a value.
        sbatch_args: more words for sbatch.
        limits: what files say about the partition, and where.
        software: what to make available.
        sweep: parameters with several values.
        after: jobs to wait for, `1234` or `1234:any`.
        requeue: the reasons for which hpc-launch is to ask for a requeue, such as `on-notice`.
        check: look at the nodes before the training starts.
        output_directory: where relative names of output files begin; empty where that is the job's working directory.
        spares: nodes that are asked for besides, to take the place of those that are lost.
        no_kill: the job goes on when a node is lost.
        keep: variables, or patterns of them, that go along in any case.
    """

    script: str
    arguments: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    slurm: Mapping[str, str | None] = field(default_factory=dict)
    sbatch_args: tuple[str, ...] = ()
    limits: Mapping[str, Resolved] = field(default_factory=dict)
    software: Software = Software()
    sweep: tuple[SweepParameter, ...] = ()
    after: tuple[str, ...] = ()
    requeue: tuple[str, ...] = ()
    check: bool = False
    output_directory: str = ""
    spares: int = 0
    no_kill: bool = False
    keep: tuple[str, ...] = ()

    def start_directory(self, directory: Path) -> Path:
        """The working directory of the job, which is submitted from a directory; that of sbatch's --chdir."""
        return directory / (self.slurm.get("chdir") or "")


@dataclass(frozen=True)
class SubmitContext:
    """What is true of the place that a job is submitted from.

    Attributes:
        environ: the environment.
        launcher: the directory of the hpc-launch that is used here.
        on_path: whether a hpc-launch is found by its name alone.
        slurm: the directory of srun; empty where every shell looks anyway.
        version: of hpc-launch.
    """

    environ: Mapping[str, str]
    launcher: str = ""
    on_path: bool = True
    slurm: str = ""
    version: str = ""


@dataclass(frozen=True)
class Submission:
    """A job as it is submitted.

    Attributes:
        script: the job script.
        words: what sbatch is given besides.
        environ: the environment that it is called with.
        dropped: the variables that it is called without.
        notes: what was decided for the user, in lines.
        folders: the directories of its output files. Slurm before 23.02 does not make them, and the job fails mutely.
        name: of the job.
        points: how many tasks the sweep has; 0 where there is none.
        array: whether it is a job array.
    """

    script: str
    words: tuple[str, ...]
    environ: Mapping[str, str]
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    name: str = ""
    points: int = 0
    array: bool = False

    @property
    def command(self) -> list[str]:
        """The line that submits the script, from its standard input."""
        return commands.submit_batch(self.words)
