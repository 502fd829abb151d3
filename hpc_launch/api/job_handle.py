"""A job, as Python holds it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, overload

from hpc_launch.api import job_files_search, results, submitit_names
from hpc_launch.api.backend_choice import SLURM
from hpc_launch.api.backends import BackendJob, InProcessJob, JobEnding, LocalJob, SlurmJob
from hpc_launch.api.job_view import JobView, ViewSubject
from hpc_launch.api.submission_files import JobFiles, read_record
from hpc_launch.errors import JobFailed, UsageError
from hpc_launch.records.directory import JobDirectory
from hpc_launch.slurm.job import JobRecord
from hpc_launch.submission.job_watcher import last_lines_of

if TYPE_CHECKING:
    from hpc_launch.inspection.job_report import JobReport
    from hpc_launch.inspection.slurm_query import SlurmQuery
    from hpc_launch.inspection.stacks_view import JobStacks
    from hpc_launch.inspection.status_view import JobStatus

R = TypeVar("R")

# Seconds between two looks at the files of a job that is waited for.
_SHORTEST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.1, 1.0, 1.3

# Lines of the launcher's own output that may say why it failed.
_LAST_LINES = 200


class Job(Generic[R]):
    """A job: a function, or a script, on all ranks of some nodes.

    Made by `submit`, by an `Executor`, or again by `Job.load`.
    """

    def __init__(self, files: JobFiles | None, handle: BackendJob | None, directory: Path | None) -> None:
        self._files = files
        self._handle = handle
        self._directory = directory
        self._ending: JobEnding | None = None
        self._results: list[R] | None = None
        self._error: BaseException | None = None
        self._eyes: SlurmQuery | None = None

    @classmethod
    def load(cls, job: str | Path, folder: str | Path | None = None) -> Any:
        """A job that was submitted before, by this Python or another.

        Args:
            job: its id, or the path of its job directory, or of its record. `12_3` is one job of the array 12.
            folder: the executor's folder; where it is not said, `logs`, or what Slurm says of the job's output.

        Returns:
            The job. Of the id of a job array a list of its jobs, in their order, as `map_array` returned it.

        Raises:
            UsageError: there is no such job, or it has run in the process that submitted it.
        """
        found = job_files_search.find_job_files(str(job), None if folder is None else Path(folder))
        return cls._of_files(found) if isinstance(found, JobFiles) else [cls._of_files(files) for files in found]

    @classmethod
    def _of_files(cls, files: JobFiles) -> Job[Any]:
        record = read_record(files.record)
        if record is None and files.is_of_this_process:
            raise UsageError(f"job {files.job_id} has run in the process that submitted it, and left no results")
        handle: BackendJob = SlurmJob(files) if record is None or record.cluster == SLURM else LocalJob(files)
        return cls(files, handle, None if record is None else record.directory)

    @property
    def job_id(self) -> str:
        """Its id: `12`, `12_3` for one of an array; a name that begins with `local-` outside of Slurm."""
        return self._of().job_id

    @property
    def directory(self) -> Path:
        """Its job directory, which is there as soon as its agents have met."""
        ending = self._ending
        if ending is not None and ending.directory is not None:
            return ending.directory
        self._of()
        return self._directory or self._of().base.parent / f"{self.job_id}.0"

    @property
    def state(self) -> str:
        """How it stands, in Slurm's words: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, CANCELLED and so on."""
        self._of()
        return self._ending.state if self._ending is not None else self._held().state()

    @property
    def record(self) -> JobRecord | None:
        """What Slurm knows of it, such as why it waits and when it may start; None outside of Slurm."""
        self._of()
        return self._held().record()

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        self._of()
        if self._ending is None:
            self._ending = self._held().ending()
        return self._ending is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for its end.

        Args:
            timeout: for how many seconds, at most.

        Returns:
            Whether it has ended.
        """
        end = None if timeout is None else time.monotonic() + timeout
        for pause in _pauses():
            if self.done():
                return True
            left = pause if end is None else min(pause, end - time.monotonic())
            if left <= 0:
                return False
            time.sleep(left)
        raise AssertionError

    def results(self, timeout: float | None = None) -> list[R]:
        """What the function returned on each rank, in the order of the ranks; None for each rank of a script.

        Args:
            timeout: how many seconds to wait for the job's end, at most.

        Raises:
            ResultError: those of some ranks cannot be read here; it has those of the others, by rank.
            TimeoutError: it has not ended by then.
            Exception: whatever the worker that failed first has raised, with its traceback there as the cause.
            WorkerFailed: a worker has crashed, or ended with another status than 0.
            JobFailed: the job ended otherwise: cancelled, out of time, never started.
        """
        self._await_success(timeout)
        if self._results is None:
            self._results = results.read_results(self._tree(), self.job_id, functions=self._is_function())
        return self._results

    def result(self, timeout: float | None = None, *, rank: int = 0) -> R:
        """What the function returned on one rank, whatever has become of the results of others; as `results`.

        Args:
            timeout: how many seconds to wait for the job's end, at most.
            rank: which one.

        Raises:
            UsageError: there is no such rank.
            ResultError: its result cannot be read here.
        """
        self._await_success(timeout)
        if self._results is not None:
            results.check_rank(rank, len(self._results), self.job_id)
            return self._results[rank]
        functions = self._is_function()
        return cast("R", results.read_result(self._tree(), self.job_id, rank, functions=functions))

    def _await_success(self, timeout: float | None) -> None:
        error = self.exception(timeout)
        if error is not None:
            raise error

    def _tree(self) -> JobDirectory:
        return JobDirectory(self.directory.parent, self.directory.name)

    def _is_function(self) -> bool:
        record = read_record(self._of().record)
        return record is None or not record.script

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `results` would raise, returned; None for a job that has ended well.

        Args:
            timeout: how many seconds to wait for the job's end, at most.

        Raises:
            TimeoutError: it has not ended by then.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"job {self.job_id} has not ended after {timeout:g} s: it is {self.state}")
        ending = cast("JobEnding", self._ending)
        if ending.status == 0:
            return None
        if self._error is None:
            self._error = self._failure(ending)
        return self._error

    def _failure(self, ending: JobEnding) -> BaseException:
        if ending.directory is None:
            words = self._last_words()
            why = f": {words}" if words else ""
            return JobFailed(f"job {self.job_id} is {ending.state}{why}", job_id=self.job_id, state=ending.state)
        directory = JobDirectory(ending.directory.parent, ending.directory.name)
        return results.failure_of_job(directory, self.job_id, ending.status, ending.state, self._last_words)

    def _last_words(self) -> str:
        """What the launcher said last that sounds like a reason."""
        files = self._of()
        for path in (files.errors, files.log):
            lines = last_lines_of(str(path), _LAST_LINES).splitlines()
            ours = [line.partition("hpc-launch: ")[2] for line in lines if "hpc-launch: " in line]
            told = ours or [line for line in lines if line.startswith(("srun: error", "slurmstepd: error"))]
            if told:
                return told[-1]
        return ""

    def cancel(self) -> None:
        """Have it ended, as `scancel` does; its workers have the time that Slurm gives.

        Raises:
            SlurmError: Slurm refuses, or it runs on another machine.
        """
        self._of()
        self._held().cancel()

    @overload
    def logs(self, rank: int = 0, *, follow: Literal[False] = False) -> str: ...
    @overload
    def logs(self, rank: int = 0, *, follow: Literal[True]) -> Iterator[str]: ...

    def logs(self, rank: int = 0, *, follow: bool = False) -> str | Iterator[str]:
        """What a rank has written in the last attempt, standard output and errors.

        Args:
            rank: which one.
            follow: give lines, one after another as they come, until the job ends.
        """
        lines = self._lines(rank, follow=follow)
        return lines if follow else "\n".join(lines)

    def _lines(self, rank: int, *, follow: bool) -> Iterator[str]:
        from hpc_launch.inspection import log_reader  # noqa: PLC0415 - who only waits for results need not read it
        from hpc_launch.inspection.output_files import OutputSelection  # noqa: PLC0415 - as above

        found = log_reader.read_lines(
            self._tree(), OutputSelection(ranks=frozenset({rank})), follow=follow, ended=self.done
        )
        return (line.text for line in found)

    def stacks(self) -> JobStacks:
        """Where each of its ranks is now: what `hpc-launch stacks` shows, and writes into the job directory.

        Raises:
            ContextError: nothing of it runs.
        """
        from hpc_launch.inspection import stack_collection  # noqa: PLC0415 - who only waits for results need not read it

        return stack_collection.collect_stacks(self.directory)

    def report(self) -> JobReport:
        """What happened, as `hpc-launch report` tells it: a page in a notebook, and a file by `.write()`."""
        from hpc_launch.inspection import job_report  # noqa: PLC0415 - as above

        return job_report.report_on_job(self.directory)

    def status(self) -> JobStatus:
        """Where it stands, rank by rank: what `hpc-launch status` shows, also when it is printed.

        The job directory is read first. Slurm is asked every 15 seconds at most, however often this is called.
        """
        from hpc_launch.inspection import job_status  # noqa: PLC0415 - as above
        from hpc_launch.inspection.job_search import slurm_step  # noqa: PLC0415 - as above
        from hpc_launch.inspection.slurm_query import SlurmQuery  # noqa: PLC0415 - as above

        record = self.record
        if record is not None and not self.directory.is_dir():
            return job_status.without_directory(record)
        directory = JobDirectory(self.directory.parent, self.directory.name)
        self._eyes = self._eyes or SlurmQuery(slurm_step(directory))
        return job_status.read_status(directory, eyes=self._eyes)

    def view(self) -> JobView:
        """What a notebook shows of it: state, nodes, progress and curves of each rank, times, last lines.

        `print(job)` says the same. It is made of the job directory and of what Slurm has said last, which is asked no
        more often than ever.
        """
        from hpc_launch.api.job_view_reader import read_job_view  # noqa: PLC0415 - as above

        subject = ViewSubject.of(self.job_id, read_record(self._of().record))
        done = self.done()  # first: what is seen of a job that has ended is to have its end
        evidence = dataclasses.replace(self._held().evidence(), done=done)
        return read_job_view(subject, evidence, self.directory, time.time())

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self._in_the_background().__await__()

    async def _in_the_background(self) -> list[R]:
        for pause in _pauses():
            if await asyncio.to_thread(self.done):
                break
            await asyncio.sleep(pause)
        return await asyncio.to_thread(self.results)

    def __repr__(self) -> str:
        return f"<Job {self._files.job_id}>" if self._files else "<Job, not submitted yet>"

    def __str__(self) -> str:
        from hpc_launch.api import job_text  # noqa: PLC0415 - who only waits for results need not read it

        return job_text.render_job_text(self.view()) if self._files else repr(self)

    def _ipython_display_(self) -> None:
        """Show it in a notebook, where it is kept up to date until it ends, or in IPython's terminal."""
        from hpc_launch.api.notebook_display import display_job  # noqa: PLC0415 - IPython calls this, and nobody else

        if self._files is None:
            print(repr(self))  # noqa: T201 - that is all there is to show
        else:
            display_job(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """As it is now, in the forms that a notebook can choose from: for those that do not keep it up to date."""
        from hpc_launch.api.notebook_display import bundle  # noqa: PLC0415 - as above

        return bundle(self.view()) if self._files else {"text/plain": repr(self)}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise submitit_names.attribute_error("Job", name, submitit_names.JOB)

    # ---- for the executor

    def _become(self, other: Job[R]) -> None:
        """Be a job that was submitted later, with others in a batch."""
        self.__dict__.update(other.__dict__)

    @classmethod
    def _in_process(cls, files: JobFiles, status: int, value: R | None, error: BaseException | None) -> Job[R]:
        """A job that has run in this process, and what came of it."""
        job = cls(files, InProcessJob(status), files.base.parent / files.job_id)
        job._results, job._error = [cast("R", value)], error
        return job

    def _of(self) -> JobFiles:
        if self._files is None:
            raise UsageError("this job is submitted when its `with executor.batch():` ends")
        return self._files

    def _held(self) -> BackendJob:
        assert self._handle is not None  # noqa: S101 - it comes with the files
        return self._handle


def _pauses() -> Generator[float, None, None]:
    pause = _SHORTEST_PAUSE
    while True:
        yield pause
        pause = min(pause * _GROWTH, _LONGEST_PAUSE)
