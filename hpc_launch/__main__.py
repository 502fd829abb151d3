"""`python -m hpc_launch`."""

from hpc_launch.cli import main

if __name__ == "__main__":
    main()
