"""What Slurm sets, place by place: the variables that srun(1), sbatch(1) and salloc(1) document, with their values.

Each is what a process really has in its environment there, leftovers of the surrounding places included.
"""

from __future__ import annotations

from collections.abc import Mapping

Variables = dict[str, str]

ANY_JOB: Mapping[str, str] = {
    "SLURM_CLUSTER_NAME": "alps",
    "SLURM_CONF": "/etc/slurm/slurm.conf",
    "SLURM_JOB_ACCOUNT": "physics",
    "SLURM_JOB_ID": "4711",
    "SLURM_JOBID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_JOB_PARTITION": "gpu",
    "SLURM_JOB_UID": "1000",
    "SLURM_JOB_USER": "ada",
    "SLURM_SUBMIT_DIR": "/home/ada/project",
    "SLURM_SUBMIT_HOST": "login1",
}

# sbatch --nodes=4 --gpus-per-node=4 --ntasks-per-node=1 --cpus-per-task=16
FOUR_NODE_JOB: Mapping[str, str] = {
    **ANY_JOB,
    "SLURM_CPUS_PER_TASK": "16",
    "SLURM_GPUS_PER_NODE": "a100:4",
    "SLURM_JOB_CPUS_PER_NODE": "16(x4)",
    "SLURM_JOB_NODELIST": "gpu[01-04]",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NODELIST": "gpu[01-04]",
    "SLURM_NTASKS_PER_NODE": "1",
}

# The shell of a batch script, on the first node.
BATCH: Mapping[str, str] = {
    **FOUR_NODE_JOB,
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    "ENVIRONMENT": "BATCH",
    "HOSTNAME": "gpu01",
    "SLURMD_NODENAME": "gpu01",
    "SLURM_CPUS_ON_NODE": "16",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_GTIDS": "0",
    "SLURM_JOB_GPUS": "0,1,2,3",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "4",
    "SLURM_NODEID": "0",
    "SLURM_NPROCS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "1(x4)",
    "SLURM_TASK_PID": "1200",
    "SLURM_TOPOLOGY_ADDR": "gpu01",
    "SLURM_TOPOLOGY_ADDR_PATTERN": "node",
}


def step(
    *,
    nodes: str,
    node: str,
    node_id: int,
    tasks_per_node: str,
    tasks: int,
    task: int,
    gtids: str,
    local_task: int = 0,
    step_id: str = "0",
    job: Mapping[str, str] = BATCH,
    **more: str,
) -> Variables:
    """Return the variables of one task of a step: those of the batch script, with srun's and slurmstepd's over them."""
    count = tasks_per_node.count(",") + 1 if "(x" not in tasks_per_node else 0
    for part in tasks_per_node.split(",") if not count else ():
        count += int(part.partition("(x")[2].rstrip(")") or 1)
    return {
        **{name: value for name, value in job.items() if name != "SLURM_JOB_GPUS"},
        "SLURMD_NODENAME": node,
        "SLURM_CPUS_ON_NODE": "16",
        "SLURM_GTIDS": gtids,
        "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.99",
        "SLURM_LOCALID": str(local_task),
        "SLURM_NNODES": str(count),
        "SLURM_NODEID": str(node_id),
        "SLURM_NPROCS": str(tasks),
        "SLURM_NTASKS": str(tasks),
        "SLURM_PROCID": str(task),
        "SLURM_SRUN_COMM_HOST": "10.0.0.99",
        "SLURM_SRUN_COMM_PORT": "40123",
        "SLURM_STEPID": step_id,
        "SLURM_STEP_GPUS": "0,1,2,3",
        "SLURM_STEP_ID": step_id,
        "SLURM_STEP_LAUNCHER_PORT": "40123",
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_NUM_NODES": str(count),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": tasks_per_node,
        "SLURM_TASKS_PER_NODE": tasks_per_node,
        "SLURM_TASK_PID": "2200",
        "SLURM_TOPOLOGY_ADDR": node,
        **more,
    }


# srun hpc-launch ...: one task on each of four nodes; this is the third.
def task_of(nodes: int, node: int, local: int = 0, tasks: int = 1) -> Variables:
    """Return the variables of a task of a step whose nodes, n0 and so on, have as many tasks each."""
    numbers = range(node * tasks, (node + 1) * tasks)
    return step(
        nodes=f"n[0-{nodes - 1}]",
        node=f"n{node}",
        node_id=node,
        tasks_per_node=f"{tasks}(x{nodes})",
        tasks=nodes * tasks,
        task=numbers[local],
        gtids=",".join(map(str, numbers)),
        local_task=local,
    )


ONE_TASK_PER_NODE: Mapping[str, str] = step(
    nodes="gpu[01-04]", node="gpu03", node_id=2, tasks_per_node="1(x4)", tasks=4, task=2, gtids="2"
)

# The first of these tasks.
FIRST_OF_FOUR: Mapping[str, str] = step(
    nodes="gpu[01-04]", node="gpu01", node_id=0, tasks_per_node="1(x4)", tasks=4, task=0, gtids="0"
)

# srun --ntasks-per-node=4: sixteen tasks, numbered block by block; this is the second of the second node.
BLOCK: Mapping[str, str] = step(
    nodes="gpu[01-04]",
    node="gpu02",
    node_id=1,
    tasks_per_node="4(x4)",
    tasks=16,
    task=5,
    gtids="4,5,6,7",
    local_task=1,
    CUDA_VISIBLE_DEVICES="0",
    SLURM_NTASKS_PER_NODE="4",
)

# The first of these tasks.
FIRST_OF_BLOCK: Mapping[str, str] = step(
    nodes="gpu[01-04]",
    node="gpu01",
    node_id=0,
    tasks_per_node="4(x4)",
    tasks=16,
    task=0,
    gtids="0,1,2,3",
    CUDA_VISIBLE_DEVICES="0",
    SLURM_NTASKS_PER_NODE="4",
)

# srun --ntasks-per-node=2 --distribution=cyclic: dealt out like cards.
CYCLIC: Mapping[str, str] = step(
    nodes="gpu[01-04]",
    node="gpu02",
    node_id=1,
    tasks_per_node="2(x4)",
    tasks=8,
    task=5,
    gtids="1,5",
    local_task=1,
    SLURM_DISTRIBUTION="cyclic",
)

# srun --ntasks=7: two tasks on three nodes and one on the last, where this is.
UNEVEN: Mapping[str, str] = step(
    nodes="gpu[01-04]", node="gpu04", node_id=3, tasks_per_node="2(x3),1", tasks=7, task=6, gtids="6"
)

# srun --nodes=2 --nodelist=gpu[03-04] in a job of four nodes; the second step of the job.
SUBSET: Mapping[str, str] = step(
    nodes="gpu[03-04]", node="gpu04", node_id=1, tasks_per_node="1(x2)", tasks=2, task=1, gtids="1", step_id="1"
)

# srun --het-group=0,1, where the first component has host z1 and the second a[1-2]: the list is sorted, NODEID is not.
HETEROGENEOUS: Mapping[str, str] = step(
    nodes="a[1-2],z1",
    node="z1",
    node_id=0,
    tasks_per_node="1(x3)",
    tasks=3,
    task=0,
    gtids="0",
    job={
        **BATCH,
        "SLURMD_NODENAME": "z1",
        "SLURM_HET_SIZE": "2",
        "SLURM_JOB_ID_HET_GROUP_0": "4711",
        "SLURM_JOB_ID_HET_GROUP_1": "4712",
        "SLURM_JOB_NODELIST": "a[1-2],z1",
        "SLURM_JOB_NODELIST_HET_GROUP_0": "z1",
        "SLURM_JOB_NODELIST_HET_GROUP_1": "a[1-2]",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NODELIST": "a[1-2],z1",
    },
)

# The 17th element of an array, on one node.
ARRAY: Mapping[str, str] = step(
    nodes="gpu01",
    node="gpu01",
    node_id=0,
    tasks_per_node="1",
    tasks=1,
    task=0,
    gtids="0",
    job={
        **BATCH,
        "SLURM_ARRAY_JOB_ID": "4700",
        "SLURM_ARRAY_TASK_COUNT": "20",
        "SLURM_ARRAY_TASK_ID": "17",
        "SLURM_ARRAY_TASK_MAX": "20",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_ARRAY_TASK_STEP": "1",
        "SLURM_JOB_CPUS_PER_NODE": "16",
        "SLURM_JOB_NODELIST": "gpu01",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NODELIST": "gpu01",
    },
)

# sbatch called from within a step of job 4600 on gpu[07-08]: what that step had and sbatch does not set is still there.
STALE_BATCH: Mapping[str, str] = {
    **step(nodes="gpu[07-08]", node="gpu07", node_id=0, tasks_per_node="1(x2)", tasks=2, task=0, gtids="0"),
    **BATCH,
}

# salloc with LaunchParameters=use_interactive_step: the shell is a step of its own on the first node.
INTERACTIVE: Mapping[str, str] = {
    **FOUR_NODE_JOB,
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    "SLURMD_NODENAME": "gpu01",
    "SLURM_CPUS_ON_NODE": "16",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_GTIDS": "0",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "4",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_STEPID": "4294967290",
    "SLURM_STEP_ID": "4294967290",
    "SLURM_STEP_NODELIST": "gpu01",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_TASKS_PER_NODE": "1(x4)",
}

# salloc without it: the shell stays on the login node.
LOGIN_SHELL: Mapping[str, str] = {**FOUR_NODE_JOB, "SLURM_NNODES": "4", "SLURM_TASKS_PER_NODE": "1(x4)"}


def without(variables: Mapping[str, str], *names: str) -> Variables:
    """Return the variables but these, which must be among them."""
    left = dict(variables)
    for name in names:
        del left[name]
    return left
