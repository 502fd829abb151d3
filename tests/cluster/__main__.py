"""`python -m tests.cluster`: a cluster for a developer to play with."""

import argparse
import sys

from tests.cluster import host
from tests.cluster.cluster import Cluster, ClusterError
from tests.cluster.config import HEAD, ClusterConfig
from tests.cluster.releases import DEFAULT, RELEASES


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    top.add_argument("--name", default="dev", help="which cluster, if there are to be several (default: %(default)s)")
    commands = top.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start it")
    up.add_argument("-n", "--nodes", type=int, default=4)
    up.add_argument("--gpus", type=int, default=4)
    up.add_argument("--cpus", type=int, default=16)
    up.add_argument("--kill-wait", type=int, default=10)
    up.add_argument("--release", choices=RELEASES, default=DEFAULT, help="of Slurm (default: %(default)s)")
    up.add_argument("--accounting", action="store_true", help="with slurmdbd, so that sacct works")
    up.add_argument("--second-network", action="store_true", help="with a second interface per node")
    up.add_argument("--proctrack", choices=["cgroup", "linuxproc"], default="cgroup")
    commands.add_parser("down", help="remove it")
    for name, text in {
        "cut": "unplug a node's cables",
        "heal": "plug them in again",
        "kill": "kill everything on a node",
        "start": "start its slurmd again",
    }.items():
        commands.add_parser(name, help=text).add_argument("node")
    on = commands.add_parser("on", help="run a command on a node")
    on.add_argument("node")
    shell = commands.add_parser("sh", help="run a command on the head, where srun and sbatch work")
    for command in (on, shell):
        command.add_argument("argv", nargs=argparse.REMAINDER, metavar="CMD")
    guard = commands.add_parser("guard")  # internal: see host.guard
    guard.add_argument("cluster")
    guard.add_argument("owner", type=int)
    return top


def main() -> int:
    """Do what the command line says."""
    options = parser().parse_args()
    if options.command == "guard":
        host.guard(options.cluster, options.owner)
    elif options.command == "up":
        fields = {"nodes", "gpus", "cpus", "kill_wait", "release", "accounting", "second_network", "proctrack"}
        config = ClusterConfig(**{field: getattr(options, field) for field in fields})
        cluster = Cluster(config, name=options.name, keep=True)
        cluster.up()
        sys.stdout.write(cluster.run(["sinfo"]).stdout)
    elif options.command == "down":
        Cluster(name=options.name).down()
    elif options.command in {"on", "sh"}:
        cluster = Cluster.attach(options.name)
        with cluster.popen(options.argv, node=getattr(options, "node", HEAD)) as process:
            return process.wait()
    else:
        getattr(Cluster.attach(options.name), options.command)(options.node)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ClusterError, ValueError) as error:
        sys.exit(str(error))
