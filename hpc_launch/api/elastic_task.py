"""What submitit runs on each node: the agent there, with its ranks of a script or a function."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from hpc_launch import redaction
from hpc_launch.api import (
    agent_command,
    agent_process,
    call_arguments,
    folder_pattern,
    job_resources,
    pickled_call,
    submitit_names,
)
from hpc_launch.api.job_resources import Resources
from hpc_launch.api.submission_files import JobFiles, SubmissionRecord, write_json, write_once, write_record
from hpc_launch.errors import UsageError
from hpc_launch.node import processes
from hpc_launch.records.claims import Holder
from hpc_launch.records.directory import JobDirectory

Target = Union[str, "os.PathLike[str]", Callable[..., Any]]


class _Ended(SystemExit, Exception):
    """An agent has failed: submitit notes it as an error (`except Exception`), Python ends with the agent's status."""

    def __init__(self, status: int, job: Path) -> None:
        super().__init__(status)
        self.job = job

    def __str__(self) -> str:
        return f"the workers ended with status {self.code}; what they have said is in {self.job}"


@dataclass(frozen=True)
class CallKeywords:
    """The meaning of keywords where a call is made, for the message about one that is no parameter of the function.

    Attributes:
        taken: the keywords that describe the job.
        explain: returns a hint for a keyword; empty without one.
    """

    taken: Collection[str] = ()
    explain: Callable[[str], str] = submitit_names.meaning


# The resources that count within the job of another executor.
_OF_TASK = frozenset(
    {
        "nodes",
        "spares",
        "ranks_per_node",
        "requeue",
        "max_requeues",
        "max_restarts",
        "launch",
        "max_pickle_mb",
    }
)


class ElasticTask:
    """A script, or a function, that submitit runs with hpc-launch: `executor.submit(ElasticTask("train.py"))`.

    The executor says how many nodes, and must start one task on each (`tasks_per_node=1`): the task is an agent, which
    starts the ranks of its node, one per GPU. hpc-launch alone has the job requeued: submitit's own handlers are
    replaced as soon as this is called.

    What it gives submitit is small: where the job directory is. The results of a function are there for each rank, and
    `hpc_launch.Job.load` reads them.

    Args:
        target: the path of a script, or a function.
        args: the arguments; those of a script are words.
        log_dir: where the job directory goes, with `%j`, `%A` and `%a` as in submitit's folder; by default submitit's
            folder.
        keywords: resources that matter within a job (`ranks_per_node`, `spares`, `nodes` where it is a range,
            `requeue`, `max_requeues`, `max_restarts`, `launch`, `max_pickle_mb`); all others are arguments of the
            function.

    Raises:
        CallError: the function cannot be sent.
        UsageError: the function does not take the arguments, a script was given some with names, or the target is
            neither.
    """

    def __init__(self, target: Target, *args: Any, log_dir: str = "", **keywords: Any) -> None:
        given = {name: value for name, value in keywords.items() if name in _OF_TASK}
        others = {name: value for name, value in keywords.items() if name not in _OF_TASK}
        resources = job_resources.read_resources(given)
        meaning = CallKeywords(_OF_TASK, _of_submitits_executor)
        self._prepare(target, args, others, meaning, resources=resources, log_dir=log_dir)

    @classmethod
    def of(
        cls,
        target: Target,
        args: Sequence[Any],
        keywords: Mapping[str, Any],
        *,
        resources: Resources,
        log_dir: Path,
        meaning: CallKeywords,
    ) -> ElasticTask:
        """A task whose resources are known: all keywords are the function's."""
        task = cls.__new__(cls)
        task._prepare(target, args, keywords, meaning, resources=resources, log_dir=str(log_dir))  # noqa: SLF001 - its own
        return task

    def _prepare(
        self,
        target: Target,
        args: Sequence[Any],
        others: Mapping[str, Any],
        meaning: CallKeywords,
        *,
        resources: Resources,
        log_dir: str,
    ) -> None:
        folder_pattern.check_folder(log_dir)
        self.resources = resources
        self.log_dir = log_dir
        self.script: tuple[str, ...] = ()
        self.call = b""
        self.checkpointed = hasattr(target, "checkpoint")
        if callable(target):
            call_arguments.check_arguments(target, args, others, others=meaning.taken, explain=meaning.explain)
            self.call = pickled_call.pack_call(target, args, others, self.resources.max_pickle_mb)
            self.name = getattr(target, "__name__", type(target).__name__)
        elif not isinstance(target, (str, os.PathLike)):
            raise UsageError(
                f"a function, or the path of a script, is expected, and not {_described(target)}: give the function "
                "itself and its arguments, submit(function, *args)"
            )
        elif others:
            near = call_arguments.nearest(next(iter(others)), meaning.taken)
            hint = meaning.explain(next(iter(others))) or (f"did you mean '{near}'?" if near else "")
            raise UsageError(
                f"a script is given words, not {', '.join(f'{name}=' for name in others)}{'; ' * bool(hint)}{hint}"
            )
        else:
            self.script = (os.fspath(target), *map(str, args))
            self.name = Path(self.script[0]).stem

    @property
    def requeue(self) -> tuple[str, ...]:
        """When the job is to run again."""
        return agent_command.requeue_words(self.resources, checkpointed=self.checkpointed)

    def what(self, call: Path) -> tuple[str, ...]:
        """What the agent runs: the script, or a worker with the call that is in a file."""
        return self.script or ("-m", agent_command.WORKER, str(call))

    def agent(self, call: Path, log_dir: Path, *options: str, requeue: bool = True) -> list[str]:
        """The line that starts the agent.

        Args:
            call: where the call is, of a function.
            log_dir: where the job directory goes.
            options: further options.
            requeue: whether the job can run again.
        """
        return agent_command.agent_words(
            sys.executable,
            self.resources,
            self.what(call),
            log_dir=log_dir,
            requeue=self.requeue if requeue else (),
            options=options,
        )

    def record(self, job_id: str, cluster: str, where: Path) -> SubmissionRecord:
        """What is remembered of the submission."""
        return SubmissionRecord(job_id, cluster, self.name, tuple(redaction.redacted_arguments(self.script)), where)

    def __call__(self) -> dict[str, str] | None:
        """Run the agent of this node, in a task of a job that submitit has submitted."""
        here = importlib.import_module("submitit").JobEnvironment()
        files = JobFiles(Path(here.paths.folder), here.job_id)
        if self.call:
            write_once(files.call, self.call)
        log_dir = folder_pattern.job_folder(Path(self.log_dir or here.paths.folder), here.job_id).absolute()
        slurm = here.cluster == "slurm"
        lossy = slurm and self.resources.may_lose_nodes
        name = f"{here.job_id}.{os.environ.get('SLURM_STEP_ID', '0')}" if slurm else f"local-{here.job_id}"
        options = agent_command.node_words(self.resources) if slurm else (f"--log-name={name}", "--standalone")
        job = JobDirectory(log_dir, name)
        if here.global_rank == 0 and not files.record.exists():
            write_record(files.record, self.record(here.job_id, here.cluster, job.path))
        if not slurm:
            write_json(files.process, Holder(socket.gethostname(), os.getpid(), processes.start_time(os.getpid())))
        ending = agent_process.run_agent_process(self.agent(files.call, log_dir, *options, requeue=slurm), alone=lossy)
        status = ending.status
        # Of a run that goes on without nodes that are lost the first one can be among these.
        final = agent_process.final_status(job, os.environ) if lossy else status if here.global_rank == 0 else None
        cancelled = ending.stopped and not slurm
        if final is not None and not agent_process.conclude(files, job, final, os.environ, cancelled=cancelled):
            raise SystemExit(status)  # without a word to submitit: the job runs again
        if status:
            raise _Ended(status, job.path)
        return {"job_directory": str(job.path)} if here.global_rank == 0 else None


def _of_submitits_executor(name: str) -> str:
    """The hint for a keyword of an ElasticTask that is no parameter of its function; empty without one."""
    found = submitit_names.counterpart(name)
    if found is not None and found.resource in _OF_TASK:
        return f"use {found.resource}"
    if found is not None or job_resources.is_resource(name):
        return f"'{name}' is the executor's: give it to its update_parameters"
    return ""


def _described(target: Any) -> str:
    """What was given in place of a function, in a few words."""
    return "None" if target is None else f"one of type {type(target).__name__}"
