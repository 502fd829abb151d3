"""The course of a check: one question after another, of the nodes that are left to be asked."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from hpc_launch import codec, held_signals, hostlist, secret_variables
from hpc_launch.check import findings, node_pairs
from hpc_launch.check.evidence import (
    Attempts,
    ClockReading,
    ConnectionAttempt,
    ConnectionResult,
    Evidence,
    NodeFacts,
    Reachability,
    Reduction,
    TorchFacts,
)
from hpc_launch.check.node_pairs import Pair
from hpc_launch.check.node_selection import NodeSelection, some_of
from hpc_launch.errors import Interrupted, StepError
from hpc_launch.probes.probe_session import ProbeSession, python_line
from hpc_launch.slurm import steps

# How often a step is started anew without the nodes on which Slurm could not start it.
_STARTS = 3

# How often each clock is read: the quickest answer says most.
_TICKS = 3

# What may be taken, in seconds, by the devices of a node (a driver without persistence mode is slow at first), by an
# all-reduce (NCCL looks for its way on many nodes), and by one of two nodes. The answer to that may take a bit more.
_DEVICE_SECONDS = 20.0
_REDUCE_SECONDS = 15.0
_PAIR_SECONDS = 10.0
_MORE = 5.0

_BACKENDS = {"cuda": "nccl", "xpu": "xccl", "cpu": "gloo"}

# OpenBLAS and OpenMP start a thread for each CPU when they are imported; processes with threads should not be forked.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMEXPR_NUM_THREADS": "1"}


def run_check(request: NodeSelection) -> Evidence:
    """Look at the nodes, and end everything that was started for it.

    Raises:
        ContextError: where there is no srun.
        StepError: when Slurm starts nothing at all.
        Interrupted: when a signal ends it.
    """
    begin = time.monotonic()
    course = _Course(request)
    with _stopping():
        try:
            course.run()
        finally:
            course.end()
    course.see_that_nobody_ended_it()
    return dataclasses.replace(course.evidence, seconds=time.monotonic() - begin)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Let signals end what was started, and not only this process."""

    def stop(number: int, _: object) -> None:
        raise Interrupted(number, signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Course:
    """One check. Every step of it looks at the evidence that is there, and adds to it."""

    def __init__(self, request: NodeSelection) -> None:
        self._request = request
        self._check = uuid.uuid4().hex
        self._sessions: list[ProbeSession] = []
        self._ended = False
        self.evidence = Evidence(
            job_id=request.step.job_id,
            nodes=(*request.step.hosts, *request.gone),
            asker=request.asker,
            own_software=request.own_software,
            lost=dict.fromkeys(request.gone, "Slurm has taken it out of the job: the node is down"),
        )

    def run(self) -> None:
        """Ask one thing after another."""
        self._start()
        for step in (self._clocks, self._facts, self._reach, self._torch, self._reduce):
            if self._alive:
                step()
                self._note_losses()
                self.see_that_nobody_ended_it()

    def end(self) -> None:
        """End all probes."""
        self._ended = True
        for session in self._sessions:
            session.end()
        self._note_losses()

    # --- the probes

    @property
    def _session(self) -> ProbeSession:
        return self._sessions[-1]

    @property
    def _alive(self) -> tuple[str, ...]:
        return self._session.alive

    def _start(self) -> None:
        """Start a probe on each node, without those on which it cannot be started."""
        request, nodes = self._request, self._request.step.hosts
        environ = {
            **secret_variables.without_secrets(steps.srun_environment(request.environ, request.step.job_id)),
            **_ONE_THREAD,
        }
        probe = python_line("hpc_launch.check.check_probe:CheckTasks")
        for _ in range(_STARTS):
            step = some_of(request.step, nodes)
            # The last of two options that contradict each other counts: srun is to hand on what it reads.
            more = ["--input=all", "--label", "--no-kill"]
            session = ProbeSession(
                steps.srun_line(step, [*more, *held_signals.holding(probe, on_this_host=False)]),
                environ,
                nodes,
                request.timeout,
            )
            self._sessions.append(session)
            if session.begin():
                return
            session.end()  # all that srun still has to say is known then
            self._note_losses()
            left = tuple(node for node in nodes if node not in session.lost and node not in session.silent)
            if not left and session.lost:
                return  # it is known why there is none, which is what was asked
            if not left:
                break
            nodes = left
        raise StepError(
            f"Slurm starts no probes on {hostlist.fold(nodes)}: {session.complaint or 'srun says nothing'}; see "
            f"'squeue --steps --jobs={request.step.job_id}'"
        )

    def see_that_nobody_ended_it(self) -> None:
        """Accuse no node when the step was ended from outside: it was cancelled, or the whole job was.

        Raises:
            StepError: with Slurm's words.
        """
        if self._session.cancelled or (self._session.aborted and self._alive and not self._ended):
            why = self._session.cancelled or self._session.complaint or "srun says nothing"
            raise StepError(
                f"the step with the probes has ended early: {why}; see 'squeue --jobs={self._request.step.job_id}', "
                "and check again"
            )

    def _note_losses(self) -> None:
        lost, silent = dict(self.evidence.lost), dict(self.evidence.silent)
        for session in self._sessions:
            lost |= session.lost
            silent |= {node: doing for node, doing in session.silent.items() if node not in lost}
        self.evidence = dataclasses.replace(
            self.evidence, lost=lost, silent={node: doing for node, doing in silent.items() if node not in lost}
        )

    # --- the questions

    def _clocks(self) -> None:
        """Read the clocks; the middle between question and answer is when it was read."""
        best: dict[str, ClockReading] = {}
        for _ in range(_TICKS):
            answers = self._session.ask("clock")
            for node, there in answers.given.items():
                arrived = answers.times[node]
                clock = ClockReading(there - (answers.asked + arrived) / 2, (arrived - answers.asked) / 2)
                if node not in best or clock.error < best[node].error:
                    best[node] = clock
        self._add(clocks=best)

    def _facts(self) -> None:
        answers = self._session.ask("facts", given=dict(self._request.given), check=self._check)
        facts = {node: codec.build(NodeFacts, said) for node, said in answers.given.items()}
        facts |= {node: NodeFacts(software={}, problem=error) for node, error in answers.failed.items()}
        self._add(facts=facts)

    def _reach(self) -> None:
        """Let all nodes call the first one; where most do not reach it the next one too, to see whose fault it is."""
        able = [node for node in self._alive if findings.healthy_network(self.evidence.facts[node])]
        for leader in able[:2] if len(able) > 1 else ():
            reach = self._call(leader)
            self._add(reaches=(*self.evidence.reaches, reach))
            if not findings.suspicious(reach, self.evidence):
                return

    def _call(self, leader: str) -> Reachability:
        facts = self.evidence.facts[leader]
        port = facts.port or 0
        names = facts.leaders if leader == self._request.step.hosts[0] else (leader,)
        answers = self._session.ask(
            "reach", check=self._check, leader=leader, names=names, address=facts.address, port=port
        )
        attempts = {node: codec.build(Attempts, said).attempts for node, said in answers.given.items()}
        attempts |= {
            node: (ConnectionAttempt("", facts.address, ConnectionResult.FAILED, why),)
            for node, why in answers.failed.items()
        }
        return Reachability(leader, facts.address, port, attempts)

    def _torch(self) -> None:
        answers = self._session.ask("torch", patience=_DEVICE_SECONDS, least=_DEVICE_SECONDS + _MORE)
        found = {node: codec.build(TorchFacts, said) for node, said in answers.given.items()}
        found |= {node: TorchFacts(error=error) for node, error in answers.failed.items()}
        self._add(torch=found)

    def _reduce(self) -> None:
        """Reduce over all ranks of the nodes with which nothing is wrong so far, and pairwise if that fails."""
        bad = {
            node
            for finding in findings.judge_evidence(self.evidence, findings.CheckLimits())
            for node in finding.nodes
            if finding.kind == "network" or (finding.kind == "devices" and finding.exclude)
        }
        nodes = tuple(
            node
            for node in self._alive
            if node not in bad
            and node in self.evidence.torch
            and self.evidence.torch[node].usable
            and findings.healthy_network(self.evidence.facts[node])
        )
        if not nodes:
            return
        kinds = {self.evidence.torch[node].kind for node in nodes}
        backend = _BACKENDS[kinds.pop()] if len(kinds) == 1 else "gloo"
        if self._reduce_all(nodes, backend):
            return
        if backend != "gloo":
            self._reduce_all(nodes, "gloo")
        found: dict[Pair, str] = {}
        for meetings in node_pairs.rounds(nodes)[: node_pairs.MOST_ROUNDS]:
            usable = [pair for pair in meetings if set(pair) <= set(self._alive)]
            errors = self._reduce_groups(usable, backend, _PAIR_SECONDS)
            for pair in usable:
                found[pair] = next((errors[node] for node in pair if errors.get(node)), "")
            self._add(pairs=found)
            if node_pairs.settled(found):
                return

    def _reduce_all(self, nodes: tuple[str, ...], backend: str) -> bool:
        begin = time.monotonic()
        errors = self._reduce_groups([nodes], backend, _REDUCE_SECONDS)
        ranks = sum(self.evidence.facts[node].ranks for node in nodes)
        reduction = Reduction(backend, nodes, ranks, time.monotonic() - begin, errors)
        self._add(reductions=(*self.evidence.reductions, reduction))
        return reduction.ok

    def _reduce_groups(self, groups: Sequence[tuple[str, ...]], backend: str, patience: float) -> dict[str, str]:
        """Let groups of nodes reduce at the same time; returns the errors by node."""
        ports = self._session.ask("open", leaders=[group[0] for group in groups]).given
        facts = self.evidence.facts
        orders = [
            {
                "nodes": group,
                "ranks": [facts[node].ranks for node in group],
                "backend": backend,
                "address": facts[group[0]].address,
                "port": ports[group[0]],
            }
            for group in groups
            if ports.get(group[0])
        ]
        answers = self._session.ask("reduce", groups=orders, patience=patience, least=patience + _MORE)
        errors = {group[0]: "no port is free there" for group in groups if not ports.get(group[0])}
        for group in groups:
            for node in group:
                if answers.given.get(node):
                    errors[node] = answers.given[node]
                elif node not in answers.given and node not in errors:
                    errors[node] = answers.failed.get(node, "no answer")
        return errors

    def _add(self, **more: Any) -> None:
        self.evidence = dataclasses.replace(self.evidence, **more)
