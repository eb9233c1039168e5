"""Quaternions, the character's skeleton, motion clips: sampling, interpolation, forward kinematics, batched in torch.

Conventions: Z up, +X forward, +Y left; metres, radians, seconds; quaternions xyzw. "Heading frame" is the world frame
turned about Z until +X is the direction in which the root's own +X axis points on the ground.
Dimension key: F frames, J bodies (row 0 is the root), D dofs, C clips, P collision points, `...` any batch.
"""

import functools
import itertools
import math
import xml.etree.ElementTree as ET
from typing import List, NamedTuple, Tuple

import numpy as np
import torch
from torch import Tensor

from clips import Clip, find_clips, load_clip
from files import InputError, find, reading

# ---- 1. Quaternions (xyzw) -------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def _tables(device: torch.device, dtype: torch.dtype) -> List[Tensor]:
    """What makes the products a_i b_j, each at 4 i + j, of a's and b's components (4, 16), (4, 16); and what makes of
    these the components of the Hamilton product (16, 4), and, if b is a, the rotated X and Z axes (16, 6)."""
    component = [3, 2, 1, 0, 2, 3, 0, 1, 1, 0, 3, 2, 0, 1, 2, 3]  # of the basis quaternions (i, j, k, 1)
    sign = [-1, 1, -1, 1, -1, -1, 1, 1, 1, -1, -1, 1, 1, 1, 1, 1]
    product = (np.eye(4)[component] * np.array(sign)[:, None]).reshape(4, 4, 4)
    axes = np.einsum("iam,mjk,j->ijak", product[:, [0, 2]], product, [-1, -1, -1, 1])[..., :3]  # q a q*, a = i and k
    tables = (np.eye(4).repeat(4, 1), np.tile(np.eye(4), 4), product.reshape(16, 4), axes.reshape(16, 6))
    return [torch.as_tensor(table, device=device, dtype=dtype) for table in tables]


def quat_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product: the rotation b followed by the rotation a. (..., 4), (..., 4) -> (..., 4)."""
    left, right, hamilton, _ = _tables(a.device, a.dtype)
    return ((a @ left) * (b @ right)) @ hamilton  # several times faster than products of components or broadcasting


def quat_conjugate(q: Tensor) -> Tensor:
    """Inverse rotation of a unit quaternion. (..., 4) -> (..., 4)."""
    return torch.cat((-q[..., :3], q[..., 3:]), -1)


def quat_rotate(q: Tensor, v: Tensor) -> Tensor:
    """Rotate vectors by unit quaternions. (..., 4), (..., 3) -> (..., 3)."""
    u, v = torch.broadcast_tensors(q[..., :3], v)
    # v + w t + u x t with t = 2 u x v
    t = 2.0 * torch.linalg.cross(u, v)
    return v + q[..., 3:] * t + torch.linalg.cross(u, t)


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
    # angle / sin(angle / 2), which tends to 2
    scale = torch.where(sin_half > 1e-7, angle / sin_half.clamp_min(1e-7), torch.full_like(angle, 2.0))
    return q[..., :3] * scale


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Interpolate along the shorter arc, t in [0, 1]. (..., 4), (..., 4), (..., 1) -> (..., 4)."""
    way = rotvec_from_quat(quat_multiply(quat_conjugate(a), b))
    return quat_multiply(a, quat_from_rotvec(t * way))


def tangent_normal(q: Tensor) -> Tensor:
    """Six continuous numbers for a rotation: its rotated X and Z axes. (..., 4) -> (..., 6)."""
    left, right, _, axes = _tables(q.device, q.dtype)
    return ((q @ left) * (q @ right)) @ axes


def heading(q: Tensor) -> Tensor:
    """Yaw [rad] of the rotated +X axis on the ground. (..., 4) -> (...)."""
    tangent = tangent_normal(q)
    return torch.atan2(tangent[..., 1], tangent[..., 0])


def quat_from_yaw(yaw: Tensor) -> Tensor:
    """Rotation about world Z. (...) [rad] -> (..., 4)."""
    return torch.stack((0 * yaw, 0 * yaw, torch.sin(0.5 * yaw), torch.cos(0.5 * yaw)), -1)


# ---- 2. The character, read from its MJCF file -----------------------------------------------------------------------


class Character(NamedTuple):
    """Skeleton, drives and collision shape of a character (J bodies, D dofs, P collision points)."""

    path: str
    body_names: List[str]  # depth-first, as in the file; body 0 is the root
    parents: List[int]  # index of the parent body, -1 for the root
    levels: List[Tuple[Tensor, Tensor]]  # each depth below the root: its bodies (n,), their parents' places one above
    level_order: Tensor  # (J,) where each body stands in the concatenation of all depths
    balls: Tensor  # long: bodies on ball joints
    hinges: Tensor  # long: bodies on hinges
    hinge_dofs: Tensor  # long: the dofs of those hinges
    offsets: Tensor  # (J, 3) body origin in its parent's frame [m]
    dof_names: List[str]  # D names, in file order
    dof_body: Tensor  # (D,) long: the body a dof turns; three on a body are one ball joint (exponential map, x y z)
    dof_axis: Tensor  # (D, 3) in the body's frame
    kp: Tensor  # (D,) [Nm/rad]
    kd: Tensor  # (D,) [Nms/rad]
    effort: Tensor  # (D,) torque limit [Nm]
    hull_body: Tensor  # (P,) long: the body that a collision point belongs to
    hull_point: Tensor  # (P, 3) sphere centre, capsule ends, box corners, in the body's frame [m]
    hull_radius: Tensor  # (P,) [m]


def _floats(text: str) -> List[float]:
    return [float(x) for x in text.split()]


def _hull(path: str, geom: ET.Element) -> List[Tuple[List[float], float]]:
    """Points in the body's frame, and the radius around each, that bound a geom [m]. Raises InputError."""
    placed = {"fromto", "quat", "euler", "axisangle", "xyaxes", "zaxis", "class"} & set(geom.keys())
    if (geom.get("type"), *placed) not in (("sphere",), ("box",), ("capsule", "fromto")):
        raise InputError(f"{path}: geom {geom.get('name')}: must be sphere or box with pos, or capsule with fromto")
    size = _floats(geom.get("size"))
    ends = np.reshape(_floats(geom.get("fromto") or geom.get("pos", "0 0 0")), (-1, 3))  # a sphere or box has but one
    if geom.get("type") == "box":
        return [((ends[0] + np.array(sign) * size).tolist(), 0.0) for sign in itertools.product((-1, 1), repeat=3)]
    return [(end, size[0]) for end in ends.tolist()]


def _check_body(path: str, body: ET.Element) -> None:
    """Raise InputError if a body has joints or a frame that forward kinematics does not know."""
    joints = body.findall("joint")
    plain = bool(body.get("name")) and set(body.keys()) <= {"name", "pos"}
    hinges = all(joint.get("type") == "hinge" and joint.get("pos") is None for joint in joints)
    axes = [_floats(joint.get("axis")) for joint in joints]
    if not plain or not hinges or (len(joints) > 1 and axes != np.eye(3).tolist()):
        raise InputError(f"{path}: body {body.get('name')}: needs 0, 1, or 3 hinges in x, y, z order, and only a pos")


def _read_character(path: str, device: str) -> Character:
    """load_character, but a file of another kind raises whatever it leads to."""
    put = functools.partial(torch.as_tensor, dtype=torch.float32, device=device)
    long = functools.partial(torch.as_tensor, dtype=torch.long, device=device)
    mjcf = ET.parse(path).getroot()
    bodies = list(mjcf.find("worldbody/body").iter("body"))  # depth-first
    for body in bodies:
        _check_body(path, body)
    dofs = [(j, joint) for j, body in enumerate(bodies) for joint in body.findall("joint")]
    hull = [(j, *ball) for j, body in enumerate(bodies) for geom in body.findall("geom") for ball in _hull(path, geom)]
    if not dofs or not hull or len(bodies) > 1000 or len({body.get("name") for body in bodies}) < len(bodies):
        raise InputError(f"{path}: a character needs joints, geoms, and another name for each of at most 1000 bodies")
    parent_of = {child: j for j, body in enumerate(bodies) for child in body.findall("body")}
    parents = [-1] + [parent_of[body] for body in bodies[1:]]
    order = [0]  # by depth
    levels = []
    above = [0]
    while len(order) < len(bodies):
        level = [j for j, parent in enumerate(parents) if parent in above]
        levels.append((long(level), long([above.index(parents[j]) for j in level])))
        order += level
        above = level
    dof_body = [j for j, _ in dofs]
    hinge_dofs = [d for d, j in enumerate(dof_body) if dof_body.count(j) == 1]
    gear = {motor.get("joint"): float(motor.get("gear")) for motor in mjcf.iter("motor")}
    return Character(
        path=str(path),
        body_names=[body.get("name") for body in bodies],
        parents=parents,
        levels=levels,
        level_order=torch.argsort(long(order)),
        balls=long([j for j in range(len(bodies)) if dof_body.count(j) == 3]),
        hinges=long([dof_body[d] for d in hinge_dofs]),
        hinge_dofs=long(hinge_dofs),
        offsets=put([[0.0] * 3] + [_floats(body.get("pos", "0 0 0")) for body in bodies[1:]]),
        dof_names=[joint.get("name") for _, joint in dofs],
        dof_body=long(dof_body),
        dof_axis=put([_floats(joint.get("axis")) for _, joint in dofs]),
        kp=put([float(joint.get("stiffness")) for _, joint in dofs]),
        kd=put([float(joint.get("damping")) for _, joint in dofs]),
        effort=put([gear[joint.get("name")] for _, joint in dofs]),
        hull_body=long([j for j, _, _ in hull]),
        hull_point=put([point for _, point, _ in hull]),
        hull_radius=put([radius for _, _, radius in hull]),
    )


def load_character(path: str, device: str = "cpu", needed: Tuple[str, ...] = ()) -> Character:
    """Read a character that has the needed bodies from an MJCF file like motions/humanoid.xml. Raises InputError."""
    with reading(path, "a character file written like motions/humanoid.xml"):
        character = _read_character(find(path), device)
    absent = [name for name in needed if name not in character.body_names]
    if absent:
        raise InputError(f"{path}: no {', '.join(absent)}, which observations need")
    return character


def forward_kinematics(character: Character, root_position: Tensor, rotations: Tensor) -> Tuple[Tensor, Tensor]:
    """World position and rotation of every body.

    root_position (..., 3) world [m]; rotations (..., J, 4) parent-relative, row 0 the root in the world
    -> body_position (..., J, 3) world [m], body_rotation (..., J, 4) world."""
    positions = [root_position[..., None, :]]
    quaternions = [rotations[..., :1, :]]
    for bodies, above in character.levels:  # all bodies of one depth at a time
        p = positions[-1].index_select(-2, above)
        q = quaternions[-1].index_select(-2, above)
        positions.append(p + quat_rotate(q, character.offsets[bodies].to(q)))
        quaternions.append(quat_multiply(q, rotations.index_select(-2, bodies)))
    order = character.level_order
    return torch.cat(positions, -2).index_select(-2, order), torch.cat(quaternions, -2).index_select(-2, order)


def lowest_points(character: Character, body_position: Tensor, body_rotation: Tensor) -> Tensor:
    """Lowest point of each body's collision shape: (..., J, 3), (..., J, 4) world -> height (..., J) [m]."""
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
    """Inverse of dof_positions: root (..., 4) world, dofs (..., D) [rad] -> parent-relative rotations (..., J, 4)."""
    rotvec = dof.new_zeros(*dof.shape[:-1], len(character.parents), 3)
    rotvec = rotvec.index_add(-2, character.dof_body, dof[..., None] * character.dof_axis)
    return torch.cat((root_rotation[..., None, :], quat_from_rotvec(rotvec[..., 1:, :])), -2)


# ---- 3. Storage and sampling -----------------------------------------------------------------------------------------


class MotionState(NamedTuple):
    """State of a character: what a clip gives for a time and what a simulator sets and returns."""

    root_position: Tensor  # (..., 3) world [m]
    rotations: Tensor  # (..., J, 4) xyzw, parent-relative; row 0 is the root in the world
    root_velocity: Tensor  # (..., 3) of the root body's origin, world [m/s]
    root_angular_velocity: Tensor  # (..., 3) world [rad/s]
    dof_velocity: Tensor  # (..., D) angular velocity relative to the parent, in the child's frame [rad/s]


def turn_state(state: MotionState, q: Tensor) -> MotionState:
    """The state (...) with everything turned about the world's origin by rotations q (..., 4)."""
    root = quat_multiply(q[..., None, :], state.rotations[..., :1, :])
    return state._replace(
        root_position=quat_rotate(q, state.root_position),
        rotations=torch.cat((root, state.rotations[..., 1:, :]), -2),
        root_velocity=quat_rotate(q, state.root_velocity),
        root_angular_velocity=quat_rotate(q, state.root_angular_velocity),
    )


def forward_speed(state: MotionState) -> Tensor:
    """Root velocity along its heading: (...) [m/s]."""
    yaw = heading(state.rotations[..., 0, :])
    return state.root_velocity[..., 0] * torch.cos(yaw) + state.root_velocity[..., 1] * torch.sin(yaw)


def _frame_velocities(clip: Clip, character: Character, turn: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Velocities at the frames: the mean of the differences to the next and from the previous frame.

    turn (4,): the rotation from a cycle to the next, across whose seam a loop's differences are taken
    -> root (F, 3) world [m/s], root (F, 3) world [rad/s], dofs (F, D) [rad/s]"""
    rotations = torch.as_tensor(clip.rotations)
    inverse = quat_conjugate(rotations[:-1])
    linear = torch.as_tensor(np.diff(clip.root_position, axis=0)) * clip.fps  # (F-1, 3) world
    angular = rotvec_from_quat(quat_multiply(rotations[1:, 0], inverse[:, 0])) * clip.fps  # (F-1, 3) world
    local = rotvec_from_quat(quat_multiply(inverse, rotations[1:])) * clip.fps  # (F-1, J, 3) child frame
    dof = (local[:, character.dof_body.cpu()] * character.dof_axis.cpu()).sum(-1)  # (F-1, D)
    # the differences that lead to the first frame, and that leave the last one
    before = (linear[0], angular[0], dof[0])
    after = (linear[-1], angular[-1], dof[-1])
    if clip.loop == "wrap":
        back = quat_conjugate(turn)
        before = (quat_rotate(back, linear[-1]), quat_rotate(back, angular[-1]), dof[-1])
        after = (quat_rotate(turn, linear[0]), quat_rotate(turn, angular[0]), dof[0])
    steps = zip((linear, angular, dof), before, after)
    return tuple(0.5 * (torch.cat((step, b[None])) + torch.cat((a[None], step))) for step, a, b in steps)


def check_joints(path: str, clip: Clip, character: Character) -> None:
    """Raise InputError if a hinge turns off its axis, or a welded body turns at all: no simulator could follow."""
    axis = np.zeros((len(character.parents), 3), np.float32)
    axis[character.hinges.cpu()] = character.dof_axis[character.hinge_dofs].cpu()
    v = clip.rotations[..., :3]  # (F, J, 3)
    off = np.linalg.norm(v - (v * axis).sum(-1, keepdims=True) * axis, axis=-1)  # (F, J) sine of half the wrong angle
    off[:, [0, *character.balls.tolist()]] = 0.0
    frame, body = np.unravel_index(off.argmax(), off.shape)
    if off[frame, body] > 1e-2:
        name = character.body_names[body]
        raise InputError(f"{path}: {name} turns off its hinge axis, or is welded and turns, in frame {frame}")


def mirror_clip(clip: Clip, character: Character) -> Clip:
    """The clip reflected in the X-Z plane, left and right swapped. Raises InputError if the skeleton is asymmetric."""
    place = {name: j for j, name in enumerate(character.body_names)}
    order = [place.get(x.replace("left", "#").replace("right", "left").replace("#", "right"), -1) for x in place]
    offsets = character.offsets.cpu()
    if -1 in order or not torch.allclose(offsets[order] * torch.tensor([1.0, -1.0, 1.0]), offsets, atol=1e-4):
        raise InputError(f"{character.path}: its left and right are no mirror images, as its dataset needs")
    # a reflection turns the axis of a rotation like a vector, and its sense around
    return Clip(clip.fps, clip.loop, clip.root_position * [1, -1, 1], clip.rotations[:, order] * [-1, 1, -1, 1])


def cycle_turn(clip: Clip) -> float:
    """Yaw gained from the first to the last frame, in [-pi, pi) [rad]."""
    first, last = heading(torch.as_tensor(clip.rotations[[0, -1], 0])).tolist()
    return (last - first + math.pi) % (2 * math.pi) - math.pi


def straight_clip(path: str, clip: Clip) -> Clip:
    """A loop that leads straight on: its turn, with the opposite sign, is spread over the frames. Raises InputError if
    that is more than half a radian: such a loop is meant to turn."""
    turn = cycle_turn(clip) * (clip.loop == "wrap")
    if abs(turn) > 0.5:
        raise InputError(f"{path}: turns {math.degrees(turn):.0f} degrees a cycle; --no-keep-course takes such a loop")
    yaw = -turn * torch.linspace(0, 1, len(clip.rotations), dtype=torch.float64)  # (F,) [rad]
    steps = torch.as_tensor(np.diff(clip.root_position, axis=0))  # (F - 1, 3) [m]
    steps = quat_rotate(quat_from_yaw(0.5 * (yaw[1:] + yaw[:-1])), steps).numpy()
    rotations = clip.rotations.copy()
    rotations[:, 0] = quat_multiply(quat_from_yaw(yaw), torch.as_tensor(rotations[:, 0])).numpy()
    return clip._replace(root_position=np.concatenate((clip.root_position[:1], steps)).cumsum(0), rotations=rotations)


class MotionLib:
    """All frames of a set of clips on one device. Times are seconds from a clip's start; at a loop's seam the character
    goes on from where, and in the direction in which, the cycle before has left it (height excepted)."""

    def __init__(self, path: str, character: Character, device: str = "cpu", straight: bool = False) -> None:
        """Load a clip, a folder or a dataset file (see find_clips); straight: see straight_clip. Raises InputError."""
        put = functools.partial(torch.as_tensor, dtype=torch.float32, device=device)
        self.files, weights, rates, mirror = find_clips(path)
        self.character = character
        clips = [load_clip(file, character.body_names) for file in self.files]
        self.clips = [clip._replace(fps=clip.fps * rate) for clip, rate in zip(clips, rates)]
        if mirror:
            self.files = self.files + [f"{file} (mirrored)" for file in self.files]
            self.clips += [mirror_clip(clip, character) for clip in self.clips]
            weights = weights * 2
        if straight:
            self.clips = [straight_clip(file, clip) for file, clip in zip(self.files, self.clips)]
        relative = np.array(weights) / max(weights)  # the sum of the weights themselves may be infinite
        self.weight = put(relative / relative.sum())  # (C,)
        size = [len(clip.root_position) for clip in self.clips]
        self.first = put(np.cumsum([0] + size[:-1]), dtype=torch.long)  # (C,) index of a clip's first frame
        self.last = put(size, dtype=torch.long) - 1  # (C,) number of a clip's last frame
        self.fps = put([clip.fps for clip in self.clips])  # (C,)
        self.length = self.last / self.fps  # (C,) [s]
        self.loop = put([clip.loop == "wrap" for clip in self.clips], dtype=torch.bool)  # (C,)
        self.root_position = put(np.concatenate([clip.root_position for clip in self.clips]))  # (F, 3)
        self.rotations = put(np.concatenate([clip.rotations for clip in self.clips]))  # (F, J, 4)
        for file, clip, *own in zip(self.files, self.clips, self.root_position.split(size), self.rotations.split(size)):
            check_joints(file, clip, character)
            low = lowest_points(character, *forward_kinematics(character, *own)).amin(-1)  # (frames,) [m]
            if low.min() > 1.0 or low.max() < -1.0:
                raise InputError(f"{file}: never within 1 m of the ground (z = 0); motions/convert.py --lift helps")
        self.turn = put([cycle_turn(clip) for clip in self.clips])  # (C,) [rad]
        self.start = self.root_position[self.first]  # (C, 3) where the root is at time 0 [m]
        self.way = (self.root_position[self.first + self.last] - self.start) * put([1.0, 1.0, 0.0])  # (C, 3) a cycle's
        turns = quat_from_yaw(self.turn.cpu().double())  # (C, 4)
        velocities = zip(*[_frame_velocities(clip, character, q) for clip, q in zip(self.clips, turns)])
        self.root_velocity, self.root_angular_velocity, self.dof_velocity = [put(torch.cat(v)) for v in velocities]

    def sample(self, n: int, span: float, generator: torch.Generator) -> Tuple[Tensor, Tensor]:
        """Draw n clips by weight and start times, uniform over what leaves `span` seconds in a clip that does not loop.

        -> clip (n,) long, time (n,) [s]"""
        clip = torch.multinomial(self.weight, n, replacement=True, generator=generator)
        room = torch.where(self.loop, self.length, (self.length - span).clamp_min(0.0))[clip]
        return clip, torch.rand(n, generator=generator, device=room.device) * room

    def state(self, clip: Tensor, time: Tensor) -> MotionState:
        """Interpolated state of clips (...) long at times (...) [s]; one that does not loop holds its end poses."""
        length = self.length[clip]
        last = self.last[clip]
        cycle = torch.where(self.loop[clip], torch.floor(time / length), torch.zeros_like(time))
        frame = ((time - cycle * length).clamp_min(0.0) * self.fps[clip]).clamp(max=last)
        low = torch.minimum(frame.long(), last - 1)
        blend = (frame - low)[..., None]
        i = self.first[clip] + low
        frames = (self.root_position, self.root_velocity, self.root_angular_velocity, self.dof_velocity)
        position, velocity, angular_velocity, dof_velocity = [torch.lerp(x[i], x[i + 1], blend) for x in frames]
        rotations = slerp(self.rotations[i], self.rotations[i + 1], blend[..., None])
        # Cycle k starts at p_0 + sum_{i<k} R(i turn) d, turned by k turn. With e = exp(i turn) that sum is
        # d (e^k - 1) / (e - 1), a chord of length sin(k turn / 2) / sin(turn / 2) in the direction (k - 1) turn / 2.
        turn = self.turn[clip]
        chord = torch.where(turn.abs() < 1e-4, cycle, torch.sin(0.5 * cycle * turn) / torch.sin(0.5 * turn))
        carried = quat_rotate(quat_from_yaw(0.5 * (cycle - 1) * turn), self.way[clip]) * chord[..., None]
        yaw = quat_from_yaw(cycle * turn)
        start = self.start[clip]
        root = quat_multiply(yaw, rotations[..., 0, :])
        return MotionState(
            root_position=start + carried + quat_rotate(yaw, position - start),
            rotations=torch.cat((root[..., None, :], rotations[..., 1:, :]), -2),
            root_velocity=quat_rotate(yaw, velocity),
            root_angular_velocity=quat_rotate(yaw, angular_velocity),
            dof_velocity=dof_velocity,
        )

    def statistics(self) -> Tuple[Tensor, float]:
        """Mean dof positions (D,) [rad], mean forward speed [m/s]; by weight."""
        time = torch.linspace(0, 1, 200, device=self.length.device)[:, None] * self.length  # (200, C)
        state = self.state(torch.arange(len(self.files), device=time.device).expand(time.shape), time)
        mean = dof_positions(self.character, state.rotations).mean(0)  # (C, D)
        return (mean * self.weight[:, None]).sum(0), float((forward_speed(state).mean(0) * self.weight).sum())
