"""Build Slurm command lines: lists of words, run by nobody here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hpc_launch.slurm import inventory


def run_step(command: Sequence[str], *, nodes: int, cpus_per_task: str = "") -> list[str]:
    """The srun line that starts one agent on each of `nodes` nodes.

    `--cpus-per-task` is repeated where the job has it, because srun of Slurm 22.05 to 23.02 does not take it from the
    job's variables, and the step would get one CPU (release notes of 22.05 and 23.11). `--ntasks` is needed beside
    `--ntasks-per-node`, because a job's SLURM_NTASKS would win over that (srun(1)).
    """
    line = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    if cpus_per_task:
        line.append(f"--cpus-per-task={cpus_per_task}")
    return [*line, *command]


def quote(command: Sequence[str]) -> str:
    """The command as a line for the shell."""
    return shlex.join(command)


def show_config() -> list[str]:
    """The line that asks for the cluster's configuration, and nothing about its nodes and partitions (scontrol(1))."""
    return ["scontrol", "show", "config"]


def show_job(job: str) -> list[str]:
    """The line that asks for a job, in one line per job: `1234`, or as sbatch prints it `1234;CLUSTER`."""
    number, _, cluster = job.partition(";")
    return ["scontrol", "--oneliner", *_of_cluster(cluster), "show", "job", number]


def show_queue(jobs: Sequence[str]) -> list[str]:
    """The line that asks how several jobs stand, in a line for each of them, and for each task of an array (squeue(1)).

    The reason comes last: a site's own may have anything in it.
    """
    line = ["squeue", "--noheader", "--all", "--array", "--states=all", "--format=%i|%T|%S|%e|%N|%r"]
    return [*line, f"--jobs={','.join(jobs)}"]


def show_own_jobs(user: int) -> list[str]:
    """The line that asks for a user's jobs, in a line for each job or array, with when it came.

    Those that have ended are shown for as long as the controller knows them (MinJobAge in slurm.conf(5)).
    """
    return ["squeue", "--noheader", "--all", f"--user={user}", "--states=all", "--format=%F|%T|%V"]


def cancel(job: str) -> list[str]:
    """The line that ends a job, or a task of an array."""
    return ["scancel", job]


def show_job_details(job: str) -> list[str]:
    """The line that asks for a job, with what it has on each of its nodes."""
    return ["scontrol", "--oneliner", "--details", "show", "job", job]


def show_steps(job: str) -> list[str]:
    """The line that asks for the steps of a job which have not ended, one a line."""
    return ["scontrol", "--oneliner", "show", "step", job]


def signal_step(step: str, name: str) -> list[str]:
    """The line that sends a signal to the tasks of a step, and to nothing else."""
    return ["scancel", f"--signal={name}", step]


def show_node_names() -> list[str]:
    """The line that prints what Slurm calls this host, as slurm.conf has it: nothing where it is no node of it."""
    return ["scontrol", "show", "aliases"]


def show_node(names: str) -> list[str]:
    """The line that asks the controller for a node, or several: it knows those too that slurm.conf does not name."""
    return ["scontrol", "--oneliner", "show", "node", names]


def show_partition(name: str) -> list[str]:
    """The line that asks for a partition, in one line."""
    return ["scontrol", "--oneliner", "show", "partition", name]


def write_batch_script(job: str) -> list[str]:
    """The line that asks for a job's batch script, which Slurm shows to its owner only."""
    return ["scontrol", "write", "batch_script", job, "-"]


def requeue(job: str) -> list[str]:
    """The line that has a job run again."""
    return ["scontrol", "requeue", job]


def submit_batch(options: Sequence[str] = ()) -> list[str]:
    """The line that submits the script on its standard input, and prints `ID` or `ID;CLUSTER` (sbatch(1))."""
    return ["sbatch", "--parsable", *options]


def show_nodes(partition: str = "") -> list[str]:
    """The line that asks what the nodes are like, of one partition or of all, in a line for each kind of node.

    Without `--exact` a line can stand for nodes that differ, and has the least of each number (sinfo(1)).
    """
    line = ["sinfo", "--noheader", "--exact", f"--format={inventory.FORMAT}"]
    return [*line, f"--partition={partition}"] if partition else line


def show_accounting(job: str) -> list[str]:
    """The line that asks accounting how a job ended; a line for each task of an array."""
    number, _, cluster = job.partition(";")
    line = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode"]
    return [*line, *_of_cluster(cluster), f"--jobs={number}"]


def _of_cluster(name: str) -> list[str]:
    return [f"--clusters={name}"] if name else []
