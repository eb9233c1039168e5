"""Convert DeepMimic motion files to this project's clips; motions/README.md says what a clip holds.

    python motions/convert.py IN.txt [OUT.npz] [--source TEXT] [--license TEXT] [--loop wrap|clamp] [--no-lift]
    python motions/convert.py --pybullet pybullet_data/data/motions  # makes every clip here, from pybullet's folder
    python motions/convert.py --table motions/*.npz                  # prints the table in motions/README.md

Bad input ends with one line that names the file and the fault, and exit code 2; OUT is then left as it was.
Dimension key: F frames, J bodies (row 0 is the root).
"""

import argparse
import json
import os
import sys
from typing import List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import motion_lib as lib
from motion_lib import Character, Clip, InputError

HERE = os.path.dirname(os.path.abspath(__file__))

# A row of a DeepMimic file: duration, root position, then these bodies' rotations relative to their parents, each a
# quaternion wxyz or the angle of a hinge. The hands are not in it: they are welded.
COLUMNS = (
    *(("pelvis", 4), ("torso", 4), ("head", 4)),
    *(("right_thigh", 4), ("right_shin", 1), ("right_foot", 4), ("right_upper_arm", 4), ("right_lower_arm", 1)),
    *(("left_thigh", 4), ("left_shin", 1), ("left_foot", 4), ("left_upper_arm", 4), ("left_lower_arm", 1)),
)
WIDTH = 1 + 3 + sum(width for _, width in COLUMNS)

# Clips of the pybullet package: name here -> file in its motions folder.
HUMANOID3D = ["walk", "run", "spinkick", "cartwheel", "crawl", "dance_a", "dance_b", "jump", "roll", "spin", "backflip"]
HUMANOID3D += ["kick", "punch", "getup_facedown", "getup_faceup"]
PYBULLET = {name: f"humanoid3d_{name}.txt" for name in HUMANOID3D}
PYBULLET["walk_forward"] = "walker/0walk_forward.txt"
PYBULLET.update({name: f"walker/{name}.txt" for name in ["turn_left0", "turn_left1", "turn_right0", "turn_right1"]})
SOURCE = "PyPI package pybullet 3.2.7, pybullet_data/data/motions/{}; {}; converted by motions/convert.py"
DEEPMIMIC_ORIGIN = "from DeepMimic (github.com/xbpeng/DeepMimic), recorded motion from public mocap databases"
DEEPMIMIC_LICENSE = "MIT, Copyright (c) 2018 Xue Bin Peng; package: zlib (notices in motions/README.md)"
# These five are not in DeepMimic's repository: they came into Bullet with its multi-clip example.
WALKER_ORIGIN = "from Bullet's multi-clip example (github.com/bulletphysics/bullet3/pull/3076), recording not stated"
WALKER_LICENSE = "zlib (notice in motions/README.md)"


# ----------------------------------------------------------------------------------------------------------------------
# 1. Reading
# ----------------------------------------------------------------------------------------------------------------------


def read_deepmimic(path: str) -> Tuple[str, np.ndarray]:
    """Loop mode "wrap" or "clamp", and the checked rows (F, 44) of a DeepMimic file as stored: Y up, s, m, rad, wxyz.

    Raises InputError for a file that cannot be read, is no DeepMimic motion, or holds values that are no motion."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except OSError as error:
        raise InputError(f"{path}: cannot read the motion file: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(data, dict) or not isinstance(data.get("Frames"), list):
        raise InputError(f'{path}: not a DeepMimic motion, it has no list "Frames"')
    if data.get("Loop", "none") not in ("wrap", "none"):
        raise InputError(f'{path}: "Loop" is {data["Loop"]!r:.40}; expected "wrap" or "none"')
    if len(data["Frames"]) < 2:
        raise InputError(f"{path}: {len(data['Frames'])} frame(s); a motion needs at least 2")
    for index, row in enumerate(data["Frames"]):
        if not isinstance(row, list) or len(row) != WIDTH:
            found = f"{len(row)} columns" if isinstance(row, list) else "no list"
            raise InputError(f"{path}: frame {index} has {found}; a humanoid's frame has {WIDTH}")
        if not all(type(x) in (int, float) and abs(x) < 1e4 for x in row):  # false for NaN, too
            raise InputError(f"{path}: frame {index} holds something that is not a finite number of sensible size")
    frames = np.array(data["Frames"], np.float64)  # (F, 44)
    bad = np.flatnonzero((frames[:-1, 0] < 2e-3) | (frames[:-1, 0] > 0.5))  # the last frame's duration means nothing
    if len(bad):
        raise InputError(f"{path}: frame {bad[0]} lasts {frames[bad[0], 0]:g} s; expected 0.002 to 0.5")
    return ("wrap" if data.get("Loop") == "wrap" else "clamp"), frames


def parse_deepmimic(path: str, body_names: List[str]) -> Clip:
    """A DeepMimic file as a clip of the skeleton `body_names`: fps [1/s], loop mode, root_position (F, 3) world, Z up
    [m], rotations (F, J, 4) unit xyzw, parent-relative, row 0 the root in the world. Heights are the file's.

    Raises InputError (see read_deepmimic)."""
    loop, frames = read_deepmimic(path)
    # Y up, +Z right -> Z up, +Y left: (x, y, z) -> (x, -z, y), for positions and for the axes of rotations alike
    root_position = frames[:, 1:4][:, [0, 2, 1]] * [1.0, -1.0, 1.0]  # (F, 3) world
    rotations = np.tile([0.0, 0.0, 0.0, 1.0], (len(frames), len(body_names), 1))  # (F, J, 4)
    column = 4
    for name, width in COLUMNS:
        if width == 4:
            w, x, y, z = frames[:, column : column + 4].T
            q = np.stack((x, -z, y, w), -1)
        else:  # a hinge about DeepMimic's +z axis, which is our -y
            half = -0.5 * frames[:, column]
            q = np.stack((0 * half, np.sin(half), 0 * half, np.cos(half)), -1)
        norm = np.linalg.norm(q, axis=-1, keepdims=True)
        # a loose bound, as the kick's norms go down to 0.58 and its quaternions are fine once normalised
        if norm.min() < 0.1:
            found = f"frame {norm.argmin()} has norm {norm.min():.3g}"
            raise InputError(f"{path}: the quaternion of {name} in {found}; expected 1")
        q /= norm
        # q and -q are one rotation: take w >= 0 in the first frame, then the sign nearer to the frame before
        flip = np.concatenate((q[:1, 3], (q[1:] * q[:-1]).sum(-1))) < 0
        rotations[:, body_names.index(name)] = q * np.where(np.cumsum(flip) % 2, -1.0, 1.0)[:, None]
        column += width
    time = np.concatenate(([0.0], np.cumsum(frames[:-1, 0])))  # (F,) [s]
    step = np.diff(time)
    if np.ptp(step) > 1e-3 * np.median(step):
        uniform = np.linspace(0.0, time[-1], round(time[-1] / float(np.median(step))) + 1)
        root_position, rotations = resample(time, uniform, root_position, rotations)
    return Clip((len(root_position) - 1) / time[-1], loop, root_position, rotations)


def resample(old: np.ndarray, new: np.ndarray, root_position: np.ndarray, rotations: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Frames at the times `new` (N,), all within the times `old` (F,) [s]. (F, 3), (F, J, 4) -> (N, 3), (N, J, 4)."""
    low = np.clip(np.searchsorted(old, new, side="right") - 1, 0, len(old) - 2)  # (N,)
    blend = ((new - old[low]) / (old[low + 1] - old[low]))[:, None]  # (N, 1)
    position = (1 - blend) * root_position[low] + blend * root_position[low + 1]
    a, b, t = (torch.from_numpy(x) for x in (rotations[low], rotations[low + 1], blend[..., None]))
    return position, lib.slerp(a, b, t).numpy()


# ----------------------------------------------------------------------------------------------------------------------
# 2. Ground contact, seam, table
# ----------------------------------------------------------------------------------------------------------------------


def lowest(character: Character, clip: Clip) -> Tensor:
    """World height of the lowest point of the character's collision shape in each frame. -> (F,) [m]"""
    # in float64, so that the clip's lowest point ends at 0 to within the rounding of the file's float32
    double = {key: getattr(character, key).double() for key in ("offsets", "hull_point", "hull_radius")}
    character = character._replace(**double)
    root_position, rotations = torch.from_numpy(clip.root_position), torch.from_numpy(clip.rotations)
    return lib.lowest_points(character, *lib.forward_kinematics(character, root_position, rotations)).amin(-1)


def seam(character: Character, clip: Clip) -> Tuple[float, float]:
    """How far a clip is from being a cycle: the mean angle over the joints (the root, freed of its heading, is one of
    them) between the last and the first pose, and the heading gained from the first to the last. -> [rad], [rad]"""
    ends = torch.from_numpy(clip.rotations[[0, -1]])  # (2, J, 4)
    yaw = lib.heading(ends[:, 0])  # (2,)
    ends[:, 0] = lib.quat_multiply(lib.quat_from_yaw(-yaw), ends[:, 0])
    joints = [0] + sorted(set(character.dof_body.tolist()))
    angle = lib.rotvec_from_quat(lib.quat_multiply(lib.quat_conjugate(ends[0]), ends[1]))[joints].norm(dim=-1)
    turn = float(yaw[1] - yaw[0])
    return float(angle.mean()), float(np.arctan2(np.sin(turn), np.cos(turn)))


def print_table(character: Character, paths: List[str]) -> None:
    """Print the markdown table of motions/README.md."""
    columns = ["clip", "frames", "rate [1/s]", "length [s]", "loop", "mean speed [m/s]", "lowest point [m]"]
    columns += ["its mean over frames [m]", "seam [deg]", "turn [deg]"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for path in paths:
        clip = lib.load_clip(path, character.body_names)
        length = (len(clip.root_position) - 1) / clip.fps
        speed = np.linalg.norm((clip.root_position[-1] - clip.root_position[0])[:2]) / length
        low = lowest(character, clip)
        ground = f"{round(float(low.min()), 3) + 0.0:.3f} | {low.mean():.3f}"  # adding zero turns -0.000 into 0.000
        gap, turn = np.rad2deg(seam(character, clip))
        cycle = f"{gap:.1f} | {turn:.0f}" if clip.loop == "wrap" else "- | -"
        row = (os.path.basename(path), len(low), f"{clip.fps:.2f}", f"{length:.3f}", clip.loop, f"{speed:.2f}")
        print("| " + " | ".join(str(cell) for cell in (*row, ground, cycle)) + " |")


# ----------------------------------------------------------------------------------------------------------------------
# 3. Command line
# ----------------------------------------------------------------------------------------------------------------------


def convert(character: Character, path: str, out: str, source: str, license: str, loop: Optional[str] = None, lift: bool = True) -> None:
    """Convert one file. lift: one constant raises or lowers the whole clip until a quarter of its frames reach the ground.

    Not until the lowest frame does: a single low frame would leave the others hovering (run by 5 cm, crawl by 10 cm).

    Raises InputError for input that is no motion and for an `out` that cannot be written."""
    clip = parse_deepmimic(path, character.body_names)
    before = lowest(character, clip)  # (F,)
    rise = -float(before.quantile(0.25)) if lift else 0.0
    clip = clip._replace(loop=loop or clip.loop, root_position=clip.root_position + [0.0, 0.0, rise])
    try:
        lib.save_clip(out, clip, character.body_names, source, license)
    except OSError as error:
        raise InputError(f"{out}: cannot write the clip: {error.strerror}") from error
    after = lowest(character, clip)
    # a low minimum tells of frames that sink into the ground, a high mean on a clip that never jumps of frames that hover
    print(f"{out}: {len(after)} frames, {clip.fps:.2f} /s, {clip.loop}; lowest point [m]", end=" ")
    print(f"{before.min():.3f} -> {after.min():.3f}, its mean over frames {before.mean():.3f} -> {after.mean():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert DeepMimic motion files to clips (motions/README.md).")
    parser.add_argument("input", nargs="?", metavar="IN.txt", help="DeepMimic motion file of the humanoid")
    parser.add_argument("output", nargs="?", metavar="OUT.npz", help="clip to write; default: IN.npz beside IN.txt")
    parser.add_argument("--source", default="not stated", help="where the motion comes from; stored in the clip")
    parser.add_argument("--license", default="not stated", help="the motion's licence; stored in the clip")
    parser.add_argument("--loop", choices=("wrap", "clamp"), help="overrides the file's loop mode")
    parser.add_argument("--no-lift", action="store_true", help="keep the file's heights")
    parser.add_argument("--pybullet", metavar="DIR", help="convert the clips of pybullet's folder into motions/")
    parser.add_argument("--table", metavar="CLIP", nargs="+", help="print the markdown table of these clips")
    args = parser.parse_args()
    if (args.input is not None) + (args.pybullet is not None) + (args.table is not None) != 1:
        parser.error("give one of IN.txt, --pybullet DIR, --table CLIP...")
    if args.pybullet and (args.loop or args.no_lift or {args.source, args.license} != {"not stated"}):
        parser.error("--pybullet goes alone: it knows sources, licences and loop modes")
    out = args.output or os.path.splitext(args.input or "")[0] + ".npz"
    if not out.endswith(".npz"):
        parser.error(f"{out}: the output must end in .npz")
    try:
        character = lib.load_character(os.path.join(HERE, "humanoid.xml"))
        if args.table:
            print_table(character, args.table)
        elif args.pybullet:
            for name, file in PYBULLET.items():
                walker = file.startswith("walker/")
                source = SOURCE.format(file, WALKER_ORIGIN if walker else DEEPMIMIC_ORIGIN)
                license = WALKER_LICENSE if walker else DEEPMIMIC_LICENSE
                out = os.path.join(HERE, f"{name}.npz")
                convert(character, os.path.join(args.pybullet, file), out, source, license)
        else:
            convert(character, args.input, out, args.source, args.license, args.loop, not args.no_lift)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
