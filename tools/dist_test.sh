#!/usr/bin/env bash
# Test with one process for each GPU, or with several processes on CPUs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

if (($# < 3)); then
  cat >&2 << 'USAGE'
usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [ARGUMENTS OF tools/test.py]

GPUS is the number of processes on this node: one for each GPU, or any number
if there is no GPU. For several nodes, run the script on each of them with these
variables: NNODES, the number of nodes; NODE_RANK, from 0 to NNODES - 1;
MASTER_ADDR, the address of node 0; PORT, if port 29500 is in use there.
USAGE
  exit 2
fi
with_torchrun test.py "$3" "$1" "$2" "${@:4}"
