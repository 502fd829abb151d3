"""Look at the node that this is: versions, address, directories, CPUs. Without torch."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_launch import __version__
from hpc_launch.check.evidence import CheckedDirectory, NodeFacts
from hpc_launch.errors import HpcLaunchError, reason
from hpc_launch.node import network
from hpc_launch.plan import derivation
from hpc_launch.plan.launch_context import gather_context
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.settings import Settings, resolve, settings_files

# What is written where it is to be seen whether one can: enough for a quota to be hit, and little for a file server.
_SAMPLE = 1 << 20


def plan_of(given: Mapping[str, Any], environ: Mapping[str, str], directory: Path) -> Plan:
    """What a run with these options would do on this node.

    Raises:
        HpcLaunchError: when it could not start.
    """
    profile = given.get("profile", "")
    settings = resolve(given, environ, settings_files.load_settings_files(environ, directory, profile).layers)
    wanted = bare(settings)
    return derivation.make_plan(wanted, gather_context(environ, wanted), ())


def bare(settings: Settings) -> Settings:
    """The settings without those about which nodes take part: these are the nodes of the step."""
    return dataclasses.replace(
        settings, nodes=None, nnodes=None, node_rank=None, hosts=None, hostfile=None, standalone=False, jobid=None
    )


def software() -> dict[str, str]:
    """Versions of what has to be the same on all nodes; torch says its own once it is imported."""
    return {"Python": platform.python_version(), "hpc-launch": __version__}


def torch_version() -> dict[str, str]:
    """The version of torch without importing it, by the name `torch`; nothing where it is not known.

    That of the package is another one: it lacks what the build is for (`+cu124`) where it comes from PyPI.
    """
    found = importlib.util.find_spec("torch")
    try:
        text = Path(found.origin).with_name("version.py").read_text() if found and found.origin else ""
    except OSError:
        return {}
    match = re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE)
    return {"torch": match[1]} if match else {}


def collect_facts(
    plan: Plan | HpcLaunchError, environ: Mapping[str, str], port: int | None, doing: Callable[[str], None]
) -> NodeFacts:
    """Look at this node.

    Args:
        plan: what a run would do here, or why it could not.
        environ: the environment.
        port: where this node listens.
        doing: is told what is about to be done that might never end.
    """
    versions = software() | _driver()
    if isinstance(plan, HpcLaunchError):
        return NodeFacts(software=versions, problem=str(plan), cpus=len(os.sched_getaffinity(0)))
    address, error = _address(plan)
    interface = network.interface_of(address, network.interfaces()) if address else ""
    return NodeFacts(
        software=versions,
        address=address,
        address_error=error,
        interface=interface,
        link=_link(interface),
        port=port,
        leaders=plan.leaders,
        cpus=len(os.sched_getaffinity(0)),
        ranks=plan.local_world_size,
        devices=len(plan.devices),
        source=plan.devices.source,
        directory=str(Path.cwd()),
        places=tuple(_places(plan, environ, doing)),
    )


def _address(plan: Plan) -> tuple[str, str]:
    """The address of this node for the others, as a run would choose it, or why there is none."""
    settings, world = plan.settings, plan.world
    try:
        found = network.asked_address(settings.local_addr, settings.interface, settings.places.get("interface", ""))
    except HpcLaunchError as error:
        return "", str(error)
    if found is not None and not network.is_local(found):
        return "", f"--local-addr {found} is no address of this node"
    found = found or network.derive_own_address(world.host, world.hosts, (world.host,))
    return (found, "") if found else ("", "no address by which other nodes could reach it: name one with --local-addr")


def _link(interface: str) -> str:
    try:
        return Path("/sys/class/net", interface, "operstate").read_text().strip() if interface else ""
    except OSError:
        return ""


def _driver() -> dict[str, str]:
    """The version of NVIDIA's kernel driver, where there is one."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return {}
    match = re.search(r"Kernel Module\D*([\d.]+)", text)
    return {"NVIDIA driver": match[1]} if match else {}


def _places(plan: Plan, environ: Mapping[str, str], doing: Callable[[str], None]) -> list[CheckedDirectory]:
    temporary = environ.get("TMPDIR") or tempfile.gettempdir()
    wanted: Sequence[tuple[str, Path]] = (
        ("log_dir", plan.log_root),
        ("TMPDIR", Path(temporary)),
        ("/dev/shm", Path("/dev/shm")),  # noqa: S108 - where torch's data loaders and NCCL put shared memory
    )
    found = []
    for name, path in wanted:
        doing(f"writing in {path}" + (f" ({name})" if name != str(path) else ""))
        # A run makes the log directory, a check leaves nothing behind.
        found.append(look_at(name, _existing(path) if name == "log_dir" else path))
    return found


def _existing(path: Path) -> Path:
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), path)


def look_at(name: str, path: Path) -> CheckedDirectory:
    """Write in a directory, and see how much is free there."""
    free = None
    try:
        status = os.statvfs(path)
        free = status.f_bavail * status.f_frsize
        with tempfile.TemporaryFile(dir=path, prefix=".hpc-launch-check-") as file:
            file.write(b"\0" * _SAMPLE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return CheckedDirectory(name, str(path), free, reason(error))
    return CheckedDirectory(name, str(path), free)
