"""`python -m hpc_launch.launch`: stands in for `python -m torch.distributed.launch`.

As there, the script gets `--local-rank=N` unless `--use-env` is given.
"""

from hpc_launch.cli import launch_main

if __name__ == "__main__":
    launch_main()
