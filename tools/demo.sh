#!/usr/bin/env bash
# Train examples/digits: on up to four nodes of the Slurm that answers here, else on this machine alone.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

# Without a GPU to count, hpc-launch would start one worker per node; a demonstration shows two.
workers=(--nproc-per-node 2)
training=(examples/digits/train.py --fresh)

# Nodes of the default partition (marked with a star) which can take a job now.
nodes=$(timeout 20 sinfo --noheader --Node --responding --states=idle,mixed --format='%P %N' 2>/dev/null |
    grep -c '^[^ ]*\* ' || true)

# Within an allocation, hpc-launch itself knows what to do.
if (( nodes == 0 )) || [[ -n ${SLURM_JOB_ID:-} ]]; then
    [[ $(nvidia-smi -L 2>/dev/null) != GPU* ]] || workers=()
    exec hpc-launch "${workers[@]}" "${training[@]}"
fi

mkdir -p logs
output=logs/demo.out
: >"$output"
sbatch --wait --nodes="$(( nodes < 4 ? nodes : 4 ))" --cpus-per-task=2 --time=10 --job-name=digits --output="$output" \
    sbatch_templates/cpu.sbatch "${workers[@]}" "${training[@]}" &
tail --pid=$! --follow "$output"
wait $!
