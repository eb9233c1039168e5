"""BVH files: a skeleton and its motion as Euler angles in degrees.

Exporters differ in axes, units and rest pose: retarget.py finds out. Own parser: pybvh refuses position channels below
the root, which Blender writes, and bvhio does not return from a file that is cut off (docs/log.md).
"""

import io
import re
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

import motion_lib as lib
from motion_lib import InputError
from motions.safe import frame_rate

MAX_JOINTS = 1000
AXES = "XYZ"
CHANNELS = {f"{axis}{kind}" for axis in AXES for kind in ("position", "rotation")}


class Recording(NamedTuple):
    """Motion of a skeleton that need not be ours, in its own unit of length (J joints, row 0 is the root)."""

    fps: float
    loop: str  # "wrap", "clamp", or "" where the file does not say
    root_position: np.ndarray  # (F, 3) world
    rotations: np.ndarray  # (F, J, 4) xyzw, parent-relative; row 0 is the root in the world
    names: List[str]
    parents: List[int]  # each before its children; -1 for the root
    offsets: np.ndarray  # (J, 3) origin of each joint in its parent's frame
    up: str  # "+z" and so on, "z" where that is usual, or "" where the file does not say
    places: Optional[Dict[int, np.ndarray]] = None  # joints that have position channels: in their parents (F, 3)


def continuous(q: np.ndarray) -> np.ndarray:
    """The same rotations (F, ..., 4), each with the sign nearer to the frame before, and w >= 0 in the first."""
    flip = np.concatenate((q[:1, ..., 3], (q[1:] * q[:-1]).sum(-1))) < 0
    return q * np.where(np.cumsum(flip, 0) % 2, -1.0, 1.0)[..., None]


def angles(a: np.ndarray, b: np.ndarray) -> Tensor:
    """Angles between rotations (..., 4) and (..., 4) [rad]. -> (...)"""
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    return lib.rotvec_from_quat(lib.quat_multiply(lib.quat_conjugate(a), b)).norm(dim=-1)


class Joint(NamedTuple):
    name: str
    parent: int
    offset: List[float]  # three numbers, once they are read
    channels: List[str]  # such as Xposition or Zrotation, in the order of the columns


def read_hierarchy(path: str, lines: List[str]) -> List[Joint]:
    """The joints, parents first, from the lines before MOTION. Braces may stand anywhere. Raises InputError."""
    joints: List[Joint] = []
    blocks: List[int] = []  # the joints whose braces are open; -1 is an end site
    opening = -1
    parts = ((number, part) for number, line in enumerate(lines) for part in re.split("([{}])", line[:9999]))
    for number, part in parts:
        word, *rest = part.split() or [""]
        word = word.upper()
        try:
            if word in ("ROOT", "JOINT"):
                if (word == "ROOT") != (not joints) or (word == "JOINT" and (not blocks or blocks[-1] < 0)):
                    raise ValueError("a file holds one ROOT, and JOINTs within it")
                opening = len(joints)
                joints.append(Joint(" ".join(rest), blocks[-1] if blocks else -1, [], []))
            elif word == "END":
                opening = -1
            elif word == "{":
                blocks.append(opening)
            elif word == "}":
                blocks.pop()
            elif word == "OFFSET" and blocks[-1] >= 0:
                joints[blocks[-1]].offset[:] = [float(x) for x in rest]
            elif word == "CHANNELS":
                joints[blocks[-1]].channels[:] = [channel[:1].upper() + channel[1:].lower() for channel in rest[1:]]
                channels = joints[blocks[-1]].channels
                if blocks[-1] < 0 or len(channels) != int(rest[0]) or not CHANNELS.issuperset(channels):
                    raise ValueError("channels are a number and as many names like Xposition or Zrotation")
                if len(set(channels)) != len(channels):
                    raise ValueError("a channel comes twice")
            elif word not in ("", "HIERARCHY", "OFFSET"):
                raise ValueError("expected ROOT, JOINT, End Site, OFFSET, CHANNELS, a brace or MOTION")
            if max(len(joints), len(blocks)) > MAX_JOINTS:
                raise ValueError(f"more than {MAX_JOINTS} joints")
        except (ValueError, IndexError) as error:
            raise InputError(f"{path}: line {number + 1}, {lines[number].strip()[:40]!r}: {error}") from error
    sound = not blocks and all(len(j.offset) == 3 and all(abs(x) < 1e5 for x in j.offset) for j in joints)
    if not sound or not joints or len({joint.name for joint in joints}) != len(joints):
        needs = "braces must be closed, and joints need three finite offsets and names of their own"
        raise InputError(f"{path}: not a complete BVH file; {needs}")
    return joints


def odd_row(rows: List[str], first: int, width: int) -> str:
    """What is wrong with the first of the rows that are not `width` numbers; first: the first one's line in a file."""
    for number, row in enumerate(rows, first):
        words = row.split()
        if len(words) not in (0, width):
            return f"line {number} has {len(words)} numbers instead of {width}; is the file cut off?"
        for word in words:
            try:
                float(word)
            except ValueError:
                return f"line {number} has {word[:20]!r} in the place of a number"
    return "its rows are no numbers"


def read_frames(path: str, lines: List[str], width: int, first: int) -> Tuple[float, np.ndarray]:
    """Frames per second (0 where the file says nonsense) and rows (F, width) from the lines after MOTION.

    first: number of the first of these lines in the file. Raises InputError."""
    try:
        head = next(i for i, line in enumerate(lines[:20]) if re.match(r"\s*frame\s+time\b", line, re.I))
        frames = int(re.search(r"frames\s*:?\s*(\d+)", " ".join(line[:99] for line in lines[:head]), re.I).group(1))
        step = float(lines[head].replace(":", " ").split()[2])
        rows = "\n".join(lines[head + 1 :]).rstrip("\x1a\0 \r\n")  # DOS ends texts with ^Z
        if not rows:
            raise ValueError("no frames")
    except (ValueError, IndexError, StopIteration, AttributeError) as error:
        expected = f'"Frames: N", "Frame Time: SECONDS" and rows of {width} numbers'
        raise InputError(f"{path}: after MOTION, in line {first - 1}, come {expected}") from error
    try:
        values = np.loadtxt(io.StringIO(rows), ndmin=2, comments=None)  # (F, width)
    except ValueError as error:
        raise InputError(f"{path}: {odd_row(rows.splitlines(), first + head + 1, width)}") from error
    if values.shape != (frames, width) or not 2 <= frames <= 200_000:
        found = f"{values.shape[0]} rows of {values.shape[-1]} numbers"
        fault = "a single pose is no motion" if frames == 1 else f"the file promises {frames} of {width}, at least 2"
        raise InputError(f"{path}: {found}; {fault}")
    if not (np.abs(values) < 1e6).all():
        raise InputError(f"{path}: NaN, infinity or huge numbers in a frame")
    return frame_rate(step), values


def read_bvh(path: str, text: str) -> Recording:
    """A BVH file, lengths in its own unit, world as in the file. Raises InputError."""
    lines = text.split("\n")
    motion = next((i for i, line in enumerate(lines) if line.strip().upper() == "MOTION"), len(lines))
    joints = read_hierarchy(path, lines[:motion])
    fps, values = read_frames(path, lines[motion + 1 :], sum(len(joint.channels) for joint in joints), motion + 2)
    frames = len(values)
    rotations = torch.zeros(frames, len(joints), 4, dtype=torch.float64)
    offsets = np.array([joint.offset for joint in joints])
    root_position = np.tile(offsets[0], (frames, 1))
    places: Dict[int, np.ndarray] = {}
    column = 0
    for j, joint in enumerate(joints):
        q = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64).expand(frames, 4)
        for channel in joint.channels:
            axis = AXES.index(channel[0])
            data = values[:, column]
            if channel.endswith("rotation"):  # R = R_first R_second R_third
                rotvec = torch.zeros(frames, 3, dtype=torch.float64)
                rotvec[:, axis] = torch.from_numpy(np.deg2rad(data))
                q = lib.quat_multiply(q, lib.quat_from_rotvec(rotvec))
            elif j == 0:
                root_position[:, axis] = data
            else:
                places.setdefault(j, np.tile(offsets[j], (frames, 1)))[:, axis] = data
            column += 1
        rotations[:, j] = q
    for j, place in places.items():  # most exporters that write positions for every joint repeat the offset
        offsets[j] = np.median(place, 0)
    names = [joint.name for joint in joints]
    parents = [joint.parent for joint in joints]
    return Recording(fps, "", root_position, continuous(rotations.numpy()), names, parents, offsets, "", places)


# ---- Writing ---------------------------------------------------------------------------------------------------------


def euler_zxy(q: np.ndarray) -> np.ndarray:
    """Angles (F, J, 3) [rad] with R = Rz(a) Rx(b) Ry(c), continuous over the frames. (F, J, 4) -> (F, J, 3)."""
    x, y, z, w = np.moveaxis(q, -1, 0)
    # R[2,1] = sin b, R[0,1] = -sin a cos b, R[1,1] = cos a cos b, R[2,0] = -cos b sin c, R[2,2] = cos b cos c
    r01, r11, r21 = 2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)
    r20, r22 = 2 * (x * z - w * y), 1 - 2 * (x * x + y * y)
    lock = np.hypot(r01, r11) < 1e-7  # b is a quarter turn: only the sum of a and c means something
    a = np.where(lock, np.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z)), np.arctan2(-r01, r11))
    c = np.where(lock, 0.0, np.arctan2(-r20, r22))
    return np.unwrap(np.stack((a, np.arctan2(r21, np.hypot(r01, r11)), c), -1), axis=0)


def bvh_text(recording: Recording) -> str:
    """A BVH file in centimetres, Y up, facing +Z, of a recording in metres, Z up, that stands in its zero pose."""
    order = [1, 2, 0]  # +Y left -> +X, +Z up -> +Y, +X forward -> +Z
    offsets = 100 * recording.offsets[:, order]
    root = 100 * recording.root_position[:, order]
    angles = np.rad2deg(euler_zxy(recording.rotations[..., order + [3]]))  # (F, J, 3)
    children = [[c for c, parent in enumerate(recording.parents) if parent == j] for j in range(len(offsets))]
    lines = ["HIERARCHY"]
    sequence = []

    def vector(v: Iterable[float]) -> str:
        return " ".join(f"{x:.6f}" for x in v)

    def write(j: int, indent: str) -> None:
        sequence.append(j)
        place = "Xposition Yposition Zposition " if j == 0 else ""
        lines.append(f"{indent}{'JOINT' if j else 'ROOT'} {recording.names[j]}")
        lines.append(indent + "{")
        lines.append(f"{indent}  OFFSET {vector(offsets[j])}")
        lines.append(f"{indent}  CHANNELS {6 if j == 0 else 3} {place}Zrotation Xrotation Yrotation")
        for child in children[j]:
            write(child, indent + "  ")
        if not children[j]:
            upward = 20.0 if "head" in recording.names[j] else -10.0
            tip = (0.0, 0.0, 10.0) if "foot" in recording.names[j] else (0.0, upward, 0.0)
            lines.extend([f"{indent}  End Site", indent + "  {", f"{indent}    OFFSET {vector(tip)}", indent + "  }"])
        lines.append(indent + "}")

    write(0, "")
    rows = np.concatenate((root, angles[:, sequence].reshape(len(root), -1)), -1)
    lines += ["MOTION", f"Frames: {len(root)}", f"Frame Time: {1 / recording.fps:.9f}"]
    return "\n".join(lines + [vector(row) for row in rows]) + "\n"
