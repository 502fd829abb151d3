"""`hpc-launch check`: find the bad node before the training does.

`request` says which nodes are meant. `run` starts one probe on each of them (`probes`), asks these for one thing after
another, and gathers what they say, and what they do not, as `evidence`; `judge` says what that means, and `show` tells
it. All of it goes through srun's standard streams, which work where the training's network does not. A probe has
`tasks`: it looks at its node (`facts`), at the way to the others (`reach`) and, with torch, at its devices and at an
all-reduce (`bench`).
"""
