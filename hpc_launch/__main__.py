"""`python -m hpc_launch`."""

from hpc_launch.entry import main

if __name__ == "__main__":
    main()
