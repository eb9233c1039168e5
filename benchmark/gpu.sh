#!/usr/bin/env bash
# benchmark/gpu.sh [OPTION ...]: all that a CUDA machine can tell, with MuJoCo Warp; options go to every training.
# How far MuJoCo Warp is from MuJoCo in C (two minutes, in which Warp compiles);
# control steps/s of physics, environment step and training with 1024, 4096 and 16384 environments; the largest costs of
# a training; samples and minutes to a walk with a pose error of .035 m; what bfloat16 and torch.compile would give;
# what more GPUs give, if there are any. Printed, and written to gpu.md; raw figures in gpu_*.json and
# gpu_time_to_walk.jsonl; beside this file. All but its last part took 400 s on an H100.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
  echo "error: benchmark/gpu.sh: PyTorch finds no CUDA device" >&2
  exit 2
fi
if ! python -c 'import mujoco_warp' 2> /dev/null; then
  echo "error: benchmark/gpu.sh: pip install -r requirements-warp.txt (Python 3.11 or newer)" >&2
  exit 2
fi
throughput() {
  printf '\n## throughput.py %s\n\n' "$*"
  python "$here/throughput.py" "$@"
}
{
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  printf '\n## warp_against_c.py\n\n'
  python "$here/warp_against_c.py" --out "$here/gpu_against_c.json"
  for n in 1024 4096 16384; do
    throughput --repeats 5 --iterations 20 --out "$here/gpu_$n.json" --sim warp --cuda --num-envs "$n" "$@"
  done
  throughput --profile --iterations 10 --sim warp --cuda "$@"
  printf '\n## precision.py\n\n'
  python "$here/precision.py" --out "$here/gpu_precision.json" --sim warp --cuda "$@"
  gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
  if [[ $gpus -gt 1 ]]; then
    printf '\n## scaling.py\n\n'
    python "$here/scaling.py" --out "$here/gpu_scaling.json" --processes $(seq 2 2 "$gpus") --sim warp --cuda "$@"
  fi
  printf '\n## time_to_walk.py\n\n'
  python "$here/time_to_walk.py" --out "$here/gpu_time_to_walk.jsonl" --seeds 1 --error 0.035 --every 820000 \
    --sim warp --cuda "$@"
} | tee "$here/gpu.md"
