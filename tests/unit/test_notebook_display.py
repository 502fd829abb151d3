"""What keeps jobs that are shown up to date: one thread, which is there while there is something to do."""

from __future__ import annotations

import subprocess
import threading
from typing import Any

import pytest

from hpc_launch.api.job_view import JobView, ViewSubject
from hpc_launch.api.notebook_display import NotebookUpdater, bundle
from hpc_launch.inspection.job_state import JobState, State
from tests.support import wait_for

# Seconds: no test takes longer, on however slow a machine.
TIMEOUT = 60


class Job:
    """A job that stands as a test says."""

    def __init__(self, name: str = "train") -> None:
        self.state = State.RUNNING
        self.broken = ""
        self.looks = 0
        self.subject = ViewSubject(name, "4711", "Slurm")
        self.gate = threading.Event()
        self.gate.set()

    def view(self) -> JobView:
        self.looks += 1
        self.gate.wait(TIMEOUT)
        if self.broken:
            raise OSError(self.broken)
        return JobView(self.subject, 0.0, JobState(self.state, self.state.value, over=self.state is not State.RUNNING))


class Handle:
    """A place in a notebook."""

    def __init__(self) -> None:
        self.display_id = "id"
        self.shown: list[str] = []
        self.error: Exception | None = None

    def update(self, obj: Any, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        assert options == {"raw": True}
        assert set(obj) == {"text/plain", "text/html"}
        self.shown.append(obj["text/plain"])


def put(board: NotebookUpdater, job: Job) -> Handle:
    handle = Handle()
    board.add(job, handle, job.view())
    return handle


@pytest.fixture
def board() -> NotebookUpdater:
    """Return one that looks again when it is asked only."""
    return NotebookUpdater(pause=3600)


def test_it_looks_until_the_job_has_ended(board: NotebookUpdater) -> None:
    """The last thing that is shown is the end, and then the thread is gone."""
    job = Job()
    handle = put(board, job)
    wait_for(lambda: handle.shown, TIMEOUT, "nothing is shown")
    job.state = State.DONE
    board.settle()
    wait_for(lambda: board._thread is None, TIMEOUT, "the thread is still there")

    assert (handle.shown[0], handle.shown[-1]) == ("train (job 4711): running, starting", "train (job 4711): done")
    assert board.handle(job) is None


def test_it_looks_by_itself() -> None:
    """Nobody has to ask."""
    job, board = Job(), NotebookUpdater(pause=0.01)
    handle = put(board, job)
    wait_for(lambda: len(handle.shown) > 2, TIMEOUT, "it does not look again")
    job.state = State.FAILED
    wait_for(lambda: board._thread is None, TIMEOUT, "the thread is still there")

    assert "failed" in handle.shown[-1]


def test_a_job_that_is_shown_again_while_it_ends(board: NotebookUpdater) -> None:
    """The new place shows the end as well, though the look at the old one has seen it already."""
    job, again = Job(), Handle()
    put(board, job)
    running = job.view()
    job.state = State.DONE

    class Late(Handle):
        def update(self, obj: Any, **options: Any) -> None:
            super().update(obj, **options)
            board.add(job, again, running)

    def is_done() -> bool:
        board.settle()
        return board._thread is None

    board.add(job, Late(), running)
    wait_for(is_done, TIMEOUT, "the thread is still there")

    assert "done" in again.shown[-1]


def test_one_thread_for_all(board: NotebookUpdater) -> None:
    """However many jobs are shown; each until its own end."""
    jobs = [Job(f"job{number}") for number in range(20)]
    handles = [put(board, job) for job in jobs]
    count = sum(thread.name == "hpc-launch-display" for thread in threading.enumerate())
    jobs[3].state = State.DONE
    board.settle()
    wait_for(lambda: "done" in handles[3].shown[-1], TIMEOUT, "the end is not shown")
    board.settle()
    ended = len(handles[3].shown)
    for job in jobs:
        job.state = State.STOPPED
    board.settle()
    wait_for(lambda: board._thread is None, TIMEOUT, "the thread is still there")

    assert count == 1
    assert len(handles[3].shown) == ended
    assert all("stopped" in handle.shown[-1] for handle in handles[4:])


def test_a_job_that_cannot_be_seen(board: NotebookUpdater) -> None:
    """It is said so where the job is shown, and others are shown as ever."""
    job, other = Job(), Job("other")
    handle, untouched = put(board, job), put(board, other)
    board.settle()
    job.broken = "Stale file handle"
    board.settle()
    wait_for(lambda: job.broken in handle.shown[-1], TIMEOUT, "it is not said")
    said = handle.shown[-1]
    job.broken = ""
    job.state = other.state = State.DONE
    board.settle()
    wait_for(lambda: board._thread is None, TIMEOUT, "the thread is still there")

    assert said.startswith("train (job 4711): running, ")
    assert said.endswith(": Stale file handle")
    assert (handle.shown[-1], untouched.shown[-1]) == ("train (job 4711): done", "other (job 4711): done")


@pytest.mark.parametrize("error", [OSError("comm closed"), RuntimeError("no kernel"), ValueError("closed file")])
def test_a_closed_place_ends_no_display(board: NotebookUpdater, error: Exception) -> None:
    """Others go on, the job can be shown in a new place, and in the old one when that is there again."""
    job, other = Job(), Job("other")
    closed, open_ = put(board, job), put(board, other)
    board.settle()
    wait_for(lambda: closed.shown and open_.shown, TIMEOUT, "nothing is shown")
    closed.error = error
    before = len(closed.shown)
    board.settle()
    board.settle()
    shown = len(open_.shown)
    assert board.handle(other) is open_
    assert board.handle(job) is None, "a new place is made for it"
    again = put(board, job)
    later = put(board, Job("later"))
    board.settle()
    wait_for(lambda: again.shown and later.shown, TIMEOUT, "what is shown anew is not kept up to date")
    board.settle()
    more = len(open_.shown)
    job.state = other.state = State.DONE
    board.settle()
    wait_for(lambda: "done" in again.shown[-1] and "done" in open_.shown[-1], TIMEOUT, "the ends are not shown")

    assert (more > shown, len(closed.shown)) == (True, before)


def test_a_place_that_is_back_shows_the_end(board: NotebookUpdater) -> None:
    """A place that failed for a moment is not given up."""
    job = Job()
    handle = put(board, job)
    wait_for(lambda: handle.shown, TIMEOUT, "nothing is shown")
    handle.error = OSError("busy")
    board.settle()
    handle.error = None
    job.state = State.DONE
    board.settle()
    wait_for(lambda: board._thread is None, TIMEOUT, "the thread is still there")

    assert handle.shown[-1] == "train (job 4711): done"


def test_a_thread_that_is_gone_is_replaced(board: NotebookUpdater) -> None:
    """As in a process that was forked while a job was shown."""
    gone = threading.Thread(target=int)
    gone.start()
    gone.join()
    board._thread = gone
    handle = put(board, Job())

    wait_for(lambda: handle.shown, TIMEOUT, "nothing is shown")


def test_a_cell_does_not_wait_for_a_slow_file_system(board: NotebookUpdater, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settling gives up after its time."""
    monkeypatch.setattr("hpc_launch.api.notebook_display._SETTLE_S", 0.01)
    job = Job()
    handle = put(board, job)
    wait_for(lambda: handle.shown, TIMEOUT, "nothing is shown")
    job.gate.clear()
    board.settle()
    shown = len(handle.shown)
    job.state = State.DONE
    job.gate.set()
    wait_for(lambda: board._thread is None, TIMEOUT, "the thread is still there")

    assert (shown, "done" in handle.shown[-1]) == (1, True)


def test_settling_where_nothing_is_shown(board: NotebookUpdater) -> None:
    """It costs nothing."""
    board.settle("the result of a cell")

    assert board._thread is None


def test_in_a_terminal_it_is_printed_once(python: str) -> None:
    """IPython's terminal cannot show anything anew: there is no thread, and no second print."""
    program = """
import threading
from hpc_launch.api import notebook_display
from hpc_launch.api.job_view import JobView, ViewSubject
from hpc_launch.inspection.job_state import JobState, State

class Job:
    def view(self):
        return JobView(ViewSubject("train", "4711", "Slurm"), 0.0, JobState(State.RUNNING, "running"))
    def _ipython_display_(self):
        notebook_display.display_job(self)

from IPython.display import display as show
show(Job())
print([thread.name for thread in threading.enumerate() if "display" in thread.name])
"""
    command = [python, "-m", "IPython", "--no-banner", "--quick", "--HistoryManager.enabled=False", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)

    assert done.stdout == "train (job 4711): running, starting\n[]\n"


def test_a_notebook_can_choose() -> None:
    """There are both forms, of the same view."""
    forms = bundle(Job().view())

    assert forms["text/plain"] == "train (job 4711): running, starting"
    assert forms["text/html"].startswith("<div ")
