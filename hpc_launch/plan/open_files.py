"""How many files each worker may have open (RLIMIT_NOFILE of getrlimit(2)). Pure."""

from __future__ import annotations

from hpc_launch.node.limits import UNLIMITED
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.settings import Settings

# NCCL has several connections to each rank that it talks to, and fails where there are no descriptors for them. Some
# programs close all descriptors up to the limit, one by one, so the limit is not as high as it could be.
ENOUGH = 65_536


def open_files(settings: Settings, here: LaunchContext) -> tuple[int, str]:
    """The soft limit of the workers (`UNLIMITED` for none), and who said so. It is never above the hard limit."""
    soft, hard = here.open_files
    asked, origin = settings.open_files, settings.origin("open_files").value
    if isinstance(asked, int):
        limit = _within(asked, hard)
        return limit, origin if limit == asked else f"hard limit, below {asked} ({origin})"
    if asked == "keep" or soft == UNLIMITED or soft >= ENOUGH:
        return soft, "soft limit"
    limit = max(soft, _within(ENOUGH, hard))
    return limit, origin if limit == ENOUGH else "hard limit"


def _within(wanted: int, hard: int) -> int:
    return wanted if hard == UNLIMITED else min(wanted, hard)
