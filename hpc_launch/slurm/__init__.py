"""What Slurm says: its variables read, its command lines built."""
