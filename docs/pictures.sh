#!/bin/sh
# Make the pictures in docs/ anew, from the policies in pretrained/:
#
#     sh docs/pictures.sh              # PYTHON=... names another Python
#
# It writes docs/rollouts/*.npz (what `python motions/view.py` shows), docs/clips.png, films of a cycle (docs/walk.webp, run, spinkick, cartwheel,
# backflip), docs/figure_eight.webp, docs/curves.png, docs/walk.html and, with playwright and Chromium, docs/view.png and docs/steer.png. It needs
# requirements-motions.txt and an OpenGL (motions/README.md). The evaluations are of copies of the checkpoints, so that the roll-outs in pretrained/
# stay what they are; the walk's film is of a training of 1 million samples (runs/pictures__walk...). Ten minutes, by estimate, on two CPU cores. Each
# film is of the first roll-out; it begins where the clip begins anew, so that both leap there at most. The back-flip's episodes begin where the clip
# begins: from its take-off some fall (docs/results.md).
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

strip() {  # NAME ROLL-OUT TITLE POSES: one cycle
    "$python" motions/render.py "$2" "$scratch/$1.png" --compare "motions/$1.npz" --size 840 500 --poses "$4" --text 28 --title "$3" --legend ""
}
for name in run spinkick cartwheel backflip roll dance_a crawl; do
    mode=random
    [ "$name" = backflip ] && mode=start
    "$python" amp_ppo_isaacgym.py --evaluate --checkpoint "$scratch/pretrained/$name.pt" --eval-episodes 4 --eval-seconds 10 --reset-mode $mode \
        --out "$scratch/$name"
done
strip walk docs/rollouts/walk.npz walk 7
for name in run cartwheel roll; do
    strip "$name" "$scratch/$name/rollouts/000.npz" "$name" 7
done
strip crawl "$scratch/crawl/rollouts/000.npz" crawl 4  # who lies is long
strip spinkick "$scratch/spinkick/rollouts/000.npz" spin-kick 7
strip backflip "$scratch/backflip/rollouts/000.npz" back-flip 9
strip dance_a "$scratch/dance_a/rollouts/000.npz" dance 7
"$python" - "$scratch" <<'END'
import sys

import numpy as np
from PIL import Image

names = (("walk", "run"), ("spinkick", "cartwheel"), ("backflip", "roll"), ("dance_a", "crawl"))
rows = [[Image.open(f"{sys.argv[1]}/{name}.png") for name in row] for row in names]
high = [max(strip.height for strip in row) for row in rows]
picture = Image.new("RGB", (2 * rows[0][0].width + 24, sum(high)), "white")
for row, low, tall in zip(rows, np.cumsum(high), high):
    for n, strip in enumerate(row):
        picture.paste(strip, (n * (strip.width + 24), low - tall))
picture.save("docs/clips.png", optimize=True)
END
loop() {  # NAME ROLL-OUT TITLE: one cycle, shown again and again
    "$python" motions/render.py "$2" "docs/$1.webp" --compare "motions/$1.npz" --loop --title "$3" --legend "" --size 560 350 --text 36
}
"$python" amp_ppo_isaacgym.py --total-timesteps 1000000 --exp-name pictures
"$python" amp_ppo_isaacgym.py --evaluate --checkpoint "$(ls -td runs/pictures__walk* | head -n 1)" --out "$scratch/short"
loop walk "$scratch/short/rollouts/000.npz" walk
loop run "$scratch/run/rollouts/000.npz" run
loop cartwheel "$scratch/cartwheel/rollouts/000.npz" cartwheel
loop spinkick "$scratch/spinkick/rollouts/000.npz" spin-kick
loop backflip "$scratch/backflip/rollouts/000.npz" back-flip
"$python" motions/render.py "$scratch/heading/rollouts/000.npz" docs/figure_eight.webp --commands motions/figure_eight.csv --fixed \
    --title "told to walk a figure-eight" --legend "" --size 960 300 --text 15
"$python" motions/view.py docs/rollouts/walk.npz motions/walk.npz --layout beside --html docs/walk.html
"$python" benchmark/learning_curves.py docs/curves.png

"$python" -c 'import playwright' 2>/dev/null && command -v chromium >/dev/null || exit 0
"$python" docs/page_pictures.py
