"""Which failures drain a node at once: those of a device or a machine, and none that a program can cause."""

from __future__ import annotations

import pytest

from hpc_launch.records import hardware_faults
from hpc_launch.records.history_model import Failure, RaisedException
from tests.unit.test_root_cause import worker

ECC = "uncorrectable ECC error encountered"


def fault(text: str = "", *gpu: str, code: int = 1) -> str:
    """What is found in an exception and lines about the device; the worker's process id is 1."""
    kind, _, message = text.partition(": ")
    raised = RaisedException(kind, message, "train.py:1", "hook", 1.0) if text else None
    return hardware_faults.evidence_of(worker(0, code, failure=Failure(raised, gpu=gpu)))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"torch.AcceleratorError: CUDA error: {ECC}\nCUDA kernel errors might be", ECC),
        (f"RuntimeError: HIP error: {ECC}", ECC),
        ("RuntimeError: CUDA error: uncorrectable NVLink error detected during the execution", "uncorrectable NVLink"),
        (
            "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
            "Error 802",
        ),
        ("pynvml.NVMLError_GpuIsLost: GPU is lost", "GPU is lost"),
        ("OSError: [Errno 5] Input/output error: '/data/shard-3'", "[Errno 5] Input/output error: '/data/shard-3'"),
        (
            "OSError: Caught OSError in DataLoader worker 0: [Errno 5] Input/output error",
            "[Errno 5] Input/output error",
        ),
    ],
)
def test_what_libraries_say_of_broken_hardware(text: str, shown: str) -> None:
    """The words of CUDA, HIP, NVML and the C library are enough."""
    assert fault(text).startswith(shown)


@pytest.mark.parametrize(
    "text",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "RuntimeError: CUDA error: device-side assert triggered",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "RuntimeError: CUDA error: unspecified launch failure",
        "RuntimeError: No CUDA GPUs are available",
        "ValueError: loss is nan",
        "RuntimeError: system not yet initialized: call setup() first",
        "OSError: [Errno 28] No space left on device",
        "OSError: [Errno 116] Stale file handle: '/data'",
        "RuntimeError: NCCL error: remote process exited or there was a network error",
        "AssertionError: uncorrectable ECC count: 0",
        "",
    ],
)
def test_what_a_program_can_cause_is_none(text: str) -> None:
    """Nor is what a program says of others, or of counters."""
    assert fault(text) == ""


BROKEN = [
    "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
    "NVRM: Xid (0000:3b:00): 48, pid=1, name=python, An uncorrectable double bit error (DBE) has been detected",
    "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
    "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 22003, Fatal, Link 46 Some Error",
    "amdgpu 0000:c3:00.0: amdgpu: 2 uncorrectable hardware errors detected in umc block",
    "amdgpu 0000:c3:00.0: amdgpu: device lost from bus!",
    "EDAC MC0: 1 UE memory read error on CPU_SrcID#0_Ha#0_Chan#1_DIMM#0",
]
OTHERWISE = [
    "NVRM: Xid (PCI:0000:3b:00): 13, pid=1, name=python, Graphics SM Warp Exception",
    "NVRM: Xid (PCI:0000:3b:00): 31, pid=1, name=python, MMU Fault",
    "NVRM: Xid (PCI:0000:3b:00): 109, pid=1, name=python, CTX SWITCH TIMEOUT",
    "NVRM: Xid (PCI:0000:3b:00): 63, pid=1, Row Remapper: New row marked for remapping, reset gpu to activate.",
    "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)",
    "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS crumbstore MCTO",
    "amdgpu 0000:c3:00.0: amdgpu: 2 correctable hardware errors detected in umc block",
    "amdgpu 0000:c3:00.0: amdgpu: no uncorrectable hardware errors detected in umc block",
    "amdgpu 0000:c3:00.0: amdgpu: 7 uncorrectable hardware errors detected in total in umc block",
    "amdgpu 0000:c3:00.0: amdgpu: GPU reset begin!",
    "EDAC MC0: 1 CE memory read error on CPU_SrcID#0",
    "mce: [Hardware Error]: Machine check events logged",
]


@pytest.mark.parametrize("line", BROKEN)
def test_what_the_kernel_says_of_broken_hardware(line: str) -> None:
    """It explains a worker that died, and one that speaks of its device; not one that failed for something else."""
    assert hardware_faults.by_kernel(line)
    assert (fault("", line, code=-6), fault("RuntimeError: CUDA error: unknown error", line)) == (line, line)
    assert fault("ValueError: loss is nan", line) == ""


@pytest.mark.parametrize("line", OTHERWISE)
def test_what_the_kernel_says_of_programs_and_of_what_was_mended(line: str) -> None:
    """Corrected errors, counters, resets after a program's error, and the errors of programs prove nothing."""
    assert fault("", line, code=-6) == ""


@pytest.mark.parametrize(
    "line",
    [
        "Memory failure: 0x1840200: Sending SIGBUS to python:{pid} due to hardware memory corruption",
        "MCE: Killing python:{pid} due to hardware memory corruption fault at 4631e000",
        "MCE 0x1840200: Killing python:{pid} early due to hardware memory corruption",
    ],
)
def test_a_process_that_dies_of_broken_memory(line: str) -> None:
    """The kernel names it; where it names another one, or this one did not die of it, it explains nothing."""
    mine = line.format(pid=1)

    assert [fault("", mine, code=-7), fault("", line.format(pid=12), code=-7), fault("", mine)] == [mine, "", ""]
