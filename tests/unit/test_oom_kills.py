"""What the kernel has done about memory, read from trees of files like those that it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_launch.node import oom_kills
from hpc_launch.node.oom_kills import OomKillCounts

STEP = "slurm/uid_0/job_7/step_0"
V1 = {
    "proc/self/cgroup": f"5:devices:/{STEP}\n4:memory:/{STEP}/task_0\n0::/\n",
    "proc/self/mountinfo": "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
    "proc/vmstat": "nr_free_pages 1\noom_kill 4\n",
    f"sys/fs/cgroup/memory/{STEP}/task_0/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    f"sys/fs/cgroup/memory/{STEP}/task_0/memory.limit_in_bytes": "9223372036854771712\n",
    f"sys/fs/cgroup/memory/{STEP}/memory.limit_in_bytes": "1073741824\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
}
SCOPE = "system.slice/slurmstepd.scope/job_7"
V2 = {
    "proc/self/cgroup": f"0::/{SCOPE}/step_0/user/task_0\n",
    "proc/self/mountinfo": "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
    f"sys/fs/cgroup/{SCOPE}/step_0/user/task_0/memory.events": "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n",
    f"sys/fs/cgroup/{SCOPE}/step_0/user/task_0/memory.max": "max\n",
    f"sys/fs/cgroup/{SCOPE}/memory.events": "low 0\noom_kill 3\noom_group_kill 0\n",
    f"sys/fs/cgroup/{SCOPE}/memory.max": "2147483648\n",
}
CONTAINER = {
    "proc/self/cgroup": "0::/docker/abc/inner\n",
    "proc/self/mountinfo": "30 25 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
    "sys/fs/cgroup/inner/memory.events": "oom_kill 0\n",
    "sys/fs/cgroup/memory.max": "4096\n",
}


def tree(root: Path, files: dict[str, str]) -> Path:
    """Make files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "kills", "limit"),
    [
        (V1, OomKillCounts(2, 4), 1 << 30),
        (V2, OomKillCounts(3, None), 2 << 30),
        (CONTAINER, OomKillCounts(0, None), 4096),
        ({}, OomKillCounts(None, None), None),
        ({"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": "broken\n"}, OomKillCounts(None, None), None),
    ],
)
def test_kills_and_limit(tmp_path: Path, files: dict[str, str], kills: OomKillCounts, limit: int | None) -> None:
    """The counters of either version of cgroups, and the lowest limit above this process."""
    root = tree(tmp_path, files)

    assert (oom_kills.count_oom_kills(root), oom_kills.limit(root)) == (kills, limit)


def test_this_machine() -> None:
    """What there is here can be read."""
    found, limit = oom_kills.count_oom_kills(), oom_kills.limit()

    assert (found.node or 0) >= 0
    assert limit is None or limit > 0
