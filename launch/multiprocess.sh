#!/usr/bin/env bash
# Several processes on this machine that work as one. The other arguments go to ibmd_jax.main.
#
#   launch/multiprocess.sh 2 --config=configs/inpaint.py
#   launch/multiprocess.sh 2 --dry_run --config=configs/inpaint.py      only prints the commands
#
# Process i sees GPU i alone where nvidia-smi finds as many, or the i-th of CUDA_VISIBLE_DEVICES; on CPU, JAX_NUM_CPU_DEVICES is the devices of each.
# PORT is where they meet: by default one that is free. When one is lost the others end, too; SIGTERM makes all save and stop.
set -euo pipefail

usage() {
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || usage
count=$1
shift
dry_run=false
if [[ "${1:-}" == --dry_run ]]; then
  dry_run=true
  shift
fi
(($#)) || usage

gpus=()
if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then # set to nothing it means no GPU
  IFS=, read -ra gpus <<< "$CUDA_VISIBLE_DEVICES"
elif command -v nvidia-smi > /dev/null; then
  found=$(nvidia-smi --list-gpus | wc -l)
  for ((i = 0; i < found; i++)); do gpus+=("$i"); done
fi

# Runs that share a port would take each other's processes for their own.
port=${PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')}

pids=()
trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' TERM INT
for ((i = 0; i < count; i++)); do
  command=(python3 -m ibmd_jax.main "$@"
    --coordinator="localhost:$port" --processes="$count" --process="$i")
  if ((count <= ${#gpus[@]})); then
    command=(env CUDA_VISIBLE_DEVICES="${gpus[i]}" "${command[@]}")
  fi
  if $dry_run; then
    printf '%q ' "${command[@]}" # quoted, to be pasted
    echo
  else
    "${command[@]}" &
    pids+=($!)
  fi
done

status=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  while kill -0 "$pid" 2> /dev/null; do # a signal interrupted the waiting
    code=0
    wait "$pid" || code=$?
  done
  ((status)) || status=$code
done
exit "$status"
