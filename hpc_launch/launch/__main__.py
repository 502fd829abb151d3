"""`python -m hpc_launch.launch`: stands in for `python -m torch.distributed.launch`.

As there, the script gets `--local-rank=N` unless `--use-env` is given.
"""

from hpc_launch import held_signals

held_signals.hold()

from hpc_launch.cli import launch_main  # noqa: E402 - that takes its time

if __name__ == "__main__":
    launch_main()
