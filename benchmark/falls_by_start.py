"""Where in a clip the episodes that fall begin: the starts of an evaluation's roll-outs, sorted by their time.

    python amp_ppo_isaacgym.py --evaluate --checkpoint FILE --eval-episodes 512 --eval-seconds 6 --out FOLDER
    python benchmark/falls_by_start.py FOLDER motions/backflip.npz [--parts 20] [--out FILE.json]

One line for each part of the clip: episodes that began in it, how many of them fell, and after how many seconds
(median). An episode begins where the clip's pose is most like that of the roll-out's first frame.
"""

import argparse
import glob
import json
import os
import statistics
import sys
from typing import Dict, List, Tuple

import numpy as np
import torch
from train import ROOT

sys.path.insert(0, ROOT)
import motion_lib as ml
from clips import load_clip

FINE = 1.0 / 480  # between the poses of the clip to which a start is compared [s]


def start_times(motions: ml.MotionLib, rotations: torch.Tensor) -> torch.Tensor:
    """Time at which the only clip's pose is most like each of these, rotations of bodies (E, J, 4) -> (E,) [s].

    The root's rotation is not looked at: an episode may begin with another heading."""
    times = torch.arange(0.0, float(motions.length[0]), FINE)  # (T,)
    poses = motions.state(torch.zeros_like(times, dtype=torch.long), times).rotations[:, 1:]  # (T, J-1, 4)
    # q and -q are the same rotation
    likeness = torch.einsum("ejk,tjk->etj", rotations[:, 1:], poses).abs().sum(-1)  # (E, T)
    return times[likeness.argmax(1)]


def read_falls(folder: str, motions: ml.MotionLib) -> List[Tuple[float, float, bool]]:
    """Of each roll-out in an evaluation's folder: when in the clip it begins [s], how long it is [s], if it fell."""
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "rollouts", "*.npz")))
    clips = [load_clip(path, motions.character.body_names) for path in paths]
    if not clips:
        sys.exit(f"error: {folder}: no rollouts/*.npz; name the folder that --evaluate has printed")
    first = torch.from_numpy(np.stack([clip.rotations[0] for clip in clips])).float()  # (E, J, 4)
    starts = start_times(motions, first).tolist()
    fell = ["fell after" in str(np.load(path)["source"]) for path in paths]
    return [(start, (len(clip.root_position) - 1) / clip.fps, x) for start, clip, x in zip(starts, clips, fell)]


def by_start(falls: List[Tuple[float, float, bool]], length: float, parts: int) -> List[Dict[str, float]]:
    """read_falls of a clip of `length` [s], counted in `parts` equal parts of it."""
    counts = []
    for n in range(parts):
        low, high = length * n / parts, length * (n + 1) / parts
        inside = [(seconds, fell) for start, seconds, fell in falls if low <= start < high]
        lived = [seconds for seconds, fell in inside if fell]
        after = statistics.median(lived) if lived else None
        counts.append({"from_s": low, "to_s": high, "episodes": len(inside), "falls": len(lived), "after_s": after})
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of an evaluation")
    parser.add_argument("clip", help="that was imitated")
    parser.add_argument("--parts", type=int, default=20, help="into which the clip is cut (default 20)")
    parser.add_argument("--character-file", default=os.path.join(ROOT, "motions", "humanoid.xml"), help="MJCF")
    parser.add_argument("--out", help="raw figures")
    args = parser.parse_args()
    try:
        motions = ml.MotionLib(args.clip, ml.load_character(args.character_file))
        counts = by_start(read_falls(args.folder, motions), float(motions.length[0]), args.parts)
    except ml.InputError as error:
        sys.exit(f"error: {error}")
    print("| begins at [s] | episodes | falls | after [s] |\n|---|---|---|---|")
    for x in counts:
        after = f"{x['after_s']:.1f}" if x["falls"] else ""
        print(f"| {x['from_s']:.2f} to {x['to_s']:.2f} | {x['episodes']} | {x['falls']} | {after} |")
    print(f"\n{sum(x['falls'] for x in counts)} of {sum(x['episodes'] for x in counts)} fall")
    if args.out:
        with open(args.out, "w") as file:
            json.dump(counts, file, indent=1)


if __name__ == "__main__":
    main()
