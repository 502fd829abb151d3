"""Many runs at once in one job: agents of one never meet those of another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.slurm.steps_support import DEADLINE
from tests.support import LEAVE

NODES = ("gpu001", "gpu002")
AT_ONCE = 5

# Each rank writes down of which run it is, and whom it could meet.
SAYS = (
    """
import json, os, pathlib, sys

names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
facts = {name: os.environ[name] for name in (*names, "SLURMD_NODENAME", "SLURM_STEP_ID")}
path = pathlib.Path("said", f"{sys.argv[1]}-{facts['SLURMD_NODENAME']}")
path.write_text(json.dumps(facts))
"""
    + LEAVE
)

# Runs of both nodes start at the same moment, wave after wave. Nothing tells them apart but a word.
WAVES = """
for wave in $(seq {waves}); do
    for number in $(seq {at_once}); do
        srun --overlap --nodes=2 --ntasks-per-node=1 --mem=0 \\
            hpc-launch --nproc-per-node=1 says.py $wave-$number &
        pids="$pids $!"
    done
    for pid in $pids; do wait $pid || exit 1; done
    pids=
done
"""


@dataclass(frozen=True)
class Said:
    """What the ranks of one run have written down.

    Attributes:
        ranks: the rank of each node.
        shared: the facts that all ranks of a run have in common, once for each value.
        step: of Slurm.
    """

    ranks: dict[str, str]
    shared: frozenset[tuple[str, ...]]
    step: str


def read(folder: Path, run: str) -> Said:
    """What was written down in a run."""
    found = {path.name.rpartition("-")[2]: json.loads(path.read_text()) for path in folder.glob(f"said/{run}-*")}
    names = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    shared = frozenset(tuple(facts[name] for name in (*names, "SLURM_STEP_ID")) for facts in found.values())
    return Said(
        {node: facts["RANK"] for node, facts in found.items()}, shared, next(iter(found.values()))["SLURM_STEP_ID"]
    )


@pytest.mark.parametrize("waves", [1, pytest.param(40, marks=[pytest.mark.soak, pytest.mark.timeout(3000)])])
def test_runs_that_start_at_once_do_not_meet(cluster: Cluster, tmp_path: Path, waves: int) -> None:
    """Each has its two nodes, its own store and its own directory, and ends well."""
    (tmp_path / "says.py").write_text(SAYS)
    (tmp_path / "said").mkdir()
    script = WAVES.format(waves=waves, at_once=AT_ONCE)
    result = cluster.sbatch(script, "--nodes=2", "--exclusive", cwd=tmp_path).wait(DEADLINE * max(1, waves / 8))
    runs = [f"{wave}-{number}" for wave in range(1, waves + 1) for number in range(1, AT_ONCE + 1)]
    said = [read(tmp_path, run) for run in runs]
    crossed = [one for one in said if one.ranks != dict(zip(NODES, "01", strict=True)) or len(one.shared) != 1]

    assert result.state == "COMPLETED", result.output
    assert crossed == []
    assert len({one.shared for one in said}) == len(runs)
    assert len([path for path in (tmp_path / "logs").iterdir() if path.name[0].isdigit()]) == len(runs)
