"""Submit functions and scripts: to Slurm by submitit, in an allocation or on this machine by the same agent."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from hpc_launch import file_ownership
from hpc_launch.api import (
    agent_command,
    backend_choice,
    debug_backend,
    folder_pattern,
    job_resources,
    local_supervisor,
    pickled_call,
    resource_defaults,
    submitit_names,
    submitit_process,
)
from hpc_launch.api.backends import BackendJob, LocalJob, SlurmJob
from hpc_launch.api.elastic_task import CallKeywords, ElasticTask, Target
from hpc_launch.api.job_handle import Job
from hpc_launch.api.job_resources import Resources
from hpc_launch.api.submission_files import IN_PROCESS, PICKLE_MODE, SUBMITTED, JobFiles, write_file, write_record
from hpc_launch.errors import CallError, LogDirError, UsageError, reason
from hpc_launch.home import expand_home
from hpc_launch.node import devices
from hpc_launch.plan import launch_context
from hpc_launch.plan.log_paths import local_job_name
from hpc_launch.settings import Settings
from hpc_launch.slurm import controller, leaks
from hpc_launch.slurm.environment import Allocation
from hpc_launch.submission.submitter import ask_partition_nodes
from hpc_launch.text import count, visible

R = TypeVar("R")

# So many times the limit of one call those of an array may have together.
_TOGETHER = 4


class Executor:
    """Submits functions and scripts that are to have the same resources.

    Args:
        folder: where the files of the jobs go; the nodes must see it. With submitit's `%j`, `%A` or `%a` in it each job
            directory is in a folder of its own: see `folder_pattern`.
        cluster: `auto`, or `slurm`, `allocation`, `local`, `debug`.
        resources: what each job is to have: see `Resources`.

    Raises:
        UsageError: a resource is unknown, or cannot be.
    """

    def __init__(
        self, folder: str | os.PathLike[str] = "logs", *, cluster: str | None = "auto", **resources: Any
    ) -> None:
        folder_pattern.check_folder(os.fspath(folder))
        self.folder = expand_home(folder).absolute()
        self.cluster = cluster or "auto"
        backend_choice.check_cluster(self.cluster)
        self.resources = job_resources.read_resources(resources)
        self._batch: list[tuple[ElasticTask, Job[Any]]] | None = None

    def update_parameters(self, **resources: Any) -> None:
        """Change what jobs that are submitted from now on are to have."""
        if self._batch is not None:
            raise UsageError("what the jobs of a batch are to have cannot change within it")
        self.resources = job_resources.read_resources(resources, self.resources)

    @overload
    def submit(self, target: Callable[..., R], /, *args: Any, **kwargs: Any) -> Job[R]: ...
    @overload
    def submit(self, target: str | os.PathLike[str], /, *args: Any) -> Job[None]: ...

    def submit(self, target: Target, /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Submit a function with its arguments, or a script with its words.

        Raises:
            UsageError: the function does not take these arguments.
            CallError: the call cannot be sent.
            ScriptError: there is no such script.
            SlurmError: Slurm refuses the job.
            HpcLaunchError: as the command line has it.
        """
        return self._submit([self._task(target, args, kwargs)])[0]

    def _submit(self, tasks: Sequence[ElasticTask]) -> list[Job[Any]]:
        """Submit tasks in one job array, or keep them for the end of the batch."""
        if self._batch is None:
            return self._start(tasks) if tasks else []
        jobs: list[Job[Any]] = [Job(None, None, None) for _ in tasks]
        self._batch += zip(tasks, jobs, strict=True)
        return jobs

    def map_array(self, function: Callable[..., R], *iterables: Iterable[Any]) -> list[Job[R]]:
        """Submit a job for each of some arguments, as `map` takes them, in one job array."""
        points = zip(*iterables)  # noqa: B905 - as `map` does
        return self._submit([self._point(number, function, args) for number, args in enumerate(points)])

    def submit_array(self, functions: Iterable[Callable[[], R]]) -> list[Job[R]]:
        """Submit a job for each of some functions without arguments in one job array, as submitit has it."""
        return self._submit([self._point(number, function, ()) for number, function in enumerate(functions)])

    def _point(self, number: int, function: Callable[..., Any], args: Sequence[Any]) -> ElasticTask:
        try:
            return self._task(function, args, {})
        except UsageError as error:
            raise UsageError(f"job {number} of the array: {error}", option=error.option) from None

    @contextlib.contextmanager
    def batch(self, allow_implicit_submissions: bool = False) -> Iterator[None]:
        """Submit everything that is submitted within it as one job array, when it ends.

        The jobs can be used from then on. Where it ends by an exception nothing is submitted.

        Args:
            allow_implicit_submissions: submitit's; a batch is submitted at its end only.

        Raises:
            UsageError: implicit submissions are wanted, or it is within another batch.
        """
        if allow_implicit_submissions:
            raise UsageError(
                "submitit's allow_implicit_submissions does not exist here: use the jobs after the batch, or submit "
                "without a batch"
            )
        if self._batch is not None:
            raise UsageError("a batch cannot be within another")
        self._batch = []
        try:
            yield
            waiting = self._batch
        finally:
            self._batch = None
        if waiting:
            for (_, job), started in zip(waiting, self._start([task for task, _ in waiting]), strict=True):
                job._become(started)  # noqa: SLF001 - it is ours to fill

    def _task(
        self, target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], meaning: CallKeywords | None = None
    ) -> ElasticTask:
        meaning = meaning or CallKeywords(explain=_of_executor)
        task = ElasticTask.of(target, args, kwargs, resources=self.resources, log_dir=self.folder, meaning=meaning)
        self._check_script(task)
        return task

    def _check_script(self, task: ElasticTask) -> None:
        """See that a script is there, unless it is looked for in another directory, or by Python's import system."""
        launch = self.resources.launch_options
        if task.script and task.script[0] != "-m" and "chdir" not in self.resources.slurm:
            meant = Settings(module=bool(launch.get("module")), no_python=bool(launch.get("no-python")))
            launch_context.check_script(meant, task.script[0], Path.cwd())

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise submitit_names.attribute_error("Executor", name, submitit_names.EXECUTOR)

    # ---- starting

    def _start(self, tasks: Sequence[ElasticTask]) -> list[Job[Any]]:
        most = _TOGETHER * self.resources.max_pickle_mb
        together = sum(len(task.call) for task in tasks) / pickled_call.MEGABYTE
        if together > most:
            raise CallError(
                f"the calls of these {len(tasks)} jobs have {together:.0f} MB together, and the limit is {most} MB "
                f"({_TOGETHER} times max_pickle_mb): write what they share to a file that the nodes see, and pass "
                "the path"
            )
        found = launch_context.gather_context(os.environ, Settings()).slurm
        choice = backend_choice.choose_backend(self.cluster, found, has_slurm=_has_slurm, resources=self.resources)
        folder_pattern.check_numbered(self.folder, array=choice.cluster == backend_choice.SLURM and len(tasks) > 1)
        base = folder_pattern.shared_folder(self.folder) / SUBMITTED
        if choice.cluster == backend_choice.SLURM and "%" in str(base):
            raise UsageError(
                f"folder: Slurm fills in fields such as %u and %x in {base}: choose a folder without '%'",
                option="folder",
            )
        try:
            file_ownership.make_parents(base)
            file_ownership.check_parents(base)
        except OSError as error:
            raise LogDirError(f"folder: cannot use {base}: {reason(error)}; name another folder") from error
        if choice.cluster == backend_choice.DEBUG:
            return [self._debug(base, task, choice.why) for task in tasks]
        if choice.cluster == backend_choice.SLURM:
            return self._queue(base, tasks, choice.why)
        if choice.cluster == backend_choice.ALLOCATION:
            assert isinstance(found, Allocation)  # noqa: S101 - or it would not have been chosen
            return [self._in_allocation(base, task, choice.why, found) for task in tasks]
        return [self._local(base, task, choice.why) for task in tasks]

    def _queue(self, base: Path, tasks: Sequence[ElasticTask], why: str) -> list[Job[Any]]:
        partition = self.resources.partition or str(self.resources.slurm.get("partition", ""))
        nodes = ask_partition_nodes(partition, str(self.resources.slurm.get("clusters", "")))
        resources, notes = resource_defaults.complete_resources(self.resources, nodes)
        if resources.name is None:
            resources = dataclasses.replace(resources, name=tasks[0].name)
        parameters = agent_command.submitit_parameters(resources, requeue=tasks[0].requeue)
        environ, _ = leaks.for_submission(os.environ)
        jobs = []
        for task, job_id in zip(
            tasks, submitit_process.submit_by_submitit(base, tasks, parameters, environ), strict=True
        ):
            files = JobFiles(base, job_id)
            where = self._folder_of(job_id) / f"{job_id}.0"
            self._write_record(files, task, backend_choice.SLURM, where)
            jobs.append(self._hold(files, SlurmJob(files), where))
        folder = self.folder if len(jobs) > 1 else self._folder_of(jobs[0].job_id)
        many = f"s {jobs[0].job_id} to {jobs[-1].job_id}" if len(jobs) > 1 else f" {jobs[0].job_id}"
        _say(f"job{many}: slurm ({why}), {_size(resources)}, logs in {folder}")
        for note in notes:
            _say(f"note: {note}")
        return jobs

    def _in_allocation(self, base: Path, task: ElasticTask, why: str, job: Allocation) -> Job[Any]:
        files = _claim(base, f"{job.job_label}-{local_job_name(time.time(), os.getpid()).removeprefix('local-')}")
        words = agent_command.allocation_words(self.resources, len(job.hosts))
        options = (*words, f"--log-name={files.job_id}")
        _say(
            f"job {files.job_id}: allocation ({why}), {_size(self.resources)}, logs in {self._folder_of(files.job_id)}"
        )
        return self._begin(files, task, backend_choice.ALLOCATION, options)

    def _local(self, base: Path, task: ElasticTask, why: str) -> Job[Any]:
        files = _claim(base, local_job_name(time.time(), os.getpid()))
        ranks, less = backend_choice.local_ranks(self.resources, len(devices.find_devices(os.environ)))
        task.resources = dataclasses.replace(task.resources, ranks_per_node=ranks)
        options = ("--standalone", f"--log-name={files.job_id}")
        size = less or count(ranks, "rank")
        _say(f"job {files.job_id}: local ({why}), {size}, logs in {self._folder_of(files.job_id)}")
        return self._begin(files, task, backend_choice.LOCAL, options)

    def _begin(self, files: JobFiles, task: ElasticTask, cluster: str, options: Sequence[str]) -> Job[Any]:
        if task.call:
            write_file(files.call, task.call, PICKLE_MODE)
        folder = self._folder_of(files.job_id)
        where = folder / files.job_id
        words = task.agent(files.call, folder, *options, requeue=False)
        line = agent_command.after_setup(self.resources.setup_lines, words)
        self._write_record(files, task, cluster, where, line)
        local_supervisor.start_supervised(files)
        return self._hold(files, LocalJob(files), where)

    def _debug(self, base: Path, task: ElasticTask, why: str) -> Job[Any]:
        debug_backend.check_task(task)
        files = _claim(base, f"{IN_PROCESS}{local_job_name(time.time(), os.getpid()).removeprefix('local-')}")
        _say(f"job {files.job_id}: debug ({why}), rank 0 in this process")
        if self.resources.setup_lines:
            _say("note: this process does not run the lines of setup=")
        done = debug_backend.run_in_process(task, files)
        return Job._in_process(files, done.status, done.value, done.error)  # noqa: SLF001 - it is ours to make

    def _folder_of(self, job_id: str) -> Path:
        return folder_pattern.job_folder(self.folder, job_id)

    def _hold(self, files: JobFiles, handle: BackendJob, where: Path) -> Job[Any]:
        return Job(files, handle, where)

    def _write_record(
        self, files: JobFiles, task: ElasticTask, cluster: str, where: Path, words: Sequence[str] = ()
    ) -> None:
        resources = {name: value for name, value in dataclasses.asdict(self.resources).items() if value}
        record = dataclasses.replace(
            task.record(files.job_id, cluster, where),
            submitted=round(time.time(), 3),
            resources={name: _plain(value) for name, value in resources.items()},
            command=tuple(words),
        )
        write_record(files.record, record)


@overload
def submit(target: Callable[..., R], /, *args: Any, **kwargs: Any) -> Job[R]: ...
@overload
def submit(target: str | os.PathLike[str], /, *args: Any, **kwargs: Any) -> Job[None]: ...


def submit(
    target: Target,
    /,
    *args: Any,
    folder: str | os.PathLike[str] = "logs",
    cluster: str | None = "auto",
    **kwargs: Any,
) -> Job[Any]:
    """Run a function, or a script, on every rank of some nodes.

    Args:
        target: the function, or the path of the script.
        args: its arguments; those of a script are words.
        folder: where the job's files go; the nodes must see it. See `Executor`.
        cluster: `auto` for Slurm where there is one, the allocation that this is in, or else this machine; or one of
            `slurm`, `allocation`, `local`, and `debug` for rank 0 in this process.
        kwargs: resources by their names (see `Resources`: `nodes`, `gpus_per_node`, `ranks_per_node`, `time`, ...), and
            the function's own arguments, which can have any other name.

    Returns:
        The job. `results()` has what the function returned on each rank.

    Raises:
        UsageError: a resource is unknown, or the function does not take these arguments.
        CallError: the call cannot be sent.
        ScriptError: there is no such script.
        SlurmError: Slurm refuses the job.
        HpcLaunchError: as the command line has it.
    """
    resources, others = job_resources.divide_keywords(kwargs)
    executor = Executor(folder, cluster=cluster, **resources)
    meaning = CallKeywords({*job_resources.KEYWORDS, "folder", "cluster"})
    return executor._submit([executor._task(target, args, others, meaning)])[0]  # noqa: SLF001 - of this module


def _of_executor(name: str) -> str:
    """The hint for a keyword of an executor's `submit` that is no parameter of the function; empty without one."""
    return f"'{name}' is a resource: give it to Executor(...)" if job_resources.is_resource(name) else ""


def _claim(base: Path, name: str) -> JobFiles:
    """The files of a job that Slurm gives no id, under a name that no other has."""
    for number in range(1, 1000):
        files = JobFiles(base, name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            files.record.touch(exist_ok=False)
            return files
    raise UsageError(f"there are too many jobs called {name} in {base}")


def _has_slurm() -> bool:
    return shutil.which("sbatch") is not None and controller.has_cluster()


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else str(value)


def _size(resources: Resources) -> str:
    asked, spares = resources.node_range, resources.spares
    nodes = f"{str(asked).replace(':', ' to ')} node{'s' if asked.maximum > 1 else ''}"
    nodes += f" and {spares} to spare" if spares else ""
    ranks = f" of {resources.ranks} ranks" if resources.ranks else ""
    return f"{nodes}{ranks}"


def _say(line: str) -> None:
    # As the command line does; but notebooks show whatever is on stderr as if it had gone wrong.
    stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    with contextlib.suppress(OSError, ValueError):
        print(f"hpc-launch: {visible(line)}", file=stream, flush=True)
