"""Warm start: import what workers need once, and fork each worker from there.

`factory` is the process that has imported and forks, `child` makes a forked process a worker, and `script` makes that
the training script. Nothing here knows torch: what is imported is a parameter.
"""
