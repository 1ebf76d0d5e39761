#!/usr/bin/env bash
# Test with one process a GPU, or several on the CPU where there is none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

if (($# < 3)); then
  cat >&2 << 'USAGE'
usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [ARGUMENTS OF tools/test.py]

GPUS is the number of processes on this node: one a GPU, or on the CPU where
there is no GPU. On several nodes, run it on each with NNODES, NODE_RANK (from
0 on) and MASTER_ADDR (of the first) set, and PORT where 29500 is taken.
USAGE
  exit 2
fi
with_torchrun test.py "$3" "$1" "$2" "${@:4}"
