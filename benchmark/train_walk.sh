#!/usr/bin/env bash
# benchmark/train_walk.sh [SEED ...] [OPTION ...]: the default command with seeds 1 2 3, and how well each has learnt to
# walk. Options go to the training; every run is added to train_walk.jsonl beside this file.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec python "$here/train.py" "$here/train_walk.jsonl" "" -- "$@"
