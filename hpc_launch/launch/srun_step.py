"""Start a step for the run, and stand in for it: signals go in, the exit status comes out.

srun runs as a child in a session of its own, so that the terminal's signals come here and nowhere else. What srun would
do about them is not what hpc-launch does anywhere else (srun(1), and tried with 22.05 and 24.11):

- it passes SIGINT on (`--disable-status`), as well as SIGUSR1 and SIGUSR2, but kills all tasks where a second SIGINT
  comes within a second of the first;
- it kills all tasks at once after SIGTERM, SIGHUP or SIGQUIT.

So a signal that would be lost on it goes to the tasks by way of the controller (scancel).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from hpc_launch import held_signals, hostlist, secret_variables
from hpc_launch.console import say
from hpc_launch.errors import ContextError, Interrupted, StepError, WorkerError, exit_status_of
from hpc_launch.node import processes, terminal
from hpc_launch.plan import step_plan as plan
from hpc_launch.plan.launch_context import LaunchContext, check_script
from hpc_launch.settings import Settings
from hpc_launch.slurm import commands, controller, steps
from hpc_launch.slurm.environment import Allocation
from hpc_launch.slurm.steps import JobGrants, StepRequest

# Seconds for a question to Slurm, or for a signal that goes by way of the controller.
_PATIENCE = 5.0

# Seconds for finding out whether this is a login node, on every start outside of a job.
_BRIEF_PATIENCE = 2.0

# srun counts whole seconds: two SIGINT that are further apart than this are not one that is repeated.
_APART = 2.0

# Who presses Ctrl-C so often does not want to wait for anything.
_OFTEN_ENOUGH = 3

# Seconds that one process may take to choose nodes and have its step begin: as long as srun tries, and some more.
_TURN_SECONDS = steps.PATIENCE + 5.0

# How often it looks whether that is so.
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Prepared:
    """A step that can be started.

    Attributes:
        job: where.
        request: which.
        line: the srun line.
        notes: what is probably not meant.
        grants: what the job has, as far as it is known.
    """

    job: Allocation
    request: StepRequest
    line: tuple[str, ...]
    notes: tuple[str, ...] = ()
    grants: JobGrants = field(default_factory=JobGrants)


def prepare(settings: Settings, here: LaunchContext, job: Allocation, command: Sequence[str]) -> Prepared:
    """Ask Slurm what there is to know, and decide about the step.

    Args:
        settings: what was asked for.
        here: this process.
        job: where the step is to run.
        command: what it runs.

    Raises:
        ContextError: when other nodes are asked for than the job has.
    """
    running = controller.ask_steps(job.job_id, _PATIENCE)
    grants = JobGrants() if running is None else controller.ask_grants(job.job_id, _PATIENCE)
    request = plan.choose_step(settings, here, job, running or (), grants.gpus_to_ask)
    notices = [signal.Signals[name] for name in settings.notice_signals]
    held = held_signals.holding(command, notices, on_this_host=job.node_name in request.hosts)
    return Prepared(job, request, tuple(steps.srun_line(request, held)), plan.notes(here), grants)


def _again(here: LaunchContext) -> tuple[str, ...]:
    """The words that start this program on a node."""
    python, *words = here.again
    program = shutil.which(words[0]) if words and not words[0].startswith("-") else None
    return (program, *words[1:]) if program is not None else (python, *words)


def run_as_step(settings: Settings, script: Sequence[str], here: LaunchContext, job: Allocation) -> None:
    """Run this same command as a step, to its end.

    Raises:
        StepError: when Slurm does not start it.
        WorkerError: with the status of the step, when that is another than 0; the agents have said why.
        Interrupted: when a signal ended it before it had begun.
    """
    with _turn(job) if plan.chooses(settings, job) else contextlib.nullcontext() as choosing:
        prepared = prepare(settings, here, job, _again(here))
        if job.node_name in prepared.request.hosts:
            check_script(settings, script[0], here.directory)
        if prepared.request.overlap and not settings.overlap:
            _refuse_a_second(prepared)
        for note in prepared.notes:
            say(f"note: {note}")
        if terminal.has_waiting_input():
            say("note: no worker reads what is in this pipe or file: 'srun hpc-launch ...' passes standard input on")
        whole = f": {commands.quote(prepared.line)}" if settings.verbose else ""
        say(f"starting on {hostlist.fold(prepared.request.hosts)} of job {job.job_label}{whole}")
        child = _Step(prepared, here, settings)
        if choosing:
            child.await_begin()
    status = child.wait()
    if status == steps.SRUN_FAILED and child.stopped_by is not None:
        raise Interrupted(child.stopped_by, child.stopped_by.name)
    if status == steps.SRUN_FAILED:
        running = controller.ask_steps(job.job_id, _PATIENCE) or ()
        raise StepError(plan.blocked(prepared.request, job, plan.in_the_way(prepared.request, job, running)))
    if status:
        raise WorkerError(f"the step ended with status {status}", exit_status=status)


@contextlib.contextmanager
def _turn(job: Allocation) -> Iterator[bool]:
    """Let one process of this node at a time choose among a job's nodes, until its step can be seen by the next one.

    A name in the kernel's own space of sockets is free again whenever its process has ended, however that was. Another
    user can hold it too, so that it is waited for and then done without: Slurm does not share nodes by itself.
    """
    end = time.monotonic() + _TURN_SECONDS
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as name:
        while True:
            try:
                name.bind(f"\0hpc-launch/{os.geteuid()}/{job.job_id}")
                break
            except OSError:
                if time.monotonic() > end:
                    break
                time.sleep(_LOOK_SECONDS)
        yield True


def _refuse_a_second(prepared: Prepared) -> None:
    """See that no other run is there, where srun would not mind: one that has just ended may be shown for a moment."""
    end = time.monotonic() + prepared.request.patience
    while True:
        running = controller.ask_steps(prepared.job.job_id, _PATIENCE) or ()
        others = plan.already_training(prepared.request, prepared.job, running)
        if not others:
            return
        if time.monotonic() > end:
            raise StepError(plan.blocked(prepared.request, prepared.job, others))
        time.sleep(0.2)


def refuse_login_node(settings: Settings, here: LaunchContext) -> None:
    """See that this is no login node, where nothing but this place says that the training is to run here.

    Raises:
        ContextError: where Slurm's configuration is there, and does not have this host.
    """
    if here.slurm is not None or not plan.only_place(settings) or shutil.which("scontrol") is None:
        return
    if not controller.ask_whether_node(here.host, _BRIEF_PATIENCE):
        raise ContextError(
            f"{here.host} is not a node of this Slurm cluster but a login node: get nodes with salloc, submit a job "
            "('hpc-launch submit'), or say --standalone to train here"
        )


class _Step:
    """srun as a child.

    Attributes:
        stopped_by: the first signal that asked for the end.
    """

    def __init__(self, prepared: Prepared, here: LaunchContext, settings: Settings) -> None:
        self.stopped_by: signal.Signals | None = None
        self._job_id = prepared.job.job_id
        self._host = here.host
        self._notices = {signal.Signals[name] for name in settings.notice_signals}
        known = self._notices | {signal.Signals[name] for name in settings.signals_to_handle}
        # One that is ignored here (SIGHUP under nohup) is to be ignored.
        self._signals = {one for one in known if signal.getsignal(one) is not signal.SIG_IGN}
        self._interrupted = 0
        self._last_interrupt = -_APART
        self._id = ""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals | {signal.SIGCHLD})
        self._mask = held_signals.without_held(mask, self._notices)
        reading, typed = (None, None) if prepared.request.reader is None else os.pipe()
        self._srun = subprocess.Popen(
            prepared.line,
            env=secret_variables.with_own_secret(steps.srun_environment(here.environ, self._job_id)),
            stdin=subprocess.DEVNULL if reading is None else reading,
            start_new_session=True,
            preexec_fn=_tied_to_this_process(self._mask),  # noqa: PLW1509 - there are no threads here
        )
        if reading is not None and typed is not None:
            os.close(reading)
            terminal.pass_on(typed)

    def await_begin(self) -> None:
        """Wait until others can see the step, srun has ended, or a signal has come; the rest is for `wait`."""
        end = time.monotonic() + _TURN_SECONDS
        waiting = {signal.SIGCHLD, *self._signals}
        while time.monotonic() < end and not (signal.sigpending() & waiting) and not self._begun():
            time.sleep(_LOOK_SECONDS)

    def wait(self) -> int:
        """Pass signals on until srun has ended; its exit status, 128+N where signal N ended it."""
        while (status := self._srun.poll()) is None:
            number = signal.sigwaitinfo(self._signals | {signal.SIGCHLD}).si_signo
            if number != signal.SIGCHLD:
                self._pass_on(signal.Signals(number))
        while signal.sigtimedwait(self._signals, 0) is not None:
            pass  # what has come since is too late
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return exit_status_of(status)

    def _pass_on(self, signum: signal.Signals) -> None:
        begun = self._begun()
        if signum in self._notices:
            if begun:
                self._send(signum)
            return  # before the step has begun there is nobody to tell
        self.stopped_by = self.stopped_by or signum
        if begun:
            self._send(signum)
        else:
            self._srun.send_signal(signal.SIGINT)  # it takes back its request for a step

    def _send(self, signum: signal.Signals) -> None:
        now = time.monotonic()
        by_srun = signum in (signal.SIGUSR1, signal.SIGUSR2)
        if signum == signal.SIGINT:
            by_srun = now - self._last_interrupt >= _APART
            self._interrupted += 1
            self._last_interrupt = now
        if self._interrupted >= _OFTEN_ENOUGH and signum == signal.SIGINT:
            self._srun.send_signal(signal.SIGTERM)
        elif by_srun:
            self._srun.send_signal(signum)
        elif not (self._id and controller.signal_step(self._id, signum.name, _PATIENCE)):
            self._srun.send_signal(signal.SIGINT)  # of what is left, the way that gives the workers time

    def _begun(self) -> bool:
        """Whether the step is there, as far as is known: it is the one whose srun is ours."""
        if not self._id:
            running = controller.ask_steps(self._job_id, _PATIENCE)
            if running is None:
                return True
            mine = (self._host, self._srun.pid)
            found = [
                one.step_id for one in running if one.srun and (one.srun[0].partition(".")[0], one.srun[1]) == mine
            ]
            self._id = found[0] if found else ""
        return bool(self._id)


def _tied_to_this_process(mask: Iterable[int]) -> Callable[[], None]:
    """What srun does before it is srun: unblock signals, and see to it that the step ends with this process."""
    tie = processes.tied_to(os.getpid(), signal.SIGINT)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in the background of a script, and srun is to hear it
        tie()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return prepare
