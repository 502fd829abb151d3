"""Why an attempt failed: the first cause, not the first symptom. Pure.

When one rank fails, the others lose their connection to it, time out, or are ended by the launcher. They are the
*followers*: recognised by what they say, and counted. Among the rest the earliest counts, by the leader's clock: an
exception by when it was raised, everything else by when the process was gone.
"""

from __future__ import annotations

import math
import re
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hpc_launch.records import formatting, node_states
from hpc_launch.records.history_model import Attempt, Failure, History, NodeEvent, NodeState, Worker

# Why a rank can fail for no reason of its own.
LOST = "lost their connection"
WAITED = "waited for others in vain"
# What it is of one that had no failure at all.
# What it is of one whose process died after the script.
AT_EXIT = "its script had ended; the process died while Python ended, by a thread of a library that still ran"
LEFT = "it left before the others had finished, which then lost it"
ENDED = "ended by hpc-launch"

# The exception of sys.exit: it says where a script has ended, and not why.
EXIT = "SystemExit"
_LONGEST_CODE = 200

# What gloo, NCCL, torch's store and Python say when a peer is gone.
_LOST = re.compile(
    r"Connection (?:closed|reset|was closed|was likely closed|refused|aborted)|(?:closed|reset) by peer|Broken pipe"
    r"|Socket (?:closed|is not connected)|failed to recv|recvValue failed|sendBytes failed|recvBytes|recvBuffer"
    r"|remote process exited|ncclRemoteError|NCCL communicator was aborted|communicator .*aborted"
    r"|Application timeout caused pair closure|Gloo connectFullMesh failed|SocketException|Transport endpoint"
    r"|DistNetworkError|ConnectionResetError|BrokenPipeError|ConnectionRefusedError|Pair closed",
    re.IGNORECASE,
)

# What they say when a peer does not come.
_WAITED = re.compile(
    r"Timed out waiting|Watchdog caught collective operation timeout"
    r"|(?:collective|NCCL) operations? (?:have )?(?:failed or )?timed out"
    r"|(?:Read|Recv|Send|Connect|Wait|Socket|store) ?timeout|wait timeout after|client socket has timed out"
    r"|monitoredBarrier|Timeout\(ms\)=|operation timeout|waiting for send/recv|DistStoreError",
    re.IGNORECASE,
)

# Two failures that are nearer than what clocks and operating systems can tell apart happened at the same time.
_SAME_SECONDS = 0.02

# A process that has closed its connections may take so long until it is gone.
_EXIT_SECONDS = 1.0

_SIGNALS = {
    "SIGSEGV": "invalid memory access",
    "SIGBUS": "bad memory access; a full /dev/shm is a common reason",
    "SIGABRT": "the program aborted",
    "SIGILL": "illegal instruction: built for another CPU?",
    "SIGFPE": "arithmetic error",
    "SIGKILL": "killed from outside: not by hpc-launch, and no memory limit was seen",
    "SIGXCPU": "limit of CPU time",
    "SIGXFSZ": "limit of file size",
}


@dataclass(frozen=True)
class FailureGroup:
    """Workers that failed in the same way by themselves.

    Attributes:
        what: what happened, in a line.
        workers: the first one first.
    """

    what: str
    workers: tuple[Worker, ...]

    @property
    def first(self) -> Worker:
        """The one that failed first."""
        return self.workers[0]


@dataclass(frozen=True)
class RootCause:
    """Why an attempt failed.

    Attributes:
        attempt: its number.
        groups: the first cause, then what else failed by itself; empty where no worker is to blame.
        followers: how many workers failed for no reason of their own, by reason (`LOST`, `WAITED`, `ENDED`).
        lost: nodes that were lost, as a host list; empty if none was.
        said: what the first agent that saw a failure said, for want of anything better.
        states: what Slurm has said last of the nodes that were lost.
    """

    attempt: int
    groups: tuple[FailureGroup, ...]
    followers: Mapping[str, int]
    lost: str
    said: str
    states: tuple[NodeState, ...] = ()

    @property
    def first(self) -> Worker | None:
        """The worker that failed first; None where no worker is to blame."""
        return self.groups[0].first if self.groups else None


def root_cause_of(history: History, attempt: Attempt) -> RootCause | None:
    """Why an attempt of a history failed; None if it did not, or not yet, or was stopped by a signal."""
    errors = sorted((clock.error for clock in history.clocks if clock.attempt == attempt.number), reverse=True)
    found = find_root_cause(attempt, history.node_events, slack=sum(errors[:2]))
    lost = [event for event in history.node_events if event.kind == "lost" and event.attempt == attempt.number]
    states = tuple(state for event in lost for state in node_states.states_of(history, event))
    return replace(found, states=states) if found is not None else None


def find_root_cause(attempt: Attempt, nodes: Sequence[NodeEvent] = (), slack: float = 0.0) -> RootCause | None:
    """Why an attempt failed; None if it did not, or not yet, or was stopped by a signal.

    Args:
        attempt: the attempt.
        nodes: what was said about nodes, in whichever attempt.
        slack: by how many seconds the times of two nodes can be wrong.
    """
    if attempt.ending not in ("restart", "failed") or attempt.signal:
        return None
    gone = [event.hosts for event in nodes if event.kind == "lost" and event.attempt == attempt.number]
    lost = formatting.fold_hosts(host for hosts in gone for host in formatting.unfold_hosts(hosts))
    failed = [worker for worker in attempt.workers if worker.failed or _hangs(worker)]
    reasons = {worker.rank: follows(worker, attempt.decided) for worker in failed}
    # Of a job that hung no worker has failed but for being ended.
    own = [worker for worker in failed if not reasons[worker.rank] and not attempt.hang]
    followers = Counter(reason for reason in reasons.values() if reason)
    if not own and not lost and not attempt.hang:
        own = _early_leavers(attempt, failed, reasons) or _suspects(attempt, failed, reasons)
        for worker in own:
            followers[reasons.get(worker.rank, "")] -= 1
    return RootCause(
        attempt=attempt.number,
        groups=tuple(_grouped(own, _SAME_SECONDS + slack, reasons)),
        followers={reason: count for reason, count in followers.items() if count > 0},
        lost=lost,
        said=attempt.cause,
    )


def deciding_failure(workers: Sequence[Worker]) -> Worker | None:
    """Of some workers on one node the one that failed first; None if none has."""
    failed = [worker for worker in workers if worker.failed]
    own = [worker for worker in failed if not follows(worker, None)] or failed
    return min(own, key=lambda worker: _order(worker, min(map(failure_time, own)) + _SAME_SECONDS), default=None)


def follows(worker: Worker, decided: float | None) -> str:
    """Why a worker failed for no reason of its own: `LOST`, `WAITED` or `ENDED`; empty if it had one.

    Args:
        worker: a worker that has failed.
        decided: when it was said that the attempt was over; None if that was not yet.
    """
    failure = worker.failure or Failure()
    if failure.hung:
        return ""
    raised = failure.exception
    early = raised is not None and raised.time is not None and (decided is None or raised.time <= decided)
    if worker.told and not early:
        return ENDED
    if failure.oom:
        return ""
    if raised is not None and raised.type != EXIT:
        return symptom(f"{raised.type}: {raised.message}")
    died_otherwise = worker.exitcode is not None and worker.exitcode < 0 and worker.exitcode != -signal.SIGABRT
    # What torch warns of it survives, and it is common when others have left in good order ("[W1125 12:34:56 ...").
    told = [line for line in failure.lines if not line.startswith("[W")]
    return "" if died_otherwise else symptom("\n".join(told))


def symptom(text: str) -> str:
    """What a text speaks of: `LOST` or `WAITED`; empty if of neither."""
    if _LOST.search(text):
        return LOST
    return WAITED if _WAITED.search(text) else ""


def failure_time(worker: Worker) -> float:
    """When a worker failed: when it raised an exception, else when it was gone."""
    raised = worker.failure.exception if worker.failure else None
    if raised is not None and raised.time is not None:
        return raised.time
    return worker.ended if worker.ended is not None else float("inf")


def what_happened(worker: Worker) -> str:
    """What happened to a worker, in a line."""
    code, failure = worker.exitcode, worker.failure or Failure()
    raised = failure.exception
    if raised is not None and raised.type == EXIT:
        return f"sys.exit({raised.message[:_LONGEST_CODE]})"
    if raised is not None and (code is None or code >= 0 or worker.told):
        # PyTorch's and others' messages have their stack in them; the first line says it.
        return f"{raised.type}: {raised.message}" if raised.message else raised.type
    if failure.hung or failure.oom:
        return failure.oom if not failure.hung else f"it hangs in the kernel ({failure.hung}) and could not be killed"
    if code is None or code >= 0:
        return ""
    return AT_EXIT if failure.over else _SIGNALS.get(signal_name(code), "")


def signal_name(code: int) -> str:
    """The name of the signal for an exit code of -N."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def worker_ending(worker: Worker) -> str:
    """How a worker ended: `exit status 7`, `SIGKILL`."""
    code = worker.exitcode
    if code is None:
        return "an unknown end"
    return f"exit status {code}" if code >= 0 else signal_name(code)


def _hangs(worker: Worker) -> bool:
    return worker.failure is not None and bool(worker.failure.hung)


def _early_leavers(attempt: Attempt, failed: Sequence[Worker], reasons: Mapping[int, str]) -> list[Worker]:
    """Ranks that had left with exit status 0, where others then lost their connection or waited in vain."""
    symptoms = [worker for worker in failed if reasons[worker.rank] in (LOST, WAITED)]
    latest = min(map(failure_time, symptoms), default=-math.inf) + _EXIT_SECONDS
    return [worker for worker in attempt.workers if _left_well(worker) and (worker.ended or math.inf) <= latest]


def _left_well(worker: Worker) -> bool:
    return worker.exitcode == 0 and not worker.told


def _suspects(attempt: Attempt, failed: Sequence[Worker], reasons: Mapping[int, str]) -> list[Worker]:
    """Whom to look at where all have failed because of others.

    Ranks for which many waited in vain, and which did not fail themselves, hang; else it is the first symptom, unless
    an agent has said something better.
    """
    waited = [worker for worker in failed if reasons[worker.rank] == WAITED]
    still = [worker for worker in attempt.workers if worker.told and reasons.get(worker.rank) == ENDED]
    if waited and 0 < len(still) < len(waited):
        return still
    symptoms = [worker for worker in failed if reasons[worker.rank] in (LOST, WAITED)]
    if attempt.cause and not symptom(attempt.cause) and not any(worker.host == attempt.by for worker in symptoms):
        return []  # it was on a node whose records are not to be seen
    return sorted(symptoms, key=failure_time)[:1]


def _order(worker: Worker, latest: float) -> tuple[bool, bool, float, int]:
    """What comes first: what failed by `latest`; of these what says why; then the earlier one."""
    early = failure_time(worker) <= latest
    return (not early, early and not what_happened(worker), failure_time(worker), worker.rank)


def _grouped(own: Sequence[Worker], slack: float, reasons: Mapping[int, str]) -> list[FailureGroup]:
    if not own:
        return []
    latest = min(map(failure_time, own)) + slack
    found: dict[str, list[Worker]] = {}
    titles: dict[str, str] = {}
    for worker in sorted(own, key=lambda worker: _order(worker, latest)):
        title = what_happened(worker)
        if reasons.get(worker.rank) == ENDED:
            title = "it was still running when other ranks had waited for it in vain: it may hang"
        if _left_well(worker):
            title = LEFT
        how = "" if worker.failure and worker.failure.exception else worker_ending(worker)
        key = re.sub(r"0x[0-9a-fA-F]+|\d+", "#", f"{how} {title}")
        found.setdefault(key, []).append(worker)
        titles.setdefault(key, title)
    return [FailureGroup(titles[key], tuple(workers)) for key, workers in found.items()]
