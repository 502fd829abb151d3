"""What a process of training knows, from its first call to its end."""

from __future__ import annotations

import atexit
import os

from hpc_launch.runtime import stop_agreement, worker_variables
from hpc_launch.runtime.end_time import EndTime
from hpc_launch.runtime.notices import NoticeHandler
from hpc_launch.runtime.progress_writer import ProgressWriter
from hpc_launch.runtime.stop_agreement import Agreement


class WorkerProcess:
    """What this process knows; a process that it forks begins anew."""

    def __init__(self) -> None:
        self._arranged = False
        self._begin()

    def _begin(self) -> None:
        self.notices = NoticeHandler()
        self.end_time = EndTime()
        self.progress = ProgressWriter()
        self.stopped = False
        self._agreement: Agreement | None = None
        self._serves = 0

    def arrange(self) -> None:
        """Be called at forks and at the end, from the first time on that there is something to do."""
        if not self._arranged:
            self._arranged = True
            os.register_at_fork(after_in_child=self._forked)
            atexit.register(self._end)

    def watch(self) -> NoticeHandler:
        """The notices, with handlers."""
        self.arrange()
        self.notices.install()
        return self.notices

    def agreement(self) -> Agreement:
        """The agreement with the other ranks."""
        if self._agreement is None:
            served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            rank = worker_variables.number_variable("RANK", 0)
            leads = rank == 0
            store = stop_agreement.open_store(serve=leads and not served)
            self._agreement = Agreement(store, rank, confirm=not served)
            self._serves = worker_variables.number_variable("WORLD_SIZE", 1) - 1 if leads and not served else 0
        return self._agreement

    def _forked(self) -> None:
        self.notices.inherit()
        self._begin()

    def _end(self) -> None:
        self.progress.flush()
        if self._agreement is not None:
            self._agreement.linger(self._serves)
