"""Say why an attempt failed: the one place for its words, for the console and for whoever asks later. Pure."""

from __future__ import annotations

import re

from hpc_launch.records import formatting, root_cause
from hpc_launch.records.history_model import Failure, NodeEvent, NodeState, Worker
from hpc_launch.records.root_cause import FailureGroup, RootCause
from hpc_launch.text import count, duration, time_of_day

# A message in a line of many is cut here.
_LONGEST = 300

# How many other failures are shown, and how many lines of output.
_OTHERS = 3
_LINES = 20


def failure_line(worker: Worker) -> str:
    """How a worker failed, in a line."""
    return _failed(
        f"rank {worker.rank} on {worker.host} (local rank {worker.local_rank})",
        worker,
        root_cause.what_happened(worker),
    )


def failure_kind(line: str) -> str:
    """The same for failures that differ in numbers only: those of ranks, hosts, processes, ports and addresses."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", line)


def stop_words(signal: str, job_ending: str = "", user: str = "") -> str:
    """What stopped a run, in Slurm's words where it has said something.

    Args:
        signal: the signal that came.
        job_ending: what Slurm said of the job then, as `slurm.job.Ending` has it.
        user: who cancelled it.
    """
    slurms = {
        "time limit": "stopped at the time limit",
        "preemption": "preempted",
        "cancelled": f"cancelled by {user} (scancel)" if user else "cancelled (scancel)",
        "script ended": "stopped by Slurm when its script or shell ended",
        "cancelled or over": "stopped by Slurm after scancel, or when its script or shell ended",
        "node failure": "stopped by Slurm after a node failure",
        "out of memory": "stopped by Slurm for being out of memory",
        "requeued by Slurm": "stopped by Slurm to be requeued",
    }
    return slurms.get(job_ending, f"stopped by {signal}")


def failure_headline(cause: RootCause) -> str:
    """Why an attempt failed, in a line."""
    if cause.groups:
        group = cause.groups[0]
        return _failed(_who(group), group.first, group.what)
    if cause.lost:
        return f"lost {cause.lost}: {_why_lost(cause)}"
    return cause.said or "it is not known why"


def failure_block(cause: RootCause, lines: int = _LINES) -> list[str]:
    """Why an attempt failed, at length: the headline, then lines that belong below it.

    Args:
        cause: why.
        lines: how many lines of the worker's output are shown at most.
    """
    told = [failure_headline(cause)]
    if cause.groups:
        told.extend(_details(cause.groups[0], lines))
    told.extend(f"also: {_failed(_who(group), group.first, group.what)}" for group in cause.groups[1 : _OTHERS + 1])
    rest = sum(len(group.workers) for group in cause.groups[_OTHERS + 1 :])
    if rest:
        told.append(f"also: {count(rest, 'more rank')} in other ways")
    if cause.lost and cause.groups:
        told.append(f"also: lost {cause.lost}")
    told.extend(line for line in map(state_line, cause.states) if cause.groups or line != _own_line(cause))
    followed = sum(cause.followers.values())
    if followed:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(cause.followers.items()))
        told.append(f"{count(followed, follower(cause))} followed ({reasons})")
    return told


def follower(cause: RootCause) -> str:
    """What a rank is called that failed for no reason of its own: another one, where a rank or a node is to blame."""
    return "other rank" if cause.groups or cause.lost else "rank"


def _why_lost(cause: RootCause) -> str:
    """Why nodes may have been lost: by Slurm's word where it is about a single one, and knows."""
    if len(formatting.unfold_hosts(cause.lost)) > 1:
        return "their agents were killed, or the nodes are gone"
    known = next((state for state in cause.states if state.gone or state.last), None)
    return slurms_word(known) if known is not None else "its agent was killed, or the node is gone"


def _own_line(cause: RootCause) -> str:
    """The line that says the same as the headline."""
    return f"{cause.lost}: {_why_lost(cause)}"


def state_line(state: NodeState) -> str:
    """What Slurm has said of a node that was lost, and of which."""
    return f"{state.host}: {slurms_word(state)}"


def node_event(event: NodeEvent) -> str:
    """What has become of nodes, in a line."""
    several = len(formatting.unfold_hosts(event.hosts)) > 1
    said = {
        "lost": f"lost {event.hosts}",
        "back": f"{event.hosts} {'are' if several else 'is'} there again",
        "drained": f"{event.hosts} {event.text or 'is bad'}",
        "leads": f"{event.hosts} leads in place of {event.text}",
        "missing": f"waiting for {event.hosts}",
    }
    return said[event.kind]


def slurms_word(said: NodeState) -> str:
    """What Slurm has said of a node that was lost, and what follows from it."""
    lost = said.time - said.waited
    if said.gone:
        since = f" since {time_of_day(said.since)}" if said.since is not None else ""
        return f"Slurm says {said.state}{since}" + (f": {said.reason}" if said.reason else "")
    if said.booted is not None and said.booted > lost:
        return f"Slurm says that the node has booted again at {time_of_day(said.booted)} ({said.state})"
    if not said.last:
        return f"Slurm said {said.state} {duration(round(said.waited))} later, and may not have noticed yet"
    up = f"Slurm says that the node is up ({said.state}) {duration(round(said.waited))} later"
    return f"{up}: its agent was killed, or the network between the nodes failed"


def _details(group: FailureGroup, lines: int) -> list[str]:
    worker, failure = group.first, group.first.failure or Failure()
    told = []
    if len(group.workers) > 1:
        told.append(f"first: rank {worker.rank} on {worker.host} (local rank {worker.local_rank})")
    raised = failure.exception
    where = (raised.where if raised is not None else "") or failure.where
    place = [f"at {where}" if where else "", f"on {worker.device}" if worker.device else ""]
    if any(place):
        told.append(", ".join(filter(None, place)))
    if failure.oom and failure.oom != group.what:
        told.append(failure.oom)
    shown = failure.lines[-lines:] if lines else ()
    told.extend(f"device: {text}" for text in failure.gpu if text not in shown)
    if shown:
        told.append(f"the end of {log_path(worker)}:")
        told.extend(f"    {text}" for text in shown)
    return told


def log_path(worker: Worker) -> str:
    """The file of a worker that tells most."""
    # Joined to a path, an absolute one stands for itself: it is where a --logs-specs has put the output.
    log = worker.failure.log if worker.failure else ""
    return str(worker.files.err.parent / log) if log else str(worker.files.err)


def _who(group: FailureGroup) -> str:
    if len(group.workers) == 1:
        return f"rank {group.first.rank} on {group.first.host} (local rank {group.first.local_rank})"
    ranks = formatting.fold_ranks(worker.rank for worker in group.workers)
    return f"{ranks} on {formatting.fold_hosts(worker.host for worker in group.workers)}"


def _failed(who: str, worker: Worker, what: str) -> str:
    # What raised an exception, and was ended while it was at it, did not fail for that.
    ended = "ended" if worker.exitcode == 0 else "failed"
    text = f"{who} failed" if worker.told and what else f"{who} {ended} with {root_cause.worker_ending(worker)}"
    return f"{text}: {what[:_LONGEST]}" if what else text
