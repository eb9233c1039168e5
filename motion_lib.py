"""Motion clips and the character's skeleton: loading, sampling, forward kinematics and the pose error, batched in torch.

Conventions: Z up, +X forward, +Y left; metres, radians, seconds; quaternions xyzw. "Heading frame" is the world frame turned about Z
until +X is the direction in which the root's own +X axis points on the ground. Dimension key: F frames, J bodies (row 0 is the root),
D dofs, C clips, P collision points, E episodes, T control steps, `...` any batch.
"""

import functools
import itertools
import json
import math
import os
import warnings
import xml.etree.ElementTree as ET
import zipfile
from typing import Dict, Iterator, List, NamedTuple, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class InputError(ValueError):
    """A file or an option that cannot be used; the message is one line that says what is wrong, where, and what to do."""


# ---- 1. Quaternions (xyzw) -----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def _hamilton(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Row 4 i + j: the product of the i-th and the j-th of the basis quaternions (i, j, k, 1)."""
    table = np.zeros((16, 4))
    table[range(16), [3, 2, 1, 0, 2, 3, 0, 1, 1, 0, 3, 2, 0, 1, 2, 3]] = [
        -1,
        1,
        -1,
        1,
        -1,
        -1,
        1,
        1,
        1,
        -1,
        -1,
        1,
        1,
        1,
        1,
        1,
    ]
    return torch.as_tensor(table, device=device, dtype=dtype)


def quat_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product: the rotation b followed by the rotation a. (..., 4), (..., 4) -> (..., 4)."""
    # it is bilinear, and one matrix product is several times faster than sixteen products of components
    return (a[..., :, None] * b[..., None, :]).flatten(-2) @ _hamilton(a.device, a.dtype)


def quat_conjugate(q: Tensor) -> Tensor:
    """Inverse rotation of a unit quaternion. (..., 4) -> (..., 4)."""
    return torch.cat((-q[..., :3], q[..., 3:]), -1)


def quat_rotate(q: Tensor, v: Tensor) -> Tensor:
    """Rotate vectors by unit quaternions. (..., 4), (..., 3) -> (..., 3)."""
    u, v = torch.broadcast_tensors(q[..., :3], v)
    w = q[..., 3:]
    t = 2.0 * torch.linalg.cross(u, v)
    return v + w * t + torch.linalg.cross(u, t)


def quat_from_rotvec(r: Tensor) -> Tensor:
    """Exponential map: rotation vector [rad] to unit quaternion. (..., 3) -> (..., 4)."""
    half = 0.5 * r.norm(dim=-1, keepdim=True)
    # sin(h) / (2 h), which tends to 1/2
    scale = 0.5 * torch.sinc(half / math.pi)
    return torch.cat((r * scale, torch.cos(half)), -1)


def rotvec_from_quat(q: Tensor) -> Tensor:
    """Logarithm: unit quaternion to the shortest rotation vector [rad], angle in [0, pi]. (..., 4) -> (..., 3)."""
    q = torch.where(q[..., 3:] < 0, -q, q)
    sin_half = q[..., :3].norm(dim=-1, keepdim=True)
    angle = 2.0 * torch.atan2(sin_half, q[..., 3:])
    return q[..., :3] * torch.where(sin_half > 1e-7, angle / sin_half.clamp_min(1e-7), torch.full_like(angle, 2.0))


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Interpolate along the shorter arc, t in [0, 1]. (..., 4), (..., 4), (..., 1) -> (..., 4)."""
    return quat_multiply(a, quat_from_rotvec(t * rotvec_from_quat(quat_multiply(quat_conjugate(a), b))))


def heading(q: Tensor) -> Tensor:
    """Yaw [rad] of the rotated +X axis on the ground. (..., 4) -> (...)."""
    x, y, z, w = q.unbind(-1)
    return torch.atan2(2.0 * (x * y + w * z), 1.0 - 2.0 * (y * y + z * z))


def quat_from_yaw(yaw: Tensor) -> Tensor:
    """Rotation about world Z. (...) [rad] -> (..., 4)."""
    zero = torch.zeros_like(yaw)
    return torch.stack((zero, zero, torch.sin(0.5 * yaw), torch.cos(0.5 * yaw)), -1)


def tangent_normal(q: Tensor) -> Tensor:
    """Six continuous numbers for a rotation: its rotated X and Z axes. (..., 4) -> (..., 6)."""
    x, y, z, w = q.unbind(-1)
    tangent = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    normal = (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y))
    return torch.stack(tangent + normal, -1)


# ---- 2. The character, read from its MJCF file ---------------------------------------------------------------------------------


class Character(NamedTuple):
    """Skeleton, drives and collision shape of a character (J bodies, D dofs, P collision points)."""

    path: str
    body_names: List[str]  # depth-first, as in the file; body 0 is the root
    parents: List[int]  # index of the parent body, -1 for the root
    levels: List[
        Tuple[Tensor, Tensor]
    ]  # each depth below the root: its bodies (n,), and where their parents stand in the depth above
    level_order: Tensor  # (J,) where each body stands in the concatenation of all depths
    balls: Tensor  # long: bodies on ball joints
    hinges: Tensor  # long: bodies on hinges
    hinge_dofs: Tensor  # long: the dofs of those hinges
    offsets: Tensor  # (J, 3) body origin in its parent's frame [m]
    dof_names: List[str]  # D names, in file order
    dof_body: (
        Tensor  # (D,) long: the body that each dof turns; three on one body are one ball joint (exponential map, x y z)
    )
    dof_axis: Tensor  # (D, 3) in the body's frame
    kp: Tensor  # (D,) [Nm/rad]
    kd: Tensor  # (D,) [Nms/rad]
    effort: Tensor  # (D,) torque limit [Nm]
    hull_body: Tensor  # (P,) long: the body that a collision point belongs to
    hull_point: Tensor  # (P, 3) sphere centre, capsule ends, box corners, in the body's frame [m]
    hull_radius: Tensor  # (P,) [m]


def _floats(text: str) -> List[float]:
    return [float(x) for x in text.split()]


def _hull(geom: ET.Element) -> List[Tuple[np.ndarray, float]]:
    """Points in the body's frame, and the radius around each, that bound a geom [m]: a sphere is a capsule whose ends coincide."""
    size, centre = _floats(geom.get("size")), np.array(_floats(geom.get("pos", "0 0 0")))
    if geom.get("type") == "box":
        return [(centre + np.array(sign) * size, 0.0) for sign in itertools.product((-1, 1), repeat=3)]
    return [(end, size[0]) for end in np.reshape(_floats(geom.get("fromto", "")) or centre, (-1, 3))]


def _read_character(path: str, device: str) -> Character:
    put = lambda x, dtype=torch.float32: torch.as_tensor(np.array(x), dtype=dtype).to(device)  # noqa: E731
    long = lambda x: put(x, torch.long)  # noqa: E731
    mjcf = ET.parse(path).getroot()
    bodies = list(mjcf.find("worldbody/body").iter("body"))  # depth-first
    parent_of = {child: j for j, body in enumerate(bodies) for child in body.findall("body")}
    names, parents = [body.get("name") for body in bodies], [parent_of.get(body, -1) for body in bodies]
    joints = [body.findall("joint") for body in bodies]
    for body, own in zip(bodies, joints):
        plain = not set(body.keys()) - {"name", "pos"} and all(
            j.get("type") == "hinge" and j.get("pos") is None for j in own
        )
        axes = [_floats(joint.get("axis")) for joint in own]
        if len(own) not in (0, 1, 3) or not plain or (len(own) == 3 and axes != np.eye(3).tolist()):
            fault = "it needs no, one, or three hinges in x, y, z order, and no frame but its pos"
            raise InputError(f"{path}: body {body.get('name')}: {fault}")
    dofs = [(j, joint) for j, own in enumerate(joints) for joint in own]
    gear = {motor.get("joint"): float(motor.get("gear")) for motor in mjcf.iter("motor")}
    column = lambda key: put([_floats(joint.get(key)) for _, joint in dofs])  # (D, n)  # noqa: E731
    hull = [(j, *point) for j, body in enumerate(bodies) for geom in body.findall("geom") for point in _hull(geom)]
    depths = [[0]]
    while sum(map(len, depths)) < len(names):
        depths.append([j for j, parent in enumerate(parents) if parent in depths[-1]])
    return Character(
        str(path),
        names,
        parents,
        levels=[(long(b), long([a.index(parents[j]) for j in b])) for a, b in zip(depths, depths[1:])],
        level_order=torch.argsort(long([j for depth in depths for j in depth])),
        balls=long([j for j, own in enumerate(joints) if len(own) == 3]),
        hinges=long([j for j, own in enumerate(joints) if len(own) == 1]),
        hinge_dofs=long([d for d, (j, _) in enumerate(dofs) if len(joints[j]) == 1]),
        offsets=put([[0.0] * 3] + [_floats(body.get("pos", "0 0 0")) for body in bodies[1:]]),
        dof_names=[joint.get("name") for _, joint in dofs],
        dof_body=long([j for j, _ in dofs]),
        dof_axis=column("axis"),
        kp=column("stiffness")[:, 0],
        kd=column("damping")[:, 0],
        effort=put([gear[joint.get("name")] for _, joint in dofs]),
        hull_body=long([j for j, _, _ in hull]),
        hull_point=put([point for _, point, _ in hull]),
        hull_radius=put([radius for _, _, radius in hull]),
    )


def load_character(path: str, device: str = "cpu") -> Character:
    """Read a character from an MJCF file written like motions/humanoid.xml (hinges only, no defaults for sizes or frames).

    Raises InputError for a file that is missing, is not XML or has joints other than one or three hinges a body."""
    try:
        return _read_character(path, device)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot read the character file: {error.strerror}") from error
    except (ET.ParseError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a character file written like motions/humanoid.xml ({error})") from error


def forward_kinematics(character: Character, root_position: Tensor, rotations: Tensor) -> Tuple[Tensor, Tensor]:
    """World position and rotation of every body.

    root_position (..., 3) world [m]; rotations (..., J, 4) parent-relative, row 0 the root in the world
    -> body_position (..., J, 3) world [m], body_rotation (..., J, 4) world."""
    p, q = root_position[..., None, :], rotations[..., :1, :]
    position, rotation = [p], [q]
    for bodies, above in character.levels:  # all bodies of one depth at a time
        p, q = p.index_select(-2, above), q.index_select(-2, above)
        p = p + quat_rotate(q, character.offsets[bodies].to(q))
        q = quat_multiply(q, rotations.index_select(-2, bodies))
        position.append(p)
        rotation.append(q)
    return tuple(torch.cat(x, -2).index_select(-2, character.level_order) for x in (position, rotation))


def lowest_points(character: Character, body_position: Tensor, body_rotation: Tensor) -> Tensor:
    """Height of the lowest point of each body's collision shape: (..., J, 3), (..., J, 4) world -> (..., J) world z [m]."""
    x, y, z, w = body_rotation.unbind(-1)
    # the third row of the rotation matrix times the point: only its height is needed
    row = torch.stack((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), -1)  # (..., J, 3)
    height = (row.index_select(-2, character.hull_body) * character.hull_point).sum(-1) - character.hull_radius
    height = height + body_position[..., 2].index_select(-1, character.hull_body)  # (..., P)
    lowest = torch.full(body_position.shape[:-1], float("inf"), device=height.device, dtype=height.dtype)
    return lowest.scatter_reduce(-1, character.hull_body.expand(height.shape), height, "amin")


def dof_positions(character: Character, rotations: Tensor) -> Tensor:
    """Exponential-map components of the ball joints and angles of the hinges: (..., J, 4) -> (..., D) [rad]."""
    return (rotvec_from_quat(rotations.index_select(-2, character.dof_body)) * character.dof_axis).sum(-1)


def rotations_from_dofs(character: Character, root_rotation: Tensor, dof: Tensor) -> Tensor:
    """Inverse of dof_positions: root (..., 4) world, dof positions (..., D) [rad] -> parent-relative rotations (..., J, 4)."""
    rotvec = dof.new_zeros(*dof.shape[:-1], len(character.parents), 3)
    rotvec = rotvec.index_add(-2, character.dof_body, dof[..., None] * character.dof_axis)
    return torch.cat((root_rotation[..., None, :], quat_from_rotvec(rotvec[..., 1:, :])), -2)


# ---- 3. Clip files -------------------------------------------------------------------------------------------------------------


class Clip(NamedTuple):
    """One motion clip, as stored (format: motions/README.md)."""

    fps: float
    loop: str  # "wrap": the last frame is the first one of the next cycle; "clamp": it ends there
    root_position: np.ndarray  # (F, 3) world [m]
    rotations: np.ndarray  # (F, J, 4) xyzw, parent-relative; row 0 is the root in the world


def load_clip(path: str, body_names: List[str]) -> Clip:
    """Read and check one clip of the skeleton whose bodies are `body_names`. Nothing in the file is ever executed.

    Raises InputError when it is missing, unreadable, of another skeleton, or holds values that are no motion."""

    def check(sound: bool, fault: str) -> None:
        if not sound:
            raise InputError(f"{path}: {fault}")

    check(os.path.isfile(path), "no such motion file")
    try:
        with zipfile.ZipFile(path) as archive:
            check(
                sum(member.file_size for member in archive.infolist()) <= 2**30,
                "unpacks to more than 1 GiB; that is no motion clip",
            )
        with np.load(path, allow_pickle=False) as file:
            missing = [
                key for key in ("fps", "loop", "body_names", "root_position", "rotations") if key not in file.files
            ]
            check(not missing, f"not a motion clip, it lacks {', '.join(missing)} (format: motions/README.md)")
            data = {key: file[key] for key in file.files}
        fps, loop = float(data["fps"].reshape(())), str(data["loop"].reshape(()))
        names = [str(name) for name in data["body_names"]]
        root, rotations = data["root_position"].astype(np.float64), data["rotations"].astype(np.float64)
    except InputError:
        raise
    except Exception as error:  # whatever zipfile, zlib and numpy raise on a file that is not ours
        hint = "convert it with motions/convert.py" if not zipfile.is_zipfile(path) else "is it truncated?"
        raise InputError(f"{path}: not a readable .npz motion clip ({type(error).__name__}); {hint}") from error
    odd, J = sorted(set(names) ^ set(body_names)), len(body_names)
    frames = len(root) if root.ndim else 0
    check(
        names == body_names,
        f"clip of another skeleton; body names differ: {' '.join(', '.join(odd[:5]).split()) or 'their order'}",
    )
    shaped = root.shape == (frames, 3) and rotations.shape == (frames, J, 4)
    check(shaped, f"root_position {root.shape} and rotations {rotations.shape} are not (F, 3) and (F, {J}, 4)")
    check(frames >= 2, f"{frames} frame; a motion needs at least 2")
    check(np.isfinite(root).all() and np.isfinite(rotations).all(), "NaN or infinity in root_position or rotations")
    check(np.abs(root).max() < 1e4, f"root_position reaches {np.abs(root).max():.3g}; the unit is metres")
    check(1.0 <= fps <= 1000.0, f"fps is {fps}; expected 1 to 1000")
    check(loop in ("wrap", "clamp"), f'loop is {loop[:20]!r}; expected "wrap" or "clamp"')
    norm = np.linalg.norm(rotations, axis=-1)  # (F, J)
    worst = np.unravel_index(np.abs(norm - 1).argmax(), norm.shape)
    found = f"rotation of {names[worst[1]]} in frame {worst[0]} has norm {norm[worst]:.4g}"
    check(abs(norm[worst] - 1) < 1e-3, f"{found}; expected unit quaternions")
    return Clip(fps, loop, root, rotations / norm[..., None])


def save_clip(path: str, clip: Clip, body_names: List[str], source: str, license: str) -> None:
    """Write a clip atomically: a reader sees the old file or the whole new one."""
    arrays = dict(
        root_position=np.asarray(clip.root_position, np.float32), rotations=np.asarray(clip.rotations, np.float32)
    )
    with open(f"{path}.tmp", "wb") as file:
        np.savez(
            file, fps=float(clip.fps), loop=clip.loop, body_names=body_names, source=source, license=license, **arrays
        )
    os.replace(f"{path}.tmp", path)


def find_clips(path: str) -> Tuple[List[str], List[float]]:
    """The clip files and weights that a clip, a folder of clips or a JSON dataset file stands for.

    A dataset file is {"clips": [{"file": "walk.npz", "weight": 1.0}, ...]}, with paths relative to itself; a folder weights its clips
    equally. Raises InputError for a path that is none of these."""
    if os.path.isdir(path):
        files = sorted(os.path.join(path, name) for name in os.listdir(path) if name.endswith(".npz"))
        if not files:
            raise InputError(f"{path}: no .npz motion clip in this folder")
        return files, [1.0] * len(files)
    if not str(path).endswith(".json"):
        return [path], [1.0]
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)["clips"]
        files = [os.path.join(os.path.dirname(path), entry["file"]) for entry in entries]
        weights = [float(entry.get("weight", 1.0)) for entry in entries]
        unknown = sorted({key for entry in entries for key in entry} - {"file", "weight"})
        if unknown:
            raise ValueError(f"unknown key {unknown[0]}")
    except OSError as error:
        raise InputError(f"{path}: cannot read the dataset file: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f'{path}: not a dataset file {{"clips": [{{"file": ..., "weight": ...}}]}} ({error})'
        ) from error
    if not files or not all(0.0 < weight < math.inf for weight in weights):
        raise InputError(f"{path}: a dataset needs at least one clip, and positive finite weights")
    return files, weights


def load_commands(path: str, num_envs: int, device: str = "cpu") -> Tuple[Tensor, Tensor, Tensor]:
    """Read a command file, lines of "time [s], heading [degrees], speed [m/s]", each valid until the next.

    -> times (C,) [s], headings (C, num_envs) [rad], speeds (C, num_envs) [m/s], the same for all. Raises InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of an empty file
            table = torch.tensor(np.loadtxt(path, delimiter=",", ndmin=2), dtype=torch.float32, device=device)
        times, headings, speeds = table.T.contiguous()
    except OSError as error:
        raise InputError(f"{path}: cannot read the commands: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f'{path}: not lines of "time [s], heading [degrees], speed [m/s]" ({error})') from error
    if not bool(table.isfinite().all()) or times[0] != 0 or bool((times.diff() <= 0).any()) or bool((speeds < 0).any()):
        raise InputError(f"{path}: expected finite numbers, times that rise from 0, and no speed below 0")
    return times, torch.deg2rad(headings)[:, None].expand(-1, num_envs), speeds[:, None].expand(-1, num_envs)


# ---- 4. Storage and sampling ---------------------------------------------------------------------------------------------------


class MotionState(NamedTuple):
    """State of a character: what a clip gives for a time and what a simulator sets and returns."""

    root_position: Tensor  # (..., 3) world [m]
    rotations: Tensor  # (..., J, 4) xyzw, parent-relative; row 0 is the root in the world
    root_velocity: Tensor  # (..., 3) of the root body's origin, world [m/s]
    root_angular_velocity: Tensor  # (..., 3) world [rad/s]
    dof_velocity: Tensor  # (..., D) angular velocity relative to the parent, in the child's frame [rad/s]


def turn_state(state: MotionState, q: Tensor) -> MotionState:
    """The state (...) seen from a world that is turned back: rotations q (..., 4) of everything about the world's origin."""
    root, others = state.rotations[..., :1, :], state.rotations[..., 1:, :]
    position, velocity, angular = (
        quat_rotate(q, x) for x in (state.root_position, state.root_velocity, state.root_angular_velocity)
    )
    return MotionState(
        position, torch.cat((quat_multiply(q[..., None, :], root), others), -2), velocity, angular, state.dof_velocity
    )


def forward_speed(state: MotionState) -> Tensor:
    """Root velocity along its heading: (...) [m/s]."""
    yaw = heading(state.rotations[..., 0, :])
    return state.root_velocity[..., 0] * torch.cos(yaw) + state.root_velocity[..., 1] * torch.sin(yaw)


def _frame_velocities(clip: Clip, character: Character, turn: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Velocities at the frames: the mean of the differences to the next and from the previous frame, across the seam for a loop."""
    root, rotations = torch.as_tensor(clip.root_position), torch.as_tensor(clip.rotations)
    a, b = rotations[:-1], rotations[1:]
    linear = (root[1:] - root[:-1]) * clip.fps  # (F-1, 3) world
    angular = rotvec_from_quat(quat_multiply(b[:, 0], quat_conjugate(a[:, 0]))) * clip.fps  # (F-1, 3) world
    local = rotvec_from_quat(quat_multiply(quat_conjugate(a), b)) * clip.fps  # (F-1, J, 3) child frame
    dof = (local[:, character.dof_body.cpu()] * character.dof_axis.cpu()).sum(-1)  # (F-1, D)

    def at_frames(step: Tensor, vector: bool) -> Tensor:
        carry = (lambda q, v: quat_rotate(q.expand(4), v)) if vector else (lambda q, v: v)
        wrap = clip.loop == "wrap"
        before = carry(quat_conjugate(turn), step[-1]) if wrap else step[0]  # the step that leads to frame 0
        after = carry(turn, step[0]) if wrap else step[-1]  # the step that leaves the last frame
        return 0.5 * (torch.cat((step, after[None])) + torch.cat((before[None], step)))

    return at_frames(linear, True), at_frames(angular, True), at_frames(dof, False)


def check_joints(path: str, clip: Clip, character: Character) -> None:
    """Raise InputError if a hinge turns about another axis than its own, or a welded body turns at all: no simulator could follow."""
    axis = torch.zeros(len(character.parents), 3)
    axis[character.hinges.cpu()] = character.dof_axis[character.hinge_dofs].cpu()
    v = clip.rotations[..., :3]  # (F, J, 3)
    off = np.linalg.norm(
        v - (v * axis.numpy()).sum(-1, keepdims=True) * axis.numpy(), axis=-1
    )  # sine of half the wrong angle
    off[:, [0, *character.balls.tolist()]] = 0.0
    frame, body = np.unravel_index(off.argmax(), off.shape)
    if off[frame, body] > 1e-2:
        raise InputError(
            f"{path}: {character.body_names[body]} turns off its hinge axis, or is welded and turns, in frame {frame}"
        )


def mirror_clip(clip: Clip, character: Character) -> Clip:
    """The clip reflected in the plane of X and Z, left and right bodies exchanged. Raises InputError if the skeleton is not symmetric."""
    other = [name.replace("left", "#").replace("right", "left").replace("#", "right") for name in character.body_names]
    flip = torch.tensor([1.0, -1.0, 1.0])
    order = [character.body_names.index(name) if name in character.body_names else -1 for name in other]
    if -1 in order or not torch.allclose(character.offsets.cpu()[order] * flip, character.offsets.cpu(), atol=1e-4):
        raise InputError(f"{character.path}: its left and right are no mirror images; --no-mirror is there")
    # a reflection turns the axis of a rotation like a vector, and its sense around
    return clip._replace(
        root_position=clip.root_position * flip.numpy(), rotations=clip.rotations[:, order] * np.array([-1, 1, -1, 1.0])
    )


class MotionLib:
    """All frames of a set of clips on one device. Times are seconds from a clip's start; at a loop's seam the character goes on from
    where, and in the direction in which, the cycle before has left it (height excepted)."""

    def __init__(self, path: str, character: Character, device: str = "cpu", mirror: bool = False) -> None:
        """Load a clip, a folder or a dataset file (see find_clips), with the mirror image of every clip if asked. Raises InputError."""
        self.files, weights = find_clips(path)
        self.character = character
        self.clips = [load_clip(file, character.body_names) for file in self.files]
        for file, clip in zip(self.files, self.clips):
            check_joints(file, clip, character)
        if mirror:
            self.clips += [mirror_clip(clip, character) for clip in self.clips]
            self.files, weights = self.files + [f"{file} (mirrored)" for file in self.files], weights * 2
        count = [len(clip.root_position) for clip in self.clips]
        put = lambda x, dtype=torch.float32: torch.as_tensor(np.asarray(x), dtype=dtype).to(device)  # noqa: E731
        self.weight = put(np.array(weights) / max(weights) / (np.array(weights) / max(weights)).sum())  # (C,)
        self.first = put(np.cumsum([0] + count[:-1]), torch.long)  # (C,) index of a clip's first frame
        self.last = put(np.array(count) - 1, torch.long)  # (C,) number of a clip's last frame
        self.fps = put([clip.fps for clip in self.clips])  # (C,)
        self.length = self.last / self.fps  # (C,) [s]
        self.loop = put([clip.loop == "wrap" for clip in self.clips], torch.bool)  # (C,)
        start = torch.stack([torch.as_tensor(clip.rotations[0, 0]) for clip in self.clips])
        end = torch.stack([torch.as_tensor(clip.rotations[-1, 0]) for clip in self.clips])
        turn = heading(end) - heading(start)
        self.turn = put((turn + math.pi) % (2 * math.pi) - math.pi)  # (C,) yaw gained in a cycle [rad]
        turns = quat_from_yaw(self.turn.cpu().double())
        velocities = zip(*[_frame_velocities(clip, character, turns[i]) for i, clip in enumerate(self.clips)])
        self.root_position = put(np.concatenate([clip.root_position for clip in self.clips]))  # (F, 3)
        self.rotations = put(np.concatenate([clip.rotations for clip in self.clips]))  # (F, J, 4)
        self.root_velocity, self.root_angular_velocity, self.dof_velocity = [put(torch.cat(v)) for v in velocities]

    def sample(self, n: int, span: float, generator: torch.Generator) -> Tuple[Tensor, Tensor]:
        """Draw n clips by weight and start times, uniform over what leaves `span` seconds in a clip that does not loop.

        -> clip (n,) long, time (n,) [s]"""
        clip = torch.multinomial(self.weight, n, replacement=True, generator=generator)
        room = torch.where(self.loop, self.length, (self.length - span).clamp_min(0.0))[clip]
        return clip, torch.rand(n, generator=generator, device=room.device) * room

    def state(self, clip: Tensor, time: Tensor) -> MotionState:
        """Interpolated state of clips (...) long at times (...) [s]; a clip that does not loop holds its ends."""
        length, loop = self.length[clip], self.loop[clip]
        cycle = torch.where(loop, torch.floor(time / length), torch.zeros_like(time))
        frame = ((time - cycle * length).clamp_min(0.0) * self.fps[clip]).clamp(max=self.last[clip])
        low = torch.minimum(frame.long(), self.last[clip] - 1)
        blend = (frame - low)[..., None]
        i = self.first[clip] + low
        mix = lambda x: torch.lerp(x[i], x[i + 1], blend)  # noqa: E731
        rotations = slerp(self.rotations[i], self.rotations[i + 1], blend[..., None])

        # Cycle k starts at p_0 + sum_{i<k} R(i turn) d, turned by k turn. With e = exp(i turn) that sum is d (e^k - 1) / (e - 1),
        # a chord of length sin(k turn / 2) / sin(turn / 2) in the direction (k - 1) turn / 2.
        start, turn = self.root_position[self.first[clip]], self.turn[clip]
        step = (self.root_position[(self.first + self.last)[clip]] - start) * torch.tensor(
            [1.0, 1.0, 0.0], device=start.device
        )
        chord = torch.where(turn.abs() < 1e-4, cycle, torch.sin(0.5 * cycle * turn) / torch.sin(0.5 * turn))
        carried = quat_rotate(quat_from_yaw(0.5 * (cycle - 1) * turn), step) * chord[..., None]
        yaw = quat_from_yaw(cycle * turn)
        root = quat_multiply(yaw, rotations[..., 0, :])
        return MotionState(
            root_position=start + carried + quat_rotate(yaw, mix(self.root_position) - start),
            rotations=torch.cat((root[..., None, :], rotations[..., 1:, :]), -2),
            root_velocity=quat_rotate(yaw, mix(self.root_velocity)),
            root_angular_velocity=quat_rotate(yaw, mix(self.root_angular_velocity)),
            dof_velocity=mix(self.dof_velocity),
        )

    def statistics(self) -> Tuple[Tensor, Tensor, float]:
        """Mean dof positions (D,) [rad], lowest height of each body (J,) [m], mean forward speed [m/s]; means over the clips by weight."""
        time = torch.linspace(0, 1, 200, device=self.length.device)[:, None] * self.length  # (200, C)
        state = self.state(torch.arange(len(self.files), device=time.device).expand(time.shape), time)
        lowest = lowest_points(
            self.character, *forward_kinematics(self.character, state.root_position, state.rotations)
        )
        mean = dof_positions(self.character, state.rotations).mean(0)  # (C, D)
        speed = float((forward_speed(state).mean(0) * self.weight).sum())
        return (mean * self.weight[:, None]).sum(0), lowest.flatten(0, 1).amin(0), speed


# ---- 5. Pose error -------------------------------------------------------------------------------------------------------------


def relative_positions(body_position: Tensor, root_rotation: Tensor) -> Tensor:
    """Positions of the non-root bodies relative to the root, in the heading frame: (..., J, 3), (..., 4) -> (..., J-1, 3) [m]."""
    q = quat_from_yaw(-heading(root_rotation))[..., None, :]
    return quat_rotate(q, body_position[..., 1:, :] - body_position[..., :1, :])


def _warp(simulated: Tensor, reference: Tensor, any_start: bool) -> Iterator[Tensor]:
    """For each of the T simulated frames: mean cost (E, R) [m] of the best warping path that ends there, for every end in the reference."""
    columns = reference.shape[1]
    shift = lambda x: F.pad(x[:, :-1], (1, 0), value=math.inf)  # column j of the result is column j - 1 of x  # noqa: E731
    column = torch.arange(columns, device=reference.device)
    # cost and length of the best path to the cells of one row (one simulated frame), for all columns (reference frames)
    total, length = torch.full((2, len(simulated), columns), math.inf, dtype=torch.float64, device=reference.device)
    for i in range(simulated.shape[1]):
        cost = (simulated[:, i, None] - reference).norm(dim=-1).mean(-1).double()  # (E, R)
        # a path enters the row at some column k, from above or diagonally, and goes along it: cost sums from k on
        diagonal, count = shift(total), shift(length)
        if i == 0:
            start = slice(None) if any_start else slice(1)
            diagonal[:, start], count[:, start] = 0.0, 0.0
        enter, count = torch.minimum(total, diagonal), torch.where(total <= diagonal, length, count)
        along = cost.cumsum(1)
        cheapest, k = torch.cummin(enter - along + cost, 1)
        total, length = along + cheapest, count.gather(1, k) + column - k + 1
        yield total / length


def pose_error(
    simulated: Tensor, reference: Tensor, steps: Tensor, horizon: Union[int, Tensor], any_start: bool = False
) -> Tuple[Tensor, Tensor]:
    """Dynamic-time-warping pose error of each episode (AMP paper, section 8.1, table 3), lost steps included.

    Mean over bodies of the distance between simulated (E, T, J-1, 3) and reference (E, R, J-1, 3) positions (see relative_positions),
    averaged along the best warping path: it starts at both first frames (any_start: anywhere in the reference), advances by one frame
    in either or both, and ends at the simulation's last frame, anywhere in the reference. steps (E,) is how many of the T frames an
    episode lived; each of the horizon - steps control steps lost to a fall counts as 1 m.
    -> (E,) [m], and the distance of each body at each frame from where the best path to that frame ends, (E, T, J-1) [m]"""
    error, bodies, episode = (
        torch.zeros(len(simulated), dtype=torch.float64, device=reference.device),
        [],
        torch.arange(len(simulated)),
    )
    for i, cost in enumerate(_warp(simulated, reference, any_start)):
        best, end = cost.min(1)  # (E,)
        error = torch.where(steps == i + 1, best, error)
        bodies.append((simulated[:, i] - reference.expand(len(simulated), -1, -1, -1)[episode, end]).norm(dim=-1))
    return ((error * steps + (horizon - steps).clamp_min(0)) / horizon).float(), torch.stack(bodies, 1)


def reference_poses(motions: MotionLib, clip: Tensor, time: Tensor) -> Tensor:
    """What pose_error compares with: relative_positions of clips (...) long at times (...) [s] -> (..., J-1, 3) [m]."""
    state = motions.state(clip, time)
    body_position, _ = forward_kinematics(motions.character, state.root_position, state.rotations)
    return relative_positions(body_position, state.rotations[..., 0, :])


def mean_over_episodes(bodies: Tensor, steps: Tensor) -> Tensor:
    """Mean of distances (E, T, J-1) over the episodes that still live at a frame, steps (E,) -> (T, J-1), NaN where none does."""
    lived = (torch.arange(bodies.shape[1], device=steps.device) < steps[:, None])[..., None]  # (E, T, 1)
    return (bodies.nan_to_num() * lived).sum(0) / lived.sum(0)


def episode_error(
    motions: MotionLib, poses: Tensor, steps: Tensor, limit: Tensor, clip: Tensor, start: Tensor, dt: float
) -> Tuple[float, Tensor]:
    """Mean pose error [m] of episodes that imitate clips (E,) from times start (E,) [s] on; poses (E, T, J-1, 3), steps and limit (E,).

    -> that, and the error of each body over time (T, J-1) [m]"""
    # the reference is unrolled to one and a half times the episode, so that a slow character can be matched as well as a fast one
    times = start[:, None] + dt * torch.arange(1, int(1.5 * poses.shape[1]) + 1, device=poses.device)  # (E, R) [s]
    error, bodies = pose_error(poses, reference_poses(motions, clip[:, None].expand(times.shape), times), steps, limit)
    return float(error.mean()), mean_over_episodes(bodies, steps)


def nearest_clips(
    motions: MotionLib, poses: Tensor, steps: Tensor, horizon: int, dt: float, window: float = 1.0
) -> Tuple[Dict[str, float], Tensor]:
    """Pose error of episodes that mix clips: each window [s] is compared to the clip that it fits best, from anywhere in it.

    poses (E, T, J-1, 3) [m] (see relative_positions), steps (E,) lived of `horizon` control steps of dt [s]
    -> pose_error_m: mean over windows [m], lost steps counting 1 m; visits_<clip>: share of the lived windows nearest to each clip;
    and the error of each body over time (T, J-1) [m]"""
    W = max(round(window / dt), 1)
    K = -(-horizon // W)  # windows an episode, the last one shorter perhaps
    poses, T = (
        F.pad(poses, (0, 0, 0, 0, 0, K * W - poses.shape[1])).reshape(-1, W, *poses.shape[2:]),
        poses.shape[1],
    )  # (E K, W, J-1, 3)
    begin = W * torch.arange(K, device=poses.device)
    length = (horizon - begin).clamp_max(W).expand(len(steps), K).flatten()  # (E K,)
    lived = (steps[:, None] - begin).clamp(0, W).flatten()
    errors = []
    for i in range(len(motions.clips)):
        seconds = float(motions.length[i]) + (1.5 * window if motions.loop[i] else 0.0)
        times = dt * torch.arange(1 + int(seconds / dt), device=poses.device)
        reference = reference_poses(motions, torch.full_like(times, i, dtype=torch.long), times)[None]  # (1, R, J-1, 3)
        errors.append(pose_error(poses, reference, lived, length, any_start=True))
    error, nearest = torch.stack([error for error, _ in errors]).min(0)
    bodies = torch.stack([bodies for _, bodies in errors])[nearest, torch.arange(len(nearest))]  # (E K, W, J-1)
    visits = torch.bincount(nearest[lived > 0], minlength=len(errors)) / (lived > 0).sum().clamp_min(1)
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in motions.files])
    shares = {f"visits_{os.path.relpath(file, folder)}": share for file, share in zip(motions.files, visits.tolist())}
    metrics = {"pose_error_m": float((error * length).sum() / length.sum()), **shares}
    return metrics, mean_over_episodes(bodies.reshape(len(steps), K * W, -1)[:, :T], steps)
