"""How nodes stand, by what scontrol of Slurm 22.05.8 and 24.11.5 printed."""

from __future__ import annotations

import time

import pytest

from hpc_launch.slurm import nodes
from hpc_launch.slurm.nodes import NodeRecord

UP = (
    "NodeName=gpu001 Arch=x86_64 CoresPerSocket=1  CPUAlloc=1 CPUEfctv=16 CPUTot=16 CPULoad=4.82 "
    "AvailableFeatures=(null) ActiveFeatures=(null) Gres=gpu:4 NodeAddr=10.77.0.11 NodeHostName=gpu001 Version=22.05.8 "
    "OS=Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0  RealMemory=4000 AllocMem=0 FreeMem=19895 Sockets=16 Boards=1 "
    "State=MIXED ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=main,urgent  "
    "BootTime=2026-11-26T06:25:27 SlurmdStartTime=2026-11-26T06:32:17 LastBusyTime=2026-11-26T06:57:19 "
    "CfgTRES=cpu=16,mem=4000M,billing=16 AllocTRES=cpu=1 CapWatts=n/a CurrentWatts=0 AveWatts=0\n"
)


def local(clock: str) -> float:
    """Return a moment of the day of the records."""
    return time.mktime(time.strptime(f"2026-11-26 {clock}", "%Y-%m-%d %H:%M:%S"))


def printed(state: str, reason: str = "") -> str:
    """Return the record with another state, and a reason."""
    return UP.replace("State=MIXED", f"State={state}").rstrip("\n") + (f"  Reason={reason}" if reason else "") + "\n"


def test_a_node_that_is_up_and_one_that_is_down() -> None:
    """Several are asked for at once; the reason has the time since when it holds, and may say anything."""
    down = printed("DOWN+NOT_RESPONDING", "Not responding [root@2026-11-26T06:58:53]").replace("gpu001", "gpu002")
    odd = printed("IDLE+DRAIN", "bad [fan] State=UP, see [a@b] [root@2026-11-26T06:59:42] Comment=none")
    found = nodes.read_nodes(UP + down + odd + "Node nosuch not found\n")

    assert found == (
        NodeRecord("gpu001", "MIXED", booted=local("06:25:27"), gpus=4),
        NodeRecord("gpu002", "DOWN+NOT_RESPONDING", "Not responding", local("06:58:53"), local("06:25:27"), 4),
        NodeRecord("gpu001", "IDLE+DRAIN", "bad [fan] State=UP, see [a@b]", local("06:59:42"), local("06:25:27"), 4),
    )
    assert [record.gone for record in found] == [False, True, True]


@pytest.mark.parametrize(
    ("state", "read", "gone"),
    [
        ("ALLOCATED", "ALLOCATED", False),
        ("MIXED+NOT_RESPONDING", "MIXED+NOT_RESPONDING", True),
        ("DOWN*", "DOWN+NOT_RESPONDING", True),
        ("IDLE*+DRAIN", "IDLE+NOT_RESPONDING+DRAIN", True),
        ("IDLE~", "IDLE", False),
        ("IDLE+POWERED_DOWN", "IDLE+POWERED_DOWN", True),
        ("MIXED+REBOOT_ISSUED", "MIXED+REBOOT_ISSUED", True),
        ("MIXED-", "MIXED", False),
    ],
)
def test_states_of_all_releases(state: str, read: str, gone: bool) -> None:
    """Older ones write some of it as signs behind the state."""
    (record,) = nodes.read_nodes(printed(state))

    assert (record.state, record.gone) == (read, gone)


def test_what_is_no_record() -> None:
    """A node that nobody knows, and nothing at all."""
    assert nodes.read_nodes("Node nosuch not found\n") == nodes.read_nodes("") == ()
