#!/usr/bin/env bash
# One process on all devices of this machine. Its arguments go to ibmd_jax.main.
#
#   launch/local.sh --config=configs/inpaint.py
#   launch/local.sh --dry_run --config=configs/inpaint.py      only prints the command
set -euo pipefail

run=()
if [[ "${1:-}" == --dry_run ]]; then
  run=(echo)
  shift
fi
"${run[@]}" python3 -m ibmd_jax.main "$@"
