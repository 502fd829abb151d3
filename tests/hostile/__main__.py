"""The command line of the attacker; see the package."""

from __future__ import annotations

import argparse
import dataclasses
import encodings.idna  # noqa: F401 - needed for addresses, and not to be imported any more by another user
import json
import os
import resource
import socket
import sys

from hpc_launch.node.port_candidates import candidates
from hpc_launch.settings import readers
from tests.hostile import listeners, strangers


def _become(uid: int) -> None:
    """Be another ordinary user, with as many descriptors as an attack may need."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _tell(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _attack(asked: argparse.Namespace) -> None:
    targets = []
    for where in asked.targets.split(","):
        address, _, port = where.rpartition(":")
        targets.append(strangers.Target(address, int(port), asked.place, asked.program, asked.seconds))
    _tell(ready=asked.targets, uid=os.getuid())
    for name in asked.attacks:
        for report in strangers.ATTACKS[name](targets):
            _tell(**dataclasses.asdict(report))


def _squat(asked: argparse.Namespace) -> None:
    tried = candidates(asked.run, asked.ports)
    squatter = listeners.Squatter(asked.address, tried, asked.place)
    squatter.squat()
    _tell(ready=tried, uid=os.getuid())
    sys.stdin.read()  # until the test has seen enough
    squatter.leave()
    _tell(met=squatter.met, broken_in=squatter.broken_in)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--uid", type=int, required=True)
    parser.add_argument("--place", required=True, help="of the run, which is public")
    commands = parser.add_subparsers(dest="command", required=True)
    attacks = commands.add_parser("strangers", help="attack listeners of a run")
    attacks.add_argument("--targets", required=True, metavar="ADDRESS:PORT,...")
    attacks.add_argument("--program", default="0" * 64, help="of the run, which is public")
    attacks.add_argument("--seconds", type=float, default=3.0, help="how long one attack lasts at most")
    attacks.add_argument("attacks", nargs="+", choices=[*strangers.ATTACKS])
    squatters = commands.add_parser("listeners", help="listen where a run's leader is looked for")
    squatters.add_argument("--address", required=True, help="of the node, where the true leader is as well")
    squatters.add_argument("--ports", type=readers.port_range, required=True)
    squatters.add_argument("--run", required=True, help="the run's id, which is public")
    asked = parser.parse_args()
    socket.getaddrinfo("127.0.0.1", 0)  # imports what it needs
    _become(asked.uid)
    {"strangers": _attack, "listeners": _squat}[asked.command](asked)


if __name__ == "__main__":
    main()
