#!/bin/sh
# Make the pictures in docs/ anew, from the policies in pretrained/:
#
#     sh docs/pictures.sh              # PYTHON=... names another Python
#
# It writes docs/rollouts/*.npz (what `python motions/view.py` shows), docs/walk.png, docs/clips.png, docs/walk.gif, docs/spinkick.gif, docs/cartwheel.gif,
# docs/figure_eight.mp4, docs/walk.html and, with playwright and Chromium, docs/view.png and docs/steer.png. It needs requirements-motions.txt and an
# OpenGL (motions/README.md). The evaluations are of copies of the checkpoints, so that the roll-outs in pretrained/ stay what they are. Seven minutes, by estimate, on
# two CPU cores.
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
    "$python" motions/render.py "$roll_out" "$scratch/$name.png" --compare "motions/$name.npz" --size 840 410 --poses 7 --text 20 "$@"
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

names = (("walk", "run"), ("spinkick", "cartwheel"), ("jump", "roll"))
rows = [[Image.open(f"{sys.argv[1]}/{name}.png") for name in row] for row in names]
high = [max(strip.height for strip in row) for row in rows]
picture = Image.new("RGB", (2 * rows[0][0].width + 24, sum(high)), "white")
for row, low in zip(rows, np.cumsum(high)):
    for n, strip in enumerate(row):
        picture.paste(strip, (n * (strip.width + 24), low - strip.height))
picture.save("docs/clips.png", optimize=True)
END
# Two strides of 1.2 s, a kick, a cartwheel: the last picture leads over to the first, and so does the floor. With each kick the heading turns by
# 20 degrees or more, so that loop begins where the character spins fastest.
"$python" motions/render.py docs/rollouts/walk.npz docs/walk.gif --compare motions/walk.npz --start .8 --seconds 2.367 --size 640 360
loop() {  # NAME START SECONDS
    "$python" motions/render.py "$scratch/$1/rollouts/001.npz" "docs/$1.gif" --compare "motions/$1.npz" --start "$2" --seconds "$3" \
        --size 412 300 --text 14 --legend ""
}
loop spinkick 3.667 1.267
loop cartwheel .7 2.767
"$python" motions/render.py "$scratch/heading/rollouts/000.npz" docs/figure_eight.mp4 --commands motions/figure_eight.csv --turn 90
"$python" motions/view.py docs/rollouts/walk.npz motions/walk.npz --layout beside --html docs/walk.html

"$python" -c 'import playwright' 2>/dev/null && command -v chromium >/dev/null || exit 0
"$python" docs/page_pictures.py
