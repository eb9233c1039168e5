#!/usr/bin/env bash
# benchmark/train_run.sh [SEED ...] [OPTION ...]: the run clip with seeds 1 2 3, with the speed task and as pure
# imitation. Options go to the training; every run is added to train_run.jsonl beside this file.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec python "$here/train.py" "$here/train_run.jsonl" \
  "--motion-file motions/run.npz --task speed --substeps 4 --total-timesteps 5000000" \
  "--motion-file motions/run.npz --task none --substeps 4 --total-timesteps 5000000" -- "$@"
