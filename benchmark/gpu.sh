#!/usr/bin/env bash
set -euo pipefail
if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
  echo "error: benchmark/gpu.sh: PyTorch finds no CUDA device" >&2
  exit 2
fi
