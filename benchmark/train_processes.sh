#!/usr/bin/env bash
# benchmark/train_processes.sh [SEED ...] [OPTION ...]: the default command with seeds 1 2 3, by two processes of torchrun
# and by one. Options go to the training; every run is added to train_processes.jsonl beside this file.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec python "$here/train.py" "$here/train_processes.jsonl" "torchrun 2" "" -- "$@"
