"""What a probe can be asked to do; each task takes a value and answers with one."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpc_launch.check import node_facts, torch_checks
from hpc_launch.check.evidence import Attempts, NodeFacts, TorchFacts
from hpc_launch.check.reachability import Answerer, try_to_reach
from hpc_launch.check.torch_checks import Ranks, ReductionGroup
from hpc_launch.errors import HpcLaunchError
from hpc_launch.node import network
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.slurm import steps


class CheckTasks:
    """The tasks of one probe, in the order in which they are asked for.

    Args:
        environ: its environment.
        directory: its working directory.
        doing: is told what is about to be done that might never end.
    """

    def __init__(self, environ: Mapping[str, str], directory: Path, doing: Callable[[str], None]) -> None:
        self._environ = steps.task_environment(environ)
        self._directory = directory
        self._doing = doing
        self._plan: Plan | None = None
        self._facts: NodeFacts | None = None
        self._answerer: Answerer | None = None
        self._store: socket.socket | None = None

    def do(self, order: Mapping[str, Any]) -> Any:
        """Do what is asked for by its name."""
        return {
            "clock": self._clock,
            "facts": self._look,
            "reach": self._reach,
            "torch": self._torch,
            "open": self._open,
            "reduce": self._reduce,
        }[order["do"]](order)

    def _clock(self, _: Mapping[str, Any]) -> float:
        return time.time()

    def _look(self, order: Mapping[str, Any]) -> NodeFacts:
        """What this node is; from then on it answers calls."""
        plan: Plan | HpcLaunchError
        self._doing("resolving the names of the nodes")
        try:
            plan = self._plan = node_facts.plan_of(order["given"], self._environ, self._directory)
        except HpcLaunchError as error:
            plan = error
        else:
            self._answerer = Answerer(order["check"], plan.ports)
        port = self._answerer.port if self._answerer else None
        self._facts = node_facts.collect_facts(plan, self._environ, port, self._doing)
        return self._facts

    def _reach(self, order: Mapping[str, Any]) -> Attempts:
        leader = order["leader"]
        self._doing(f"calling {leader}")
        # What the first node calls itself is its own affair: it may well be loopback (Debian's /etc/hosts).
        names = () if leader == self._host else order["names"]
        attempts = try_to_reach(order["check"], names, order["address"], order["port"])
        return Attempts(tuple(attempts))

    @property
    def _host(self) -> str:
        return self._plan.world.host if self._plan else ""

    def _torch(self, order: Mapping[str, Any]) -> TorchFacts:
        if self._answerer is not None:
            self._answerer.close()  # a process with threads should not fork
        self._doing("importing torch")
        return torch_checks.check_devices(self._ranks(), order["patience"], self._doing)

    def _ranks(self) -> Ranks:
        if self._plan is None or self._facts is None:
            return Ranks()
        return Ranks(self._plan.local_world_size, self._plan.devices, self._plan.isolated, self._facts.interface)

    def _open(self, order: Mapping[str, Any]) -> int | None:
        """Make place for a store, on the first node of each group."""
        if self._store is not None:
            self._store.close()
            self._store = None
        if self._plan is None or self._host not in order["leaders"]:
            return None
        self._store = network.first_free(self._plan.ports)
        return int(self._store.getsockname()[1]) if self._store else None

    def _reduce(self, order: Mapping[str, Any]) -> str | None:
        """Reduce with the group that this node belongs to; None where it belongs to none."""
        for group in order["groups"]:
            if self._host not in group["nodes"]:
                continue
            place = group["nodes"].index(self._host)
            self._doing(f"reducing with {group['backend']}")
            mine = ReductionGroup(
                backend=group["backend"],
                address=group["address"],
                port=group["port"],
                first=sum(group["ranks"][:place]),
                size=sum(group["ranks"]),
                listener=self._store if place == 0 else None,
            )
            try:
                return torch_checks.check_reduction(self._ranks(), mine, order["patience"])
            finally:
                if self._store is not None:
                    with contextlib.suppress(OSError):
                        self._store.close()
                    self._store = None
        return None
