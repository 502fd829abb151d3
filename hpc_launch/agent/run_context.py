"""The context of a run, as one agent knows it: its plan, the attempt it is at, and its job directory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping

from hpc_launch import slow_storage
from hpc_launch.agent import environment_snapshot
from hpc_launch.errors import LogDirError
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.plan.log_paths import local_job_name
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.plan_record import PlanRecord
from hpc_launch.world import World


class RunContext:
    """The agent changes it at the beginning of each attempt; all parts of the agent read it.

    Attributes:
        plan: what this agent does; other nodes may take part from one attempt to the next.
        job: the job directory.
        number: the number of the attempt in this run, from 0; -1 before the first.
        label: what the attempt is called in the job directory: attempts are counted on when a job runs again.
        first_label: what the first attempt of this run is called there.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        # The first node may choose another name for all; other backends have no way to agree on one.
        self.job = JobDirectory(plan.log_root, plan.job_name or local_job_name(time.time(), os.getpid()))
        self.number = -1
        self.label = self.first_label = 0

    @property
    def world(self) -> World:
        """The nodes that take part, and the place of this one among them."""
        return self.plan.world

    @property
    def host(self) -> str:
        """This node."""
        return self.plan.world.host

    @property
    def leader(self) -> bool:
        """Whether this agent speaks and writes for all."""
        return self.plan.world.leader

    @property
    def place(self) -> str:
        """Where all is written, for people who are to look at it."""
        return f"the log directory {self.job.root}"

    def move(self, world: World) -> None:
        """Other nodes take part from now on."""
        self.plan = dataclasses.replace(self.plan, world=world)

    def describe(self, environ: Mapping[str, str]) -> None:
        """Write down for all what is going to be done, and let `latest` lead to it.

        Raises:
            LogDirError: when that cannot be.
        """
        if self.leader:
            around = environment_snapshot.describe_environment(environ, self.plan.settings.secret_names)
            described = dataclasses.replace(self.plan.record(), **around)
            slow_storage.wait_for(lambda: self._describe(described), self.place)

    def make_directory(self) -> None:
        """Make the directory of the attempt, for all.

        Raises:
            LogDirError: when the first cannot be made; a disk that is full later ends no run.
        """
        if self.leader:
            slow_storage.wait_for(self._make_directory, self.place)

    def _describe(self, described: PlanRecord) -> None:
        plan = self.job.plan(self.first_label)
        directory.write_json(plan, described, self.job.path)
        directory.point_latest(self.job.last_plan, f"{plan.parent.name}/{plan.name}")
        directory.point_latest(self.job.root / "latest", self.job.job)

    def _make_directory(self) -> None:
        with contextlib.suppress(*[LogDirError] if self.number else []):
            directory.make(self.job.attempt(self.label), self.job.path)
        directory.point_latest(self.job.path / "latest", self.job.attempt(self.label).name)
