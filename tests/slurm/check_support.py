"""What the tests of `hpc-launch check` share: nodes that are sick in one way, and checks of them.

What can be done to a node for real is done: its cables, its slurmd, its mounts. The rest is a fake that every Python of a
node imports (sitecustomize), which looks up by the host's name what to pretend: a clock (there is no namespace for
CLOCK_REALTIME), another version of torch, a GPU that cannot be used, an import that hangs.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import Cluster, host

CHECKOUT = Path(__file__).parents[2]

# As in jobs_support.
DEADLINE = 240.0

PRETEND = """
import importlib.abc, importlib.machinery, json, pathlib, socket, sys, time

pretended = json.loads(pathlib.Path(__file__).with_name("pretended.json").read_text()).get(socket.gethostname(), {})

class Loader(importlib.abc.Loader):
    def __init__(self, real):
        self.real = real

    def create_module(self, spec):
        return self.real.create_module(spec)

    def exec_module(self, module):
        if "no torch" in pretended:
            raise ImportError(pretended["no torch"])
        if "hang" in pretended:
            time.sleep(600)
        self.real.exec_module(module)
        if "version" in pretended:
            module.__version__ = pretended["version"]
        if "broken device" in pretended:
            fake_devices(module, pretended["broken device"])
        if "no gloo" in pretended:
            fake_reductions(module, pretended["no gloo"])

def fake_devices(torch, broken):
    ones = torch.ones
    def fake(*shape, device):
        if device == f"cuda:{broken}":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered\\nCompile with TORCH_USE_CUDA_DSA")
        return ones(*shape)
    torch.ones = fake
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 4
    torch.cuda.get_device_name = lambda where: "Fake GPU"
    torch.cuda.mem_get_info = lambda where: (80 << 30, 80 << 30)

def fake_reductions(torch, ranks):
    import torch.distributed as dist
    whole = dist.all_reduce
    def fake(*arguments):
        names = set(dist.distributed_c10d._get_default_store().get("names").decode().split())
        raise RuntimeError("Connection closed by peer") if set(ranks) & names else whole(*arguments)
    dist.all_reduce = fake

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = Loader(spec.loader)
        return spec

if set(pretended) & {"version", "no torch", "hang", "broken device", "no gloo"}:
    sys.meta_path.insert(0, Finder())
if "clock" in pretended:
    real_time = time.time
    time.time = lambda: real_time() + pretended["clock"]
"""


@dataclass(frozen=True)
class Checked:
    """A check that has ended.

    Attributes:
        status: its exit status.
        output: what it said.
    """

    status: int
    output: str

    @property
    def report(self) -> dict[str, Any]:
        """What --json says."""
        report: dict[str, Any] = json.loads(self.output)
        return report

    @property
    def findings(self) -> dict[str, list[str]]:
        """The messages by node."""
        found: dict[str, list[str]] = {}
        for finding in self.report["findings"]:
            for node in finding["nodes"]:
                found.setdefault(node, []).append(finding["message"])
        return found


def check(
    cluster: Cluster,
    folder: Path,
    *options: str,
    job: tuple[str, ...] = (),
    pretend: Mapping[str, Mapping[str, Any]] | None = None,
) -> Checked:
    """Check the nodes of a fresh allocation, from its shell on the head.

    Args:
        cluster: Where.
        folder: Where the command runs.
        options: Of the check, beside --json.
        job: Options of the job.
        pretend: What nodes are to pretend, by their names.
    """
    command = ["salloc", "--quiet", "--no-kill", "--nodes=4", *job, "hpc-launch", "check", "--json", *options]
    done = cluster.run(command, cwd=folder, env=pretending(folder, pretend or {}), check=False, timeout=DEADLINE)
    assert done.stdout, done.stderr
    return Checked(done.returncode, done.stdout)


def pretending(folder: Path, pretend: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the variables by which nodes pretend."""
    place = folder / "pretend"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(PRETEND)
    (place / "pretended.json").write_text(json.dumps(pretend))
    return {"PYTHONPATH": f"{place}:{CHECKOUT}"}


@contextlib.contextmanager
def mounted(cluster: Cluster, node: str, path: Path, *options: str) -> Iterator[None]:
    """Mount something on one node only, where its slurmd and so its tasks see it."""
    slurmd = next(
        pid for pid in host.members(host.netns(cluster.name, node)) if host.command_name(pid) == "slurmd"
    )
    there = ["nsenter", f"--mount=/proc/{slurmd}/ns/mnt", "--"]
    subprocess.run([*there, "mount", *options, str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run([*there, "umount", str(path)], check=True)
