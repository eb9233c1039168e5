#!/usr/bin/env bash
# benchmark/train_style.sh [OPTION ...]: what the style weight trades: the heading task with five weights, one seed, 3.28
# million samples each, over which the KL target now falls (it did not when log.md's table was made, at 8fdea8f;
# benchmark/heading.py --style-weights takes the full length). WEIGHTS="0 2" chooses
# weights; options go to the training; every run is added to train_style.jsonl beside this file.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
experiments=()
for weight in ${WEIGHTS:-0 0.25 0.5 1 2}; do
  experiments+=("amp_ppo_heading.py --style-weight $weight")
done
exec python "$here/train.py" "$here/train_style.jsonl" "${experiments[@]}" -- 1 --total-timesteps 3276800 --anneal 0 "$@"
