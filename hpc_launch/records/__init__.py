"""What a run leaves behind: the job directory and the events in it."""
