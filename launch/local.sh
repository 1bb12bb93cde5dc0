#!/usr/bin/env bash
# One process on all devices of this machine. Its arguments go to ibmd_jax.main.
#
#   launch/local.sh --config=configs/inpaint.py
#   launch/local.sh --dry_run --config=configs/inpaint.py      only prints the command
set -euo pipefail

command=(python3 -m ibmd_jax.main)
if [[ "${1:-}" == --dry_run ]]; then
  shift
  printf '%q ' "${command[@]}" "$@" # quoted, to be pasted
  echo
else
  exec "${command[@]}" "$@" # a signal to this script is one to the run
fi
