#!/usr/bin/env bash
# Train in a Slurm job.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

if (($# < 3)); then
  cat >&2 << 'USAGE'
usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [ARGUMENTS OF tools/train.py]

Variables set the size of the job: GPUS (default: 8), GPUS_PER_NODE (default: 8,
or GPUS if that is less) and CPUS_PER_TASK (default: 5). SRUN_ARGS holds further
arguments of srun.
USAGE
  exit 2
fi
name_command "$0" "$@"
with_srun "$1" "$2" train.py "${@:3}"
