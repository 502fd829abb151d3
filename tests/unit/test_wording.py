"""How hpc-launch says things: whole messages, to be read and judged as texts.

This is the one place that pins sentences (`test_no_sentences.py`). What the messages are about (kinds, names, numbers,
options) is asserted where it is decided; whoever rewords a message changes it here.
"""

# ruff: noqa: E501 - a message is one line

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from hpc_launch.api.notebook_display import NotebookUpdater
from hpc_launch.errors import HpcLaunchError
from hpc_launch.hostlist import expand
from hpc_launch.inspection import job_state, job_status
from hpc_launch.inspection.job_state import SlurmAnswer
from hpc_launch.plan import requeue, step_plan
from hpc_launch.plan.launch_context import check_script
from hpc_launch.records import failure_messages, nodes_to_exclude, root_cause
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.history_model import Failure, History, NodeEvent, NodeState, Worker
from hpc_launch.records.nodes_to_exclude import BadNode
from hpc_launch.rendezvous import join_policy
from hpc_launch.rendezvous.membership import Half, Membership
from hpc_launch.rendezvous.round_checks import refusal
from hpc_launch.settings import resolve
from hpc_launch.slurm.cluster_rules import ClusterRules
from hpc_launch.slurm.job import JobRecord, explain
from hpc_launch.submission import misplaced_options
from tests.histories import Losses
from tests.support import wait_for
from tests.unit import (
    test_advice as advised,
    test_job_state as stood,
    test_job_status as looked,
    test_join_policy as joining,
    test_notebook_display as displayed,
    test_plan as planned,
    test_requeue as requeued,
    test_root_cause as failed,
    test_round_checks as checked,
    test_site_policy as allowed,
    test_steps as stepped,
    test_termination_forecast as foretold,
)
from tests.unit.slurm_variables import BATCH, HETEROGENEOUS, ONE_TASK_PER_NODE, SUBSET, task_of

Maker = Callable[[], object]


def error(make: Maker) -> str:
    """Return the line of the error that something ends with."""
    with pytest.raises(HpcLaunchError) as caught:
        make()
    return str(caught.value)


def shown(made: object) -> list[str]:
    """Return lines of whatever was made."""
    return [made] if isinstance(made, str) else list(made) if isinstance(made, (list, tuple)) else [str(made)]


# ---- what was asked for


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: resolve({"nnodes": "0"}, {}),
            "--nnodes: '0' is not a number of nodes from 1 on, or MIN:MAX with MIN <= MAX",
        ),
        (
            lambda: resolve({}, {"HPC_LAUNCH_JOIN_TIMEOUT": "-1"}),
            "HPC_LAUNCH_JOIN_TIMEOUT: '-1' is not a positive number of seconds",
        ),
        (
            lambda: resolve({"start_method": "forked"}, {}),
            "--start-method: 'forked' is not one of spawn, fork, forkserver (did you mean fork?)",
        ),
        (
            lambda: resolve({"hosts": "a", "hostfile": "b"}, {}),
            "--hosts and --hostfile both name the nodes: give one of them",
        ),
        (
            lambda: resolve({"standalone": True, "nnodes": "2"}, {}),
            "--standalone is for one node: leave out it or --nnodes",
        ),
        (
            lambda: allowed.settings({"max-restarts": 3}, {"max_restarts": "4"}),
            "--max-restarts: 4 is more than this site allows, 3 (/etc/hpc-launch/config.toml: policy.max-restarts)",
        ),
        (
            lambda: expand("gpu[01-04],node[3-1]"),
            "host list 'gpu[01-04],node[3-1]': found '3-1', expected a range that does not count down",
        ),
        (lambda: expand("n1,node[1-3"), "host list 'n1,node[1-3': found '[1-3', expected a closing bracket"),
        (
            lambda: planned.plan(planned.here(), nnodes="2"),
            "--nnodes 2, but nothing says which nodes: use srun, or --hosts 'node[1-4]', or --node-rank and --master-addr, or --rdzv-backend and --rdzv-endpoint",
        ),
        (
            lambda: planned.plan(planned.here(SUBSET), nnodes="4"),
            "--nnodes 4, but the step has 2 (gpu[03-04]): leave --nnodes out, or change srun --nodes",
        ),
        (
            lambda: planned.plan(planned.here(BATCH)),
            "this is the batch script of job 4711 on one of its 4 nodes, and srun is not here: start one agent on each node with 'srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --cpus-per-task=16 hpc-launch train.py', or 'hpc-launch --standalone' for this node alone",
        ),
        (
            lambda: planned.plan(planned.here(devices=planned.FOUR_GPUS), nproc_per_node="5"),
            "--nproc-per-node: 5 workers but 4 devices (CUDA_VISIBLE_DEVICES=0,1,2,3): use --nproc-per-node 4, or set CUDA_VISIBLE_DEVICES= to run on CPUs",
        ),
        (
            lambda: check_script(planned.asked(), "8", Path("/project")),
            "no training script '8' in /project; is it an option without its value?",
        ),
        (
            lambda: misplaced_options.script_arguments("train.py", ["--nodes=2"], ["--nodes"], ""),
            "--nodes stands after train.py: put an option of submit before train.py, or write 'submit train.py -- --nodes' if it is the script's own",
        ),
        (
            lambda: misplaced_options.refuse_job_script("job.sh", "#!/bin/sh\n#SBATCH -N2\n"),
            "job.sh is a job script, with #SBATCH lines, and not a training script: 'sbatch job.sh' submits it as it is; --template takes a file to make a job script from",
        ),
    ],
)
def test_errors_of_what_was_asked_for(make: Maker, line: str) -> None:
    """What was found, what is expected, and how to mend it."""
    assert error(make) == line


# ---- notes


@pytest.mark.parametrize(
    ("make", "lines"),
    [
        (lambda: planned.plan(planned.here(cpus=2), nproc_per_node="3").warnings, ["3 local ranks share 2 CPUs"]),
        (
            lambda: planned.plan(planned.here(planned.without_gpus(HETEROGENEOUS))).warnings,
            [
                "SLURM_NODEID=0, but z1 is number 2 of a[1-2],z1: the order of the list counts (they differ in heterogeneous steps)"
            ],
        ),
        (
            lambda: planned.plan(planned.here(task_of(4, 0, 1, 4), devices=planned.ONE_GPU)).seen_here,
            [
                "each of 4 tasks sees one GPU, as device 0, and NCCL cannot use peer access between them: use srun --ntasks-per-node=1, or srun --gpu-bind=none"
            ],
        ),
        (
            lambda: planned.plan(planned.here({"RANK": "0"})).warnings,
            ["RANK is set already: the workers get their own"],
        ),
        (
            lambda: advised.told(BATCH, job=None),
            ["Slurm does not know a job 4711: the SLURM_* variables are left over, unset them (or open a new shell)"],
        ),
        (lambda: advised.told(SUBSET), ["this step has 2 of the 4 nodes of the job: srun --nodes=4"]),
        (
            lambda: advised.told({**BATCH, "SLURM_EXPORT_ENV": "NONE"}),
            [
                "--export=NONE counts for srun too, its tasks get no variables but Slurm's own, PATH included: use srun --export=ALL"
            ],
        ),
        (
            lambda: advised.told(BATCH, rules=ClusterRules(release=(22, 5))),
            [
                "srun of Slurm 22.05 does not take --cpus-per-task=16 from the job, and a step may get one CPU: use srun --cpus-per-task=16"
            ],
        ),
        (
            lambda: advised.told(ONE_TASK_PER_NODE, spares="1", node_timeout="20", nnodes="3:4"),
            [
                "a node without an answer for 20 s is lost, and the others start again: if they are half of those there were, or more (of two halves that both live, one), and not spares only"
            ],
        ),
        (
            lambda: advised.told(ONE_TASK_PER_NODE, addresses=["127.0.1.1"]),
            [
                "gpu01, the first node, resolves to 127.0.1.1 here, which is this node: mend /etc/hosts, or say --master-addr"
            ],
        ),
    ],
)
def test_notes(make: Maker, lines: list[str]) -> None:
    """What is probably not meant, with what to do."""
    assert shown(make()) == lines


@pytest.mark.parametrize(
    ("make", "lines"),
    [
        (
            lambda: foretold.told(foretold.RULES, foretold.JOB, foretold.GPU),
            [
                "KillWait 30 s: after SIGTERM (time limit, scancel, preemption) workers have 29 s",
                "PreemptMode=REQUEUE: Slurm itself requeues the job when it is preempted, whatever --requeue says",
                "GraceTime 0 s: a preemption leaves no more than KillWait",
            ],
        ),
        (
            lambda: foretold.told(
                foretold.RULES, foretold.JOB, foretold.partition("CANCEL", 120.0), asked=foretold.EACH
            ),
            [
                "KillWait 30 s: after SIGTERM (time limit, scancel, preemption) workers have 29 s",
                "PreemptMode=CANCEL: Slurm does not requeue a preempted job, --requeue on-preempt does it after SIGTERM",
                "GraceTime 120 s: a preemption begins with SIGTERM and leaves at least so long; then comes SIGTERM and KillWait",
            ],
        ),
        (
            lambda: foretold.told(
                foretold.RULES, dataclasses.replace(foretold.JOB, requeue=False), asked=foretold.EACH
            ),
            [
                "KillWait 30 s: after SIGTERM (time limit, scancel, preemption) workers have 29 s",
                "--requeue: Slurm will refuse it, the job was submitted with --no-requeue: submit with sbatch --requeue",
            ],
        ),
        (
            lambda: foretold.told(None, foretold.JOB, script="#SBATCH --signal=USR1@120\n"),
            ["`--signal=USR1@120`: workers get USR1 120 to 180 s before the time limit of 3600 s"],
        ),
        (
            lambda: foretold.told(None, foretold.JOB, script="#SBATCH --signal=B:USR1@120\n"),
            ["`--signal=B:USR1@120` reaches only the shell: leave out B:"],
        ),
    ],
)
def test_what_slurm_will_do(make: Maker, lines: list[str]) -> None:
    assert shown(make()) == lines


# ---- origins


def test_origins_of_a_derivation() -> None:
    """What `explain` shows in brackets."""
    made = planned.plan(planned.here(ONE_TASK_PER_NODE, devices=planned.FOUR_GPUS))

    assert {item.name: item.origin for item in made.derived} == {
        "nnodes": "Slurm step",
        "hosts": "Slurm step",
        "node_rank": "Slurm step",
        "nproc_per_node": "CUDA_VISIBLE_DEVICES=0,1,2,3",
        "rdzv_backend": "default",
        "rdzv_id": "job, step and restart count",
        "master_addr": "first of the Slurm step's nodes",
        "master_port": "first of the port range that is free, by a hash of rdzv_id",
        "devices": "CUDA_VISIBLE_DEVICES=0,1,2,3",
        "cpu_bind": "sysfs says nothing about the CPUs",
        "omp_num_threads": "16 allowed CPUs / 4 local ranks",
        "open_files": "default",
        "start": "default",
        "log_dir": "directory of submission",
        "job_directory": "job and step",
    }


# ---- why it failed


def of(*workers: Worker, nodes: Sequence[NodeEvent] = ()) -> list[str]:
    """Return what is said of an attempt that failed."""
    cause = root_cause.find_root_cause(failed.attempt(*workers), nodes)
    assert cause is not None
    return failure_messages.failure_block(cause)


@pytest.mark.parametrize(
    ("make", "lines"),
    [
        (
            lambda: of(
                *(failed.worker(rank, 1, raised="OSError: x") for rank in range(6)),
                failed.worker(6, 9),
                failed.ended(7),
            ),
            [
                "ranks 0-5 on gpu[001-003] failed with exit status 1: OSError: x",
                "first: rank 0 on gpu001 (local rank 0)",
                "at train.py:1",
                "also: rank 6 on gpu004 (local rank 0) failed with exit status 9",
                "1 other rank followed (ended by hpc-launch: 1)",
            ],
        ),
        (
            lambda: of(failed.worker(3, -11)),
            [
                "rank 3 on gpu002 (local rank 1) failed with SIGSEGV: invalid memory access",
            ],
        ),
        (
            lambda: of(
                failed.worker(0, 1, raised=failed.SYMPTOMS[1][0]),
                nodes=[NodeEvent(95.0, 0, "lost", "gpu002", "gpu001")],
            ),
            [
                "lost gpu002: its agent was killed, or the node is gone",
                "1 other rank followed (lost their connection: 1)",
            ],
        ),
        (
            lambda: of(*(failed.worker(rank, 1, raised=failed.SYMPTOMS[5][0]) for rank in range(3)), failed.ended(3)),
            [
                "rank 3 on gpu002 (local rank 1) failed: it was still running when other ranks had waited for it in vain: it may hang",
                "3 other ranks followed (waited for others in vain: 3)",
            ],
        ),
        (
            lambda: of(failed.worker(3, None, None, told="SIGKILL", failure=Failure(hung="nfs4_wait"))),
            [
                "rank 3 on gpu002 (local rank 1) failed: it hangs in the kernel (nfs4_wait) and could not be killed",
            ],
        ),
    ],
)
def test_root_causes(make: Maker, lines: list[str]) -> None:
    """The first cause in a line, then where to look, then who followed."""
    assert shown(make()) == lines


def test_lost_nodes() -> None:
    """What Slurm knows of them, and what the next job had better be without."""
    well = NodeState(140.0, "gpu1", "MIXED", gone=False, reason="", since=None, booted=5.0, waited=40.0, last=True)
    unnoticed = dataclasses.replace(well, last=False)
    down = dataclasses.replace(well, state="DOWN", gone=True, reason="it smokes")

    assert [failure_messages.slurms_word(state) for state in (down, unnoticed, well)] == [
        "Slurm says DOWN: it smokes",
        "Slurm said MIXED 40 s later, and may not have noticed yet",
        "Slurm says that the node is up (MIXED) 40 s later: its agent was killed, or the network between the nodes failed",
    ]
    assert (
        nodes_to_exclude.bad_nodes_advice(
            [BadNode("gpu1", "was lost"), BadNode("gpu2", "was lost"), BadNode("gpu7", "is broken")]
        )
        == "bad nodes: each of gpu[1-2] was lost; gpu7 is broken; for the next job: --exclude=gpu[1-2,7]"
    )


# ---- what agents decide


def test_requeues() -> None:
    """Whether the job runs again, and why not."""
    last, spent = (requeued.entry(),) * 3, (requeued.entry(),) * 4
    complete = requeue.Progress(marked=True, begin=1, step=10, total=10)
    decisions = [
        requeue.decide(requeued.ALL, "timeout", "time limit", last, requeued.FURTHER),
        requeue.decide(requeued.ALL, "preempt", "preemption", last, requeued.FURTHER),
        requeue.decide(requeued.ALL, "timeout", "time limit", spent, requeued.FURTHER),
        requeue.decide(requeued.ALL, "timeout", "time limit", (requeued.IDLE,) * 2, requeued.STUCK),
        requeue.decide(requeued.ALL, "notice", "USR1", (), complete),
        requeue.decide(dataclasses.replace(requeued.ALL, on=frozenset()), "failure", "x", (), requeued.FURTHER),
    ]

    assert [decision.why for decision in decisions] == [
        "requeued (4 of 4): time limit",
        "requeued (not counted): preemption",
        "not requeued: --max-requeues 4 is used up",
        "not requeued: 3 runs in a row made no progress (no new runtime.mark_progress)",
        "not requeued: the training is complete (step 10 of 10)",
        "not requeued: --requeue does not say on-failure",
    ]


def test_agents_that_do_not_go_on() -> None:
    """Who is there, who is missing, and what that means."""

    def names(agents: Iterable[int]) -> str:
        return ",".join(f"gpu{agent}" for agent in sorted(agents))

    spares = Membership(3, (0, 1, 2, 3), "x", (0, 1))
    found = [
        joining.gathering(0, 2, first=True, waited=601.2),
        joining.gathering(0, 1, 2),
        joining.gathering(1, 3, refused={Half("x", (1, 3))}),
        joining.gathering(1),
        joining.gathering(2, 3, newest=spares),
    ]

    assert [join_policy.why_not_begun(here, joining.TERMS, names, "/logs/7/memberships") for here in found] == [
        "gpu1,gpu3 did not join in 601 s (2/4 joined): look at the node's own output, exclude it, or wait longer with --join-timeout",
        "only gpu0,gpu1,gpu2 is left, and --nnodes asks for 2 nodes at least",
        "gpu1,gpu3 cannot go on without gpu0,gpu2: those have gone on, or /logs/7/memberships is not to be seen from here",
        "gpu1 cannot go on without gpu0,gpu2,gpu3: those could be a majority, and train",
        "gpu2,gpu3 cannot go on without gpu0,gpu1: those have the workers, and could train",
    ]
    other = {**checked.SOFTWARE, "torch": "2.4.0"}
    assert refusal([checked.member(1), checked.member(2), checked.member(3, software=other)]) == (
        "the nodes do not run the same torch: 2.13.0 on gpu[01-02]; 2.4.0 on gpu03",
        69,
    )


def test_a_step_that_is_blocked() -> None:
    """Who has the nodes, and what can be done."""
    place = stepped.here(BATCH)
    found = (stepped.running(3, "gpu02", "gpu03"),)

    assert (
        step_plan.blocked(stepped.chosen(place, nodes="gpu[01-02]"), stepped.job_of(place), found)
        == "job 4711 has nothing left for another step on gpu[01-02]: step 4711.3 (sleep) on gpu[02-03] has it; wait for its end, or end it with 'scancel 4711.3', or use the free nodes with --nodes 'gpu[01,04]', or share with --overlap"
    )


# ---- how a job stands


def stands(found: History, slurm: SlurmAnswer | None, *, alive: bool | None = None, age: float | None = 20) -> str:
    """Return how a job stands, in words."""
    sign = None if age is None else stood.NOW - age
    return job_state.judge_job_state(found, slurm, now=stood.NOW, alive=alive, sign=sign).words


def test_standings() -> None:
    """What a job says itself, what Slurm says of it, and what nobody can see."""
    began, failed_once = stood.story(stood.attempt()), stood.story(stood.attempt("failed", code=7))
    asked = stood.story(stood.attempt("failed", code=7), requeues=1)
    signalled = stood.story(stood.attempt("failed", code=143, signal="SIGTERM"))

    assert [
        stands(failed_once, stood.record("FAILED")),
        stands(signalled, None),
        stands(stood.NOTHING, stood.record("RUNNING")),
        stands(stood.NOTHING, stood.record("PENDING", reason="Priority")),
        stands(began, stood.record("SUSPENDED")),
        stands(began, stood.record("COMPLETED")),
        stands(began, stood.record("NODE_FAIL")),
        stands(began, stood.record("RUNNING", step=False)),
        stands(began, stood.FORGOTTEN),
        stands(began, None, alive=False),
        stands(began, stood.BLIND),
        stands(began, stood.BLIND, age=stood.LONG),
        stands(stood.NOTHING, stood.BLIND, age=None),
        stands(asked, stood.BLIND),
        stands(asked, stood.record("PENDING", reason="BeginTime")),
        stands(asked, stood.record("RUNNING")),
        stands(asked, stood.record("RUNNING", restarts=1)),
        stands(asked, stood.record("CANCELLED")),
        stands(asked, stood.FORGOTTEN),
    ] == [
        "failed, exit status 7",
        "stopped by SIGTERM, exit status 143",
        "running (Slurm); hpc-launch has not written anything yet",
        "waiting (Priority: others are first)",
        "running, but suspended (Slurm)",
        "over, as Slurm says, without a word of how it ended",
        "node fail (Slurm), without a last word of its own",
        "its step has ended without a last word; silent for 20 s",
        "over: Slurm does not know it any more; its last sign of life is 20 s old",
        "its processes are gone, without a last word; its last sign of life is 20 s old",
        "running, by its own records; its last sign of life is 20 s old",
        "it cannot be seen whether it runs; its last sign of life is 23 min 20 s old",
        "it cannot be seen whether it runs; it gave no sign of life",
        "requeued, after it failed, exit status 7",
        "requeued, and waits (BeginTime: its start time is yet to come), after it failed, exit status 7",
        "about to be requeued, after it failed, exit status 7",
        "started again by Slurm, after it failed, exit status 7",
        "requeued, and then cancelled (Slurm)",
        "requeued, and then it came to nothing: Slurm does not know it any more",
    ]


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("Resources", "Resources: first in the queue, until enough nodes are free"),
        ("ReqNodeNotAvail, Reserved", "ReqNodeNotAvail, Reserved: a node that it needs is down, drained or reserved"),
        ("AssocGrpGRESMinutes", "AssocGrpGRESMinutes: a limit of yours, or of your group, is reached"),
    ],
)
def test_reasons_for_waiting(reason: str, line: str) -> None:
    """Slurm's own word, and what it means."""
    assert explain(reason) == line


def test_a_status(tmp_path: Path) -> None:
    """The lines of a job that has lost nodes, and of one that has not begun."""
    job = JobDirectory(tmp_path / "logs", "47.0")
    Losses(job.path, "", looked.NOW - 300).write()
    lossy = looked.head(looked.seen(job, looked.RUNNING))
    waiting = looked.head(job_status.without_directory(JobRecord("47", "PENDING")))

    assert (lossy["attempt"], lossy["back"], lossy["lost"], waiting["files"]) == (
        "3; for 2 min; 3 restarts before it in this run",
        "gpu001, which takes part from the next attempt on",
        "gpu[004-005], the last 2 min ago; down, as Slurm says: gpu004",
        "there is no job directory yet",
    )


def test_a_job_that_a_notebook_cannot_see() -> None:
    """What was seen last, and why there is nothing newer."""
    job, board = displayed.Job(), NotebookUpdater(pause=3600)
    handle = displayed.put(board, job)
    job.broken = "Stale file handle"
    board.settle()
    wait_for(lambda: handle.shown and job.broken in handle.shown[-1], displayed.TIMEOUT, "it is not said")
    said, job.broken, job.state = handle.shown[-1], "", job_state.State.DONE
    board.settle()

    assert said == "train (job 4711): running, starting, it cannot be seen: Stale file handle"
