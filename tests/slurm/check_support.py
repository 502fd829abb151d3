"""What the tests of `hpc-launch check` share: nodes that are sick in one way, and checks of them.

What can be done to a node for real is done: to its cables, its routes, its slurmd, its mounts. The rest is a fake that
every Python of a node imports (sitecustomize), which looks up by the host's name what to pretend: a clock (there is no
namespace for CLOCK_REALTIME), another version of torch, a GPU that cannot be used, an import that hangs.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import Cluster, host
from tests.support import wait_for

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
        if "devices" in pretended:
            fake_devices(module, pretended["devices"], pretended.get("broken"))

def fake_devices(torch, count, broken):
    import torch.distributed as dist
    ones, full, begin = torch.ones, torch.full, dist.init_process_group
    def fake_ones(*shape, device):
        if device == f"cuda:{broken}":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered\\nCompile with TORCH_USE_CUDA_DSA")
        return ones(*shape)
    torch.ones = fake_ones
    torch.full = lambda shape, value, device: full(shape, value)
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: count
    torch.cuda.get_device_name = lambda where: "Fake GPU"
    torch.cuda.mem_get_info = lambda where: (80 << 30, 80 << 30)
    torch.cuda.set_device = lambda where: None
    dist.init_process_group = lambda backend, **more: begin("gloo", **more)

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = Loader(spec.loader)
        return spec

if set(pretended) - {"clock"}:
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
    job: Sequence[str] = (),
    nodes: Sequence[str] = (),
    pretend: Mapping[str, Mapping[str, Any]] | None = None,
    harm: Callable[[], object] = lambda: None,
) -> Checked:
    """Check the nodes of a fresh allocation, from its shell on the head.

    Args:
        cluster: Where.
        folder: Where the command runs.
        options: Of the check, beside --json.
        job: Options of the job.
        nodes: Which it has; all if none is named.
        pretend: What nodes are to pretend, by their names.
        harm: What is done to the nodes once the job has them.
    """
    ready, harmed = folder / "ready", folder / "harmed"
    script = (
        f"touch {ready}; until [ -e {harmed} ]; do sleep 0.05; done; exec hpc-launch check --json {shlex.join(options)}"
    )
    wanted = nodes or cluster.nodes
    which = [f"--nodelist={','.join(wanted)}", f"--nodes={len(wanted)}"]
    salloc = ["salloc", "--quiet", "--no-kill", *which, *job, "sh", "-c", script]
    environ = pretending(folder, pretend or {})
    with cluster.popen(salloc, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(lambda: ready.exists() or process.poll() is not None, DEADLINE, "no allocation")
        harm()
        harmed.touch()
        out, err = process.communicate(timeout=DEADLINE)
    assert out, err
    return Checked(process.returncode, out)


def pretending(folder: Path, pretend: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the variables by which nodes pretend."""
    place = folder / "pretend"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(PRETEND)
    (place / "pretended.json").write_text(json.dumps(pretend))
    return {"PYTHONPATH": f"{place}:{CHECKOUT}"}


@contextlib.contextmanager
def mounted(cluster: Cluster, node: str, path: Path, *options: str, undo: bool = True) -> Iterator[None]:
    """Mount something on one node only, where its slurmd and so its tasks see it."""
    slurmd = next(pid for pid in host.members(host.netns(cluster.name, node)) if host.command_name(pid) == "slurmd")
    there = ["nsenter", f"--mount=/proc/{slurmd}/ns/mnt", "--"]
    subprocess.run([*there, "mount", *options, str(path)], check=True)
    try:
        yield
    finally:
        if undo:
            subprocess.run([*there, "umount", str(path)], check=True)


@contextlib.contextmanager
def unreachable(cluster: Cluster, node: str, *addresses: str) -> Iterator[None]:
    """Let a node have no way to some addresses."""
    namespace = host.netns(cluster.name, node)
    host.configure(namespace, [f"route add unreachable {address}" for address in addresses])
    try:
        yield
    finally:
        host.configure(namespace, [f"route del unreachable {address}" for address in addresses])
