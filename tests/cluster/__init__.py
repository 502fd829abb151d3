"""A real multi-node Slurm cluster on one machine, private to whoever starts it.

Every node is a network namespace (own address), a UTS namespace (own host name), a mount namespace (own
/etc/hosts and /sys) and a cgroup of its own, with a real slurmd in it. The head is one more such namespace: it
holds the bridge that joins the nodes, slurmctld and munged, and clients run there. So nothing of the host's
network or /etc is touched, addresses and ports are the same in every cluster, and clusters cannot meet. The rest
of the file system is the host's, shared by all nodes, /tmp and /dev/shm too; and so are process numbers. That is so
with every release of Slurm: one that is not the machine's own lies in a directory and brings its libraries along, so
that its jobs find the same Python as all others.

The modules: `config` says what a cluster is like and writes its files as text, `releases` where a Slurm is, `host`
holds what is done to the machine, `cluster` puts them together, `jobs` follows a batch job. `python -m tests.cluster`
is for developers.
"""

from tests.cluster.cluster import Cluster, ClusterError
from tests.cluster.config import ClusterConfig
from tests.cluster.host import why_unavailable
from tests.cluster.jobs import Job, JobResult

__all__ = ["Cluster", "ClusterConfig", "ClusterError", "Job", "JobResult", "why_unavailable"]
