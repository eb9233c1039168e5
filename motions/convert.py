"""Convert motions of other formats to this project's clips, and back; motions/README.md says what a clip holds.

    python motions/convert.py IN [OUT.npz]  # DeepMimic, poselib, MimicKit, Isaac Lab, BVH: told by content
    python motions/convert.py IN OUT --format poselib|isaaclab|bvh      # for use elsewhere
    python motions/convert.py --pybullet pybullet_data/data/motions     # makes every clip here, from pybullet's folder
    python motions/convert.py --table motions/*.npz                     # prints the table in motions/README.md

Bad input ends with one line that names the file and the fault, and exit code 2; OUT is then left as it was.
safe.py reads files that may lie, formats.py and bvh.py know the formats, retarget.py and plant.py other skeletons.
Dimension key: F frames, J bodies (row 0 is the root).
"""

import argparse
import os
import sys
from typing import Callable, List, Optional, Tuple, TypeVar

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import simulators  # noqa: F401  (its guards come before all that is slow)

import numpy as np
import torch

import motion_lib as lib
from clips import save_clip
from files import write_file
from motion_lib import Character, Clip, InputError
from motions import formats, retarget, safe
from motions.bvh import Recording, continuous
from motions.checks import best_cycle, lowest, repeats, report, seam, strides_of
from motions.tools import one_line, one_line_parser

HERE = os.path.dirname(os.path.abspath(__file__))
Content = TypeVar("Content", Clip, Recording)  # both have fps, loop, root_position and rotations
ENDINGS = {"clip": ".npz", "poselib": ".npy", "isaaclab": ".npz", "bvh": ".bvh"}

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


# ---- 1. Cutting, resampling, closing the loop ------------------------------------------------------------------------


def cut(path: str, content: Content, start: Optional[float], end: Optional[float]) -> Content:
    """The frames from start to end [s]. Raises InputError if fewer than two are left."""
    length = (len(content.root_position) - 1) / content.fps
    first = int(np.ceil((start or 0.0) * content.fps - 1e-6))
    last = int(np.floor((length if end is None else min(end, length)) * content.fps + 1e-6))
    if first < 0 or last - first < 1:
        raise InputError(f"{path}: --start and --end leave no two frames; the motion lasts {length:.3f} s")
    if (first, last) == (0, len(content.root_position) - 1):
        return content
    part = slice(first, last + 1)
    # a part of a cycle is no cycle; "" lets choose_loop look at it
    return content._replace(loop="", root_position=content.root_position[part], rotations=content.rotations[part])


def change_rate(content: Content, fps: float) -> Content:
    """The same motion at about `fps` frames a second, so that the last frame stays the last. Of frames that come twice,
    as many public files have them, each is taken once."""
    again = repeats(content.root_position, content.rotations)  # (F-1,)
    if 0.4 < again.mean() < 0.6 and len(again) > 2:
        once = np.concatenate(([True], ~again))
        root_position, rotations = content.root_position[once], content.rotations[once]
        content = content._replace(root_position=root_position, rotations=rotations, fps=content.fps / 2)
    frames = len(content.root_position)
    length = (frames - 1) / content.fps
    if length * fps > safe.MAX_FRAMES:
        raise InputError(f"--fps {fps:g} makes more than {safe.MAX_FRAMES} frames; cut with --start and --end")
    new = np.linspace(0.0, length, max(round(length * fps), 1) + 1)
    old = np.arange(frames) / content.fps
    root_position, rotations = formats.resample(old, new, content.root_position, content.rotations)
    return content._replace(fps=(len(new) - 1) / length, root_position=root_position, rotations=rotations)


def choose_loop(character: Character, clip: Clip, wish: str) -> Tuple[Clip, str]:
    """The clip with its loop mode decided, and a remark. wish: "auto" keeps the file's mode, and where there is none,
    looks whether the motion closes; "wrap" closes it."""
    if wish == "wrap":
        return close_loop(clip._replace(loop="wrap")), "wrap, seam blended"
    if wish == "clamp":
        return clip._replace(loop="clamp"), "clamp"
    if clip.loop:
        return clip, clip.loop
    gap, _ = seam(character, clip)
    # the committed clips that are cycles have seams of 0.5 to 23 degrees
    loop = "wrap" if np.rad2deg(gap) < 8.0 else "clamp"
    return clip._replace(loop=loop), f"{loop} (a guess, the file does not say; --loop decides)"


def close_loop(clip: Clip, window: float = 0.25) -> Clip:
    """Make the last pose the first, but for place and heading: each end gives way by half, over a quarter second."""
    frames = len(clip.root_position)
    reach = min(window * clip.fps, 0.5 * (frames - 1))
    ramp = 0.5 + 0.5 * np.cos(np.pi * np.minimum(np.arange(frames) / max(reach, 1.0), 1.0))  # (F,) 1 in the first frame
    weight = torch.from_numpy(0.5 * (ramp[::-1] - ramp))  # (F,) from -1/2 in the first frame to 1/2 in the last
    q = torch.from_numpy(clip.rotations)
    ends = q[[0, -1]]  # (2, J, 4)
    ends[:, 0] = lib.quat_multiply(lib.quat_from_yaw(-lib.heading(ends[:, 0])), ends[:, 0])
    # q_last exp(d / 2) = q_first exp(-d / 2), where d = log(q_last^-1 q_first)
    d = lib.rotvec_from_quat(lib.quat_multiply(lib.quat_conjugate(ends[1]), ends[0]))  # (J, 3)
    q = lib.quat_multiply(q, lib.quat_from_rotvec(weight[:, None, None] * d))
    root_position = clip.root_position.copy()
    root_position[:, 2] += weight.numpy() * (root_position[0, 2] - root_position[-1, 2])
    return clip._replace(root_position=root_position, rotations=continuous(q.numpy()))


# ---- 2. Table --------------------------------------------------------------------------------------------------------


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


# ---- 3. Command line -------------------------------------------------------------------------------------------------


def load(character: Character, args: argparse.Namespace) -> Tuple[Clip, List[str]]:
    """The motion of args.input on our character, cut, resampled and retargeted; what it was understood to be, warnings.
    Raises InputError."""
    part = ()  # of a file that is too large
    if (args.start or args.end) and os.path.isfile(args.input) and os.path.getsize(args.input) > safe.MAX_BYTES:
        part = (args.start or 0.0, args.end or 1e6, args.input_fps)
    motion = formats.read(args.input, character, args.motion, part)
    joint_map = retarget.load_joint_map(args.joint_map)
    whole = motion.content
    whole = whole._replace(fps=args.input_fps) if args.input_fps else whole
    whole = whole._replace(up=f"+{args.up}") if args.up and isinstance(whole, Recording) else whole
    if not 1.0 <= whole.fps <= 1000.0:
        raise InputError(f"{args.input}: its rate is {whole.fps:.4g} /s; expected 1 to 1000, give it with --input-fps")
    frames = len(whole.root_position)
    understood = f"read as {motion.format}: {frames} frames at {whole.fps:.2f} /s, {motion.notes}"
    try:
        warnings: List[str] = []
        if isinstance(whole, Recording):
            index = retarget.find_joints(whole, joint_map)
            whole, warnings = retarget.path_at_root(whole, index)
        content = whole if part else cut(args.input, whole, args.start, args.end)
        content = change_rate(content, args.fps) if args.fps else content
        if isinstance(content, Clip):
            return content, [understood]
        ground = args.lift is not False
        clip, notes = retarget.retarget(character, content, whole, index, not args.no_plant, ground)
    except InputError as error:
        named = str(error).startswith(args.input)
        raise InputError(str(error) if named else f"{args.input}: {error}") from error
    return clip, [f"{understood}, {notes}", *warnings]


def lift(character: Character, clip: Clip) -> Clip:
    """One constant raises or lowers the clip until a quarter of its frames reach the ground. Were it only the lowest
    frame that does, a single low one would leave the others hovering (run by 5 cm, crawl by 10 cm)."""
    rise = -float(lowest(character, clip).quantile(0.25))
    return clip._replace(root_position=clip.root_position + [0.0, 0.0, rise])


def save(path: str, clip: Clip, character: Character, args: argparse.Namespace) -> None:
    """Write the clip in the format args.format, all of it or nothing. Raises InputError."""
    writers = {"poselib": formats.poselib_bytes, "isaaclab": formats.isaaclab_bytes, "bvh": formats.bvh_bytes}
    try:
        if args.format == "clip":
            save_clip(path, clip, character.body_names, args.source, args.license)
        else:
            write_file(path, writers[args.format](clip, character))
    except OSError as error:
        raise InputError(f"{path}: cannot write the clip: {error.strerror}") from error


def about_strides(character: Character, clip: Clip, start: float) -> List[str]:
    """A line for a person about a walk or a run of several strides: how many, and the options that cut out one.

    start: where in the file the clip begins [s]."""
    stride, count = strides_of(character, clip)
    if count < 2:
        return []
    first, last, gap = best_cycle(character, clip, stride)
    # rounded outwards, as cut() rounds inwards
    begin = np.floor(1e4 * (start + first / clip.fps)) / 1e4
    end = np.ceil(1e4 * (start + last / clip.fps)) / 1e4
    options = f"--start {begin:.4f} --end {end:.4f} --loop wrap"
    seam_of_one = f"one alone makes a cycle with a seam of {np.rad2deg(gap):.1f} deg"
    return [f"{count} strides of {stride:.2f} s; {seam_of_one}: {options}"]


def convert(character: Character, out: str, args: argparse.Namespace) -> None:
    """Convert args.input to `out`, and print what was understood. Raises InputError; then `out` is as it was."""
    clip, understood = load(character, args)
    clip, loop = choose_loop(character, clip, args.loop)
    clip = lib.mirror_clip(clip, character) if args.mirror else clip
    before = lowest(character, clip)  # (F,)
    # our own clips are where they should be; what others call the ground may be the ankles' height
    raise_it = args.lift if args.lift is not None else not understood[0].startswith("read as our own clip")
    clip = lift(character, clip) if raise_it else clip
    strides = about_strides(character, clip, args.start or 0.0)
    check(args.input, clip, character)
    replaced = " (replaced)" if os.path.exists(out) else ""
    save(out, clip, character, args)
    after = lowest(character, clip)
    # a low minimum tells of frames that sink, a high mean on a clip that never jumps of frames that hover
    print(f"{out}{replaced}: {args.format}, {len(after)} frames, {clip.fps:.2f} /s, {loop}; lowest point [m]", end=" ")
    print(f"{before.min():.3f} -> {after.min():.3f}, its mean over frames {before.mean():.3f} -> {after.mean():.3f}")
    print("  " + "\n  ".join([*understood, *report(character, clip), *strides]))


def check(path: str, clip: Clip, character: Character) -> None:
    """What load_clip and MotionLib would refuse is not written. Raises InputError."""
    finite = np.isfinite(clip.root_position).all() and np.isfinite(clip.rotations).all()
    if not finite or not np.abs(clip.root_position).max() < 1e4 or not 1.0 <= clip.fps <= 1000.0:
        raise InputError(f"{path}: comes out with NaN, beyond 10 km, or with a rate that is not 1 to 1000 /s")
    lib.check_joints(path, clip, character)


def parse() -> Tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = one_line_parser(description="Convert motions to clips, and clips back (motions/README.md).")
    add = parser.add_argument
    add("input", nargs="?", metavar="IN", help="a motion of any kind that motions/README.md lists")
    add("output", nargs="?", metavar="OUT", help="file to write; default: IN with the format's ending")
    add("--format", choices=tuple(ENDINGS), default="clip", help="format of OUT; clip is our own, to train from")
    add("--start", type=float, metavar="S", help="first moment to keep [s]")
    add("--end", type=float, metavar="S", help="last moment to keep [s]")
    add("--fps", type=float, help="resample to about this rate [1/s]")
    add("--input-fps", type=float, metavar="FPS", help="the rate of IN [1/s], where the file's is wrong or missing")
    add("--loop", choices=("auto", "wrap", "clamp"), default="auto", help="wrap: close it; auto: the file's mode")
    add("--mirror", action="store_true", help="exchange left and right")
    add("--lift", action="store_true", default=None, help="put the feet on the ground (default but for our clips)")
    add("--no-lift", action="store_false", default=None, dest="lift", help="keep the file's heights")
    add("--no-plant", action="store_true", help="of skeletons of other proportions: leave the feet as they slide")
    add("--up", choices=("x", "y", "z"), help="the up axis of IN's world, where it is taken wrongly")
    add("--motion", metavar="NAME", help="which motion, of a file that holds several")
    add("--joint-map", metavar="JSON", help="which joint is which body, where the names do not tell")
    add("--character-file", default=os.path.join(HERE, "humanoid.xml"), help="the character (MJCF)")
    add("--source", default="not stated", help="where the motion comes from; stored in the clip")
    add("--license", default="not stated", help="the motion's licence; stored in the clip")
    add("--pybullet", metavar="DIR", help="convert the clips of pybullet's folder into motions/")
    add("--table", metavar="CLIP", nargs="+", help="print the markdown table of these clips")
    return parser.parse_args(), parser


def output_path(args: argparse.Namespace) -> str:
    """Where to write. Raises InputError if that is the input."""
    ending = ENDINGS[args.format]
    out = args.output or os.path.splitext(args.input or "")[0] + ending
    if not out.lower().endswith(ending):
        raise InputError(f"{out}: an output of the format {args.format} must end in {ending}; --format chooses another")
    if args.input and os.path.exists(out) and os.path.exists(args.input) and os.path.samefile(args.input, out):
        raise InputError(f"{out}: this is the input; give another name for the output")
    return out


def check_options(args: argparse.Namespace, defaults: Callable) -> None:
    """Refuse options that do not go together, or are out of range. Raises InputError. defaults(name): an option's."""
    if (args.input is not None) + (args.pybullet is not None) + (args.table is not None) != 1:
        raise InputError("give one of IN, --pybullet DIR, --table CLIP...; --help shows all")
    if not all(rate is None or 1.0 <= rate <= 1000.0 for rate in (args.fps, args.input_fps)):
        raise InputError("--fps and --input-fps go from 1 to 1000")
    if not all(moment is None or 0.0 <= moment < np.inf for moment in (args.start, args.end)):
        raise InputError("--start and --end are seconds from the motion's beginning")
    others = set(vars(args)) - {"pybullet", "table"}
    if args.pybullet and any(getattr(args, name) != defaults(name) for name in others):
        raise InputError("--pybullet goes alone: it knows sources, licences and loop modes")


def main() -> None:
    with one_line("requirements.txt"):
        args, parser = parse()
        check_options(args, parser.get_default)
        out = output_path(args)
        character = lib.load_character(args.character_file)
        if args.table:
            print_table(character, args.table)
        elif args.pybullet:
            for name, file in PYBULLET.items():
                walker = file.startswith("walker/")
                args.source = SOURCE.format(file, WALKER_ORIGIN if walker else DEEPMIMIC_ORIGIN)
                args.license = WALKER_LICENSE if walker else DEEPMIMIC_LICENSE
                args.input = os.path.join(args.pybullet, file)
                convert(character, os.path.join(HERE, f"{name}.npz"), args)
        else:
            convert(character, out, args)


if __name__ == "__main__":
    main()
