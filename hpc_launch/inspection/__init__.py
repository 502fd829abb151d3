"""What a person asks about a job, meanwhile or afterwards: the job directory answers first, and Slurm second."""
