#!/usr/bin/env bash
# A TPU VM or pod slice on Google Cloud: created, set up, trained on, deleted. Every worker runs the same commands.
#
#   launch/tpu.sh create NAME --zone=us-west4-a --type=v5litepod-16
#   launch/tpu.sh setup  NAME --zone=us-west4-a      installs the last commit of this checkout on all workers
#   launch/tpu.sh train  NAME --zone=us-west4-a -- --config=configs/paper.py:jpeg-5 --mode=distill \
#     --workdir=/mnt/shared/jpeg-5 --config.distill.accumulate=2 --config.data.source=folder:/mnt/shared/imagenet \
#     --config.teacher.checkpoint=/mnt/shared/teacher --config.distill.auxiliary_start=/mnt/shared/teacher-raw
#   launch/tpu.sh log    NAME --zone=us-west4-a      what the first worker prints; Ctrl-C leaves the run alone
#   launch/tpu.sh stop   NAME --zone=us-west4-a      the run saves and ends; the same train goes on
#   launch/tpu.sh delete NAME --zone=us-west4-a
#
# A zone has some types only: us-west4-a v5litepod, us-east5-b v6e. --spot asks for a preemptible one. --dry_run only
# prints the commands. setup copies the code alone: mount a disk with teacher and data on it (Filestore) or a bucket
# (gcsfuse), not gs://, on all workers before train. Several hosts need a --workdir that they share; a bucket needs a
# hierarchical namespace: a checkpoint is complete when its folder is renamed. Needs gcloud, logged in and with a project.
set -euo pipefail

usage() {
  sed -n '2,17s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

(($# >= 2)) || usage
action=$1 name=$2
shift 2
zone='' type='' spot=() dry_run=false
while (($#)); do
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --spot) spot=(--spot) ;;
    --dry_run) dry_run=true ;;
    --)
      shift
      break
      ;;
    *) usage ;;
  esac
  shift
done
[[ -n "$zone" ]] || usage

run() {
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

vm=(gcloud compute tpus tpu-vm)
on_all() { run "${vm[@]}" ssh "$name" --zone="$zone" --worker=all --command="$1"; }

# The runtime of a generation: https://cloud.google.com/tpu/docs/runtimes
case $type in
  v6e*) runtime=v2-alpha-tpuv6e ;;
  v5litepod*) runtime=v2-alpha-tpuv5-lite ;;
  v5p*) runtime=v2-alpha-tpuv5 ;;
  *) runtime=tpu-ubuntu2204-base ;;
esac

case $action in
  create)
    [[ -n "$type" ]] || usage
    run "${vm[@]}" create "$name" --zone="$zone" --accelerator-type="$type" --version="$runtime" ${spot[@]+"${spot[@]}"}
    ;;
  setup) # by uv, since the runtimes' own Python is older than ours
    archive=$(mktemp -u).tar.gz root=$(dirname "$0")/..
    if [[ -n "$(git -C "$root" status --porcelain)" ]]; then
      echo "warning: changes that are not committed are left out (git status shows them)" >&2
    fi
    run git -C "$root" archive --output="$archive" HEAD
    run "${vm[@]}" scp "$archive" "$name:ibmd_jax.tar.gz" --zone="$zone" --worker=all
    on_all 'mkdir -p ibmd_jax && tar -xzf ibmd_jax.tar.gz -C ibmd_jax && cd ibmd_jax && python3 -m pip install -q uv && python3 -m uv venv --allow-existing --python 3.11 .venv && python3 -m uv pip install -p .venv -e .[tpu]'
    ;;
  train)
    (($#)) || usage
    # In the background: the run is not to end with the connection.
    alone="if kill -0 \$(cat run.pid) 2> /dev/null; then echo 'a run is at work: stop it first' >&2; exit 1; fi"
    on_all "cd ibmd_jax && { $alone; } && . .venv/bin/activate && { nohup python3 -m ibmd_jax.main $(printf '%q ' "$@")--coordinator=auto >> run.log 2>&1 < /dev/null & echo \$! > run.pid; }"
    ;;
  log) run "${vm[@]}" ssh "$name" --zone="$zone" --worker=0 --command='tail -n 50 -f ibmd_jax/run.log' ;;
  stop) on_all "kill -TERM \$(cat ibmd_jax/run.pid)" ;;
  delete) run "${vm[@]}" delete "$name" --zone="$zone" ;;
  *) usage ;;
esac
