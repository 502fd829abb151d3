"""A job in a Jupyter notebook: its view, which a thread keeps up to date until the job has ended."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any, Protocol

from hpc_launch.api import job_html, job_text
from hpc_launch.api.job_view import JobView

# Seconds between two looks at the jobs that are shown; longer where a look takes long, so many times, but not for ever.
_PAUSE_S = 2.0
_PATIENCE = 10
_LONGEST_S = 15.0

# Seconds that a cell may take longer for what is shown to be true at its end.
_SETTLE_S = 1.0


class ViewedJob(Protocol):
    """What can be shown: a job. `view` may be called in any thread."""

    def view(self) -> JobView:
        """How it is doing now."""


class DisplayHandle(Protocol):
    """What IPython returns for something that it shows."""

    display_id: str

    def update(self, obj: Any, **options: Any) -> None:
        """Show something else in its place, wherever it is shown."""


def bundle(view: JobView) -> dict[str, str]:
    """A view in the forms that a notebook can choose from."""
    return {"text/plain": job_text.render_job_text(view), "text/html": job_html.render_job_html(view)}


def display_job(job: ViewedJob) -> None:
    """Show a job in IPython: in a notebook it is kept up to date, in a terminal it is printed once."""
    # Nobody else has a reason to import IPython: this is called by it.
    from IPython.core.getipython import get_ipython  # noqa: PLC0415
    from IPython.display import display  # noqa: PLC0415

    shell: Any = get_ipython()
    view = job.view()
    known = _board.handle(job)
    display_id = True if known is None else known.display_id
    handle: DisplayHandle | None = display(bundle(view), raw=True, display_id=display_id)  # type: ignore[no-untyped-call]
    if not view.standing.over and known is None and handle is not None and getattr(shell, "kernel", None) is not None:
        _board.hook(shell)
        _board.add(job, handle, view)


@dataclasses.dataclass
class _Shown:
    """A job that is shown, where, as it was seen last, and whether the place is lost where it was shown."""

    job: ViewedJob
    handle: DisplayHandle
    view: JobView
    lost: bool = False

    def refresh(self) -> bool:
        """Look again, and show it; whether there is more to come.

        What it is shown in may have been closed (a comm, a widget, the kernel's socket): then it is looked at all the
        same, and shown again if that comes back.
        """
        try:
            self.view = self.job.view()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not to end the thread of all others
            self.view = dataclasses.replace(self.view, note=f"it cannot be seen: {error}", now=time.time())
        try:
            self.handle.update(bundle(self.view), raw=True)
            self.lost = False
        except Exception:  # noqa: BLE001 - as above; whoever has closed it knows
            self.lost = True
        return not self.view.standing.over


class NotebookUpdater:
    """The jobs that are shown and have not ended, with one thread for all of them.

    The thread looks at all, and then waits for some seconds, longer where a look takes long: a slow file system is
    asked seldom. It is there as long as there is something to do.
    """

    def __init__(self, pause: float = _PAUSE_S) -> None:
        self._pause = pause
        self._shown: dict[int, _Shown] = {}
        self._thread: threading.Thread | None = None
        self._turn = threading.Condition()
        self._asked = 0  # for looks, and how many of those have been answered
        self._answered = 0
        self._hooked: set[int] = set()

    def handle(self, job: ViewedJob) -> DisplayHandle | None:
        """Where a job is shown already; None where it is not, or where that was closed."""
        shown = self._shown.get(id(job))
        return None if shown is None or shown.lost else shown.handle

    def add(self, job: ViewedJob, handle: DisplayHandle, view: JobView) -> None:
        """Keep a job up to date from now on."""
        with self._turn:
            self._shown[id(job)] = _Shown(job, handle, view)
            if self._thread is None or not self._thread.is_alive():  # it is not, in a process that was forked
                self._thread = threading.Thread(target=self._run, name="hpc-launch-display", daemon=True)
                self._thread.start()

    def hook(self, shell: Any) -> None:
        """Have what is shown settled at the end of every cell."""
        if id(shell) not in self._hooked:
            self._hooked.add(id(shell))
            shell.events.register("post_run_cell", self.settle)

    def settle(self, *_: Any) -> None:
        """Wait, but not for long, until what is shown is as it is now.

        So after `job.results()` the job is shown as done, and in a notebook that is run as a program and saved too.
        """
        with self._turn:
            if self._thread is None:
                return
            self._asked += 1
            mine = self._asked
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._answered >= mine or self._thread is None, _SETTLE_S)

    def _run(self) -> None:
        while True:
            with self._turn:
                asked = self._asked
            began = time.monotonic()
            ended = {key: shown for key, shown in tuple(self._shown.items()) if not shown.refresh()}
            took = time.monotonic() - began
            with self._turn:
                for key, shown in ended.items():
                    if self._shown[key] is shown:  # else it was shown in a new place meanwhile
                        del self._shown[key]
                self._answered = asked
                if not self._shown:
                    self._thread = None
                self._turn.notify_all()
                if self._thread is None:
                    return
                self._turn.wait_for(
                    lambda: self._asked > self._answered, max(self._pause, min(_PATIENCE * took, _LONGEST_S))
                )


_board = NotebookUpdater()
