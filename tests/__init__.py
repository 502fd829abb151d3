"""The tests of hpc-launch, and the private Slurm cluster that they run on."""
