"""From what was asked (`Settings`) and what is here (`LaunchContext`) to what will be done (`Plan`).

A plan is a value that can be printed; making one starts nothing. Only `launch_context.gather_context` looks at the
world. `derivation.make_plan` puts a plan together, and each decision has a file:

- `participants`: which nodes take part, and how many are needed
- `rendezvous_backend`: by which rendezvous they meet, and where the first node is found
- `run_identity`, `identity`, `similar_commands`: what tells a run from others
- `local_ranks`: how many workers, and which devices they see
- `cpu_binding`, `shares`, `threads`, `open_files`: on which CPUs, and with how many threads and open files
- `start_method`, `script_scan`: forked from a process that has imported torch, or not
- `log_paths`: where files go
- `step_plan`, `step_forecast`: whether to start a Slurm step, which, and what it will find
- `requeue`: whether the job is to run again
- `traps`, `advice`, `termination_forecast`: what is probably not meant, worth knowing, or going to happen
"""
