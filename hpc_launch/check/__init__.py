"""`hpc-launch check`: find the bad node before the training does.

`node_selection` says which nodes are meant. `preflight` starts one probe on each of them (`probes`), asks these for one
thing after another, and gathers what they say, and what they do not, as `evidence`; `findings` says what that means,
and `check_text` tells it. All of it goes through srun's standard streams, which work where the training's network does
not. A probe has `check_probe`: it looks at its node (`node_facts`), at the way to the others (`reachability`) and, with
torch, at its devices and at an all-reduce (`torch_checks`).
"""
