"""The launcher for PyTorch on Slurm: `srun hpc-launch train.py` is all there is to type."""

__version__ = "0.1.0"
