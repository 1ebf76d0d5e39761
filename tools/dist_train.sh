#!/usr/bin/env bash
# Train with one process a GPU, or several on the CPU where there is none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

if (($# < 2)); then
  cat >&2 << 'USAGE'
usage: tools/dist_train.sh CONFIG GPUS [ARGUMENTS OF tools/train.py]

GPUS is the number of processes on this node: one a GPU, or on the CPU where
there is no GPU. On several nodes, run it on each with NNODES, NODE_RANK (from
0 on) and MASTER_ADDR (of the first) set, and PORT where 29500 is taken.
USAGE
  exit 2
fi
with_torchrun train.py "$2" "$1" "${@:3}"
