#!/usr/bin/env bash
# benchmark/train_heading.sh [SEED ...] [OPTION ...]: the heading task with seeds 1 2 3, and how well each has learnt
# it. Options go to the training; every run is added to train_heading.jsonl beside this file.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec python "$here/train.py" "$here/train_heading.jsonl" "amp_ppo_heading.py" -- "$@"
