"""Probes: one process on each node of a job, which does what it is asked to. What that is, others know."""
