# shellcheck shell=bash
# Functions of the scripts that start several processes.

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}

# Print an error and exit with 2, as the tools do for an error of the user.
fail() {
  echo "error: $*" >&2
  exit 2
}

# name_command WORDS: the command line, which a training prints to continue.
name_command() {
  printf -v MMEFFICIENTMOD_COMMAND '%q ' "$@"
  export MMEFFICIENTMOD_COMMAND
}

# with_torchrun TOOL PROCESSES [ARGUMENTS]: start the processes of this node.
with_torchrun() {
  local tool=$1 processes=$2
  shift 2
  [[ $processes =~ ^[1-9][0-9]*$ ]] ||
    fail "GPUS must be a number of processes, not '$processes'"
  local nodes=${NNODES:-1} port=${PORT:-${MASTER_PORT:-}}
  local rendezvous
  if [[ $nodes == 1 && -z $port ]]; then
    # torchrun finds a free port.
    rendezvous=(--standalone --local-addr 127.0.0.1)
  else
    if [[ $nodes != 1 && (-z ${NODE_RANK:-} || -z ${MASTER_ADDR:-}) ]]; then
      fail "NNODES=$nodes also needs MASTER_ADDR, the address of the first" \
        'node, and NODE_RANK, which counts from 0'
    fi
    rendezvous=(
      --nnodes "$nodes"
      --node-rank "${NODE_RANK:-0}"
      --master-addr "${MASTER_ADDR:-127.0.0.1}"
      --master-port "${port:-29500}"
    )
  fi
  # torchrun would set the same value, with a warning.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  exec "$python" -m mmefficientmod.engine.launch \
    "${rendezvous[@]}" --nproc-per-node "$processes" \
    "$tools/$tool" "$@" --launcher pytorch
}

# with_srun PARTITION JOB_NAME TOOL [ARGUMENTS]: start all processes of a job.
with_srun() {
  local partition=$1 job_name=$2 tool=$3
  shift 3
  local gpus=${GPUS:-8}
  local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
  local more
  read -ra more <<< "${SRUN_ARGS:-}"
  exec srun \
    --partition "$partition" \
    --job-name "$job_name" \
    --gres "gpu:$per_node" \
    --ntasks "$gpus" \
    --ntasks-per-node "$per_node" \
    --cpus-per-task "${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit 1 \
    "${more[@]}" \
    "$python" -u "$tools/$tool" "$@" --launcher slurm
}
