"""Functions and scripts as jobs, from Python: submitted, started here, or run in process; results for every rank."""
