"""Which failures are the device's fault or the node's, and not the program's. Pure.

Whoever drains a node for them must not do so for a mistake in a script, so this is a list of what counts, and not of
what does not. An out-of-memory, an assert, an illegal memory access or a context switch timeout are not on it: programs
cause them. The sources:

- the Xid catalog (docs.nvidia.com/deploy/xid-errors): those for which it wants the GPU reset or the node restarted, or
  that tell of memory errors which were not corrected, unless a program can cause them (46, 109) or they are what
  other ones' trouble looks like on this node (NVLink from 144 on). Xid 154 says in words what the driver wants;
- the errors of the CUDA runtime (cudaError_t) that no program can cause: 214, 220, 802;
- the drivers' own words for devices that are gone (NVRM, NVML, amdgpu), and amdgpu's and EDAC's for errors in memory
  which were not corrected;
- mm/memory-failure.c and the fault handlers of Linux, when a process dies of broken memory;
- errno 5 (EIO): a disk or a mount that cannot be read or written.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable

from hpc_launch.records.history_model import Failure, Worker

# Lines in which libraries speak of trouble with a device, whoever has caused it.
DEVICE = re.compile(
    r"CUDA error|CUDA driver error|device-side assert|cuBLAS|CUBLAS_STATUS|cuDNN error|CUDNN_STATUS|HIP error|"
    r"NCCL (?:error|WARN|failure)|ncclInternalError|ncclSystemError|\bXid\b|uncorrectable ECC|Level Zero error"
)

# Lines in which the kernel's drivers do.
_DRIVER = re.compile(r"NVRM: Xid|amdgpu.*(?:fault|reset|RAS|ring .* timeout)|GPU HANG")

_XIDS = (48, 62, 64, 74, 79, 94, 95, 119, 120, 140, 143, 158, 171, 172)

# What the kernel says of hardware that is broken.
_BROKEN = re.compile(
    rf"NVRM: Xid \([^)]*\): (?:{'|'.join(map(str, _XIDS))}),"
    r"|NVRM: Xid \([^)]*\): 154, .* to \S+ \([^)]*(?:Reset|Reboot)"
    r"|SXid \([^)]*\): \d+, Fatal"
    r"|amdgpu.*\b[1-9]\d* (?:new )?uncorrectable hardware errors detected in (?!total)"
    r"|amdgpu.*device lost from bus"
    r"|EDAC \w+: [1-9]\d* UE "
)

# The kernel's word of a process that dies of broken memory: `Sending SIGBUS to python:1234 due to ...`.
_CORRUPTED = re.compile(r":(?P<pid>\d+) (?:early )?due to hardware memory corruption")

# What libraries say in the worker of a device that is broken or gone.
_SAID = re.compile(
    r"uncorrectable ECC error encountered|uncorrectable NVLink error detected|GPU is lost|fallen off the bus"
    r"|(?:CUDA error: |Error 802: |Cuda failure.*')system not yet initialized"
)

_INPUT_OUTPUT = re.compile(r"\[Errno 5\] Input/output error.*")


def broken_hardware(line: str) -> bool:
    """Whether the kernel speaks of hardware that is broken."""
    return bool(_BROKEN.search(line) or _CORRUPTED.search(line))


def by_kernel(line: str) -> bool:
    """Whether the kernel speaks of a device, or of hardware that is broken."""
    return bool(_DRIVER.search(line)) or broken_hardware(line)


def evidence_of(worker: Worker) -> str:
    """What shows that a worker failed for a fault of its device or its node; empty if nothing does."""
    failure = worker.failure or Failure()
    raised = failure.exception
    words = f"{raised.type}: {raised.message}" if raised is not None else ""
    corrupted = [
        line
        for line in failure.gpu
        if worker.exitcode == -signal.SIGBUS and (found := _CORRUPTED.search(line)) and int(found["pid"]) == worker.pid
    ]
    # A program that fails by itself does so also beside another's device that is broken.
    kernel = [line for line in failure.gpu if _BROKEN.search(line)] if not words or DEVICE.search(words) else []
    own = [words, *(line for line in failure.gpu if not by_kernel(line))]
    said = [found[0] for line in own if (found := _SAID.search(line))]
    return next(iter([*corrupted, *kernel, *said, *_INPUT_OUTPUT.findall(words)]), "")


def evidence_of_any(workers: Iterable[Worker]) -> str:
    """The same of several workers of one node."""
    return next(filter(None, map(evidence_of, workers)), "")
