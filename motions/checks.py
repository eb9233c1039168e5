"""What is wrong with a clip, in words that help; convert.py prints it, and a training does for clips from elsewhere.

Dimension key: F frames, J bodies (row 0 is the root), D dofs.
"""

import os
import xml.etree.ElementTree as ET
from typing import List, Tuple

import numpy as np
import torch
from torch import Tensor

import gait
import motion_lib as lib
from motion_lib import Character, Clip
from motions.bvh import angles

# What a training will suffer from.
DEEP = 0.03  # [m] into the ground, or above it all the time
JUMP, LEAP = 0.3, 0.1  # [rad], [m] from a frame to the next, if it is also three times what comes before and after
MOTOR = 35.0  # [rad/s]; the fastest joint in motions/ reaches 30
SHORT = 0.5  # [s]
SEAM = 15.0  # [deg], mean over the joints
SPRINT = 15.0  # [m/s]
COARSE = 8.0  # [1/s]
STEP = 0.25  # [m] from the lowest point of one second to that of another
MANY = 3000  # frames, in which a cycle is looked for
BEYOND = 30.0  # [deg] beyond a joint's range; in motions/ 28 at most


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
    angle = angles(ends[0].numpy(), ends[1].numpy())[joints]
    turn = float(yaw[1] - yaw[0])
    return float(angle.mean()), float(np.arctan2(np.sin(turn), np.cos(turn)))


def strides_of(character: Character, clip: Clip) -> Tuple[float, int]:
    """How long a stride of a walk or a run takes [s], from a step of a foot to its next, and how many the clip holds;
    0, 0 of what is none."""
    feet = tuple(name for name in character.body_names if name.endswith("foot"))
    if len(feet) != 2:
        return 0.0, 0
    root_position, rotations = (torch.from_numpy(x).float()[None] for x in (clip.root_position, clip.rotations))
    bodies = lib.forward_kinematics(character, root_position, rotations)  # (1, F, J, 3), (1, F, J, 4)
    steps = torch.tensor([len(clip.root_position) - 1])
    cadence = gait.figures(character, *bodies, steps, feet, 1.0 / clip.fps).get("cadence_hz", 0.0)
    return (1.0 / cadence, round(float(steps) / clip.fps * cadence)) if cadence else (0.0, 0)


def best_cycle(character: Character, clip: Clip, stride: float) -> Tuple[int, int, float]:
    """First and last frame of the part of about `stride` seconds whose ends are most alike, and how far they differ.

    -> mean angle over the joints as in seam() [rad]. Looks at the first MANY frames."""
    q = torch.from_numpy(clip.rotations[:MANY]).clone()  # (F, J, 4)
    q[:, 0] = lib.quat_multiply(lib.quat_from_yaw(-lib.heading(q[:, 0])), q[:, 0])
    joints = [0] + sorted(set(character.dof_body.tolist()))
    q = q[:, joints].numpy()
    best = (0, len(q) - 1, np.inf)
    frames = stride * clip.fps
    for lag in range(max(round(0.9 * frames), 1), min(round(1.1 * frames) + 1, len(q))):
        gap = angles(q[:-lag], q[lag:]).mean(-1)  # (F - lag,)
        first = int(gap.argmin())
        best = min(best, (first, first + lag, float(gap[first])), key=lambda found: found[2])
    return best


def repeats(root_position: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Which frames are the one before again. (F, 3), (F, J, 4) -> (F-1,) bool."""
    still = np.abs(np.diff(root_position, axis=0)).max(1) < 1e-6
    return still & (np.abs(np.diff(rotations, axis=0)).max((1, 2)) < 1e-6)


def leaps(step: np.ndarray, least: float) -> np.ndarray:
    """Which steps (F-1, n) between frames are larger than `least`, and than three times the step before and after."""
    padded = np.pad(step, ((1, 1), (0, 0)))
    return (step > least) & (step > 3.0 * np.maximum(padded[:-2], padded[2:]))


def beyond_limits(character: Character, clip: Clip) -> np.ndarray:
    """By how much each dof leaves the range that the character's file gives it. -> (F, D) [deg]"""
    ranges = {joint.get("name"): joint.get("range", "-360 360") for joint in ET.parse(character.path).iter("joint")}
    low, high = np.array([ranges[name].split() for name in character.dof_names], np.float64).T
    dofs = np.rad2deg(lib.dof_positions(character, torch.from_numpy(clip.rotations)).numpy())
    return np.maximum(low - dofs, dofs - high)


def report(character: Character, clip: Clip) -> List[str]:
    """Lines for a person: speed, largest joint speed, seam; and a warning for each thing that will hurt a training."""
    length = (len(clip.root_position) - 1) / clip.fps
    # how fast each body turns relative to its parent, the root in the world
    turning = (angles(clip.rotations[:-1], clip.rotations[1:]) * clip.fps).numpy()  # (F-1, J) [rad/s]
    steps = np.linalg.norm(np.diff(clip.root_position, axis=0), axis=-1)  # (F-1,)
    frame, body = np.unravel_index(turning[:, 1:].argmax(), turning[:, 1:].shape)
    fastest = turning[frame, body + 1]
    name = character.body_names[body + 1]
    speed = np.linalg.norm((clip.root_position[-1] - clip.root_position[0])[:2]) / length
    gap, turn = np.rad2deg(seam(character, clip))
    fast = f"largest joint speed {fastest:.1f} rad/s ({name}, frame {frame})"
    lines = [f"mean speed {speed:.2f} m/s, {fast}, seam {gap:.1f} deg, turn {turn:.0f} deg"]

    def warn(wrong: bool, text: str) -> None:
        lines.extend([f"warning: {text}"] if wrong else [])

    low = lowest(character, clip).numpy()  # (F,)
    deepest = f"{100 * -low.min():.0f} cm into the ground (frame {low.argmin()})"
    share = f"more than {100 * DEEP:.0f} in {(low < -DEEP).sum()} of {len(low)} frames"
    warn(low.min() < -DEEP, f"reaches {deepest}, {share}")
    nearest = f"hovers, it never comes nearer to the ground than {100 * low.min():.0f} cm; use --lift"
    warn(low.min() > DEEP, nearest + ("; or are its positions in centimetres?" if low.min() > 3.0 else ""))
    seconds = [low[i : i + round(clip.fps)].min() for i in range(0, len(low) - round(clip.fps) + 1, round(clip.fps))]
    heights = f"{min(seconds, default=0):.2f} and {max(seconds, default=0):.2f} m"
    terrain = "the ground is not level, stairs for instance, or it flies; --no-lift keeps the file's heights"
    warn(np.ptp(seconds or [0.0]) > STEP, f"the lowest point of a second lies between {heights}: {terrain}")
    pace = steps.mean() * clip.fps
    warn(pace > SPRINT, f"moves at {pace:.0f} m/s; in centimetres, or a wrong rate?")
    warn(clip.fps < COARSE, f"{clip.fps:.2g} frames a second are hardly a recording's rate; --input-fps mends that")
    again = repeats(clip.root_position, clip.rotations)  # (F-1,)
    twice = bool(0.4 < again.mean() < 0.6)
    warn(bool(again.all()), "nothing moves: it is a single pose")
    warn(twice, f"every frame comes twice; --fps {clip.fps / 2:g} takes each once")
    jump = np.flatnonzero(leaps(turning / clip.fps, JUMP).any(1) | leaps(steps[:, None], LEAP)[:, 0])
    straight = np.abs(clip.rotations[0, character.hinges.numpy(), 3]).min() > 0.99  # elbows and knees, to 16 degrees
    rest = len(jump) > 0 and jump[0] == 0 and bool(straight)
    warn(rest, f"frame 0 is a rest pose, from which it jumps; --start {1 / clip.fps:.4f} leaves it out")
    if len(jump) > rest and not twice:
        more = f" (and {len(jump) - rest - 1} times more)" if len(jump) - rest > 1 else ""
        jumps = f"jumps from frame {jump[int(rest)]} to the next{more}"
        warn(True, f"{jumps}; cut it out or smooth it, or expect the pose error to peak there")
    warn(fastest > MOTOR, f"{name} turns at {fastest:.0f} rad/s in frame {frame}; hardly a motor reaches {MOTOR:.0f}")
    beyond = beyond_limits(character, clip)
    at, dof = np.unravel_index(beyond.argmax(), beyond.shape)
    worst = f"{character.dof_names[dof]} goes {beyond.max():.0f} deg beyond the character's limit in frame {at}"
    warn(beyond.max() > BEYOND, f"{worst}; it can't follow there")
    warn(length < SHORT, f"lasts {length:.2f} s only; little can be learnt from less than {SHORT} s")
    leap = f"the pose leaps by {gap:.0f} deg a joint at the seam; --loop wrap blends it, --loop clamp does without"
    warn(clip.loop == "wrap" and gap > SEAM, leap)
    return lines


def before_training(motions: lib.MotionLib) -> List[str]:
    """What convert.py would warn of in the first fifty clips that do not lie in this folder, at most three lines."""
    character = lib.load_character(lib.find(motions.character.path))
    here = os.path.dirname(os.path.realpath(__file__))
    foreign = [x for x in zip(motions.files, motions.clips) if os.path.realpath(os.path.dirname(x[0])) != here]
    told = [(file, line) for file, clip in foreign[:50] if os.path.isfile(file) for line in report(character, clip)[1:]]
    return [line.replace("warning", f"{file}: motions/convert.py warns", 1) for file, line in told][:3]
