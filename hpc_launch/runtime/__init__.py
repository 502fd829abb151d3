"""What a training script may ask its launcher, and tell it: `from hpc_launch import runtime`.

Everything works, and does no harm, without hpc-launch too: under torchrun, `srun python train.py` or `python train.py`.
The environment is read when a function is called. torch is imported only by what needs it: `device`, and `should_stop`
over several ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hpc_launch.runtime import worker_variables
from hpc_launch.runtime.progress_writer import json_number
from hpc_launch.runtime.worker_process import WorkerProcess
from hpc_launch.runtime.worker_variables import number_variable

if TYPE_CHECKING:
    import torch

__all__ = [
    "attempt",
    "device",
    "job_directory",
    "local_rank",
    "local_world_size",
    "mark_progress",
    "node_rank",
    "on_notice",
    "rank",
    "requeue_count",
    "should_stop",
    "time_left",
    "world_size",
]

_Callback = TypeVar("_Callback", bound=Callable[[str], Any])


def rank() -> int:
    """This process's number among all workers (RANK); 0 without a launcher."""
    return number_variable("RANK", 0)


def local_rank() -> int:
    """This process's number among the workers of its node (LOCAL_RANK); 0 without a launcher."""
    return number_variable("LOCAL_RANK", 0)


def world_size() -> int:
    """The number of all workers (WORLD_SIZE); 1 without a launcher."""
    return number_variable("WORLD_SIZE", 1)


def local_world_size() -> int:
    """The number of workers on this node (LOCAL_WORLD_SIZE); 1 without a launcher."""
    return number_variable("LOCAL_WORLD_SIZE", 1)


def node_rank() -> int:
    """The number of this node (GROUP_RANK, torchrun's name for it); 0 without a launcher."""
    return number_variable("GROUP_RANK", 0)


def device() -> torch.device:
    """The device of this process: the GPU of its local rank, else the CPU.

    `cuda:N` where CUDA (or ROCm) is usable, `xpu:N` where an Intel GPU is, `cpu` elsewhere. N is the local rank modulo
    the number of devices that this process sees, so that it is right too where each process is shown its own only.
    Nothing is set: call `torch.cuda.set_device(device)` where you want that.
    """
    import torch  # noqa: PLC0415 - scripts without torch use the rest

    for name, backend in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        if backend.is_available():
            return torch.device(name, local_rank() % backend.device_count())
    return torch.device("cpu")


def attempt() -> int:
    """The number of this start of the workers, from 0.

    Under hpc-launch it counts on when Slurm requeues the job, as `attempt_<n>` in the job directory does; under
    torchrun it counts the restarts of one run.
    """
    return number_variable("HPC_LAUNCH_ATTEMPT", number_variable("TORCHELASTIC_RESTART_COUNT", 0))


def requeue_count() -> int:
    """How often Slurm has started this job again (SLURM_RESTART_COUNT); 0 without Slurm."""
    return number_variable("SLURM_RESTART_COUNT", 0)


def job_directory() -> Path | None:
    """The directory with the files of this job, None where hpc-launch did not start this process."""
    job = worker_variables.job()
    return None if job is None else job.path


def time_left() -> float | None:
    """Seconds until Slurm ends the job, never below 0.0; None where that is not known, or the job has no limit.

    Under hpc-launch this is the end that Slurm has set now, also when the limit was changed while the job runs.
    Elsewhere it is SLURM_JOB_END_TIME, which `sbatch` sets from Slurm 22.05 on. It is cheap enough for every step.
    """
    end = _process.end_time.find()
    return None if end is None else max(0.0, end - time.time())


def should_stop(*, all_ranks: bool = False, before_end: float | None = None) -> bool:
    """Say whether it is time to write a checkpoint and leave.

    The answer is True once this process was told to leave: by a notice signal (those of HPC_LAUNCH_NOTICE_SIGNALS, else
    SIGUSR1 and SIGUSR2) or by SIGTERM. None of them ends the process any more: the script is expected to leave by
    itself.

    The first call of this function, or of `on_notice`, installs the handlers: make one before the training loop, in the
    main thread. A handler that was there before is called after this one; a signal that was ignored is noted only. A
    handler that the script installs later takes the place of this one, and the signal is not noted. Processes that are
    forked later (data loaders) survive notice signals, and meet SIGTERM as if nothing had been installed.

    With `all_ranks` all ranks get the same answer at the same call, True if any of them was told. Every rank must call
    it equally often and at the same place of the training loop, as with a collective of torch.distributed; and after
    True it is True for ever. Most calls cost nothing: rank 0 decides, and promises about once a second that it will not
    stop before call number n. Others ask it only when they get there. Where calls suddenly become much slower, a
    promise that was already made (for at most 100 calls) lasts longer.

    This cannot deadlock. Rank 0 waits for nobody. Another rank waits only for rank 0 to reach the same call, and
    whatever rank 0 has to do with the others before that (collectives, say) the waiting rank has done already.

    Without hpc-launch or torchrun, `all_ranks` needs what `init_process_group()` needs, RANK, WORLD_SIZE, MASTER_ADDR
    and MASTER_PORT, and rank 0 serves that port. Without WORLD_SIZE a process is the only one.

    Args:
        all_ranks: agree with all other ranks.
        before_end: be True also when fewer than these seconds are left (`time_left`); with `all_ranks`, rank 0's count.

    Raises:
        RuntimeError: the first call was not made in the main thread, where alone Python can handle signals; or, with
            `all_ranks`, the store of the ranks cannot be reached or rank 0 did not call for half an hour.
        ValueError: HPC_LAUNCH_NOTICE_SIGNALS names what is no signal.
    """
    notices = _process.watch()

    def wanted() -> bool:
        if notices.told:
            return True
        left = None if before_end is None or (all_ranks and rank()) else time_left()
        return left is not None and before_end is not None and left < before_end

    if not all_ranks:
        return wanted()
    if world_size() == 1:
        _process.stopped = _process.stopped or wanted()
        return _process.stopped
    return _process.agreement().answer(wanted)


def on_notice(callback: _Callback) -> _Callback:
    """Have `callback(signal_name)` called whenever a notice signal or SIGTERM arrives, for instance with "SIGUSR1".

    It is called in the main thread, from the signal handler, between any two instructions of the script: set a flag or
    print a line there, and do the work in the training loop. Callbacks are called in the order in which they were
    given. An exception leaves the handler as it leaves any: it comes up in the main thread wherever that is, and later
    callbacks, and a handler that was installed before, are not called.

    Installs the handlers as `should_stop` does. Can be used as a decorator.

    Returns:
        The callback.

    Raises:
        RuntimeError: this is the first call, and it was not made in the main thread.
        ValueError: HPC_LAUNCH_NOTICE_SIGNALS names what is no signal.
    """
    _process.watch().callbacks.append(callback)
    return callback


def mark_progress(step: float | None = None, total: float | None = None, **values: float | str) -> None:
    """Say that training has come further, best when a checkpoint was written.

    The last word of each rank is in `progress/rank_<rank>.json` of the job directory, and what it said on the way in
    `progress/rank_<rank>.jsonl`, a line each: the first 400 calls of an attempt, and then fewer and fewer, so
    that a curve of the values is as fine as an eye can see, and its file stays small however long training takes
    (`hpc_launch.records.progress_curve`). Without hpc-launch nothing happens.

    It is cheap enough for every step: files are written at once for the first call, for one that reaches the total, and
    otherwise at most once a second; what was held back is written with a later call or when Python exits. A file that
    cannot be written (no space, no job directory) is no error. A call that says the same step, total and values as the
    one before is not progress.

    Args:
        step: how far training is, in units of your choice.
        total: where it will be at the end, in the same units.
        values: more to show, such as `loss=0.3`: numbers and strings. What is not finite is written as a string.

    Raises:
        TypeError: naming a value that is neither a number nor a string, or a step or total that is no number.
    """
    job = worker_variables.job()
    word = {
        "time": round(time.time(), 3),
        "attempt": attempt(),
        "step": None if step is None else json_number("step", step),
        "total": None if total is None else json_number("total", total),
        "values": {
            name: value if isinstance(value, str) else json_number(name, value) for name, value in values.items()
        },
    }
    if job is not None:
        _process.arrange()
        done = step is not None and total is not None and step >= total
        _process.progress.mark(job, rank(), word, done=done)


_process = WorkerProcess()
