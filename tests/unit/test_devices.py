"""The devices of a process: its masks, else what the driver's files show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from hpc_launch.node.devices import Devices, find_devices

CUDA, ROCR, HIP, ZE = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"
MIG = "MIG-9a5e1b2c-0000-0000-0000-000000000001"
GPU = "GPU-8f2a3b4c-0000-0000-0000-000000000002"


def nvidia(root: Path, *, gpus: int) -> Path:
    """Make the device files of NVIDIA's driver."""
    (root / "dev/nvidia-caps").mkdir(parents=True)
    for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", *(f"nvidia{n}" for n in range(gpus))):
        (root / "dev" / name).touch()
    return root


def amd(root: Path, *, gpus: int) -> Path:
    """Make the device file and the topology of AMD's driver: two CPUs come first."""
    (root / "dev").mkdir(parents=True)
    (root / "dev/kfd").touch()
    for number in range(2 + gpus):
        node = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
        node.mkdir(parents=True)
        simds = 0 if number < 2 else 304
        (node / "properties").write_text(
            f"cpu_cores_count {0 if simds else 64}\nsimd_count {simds}\nmem_banks_count 1\n"
        )
    return root


def bare(root: Path, *, gpus: int) -> Path:
    """Make a node without any accelerator."""
    del gpus
    (root / "dev").mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (bare, Devices()),
        (nvidia, Devices(("0", "1", "2", "3"), CUDA, "NVIDIA driver")),
        (amd, Devices(("0", "1", "2", "3"), HIP, "AMD driver")),
    ],
)
def test_without_masks_the_driver_counts(node: Callable[..., Path], expected: Devices, tmp_path: Path) -> None:
    """Device files are counted, those for control left out, and CPUs in AMD's topology are no devices."""
    assert expected == find_devices({}, node(tmp_path, gpus=4))


@pytest.mark.parametrize("node", [nvidia, amd])
def test_a_driver_without_devices(node: Callable[..., Path], tmp_path: Path) -> None:
    """A driver whose devices the cgroup hides counts none."""
    assert Devices() == find_devices({}, node(tmp_path, gpus=0))


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("0,1,2,3", ("0", "1", "2", "3")),
        ("6,4", ("6", "4")),
        (f" {GPU} , 1 ", (GPU, "1")),
        (f"{MIG},MIG-GPU-8f2a/1/0", (MIG, "MIG-GPU-8f2a/1/0")),
        ("0,1,-1,2", ("0", "1")),
        ("-1", ()),
        ("", ()),
        ("NoDevFiles", ()),
    ],
)
@pytest.mark.parametrize("node", [bare, nvidia])
def test_the_mask_of_cuda(node: Callable[..., Path], mask: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    """The mask is believed, in its order; -1 ends it and an empty one hides all devices."""
    assert Devices(expected, CUDA, f"{CUDA}={mask}") == find_devices({CUDA: mask}, node(tmp_path, gpus=8))


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({ZE: "0,1"}, ZE),
        ({ROCR: "0,1"}, ROCR),
        ({HIP: "0,1"}, HIP),
        ({CUDA: "0,1", ROCR: "0,1", ZE: "0,1"}, CUDA),
    ],
)
def test_masks_without_a_driver(environ: Mapping[str, str], variable: str, tmp_path: Path) -> None:
    """Where no device file tells the maker, the mask that is there does."""
    assert Devices(("0", "1"), variable, f"{variable}=0,1") == find_devices(environ, bare(tmp_path, gpus=0))


def test_an_intel_node_ignores_the_masks_of_other_makers(tmp_path: Path) -> None:
    """Slurm sets all masks there too; the kernel shows render nodes and no file of another maker."""
    (tmp_path / "dev/dri").mkdir(parents=True)

    assert find_devices({CUDA: "0,1", ROCR: "0,1", ZE: "0,1"}, tmp_path) == Devices(("0", "1"), ZE, f"{ZE}=0,1")


def test_an_nvidia_node_ignores_the_masks_of_other_makers(tmp_path: Path) -> None:
    """Slurm sets all masks where gres.conf does not say the maker."""
    assert Devices(("0", "1"), CUDA, "NVIDIA driver") == find_devices({ROCR: "0", ZE: "0"}, nvidia(tmp_path, gpus=2))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({ROCR: "2,3"}, Devices(("2", "3"), ROCR, f"{ROCR}=2,3")),
        ({HIP: "2,3"}, Devices(("2", "3"), HIP, f"{HIP}=2,3")),
        ({CUDA: "2,3"}, Devices(("2", "3"), CUDA, f"{CUDA}=2,3")),
        ({HIP: "1", CUDA: "0,1"}, Devices(("1",), HIP, f"{HIP}=1")),
        # HIP counts within what ROCR leaves: a number past its end ends the list.
        ({ROCR: "0,1", CUDA: "0,1"}, Devices(("0", "1"), CUDA, f"{CUDA}=0,1")),
        ({ROCR: "4,5", HIP: "1,0"}, Devices(("1", "0"), HIP, f"{HIP}=1,0")),
        ({ROCR: "1", CUDA: "1"}, Devices((), CUDA, f"{CUDA}=1")),
        ({ROCR: "4,5", CUDA: "0,4,1"}, Devices(("0",), CUDA, f"{CUDA}=0,4,1")),
        ({ROCR: "", CUDA: "0"}, Devices((), CUDA, f"{CUDA}=0")),
        ({HIP: "0,9,1"}, Devices(("0",), HIP, f"{HIP}=0,9,1")),
    ],
)
def test_the_two_masks_of_amd(environ: Mapping[str, str], expected: Devices, tmp_path: Path) -> None:
    """What ROCR_VISIBLE_DEVICES leaves is numbered anew, and filtered again by HIP's or CUDA's mask."""
    assert expected == find_devices(environ, amd(tmp_path, gpus=8))


@pytest.mark.parametrize(("mask", "expected"), [("0,1", False), (GPU, False), (MIG, True), ("", False)])
def test_mig_devices_are_used_one_per_process(mask: str, *, expected: bool, tmp_path: Path) -> None:
    """CUDA shows one MIG device to a process, so that each worker needs a mask of its own."""
    assert expected is find_devices({CUDA: mask}, bare(tmp_path, gpus=0)).exclusive


@given(
    tokens=st.lists(st.integers(0, 15).map(str) | st.just(GPU) | st.just(MIG), unique=True),
    rest=st.sampled_from(["", ",-1", ",-1,3", ",NoDevFiles", ","]),
)
def test_the_tokens_of_a_mask_are_a_mask_again(tokens: list[str], rest: str) -> None:
    """What is found can be written into the mask for a worker, and is then found again."""
    found = find_devices({CUDA: ",".join(tokens) + rest}, Path("/nonexistent"))

    assert tuple(tokens) == found.tokens
    assert found.tokens == find_devices({CUDA: ",".join(found.tokens)}, Path("/nonexistent")).tokens
    assert len(tokens) == len(found)
