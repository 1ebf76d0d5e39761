#!/usr/bin/env bash
# Train as a job of Slurm.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

if (($# < 3)); then
  cat >&2 << 'USAGE'
usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [ARGUMENTS OF tools/train.py]

GPUS (8), GPUS_PER_NODE (8 at most) and CPUS_PER_TASK (5) say how large the job
is; SRUN_ARGS holds more arguments of srun.
USAGE
  exit 2
fi
with_srun "$1" "$2" train.py "${@:3}"
