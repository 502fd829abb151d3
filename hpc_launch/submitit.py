"""For those who keep their own submitit executor: `executor.submit(ElasticTask("train.py", "--lr", "1e-3"))`."""

from __future__ import annotations

from hpc_launch.api.elastic_task import ElasticTask

__all__ = ["ElasticTask"]
