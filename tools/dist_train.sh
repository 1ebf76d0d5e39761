#!/usr/bin/env bash
# Train with one process for each GPU, or with several processes on CPUs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

if (($# < 2)); then
  cat >&2 << 'USAGE'
usage: tools/dist_train.sh CONFIG GPUS [ARGUMENTS OF tools/train.py]

GPUS is the number of processes on this node: one for each GPU, or any number
if there is no GPU. For several nodes, run the script on each of them with these
variables: NNODES, the number of nodes; NODE_RANK, from 0 to NNODES - 1;
MASTER_ADDR, the address of node 0; PORT, if port 29500 is in use there.
USAGE
  exit 2
fi
name_command "$0" "$@"
with_torchrun train.py "$2" "$1" "${@:3}"
