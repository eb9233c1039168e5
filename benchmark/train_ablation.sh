#!/usr/bin/env bash
# benchmark/train_ablation.sh [SEED ...] [OPTION ...]: what each departure from the AMP paper is worth. The walk, pure
# imitation, seed 1: our defaults; each of them back at the paper's way, one at a time; all of them at once, which is the
# nearest to the paper that options reach. ROWS="0 7" chooses rows; every run is added to train_ablation.jsonl.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ours="--task none"
back=("--disc-loss lsgan" "--disc-noise 0" "--clone-updates 0" "--anneal 0" "--average-share 0" "--update-epochs 2 --target-kl 0.03")
experiments=("$ours")
for options in "${back[@]}"; do
  experiments+=("$ours $options")
done
experiments+=("$ours ${back[*]}")
chosen=()
for row in ${ROWS:-${!experiments[@]}}; do
  chosen+=("${experiments[$row]}")
done
exec python "$here/train.py" "$here/train_ablation.jsonl" "${chosen[@]}" -- "${@:-1}"
