#!/bin/sh
# Make the pictures in docs/ anew, from the policies in pretrained/:
#
#     sh docs/pictures.sh              # PYTHON=... names another Python
#
# It writes docs/rollouts/*.npz (what `python motions/view.py` shows), docs/walk.png, docs/clips.png, docs/walk.gif, docs/figure_eight.mp4, docs/walk.html and,
# with playwright and Chromium, docs/view.png and docs/steer.png. It needs requirements-motions.txt and an OpenGL (motions/README.md). The evaluations
# are of copies of the checkpoints, so that the roll-outs in pretrained/ stay what they are. Six minutes on two CPU cores.
set -e
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/pretrained"  # films name the checkpoint by its folder
cp pretrained/*.pt "$scratch/pretrained"

"$python" amp_ppo_isaacgym.py --evaluate --checkpoint "$scratch/pretrained/walk.pt" --out "$scratch/walk"
"$python" amp_ppo_heading.py --evaluate --checkpoint "$scratch/pretrained/heading.pt" --out "$scratch/heading" --eval-commands motions/figure_eight.csv
mkdir -p docs/rollouts
for name in walk heading; do
    "$python" motions/convert.py "$scratch/$name/rollouts/000.npz" "docs/rollouts/$name.npz" --end 10 \
        --source "roll-out of pretrained/$name.pt" --license "as the clips it imitates"
done

"$python" motions/render.py docs/rollouts/walk.npz docs/walk.png --compare motions/walk.npz
strip() {  # NAME ROLL-OUT [OPTION...]: one cycle
    roll_out=$2 name=$1
    shift 2
    "$python" motions/render.py "$roll_out" "$scratch/$name.png" --compare "motions/$name.npz" --size 960 340 --poses 9 "$@"
}
for name in run spinkick cartwheel jump roll; do
    "$python" amp_ppo_isaacgym.py --evaluate --checkpoint "$scratch/pretrained/$name.pt" --eval-episodes 4 --eval-seconds 10 --out "$scratch/$name"
done
strip walk docs/rollouts/walk.npz
for name in run spinkick cartwheel jump roll; do
    strip "$name" "$scratch/$name/rollouts/000.npz" --legend ""
done
"$python" - "$scratch" <<'END'
import sys

import numpy as np
from PIL import Image

strips = [np.asarray(Image.open(f"{sys.argv[1]}/{name}.png")) for name in ("walk", "run", "spinkick", "cartwheel", "jump", "roll")]
Image.fromarray(np.concatenate(strips)).save("docs/clips.png", optimize=True)  # one under the other
END
# three cycles of 1.27 s: the last picture leads over to the first, and so does the floor
"$python" motions/render.py docs/rollouts/walk.npz docs/walk.gif --compare motions/walk.npz --start 2 --seconds 3.74 --size 640 360
"$python" motions/render.py "$scratch/heading/rollouts/000.npz" docs/figure_eight.mp4 --commands motions/figure_eight.csv --turn 90
"$python" motions/view.py docs/rollouts/walk.npz motions/walk.npz --layout beside --html docs/walk.html

"$python" -c 'import playwright' 2>/dev/null && command -v chromium >/dev/null || exit 0
"$python" docs/page_pictures.py
