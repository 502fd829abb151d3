"""The kernel's log, as far as it may be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpc_launch.node.kernel_log import KernelLog

KMSG = Path("/dev/kmsg")


def test_what_was_said_since(tmp_path: Path) -> None:
    """Only what comes after the beginning counts, and each record once."""
    file = tmp_path / "kmsg"
    file.write_text("6,1,100,-;before\n")
    log = KernelLog(file)
    assert log.said() == ()
    with file.open("a") as stream:
        stream.write("3,2,200,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=7; gone\n SUBSYSTEM=pci\n")

    assert log.said() == log.said() == ("NVRM: Xid (PCI:0000:3b:00): 79, pid=7; gone",)
    log.close()
    assert log.said() == ("NVRM: Xid (PCI:0000:3b:00): 79, pid=7; gone",)


def test_a_log_that_may_not_be_read(tmp_path: Path) -> None:
    """It has nothing, and is no error."""
    log = KernelLog(tmp_path / "nothing")

    assert log.said() == ()
    log.close()


@pytest.mark.skipif(not os.access(KMSG, os.W_OK), reason="needs a kernel's log that can be written")
def test_the_kernels_own() -> None:
    """What is written to it is read from it, and reading does not wait for more."""
    log = KernelLog()
    KMSG.write_text(f"hpc-launch test {os.getpid()}\n")

    assert f"hpc-launch test {os.getpid()}" in log.said()
    log.close()
